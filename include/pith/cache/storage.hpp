// SPDX-License-Identifier: Apache-2.0
// The memory of one cache: the arena cut into raw blocks, chunk buffers, side arrays and pages, and the states that describe them.
//
//   arena  | raw blocks | chunk buffers | positions | liveness bits | biases | births | pages ... |
//
// Pages of a codec of variable rate share their part of the arena with the tails of their tiles (tailed_pool.hpp).
// Everything is obtained at set-up. A sequence takes a raw block for each (layer, KV head) when it is opened and pages as tokens arrive.
#pragma once

#include <atomic>
#include <limits>
#include <memory>
#include <new>
#include <optional>
#include <span>
#include <vector>

#include "pith/cache/head_slots.hpp"
#include "pith/cache/raw_segments.hpp"
#include "pith/cache/tailed_pool.hpp"
#include "pith/codec/calibration.hpp"
#include "pith/page/arena.hpp"
#include "pith/page/pool.hpp"
#include "pith/page/table.hpp"

namespace pith {

struct cache_shape {
  int layers = 1;
  int kv_heads = 1;
  int query_heads = 1;
  std::int64_t bytes = 0;  // of the arena: everything a sequence stores comes from it
  int max_sequences = 1;
  std::int64_t max_tokens = 0;  // slots of a sequence; needed for side arrays; 0: as many as the pages hold
  int max_chunk = 128;          // most tokens of one prefill()
};

template <class Page>
struct page_pool_type {
  using type = block_pool;
};
template <class Page>
  requires(Page::has_tails)
struct page_pool_type<Page> {
  using type = tailed_pool<Page>;
};

template <class Recipe>
struct cache_storage {
  using page = typename Recipe::page;
  using segments = raw_segments<Recipe>;

  cache_shape shape;
  std::optional<heap_arena> owned;
  std::optional<block_pool> raw_pool;
  std::optional<typename page_pool_type<page>::type> page_pool;
  std::optional<run_store> runs;
  std::byte* chunks = nullptr;
  std::int64_t* position = nullptr;    // [sequence][layer][slot]
  std::uint64_t* live_bits = nullptr;  // [sequence][layer][head][slot / 64]
  float* biases = nullptr;             // [sequence][layer][head][slot]
  std::int32_t* births = nullptr;      // [sequence][layer][head][slot after `first`]; of the slots that compaction has moved
  std::unique_ptr<sequence_state[]> sequences;
  std::unique_ptr<layer_state[]> layers;   // [sequence][layer]
  std::unique_ptr<table[]> tables;         // [sequence][layer][head]
  std::unique_ptr<head_state[]> heads;     // [sequence][layer][head], with side<births>
  std::unique_ptr<block_id[]> raw_blocks;  // [sequence][layer][head]
  std::vector<typename calibration<page>::key_state> key_states;      // [layer][head], if the codec has any
  std::vector<typename calibration<page>::value_state> value_states;  // [layer][head]

  std::int64_t heads_total() const { return static_cast<std::int64_t>(shape.layers) * shape.kv_heads; }
  std::int64_t chunk_tiles() const { return divide_up(shape.max_chunk, block_tokens); }
  std::int64_t chunk_head_bytes() const { return chunk_tiles() * (segments::key_tile::bytes + segments::value_tile::bytes); }
  std::int64_t live_words() const { return divide_up(shape.max_tokens, 64); }

  calibration<page> states() const { return {{key_states}, {value_states}}; }
  std::int64_t state_bytes() const {
    return static_cast<std::int64_t>(key_states.size() * sizeof(key_states[0]) + value_states.size() * sizeof(value_states[0]));
  }

  // What set_up carves beside the pages, in order.
  struct fixed_parts {
    std::int64_t raw, chunks, positions, live, biases, births;
    std::int64_t total() const { return raw + chunks + positions + live + biases + births + 7 * 64; }  // and what alignment may cost
  };
  fixed_parts parts() const {
    std::int64_t const all_heads = heads_total() * shape.max_sequences;
    return {.raw = all_heads * segments::bytes,
            .chunks = shape.max_sequences * shape.kv_heads * chunk_head_bytes(),
            .positions = Recipe::has_positions ? 8 * shape.max_tokens * shape.layers * shape.max_sequences : 0,
            .live = Recipe::has_liveness ? 8 * live_words() * all_heads : 0,
            .biases = Recipe::has_bias ? 4 * shape.max_tokens * all_heads : 0,
            .births = Recipe::has_births ? 4 * shape.max_tokens * all_heads : 0};
  }
  // Bytes of an arena beside the pages.
  static std::int64_t fixed_bytes(cache_shape const& of) {
    cache_storage sized;
    sized.shape = of;
    return sized.parts().total();
  }

