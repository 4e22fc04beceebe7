// SPDX-License-Identifier: Apache-2.0
// How the bytes of tokens get into a sequence and out of it again: raw rows, sealing, cutting, side arrays. The base of cache<Recipe>.
#pragma once

#include <algorithm>

#include "pith/cache/ledger.hpp"
#include "pith/cache/segment_source.hpp"
#include "pith/page/attention_engine.hpp"
#include "pith/page/query_rows.hpp"
#include "pith/page/tile_engine.hpp"

namespace pith {

template <class T>
using const_view = tensor_view<std::remove_const_t<T> const, 3>;

template <class T>
concept is_complete = requires {
  sizeof(T);
};

template <class Recipe>
class cache_writer : public cache_ledger<Recipe> {
  using base = cache_ledger<Recipe>;

 protected:
  static_assert(!std::is_void_v<typename Recipe::backend> ||
                    is_complete<default_backend<std::conditional_t<std::is_class_v<Recipe>, void, Recipe>>>,
                "[pith] kv_cache<...>: no backend is included. Fix: #include \"pith/cpu/attention.hpp\".");
  static_assert(!std::is_same_v<typename Recipe::backend, cuda>,
                "[pith] make<Recipe>(shape): the composition runs on<cuda>. Fix: make<Recipe>(env, shape, memory) of \"pith/cuda/cache.hpp\".");
  using backend = typename std::conditional_t<std::is_void_v<typename Recipe::backend>, default_backend<>,
                                              std::type_identity<typename Recipe::backend>>::type;
  using typename base::page;
  using typename base::segments;
  using base::store_;
  using page_pool = typename page_pool_type<page>::type;

  template <class K, class V>
  status check_chunk(sequence of, int layer, tensor_view<K, 3> k, tensor_view<V, 3> v, std::span<std::int64_t const> at) const {
    if (status const ok = this->check_layer(of, layer); !ok) return ok;
    if (status const ok = this->check_extents(k, v); !ok) return ok;
    if (status const ok = this->check_length(of, layer, k.extent[0]); !ok) return ok;
    if constexpr (Recipe::has_positions) {
      if (!at.empty() && static_cast<std::int64_t>(at.size()) != k.extent[0])
        return {errc::shape_mismatch, static_cast<std::int64_t>(at.size())};
      std::int64_t const slots = store_.layer(of.index, layer).slots;
      std::int64_t before = slots > 0 ? store_.positions_of(of.index, layer)[slots - 1] : -1;
      for (std::size_t i = 0; i < at.size(); ++i) {
        if (at[i] <= before) return {errc::out_of_range, static_cast<std::int64_t>(i)};
        before = at[i];
      }
    } else if (!at.empty()) {
      return {errc::unsupported, static_cast<std::int64_t>(at.size())};
    }
    if constexpr (Recipe::nan == nan_policy::reject)
      for (std::int64_t t = 0; t < k.extent[0]; ++t)
        if (!row_is_finite(k, t) || !row_is_finite(v, t)) return {errc::not_finite, t};
    return {};
  }

  template <class T>
  static bool row_is_finite(tensor_view<T, 3> x, std::int64_t token) {
    for (std::int64_t h = 0; h < x.extent[1]; ++h)
      for (std::int64_t c = 0; c < x.extent[2]; ++c)
        if (!is_finite(to_float(x(token, h, c)))) return false;
    return true;
  }

  // A row as it is stored raw.
  template <int Channels>
  struct raw_row {
    alignas(64) bf16 number[Channels];

    template <class T>
    raw_row(tensor_view<T, 3> x, std::int64_t token, std::int64_t head) {
      T* const first = &x(token, head, 0);
      if (std::int64_t const step = x.stride[2]; step == 1)
        for (int c = 0; c < Channels; ++c) number[c] = raw_bf16<Recipe::nan>(first[c]);
      else
        for (int c = 0; c < Channels; ++c) number[c] = raw_bf16<Recipe::nan>(first[c * step]);
    }
  };
  using key_row = raw_row<Recipe::key_channels>;
  using value_row = raw_row<Recipe::value_channels>;

