// SPDX-License-Identifier: Apache-2.0
// The bf16 pair product: two channels of a row lie in one word, and both meet their partners at once.
//
//   dot2(acc, a, b)[i] = acc[i] + low(a[i]) low(b[i]) + high(a[i]) high(b[i])      low and high halves of words as bf16
//
// Products of bf16 are exact in f32. vdpbf16ps where the machine has it: each sum is rounded to nearest even, and subnormal numbers count
// as zero, in operands and in sums (2^-126 at most for each). Elsewhere halves are widened and multiplied by fma.
#pragma once

#include "pith/simd/vec.hpp"

namespace pith {
inline namespace PITH_ISA {
namespace simd {

#if defined(__AVX512BF16__) && defined(__AVX512F__) && !defined(PITH_NO_SIMD)
inline constexpr bool fast_dot2 = true;
#else
inline constexpr bool fast_dot2 = false;
#endif

PITH_INLINE f32v dot2(f32v acc, u32v a, u32v b) {
#if defined(__AVX512BF16__) && defined(__AVX512F__) && !defined(PITH_NO_SIMD)
  __m512 sum = acc;  // clang 16 crashes on the intrinsic with a broadcast operand, g++ 12 copies accumulators around it
  asm("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(static_cast<__m512i>(a)), "v"(static_cast<__m512i>(b)));
  return f32v(sum);
#else
  u32v const upper(0xffff0000u);
  return fma(as_float(a & upper), as_float(b & upper), fma(as_float(a << 16), as_float(b << 16), acc));
#endif
}

}  // namespace simd
}  // namespace PITH_ISA
}  // namespace pith
