// SPDX-License-Identifier: Apache-2.0
// dot on tensor cores: the 32 rows of a staged block times 8 NT queries.
//
//   S^T = X Q^T:   m16n8k16 with 16 rows of the tile as M, 8 queries as N, 16 channels as K
//
// A lane (g = lane / 4, t = lane % 4) reads 16 bytes of word row 4u + t (unit u): one word each of rows 4g .. 4g+3. In m-tile h, row g is
// row 4g+2h of the block and row g+8 is 4g+2h+1. Channels come as the words have them, and the queries are laid down in the same order once
// (query_block.hpp), so nothing is shuffled. Operands are exact: codes minus the middle, or the stored 16-bit floats.
//
//   scores: lane (g, t) holds s[h][n][r] of row 4g + 2h + r/2 and query 8n + 2t + r%2
//
// scales  per_token: a group's sum times its scale, plus its bias times the query's sum over the group. per_channel: the query times the
//         scales, anew for each block; scales other than f16 are divided by a power of two that brings the largest below 2
// error   a query is Terms f16 numbers (bf16 for raw<bf16>) after division by a power of two: 2^-11 of each product, 2^-22 with two terms
//         (bf16: 2^-8, 2^-16), at least 2^-25 of the row's largest query number times the code's distance from the middle; f32 sums
//         With one term, whose codes keep an offset of 1024, f32 rounds at 2^-13 of the larger of a group's queries
// cost    5 (two terms: 9) instructions for 8 four-bit codes, and 2 NT Terms multiplications of the tensor core for 16 channels of the 32 rows
#pragma once

#include "pith/cuda/query_block.hpp"

namespace pith::device {

template <class Storage, int NT, int Terms>
struct dot_block {
  using operand = dot_operand<Storage>;
  using query = query_block<Storage, NT, Terms>;
  static constexpr int steps = operand::pairs / 2;  // of 16 channels, in a unit

  // Adds the scores, without the queries' factors. `stage`, the block as its operand reads it, and `queries` are in shared memory.
  template <class Thread, class Stage>
  PITH_HD static void run(Thread& t, Stage const& stage, std::byte const* queries, float (&s)[2][NT][4]) {
    if constexpr (!operand::is_integer) {
      PITH_UNROLL for (int unit = 0; unit < operand::units; ++unit) {
        operand x;
        x.load(stage, unit, t.lane());
        accumulate(t, x, queries, unit, ~0u, s);
      }
    } else if constexpr (query::folded) {
      run_folded(t, stage, queries, s);
    } else {
      constexpr int group = Storage::group, in_unit = operand::unit_channels;
      float part[2][NT][4];
      PITH_UNROLL for (int unit = 0; unit < operand::units; ++unit) {
        operand x;
        x.load(stage, unit, t.lane());
        if constexpr (group >= in_unit || Storage::groups == 1) {
          if (unit * in_unit % group == 0) begin_group(t, queries, unit * in_unit / group, part);
          accumulate(t, x, queries, unit, ~0u, part);
          if ((unit + 1) * in_unit % group == 0 || unit + 1 == operand::units) add_group(t, stage, queries, unit * in_unit / group, part, s);
        } else {  // several groups in a unit: each takes the lanes that hold its words
          constexpr int subs = in_unit / group;
          PITH_UNROLL for (int sub = 0; sub < subs; ++sub) {
            if (unit * subs + sub >= Storage::groups) continue;
            bool const mine = t.lane() % 4 * operand::stage::per_word / group == sub;
            begin_group(t, queries, unit * subs + sub, part);
            accumulate(t, x, queries, unit, mine ? ~0u : 0u, part);
            add_group(t, stage, queries, unit * subs + sub, part, s);
          }
        }
      }
    }
  }

 private:
  // c += X Q^T over a unit's channels. `mask` removes a lane's channels.
  template <class Thread>
  PITH_HD static void accumulate(Thread& t, operand const& x, std::byte const* queries, int unit, std::uint32_t mask, float (&c)[2][NT][4]) {
    PITH_UNROLL for (int k = 0; k < steps; ++k) {
      std::uint32_t a[2][4];
      fill(x, k, a);
      PITH_UNROLL for (int n = 0; n < NT; ++n)
        PITH_UNROLL for (int term = 0; term < Terms; ++term) {
          word2 const q = load_word<word2>(queries + query::fragment_at(n, term, unit, k, t.lane()));
          std::uint32_t const b[2] = {q.at[0] & mask, q.at[1] & mask};
          PITH_UNROLL for (int h = 0; h < 2; ++h) t.template multiply<typename operand::element>(c[h][n], a[h], b);
        }
    }
  }
  PITH_HD static void fill(operand const& x, int k, std::uint32_t (&a)[2][4]) {
    PITH_UNROLL for (int h = 0; h < 2; ++h) {
      a[h][0] = x.template get<query::centred>(2 * h, 2 * k), a[h][1] = x.template get<query::centred>(2 * h + 1, 2 * k);
      a[h][2] = x.template get<query::centred>(2 * h, 2 * k + 1), a[h][3] = x.template get<query::centred>(2 * h + 1, 2 * k + 1);
    }
  }

