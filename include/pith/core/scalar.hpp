// SPDX-License-Identifier: Apache-2.0
// The 16-bit floating-point storage types and their exact conversions, round to nearest, ties to even; and the one-byte scale.
//
//   bf16  sign 1, exponent 8, mantissa 7     the upper half of an f32
//   f16   sign 1, exponent 5, mantissa 10    IEEE binary16
//   e8m0  exponent 8 and nothing else        a power of two 2^(bits - 127), or zero (bits = 0): the exponent field of an f32
//
// Integer arithmetic only: the same bits on every machine, under every floating-point flag. A NaN stays a NaN (made quiet).
#pragma once

#include <cstdint>
#include <type_traits>

#include "config.hpp"

namespace pith {

using f32 = float;

struct bf16 {
  std::uint16_t bits;
  friend constexpr bool operator==(bf16, bf16) noexcept = default;  // compares bits
};

struct f16 {
  std::uint16_t bits;
  friend constexpr bool operator==(f16, f16) noexcept = default;  // compares bits
};

// What block formats store as a scale. OCP's E8M0 but for its ends: 0 is zero here and 2^-127 there, 255 is infinity here and NaN there.
struct e8m0 {
  std::uint8_t bits;
  friend constexpr bool operator==(e8m0, e8m0) noexcept = default;
};

PITH_HD constexpr std::uint32_t float_bits(float x) noexcept { return __builtin_bit_cast(std::uint32_t, x); }
PITH_HD constexpr float bits_float(std::uint32_t x) noexcept { return __builtin_bit_cast(float, x); }

// Written on bits, so that -ffast-math cannot remove them.
PITH_HD constexpr bool is_nan(float x) noexcept { return (float_bits(x) & 0x7fffffffu) > 0x7f800000u; }
PITH_HD constexpr bool is_finite(float x) noexcept { return (float_bits(x) & 0x7f800000u) != 0x7f800000u; }

PITH_HD constexpr float to_float(float x) noexcept { return x; }
PITH_HD constexpr float to_float(bf16 x) noexcept { return bits_float(static_cast<std::uint32_t>(x.bits) << 16); }
PITH_HD constexpr float to_float(e8m0 x) noexcept { return bits_float(static_cast<std::uint32_t>(x.bits) << 23); }
PITH_HD constexpr float to_float(f16 x) noexcept {
#if defined(__CUDA_ARCH__)
  if (!__builtin_is_constant_evaluated() && (x.bits & 0x7fffu) <= 0x7c00u) {  // the device's conversion, but it drops a NaN's payload
    float out = 0;
    asm("cvt.f32.f16 %0, %1;" : "=f"(out) : "h"(x.bits));
    return out;
  }
  if (!__builtin_is_constant_evaluated()) return bits_float((x.bits & 0x8000u) << 16 | 0x7fc00000u | (x.bits & 0x3ffu) << 13);
#endif
  std::uint32_t const sign = static_cast<std::uint32_t>(x.bits & 0x8000u) << 16;
  std::uint32_t const exponent = (x.bits >> 10) & 0x1fu;
  std::uint32_t mantissa = x.bits & 0x3ffu;
  if (exponent == 31) return bits_float(sign | 0x7f800000u | (mantissa << 13) | (mantissa ? 0x00400000u : 0u));
  if (exponent != 0) return bits_float(sign | ((exponent + 112) << 23) | (mantissa << 13));
  if (mantissa == 0) return bits_float(sign);
  std::uint32_t shift = 0;  // subnormal: move the leading one to bit 10
  while ((mantissa & 0x400u) == 0) {
    mantissa <<= 1;
    ++shift;
  }
  return bits_float(sign | ((113 - shift) << 23) | ((mantissa & 0x3ffu) << 13));
}

template <class T>
PITH_HD constexpr T from_float(float x) noexcept;

template <>
PITH_HD constexpr float from_float<float>(float x) noexcept {
  return x;
}

template <>
PITH_HD constexpr bf16 from_float<bf16>(float x) noexcept {
  std::uint32_t const bits = float_bits(x);
  if (is_nan(x)) return bf16{static_cast<std::uint16_t>((bits >> 16) | 0x40u)};
  return bf16{static_cast<std::uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}

template <>
PITH_HD constexpr f16 from_float<f16>(float x) noexcept {
#if defined(__CUDA_ARCH__)
  if (!__builtin_is_constant_evaluated()) {
    std::uint16_t out = 0;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(out) : "f"(x));
    std::uint32_t const all = float_bits(x);
    return f16{is_nan(x) ? static_cast<std::uint16_t>((all >> 16 & 0x8000u) | 0x7e00u | (all >> 13 & 0x3ffu)) : out};
  }
#endif
  std::uint32_t const bits = float_bits(x);
  std::uint16_t const sign = static_cast<std::uint16_t>((bits >> 16) & 0x8000u);
  std::uint32_t const magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return f16{static_cast<std::uint16_t>(sign | 0x7e00u | ((magnitude >> 13) & 0x3ffu))};
  if (magnitude >= 0x477ff000u) return f16{static_cast<std::uint16_t>(sign | 0x7c00u)};  // from 65520 on: infinity
  if (magnitude < 0x33000001u) return f16{sign};                                        // up to 2^-25: zero
  if (magnitude < 0x38800000u) {                                                        // subnormal in f16
    std::uint32_t const exponent = magnitude >> 23;
    std::uint32_t const mantissa = (magnitude & 0x7fffffu) | 0x800000u;
    std::uint32_t const shift = 126 - exponent;
    std::uint32_t const half = 1u << (shift - 1);
    std::uint32_t const kept = mantissa >> shift, rest = mantissa & ((1u << shift) - 1);
    return f16{static_cast<std::uint16_t>(sign | (kept + (rest > half || (rest == half && (kept & 1u)))))};
  }
  std::uint32_t const rebased = magnitude - (112u << 23);
  return f16{static_cast<std::uint16_t>(sign | ((rebased + 0xfffu + ((rebased >> 13) & 1u)) >> 13))};
}

// 2^floor(log2 x): not above x. Zero for what is below 2^-126, negative or a NaN; the largest power, 2^127, for infinity.
template <>
PITH_HD constexpr e8m0 from_float<e8m0>(float x) noexcept {
  std::uint32_t const bits = float_bits(x);
  if (bits > 0x7f800000u) return e8m0{0};
  return e8m0{static_cast<std::uint8_t>(bits == 0x7f800000u ? 254u : bits >> 23)};
}

template <class T>
inline constexpr bool is_storage_scalar = std::is_same_v<T, bf16> || std::is_same_v<T, f16> || std::is_same_v<T, float>;

template <class T>
concept storage_scalar = is_storage_scalar<T>;

// What a scale can be stored as.
template <class T>
concept scale_scalar = is_storage_scalar<T> || std::is_same_v<T, e8m0>;

// Largest finite value; the bound of a saturating conversion.
template <storage_scalar T>
inline constexpr float largest = std::is_same_v<T, f16> ? 65504.0f : std::is_same_v<T, bf16> ? 0x1.fep127f : 0x1.fffffep127f;

// from_float, but what would overflow to infinity becomes the largest finite value. NaN becomes zero.
template <storage_scalar T>
PITH_HD constexpr T from_float_saturated(float x) noexcept {
  if (is_nan(x)) return from_float<T>(0.0f);
  return from_float<T>(x > largest<T> ? largest<T> : x < -largest<T> ? -largest<T> : x);
}

}  // namespace pith
