// SPDX-License-Identifier: Apache-2.0
// Rows that codecs find hard. Integer arithmetic, one conversion and powers of two: the same numbers under every compiler flag.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "pith/core/rounding.hpp"
#include "support/digest.hpp"

namespace pith_test {

struct input {
  std::string name;
  std::vector<float> rows;  // [token][channel]
};

// Sum of twelve uniform numbers: variance 1 to a part in 10^7, bounded by 6.
inline float gaussian(random_bits& random) {
  std::int64_t sum = 0;
  for (int i = 0; i < 12; ++i) sum += static_cast<std::int64_t>(random() >> 40) - (1 << 23);
  return static_cast<float>(sum) * 0x1p-24f;
}

// Magnitudes 2^k with k about normal (sigma 3), uniform between powers.
inline float log_normal(random_bits& random) {
  std::int64_t sum = 0;
  for (int i = 0; i < 12; ++i) sum += static_cast<std::int64_t>(random() >> 40) - (1 << 23);
  std::int64_t const exponent = (3 * sum) / (1 << 24);
  std::uint32_t const sign = random() & 1u, mantissa = static_cast<std::uint32_t>(random() >> 41);
  return pith::bits_float(sign << 31 | static_cast<std::uint32_t>(127 + exponent) << 23 | mantissa);
}

inline float cauchy(random_bits& random) {
  float const below = gaussian(random), above = gaussian(random);
  return below == 0 ? 0.0f : pith::div_rn(above, below);
}

// Finite rows only.
inline std::vector<input> hard_inputs(int tokens, int channels, std::uint64_t seed = 1) {
  random_bits random(seed);
  std::vector<input> all;
  auto add = [&](char const* name, auto number) {
    input next{name, std::vector<float>(static_cast<std::size_t>(tokens) * static_cast<std::size_t>(channels))};
    for (int t = 0; t < tokens; ++t)
      for (int c = 0; c < channels; ++c) next.rows[static_cast<std::size_t>(t * channels + c)] = number(t, c);
    all.push_back(next);
  };
  add("gaussian", [&](int, int) { return gaussian(random); });
  add("log-normal", [&](int, int) { return log_normal(random); });
  add("cauchy", [&](int, int) { return cauchy(random); });
  add("outlier channel", [&](int, int c) { return c == 7 ? 32.0f * gaussian(random) : gaussian(random); });
  add("constant", [](int, int) { return 0.3f; });
  add("constant channels", [](int, int c) { return static_cast<float>(3 * c - 50) * 0x1p-4f; });
  add("constant tokens", [](int t, int) { return static_cast<float>(5 * t - 70) * 0x1p-3f; });
  add("alternating sign", [](int t, int c) { return (t + c) % 2 == 0 ? 1.7f : -1.7f; });
  add("denormals", [&](int, int) { return pith::bits_float(static_cast<std::uint32_t>(random() & 0x807fffffu)); });
  add("attention sink", [&](int t, int c) { return t == 0 && (c == 3 || c == 19) ? 256.0f : gaussian(random); });
  add("small noise on an offset", [&](int, int) { return static_cast<float>(1000 * 4096 + static_cast<int>(random() & 7)) * 0x1p-12f; });
  add("one spike", [](int t, int c) { return t == 5 && c == 2 ? -1e6f : 0.0f; });
  add("positive", [&](int, int) { return pith::bits_float(pith::float_bits(gaussian(random)) & 0x7fffffffu); });
  add("large", [&](int, int) { return gaussian(random) * 0x1p90f; });
  add("largest floats", [&](int, int) {
    return random() % 3 == 0 ? pith::bits_float(0x7f7fffffu | (static_cast<std::uint32_t>(random()) & 0x80000000u)) : gaussian(random);
  });
  // Halves of an odd step, the range pinned in every 16: where x / s and x * (1/s) round apart.
  for (int top : {3, 15, 255})
    for (bool along_tokens : {false, true})
      add(along_tokens ? "ties along tokens" : "ties along channels", [&](int t, int c) {
        int const place = (along_tokens ? t : c) % 16, step = 2 * ((along_tokens ? c : t) % 29) + 3;
        int const halves = place == 0 ? 0 : place == 1 ? 2 * top : static_cast<int>(random() % static_cast<unsigned>(2 * top + 1));
        return static_cast<float>(halves * step) * 0.5f;
      });
  return all;
}

}  // namespace pith_test
