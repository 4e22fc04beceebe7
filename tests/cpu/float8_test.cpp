// SPDX-License-Identifier: Apache-2.0
// The kernels' conversion of every code, apart from rounding: one coefficient is 1, the others are 0.
#include "cpu/kernel_oracle.hpp"

namespace {

using namespace pith;

// Byte i of the tile is code i % 256, so every code stands at every field of a word.
template <class Tile>
std::vector<std::byte> all_codes() {
  std::vector<std::byte> bytes(static_cast<std::size_t>(Tile::bytes));
  for (int t = 0; t < Tile::tokens; ++t)
    for (int c = 0; c < Tile::channels; ++c) {
      std::uint32_t const code = static_cast<std::uint32_t>(t * Tile::channels + c + t / 4) & 0xffu;
      bool const finite = is_finite(to_float(typename Tile::scalar{static_cast<std::uint8_t>(code)}));
      Tile::layout::set(bytes.data(), t, c, finite ? code : 0u);
    }
  return bytes;
}

}  // namespace

TEMPLATE_TEST_CASE("float8 kernels: every finite code gives its exact value, in every field and lane", "[cpu][exhaustive]", e4m3, e5m2) {
  using key_tile = typename float8<TestType>::template bind<80, 64, use::dot>;
  using value_tile = typename float8<TestType>::template bind<80, 64, use::mix>;
  auto const keys = all_codes<key_tile>(), values = all_codes<value_tile>();
  std::vector<float> rows(32 * 80), value_rows(32 * 80);
  key_tile::decode(keys.data(), rows.data());
  value_tile::decode(values.data(), value_rows.data());
  int wrong = 0;
  for (int channel = 0; channel < 80; ++channel) {
    using kernel = dot_kernel<key_tile, exact_accuracy, 1>;
    float q[80]{}, scores[32];
    q[channel] = 1;
    typename kernel::query query;
    kernel::prepare(q, query);
    kernel::run(keys.data(), query, scores, 32);
    for (int t = 0; t < 32; ++t) wrong += scores[t] != rows[static_cast<std::size_t>(t * 80 + channel)];
  }
  for (int token = 0; token < 32; ++token) {
    using kernel = mix_kernel<value_tile, exact_accuracy, 1>;
    float w[32]{}, sums[80]{};
    w[token] = 1;
    kernel::run(values.data(), w, 32, sums);
    for (int c = 0; c < 80; ++c) wrong += sums[c] != value_rows[static_cast<std::size_t>(token * 80 + c)];
  }
  CHECK(wrong == 0);
}
