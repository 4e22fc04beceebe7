// SPDX-License-Identifier: Apache-2.0
// Arithmetic on 32-bit words that hold two 16-bit floats, as one instruction each on the device and the same bits on the host.
//
//   word = low | high << 16        f16 or bf16, round to nearest, ties to even
//
// nan  a NaN stays a NaN; its payload may differ between host and device
#pragma once

#include <cstddef>
#include <cstdint>

#include "pith/core/scalar.hpp"

namespace pith::device {

struct alignas(16) word4 {
  std::uint32_t at[4];
};
struct alignas(8) word2 {
  std::uint32_t at[2];
};

// word & mask | bits, one LOP3: from plain C the compiler makes two where mask and bits are both constants.
PITH_HD inline std::uint32_t and_or(std::uint32_t word, std::uint32_t mask, std::uint32_t bits) noexcept {
#if defined(__CUDA_ARCH__)
  std::uint32_t out;
  asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(out) : "r"(word), "r"(mask), "r"(bits));
  return out;
#else
  return (word & mask) | bits;
#endif
}

// Byte i of the result is byte (selector >> 4i & 7) of a (0 to 3) and b (4 to 7); bits 3, 7, 11 and 15 of a selector are 0.
PITH_HD inline std::uint32_t pick_bytes(std::uint32_t a, std::uint32_t b, std::uint32_t selector) noexcept {
#if defined(__CUDA_ARCH__)
  std::uint32_t out;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(out) : "r"(a), "r"(b), "r"(selector));  // __byte_perm clears those bits first
  return out;
#else
  std::uint64_t const both = a | static_cast<std::uint64_t>(b) << 32;
  std::uint32_t out = 0;
  for (int i = 0; i < 4; ++i) out |= static_cast<std::uint32_t>(both >> (8 * (selector >> (4 * i) & 7u)) & 0xffu) << (8 * i);
  return out;
#endif
}

// Of bits that are one, and the place of the lowest of them; some bit is one.
PITH_HD inline int count_bits(std::uint32_t word) noexcept {
#if defined(__CUDA_ARCH__)
  return __popc(word);
#else
  return __builtin_popcount(word);
#endif
}
PITH_HD inline int lowest_bit(std::uint32_t word) noexcept {
#if defined(__CUDA_ARCH__)
  return __ffs(static_cast<int>(word)) - 1;
#else
  return __builtin_ctz(word);
#endif
}
// The lowest bits, 0 to 32 of them.
PITH_HD inline std::uint32_t low_bits(int number) noexcept {
  return static_cast<std::uint32_t>((std::uint64_t{0xffffffffu} << number) >> 32);
}
// 32 bits of two words from a bit of the lower one on.
PITH_HD inline std::uint32_t bits_from(std::uint32_t low, std::uint32_t high, unsigned bit) noexcept {
  return static_cast<std::uint32_t>((static_cast<std::uint64_t>(high) << 32 | low) >> (bit & 31u));
}

PITH_HD inline float float_of_f16(std::uint32_t low_bits) noexcept {
#if defined(__CUDA_ARCH__)
  float out;
  asm("cvt.f32.f16 %0, %1;" : "=f"(out) : "h"(static_cast<std::uint16_t>(low_bits)));
  return out;
#else
  return to_float(f16{static_cast<std::uint16_t>(low_bits)});
#endif
}

PITH_HD inline std::uint32_t two_f16(float low, float high) noexcept {
#if defined(__CUDA_ARCH__)
  std::uint32_t out;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(high), "f"(low));
  return out;
#else
  return from_float<f16>(low).bits | static_cast<std::uint32_t>(from_float<f16>(high).bits) << 16;
#endif
}
PITH_HD inline std::uint32_t two_bf16(float low, float high) noexcept {
#if defined(__CUDA_ARCH__)
  std::uint32_t out;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(high), "f"(low));
  return out;
#else
  return from_float<bf16>(low).bits | static_cast<std::uint32_t>(from_float<bf16>(high).bits) << 16;
#endif
}

