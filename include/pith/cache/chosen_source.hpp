// SPDX-License-Identifier: Apache-2.0
// A KV head of which one call sees the chosen slots alone: attention for policies that retrieve. Nothing in the cache changes.
#pragma once

#include "pith/cache/segment_source.hpp"

namespace pith {

// `chosen` has a bit for each slot, as side<liveness> has, and none for a slot that does not live. Pages without one are not read.
template <class Recipe>
struct chosen_source : segment_source<Recipe> {
  std::uint64_t const* chosen;

  std::uint64_t const* live() const { return chosen; }
  template <class F>
  void for_each_page(F f) const {
    segment_source<Recipe>::for_each_page([&](std::int64_t base, std::byte* page) {
      std::int64_t const begin = Recipe::first_tokens + base, end = std::min(begin + Recipe::page::tokens, this->state().slots);
      bool any = false;
      for (std::int64_t slot = begin; slot < end && !any; ++slot) any = (chosen[slot / 64] >> (slot % 64) & 1u) != 0;
      if (any) f(base, page);
    });
  }
};

}  // namespace pith