  status reserve(std::int64_t index, int layer, std::int64_t count) {
    auto const copy = [&](int, [[maybe_unused]] std::int64_t at, block_id to, block_id from) -> status {
      if constexpr (page::has_tails) {
        layer_state const& state = store_.layer(index, layer);
        return store_.page_pool->copy(to, from, sealed_in(state.sealed_keys, at), sealed_in(state.sealed_values, at));
      } else {
        std::byte* const own = store_.page_pool->address(to);
        if (from != no_block)
          std::memcpy(own, store_.page_pool->address(from), static_cast<std::size_t>(page::bytes));
        else
          std::memset(own, 0, static_cast<std::size_t>(page::bytes));
        return {};
      }
    };
    return base::reserve(index, layer, count, copy,
                         [&]([[maybe_unused]] std::int64_t keys, [[maybe_unused]] std::int64_t values) -> status {
                           if constexpr (page::has_tails)
                             return reserve_tails(index, layer, keys, values);
                           else
                             return {};
                         });
  }

  // Of `sealed` slots those that lie in page `at`.
  static int sealed_in(std::int64_t sealed, std::int64_t at) {
    return static_cast<int>(std::clamp<std::int64_t>(sealed - at * page::tokens, 0, page::tokens));
  }

  // Room for the longest tail in each tile that is to be sealed up to these slots, in the order in which they are: all or nothing.
  status reserve_tails(std::int64_t index, int layer, std::int64_t keys, std::int64_t values) {
    auto& pool = *store_.page_pool;
    typename page_pool::rooms rooms(pool);
    status done;
    each_tailed_tile(index, layer, keys, values, [&]<class Tile>(std::byte* tile) {
      if (done && !pool.template has_room<Tile>(tile)) done = rooms.add(Tile::tail_bound);
    });
    if (!done) return done;
    each_tailed_tile(index, layer, keys, values, [&]<class Tile>(std::byte* tile) {
      if (!pool.template has_room<Tile>(tile)) rooms.give(tile);
    });
    return {};
  }
  template <class F>
  void each_tailed_tile(std::int64_t index, int layer, std::int64_t keys, std::int64_t values, F&& f) {
    layer_state const& state = store_.layer(index, layer);
    using range = typename page::token_range;
    for (std::int64_t slot = std::min(state.sealed_keys, state.sealed_values); slot < std::max(keys, values); slot += page::tile_tokens) {
      int const from = static_cast<int>(slot % page::tokens), to = from + page::tile_tokens;
      range const nothing{0, 0}, of_keys = slot >= state.sealed_keys && slot < keys ? range{from, to} : nothing,
                                 of_values = slot >= state.sealed_values && slot < values ? range{from, to} : nothing;
      for (int h = 0; h < store_.shape.kv_heads; ++h) page::for_each_tailed_tile(page_of(index, layer, h, slot), of_keys, nothing, f);
      for (int h = 0; h < store_.shape.kv_heads; ++h) page::for_each_tailed_tile(page_of(index, layer, h, slot), nothing, of_values, f);
    }
  }

  // A chunk's rows into the raw tiles that its own queries read.
  template <class K, class V>
  void load_chunk(std::int64_t index, tensor_view<K, 3> k, tensor_view<V, 3> v) {
    for (int h = 0; h < store_.shape.kv_heads; ++h)
      for (std::int64_t t = 0; t < k.extent[0]; ++t) {
        std::byte* const key_tile = store_.chunk_keys(index, h) + t / block_tokens * segments::key_tile::bytes;
        std::byte* const value_tile = store_.chunk_values(index, h) + t / block_tokens * segments::value_tile::bytes;
        if (t % block_tokens == 0) {
          std::memset(key_tile, 0, static_cast<std::size_t>(segments::key_tile::bytes));
          std::memset(value_tile, 0, static_cast<std::size_t>(segments::value_tile::bytes));
        }
        segments::template set_row<typename segments::key_tile>(key_tile, static_cast<int>(t % block_tokens),
                                                                 key_row(k, t, h).number);
        segments::template set_row<typename segments::value_tile>(value_tile, static_cast<int>(t % block_tokens),
                                                                   value_row(v, t, h).number);
      }
  }

