// SPDX-License-Identifier: Apache-2.0
// One KV head of one sequence of a kv_cache, as the Source that a backend's attention reads (page/attention_engine.hpp).
#pragma once

#include <algorithm>

#include "pith/cache/storage.hpp"

namespace pith {

template <class Recipe>
struct segment_source {
  using storage = cache_storage<Recipe>;
  using segments = raw_segments<Recipe>;
  using page = typename Recipe::page;
  static constexpr int first_tile = segments::first_tile;

  storage const& store;
  std::int64_t sequence;
  int layer;
  int head;
  std::int64_t chunk = 0;  // tokens of the raw chunk that this call brings

  layer_state const& state() const { return store.layer(sequence, layer); }
  std::byte* raw() const { return store.raw_block(sequence, layer, head); }

  std::int64_t first_tokens() const { return std::min<std::int64_t>(state().slots, Recipe::first_tokens); }
  std::byte const* first_keys() const { return raw(); }
  std::byte const* first_values() const { return raw() + segments::first_values_at; }
  std::int64_t stored() const { return std::max<std::int64_t>(0, state().slots - Recipe::first_tokens); }
  std::int64_t sealed_keys() const { return state().sealed_keys; }
  std::int64_t sealed_values() const { return state().sealed_values; }
  // The page that holds `slot`, or null if it was given back.
  std::byte* page_bytes(std::int64_t slot) const {
    block_id const block = store.runs->block(store.table_of(sequence, layer, head), slot / page::tokens);
    return block == no_block ? nullptr : store.page_pool->address(block);
  }
  std::byte const* staging_keys(std::int64_t slot) const { return segments::key_tile_of(raw(), slot); }
  std::byte const* staging_values(std::int64_t slot) const { return segments::value_tile_of(raw(), slot); }
  std::int64_t chunk_tokens() const { return chunk; }
  std::byte const* chunk_keys(std::int64_t token) const {
    return store.chunk_keys(sequence, head) + token / block_tokens * segments::key_tile::bytes;
  }
  std::byte const* chunk_values(std::int64_t token) const {
    return store.chunk_values(sequence, head) + token / block_tokens * segments::value_tile::bytes;
  }
  auto const& key_state() const { return store.states().keys.of(layer * store.shape.kv_heads + head); }
  auto const& value_state() const { return store.states().values.of(layer * store.shape.kv_heads + head); }
  std::span<slot_range const> dead() const { return store.slots_of(sequence, layer, head).dead(); }
  std::uint64_t const* live() const { return Recipe::has_liveness ? store.live_of(sequence, layer, head) : nullptr; }
  float const* bias() const { return Recipe::has_bias ? store.biases_of(sequence, layer, head) : nullptr; }

  // Newest first, runs and pages alike: the order, and so every rounding, does not depend on where forks have cut the runs.
  template <class F>
  void for_each_page(F f) const {
    std::int64_t const sealed = std::max(state().sealed_keys, state().sealed_values);
    store.runs->for_each_run(store.table_of(sequence, layer, head), [&](std::int64_t first_page, std::span<block_id const> ids) {
      for (std::size_t i = ids.size(); i-- > 0;) {
        std::int64_t const base = (first_page + static_cast<std::int64_t>(i)) * page::tokens;
        if (ids[i] != no_block && base < sealed) f(base, store.page_pool->address(ids[i]));
      }
    });
  }
};

}  // namespace pith
