// SPDX-License-Identifier: Apache-2.0
// Where a kernel finds rows of numbers and where it leaves them: small values that all threads of a block call together.
//
//   rows.read<Channels, Threads>(thread, first, count, put)     put(token, channel, four numbers) for each four channels of tokens
//                                                               first .. first + count, spread over the threads; token counts from `first`
//   rows.write<Channels, Threads>(thread, first, count, get)    stores get(token, channel), four numbers, in their places
//
//   plain_rows<T>      [token][channel], a stride in elements between tokens; each row starts at a multiple of 16 bytes
//   raw_ring<Tile>     raw tiles of 32 tokens one behind the other, going round: where a cache keeps its newest tokens
#pragma once

#include "pith/codec/raw.hpp"
#include "pith/cuda/rounded.hpp"

namespace pith::device {

template <class T>
struct plain_rows {
  T* first;
  std::int64_t stride;

  using scalar = std::remove_const_t<T>;
  using held = std::conditional_t<sizeof(T) == 2, word2, word4>;  // four numbers

  template <int Channels, int Threads, class Put>
  PITH_HD void read(int thread, int first_token, int count, Put const& put) const {
    constexpr int quads = Channels / 4, batch = sizeof(T) == 2 ? 8 : 4;
    int const all = count * quads;
    for (int i = thread; i < all; i += batch * Threads) {  // a batch of loads is under way before the first is used
      held loaded[batch] = {};
      PITH_UNROLL for (int k = 0; k < batch; ++k) {
        int const at = i + k * Threads;
        if (at < all) loaded[k] = *reinterpret_cast<held const*>(address<quads>(first_token, at));
      }
      PITH_UNROLL for (int k = 0; k < batch; ++k) {
        int const at = i + k * Threads;
        if (at < all) put(at / quads, at % quads * 4, unpack_quad<scalar>(loaded[k]));
      }
    }
  }
  template <int Channels, int Threads, class Get>
  PITH_HD void write(int thread, int first_token, int count, Get const& get) const {
    constexpr int quads = Channels / 4;
    for (int i = thread; i < count * quads; i += Threads) {
      quad const x = get(i / quads, i % quads * 4);
      held out;
      if constexpr (sizeof(T) == 2)
        out = {{stored_bits<scalar>(x.at[0]) | stored_bits<scalar>(x.at[1]) << 16, stored_bits<scalar>(x.at[2]) | stored_bits<scalar>(x.at[3]) << 16}};
      else
        out = {{float_bits(x.at[0]), float_bits(x.at[1]), float_bits(x.at[2]), float_bits(x.at[3])}};
      *reinterpret_cast<held*>(address<quads>(first_token, i)) = out;
    }
  }

 private:
  template <int Quads>
  PITH_HD T* address(int first_token, int i) const {
    return first + static_cast<std::int64_t>(first_token + i / Quads) * stride + i % Quads * 4;
  }
};

// Tile 0 of what is read is tile `first_tile` of the ring of `tiles`.
template <class Tile>
struct raw_ring {
  static_assert(Tile::tokens == block_tokens && sizeof(typename Tile::scalar) == 2, "[pith] raw_ring<Tile>: raw tiles of 32 tokens in 16 bits.");
  std::byte const* ring;
  std::int64_t first_tile, tiles;

  template <int Channels, int Threads, class Put>
  PITH_HD void read(int thread, int first_token, int count, Put const& put) const {
    static_assert(Channels == Tile::channels, "[pith] raw_ring<Tile>: a tile of another width is read from it.");
    constexpr int quads = Channels / 4;
    for (int block = 0; block < count / block_tokens; ++block) {
      std::byte const* const tile = ring + (first_tile + first_token / block_tokens + block) % tiles * Tile::bytes;
      int const from = block * block_tokens;
      if constexpr (Tile::used_for == use::dot) {  // a word holds two channels of a token
        for (int i = thread; i < block_tokens * quads; i += Threads) {
          int const token = i % block_tokens, c = i / block_tokens * 4;
          std::byte const* const at = tile + 4 * (c / 2 * block_tokens + token);
          word2 const w{{load_word<std::uint32_t>(at), load_word<std::uint32_t>(at + 4 * block_tokens)}};
          put(from + token, c, unpack_quad<typename Tile::scalar>(w));
        }
      } else {  // and here two tokens of a channel
        for (int i = thread; i < block_tokens / 2 * quads; i += Threads) {
          int const pair = i / quads, c = i % quads * 4;
          word4 const w = load_word<word4>(tile + 4 * (pair * Channels + c));
          put(from + 2 * pair, c, unpack_quad<typename Tile::scalar>(word2{{pick_bytes(w.at[0], w.at[1], 0x5410), pick_bytes(w.at[2], w.at[3], 0x5410)}}));
          put(from + 2 * pair + 1, c, unpack_quad<typename Tile::scalar>(word2{{pick_bytes(w.at[0], w.at[1], 0x7632), pick_bytes(w.at[2], w.at[3], 0x7632)}}));
        }
      }
    }
  }
};

}  // namespace pith::device