  // After reserve(): cannot fail. Head by head up to the next token that seals a tile: a head's raw tiles stay in the nearest cache.
  template <class K, class V>
  void write(std::int64_t index, int layer, tensor_view<K, 3> k, tensor_view<V, 3> v, std::span<std::int64_t const> at) {
    layer_state& state = store_.layer(index, layer);
    for (std::int64_t t = 0; t < k.extent[0];) {
      std::int64_t const staged = state.slots - Recipe::first_tokens;
      std::int64_t const until_keys = Recipe::last_keys + page::tile_tokens - (staged - state.sealed_keys);
      std::int64_t const until_values = Recipe::last_values + page::tile_tokens - (staged - state.sealed_values);
      std::int64_t const count = std::min({k.extent[0] - t, until_keys, until_values});
      PITH_EXPECTS(count > 0);
      for (int h = 0; h < store_.shape.kv_heads; ++h)
        for (std::int64_t i = 0; i < count; ++i) {
          segments::set(store_.raw_block(index, layer, h), state.slots + i, key_row(k, t + i, h).number, value_row(v, t + i, h).number);
          reset_side(index, layer, h, state.slots + i);
        }
      if constexpr (Recipe::has_positions)
        for (std::int64_t slot = state.slots; slot < state.slots + count; ++slot)
          store_.positions_of(index, layer)[slot] = !at.empty() ? at[static_cast<std::size_t>(t + slot - state.slots)]
                                                    : slot == 0 ? 0
                                                                : store_.positions_of(index, layer)[slot - 1] + 1;
      state.slots += count;
      state.tokens += count;
      t += count;
      std::int64_t const whole_pages = std::min(state.sealed_keys, state.sealed_values) / page::tokens;
      if (count == until_keys) {
        for (int h = 0; h < store_.shape.kv_heads; ++h) seal_keys(index, layer, h, state.sealed_keys);
        state.sealed_keys += page::tile_tokens;
      }
      if (count == until_values) {
        for (int h = 0; h < store_.shape.kv_heads; ++h) seal_values(index, layer, h, state.sealed_values);
        state.sealed_values += page::tile_tokens;
      }
      if constexpr (Recipe::has_liveness)  // its slots may have been evicted while they were raw
        if (std::min(state.sealed_keys, state.sealed_values) / page::tokens > whole_pages)
          for (int h = 0; h < store_.shape.kv_heads; ++h)
            this->drop_if_dead(index, layer, h, whole_pages, store_.live_of(index, layer, h));
    }
  }

  std::byte* page_of(std::int64_t index, int layer, int head, std::int64_t slot) const {
    return store_.page_pool->address(store_.runs->block(store_.table_of(index, layer, head), slot / page::tokens));
  }
  void seal_keys(std::int64_t index, int layer, int head, std::int64_t slot) {
    using tile = typename page::key_tile;
    for (std::int64_t s = slot; s < slot + page::tile_tokens; s += tile::tokens)
      seal<typename segments::key_tile, tile>(&segments::key_tile_of, store_.raw_block(index, layer, head), s,
                                              page_of(index, layer, head, s) + page::key_tile_at(static_cast<int>(s % page::tokens)),
                                              store_.states().keys.of(layer * store_.shape.kv_heads + head));
  }
  void seal_values(std::int64_t index, int layer, int head, std::int64_t slot) {
    using tile = typename page::value_tile;
    for (std::int64_t s = slot; s < slot + page::tile_tokens; s += tile::tokens)
      seal<typename segments::value_tile, tile>(&segments::value_tile_of, store_.raw_block(index, layer, head), s,
                                                page_of(index, layer, head, s) + page::value_tile_at(static_cast<int>(s % page::tokens)),
                                                store_.states().values.of(layer * store_.shape.kv_heads + head));
  }
  // Staged slots [slot, slot + Tile::tokens) into one tile, through bf16 rows.
  template <class Raw, class Tile>
  void seal(std::byte* (*raw_tile_of)(std::byte*, std::int64_t), std::byte* raw, std::int64_t slot, std::byte* out,
            [[maybe_unused]] state_of<Tile> const& calibrated) {
    alignas(64) bf16 rows[Tile::tokens * Tile::channels];
    for (int t = 0; t < Tile::tokens; t += block_tokens)
      tile_engine<backend, Raw>::decode(raw_tile_of(raw, slot + t), rows + t * Tile::channels, Tile::channels);
    if constexpr (variable_tile<Tile>)
      store_.page_pool->template seal<Tile>(
          out, [&](std::byte* tile, std::byte* tail) { return tile_engine<backend, Tile>::encode(rows, Tile::channels, tile, tail); });
    else if constexpr (is_calibrated<Tile>)
      tile_engine<backend, Tile>::encode(rows, Tile::channels, out, calibrated);
    else
      tile_engine<backend, Tile>::encode(rows, Tile::channels, out);
  }

