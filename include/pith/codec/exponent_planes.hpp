// SPDX-License-Identifier: Apache-2.0
// The coder of exponents that takes the fewest bits at the speed of vectors: a prefix code, whose bits stand in planes by their place in
// it.
//
//   table[0..2]   2 bits: 0, 1, 2               table[3]   3 | 0
//   table[4..6]   3 | 1 | 2 bits: 0, 1, 2       any other  3 | 1 | 3, and an escape (codec/byte_escapes.hpp): 6 bits and more
//   raw           where that would take a byte a number or more: all symbols as they are, and planes of zeros
//
// table: the tile's seven most frequent symbols. Numbers come in groups of 64; bit j of a group's two planes is number j's. The further
// bits are three streams that go on from group to group, each with a bit for every number that has it. So every level is 64 codes at a
// time, and what they do not say are the next bytes of the level below, expanded into the places of a mask; or its bits are deposited in
// that mask.
//
// bytes   16 a group beside its rests. tail: | table, 7 | others, u16 | further, u16 | 1 bit for each of the others, what is not in
//         table[0..2] | low bits of the further ones, not in table[3] | high bits | escapes |, bits from a byte's lowest on, each part
//         filled up with zeros. A tail of as many bytes as numbers is a raw one
// cost    2 + o + 2 f + e bits a number and its escapes' (o, f, e: shares of others, further ones and escapes), 17 bytes a tile: 2.65 bits
// for
//         exponents of gaussian rows in tiles of 32 x 256, 0.07 above their entropy
// from    ZipServ (codes in bit planes), 2025; Huffman, 1952. differs: a code of several lengths, its rarer bits packed
#pragma once

#include <bit>
#include <cstring>

#include "pith/codec/byte_escapes.hpp"

namespace pith {

struct exponent_planes {
  static constexpr int span = 4;  // exponents that a row's start is chosen for: where gaussian rows come out shortest

  template <int Count>
  struct bind {
    static_assert(Count >= 512 && Count <= 32768 && Count % 512 == 0,
                  "[pith] exponent_planes: a tile has 512 to 32768 numbers, a multiple of 512. Fix: 32 rows of 256.");
    static constexpr int groups = Count / 64, entries = 7;
    static constexpr std::int64_t section_bytes = 8 * 16;  // of 512 numbers
    static constexpr std::int64_t tail_bound = Count;
    static constexpr std::int64_t streams_at = entries + 4;  // of the tail

    // Plane k of a group; sections lie `stride` apart.
    static constexpr std::int64_t plane_at(int group, int k, std::int64_t stride) noexcept {
      return group / 8 * stride + 16 * (group % 8) + 8 * k;
    }

    // The places of a tail's parts.
    struct places {
      int other_bits, further_bits;
      std::int64_t low, high, escapes;
      constexpr places(int others, int further) noexcept
          : other_bits(others),
            further_bits(further),
            low(streams_at + divide_up(others, 8)),
            high(low + divide_up(further, 8)),
            escapes(high + divide_up(further, 8)) {}
      static places of(std::byte const* tail) noexcept {
        return {load_le<std::uint16_t>(tail + entries), load_le<std::uint16_t>(tail + entries + 2)};
      }
    };

