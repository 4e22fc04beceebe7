// SPDX-License-Identifier: Apache-2.0
// What sums and outliers are for: which numbers are stored, what is left to the next stage, and by how much the error falls.
#include <algorithm>
#include <cmath>
#include <vector>

#include "laws/inputs.hpp"
#include "laws/round_trip.hpp"
#include "pith/codec/integer.hpp"
#include "pith/codec/outliers.hpp"
#include "pith/codec/sum.hpp"
#include "support/catch.hpp"

#if __has_include(<Eigen/Core>)
#include <Eigen/Eigenvalues>

#include "pith/codec/low_rank.hpp"
#endif

namespace {

using namespace pith;
using pith_test::encoded, pith_test::decoded, pith_test::random_bits;

template <class Tile>
std::vector<float> through(std::vector<float> const& rows) {
  return decoded<Tile>(encoded<Tile>(rows));
}

double squared_error(std::vector<float> const& x, std::vector<float> const& y) {
  double sum = 0;
  for (std::size_t i = 0; i < x.size(); ++i) sum += (static_cast<double>(x[i]) - y[i]) * (static_cast<double>(x[i]) - y[i]);
  return sum;
}

std::vector<float> gaussian_rows(int tokens, int channels, std::uint64_t seed) {
  random_bits random(seed);
  std::vector<float> x(static_cast<std::size_t>(tokens * channels));
  for (float& one : x) one = pith_test::gaussian(random);
  return x;
}

template <class Codec>
using tile64 = typename Codec::template bind<64, 64, use::dot>;

}  // namespace

TEST_CASE("outliers: the N largest and the N smallest of every vector, others are zero", "[codec][outliers]") {
  using tile = tile64<outliers<both_ends<2>, per_token<32>, leave::zero, float>>;
  auto const x = pith_test::hard_inputs(tile::tokens, tile::channels)[2].rows;
  auto const y = through<tile>(x);
  for (std::size_t first = 0; first < x.size(); first += 32) {
    std::vector<float> sorted(x.begin() + static_cast<std::ptrdiff_t>(first), x.begin() + static_cast<std::ptrdiff_t>(first + 32));
    std::sort(sorted.begin(), sorted.end());
    for (std::size_t i = first; i < first + 32; ++i) CHECK(y[i] == (x[i] <= sorted[1] || x[i] >= sorted[30] ? x[i] : 0.0f));
  }
}

TEST_CASE("outliers: of equal numbers the first are taken, and magnitudes know no sign", "[codec][outliers]") {
  using tile = tile64<outliers<magnitudes<3>, per_channel<>, leave::zero, f16>>;
  std::vector<float> x(64 * 64, 1.0f), expected(64 * 64);
  x[5 * 64 + 7] = -2, expected[5 * 64 + 7] = -2;  // channel 7: this one, then tokens 0 and 1
  for (std::size_t c = 0; c < 64; ++c)
    for (std::size_t t = 0; t < 64; ++t)
      if (t < (c == 7 ? 2u : 3u)) expected[t * 64 + c] = 1;
  CHECK(through<tile>(x) == expected);
}

TEST_CASE("outliers: what is left is the mean of the others, their nearest end, or zero", "[codec][outliers]") {
  std::vector<float> x(32 * 64);
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i % 16) * 0.25f + 3;  // 3 to 6.75
  x[4] = 100, x[9] = -50;
  double mean = 0;
  for (std::size_t i = 0; i < 16; ++i) mean += i == 4 || i == 9 ? 0 : x[i] / 14.0;
  auto const left = [&]<leave Leave>(std::size_t i) {
    using tile = outliers<both_ends<1>, per_token<16>, Leave, float>::template bind<64, 64, use::dot>;
    return x[i] - through<tile>(x)[i];
  };
  CHECK(std::fabs(left.operator()<leave::mean>(4) - mean) < 1e-5);
  CHECK(std::fabs(left.operator()<leave::mean>(9) - mean) < 1e-5);
  CHECK(left.operator()<leave::end>(4) == 6.75f);
  CHECK(left.operator()<leave::end>(9) == 3.0f);
  CHECK(left.operator()<leave::zero>(4) == 0);
}

