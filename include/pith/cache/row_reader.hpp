// SPDX-License-Identifier: Apache-2.0
// The rows of one KV head as numbers, whatever segment they lie in.
//
// A tile is decoded when the first of its rows is asked for and kept until a row of another one is: rows in slot order, forwards or
// backwards, decode each tile once. A row stays valid until the next one of the same kind is read.
#pragma once

#include "pith/cache/segment_source.hpp"
#include "pith/page/tile_engine.hpp"

namespace pith {

template <class Recipe, class Backend>
class row_reader {
 public:
  using page = typename Recipe::page;
  using segments = raw_segments<Recipe>;
  using key_tile = typename page::key_tile;
  using value_tile = typename page::value_tile;

  explicit row_reader(segment_source<Recipe> const& of) : of_(of) {}

  // Of a slot of the sequence whose page was not given back.
  float const* key(std::int64_t slot) {
    std::int64_t const staged = slot - Recipe::first_tokens;
    if (staged < 0) return raw_row<typename segments::first_key_tile>(of_.first_keys(), slot, keys_, key_tile_);
    if (staged >= of_.sealed_keys())
      return raw_row<typename segments::key_tile>(of_.staging_keys(staged), staged % block_tokens, keys_, key_tile_);
    if (staged / key_tile::tokens != key_tile_) {
      key_tile_ = staged / key_tile::tokens;
      decode<key_tile>(of_.page_bytes(staged) + page::key_tile_at(static_cast<int>(staged % page::tokens)), keys_, of_.key_state());
    }
    return keys_ + staged % key_tile::tokens * key_tile::channels;
  }
  float const* value(std::int64_t slot) {
    std::int64_t const staged = slot - Recipe::first_tokens;
    if (staged < 0) return raw_row<typename segments::first_value_tile>(of_.first_values(), slot, values_, value_tile_);
    if (staged >= of_.sealed_values())
      return raw_row<typename segments::value_tile>(of_.staging_values(staged), staged % block_tokens, values_, value_tile_);
    if (staged / value_tile::tokens != value_tile_) {
      value_tile_ = staged / value_tile::tokens;
      decode<value_tile>(of_.page_bytes(staged) + page::value_tile_at(static_cast<int>(staged % page::tokens)), values_, of_.value_state());
    }
    return values_ + staged % value_tile::tokens * value_tile::channels;
  }

 private:
  static constexpr std::int64_t none = -1;  // no tile is decoded

  template <class Tile>
  static float const* raw_row(std::byte const* tile, std::int64_t token, float* to, std::int64_t& decoded) {
    decoded = none;
    for (int c = 0; c < Tile::channels; ++c) to[c] = Tile::get(tile, static_cast<int>(token), c);
    return to;
  }
  template <class Tile>
  static void decode(std::byte const* from, float* to, [[maybe_unused]] state_of<Tile> const& calibrated) {
    if constexpr (is_calibrated<Tile>)
      tile_engine<Backend, Tile>::decode(from, to, Tile::channels, calibrated);
    else
      tile_engine<Backend, Tile>::decode(from, to, Tile::channels);
  }

  segment_source<Recipe> of_;
  std::int64_t key_tile_ = none, value_tile_ = none;
  alignas(64) float keys_[key_tile::tokens * key_tile::channels];
  alignas(64) float values_[value_tile::tokens * value_tile::channels];
};

}  // namespace pith
