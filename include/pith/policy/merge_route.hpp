// SPDX-License-Identifier: Apache-2.0
// Where the losers of one row go: target[slot] is a new slot (0, 1, ... counts the kept slots in order), or no_target if the slot is
// dropped. A kept slot's target is its own new slot.
//
//   route_dropped         every loser is dropped
//   route_nearest         the kept slot nearest by position; the later of two                             Elastic Cache
//   route_most_similar    the kept slot whose key has the largest cosine, if that is >= threshold          D2O, EMS, CaM's kin
//   route_one             all losers to one more slot, which follows the kept ones                         RazorAttention
//   route_own_run         the chosen slot beside it, of two the one on its side of the least alike neighbours  KVMerger
//   route_next            the first kept slot behind it                                                        CaM
//   route_runs            runs of neighbours with cosine >= threshold go to the best of each run           KVMerger
//
// Rule R1  A loser has one target or none; targets are kept slots, never losers.
// Rule R2  Ties go to the newer slot.
// Rule R3  A key of length 0 has cosine 0 to all.
// Rule R4  route_own_run: protected slots take nothing. Behind select_runs.hpp, whose pivots are the chosen slots, it finds the same runs.
//
// route_most_similar with class centres as the kept slots is EMS: what no centre resembles is its "zero class" (no_target).
//
// keys    [slot][channels], f32; sums in f64
// errors  shape_mismatch (extents), out_of_range (positions that do not ascend; `at` is the slot), not_finite (a score of route_runs)
// cost    nearest, next, runs: O(n channels); most_similar: losers x kept x channels; no allocation
// from    Liu et al., Elastic Cache, 2024; Wan et al., D2O, 2024; Wang et al., KVMerger, 2024
// differs Elastic Cache's code takes one argsort for ranks; KVMerger's run grows from the end of the row, and so does this
#pragma once

#include <algorithm>
#include <cmath>

#include "pith/policy/ranking.hpp"

