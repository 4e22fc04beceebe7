// SPDX-License-Identifier: Apache-2.0
// The 8-bit floating-point types and their exact conversions, round to nearest, ties to even.
//
//   e4m3  sign 1, exponent 4 (bias 7),  mantissa 3    largest 448, smallest 2^-9;    no infinity, NaN is 0x7f and 0xff
//   e5m2  sign 1, exponent 5 (bias 15), mantissa 2    largest 57344, smallest 2^-16; infinity 0x7c, NaN above: the upper half of an f16
//
// from_float gives NaN (e4m3) or infinity (e5m2) from half a unit above the largest on; from_float_saturated gives the largest, and zero
// for NaN. Integer arithmetic only, as in core/scalar.hpp.
// from    Micikevicius et al., FP8 Formats for Deep Learning, 2022; OCP 8-bit Floating Point Specification, 2023
#pragma once

#include <concepts>
#include <cstdint>

#include "pith/core/scalar.hpp"

namespace pith {

struct e4m3 {
  static constexpr int mantissa_bits = 3, bias = 7;
  static constexpr std::uint32_t largest_code = 0x7e, overflow_code = 0x7f;
  static constexpr float largest = 448.0f;
  std::uint8_t bits;
  friend constexpr bool operator==(e4m3, e4m3) noexcept = default;  // compares bits
};

struct e5m2 {
  static constexpr int mantissa_bits = 2, bias = 15;
  static constexpr std::uint32_t largest_code = 0x7b, overflow_code = 0x7c;
  static constexpr float largest = 57344.0f;
  std::uint8_t bits;
  friend constexpr bool operator==(e5m2, e5m2) noexcept = default;  // compares bits
};

template <class T>
concept small_float = std::same_as<T, e4m3> || std::same_as<T, e5m2>;

template <small_float T>
PITH_HD constexpr float to_float(T x) noexcept {
  constexpr int mantissa_bits = T::mantissa_bits;
  std::uint32_t const sign = static_cast<std::uint32_t>(x.bits & 0x80u) << 24, code = x.bits & 0x7fu;
  if (code > T::largest_code) return bits_float(sign | (std::same_as<T, e5m2> && code == 0x7c ? 0x7f800000u : 0x7fc00000u));
  if (code >> mantissa_bits != 0) return bits_float(sign | ((code << (23 - mantissa_bits)) + ((127u - T::bias) << 23)));
  constexpr float unit = bits_float(static_cast<std::uint32_t>(128 - T::bias - mantissa_bits) << 23);
  return bits_float(sign | float_bits(static_cast<float>(code) * unit));  // subnormal: exact
}

// The code of |x|, without the sign: 0 to largest_code, or overflow_code.
template <small_float T>
PITH_HD constexpr std::uint32_t nearest_code(float x) noexcept {
  constexpr int shift = 23 - T::mantissa_bits;
  std::uint32_t const magnitude = float_bits(x) & 0x7fffffffu, exponent = magnitude >> 23;
  if (magnitude > 0x7f800000u) return 0x7f;
  std::uint32_t code = 0;
  if (exponent > 127u - T::bias) {
    std::uint32_t const rebased = magnitude - ((127u - T::bias) << 23);
    code = (rebased + ((1u << (shift - 1)) - 1u) + ((rebased >> shift) & 1u)) >> shift;
  } else {
    std::uint32_t const mantissa = (magnitude & 0x7fffffu) | 0x800000u;
    std::uint32_t const down = 128u - T::bias + shift - exponent;  // to units of the smallest
    if (down > 24) return 0;
    std::uint32_t const half = 1u << (down - 1), kept = mantissa >> down, rest = mantissa & ((1u << down) - 1u);
    code = kept + (rest > half || (rest == half && (kept & 1u)));
  }
  return code > T::largest_code ? T::overflow_code : code;
}

template <>
PITH_HD constexpr e4m3 from_float<e4m3>(float x) noexcept {
  return e4m3{static_cast<std::uint8_t>((float_bits(x) >> 24 & 0x80u) | nearest_code<e4m3>(x))};
}
template <>
PITH_HD constexpr e5m2 from_float<e5m2>(float x) noexcept {
  return e5m2{static_cast<std::uint8_t>((float_bits(x) >> 24 & 0x80u) | nearest_code<e5m2>(x))};
}

template <small_float T>
PITH_HD constexpr T from_float_saturated(float x) noexcept {
  if (is_nan(x)) return T{0};
  std::uint32_t const code = nearest_code<T>(x);
  return T{static_cast<std::uint8_t>((float_bits(x) >> 24 & 0x80u) | (code > T::largest_code ? T::largest_code : code))};
}

// Half the distance between neighbours of T about x, for |x| up to the largest: what rounding may add.
template <small_float T>
PITH_HD constexpr float half_unit(float x) noexcept {
  std::uint32_t const exponent = (float_bits(x) & 0x7fffffffu) >> 23, least = 128u - T::bias;
  return bits_float(((exponent > least ? exponent : least) - T::mantissa_bits - 1u) << 23);
}

}  // namespace pith
