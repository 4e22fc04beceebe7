// SPDX-License-Identifier: Apache-2.0
// Encoded bytes against files that make_golden.py wrote from the format comments alone.
#include <cmath>
#include <cstdint>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "laws/inputs.hpp"
#include "pith/codec/block_float.hpp"
#include "pith/codec/float8.hpp"
#include "pith/codec/hadamard.hpp"
#include "pith/codec/integer.hpp"
#include "pith/codec/outliers.hpp"
#include "pith/codec/pipe.hpp"
#include "pith/codec/raw.hpp"
#include "pith/codec/sum.hpp"
#include "support/catch.hpp"

namespace {

std::vector<char> file(std::string const& name) {
  std::ifstream in(PITH_SOURCE_DIR "/tests/golden/" + name, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

std::vector<float> golden_rows(int channels) {
  std::vector<char> const bytes = file("rows_" + std::to_string(channels) + ".f32");
  std::vector<float> rows;
  for (std::size_t i = 0; i + 4 <= bytes.size(); i += 4)
    rows.push_back(pith::load_scalar<float>(reinterpret_cast<std::byte const*>(bytes.data() + i)));
  return rows;
}

template <class Tile>
void check_file(std::string const& name, std::vector<float> const& rows) {
  INFO(name);
  std::vector<char> const expected = file(name);
  REQUIRE(rows.size() >= static_cast<std::size_t>(Tile::tokens * Tile::channels));
  std::vector<std::byte> made(static_cast<std::size_t>(Tile::bytes));
  Tile::encode(rows.data(), made.data());
  REQUIRE(expected.size() == made.size());
  std::size_t first = 0;
  while (first < made.size() && made[first] == static_cast<std::byte>(expected[first])) ++first;
  CHECK(first == made.size());
}

template <class Codec, int Channels>
void check_both(std::string const& stem, std::vector<float> const& rows) {
  std::string const name = stem + "_" + std::to_string(Channels);
  check_file<typename Codec::template bind<Channels, 64, pith::use::dot>>(name + "_dot.bin", rows);
  check_file<typename Codec::template bind<Channels, 64, pith::use::mix>>(name + "_mix.bin", rows);
}

}  // namespace

TEST_CASE("golden: integer codecs make the bytes of an independent implementation", "[golden]") {
  using namespace pith;
  auto const r64 = golden_rows(64), r80 = golden_rows(80);
  check_both<int2<per_token<32>>, 64>("int2_channels_32_real_f16", r64);
  check_both<int2<per_channel<32>>, 64>("int2_tokens_32_real_f16", r64);
  check_both<int3<per_token<16>, zero::real, float>, 80>("int3_channels_16_real_f32", r80);
  check_both<int3<per_channel<64>, zero::integer, bf16>, 80>("int3_tokens_64_integer_bf16", r80);
  check_both<int3<per_channel<16>, zero::none>, 64>("int3_tokens_16_none_f16", r64);
  check_both<int4<per_token<64>>, 64>("int4_channels_64_real_f16", r64);
  check_both<int4<per_channel<32>, zero::real, bf16>, 64>("int4_tokens_32_real_bf16", r64);
  check_both<int4<per_token<>, zero::none, float>, 80>("int4_channels_80_none_f32", r80);
  check_both<int4<per_token<32>, zero::integer>, 64>("int4_channels_32_integer_f16", r64);
  check_both<int5<per_token<16>>, 80>("int5_channels_16_real_f16", r80);
  check_both<int6<per_channel<32>, zero::none, bf16>, 64>("int6_tokens_32_none_bf16", r64);
  check_both<int7<per_token<>, zero::integer>, 80>("int7_channels_80_integer_f16", r80);
  check_both<int7<per_channel<16>, zero::real, float>, 64>("int7_tokens_16_real_f32", r64);
  check_both<int8<per_channel<32>, zero::none>, 80>("int8_tokens_32_none_f16", r80);
  check_both<int8<per_token<64>, zero::integer, float>, 64>("int8_channels_64_integer_f32", r64);
  check_both<int8<per_channel<>, zero::real, float>, 64>("int8_tokens_64_real_f32", r64);
}

TEST_CASE("golden: block floating point makes the bytes of an independent implementation", "[golden]") {
  using namespace pith;
  auto const r64 = golden_rows(64), r80 = golden_rows(80);
  check_both<block_float<4, per_token<32>>, 64>("block_float4_channels_32", r64);
  check_both<block_float<5, per_channel<64>>, 80>("block_float5_tokens_64", r80);
  check_both<block_float<8, per_token<16>>, 80>("block_float8_channels_16", r80);
}

TEST_CASE("golden: 8-bit floats make the bytes of an independent implementation", "[golden]") {
  using namespace pith;
  auto const r64 = golden_rows(64), r80 = golden_rows(80);
  check_both<float8<e4m3>, 80>("e4m3_channels_80_plain", r80);
  check_both<float8<e5m2>, 64>("e5m2_channels_64_plain", r64);
  check_both<float8<e4m3, per_token<64>>, 64>("e4m3_channels_64_bf16", r64);
  check_both<float8<e5m2, per_channel<16>, float>, 80>("e5m2_tokens_16_f32", r80);
  check_both<float8<e4m3, per_channel<64>, f16>, 80>("e4m3_tokens_64_f16", r80);
  check_both<mxfp8<e4m3>, 64>("e4m3_channels_32_e8m0", r64);
  check_both<float8<e5m2, per_channel<32>, e8m0>, 64>("e5m2_tokens_32_e8m0", r64);
}

TEST_CASE("golden: raw codecs and a rotated one make the bytes of an independent implementation", "[golden]") {
  using namespace pith;
  auto const r64 = golden_rows(64);
  auto r80 = golden_rows(80);
  for (float& x : r80)  // as the script writes them: numpy's largest floats for infinities
    x = is_nan(x) ? 0.0f : is_finite(x) ? x : x > 0 ? largest<float> : -largest<float>;
  check_both<raw<bf16>, 80>("raw_bf16", r80);
  check_both<raw<f16>, 80>("raw_f16", r80);
  check_both<raw<float>, 80>("raw_f32", r80);
  check_both<pith::pipe<hadamard<64>, int4<per_token<64>>>, 64>("hadamard_64_int4_channels_64_real_f16", r64);
}

TEST_CASE("golden: outliers, and a sum of them and 2 bits, make the bytes of an independent implementation", "[golden]") {
  using namespace pith;
  auto const r64 = golden_rows(64), r80 = golden_rows(80);
  check_both<outliers<both_ends<1>, per_channel<>>, 64>("both_ends_1_tokens_64_mean_f16", r64);
  check_both<outliers<magnitudes<3>, per_token<16>, leave::zero, bf16>, 80>("magnitudes_3_channels_16_zero_bf16", r80);
  check_both<outliers<both_ends<2>, per_token<>, leave::end, float>, 64>("both_ends_2_channels_64_end_f32", r64);
  check_both<outliers<magnitudes<1>, per_channel<32>>, 80>("magnitudes_1_tokens_32_mean_f16", r80);
  check_both<sum<outliers<both_ends<1>, per_channel<>>, int2<per_channel<32>>>, 64>("sum_both_ends_1_int2_tokens", r64);
}

TEST_CASE("golden: KIVI's group {.5, -1, 2, 0, 1.25, -.25, 3.5, -.75} in 2 bits", "[golden]") {
  using namespace pith;
  float const group[8] = {.5f, -1, 2, 0, 1.25f, -.25f, 3.5f, -.75f};
  std::vector<float> rows(32 * 64);
  for (std::size_t i = 0; i < rows.size(); ++i) rows[i] = group[i % 8];

  SECTION("a real zero: m = -1, s = 1.5, codes 1 0 2 1 2 0 3 0, word 0x3261 twice") {
    using tile = int2<per_token<64>>::bind<64, 64, use::dot>;
    std::vector<std::byte> bytes(tile::bytes);
    tile::encode(rows.data(), bytes.data());
    CHECK(load_le<std::uint32_t>(bytes.data()) == 0x32613261u);
    CHECK(load_scalar<f16>(bytes.data() + tile::scale_at) == 1.5f);
    CHECK(load_scalar<f16>(bytes.data() + tile::zero_at) == -1.0f);
    tile::decode(bytes.data(), rows.data());
    float const back[8] = {.5f, -1, 2, .5f, 2, -1, 3.5f, -1};
    for (std::size_t i = 0; i < 8; ++i) CHECK(rows[i] == back[i]);
  }
  SECTION("an integer zero: z = 1, codes 1 0 2 1 2 1 3 1") {
    using tile = int2<per_token<64>, zero::integer>::bind<64, 64, use::dot>;
    std::vector<std::byte> bytes(tile::bytes);
    tile::encode(rows.data(), bytes.data());
    std::uint32_t const codes[8] = {1, 0, 2, 1, 2, 1, 3, 1};
    for (int i = 0; i < 8; ++i) CHECK(tile::layout::get(bytes.data(), 0, i) == codes[i]);
    CHECK(bytes[tile::zero_at] == std::byte{1});
    tile::decode(bytes.data(), rows.data());
    float const back[8] = {0, -1.5f, 1.5f, 0, 1.5f, 0, 3, 0};
    for (std::size_t i = 0; i < 8; ++i) CHECK(rows[i] == back[i]);
  }
}

TEST_CASE("golden: the Hadamard transform of {1, 0, 2, -1, 0, 3, 0, 1} is {6, 0, 2, -4, -2, 8, -2, 0} / sqrt(8)", "[golden]") {
  float row[8] = {1, 0, 2, -1, 0, 3, 0, 1};
  float const expected[8] = {6, 0, 2, -4, -2, 8, -2, 0};
  pith::hadamard<8>::apply<8>(row);
  for (int i = 0; i < 8; ++i) CHECK(row[i] == expected[i] * static_cast<float>(1 / std::sqrt(8.0)));
}

// KIVI divides by s; here x is multiplied by 1/s. The codes may differ where the quotient is a tie but for rounding.
TEST_CASE("golden: codes are those of a division by the stored scale, but for ties", "[golden]") {
  using namespace pith;
  auto compare = []<class Tile>(Tile) {
    int differ = 0;
    for (std::uint64_t seed = 0; seed < 24; ++seed) {
      std::vector<float> const rows = pith_test::hard_inputs(Tile::tokens, Tile::channels, seed)[0].rows;
      std::vector<std::byte> bytes(static_cast<std::size_t>(Tile::bytes));
      Tile::encode(rows.data(), bytes.data());
      for (int t = 0; t < Tile::tokens; ++t)
        for (int c = 0; c < Tile::channels; ++c) {
          std::int64_t const index = Tile::parameter_index(t, c);
          float const s = load_scalar<f16>(bytes.data() + Tile::scale_at + 2 * index),
                      m = load_scalar<f16>(bytes.data() + Tile::zero_at + 2 * index);
          int const code = static_cast<int>(Tile::layout::get(bytes.data(), t, c));
          float const quotient =
              clamp((rows[static_cast<std::size_t>(t * Tile::channels + c)] - m) / s, 0.0f, static_cast<float>(Tile::top));
          int const divided = static_cast<int>(std::nearbyint(quotient));
          if (code == divided) continue;
          ++differ;
          CHECK(std::abs(code - divided) == 1);
          CHECK(std::fabs(quotient - std::floor(quotient) - 0.5f) <= 0x1p-22f * (quotient + 1));
        }
    }
    CHECK(differ <= 24);
  };
  compare(int2<per_channel<32>>::bind<64, 64, use::dot>{});
  compare(int4<per_token<64>>::bind<64, 64, use::mix>{});
  compare(int8<per_token<32>>::bind<64, 64, use::mix>{});
}

// sum (x - x')^2 / sum x^2 over 262144 gaussian numbers. The scale is f32: published figures are for exact scales.
TEST_CASE("golden: relative errors on gaussian numbers are the published ones", "[golden]") {
  using namespace pith;
  static std::vector<float> const numbers = [] {
    pith_test::random_bits random(2024);
    std::vector<float> x;
    while (x.size() < 262144) {  // Box and Muller: the tails matter
      double const u = (static_cast<double>(random() >> 11) + 1) * 0x1p-53, v = static_cast<double>(random() >> 11) * 0x1p-53,
                   r = std::sqrt(-2 * std::log(u));
      x.push_back(static_cast<float>(r * std::cos(2 * 3.14159265358979323846 * v)));
      x.push_back(static_cast<float>(r * std::sin(2 * 3.14159265358979323846 * v)));
    }
    return x;
  }();
  auto relative = []<class Tile>(Tile) {
    constexpr std::size_t size = static_cast<std::size_t>(Tile::tokens) * Tile::channels;
    std::vector<std::byte> bytes(static_cast<std::size_t>(Tile::bytes));
    std::vector<float> back(size);
    double error = 0, energy = 0;
    for (std::size_t first = 0; first + size <= numbers.size(); first += size) {
      Tile::encode(numbers.data() + first, bytes.data());
      Tile::decode(bytes.data(), back.data());
      for (std::size_t i = 0; i < size; ++i) {
        double const x = numbers[first + i], off = x - back[i];
        error += off * off, energy += x * x;
      }
    }
    return error / energy;
  };
  auto near = [](double made, double published) {
    INFO(made << " against " << published);
    CHECK(std::fabs(made - published) <= 0.02 * published);
  };
  near(relative(int2<per_token<32>, zero::real, float>::bind<128, 64, use::mix>{}), 0.154);
  near(relative(int2<per_token<64>, zero::real, float>::bind<128, 64, use::mix>{}), 0.202);
  near(relative(int2<per_token<128>, zero::real, float>::bind<128, 64, use::mix>{}), 0.250);
  near(relative(int2<per_channel<32>, zero::real, float>::bind<128, 64, use::dot>{}), 0.154);
  near(relative(int3<per_token<32>, zero::real, float>::bind<128, 64, use::mix>{}), 0.0281);
  near(relative(int3<per_token<128>, zero::real, float>::bind<128, 64, use::mix>{}), 0.0456);
  near(relative(int4<per_token<32>, zero::real, float>::bind<128, 64, use::mix>{}), 0.00611);
  near(relative(int4<per_token<64>, zero::real, float>::bind<128, 64, use::mix>{}), 0.00803);
  near(relative(int4<per_channel<64>, zero::real, float>::bind<128, 64, use::dot>{}), 0.00803);
  near(relative(int4<per_token<128>, zero::real, float>::bind<128, 64, use::mix>{}), 0.00990);
  near(relative(int8<per_token<32>, zero::real, float>::bind<128, 64, use::mix>{}), 2.1e-5);
  near(relative(int4<per_token<64>, zero::none, float>::bind<128, 64, use::mix>{}), 0.0116);
  near(relative(int4<per_channel<32>, zero::none, float>::bind<128, 64, use::dot>{}), 0.00937);
  // A rotation of gaussian numbers changes nothing; f16 parameters cost little.
  near(relative(pith::pipe<hadamard<64>, int4<per_token<64>, zero::real, float>>::bind<128, 64, use::mix>{}), 0.00803);
  near(relative(int4<per_token<64>>::bind<128, 64, use::mix>{}), 0.00803);
}
