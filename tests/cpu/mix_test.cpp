// SPDX-License-Identifier: Apache-2.0
// Rule C6 for mix: every kernel agrees with decoding and multiplying, within its stated bound, and `used` is what was really used.
#include "cpu/kernel_oracle.hpp"

namespace {

using namespace pith_test;
using pith::use;

// The weight of (token, channel group of c) as integer accuracy uses it: |used - w| <= step / (2 s).
template <class Tile>
std::vector<float> used_weights(float const* w, std::vector<stored_number> const& x, int c, double& most_half_step) {
  constexpr int segment = Tile::along_tokens && Tile::group < 32 ? Tile::group : 32;
  std::vector<float> used(static_cast<std::size_t>(Tile::tokens));
  for (int first = 0; first < Tile::tokens; first += segment) {
    float scaled[segment], peak = 0;
    auto scale = [&](int t) {
      return Tile::along_tokens ? 1.0f : static_cast<float>(x[static_cast<std::size_t>((first + t) * Tile::channels + c)].scale);
    };
    for (int t = 0; t < segment; ++t) peak = std::max(peak, scaled[t] = w[first + t] * scale(t));
    float const step = peak / 255.0f, inverse = peak > 0x1p-100f ? 255.0f / peak : 0.0f;
    for (int t = 0; t < segment; ++t) {
      used[static_cast<std::size_t>(first + t)] = scale(t) == 0 ? w[first + t] : std::nearbyint(scaled[t] * inverse) * step / scale(t);
      double const half = scale(t) == 0 ? 0 : 0.5 * step / scale(t) * (1 + 0x1p-12);
      if (!(std::fabs(used[static_cast<std::size_t>(first + t)] - w[first + t]) <= half)) most_half_step = 1e30;
    }
  }
  return used;
}

template <class Tile, class Accuracy, int M>
void check_mix(char const* name) {
  INFO(name << ", " << Tile::channels << " channels, " << M << " rows, "
            << (std::is_same_v<Accuracy, pith::exact_accuracy> ? "exact" : "integer"));
  using kernel = pith::mix_kernel<Tile, Accuracy, M>;
  constexpr bool rounds = std::is_same_v<Accuracy, pith::integer_accuracy> && requires { Tile::middle; };
  constexpr int stride = 256, group = Tile::channels / kernel::groups;
  random_bits random(4);
  int wrong = 0;
  double half_step_broken = 0;
  for (std::uint64_t seed = 0; seed < 3; ++seed) {
    auto const bytes = encode_tile<Tile>(kernel_rows<Tile>(seed));
    auto const x = stored_numbers<Tile>(bytes);
    std::vector<float> w(M * stride), sums(M * Tile::channels), before, used(M * kernel::groups, -5.0f);
    for (float& one : w) {
      float const g = gaussian(random);
      one = random() % 8 == 0 ? 0.0f : std::exp2(-3 * g * g);
    }
    if (seed == 1)
      for (int t = 0; t < 32; ++t) w[static_cast<std::size_t>(t)] = 0;  // a row that sees nothing in this block
    for (float& one : sums) one = gaussian(random);
    before = sums;
    kernel::run(bytes.data(), w.data(), stride, sums.data(), used.data());
    for (int m = 0; m < M; ++m)
      for (int c = 0; c < Tile::channels; ++c) {
        std::vector<float> weights(w.begin() + m * stride, w.begin() + m * stride + Tile::tokens);
        if constexpr (rounds) weights = used_weights<Tile>(w.data() + m * stride, x, c, half_step_broken);
        double expected = before[static_cast<std::size_t>(m * Tile::channels + c)], size = std::fabs(expected), total = 0;
        for (int t = 0; t < Tile::tokens; ++t) {
          stored_number const& n = x[static_cast<std::size_t>(t * Tile::channels + c)];
          double const weight = weights[static_cast<std::size_t>(t)];
          expected += weight * n.value, size += weight * n.size, total += weight;
        }
        float const made = sums[static_cast<std::size_t>(m * Tile::channels + c)],
                    made_total = used[static_cast<std::size_t>(m * kernel::groups + c / group)];
        double const bound = (Tile::tokens + 16) * 0x1p-24 * size;
        if (!(std::fabs(made - expected) <= bound && std::fabs(made_total - total) <= (Tile::tokens + 16) * 0x1p-24 * total) &&
            ++wrong == 1)
          UNSCOPED_INFO("row " << m << ", channel " << c << ": " << made << " for " << expected << ", bound " << bound << "; used "
                               << made_total << " for " << total);
      }
  }
  CHECK(wrong == 0);
  CHECK(half_step_broken == 0);
}

template <class Codec, int Channels, int M>
void check_both(char const* name) {
  using tile = typename Codec::template bind<Channels, 64, use::mix>;
  check_mix<tile, pith::exact_accuracy, M>(name);
  check_mix<tile, pith::integer_accuracy, M>(name);
}

#define CHECK_BOTH(Channels, M, ...) check_both<__VA_ARGS__, Channels, M>(#__VA_ARGS__)

}  // namespace

