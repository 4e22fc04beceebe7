// SPDX-License-Identifier: Apache-2.0
// multiply_transposed against a product in double over what unpack gives, for matrices packed for either product.
#include "linear/linear_oracle.hpp"

namespace {

using namespace pith_test;
using pith::matrix_view;
using pith::use;

template <class Codec, use Use, class Accuracy>
void check_transposed(char const* name, std::int64_t rows, std::int64_t columns, std::int64_t batch, std::uint64_t seed) {
  INFO(name << ", " << rows << " x " << columns << ", batch " << batch << (Use == use::dot ? ", for dot" : ", for mix")
            << (std::is_same_v<Accuracy, pith::exact_accuracy> ? ", exact" : ", integer"));
  using matrix = pith::packed_matrix<Codec, Use>;
  using tile = typename matrix::tile;
  using storage = typename tile::storage;
  constexpr bool rounds = std::is_same_v<Accuracy, pith::integer_accuracy> && Use == use::mix && requires { storage::middle; };
  auto const weights = gaussians(rows * columns, seed), x = gaussians(batch * rows, seed + 1), bias = gaussians(columns, seed + 2);
  auto const w = matrix::pack(matrix_view<float const>(weights.data(), {rows, columns})).value();
  std::vector<float> out(static_cast<std::size_t>(batch * (columns + 2)), -77.0f), threaded = out;
  std::vector<std::byte> scratch(static_cast<std::size_t>(w.template transposed_scratch_bytes<Accuracy>(batch)), std::byte{0xff});
  matrix_view<float const> const in(x.data(), {batch, rows}, {1, batch});
  REQUIRE(w.template multiply_transposed<Accuracy>(in, matrix_view<float>(out.data(), {batch, columns}, {columns + 2, 1}), scratch, bias));
  REQUIRE(w.template multiply_transposed<Accuracy>(in, matrix_view<float>(threaded.data(), {batch, columns}, {columns + 2, 1}), scratch,
                                                   bias, two_threads{}));
  CHECK(std::memcmp(out.data(), threaded.data(), out.size() * sizeof(float)) == 0);

  // mix rounds |x| s to 255 steps of its largest in a block: a weight is off by step / (2 s). A rotation spreads that over a panel.
  stored_matrix<tile> const stored(w);
  int wrong = 0;
  for (std::int64_t i = 0; i < batch; ++i)
    for (std::int64_t first = 0; first < columns; first += tile::channels) {
      std::vector<double> expected(static_cast<std::size_t>(tile::channels)), bound(expected.size());
      for (std::int64_t c = 0; c < tile::channels; ++c) {
        double& sum = expected[static_cast<std::size_t>(c)];
        double size = 0, rounding = 0;
        for (std::int64_t block = 0; block < stored.rows; block += 32) {
          double peak = 0;
          for (std::int64_t r = block; r < block + 32 && r < rows; ++r)
            peak = std::max(peak, std::fabs(in(i, r)) * (rounds && !storage_along_tokens<storage>() ? stored(r, first + c).scale : 1.0));
          for (std::int64_t r = block; r < block + 32 && r < rows; ++r) {
            stored_number const& n = stored(r, first + c);
            sum += in(i, r) * n.value;
            size += std::fabs(in(i, r)) * n.size;
            double const s = storage_along_tokens<storage>() ? 1.0 : n.scale;
            if (rounds && s > 0) rounding += peak / 510 / s * std::fabs(n.value) * (1 + 0x1p-10);
          }
        }
        bound[static_cast<std::size_t>(c)] = (static_cast<double>(2 * rows) + 64) * 0x1p-24 * size + rounding;
      }
      if constexpr (pith::is_transformed<tile>) {
        std::vector<float> basis(expected.begin(), expected.end());
        double squares = 0;
        for (double const b : bound) squares += b * b;
        tile::restore_output(basis.data());
        expected.assign(basis.begin(), basis.end());
        double most = 0;
        for (double const e : expected) most = std::max(most, std::fabs(e));
        bound.assign(bound.size(), std::sqrt(squares) + 0x1p-20 * most);
      }
      for (std::int64_t c = 0; c < tile::channels && first + c < columns; ++c) {
        double const b = bias[static_cast<std::size_t>(first + c)], right = expected[static_cast<std::size_t>(c)] + b;
        float const made = out[static_cast<std::size_t>(i * (columns + 2) + first + c)];
        if (!(std::fabs(made - right) <= bound[static_cast<std::size_t>(c)] + 0x1p-22 * (std::fabs(right) + std::fabs(b))) && ++wrong == 1)
          UNSCOPED_INFO("batch row " << i << ", column " << first + c << ": " << made << " for " << right << ", allowed "
                                     << bound[static_cast<std::size_t>(c)]);
      }
    }
  for (std::int64_t i = 0; i < batch; ++i)
    for (std::int64_t c = columns; c < columns + 2; ++c) wrong += out[static_cast<std::size_t>(i * (columns + 2) + c)] != -77.0f;
  CHECK(wrong == 0);
}

template <class Codec, use Use>
void check_codec(char const* name, std::uint64_t seed) {
  random_bits random(seed);
  constexpr std::int64_t batches[] = {1, 2, 4, 5, 11, 19};
  for (std::int64_t const batch : batches) {
    std::int64_t const rows = 1 + static_cast<std::int64_t>(random() % 100), columns = 1 + static_cast<std::int64_t>(random() % 600);
    check_transposed<Codec, Use, pith::exact_accuracy>(name, rows, columns, batch, random());
    check_transposed<Codec, Use, pith::integer_accuracy>(name, rows, columns, batch, random());
  }
}

#define CHECK_TRANSPOSED(Use, ...) check_codec<__VA_ARGS__, Use>(#__VA_ARGS__, __LINE__)

}  // namespace

