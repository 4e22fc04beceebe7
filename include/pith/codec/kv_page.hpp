// SPDX-License-Identifier: Apache-2.0
// A page: a fixed number of tokens of one KV head of one layer, keys first, then values, scales included. 64-byte aligned.
//
//   | key tile 0 | key tile 1 | ... | value tile 0 | value tile 1 | ... |
//
// The two codecs may cut the page into tiles of different lengths; a tile holds `tokens` tokens. Of a codec of variable rate these are the
// tiles' fixed parts; the tails lie wherever their places say (variable_rate.hpp).
#pragma once

#include "pith/codec/calibration.hpp"
#include "pith/codec/variable_rate.hpp"
#include "pith/core/bits.hpp"

namespace pith {

// The first broken rule speaks alone; true if there is none.
template <class Keys, class Values, int KeyChannels, int ValueChannels, int PageTokens>
consteval bool check_page() {
  constexpr bool heads_fit = KeyChannels > 0 && ValueChannels > 0 && KeyChannels % 16 == 0 && ValueChannels % 16 == 0 &&
                             KeyChannels <= 256 && ValueChannels <= 256;
  constexpr bool tokens_fit = PageTokens > 0 && PageTokens % block_tokens == 0;
  if constexpr (!heads_fit) {
    static_assert(heads_fit, "[pith] head_dim<K, V>: multiples of 16 up to 256. Fix: pad the head to the next multiple of 16.");
    return false;
  } else if constexpr (!tokens_fit) {
    static_assert(tokens_fit, "[pith] paged<N>: a page holds whole blocks of 32 tokens. Fix: paged<64>.");
    return false;
  } else if constexpr (!bindable<Keys, KeyChannels, PageTokens, use::dot>) {
    if constexpr (bindable<Keys, 64, PageTokens, use::dot>)
      static_assert(PageTokens < 0, "[pith] keys<C>: C takes heads of a multiple of 32 channels. Fix: pad the head, or raw<bf16>.");
    else
      static_assert(PageTokens < 0,
                    "[pith] keys<C>: C is not a codec. Fix: raw<bf16>, int8<per_token<64>>, int4<per_channel<32>>, pipe<hadamard<64>, C>.");
    return false;
  } else if constexpr (!bindable<Values, ValueChannels, PageTokens, use::mix>) {
    if constexpr (bindable<Values, 64, PageTokens, use::mix>)
      static_assert(PageTokens < 0, "[pith] values<C>: C takes heads of a multiple of 32 channels. Fix: pad the head, or raw<bf16>.");
    else
      static_assert(PageTokens < 0,
                    "[pith] values<C>: C is not a codec. Fix: raw<bf16>, int8<per_token<64>>, int4<per_token<64>>, pipe<hadamard<64>, C>.");
    return false;
  } else {
    constexpr int k = Keys::template bind<KeyChannels, PageTokens, use::dot>::tokens,
                  v = Values::template bind<ValueChannels, PageTokens, use::mix>::tokens;
    if constexpr (PageTokens % k != 0) {
      static_assert(PageTokens % k == 0,
                    "[pith] keys<C>: a page must hold whole tiles. Fix: pages<paged<N>> with N a multiple of the tile.");
      return false;
    } else if constexpr (PageTokens % v != 0) {
      static_assert(PageTokens % v == 0,
                    "[pith] values<C>: a page must hold whole tiles. Fix: pages<paged<N>> with N a multiple of the tile.");
      return false;
    } else if constexpr (k % v != 0 && v % k != 0) {
      static_assert(
          k % v == 0,
          "[pith] keys<K>, values<V>: the longer tile must hold whole tiles of the other. Fix: groups of 32, 64, 128 or 256 tokens.");
      return false;
    } else {
      return true;
    }
  }
}

// The most that a tile's tail takes, in whole lines; 0 if it has none.
template <class Tile>
inline constexpr std::int64_t line_tail_bound = 0;
template <variable_tile Tile>
inline constexpr std::int64_t line_tail_bound<Tile> = round_up(Tile::tail_bound, 64);

// The tiles of a page, or stand-ins where check_page has spoken.
template <bool Right, class Keys, class Values, int KeyChannels, int ValueChannels, int PageTokens>
struct page_tiles {
  using key_tile = no_tile<KeyChannels>;
  using value_tile = no_tile<ValueChannels>;
};
template <class Keys, class Values, int KeyChannels, int ValueChannels, int PageTokens>
struct page_tiles<true, Keys, Values, KeyChannels, ValueChannels, PageTokens> {
  using key_tile = typename Keys::template bind<KeyChannels, PageTokens, use::dot>;
  using value_tile = typename Values::template bind<ValueChannels, PageTokens, use::mix>;
};

template <class Keys, class Values, int KeyChannels, int ValueChannels, int PageTokens>
struct kv_page {
  using tiles =
      page_tiles<check_page<Keys, Values, KeyChannels, ValueChannels, PageTokens>(), Keys, Values, KeyChannels, ValueChannels, PageTokens>;
  using key_tile = typename tiles::key_tile;
  using value_tile = typename tiles::value_tile;

  using calibration = page_calibration<key_tile, value_tile>;

  static constexpr int tokens = PageTokens;
  static constexpr int key_channels = KeyChannels;
  static constexpr int value_channels = ValueChannels;
  static constexpr std::int64_t keys_bytes = round_up(PageTokens / key_tile::tokens * key_tile::bytes, 64);
  static constexpr std::int64_t values_at = keys_bytes;
  static constexpr std::int64_t bytes = keys_bytes + round_up(PageTokens / value_tile::tokens * value_tile::bytes, 64);
  // The longer tile: keys and values are sealed in units of it.
  static constexpr int tile_tokens = key_tile::tokens > value_tile::tokens ? key_tile::tokens : value_tile::tokens;

  // What the tails of a page's tiles take, as extents of whole lines: all of them at most, and about what to expect.
  static constexpr bool has_tails = variable_tile<key_tile> || variable_tile<value_tile>;
  static constexpr std::int64_t tails_bound =
      PageTokens / key_tile::tokens * line_tail_bound<key_tile> + PageTokens / value_tile::tokens * line_tail_bound<value_tile>;
  static constexpr std::int64_t expected_bytes = bytes + tails_bound / 4;

  PITH_HD static constexpr std::int64_t key_tile_at(int token) noexcept { return token / key_tile::tokens * key_tile::bytes; }
  PITH_HD static constexpr std::int64_t value_tile_at(int token) noexcept {
    return values_at + token / value_tile::tokens * value_tile::bytes;
  }

  // f.operator()<Tile>(place of the tile) for the tiles of variable rate that begin with tokens [keys.from, keys.to), [values.from,
  // values.to); keys first.
  struct token_range {
    int from, to;
  };
  template <class Byte, class F>
  static void for_each_tailed_tile(Byte* page, token_range of_keys, token_range of_values, F&& f) {
    if constexpr (variable_tile<key_tile>)
      for (int t = of_keys.from; t < of_keys.to; t += key_tile::tokens) f.template operator()<key_tile>(page + key_tile_at(t));
    if constexpr (variable_tile<value_tile>)
      for (int t = of_values.from; t < of_values.to; t += value_tile::tokens) f.template operator()<value_tile>(page + value_tile_at(t));
  }
};

}  // namespace pith
