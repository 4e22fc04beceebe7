// SPDX-License-Identifier: Apache-2.0
#include "pith/core/rounding.hpp"

#include <cmath>
#include <cstdint>
#include <random>

#include "support/catch.hpp"

TEST_CASE("round_even: every integer and every half up to 2^21 rounds to nearest, ties to even", "[core][exhaustive]") {
  std::int32_t const limit = 1 << 21;
  int wrong = 0;
  for (std::int32_t k = -limit; k <= limit; ++k) {
    float const x = static_cast<float>(k);
    wrong += pith::round_even(x) != k;
    if (k == limit) break;
    float const half = x + 0.5f;  // exact: 2^21 + 0.5 has 23 bits
    wrong += pith::round_even(half) != (k % 2 == 0 ? k : k + 1);
    wrong += pith::round_even(std::nextafter(half, x)) != k;
    wrong += pith::round_even(std::nextafter(half, x + 1)) != k + 1;
  }
  CHECK(wrong == 0);
}

TEST_CASE("div_rn: is the correctly rounded quotient", "[core]") {
  std::mt19937 random(7);
  int wrong = 0;
  for (int i = 0; i < 1'000'000; ++i) {
    float const a = pith::bits_float(random()), b = pith::bits_float(random());
    if (!pith::is_finite(a) || !pith::is_finite(b) || b == 0) continue;
    // A double has more than twice the digits of a float, so rounding twice is rounding once where the quotient is normal.
    double const wide = static_cast<double>(a) / b;
    if (std::fabs(wide) < 0x1p-126) continue;
    wrong += pith::float_bits(pith::div_rn(a, b)) != pith::float_bits(static_cast<float>(wide));
  }
  CHECK(wrong == 0);
  static_assert(pith::div_rn(1.0f, 4.0f) == 0.25f);
}

TEST_CASE("clamp: keeps the inside and cuts the outside", "[core]") {
  CHECK(pith::clamp(2.5f, -1.0f, 1.0f) == 1.0f);
  CHECK(pith::clamp(-2.5f, -1.0f, 1.0f) == -1.0f);
  CHECK(pith::clamp(0.5f, -1.0f, 1.0f) == 0.5f);
  CHECK(pith::clamp(std::int32_t{9}, 0, 7) == 7);
  CHECK(pith::clamp(std::int32_t{-9}, 0, 7) == 0);
  CHECK(pith::clamp(std::int32_t{3}, 0, 7) == 3);
}
