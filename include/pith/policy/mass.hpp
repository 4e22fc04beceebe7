// SPDX-License-Identifier: Apache-2.0
// How concentrated a row's attention is: numbers that splits of a budget are made from.
//
//   tokens_of_mass(p, mass)  the fewest slots whose p sum to >= mass of all       ZigZagKV's minimum budget, mass 0.9
//
// errors  not_finite, out_of_range (negative or infinite; `at` is the slot), capacity_exceeded (scratch)
// cost    O(n log n); no allocation
#pragma once

#include "pith/policy/select.hpp"

namespace pith {

constexpr std::int64_t tokens_of_mass_scratch_bytes(std::int64_t slots) {
  return select_scratch_bytes(slots) + lent_memory::bytes<slot_mark>(slots);
}

inline result<std::int64_t> tokens_of_mass(std::span<float const> scores, double mass, std::span<std::byte> scratch) {
  auto const slots = static_cast<std::int64_t>(scores.size());
  std::span<ranked_slot> ranked;
  std::span<slot_mark> marks;
  lent_memory memory(scratch);
  if (!memory.take(slots, ranked) || !memory.take(slots, marks))
    return status{errc::capacity_exceeded, tokens_of_mass_scratch_bytes(slots)};
  std::fill(marks.begin(), marks.end(), free_slot);
  return slots_of_mass(scores, marks, mass, ranked);
}

}  // namespace pith
