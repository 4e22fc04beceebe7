// SPDX-License-Identifier: Apache-2.0
// A sequence as bytes, for prompt caches, migration and restarts: what it stores as it is stored, nothing decoded.
//
// All numbers little-endian, no padding:
//
//   8   "PITHKV01"
//   8   identity: fingerprint of the composition, of every head's formats and of their calibrated numbers
//   4,4 layers, KV heads
//   per layer   8,8,8,8,8 tokens, slots, sealed key slots, sealed value slots, holes;  16 per hole: begin, end
//               8 per slot: position                         if the composition has side<positions>
//     per head  the raw block;  8 per 64 slots: liveness;  4 per slot: bias;  8,8 moved and spent slots, 4 per moved slot: birth (all three as
//               far as the composition has them)
//       per page  1: 0 if it was given back, then nothing; or 1, then its bytes; of a codec of variable rate with distances of
//                 zero, and the tails of the sealed tiles behind it, keys' first
//   8   fingerprint of all bytes before it
//
// Bytes of pages and raw blocks that hold nothing of the sequence are zero, so that nothing of another one is ever saved.
// A reader refuses: another identity (wrong_format), other counts (shape_mismatch), a bad magic, fingerprint, count or range (bad_format,
// at its byte), a short or long span (truncated, bad_format). Raw rows and tiles may hold any bytes: decoding never fails. Tiles with tails
// are checked (bad_format, at the tile).
#pragma once

#include <algorithm>
#include <cstring>

#include "pith/cache/storage.hpp"

namespace pith {

template <class Recipe>
struct snapshot {
  using storage = cache_storage<Recipe>;
  using segments = raw_segments<Recipe>;
  using page = typename Recipe::page;
  static constexpr char magic[9] = "PITHKV01";

  static std::uint64_t identity(storage const& store) {
    fingerprint all;
    for (std::int64_t const x : {Recipe::first_tokens, Recipe::last_keys, Recipe::last_values}) all.add(static_cast<std::uint64_t>(x));
    all.add_byte(static_cast<std::uint8_t>(Recipe::has_positions | Recipe::has_liveness << 1 | Recipe::has_bias << 2 | Recipe::has_births << 3));
    bool const one = !page::calibration::is_needed;  // all heads are alike
    for (std::int64_t h = 0; h < (one ? 1 : store.heads_total()); ++h) all.add(page_identity<page>(store.states().keys.of(h), store.states().values.of(h)));
    return all.value();
  }

  static std::int64_t bytes(storage const& store, std::int64_t sequence) {
    counter out;
    put_all(store, sequence, 0, out);
    return out.at + 8;
  }
  // out has bytes() bytes.
  static void write(storage const& store, std::int64_t sequence, std::byte* out) {
    writer to{out};
    put_all(store, sequence, identity(store), to);
    fingerprint all;
    all.add_bytes(out, to.at);
    to.number(all.value());
  }

  // Into a sequence that was just opened. add_page(table) appends a block to a table.
  template <class AddPage>
  static status read(storage& store, std::int64_t sequence, std::span<std::byte const> from, AddPage&& add_page) {
    if (from.size() < 32) return {errc::truncated, static_cast<std::int64_t>(from.size())};
    if (std::memcmp(from.data(), magic, 8) != 0) return {errc::bad_format, 0};
    reader in{from.first(from.size() - 8), 8};
    if (in.number() != identity(store)) return {errc::wrong_format, 8};
    if (in.template number<std::uint32_t>() != static_cast<std::uint32_t>(store.shape.layers)) return {errc::shape_mismatch, store.shape.layers};
    if (in.template number<std::uint32_t>() != static_cast<std::uint32_t>(store.shape.kv_heads)) return {errc::shape_mismatch, store.shape.kv_heads};
    fingerprint all;
    all.add_bytes(from.data(), static_cast<std::int64_t>(from.size()) - 8);
    if (load_le<std::uint64_t>(from.data() + from.size() - 8) != all.value()) return {errc::bad_format, static_cast<std::int64_t>(from.size()) - 8};
    for (int l = 0; l < store.shape.layers; ++l)
      if (status const ok = read_layer(store, sequence, l, in, add_page); !ok) return ok;
    return in.at == static_cast<std::int64_t>(in.from.size()) ? status{} : status{errc::bad_format, in.at};
  }

