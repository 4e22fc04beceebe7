// SPDX-License-Identifier: Apache-2.0
// Where the code of (token, channel) lies in a block: the one index law of every packed format.
//
// A block holds `Tokens` tokens (32) of `Channels` channels in 32-bit little-endian words. One axis is packed into words, the other
// runs over neighbouring words (the lanes of a vector):
//
//   use::dot   packed = channel, lane = token      a word holds 32/Bits channels of one token
//   use::mix   packed = token,   lane = channel    a word holds 32/Bits tokens of one channel
//
//   word = packed / (32/Bits) * lanes + lane,   field = packed % (32/Bits)  at bits [field*Bits, (field+1)*Bits)
//
//   bits  31..28 27..24 23..20 19..16 15..12 11..8  7..4   3..0
//   4 bit  p+7    p+6    p+5    p+4    p+3    p+2    p+1    p        even fields: word & 0x0f0f0f0f, odd: word >> 4 & 0x0f0f0f0f
//
// 3, 5, 6 and 7 bits are planes, low bits first: 2 + 1, 4 + 1, 4 + 2, 4 + 2 + 1. The first plane lies as above; the higher ones follow,
// 32 / w codes of w bits to a word, in the order in which the first plane's codes come out of their words. Step n = 0, 1, ... of a lane
// takes four codes of a first-plane word, one from each byte b; their bits of a higher plane are bits 8b + w k .. of its word n / (8/w),
// k = n % (8/w), so that one shift lines all planes up byte by byte:
//
//   3 bit   codes p = 16W + 4b + s    step n = 4W + s    high bit: word p / 32, bit 8b + 4(W % 2) + s
//   6 bit   codes p =  8W + 2b + s    step n = 2W + s    high two: word p / 16, bits 8b + 2(2(W % 2) + s) and the next
#pragma once

#include <cstddef>
#include <cstdint>

#include "pith/codec/concept.hpp"
#include "pith/core/bits.hpp"

namespace pith {

// Bits of a code in the first plane.
template <int Bits>
inline constexpr int first_plane = Bits == 3              ? 2
                                   : Bits > 4 && Bits < 8 ? 4
                                                          : Bits;

template <int Bits, int Channels, int Tokens, use Use>
struct word_layout {
  static_assert((Bits >= 2 && Bits <= 8) || Bits == 16 || Bits == 32, "[pith] word_layout: 2 to 8, 16 or 32 bits.");
  static constexpr int bits = Bits;
  static constexpr int channels = Channels;
  static constexpr int tokens = Tokens;
  static constexpr int lanes = Use == use::dot ? Tokens : Channels;
  static constexpr int packed = Use == use::dot ? Channels : Tokens;
  static constexpr int planes = Bits == 7 ? 3 : Bits == 3 || Bits == 5 || Bits == 6 ? 2 : 1;
  static constexpr int plane_bits = first_plane<Bits>;
  static constexpr int per_word = 32 / plane_bits;                             // fields in a word of the first plane
  static constexpr int per_byte = plane_bits < 8 ? 8 / plane_bits : 1;         // its steps in a word
  static constexpr int words = static_cast<int>(divide_up(packed, per_word));  // words per lane, first plane

  // Of a plane: the bits of a code in it, the place of the lowest of them in the code, and the words per lane in front of it.
  PITH_HD static constexpr int bits_of(int plane) noexcept { return plane == 0 ? plane_bits : plane == 1 && Bits >= 6 ? 2 : 1; }
  PITH_HD static constexpr int place_of(int plane) noexcept { return plane == 0 ? 0 : plane == 1 ? plane_bits : plane_bits + 2; }
  PITH_HD static constexpr int words_before(int plane) noexcept {
    int sum = plane > 0 ? words : 0;
    for (int i = 1; i < plane; ++i) sum += static_cast<int>(divide_up(packed, 32 / bits_of(i)));
    return sum;
  }
  static constexpr std::int64_t bytes = 4ll * lanes * words_before(planes);

  PITH_HD static constexpr std::uint32_t get(std::byte const* block, int token, int channel) noexcept {
    int const p = Use == use::dot ? channel : token, lane = Use == use::dot ? token : channel;
    std::uint32_t const word = load_le<std::uint32_t>(block + 4ll * (p / per_word * lanes + lane));
    if constexpr (Bits == 32) {
      return word;
    } else {
      std::uint32_t code = field<plane_bits>(word, p % per_word);
      for (int plane = 1; plane < planes; ++plane) {
        std::uint32_t const high = load_le<std::uint32_t>(block + high_at(plane, p, lane));
        code |= (high >> high_bit(p, plane) & mask_of(plane)) << place_of(plane);
      }
      return code;
    }
  }

  // Sets one code of a block whose bytes were zero or are being replaced.
  PITH_HD static constexpr void set(std::byte* block, int token, int channel, std::uint32_t code) noexcept {
    int const p = Use == use::dot ? channel : token, lane = Use == use::dot ? token : channel;
    std::byte* const at = block + 4ll * (p / per_word * lanes + lane);
    if constexpr (Bits == 32) {
      store_le<std::uint32_t>(at, code);
    } else {
      store_le<std::uint32_t>(at, with_field<plane_bits>(load_le<std::uint32_t>(at), p % per_word, code & ((1u << plane_bits) - 1u)));
      for (int plane = 1; plane < planes; ++plane) {
        std::byte* const high = block + high_at(plane, p, lane);
        std::uint32_t const mask = mask_of(plane), others = load_le<std::uint32_t>(high) & ~(mask << high_bit(p, plane));
        store_le<std::uint32_t>(high, others | (code >> place_of(plane) & mask) << high_bit(p, plane));
      }
    }
  }

  // The lowest bit that belongs to packed index p in its word of a higher plane.
  PITH_HD static constexpr int high_bit(int p, int plane = 1) noexcept {
    int const step = p / per_word * per_byte + p % per_byte, byte = p % per_word / per_byte;
    return 8 * byte + bits_of(plane) * (step % (8 / bits_of(plane)));
  }

 private:
  PITH_HD static constexpr std::uint32_t mask_of(int plane) noexcept { return (1u << bits_of(plane)) - 1u; }
  PITH_HD static constexpr std::int64_t high_at(int plane, int p, int lane) noexcept {
    return 4ll * ((words_before(plane) + p / (32 / bits_of(plane))) * lanes + lane);
  }
};

}  // namespace pith
