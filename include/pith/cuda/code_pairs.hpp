// SPDX-License-Identifier: Apache-2.0
// Integer codes as tensor-core operands: two codes that lie 16 bits apart in their words become two f16, exactly.
//
//   u -> 1024 + u 2^x      the code's bits under f16's exponent of 1024: one LOP3 for two codes
//     -> u - 2^(B-1)       centred: one fused multiply-add for two, (1024 + u 2^x) 2^-x - (1024 2^-x + 2^(B-1)), every step exact. Otherwise the
//                          query is divided by 2^x, and what 1024 and the middle add is known from it alone
//
// Byte b (0, 1) of a word and byte b + 2 hold the partners; step s is the place inside a byte, so pair p = b per_byte + s holds fields p and
// p + pairs of the word. Higher planes (word_layout.hpp) have the same partners, once a word of theirs is shifted so that step s of byte b
// lies at bit 8b + w s.
//
// cost  per word of 8 four-bit codes: 1 shift, 4 LOP3, and centred 4 HFMA2
#pragma once

#include "pith/codec/word_layout.hpp"
#include "pith/cuda/words.hpp"

namespace pith::device {

PITH_HD constexpr std::uint32_t twice(std::uint32_t half) noexcept { return half | half << 16; }

template <int Bits>
struct code_pairs {
  using layout = word_layout<Bits, 64, block_tokens, use::dot>;
  static constexpr int planes = layout::planes;
  static constexpr int plane_bits = layout::plane_bits;
  static constexpr int per_byte = layout::per_byte;
  static constexpr int pairs = 2 * per_byte;  // of a first-plane word
  static constexpr int per_word = layout::per_word;
  static constexpr int bits_in_octet = 8 * plane_bits;  // of the first plane

  // Where the codes of first-plane word `word` lie in a higher plane: the row among that plane's, and what that word is shifted right by.
  PITH_HD static constexpr int row_of(int plane, int word) noexcept { return word / words_in(plane); }
  PITH_HD static constexpr int shift_of(int plane, int word) noexcept { return layout::bits_of(plane) * per_byte * (word % words_in(plane)); }

  // The x of a pair, and what a code equal to the middle comes out as if it is not centred.
  PITH_HD static constexpr int place_of(int p) noexcept {
    int const s = p % per_byte;
    return plane_bits * s + Bits <= 10 ? plane_bits * s : 0;
  }
  PITH_HD static constexpr float middle_of(int p) noexcept { return static_cast<float>(1024 + (1 << (Bits - 1 + place_of(p)))); }

  // Codes of pair p as two f16, minus the middle if Centred.
  template <bool Centred = true>
  PITH_HD static std::uint32_t get(std::uint32_t const (&word)[planes], int p) noexcept {
    int const b = p / per_byte, s = p % per_byte, from = 8 * b + plane_bits * s;
    if (Bits == 8) {
      std::uint32_t const bits = b == 0 ? and_or(word[0], 0x00ff00ffu, magic) : pick_bytes(word[0], magic, 0x7351);
      return Centred ? centred(bits, 0) : bits;
    }
    int const x = place_of(p);
    std::uint32_t bits = and_or(word[0] >> (from - x), twice(((1u << plane_bits) - 1u) << x), magic);
    for (int plane = 1; plane < planes; ++plane) {
      int const at = 8 * b + layout::bits_of(plane) * s, to = x + layout::place_of(plane);
      std::uint32_t const moved = to > at ? word[plane] << (to - at) : word[plane] >> (at - to);
      bits = and_or(moved, twice(((1u << layout::bits_of(plane)) - 1u) << to), bits);
    }
    return Centred ? centred(bits, x) : bits;
  }

  // Bytes 0 and 2 of 1024 + u with the codes in bytes 0 and 1 of `bytes`, or in 2 and 3: for 8 bits whose partners come from two words.
  PITH_HD static std::uint32_t get_bytes(std::uint32_t bytes, bool upper) noexcept {
    return centred(pick_bytes(bytes, magic, upper ? 0x7352 : 0x7150), 0);
  }

 private:
  static constexpr std::uint32_t magic = 0x64006400u;  // 1024 in both halves

  PITH_HD static constexpr int words_in(int plane) noexcept { return plane_bits / layout::bits_of(plane); }

  // Twice -(1024 2^-x + 2^(B-1)): the second term is the smaller one, so that it fills the mantissa below the first.
  PITH_HD static std::uint32_t centred(std::uint32_t bits, int x) noexcept {
    auto const places = static_cast<std::uint32_t>(x);
    return fma_f16(bits, twice((15u - places) << 10), twice(0x8000u | (25u - places) << 10 | (1u << (Bits - 1)) << places));
  }
};

}  // namespace pith::device
