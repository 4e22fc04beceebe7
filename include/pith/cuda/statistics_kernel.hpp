// SPDX-License-Identifier: Apache-2.0
// The second pass of attention's statistics over the keys, once lse is known (page/attention_statistics.hpp says which there are).
//
// A block takes one part of a sequence (attention_plan.hpp) for one KV head, a piece of it after another. Over a piece go all chosen rows,
// 8 NT at a time, so that its keys come from the second-level cache but for the first; its sums stay in shared memory until the rows are
// done. With other reductions than those that take the heads' rows as one, the heads of a group come one after the other.
//
// A slot belongs to one lane of one warp of one block, which writes it once a head: no atomics. Its sum over 8 NT rows is that of the four
// lanes of a quad, (0 + 2) + (1 + 3), each over its rows in ascending order; the sums of tiles of rows are added in ascending order. No bit
// depends on what else runs.
//
// cost     products of 8 NT rows with the keys; for each 32 slots and 8 NT rows 256 NT exponentials, and for each statistic three shuffles
//          and one addition in shared memory a lane; a slot is written once a pass
// differs  the CPU adds rows in ascending order, 16 at a time
#pragma once

#include "pith/cuda/attention_walk.hpp"
#include "pith/cuda/statistics_view.hpp"

namespace pith::device {

// Every stride-th of a sequence's newest query tokens, for `heads` heads of the group from `first_head` on.
struct chosen_query_rows {
  std::int32_t count, heads, first_head;
  std::int64_t first, stride;
  PITH_HD std::int64_t token(std::int64_t row) const { return first + row / heads * stride; }
  PITH_HD std::int64_t head(std::int64_t row) const { return first_head + row % heads; }
};

// Everything about the call but what a walk needs.
template <int Views>
struct statistics_call_of {
  float const* lse;  // [query token][query head], natural
  std::int64_t lse_stride;
  float* out[Views];
  std::int64_t out_stride[Views];
  std::int64_t sequence_stride;
  device_statistics_rows chosen;
};

// View: statistics_view.
template <class Page, class Source, class Q, int NT, int Terms, class View>
struct attention_statistics_kernel : attention_walk<Page, Source, Q, NT, Terms, warps_along::tokens, false> {
  using walk_type = attention_walk<Page, Source, Q, NT, Terms, warps_along::tokens, false>;
  static constexpr int warps = walk_type::warps, threads = walk_type::threads, rows = walk_type::rows;
  static constexpr int views = View::of_slots;
  static constexpr int sums_at = static_cast<int>(round_up(walk_type::shared_bytes, 128));
  static constexpr int sum_bytes = 4 * block_tokens;  // of a statistic and a block
  // Blocks of a piece that a warp takes.
  static constexpr int held = [] {
    int most = 16;
    while (most > 1 && sums_at + warps * most * views * sum_bytes > most_shared_bytes) most /= 2;
    return most;
  }();
  static constexpr int shared_bytes = sums_at + warps * held * views * sum_bytes;
  static_assert(shared_bytes <= most_shared_bytes);

  statistics_call_of<views> call;

  template <device_like Thread>
  PITH_HD void operator()(Thread& t) const {
    if (t.block_x() >= *this->part_count) return;
    attention_part const part = uniform_part(t, this->parts + t.block_x());
    if (part.raw == 0) {
      run<true>(t, part);
    } else {
      if constexpr (Source::has_raw) run<false>(t, part);
    }
  }

 private:
  // What is made of a row's scores: lse in base 2, or what no score reaches; its weight and threshold.
  struct row_numbers {
    float base[NT][2], weight[NT][2], threshold[NT][2];
  };

