// SPDX-License-Identifier: Apache-2.0
// Selections that look at no score: legal behind any kernel.
//
//   select_interval  the N oldest and, as far as the room goes, the newest slots
//   ladder           sinks, newest slots and, between them, steps that differ from layer to layer: together the layers remember more
//
// A ladder over L layers: nb = 1 + ceil((L - S) / (S - O)) slots, of which a layer keeps na = min(ceil(S / (S - O)), nb), starting at slot
// layer mod (nb - na + 1). With more than C + (nb - na) / 2 slots, as many ladders as bring the length there are laid one after another
// from a cursor; what lies before the cursor has been through already. When less than a ladder is left before the L newest slots, the
// cursor goes back to the sinks. All layers keep the same number of slots.
//
// Rule L1  Sinks and the L newest slots stay.
// Rule L2  Layers of one length keep equally many.
// Rule L3  If not even one ladder fits between sinks and newest slots, the oldest behind the sinks go (an interval).
//
// errors  out_of_range: room below what an interval needs; options that make no ladder (S >= L, O >= S, or none that drops a slot; -1)
// cost    O(n); in place; no allocation
// from    Xiao et al., StreamingLLM, 2023; Shi et al., LaCache, 2025
// differs LaCache's "startover", a second pass in wider strides, is more passes of the same ladders. With room for fewer slots than sinks,
//         StreamingLLM keeps an empty window; here that is an error.
#pragma once

#include <algorithm>

#include "pith/policy/ranking.hpp"

namespace pith {

// Marks `sinks` oldest and newest slots so that `room` slots are kept. errors  out_of_range: sinks exceed the room; `at` is the sinks
inline status select_interval(std::span<slot_mark> marks, std::int64_t sinks, std::int64_t room) {
  auto const slots = static_cast<std::int64_t>(marks.size());
  if (sinks < 0 || sinks > std::max<std::int64_t>(room, 0)) return {errc::out_of_range, sinks};
  for (std::int64_t slot = 0; slot < slots; ++slot)
    if (slot_mark& mark = marks[static_cast<std::size_t>(slot)]; (slot < sinks || slot >= slots - (room - sinks)) && mark == free_slot)
      mark = chosen_slot;
  return {};
}

struct ladder_options {
  std::int64_t layers = 32, span = 16, overlap = 0, sinks = 4, capacity = 512;
};

class ladder {
 public:
  static result<ladder> make(ladder_options const& options) {
    bool const good = options.overlap >= 0 && options.overlap < options.span && options.span < options.layers && options.sinks >= 0 &&
                      options.capacity >= options.sinks + options.layers;
    if (!good || ladder(options).slots_ == ladder(options).kept_) return status{errc::out_of_range, -1};
    return ladder(options);
  }

  std::int64_t slots_of_ladder() const { return slots_; }
  std::int64_t kept_of_ladder() const { return kept_; }
  std::int64_t capacity() const { return options_.capacity + (slots_ - kept_) / 2; }  // kept slots, once a ladder has been laid

  // Shortens a layer's list of kept slots, ascending, in place; its new length. Every layer is called with the same cursor, and the cursor
  // that the first one leaves is the next call's.
  std::int64_t shorten(std::span<std::int64_t> list, std::int64_t layer, std::int64_t& cursor) const {
    auto length = static_cast<std::int64_t>(list.size());
    while (length > capacity()) {
      cursor = std::max(cursor, options_.sinks);
      std::int64_t const fitting = (length - options_.layers - cursor) / slots_;
      std::int64_t const wanted = (length - capacity() + slots_ - kept_ - 1) / (slots_ - kept_);
      std::int64_t const ladders = std::min(wanted, fitting);
      if (ladders <= 0 && cursor > options_.sinks) {  // the next pass begins
        cursor = options_.sinks;
        continue;
      }
      if (ladders <= 0) {  // rule L3
        std::int64_t const surplus = length - capacity();
        std::copy(list.begin() + options_.sinks + surplus, list.begin() + length, list.begin() + options_.sinks);
        return length - surplus;
      }
      length = lay(list.first(static_cast<std::size_t>(length)), layer, cursor, ladders);
      cursor += ladders * kept_;
    }
    return length;
  }

 private:
  explicit ladder(ladder_options const& options) : options_(options) {
    std::int64_t const step = options.span - options.overlap;
    slots_ = 1 + (options.layers - options.span + step - 1) / step;
    kept_ = std::min((options.span + step - 1) / step, slots_);
  }

  std::int64_t lay(std::span<std::int64_t> list, std::int64_t layer, std::int64_t from, std::int64_t ladders) const {
    auto const out = list.begin() + from;
    std::int64_t const offset = layer % (slots_ - kept_ + 1);
    for (std::int64_t j = 0; j < ladders; ++j) std::copy_n(list.begin() + from + j * slots_ + offset, kept_, out + j * kept_);
    std::copy(list.begin() + from + ladders * slots_, list.end(), out + ladders * kept_);
    return static_cast<std::int64_t>(list.size()) - ladders * (slots_ - kept_);
  }

  ladder_options options_;
  std::int64_t slots_ = 0, kept_ = 0;
};

}  // namespace pith
