// SPDX-License-Identifier: Apache-2.0
// The books of a cache: which sequences are open, how many tokens are sealed and staged, which block holds which page. No stored byte is
// read or written here, so a cache whose bytes lie on a device keeps the same books (cuda/cache.hpp).
//
// Where bytes must follow the books, the call takes a function that moves them:
//
//   copy(head, page, to, from)       reserve: page `page` of a table moves to block `to`; from is no_block if it had been given back: zeros
//   ready(keys, values)              reserve: the pages are there for so many slots to be sealed
//   cut(layer, before, kept)         truncate: the layer had the state `before`; its slots from `kept` on are gone or dead
#pragma once

#include <algorithm>
#include <atomic>

#include "pith/cache/storage.hpp"
#include "pith/core/view.hpp"

namespace pith {

template <class Recipe>
class cache_ledger {
 public:
  using storage = cache_storage<Recipe>;
  using segments = raw_segments<Recipe>;
  using page = typename Recipe::page;

  // A new, empty sequence.
  // errors  capacity_exceeded  max_sequences are open
  result<sequence> open() {
    for (std::int64_t s = 0; s < store_.shape.max_sequences; ++s)
      if (!store_.sequences[s].open) {
        if (status const taken = take_raw_blocks(s); !taken) return taken;
        for (int l = 0; l < store_.shape.layers; ++l) store_.layer(s, l) = {};
        for (std::int64_t h = 0; h < store_.heads_total(); ++h) store_.tables[s * store_.heads_total() + h] = {};
        if constexpr (Recipe::has_births) std::fill_n(store_.heads.get() + s * store_.heads_total(), store_.heads_total(), head_state{});
        store_.sequences[s].open = true;
        return handle(s);
      }
    return status{errc::capacity_exceeded, store_.shape.max_sequences};
  }

  // Gives back everything that the sequence holds; its handle is stale from then on.
  status close(sequence of) {
    if (status const ok = check(of); !ok) return ok;
    for (std::int64_t h = 0; h < store_.heads_total(); ++h) {
      std::int64_t const at = of.index * store_.heads_total() + h;
      store_.runs->clear(store_.tables[at], *store_.page_pool);
      static_cast<void>(store_.raw_pool->release(store_.raw_blocks[at]));
    }
    store_.sequences[of.index].open = false;
    ++store_.sequences[of.index].generation;
    return {};
  }

  // What truncate would say; nothing is changed.
  status check_truncate(sequence of, std::int64_t tokens) const {
    if (status const ok = check(of); !ok) return ok;
    if (tokens < 0) return {errc::out_of_range, tokens};
    std::int64_t least = 0;
    for (int l = 0; l < store_.shape.layers; ++l) least = std::max(least, least_length(of.index, l));
    if (tokens > 0 && tokens < least) return {errc::unsupported, least};
    for (int l = 0; l < store_.shape.layers; ++l) {
      layer_state cut = store_.layer(of.index, l);
      if (!cut_state(cut, tokens)) return {errc::capacity_exceeded, layer_state::max_holes};
    }
    return {};
  }

  // Tokens of a layer; 0 for a stale handle.
  std::int64_t length(sequence of, int layer) const {
    return check(of) && layer >= 0 && layer < store_.shape.layers ? store_.layer(of.index, layer).tokens : 0;
  }

  // Bytes in use: pages, raw blocks, table runs, calibrated numbers, and what every open sequence holds (chunk buffer, side arrays, states).
  std::int64_t resident_bytes() const {
    return store_.page_pool->used_bytes() + store_.raw_pool->used_bytes() + store_.runs->used_bytes() + store_.state_bytes() +
           open_sequences() * store_.sequence_bytes();
  }
  // Numbers that the open sequences stand for; a fork counts in full.
  std::int64_t stored_values() const {
    std::int64_t tokens = 0;
    for (std::int64_t s = 0; s < store_.shape.max_sequences; ++s)
      for (int l = 0; store_.sequences[s].open && l < store_.shape.layers; ++l) tokens += store_.layer(s, l).tokens;
    return tokens * store_.shape.kv_heads * (Recipe::key_channels + Recipe::value_channels);
  }

