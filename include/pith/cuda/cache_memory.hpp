// SPDX-License-Identifier: Apache-2.0
// A cache's device memory as its kernels see it: addresses and strides, by value.
//
//   raw      [sequence][layer][head] raw blocks (cache/raw_segments.hpp): a sequence's stand at its own index, no table leads to them
//   chunks   [sequence][head] raw tiles of the chunk that a call brings: keys, then values
//   tables   [sequence][layer][head][page] the block of each page, or no_block
//   states   [sequence][layer] as the host keeps them
//   live     [sequence][layer][head][slot / 64] bits; biases [sequence][layer][head][slot]; calibrated numbers [layer][head]
#pragma once

#include "pith/cache/storage.hpp"

namespace pith::device {

template <class Recipe>
struct cache_memory {
  using storage = cache_storage<Recipe>;
  using page = typename Recipe::page;
  using segments = raw_segments<Recipe>;
  using key_state = state_of<typename page::key_tile>;
  using value_state = state_of<typename page::value_tile>;

  std::byte *raw = nullptr, *chunks = nullptr, *pages = nullptr;
  std::uint32_t* tables = nullptr;
  layer_state* states = nullptr;
  std::uint64_t* live = nullptr;
  float* biases = nullptr;
  key_state* key_states = nullptr;
  value_state* value_states = nullptr;
  std::int64_t max_pages = 0, max_tokens = 0, live_words = 0, chunk_tiles = 0;
  int layers = 0, kv_heads = 0;

  PITH_HD std::int64_t head_index(std::int64_t sequence, int layer, int head) const {
    return (sequence * layers + layer) * kv_heads + head;
  }
  PITH_HD std::byte* raw_block(std::int64_t sequence, int layer, int head) const {
    return raw + head_index(sequence, layer, head) * segments::bytes;
  }
  PITH_HD std::uint32_t* table_of(std::int64_t sequence, int layer, int head) const {
    return tables + head_index(sequence, layer, head) * max_pages;
  }
  PITH_HD std::byte* page_at(std::uint32_t block) const { return pages + static_cast<std::int64_t>(block) * page::bytes; }
  PITH_HD layer_state& state_of_layer(std::int64_t sequence, int layer) const { return states[sequence * layers + layer]; }
  PITH_HD std::uint64_t* live_of(std::int64_t sequence, int layer, int head) const {
    return live + head_index(sequence, layer, head) * live_words;
  }
  PITH_HD float* biases_of(std::int64_t sequence, int layer, int head) const {
    return biases + head_index(sequence, layer, head) * max_tokens;
  }
  PITH_HD std::byte* chunk_keys(std::int64_t sequence, int head) const {
    return chunks + (sequence * kv_heads + head) * chunk_tiles * (segments::key_tile::bytes + segments::value_tile::bytes);
  }
  PITH_HD std::byte* chunk_values(std::int64_t sequence, int head) const {
    return chunk_keys(sequence, head) + chunk_tiles * segments::key_tile::bytes;
  }
};

// What lies in front of a cache's arena: everything of cache_memory that the host's cache has no need of.
template <class Recipe>
struct mirror_parts {
  using memory = cache_memory<Recipe>;
  std::int64_t tables, states, key_states, value_states;

  static constexpr std::int64_t max_pages(cache_shape const& of) { return divide_up(of.max_tokens, Recipe::page::tokens); }
  static constexpr mirror_parts of(cache_shape const& shape) {
    std::int64_t const layers = static_cast<std::int64_t>(shape.layers) * shape.max_sequences,
                       heads = static_cast<std::int64_t>(shape.layers) * shape.kv_heads;
    return {.tables = round_up(4 * max_pages(shape) * layers * shape.kv_heads, 64),
            .states = round_up(static_cast<std::int64_t>(sizeof(layer_state)) * layers, 64),
            .key_states = is_calibrated<typename Recipe::page::key_tile>
                              ? round_up(heads * static_cast<std::int64_t>(sizeof(typename memory::key_state)), 64)
                              : 0,
            .value_states = is_calibrated<typename Recipe::page::value_tile>
                                ? round_up(heads * static_cast<std::int64_t>(sizeof(typename memory::value_state)), 64)
                                : 0};
  }
  constexpr std::int64_t total() const { return tables + states + key_states + value_states; }
};

}  // namespace pith::device
