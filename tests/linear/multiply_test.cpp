// SPDX-License-Identifier: Apache-2.0
// multiply against a product in double over what is stored: every codec of a list, random shapes, both accuracies, strides, threads.
#include "linear/linear_oracle.hpp"

namespace {

using namespace pith_test;
using pith::use;

template <class Codec, class Accuracy>
void check_product(std::int64_t rows, std::int64_t columns, std::int64_t batch, std::uint64_t seed) {
  INFO(rows << " x " << columns << ", batch " << batch << (std::is_same_v<Accuracy, pith::exact_accuracy> ? ", exact" : ", integer"));
  using matrix = pith::packed_matrix<Codec>;
  using tile = typename matrix::tile;
  auto const weights = gaussians(rows * columns, seed);
  auto const w = matrix::pack(pith::matrix_view<float const>(weights.data(), {rows, columns})).value();

  // x and out with strides: x is stored [column][batch], every row of out has 3 numbers behind it.
  auto const x = gaussians(batch * columns, seed + 1);
  auto const bias = gaussians(rows, seed + 2);
  std::vector<float> out(static_cast<std::size_t>(batch * (rows + 3)), -77.0f), threaded = out;
  std::vector<std::byte> scratch(static_cast<std::size_t>(w.template scratch_bytes<Accuracy>(batch)), std::byte{0xff});
  pith::matrix_view<float const> const in(x.data(), {batch, columns}, {1, batch});
  REQUIRE(w.template multiply<Accuracy>(in, pith::matrix_view<float>(out.data(), {batch, rows}, {rows + 3, 1}), scratch, bias));
  REQUIRE(w.template multiply<Accuracy>(in, pith::matrix_view<float>(threaded.data(), {batch, rows}, {rows + 3, 1}), scratch, bias,
                                        two_threads{}));
  CHECK(std::memcmp(out.data(), threaded.data(), out.size() * sizeof(float)) == 0);

  stored_matrix<tile> const stored(w);
  int wrong = 0;
  std::vector<double> expected, bound;
  for (std::int64_t i = 0; i < batch; ++i) {
    std::vector<float> row(static_cast<std::size_t>(columns));
    for (std::int64_t c = 0; c < columns; ++c) row[static_cast<std::size_t>(c)] = in(i, c);
    expect_product<tile, Accuracy>(stored, row, expected, bound);
    for (std::int64_t r = 0; r < rows + 3; ++r) {
      float const made = out[static_cast<std::size_t>(i * (rows + 3) + r)];
      if (r >= rows) {
        wrong += made != -77.0f;
        continue;
      }
      double const right = expected[static_cast<std::size_t>(r)] + bias[static_cast<std::size_t>(r)];
      double const allowed =
          bound[static_cast<std::size_t>(r)] + 0x1p-22 * (std::fabs(right) + std::fabs(bias[static_cast<std::size_t>(r)]));
      if (!(std::fabs(made - right) <= allowed) && ++wrong == 1)
        UNSCOPED_INFO("batch row " << i << ", row " << r << ": " << made << " for " << right << ", allowed " << allowed);
    }
  }
  CHECK(wrong == 0);
}

// Batches that meet kernels of 1, 2, 4 and 8 rows, filled up ones, and a second pass.
template <class Codec>
void check_codec(char const* name, std::uint64_t seed) {
  INFO(name);
  random_bits random(seed);
  constexpr std::int64_t batches[] = {1, 2, 3, 6, 9, 19};
  for (std::int64_t const batch : batches) {
    std::int64_t const rows = 1 + static_cast<std::int64_t>(random() % 70), columns = 1 + static_cast<std::int64_t>(random() % 600);
    check_product<Codec, pith::exact_accuracy>(rows, columns, batch, random());
    check_product<Codec, pith::integer_accuracy>(rows, columns, batch, random());
  }
  check_product<Codec, pith::integer_accuracy>(64, 512, 4, random());
}

#define CHECK_CODEC(...) check_codec<__VA_ARGS__>(#__VA_ARGS__, __LINE__)

}  // namespace

TEST_CASE("multiply: raw weights agree with a product in double", "[linear][law]") {
  using namespace pith;
  CHECK_CODEC(raw<bf16>);
  CHECK_CODEC(raw<f16>);
  CHECK_CODEC(raw<float>);
}

TEST_CASE("multiply: integer weights of per_token groups agree within the stated bounds", "[linear][law]") {
  using namespace pith;
  CHECK_CODEC(int2<per_token<32>>);
  CHECK_CODEC(int3<per_token<128>, zero::integer, float>);
  CHECK_CODEC(int4<per_token<64>, zero::none>);
  CHECK_CODEC(int8<per_token<>, zero::real, bf16>);
}

TEST_CASE("multiply: integer weights of per_channel groups agree within the stated bounds", "[linear][law]") {
  using namespace pith;
  CHECK_CODEC(int4<per_channel<32>>);
  CHECK_CODEC(int8<per_channel<64>, zero::none>);
}

TEST_CASE("multiply: weights in a transformed basis meet transformed queries", "[linear][law]") {
  using namespace pith;
  CHECK_CODEC(pith::pipe<hadamard<128>, int4<per_token<64>, zero::none>>);
}
