// SPDX-License-Identifier: Apache-2.0
// words.hpp on the host, against oracles in integers; on a device tests/cuda/device/words.cu compares the bits of both.
#include "pith/cuda/words.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "support/catch.hpp"
#include "support/digest.hpp"

namespace dev = pith::device;

namespace {

__extension__ typedef __int128 wide;

// A finite f16 in units of 2^-24, and what rounds to it: as if infinity were 65536.
wide units_of(std::uint32_t bits) {
  std::uint32_t const exponent = bits >> 10 & 31u, mantissa = bits & 0x3ffu;
  wide const size = exponent == 0 ? static_cast<wide>(mantissa) : static_cast<wide>(mantissa | 0x400u) << (exponent - 1);
  return (bits & 0x8000u) != 0 ? -size : size;
}

// The nearest f16 of `size` >= 0 in units of 2^-48, ties to even.
std::uint32_t nearest_f16(wide size) {
  std::uint32_t low = 0, high = 0x7c00;
  while (low < high) {  // the largest with units <= size
    std::uint32_t const middle = (low + high + 1) / 2;
    if (units_of(middle) << 24 <= size)
      low = middle;
    else
      high = middle - 1;
  }
  if (low == 0x7c00) return low;
  wide const below = size - (units_of(low) << 24), above = (units_of(low + 1) << 24) - size;
  return below < above || (below == above && low % 2 == 0) ? low : low + 1;
}

bool is_nan_f16(std::uint32_t bits) { return (bits & 0x7fffu) > 0x7c00u; }
bool is_infinite_f16(std::uint32_t bits) { return (bits & 0x7fffu) == 0x7c00u; }

// x y + z in f16, rounded once; 0x7e00 for every NaN.
std::uint32_t fma_oracle(std::uint32_t x, std::uint32_t y, std::uint32_t z) {
  std::uint32_t const product_sign = (x ^ y) & 0x8000u;
  if (is_nan_f16(x) || is_nan_f16(y) || is_nan_f16(z)) return 0x7e00;
  if (is_infinite_f16(x) || is_infinite_f16(y)) {
    if ((x & 0x7fffu) == 0 || (y & 0x7fffu) == 0) return 0x7e00;
    if (is_infinite_f16(z) && (z & 0x8000u) != product_sign) return 0x7e00;
    return product_sign | 0x7c00u;
  }
  if (is_infinite_f16(z)) return z;
  wide const sum = units_of(x) * units_of(y) + (units_of(z) << 24);
  if (sum == 0) return (units_of(x) * units_of(y) == 0 && units_of(z) == 0 && product_sign != 0 && (z & 0x8000u) != 0) ? 0x8000u : 0u;
  return sum < 0 ? 0x8000u | nearest_f16(-sum) : nearest_f16(sum);
}

std::uint32_t canonical(std::uint32_t bits) { return is_nan_f16(bits) ? 0x7e00u : bits; }

}  // namespace

TEST_CASE("words: fma_f16 rounds once, in both halves", "[cuda][words]") {
  pith_test::random_bits random(3);
  // Random, and sums that lie near the middle between two neighbours: z large, the product near half of its last place.
  std::int64_t wrong = 0, ties = 0;
  for (std::uint32_t x = 0; x < 0x10000; ++x)
    for (int i = 0; i < 12; ++i) {
      std::uint64_t const r = random();
      auto y = static_cast<std::uint32_t>(r & 0xffffu), z = static_cast<std::uint32_t>(r >> 16 & 0xffffu);
      if (i >= 6 && !is_nan_f16(x)) {
        int const exponent = static_cast<int>(x >> 10 & 31u), target = static_cast<int>(r >> 40 & 31u);
        y = (y & 0x83ffu & (i >= 9 ? 0xfc00u : 0xffffu)) | static_cast<std::uint32_t>(std::clamp(target - 11 + 15 - exponent, 0, 30)) << 10;
        z = (z & 0x83ffu) | static_cast<std::uint32_t>(target) << 10;
        ties += i >= 9;
      }
      std::uint32_t const x2 = y, y2 = z, z2 = x;  // another one in the upper half
      std::uint32_t const got = dev::fma_f16(x | x2 << 16, y | y2 << 16, z | z2 << 16);
      wrong += canonical(got & 0xffffu) != fma_oracle(x, y, z);
      wrong += canonical(got >> 16) != fma_oracle(x2, y2, z2);
    }
  CHECK(wrong == 0);
  CHECK(ties > 100000);
}

TEST_CASE("words: two_f16 rounds every middle and its neighbours to the nearest, ties to even", "[cuda][words]") {
  std::int64_t wrong = 0;
  for (std::uint32_t bits = 0; bits < 0x7c00; ++bits) {
    wide const middle = units_of(bits) + units_of(bits + 1);  // in units of 2^-25: at most 12 bits, a float
    float const at = std::ldexp(static_cast<float>(static_cast<std::int64_t>(middle)), -25);
    float const below = std::nextafter(at, 0.0f), above = std::nextafter(at, 1e30f);
    std::uint32_t const even = bits % 2 == 0 ? bits : bits + 1;
    wrong += dev::two_f16(at, -at) != (even | (0x8000u | even) << 16);
    wrong += dev::two_f16(below, above) != (bits | (bits + 1) << 16);
    wrong += dev::two_f16(-above, -below) != (0x8000u | (bits + 1) | (0x8000u | bits) << 16);
  }
  CHECK(wrong == 0);
  float const nan = std::numeric_limits<float>::quiet_NaN(), infinity = std::numeric_limits<float>::infinity();
  CHECK(dev::two_f16(1e30f, -infinity) == 0xfc007c00u);
  CHECK(is_nan_f16(dev::two_f16(nan, 1.0f) & 0xffffu));
  CHECK(dev::two_f16(nan, 1.0f) >> 16 == 0x3c00u);
}

