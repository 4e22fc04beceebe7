// SPDX-License-Identifier: Apache-2.0
// Rule C6 for mix: every kernel agrees with decoding and multiplying, within its stated bound.
#include "cpu/kernel_oracle.hpp"

namespace {

using namespace pith_test;
using pith::use;

// What integer accuracy adds for channel c of a row of weights: rounded weights meet the distance from the middle of the codes, the middle
// meets the weights themselves. `loose` is raised by what may have been rounded either way, `half_steps` bounds the distance from the exact
// sum.
template <class Tile>
double rounded_sum(float const* w, std::vector<stored_number> const& x, int c, double& loose, double& half_steps) {
  constexpr int segment = Tile::along_tokens && Tile::group < 32 ? Tile::group : 32;
  double sum = 0;
  for (int first = 0; first < Tile::tokens; first += segment) {
    auto const number = [&](int t) { return x[static_cast<std::size_t>((first + t) * Tile::channels + c)]; };
    float scaled[segment], peak = 0;
    for (int t = 0; t < segment; ++t)
      peak = std::max(peak, scaled[t] = w[first + t] * (Tile::along_tokens ? 1.0f : static_cast<float>(number(t).scale)));
    float const step = peak / 255.0f, inverse = peak > 0x1p-100f ? 255.0f / peak : 0.0f;
    for (int t = 0; t < segment; ++t) {
      stored_number const n = number(t);
      double const unrounded = static_cast<double>(scaled[t]) * inverse, rounded = std::nearbyint(unrounded);
      double const distance = (n.value - n.middle) / (n.scale > 0 ? n.scale : 1),
                   unit = step * (Tile::along_tokens ? n.scale : 1.0) * std::fabs(distance);
      sum += rounded * step * (Tile::along_tokens ? n.scale : 1.0) * distance + static_cast<double>(w[first + t]) * n.middle;
      half_steps += (0.5 + 0x1p-12) * unit;
      if (std::fabs(std::fabs(unrounded - rounded) - 0.5) < 0x1p-14) loose += unit;
    }
  }
  return sum;
}

template <class Tile, class Accuracy, int M>
void check_mix(char const* name) {
  INFO(name << ", " << Tile::channels << " channels, " << M << " rows, "
            << (std::is_same_v<Accuracy, pith::exact_accuracy> ? "exact" : "integer"));
  using kernel = pith::mix_kernel<Tile, Accuracy, M>;
  constexpr bool rounds = std::is_same_v<Accuracy, pith::integer_accuracy> && requires { Tile::middle; };
  constexpr int stride = 256;
  random_bits random(4);
  int wrong = 0, farther_than_bound = 0;
  for (std::uint64_t seed = 0; seed < 3; ++seed) {
    auto const bytes = encode_tile<Tile>(kernel_rows<Tile>(seed));
    auto const x = stored_numbers<Tile>(bytes);
    std::vector<float> w(M * stride), sums(M * Tile::channels), before;
    for (float& one : w) {
      float const g = gaussian(random);
      one = random() % 8 == 0 ? 0.0f : std::exp2(-3 * g * g);
    }
    if (seed == 1)
      for (int t = 0; t < 32; ++t) w[static_cast<std::size_t>(t)] = 0;  // a row that sees nothing in this block
    for (float& one : sums) one = gaussian(random);
    before = sums;
    kernel::run(bytes.data(), w.data(), stride, sums.data());
    for (int m = 0; m < M; ++m)
      for (int c = 0; c < Tile::channels; ++c) {
        double const start = before[static_cast<std::size_t>(m * Tile::channels + c)];
        double exact = start, size = std::fabs(start), expected = start, loose = 0, half_steps = 0;
        for (int t = 0; t < Tile::tokens; ++t) {
          stored_number const& n = x[static_cast<std::size_t>(t * Tile::channels + c)];
          double const weight = w[static_cast<std::size_t>(m * stride + t)];
          exact += weight * n.value, size += weight * n.size;
        }
        if constexpr (rounds)
          expected += rounded_sum<Tile>(w.data() + m * stride, x, c, loose, half_steps);
        else
          expected = exact;
        float const made = sums[static_cast<std::size_t>(m * Tile::channels + c)];
        double const bound = (Tile::tokens + 16) * 0x1p-24 * size;
        if (!(std::fabs(made - expected) <= bound + loose) && ++wrong == 1)
          UNSCOPED_INFO("row " << m << ", channel " << c << ": " << made << " for " << expected << ", bound " << bound);
        farther_than_bound += !(std::fabs(made - exact) <= bound + half_steps);
      }
  }
  CHECK(wrong == 0);
  CHECK(farther_than_bound == 0);
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

TEST_CASE("mix: integer tiles of per_token groups agree, and rounded weights err by half a step at most", "[cpu][law]") {
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

TEST_CASE("mix: integer tiles of per_channel groups agree, and rounded weights err by half a step at most", "[cpu][law]") {
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

TEST_CASE("mix: neighbouring tiles share the step of their weights", "[cpu][law]") {
  using tile = pith::int4<pith::per_token<32>>::bind<64, 64, use::mix>;
  using kernel = pith::mix_kernel<tile, pith::integer_accuracy, 4>;
  random_bits random(6);
  std::vector<std::byte> bytes;
  std::vector<stored_number> x;
  for (std::uint64_t seed = 0; seed < 2; ++seed) {
    auto const one = encode_tile<tile>(kernel_rows<tile>(seed));
    auto const numbers = stored_numbers<tile>(one);
    bytes.insert(bytes.end(), one.begin(), one.end());
    x.insert(x.end(), numbers.begin(), numbers.end());
  }
  std::vector<float> w(4 * 64), sums(4 * 64);
  for (float& one : w) one = std::exp2(-8 * std::fabs(gaussian(random)));
  kernel::lanes rest;
  kernel::add<2>(bytes.data(), w.data(), 64, sums.data(), rest);
  int wrong = 0;
  for (std::size_t m = 0; m < 4; ++m)
    for (std::size_t c = 0; c < 64; ++c) {
      double exact = 0, size = 0, peak = 0, distances = 0, made = sums[m * 64 + c];
      for (float lane : rest.shift[m][c / 32]) made += lane;
      for (std::size_t t = 0; t < 64; ++t) {
        stored_number const& n = x[t * 64 + c];
        exact += w[m * 64 + t] * n.value, size += w[m * 64 + t] * n.size;
        peak = std::max(peak, w[m * 64 + t] * n.scale);
        distances += n.scale > 0 ? std::fabs(n.value - n.middle) / n.scale : 0;
      }
      wrong += !(std::fabs(made - exact) <= 80 * 0x1p-24 * size + peak / 510 * distances * (1 + 0x1p-12));
    }
  CHECK(wrong == 0);
}
