// SPDX-License-Identifier: Apache-2.0
// The caches that the language model is run with: the one list. bf16 comes first; the others are compared with it.
#pragma once

#include "pith/pith.hpp"

namespace example {

using bf16_cache = pith::recipes::bf16_cache<64>;

// visit(name, keys, values, composition) for each.
template <class Visit>
void for_each_composition(Visit&& visit) {
  using namespace pith::recipes;
  visit("bf16", "bf16", "bf16", bf16_cache{});
  visit("int8 per token", "int8 per_token<64>", "int8 per_token<64>", int8_cache<64>{});
  visit("int8 per token, exact", "int8 per_token<64>", "int8 per_token<64>", int8_cache_exact<64>{});
  visit("int8 per channel", "int8 per_channel<32>", "int8 per_token<32>", int8_per_channel<64>{});
  visit("int4 per token", "int4 per_token<64>", "int4 per_token<64>", int4_cache<64>{});
  visit("int4 per token, exact", "int4 per_token<64>", "int4 per_token<64>", int4_cache_exact<64>{});
  visit("int4 per channel (KIVI)", "int4 per_channel<32>", "int4 per_token<32>", kivi4<64>{});
  visit("int4 rotated", "hadamard, int4 per_token<32>", "hadamard, int4 per_token<32>", rotated4<64>{});
  visit("int3 per token", "int3 per_token<32>", "int3 per_token<32>", int3_cache<64>{});
  visit("int3 per channel", "int3 per_channel<32>", "int3 per_token<32>", kivi<64, 3>{});
  visit("int2 per token", "int2 per_token<32>", "int2 per_token<32>", int2_cache<64>{});
  visit("int2 per channel (KIVI)", "int2 per_channel<32>", "int2 per_token<32>", kivi2<64>{});
  visit("int2 rotated", "hadamard, int2 per_token<32>", "hadamard, int2 per_token<32>", rotated2<64>{});
}

}  // namespace example
