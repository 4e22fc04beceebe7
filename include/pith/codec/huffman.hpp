// SPDX-License-Identifier: Apache-2.0
// huffman: codes the symbol bytes of a tile by a canonical Huffman code of at most 12 bits, cut into chunks that decode in parallel.
//
// The stream is read from the highest bit of its first byte on. It is cut into chunks of 32 bytes; a code belongs to the chunk it begins
// in, and a chunk's gap is the bit of it at which its first code begins. Two phases, each for all chunks at once: count the symbols of
// every chunk (count_chunk); their prefix sums say where its symbols go; decode again and write them (decode_chunk). On a host four runs of
// chunks are decoded in turn, because one code has to be known before the next one can be looked at; where the runs' symbols go is stored.
//
// bytes   of the tail; nothing is fixed
//         0        kind: 0 raw, 1 one symbol, 2 coded
//         raw      the symbols as they are: Count bytes
//         one      the symbol: 1 byte
//         coded    2, 3: bytes of the stream;   4 to 9: the place in the tile of the first symbol of runs 1 to 3, 16 bits each
//                  10: the set of symbols (codec/symbol_set.hpp);   then the length of each one's code, 4 bits, low half first
//                  then a gap for each chunk, 4 bits, low half first; then the stream, its last byte filled with zeros
//         A run is ceil(chunks / 4) chunks. Codes are given out by length, and within a length in the order of the set.
// cost    Count = 8192, 2.6 bits a symbol: gaps 0.041 bit a number, runs 0.006, head and table 0.016
//         lengths are the best of at most 12 bits (package-merge); 16 instead of 12 would save less than 0.0001 bit of exponents
// errors  any bytes that check passes decode to some symbols: nothing is read more than 40 bytes behind the tail
// from    Huffman, 1952; Larmore and Hirschberg, A Fast Algorithm for Optimal Length-Limited Huffman Codes, 1990, for the lengths;
//         Zhang et al., DFloat11, 2025, for gaps and two phases
// differs DFloat11: one code for a transformer block, at most 32 bits, chunks of 8 bytes with gaps of 5 bits (0.2 bit a number)
#pragma once

#include <cstring>

#include "pith/codec/symbol_set.hpp"
#include "pith/core/bits.hpp"

namespace pith {

inline constexpr int huffman_longest = 12;  // bits of a code
inline constexpr int huffman_chunk = 32;    // bytes of the stream

// What 12 bits begin with: the length of the code, and its symbol << 8.
struct huffman_table {
  std::uint16_t entry[1 << huffman_longest];
};

// Whether the Kraft sum of the lengths is one, and each of them 1 to 12: then every 12 bits begin with one code.
template <class Lengths>
PITH_HD constexpr bool huffman_complete(Lengths const& lengths, int number) noexcept {
  int sum = 0;
  for (int i = 0; i < number; ++i) {
    if (lengths[i] < 1 || lengths[i] > huffman_longest) return false;
    sum += 1 << (huffman_longest - lengths[i]);
  }
  return sum == 1 << huffman_longest;
}

// Gives out the codes: take(length) is the next one of that length, filled with zeros to 12 bits.
struct huffman_codes {
  int next[huffman_longest + 2]{};

