// SPDX-License-Identifier: Apache-2.0
// Neighbouring fields of neighbouring words into lanes: lane i is field `first` + i of a run of little-endian words.
#pragma once

#include "pith/simd/vec.hpp"

namespace pith {
inline namespace PITH_ISA {
namespace simd {

// What lies above a field in its lane is undefined unless Bits is 8. first is a multiple of 16 (8 bits: of `width`).
template <int Bits>
PITH_INLINE u32v fields_of(std::byte const* words, int first) {
  static_assert(Bits == 2 || Bits == 4 || Bits == 8, "[pith] fields_of<Bits>: 2, 4 or 8.");
#if defined(__AVX512F__) && !defined(PITH_NO_SIMD)
  std::byte const* const at = words + first * Bits / 8;
  if constexpr (Bits == 8) {
    return u32v(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<__m128i const*>(at))));
  } else if constexpr (Bits == 4) {
    __m512i const both = _mm512_permutexvar_epi32(_mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1),
                                                  _mm512_castsi128_si512(_mm_loadl_epi64(reinterpret_cast<__m128i const*>(at))));
    return u32v(_mm512_srlv_epi32(both, _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 0, 4, 8, 12, 16, 20, 24, 28)));
  } else {
    __m512i const word = _mm512_set1_epi32(static_cast<int>(load_le<std::uint32_t>(at)));
    return u32v(_mm512_srlv_epi32(word, _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30)));
  }
#else
  std::uint32_t lanes[width];
  for (int i = 0; i < width; ++i)
    lanes[i] = load_le<std::uint32_t>(words + (first + i) * Bits / 32 * 4) >> ((first + i) * Bits % 32) & ((1u << Bits) - 1u);
  return u32v::load_unaligned(lanes);
#endif
}

// word >> shift[i].
PITH_INLINE u32v shifted_right(std::uint32_t word, std::uint32_t const* shift) {
#if defined(__AVX512F__) && !defined(PITH_NO_SIMD)
  return u32v(_mm512_srlv_epi32(_mm512_set1_epi32(static_cast<int>(word)), _mm512_loadu_si512(shift)));
#else
  std::uint32_t lanes[width];
  for (int i = 0; i < width; ++i) lanes[i] = word >> shift[i];
  return u32v::load_unaligned(lanes);
#endif
}

}  // namespace simd
}  // namespace PITH_ISA
}  // namespace pith