TEST_CASE("mix: raw tiles agree with decoding and multiplying", "[cpu][law]") {
  using namespace pith;
  CHECK_BOTH(64, 1, raw<bf16>);
  CHECK_BOTH(80, 2, raw<f16>);
  CHECK_BOTH(80, 4, raw<float>);
  check_mix<raw_tile<bf16, 80, use::mix, 16>, exact_accuracy, 4>("raw<bf16> of 16 tokens");
}

TEST_CASE("mix: integer tiles of per_token groups agree, with the rounded weights in numerator and denominator", "[cpu][law]") {
  using namespace pith;
  CHECK_BOTH(64, 1, int2<per_token<32>>);
  CHECK_BOTH(80, 2, int3<per_token<16>, zero::integer, float>);
  CHECK_BOTH(80, 4, int4<per_token<>, zero::none, bf16>);
  CHECK_BOTH(64, 4, int4<per_token<64>>);
  CHECK_BOTH(80, 4, int5<per_token<16>>);
  CHECK_BOTH(64, 1, int6<per_token<64>, zero::none, float>);
  CHECK_BOTH(80, 2, int7<per_token<>, zero::integer, bf16>);
  CHECK_BOTH(128, 2, int8<per_token<32>>);
}

TEST_CASE("mix: integer tiles of per_channel groups agree, with the rounded weights in numerator and denominator", "[cpu][law]") {
  using namespace pith;
  CHECK_BOTH(64, 1, int2<per_channel<32>>);
  CHECK_BOTH(80, 2, int3<per_channel<16>, zero::none, bf16>);
  CHECK_BOTH(80, 4, int4<per_channel<16>, zero::integer>);
  CHECK_BOTH(64, 4, int4<per_channel<64>, zero::real, float>);
  CHECK_BOTH(128, 2, int5<per_channel<32>, zero::none>);
  CHECK_BOTH(80, 4, int6<per_channel<16>, zero::real, float>);
  CHECK_BOTH(64, 4, int7<per_channel<64>>);
  CHECK_BOTH(128, 1, int8<per_channel<32>>);
}

TEST_CASE("mix: block floating point is read by the kernels for integers", "[cpu][law]") {
  using namespace pith;
  CHECK_BOTH(80, 4, block_float<4, per_token<16>>);
  CHECK_BOTH(128, 1, block_float<6, per_token<64>>);
  CHECK_BOTH(64, 2, block_float<5, per_channel<32>>);
  CHECK_BOTH(64, 4, block_float<8, per_channel<64>>);
}

TEST_CASE("mix: 8-bit floats agree with decoding and multiplying, in both accuracies", "[cpu][law]") {
  using namespace pith;
  CHECK_BOTH(64, 1, float8<e4m3>);
  CHECK_BOTH(80, 4, float8<e5m2>);
  CHECK_BOTH(80, 2, float8<e4m3, per_token<16>>);
  CHECK_BOTH(128, 4, float8<e4m3, per_token<64>, f16>);
  CHECK_BOTH(80, 1, float8<e5m2, per_token<>, float>);
  CHECK_BOTH(64, 4, float8<e4m3, per_channel<32>>);
  CHECK_BOTH(80, 2, float8<e5m2, per_channel<16>, float>);
  CHECK_BOTH(64, 1, float8<e4m3, per_channel<64>, e8m0>);
  CHECK_BOTH(64, 4, mxfp8<e4m3>);
}

TEST_CASE("mix: a tile that no kernel knows is decoded and multiplied", "[cpu][law]") {
  check_mix<unknown_tile, pith::exact_accuracy, 1>("unknown_tile");
  check_mix<unknown_tile, pith::integer_accuracy, 4>("unknown_tile");
}

TEST_CASE("mix: the mean of equal rows is the row, however the weights were rounded", "[cpu]") {
  using tile = pith::int4<pith::per_token<32>>::bind<64, 32, use::mix>;
  using kernel = pith::mix_kernel<tile, pith::integer_accuracy, 1>;
  random_bits random(6);
  std::vector<float> row(64), rows, w(32), sums(64), used(2);
  for (float& one : row) one = gaussian(random);
  for (int t = 0; t < 32; ++t) rows.insert(rows.end(), row.begin(), row.end());
  for (float& one : w) one = std::exp2(-8 * std::fabs(gaussian(random)));
  auto const bytes = encode_tile<tile>(rows);
  auto const x = stored_numbers<tile>(bytes);
  kernel::run(bytes.data(), w.data(), 32, sums.data(), used.data());
  for (std::size_t c = 0; c < 64; ++c) CHECK(std::fabs(sums[c] / used[c / 32] - x[c].value) <= 0x1p-18 * x[c].size);
}
