// SPDX-License-Identifier: Apache-2.0
// KV heads of many sequences of a cache, as an attention kernel reads them (attention_walk.hpp's Source): cache/segment_source.hpp for a
// device.
//
//   cache_source<Recipe>   one call: a layer, up to 128 sequences by value, their query tokens, and the raw chunk that the call brings
//   .at(i, head)           one KV head of the call's i-th sequence
//
// Slots of pages and staging count from behind `first`; slots of visible(), bias() and limits() from the sequence's first token, and the
// chunk's follow the stored ones.
#pragma once

#include "pith/cuda/cache_memory.hpp"

namespace pith::device {

template <class Recipe>
struct head_source {
  using page_type = typename Recipe::page;
  using segments = raw_segments<Recipe>;
  using memory = cache_memory<Recipe>;

  layer_state const* state;
  std::byte const* raw;
  std::byte const* chunk_key_tiles;
  std::byte const* chunk_value_tiles;
  std::byte const* pages;
  std::uint32_t const* table;
  std::uint64_t const* live;
  float const* biases;
  typename memory::key_state const* keys_calibrated;
  typename memory::value_state const* values_calibrated;
  std::int64_t slots, keys_sealed, values_sealed, chunk;
  bool hides_some;

  PITH_HD std::int64_t first_tokens() const { return slots < Recipe::first_tokens ? slots : Recipe::first_tokens; }
  PITH_HD std::int64_t stored() const { return slots < Recipe::first_tokens ? 0 : slots - Recipe::first_tokens; }
  PITH_HD std::int64_t sealed_keys() const { return keys_sealed; }
  PITH_HD std::int64_t sealed_values() const { return values_sealed; }
  PITH_HD std::int64_t chunk_tokens() const { return chunk; }

  // Pages [0, divide_up(max(sealed_keys(), sealed_values()), page::tokens)), oldest first; null: given back, none of its slots lives.
  template <class Thread>
  PITH_HD std::byte const* page(Thread&, std::int64_t index) const {
    std::uint32_t const block = table[index];
    return block == block_id{}.value ? nullptr : pages + static_cast<std::int64_t>(block) * page_type::bytes;
  }
  PITH_HD std::byte const* first_keys() const { return raw; }
  PITH_HD std::byte const* first_values() const { return raw + segments::first_values_at; }
  // The raw tile of 32 tokens that holds staged slot `slot`.
  PITH_HD std::byte const* staging_keys(std::int64_t slot) const {
    return raw + segments::keys_at + slot / block_tokens % segments::key_ring * segments::key_tile::bytes;
  }
  PITH_HD std::byte const* staging_values(std::int64_t slot) const {
    return raw + segments::values_at + slot / block_tokens % segments::value_ring * segments::value_tile::bytes;
  }
  // The raw tile that holds token `token` of the chunk.
  PITH_HD std::byte const* chunk_keys(std::int64_t token) const {
    return chunk_key_tiles + token / block_tokens * segments::key_tile::bytes;
  }
  PITH_HD std::byte const* chunk_values(std::int64_t token) const {
    return chunk_value_tiles + token / block_tokens * segments::value_tile::bytes;
  }

  // Whether there may be slots that are not visible.
  PITH_HD bool hides() const { return hides_some; }
  PITH_HD bool visible(std::int64_t slot) const {
    if (slot >= slots) return true;
    for (int i = 0; i < state->hole_count; ++i)
      if (slot >= state->holes[i].begin && slot < state->holes[i].end) return false;
    if constexpr (Recipe::has_liveness)
      return (live[slot / 64] >> (slot % 64) & 1u) != 0;
    else
      return true;
  }
  PITH_HD std::int64_t index_of(std::int64_t slot) const { return slot; }
  PITH_HD bool has_biases() const { return Recipe::has_bias; }
  PITH_HD float bias(std::int64_t slot) const {
    if constexpr (Recipe::has_bias)
      return slot < slots ? biases[slot] : 0.0f;
    else
      return 0.0f;
  }
  PITH_HD decltype(auto) key_state() const {
    if constexpr (is_calibrated<typename page_type::key_tile>)
      return (*keys_calibrated);
    else
      return no_state{};
  }
  PITH_HD decltype(auto) value_state() const {
    if constexpr (is_calibrated<typename page_type::value_tile>)
      return (*values_calibrated);
    else
      return no_state{};
  }
};

template <class Recipe>
struct cache_source {
  using head = head_source<Recipe>;
  using page = typename Recipe::page;
  using segments = raw_segments<Recipe>;
  static constexpr int most = 128;
  static constexpr int first_tile = segments::first_tile;  // tokens of the raw tile of the first tokens
  static constexpr bool has_raw = true, has_bias = Recipe::has_bias, keys_differ = Recipe::last_keys != Recipe::last_values;
  static constexpr bool has_visibility = true;

