// SPDX-License-Identifier: Apache-2.0
// Compiler and platform facts. None of these macros changes the layout of a class.
#pragma once

#include <bit>

#if defined(__CUDACC__)
#define PITH_HD __host__ __device__
#else
#define PITH_HD
#endif

#define PITH_INLINE inline __attribute__((always_inline))
#define PITH_RESTRICT __restrict__

// Before a loop of few, known steps over registers. nvcc's host side knows no such pragma that the compiler behind it knows too. With
// PITH_NO_UNROLL the host leaves loops alone: tests that emulate a device, and those without vectors, compile in a quarter of the time.
#if defined(__CUDA_ARCH__)
#define PITH_UNROLL _Pragma("unroll")
#elif defined(__CUDACC__) || defined(PITH_NO_UNROLL)
#define PITH_UNROLL
#elif defined(__clang__)
#define PITH_UNROLL _Pragma("clang loop unroll(full)")
#else
#define PITH_UNROLL _Pragma("GCC unroll 32")
#endif

// A precondition that the caller must keep: never used on data. Off unless PITH_CHECKED is defined.
#if defined(PITH_CHECKED) && defined(__CUDACC__)
namespace pith {
#pragma nv_exec_check_disable
PITH_HD inline void precondition_broken() {
#if defined(__CUDA_ARCH__)
  __trap();
#else
  __builtin_trap();
#endif
}
}  // namespace pith
#define PITH_EXPECTS(condition) ((condition) ? static_cast<void>(0) : ::pith::precondition_broken())
#elif defined(PITH_CHECKED)
#define PITH_EXPECTS(condition) ((condition) ? static_cast<void>(0) : __builtin_trap())
#else
#define PITH_EXPECTS(condition) static_cast<void>(0)
#endif

// The instruction set that simd/ and cpu/ are compiled for; it names their inline namespace, so that objects compiled with
// different flags do not share one version of a template.
#if defined(PITH_NO_SIMD)
#define PITH_ISA isa_scalar
#elif defined(__AVX512BF16__) && defined(__AVX512VNNI__) && defined(__AVX512VBMI__) && defined(__AVX512VBMI2__) && defined(__GFNI__) && \
    defined(__AVX512BW__)
#define PITH_ISA isa_avx512_bf16_vbmi2
#elif defined(__AVX512BF16__) && defined(__AVX512VNNI__) && defined(__AVX512VBMI__) && defined(__AVX512BW__)
#define PITH_ISA isa_avx512_bf16_vbmi
#elif defined(__AVX512BF16__) && defined(__AVX512VNNI__) && defined(__AVX512BW__)
#define PITH_ISA isa_avx512_bf16
#elif defined(__AVX512VNNI__) && defined(__AVX512VBMI__) && defined(__AVX512VBMI2__) && defined(__GFNI__) && defined(__AVX512BW__)
#define PITH_ISA isa_avx512_vnni_vbmi2
#elif defined(__AVX512VNNI__) && defined(__AVX512VBMI__) && defined(__AVX512BW__)
#define PITH_ISA isa_avx512_vnni_vbmi
#elif defined(__AVX512VNNI__) && defined(__AVX512BW__)
#define PITH_ISA isa_avx512_vnni
#elif defined(__AVX512VBMI__) && defined(__AVX512VBMI2__) && defined(__GFNI__) && defined(__AVX512BW__)
#define PITH_ISA isa_avx512_vbmi2
#elif defined(__AVX512VBMI__) && defined(__AVX512BW__)
#define PITH_ISA isa_avx512_vbmi
#elif defined(__AVX512BW__)
#define PITH_ISA isa_avx512
#elif defined(__AVXVNNI__)
#define PITH_ISA isa_avx2_vnni
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#define PITH_ISA isa_avx2
#elif defined(__AVX2__) && defined(__FMA__)
#define PITH_ISA isa_avx2_no_f16c
#elif defined(__AVX2__)
#define PITH_ISA isa_avx2_no_fma
#elif defined(__AVX__)
#define PITH_ISA isa_avx
#elif defined(__ARM_NEON) && defined(__ARM_FEATURE_MATMUL_INT8)
#define PITH_ISA isa_neon_i8mm
#elif defined(__ARM_NEON) && defined(__ARM_FEATURE_DOTPROD)
#define PITH_ISA isa_neon_dotprod
#elif defined(__aarch64__)
#define PITH_ISA isa_neon
#elif defined(__SSE4_2__)
#define PITH_ISA isa_sse42
#else
#define PITH_ISA isa_scalar
#define PITH_NO_SIMD 1
#endif

static_assert(std::endian::native == std::endian::little || std::endian::native == std::endian::big,
              "[pith] mixed-endian machines are not supported.");
