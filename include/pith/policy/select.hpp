// SPDX-License-Identifier: Apache-2.0
// Selection within one row: turns free marks into chosen ones. What is protected or chosen already is neither ranked nor counted, so that
// selections follow one another (half by one score, half by another).
//
//   select_top        the `count` best                                         bottom drop of m: count = free_slots - m
//   select_above      score >= threshold
//   select_mass       the fewest best ones whose scores sum to >= mass * sum of all free ones
//   select_random     each with probability clamp(score, 0, 1)
//
// Ties are broken by ranking.hpp; a kept list is read off the marks (kept_slots) and is strictly increasing by construction.
//
// errors  shape_mismatch; not_finite (NaN score of a free slot: `at`); select_mass: capacity_exceeded (scratch: `at` is the bytes wanted),
//         out_of_range (`at` is a slot whose score is negative or infinite). Marks are changed only on success.
// cost    O(n), mass O(n log n); no allocation
// differs KVzip keeps what is above its threshold, which loses ties; here the threshold itself is kept
#pragma once

#include <algorithm>

#include "pith/policy/random.hpp"
#include "pith/policy/rank_bound.hpp"
#include "pith/policy/scratch.hpp"

namespace pith {

constexpr std::int64_t select_scratch_bytes(std::int64_t slots) { return lent_memory::bytes<ranked_slot>(slots); }

namespace select_detail {

// The worst free slot: the lowest score, the oldest of ties. There is one.
inline std::size_t worst_free(std::span<float const> scores, std::span<slot_mark const> marks) {
  std::uint32_t lowest = 0xffffffffu;
  for (std::size_t slot = 0; slot < scores.size(); ++slot)
    lowest = std::min(lowest, marks[slot] == free_slot ? ordered_bits(scores[slot]) : 0xffffffffu);  // infinity's bits are less
  std::size_t slot = 0;
  while (marks[slot] != free_slot || ordered_bits(scores[slot]) != lowest) ++slot;
  return slot;
}

}  // namespace select_detail

inline status select_top(std::span<float const> scores, std::span<slot_mark> marks, std::int64_t count) {
  if (status const ok = check_scores(scores, marks); !ok) return ok;
  if (count <= 0) return {};
  std::int64_t const losers = free_slots(marks) - count;
  if (losers <= 2) {  // one pass a loser is less than the bound's three: policies that drop a slot each step
    std::size_t worst[2] = {};
    for (std::int64_t i = 0; i < losers; ++i) {
      worst[i] = select_detail::worst_free(scores, marks);
      marks[worst[i]] = passed_slot;
    }
    std::replace(marks.begin(), marks.end(), free_slot, chosen_slot);
    for (std::int64_t i = 0; i < losers; ++i) marks[worst[i]] = free_slot;
    return {};
  }
  rank_bound bound = bound_of_best([&](auto f) { for_each_free(scores, marks, f); }, count);
  for_each_free(scores, marks, [&](std::uint32_t score, std::uint32_t slot) {
    if (bound.takes(score, slot)) marks[slot] = chosen_slot;
  });
  return {};
}

inline status select_above(std::span<float const> scores, std::span<slot_mark> marks, float threshold) {
  if (status const ok = check_scores(scores, marks); !ok) return ok;
  if (is_nan(threshold)) return {errc::not_finite, -1};
  std::uint32_t const least = ordered_bits(threshold);
  for (std::size_t slot = 0; slot < scores.size(); ++slot)
    if (marks[slot] == free_slot && ordered_bits(scores[slot]) >= least) marks[slot] = chosen_slot;
  return {};
}

// How many of the best free slots hold `mass` of the sum; the ranked slots lie in `ranked`, best first. Sums in f64, best first.
inline result<std::int64_t> slots_of_mass(std::span<float const> scores, std::span<slot_mark const> marks, double mass,
                                          std::span<ranked_slot> ranked) {
  if (status const ok = check_scores(scores, marks); !ok) return ok;
  for (std::size_t slot = 0; slot < scores.size(); ++slot)
    if (marks[slot] == free_slot && (scores[slot] < 0 || !is_finite(scores[slot])))
      return status{errc::out_of_range, static_cast<std::int64_t>(slot)};
  std::int64_t const free = rank_slots(scores, marks, 0, ranked.data());
  std::sort(ranked.begin(), ranked.begin() + free);
  double all = 0, sum = 0;
  for (std::int64_t i = 0; i < free; ++i) all += static_cast<double>(scores[ranked[static_cast<std::size_t>(i)].slot]);
  std::int64_t count = 0;
  while (count < free && sum < mass * all) sum += static_cast<double>(scores[ranked[static_cast<std::size_t>(count++)].slot]);
  return count;
}

inline status select_mass(std::span<float const> scores, std::span<slot_mark> marks, double mass, std::span<std::byte> scratch) {
  std::span<ranked_slot> ranked;
  auto const slots = static_cast<std::int64_t>(marks.size());
  if (!lent_memory(scratch).take(slots, ranked)) return {errc::capacity_exceeded, select_scratch_bytes(slots)};
  auto const count = slots_of_mass(scores, marks, mass, ranked);
  if (!count) return count.error();
  for (std::int64_t i = 0; i < count.value(); ++i) marks[ranked[static_cast<std::size_t>(i)].slot] = chosen_slot;
  return {};
}

// The slot's own key, its birth where `births` [slot] is given and its number otherwise, decides with `seed` and `row`: the same slots
// again on every replay, whatever else there is.
inline status select_random(std::span<float const> scores, std::span<slot_mark> marks, std::uint64_t seed, std::int64_t row = 0,
                            std::span<std::int64_t const> births = {}) {
  if (status const ok = check_scores(scores, marks); !ok) return ok;
  if (!births.empty() && births.size() != marks.size()) return {errc::shape_mismatch, static_cast<std::int64_t>(births.size())};
  for (std::size_t slot = 0; slot < scores.size(); ++slot) {
    if (marks[slot] != free_slot) continue;
    auto const key = births.empty() ? static_cast<std::uint64_t>(slot) : static_cast<std::uint64_t>(births[slot]);
    if (random_unit(seed, static_cast<std::uint64_t>(row), key) < static_cast<double>(scores[slot])) marks[slot] = chosen_slot;
  }
  return {};
}

}  // namespace pith
