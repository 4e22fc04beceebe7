// SPDX-License-Identifier: Apache-2.0
// The 8-bit dot product that the integer kernels are built on, and the byte order they need.
//
//   dot4(acc, u, s)[i] = acc[i] + sum_{b<4} u8(u, 4i+b) * s8(s, 4i+b)        exact in 32 bits
//
// vpdpbusd where the machine has it. vpmaddubsw saturates at 16 bits, so it is used only if the largest |u s| pair fits (Small);
// otherwise bytes are widened to 16 bits first, which is exact.
#pragma once

#include "pith/simd/vec.hpp"

namespace pith {
inline namespace PITH_ISA {
namespace simd {

// Small: 2 * max u * max |s| <= 32767.
template <bool Small>
PITH_INLINE i32v dot4(i32v acc, u32v u, u32v s) {
#if defined(PITH_NO_SIMD)
  return i32v::each([&](int i) {
    std::int32_t total = acc.lane[i];
    for (int b = 0; b < 4; ++b)
      total += static_cast<std::int32_t>((u.lane[i] >> (8 * b)) & 0xffu) * static_cast<std::int8_t>((s.lane[i] >> (8 * b)) & 0xffu);
    return total;
  });
#elif defined(__AVX512VNNI__) && defined(__AVX512F__)
#if defined(__clang__)
  return i32v(_mm512_dpbusd_epi32(acc, u, s));
#else
  __m512i sum = acc;  // g++ 12 copies the accumulator around the intrinsic at every step and spills; tied by hand it stays in place
  asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(static_cast<__m512i>(u)), "v"(static_cast<__m512i>(s)));
  return i32v(sum);
#endif
#elif defined(__AVX512BW__)
  if constexpr (Small) return i32v(_mm512_add_epi32(acc, _mm512_madd_epi16(_mm512_maddubs_epi16(u, s), _mm512_set1_epi16(1))));
  __m512i const even = _mm512_madd_epi16(_mm512_and_si512(u, _mm512_set1_epi16(0xff)), _mm512_srai_epi16(_mm512_slli_epi16(s, 8), 8));
  __m512i const odd = _mm512_madd_epi16(_mm512_srli_epi16(u, 8), _mm512_srai_epi16(s, 8));
  return i32v(_mm512_add_epi32(acc, _mm512_add_epi32(even, odd)));
#elif defined(__AVXVNNI__) && defined(__AVX2__)
  return i32v(_mm256_dpbusd_avx_epi32(acc, u, s));
#elif defined(__AVX2__)
  if constexpr (Small) return i32v(_mm256_add_epi32(acc, _mm256_madd_epi16(_mm256_maddubs_epi16(u, s), _mm256_set1_epi16(1))));
  __m256i const even = _mm256_madd_epi16(_mm256_and_si256(u, _mm256_set1_epi16(0xff)), _mm256_srai_epi16(_mm256_slli_epi16(s, 8), 8));
  __m256i const odd = _mm256_madd_epi16(_mm256_srli_epi16(u, 8), _mm256_srai_epi16(s, 8));
  return i32v(_mm256_add_epi32(acc, _mm256_add_epi32(even, odd)));
#elif defined(__SSE4_2__)
  auto const four_lanes = [](__m128i a, __m128i b, __m128i c) {
    if constexpr (Small) return _mm_add_epi32(a, _mm_madd_epi16(_mm_maddubs_epi16(b, c), _mm_set1_epi16(1)));
    __m128i const even = _mm_madd_epi16(_mm_and_si128(b, _mm_set1_epi16(0xff)), _mm_srai_epi16(_mm_slli_epi16(c, 8), 8));
    __m128i const odd = _mm_madd_epi16(_mm_srli_epi16(b, 8), _mm_srai_epi16(c, 8));
    return _mm_add_epi32(a, _mm_add_epi32(even, odd));
  };
#if defined(__AVX__)  // 256 bits of f32, but integers only by halves
  __m256i const a = acc, b = u, c = s;
  __m128i const low = four_lanes(_mm256_castsi256_si128(a), _mm256_castsi256_si128(b), _mm256_castsi256_si128(c));
  __m128i const high = four_lanes(_mm256_extractf128_si256(a, 1), _mm256_extractf128_si256(b, 1), _mm256_extractf128_si256(c, 1));
  return i32v(_mm256_insertf128_si256(_mm256_castsi128_si256(low), high, 1));
#else
  return i32v(four_lanes(acc, u, s));
#endif
#elif defined(__ARM_NEON)
  int32x4_t const a = acc;
  uint8x16_t const unsigned_bytes = vreinterpretq_u8_u32(u);
  int8x16_t const signed_bytes = vreinterpretq_s8_u32(s);
#if defined(__ARM_FEATURE_MATMUL_INT8)
  return i32v(vusdotq_s32(a, unsigned_bytes, signed_bytes));
#elif defined(__ARM_FEATURE_DOTPROD)
  // u = (u - 128) + 128: a signed dot product and 128 times the sum of s.
  int32x4_t const shifted = vdotq_s32(a, vreinterpretq_s8_u8(veorq_u8(unsigned_bytes, vdupq_n_u8(0x80))), signed_bytes);
  return i32v(vaddq_s32(shifted, vshlq_n_s32(vdotq_s32(vdupq_n_s32(0), signed_bytes, vdupq_n_s8(1)), 7)));
#else
  int16x8_t const low_u = vreinterpretq_s16_u16(vmovl_u8(vget_low_u8(unsigned_bytes))), high_u = vreinterpretq_s16_u16(vmovl_u8(vget_high_u8(unsigned_bytes)));
  int16x8_t const low_s = vmovl_s8(vget_low_s8(signed_bytes)), high_s = vmovl_s8(vget_high_s8(signed_bytes));
  int32x4_t const first = vpaddq_s32(vmull_s16(vget_low_s16(low_u), vget_low_s16(low_s)), vmull_high_s16(low_u, low_s));
  int32x4_t const second = vpaddq_s32(vmull_s16(vget_low_s16(high_u), vget_low_s16(high_s)), vmull_high_s16(high_u, high_s));
  return i32v(vaddq_s32(a, vpaddq_s32(first, second)));
#endif
#else
#error "[pith] no 8-bit dot product for this instruction set. Fix: define PITH_NO_SIMD."
#endif
}

// The same four bytes in every lane.
PITH_INLINE u32v all_words(std::byte const* four_bytes) {
  std::uint32_t word;
  std::memcpy(&word, four_bytes, 4);
  if constexpr (std::endian::native == std::endian::big) word = __builtin_bswap32(word);
  return u32v(word);
}

}  // namespace simd
}  // namespace PITH_ISA
}  // namespace pith
