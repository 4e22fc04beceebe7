// SPDX-License-Identifier: Apache-2.0
// The vector types and the few operations that the kernels are written in: f32, i32 and u32 lanes of the machine's width, over xsimd,
// or over plain arrays with PITH_NO_SIMD.
#pragma once

#if defined(__CUDACC__)
#error "[pith] simd/ is host code. Fix: include <pith/cuda.cuh> in .cu files."
#endif
#if defined(__AVX512F__) && !defined(__AVX512BW__) && !defined(PITH_NO_SIMD)
#error "[pith] AVX-512 without its byte instructions is not supported. Fix: -mavx512bw, -mno-avx512f, or define PITH_NO_SIMD."
#endif

#include <bit>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "pith/core/bits.hpp"
#include "pith/core/scalar.hpp"

#if defined(PITH_NO_SIMD)
#include "pith/simd/array_vec.hpp"
#else
#include <xsimd/xsimd.hpp>
#endif
#if defined(__x86_64__) && !defined(PITH_NO_SIMD)
#include <immintrin.h>
#elif defined(__ARM_NEON) && !defined(PITH_NO_SIMD)
#include <arm_neon.h>
#endif

namespace pith {
inline namespace PITH_ISA {
namespace simd {

#if defined(PITH_NO_SIMD)
using f32v = array_vec<float>;
using i32v = array_vec<std::int32_t>;
using u32v = array_vec<std::uint32_t>;
inline constexpr int width = f32v::lanes;
#else
using f32v = xsimd::batch<float>;
using i32v = xsimd::batch<std::int32_t>;
using u32v = xsimd::batch<std::uint32_t>;
inline constexpr int width = static_cast<int>(f32v::size);
#endif

PITH_INLINE f32v load(float const* from) { return f32v::load_unaligned(from); }
PITH_INLINE void store(float* to, f32v x) { x.store_unaligned(to); }
PITH_INLINE f32v all(float x) { return f32v(x); }
PITH_INLINE i32v load_i32(std::int32_t const* from) { return i32v::load_unaligned(from); }
PITH_INLINE void store_i32(std::int32_t* to, i32v x) { x.store_unaligned(to); }

// Asks for a cache line; any address will do. Far: into the second level only. A stream of requests for the first level takes the few
// places in which it waits for memory from the loads: 470 to 540 ns for a tile of INT4 keys and values, against 260 this way.
PITH_INLINE void prefetch(std::byte const* at) { __builtin_prefetch(at, 0, 3); }
PITH_INLINE void prefetch_far(std::uintptr_t at) { __builtin_prefetch(reinterpret_cast<void const*>(at), 0, 2); }

// Little-endian words. Loaded as they are: through a copy of their bytes, g++ 12 tuned for AVX2 in general stores halves and waits for
// them.
PITH_INLINE u32v load_words(std::byte const* from) {
#if defined(__AVX512F__) && !defined(PITH_NO_SIMD)
  return u32v(_mm512_loadu_si512(from));
#elif defined(__AVX__) && !defined(PITH_NO_SIMD)
  return u32v(_mm256_loadu_si256(reinterpret_cast<__m256i const*>(from)));
#elif defined(__SSE2__) && !defined(PITH_NO_SIMD)
  return u32v(_mm_loadu_si128(reinterpret_cast<__m128i const*>(from)));
#else
  std::uint32_t words[width];
  if constexpr (std::endian::native == std::endian::little)
    std::memcpy(words, from, sizeof words);
  else
    for (int i = 0; i < width; ++i) words[i] = load_le<std::uint32_t>(from + 4 * i);
  return u32v::load_unaligned(words);
#endif
}

#if defined(PITH_NO_SIMD)
PITH_INLINE f32v fma(f32v a, f32v b, f32v c) { return a * b + c; }
PITH_INLINE f32v min(f32v a, f32v b) { return array_min(a, b); }
PITH_INLINE f32v max(f32v a, f32v b) { return array_max(a, b); }
PITH_INLINE f32v to_float(i32v x) { return array_cast<float>(x); }
PITH_INLINE f32v as_float(u32v x) { return array_bits<float>(x); }
PITH_INLINE u32v as_words(f32v x) { return array_bits<std::uint32_t>(x); }
PITH_INLINE i32v as_int(u32v x) { return array_bits<std::int32_t>(x); }
PITH_INLINE u32v as_words(i32v x) { return array_bits<std::uint32_t>(x); }
PITH_INLINE float sum(f32v x) { return array_sum(x); }
PITH_INLINE float largest(f32v x) { return array_largest(x); }
#else
// xsimd 8.1 has no fused form for AVX-512 and NEON, and clang does not make one of its a * b + c.
PITH_INLINE f32v fma(f32v a, f32v b, f32v c) {
#if defined(__AVX512F__)
  return f32v(_mm512_fmadd_ps(a, b, c));
#elif defined(__AVX2__) && defined(__FMA__)
  return f32v(_mm256_fmadd_ps(a, b, c));
#elif defined(__aarch64__)
  return f32v(vfmaq_f32(c, a, b));
#else
  return xsimd::fma(a, b, c);
#endif
}
PITH_INLINE f32v min(f32v a, f32v b) { return xsimd::min(a, b); }
PITH_INLINE f32v max(f32v a, f32v b) { return xsimd::max(a, b); }
PITH_INLINE f32v to_float(i32v x) { return xsimd::to_float(x); }
// Up to xsimd 10, bitwise_cast names the batch that it makes, from 11 on the batch's element.
template <class To, class From>
PITH_INLINE To bits_as(From x) {
  if constexpr (requires { { xsimd::bitwise_cast<typename To::value_type>(x) } -> std::same_as<To>; })
    return xsimd::bitwise_cast<typename To::value_type>(x);
  else
    return xsimd::bitwise_cast<To>(x);
}
PITH_INLINE f32v as_float(u32v x) { return bits_as<f32v>(x); }
PITH_INLINE u32v as_words(f32v x) { return bits_as<u32v>(x); }
PITH_INLINE i32v as_int(u32v x) { return bits_as<i32v>(x); }
PITH_INLINE u32v as_words(i32v x) { return bits_as<u32v>(x); }

PITH_INLINE float sum(f32v x) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps(x);
#else
  float lanes[width], total = 0;
  store(lanes, x);
  for (float lane : lanes) total += lane;
  return total;
#endif
}
PITH_INLINE float largest(f32v x) {
#if defined(__AVX512F__)
  return _mm512_reduce_max_ps(x);
#else
  float lanes[width];
  store(lanes, x);
  float most = lanes[0];
  for (float lane : lanes) most = lane > most ? lane : most;
  return most;
#endif
}
#endif

// The sums, or the largest lanes, of M vectors at once: M = 4 shares the shuffles (13 instructions against 4 * 10 on AVX-512).
#if defined(__AVX512F__) && !defined(PITH_NO_SIMD)
template <class Combine>
PITH_INLINE void reduce4(f32v const (&x)[4], float (&to)[4], Combine combine) {
  auto const pair = [&](__m512 a, __m512 b) { return combine(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b)); };
  __m512 const ab = pair(x[0], x[1]), cd = pair(x[2], x[3]);  // a b a b ..., c d c d ...
  __m512 const four = combine(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xee));  // a b c d in every 128 bits
  __m512 const half = combine(four, _mm512_shuffle_f32x4(four, four, 0x4e));
  _mm_storeu_ps(to, _mm512_castps512_ps128(combine(half, _mm512_shuffle_f32x4(half, half, 0xb1))));
}
#endif