 private:
  struct counter {
    std::int64_t at = 0;
    void number(std::uint64_t, int size = 8) { at += size; }
    void copy(std::byte const*, std::int64_t count) { at += count; }
    void zeros(std::int64_t count) { at += count; }
  };
  struct writer {
    std::byte* out;
    std::int64_t at = 0;
    void number(std::uint64_t x, int size = 8) {
      for (int i = 0; i < size; ++i) out[at++] = static_cast<std::byte>(x >> (8 * i) & 0xff);
    }
    void copy(std::byte const* from, std::int64_t count) {
      std::memcpy(out + at, from, static_cast<std::size_t>(count));
      at += count;
    }
    void zeros(std::int64_t count) {
      std::memset(out + at, 0, static_cast<std::size_t>(count));
      at += count;
    }
  };
  struct reader {
    std::span<std::byte const> from;
    std::int64_t at = 0;
    bool enough = true;
    bool has(std::int64_t count) { return enough = enough && count >= 0 && count <= static_cast<std::int64_t>(from.size()) - at; }
    template <class Word = std::uint64_t>
    Word number() {
      if (!has(sizeof(Word))) return 0;
      Word const x = load_le<Word>(from.data() + at);
      at += static_cast<std::int64_t>(sizeof(Word));
      return x;
    }
    std::byte const* take(std::int64_t count) {
      if (!has(count)) return nullptr;
      at += count;
      return from.data() + at - count;
    }
    status missing() const { return {errc::truncated, at}; }
  };

  static std::int64_t pages_of(layer_state const& state) { return divide_up(std::max(state.sealed_keys, state.sealed_values), page::tokens); }

  template <class Out>
  static void put_all(storage const& store, std::int64_t sequence, std::uint64_t identity, Out& out) {
    out.copy(reinterpret_cast<std::byte const*>(magic), 8);
    out.number(identity);
    out.number(static_cast<std::uint64_t>(store.shape.layers), 4);
    out.number(static_cast<std::uint64_t>(store.shape.kv_heads), 4);
    for (int l = 0; l < store.shape.layers; ++l) {
      layer_state const& state = store.layer(sequence, l);
      for (std::int64_t const x : {state.tokens, state.slots, state.sealed_keys, state.sealed_values, state.hole_count})
        out.number(static_cast<std::uint64_t>(x));
      for (int i = 0; i < state.hole_count; ++i) {
        out.number(static_cast<std::uint64_t>(state.holes[i].begin));
        out.number(static_cast<std::uint64_t>(state.holes[i].end));
      }
      if constexpr (Recipe::has_positions)
        for (std::int64_t s = 0; s < state.slots; ++s) out.number(static_cast<std::uint64_t>(store.positions_of(sequence, l)[s]));
      for (int h = 0; h < store.shape.kv_heads; ++h) {
        put_raw(state, store.raw_block(sequence, l, h), out);
        if constexpr (Recipe::has_liveness)
          for (std::int64_t w = 0; w < divide_up(state.slots, 64); ++w) {
            bool const part = 64 * (w + 1) > state.slots;  // bits behind the last slot are another sequence's
            out.number(store.live_of(sequence, l, h)[w] & (part ? (std::uint64_t{1} << state.slots % 64) - 1 : ~std::uint64_t{0}));
          }
        if constexpr (Recipe::has_bias)
          for (std::int64_t s = 0; s < state.slots; ++s) out.number(float_bits(store.biases_of(sequence, l, h)[s]), 4);
        if constexpr (Recipe::has_births) {
          head_state const& head = store.head(sequence, l, h);
          out.number(static_cast<std::uint64_t>(head.moved));
          out.number(static_cast<std::uint64_t>(head.spent));
          for (std::int64_t s = 0; s < head.moved; ++s) out.number(static_cast<std::uint32_t>(store.births_of(sequence, l, h)[s]), 4);
        }
        for (std::int64_t p = 0; p < pages_of(state); ++p) {
          block_id const block = store.runs->block(store.table_of(sequence, l, h), p);
          out.number(block == no_block ? 0 : 1, 1);
          if (block != no_block) put_page(state, p, store.page_pool->address(block), out);
        }
      }
    }
  }

