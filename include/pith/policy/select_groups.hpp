// SPDX-License-Identifier: Apache-2.0
// Selection of whole groups of one row whose slots need not be neighbours: clusters of keys, rounds of a dialogue. The sibling of
// select_units.hpp; its rules hold.
//
//   groups[slot] in 0 ... slots - 1 names the slot's group;   the best groups stay, as long as the next one fits
//
// Rule U1  Slots that are protected or chosen already neither score nor count; a group without a free slot is skipped.
// Rule U2  Ties: higher score, then the group whose newest free slot is newer. Taking stops at the first group that does not fit.
//
// errors  shape_mismatch, not_finite (`at` is a slot), out_of_range (a group: `at` is the slot), capacity_exceeded (scratch)
// cost    O(n + g log g) for n slots in g groups (best half: O(n log n)); no allocation
// from    Wu et al., LouisKV, 2025 (clusters); Tang et al., Round Attention, 2025 (rounds)
#pragma once

#include "pith/policy/select_units.hpp"

namespace pith {

constexpr std::int64_t select_groups_scratch_bytes(std::int64_t slots) {
  return 2 * select_scratch_bytes(slots) + lent_memory::bytes<std::uint32_t>(slots + 1);
}

// `room` free slots may be kept.
inline status select_groups(std::span<float const> scores, std::span<slot_mark> marks, std::span<std::int64_t const> groups,
                            unit_score rule, std::int64_t room, std::span<std::byte> scratch) {
  auto const slots = static_cast<std::int64_t>(marks.size());
  if (status const ok = check_scores(scores, marks); !ok) return ok;
  if (groups.size() != marks.size()) return {errc::shape_mismatch, static_cast<std::int64_t>(groups.size())};
  for (std::size_t slot = 0; slot < groups.size(); ++slot)
    if (groups[slot] < 0 || groups[slot] >= slots) return {errc::out_of_range, static_cast<std::int64_t>(slot)};
  std::span<ranked_slot> members, order;
  std::span<std::uint32_t> end;
  lent_memory memory(scratch);
  if (!memory.take(slots, members) || !memory.take(slots, order) || !memory.take(slots + 1, end))
    return {errc::capacity_exceeded, select_groups_scratch_bytes(slots)};

  // Free slots by group, oldest first: end[g] is where group g's begin, and, once they lie there, where they end.
  std::fill(end.begin(), end.end(), 0u);
  auto const group = [&](std::size_t slot) { return static_cast<std::size_t>(groups[slot]); };
  for (std::size_t slot = 0; slot < marks.size(); ++slot)
    if (marks[slot] == free_slot) ++end[group(slot) + 1];
  for (std::size_t g = 1; g < end.size(); ++g) end[g] += end[g - 1];
  for (std::size_t slot = 0; slot < marks.size(); ++slot)
    if (marks[slot] == free_slot) members[end[group(slot)]++] = {ordered_bits(scores[slot]), static_cast<std::uint32_t>(slot), 0};
  auto const of = [&](std::size_t g) {
    std::size_t const begin = g == 0 ? 0 : end[g - 1];
    return members.subspan(begin, end[g] - begin);
  };

  std::size_t ranked = 0;
  for (std::size_t g = 0; g < marks.size(); ++g) {
    auto const own = of(g);
    if (own.empty()) continue;
    std::uint32_t const newest = own.back().slot;
    float const score = unit_detail::score_of(scores, own, rule);
    if (is_nan(score)) return {errc::not_finite, static_cast<std::int64_t>(newest)};  // both infinities in one group
    order[ranked++] = {ordered_bits(score), newest, static_cast<std::uint32_t>(own.size())};
  }
  std::sort(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(ranked));  // no two have the same newest slot
  for (ranked_slot const best : order.first(ranked)) {
    room -= best.row;
    if (room < 0) break;
    for (ranked_slot const member : of(group(best.slot))) marks[member.slot] = chosen_slot;
  }
  return {};
}

}  // namespace pith
