// SPDX-License-Identifier: Apache-2.0
// The default coder of exponents: two bits and the sign for what lies in the six exponents from its row's start on; escapes for the rest.
//
//   symbol = sign << 7 | h, h = (e - start) / 2:   h = 0, 1, 2 -> code h;   any other h -> code 3, and an escape
//   escape    1 bit: h is common[0], or not; then 2 bits: common[1..3], or none of them; then a byte: h
//   raw       where escapes would take a byte a number or more: all symbols as they are, and planes of zeros
//
// The exponent's lowest bit stands with the mantissa and is not coded: six neighbours of uneven frequency in three pairs.
// Numbers come in groups of 64. A group is three 64-bit planes: the signs, and the codes' low and high bits; bit j is number j's. So a
// vector processor turns planes into bytes by one transposition of bits, and where both planes of the code have a bit the next escape goes.
//
// bytes   24 a group beside its rests. tail: | common, 4 | escapes, u16 | 1 bit for every escape | 2 bits for every further one | bytes h,
// the last one
//         first |, bits from a byte's lowest on, filled up with zeros. Sign and exponent take 4 + (1 - p6) + 2 u + 8 v bits a number (p6:
//         share of the six, u: of escapes that are not common[0], v: of those that are none of the four), at most 12. A tail of as many
//         bytes as numbers is a raw one
// cost    one count of bits a group gives the place of the next group's escapes
// from    ZipServ (three bit planes, neighbouring exponents), 2025. differs: a start for each row, a pair of exponents a code, dense
// mantissas,
//         escapes of two stages
#pragma once

#include <bit>
#include <cstring>

#include "pith/codec/byte_escapes.hpp"

namespace pith {

struct exponent_window {
  static constexpr int span = 6;             // exponents that the codes cover, from a row's start on
  static constexpr bool takes_pairs = true;  // symbols are sign << 7 | exponent / 2

  template <int Count>
  struct bind {
    static_assert(Count % 64 == 0 && Count <= 32768);
    static constexpr int groups = Count / 64;
    static constexpr std::int64_t section_bytes = 8 * 24;  // of 512 numbers
    static constexpr std::int64_t tail_bound = Count;
    using parts = byte_escapes;  // of a tail that is not raw

    // Plane k of a group; sections lie `stride` apart.
    PITH_HD static constexpr std::int64_t plane_at(int group, int k, std::int64_t stride) noexcept {
      return group / 8 * stride + 24 * (group % 8) + 8 * k;
    }

    static std::int64_t encode(std::uint8_t const* symbols, std::byte* planes, std::int64_t stride, std::byte* tail) noexcept {
      std::uint8_t escape[Count + 64];
      int escapes = 0;
      for (int g = 0; g < groups; ++g) {
        std::uint64_t plane[3]{};
        for (int j = 0; j < 64; ++j) {
          unsigned const symbol = symbols[64 * g + j], h = symbol & 127u, code = h < 3 ? h : 3u;
          plane[0] |= static_cast<std::uint64_t>(symbol >> 7) << j;
          plane[1] |= static_cast<std::uint64_t>(code & 1u) << j;
          plane[2] |= static_cast<std::uint64_t>(code >> 1) << j;
          escape[escapes] = static_cast<std::uint8_t>(h);
          escapes += code == 3;
        }
        for (int k = 0; k < 3; ++k) store_le(planes + plane_at(g, k, stride), plane[k]);
      }
      std::int64_t const bytes = encode_escapes(escape, escapes, tail);
      return bytes < 0 ? store_raw(symbols, planes, stride, tail) : bytes;
    }

    static void decode(std::byte const* planes, std::int64_t stride, std::byte const* tail, std::int64_t tail_bytes,
                       std::uint8_t* symbols) noexcept {
      if (tail_bytes == tail_bound) return void(std::memcpy(symbols, tail, Count));
      byte_escapes::reader escapes(tail, tail_bytes);
      for (int g = 0; g < groups; ++g) {
        std::byte const* const plane = planes + plane_at(g, 0, stride);
        auto const sign = load_le<std::uint64_t>(plane), low = load_le<std::uint64_t>(plane + 8), high = load_le<std::uint64_t>(plane + 16);
        for (int j = 0; j < 64; ++j) {
          std::uint64_t h = (high >> j & 1) << 1 | (low >> j & 1);
          if (h == 3) h = escapes.next();
          symbols[64 * g + j] = static_cast<std::uint8_t>((sign >> j & 1) << 7 | (h & 127u));
        }
      }
    }

    static bool check(std::byte const* planes, std::int64_t stride, std::byte const* tail, std::int64_t tail_bytes) noexcept {
      if (tail_bytes == tail_bound) return true;
      if (tail_bytes > tail_bound) return false;
      int escapes = 0;
      for (int g = 0; g < groups; ++g)
        escapes += std::popcount(load_le<std::uint64_t>(planes + plane_at(g, 1, stride)) &
                                 load_le<std::uint64_t>(planes + plane_at(g, 2, stride)));
      return byte_escapes::check(tail, tail_bytes, escapes);
    }

    using ranking = byte_escapes::ranking<3, 128>;

    // -1: they take no less than raw symbols.
    static std::int64_t encode_escapes(std::uint8_t const* h, int escapes, std::byte* tail) noexcept {
      return byte_escapes::encode<3, 128>(h, escapes, tail, tail_bound);
    }

    static std::int64_t store_raw(std::uint8_t const* symbols, std::byte* planes, std::int64_t stride, std::byte* tail) noexcept {
      for (int g = 0; g < groups; ++g) std::memset(planes + plane_at(g, 0, stride), 0, 24);
      std::memcpy(tail, symbols, Count);
      return Count;
    }
  };
};

}  // namespace pith
