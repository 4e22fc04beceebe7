// SPDX-License-Identifier: Apache-2.0
// The few floating-point steps of encoding, written so that stored bytes do not depend on compiler flags.
//
// FMA contraction fuses a product that feeds a sum; -ffast-math replaces divisions by reciprocals and cancels (x + c) - c. So the
// encoders divide only through div_rn, never add to a product directly, and round through the bits of a sum.
// Flush-to-zero mode is excluded: it changes subnormal inputs.
#pragma once

#include <cstdint>
#include <type_traits>

#include "pith/core/scalar.hpp"

namespace pith {

// a / b, correctly rounded under every flag. Cost: one division that is not vectorised; use it once per group.
PITH_HD constexpr float div_rn(float a, float b) noexcept {
#if defined(__CUDA_ARCH__)
  return __fdiv_rn(a, b);
#else
  if (__builtin_is_constant_evaluated()) return a / b;
  // Opaque on both sides: under -ffast-math a constant divisor would become a multiplication, and x * (1 / b) would become x / b.
  float volatile divisor = b, quotient = a / divisor;
  return quotient;
#endif
}

// Nearest integer, ties to even, for |x| <= 2^21. The caller clamps x first, which also keeps a product from fusing into the sum.
PITH_HD constexpr std::int32_t round_even(float x) noexcept {
  return static_cast<std::int32_t>(float_bits(x + 12582912.0f)) - 0x4b400000;  // 1.5 * 2^23: the sum's unit is 1
}

PITH_HD constexpr float clamp(float x, float low, float high) noexcept { return x < low ? low : x > high ? high : x; }
PITH_HD constexpr std::int32_t clamp(std::int32_t x, std::int32_t low, std::int32_t high) noexcept {
  return x < low ? low : x > high ? high : x;
}

// Hides a buffer from the optimiser, so that what was computed into it is rounded before it is used again.
PITH_HD inline void settle(void const* buffer) noexcept {
#if !defined(__CUDA_ARCH__)
  asm volatile("" : : "r"(buffer) : "memory");
#endif
}

}  // namespace pith