  template <class Lengths>
  PITH_HD constexpr huffman_codes(Lengths const& lengths, int number) noexcept {
    for (int i = 0; i < number; ++i) next[lengths[i] + 1] += 1 << (huffman_longest - lengths[i]);
    for (int length = 1; length <= huffman_longest; ++length) next[length + 1] += next[length];
  }
  PITH_HD constexpr int take(int length) noexcept {
    int const first = next[length];
    next[length] += 1 << (huffman_longest - length);
    return first;
  }
};

// Eight bytes of the stream from a bit on, that bit the highest; 57 bits of them or more are the stream's.
PITH_HD constexpr std::uint64_t load_bits(std::byte const* stream, std::uint32_t bit) noexcept {
  std::byte const* const p = stream + bit / 8;
  std::uint64_t const word = static_cast<std::uint64_t>(p[0]) << 56 | static_cast<std::uint64_t>(p[1]) << 48 |
                             static_cast<std::uint64_t>(p[2]) << 40 | static_cast<std::uint64_t>(p[3]) << 32 |
                             static_cast<std::uint64_t>(p[4]) << 24 | static_cast<std::uint64_t>(p[5]) << 16 |
                             static_cast<std::uint64_t>(p[6]) << 8 | static_cast<std::uint64_t>(p[7]);
  return word << bit % 8;
}

// Phase one: how many codes begin in a chunk. Of the last chunk's, those behind the tile's last symbol are no symbols.
// Reads up to 7 bytes behind the chunk; the last one's 32 bytes may end behind the tail.
PITH_HD constexpr int count_chunk(std::byte const* stream, int chunk, int gap, huffman_table const& table) noexcept {
  std::uint32_t const end = static_cast<std::uint32_t>(chunk + 1) * (8 * huffman_chunk);
  int number = 0;
  for (std::uint32_t bit = end - 8 * huffman_chunk + static_cast<std::uint32_t>(gap); bit < end; ++number)
    bit += table.entry[load_bits(stream, bit) >> (64 - huffman_longest)] & 255;
  return number;
}

// Phase two: the same codes' symbols, from `place` on, none at or behind `count`.
PITH_HD constexpr void decode_chunk(std::byte const* stream, int chunk, int gap, huffman_table const& table, int place, int count,
                                    std::uint8_t* symbols) noexcept {
  std::uint32_t const end = static_cast<std::uint32_t>(chunk + 1) * (8 * huffman_chunk);
  for (std::uint32_t bit = end - 8 * huffman_chunk + static_cast<std::uint32_t>(gap); bit < end && place < count; ++place) {
    std::uint16_t const entry = table.entry[load_bits(stream, bit) >> (64 - huffman_longest)];
    symbols[place] = static_cast<std::uint8_t>(entry >> 8);
    bit += entry & 255;
  }
}

// Fields of 4 bits, low half first.
struct nibbles {
  std::byte const* from;
  PITH_HD constexpr int operator[](int i) const noexcept { return static_cast<int>(from[i / 2]) >> (i % 2 * 4) & 15; }
};

// Where a coded tail keeps what.
struct huffman_layout {
  symbol_set set;
  int chunks, stream_bytes;
  std::byte const *symbols, *stream;
  nibbles lengths, gaps;

  // Of a tail that has passed check, or any bytes: false if they are no such tail. Lengths are not looked at.
  PITH_HD constexpr bool load(std::byte const* tail, std::int64_t bytes) noexcept {
    if (bytes < 11) return false;
    symbols = tail + 10;
    set = load_symbols(symbols, bytes - 10);
    stream_bytes = load_le<std::uint16_t>(tail + 2);
    chunks = static_cast<int>(divide_up(stream_bytes, huffman_chunk));
    lengths = {symbols + set.bytes};
    gaps = {lengths.from + divide_up(set.number, 2)};
    stream = gaps.from + divide_up(chunks, 2);
    return set.number >= 2 && stream_bytes >= 1 && bytes == stream + stream_bytes - tail;
  }
  PITH_HD constexpr void fill(huffman_table& table) const noexcept {
    huffman_codes codes(lengths, set.number);
    each_symbol(symbols, [&](int i, std::uint8_t symbol) {
      int const length = lengths[i], first = codes.take(length);
      std::uint16_t const entry = static_cast<std::uint16_t>(length | symbol << 8);
      for (int k = 0; k < 1 << (huffman_longest - length); ++k) table.entry[first + k] = entry;
    });
  }
};

// The lengths of a code of at most Longest bits that costs the fewest bits: package-merge. counts: at least 1 each, 2 to 256 of them.
template <int Longest = huffman_longest>
constexpr void huffman_lengths(std::uint32_t const* counts, int number, std::uint8_t* lengths) noexcept {
  static_assert(Longest >= 8, "[pith] huffman_lengths<Longest>: 256 symbols need codes of 8 bits. Fix: 8 or more.");
  std::uint16_t order[256]{};  // by count, the rarest first; among equals by place
  for (int i = 0; i < number; ++i) {
    int at = i;
    for (; at > 0 && counts[order[at - 1]] > counts[i]; --at) order[at] = order[at - 1];
    order[at] = static_cast<std::uint16_t>(i);
    lengths[i] = 0;
  }
  // Row by row, from the longest code on: all symbols and the pairs of the row before, by weight; a symbol before a pair of equal weight.
  bool is_pair[Longest][512]{};
  std::uint64_t row[512]{}, pairs[256]{};
  int many = 0;
  for (int level = 0; level < Longest; ++level) {
    int const pair_number = many / 2;
    for (int i = 0; i < pair_number; ++i) pairs[i] = row[2 * i] + row[2 * i + 1];
    int leaf = 0, pair = 0;
    for (many = 0; leaf < number || pair < pair_number; ++many) {
      bool const take_pair = leaf == number || (pair < pair_number && pairs[pair] < counts[order[leaf]]);
      is_pair[level][many] = take_pair;
      row[many] = take_pair ? pairs[pair++] : counts[order[leaf++]];
    }
  }
  // The first 2 number - 2 of the last row are bought, with all that they are made of: each time a symbol is, its code grows by a bit.
  int bought = 2 * number - 2;
  for (int level = Longest - 1; level >= 0; --level) {
    int leaves = 0;
    for (int i = 0; i < bought; ++i)
      if (!is_pair[level][i]) ++lengths[order[leaves++]];
    bought = 2 * (bought - leaves);
  }
}

template <int Count>
struct huffman_tile {
  static_assert(Count >= 1024 && Count <= 32768 && Count % 1024 == 0,
                "[pith] huffman: a tile has 1024 to 32768 numbers, a multiple of 1024. Fix: 32 rows of 256.");