template <int M>
PITH_INLINE void sums(f32v const (&x)[M], float (&to)[M]) {
#if defined(__AVX512F__) && !defined(PITH_NO_SIMD)
  if constexpr (M == 4) return reduce4(x, to, [](__m512 a, __m512 b) { return _mm512_add_ps(a, b); });
#endif
  for (int m = 0; m < M; ++m) to[m] = sum(x[m]);
}
template <int M>
PITH_INLINE void largest_of_each(f32v const (&x)[M], float (&to)[M]) {
#if defined(__AVX512F__) && !defined(PITH_NO_SIMD)
  if constexpr (M == 4) return reduce4(x, to, [](__m512 a, __m512 b) { return _mm512_max_ps(a, b); });
#endif
  for (int m = 0; m < M; ++m) to[m] = largest(x[m]);
}

// where test is zero, if_zero, else otherwise.
PITH_INLINE f32v select_zero(f32v test, f32v if_zero, f32v otherwise) {
#if defined(PITH_NO_SIMD)
  return f32v::each([&](int i) { return test.lane[i] == 0 ? if_zero.lane[i] : otherwise.lane[i]; });
#else
  return xsimd::select(test == f32v(0.0f), if_zero, otherwise);
#endif
}
PITH_INLINE bool any_above(f32v x, float limit) {
#if defined(PITH_NO_SIMD)
  for (float lane : x.lane)
    if (lane > limit) return true;
  return false;
#elif defined(__AVX512F__)
  return _mm512_cmp_ps_mask(x, _mm512_set1_ps(limit), _CMP_GT_OQ) != 0;
#else
  return xsimd::any(x > f32v(limit));
#endif
}

// Field i of every word, as unsigned words.
template <int Bits>
PITH_INLINE u32v field(u32v words, int i) {
  u32v const shifted = i == 0 ? words : words >> (i * Bits);
  return (i + 1) * Bits == 32 ? shifted : shifted & u32v((1u << Bits) - 1u);
}

