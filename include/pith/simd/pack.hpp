// SPDX-License-Identifier: Apache-2.0
// Bytes in the order in which the fields of packed codes come out of their words.
//
// A word of B-bit codes gives 32/B codes in 8/B steps: step s is (word >> s*B) & mask and holds fields s, s + 8/B, s + 2*8/B, s + 3*8/B in
// its bytes 0..3. Operands that meet the codes in dot4 are permuted once to match: within 32/B neighbours, position 4s+b holds b*(8/B)+s.
#pragma once

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
  __m128i const order = _mm_setr_epi8(field_order<Bits>(0), field_order<Bits>(1), field_order<Bits>(2), field_order<Bits>(3), field_order<Bits>(4),
                                      field_order<Bits>(5), field_order<Bits>(6), field_order<Bits>(7), field_order<Bits>(8), field_order<Bits>(9),
                                      field_order<Bits>(10), field_order<Bits>(11), field_order<Bits>(12), field_order<Bits>(13), field_order<Bits>(14),
                                      field_order<Bits>(15));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm_shuffle_epi8(bytes, order));
#else
  for (int i = 0; i < 16; ++i) to[i] = static_cast<std::uint8_t>(from[field_order<Bits>(i)] & 0xff);
#endif
}

}  // namespace simd
}  // namespace PITH_ISA
}  // namespace pith
