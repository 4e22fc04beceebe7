// SPDX-License-Identifier: Apache-2.0
// Vectors of numbers to and from memory of any scalar type, and the steps of encoders that no floating-point flag may change.
#pragma once

#include "pith/core/rounding.hpp"
#include "pith/simd/vec.hpp"

namespace pith {
inline namespace PITH_ISA {
namespace simd {

// `width` numbers of a row in memory.
template <storage_scalar T>
PITH_INLINE f32v load_numbers(T const* from) {
  if constexpr (std::endian::native == std::endian::little) return load_scalars<T>(reinterpret_cast<std::byte const*>(from));
  float values[width];
  for (int i = 0; i < width; ++i) values[i] = pith::to_float(from[i]);
  return load(values);
}

// Their bits, 16-bit types, in the low half of every word.
template <storage_scalar T>
PITH_INLINE u32v load_bits(T const* from) {
#if defined(__AVX512F__) && !defined(PITH_NO_SIMD)
  return u32v(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<__m256i const*>(from))));
#else
  std::uint32_t bits[width];
  for (int i = 0; i < width; ++i) bits[i] = from[i].bits;
  return u32v::load_unaligned(bits);
#endif
}

// The bits of from_float<T>(x) in the low half of every word; the whole word for f32. Normal: no lane is subnormal, which the processor's
// own conversion to bf16 would take for zero.
template <storage_scalar T, bool Normal = false>
PITH_INLINE u32v bits_of(f32v x) {
  if constexpr (std::is_same_v<T, float>) {
    return as_words(x);
  } else {
#if defined(__AVX512BF16__) && !defined(PITH_NO_SIMD)
    if constexpr (std::is_same_v<T, bf16> && Normal) {
      __m256bh const rounded = _mm512_cvtneps_pbh(x);
      __m256i bits;
      std::memcpy(&bits, &rounded, sizeof bits);
      return u32v(_mm512_cvtepu16_epi32(bits));
    }
#endif
#if defined(__AVX512F__) && !defined(PITH_NO_SIMD)
    if constexpr (std::is_same_v<T, f16>) {
      return u32v(_mm512_cvtepu16_epi32(_mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)));
    } else {
      __m512i const bits = _mm512_castps_si512(x), high = _mm512_srli_epi32(bits, 16);
      __m512i const odd = _mm512_and_si512(high, _mm512_set1_epi32(1));
      __m512i const rounded = _mm512_srli_epi32(_mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd), 16);
      __mmask16 const nan = _mm512_cmpgt_epi32_mask(_mm512_and_si512(bits, _mm512_set1_epi32(0x7fffffff)), _mm512_set1_epi32(0x7f800000));
      return u32v(_mm512_mask_or_epi32(rounded, nan, high, _mm512_set1_epi32(0x40)));
    }
#else
    float values[width];
    std::uint32_t bits[width];
    store(values, x);
    for (int i = 0; i < width; ++i) bits[i] = from_float<T>(values[i]).bits;
    return u32v::load_unaligned(bits);
#endif
  }
}

// The low halves of all words (all of a word for f32) into a row.
template <storage_scalar T>
PITH_INLINE void store_bits(T* to, u32v bits) {
  if constexpr (std::is_same_v<T, float>) {
    store(to, as_float(bits));
  } else {
#if defined(__AVX512F__) && !defined(PITH_NO_SIMD)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtepi32_epi16(bits));
#else
    std::uint32_t words[width];
    bits.store_unaligned(words);
    for (int i = 0; i < width; ++i) to[i] = T{static_cast<std::uint16_t>(words[i])};
#endif
  }
}

// from_float<T> of every lane into a row. Normal: as for bits_of.
template <storage_scalar T, bool Normal = false>
PITH_INLINE void store_numbers(T* to, f32v x) {
#if defined(__AVX512BF16__) && !defined(PITH_NO_SIMD)
  if constexpr (std::is_same_v<T, bf16> && Normal) {
    __m256bh const rounded = _mm512_cvtneps_pbh(x);
    std::memcpy(to, &rounded, sizeof rounded);
    return;
  }
#endif
  store_bits(to, bits_of<T>(x));
}

// Two vectors into neighbouring numbers of a row.
template <storage_scalar T>
PITH_INLINE void store_bits(T* to, u32v a, u32v b) {
#if defined(__AVX512BW__) && !defined(PITH_NO_SIMD)
  if constexpr (sizeof(T) == 2) {
    alignas(64) static constexpr struct even_halves {
      std::uint16_t at[32];
      constexpr even_halves() : at{} {
        for (int i = 0; i < 32; ++i) at[i] = static_cast<std::uint16_t>(2 * i);
      }
    } even{};
    _mm512_storeu_si512(to, _mm512_permutex2var_epi16(a, _mm512_load_si512(even.at), b));
    return;
  }
#endif
  store_bits(to, a);
  store_bits(to + width, b);
}
template <storage_scalar T, bool Normal = false>
PITH_INLINE void store_numbers(T* to, f32v a, f32v b) {
#if defined(__AVX512BF16__) && !defined(PITH_NO_SIMD)
  if constexpr (std::is_same_v<T, bf16> && Normal) {
    __m512bh const rounded = _mm512_cvtne2ps_pbh(b, a);
    std::memcpy(to, &rounded, sizeof rounded);
    return;
  }
#endif
  store_bits(to, bits_of<T>(a), bits_of<T>(b));
}