TEST_CASE("words: two_bf16 rounds to the nearest, ties to even", "[cuda][words]") {
  std::int64_t wrong = 0;
  for (std::uint32_t bits = 0; bits < 0x7f80; ++bits) {
    std::uint32_t const first = bits << 16, even = bits % 2 == 0 ? bits : bits + 1;
    wrong += dev::two_bf16(pith::bits_float(first), pith::bits_float(first | 0x7fffu)) != (bits | bits << 16);
    wrong += dev::two_bf16(pith::bits_float(first | 0x8000u), pith::bits_float(first | 0x8001u)) != (even | (bits + 1) << 16);
    wrong += dev::two_bf16(pith::bits_float(first | 0x80008000u), 0.0f) != (even | 0x8000u);
  }
  CHECK(wrong == 0);
  CHECK((dev::two_bf16(std::numeric_limits<float>::quiet_NaN(), 0.0f) & 0x7fffu) > 0x7f80u);
}

TEST_CASE("words: every 16-bit float goes into either half and comes out", "[cuda][words][exhaustive]") {
  std::int64_t wrong = 0;
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    std::uint32_t const other = bits ^ 0x5555u, word = bits | other << 16;
    float const low = dev::low_of<pith::f16>(word), high = dev::high_of<pith::f16>(word);
    if (!is_nan_f16(bits))
      wrong += std::ldexp(static_cast<double>(low), 24) != static_cast<double>(units_of(bits)) && !is_infinite_f16(bits);
    if (!is_nan_f16(bits) && !is_nan_f16(other)) wrong += dev::two_of<pith::f16>(low, high) != word;
    wrong += is_nan_f16(bits) != std::isnan(low) || is_nan_f16(other) != std::isnan(high) || is_infinite_f16(bits) != std::isinf(low);
    float const low_b = dev::low_of<pith::bf16>(word), high_b = dev::high_of<pith::bf16>(word);
    wrong += pith::float_bits(low_b) != bits << 16 || pith::float_bits(high_b) != other << 16;
    if (!std::isnan(low_b) && !std::isnan(high_b)) wrong += dev::two_of<pith::bf16>(low_b, high_b) != word;
  }
  CHECK(wrong == 0);
}

TEST_CASE("words: pick_bytes picks by every selector", "[cuda][words][exhaustive]") {
  std::uint32_t const a = 0x83726150u, b = 0xf7e6d5c4u;
  std::uint8_t const bytes[8] = {0x50, 0x61, 0x72, 0x83, 0xc4, 0xd5, 0xe6, 0xf7};
  std::int64_t wrong = 0;
  for (std::uint32_t i = 0; i < 4096; ++i) {
    std::uint32_t selector = 0, expected = 0;
    for (unsigned at = 0; at < 4; ++at) {
      unsigned const from = i >> (3 * at) & 7u;
      selector |= from << (4 * at);
      expected |= static_cast<std::uint32_t>(bytes[from]) << (8 * at);
    }
    wrong += dev::pick_bytes(a, b, selector) != expected;
  }
  CHECK(wrong == 0);
  CHECK(dev::and_or(0xdeadbeefu, 0x00f000f0u, 0x64006400u) == 0x64a064e0u);
}

TEST_CASE("words: every stored scale is read as load_scalar reads it", "[cuda][words][exhaustive]") {
  std::int64_t wrong = 0;
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    alignas(4) std::byte stored[4];
    auto const half = static_cast<std::uint16_t>(bits);
    std::memcpy(stored, &half, 2);
    wrong += pith::float_bits(dev::scale_at<pith::f16>(stored)) != pith::float_bits(pith::to_float(pith::f16{half}));
    wrong += pith::float_bits(dev::scale_at<pith::bf16>(stored)) != pith::float_bits(pith::to_float(pith::bf16{half}));
    if (bits < 256) {
      stored[0] = static_cast<std::byte>(bits);
      wrong += pith::float_bits(dev::scale_at<pith::e8m0>(stored)) !=
               pith::float_bits(pith::to_float(pith::e8m0{static_cast<std::uint8_t>(bits)}));
    }
    std::uint32_t const whole = bits * 0x10001u ^ 0x1234u;
    std::memcpy(stored, &whole, 4);
    wrong += pith::float_bits(dev::scale_at<float>(stored)) != whole;
  }
  CHECK(wrong == 0);
}

TEST_CASE("words: exp2_fast is 2^x, and 0 where that is subnormal", "[cuda][words]") {
  for (int i = -2000; i <= 1270; ++i) {
    float const x = static_cast<float>(i) * 0.1f;
    double const exact = x < -126 ? 0.0 : std::exp2(static_cast<double>(x));
    if (std::abs(static_cast<double>(dev::exp2_fast(x)) - exact) > 0x1p-22 * exact) FAIL("x = " << x);
  }
  CHECK(dev::exp2_fast(0.0f) == 1.0f);
  CHECK(dev::exp2_fast(-std::numeric_limits<float>::infinity()) == 0.0f);
  CHECK(dev::log2_fast(8.0f) == 3.0f);
}