  // Of `slots` sealed slots those that lie in page p.
  static int sealed_in(std::int64_t slots, std::int64_t p) {
    return static_cast<int>(std::clamp<std::int64_t>(slots - p * page::tokens, 0, page::tokens));
  }
  template <class Out>
  static void put_page(layer_state const& state, std::int64_t p, std::byte const* from, Out& out) {
    int const keys = sealed_in(state.sealed_keys, p), values = sealed_in(state.sealed_values, p);
    put_tiles<typename page::key_tile>(from, keys, page::values_at, out);
    put_tiles<typename page::value_tile>(from + page::values_at, values, page::bytes - page::values_at, out);
    page::for_each_tailed_tile(from, {0, keys}, {0, values},
                               [&]<class Tile>(std::byte const* tile) { out.copy(tail_place::tail(tile), tail_place::of(tile).bytes); });
  }
  // The tiles of the first `sealed` tokens, then zeros up to `bytes`.
  template <class Tile, class Out>
  static void put_tiles(std::byte const* from, int sealed, std::int64_t bytes, Out& out) {
    std::int64_t const used = sealed / Tile::tokens * Tile::bytes;
    if constexpr (variable_tile<Tile>)
      for (std::int64_t at = 0; at < used; at += Tile::bytes) {
        out.number(0);  // the distance
        out.copy(from + at + 8, Tile::bytes - 8);
      }
    else
      out.copy(from, used);
    out.zeros(bytes - used);
  }
  template <class Out>
  static void put_raw(layer_state const& state, std::byte const* from, Out& out) {
    std::int64_t const staged = std::max<std::int64_t>(0, state.slots - Recipe::first_tokens);
    auto const put = [&](bool used, std::int64_t at, std::int64_t count) { used ? out.copy(from + at, count) : out.zeros(count); };
    auto const ring = [&](std::int64_t at, std::int64_t tiles, std::int64_t tile_bytes, std::int64_t sealed) {
      for (std::int64_t i = 0; i < tiles; ++i) {
        bool used = false;
        for (std::int64_t slot = sealed; slot < staged; slot += block_tokens) used = used || slot / block_tokens % tiles == i;
        put(used, at + i * tile_bytes, tile_bytes);
      }
    };
    put(state.slots > 0, 0, segments::keys_at);
    ring(segments::keys_at, segments::key_ring, segments::key_tile::bytes, state.sealed_keys);
    ring(segments::values_at, segments::value_ring, segments::value_tile::bytes, state.sealed_values);
    std::int64_t const end = segments::values_at + segments::value_ring * segments::value_tile::bytes;
    out.zeros(segments::bytes - end);
  }

  // The counts of a layer as a cache could have made them.
  static bool is_possible(layer_state const& s) {
    std::int64_t const staged = std::max<std::int64_t>(0, s.slots - Recipe::first_tokens);
    auto const sealed_fits = [&](std::int64_t sealed, std::int64_t last) {
      return sealed >= 0 && sealed % page::tile_tokens == 0 && sealed <= staged && staged - sealed < last + page::tile_tokens;
    };
    if (s.tokens < 0 || s.slots < s.tokens || !sealed_fits(s.sealed_keys, Recipe::last_keys) || !sealed_fits(s.sealed_values, Recipe::last_values)) return false;
    std::int64_t dead = 0, before = 0;
    for (int i = 0; i < s.hole_count; ++i) {
      if (s.holes[i].begin < before || s.holes[i].end <= s.holes[i].begin || s.holes[i].end > s.slots) return false;
      dead += s.holes[i].end - s.holes[i].begin;
      before = s.holes[i].end;
    }
    return s.tokens + dead == s.slots;
  }

  // A page that was just added, from its packed form and the tails behind it.
  template <class Pool>
  static status read_tails(Pool& pool, block_id block, layer_state const& state, std::int64_t p, std::byte const* packed, std::int64_t at,
                           reader& in) {
    pool.copy_fixed(block, packed);
    std::byte* const own = pool.address(block);
    status done;
    page::for_each_tailed_tile(own, {0, sealed_in(state.sealed_keys, p)}, {0, sealed_in(state.sealed_values, p)},
                               [&]<class Tile>(std::byte* tile) {
                                 if (!done) return;
                                 std::byte const* const its_packed = packed + (tile - own);
                                 std::int64_t const bytes = tail_place::of(its_packed).bytes;
                                 std::byte const* const tail = in.take(bytes);
                                 if (tail == nullptr)
                                   done = in.missing();
                                 else if (!Tile::check(its_packed, tail))
                                   done = {errc::bad_format, at + (tile - own)};
                                 else
                                   done = pool.add_tail(tile, tail, bytes);
                               });
    return done;
  }