TEST_CASE("outliers: places behind the vector are nobody's, and a vector with too few finite numbers leaves entries empty",
          "[codec][outliers]") {
  using tile = tile64<outliers<both_ends<1>, per_token<16>, leave::zero, f16>>;
  std::vector<float> x(32 * 64, bits_float(0x7fc00000u)), expected(32 * 64);
  x[3] = expected[3] = 5;
  auto bytes = encoded<tile>(x);
  CHECK(decoded<tile>(bytes) == expected);
  for (std::size_t i = tile::place_at; i < bytes.size(); ++i) bytes[i] = std::byte{200};
  CHECK(decoded<tile>(bytes) == std::vector<float>(32 * 64));
}

// An integer's rms error is step / sqrt(12) and the step is the group's range: the sum's gain is that of the ranges, computed here from
// the numbers themselves.
TEST_CASE("sum: taking one outlier out of every token gains what its range gains", "[codec][sum][quality]") {
  constexpr int tokens = 2048;
  using plain = tile64<int4<per_token<64>, zero::real, float>>;
  using sparse = tile64<sum<outliers<magnitudes<1>, per_token<64>>, int4<per_token<64>, zero::real, float>>>;
  auto x = gaussian_rows(tokens, 64, 3);
  random_bits random(4);
  double with = 0, without = 0, plain_error = 0, sparse_error = 0;
  for (int t = 0; t < tokens; ++t) {
    std::vector<float> row(x.begin() + t * 64, x.begin() + (t + 1) * 64);
    std::sort(row.begin(), row.end());
    int const place = static_cast<int>(random() % 64);
    x[static_cast<std::size_t>(t * 64 + place)] = 30;
    without += std::pow(row[63] - row[0], 2), with += std::pow(30 - row[0], 2);
  }
  for (int t = 0; t < tokens; t += 32) {
    std::vector<float> const part(x.begin() + t * 64, x.begin() + (t + 32) * 64);
    plain_error += squared_error(part, through<plain>(part)), sparse_error += squared_error(part, through<sparse>(part));
  }
  double const gain = std::sqrt(plain_error / sparse_error), theory = std::sqrt(with / without);
  INFO("gain " << gain << ", theory " << theory);
  CHECK(theory > 6);
  CHECK(gain > 0.95 * theory);
  CHECK(gain < 1.05 * theory);
}

TEST_CASE("sum: a second stage of B bits divides the error of the first by 2^B - 1", "[codec][sum][quality]") {
  using first = tile64<int4<per_token<64>, zero::real, float>>;
  using both = tile64<sum<int4<per_token<64>, zero::real, float>, int4<per_token<64>, zero::none, float>>>;
  auto const x = gaussian_rows(32, 64, 5);
  // The residual fills +-step/2: 7 steps each side of zero, so the range is divided by 14.
  double const gain = std::sqrt(squared_error(x, through<first>(x)) / squared_error(x, through<both>(x)));
  INFO("gain " << gain);
  CHECK(gain > 14 * 0.9);
  CHECK(gain < 14 * 1.1);
}

TEST_CASE("sum: where nothing stands out, the delta form costs nothing: every number is within half a step", "[codec][sum]") {
  using tile = tile64<sum<outliers<both_ends<1>, per_token<64>, leave::end>, int4<per_token<64>>>>;
  auto const x = gaussian_rows(32, 64, 6);
  auto const y = through<tile>(x);
  for (std::size_t t = 0; t < 32; ++t) {
    std::vector<float> row(x.begin() + static_cast<std::ptrdiff_t>(t * 64), x.begin() + static_cast<std::ptrdiff_t>(t * 64 + 64));
    std::sort(row.begin(), row.end());
    float const half = 0.5f * (row[62] - row[1]) / 15 * 1.01f;
    for (std::size_t c = 0; c < 64; ++c) CHECK(std::fabs(x[t * 64 + c] - y[t * 64 + c]) <= half);
  }
}

