// SPDX-License-Identifier: Apache-2.0
// Kernels for slots that change without new rows: what a cut leaves in raw tiles, and side arrays of slots that begin anew.
#pragma once

#include "pith/cuda/cache_rows.hpp"

namespace pith::device {

// One layer of a sequence that had `before` slots and keeps `kept` of them; up to `slots` dead ones follow.
struct cut_entry {
  std::uint32_t sequence;
  int layer;
  std::int64_t kept, before, slots, sealed_keys, sealed_values;
};

// Dead slots that are still staged repeat the last living row, so that they widen no group when their tile is sealed. Under
// nan_policy::propagate the rows behind them, in the raw tile of slot `kept`, become zero: what is not finite reaches sums with weight 0.
template <class Recipe>
struct cut_rows_kernel {
  using segments = raw_segments<Recipe>;
  using entry = cut_entry;
  static constexpr int threads = 128, most = static_cast<int>((argument_bytes - 256) / sizeof(entry));
  cache_memory<Recipe> memory;
  int count = 0;
  entry entries[most] = {};

  pith::device::grid grid() const { return {.x = count, .y = memory.kv_heads}; }

  template <device_like Thread>
  PITH_HD void operator()(Thread& t) const {
    entry const& e = entries[t.block_x()];
    std::byte* const raw = memory.raw_block(e.sequence, e.layer, static_cast<int>(t.block_y()));
    int const thread = thread_of(t);
    if constexpr (Recipe::nan == nan_policy::propagate) {
      if (e.kept < Recipe::first_tokens) {
        int const from = static_cast<int>(e.kept), to = e.before < Recipe::first_tokens ? static_cast<int>(e.before) : Recipe::first_tokens;
        auto const zero = [](int, int) { return bf16{0}; };
        write_raw_rows<typename segments::first_key_tile>(thread, threads, raw, from, to, from == 0, zero);
        write_raw_rows<typename segments::first_value_tile>(thread, threads, raw + segments::first_values_at, from, to, from == 0, zero);
      }
    }
    settle<typename segments::key_tile, &segments::key_tile_of>(thread, e, e.sealed_keys, raw);
    settle<typename segments::value_tile, &segments::value_tile_of>(thread, e, e.sealed_values, raw);
  }

 private:
  template <class Tile, auto TileOf>
  PITH_HD static void settle(int thread, entry const& e, std::int64_t sealed, std::byte* raw) {
    std::int64_t const kept = e.kept - Recipe::first_tokens, slots = e.slots - Recipe::first_tokens, before = e.before - Recipe::first_tokens;
    if (kept < 0) return;
    std::int64_t const last = kept - 1;  // the living row
    bool const repeats = last >= sealed;
    std::byte const* const source = TileOf(raw, repeats ? last : 0);
    for (std::int64_t begin = kept / block_tokens * block_tokens; begin < slots || begin <= kept; begin += block_tokens) {
      std::byte* const tile = TileOf(raw, begin);
      if constexpr (Recipe::nan == nan_policy::propagate) {
        std::int64_t const clear_to = begin + block_tokens < before ? begin + block_tokens : before;
        std::int64_t const from = kept > slots ? kept : slots;
        if (begin <= kept && kept % block_tokens != 0 && from < clear_to && begin >= sealed)
          write_raw_rows<Tile>(thread, threads, tile, static_cast<int>(from - begin), static_cast<int>(clear_to - begin), false,
                               [](int, int) { return bf16{0}; });
      }
      std::int64_t const from = kept > begin ? kept : begin, to = slots < begin + block_tokens ? slots : begin + block_tokens;
      if (repeats && from < to)
        write_raw_rows<Tile>(thread, threads, tile, static_cast<int>(from - begin), static_cast<int>(to - begin), false, [&](int, int c) {
          int const token = static_cast<int>(last % block_tokens);
          constexpr int lanes = Tile::layout::lanes;
          std::byte const* const at = Tile::used_for == use::dot ? source + 4 * (c / 2 * lanes + token) : source + 4 * (token / 2 * lanes + c);
          int const half = Tile::used_for == use::dot ? c % 2 : token % 2;
          return bf16{static_cast<std::uint16_t>(load_word<std::uint32_t>(at) >> (16 * half) & 0xffffu)};
        });
    }
  }
};

// Slots [from, to) of every head live and have no bias.
struct side_entry {
  std::uint32_t sequence;
  int layer;
  std::int64_t from, to;
};
template <class Recipe>
struct reset_side_kernel {
  using entry = side_entry;
  static constexpr int threads = 128, most = static_cast<int>((argument_bytes - 256) / sizeof(entry));
  cache_memory<Recipe> memory;
  int count = 0;
  entry entries[most] = {};

  pith::device::grid grid() const { return {.x = count, .y = memory.kv_heads}; }

  template <device_like Thread>
  PITH_HD void operator()(Thread& t) const {
    entry const& e = entries[t.block_x()];
    int const head = static_cast<int>(t.block_y());
    if constexpr (Recipe::has_liveness)
      for (std::int64_t word = e.from / 64 + thread_of(t); word * 64 < e.to; word += threads)
        memory.live_of(e.sequence, e.layer, head)[word] |= bits_between(e.from - word * 64, e.to - word * 64);
    if constexpr (Recipe::has_bias)
      for (std::int64_t slot = e.from + thread_of(t); slot < e.to; slot += threads) memory.biases_of(e.sequence, e.layer, head)[slot] = 0;
  }

  // Bits [from, to) of a word, as far as they are its own.
  PITH_HD static constexpr std::uint64_t bits_between(std::int64_t from, std::int64_t to) {
    std::uint64_t const below = to >= 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << to) - 1;
    return from <= 0 ? below : below & ~((std::uint64_t{1} << from) - 1);
  }
};

}  // namespace pith::device
