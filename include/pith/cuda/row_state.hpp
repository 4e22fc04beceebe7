// SPDX-License-Identifier: Apache-2.0
// Online softmax over the scores of 8 NT query rows as dot_block leaves them: lane (g, t) sees tokens 4g .. 4g+3 and rows 2t, 2t+1 of each n.
//
//   weights are 2^(s - m), s in base 2; m follows the largest score only when that leaves it by more than 2^slack
#pragma once

#include "pith/cuda/thread.hpp"

namespace pith::device {

inline constexpr float no_score = -1e30f;  // of a masked slot
inline constexpr float log2_e = 1.44269504088896340736f, ln_2 = 0.69314718055994530942f;

template <int NT>
struct row_state {
  static constexpr float slack = 8;

  float maximum[NT][2];      // the same in all lanes of a row
  float total[NT][2];        // of the weights of this lane's tokens, until finish()
  int lower[NT][2];          // slots [lower, upper) are seen
  int upper[NT][2];

  PITH_HD void clear() {
    PITH_UNROLL for (int n = 0; n < NT; ++n)
      PITH_UNROLL for (int i = 0; i < 2; ++i) maximum[n][i] = no_score, total[n][i] = 0;
  }

  // s = cap tanh(s / cap), s in base 2 units.
  PITH_HD static void soften(float (&s)[2][NT][4], float cap) {
    float const inverse = divide_fast(2.0f, cap), bound = cap * log2_e;  // tanh(x) = 1 - 2 / (1 + e^2x), e^(2 x) = 2^(2 s / cap)
    PITH_UNROLL for (int h = 0; h < 2; ++h)
      PITH_UNROLL for (int n = 0; n < NT; ++n)
        PITH_UNROLL for (int r = 0; r < 4; ++r) {
          float const x = s[h][n][r] * inverse, size = x < 0 ? -x : x;
          float const power = exp2_fast(-size);  // at most 1: no overflow
          float const tanh = divide_fast(1.0f - power, 1.0f + power);
          s[h][n][r] = x < 0 ? -(bound * tanh) : bound * tanh;
        }
  }

  // Slots that a row does not see, `first` the slot of this lane's token 4g.
  PITH_HD void mask(float (&s)[2][NT][4], int first) const {
    PITH_UNROLL for (int h = 0; h < 2; ++h)
      PITH_UNROLL for (int n = 0; n < NT; ++n)
        PITH_UNROLL for (int r = 0; r < 4; ++r) {
          int const slot = first + 2 * h + r / 2;
          if (slot < lower[n][r % 2] || slot >= upper[n][r % 2]) s[h][n][r] = no_score;
        }
  }

  // Scores become weights; sums that have been collected are scaled where a maximum moves.
  template <class Thread, class Sums>
  PITH_HD void weigh(Thread& t, float (&s)[2][NT][4], Sums& sums) {
    float most[NT][2];
    bool moves = false;
    PITH_UNROLL for (int n = 0; n < NT; ++n)
      PITH_UNROLL for (int i = 0; i < 2; ++i) {
        float const a = larger(s[0][n][i], s[0][n][2 + i]), b = larger(s[1][n][i], s[1][n][2 + i]);
        most[n][i] = larger(a, b);
        moves = moves || most[n][i] > maximum[n][i] + slack;
      }
    if (t.any(moves)) {
      PITH_UNROLL for (int n = 0; n < NT; ++n) {
        float factor[2];
        PITH_UNROLL for (int i = 0; i < 2; ++i) {
          float const next = larger(maximum[n][i], largest_over_lanes<4>(t, most[n][i]));
          factor[i] = exp2_fast(maximum[n][i] - next);
          maximum[n][i] = next;
          total[n][i] *= factor[i];
        }
        sums.scale(n, factor[0], factor[1]);
      }
    }
    PITH_UNROLL for (int n = 0; n < NT; ++n)
      PITH_UNROLL for (int i = 0; i < 2; ++i) {
        float const base = maximum[n][i] > 0.5f * no_score ? maximum[n][i] : 0.0f;  // a row that saw nothing yet: 2^no_score = 0
        PITH_UNROLL for (int h = 0; h < 2; ++h)
          PITH_UNROLL for (int e = 0; e < 2; ++e) {
            float& x = s[h][n][2 * e + i];
            x = exp2_fast(x - base);
            total[n][i] += x;
          }
      }
  }

  template <class Thread>
  PITH_HD void finish(Thread& t) {
    PITH_UNROLL for (int n = 0; n < NT; ++n)
      PITH_UNROLL for (int i = 0; i < 2; ++i) total[n][i] = sum_over_lanes<4>(t, total[n][i]);
  }
};

}  // namespace pith::device