  template <class Thread>
  PITH_HD static void begin_group(Thread& t, std::byte const* queries, int group, float (&part)[2][NT][4]) {
    PITH_UNROLL for (int n = 0; n < NT; ++n) {
      word2 first{};
      if constexpr (!query::centred) first = load_word<word2>(queries + query::start_at(n, group, 2 * (t.lane() % 4)));
      PITH_UNROLL for (int h = 0; h < 2; ++h)
        PITH_UNROLL for (int r = 0; r < 4; ++r) part[h][n][r] = bits_float(first.at[r % 2]);
    }
  }

  // s += scale part + bias sum(q)
  template <class Thread>
  PITH_HD static void add_group(Thread& t, std::byte const* stage, std::byte const* queries, int group, float const (&part)[2][NT][4],
                                float (&s)[2][NT][4]) {
    int const g = t.lane() / 4;
    float factor[4], bias[4];
    load_parameters<Storage>(stage + operand::stage::codes_bytes, group, 4 * g, factor, bias);
    PITH_UNROLL for (int n = 0; n < NT; ++n) {
      float sums[2] = {};
      if constexpr (query::has_sums) {
        word2 const both = load_word<word2>(queries + query::sum_at(n, group, 2 * (t.lane() % 4)));
        sums[0] = bits_float(both.at[0]), sums[1] = bits_float(both.at[1]);
      }
      PITH_UNROLL for (int h = 0; h < 2; ++h)
        PITH_UNROLL for (int r = 0; r < 4; ++r) {
          int const row = 2 * h + r / 2;
          s[h][n][r] += factor[row] * part[h][n][r];
          if constexpr (query::has_sums) s[h][n][r] += bias[row] * sums[r % 2];
        }
    }
  }

  // Scales of channels go into the query. A group of 16 rows needs its own query: both are computed and each row takes its own.
  template <class Thread>
  PITH_HD static void run_folded(Thread& t, std::byte const* stage, std::byte const* queries, float (&s)[2][NT][4]) {
    constexpr int subs = Storage::group < block_tokens ? block_tokens / Storage::group : 1;
    int const g = t.lane() / 4, quad = t.lane() % 4;
    PITH_UNROLL for (int sub = 0; sub < subs; ++sub) {
      std::byte const* const parameters = stage + operand::stage::codes_bytes;
      float const unit_scale = operand::largest_scale(t, parameters, sub), inverse = inverse_power(unit_scale);  // powers of two
      float part[2][NT][4] = {}, bias[NT] = {};
      PITH_UNROLL for (int unit = 0; unit < operand::units; ++unit) {
        operand x;
        x.load(stage, unit, t.lane());
        float scales[2 * operand::pairs], biases[2 * operand::pairs];
        load_parameters<Storage>(parameters, sub, operand::word_of(unit, quad) * operand::stage::per_word, scales, biases);
        PITH_UNROLL for (int k = 0; k < steps; ++k) {
          std::uint32_t a[2][4];
          fill(x, k, a);
          PITH_UNROLL for (int n = 0; n < NT; ++n) {
            word4 const words = load_word<word4>(queries + query::folded_at(n, unit, k, t.lane()));
            std::uint32_t b[Terms][2];
            PITH_UNROLL for (int i = 0; i < 2; ++i) {
              int const low = 2 * k + i, high = low + operand::pairs;  // fields of the word
              float const q0 = bits_float(words.at[2 * i]), q1 = bits_float(words.at[2 * i + 1]);
              if constexpr (Storage::zero_kind != zero::none) bias[n] += q0 * biases[low], bias[n] += q1 * biases[high];
              float const x0 = q0 * (scales[low] * inverse), x1 = q1 * (scales[high] * inverse);
              b[0][i] = two_f16(x0, x1);
              if constexpr (Terms == 2) b[1][i] = two_f16(x0 - low_of<f16>(b[0][i]), x1 - high_of<f16>(b[0][i]));
            }
            PITH_UNROLL for (int term = 0; term < Terms; ++term)
              PITH_UNROLL for (int h = 0; h < 2; ++h) t.template multiply<f16>(part[h][n], a[h], b[term]);
          }
        }
      }
      bool const mine = subs == 1 || 4 * g / Storage::group == sub;
      PITH_UNROLL for (int n = 0; n < NT; ++n) {
        float column[2] = {};
        if constexpr (Storage::zero_kind != zero::none) {  // the sum over the quad is query g's; this lane needs queries 2t and 2t+1
          float const whole = sum_over_lanes<1, 4>(t, bias[n]);
          column[0] = t.shuffle(whole, 8 * quad), column[1] = t.shuffle(whole, 8 * quad + 4);
        }
        PITH_UNROLL for (int h = 0; h < 2; ++h)
          PITH_UNROLL for (int r = 0; r < 4; ++r)
            if (mine) s[h][n][r] += unit_scale * part[h][n][r] + column[r % 2];
      }
    }
  }
};

}  // namespace pith::device