  static status check(cache_shape const& of) {
    if (of.layers <= 0 || of.kv_heads <= 0 || of.max_sequences <= 0 || of.max_chunk < 0 || of.max_tokens < 0)
      return {errc::shape_mismatch, of.layers};
    if (of.query_heads <= 0 || of.query_heads % of.kv_heads != 0) return {errc::shape_mismatch, of.query_heads};
    if ((Recipe::has_positions || Recipe::has_liveness || Recipe::has_bias || Recipe::has_births) && of.max_tokens == 0)
      return {errc::shape_mismatch, of.max_tokens};
    if (Recipe::has_births && of.max_tokens > std::numeric_limits<std::int32_t>::max()) return {errc::shape_mismatch, of.max_tokens};
    return {};
  }

  // Bytes that every open sequence holds beside its blocks.
  std::int64_t sequence_bytes() const {
    std::int64_t bytes = shape.kv_heads * chunk_head_bytes() + static_cast<std::int64_t>(sizeof(sequence_state)) +
                         shape.layers * static_cast<std::int64_t>(sizeof(layer_state)) +
                         heads_total() * static_cast<std::int64_t>(sizeof(table) + sizeof(block_id));
    if (Recipe::has_positions) bytes += 8 * shape.layers * shape.max_tokens;
    if (Recipe::has_liveness) bytes += 8 * heads_total() * live_words();
    if (Recipe::has_bias) bytes += 4 * heads_total() * shape.max_tokens;
    if (Recipe::has_births) bytes += heads_total() * (4 * shape.max_tokens + static_cast<std::int64_t>(sizeof(head_state)));
    return bytes;
  }