// Halves of a word as f32.
template <class T>
PITH_HD inline float low_of(std::uint32_t word) noexcept {
  if constexpr (sizeof(T) == 2 && __is_same(T, bf16))
    return bits_float(word << 16);
  else
    return float_of_f16(word & 0xffffu);
}
template <class T>
PITH_HD inline float high_of(std::uint32_t word) noexcept {
  if constexpr (sizeof(T) == 2 && __is_same(T, bf16))
    return bits_float(word & 0xffff0000u);
  else
    return float_of_f16(word >> 16);
}
template <class T>
PITH_HD inline std::uint32_t two_of(float low, float high) noexcept {
  if constexpr (__is_same(T, bf16))
    return two_bf16(low, high);
  else
    return two_f16(low, high);
}

// a * b + c in both halves, f16, rounded once.
PITH_HD inline std::uint32_t fma_f16(std::uint32_t a, std::uint32_t b, std::uint32_t c) noexcept {
#if defined(__CUDA_ARCH__)
  std::uint32_t out;
  asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(out) : "r"(a), "r"(b), "r"(c));
  return out;
#else
  // The product of two f16 is exact in f32; the sum of it and an f16 is exact in f64, or one of them is below what can decide the other's
  // rounding. Rounding it to f32 with the lost bits made sticky keeps the second rounding right.
  auto const one = [](std::uint32_t x, std::uint32_t y, std::uint32_t z) {
    double const exact = static_cast<double>(float_of_f16(x)) * static_cast<double>(float_of_f16(y)) + static_cast<double>(float_of_f16(z));
    float near = static_cast<float>(exact);
    if (static_cast<double>(near) != exact) {
      if ((near < 0 ? static_cast<double>(near) < exact : static_cast<double>(near) > exact)) near = bits_float(float_bits(near) - 1);
      near = bits_float(float_bits(near) | 1u);
    }
    return static_cast<std::uint32_t>(from_float<f16>(near).bits);
  };
  return one(a & 0xffffu, b & 0xffffu, c & 0xffffu) | one(a >> 16, b >> 16, c >> 16) << 16;
#endif
}

// 1 / x of a power of two from 2^-125 to 2^126.
PITH_HD inline float inverse_power(float x) noexcept { return bits_float(0x7f000000u - float_bits(x)); }
// a / b within 2 units in the last place, b from 2^-126 to 2^126.
PITH_HD inline float divide_fast(float a, float b) noexcept {
#if defined(__CUDA_ARCH__)
  return __fdividef(a, b);
#else
  return a / b;
#endif
}

// The larger of two numbers, and the other one if one is NaN.
PITH_HD inline float larger(float a, float b) noexcept {
#if defined(__CUDA_ARCH__)
  return fmaxf(a, b);
#else
  return __builtin_fmaxf(a, b);
#endif
}

// 2^x, within 2 units in the last place of the result; 0 below 2^-126.
PITH_HD inline float exp2_fast(float x) noexcept {
#if defined(__CUDA_ARCH__)
  float out;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(x));
  return out;
#else
  return x < -126.0f ? 0.0f : __builtin_exp2f(x);
#endif
}
PITH_HD inline float log2_fast(float x) noexcept {
#if defined(__CUDA_ARCH__)
  return __log2f(x);
#else
  return __builtin_log2f(x);
#endif
}

// The power of two at or below a positive finite number, from 2^-125 to 2^126; 1 for 0 and what is not finite.
PITH_HD inline float power_below(float x) noexcept {
  std::uint32_t const exponent = float_bits(x) >> 23 & 0xffu;
  if (exponent == 0xffu || float_bits(x) << 1 == 0) return 1.0f;
  return bits_float((exponent < 2 ? 2u : exponent > 253 ? 253u : exponent) << 23);
}

// One stored scale.
template <scale_scalar T>
PITH_HD inline float scale_at(std::byte const* from) noexcept {
  if constexpr (sizeof(T) == 1)
    return bits_float(static_cast<std::uint32_t>(*reinterpret_cast<std::uint8_t const*>(from)) << 23);
  else if constexpr (sizeof(T) == 2)
    return low_of<T>(*reinterpret_cast<std::uint16_t const*>(from));
  else
    return *reinterpret_cast<float const*>(from);
}

// A read of N bytes, aligned to N. The packed formats are little-endian, and so is every machine with such a device.
template <class Word>
PITH_HD inline Word load_word(std::byte const* from) noexcept {
  return *reinterpret_cast<Word const*>(from);
}
template <class Word>
PITH_HD inline void store_word(std::byte* to, Word const& word) noexcept {
  *reinterpret_cast<Word*>(to) = word;
}

}  // namespace pith::device