  static constexpr int runs = 4;
  static constexpr std::int64_t fixed_bytes = 0;
  static constexpr std::int64_t tail_bound = Count + 1;

  static std::int64_t encode(std::uint8_t const* symbols, std::byte*, std::byte* tail) noexcept {
    std::uint32_t counts[256], entry_counts[256]{};
    count_symbols(symbols, Count, counts);
    if (counts[symbols[0]] == Count) return tail[0] = std::byte{1}, tail[1] = std::byte{symbols[0]}, 2;

    std::byte stored[257];
    symbol_set const set = store_symbols([&](int s) { return counts[s] > 0; }, stored);
    each_symbol(stored, [&](int i, std::uint8_t symbol) { entry_counts[i] = counts[symbol]; });
    std::uint8_t lengths[256];
    huffman_lengths(entry_counts, set.number, lengths);
    std::int64_t bits = 0;
    for (int i = 0; i < set.number; ++i) bits += std::int64_t{entry_counts[i]} * lengths[i];
    std::int64_t const stream_bytes = divide_up(bits, 8), chunks = divide_up(stream_bytes, huffman_chunk);
    std::int64_t const codes = 10 + set.bytes, gaps = codes + divide_up(set.number, 2), stream = gaps + divide_up(chunks, 2);
    if (stream + stream_bytes > Count) {
      tail[0] = std::byte{0};
      memcpy(tail + 1, symbols, Count);
      return 1 + Count;
    }
    memset(tail, 0, static_cast<std::size_t>(stream));
    tail[0] = std::byte{2};
    store_le(tail + 2, static_cast<std::uint16_t>(stream_bytes));
    memcpy(tail + 10, stored, static_cast<std::size_t>(set.bytes));
    for (int i = 0; i < set.number; ++i) tail[codes + i / 2] |= static_cast<std::byte>(lengths[i] << (i % 2 * 4));

    struct code {
      std::uint32_t bits, length;
    } code_of[256];
    huffman_codes next(lengths, set.number);
    each_symbol(stored, [&](int i, std::uint8_t symbol) {
      int const length = lengths[i];
      code_of[symbol] = {static_cast<std::uint32_t>(next.take(length)) >> (huffman_longest - length), static_cast<std::uint32_t>(length)};
    });
    // The highest `filled` bits of `word` are not stored yet.
    std::uint64_t word = 0;
    std::uint32_t filled = 0, bit = 0, next_chunk = 0;
    std::int64_t const run_chunks = divide_up(chunks, runs);
    std::byte* to = tail + stream;
    for (int i = 0; i < Count; ++i) {
      if (bit >= next_chunk * (8 * huffman_chunk)) {
        tail[gaps + next_chunk / 2] |= static_cast<std::byte>(bit % (8 * huffman_chunk) << (next_chunk % 2 * 4));
        if (next_chunk > 0 && next_chunk % run_chunks == 0)
          store_le(tail + 2 + 2 * (next_chunk / run_chunks), static_cast<std::uint16_t>(i));
        ++next_chunk;
      }
      code const c = code_of[symbols[i]];
      word |= static_cast<std::uint64_t>(c.bits) << (64 - filled - c.length);
      filled += c.length;
      bit += c.length;
      for (; filled >= 32; filled -= 32, word <<= 32, to += 4) store_le(to, __builtin_bswap32(static_cast<std::uint32_t>(word >> 32)));
    }
    for (std::uint32_t k = 0; k < filled; k += 8, word <<= 8) *to++ = static_cast<std::byte>(word >> 56);
    // A last chunk in which no code begins, and runs of no chunks, are behind all symbols.
    if (next_chunk < chunks) tail[gaps + next_chunk / 2] |= static_cast<std::byte>(bit % (8 * huffman_chunk) << (next_chunk % 2 * 4));
    for (int r = 1; r < runs; ++r)
      if (r * run_chunks >= next_chunk) store_le(tail + 2 + 2 * r, static_cast<std::uint16_t>(Count));
    return stream + stream_bytes;
  }