TEST_CASE("sum: bytes are those of the stages, one after the other, and bits per value count everything", "[codec][sum]") {
  using dense = tile64<int2<per_channel<32>>>;
  using points = tile64<outliers<both_ends<1>, per_channel<>>>;
  using both = tile64<sum<outliers<both_ends<1>, per_channel<>>, int2<per_channel<32>>>>;
  CHECK(both::tokens == 64);
  CHECK(both::bytes == points::bytes + 2 * dense::bytes);
  CHECK(bits_per_value<both> == 3.0 + 2 * 24.0 / 64);
  auto const x = pith_test::hard_inputs(64, 64)[3].rows;
  auto const made = encoded<both>(x), first = encoded<points>(x);
  CHECK(std::equal(first.begin(), first.end(), made.begin()));
  std::vector<float> left = decoded<points>(first);
  for (std::size_t i = 0; i < left.size(); ++i) left[i] = x[i] - left[i];
  for (int block = 0; block < 2; ++block) {
    auto const second = encoded<dense>({left.begin() + block * 32 * 64, left.begin() + (block + 1) * 32 * 64});
    CHECK(std::equal(second.begin(), second.end(), made.begin() + both::part_at(1) + block * dense::bytes));
  }
}

TEST_CASE("sum: a number that is not finite is the first stage's alone", "[codec][sum]") {
  using tile = tile64<sum<int4<per_token<32>>, int4<per_token<32>>>>;
  using first = tile64<int4<per_token<32>>>;
  auto x = gaussian_rows(32, 64, 7);
  x[70] = bits_float(0x7f800000u);
  auto const y = through<tile>(x), once = through<first>(x);
  float const most = *std::max_element(once.begin() + 64, once.begin() + 96);
  CHECK(once[70] == most);
  CHECK(std::fabs(y[70] - most) < 0.1f);  // the second stage sees zero there, within its own step
}

#if __has_include(<Eigen/Core>)

namespace {

// a b' over the tile, a and b gaussian: rank 1 and a norm of about `size` sqrt(tokens channels).
void add_rank_one(std::vector<float>& x, int tokens, int channels, float size, std::uint64_t seed) {
  auto const a = gaussian_rows(1, tokens, seed), b = gaussian_rows(1, channels, seed + 1);
  for (int t = 0; t < tokens; ++t)
    for (int c = 0; c < channels; ++c)
      x[static_cast<std::size_t>(t * channels + c)] += size * a[static_cast<std::size_t>(t)] * b[static_cast<std::size_t>(c)];
}

double norm(std::vector<float> const& x) { return std::sqrt(squared_error(x, std::vector<float>(x.size()))); }

}  // namespace

TEST_CASE("low rank: a matrix of its rank is stored as well as its factors can be", "[codec][low_rank][quality]") {
  for (float const size : {1e-3f, 1.0f, 1e4f}) {
    std::vector<float> x(64 * 64);
    for (std::uint64_t seed : {1, 3, 5}) add_rank_one(x, 64, 64, size * static_cast<float>(seed * seed), seed);
    CHECK(std::sqrt(squared_error(x, through<tile64<low_rank<3>>>(x))) < 0x1p-10 * norm(x));
    CHECK(std::sqrt(squared_error(x, through<tile64<low_rank<3, bf16>>>(x))) < 0x1p-7 * norm(x));
    CHECK(std::sqrt(squared_error(x, through<tile64<low_rank<2>>>(x))) > 0x1p-6 * norm(x));  // one rank too few
  }
}

