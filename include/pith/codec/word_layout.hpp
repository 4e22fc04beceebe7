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
// 3 bits are two planes: first the low 2 bits as above, then the high bits, 32 to a word. The high bit of field 4b+s of the 2-bit word
// 2J+h is bit 8b+4h+s of word J, so that one shift lines both planes up byte by byte.
#pragma once

#include <cstddef>
#include <cstdint>

#include "pith/codec/concept.hpp"
#include "pith/core/bits.hpp"

namespace pith {

template <int Bits, int Channels, int Tokens, use Use>
struct word_layout {
  static_assert(Bits == 2 || Bits == 3 || Bits == 4 || Bits == 8 || Bits == 16 || Bits == 32, "[pith] word_layout: 2, 3, 4, 8, 16 or 32 bits.");
  static constexpr int bits = Bits;
  static constexpr int channels = Channels;
  static constexpr int tokens = Tokens;
  static constexpr int lanes = Use == use::dot ? Tokens : Channels;
  static constexpr int packed = Use == use::dot ? Channels : Tokens;
  static constexpr int plane_bits = Bits == 3 ? 2 : Bits;                 // of the first plane
  static constexpr int per_word = 32 / plane_bits;                        // fields in a word
  static constexpr int words = static_cast<int>(divide_up(packed, per_word));  // words per lane, first plane
  static constexpr int high_words = Bits == 3 ? static_cast<int>(divide_up(packed, 32)) : 0;
  static constexpr std::int64_t bytes = 4ll * lanes * (words + high_words);

  PITH_HD static constexpr std::uint32_t get(std::byte const* block, int token, int channel) noexcept {
    int const p = Use == use::dot ? channel : token, lane = Use == use::dot ? token : channel;
    std::uint32_t const word = load_le<std::uint32_t>(block + 4ll * (p / per_word * lanes + lane));
    if constexpr (Bits == 32) {
      return word;
    } else if constexpr (Bits == 3) {
      std::uint32_t const high = load_le<std::uint32_t>(block + 4ll * ((words + p / 32) * lanes + lane));
      return field<2>(word, p % 16) | (((high >> high_bit(p)) & 1u) << 2);
    } else {
      return field<Bits>(word, p % per_word);
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
      if constexpr (Bits == 3) {
        std::byte* const high = block + 4ll * ((words + p / 32) * lanes + lane);
        store_le<std::uint32_t>(high, with_field<1>(load_le<std::uint32_t>(high), high_bit(p), code >> 2));
      }
    }
  }

  // Bit of the high plane's word that belongs to packed index p.
  PITH_HD static constexpr int high_bit(int p) noexcept { return 8 * (p % 16 / 4) + 4 * (p % 32 / 16) + p % 4; }
};

}  // namespace pith