  static void decode(std::byte const*, std::byte const* tail, std::int64_t tail_bytes, std::uint8_t* symbols) noexcept {
    if (tail[0] == std::byte{0}) return void(memcpy(symbols, tail + 1, Count));
    if (tail[0] == std::byte{1}) return void(memset(symbols, static_cast<int>(tail[1]), Count));
    huffman_layout at;
    huffman_table table;
    if (!at.load(tail, tail_bytes)) return;
    at.fill(table);

    std::uint32_t const limit = 8 * static_cast<std::uint32_t>(at.stream_bytes);
    int const run_chunks = static_cast<int>(divide_up(at.chunks, runs));
    std::uint32_t bit[runs];
    std::uint8_t *to[runs], *end[runs];
    std::int64_t least = Count;
    for (int r = 0; r < runs; ++r) {
      int const chunk = r * run_chunks < at.chunks ? r * run_chunks : at.chunks - 1;
      bit[r] = static_cast<std::uint32_t>(chunk) * (8 * huffman_chunk) + static_cast<std::uint32_t>(at.gaps[chunk]);
      to[r] = symbols + place(tail, r);
      end[r] = symbols + place(tail, r + 1);
      least = end[r] - to[r] < least ? end[r] - to[r] : least;
    }
    // 57 bits hold four codes. The four runs' loads wait for each other's shifts only.
    auto decode_four = [&](std::uint32_t& from, std::uint8_t* out) {
      std::uint64_t word = load_bits(at.stream, from < limit ? from : limit);
      std::uint32_t sum = 0;
      PITH_UNROLL
      for (int k = 0; k < 4; ++k) {
        std::uint32_t const entry = table.entry[word >> (64 - huffman_longest)];
        out[k] = static_cast<std::uint8_t>(entry >> 8);
        word <<= entry & 63;
        sum += entry;
      }
      from += sum & 255;
    };
    for (std::int64_t i = 0; i + 4 <= least; i += 4) {
      PITH_UNROLL
      for (int r = 0; r < runs; ++r) decode_four(bit[r], to[r] + i);
    }
    for (int r = 0; r < runs; ++r) {
      std::uint8_t* out = to[r] + least / 4 * 4;
      for (; end[r] - out >= 4; out += 4) decode_four(bit[r], out);
      std::uint8_t rest[4];
      decode_four(bit[r], rest);
      for (int k = 0; out < end[r]; ++k) *out++ = rest[k];
    }
  }

  static bool check(std::byte const*, std::byte const* tail, std::int64_t tail_bytes) noexcept {
    if (tail_bytes < 2 || tail_bytes > tail_bound) return false;
    int const kind = static_cast<int>(tail[0]);
    if (kind < 2) return tail_bytes == (kind == 0 ? 1 + Count : 2);
    huffman_layout at;
    if (kind > 2 || !at.load(tail, tail_bytes) || !huffman_complete(at.lengths, at.set.number)) return false;
    for (int r = 0; r < runs; ++r)
      if (place(tail, r) > place(tail, r + 1)) return false;
    return true;
  }

 private:
  static int place(std::byte const* tail, int run) noexcept {
    return run == 0 ? 0 : run == runs ? Count : load_le<std::uint16_t>(tail + 2 + 2 * run);
  }
};

// The coder of dynamic_float whose code is DFloat11's kind: a prefix code, decoded in parallel from any chunk.
struct huffman {
  template <int Count>
  using bind = huffman_tile<Count>;
};

}  // namespace pith
