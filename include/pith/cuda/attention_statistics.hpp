// SPDX-License-Identifier: Apache-2.0
// How much attention each slot got: what eviction policies rank slots by.
//
//   weights[kv_head][slot] += sum over the call's query rows of e^(s - lse)
//
// A second pass over the keys, once lse is known: the sums are exact ones over all rows, where weights relative to a running maximum would not
// be. Each slot belongs to one warp of one block, so that the order of additions, and every bit, is fixed.
#pragma once

#include "pith/cuda/attention_walk.hpp"

namespace pith::device {

template <class Page, class Source, class Q, int Terms>
struct attention_statistics_kernel : attention_walk<Page, Source, Q, 1, Terms, warps_along::tokens, false> {
  using walk_type = attention_walk<Page, Source, Q, 1, Terms, warps_along::tokens, false>;
  static constexpr int warps = walk_type::warps, threads = walk_type::threads, rows = walk_type::rows;

  float const* lse;  // [query token][query head], natural
  std::int64_t lse_stride;
  float* weights;  // [kv_head][index of slot]
  std::int64_t weights_stride;

  template <device_like Thread>
  PITH_HD void operator()(Thread& t) const {
    if (t.block_x() >= *this->part_count) return;
    attention_part const part = uniform_part(t, this->parts + t.block_x());
    std::int64_t const all_rows = this->source.queries(part.sequence).count * this->group;
    for (std::int64_t first_row = 0; first_row < all_rows; first_row += rows) {
      if (part.raw == 0) {
        run<true>(t, part, first_row, all_rows);
      } else {
        if constexpr (Source::has_raw) run<false>(t, part, first_row, all_rows);
      }
      t.sync();  // before the next rows' queries
    }
  }

 private:
  template <bool Packed, class Thread>
  PITH_HD void run(Thread& t, attention_part const& part, std::int64_t first_row, std::int64_t all_rows) const {
    auto const head = this->source.at(part.sequence, static_cast<int>(t.block_y()));
    std::int64_t const first_token = this->source.queries(part.sequence).first;
    row_state<1> state;
    state.clear();
    auto const seen = this->begin(t, head, part, first_row, first_row + rows, all_rows, state);
    int const g = t.lane() / 4, quad = t.lane() % 4;
    float whole[2];
    PITH_UNROLL for (int i = 0; i < 2; ++i) {
      std::int64_t const row = first_row + 2 * quad + i;
      whole[i] = -no_score;  // a row that is not there weighs nothing
      if (row < all_rows) {
        float const known = lse[(first_token + row / this->group) * lse_stride + t.block_y() * this->group + row % this->group];
        if (known > no_score) whole[i] = known * log2_e;
      }
    }
    float* const out = weights + t.block_y() * weights_stride;
    this->template walk<Packed>(t, head, part, state, seen, [&](float(&s)[2][1][4], std::byte const*, int slot, int slots) {
      PITH_UNROLL for (int e = 0; e < 4; ++e) {
        float const own = exp2_fast(s[e / 2][0][2 * (e % 2)] - whole[0]) + exp2_fast(s[e / 2][0][2 * (e % 2) + 1] - whole[1]);
        float const sum = sum_over_lanes<1, 4>(t, own);
        int const at = slot + 4 * g + e;
        if (quad == 0 && at < slots) out[head.index_of(at)] += sum;
      }
    });
  }
};

}  // namespace pith::device
