// SPDX-License-Identifier: Apache-2.0
// Selection of one row by runs of neighbours that are alike: one slot of each run stays, for the others of the run to be merged into.
//
//   heavy hitters   floor(heavy x room) slots by score: kept as they are, nothing is merged into them (mark heavy_slot)
//   segments        what is still free between kept slots: neighbours that may share a run
//   runs            segments, cut between the neighbours whose keys have the smallest cosines, as often as the room allows
//   pivot           the best score of each run: chosen_slot
//
// So the room decides how alike a run is, where the paper fixes the cosine and gets what number of runs it gets. route_own_run
// (merge_route.hpp) finds each loser's run again, from marks and keys alone.
//
// Rule N1  heavy hitters + pivots = min(room, free slots). No run crosses a kept slot.
// Rule N2  Of equal cosines the newer pair is cut; of equal scores the newer slot is the pivot. Cosines are compared as f32.
// Rule N3  If there are more segments than pivots, the segments with the best pivots have one; the others have none, and are dropped.
//
// keys    [slot][channels]
// errors  shape_mismatch (extents), not_finite (a score of a free slot that is NaN, a key of one that is not finite: `at` is the slot),
//         out_of_range (heavy outside [0, 1]: -1), capacity_exceeded (scratch). Marks are changed only on success
// cost    O(n channels + n log n); no allocation
// from    Wang et al., KVMerger (Model Tells You Where to Merge), 2024
// differs a budget in place of a threshold; route_runs is the paper's form
#pragma once

#include "pith/policy/merge_route.hpp"
#include "pith/policy/select.hpp"

namespace pith {

inline constexpr slot_mark heavy_slot = passed_slot - 1;

namespace runs_detail {

// f(first, end) for each maximal run of free slots, oldest first; how many.
template <class F>
std::int64_t for_each_segment(std::span<slot_mark const> marks, F&& f) {
  std::int64_t count = 0;
  for (std::size_t first = 0; first < marks.size();) {
    std::size_t end = first;
    while (end < marks.size() && marks[end] == free_slot) ++end;
    if (end > first) f(first, end), ++count;
    first = end + 1;
  }
  return count;
}

inline ranked_slot best_of(std::span<float const> scores, std::size_t first, std::size_t end) {
  ranked_slot best{ordered_bits(scores[first]), static_cast<std::uint32_t>(first), 0};
  for (std::size_t slot = first + 1; slot < end; ++slot)
    best = std::min(best, ranked_slot{ordered_bits(scores[slot]), static_cast<std::uint32_t>(slot), 0});
  return best;
}

// The best `count` free slots become heavy ones; those that were chosen before stay what they are.
inline status mark_heavy(std::span<float const> scores, std::span<slot_mark> marks, std::int64_t count) {
  std::replace(marks.begin(), marks.end(), chosen_slot, passed_slot);
  status const ok = select_top(scores, marks, count);
  std::replace(marks.begin(), marks.end(), chosen_slot, heavy_slot);
  std::replace(marks.begin(), marks.end(), passed_slot, chosen_slot);
  return ok;
}

}  // namespace runs_detail

inline status select_runs(std::span<float const> keys, std::int64_t channels, std::span<float const> scores, std::span<slot_mark> marks,
                          std::int64_t room, double heavy, std::span<std::byte> scratch) {
  auto const slots = static_cast<std::int64_t>(marks.size());
  if (channels < 1 || keys.size() != marks.size() * static_cast<std::size_t>(channels)) return {errc::shape_mismatch, channels};
  if (status const ok = check_scores(scores, marks); !ok) return ok;
  if (!(heavy >= 0 && heavy <= 1)) return {errc::out_of_range, -1};
  for (std::int64_t i = 0; i < slots * channels; ++i)
    if (marks[static_cast<std::size_t>(i / channels)] == free_slot && !is_finite(keys[static_cast<std::size_t>(i)]))
      return {errc::not_finite, i / channels};
  std::span<ranked_slot> ranked;
  if (!lent_memory(scratch).take(slots, ranked)) return {errc::capacity_exceeded, select_scratch_bytes(slots)};

  room = std::clamp<std::int64_t>(room, 0, free_slots(marks));
  auto const hitters = static_cast<std::int64_t>(heavy * static_cast<double>(room));
  if (room == free_slots(marks)) return select_top(scores, marks, room);
  if (status const ok = runs_detail::mark_heavy(scores, marks, hitters); !ok) return ok;
  std::int64_t const pivots = room - hitters, segments = runs_detail::for_each_segment(marks, [](std::size_t, std::size_t) {});
  std::size_t count = 0;
  if (pivots < segments) {
    runs_detail::for_each_segment(marks,
                                  [&](std::size_t first, std::size_t end) { ranked[count++] = runs_detail::best_of(scores, first, end); });
    std::nth_element(ranked.begin(), ranked.begin() + pivots, ranked.begin() + segments);
    for (std::int64_t i = 0; i < pivots; ++i) marks[ranked[static_cast<std::size_t>(i)].slot] = chosen_slot;
    return {};
  }
  // A cut lies before its slot. The first `pivots - segments` of the order are made.
  runs_detail::for_each_segment(marks, [&](std::size_t first, std::size_t end) {
    for (std::size_t slot = first + 1; slot < end; ++slot)
      ranked[count++] = {route_detail::unlike(keys, channels, static_cast<std::int64_t>(slot)), static_cast<std::uint32_t>(slot), 0};
  });
  std::int64_t const cuts = pivots - segments;
  std::nth_element(ranked.begin(), ranked.begin() + cuts, ranked.begin() + static_cast<std::ptrdiff_t>(count));
  std::sort(ranked.begin(), ranked.begin() + cuts, [](ranked_slot a, ranked_slot b) { return a.slot < b.slot; });
  ranked_slot const* cut = ranked.data();
  ranked_slot const* const last = cut + cuts;
  std::size_t next = 0;  // segments are walked by hand: choosing a pivot changes the marks
  while (next < marks.size()) {
    std::size_t end = next;
    while (end < marks.size() && marks[end] == free_slot && !(cut != last && end > next && cut->slot == end)) ++end;
    if (end > next) marks[runs_detail::best_of(scores, next, end).slot] = chosen_slot;
    if (cut != last && cut->slot == end)
      ++cut, next = end;
    else
      next = end + 1;
  }
  return {};
}

}  // namespace pith
