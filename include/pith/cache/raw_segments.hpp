// SPDX-License-Identifier: Apache-2.0
// The raw part of one (sequence, layer, KV head): the first tokens and the staging ring, in one block of bf16 tiles.
//
//   | first keys | first values | key ring: tiles of 32 tokens | value ring |
//
// Staging slot s (counted after `first`) lies in ring tile s / 32 modulo the ring's length. The ring holds `last` tokens and a whole tile
// to be sealed; a tile is cleared when its first slot is written, so that no stale number is ever multiplied.
#pragma once

#include <cstring>

#include "pith/cache/slots.hpp"
#include "pith/core/bits.hpp"

namespace pith {

// A number of a new token as it is stored raw. Under saturate what is not finite becomes 0 or +-65504: a score with it is still finite.
template <nan_policy Policy, storage_scalar T>
PITH_HD constexpr bf16 raw_bf16(T x) noexcept {
  if constexpr (Policy == nan_policy::saturate) {
    float const value = to_float(x);
    if (!is_finite(value)) return from_float<bf16>(is_nan(value) ? 0.0f : value > 0 ? largest<f16> : -largest<f16>);
  }
  if constexpr (std::is_same_v<T, bf16>)
    return x;
  else
    return from_float<bf16>(to_float(x));
}

template <class Recipe>
struct raw_segments {
  using page = typename Recipe::page;
  static constexpr int dk = Recipe::key_channels, dv = Recipe::value_channels;
  static constexpr int first_tile = Recipe::first_tokens == 0 ? 16 : static_cast<int>(round_up(Recipe::first_tokens, 16));
  using first_key_tile = raw_tile<bf16, dk, use::dot, first_tile>;
  using first_value_tile = raw_tile<bf16, dv, use::mix, first_tile>;
  using key_tile = raw_tile<bf16, dk, use::dot>;
  using value_tile = raw_tile<bf16, dv, use::mix>;

  static constexpr std::int64_t key_ring = divide_up(Recipe::last_keys + page::tile_tokens, block_tokens);
  static constexpr std::int64_t value_ring = divide_up(Recipe::last_values + page::tile_tokens, block_tokens);
  static constexpr std::int64_t first_values_at = Recipe::first_tokens == 0 ? 0 : first_key_tile::bytes;
  static constexpr std::int64_t keys_at = Recipe::first_tokens == 0 ? 0 : round_up(first_values_at + first_value_tile::bytes, 64);
  static constexpr std::int64_t values_at = keys_at + key_ring * key_tile::bytes;
  static constexpr std::int64_t bytes = round_up(values_at + value_ring * value_tile::bytes, 64);

  PITH_HD static constexpr std::byte* key_tile_of(std::byte* block, std::int64_t slot) {
    return block + keys_at + slot / block_tokens % key_ring * key_tile::bytes;
  }
  PITH_HD static constexpr std::byte* value_tile_of(std::byte* block, std::int64_t slot) {
    return block + values_at + slot / block_tokens % value_ring * value_tile::bytes;
  }

  // One token's row into a raw tile. row has Tile::channels numbers.
  template <class Tile>
  static void set_row(std::byte* tile, int token, bf16 const* row) {
    constexpr std::int64_t lanes = Tile::layout::lanes;
    if constexpr (Tile::used_for == use::dot)  // a word holds two channels of one token
      for (int c = 0; c < Tile::channels; c += 2)
        store_le<std::uint32_t>(tile + 4 * (c / 2 * lanes + token), row[c].bits | static_cast<std::uint32_t>(row[c + 1].bits) << 16);
    else  // and here two tokens of one channel
      for (int c = 0; c < Tile::channels; ++c) store_le<std::uint16_t>(tile + 4 * (token / 2 * lanes + c) + 2 * (token % 2), row[c].bits);
  }

  // A new row, in sequence slot `slot` (first tokens included).
  static void set(std::byte* block, std::int64_t slot, bf16 const* key, bf16 const* value) {
    std::int64_t const staged = slot - Recipe::first_tokens;
    if (slot == 0 && staged < 0) std::memset(block, 0, static_cast<std::size_t>(keys_at));
    if (staged >= 0 && staged % block_tokens == 0) {
      std::memset(key_tile_of(block, staged), 0, static_cast<std::size_t>(key_tile::bytes));
      std::memset(value_tile_of(block, staged), 0, static_cast<std::size_t>(value_tile::bytes));
    }
    replace(block, slot, key, value);
  }
  // Another row where there is one.
  static void replace(std::byte* block, std::int64_t slot, bf16 const* key, bf16 const* value) {
    std::int64_t const staged = slot - Recipe::first_tokens;
    if (staged < 0) {
      set_row<first_key_tile>(block, static_cast<int>(slot), key);
      set_row<first_value_tile>(block + first_values_at, static_cast<int>(slot), value);
    } else {
      set_row<key_tile>(key_tile_of(block, staged), static_cast<int>(staged % block_tokens), key);
      set_row<value_tile>(value_tile_of(block, staged), static_cast<int>(staged % block_tokens), value);
    }
  }
};

}  // namespace pith
