// SPDX-License-Identifier: Apache-2.0
// Every 16-bit pattern, every rounding boundary, and the compiler's and the processor's own conversions on random patterns.
#include "pith/core/scalar.hpp"

#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <type_traits>

#if defined(__AVX512BF16__) || defined(__AVX512F__)
#include <immintrin.h>
#endif

#include "support/catch.hpp"

namespace {

using pith::bf16, pith::f16, pith::bits_float, pith::float_bits, pith::from_float, pith::to_float;

template <class T>
constexpr std::uint32_t infinity_bits = std::is_same_v<T, f16> ? 0x7c00 : 0x7f80;
template <class T>
constexpr std::uint32_t quiet_bit = std::is_same_v<T, f16> ? 0x200 : 0x40;
// What infinity's pattern would be worth if the exponent range went on: where rounding to infinity starts is half-way there.
template <class T>
constexpr double after_largest = std::is_same_v<T, f16> ? 0x1p16 : 0x1p128;

template <class T>
T pattern(std::uint32_t bits) {
  return T{static_cast<std::uint16_t>(bits)};
}

template <class T>
bool is_nan_pattern(std::uint32_t bits) {
  return (bits & 0x7fff) > infinity_bits<T>;
}

// The value of a finite pattern, from the format's definition.
template <class T>
double defined_value(std::uint32_t bits) {
  int const mantissa_bits = std::is_same_v<T, f16> ? 10 : 7, bias = std::is_same_v<T, f16> ? 15 : 127;
  int const exponent = static_cast<int>((bits & 0x7fff) >> mantissa_bits);
  double const mantissa = static_cast<double>(bits & ((1u << mantissa_bits) - 1)) / (1 << mantissa_bits);
  double const magnitude = exponent == 0 ? std::ldexp(mantissa, 1 - bias) : std::ldexp(1 + mantissa, exponent - bias);
  return bits & 0x8000 ? -magnitude : magnitude;
}

// f32 patterns: half of them uniform, half of them near the 16-bit formats' ranges and edges.
class patterns {
 public:
  std::uint32_t next() {
    std::uint64_t const random = engine_();
    std::uint32_t const bits = static_cast<std::uint32_t>(random);
    switch ((random >> 32) & 7) {
      case 0: return (bits & 0x807fffff) | (static_cast<std::uint32_t>(100 + ((random >> 40) & 63)) << 23);  // f16's exponents
      case 1: return bits & 0x807fffff;                                                                      // f32 subnormals
      case 2: return bits | 0x7f800000;                                                                      // NaN
      case 3: return (bits & 0xffff0000) | 0x8000 | ((random >> 40) & 3);                                    // about bf16 ties
      default: return bits;
    }
  }

 private:
  std::mt19937_64 engine_{20260101};
};

}  // namespace

TEMPLATE_TEST_CASE("scalar: every finite 16-bit pattern has the value that the format defines", "[core][exhaustive]", bf16, f16) {
  int wrong = 0;
  for (std::uint32_t bits = 0; bits < 65536; ++bits) {
    if ((bits & 0x7fff) >= infinity_bits<TestType>) continue;
    float const value = to_float(pattern<TestType>(bits));
    wrong += value != defined_value<TestType>(bits) || std::signbit(value) != (bits >> 15 != 0);
  }
  CHECK(wrong == 0);
  CHECK(to_float(pattern<TestType>(infinity_bits<TestType>)) == std::numeric_limits<float>::infinity());
  CHECK(to_float(pattern<TestType>(infinity_bits<TestType> | 0x8000)) == -std::numeric_limits<float>::infinity());
}

TEMPLATE_TEST_CASE("scalar: every 16-bit pattern survives f32 and back, and a NaN comes back quiet", "[core][exhaustive]", bf16, f16) {
  int wrong = 0;
  for (std::uint32_t bits = 0; bits < 65536; ++bits) {
    bool const nan = is_nan_pattern<TestType>(bits);
    float const wide = to_float(pattern<TestType>(bits));
    wrong += pith::is_nan(wide) != nan;
    wrong += from_float<TestType>(wide) != pattern<TestType>(nan ? bits | quiet_bit<TestType> : bits);
  }
  CHECK(wrong == 0);
}

