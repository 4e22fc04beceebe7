// SPDX-License-Identifier: Apache-2.0
// Stage "protect": slots that are kept whatever their score. Protection is a partition of the slots, never an infinite score.
//
//   protect<sinks<4>, recent<64>>    ordered classes, the first has the highest priority; a slot belongs to the first that names it
//
//   sinks<N>         the N oldest slots
//   recent<N>        the N newest
//   window<N>        the N newest: those whose queries made the statistics (SnapKV)
//   last_page<N>     the last, perhaps unfilled, page of N slots
//   masked_slots     where the caller's mask is not zero (a system prompt, heavy hitters)
//   pinned_slots     where the caller's pins are not zero
//
// Rule P1  The protected slots are those of the classes, and no others.
// Rule P2  If they exceed the row's capacity, `overflow::raise` raises the capacity to their number; `overflow::clip` gives up slots of the
//          lowest-priority class, oldest first, then of the next. Both are reported, neither is silent.
// Rule P3  A row that was clipped selects nothing: what was clipped is not ranked again.
#pragma once

#include <algorithm>

#include "pith/policy/ranking.hpp"
#include "pith/policy/stage.hpp"

namespace pith {

enum class overflow : std::uint8_t { raise, clip };

// What the caller knows of a row's slots: a number that is not zero for masked and for pinned ones; empty: none.
struct protect_input {
  std::span<std::uint8_t const> mask{}, pins{};
};

namespace protect_detail {

inline void mark_range(std::span<slot_mark> marks, std::int64_t first, std::int64_t last, slot_mark priority) {
  for (std::int64_t slot = std::max<std::int64_t>(first, 0); slot < last; ++slot)
    if (slot_mark& mark = marks[static_cast<std::size_t>(slot)]; mark == free_slot) mark = priority;
}
inline void mark_where(std::span<slot_mark> marks, std::span<std::uint8_t const> named, slot_mark priority) {
  for (std::size_t slot = 0; slot < named.size(); ++slot)
    if (named[slot] != 0 && marks[slot] == free_slot) marks[slot] = priority;
}
inline std::int64_t size(std::span<slot_mark> marks) { return static_cast<std::int64_t>(marks.size()); }

}  // namespace protect_detail

// The classes. `mark` gives the free slots of the class a priority; `window_rows` is how many of the newest slots are rows of the
// statistics.
template <std::int64_t Slots>
struct sinks {
  static constexpr bool valid = Slots >= 0;
  std::int64_t slots = Slots;
  void mark(std::span<slot_mark> marks, protect_input const&, slot_mark priority) const {
    protect_detail::mark_range(marks, 0, std::min(slots, protect_detail::size(marks)), priority);
  }
};

template <std::int64_t Slots>
struct recent {
  static constexpr bool valid = Slots >= 0;
  std::int64_t slots = Slots;
  void mark(std::span<slot_mark> marks, protect_input const&, slot_mark priority) const {
    std::int64_t const all = protect_detail::size(marks);
    protect_detail::mark_range(marks, all - std::min(slots, all), all, priority);
  }
};

template <std::int64_t Slots>
struct window : recent<Slots> {};

template <std::int64_t Slots>
struct last_page {
  static constexpr bool valid = Slots > 0;
  std::int64_t slots = Slots;
  void mark(std::span<slot_mark> marks, protect_input const&, slot_mark priority) const {
    std::int64_t const all = protect_detail::size(marks);
    if (all > 0) protect_detail::mark_range(marks, (all - 1) / slots * slots, all, priority);
  }
};

struct masked_slots {
  void mark(std::span<slot_mark> marks, protect_input const& in, slot_mark priority) const {
    protect_detail::mark_where(marks, in.mask, priority);
  }
};

struct pinned_slots {
  void mark(std::span<slot_mark> marks, protect_input const& in, slot_mark priority) const {
    protect_detail::mark_where(marks, in.pins, priority);
  }
};

// How many of the newest slots a class names for certain.
template <class Class>
inline constexpr std::int64_t newest_of = 0;
template <std::int64_t Slots>
inline constexpr std::int64_t newest_of<recent<Slots>> = Slots;
template <std::int64_t Slots>
inline constexpr std::int64_t newest_of<window<Slots>> = Slots;

template <class T>
concept protect_class = requires(T const& c, std::span<slot_mark> marks, protect_input const& in) {
  c.mark(marks, in, slot_mark{1});
};

namespace protect_detail {

template <class T>
constexpr bool valid() {
  if constexpr (requires { T::valid; }) return T::valid;
  return true;
}

template <class Class>
struct held {
  Class value{};
};

}  // namespace protect_detail

template <class... Classes>
struct protect : protect_detail::held<Classes>... {
  static constexpr bool all_classes = (protect_class<Classes> && ...);  // check_policy says what to type if not
  static constexpr bool valid = sizeof...(Classes) < passed_slot && (protect_detail::valid<Classes>() && ...);
  static constexpr stage kind = stage::protect;
  overflow when_full = overflow::raise;

  template <class Class>
  Class& at() {
    return static_cast<protect_detail::held<Class>&>(*this).value;
  }
  // Marks the free slots of all classes. errors  shape_mismatch: a mask or pins of another length
  status mark(std::span<slot_mark> marks, protect_input const& in) const requires(all_classes&& valid) {
    for (auto const named : {in.mask, in.pins})
      if (!named.empty() && named.size() != marks.size()) return {errc::shape_mismatch, static_cast<std::int64_t>(named.size())};
    slot_mark priority = 0;
    (static_cast<protect_detail::held<Classes> const&>(*this).value.mark(marks, in, ++priority), ...);
    return {};
  }
};

inline std::int64_t protected_slots(std::span<slot_mark const> marks) { return std::count_if(marks.begin(), marks.end(), is_protected); }

// Frees protected slots, lowest priority and then oldest first, until no more than `capacity` are left; how many were freed. cost O(n x
// classes that give way)
inline std::int64_t clip_protected(std::span<slot_mark> marks, std::int64_t capacity) {
  std::int64_t const surplus = std::max<std::int64_t>(protected_slots(marks) - std::max<std::int64_t>(capacity, 0), 0);
  for (std::int64_t left = surplus; left > 0;) {
    slot_mark lowest = 0;
    for (slot_mark const mark : marks)
      if (is_protected(mark)) lowest = std::max(lowest, mark);
    for (slot_mark& mark : marks)
      if (left > 0 && mark == lowest) mark = free_slot, --left;
  }
  return surplus;
}

}  // namespace pith