  template <bool Packed, class Thread>
  PITH_HD void run(Thread& t, attention_part const& part) const {
    constexpr int step = walk_type::template walking<Packed>;
    auto const head = this->source.at(part.sequence, static_cast<int>(t.block_y()));
    chosen_query_rows chosen = rows_of(t, part.sequence);
    for (int begin = part.begin; begin < part.end; begin += held * step) {
      int const behind = begin + held * step;
      attention_part const piece{part.sequence, part.raw, begin, behind < part.end ? behind : part.end};
      for (int pass = 0; pass < (View::heads_together ? 1 : this->group); ++pass) {
        chosen.first_head = pass;
        PITH_UNROLL for (int i = 0; i < held * views; ++i) * sum_of(t, i) = 0;
        for (int first_row = 0; first_row < chosen.count; first_row += rows) {
          add_rows<Packed>(t, head, piece, chosen, first_row);
          t.sync();  // before the next rows' queries
        }
        store<Packed>(t, head, piece, pass);
      }
    }
  }

  // The rows of a pass; the heads of one start at 0.
  template <class Thread>
  PITH_HD chosen_query_rows rows_of(Thread& t, int sequence) const {
    std::int64_t const tokens = this->source.queries(sequence).count;
    std::int64_t const wanted = call.chosen.newest < tokens ? call.chosen.newest : tokens;
    std::int64_t const stride = call.chosen.stride < tokens ? call.chosen.stride : tokens > 1 ? tokens : 1;
    std::int64_t const count = wanted <= 0 ? 0 : (wanted - 1) / stride + 1;
    std::int32_t const heads = View::heads_together ? this->group : 1;
    // From a lane, so that all are known to agree.
    return {t.shuffle(static_cast<std::int32_t>(count) * heads, 0), heads, 0, tokens - 1 - (count - 1) * stride, stride};
  }

  template <bool Packed, class Thread, class Head>
  PITH_HD void add_rows(Thread& t, Head const& head, attention_part const& piece, chosen_query_rows const& chosen, int first_row) const {
    row_state<NT> state;
    auto const seen = this->begin(t, head, piece, first_row, first_row + rows, chosen, state);
    row_numbers numbers;
    std::int64_t const first_token = this->source.queries(piece.sequence).first;
    PITH_UNROLL for (int n = 0; n < NT; ++n) PITH_UNROLL for (int i = 0; i < 2; ++i) {
      std::int64_t const row = first_row + 8 * n + 2 * (t.lane() % 4) + i;
      numbers.base[n][i] = -no_score, numbers.weight[n][i] = 0, numbers.threshold[n][i] = 0;  // a row that is not there counts for nothing
      if (row >= chosen.count) continue;
      std::int64_t const token = first_token + chosen.token(row);
      float const known = call.lse[token * call.lse_stride + t.block_y() * this->group + chosen.head(row)] * log2_e;
      if (known > no_score && known < -no_score) numbers.base[n][i] = known;
      if constexpr (View::has(statistic::weighted_sum)) numbers.weight[n][i] = call.chosen.weights[token];
      if constexpr (View::has(statistic::below)) numbers.threshold[n][i] = call.chosen.thresholds[token];
    }
    this->template walk<Packed>(t, head, piece, state, seen, [&](float(&s)[2][NT][4], std::byte const*, slots_of_block const&, int block) {
      add_block(t, s, numbers, (block - piece.begin) / walk_type::template walking<Packed>);
    });
  }

