// SPDX-License-Identifier: Apache-2.0
// Where a kernel finds rows of numbers and where it leaves them: small values that all threads of a block call together.
//
//   rows.read<Channels, Count, Threads>(thread, first, put)     put(token, channel, four numbers) for each four channels of tokens
//                                                               first .. first + Count, spread over the threads; token counts from `first`
//   rows.write<Channels, Count, Threads>(thread, first, get)    stores get(token, channel), four numbers, in their places
//
//   plain_rows<T>      [token][channel], a stride in elements between tokens; each row starts at a multiple of 16 bytes
//   raw_ring<Tile>     raw tiles of 32 tokens one behind the other, going round: where a cache keeps its newest tokens
#pragma once

#include "pith/codec/raw.hpp"
#include "pith/cuda/rounded.hpp"

namespace pith::device {

// The token and channel of a thread's k-th four numbers. Where the threads cover whole rows, a thread keeps its channels.
template <int Quads, int Threads>
struct places {
  static constexpr bool whole_rows = Threads % Quads == 0;
  int first, token_of_first, channel_of_first;

  PITH_HD places(int thread, int done)
      : first(thread + done * Threads), token_of_first(thread / Quads + done * (Threads / Quads)), channel_of_first(thread % Quads * 4) {}
  PITH_HD int token(int k) const { return whole_rows ? token_of_first + k * (Threads / Quads) : (first + k * Threads) / Quads; }
  PITH_HD int channel(int k) const { return whole_rows ? channel_of_first : (first + k * Threads) % Quads * 4; }
};

template <class T>
struct plain_rows {
  T* first;
  std::int64_t stride;

  using scalar = std::remove_const_t<T>;
  using held = std::conditional_t<sizeof(T) == 2, word2, word4>;  // four numbers

  template <int Channels, int Count, int Threads, class Put>
  PITH_HD void read(int thread, int first_token, Put const& put) const {
    constexpr int quads = Channels / 4, all = Count * quads, rounds = (all + Threads - 1) / Threads, most = sizeof(T) == 2 ? 8 : 4;
    constexpr int batch = rounds < most ? rounds : most;  // loads that are under way before the first is used
    for (int done = 0; done < rounds; done += batch) {
      held loaded[batch];
      places<quads, Threads> const at(thread, done);
      PITH_UNROLL for (int k = 0; k < batch; ++k) {
        loaded[k] = {};
        if (all % (batch * Threads) == 0 || thread + (done + k) * Threads < all)
          loaded[k] =
              *reinterpret_cast<held const*>(first + (first_token + static_cast<std::int64_t>(at.token(k))) * stride + at.channel(k));
      }
      PITH_UNROLL for (int k = 0; k < batch; ++k) if (all % (batch * Threads) == 0 || thread + (done + k) * Threads < all)
          put(at.token(k), at.channel(k), unpack_quad<scalar>(loaded[k]));
    }
  }
  template <int Channels, int Count, int Threads, class Get>
  PITH_HD void write(int thread, int first_token, Get const& get) const {
    constexpr int quads = Channels / 4;
    for (int round = 0; round < (Count * quads + Threads - 1) / Threads; ++round) {
      if (Count * quads % Threads != 0 && thread + round * Threads >= Count * quads) break;
      places<quads, Threads> const at(thread, 0);
      int const token = at.token(round), channel = at.channel(round);
      quad const x = get(token, channel);
      held out;
      if constexpr (sizeof(T) == 2)
        out = {{stored_pair<scalar>(x.at[0], x.at[1]), stored_pair<scalar>(x.at[2], x.at[3])}};
      else
        out = {{float_bits(x.at[0]), float_bits(x.at[1]), float_bits(x.at[2]), float_bits(x.at[3])}};
      *reinterpret_cast<held*>(first + (first_token + static_cast<std::int64_t>(token)) * stride + channel) = out;
    }
  }
};

// Tile 0 of what is read is tile `first_tile` of the ring of `tiles`.
template <class Tile>
struct raw_ring {
  static_assert(Tile::tokens == block_tokens && sizeof(typename Tile::scalar) == 2,
                "[pith] raw_ring<Tile>: raw tiles of 32 tokens in 16 bits.");
  std::byte const* ring;
  std::int64_t first_tile, tiles;

  template <int Channels, int Count, int Threads, class Put>
  PITH_HD void read(int thread, int first_token, Put const& put) const {
    static_assert(Channels == Tile::channels, "[pith] raw_ring<Tile>: a tile of another width is read from it.");
    constexpr int quads = Channels / 4;
    for (int block = 0; block < Count / block_tokens; ++block) {
      std::byte const* const tile = ring + (first_tile + first_token / block_tokens + block) % tiles * Tile::bytes;
      int const from = block * block_tokens;
      if constexpr (Tile::used_for == use::dot) {  // a word holds two channels of a token
        for_each_item<block_tokens * quads, Threads>(thread, [&](int i) {
          int const token = i % block_tokens, c = i / block_tokens * 4;
          std::byte const* const at = tile + 4 * (c / 2 * block_tokens + token);
          word2 const w{{load_word<std::uint32_t>(at), load_word<std::uint32_t>(at + 4 * block_tokens)}};
          put(from + token, c, unpack_quad<typename Tile::scalar>(w));
        });
      } else {  // and here two tokens of a channel
        for_each_item<block_tokens / 2 * quads, Threads>(thread, [&](int i) {
          int const pair = i / quads, c = i % quads * 4;
          word4 const w = load_word<word4>(tile + 4 * (pair * Channels + c));
          put(from + 2 * pair, c,
              unpack_quad<typename Tile::scalar>(word2{{pick_bytes(w.at[0], w.at[1], 0x5410), pick_bytes(w.at[2], w.at[3], 0x5410)}}));
          put(from + 2 * pair + 1, c,
              unpack_quad<typename Tile::scalar>(word2{{pick_bytes(w.at[0], w.at[1], 0x7632), pick_bytes(w.at[2], w.at[3], 0x7632)}}));
        });
      }
    }
  }
};

}  // namespace pith::device
