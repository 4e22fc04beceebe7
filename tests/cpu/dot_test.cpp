// SPDX-License-Identifier: Apache-2.0
// Rule C6 for dot: every kernel agrees with decoding and multiplying, within its stated bound.
#include "cpu/kernel_oracle.hpp"

namespace {

using namespace pith_test;
using pith::use;

// What integer accuracy multiplies: q, or q times the channel scales.
template <class Tile>
std::vector<double> rounded_query(float const* q, std::vector<stored_number> const& x, int token) {
  std::vector<double> row(static_cast<std::size_t>(Tile::channels));
  for (int c = 0; c < Tile::channels; ++c)
    row[static_cast<std::size_t>(c)] = Tile::along_tokens ? q[c] * x[static_cast<std::size_t>(token * Tile::channels + c)].scale : q[c];
  return row;
}

// The rule of design: 15 bits unless 8 are below 1/128 of the row, or below half of the codes' own error.
struct query_rounding {
  double step;
  bool wide;
};
template <int Bits>
query_rounding rounding_of(std::vector<double> const& row) {
  double most = 0, squares = 0;
  for (double x : row) most = std::max(most, std::fabs(x)), squares += x * x;
  double const step = most / 127, rounding = step * step * static_cast<double>(row.size()), codes = std::pow(4, Bits) / 12;
  bool const narrow =
      rounding <= 12.0 / 16384 * squares * 1.001 || rounding * codes <= 0.25 * squares * 1.001;  // in doubt the larger bound
  return {narrow ? step : most / 16256, !narrow};
}

// The half steps that it may add, for one query row and token: step/2 sum |u - middle| s.
template <class Tile>
double rounding_bound(float const* q, std::vector<stored_number> const& x, int token) {
  double const step = rounding_of<Tile::bits>(rounded_query<Tile>(q, x, token)).step;
  double sum = 0;
  for (int c = 0; c < Tile::channels; ++c) {
    stored_number const& n = x[static_cast<std::size_t>(token * Tile::channels + c)];
    sum += n.centred * (Tile::along_tokens ? 1.0 : n.scale);
  }
  return 0.5 * step * sum * (1 + 0x1p-8);  // a 15-bit number times 1/step is itself off by up to 2^-9 of a step
}

template <class Tile, class Accuracy, int M>
void check_dot(char const* name) {
  INFO(name << ", " << Tile::channels << " channels, " << M << " rows, "
            << (std::is_same_v<Accuracy, pith::exact_accuracy> ? "exact" : "integer"));
  using kernel = pith::dot_kernel<Tile, Accuracy, M>;
  random_bits random(3);
  int wrong = 0;
  double worst = 0;
  for (std::uint64_t seed = 0; seed < 3; ++seed) {
    auto const bytes = encode_tile<Tile>(kernel_rows<Tile>(seed));
    auto const x = stored_numbers<Tile>(bytes);
    std::vector<float> q(static_cast<std::size_t>(M * Tile::channels));
    for (float& one : q) one = seed == 2 ? cauchy(random) : gaussian(random);
    constexpr int stride = 256;
    std::vector<float> scores(M * stride, -77.0f);
    auto query = std::make_unique<typename kernel::query>();
    kernel::prepare(q.data(), *query);
    kernel::run(bytes.data(), *query, scores.data(), stride);
    for (int m = 0; m < M; ++m)
      for (int t = 0; t < stride; ++t) {
        float const made = scores[static_cast<std::size_t>(m * stride + t)];
        if (t >= Tile::tokens) {
          wrong += made != -77.0f;
          continue;
        }
        double expected = 0, size = 0;
        for (int c = 0; c < Tile::channels; ++c) {
          stored_number const& n = x[static_cast<std::size_t>(t * Tile::channels + c)];
          double const weight = q[static_cast<std::size_t>(m * Tile::channels + c)];
          expected += weight * n.value, size += std::fabs(weight) * n.size;
        }
        double bound = (Tile::channels + 16) * 0x1p-24 * size;
        if constexpr (std::is_same_v<Accuracy, pith::integer_accuracy> && requires { Tile::middle; })
          bound += rounding_bound<Tile>(q.data() + m * Tile::channels, x, t);
        worst = std::max(worst, std::fabs(made - expected) / bound);
        if (!(std::fabs(made - expected) <= bound) && ++wrong == 1)
          UNSCOPED_INFO("row " << m << ", token " << t << ": " << made << " for " << expected << ", bound " << bound);
      }
  }
  CHECK(wrong == 0);
  CHECK(worst <= 1);
}

template <class Codec, int Channels, int M>
void check_both(char const* name) {
  using tile = typename Codec::template bind<Channels, 64, use::dot>;
  check_dot<tile, pith::exact_accuracy, M>(name);
  check_dot<tile, pith::integer_accuracy, M>(name);
}

#define CHECK_BOTH(Channels, M, ...) check_both<__VA_ARGS__, Channels, M>(#__VA_ARGS__)

}  // namespace