// Eckart and Young: nothing of rank R is nearer than the R largest singular directions; the fit may miss a little of that.
TEST_CASE("low rank: the fit is the best of its rank, within a percent", "[codec][low_rank][quality]") {
  Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic> m(64, 64);
  auto x = gaussian_rows(64, 64, 9);
  for (std::uint64_t seed : {20, 30}) add_rank_one(x, 64, 64, 1.0f, seed);
  for (int t = 0; t < 64; ++t)
    for (int c = 0; c < 64; ++c) m(t, c) = x[static_cast<std::size_t>(t * 64 + c)];
  Eigen::MatrixXd const gram = m.transpose() * m;
  Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> const solver(gram);
  double best = 0;
  for (int i = 0; i < 62; ++i) best += solver.eigenvalues()[i];
  double const made = squared_error(x, through<tile64<low_rank<2>>>(x));
  CHECK(made >= best * 0.9999);
  CHECK(made <= best * 1.01);
}

// What two directions have is taken out first; the integers see the rest. Their step is the rest's range.
TEST_CASE("sum: low rank before integers gains what their range gains", "[codec][sum][low_rank][quality]") {
  using plain = tile64<int4<per_token<64>, zero::real, float>>;
  using both = tile64<sum<low_rank<2>, int4<per_token<64>, zero::real, float>>>;
  auto const rest = gaussian_rows(64, 64, 11);
  auto x = rest;
  for (std::uint64_t seed : {40, 50}) add_rank_one(x, 64, 64, 8.0f, seed);
  double with = 0, without = 0, plain_error = 0;
  for (std::ptrdiff_t t = 0; t < 64; ++t) {
    auto const [low, high] = std::minmax_element(x.begin() + t * 64, x.begin() + t * 64 + 64);
    auto const [rest_low, rest_high] = std::minmax_element(rest.begin() + t * 64, rest.begin() + t * 64 + 64);
    with += std::pow(*high - *low, 2), without += std::pow(*rest_high - *rest_low, 2);
  }
  for (std::ptrdiff_t t = 0; t < 64; t += 32) {
    std::vector<float> const part(x.begin() + t * 64, x.begin() + (t + 32) * 64);
    plain_error += squared_error(part, through<plain>(part));
  }
  double const gain = std::sqrt(plain_error / squared_error(x, through<both>(x))), theory = std::sqrt(with / without);
  INFO("gain " << gain << ", theory " << theory);
  CHECK(theory > 5);
  CHECK(gain > 0.95 * theory);
  CHECK(gain < 1.1 * theory);
}

// GEAR's order. The error of 2 bits that has two directions in common loses their share.
TEST_CASE("sum: low rank after integers takes out what their errors have in common", "[codec][sum][low_rank][quality]") {
  using dense = tile64<int2<per_channel<32>>>;
  using both = tile64<sum<int2<per_channel<32>>, low_rank<4>>>;
  auto const x = gaussian_rows(64, 64, 13);
  std::vector<float> left = x;
  for (std::ptrdiff_t t = 0; t < 64; t += 32) {
    auto const y = through<dense>({x.begin() + t * 64, x.begin() + (t + 32) * 64});
    for (std::size_t i = 0; i < y.size(); ++i) left[static_cast<std::size_t>(t) * 64 + i] -= y[i];
  }
  Eigen::MatrixXd m(64, 64);
  for (int t = 0; t < 64; ++t)
    for (int c = 0; c < 64; ++c) m(t, c) = left[static_cast<std::size_t>(t * 64 + c)];
  Eigen::MatrixXd const gram = m.transpose() * m;
  Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> const solver(gram);
  double best = 0;
  for (int i = 0; i < 60; ++i) best += solver.eigenvalues()[i];
  double const made = squared_error(x, through<both>(x));
  INFO("made " << made << ", best " << best << ", without " << squared_error(left, std::vector<float>(left.size())));
  CHECK(made >= 0.9999 * best);
  CHECK(made <= 1.1 * best);
}

#endif
