// SPDX-License-Identifier: Apache-2.0
// One 32-row block of a packed tile in shared memory, copied in the background by one warp.
//
//   | rows of words, a row is what lies next to each other in the tile | scales and zeros |
//
// Word rows are word_layout's: for dot 32 words (tokens) each, for mix one word for each channel. 16-byte granule p of a row lies at place
// p ^ (2 (key & 3)), key the row's number among those that the four lanes of a quad read together: every read of a warp is free of bank
// conflicts. Rows begin at multiples of 128 bytes.
#pragma once

#include "pith/codec/integer.hpp"
#include "pith/codec/raw.hpp"
#include "pith/cuda/thread.hpp"

namespace pith::device {

template <class Storage>
inline constexpr bool is_integer_tile = false;
template <int Bits, class Group, zero Zero, scale_scalar Scale, int Channels, int PageTokens, use Use>
inline constexpr bool is_integer_tile<integer_tile<Bits, Group, Zero, Scale, Channels, PageTokens, Use>> = true;
template <class Storage>
inline constexpr bool is_raw_tile = false;
template <storage_scalar T, int Channels, use Use, int Tokens>
inline constexpr bool is_raw_tile<raw_tile<T, Channels, Use, Tokens>> = sizeof(T) == 2;

// What kernels can multiply: integers of 2 to 8 bits (block floats among them) and 16-bit floats.
template <class Tile>
inline constexpr bool has_product_form = is_integer_tile<typename Tile::storage> || is_raw_tile<typename Tile::storage>;

template <class Storage>
struct tile_stage {
  static constexpr bool is_integer = is_integer_tile<Storage>;
  static constexpr bool for_dot = Storage::used_for == use::dot;
  // A raw tile of another length (the first tokens) is read in blocks of 32 tokens, the last one filled up with zeros.
  using layout = word_layout<Storage::layout::bits, Storage::channels, block_tokens, Storage::used_for>;
  static constexpr int rows = static_cast<int>(layout::bytes / 4 / layout::lanes);
  static constexpr int granules = layout::lanes / 4;  // of a row
  static constexpr int pitch = static_cast<int>(round_up(4 * layout::lanes, 128));
  static constexpr int codes_bytes = rows * pitch;
  static constexpr int parameter_bytes = [] {
    if constexpr (is_integer)
      return static_cast<int>(round_up(Storage::used - Storage::scale_at, 16));
    else
      return 0;
  }();
  static constexpr int bytes = static_cast<int>(round_up(codes_bytes + parameter_bytes, 128));
  static constexpr int per_word = layout::per_word;
  // Where the zeros begin, counted from the parameters.
  static constexpr int zero_at = [] {
    if constexpr (is_integer)
      return static_cast<int>(Storage::zero_at - Storage::scale_at);
    else
      return 0;
  }();

  static constexpr int key_period = for_dot || per_word >= 8 ? 4 : 32 / per_word;  // rows
  PITH_HD static constexpr int key_of(int row) noexcept { return (for_dot || per_word >= 8 ? row : row * per_word / 8) & 3; }
  PITH_HD static constexpr int place(int row, int granule) noexcept { return row * pitch + 16 * (granule ^ (2 * key_of(row))); }

  // By `Threads` threads, of which this is number `self`: a warp, or a block. `tile` is 16-byte aligned; `block` is the block of it. The copies
  // belong to the callers' open groups.
  template <int Threads, class Thread>
  PITH_HD static void start(Thread& t, int self, std::byte* stage, std::byte const* tile, int block) {
    constexpr int count = rows * granules, rows_at_once = Threads % granules == 0 ? Threads / granules : 0;
    std::byte const* const codes = tile + block * layout::bytes + 16 * self;
    if constexpr (rows_at_once > 0 && rows_at_once % key_period == 0) {  // the place only moves down
      std::byte* const to = stage + place(self / granules, self % granules);
      PITH_UNROLL for (int first = 0; first < count; first += Threads)
        if (count % Threads == 0 || first + self < count) t.copy16(to + first / granules * pitch, codes + 16 * first);
    } else {
      PITH_UNROLL for (int first = 0; first < count; first += Threads) {
        int const row = rows_at_once > 0 ? first / granules + self / granules : (first + self) / granules;
        int const granule = rows_at_once > 0 ? self % granules : (first + self) % granules;
        if (count % Threads == 0 || first + self < count) t.copy16(stage + place(row, granule), codes + 16 * first);
      }
    }
    if constexpr (is_integer) {
      constexpr int parameters = parameter_bytes / 16;
      PITH_UNROLL for (int first = 0; first < parameters; first += Threads) {
        if (parameters % Threads == 0 || first + self < parameters)
          t.copy16(stage + codes_bytes + 16 * self + 16 * first, tile + Storage::scale_at + 16 * self + 16 * first);
      }
    }
  }

  // The same for a raw tile of `tokens` tokens: its 32 from 32 block on, zeros behind its end.
  template <int Threads, class Thread>
  PITH_HD static void start_part(Thread& t, int self, std::byte* stage, std::byte const* tile, int block, int tokens) {
    int const row_bytes = for_dot ? 4 * tokens : 4 * layout::lanes;
    int const left = tokens - block_tokens * block;
    std::byte const* const codes = tile + (for_dot ? 4 * block_tokens * block : block_tokens / per_word * block * row_bytes);
    for (int at = self; at < rows * granules; at += Threads) {
      int const row = at / granules, granule = at % granules;
      if (for_dot ? 4 * granule < left : per_word * row < left)
        t.copy16(stage + place(row, granule), codes + row * row_bytes + 16 * granule);
      else
        t.clear16(stage + place(row, granule));
    }
  }
};

}  // namespace pith::device
