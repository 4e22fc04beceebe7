// SPDX-License-Identifier: Apache-2.0
// The symbols of huffman (codec/huffman.hpp) by a block of threads, in DFloat11's two phases.
//
//   table     4096 entries in shared memory, code after code by all threads
//   count     a thread takes a chunk of 32 bytes: how many codes begin in it; sums over the chunks before it say where they go
//   write     decodes its chunk again, to shared memory
//
// errors  any bytes: what codec/huffman.hpp's check refuses is refused before the first symbol. Reads up to 48 bytes behind the tail
// cost    a tile of 8192 symbols of 2.6 bits has 84 chunks; a thread's four codes are one read of the stream and four of the table
// from    Zhang et al., DFloat11, 2025
#pragma once

#include "pith/codec/huffman.hpp"
#include "pith/cuda/decode_floats.hpp"

namespace pith::device {

template <class Tile>
struct coder_symbols<Tile, huffman> {
  static constexpr int count = Tile::count;
  static constexpr int threads = count <= 8192 ? 128 : 256, part = count, warps = threads / warp_lanes;
  static constexpr int table_at = static_cast<int>(round_up(count, 16)), sums_at = table_at + static_cast<int>(sizeof(huffman_table));
  static constexpr int code_at = sums_at + 4 * warps;  // of each symbol of the set: first entry, length, symbol
  static constexpr int shared_bytes = code_at + 4 * 256;

  template <class Thread>
  PITH_HD bool open(Thread& t, int self, std::byte const*, std::byte const* tail, std::int64_t tail_bytes, std::byte* shared) {
    tail_ = tail;
    kind_ = tail_bytes < 2 ? 255 : static_cast<int>(tail[0]);
    bool good = kind_ < 2 ? tail_bytes == (kind_ == 0 ? 1 + count : 2) : kind_ == 2 && layout_.load(tail, tail_bytes);
    if (good && kind_ == 2) {
      good = huffman_complete(layout_.lengths, layout_.set.number);
      for (int run = 0, before = 0; run < huffman_tile<count>::runs - 1; ++run) {
        int const place = word_at(tail + 4 + 2 * run);
        good = good && before <= place && place <= count;
        before = place;
      }
    }
    if (t.shuffle(static_cast<int>(good), 0) == 0) return false;  // the same in all threads: they read the same bytes
    if (kind_ == 2) fill(t, self, shared);
    return true;
  }

  template <class Thread>
  PITH_HD void read(Thread& t, int self, std::byte const*, int, std::byte* shared) {
    auto const* const table = reinterpret_cast<std::uint16_t const*>(shared + table_at);
    auto* const sums = reinterpret_cast<int*>(shared + sums_at);
    if (t.shuffle(kind_, 0) < 2) {
      for (int i = self; i < count; i += threads) shared[i] = kind_ == 0 ? tail_[1 + i] : tail_[1];
      return;
    }
    int const chunks = t.shuffle(layout_.chunks, 0);
    for (int first = 0, place = 0; first < chunks; first += threads) {
      int const chunk = first + self;
      bool const mine = chunk < chunks;
      int const number = mine ? walk(chunk, table, [](int, std::uint32_t) {}) : 0;
      lane_sum const in_warp = sum_before(t, number);
      if (t.lane() == 0) sums[t.warp()] = in_warp.total;
      t.sync();
      int before = place + in_warp.before;
      PITH_UNROLL for (int w = 0; w < warps; ++w) {
        if (w < t.warp()) before += sums[w];
        place += sums[w];
      }
      if (mine)
        walk(chunk, table, [&](int i, std::uint32_t symbol) {
          if (before + i < count) shared[before + i] = static_cast<std::byte>(symbol);
        });
      t.sync();
    }
  }
  PITH_HD static std::uint32_t at(std::byte const* shared, int i) { return static_cast<std::uint32_t>(shared[i]); }
  PITH_HD bool finished() const { return true; }  // all that check asks for was asked in open

 private:
  PITH_HD static int word_at(std::byte const* at) { return static_cast<int>(at[0]) | static_cast<int>(at[1]) << 8; }

  // Codes are given out by length, and within a length in the order of the set: each thread finds the first entry of its own symbols.
  template <class Thread>
  PITH_HD void fill(Thread& t, int self, std::byte* shared) const {
    auto* const codes = reinterpret_cast<std::uint32_t*>(shared + code_at);
    auto* const table = reinterpret_cast<std::uint16_t*>(shared + table_at);
    int const number = layout_.set.number;
    each_symbol(layout_.symbols, [&](int i, std::uint8_t symbol) {
      if (i % threads != self) return;
      int const length = layout_.lengths[i];
      std::uint32_t first = 0;
      for (int k = 0; k < number; ++k) {
        int const other = layout_.lengths[k];
        if (other < length || (other == length && k < i)) first += 1u << (huffman_longest - other);
      }
      codes[i] = first << 16 | static_cast<std::uint32_t>(symbol) << 8 | static_cast<std::uint32_t>(length);
    });
    t.sync();
    for (int i = 0; i < number; ++i) {
      std::uint32_t const code = codes[i];
      int const entries = 1 << (huffman_longest - static_cast<int>(code & 255u));
      for (int k = self; k < entries; k += threads) table[(code >> 16) + static_cast<unsigned>(k)] = static_cast<std::uint16_t>(code);
    }
    t.sync();
  }

  // Every code that begins in a chunk: use(its number in the chunk, symbol). How many there are.
  template <class Use>
  PITH_HD int walk(int chunk, std::uint16_t const* table, Use const& use) const {
    auto const past = static_cast<unsigned>(reinterpret_cast<std::uintptr_t>(layout_.stream) % 4);
    std::byte const* const words = layout_.stream - past;
    unsigned const begin = 8u * huffman_chunk * static_cast<unsigned>(chunk), end = begin + 8u * huffman_chunk;
    int number = 0;
    for (unsigned bit = begin + static_cast<unsigned>(layout_.gaps[chunk]); bit < end;) {
      std::uint64_t window = from_bit(words, bit + 8 * past);
      PITH_UNROLL for (int k = 0; k < 4; ++k)  // four codes have 48 bits at most
          if (bit < end) {
        std::uint32_t const entry = table[window >> (64 - huffman_longest)];
        use(number++, entry >> 8);
        window <<= entry & 15u;
        bit += entry & 15u;
      }
    }
    return number;
  }
  // 64 bits of a stream that goes from a byte's highest bit on; 57 or more are right.
  PITH_HD static std::uint64_t from_bit(std::byte const* words, unsigned bit) {
    std::byte const* const at = words + bit / 32 * 4;
    std::uint32_t word[3];
    PITH_UNROLL for (int i = 0; i < 3; ++i) word[i] = pick_bytes(load_word<std::uint32_t>(at + 4 * i), 0, 0x0123);
    std::uint64_t const high = static_cast<std::uint64_t>(word[0]) << 32 | word[1];
    unsigned const shift = bit % 32;
    return shift == 0 ? high : high << shift | word[2] >> (32 - shift);
  }

  std::byte const* tail_ = nullptr;
  huffman_layout layout_{};
  int kind_ = 0;
};

}  // namespace pith::device
