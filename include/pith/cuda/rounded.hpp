// SPDX-License-Identifier: Apache-2.0
// Single operations on f32 that no compiler fuses or reorders, and reads of four numbers at once: what encoding on the device is made of.
//
//   add_rn, sub_rn, mul_rn      rounded to nearest, by themselves; add_signed: a + b or a - b
//   min_or_nan, max_or_nan      NaN if either is; which of -0 and +0 comes back is not said
//   between(x, low, high)       x cut to them; x is not NaN
#pragma once

#include <cstddef>
#include <cstdint>

#include "pith/core/rounding.hpp"
#include "pith/core/scalar.hpp"
#include "pith/cuda/words.hpp"

// Before a loop that runs seldom: its code is to stay small.
#if defined(__CUDA_ARCH__)
#define PITH_ROLLED _Pragma("unroll 1")
#else
#define PITH_ROLLED
#endif

namespace pith::device {

struct alignas(16) quad {
  float at[4];
};
PITH_HD inline quad load_quad(float const* from) noexcept { return *reinterpret_cast<quad const*>(from); }
PITH_HD inline void store_quad(float* to, quad const& x) noexcept { *reinterpret_cast<quad*>(to) = x; }

PITH_HD inline float add_rn(float a, float b) noexcept {
#if defined(__CUDA_ARCH__)
  return __fadd_rn(a, b);
#else
  return a + b;
#endif
}
PITH_HD inline float sub_rn(float a, float b) noexcept {
#if defined(__CUDA_ARCH__)
  return __fsub_rn(a, b);
#else
  return a - b;
#endif
}
PITH_HD inline float mul_rn(float a, float b) noexcept {
#if defined(__CUDA_ARCH__)
  return __fmul_rn(a, b);
#else
  float volatile product = a * b;  // opaque: a compiler with fast arithmetic would regroup what it feeds
  return product;
#endif
}

// a + sign b, sign = 1 or -1, in one operation.
PITH_HD inline float add_signed(float a, float b, float sign) noexcept {
#if defined(__CUDA_ARCH__)
  return __fmaf_rn(b, sign, a);
#else
  return sign < 0 ? a - b : a + b;
#endif
}

PITH_HD inline float min_or_nan(float a, float b) noexcept {
#if defined(__CUDA_ARCH__)
  float out;
  asm("min.NaN.f32 %0, %1, %2;" : "=f"(out) : "f"(a), "f"(b));
  return out;
#else
  return is_nan(a) ? a : is_nan(b) || b < a ? b : a;
#endif
}
PITH_HD inline float max_or_nan(float a, float b) noexcept {
#if defined(__CUDA_ARCH__)
  float out;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(out) : "f"(a), "f"(b));
  return out;
#else
  return is_nan(a) ? a : is_nan(b) || b > a ? b : a;
#endif
}
PITH_HD inline float between(float x, float low, float high) noexcept {
#if defined(__CUDA_ARCH__)
  return fminf(fmaxf(x, low), high);
#else
  return clamp(x, low, high);
#endif
}
PITH_HD inline bool is_either_nan(float a, float b) noexcept {
#if defined(__CUDA_ARCH__)
  std::uint32_t out;
  asm("{.reg .pred either; setp.nan.f32 either, %1, %2; selp.u32 %0, 1, 0, either;}" : "=r"(out) : "f"(a), "f"(b));
  return out != 0;
#else
  return is_nan(a) || is_nan(b);
#endif
}
PITH_HD inline float magnitude(float x) noexcept {
#if defined(__CUDA_ARCH__)
  return fabsf(x);  // part of the instruction that uses it
#else
  return bits_float(float_bits(x) & 0x7fffffffu);
#endif
}

// The number in the low bits, exactly: a NaN keeps its payload, as to_float() keeps it.
template <storage_scalar T>
PITH_HD inline float number_of(std::uint32_t bits) noexcept {
  if constexpr (sizeof(T) == 4)
    return bits_float(bits);
  else if constexpr (__is_same(T, bf16))
    return bits_float(bits << 16);
  else
    return to_float(f16{static_cast<std::uint16_t>(bits)});
}

// Four numbers of a row in storage order.
template <storage_scalar T>
PITH_HD inline quad unpack_quad(word2 const& w) noexcept {
  if constexpr (__is_same(T, bf16))
    return {{low_of<bf16>(w.at[0]), high_of<bf16>(w.at[0]), low_of<bf16>(w.at[1]), high_of<bf16>(w.at[1])}};
  else
    return {{number_of<T>(w.at[0] & 0xffffu), number_of<T>(w.at[0] >> 16), number_of<T>(w.at[1] & 0xffffu), number_of<T>(w.at[1] >> 16)}};
}
template <storage_scalar T>
PITH_HD inline quad unpack_quad(word4 const& w) noexcept {
  return {{bits_float(w.at[0]), bits_float(w.at[1]), bits_float(w.at[2]), bits_float(w.at[3])}};
}
// The bits of a number as T stores it, as from_float() rounds it.
template <storage_scalar T>
PITH_HD inline std::uint32_t stored_bits(float x) noexcept {
  if constexpr (sizeof(T) == 4)
    return float_bits(x);
  else
    return from_float<T>(x).bits;
}
// Two of them in a word. The device's conversion of two drops a NaN's payload.
template <storage_scalar T>
  requires(sizeof(T) == 2)
PITH_HD inline std::uint32_t stored_pair(float low, float high) noexcept {
  if (is_either_nan(low, high)) return stored_bits<T>(low) | stored_bits<T>(high) << 16;
  return two_of<T>(low, high);
}

// f(i) for i = thread, thread + Threads, ... below Count: as many rounds for every thread as the compiler can see.
template <int Count, int Threads, class F>
PITH_HD inline void for_each_item(int thread, F const& f) {
  for (int round = 0; round < (Count + Threads - 1) / Threads; ++round) {
    int const i = thread + round * Threads;
    if (Count % Threads == 0 || i < Count) f(i);
  }
}

}  // namespace pith::device