namespace pith {

inline constexpr std::int64_t no_target = -1;

namespace route_detail {

inline status check(std::span<float const> keys, std::int64_t channels, std::span<slot_mark const> marks, std::span<std::int64_t> target) {
  if (target.size() != marks.size()) return {errc::shape_mismatch, static_cast<std::int64_t>(target.size())};
  if (channels < 1 || keys.size() != marks.size() * static_cast<std::size_t>(channels)) return {errc::shape_mismatch, channels};
  return {};
}

inline double dot(float const* a, float const* b, std::int64_t channels) {
  double sum = 0;
  for (std::int64_t c = 0; c < channels; ++c) sum += static_cast<double>(a[c]) * static_cast<double>(b[c]);
  return sum;
}

}  // namespace route_detail

// In [-1, 1]; 0 if either is 0.
inline double cosine(float const* a, float const* b, std::int64_t channels) {
  double const squares = route_detail::dot(a, a, channels) * route_detail::dot(b, b, channels);
  if (!(squares > 0)) return 0;
  double const c = route_detail::dot(a, b, channels) / std::sqrt(squares);
  return c > 1 ? 1 : c < -1 ? -1 : c;
}

namespace route_detail {

// How little a slot's key resembles the one before it: the greater, the less.
inline std::uint32_t unlike(std::span<float const> keys, std::int64_t channels, std::int64_t slot) {
  float const* const key = keys.data() + slot * channels;
  return ordered_bits(static_cast<float>(-cosine(key - channels, key, channels)));
}

}  // namespace route_detail

inline status route_dropped(std::span<slot_mark const> marks, std::span<std::int64_t> target) {
  if (target.size() != marks.size()) return {errc::shape_mismatch, static_cast<std::int64_t>(target.size())};
  std::int64_t kept = 0;
  for (std::size_t slot = 0; slot < marks.size(); ++slot) target[slot] = marks[slot] != free_slot ? kept++ : no_target;
  return {};
}

inline status route_one(std::span<slot_mark const> marks, std::span<std::int64_t> target) {
  if (status const ok = route_dropped(marks, target); !ok) return ok;
  auto const kept = static_cast<std::int64_t>(marks.size()) - free_slots(marks);
  for (std::int64_t& to : target) to = to == no_target ? kept : to;
  return {};
}

// `positions` [slot], ascending; empty: slots themselves.
inline status route_nearest(std::span<slot_mark const> marks, std::span<std::int64_t const> positions, std::span<std::int64_t> target) {
  if (!positions.empty() && positions.size() != marks.size()) return {errc::shape_mismatch, static_cast<std::int64_t>(positions.size())};
  for (std::size_t slot = 1; slot < positions.size(); ++slot)
    if (positions[slot] < positions[slot - 1]) return {errc::out_of_range, static_cast<std::int64_t>(slot)};
  if (status const ok = route_dropped(marks, target); !ok) return ok;
  auto const at = [&](std::int64_t slot) { return positions.empty() ? slot : positions[static_cast<std::size_t>(slot)]; };
  auto const slots = static_cast<std::int64_t>(marks.size());
  std::int64_t before = no_target, after = 0;  // the kept slots around a loser
  for (std::int64_t slot = 0; slot < slots; ++slot) {
    auto const i = static_cast<std::size_t>(slot);
    if (marks[i] != free_slot) {
      before = slot;
      continue;
    }
    after = std::max(after, slot + 1);
    while (after < slots && marks[static_cast<std::size_t>(after)] == free_slot) ++after;
    bool const late = after < slots && (before == no_target || at(after) - at(slot) <= at(slot) - at(before));
    if (late || before != no_target) target[i] = target[static_cast<std::size_t>(late ? after : before)];
  }
  return {};
}

// `similarity` [slot], if not empty, gets each loser's largest cosine (-1 without a kept slot) and 1 for kept slots.
inline status route_most_similar(std::span<float const> keys, std::int64_t channels, std::span<slot_mark const> marks, double threshold,
                                 std::span<std::int64_t> target, std::span<float> similarity = {}) {
  if (status const ok = route_detail::check(keys, channels, marks, target); !ok) return ok;
  if (!similarity.empty() && similarity.size() != marks.size()) return {errc::shape_mismatch, static_cast<std::int64_t>(similarity.size())};
  if (status const ok = route_dropped(marks, target); !ok) return ok;
  auto const key = [&](std::size_t slot) { return keys.data() + slot * static_cast<std::size_t>(channels); };
  for (std::size_t slot = 0; slot < marks.size(); ++slot) {
    double most = marks[slot] == free_slot ? -1 : 1;
    if (marks[slot] == free_slot) {
      std::int64_t best = no_target;
      for (std::size_t other = 0; other < marks.size(); ++other) {
        if (marks[other] == free_slot) continue;
        if (double const c = cosine(key(slot), key(other), channels); best == no_target || c >= most) most = c, best = target[other];
      }
      if (best != no_target && most >= threshold) target[slot] = best;
    }
    if (!similarity.empty()) similarity[slot] = static_cast<float>(most);
  }
  return {};
}

inline status route_own_run(std::span<float const> keys, std::int64_t channels, std::span<slot_mark const> marks,
                            std::span<std::int64_t> target) {
  if (status const ok = route_detail::check(keys, channels, marks, target); !ok) return ok;
  if (status const ok = route_dropped(marks, target); !ok) return ok;
  auto const slots = static_cast<std::int64_t>(marks.size());
  auto const takes = [&](std::int64_t slot) { return slot >= 0 && slot < slots && marks[static_cast<std::size_t>(slot)] == chosen_slot; };
  auto const at = [&](std::int64_t slot) -> std::int64_t& { return target[static_cast<std::size_t>(slot)]; };
  for (std::int64_t first = 0, end = 0; first < slots; first = end + 1) {
    for (end = first; end < slots && marks[static_cast<std::size_t>(end)] == free_slot;) ++end;
    if (end == first || (!takes(first - 1) && !takes(end))) continue;
    std::int64_t cut = takes(end) ? first : end;  // from here on they go to the newer side
    if (takes(first - 1) && takes(end)) {
      std::uint32_t most = 0;
      for (std::int64_t slot = first; slot <= end; ++slot)
        if (std::uint32_t const here = route_detail::unlike(keys, channels, slot); here >= most) most = here, cut = slot;
    }
    for (std::int64_t slot = first; slot < end; ++slot) at(slot) = at(slot < cut ? first - 1 : end);
  }
  return {};
}

inline status route_next(std::span<slot_mark const> marks, std::span<std::int64_t> target) {
  if (status const ok = route_dropped(marks, target); !ok) return ok;
  std::int64_t behind = no_target;
  for (std::size_t slot = marks.size(); slot-- > 0;) behind = target[slot] = marks[slot] != free_slot ? target[slot] : behind;
  return {};
}

// Chooses the best slot of each run of free slots, and sends the run there. What is kept already is in no run.
inline status route_runs(std::span<float const> keys, std::int64_t channels, std::span<float const> scores, std::span<slot_mark> marks,
                         double threshold, std::span<std::int64_t> target) {
  if (status const ok = route_detail::check(keys, channels, marks, target); !ok) return ok;
  if (status const ok = check_scores(scores, marks); !ok) return ok;
  auto const key = [&](std::int64_t slot) { return keys.data() + slot * channels; };
  for (auto last = static_cast<std::int64_t>(marks.size()) - 1; last >= 0;) {  // target first holds the run's best slot by its old number
    std::int64_t first = last, best = last;
    if (marks[static_cast<std::size_t>(last)] == free_slot)
      while (first > 0 && marks[static_cast<std::size_t>(first - 1)] == free_slot &&
             cosine(key(first - 1), key(first), channels) >= threshold)
        if (scores[static_cast<std::size_t>(--first)] > scores[static_cast<std::size_t>(best)]) best = first;
    for (std::int64_t slot = first; slot <= last; ++slot) target[static_cast<std::size_t>(slot)] = best;
    last = first - 1;
  }
  std::int64_t kept = 0;
  for (std::size_t slot = 0; slot < marks.size(); ++slot)
    if (target[slot] == static_cast<std::int64_t>(slot) && marks[slot] == free_slot) marks[slot] = chosen_slot;
  // Old numbers become new ones, run by run: a run is contiguous, and its best slot lies in it.
  for (std::size_t slot = 0; slot < marks.size();) {
    std::int64_t const best = target[slot];
    std::size_t end = slot;
    while (end < marks.size() && target[end] == best) target[end++] = kept;
    ++kept;
    slot = end;
  }
  return {};
}

}  // namespace pith
