// SPDX-License-Identifier: Apache-2.0
// Stage "head split": how many slots each KV head of a layer selects of the layer's share. Protected slots have been set aside before, so a
// share is of free slots, and no head gets more than it has.
//
//   uniform_heads          equal shares
//   pooled_heads           w = (1 - floor) n_h + floor share / heads,  n_h = the head's slots among the best of all    Ada-KV, floor 0.2
//                          concentrate: a head's scores times the part of their sum that its share / heads best ones hold
//   table_heads            w = the caller's, one a head                                                                HeadKV
//   full_or_stream_heads   heads whose table entry is not zero keep `full` slots, all by default, the others `stream`  RazorAttention
//
// Rule H1  Shares sum to the layer's, or to the free slots if these are fewer (apportion's rules); full_or_stream_heads: to no more.
//
// errors  shape_mismatch; out_of_range (a weight: `at` is the head; floor outside [0, 1]: -1); not_finite; capacity_exceeded (scratch;
//         full heads that do not fit: `at` is what they need)
// cost    pooled: O(n) for the layer's n slots; no allocation
// from    Feng et al., Ada-KV, 2024; Fu et al., HeadKV, 2024; Tang et al., RazorAttention, 2024; Yang et al., LServe, 2025
// differs Ada-KV rounds each head alone and misses the total; it also pools before protection where heads differ in length
#pragma once

#include "pith/policy/apportion.hpp"
#include "pith/policy/capacity.hpp"
#include "pith/policy/select_pooled.hpp"
#include "pith/policy/stage.hpp"

namespace pith {

// One layer: its heads' scores and marks, the slots that may still be selected in each, and their sum over the heads that is to be kept.
struct head_split_input {
  ragged_view<float const> scores;
  ragged_view<slot_mark const> marks;
  std::span<std::int64_t const> free;  // [head]
  std::span<double const> table{};     // [head]
  std::int64_t share = 0;
};

// For any split of one layer.
constexpr std::int64_t head_split_scratch_bytes(std::int64_t heads) {
  return 2 * lent_memory::bytes<double>(heads) + 2 * lent_memory::bytes<std::int64_t>(heads) + apportion_scratch_bytes(heads);
}

namespace head_detail {

// Apportions with lower bounds of zero; weight(h) is written to scratch first.
template <class Weight>
status share_out(head_split_input const& in, std::span<std::int64_t> out, std::span<std::byte> scratch, Weight weight) {
  std::span<double> weights;
  std::span<std::int64_t> least;
  lent_memory memory(scratch);
  auto const heads = static_cast<std::int64_t>(out.size());
  if (!memory.take(heads, weights) || !memory.take(heads, least)) return {errc::capacity_exceeded, head_split_scratch_bytes(heads)};
  for (std::size_t h = 0; h < out.size(); ++h) weights[h] = weight(h), least[h] = 0;
  return apportion(weights, least, in.free, in.share, out, memory.rest());
}

}  // namespace head_detail

struct uniform_heads {
  static constexpr stage kind = stage::head_split;
  status split(head_split_input const& in, std::span<std::int64_t> out, std::span<std::byte> scratch) const {
    return head_detail::share_out(in, out, scratch, [](std::size_t) { return 1.0; });
  }
};

struct pooled_heads {
  static constexpr stage kind = stage::head_split;
  double floor = 0.2;        // of an even share, for every head
  bool concentrate = false;  // Ada-KV's repository: true
  status split(head_split_input const& in, std::span<std::int64_t> out, std::span<std::byte> scratch) const {
    std::int64_t const heads = in.scores.rows();
    if (!(floor >= 0 && floor <= 1)) return {errc::out_of_range, -1};
    if (heads != static_cast<std::int64_t>(out.size()) || in.marks.rows() != heads || in.free.size() != out.size())
      return {errc::shape_mismatch, heads};
    std::span<std::int64_t> pooled;
    std::span<double> factor;
    lent_memory memory(scratch);
    if (!memory.take(heads, pooled) || !memory.take(heads, factor)) return {errc::capacity_exceeded, head_split_scratch_bytes(heads)};
    std::int64_t all = 0;
    for (std::int64_t h = 0; h < heads; ++h) {
      auto const i = static_cast<std::size_t>(h);
      if (status const ok = check_scores(in.scores.row(h), in.marks.row(h)); !ok) return ok;
      if (free_slots(in.marks.row(h)) != in.free[i]) return {errc::shape_mismatch, h};
      factor[i] = concentrate ? concentration(in.scores.row(h), in.marks.row(h), in.free[i], in.share / heads) : 1;
      all += in.free[i];
    }
    std::int64_t const best = std::min(std::max<std::int64_t>(in.share, 0), all);
    count_best(in, factor, best, all, pooled);
    double const even = static_cast<double>(best) / static_cast<double>(std::max<std::int64_t>(heads, 1));
    return head_detail::share_out(in, out, memory.rest(),
                                  [&](std::size_t h) { return (1 - floor) * static_cast<double>(pooled[h]) + floor * even; });
  }