  cache_shape const& shape() const { return store_.shape; }
  storage const& memory() const { return store_; }  // for tests and tools: the segments as they are stored

  // Tells the pages of one head from those of other formats and other calibrated numbers.
  // cost    two tiles encoded
  std::uint64_t identity(int layer, int head) const {
    std::int64_t const at = static_cast<std::int64_t>(layer) * store_.shape.kv_heads + head;
    return page_identity<page>(store_.states().keys.of(at), store_.states().values.of(at));
  }

 protected:
  storage store_;
  std::uint32_t id_ = next_id();

  cache_ledger() = default;
  cache_ledger(cache_ledger&&) noexcept = default;

  sequence handle(std::int64_t index) const { return {id_, static_cast<std::uint32_t>(index), store_.sequences[index].generation}; }
  std::int64_t open_sequences() const {
    std::int64_t count = 0;
    for (std::int64_t s = 0; s < store_.shape.max_sequences; ++s) count += store_.sequences[s].open;
    return count;
  }

  status check(sequence of) const {
    if (of.cache != id_ || of.index >= static_cast<std::uint32_t>(store_.shape.max_sequences)) return {errc::stale_handle, of.index};
    sequence_state const& state = store_.sequences[of.index];
    if (!state.open || state.generation != of.generation) return {errc::stale_handle, of.index};
    return {};
  }
  status check_layer(sequence of, int layer) const {
    if (status const ok = check(of); !ok) return ok;
    if (layer < 0 || layer >= store_.shape.layers) return {errc::out_of_range, layer};
    return {};
  }
  status check_head(sequence of, int layer, int head) const {
    if (status const ok = check_layer(of, layer); !ok) return ok;
    if (head < 0 || head >= store_.shape.kv_heads) return {errc::out_of_range, head};
    return {};
  }
  status check_length(sequence of, int layer, std::int64_t more) const {
    std::int64_t const most = store_.shape.max_tokens;
    if (most > 0 && store_.layer(of.index, layer).slots + more > most) return {errc::capacity_exceeded, most};
    return {};
  }
  status check_tokens(sequence of, int layer, int head, std::span<std::int64_t const> tokens) const {
    if (status const ok = check_head(of, layer, head); !ok) return ok;
    for (std::int64_t const token : tokens)
      if (token < 0 || token >= store_.layer(of.index, layer).tokens) return {errc::out_of_range, token};
    return {};
  }
  status check_reserve(sequence of, int layer, std::int64_t tokens) const {
    if (status const ok = check_layer(of, layer); !ok) return ok;
    if (tokens < 0) return {errc::out_of_range, tokens};
    return check_length(of, layer, tokens);
  }
  static status check_bias(std::int64_t token, float value) {
    if (is_nan(value) || float_bits(value) == 0x7f800000u) return {errc::not_finite, token};
    return {};
  }
  // Extents of new rows, in any memory.
  template <class K, class V, space Space>
  status check_extents(tensor_view<K, 3, Space> const& k, tensor_view<V, 3, Space> const& v) const {
    if (k.extent[0] < 0 || k.extent[0] != v.extent[0]) return {errc::shape_mismatch, v.extent[0]};
    if (k.extent[1] != store_.shape.kv_heads || v.extent[1] != store_.shape.kv_heads) return {errc::shape_mismatch, k.extent[1]};
    if (k.extent[2] != Recipe::key_channels) return {errc::shape_mismatch, k.extent[2]};
    if (v.extent[2] != Recipe::value_channels) return {errc::shape_mismatch, v.extent[2]};
    return {};
  }

  // One raw block for each (layer, KV head) of a sequence, or none.
  status take_raw_blocks(std::int64_t index) {
    auto const count = static_cast<std::size_t>(store_.heads_total());
    return store_.raw_pool->allocate_many({store_.raw_blocks.get() + index * store_.heads_total(), count});
  }