TEMPLATE_TEST_CASE("scalar: rounding is to nearest, ties to even, at every boundary between neighbours", "[core][exhaustive]", bf16, f16) {
  int wrong = 0, boundaries = 0;
  for (std::uint32_t low = 0; low < infinity_bits<TestType>; ++low) {
    std::uint32_t const high = low + 1, even = low & 1 ? high : low;
    double const above = high == infinity_bits<TestType> ? after_largest<TestType> : defined_value<TestType>(high);
    double const middle = (defined_value<TestType>(low) + above) / 2;
    float const tie = static_cast<float>(middle);
    REQUIRE(static_cast<double>(tie) == middle);
    std::uint32_t const tie_bits = float_bits(tie);  // positive: the next float up is the next pattern up
    for (std::uint32_t sign : {0u, 0x8000u}) {
      std::uint32_t const wide_sign = sign << 16;
      wrong += from_float<TestType>(bits_float(wide_sign | tie_bits)) != pattern<TestType>(sign | even);
      wrong += from_float<TestType>(bits_float(wide_sign | (tie_bits - 1))) != pattern<TestType>(sign | low);
      wrong += from_float<TestType>(bits_float(wide_sign | (tie_bits + 1))) != pattern<TestType>(sign | high);
      ++boundaries;
    }
  }
  CHECK(wrong == 0);
  CHECK(boundaries == 2 * static_cast<int>(infinity_bits<TestType>));
}

TEMPLATE_TEST_CASE("scalar: conversion from f32 never decreases, over all exponents", "[core]", bf16, f16) {
  int wrong = 0;
  std::uint32_t before = 0;
  for (std::uint32_t bits = 0; bits <= 0x7f800000u; bits += 509) {
    std::uint32_t const now = from_float<TestType>(bits_float(bits)).bits;
    wrong += now < before;
    before = now;
  }
  CHECK(wrong == 0);
}

#if defined(__aarch64__)
using compilers_f16 = __fp16;  // g++ 12 has no _Float16 in C++ there
#elif defined(__FLT16_MANT_DIG__)
using compilers_f16 = _Float16;
#endif
#if defined(__aarch64__) || defined(__FLT16_MANT_DIG__)
TEST_CASE("scalar: f16 agrees with the compiler's own on ten million patterns", "[core][differential]") {
  patterns source;
  int wrong = 0;
  for (int i = 0; i < 10'000'000; ++i) {
    float const x = bits_float(source.next());
    wrong += from_float<f16>(x).bits != __builtin_bit_cast(std::uint16_t, static_cast<compilers_f16>(x));
  }
  CHECK(wrong == 0);
  for (std::uint32_t bits = 0; bits < 65536; ++bits) {
    float const theirs = static_cast<float>(__builtin_bit_cast(compilers_f16, static_cast<std::uint16_t>(bits)));
    wrong += float_bits(to_float(pattern<f16>(bits))) != float_bits(theirs);
  }
  CHECK(wrong == 0);
}
#endif

