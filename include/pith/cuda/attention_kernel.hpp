// SPDX-License-Identifier: Apache-2.0
// Attention over packed pages on tensor cores: one block computes one part of a sequence (attention_plan.hpp) for one KV head and some of
// its query rows, along attention_walk.hpp's blocks.
//
//   partial[part][kv_head][row][channel], and m, l of each row: out = sum over parts of 2^m o / sum of 2^m l      (attention_merge.hpp)
//
// Warps along tokens meet at the end, in the order of their numbers: the same parts give the same bits.
#pragma once

#include "pith/cuda/attention_walk.hpp"
#include "pith/cuda/mix_block.hpp"

namespace pith::device {

// What becomes of scores beside the sums: nothing. slot_scores.hpp has another.
struct keep_nothing {
  template <class... Call>
  PITH_HD void take(Call const&...) const {}
};

template <class Page, class Source, class Q, int NT, int Terms, warps_along Along, class Keep = keep_nothing>
struct attention_kernel : attention_walk<Page, Source, Q, NT, Terms, Along, true> {
  using walk_type = attention_walk<Page, Source, Q, NT, Terms, Along, true>;
  static constexpr int warps = walk_type::warps, threads = walk_type::threads, rows = walk_type::rows, dv = walk_type::dv;
  static constexpr int min_blocks = NT == 1 && Terms == 1 && walk_type::shared_bytes < (75 << 10) ? 3 : 2;
  static constexpr bool shares_rows = walk_type::shares_rows;

  Keep keep{};

  template <device_like Thread>
  PITH_HD void operator()(Thread& t) const {
    if (t.block_x() >= *this->part_count) return;
    attention_part const part = uniform_part(t, this->parts + t.block_x());
    rows_of_group const asked{this->source.queries(part.sequence).count * this->group, this->group};
    if (t.block_z() * rows >= asked.count) return;
    std::int64_t const first_row = t.block_z() * rows + (shares_rows ? 0 : 8 * NT * t.warp());
    if (part.raw == 0) {
      run<true, typename walk_type::packed_values>(t, part, first_row, asked);
    } else {
      if constexpr (Source::has_raw) run<false, typename walk_type::raw_values>(t, part, first_row, asked);
    }
  }

 private:
  template <bool Packed, class Values, class Thread>
  PITH_HD void run(Thread& t, attention_part const& part, std::int64_t first_row, rows_of_group const& asked) const {
    auto const head = this->source.at(part.sequence, static_cast<int>(t.block_y()));
    row_state<NT> state;
    state.clear();
    auto const seen = this->begin(t, head, part, first_row, (t.block_z() + 1) * rows, asked, state);
    mix_block<Values, NT, Terms> sums;
    sums.clear();
    this->template walk<Packed>(t, head, part, state, seen, [&](float(&s)[2][NT][4], std::byte const* values, auto const& slots, int) {
      keep.take(t, head, part.sequence, s, slots, first_row, asked.count);
      state.weigh(t, s, sums);
      sums.add(t, values, s);
    });
    state.finish(t);
    sums.finish(t);
    save(t, state, sums, first_row, asked.count);
  }

  // One warp's rows to memory; warps that share rows come together in shared memory first, one after the other.
  template <class Thread, class Sums>
  PITH_HD void save(Thread& t, row_state<NT> const& state, Sums const& sums, std::int64_t first_row, std::int64_t all_rows) const {
    std::int64_t const base = (t.block_x() * this->kv_heads + t.block_y()) * this->rows_at;
    int const g = t.lane() / 4, quad = t.lane() % 4;
    if constexpr (!shares_rows) {
      PITH_UNROLL for (int n = 0; n < NT; ++n) PITH_UNROLL for (int i = 0; i < 2; ++i) {
        std::int64_t const row = first_row + 8 * n + 2 * quad + i;
        if (row >= all_rows) continue;
        float* const out = this->partial + (base + row) * dv;
        for_channels(sums, n, i, g, [&](int channel, auto const& some) { store_word(reinterpret_cast<std::byte*>(out + channel), some); });
        if (g == 0)
          store_word(reinterpret_cast<std::byte*>(this->limits + 2 * (base + row)), two_floats(state.maximum[n][i], state.total[n][i]));
      }
    } else {
      // [8 NT][dv] sums, [8 NT][2] m and l
      std::byte* const merged = t.shared();
      std::byte* const merged_limits = merged + 8 * NT * 4 * dv;
      t.sync();  // everything there is done with
      for (int w = 0; w < warps; ++w) {
        if (w == t.warp()) {
          PITH_UNROLL for (int n = 0; n < NT; ++n) PITH_UNROLL for (int i = 0; i < 2; ++i) {
            int const row = 8 * n + 2 * quad + i;
            std::byte* const at = merged_limits + 8 * row;
            float m = no_score, l = 0;
            if (w > 0) m = load_word<float>(at), l = load_word<float>(at + 4);
            float const most = m > state.maximum[n][i] ? m : state.maximum[n][i];
            float const theirs = exp2_fast(m - most), mine = exp2_fast(state.maximum[n][i] - most);
            for_channels(sums, n, i, g, [&](int channel, auto some) {
              std::byte* const to = merged + 4 * (row * dv + channel);
              constexpr int count = static_cast<int>(sizeof(some.at) / 4);
              PITH_UNROLL for (int j = 0; j < count; ++j) {
                float x = mine * bits_float(some.at[j]);
                if (w > 0) x += theirs * load_word<float>(to + 4 * j);
                some.at[j] = float_bits(x);
              }
              store_word(to, some);
            });
            t.sync_warp();  // all lanes of the row have read m
            if (g == 0) store_word(at, two_floats(most, theirs * l + mine * state.total[n][i]));
          }
        }
        t.sync();
      }
      std::int64_t const left = all_rows - first_row;
      int const there = static_cast<int>(left < 8 * NT ? left : 8 * NT);
      int const thread = thread_of(t);
      for (int at = 4 * thread; at < there * dv; at += 4 * threads)
        store_word(reinterpret_cast<std::byte*>(this->partial + (base + first_row) * dv + at), load_word<word4>(merged + 4 * at));
      for (int at = thread; at < there; at += threads)
        store_word(reinterpret_cast<std::byte*>(this->limits + 2 * (base + first_row + at)), load_word<word2>(merged_limits + 8 * at));
    }
  }
  PITH_HD static word2 two_floats(float a, float b) { return {{float_bits(a), float_bits(b)}}; }

  // f(channel, words) for the neighbouring channels of row 2t + i that this lane holds.
  template <class Sums, class F>
  PITH_HD static void for_channels(Sums const& sums, int n, int i, int g, F f) {
    if constexpr (Sums::width == 4) {
      PITH_UNROLL for (int m = 0; m < Sums::tiles; m += 2)
          f(Sums::channel_of(m, g, 0), word4{{float_bits(sums.o[m][n][i]), float_bits(sums.o[m][n][2 + i]), float_bits(sums.o[m + 1][n][i]),
                                              float_bits(sums.o[m + 1][n][2 + i])}});
    } else {
      PITH_UNROLL for (int m = 0; m < Sums::tiles; ++m)
          f(Sums::channel_of(m, g, 0), word2{{float_bits(sums.o[m][n][i]), float_bits(sums.o[m][n][2 + i])}});
    }
  }
};

}  // namespace pith::device
