// SPDX-License-Identifier: Apache-2.0
// A page: a fixed number of tokens of one KV head of one layer, keys first, then values, scales included. 64-byte aligned.
//
//   | key tile 0 | key tile 1 | ... | value tile 0 | value tile 1 | ... |
//
// The two codecs may cut the page into tiles of different lengths; a tile holds `tokens` tokens.
#pragma once

#include "pith/codec/concept.hpp"
#include "pith/core/bits.hpp"

namespace pith {

template <class Keys, class Values, int KeyChannels, int ValueChannels, int PageTokens>
struct kv_page {
  static_assert(PageTokens % block_tokens == 0, "[pith] paged<N>: a page holds whole blocks of 32 tokens. Fix: paged<64>.");
  static_assert(KeyChannels % 16 == 0 && ValueChannels % 16 == 0 && KeyChannels <= 256 && ValueChannels <= 256,
                "[pith] head_dim<K, V>: multiples of 16 up to 256. Fix: pad the head to the next multiple of 16.");
  using key_tile = typename Keys::template bind<KeyChannels, PageTokens, use::dot>;
  using value_tile = typename Values::template bind<ValueChannels, PageTokens, use::mix>;
  static_assert(PageTokens % key_tile::tokens == 0, "[pith] keys<C>: a page must hold whole tiles. Fix: pages<paged<N>> with N a multiple of the tile.");
  static_assert(PageTokens % value_tile::tokens == 0, "[pith] values<C>: a page must hold whole tiles. Fix: pages<paged<N>> with N a multiple of the tile.");

  static constexpr int tokens = PageTokens;
  static constexpr int key_channels = KeyChannels;
  static constexpr int value_channels = ValueChannels;
  static constexpr std::int64_t keys_bytes = round_up(PageTokens / key_tile::tokens * key_tile::bytes, 64);
  static constexpr std::int64_t values_at = keys_bytes;
  static constexpr std::int64_t bytes = keys_bytes + round_up(PageTokens / value_tile::tokens * value_tile::bytes, 64);
  // The longer tile: keys and values are sealed in units of it.
  static constexpr int tile_tokens = key_tile::tokens > value_tile::tokens ? key_tile::tokens : value_tile::tokens;
  static_assert(tile_tokens % key_tile::tokens == 0 && tile_tokens % value_tile::tokens == 0,
                "[pith] keys<K>, values<V>: the longer tile must hold whole tiles of the other. Fix: groups of 32, 64, 128 or 256 tokens.");

  PITH_HD static constexpr std::int64_t key_tile_at(int token) noexcept { return token / key_tile::tokens * key_tile::bytes; }
  PITH_HD static constexpr std::int64_t value_tile_at(int token) noexcept { return values_at + token / value_tile::tokens * value_tile::bytes; }
};

}  // namespace pith
