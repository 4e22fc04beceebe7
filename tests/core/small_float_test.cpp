// SPDX-License-Identifier: Apache-2.0
// Every code and every rounding boundary against the tables that tests/golden/make_golden.py writes with ml_dtypes.
#include "pith/core/small_float.hpp"

#include <cmath>
#include <cstdint>
#include <fstream>
#include <iterator>
#include <limits>
#include <string>
#include <vector>

#include "pith/core/bits.hpp"
#include "support/catch.hpp"

namespace {

using pith::bits_float, pith::e4m3, pith::e5m2, pith::float_bits, pith::from_float, pith::from_float_saturated, pith::to_float;

template <class T>
std::vector<std::byte> table(char const* kind) {
  std::ifstream in(std::string(PITH_SOURCE_DIR "/tests/golden/") + (std::is_same_v<T, e4m3> ? "e4m3" : "e5m2") + kind, std::ios::binary);
  std::vector<char> const bytes(std::istreambuf_iterator<char>(in), {});
  std::vector<std::byte> all;
  for (char c : bytes) all.push_back(static_cast<std::byte>(c));
  return all;
}

template <class T>
bool same(T a, T b) {
  return a == b || (pith::is_nan(to_float(a)) && pith::is_nan(to_float(b)));
}

}  // namespace

TEMPLATE_TEST_CASE("small_float: every code has ml_dtypes' value, and becomes itself again", "[core][exhaustive]", e4m3, e5m2) {
  auto const values = table<TestType>("_values.f32");
  REQUIRE(values.size() == 4 * 256);
  int wrong = 0;
  for (int code = 0; code < 256; ++code) {
    float const expected = pith::load_scalar<float>(values.data() + 4 * code);
    TestType const stored{static_cast<std::uint8_t>(code)};
    float const value = to_float(stored);
    wrong += pith::is_nan(expected) ? !pith::is_nan(value) : float_bits(value) != float_bits(expected);
    wrong += !same(from_float<TestType>(value), stored);
  }
  CHECK(wrong == 0);
}

TEMPLATE_TEST_CASE("small_float: at every boundary between neighbours rounding is ml_dtypes', saturated or not", "[core][exhaustive]", e4m3,
                   e5m2) {
  auto const pairs = table<TestType>("_codes.bin");
  REQUIRE(pairs.size() > 5 * 1000);
  REQUIRE(pairs.size() % 5 == 0);
  int wrong = 0;
  for (std::size_t i = 0; i < pairs.size(); i += 5) {
    float const x = pith::load_scalar<float>(pairs.data() + i);
    TestType const expected{static_cast<std::uint8_t>(pairs[i + 4])};
    TestType saturated = expected;
    if (!pith::is_finite(to_float(expected)))
      saturated.bits = static_cast<std::uint8_t>(pith::is_nan(x) ? 0u : (float_bits(x) >> 24 & 0x80u) | TestType::largest_code);
    if ((!same(from_float<TestType>(x), expected) || from_float_saturated<TestType>(x) != saturated) && ++wrong == 1)
      UNSCOPED_INFO(x << " became " << int(from_float<TestType>(x).bits) << ", " << int(from_float_saturated<TestType>(x).bits)
                      << " saturated, for " << int(expected.bits));
  }
  CHECK(wrong == 0);
}

TEMPLATE_TEST_CASE("small_float: conversion never decreases, over all exponents, and half_unit bounds its error", "[core]", e4m3, e5m2) {
  int wrong = 0;
  std::uint32_t before = 0;
  for (std::uint32_t bits = 0; bits <= 0x7f800000u; bits += 509) {
    float const x = bits_float(bits);
    TestType const now = from_float_saturated<TestType>(x);
    wrong += now.bits < before;
    if (x <= TestType::largest) wrong += !(std::fabs(static_cast<double>(to_float(now)) - x) <= pith::half_unit<TestType>(x));
    before = now.bits;
  }
  CHECK(before == TestType::largest_code);
  CHECK(wrong == 0);
}

TEST_CASE("small_float: e5m2 is the upper half of an f16, e4m3 reaches 448", "[core]") {
  int wrong = 0;
  for (int code = 0; code < 256; ++code) {
    float const wide = to_float(pith::f16{static_cast<std::uint16_t>(code << 8)}), value = to_float(e5m2{static_cast<std::uint8_t>(code)});
    wrong += pith::is_nan(wide) ? !pith::is_nan(value) : wide != value;
  }
  CHECK(wrong == 0);
  static_assert(to_float(e4m3{0x7e}) == e4m3::largest && to_float(e4m3{0x01}) == 0x1p-9f && to_float(e5m2{0x01}) == 0x1p-16f);
  static_assert(to_float(e5m2{0x7b}) == e5m2::largest && from_float<e4m3>(464.0f).bits == 0x7e && from_float<e4m3>(465.0f).bits == 0x7f);
  static_assert(sizeof(e4m3) == 1 && std::is_trivially_copyable_v<e5m2>);
}
