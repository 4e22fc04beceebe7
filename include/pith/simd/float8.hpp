// SPDX-License-Identifier: Apache-2.0
// 8-bit floats in words, four to a word, times four coefficients: what dot and mix over them are built on.
//
//   float8_sum<T> sum;   sum.add(codes, c)   adds sum_{i<4} value(field i of lane's word) * coefficient i      for every lane
//
// With F16C a byte becomes an f16 by shifts (e5m2 is its upper half; e4m3 with its exponent in f16's field is 2^-8 of its value, subnormals
// included), and vcvtph2ps makes f32 of it: 16 neighbouring halves, so that two lanes of f32 belong to one word, fields 0 and 2 or fields 1
// and 3. No shuffle brings them apart: the coefficients lie in that order (float8_ordered), in pairs, and total() adds the pairs once.
// Elsewhere every field becomes f32 by itself, from its bits.
//
// Codes for infinity and NaN, which no encoder writes, give any value.
#pragma once

#include "pith/core/small_float.hpp"
#include "pith/simd/vec.hpp"

namespace pith {
inline namespace PITH_ISA {
namespace simd {

#if !defined(PITH_NO_SIMD) && defined(__F16C__) && defined(__AVX2__)

inline constexpr int float8_parts = 2;
// The coefficients are multiplied by it.
template <small_float T>
inline constexpr float float8_factor = std::is_same_v<T, e4m3> ? 256.0f : 1.0f;

// Coefficients of `width` neighbours, four by four in the order 0 2 1 3.
PITH_INLINE f32v float8_ordered(f32v x) {
#if defined(__AVX512F__)
  return f32v(_mm512_permute_ps(x, 0xd8));
#else
  return f32v(_mm256_permute_ps(x, 0xd8));
#endif
}
PITH_INLINE f32v all_pairs(float const* two) {
  double pair;
  std::memcpy(&pair, two, sizeof pair);
#if defined(__AVX512F__)
  return f32v(_mm512_castpd_ps(_mm512_set1_pd(pair)));
#else
  return f32v(_mm256_castpd_ps(_mm256_set1_pd(pair)));
#endif
}

// f32 of fields 0, 2 (even) and 1, 3 (odd) of the lower and of the upper half of `width` words.
template <small_float T>
struct float8_codes {
  f32v even[2], odd[2];

  explicit PITH_INLINE float8_codes(std::byte const* words) {
    PITH_UNROLL for (int half = 0; half < 2; ++half) {
#if defined(__AVX512F__)
      __m256i const x = _mm256_loadu_si256(reinterpret_cast<__m256i const*>(words) + half);
      __m256i low = _mm256_slli_epi16(x, 8), high = x;
      if constexpr (std::is_same_v<T, e4m3>) {
        low = _mm256_and_si256(_mm256_srai_epi16(low, 1), _mm256_set1_epi16(static_cast<short>(0xbf80)));
        high = _mm256_and_si256(_mm256_srai_epi16(high, 1), _mm256_set1_epi16(static_cast<short>(0xbf80)));
      } else {
        high = _mm256_and_si256(high, _mm256_set1_epi16(static_cast<short>(0xff00)));
      }
      even[half] = f32v(_mm512_cvtph_ps(low));
      odd[half] = f32v(_mm512_cvtph_ps(high));
#else
      __m128i const x = _mm_loadu_si128(reinterpret_cast<__m128i const*>(words) + half);
      __m128i low = _mm_slli_epi16(x, 8), high = x;
      if constexpr (std::is_same_v<T, e4m3>) {
        low = _mm_and_si128(_mm_srai_epi16(low, 1), _mm_set1_epi16(static_cast<short>(0xbf80)));
        high = _mm_and_si128(_mm_srai_epi16(high, 1), _mm_set1_epi16(static_cast<short>(0xbf80)));
      } else {
        high = _mm_and_si128(high, _mm_set1_epi16(static_cast<short>(0xff00)));
      }
      even[half] = f32v(_mm256_cvtph_ps(low));
      odd[half] = f32v(_mm256_cvtph_ps(high));
#endif
    }
  }
};

template <small_float T>
struct float8_sum {
  f32v part[2] = {all(0), all(0)};

  PITH_INLINE void add(float8_codes<T> const& x, float const* four) {
    f32v const even = all_pairs(four), odd = all_pairs(four + 2);
    PITH_UNROLL for (int half = 0; half < 2; ++half) part[half] = fma(x.odd[half], odd, fma(x.even[half], even, part[half]));
  }
  // The sums of the words' lanes.
  PITH_INLINE f32v total() const {
#if defined(__AVX512F__)
    __m512i const first = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    __m512i const second = _mm512_or_si512(first, _mm512_set1_epi32(1));
    return f32v(_mm512_permutex2var_ps(part[0], first, part[1])) + f32v(_mm512_permutex2var_ps(part[0], second, part[1]));
#else
    __m256 const pairs = _mm256_hadd_ps(part[0], part[1]);  // 0 1 4 5 | 2 3 6 7
    return f32v(_mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(pairs), 0xd8)));
#endif
  }
};

#else

inline constexpr int float8_parts = 1;
template <small_float T>
inline constexpr float float8_factor = 1.0f;
PITH_INLINE f32v float8_ordered(f32v x) { return x; }

template <small_float T>
struct float8_codes {
  f32v field[4];

  explicit PITH_INLINE float8_codes(std::byte const* from) {
    constexpr int up = 23 - T::mantissa_bits;
    constexpr std::uint32_t exponent = (0x7fu >> T::mantissa_bits) << 23;
    u32v const words = load_words(from);
    PITH_UNROLL for (int i = 0; i < 4; ++i) {
      u32v const at_top = i == 3 ? words : words << (24 - 8 * i), sign = at_top & u32v(0x80000000u);
      u32v const code = (at_top >> (24 - up)) & u32v(0x7fu << up);
      f32v const normal = as_float(code + u32v((127u - T::bias) << 23));
      f32v const subnormal = to_float(as_int(code >> up)) * all(bits_float(static_cast<std::uint32_t>(128 - T::bias - T::mantissa_bits) << 23));
      f32v const size = select_zero(to_float(as_int(code & u32v(exponent))), subnormal, normal);
      field[i] = as_float(as_words(size) | sign);
    }
  }
};

template <small_float T>
struct float8_sum {
  f32v part[1] = {all(0)};

  PITH_INLINE void add(float8_codes<T> const& x, float const* four) {
    PITH_UNROLL for (int i = 0; i < 4; ++i) part[0] = fma(x.field[i], all(four[i]), part[0]);
  }
  PITH_INLINE f32v total() const { return part[0]; }
};

#endif

}  // namespace simd
}  // namespace PITH_ISA
}  // namespace pith