  cache_memory<Recipe> memory;
  std::int32_t layer = 0, sequences = 0;
  bool past = false;  // queries are newer than every token, and see them all
  std::uint32_t sequence[most] = {};
  std::int32_t first_query[most + 1] = {};
  std::int32_t chunk[most] = {};

  struct query_tokens {
    std::int64_t first, count;
  };
  PITH_HD query_tokens queries(std::int64_t i) const { return {first_query[i], first_query[i + 1] - first_query[i]}; }

  PITH_HD std::int32_t packed_blocks(std::int64_t i) const {
    return static_cast<std::int32_t>(memory.state_of_layer(sequence[i], layer).sealed_values / block_tokens);
  }
  PITH_HD std::int32_t raw_blocks(std::int64_t i) const {
    layer_state const& state = memory.state_of_layer(sequence[i], layer);
    std::int64_t const staged = state.slots - Recipe::first_tokens;
    std::int64_t const before = staged < 0 ? state.slots : Recipe::first_tokens;
    return static_cast<std::int32_t>(divide_up(before, block_tokens) +
                                     (staged < 0 ? 0 : divide_up(staged - state.sealed_values, block_tokens)) +
                                     divide_up(chunk[i], block_tokens));
  }

  // Slots [lower, upper) that the call's query token `token` of sequence i sees; window 0: all before it.
  PITH_HD void limits(std::int64_t i, std::int64_t token, std::int64_t window, std::int64_t* lower, std::int64_t* upper) const {
    layer_state const& state = memory.state_of_layer(sequence[i], layer);
    std::int64_t const at = state.tokens - 1 + (past ? 0 : chunk[i] - queries(i).count + token + 1);
    *upper = at < 0 ? 0 : slot_of(state, at) + 1;
    *lower = window == 0 || at - window + 1 <= 0 ? 0 : slot_of(state, at - window + 1);
  }

  PITH_HD head at(std::int64_t i, int kv_head) const {
    std::int64_t const s = sequence[i];
    layer_state const& state = memory.state_of_layer(s, layer);
    head made{};
    made.state = &state;
    made.raw = memory.raw_block(s, layer, kv_head);
    made.chunk_key_tiles = memory.chunk_keys(s, kv_head);
    made.chunk_value_tiles = memory.chunk_values(s, kv_head);
    made.pages = memory.pages;
    made.table = memory.table_of(s, layer, kv_head);
    made.slots = state.slots, made.keys_sealed = state.sealed_keys, made.values_sealed = state.sealed_values, made.chunk = chunk[i];
    made.hides_some = Recipe::has_liveness || state.hole_count > 0;
    if constexpr (Recipe::has_liveness) made.live = memory.live_of(s, layer, kv_head);
    if constexpr (Recipe::has_bias) made.biases = memory.biases_of(s, layer, kv_head);
    std::int64_t const calibrated = static_cast<std::int64_t>(layer) * memory.kv_heads + kv_head;
    if constexpr (is_calibrated<typename page::key_tile>) made.keys_calibrated = memory.key_states + calibrated;
    if constexpr (is_calibrated<typename page::value_tile>) made.values_calibrated = memory.value_states + calibrated;
    return made;
  }

 private:
  PITH_HD static std::int64_t slot_of(layer_state const& state, std::int64_t token) {
    return token < state.tokens ? state.slot_of(token) : state.slots + (token - state.tokens);
  }
};

}  // namespace pith::device