    static std::int64_t encode(std::uint8_t const* symbols, std::byte* planes, std::int64_t stride, std::byte* tail) noexcept {
      std::uint16_t counts[256]{};
      std::uint8_t rank[256];
      for (int i = 0; i < Count; ++i) ++counts[symbols[i]];
      std::memset(rank, entries, sizeof rank);
      int left[entries + 1]{Count};  // numbers that are none of the first entries
      for (int k = 0; k < entries; ++k) {
        int most = 0;  // the first among equals
        for (int i = 1; i < 256; ++i)
          if (counts[i] > counts[most]) most = i;
        tail[k] = static_cast<std::byte>(most);
        if (counts[most] > 0) rank[most] = static_cast<std::uint8_t>(k);
        left[k + 1] = left[k] - counts[most];
        counts[most] = 0;
      }
      places const at(left[3], left[4]);
      store_le(tail + entries, static_cast<std::uint16_t>(left[3]));
      store_le(tail + entries + 2, static_cast<std::uint16_t>(left[4]));
      std::memset(tail + streams_at, 0, static_cast<std::size_t>(at.escapes - streams_at));

      // Every level's list without a branch: the next number overwrites one that does not belong.
      std::uint8_t other[Count + 1], escape[Count + 1];
      int others = 0, further = 0, escapes = 0;
      for (int g = 0; g < groups; ++g) {
        std::uint64_t plane[2]{};
        for (int j = 0; j < 64; ++j) {
          std::uint8_t const symbol = symbols[64 * g + j];
          unsigned const r = rank[symbol], code = r < 3 ? r : 3u;
          plane[0] |= static_cast<std::uint64_t>(code & 1u) << j;
          plane[1] |= static_cast<std::uint64_t>(code >> 1) << j;
          other[others] = static_cast<std::uint8_t>(r);
          others += r >= 3;
          escape[escapes] = symbol;
          escapes += r == entries;
        }
        for (int k = 0; k < 2; ++k) store_le(planes + plane_at(g, k, stride), plane[k]);
      }
      for (int i = 0; i < others; ++i) {
        unsigned const r = other[i];
        put(tail + streams_at, i, r > 3);
        other[further] = static_cast<std::uint8_t>(r - 4u);
        further += r > 3;
      }
      for (int i = 0; i < further; ++i) {
        put(tail + at.low, i, other[i] & 1u);
        put(tail + at.high, i, other[i] >> 1);
      }
      std::int64_t const bytes = byte_escapes::encode<0, 256>(escape, escapes, tail + at.escapes, tail_bound - at.escapes);
      return bytes < 0 ? store_raw(symbols, planes, stride, tail) : at.escapes + bytes;
    }

    static void decode(std::byte const* planes, std::int64_t stride, std::byte const* tail, std::int64_t tail_bytes,
                       std::uint8_t* symbols) noexcept {
      if (tail_bytes == tail_bound) return void(std::memcpy(symbols, tail, Count));
      places const at = places::of(tail);
      byte_escapes::reader escapes(tail + at.escapes, tail_bytes - at.escapes);
      int others = 0, further = 0;
      for (int g = 0; g < groups; ++g) {
        auto const low = load_le<std::uint64_t>(planes + plane_at(g, 0, stride)),
                   high = load_le<std::uint64_t>(planes + plane_at(g, 1, stride));
        for (int j = 0; j < 64; ++j) {
          std::uint64_t r = (high >> j & 1) << 1 | (low >> j & 1);
          if (r == 3 && bit(tail + streams_at, others++)) {
            r = 4 + (bit(tail + at.high, further) << 1 | bit(tail + at.low, further));
            ++further;
          }
          symbols[64 * g + j] = static_cast<std::uint8_t>(r < entries ? static_cast<unsigned>(tail[r]) : escapes.next());
        }
      }
    }

    static bool check(std::byte const* planes, std::int64_t stride, std::byte const* tail, std::int64_t tail_bytes) noexcept {
      if (tail_bytes == tail_bound) return true;
      if (tail_bytes < streams_at || tail_bytes > tail_bound) return false;
      places const at = places::of(tail);
      int others = 0, further = 0, escapes = 0;
      for (int g = 0; g < groups; ++g)
        others += std::popcount(load_le<std::uint64_t>(planes + plane_at(g, 0, stride)) &
                                load_le<std::uint64_t>(planes + plane_at(g, 1, stride)));
      if (load_le<std::uint16_t>(tail + entries) != others || at.escapes > tail_bytes) return false;
      for (int i = 0; i < others; ++i) further += bit(tail + streams_at, i);
      if (load_le<std::uint16_t>(tail + entries + 2) != further) return false;
      for (int i = 0; i < further; ++i) escapes += bit(tail + at.low, i) & bit(tail + at.high, i);
      return byte_escapes::check(tail + at.escapes, tail_bytes - at.escapes, escapes);
    }

   private:
    static unsigned bit(std::byte const* from, int i) noexcept { return byte_escapes::bits<1>(from, i); }
    static void put(std::byte* to, int i, unsigned one) noexcept { to[i / 8] |= static_cast<std::byte>(one << i % 8); }

    static std::int64_t store_raw(std::uint8_t const* symbols, std::byte* planes, std::int64_t stride, std::byte* tail) noexcept {
      for (int g = 0; g < groups; ++g) std::memset(planes + plane_at(g, 0, stride), 0, 16);
      std::memcpy(tail, symbols, Count);
      return Count;
    }
  };
};

}  // namespace pith