  // A new sequence with the layers and the sealed pages of another.
  result<sequence> fork_books(sequence from) {
    if (status const ok = check(from); !ok) return ok;
    auto made = open();
    if (!made) return made;
    for (int l = 0; l < store_.shape.layers; ++l) {
      store_.layer(made.value().index, l) = store_.layer(from.index, l);
      for (int h = 0; h < store_.shape.kv_heads; ++h) {
        store_.table_of(made.value().index, l, h) = store_.runs->fork(store_.table_of(from.index, l, h));
        if constexpr (Recipe::has_births) store_.head(made.value().index, l, h) = store_.head(from.index, l, h);
      }
    }
    return made;
  }

  // Slots sealed once `staged_end` slots lie behind `first`.
  static std::int64_t sealed_after(std::int64_t sealed, std::int64_t staged_end, int last) {
    return std::max(sealed, (staged_end - last) / page::tile_tokens * page::tile_tokens);
  }

  // Makes sure that `count` more tokens of a layer can be stored: pages for every head, and a page of its own to write into where a fork
  // shares it. All or nothing, but that pages once copied stay copied.
  template <class Copy, class Ready>
  status reserve(std::int64_t index, int layer, std::int64_t count, Copy&& copy, Ready&& ready) {
    layer_state const& state = store_.layer(index, layer);
    std::int64_t const end = state.slots + count - Recipe::first_tokens;
    std::int64_t const sealed = std::max(state.sealed_keys, state.sealed_values);
    std::int64_t const keys = sealed_after(state.sealed_keys, end, Recipe::last_keys),
                       values = sealed_after(state.sealed_values, end, Recipe::last_values);
    if (keys == state.sealed_keys && values == state.sealed_values) return {};
    std::int64_t const writes_from = std::min(state.sealed_keys, state.sealed_values) / page::tokens;
    std::int64_t const pages_before = divide_up(sealed, page::tokens), pages_after = divide_up(std::max(keys, values), page::tokens);
    std::int64_t const held = store_.table_of(index, layer, 0).pages;  // all heads of a layer have as many
    status ok;
    for (int h = 0; ok && h < store_.shape.kv_heads; ++h) {
      table& of = store_.table_of(index, layer, h);
      for (std::int64_t p = writes_from; ok && p < std::min(pages_after, held); ++p)
        ok = own_page(of, p, [&](std::int64_t at, block_id to, block_id from) { return copy(h, at, to, from); });
      while (ok && pages_after > of.pages) ok = add_page(of);
    }
    if (!ok)
      ok = {errc::capacity_exceeded, (pages_after - pages_before) * store_.shape.kv_heads};
    else if (ok = ready(keys, values); ok)
      return {};
    for (int h = 0; h < store_.shape.kv_heads; ++h) store_.runs->truncate(store_.table_of(index, layer, h), *store_.page_pool, held);
    return ok;
  }

  status add_page(table& to) {
    block_id const hint = to.pages > 0 ? store_.runs->block(to, to.pages - 1) : no_block;
    auto const block = store_.page_pool->allocate(hint);
    if (!block) return block.error();
    status const ok = store_.runs->append(to, *store_.page_pool, block.value());
    if (!ok) static_cast<void>(store_.page_pool->release(block.value()));
    return ok;
  }

  // Copies page p and those after it if a fork shares them. The copy is complete before the shared page is let go. A page that eviction
  // gave back, and that a cut has made one to write into again, gets a block whose slots decode to zero.
  template <class Copy>
  status own_page(table& of, std::int64_t p, Copy&& copy) {
    if (store_.runs->is_exclusive(of, p) && store_.runs->block(of, p) != no_block) return {};
    table own = store_.runs->fork(of);
    store_.runs->truncate(own, *store_.page_pool, p);
    while (own.pages < of.pages)
      if (status const ok = add_page(own); !ok) {
        store_.runs->clear(own, *store_.page_pool);
        return ok;
      }
    for (std::int64_t at = p; at < of.pages; ++at)
      if (status const ok = copy(at, store_.runs->block(own, at), store_.runs->block(of, at)); !ok) {
        store_.runs->clear(own, *store_.page_pool);
        return ok;
      }
    store_.runs->clear(of, *store_.page_pool);
    of = own;
    return {};
  }

