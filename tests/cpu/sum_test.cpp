// SPDX-License-Identifier: Apache-2.0
// Rule C6 for sums and their stages: dot and mix agree with decoding and multiplying, and in integer accuracy every stage's weights add up
// to the same total.
#include "cpu/kernel_oracle.hpp"
#include "pith/codec/hadamard.hpp"
#include "pith/codec/pipe.hpp"
#include "pith/cpu/sum_kernels.hpp"

#if __has_include(<Eigen/Core>)
#include "pith/codec/low_rank.hpp"
#endif

namespace {

using namespace pith_test;
using namespace pith;

// The magnitudes that the stages add up from: what f32 rounding is relative to.
template <class Tile>
struct sizes_of {
  static void add(std::byte const* tile, std::vector<double>& size) {
    auto const x = stored_numbers<Tile>(std::vector<std::byte>(tile, tile + Tile::bytes));
    for (std::size_t i = 0; i < x.size(); ++i) size[i] += x[i].size;
  }
};
template <class... Stages>
struct sizes_of<sum_tile<Stages...>> {
  static void add(std::byte const* tile, std::vector<double>& size) {
    int stage = 0;
    (add_stage<Stages>(tile + sum_tile<Stages...>::part_at(stage++), size), ...);
  }
  template <class Stage>
  static void add_stage(std::byte const* tile, std::vector<double>& size) {
    std::size_t const numbers = static_cast<std::size_t>(Stage::tokens * Stage::channels);
    for (std::size_t i = 0; i < size.size() / numbers; ++i) {
      std::vector<double> part(numbers);
      sizes_of<Stage>::add(tile + static_cast<std::int64_t>(i) * Stage::bytes, part);
      for (std::size_t j = 0; j < numbers; ++j) size[i * numbers + j] += part[j];
    }
  }
};

#if __has_include(<Eigen/Core>)
template <int Rank, class Scalar, int Channels, int Tokens>
struct sizes_of<low_rank_tile<Rank, Scalar, Channels, Tokens>> {  // twice for the sums inside
  static void add(std::byte const* tile, std::vector<double>& size) {
    auto const factor = [&](int at) { return std::fabs(load_scalar<Scalar>(tile + 2 * at)); };
    for (int r = 0; r < Rank; ++r)
      for (int t = 0; t < Tokens; ++t)
        for (int c = 0; c < Channels; ++c)
          size[static_cast<std::size_t>(t * Channels + c)] += 2.0 * factor(r * Tokens + t) * factor(Rank * Tokens + r * Channels + c);
  }
};
#endif

template <class Tile>
struct stored_tile {
  std::vector<std::byte> bytes;
  std::vector<float> x = std::vector<float>(static_cast<std::size_t>(Tile::tokens * Tile::channels));
  std::vector<double> size = std::vector<double>(x.size());

