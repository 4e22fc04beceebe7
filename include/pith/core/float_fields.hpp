// SPDX-License-Identifier: Apache-2.0
// A floating-point number's bits as an exponent, whose values are unevenly frequent and worth coding, and a rest, which is not.
//
//   bits = sign | exponent (E bits) | mantissa (M bits)   ->   exponent, and rest = sign | mantissa (1 + M bits)
//
// Keep K < M of the mantissa's bits: the number is rounded to nearest, ties to even, a carry goes into the exponent, but not into infinity's.
// An infinity stays one, a NaN keeps its upper bits and one that is set; K = 0 knows no NaN: it becomes an infinity.
// from    bf16, f32: exponents of trained weights have about 2.6 bits, sign and mantissa less than 0.05 to gain
#pragma once

#include "pith/core/small_float.hpp"

namespace pith {

template <class T>
concept dynamic_scalar = storage_scalar<T> || small_float<T>;

template <dynamic_scalar T>
struct float_fields {
  using word = std::conditional_t<sizeof(T) == 4, std::uint32_t, std::conditional_t<sizeof(T) == 2, std::uint16_t, std::uint8_t>>;
  static constexpr int exponent_bits = std::is_same_v<T, f16> || std::is_same_v<T, e5m2> ? 5 : std::is_same_v<T, e4m3> ? 4 : 8;
  static constexpr int mantissa_bits = 8 * static_cast<int>(sizeof(T)) - 1 - exponent_bits;

  PITH_HD static constexpr word bits(T x) noexcept {
    if constexpr (std::is_same_v<T, float>)
      return float_bits(x);
    else
      return x.bits;
  }
  PITH_HD static constexpr T number(word bits) noexcept {
    if constexpr (std::is_same_v<T, float>)
      return bits_float(bits);
    else
      return T{bits};
  }

  template <int Kept>
  PITH_HD static constexpr word rounded(word x) noexcept {
    static_assert(Kept >= 0 && Kept <= mantissa_bits);
    constexpr int drop = mantissa_bits - Kept;
    if constexpr (drop == 0) {
      return x;
    } else {
      constexpr std::uint32_t top = (1u << exponent_bits) - 1u, sign_bit = 1u << (8 * sizeof(T) - 1), low = (1u << drop) - 1u;
      std::uint32_t const sign = x & sign_bit, size = x & (sign_bit - 1u);
      if (size >> mantissa_bits == top)  // infinity or NaN (in e4m3 also numbers, which have no room above)
        return static_cast<word>(sign | (size & ~low) |
                                 (Kept > 0 && (size & ~low) == top << mantissa_bits && (size & low) != 0 ? 1u << drop : 0u));
      std::uint32_t const up = (size + (low >> 1) + ((size >> drop) & 1u)) & ~low;
      return static_cast<word>(sign | (up >> mantissa_bits == top ? size & ~low : up));
    }
  }
};

// The number as a T, bit for bit if it is one already: f32 holds every bf16 and f32 exactly, NaNs included.
template <dynamic_scalar T, class S>
PITH_HD constexpr T as_scalar(S x) noexcept {
  if constexpr (std::is_same_v<T, S>) {
    return x;
  } else if constexpr (std::is_same_v<T, bf16>) {
    std::uint32_t const bits = float_bits(to_float(x));
    return (bits & 0xffffu) == 0 ? bf16{static_cast<std::uint16_t>(bits >> 16)} : from_float<bf16>(bits_float(bits));
  } else {
    return from_float<T>(to_float(x));
  }
}

}  // namespace pith
