// SPDX-License-Identifier: Apache-2.0
#include "pith/codec/float8.hpp"

#include <algorithm>
#include <cmath>
#include <vector>

#include "laws/inputs.hpp"
#include "laws/round_trip.hpp"
#include "support/catch.hpp"

namespace {

using namespace pith;

using pith_test::encoded, pith_test::decoded;

}  // namespace

TEMPLATE_TEST_CASE("mxfp8: the scale is the power of two below the maximum over that below the largest element", "[codec]", e4m3, e5m2) {
  using tile = typename mxfp8<TestType>::template bind<64, 64, use::mix>;
  int const emax = std::is_same_v<TestType, e4m3> ? 8 : 15;
  for (auto const& x : pith_test::hard_inputs(32, 64)) {
    if (x.name == "denormals" || x.name == "largest floats") continue;
    INFO(x.name);
    auto const bytes = encoded<tile>(x.rows);
    auto const back = decoded<tile>(bytes);
    int wrong = 0;
    for (int t = 0; t < 32; ++t)
      for (int g = 0; g < 2; ++g) {
        auto const first = x.rows.begin() + t * 64 + g * 32;
        double most = 0;
        for (int i = 0; i < 32; ++i) most = std::max(most, std::fabs(static_cast<double>(first[i])));
        int const byte = static_cast<int>(bytes[static_cast<std::size_t>(tile::scale_at + g * 32 + t)]);
        wrong += byte != (most > 0 ? static_cast<int>(std::floor(std::log2(most))) - emax + 127 : 0);
        for (int i = 0; i < 32; ++i) {
          float const element = most > 0 ? static_cast<float>(first[i] / std::exp2(byte - 127)) : 0.0f;  // exact
          wrong += back[static_cast<std::size_t>(t * 64 + g * 32 + i)] !=
                   to_float(from_float_saturated<TestType>(element)) * std::exp2(byte - 127);
        }
      }
    CHECK(wrong == 0);
  }
}

TEST_CASE("float8: no code of infinity, NaN or a signed zero is written", "[codec][law]") {
  auto check = []<class Tile>(Tile) {
    for (auto x : pith_test::hard_inputs(Tile::tokens, Tile::channels)) {
      INFO(x.name);
      x.rows[5] = bits_float(0x7f800000u), x.rows[6] = bits_float(0xffc00000u), x.rows[7] = -0.0f, x.rows[8] = -1e-30f;
      auto const bytes = encoded<Tile>(x.rows);
      int wrong = 0;
      for (int i = 0; i < Tile::tokens * Tile::channels; ++i) {
        int const code = static_cast<int>(bytes[static_cast<std::size_t>(i)]);
        wrong += code == 0x80 || (code & 0x7f) > static_cast<int>(Tile::scalar::largest_code);
      }
      CHECK(wrong == 0);
    }
  };
  check(float8<e4m3>::bind<64, 64, use::dot>{});
  check(float8<e5m2>::bind<64, 64, use::mix>{});
  check(float8<e4m3, per_token<16>>::bind<80, 64, use::mix>{});
  check(mxfp8<e5m2>::bind<64, 64, use::dot>{});
}

TEST_CASE("float8: a group's maximum becomes the largest number, whatever its size", "[codec]") {
  using tile = float8<e4m3, per_token<32>, float>::bind<64, 64, use::mix>;
  for (float size : {1e-20f, 3e-5f, 0.7f, 1.0f, 1234.5f, 1e30f}) {
    std::vector<float> rows(32 * 64, 0.25f * size);
    for (std::size_t i = 0; i < rows.size(); i += 32) rows[i] = -size;
    auto const bytes = encoded<tile>(rows);
    for (int t = 0; t < 32; ++t) CHECK(tile::layout::get(bytes.data(), t, 32) == (0x80u | e4m3::largest_code));
    auto const back = decoded<tile>(bytes);
    for (std::size_t i = 0; i < rows.size(); ++i) CHECK(std::fabs(back[i] - rows[i]) <= 0x1p-4f * std::fabs(rows[i]));
  }
}

TEST_CASE("float8: sizes, and encode and decode are constant expressions", "[codec]") {
  static_assert(float8<e4m3>::bind<80, 64, use::dot>::bytes == 32 * 80);
  CHECK(bits_per_value<float8<e5m2>::bind<128, 64, use::dot>> == 8.0);
  CHECK(bits_per_value<float8<e4m3, per_token<64>>::bind<128, 64, use::mix>> == 8.25);
  CHECK(bits_per_value<mxfp8<e4m3>::bind<64, 64, use::mix>> == 8.25);
  constexpr float last = [] {
    using tile = float8<e4m3, per_channel<32>>::bind<16, 32, use::mix>;
    float rows[32 * 16]{};
    for (int i = 0; i < 32 * 16; ++i) rows[i] = static_cast<float>(7 * (i % 16));
    std::byte bytes[tile::bytes]{};
    tile::encode(rows, bytes);
    tile::decode(bytes, rows);
    return rows[32 * 16 - 1];
  }();
  static_assert(last > 104.5f && last < 105.5f);
}