  explicit stored_tile(std::vector<float> const& rows) : bytes(encode_tile<Tile>(rows)) {
    Tile::decode(bytes.data(), x.data());
    sizes_of<Tile>::add(bytes.data(), size);
  }
};

template <class Tile, class Accuracy, int M>
std::vector<float> scores_of(std::byte const* tile, std::vector<float> const& q) {
  using kernel = dot_kernel<Tile, Accuracy, M>;
  std::vector<float> scores(static_cast<std::size_t>(M * Tile::tokens));
  auto query = std::make_unique<typename kernel::query>();
  kernel::prepare(q.data(), *query);
  kernel::run(tile, *query, scores.data(), Tile::tokens);
  return scores;
}

template <class Tile, class Accuracy, int M>
struct mixed {
  std::vector<float> sums;
  mixed(std::byte const* tile, std::vector<float> const& w, std::vector<float> before) : sums(std::move(before)) {
    mix_kernel<Tile, Accuracy, M>::run(tile, w.data(), Tile::tokens, sums.data());
  }
};

std::vector<float> random_weights(std::size_t count, random_bits& random) {
  std::vector<float> w(count);
  for (float& one : w) {
    float const g = gaussian(random);
    one = random() % 8 == 0 ? 0.0f : std::exp2(-3 * g * g);
  }
  return w;
}

template <class Codec, int Channels, int M>
void check_exact(char const* name) {
  INFO(name << ", " << Channels << " channels, " << M << " rows");
  random_bits random(11);
  int wrong = 0;
  auto const compare = [&](double made, double expected, double bound) {
    if (!(std::fabs(made - expected) <= bound) && ++wrong == 1) UNSCOPED_INFO(made << " for " << expected << ", bound " << bound);
  };
  auto const with_use = [&]<use Use>() {
    using tile = typename Codec::template bind<Channels, 64, Use>;
    for (std::uint64_t seed = 0; seed < 3; ++seed) {
      stored_tile<tile> const stored(kernel_rows<tile>(seed));
      auto const number = [&](int t, int c) { return static_cast<std::size_t>(t * Channels + c); };
      std::vector<float> q(M * Channels), before(M * Channels);
      for (float& one : q) one = seed == 2 ? cauchy(random) : gaussian(random);
      for (float& one : before) one = gaussian(random);
      auto const w = random_weights(M * tile::tokens, random);
      auto const scores = scores_of<tile, exact_accuracy, M>(stored.bytes.data(), q);
      mixed<tile, exact_accuracy, M> const made(stored.bytes.data(), w, before);
      for (int m = 0; m < M; ++m) {
        for (int t = 0; t < tile::tokens; ++t) {
          double expected = 0, size = 0;
          for (int c = 0; c < Channels; ++c) {
            double const weight = q[static_cast<std::size_t>(m * Channels + c)];
            expected += weight * stored.x[number(t, c)], size += std::fabs(weight) * stored.size[number(t, c)];
          }
          compare(scores[static_cast<std::size_t>(m * tile::tokens + t)], expected, (Channels + 16) * 0x1p-24 * size);
        }
        for (int c = 0; c < Channels; ++c) {
          double expected = before[static_cast<std::size_t>(m * Channels + c)], size = std::fabs(expected);
          for (int t = 0; t < tile::tokens; ++t) {
            double const weight = w[static_cast<std::size_t>(m * tile::tokens + t)];
            expected += weight * stored.x[number(t, c)], size += weight * stored.size[number(t, c)];
          }
          compare(made.sums[static_cast<std::size_t>(m * Channels + c)], expected, (tile::tokens + 16) * 0x1p-24 * size);
        }
      }
    }
  };
  with_use.template operator()<use::dot>();
  with_use.template operator()<use::mix>();
  CHECK(wrong == 0);
}

#define CHECK_EXACT(Channels, M, ...) check_exact<__VA_ARGS__, Channels, M>(#__VA_ARGS__)

using sparse_keys = sum<outliers<both_ends<1>, per_channel<>>, int2<per_channel<32>>>;
using sparse_values = sum<outliers<both_ends<1>, per_token<>>, int2<per_token<32>>>;

}  // namespace

TEST_CASE("dot, mix: outliers agree with decoding and multiplying", "[cpu][law]") {
  CHECK_EXACT(64, 1, outliers<both_ends<1>, per_channel<>>);
  CHECK_EXACT(80, 4, outliers<magnitudes<3>, per_token<16>, leave::zero, bf16>);
  CHECK_EXACT(128, 2, outliers<both_ends<2>, per_token<>, leave::end, float>);
  CHECK_EXACT(64, 4, outliers<magnitudes<1>, per_channel<16>>);
}

TEST_CASE("dot, mix: a sum agrees with decoding and multiplying, in exact accuracy", "[cpu][law]") {
  CHECK_EXACT(64, 4, sparse_keys);
  CHECK_EXACT(128, 2, sparse_values);
  CHECK_EXACT(80, 1, sum<int4<per_token<16>>, outliers<magnitudes<2>, per_token<>>>);
  CHECK_EXACT(64, 4, sum<int2<per_channel<>>, int2<per_token<32>, zero::none>>);
  CHECK_EXACT(64, 2, sum<sum<outliers<both_ends<1>, per_token<16>>, int2<per_token<64>>>, int3<per_token<16>>>);
  CHECK_EXACT(64, 2, sum<int8<per_token<64>>>);
}