  // Gives back what the tiles of a head own that a cut has left unsealed, in its last page; not where a fork shares it.
  void drop_cut_tails([[maybe_unused]] std::int64_t index, [[maybe_unused]] int layer, [[maybe_unused]] int head) {
    if constexpr (page::has_tails) {
      layer_state const& state = store_.layer(index, layer);
      table const& of = store_.table_of(index, layer, head);
      std::int64_t const last = of.pages - 1;
      if (last < 0 || !store_.runs->is_exclusive(of, last)) return;
      block_id const block = store_.runs->block(of, last);
      if (block == no_block) return;
      store_.page_pool->drop_tails(store_.page_pool->address(block), {sealed_in(state.sealed_keys, last), page::tokens},
                                   {sealed_in(state.sealed_values, last), page::tokens});
    }
  }

  // A dead slot has the position of the last living one before it, so that positions go on from there.
  void repeat_position(std::int64_t index, int layer, std::int64_t slot, std::int64_t from) {
    if constexpr (Recipe::has_positions) store_.positions_of(index, layer)[slot] = store_.positions_of(index, layer)[from];
  }

  // A new slot lives and has no bias.
  void reset_side(std::int64_t index, int layer, int head, std::int64_t slot) {
    if constexpr (Recipe::has_liveness) store_.live_of(index, layer, head)[slot / 64] |= std::uint64_t{1} << (slot % 64);
    if constexpr (Recipe::has_bias) store_.biases_of(index, layer, head)[slot] = 0;
  }

  // A dead slot that is still staged repeats the last living row, so that it widens no group when its tile is sealed.
  void repeat_row(std::int64_t index, int layer, int head, std::int64_t slot, std::int64_t from) {
    layer_state const& state = store_.layer(index, layer);
    std::byte* const raw = store_.raw_block(index, layer, head);
    std::int64_t const to_slot = slot - Recipe::first_tokens, from_slot = from - Recipe::first_tokens;
    auto const copy = [&]<class Tile>(std::byte* (*tile_of)(std::byte*, std::int64_t), std::int64_t sealed, Tile) {
      if (to_slot < sealed || from_slot < sealed) return;
      std::byte const* const source = tile_of(raw, from_slot);
      bf16 row[Tile::channels];
      for (int c = 0; c < Tile::channels; ++c) row[c] = from_float<bf16>(Tile::get(source, static_cast<int>(from_slot % block_tokens), c));
      segments::template set_row<Tile>(tile_of(raw, to_slot), static_cast<int>(to_slot % block_tokens), row);
    };
    copy(&segments::key_tile_of, state.sealed_keys, typename segments::key_tile{});
    copy(&segments::value_tile_of, state.sealed_values, typename segments::value_tile{});
  }

  // Zeroes the rows that were cut off and lie in the raw tile of slot `from`: a number that is not finite reaches sums even with weight 0.
  void clear_rows(std::int64_t index, int layer, int head, std::int64_t from, std::int64_t to) {
    std::byte* const raw = store_.raw_block(index, layer, head);
    bf16 const none[std::max(Recipe::key_channels, Recipe::value_channels)] = {};
    for (std::int64_t slot = from; slot < std::min<std::int64_t>(to, Recipe::first_tokens); ++slot) segments::set(raw, slot, none, none);
    if (from < Recipe::first_tokens) return;
    std::int64_t const end = round_up(from - Recipe::first_tokens, block_tokens) + Recipe::first_tokens;
    for (std::int64_t slot = from; slot < std::min(to, end); ++slot) segments::set(raw, slot, none, none);
  }
};

}  // namespace pith