// `width` consecutive stored scalars.
template <scale_scalar T>
PITH_INLINE f32v load_scalars(std::byte const* from) {
#if defined(__AVX512F__) && !defined(PITH_NO_SIMD)
  if constexpr (std::is_same_v<T, f16>) return f32v(_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<__m256i const*>(from))));
  if constexpr (std::is_same_v<T, bf16>)
    return f32v(
        _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<__m256i const*>(from))), 16)));
  if constexpr (std::is_same_v<T, e8m0>)
    return f32v(_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<__m128i const*>(from))), 23)));
#elif defined(__AVX2__) && defined(__F16C__) && !defined(PITH_NO_SIMD)
  if constexpr (std::is_same_v<T, f16>) return f32v(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<__m128i const*>(from))));
  if constexpr (std::is_same_v<T, bf16>)
    return f32v(_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<__m128i const*>(from))), 16)));
  if constexpr (std::is_same_v<T, e8m0>)
    return f32v(_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<__m128i const*>(from))), 23)));
#endif
  float values[width];
  for (int i = 0; i < width; ++i) values[i] = load_scalar<T>(from + i * static_cast<int>(sizeof(T)));
  return load(values);
}

// The value of every word's 16-bit half (T = bf16, f16; half 0 is the low one) or of the whole word (f32).
template <storage_scalar T>
PITH_INLINE f32v half_to_float(u32v words, int half) {
  if constexpr (std::is_same_v<T, float>) {
    return as_float(words);
  } else if constexpr (std::is_same_v<T, bf16>) {
    return as_float(half == 0 ? words << 16 : words & u32v(0xffff0000u));
  } else {
    u32v const bits = half == 0 ? words & u32v(0xffffu) : words >> 16;
#if defined(__AVX512F__) && !defined(PITH_NO_SIMD)
    return f32v(_mm512_cvtph_ps(_mm512_cvtepi32_epi16(bits)));
#else
    std::uint32_t lanes[width];
    float values[width];
    bits.store_unaligned(lanes);
    for (int i = 0; i < width; ++i) values[i] = to_float(f16{static_cast<std::uint16_t>(lanes[i])});
    return load(values);
#endif
  }
}

// A sum x + c rounds x to an integer, which lies in the low bits of the sum.
inline constexpr float unsigned_raise = 0x1p23f;   // c for 0 <= x < 2^22
inline constexpr float signed_raise = 0x1.8p23f;  // c for |x| < 2^21
PITH_INLINE i32v lowered_integer(u32v bits_of_signed) { return as_int(bits_of_signed) - i32v(0x4b400000); }
// The integer as a number, raised - signed_raise: what -ffast-math would take for x.
PITH_INLINE f32v lowered(f32v raised) {
#if defined(__AVX512F__) && !defined(PITH_NO_SIMD)
  __m512 x = raised;
  asm("" : "+v"(x));
  return f32v(x) - all(signed_raise);
#else
  return to_float(lowered_integer(as_words(raised)));
#endif
}

// Nearest integers, ties to even, for |x| < 2^21.
PITH_INLINE i32v round_even(f32v x) { return lowered_integer(as_words(x + all(signed_raise))); }

// 2^x for x < 127, relative error below 2e-7 from -126 on; 0 at -127 and below; exact at integers.
//   x = n + f, |f| <= 1/2;  2^f = 1 + f p(f), p of degree 4 and least relative error;  n is added to its exponent
PITH_INLINE f32v exp2(f32v x) {
  f32v const clipped = max(x, all(-127.0f)), raised = clipped + all(signed_raise);  // n is in the low bits
  f32v const f = clipped - lowered(raised);
  f32v p = all(1.32647273e-03f);
  p = fma(p, f, all(9.67151299e-03f));
  p = fma(p, f, all(5.55073358e-02f));
  p = fma(p, f, all(2.40222424e-01f));
  p = fma(p, f, all(6.93147004e-01f));
  p = fma(p, f, all(1.0f));
  return as_float(as_words(p) + (as_words(raised) << 23));  // n = -127 gives the exponent 0: zero, or below 2^-126
}

PITH_INLINE f32v magnitude(f32v x) { return as_float(as_words(x) & u32v(0x7fffffffu)); }

// tanh x = sign(x) (1 - e^-2|x|) / (1 + e^-2|x|), absolute error below 3e-7
PITH_INLINE f32v tanh(f32v x) {
  f32v const e = exp2(magnitude(x) * all(-2.88539008f));
  f32v const positive = (all(1.0f) - e) / (all(1.0f) + e);
  return as_float(as_words(positive) | (as_words(x) & u32v(0x80000000u)));
}

}  // namespace simd
}  // namespace PITH_ISA
}  // namespace pith
