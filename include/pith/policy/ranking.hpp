// SPDX-License-Identifier: Apache-2.0
// The one order of slots: higher score, then newer slot, then lower row (KV head).
//
// A score is an f32; -infinity and infinity are ordinary, -0 equals 0, and a NaN is refused before it is ranked. Integers only, so that
// every machine and every floating-point flag ranks alike. Slot and row numbers stay below 2^32.
#pragma once

#include <cstdint>
#include <span>

#include "pith/core/scalar.hpp"
#include "pith/core/status.hpp"

namespace pith {

// What has been decided about a slot: nothing yet (free, to be ranked; in the end, a loser), kept by the selection, or kept by protection
// of priority 1 (the highest) to 253. `passed` is for a moment: out of the ranking, and free again after it.
using slot_mark = std::uint8_t;
inline constexpr slot_mark free_slot = 0, passed_slot = 254, chosen_slot = 255;
constexpr bool is_protected(slot_mark mark) { return mark != free_slot && mark < passed_slot; }

struct ranked_slot {
  std::uint32_t score, slot, row;  // score: ordered_bits

  friend constexpr bool operator<(ranked_slot a, ranked_slot b) {  // a comes first
    if (a.score != b.score) return a.score > b.score;
    if (a.slot != b.slot) return a.slot > b.slot;
    return a.row < b.row;
  }
};

// Unsigned numbers in the order of the floats.
constexpr std::uint32_t ordered_bits(float x) {
  std::uint32_t bits = float_bits(x);
  bits = bits == 0x80000000u ? 0 : bits;  // -0 is 0
  return bits ^ ((0u - (bits >> 31)) | 0x80000000u);
}

// errors  not_finite: the score of a free slot is NaN; `at` is the slot. Others are not looked at.
inline status check_scores(std::span<float const> scores, std::span<slot_mark const> marks) {
  if (scores.size() != marks.size()) return {errc::shape_mismatch, static_cast<std::int64_t>(scores.size())};
  unsigned wrong = 0;  // looked for only if there is one
  for (std::size_t slot = 0; slot < scores.size(); ++slot)
    wrong |= static_cast<unsigned>(marks[slot] == free_slot) & static_cast<unsigned>(is_nan(scores[slot]));
  for (std::size_t slot = 0; wrong != 0 && slot < scores.size(); ++slot)
    if (marks[slot] == free_slot && is_nan(scores[slot])) return {errc::not_finite, static_cast<std::int64_t>(slot)};
  return {};
}

inline std::int64_t free_slots(std::span<slot_mark const> marks) {
  std::int64_t count = 0;
  for (slot_mark const mark : marks) count += mark == free_slot;
  return count;
}

// f(ordered score, slot) for every free slot, oldest first.
template <class F>
void for_each_free(std::span<float const> scores, std::span<slot_mark const> marks, F f) {
  for (std::size_t slot = 0; slot < scores.size(); ++slot)
    if (marks[slot] == free_slot) f(ordered_bits(scores[slot]), static_cast<std::uint32_t>(slot));
}

// Writes the free slots of a row to `out`, oldest first; how many.
inline std::int64_t rank_slots(std::span<float const> scores, std::span<slot_mark const> marks, std::int64_t row, ranked_slot* out) {
  std::int64_t count = 0;
  for (std::size_t slot = 0; slot < scores.size(); ++slot)
    if (marks[slot] == free_slot)
      out[count++] = {ordered_bits(scores[slot]), static_cast<std::uint32_t>(slot), static_cast<std::uint32_t>(row)};
  return count;
}

// The kept slots, strictly increasing; how many. `out` has room for a number of each slot.
inline std::int64_t kept_slots(std::span<slot_mark const> marks, std::span<std::int64_t> out) {
  std::size_t count = 0;
  for (std::size_t slot = 0; slot < marks.size(); ++slot) {
    out[count] = static_cast<std::int64_t>(slot);  // no branch: the next one overwrites it
    count += marks[slot] != free_slot;
  }
  return static_cast<std::int64_t>(count);
}

}  // namespace pith