  // errors  shape_mismatch     a count that is not positive, or query heads that are no multiple of the KV heads, or side arrays without
  //         max_tokens
  //         capacity_exceeded  the bytes do not hold the sequences and one page for each of their heads, with the longest tails; `at` is
  //                           what is missing
  //         out_of_memory
  //         bad_calibration    a state that is wrong; `at` is layer * kv_heads + head. shape_mismatch: not one for each
  // Of `memory` only addresses are computed: it may be a device's.
  status set_up(cache_shape const& wanted, std::span<std::byte> memory, calibration<page> const& calibrated) {
    if (status const ok = check(wanted); !ok) return ok;
    shape = wanted;
    if (status const ok = calibrated.check(heads_total()); !ok) return ok;
    key_states.assign(calibrated.keys.all.begin(), calibrated.keys.all.end());
    value_states.assign(calibrated.values.all.begin(), calibrated.values.all.end());
    if (memory.data() == nullptr) {
      auto made = heap_arena::make(shape.bytes);
      if (!made) return made.error();
      owned.emplace(std::move(made).value());
      memory = {owned->data(), static_cast<std::size_t>(owned->bytes())};
    }
    auto const borrowed = borrowed_arena::make(memory);
    if (!borrowed) return borrowed.error();
    arena_cursor cursor(borrowed.value());

    std::int64_t const all_heads = heads_total() * shape.max_sequences;
    auto const carve = [&](std::int64_t bytes, auto*& to) -> status {
      auto part = cursor.carve(bytes, 64);
      if (!part) return {errc::capacity_exceeded, bytes - cursor.remaining_bytes()};
      to = reinterpret_cast<std::remove_reference_t<decltype(to)>>(part.value());
      return {};
    };
    std::byte* raw_memory = nullptr;
    fixed_parts const sizes = parts();
    if (status s = carve(sizes.raw, raw_memory); !s) return s;
    if (status s = carve(sizes.chunks, chunks); !s) return s;
    if (status s = carve(sizes.positions, position); !s) return s;
    if (status s = carve(sizes.live, live_bits); !s) return s;
    if (status s = carve(sizes.biases, biases); !s) return s;
    if (status s = carve(sizes.births, births); !s) return s;
    std::int64_t const room = cursor.remaining_bytes() - 64, blocks = room / page::bytes;
    std::byte* page_memory = nullptr;
    if (std::int64_t const least = heads_total() * (page::bytes + page::tails_bound); room < least)
      return {errc::capacity_exceeded, least - room};
    if (status s = carve(page::has_tails ? room / 64 * 64 : blocks * page::bytes, page_memory); !s) return s;

    auto raw_made = block_pool::make(raw_memory, segments::bytes, all_heads);
    auto pages_made = [&] {
      if constexpr (page::has_tails)
        return tailed_pool<page>::make(page_memory, room);
      else
        return block_pool::make(page_memory, page::bytes, blocks);
    }();
    // A compacted head keeps the numbers of the pages that it gave back.
    std::int64_t const emptied = Recipe::has_births ? all_heads * divide_up(shape.max_tokens, page::tokens * run_store::run_blocks) : 0;
    auto runs_made = run_store::make(blocks / 4 + 2 * all_heads + 8 + emptied);
    if (!raw_made) return raw_made.error();
    if (!pages_made) return pages_made.error();
    if (!runs_made) return runs_made.error();
    raw_pool.emplace(std::move(raw_made).value());
    page_pool.emplace(std::move(pages_made).value());
    runs.emplace(std::move(runs_made).value());

    auto const count = static_cast<std::size_t>(shape.max_sequences);
    sequences.reset(new (std::nothrow) sequence_state[count]);
    layers.reset(new (std::nothrow) layer_state[count * static_cast<std::size_t>(shape.layers)]);
    tables.reset(new (std::nothrow) table[static_cast<std::size_t>(all_heads)]);
    raw_blocks.reset(new (std::nothrow) block_id[static_cast<std::size_t>(all_heads)]);
    if constexpr (Recipe::has_births) heads.reset(new (std::nothrow) head_state[static_cast<std::size_t>(all_heads)]);
    if (!sequences || !layers || !tables || !raw_blocks || (Recipe::has_births && !heads)) return {errc::out_of_memory, all_heads};
    return {};
  }

  layer_state& layer(std::int64_t sequence, int at) const { return layers[sequence * shape.layers + at]; }
  std::int64_t head_index(std::int64_t sequence, int at, int head) const { return (sequence * shape.layers + at) * shape.kv_heads + head; }
  table& table_of(std::int64_t sequence, int at, int head) const { return tables[head_index(sequence, at, head)]; }
  std::byte* raw_block(std::int64_t sequence, int at, int head) const {
    return raw_pool->address(raw_blocks[head_index(sequence, at, head)]);
  }
  std::byte* chunk_keys(std::int64_t sequence, int head) const { return chunks + (sequence * shape.kv_heads + head) * chunk_head_bytes(); }
  std::byte* chunk_values(std::int64_t sequence, int head) const {
    return chunk_keys(sequence, head) + chunk_tiles() * segments::key_tile::bytes;
  }
  std::int64_t* positions_of(std::int64_t sequence, int at) const { return position + (sequence * shape.layers + at) * shape.max_tokens; }
  std::uint64_t* live_of(std::int64_t sequence, int at, int head) const {
    return live_bits + head_index(sequence, at, head) * live_words();
  }
  float* biases_of(std::int64_t sequence, int at, int head) const { return biases + head_index(sequence, at, head) * shape.max_tokens; }
  std::int32_t* births_of(std::int64_t sequence, int at, int head) const { return births + head_index(sequence, at, head) * shape.max_tokens; }
  head_state& head(std::int64_t sequence, int at, int of) const { return heads[head_index(sequence, at, of)]; }
  head_slots slots_of(std::int64_t sequence, int at, int of) const {
    head_slots made{layer(sequence, at), Recipe::first_tokens, {}};
    if constexpr (Recipe::has_births) made.births = {births_of(sequence, at, of), static_cast<std::size_t>(head(sequence, at, of).moved)};
    return made;
  }
};

}  // namespace pith
