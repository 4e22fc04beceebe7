// SPDX-License-Identifier: Apache-2.0
// Bytes in the order in which the fields of packed codes come out of their words.
//
// A word of B-bit codes gives 32/B codes in 8/B steps: step s is (word >> s*B) & mask and holds fields s, s + 8/B, s + 2*8/B, s + 3*8/B in
// its bytes 0..3. Operands that meet the codes in dot4 are permuted once to match: within 32/B neighbours, position 4s+b holds b*(8/B)+s.
#pragma once

#include <array>

#include "pith/simd/vec.hpp"

namespace pith {
inline namespace PITH_ISA {
namespace simd {

// Where byte i of a permuted run comes from.
template <int Bits>
constexpr int field_order(int i) {
  constexpr int per_word = 32 / Bits, per_byte = 8 / Bits;
  int const word = i / per_word, step = i % per_word / 4, byte = i % 4;
  return word * per_word + byte * per_byte + step;
}

// to[i] = low byte of from[field_order<Bits>(i)], i < 16.
template <int Bits>
PITH_INLINE void pack16(std::int32_t const* from, std::uint8_t* to) {
#if defined(__AVX512F__) && defined(__SSSE3__) && !defined(PITH_NO_SIMD)
  __m128i const bytes = _mm512_cvtepi32_epi8(_mm512_loadu_si512(from));
  __m128i const order = _mm_setr_epi8(field_order<Bits>(0), field_order<Bits>(1), field_order<Bits>(2), field_order<Bits>(3),
                                      field_order<Bits>(4), field_order<Bits>(5), field_order<Bits>(6), field_order<Bits>(7),
                                      field_order<Bits>(8), field_order<Bits>(9), field_order<Bits>(10), field_order<Bits>(11),
                                      field_order<Bits>(12), field_order<Bits>(13), field_order<Bits>(14), field_order<Bits>(15));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm_shuffle_epi8(bytes, order));
#else
  for (int i = 0; i < 16; ++i) to[i] = static_cast<std::uint8_t>(from[field_order<Bits>(i)] & 0xff);
#endif
}

// to[i] = low byte of word field_order<Bits>(i), over 16, 32 or 64 words in vectors.
template <int Bits, int Vectors>
PITH_INLINE void pack_bytes(u32v const (&words)[Vectors], std::uint8_t* to) {
#if defined(__AVX512VBMI__) && !defined(PITH_NO_SIMD)
  if constexpr (Vectors == 4) {
    alignas(64) static constexpr auto order = [] {
      std::array<std::uint8_t, 64> at{};
      for (int i = 0; i < 32; ++i)
        at[static_cast<std::size_t>(i)] = static_cast<std::uint8_t>(4 * (i / 16 * 16 + field_order<Bits>(i % 16)));
      return at;
    }();
    __m512i const at = _mm512_load_si512(order.data());
    __m512i const low = _mm512_permutex2var_epi8(words[0], at, words[1]), high = _mm512_permutex2var_epi8(words[2], at, words[3]);
    _mm512_storeu_si512(to, _mm512_inserti64x4(low, _mm512_castsi512_si256(high), 1));
    return;
  }
#endif
  std::int32_t from[Vectors * width];
  PITH_UNROLL for (int v = 0; v < Vectors; ++v) store_i32(from + v * width, as_int(words[v]));
  PITH_UNROLL for (int i = 0; i < Vectors * width; i += 16) pack16<Bits>(from + i, to + i);
}

}  // namespace simd
}  // namespace PITH_ISA
}  // namespace pith
