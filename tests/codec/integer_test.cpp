// SPDX-License-Identifier: Apache-2.0
#include "pith/codec/integer.hpp"

#include <cmath>
#include <vector>

#include "laws/inputs.hpp"
#include "support/catch.hpp"

namespace {

using namespace pith;

template <class Tile>
std::vector<float> there_and_back(std::vector<float> const& rows) {
  std::vector<std::byte> bytes(static_cast<std::size_t>(Tile::bytes));
  std::vector<float> back(rows.size());
  Tile::encode(rows.data(), bytes.data());
  Tile::decode(bytes.data(), back.data());
  return back;
}

template <class Tile>
void check_constant_groups(float value) {
  std::vector<float> const rows(static_cast<std::size_t>(Tile::tokens) * Tile::channels, value);
  CHECK(there_and_back<Tile>(rows) == rows);
}

}  // namespace

TEST_CASE("integer, zero::real: a constant group that Scale can hold is exact", "[codec][edge]") {
  for (float value : {0.0f, 1.0f, -0.375f, 1000.0f}) {
    check_constant_groups<int2<per_token<32>>::bind<64, 64, use::mix>>(value);
    check_constant_groups<int4<per_channel<32>>::bind<64, 64, use::dot>>(value);
    check_constant_groups<int8<per_token<>, zero::real, float>::bind<80, 64, use::mix>>(value);
  }
  check_constant_groups<int3<per_token<16>, zero::real, float>::bind<80, 64, use::dot>>(0.1f);
}

TEST_CASE("integer: zero is exact in zero::none and zero::integer, whatever else is in the group", "[codec][edge]") {
  auto check = []<class Tile>(Tile) {
    for (auto& x : pith_test::hard_inputs(Tile::tokens, Tile::channels)) {
      for (std::size_t i = 0; i < x.rows.size(); i += 3) x.rows[i] = 0;
      auto const back = there_and_back<Tile>(x.rows);
      int wrong = 0;
      for (std::size_t i = 0; i < x.rows.size(); i += 3) wrong += back[i] != 0;
      INFO(x.name);
      CHECK(wrong == 0);
    }
  };
  check(int4<per_token<32>, zero::none>::bind<64, 64, use::mix>{});
  check(int2<per_channel<32>, zero::integer>::bind<64, 64, use::dot>{});
  check(int8<per_token<64>, zero::integer, float>::bind<64, 64, use::dot>{});
}

TEST_CASE("integer, zero::none: a group and its negative have opposite values", "[codec]") {
  using tile = int4<per_token<32>, zero::none>::bind<64, 64, use::mix>;
  auto rows = pith_test::hard_inputs(32, 64)[0].rows;
  auto const back = there_and_back<tile>(rows);
  for (float& x : rows) x = -x;
  auto negative = there_and_back<tile>(rows);
  for (float& x : negative) x = -x;
  CHECK(negative == back);
}

// x' = (u - middle) s + b is what kernels compute; decode must mean the same.
TEST_CASE("integer: bias() restates decode about the middle code", "[codec]") {
  auto check = []<class Tile>(Tile) {
    using scale_type = typename Tile::scale_type;
    auto const rows = pith_test::hard_inputs(Tile::tokens, Tile::channels)[0].rows;
    std::vector<std::byte> bytes(static_cast<std::size_t>(Tile::bytes));
    std::vector<float> back(rows.size());
    Tile::encode(rows.data(), bytes.data());
    Tile::decode(bytes.data(), back.data());
    int wrong = 0;
    for (int t = 0; t < Tile::tokens; ++t)
      for (int c = 0; c < Tile::channels; ++c) {
        std::int64_t const index = Tile::parameter_index(t, c), size = sizeof(scale_type);
        float const s = load_scalar<scale_type>(bytes.data() + Tile::scale_at + index * size);
        float const m = Tile::zero_kind == zero::real ? load_scalar<scale_type>(bytes.data() + Tile::zero_at + index * size) : 0;
        int const z = Tile::zero_kind == zero::integer ? static_cast<int>(bytes[static_cast<std::size_t>(Tile::zero_at + index)]) : 0;
        int const u = static_cast<int>(Tile::layout::get(bytes.data() + t / 32 * Tile::layout::bytes, t % 32, c));
        double const restated = static_cast<double>(u - Tile::middle) * s + Tile::bias(s, m, z);
        wrong +=
            !(std::fabs(restated - back[static_cast<std::size_t>(t * Tile::channels + c)]) <= 0x1p-22 * (Tile::top * s + std::fabs(m)));
      }
    CHECK(wrong == 0);
  };
  check(int4<per_token<32>>::bind<64, 64, use::mix>{});
  check(int3<per_channel<64>, zero::integer, bf16>::bind<64, 64, use::dot>{});
  check(int8<per_token<16>, zero::none, float>::bind<64, 64, use::dot>{});
}

TEST_CASE("integer: encode and decode are constant expressions", "[codec]") {
  constexpr float last = [] {
    using tile = int4<per_token<16>, zero::real, float>::bind<16, 32, use::dot>;
    float rows[32 * 16]{};
    for (int i = 0; i < 32 * 16; ++i) rows[i] = static_cast<float>(i % 16);
    std::byte bytes[tile::bytes]{};
    tile::encode(rows, bytes);
    tile::decode(bytes, rows);
    return rows[32 * 16 - 1];
  }();
  static_assert(last == 15.0f);
  CHECK(last == 15.0f);
}

TEST_CASE("integer: a tile's size counts codes, scales, zeros and padding", "[codec]") {
  static_assert(int4<per_token<64>>::bind<64, 64, use::dot>::bytes == 32 * 64 / 2 + 32 * 2 + 32 * 2);
  static_assert(int2<per_channel<32>>::bind<64, 64, use::dot>::bytes == 32 * 64 / 4 + 64 * 2 + 64 * 2);
  static_assert(int3<per_token<32>, zero::integer>::bind<64, 64, use::mix>::bytes == 32 * 64 * 3 / 8 + 64 * 2 + 64);
  static_assert(int8<per_channel<>, zero::none>::bind<64, 128, use::mix>::tokens == 128);
  static_assert(int8<per_channel<>, zero::none>::bind<64, 128, use::mix>::bytes == 128 * 64 + 64 * 2);
  static_assert(int2<per_token<16>, zero::integer, bf16>::bind<80, 64, use::dot>::used == 640 + 5 * 32 * 2 + 5 * 32);
  static_assert(int2<per_token<16>, zero::integer, bf16>::bind<80, 64, use::dot>::bytes % 64 == 0);
  CHECK(bits_per_value<int2<per_channel<32>>::bind<128, 64, use::dot>> == 3.0);
  CHECK(bits_per_value<int4<per_token<64>>::bind<128, 64, use::mix>> == 4.5);
}
