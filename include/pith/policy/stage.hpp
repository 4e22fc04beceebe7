// SPDX-License-Identifier: Apache-2.0
// The stages of a policy: which of a cache's tokens stay, and what becomes of the others.
//
//   trigger, signal, scorer, normalise, head map, smooth, protect, total, layer split, head split, select, dispose, position
//
// Rule S1  A stage is a small value type with `static constexpr stage kind`; its fields are its options, the paper's numbers their
// defaults. Rule S2  Stages are pure: all that lives on is the scorer's state, which the caller owns. Rule S3  A stage whose template
// arguments may be wrong has `static constexpr bool valid`. Rule S4  A bundle is a type with `using stages = stage_list<...>`: it stands
// for these stages. No kind of stage is given twice.
#pragma once

#include <cstdint>

namespace pith {

enum class stage : std::uint8_t {
  trigger,      // when to decide
  signal,       // what is known of a slot
  scorer,       // how that becomes the slot's score, over time
  normalise,    // what makes scores comparable
  head_map,     // query heads to KV heads, or wider
  smooth,       // along the slots
  protect,      // slots that are not ranked at all
  total,        // tokens in all
  layer_split,  // tokens of each layer
  head_split,   // tokens of each KV head
  select,       // which slots
  dispose,      // what becomes of the others
  position,     // what becomes of positions
};

template <class... Stages>
struct stage_list {};

}  // namespace pith