#if defined(__AVX512F__)
TEST_CASE("scalar: f16 agrees with the processor's vcvtps2ph and vcvtph2ps on ten million patterns", "[core][differential]") {
  patterns source;
  int wrong = 0;
  for (int i = 0; i < 10'000'000; i += 16) {
    alignas(64) std::uint32_t wide[16], back[16];
    alignas(32) std::uint16_t narrow[16];
    for (std::uint32_t& w : wide) w = source.next();
    __m256i const converted = _mm512_cvtps_ph(_mm512_castsi512_ps(_mm512_load_si512(wide)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    _mm256_store_si256(reinterpret_cast<__m256i*>(narrow), converted);
    _mm512_store_si512(back, _mm512_castps_si512(_mm512_cvtph_ps(converted)));
    for (int lane = 0; lane < 16; ++lane) {
      wrong += from_float<f16>(bits_float(wide[lane])).bits != narrow[lane];
      wrong += float_bits(to_float(pattern<f16>(narrow[lane]))) != back[lane];
    }
  }
  CHECK(wrong == 0);
}
#endif

#if defined(__AVX512BF16__)
TEST_CASE("scalar: bf16 agrees with the processor's vcvtneps2bf16, subnormals apart, on ten million patterns", "[core][differential]") {
  patterns source;
  int wrong = 0;
  for (int i = 0; i < 10'000'000; i += 16) {
    alignas(64) std::uint32_t wide[16];
    alignas(32) std::uint16_t narrow[16];
    for (std::uint32_t& w : wide) {
      do w = source.next();
      while ((w & 0x7f800000u) == 0);  // the instruction takes subnormals as zero
    }
    auto const converted = _mm512_cvtneps_pbh(_mm512_castsi512_ps(_mm512_load_si512(wide)));
    static_assert(sizeof converted == sizeof narrow);
    __builtin_memcpy(narrow, &converted, sizeof narrow);
    for (int lane = 0; lane < 16; ++lane) wrong += from_float<bf16>(bits_float(wide[lane])).bits != narrow[lane];
  }
  CHECK(wrong == 0);
}
#endif

TEMPLATE_TEST_CASE("scalar: the saturating conversion gives the largest finite value instead of infinity, and zero for NaN", "[core]", bf16,
                   f16, float) {
  float const infinity = std::numeric_limits<float>::infinity();
  CHECK(to_float(pith::from_float_saturated<TestType>(infinity)) == pith::largest<TestType>);
  CHECK(to_float(pith::from_float_saturated<TestType>(-infinity)) == -pith::largest<TestType>);
  CHECK(to_float(pith::from_float_saturated<TestType>(std::numeric_limits<float>::max())) == pith::largest<TestType>);
  CHECK(float_bits(to_float(pith::from_float_saturated<TestType>(std::numeric_limits<float>::quiet_NaN()))) == 0);
  CHECK(to_float(pith::from_float_saturated<TestType>(-1.5f)) == -1.5f);
  CHECK(to_float(from_float<TestType>(pith::largest<TestType>)) == pith::largest<TestType>);
}

TEST_CASE("scalar: NaN and finiteness are read from the bits", "[core]") {
  CHECK(pith::is_nan(bits_float(0x7f800001)));
  CHECK(pith::is_nan(bits_float(0xffffffff)));
  CHECK_FALSE(pith::is_nan(bits_float(0x7f800000)));
  CHECK(pith::is_finite(bits_float(0x7f7fffff)));
  CHECK(pith::is_finite(bits_float(0x80000001)));
  CHECK_FALSE(pith::is_finite(bits_float(0xff800000)));
  CHECK_FALSE(pith::is_finite(bits_float(0x7fc00000)));
}

TEST_CASE("scalar: e8m0 is every power of two of an f32, zero, and rounds down", "[core][exhaustive]") {
  using pith::e8m0;
  CHECK(float_bits(to_float(e8m0{0})) == 0);
  CHECK(to_float(e8m0{255}) == std::numeric_limits<float>::infinity());
  int wrong = 0;
  for (int bits = 1; bits < 255; ++bits) {
    e8m0 const power{static_cast<std::uint8_t>(bits)};
    float const value = to_float(power);
    wrong += value != std::ldexp(1.0, bits - 127);
    wrong += from_float<e8m0>(value) != power || from_float<e8m0>(bits_float(float_bits(value) | 0x7fffffu)) != power;
    wrong += from_float<e8m0>(bits_float(float_bits(value) - 1)).bits != bits - 1;
    wrong += from_float<e8m0>(-value).bits != 0;
  }
  CHECK(wrong == 0);
  CHECK(from_float<e8m0>(std::numeric_limits<float>::infinity()).bits == 254);
  for (float x : {0.0f, -0.0f, std::numeric_limits<float>::denorm_min(), std::numeric_limits<float>::quiet_NaN(),
                  -std::numeric_limits<float>::infinity()})
    CHECK(from_float<e8m0>(x).bits == 0);
  static_assert(from_float<e8m0>(7.9f).bits == 129 && sizeof(e8m0) == 1 && std::is_trivially_copyable_v<e8m0>);
}

TEST_CASE("scalar: conversions work in constant expressions", "[core]") {
  static_assert(from_float<f16>(1.0f).bits == 0x3c00 && from_float<bf16>(1.0f).bits == 0x3f80);
  static_assert(from_float<f16>(0x1p-24f).bits == 1 && from_float<f16>(0x1p-25f).bits == 0);
  static_assert(to_float(f16{0x0001}) == 0x1p-24f && to_float(bf16{0xc000}) == -2.0f);
  static_assert(sizeof(bf16) == 2 && sizeof(f16) == 2 && std::is_trivially_copyable_v<bf16> && std::is_trivially_copyable_v<f16>);
  SUCCEED();
}
