// SPDX-License-Identifier: Apache-2.0
// Sequences of a cache: the caller's handle, and what the cache keeps for each of their layers.
#pragma once

#include <cstdint>

#include "pith/core/status.hpp"
#include "pith/page/attention_engine.hpp"

namespace pith {

// A handle. It stays a number after close(); using it then, or with another cache, gives errc::stale_handle.
struct sequence {
  std::uint32_t cache = 0;
  std::uint32_t index = 0;
  std::uint32_t generation = 0;
  friend constexpr bool operator==(sequence const&, sequence const&) = default;
};

// What truncate() did.
struct truncation {
  bool exact = true;            // false: the cut was inside sealed tiles, and new tokens start a new tile
  std::int64_t dead_slots = 0;  // slots of a layer that stay occupied but are never seen
};

// One layer of one sequence. Slots are rows in the order of arrival; token i is slot i plus the dead slots before it.
struct layer_state {
  static constexpr int max_holes = 16;

  std::int64_t tokens = 0;
  std::int64_t slots = 0;
  std::int64_t sealed_keys = 0;  // slots after `first`
  std::int64_t sealed_values = 0;
  slot_range holes[max_holes] = {};  // dead slots, ascending
  std::int64_t hole_count = 0;

  PITH_HD std::int64_t slot_of(std::int64_t token) const {
    std::int64_t slot = token;
    for (int i = 0; i < hole_count && slot >= holes[i].begin; ++i) slot += holes[i].end - holes[i].begin;
    return slot;
  }
  // The token of a slot; of a dead one the next token's number.
  PITH_HD std::int64_t token_of(std::int64_t slot) const {
    std::int64_t token = slot;
    for (int i = 0; i < hole_count && slot > holes[i].begin; ++i) token -= (slot < holes[i].end ? slot : holes[i].end) - holes[i].begin;
    return token;
  }
};

// One KV head of one layer of one sequence, once it was compacted. Slots counted after `first`; multiples of the tile that is sealed at once.
struct head_state {
  std::int64_t moved = 0;  // slots before it hold the tokens that side<births> says; the others those of layer_state
  std::int64_t spent = 0;  // rows before it may not be encoded once more: their codecs encode several together, and have done so twice
};

struct sequence_state {
  bool open = false;
  std::uint32_t generation = 0;
};

}  // namespace pith