 private:
  // (sum of the `best` best scores) / (sum of all); sums in f64, oldest slot first; 1 where that is no part of a sum.
  static double concentration(std::span<float const> scores, std::span<slot_mark const> marks, std::int64_t free, std::int64_t best) {
    if (best <= 0 || best >= free) return 1;
    rank_bound bound = bound_of_best([&](auto f) { for_each_free(scores, marks, f); }, best);
    double all = 0, held = 0;
    for_each_free(scores, marks, [&](std::uint32_t score, std::uint32_t slot) {
      all += static_cast<double>(scores[slot]);
      if (bound.takes(score, slot)) held += static_cast<double>(scores[slot]);
    });
    return all > 0 && held >= 0 && all <= std::numeric_limits<double>::max() ? held / all : 1;
  }

  // How many of each head's slots are among the `best` best of all, scores times their head's factor.
  static void count_best(head_split_input const& in, std::span<double const> factor, std::int64_t best, std::int64_t all,
                         std::span<std::int64_t> count) {
    for (std::size_t h = 0; h < count.size(); ++h) count[h] = best == all ? in.free[h] : 0;
    if (best == all || best == 0) return;
    auto const each_of = [&](std::int64_t h, auto f) {
      auto const scores = in.scores.row(h);
      double const by = factor[static_cast<std::size_t>(h)];
      for_each_free(scores, in.marks.row(h), [&](std::uint32_t score, std::uint32_t slot) {
        f(by == 1 ? score : ordered_bits(static_cast<float>(static_cast<double>(scores[slot]) * by)), slot);
      });
    };
    rank_bound bound = bound_of_best(
        [&](auto f) {
          for (std::int64_t h = 0; h < in.scores.rows(); ++h) each_of(h, f);
        },
        best);
    for (std::int64_t h = 0; h < in.scores.rows(); ++h)
      each_of(h, [&](std::uint32_t score, std::uint32_t slot) { count[static_cast<std::size_t>(h)] += bound.takes(score, slot); });
  }
};

struct table_heads {
  static constexpr stage kind = stage::head_split;
  status split(head_split_input const& in, std::span<std::int64_t> out, std::span<std::byte> scratch) const {
    if (in.table.size() != out.size()) return {errc::shape_mismatch, static_cast<std::int64_t>(in.table.size())};
    return head_detail::share_out(in, out, scratch, [&](std::size_t h) { return in.table[h]; });
  }
};

template <std::int64_t Stream>
struct full_or_stream_heads {
  static constexpr stage kind = stage::head_split;
  static constexpr bool valid = Stream >= 0;
  std::int64_t stream = Stream, full = no_limit;
  status split(head_split_input const& in, std::span<std::int64_t> out, std::span<std::byte>) const {
    if (in.table.size() != out.size() || in.free.size() != out.size())
      return {errc::shape_mismatch, static_cast<std::int64_t>(in.table.size())};
    auto const own = [&](std::size_t h) { return std::min(in.free[h], in.table[h] != 0 ? full : stream); };
    std::int64_t sum = 0;
    for (std::size_t h = 0; h < out.size(); ++h) sum += own(h);
    if (sum > in.share) return {errc::capacity_exceeded, sum};
    for (std::size_t h = 0; h < out.size(); ++h) out[h] = own(h);
    return {};
  }
};

}  // namespace pith