  // The scores of 32 slots, the warp's `round`-th of the piece: sums over this lane's rows for its four slots, then over the quad.
  template <class Thread>
  PITH_HD void add_block(Thread& t, float const (&s)[2][NT][4], row_numbers const& numbers, int round) const {
    float of[views][4];
    PITH_UNROLL for (int e = 0; e < 4; ++e) {
      float sum = 0, square_sum = 0, maximum = 0, below = 0, weighted = 0, entropy = 0;
      PITH_UNROLL for (int n = 0; n < NT; ++n) PITH_UNROLL for (int i = 0; i < 2; ++i) {
        float const score = s[e / 2][n][2 * (e % 2) + i], over = score - numbers.base[n][i];
        float const log_p = over < 0 ? over : 0.0f, p = exp2_fast(log_p);
        if constexpr (View::has(statistic::sum)) sum += p;
        if constexpr (View::has(statistic::square_sum)) square_sum += p * p;
        if constexpr (View::has(statistic::maximum)) maximum = larger(maximum, p);
        if constexpr (View::has(statistic::below)) below += score > 0.5f * no_score && p < numbers.threshold[n][i] ? 1.0f : 0.0f;
        if constexpr (View::has(statistic::weighted_sum)) weighted += numbers.weight[n][i] * p;
        if constexpr (View::has(statistic::entropy)) entropy -= p * log_p;
      }
      auto const put = [&]<statistic Which>(float x) {
        if constexpr (View::has(Which)) of[View::place(Which)][e] = x;
      };
      put.template operator()<statistic::sum>(sum);
      put.template operator()<statistic::square_sum>(square_sum);
      put.template operator()<statistic::maximum>(maximum);
      put.template operator()<statistic::below>(below);
      put.template operator()<statistic::weighted_sum>(weighted);
      put.template operator()<statistic::entropy>(entropy);
    }
    PITH_UNROLL for (int i = 0; i < views; ++i) {
      float* const to = sum_of(t, round * views + i);
      bool const largest = View::has(statistic::maximum) && i == View::place(statistic::maximum);
      float const x = over_quad(t, of[i], largest);
      *to = largest ? larger(*to, x) : *to + x;
    }
  }

  // The sum, or the largest, over a quad's lanes: of slot e to its lane e, which is the lane of the slot's number in the block.
  template <class Thread>
  PITH_HD static float over_quad(Thread& t, float const (&of)[4], bool largest) {
    auto const both = [&](float a, float b) { return largest ? larger(a, b) : a + b; };
    bool const upper = (t.lane() & 2) != 0, odd = (t.lane() & 1) != 0;
    float const even = both(upper ? of[2] : of[0], t.shuffle_xor(upper ? of[0] : of[2], 2));
    float const uneven = both(upper ? of[3] : of[1], t.shuffle_xor(upper ? of[1] : of[3], 2));
    return both(odd ? uneven : even, t.shuffle_xor(odd ? even : uneven, 1));
  }

  // This lane's number of a warp's i-th row of sums: [round][statistic][slot].
  template <class Thread>
  PITH_HD static float* sum_of(Thread& t, int i) {
    return reinterpret_cast<float*>(t.shared() + sums_at + (t.warp() * held * views + i) * sum_bytes) + t.lane();
  }

  // Takes the sums of a pass up into what is returned.
  template <bool Packed, class Thread, class Head>
  PITH_HD void store(Thread& t, Head const& head, attention_part const& piece, int pass) const {
    constexpr int step = walk_type::template walking<Packed>;
    if (t.warp() >= step) return;
    bool const none = View::reduction == group_reduction::none;
    std::int64_t const row = none ? t.block_y() * this->group + pass : t.block_y();
    float const share = View::reduction == group_reduction::mean ? divide_fast(1.0f, static_cast<float>(this->group)) : 1.0f;
    for (int round = 0, block = piece.begin + t.warp(); block < piece.end; ++round, block += step) {
      slots_of_block const slots = slots_of<Packed>(head, block);
      int const slot = slots.first + t.lane();
      if (slot >= slots.behind) continue;
      std::int64_t const at = piece.sequence * call.sequence_stride + head.index_of(slot);
      PITH_UNROLL for (int i = 0; i < views; ++i) {
        float* const to = call.out[i] + row * call.out_stride[i] + at;
        bool const is_entropy = View::has(statistic::entropy) && i == View::place(statistic::entropy);
        float const x = *sum_of(t, round * views + i) * (is_entropy ? ln_2 * share : share);
        if (pass == 0 || none)
          *to = x;
        else
          *to = View::reduction == group_reduction::maximum ? larger(*to, x) : *to + x;
      }
    }
  }
};

}  // namespace pith::device