TEST_CASE("multiply_transposed: matrices packed for it agree with a product in double", "[linear][law]") {
  using namespace pith;
  CHECK_TRANSPOSED(use::mix, raw<bf16>);
  CHECK_TRANSPOSED(use::mix, int4<per_token<64>, zero::none>);
  CHECK_TRANSPOSED(use::mix, int8<per_token<128>>);
  CHECK_TRANSPOSED(use::mix, int3<per_channel<32>>);
  CHECK_TRANSPOSED(use::mix, pith::pipe<hadamard<64>, int4<per_token<64>, zero::none>>);
}

TEST_CASE("multiply_transposed: matrices packed for multiply are decoded and agree", "[linear][law]") {
  using namespace pith;
  CHECK_TRANSPOSED(use::dot, int4<per_token<64>, zero::none>);
  CHECK_TRANSPOSED(use::dot, raw<bf16>);
}

TEST_CASE("multiply_transposed: a NaN in x spoils its own row of out and no other", "[linear][edge]") {
  using matrix = pith::packed_matrix<pith::int4<pith::per_token<64>, pith::zero::none>, use::mix>;
  std::int64_t const rows = 70, columns = 300, batch = 9;
  auto const weights = gaussians(rows * columns, 9);
  auto x = gaussians(batch * rows, 10);
  x[static_cast<std::size_t>(2 * rows + 69)] = pith::bits_float(0x7fc00000u);
  auto const w = matrix::pack(matrix_view<float const>(weights.data(), {rows, columns})).value();
  std::vector<float> out(static_cast<std::size_t>(batch * columns));
  std::vector<std::byte> scratch(static_cast<std::size_t>(w.transposed_scratch_bytes<pith::integer_accuracy>(batch)));
  REQUIRE(w.multiply_transposed<pith::integer_accuracy>(matrix_view<float>(x.data(), {batch, rows}),
                                                        matrix_view<float>(out.data(), {batch, columns}), scratch));
  for (std::size_t i = 0; i < out.size(); ++i) CHECK(pith::is_finite(out[i]) == (i / static_cast<std::size_t>(columns) != 2));
}

TEST_CASE("multiply_transposed: the transpose of W^T x is W x", "[linear]") {
  std::int64_t const rows = 70, columns = 300;
  auto const weights = gaussians(rows * columns, 11), x = gaussians(columns, 12);
  std::vector<float> across(weights.size()), plain_out(static_cast<std::size_t>(rows)), out(plain_out);
  for (std::int64_t r = 0; r < rows; ++r)
    for (std::int64_t c = 0; c < columns; ++c)
      across[static_cast<std::size_t>(c * rows + r)] = weights[static_cast<std::size_t>(r * columns + c)];
  using bf = pith::raw<pith::bf16>;
  auto const w = pith::packed_matrix<bf>::pack(matrix_view<float const>(weights.data(), {rows, columns})).value();
  auto const t = pith::packed_matrix<bf, use::mix>::pack(matrix_view<float>(across.data(), {columns, rows})).value();
  std::vector<std::byte> scratch(static_cast<std::size_t>(std::max(w.scratch_bytes(1), t.transposed_scratch_bytes(1))));
  REQUIRE(w.multiply(matrix_view<float const>(x.data(), {1, columns}), matrix_view<float>(plain_out.data(), {1, rows}), scratch));
  REQUIRE(t.multiply_transposed(matrix_view<float const>(x.data(), {1, columns}), matrix_view<float>(out.data(), {1, rows}), scratch));
  for (std::size_t i = 0; i < out.size(); ++i) CHECK(std::fabs(out[i] - plain_out[i]) <= 1e-3f);
}
