// SPDX-License-Identifier: Apache-2.0
#include "pith/codec/block_float.hpp"

#include <cmath>
#include <vector>

#include "laws/inputs.hpp"
#include "laws/round_trip.hpp"
#include "support/catch.hpp"

namespace {

using namespace pith;

using pith_test::encoded, pith_test::decoded;

}  // namespace

TEST_CASE("block_float: a block by hand: maximum 7.6, step 1, the carry is clamped and the exponent stays", "[codec]") {
  using tile = block_float<4, per_token<16>>::bind<16, 32, use::dot>;
  std::vector<float> rows(32 * 16);
  float const block[16] = {7.6f, -7.6f, 7.4f, 1.0f, 0.5f, 1.5f, 2.5f, -0.5f, -1.5f, 0.49f, 0.51f, -3.0f, 6.5f, 0, -0.0f, 5.2f};
  float const expected[16] = {7, -7, 7, 1, 0, 2, 2, 0, -2, 0, 1, -3, 6, 0, 0, 5};
  for (std::size_t i = 0; i < 16; ++i) rows[i] = block[i];
  auto const bytes = encoded<tile>(rows);
  CHECK(bytes[tile::scale_at] == std::byte{127});    // floor(log2 7.6) - 2 = 0
  CHECK(bytes[tile::scale_at + 1] == std::byte{0});  // a block of zeros
  auto const back = decoded<tile>(bytes);
  for (std::size_t i = 0; i < 16; ++i) CHECK(back[i] == expected[i]);
  for (std::size_t i = 16; i < rows.size(); ++i) CHECK(back[i] == 0);
}

TEST_CASE("block_float<8> over 32 channels is MXINT8: int8 / 64 times the power of two below the maximum", "[codec]") {
  using tile = block_float<8, per_token<32>>::bind<64, 64, use::mix>;
  for (auto const& x : pith_test::hard_inputs(32, 64)) {
    if (x.name == "denormals" || x.name == "largest floats") continue;
    INFO(x.name);
    auto const back = decoded<tile>(encoded<tile>(x.rows));
    int wrong = 0;
    for (std::size_t first = 0; first < x.rows.size(); first += 32) {
      double most = 0;
      for (std::size_t i = first; i < first + 32; ++i) most = std::max(most, std::fabs(static_cast<double>(x.rows[i])));
      double const shared = most > 0 ? std::exp2(std::floor(std::log2(most))) : 0;
      for (std::size_t i = first; i < first + 32; ++i) {
        double const element = shared > 0 ? std::max(-127.0, std::min(127.0, std::nearbyint(x.rows[i] / shared * 64))) : 0;
        wrong += back[i] != element / 64 * shared;
      }
    }
    CHECK(wrong == 0);
  }
}

TEST_CASE("block_float: what encode writes is a power of two in the stated range, and encoding it again changes nothing", "[codec][law]") {
  auto check = []<class Tile>(Tile) {
    for (auto const& x : pith_test::hard_inputs(Tile::tokens, Tile::channels)) {
      INFO(x.name);
      auto const bytes = encoded<Tile>(x.rows);
      int outside = 0;
      for (std::int64_t i = Tile::scale_at; i < Tile::used; ++i) {
        int const exponent = static_cast<int>(bytes[static_cast<std::size_t>(i)]);
        outside += exponent != 0 && (exponent < 28 || exponent > 250);
      }
      CHECK(outside == 0);
      CHECK(encoded<Tile>(decoded<Tile>(bytes)) == bytes);
    }
  };
  check(block_float<4, per_token<32>>::bind<64, 64, use::mix>{});
  check(block_float<5, per_channel<16>>::bind<80, 64, use::dot>{});
  check(block_float<7, per_channel<128>>::bind<64, 128, use::dot>{});
}

TEST_CASE("block_float: 8 + Bits N bits for a block of N", "[codec]") {
  static_assert(block_float<4, per_token<64>>::bind<128, 64, use::dot>::used * 8 == 64 * (8 + 4 * 64));
  CHECK(bits_per_value<block_float<4, per_token<32>>::bind<128, 64, use::dot>> == 4.25);
  CHECK(bits_per_value<block_float<8, per_channel<32>>::bind<64, 64, use::mix>> == 8.25);
  constexpr float last = [] {
    using tile = block_float<6, per_token<16>>::bind<16, 32, use::mix>;
    float rows[32 * 16]{};
    for (int i = 0; i < 32 * 16; ++i) rows[i] = static_cast<float>(i % 16);
    std::byte bytes[tile::bytes]{};
    tile::encode(rows, bytes);
    tile::decode(bytes, rows);
    return rows[32 * 16 - 1];
  }();
  static_assert(last == 15.0f);
}
