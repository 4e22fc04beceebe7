// SPDX-License-Identifier: Apache-2.0
// The second pass of attention's statistics (page/attention_statistics.hpp) on the CPU: 16 query rows at a time over a range of slots.
//
// A range's keys stay in the cache while all chosen rows pass over them, and its sums stay in the first or second level; each slot's
// additions are of one task, in the order of the rows. Steps are cut as attention cuts them, so that a step with a large bias is computed
// exactly in both.
//
// stack   4 range_slots bytes a statistic of slots, and the rows' queries
#pragma once

#include "pith/cpu/prepared_queries.hpp"
#include "pith/page/attention_statistics.hpp"

namespace pith {
inline namespace PITH_ISA {

template <class Page, class Accuracy>
struct cpu_statistics {
  using key_tile = typename Page::key_tile;
  static constexpr int rows_at_once = 16;
  static constexpr int page_step = Page::tile_tokens > 64 ? Page::tile_tokens : Page::tokens % 64 == 0 ? 64 : block_tokens;
  static constexpr std::int64_t range_slots = 2048 / page_step * page_step;

  // Piece i: the slots after `first` from i * range_slots on, piece 0 also those of `first`; with row entropies piece 0 is everything.
  template <class Source, class RowsOfPass, class View>
  static void run(Source const& source, std::int64_t piece, int kv_head, int group, RowsOfPass rows_of_pass, View const& out) {
    std::int64_t const pieces = divide_up(std::max<std::int64_t>(source.stored(), 1), range_slots);
    if constexpr (View::has(statistic::row_entropy)) {
      for (int pass = 0; pass < (View::heads_together ? 1 : group); ++pass) {
        weighed_rows const rows = rows_of_pass(pass);
        for (std::int64_t r = 0; r < rows.rows.rows; ++r) rows.row_entropy(r / rows.group, r % rows.group) = 0;
      }
      for (std::int64_t i = 0; i < pieces; ++i) run_piece(source, i, kv_head, group, rows_of_pass, out);
    } else if (piece < pieces) {
      run_piece(source, piece, kv_head, group, rows_of_pass, out);
    }
  }

 private:
  static constexpr int longest_first = 256;                                              // first<N> has at most so many
  static constexpr std::int64_t most_slots = range_slots + longest_first + step_tokens;  // a step's padding included

  // Sums of one pass over a range, in the order of the view's statistics.
  template <class View>
  struct range_sums {
    alignas(64) float of[View::of_slots > 0 ? View::of_slots : 1][most_slots];
  };

  template <class Source>
  struct slots_of_range {
    Source const& source;
    std::int64_t skip, keys, values, stored, from, to, begin, end;  // [from, to) after `first`, [begin, end) of the sequence
    std::int64_t pages = 0;
    struct {
      std::int64_t base;
      std::byte const* at;
    } page[range_slots / block_tokens + 2];

    slots_of_range(Source const& of, std::int64_t piece) : source(of) {
      skip = of.first_tokens(), keys = of.sealed_keys(), values = of.sealed_values(), stored = of.stored();
      from = piece * range_slots, to = std::min(from + range_slots, stored);
      begin = piece == 0 ? 0 : skip + from, end = skip + to;
      of.for_each_page([&](std::int64_t base, std::byte const* at) {
        if (base < std::min(to, keys) && base + Page::tokens > from) page[pages++] = {base, at};
      });
    }
  };

  template <class Source, class RowsOfPass, class View>
  static void run_piece(Source const& source, std::int64_t piece, int kv_head, int group, RowsOfPass rows_of_pass, View const& out) {
    slots_of_range<Source> const range(source, piece);
    range_sums<View> sums;
    int const passes = View::heads_together ? 1 : group;
    for (int pass = 0; pass < passes; ++pass) {
      for (auto& one : sums.of) std::fill_n(one, range.end - range.begin, 0.0f);
      weighed_rows const rows = rows_of_pass(pass);
      for (std::int64_t first = 0; first < rows.rows.rows; first += rows_at_once) {
        int const count = static_cast<int>(std::min<std::int64_t>(rows.rows.rows - first, rows_at_once));
        row_numbers numbers(rows, first, count);
        struct adding {
          row_numbers* numbers;
          range_sums<View>* sums;
        } context{&numbers, &sums};
        auto const add = [](void* to, float const* scores, int tokens, std::int64_t at) {
          auto const& self = *static_cast<adding*>(to);
          add_step(scores, tokens, *self.numbers, *self.sums, at);
        };
        if (count >= 2)
          walk<4>(range, rows.rows, first, count, add, &context);
        else
          walk<1>(range, rows.rows, first, count, add, &context);
        if constexpr (View::has(statistic::row_entropy)) numbers.give_entropies(rows, first);
      }
      store(sums, out, View::reduction == group_reduction::none ? kv_head * group + pass : kv_head, range.begin, range.end, pass, group);
    }
  }

  // Takes the sums of a pass up into what is returned.
  template <class View>
  static void store(range_sums<View> const& sums, View const& out, std::int64_t row, std::int64_t begin, std::int64_t end, int pass,
                    int group) {
    out.for_each_of_slots([&]<statistic Which>(tensor_view<float, 2> const& view) {
      float* const to = view.data + row * view.stride[0];
      float const* const from = sums.of[View::place(Which)];
      float const factor =
          (Which == statistic::entropy ? ln_2 : 1.0f) / (View::reduction == group_reduction::mean ? static_cast<float>(group) : 1.0f);
      for (std::int64_t slot = begin; slot < end; ++slot) {
        float const x = from[slot - begin] * factor;
        if (pass == 0 || View::reduction == group_reduction::none)
          to[slot] = x;
        else
          to[slot] = View::reduction == group_reduction::maximum ? std::max(to[slot], x) : to[slot] + x;
      }
    });
  }

  // The numbers of up to 16 rows; a row without lse gets one that no score reaches.
  struct row_numbers {
    int rows;
    float base[rows_at_once], weight[rows_at_once], threshold[rows_at_once];
    alignas(64) float entropy[rows_at_once][simd::width];

    row_numbers(weighed_rows const& of, std::int64_t first, int count) : rows(count) {
      for (int r = 0; r < count; ++r) {
        float const lse = of.lse_of(first + r) * log2_e;
        base[r] = lse > masked && lse < -masked ? lse : -masked;
        weight[r] = of.weights != nullptr ? of.weight(first + r) : 0;
        threshold[r] = of.thresholds != nullptr ? of.threshold(first + r) : 0;
        simd::store(entropy[r], simd::all(0));
      }
    }
    void give_entropies(weighed_rows const& of, std::int64_t first) const {
      for (int r = 0; r < rows; ++r)
        of.row_entropy((first + r) / of.group, (first + r) % of.group) += simd::sum(simd::load(entropy[r])) * ln_2;
    }
  };

  // Gives the scores of rows [first_row, first_row + count) for all slots of a range, step by step: add(to, scores [row][step_tokens],
  // tokens, first slot of the range). The same code whatever is made of the scores.
  template <int M, class Source>
  static void walk(slots_of_range<Source> const& range, head_rows const& rows, std::int64_t first_row, int count,
                   void (*add)(void* to, float const* scores, int tokens, std::int64_t at), void* to) {
    using queries_type = prepared_queries<Page, Accuracy, M>;
    using fast_dot = typename queries_type::template dot<Accuracy>;
    using exact_dot = typename queries_type::template dot<exact_accuracy>;
    using raw_dot = typename queries_type::template raw_dot<block_tokens>;
    using first_dot = typename queries_type::template raw_dot<Source::first_tile>;
    constexpr bool in_integers = std::is_same_v<Accuracy, integer_accuracy>;
    constexpr int most_blocks = M == 4 ? rows_at_once / 4 : 1;
    queries_type queries[most_blocks];
    score_rows<M> scorer[most_blocks];
    Source const& source = range.source;
    int const blocks = M == 4 ? (count + M - 1) / M : 1;
    bool const has_raw = range.skip > 0 || range.stored > range.keys;
    bool const needs_exact = in_integers && (source.bias() != nullptr || range.keys > range.values);
    for (int b = 0; b < blocks; ++b) {
      scorer[b].begin(rows.soft_cap);
      queries[b].prepare(rows, first_row + b * M, std::min(count - b * M, M), source.key_state(), has_raw, needs_exact, scorer[b]);
    }

    step_scope scope{.slots = range.skip + range.stored, .dead = source.dead(), .live = source.live(), .bias = source.bias()};
    alignas(64) float scores[most_blocks][M][step_tokens];
    auto const step = [&]<class Dot>(typename Dot::query queries_type::*query, int tokens, auto key_at) {
      bool any = false;
      for (int b = 0; b < blocks; ++b) {
        if (!scorer[b].sees(scope.first_slot, tokens)) {
          std::fill_n(scores[b][0], M * step_tokens, masked);
          continue;
        }
        any = true;
        dot_tiles<Dot>(tokens, key_at, queries[b].*query, scores[b][0], step_tokens, ask_nothing{});
        scorer[b].finish(scores[b], tokens, scope);
      }
      if (any) add(to, scores[0][0], tokens, scope.first_slot - range.begin);
    };

    for (std::int64_t i = 0; i < range.pages; ++i) {
      std::int64_t const base = range.page[i].base, end = std::min({base + Page::tokens, range.keys, range.to});
      for (std::int64_t slot = std::max(base, range.from); slot < end;) {
        auto const key_at = [&](int t) { return range.page[i].at + Page::key_tile_at(static_cast<int>(slot - base) + t); };
        bool const with_values = slot < range.values;
        std::int64_t const next =
            std::min(end, with_values ? std::min<std::int64_t>(slot + page_step, range.values) : slot + key_tile::tokens);
        int const tokens = static_cast<int>(round_up(next - slot, with_values ? Page::tile_tokens : key_tile::tokens));
        scope.first_slot = range.skip + slot;
        if constexpr (in_integers) {
          if (!with_values || scope.has_large_bias(tokens))
            step.template operator()<exact_dot>(&queries_type::exact, tokens, key_at);
          else
            step.template operator()<fast_dot>(&queries_type::packed, tokens, key_at);
        } else {
          step.template operator()<fast_dot>(&queries_type::packed, tokens, key_at);
        }
        slot = next;
      }
    }
    for (std::int64_t slot = std::max(range.keys, range.from); slot < range.to; slot += block_tokens) {
      scope.first_slot = range.skip + slot;
      step.template operator()<raw_dot>(&queries_type::raw, block_tokens, [&](int t) { return source.staging_keys(slot + t); });
    }
    if (range.begin == 0 && range.skip > 0) {
      scope.first_slot = 0;
      scope.slots = range.skip;  // the tile may be longer than the segment
      step.template operator()<first_dot>(&queries_type::raw, Source::first_tile, [&](int) { return source.first_keys(); });
    }
  }

  // scores [row][step_tokens]; adds to the sums from slot `at` of the range on.
  template <class View>
  static void add_step(float const* scores, int tokens, row_numbers& numbers, range_sums<View>& sums, std::int64_t at) {
    simd::f32v const zero = simd::all(0), one = simd::all(1);
    for (int t = 0; t < tokens; t += simd::width) {
      simd::f32v sum = zero, square_sum = zero, maximum = zero, below = zero, weighted = zero, entropy = zero;
      for (int r = 0; r < numbers.rows; ++r) {
        simd::f32v const s = simd::load(scores + r * step_tokens + t);
        simd::f32v const log_p = simd::min(s - simd::all(numbers.base[r]), zero), p = simd::exp2(log_p);
        if constexpr (View::has(statistic::sum)) sum = sum + p;
        if constexpr (View::has(statistic::square_sum)) square_sum = simd::fma(p, p, square_sum);
        if constexpr (View::has(statistic::maximum)) maximum = simd::max(maximum, p);
        if constexpr (View::has(statistic::below)) {
          simd::f32v const visible = simd::select_zero(simd::max(s - simd::all(masked / 2), zero), zero, one);
          below = below + simd::select_zero(simd::max(simd::all(numbers.threshold[r]) - p, zero), zero, visible);
        }
        if constexpr (View::has(statistic::weighted_sum)) weighted = simd::fma(simd::all(numbers.weight[r]), p, weighted);
        if constexpr (View::has(statistic::entropy)) entropy = entropy - p * log_p;
        if constexpr (View::has(statistic::row_entropy)) simd::store(numbers.entropy[r], simd::load(numbers.entropy[r]) - p * log_p);
      }
      add_to<View, statistic::sum>(sums, at + t, sum);
      add_to<View, statistic::square_sum>(sums, at + t, square_sum);
      add_to<View, statistic::maximum>(sums, at + t, maximum);
      add_to<View, statistic::below>(sums, at + t, below);
      add_to<View, statistic::weighted_sum>(sums, at + t, weighted);
      add_to<View, statistic::entropy>(sums, at + t, entropy);
    }
  }

  template <class View, statistic Which>
  static void add_to(range_sums<View>& sums, std::int64_t at, simd::f32v x) {
    if constexpr (View::has(Which)) {
      float* const to = sums.of[View::place(Which)] + at;
      simd::f32v const before = simd::load(to);
      simd::store(to, Which == statistic::maximum ? simd::max(before, x) : before + x);
    }
  }
};

}  // namespace PITH_ISA

template <class Page, class Accuracy>
struct statistics_engine<cpu, Page, Accuracy> : cpu_statistics<Page, Accuracy> {};

}  // namespace pith