TEST_CASE("dot: raw tiles agree with decoding and multiplying", "[cpu][law]") {
  using namespace pith;
  CHECK_BOTH(64, 1, raw<bf16>);
  CHECK_BOTH(80, 2, raw<f16>);
  CHECK_BOTH(80, 4, raw<float>);
  check_dot<raw_tile<bf16, 80, use::dot, 16>, exact_accuracy, 4>("raw<bf16> of 16 tokens");
}

TEST_CASE("dot: integer tiles of per_token groups agree within the stated bounds", "[cpu][law]") {
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

TEST_CASE("dot: integer tiles of per_channel groups agree within the stated bounds", "[cpu][law]") {
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

TEST_CASE("dot: block floating point is read by the kernels for integers", "[cpu][law]") {
  using namespace pith;
  CHECK_BOTH(80, 4, block_float<4, per_token<16>>);
  CHECK_BOTH(128, 1, block_float<6, per_token<64>>);
  CHECK_BOTH(64, 2, block_float<5, per_channel<32>>);
  CHECK_BOTH(64, 4, block_float<8, per_channel<64>>);
}

TEST_CASE("dot: 8-bit floats agree with decoding and multiplying, in both accuracies", "[cpu][law]") {
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

TEST_CASE("dot: a tile that no kernel knows is decoded and multiplied", "[cpu][law]") {
  check_dot<unknown_tile, pith::exact_accuracy, 1>("unknown_tile");
  check_dot<unknown_tile, pith::integer_accuracy, 4>("unknown_tile");
}

namespace {

// One query against per-channel int8 keys with the given size of channel 5.
struct folded_error {
  bool wide;
  double rounding, own;  // root mean squares of the scores' errors
};

folded_error outlier_error(float outlier) {
  using tile = pith::int8<pith::per_channel<32>>::bind<128, 32, use::dot>;
  using kernel = pith::dot_kernel<tile, pith::integer_accuracy, 1>;
  random_bits random(17);
  folded_error all{};
  int const rounds = 8;
  for (int round = 0; round < rounds; ++round) {
    std::vector<float> rows(32 * 128), q(128);
    for (std::size_t i = 0; i < rows.size(); ++i) rows[i] = gaussian(random) * (i % 128 == 5 ? outlier : 1.0f);
    for (float& one : q) one = gaussian(random);
    q[5] = 1.5f;
    auto const bytes = encode_tile<tile>(rows);
    auto const x = stored_numbers<tile>(bytes);
    auto query = std::make_unique<kernel::query>();
    float scores[32];
    kernel::prepare(q.data(), *query);
    kernel::run(bytes.data(), *query, scores, 32);
    all.wide = rounding_of<8>(rounded_query<tile>(q.data(), x, 0)).wide;
    for (std::size_t t = 0; t < 32; ++t) {
      double decoded = 0, true_score = 0;
      for (std::size_t c = 0; c < 128; ++c) decoded += q[c] * x[t * 128 + c].value, true_score += double(q[c]) * rows[t * 128 + c];
      all.rounding += (scores[t] - decoded) * (scores[t] - decoded), all.own += (decoded - true_score) * (decoded - true_score);
    }
  }
  all.rounding = std::sqrt(all.rounding / (32 * rounds)), all.own = std::sqrt(all.own / (32 * rounds));
  return all;
}

}  // namespace

// With 8 bits the rounding error would be about 5 times the codec's own here.
TEST_CASE("dot: an outlier channel in int8 keys makes the query 15 bits wide, and its error stays below the codec's own", "[cpu]") {
  folded_error const error = outlier_error(30);
  INFO("rounding " << error.rounding << ", codec " << error.own);
  CHECK(error.wide);
  CHECK(error.rounding < 0.5 * error.own);
}

TEST_CASE("dot: plain gaussian keys leave the query at 8 bits", "[cpu]") {
  folded_error const error = outlier_error(1);
  INFO("rounding " << error.rounding << ", codec " << error.own);
  CHECK_FALSE(error.wide);
  CHECK(error.rounding > 0.1 * error.own);  // 15 bits would be far below
}

TEST_CASE("dot: a query of zeros scores zero, and a tiny one is not lost in integers", "[cpu]") {
  using tile = pith::int4<pith::per_token<64>>::bind<64, 32, use::dot>;
  using kernel = pith::dot_kernel<tile, pith::integer_accuracy, 1>;
  auto const bytes = encode_tile<tile>(kernel_rows<tile>(1));
  auto const x = stored_numbers<tile>(bytes);
  std::vector<float> q(64);
  auto query = std::make_unique<kernel::query>();
  float scores[32];
  kernel::prepare(q.data(), *query);
  kernel::run(bytes.data(), *query, scores, 32);
  for (float s : scores) CHECK(s == 0);
  random_bits random(2);
  for (float& one : q) one = gaussian(random) * 0x1p-60f;
  kernel::prepare(q.data(), *query);
  kernel::run(bytes.data(), *query, scores, 32);
  for (std::size_t t = 0; t < 32; ++t) {
    double expected = 0, size = 0;
    for (std::size_t c = 0; c < 64; ++c) expected += q[c] * x[t * 64 + c].value, size += std::fabs(q[c]) * x[t * 64 + c].size;
    CHECK(std::fabs(scores[t] - expected) <= 0.01 * size);
  }
}