  static status read_births(storage& store, std::int64_t sequence, int l, int h, layer_state const& state, reader& in) {
    std::int64_t const start = in.at, sealed = std::min(state.sealed_keys, state.sealed_values);
    head_state head;
    for (std::int64_t* to : {&head.moved, &head.spent}) *to = static_cast<std::int64_t>(in.number());
    if (!in.enough) return in.missing();
    for (std::int64_t const slots : {head.moved, head.spent})
      if (slots < 0 || slots > sealed || slots % page::tile_tokens != 0) return {errc::bad_format, start};
    std::int64_t const behind = state.token_of(Recipe::first_tokens + head.moved);
    std::int64_t before = std::min<std::int64_t>(Recipe::first_tokens, behind);
    for (std::int64_t s = 0; s < head.moved; ++s) {
      std::int64_t const birth = in.template number<std::uint32_t>();
      if (!in.enough) return in.missing();
      if (birth < before || birth > behind) return {errc::bad_format, in.at - 4};
      store.births_of(sequence, l, h)[s] = static_cast<std::int32_t>(before = birth);
    }
    store.head(sequence, l, h) = head;
    return {};
  }

  template <class AddPage>
  static status read_layer(storage& store, std::int64_t sequence, int l, reader& in, AddPage& add_page) {
    std::int64_t const start = in.at;
    layer_state state;
    for (std::int64_t* to : {&state.tokens, &state.slots, &state.sealed_keys, &state.sealed_values}) *to = static_cast<std::int64_t>(in.number());
    std::uint64_t const holes = in.number();
    if (!in.enough) return in.missing();
    if (holes > layer_state::max_holes) return {errc::bad_format, start + 32};
    state.hole_count = static_cast<std::int64_t>(holes);
    for (int i = 0; i < state.hole_count; ++i) {
      state.holes[i].begin = static_cast<std::int64_t>(in.number());
      state.holes[i].end = static_cast<std::int64_t>(in.number());
    }
    if (!in.enough) return in.missing();
    if (!is_possible(state)) return {errc::bad_format, start};
    if (store.shape.max_tokens > 0 && state.slots > store.shape.max_tokens) return {errc::capacity_exceeded, store.shape.max_tokens};
    if constexpr (Recipe::has_positions) {
      std::int64_t before = -1;
      for (std::int64_t s = 0; s < state.slots; ++s) {
        auto const position = static_cast<std::int64_t>(in.number());
        if (!in.enough) return in.missing();
        if (position < before) return {errc::bad_format, in.at - 8};  // a dead slot repeats the one before it
        store.positions_of(sequence, l)[s] = before = position;
      }
    }
    for (int h = 0; h < store.shape.kv_heads; ++h) {
      std::byte const* const raw = in.take(segments::bytes);
      if (raw == nullptr) return in.missing();
      std::memcpy(store.raw_block(sequence, l, h), raw, static_cast<std::size_t>(segments::bytes));
      if constexpr (Recipe::has_liveness)
        for (std::int64_t w = 0; w < divide_up(state.slots, 64); ++w) store.live_of(sequence, l, h)[w] = in.number();
      if constexpr (Recipe::has_bias)
        for (std::int64_t s = 0; s < state.slots; ++s) {
          float const bias = bits_float(in.template number<std::uint32_t>());
          if (is_nan(bias) || float_bits(bias) == 0x7f800000u) return {errc::bad_format, in.at - 4};
          store.biases_of(sequence, l, h)[s] = bias;
        }
      if constexpr (Recipe::has_births)
        if (status const ok = read_births(store, sequence, l, h, state, in); !ok) return ok;
      if (!in.enough) return in.missing();
      table& pages = store.table_of(sequence, l, h);
      for (std::int64_t p = 0; p < pages_of(state); ++p) {
        auto const kept = in.template number<std::uint8_t>();
        std::int64_t const packed_at = in.at;
        std::byte const* const packed = kept == 1 ? in.take(page::bytes) : nullptr;
        if (!in.enough) return in.missing();
        if (kept > 1 || (kept == 0 && !Recipe::has_liveness)) return {errc::bad_format, in.at - 1};
        if (status const ok = add_page(pages); !ok) return ok;
        block_id const block = store.runs->block(pages, p);
        if (kept == 0)
          static_cast<void>(store.runs->drop(pages, *store.page_pool, p));
        else if constexpr (page::has_tails) {
          if (status const ok = read_tails(*store.page_pool, block, state, p, packed, packed_at, in); !ok) return ok;
        } else {
          std::memcpy(store.page_pool->address(block), packed, static_cast<std::size_t>(page::bytes));
        }
      }
    }
    store.layer(sequence, l) = state;
    return {};
  }
};

}  // namespace pith