  // Keeps the first `tokens` tokens of every layer, after check_truncate.
  template <class Cut>
  truncation truncate_books(std::int64_t index, std::int64_t tokens, Cut&& cut) {
    truncation done;
    for (int l = 0; l < store_.shape.layers; ++l) {
      layer_state& state = store_.layer(index, l);
      layer_state const before = state;
      static_cast<void>(cut_state(state, tokens));
      if (state.tokens == before.tokens) continue;
      std::int64_t const kept = before.slot_of(tokens > 0 ? tokens - 1 : 0) + (tokens > 0 ? 1 : 0);
      done.exact = done.exact && state.slots == kept;
      std::int64_t dead = 0;
      for (int i = 0; i < state.hole_count; ++i) dead += state.holes[i].end - state.holes[i].begin;
      done.dead_slots = std::max(done.dead_slots, dead);
      std::int64_t const pages = divide_up(std::max(state.sealed_keys, state.sealed_values), page::tokens);
      for (int h = 0; h < store_.shape.kv_heads; ++h) {
        store_.runs->truncate(store_.table_of(index, l, h), *store_.page_pool, pages);
        if constexpr (Recipe::has_births)
          if (tokens == 0) store_.head(index, l, h) = {};
      }
      cut(l, before, kept);
    }
    return done;
  }

  // The fewest tokens but none that a layer can be cut to: what compaction has moved stays. At most those that there are.
  std::int64_t least_length(std::int64_t index, int layer) const {
    std::int64_t least = 0;
    if constexpr (Recipe::has_births)
      for (int h = 0; h < store_.shape.kv_heads; ++h) {
        head_slots const slots = store_.slots_of(index, layer, h);
        if (slots.births.empty()) continue;
        std::int64_t const behind = slots.state.token_of(slots.moved_end());
        bool const hole_before = slots.state.slot_of(behind - 1) + 1 < slots.moved_end();  // then the token behind it stays too
        least = std::max(least, std::min(behind + hole_before, slots.state.tokens));
      }
    return least;
  }

  // Keeps the first `tokens` tokens of a layer; false if it would need one more hole than there is room for.
  static bool cut_state(layer_state& state, std::int64_t tokens) {
    if (tokens >= state.tokens) return true;
    std::int64_t const slots = tokens == 0 ? 0 : state.slot_of(tokens - 1) + 1;
    while (state.hole_count > 0 && state.holes[state.hole_count - 1].begin >= slots) --state.hole_count;
    state.tokens = tokens;
    state.slots = slots;
    std::int64_t const end = std::max<std::int64_t>(0, slots - Recipe::first_tokens);
    if (end >= std::max(state.sealed_keys, state.sealed_values)) return true;
    std::int64_t const boundary = round_up(end, page::tile_tokens);
    state.sealed_keys = std::min(state.sealed_keys, boundary);
    state.sealed_values = std::min(state.sealed_values, boundary);
    if (boundary == end) return true;
    if (state.hole_count == layer_state::max_holes) return false;
    state.slots = Recipe::first_tokens + boundary;
    state.holes[state.hole_count++] = {slots, state.slots};
    return true;
  }

  // Gives back page `at` of a head if it is full and `live`, the bits of the head's slots, has none of it left.
  // Returns  whether it did (not where a fork shares it: there its slots are masked all the same)
  bool drop_if_dead(std::int64_t index, int layer, int head, std::int64_t at, std::uint64_t const* live) {
    layer_state const& state = store_.layer(index, layer);
    std::int64_t const begin = Recipe::first_tokens + at * page::tokens, end = begin + page::tokens;
    if (at < 0 || (at + 1) * page::tokens > std::min(state.sealed_keys, state.sealed_values)) return false;
    head_slots const slots = store_.slots_of(index, layer, head);
    for (std::int64_t slot = begin; slot < end; ++slot)
      if ((live[slot / 64] >> (slot % 64) & 1u) != 0 && !slots.is_dead(slot)) return false;
    return static_cast<bool>(store_.runs->drop(store_.table_of(index, layer, head), *store_.page_pool, at));
  }

 private:
  static std::uint32_t next_id() {
    static std::atomic<std::uint32_t> last{0};
    return ++last;
  }
};

}  // namespace pith
