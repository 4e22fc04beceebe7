// SPDX-License-Identifier: Apache-2.0
// Selection of whole units of one row: pages, chunks, clusters' runs, rounds of a dialogue.
//
//   score(unit) = mean, maximum, sum or mean of the best half of its free slots' scores; the best units stay, as long as the next one fits
//
// Rule U1  Slots that are protected or chosen already neither score nor count; a unit without a free slot is skipped.
// Rule U2  Ties: higher score, then newer unit. Taking stops at the first unit that does not fit, so that more room never loses a slot.
//
// errors  shape_mismatch, not_finite (`at`), out_of_range (starts that do not ascend from 0 within the row: `at` is the unit),
//         capacity_exceeded (scratch)
// cost    O(n + u log u) for n slots in u units (best half: O(n log n)); no allocation
// from    Zuo et al., WindowKV, 2025 (best half of 8); ChunkKV, 2025 (mean of 20); Quest, 2024 (pages of 16, their bound as score)
// differs WindowKV drops whole windows and returns them by score; here survivors ascend. Odd best halves are rounded up.
#pragma once

#include "pith/policy/select.hpp"

namespace pith {

// Units of one size, the last one cut.
struct even_units {
  std::int64_t slots_of_unit = 16;

  std::int64_t count(std::int64_t slots) const { return (slots + slots_of_unit - 1) / slots_of_unit; }
  std::int64_t start(std::int64_t unit) const { return unit * slots_of_unit; }
  status check(std::int64_t) const { return slots_of_unit > 0 ? status{} : status{errc::out_of_range, 0}; }
};

// Units that begin where a list says.
struct listed_units {
  std::span<std::int64_t const> starts{};

  std::int64_t count(std::int64_t) const { return static_cast<std::int64_t>(starts.size()); }
  std::int64_t start(std::int64_t unit) const { return starts[static_cast<std::size_t>(unit)]; }
  status check(std::int64_t slots) const {
    std::int64_t const units = count(slots);
    if (slots > 0 && units == 0) return {errc::out_of_range, 0};
    for (std::int64_t u = 0; u < units; ++u)
      if (u == 0 ? start(0) != 0 : start(u) <= start(u - 1) || start(u) >= slots) return {errc::out_of_range, u};
    return {};
  }
};

enum class unit_score : std::uint8_t { mean, maximum, best_half, sum };

namespace unit_detail {

// The free slots of a unit lie in `ranked`. Sums in f64, oldest or best first.
inline float score_of(std::span<float const> scores, std::span<ranked_slot> ranked, unit_score rule) {
  std::size_t taken = ranked.size();
  if (rule == unit_score::maximum || rule == unit_score::best_half) {
    taken = rule == unit_score::maximum ? 1 : (taken + 1) / 2;
    std::sort(ranked.begin(), ranked.end());
  }
  double sum = 0;
  for (std::size_t i = 0; i < taken; ++i) sum += static_cast<double>(scores[ranked[i].slot]);
  return static_cast<float>(rule == unit_score::sum ? sum : sum / static_cast<double>(taken));
}

}  // namespace unit_detail

constexpr std::int64_t select_units_scratch_bytes(std::int64_t slots) { return 2 * select_scratch_bytes(slots); }

// `room` free slots may be kept.
template <class Units>
status select_units(std::span<float const> scores, std::span<slot_mark> marks, Units const& units, unit_score rule, std::int64_t room,
                    std::span<std::byte> scratch) {
  auto const slots = static_cast<std::int64_t>(marks.size());
  if (status const ok = check_scores(scores, marks); !ok) return ok;
  if (status const ok = units.check(slots); !ok) return ok;
  std::int64_t const count = units.count(slots);
  std::span<ranked_slot> members, order;
  lent_memory memory(scratch);
  if (!memory.take(slots, members) || !memory.take(count, order)) return {errc::capacity_exceeded, select_units_scratch_bytes(slots)};

  auto const first = [&](std::int64_t unit) { return static_cast<std::size_t>(units.start(unit)); };
  auto const size = [&](std::int64_t unit) { return (unit + 1 < count ? first(unit + 1) : marks.size()) - first(unit); };
  std::int64_t ranked = 0;
  for (std::int64_t u = 0; u < count; ++u) {
    auto const own = scores.subspan(first(u), size(u));
    std::int64_t const free = rank_slots(own, marks.subspan(first(u), size(u)), 0, members.data());
    if (free == 0) continue;
    float const score = unit_detail::score_of(own, members.first(static_cast<std::size_t>(free)), rule);
    if (is_nan(score)) return {errc::not_finite, units.start(u)};  // both infinities in one unit
    order[static_cast<std::size_t>(ranked++)] = {ordered_bits(score), static_cast<std::uint32_t>(u), static_cast<std::uint32_t>(free)};
  }
  std::sort(order.begin(), order.begin() + ranked);  // `row` holds the free slots; no two have the same unit, so it never decides
  for (std::int64_t i = 0; i < ranked; ++i) {
    ranked_slot const unit = order[static_cast<std::size_t>(i)];
    room -= unit.row;
    if (room < 0) break;
    for (slot_mark& mark : marks.subspan(first(unit.slot), size(unit.slot)))
      if (mark == free_slot) mark = chosen_slot;
  }
  return {};
}

}  // namespace pith