#if __has_include(<Eigen/Core>)
TEST_CASE("dot, mix: low rank agrees with decoding and multiplying, alone and in a sum", "[cpu][law]") {
  CHECK_EXACT(64, 1, low_rank<2>);
  CHECK_EXACT(80, 4, low_rank<5, bf16, 32>);
  CHECK_EXACT(64, 4, sum<outliers<both_ends<1>, per_channel<>>, int2<per_channel<32>>, low_rank<2>>);
  CHECK_EXACT(128, 2, sum<low_rank<1, f16, 32>, int2<per_channel<64>>>);
}
#endif

TEST_CASE("dot: the score of a sum is the sum of its stages' scores, in integer accuracy too", "[cpu][law]") {
  using tile = sum<outliers<both_ends<1>, per_channel<>>, int2<per_channel<32>>, int4<per_token<32>>>::bind<64, 64, use::dot>;
  using dense = int2<per_channel<32>>::bind<64, 64, use::dot>;
  using fine = int4<per_token<32>>::bind<64, 64, use::dot>;
  using points = outliers<both_ends<1>, per_channel<>>::bind<64, 64, use::dot>;
  stored_tile<tile> const stored(kernel_rows<tile>(1));
  random_bits random(12);
  std::vector<float> q(2 * 64);
  for (float& one : q) one = gaussian(random);
  auto const all = scores_of<tile, integer_accuracy, 2>(stored.bytes.data(), q);
  auto const sparse = scores_of<points, integer_accuracy, 2>(stored.bytes.data(), q);
  for (int block = 0; block < 2; ++block) {
    auto const a = scores_of<dense, integer_accuracy, 2>(stored.bytes.data() + tile::part_at(1) + block * dense::bytes, q);
    auto const b = scores_of<fine, integer_accuracy, 2>(stored.bytes.data() + tile::part_at(2) + block * fine::bytes, q);
    for (std::size_t m = 0; m < 2; ++m)
      for (std::size_t t = 0; t < 32; ++t) {
        std::size_t const at = m * 64 + static_cast<std::size_t>(block) * 32 + t;
        double const expected = static_cast<double>(sparse[at]) + a[m * 32 + t] + b[m * 32 + t];
        CHECK(std::fabs(all[at] - expected) <= 0x1p-20 * (std::fabs(sparse[at]) + std::fabs(a[m * 32 + t]) + std::fabs(b[m * 32 + t])));
      }
  }
}

TEST_CASE("mix: the sums of a sum are its stages' sums, in integer accuracy too", "[cpu][law]") {
  using tile = sparse_values::bind<64, 64, use::mix>;
  using points = outliers<both_ends<1>, per_token<>>::bind<64, 64, use::mix>;
  using dense = int2<per_token<32>>::bind<64, 64, use::mix>;
  random_bits random(13);
  SECTION("each stage rounds for itself") {
    stored_tile<tile> const stored(kernel_rows<tile>(2));
    auto const w = random_weights(2 * 32, random);
    std::vector<float> const none(2 * 64);
    mixed<tile, integer_accuracy, 2> const all(stored.bytes.data(), w, none);
    mixed<tile, exact_accuracy, 2> const exact(stored.bytes.data(), w, none);
    mixed<points, integer_accuracy, 2> const sparse(stored.bytes.data(), w, none);
    mixed<dense, integer_accuracy, 2> const rounded(stored.bytes.data() + tile::part_at(1), w, none);
    CHECK(all.sums != exact.sums);  // the weights were rounded: else nothing is tested
    for (std::size_t i = 0; i < 2 * 64; ++i) {
      double size = 0;
      for (std::size_t t = 0; t < 32; ++t) size += w[i / 64 * 32 + t] * stored.size[t * 64 + i % 64];
      CHECK(std::fabs(static_cast<double>(all.sums[i]) - rounded.sums[i] - sparse.sums[i]) <= 64 * 0x1p-24 * size);
    }
  }
  SECTION("weights of zero give zero") {
    stored_tile<tile> const stored(kernel_rows<tile>(3));
    mixed<tile, integer_accuracy, 1> const made(stored.bytes.data(), std::vector<float>(32), std::vector<float>(64));
    for (float const x : made.sums) CHECK(x == 0);
  }
}
