// SPDX-License-Identifier: Apache-2.0
// Where the tokens of one KV head lie. All heads of a layer have the same slots (layer_state); a head that was compacted holds other tokens
// in the first of them, in the same order.
//
//   slot            0 .. first    first .. first + births.size()     from there on
//   its token       itself        births[slot - first]               layer_state::token_of(slot)
//   slots unseen    none          those without their liveness bit   layer_state's holes too
//
// births ascend. A slot that is dead has the token of the next living one, so that a token's slot is the last one that has it.
// cost  a search among the births; nothing for a head that was not compacted
#pragma once

#include <algorithm>
#include <span>

#include "pith/cache/sequence.hpp"

namespace pith {

struct head_slots {
  layer_state const& state;
  std::int64_t first;
  std::span<std::int32_t const> births;

  std::int64_t moved_end() const { return first + static_cast<std::int64_t>(births.size()); }

  // The first slot of `token` or a later one; and the slot behind the last of `token` or an earlier one. Tokens of the sequence.
  std::int64_t begin_of(std::int64_t token) const {
    std::int64_t const slot = state.slot_of(token);
    return is_moved(slot) ? first + (std::lower_bound(births.begin(), births.end(), token) - births.begin()) : slot;
  }
  std::int64_t end_of(std::int64_t token) const {
    std::int64_t const slot = state.slot_of(token);
    return is_moved(slot) ? first + (std::upper_bound(births.begin(), births.end(), token) - births.begin()) : slot + 1;
  }
  // The slot of a token, or -1 if compaction has given it up.
  std::int64_t slot_of(std::int64_t token) const {
    std::int64_t const slot = state.slot_of(token);
    if (!is_moved(slot)) return slot;
    auto const after = std::upper_bound(births.begin(), births.end(), token);
    return after != births.begin() && after[-1] == token ? first + (after - births.begin()) - 1 : -1;
  }
  std::int64_t token_of(std::int64_t slot) const {
    return is_moved(slot) ? births[static_cast<std::size_t>(slot - first)] : state.token_of(slot);
  }

  // What is hidden beside the slots without a liveness bit.
  std::span<slot_range const> dead() const {
    std::span<slot_range const> const all{state.holes, static_cast<std::size_t>(state.hole_count)};
    std::size_t passed = 0;
    while (passed < all.size() && all[passed].begin < moved_end()) ++passed;
    return all.subspan(passed);
  }
  bool is_dead(std::int64_t slot) const {
    for (slot_range const& hole : dead())
      if (slot >= hole.begin && slot < hole.end) return true;
    return false;
  }

 private:
  bool is_moved(std::int64_t slot) const { return slot >= first && slot < moved_end(); }
};

}  // namespace pith