// Both halves of every word as T, NaN made quiet.
template <storage_scalar T>
PITH_INLINE u32v quieted(u32v words) {
  constexpr std::uint16_t infinity = std::is_same_v<T, bf16> ? 0x7f80 : 0x7c00, quiet = std::is_same_v<T, bf16> ? 0x40 : 0x200;
#if defined(__AVX512BW__) && !defined(PITH_NO_SIMD)
  __m512i const x = words;
  __mmask32 const nan = _mm512_cmpgt_epi16_mask(_mm512_and_si512(x, _mm512_set1_epi16(0x7fff)), _mm512_set1_epi16(infinity));
  return u32v(_mm512_mask_mov_epi16(x, nan, _mm512_or_si512(x, _mm512_set1_epi16(quiet))));
#else
  std::uint32_t word[width];
  std::uint16_t halves[2 * width];
  words.store_unaligned(word);
  std::memcpy(halves, word, sizeof word);
  for (std::uint16_t& half : halves) half = static_cast<std::uint16_t>((half & 0x7fff) > infinity ? half | quiet : half);
  std::memcpy(word, halves, sizeof word);
  return u32v::load_unaligned(word);
#endif
}

// Entry (index & 15) of a table of 16, for every lane.
#if defined(__AVX512F__) && !defined(PITH_NO_SIMD)
inline constexpr bool has_lookup = true;
PITH_INLINE u32v lookup(u32v table, u32v index) { return u32v(_mm512_permutexvar_epi32(index, table)); }
#else
inline constexpr bool has_lookup = false;
PITH_INLINE u32v lookup(u32v table, u32v) { return table; }
#endif

// from_float<T> of every lane as stored scalars, little-endian.
template <storage_scalar T>
PITH_INLINE void store_scalars(std::byte* to, f32v x) {
  T values[width];
  store_numbers(values, x);
  if constexpr (std::endian::native == std::endian::little)
    std::memcpy(to, values, sizeof values);
  else
    for (int i = 0; i < width; ++i) store_scalar<T>(to + i * static_cast<int>(sizeof(T)), values[i]);
}

// Little-endian words; stored as load_words loads them.
PITH_INLINE void store_words(std::byte* to, u32v x) {
#if defined(__AVX512F__) && !defined(PITH_NO_SIMD)
  return _mm512_storeu_si512(to, x);
#elif defined(__AVX__) && !defined(PITH_NO_SIMD)
  return _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), x);
#endif
  std::uint32_t words[width];
  x.store_unaligned(words);
  if constexpr (std::endian::native == std::endian::little)
    std::memcpy(to, words, sizeof words);
  else
    for (int i = 0; i < width; ++i) store_le<std::uint32_t>(to + 4 * i, words[i]);
}

// a / b, correctly rounded under every flag: -ffast-math turns a plain vector division into a reciprocal.
PITH_INLINE f32v div_rn(f32v a, f32v b) {
#if defined(__AVX512F__) && !defined(PITH_NO_SIMD)
  __m512 const x = a, y = b;
  __m512 quotient;
  asm("vdivps %2, %1, %0" : "=v"(quotient) : "v"(x), "v"(y));
  return f32v(quotient);
#elif defined(__AVX__) && !defined(PITH_NO_SIMD)
  __m256 const x = a, y = b;
  __m256 quotient;
  asm("vdivps %2, %1, %0" : "=x"(quotient) : "x"(x), "x"(y));
  return f32v(quotient);
#else
  float x[width], y[width];
  store(x, a);
  store(y, b);
  for (int i = 0; i < width; ++i) x[i] = pith::div_rn(x[i], y[i]);
  return load(x);
#endif
}

#if defined(PITH_NO_SIMD)
PITH_INLINE i32v min(i32v a, i32v b) { return array_min(a, b); }
PITH_INLINE i32v max(i32v a, i32v b) { return array_max(a, b); }
#else
PITH_INLINE i32v min(i32v a, i32v b) { return xsimd::min(a, b); }
PITH_INLINE i32v max(i32v a, i32v b) { return xsimd::max(a, b); }
#endif

// x where test > limit, else 0.
PITH_INLINE f32v where_above(f32v test, float limit, f32v x) {
#if defined(PITH_NO_SIMD)
  return f32v::each([&](int i) { return test.lane[i] > limit ? x.lane[i] : 0.0f; });
#else
  return xsimd::select(test > f32v(limit), x, f32v(0.0f));
#endif
}

// Integers in the order of the numbers, NaN at both ends: -0 is below +0. Its own inverse.
PITH_INLINE i32v ordered(i32v bits) { return bits ^ ((bits >> 31) & i32v(0x7fffffff)); }

}  // namespace simd
}  // namespace PITH_ISA
}  // namespace pith
