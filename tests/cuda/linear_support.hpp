// SPDX-License-Identifier: Apache-2.0
// A product on the emulated device against sums of stored numbers in f64, and how far it may be from them.
#pragma once

#include "cuda/emulated_environment.hpp"
#include "linear/linear_oracle.hpp"
#include "pith/cuda/packed_matrix.hpp"

namespace pith_test {

template <class Codec>
using weights_on_device = pith::packed_matrix<Codec, pith::use::dot, pith::default_panel<Codec, pith::use::dot>(), pith::cuda>;

template <class T>
pith::matrix_view<T, pith::space::device> on_device(T* data, std::int64_t const (&extent)[2], std::int64_t const (&stride)[2]) {
  return {data, extent, stride};
}

// One row of x, as it reached the kernel: expected[r], bound[r]. dot_block.hpp's rule for each piece of a panel: a number of x is off by
// `rounding` of itself and `least` of the largest of the piece; where scales of channels are folded in, the second is a distance of codes.
template <class Tile, class Accuracy>
void expect_on_device(stored_matrix<Tile> const& w, std::vector<float> x, std::vector<double>& expected, std::vector<double>& bound) {
  using form = pith::device::linear_form<Tile, 1, 1, 1>;
  using storage = typename form::storage;
  constexpr int terms = pith::device::terms_of<Accuracy>;
  constexpr bool wide = std::is_same_v<typename pith::device::dot_operand<storage>::element, pith::bf16>;
  constexpr double rounding = wide ? (terms == 2 ? 0x1p-16 : 0x1p-8) : terms == 2 ? 0x1p-22 : 0x1p-11, least = wide ? 0x1p-130 : 0x1p-25;
  constexpr bool folded = form::query::folded;
  x.resize(static_cast<std::size_t>(w.columns));
  expected.assign(static_cast<std::size_t>(w.rows), 0);
  bound.assign(static_cast<std::size_t>(w.rows), 0);
  double const sums = (static_cast<double>(w.columns) + 16) * 0x1p-24;
  for (std::int64_t panel = 0; panel < w.columns; panel += Tile::channels)
    if constexpr (pith::is_transformed<Tile>) Tile::transform_query(x.data() + panel);
  for (std::int64_t first = 0; first < w.columns; first += storage::channels) {
    float const* const q = x.data() + first;
    double most = 0;
    for (int c = 0; c < storage::channels; ++c) most = std::max(most, std::fabs(static_cast<double>(q[c])));
    for (std::int64_t r = 0; r < w.rows; ++r) {
      double sum = 0, allowed = 0;
      for (int c = 0; c < storage::channels; ++c) {
        stored_number const& n = w(r, first + c);
        double const size = std::fabs(q[c]), code = pith::device::is_integer_tile<storage> ? n.centred : 0.0;
        sum += q[c] * n.value;
        allowed += (rounding + sums) * size * n.size + least * most * (folded ? code : n.size);
      }
      expected[static_cast<std::size_t>(r)] += sum;
      bound[static_cast<std::size_t>(r)] += allowed + 0x1p-100;
    }
  }
}

// Weights of one shape, packed by the CPU; products of many batches with them.
template <class Codec>
struct device_product {
  using matrix = weights_on_device<Codec>;
  using tile = typename matrix::tile;
  pith::packed_matrix<Codec> packed;
  stored_matrix<tile> stored;

  static pith::packed_matrix<Codec> pack(std::int64_t rows, std::int64_t columns, std::uint64_t seed) {
    auto weights = gaussians(rows * columns, seed);
    weights[static_cast<std::size_t>(rows * columns / 2)] = 9.0f;
    return pith::packed_matrix<Codec>::pack(pith::matrix_view<float const>(weights.data(), {rows, columns})).value();
  }
  device_product(std::int64_t rows, std::int64_t columns, std::uint64_t seed) : packed(pack(rows, columns, seed)), stored(packed) {}

  matrix on_device() const { return matrix::open(packed.bytes(), packed.rows(), packed.columns()).value(); }

  // The largest error in units of its bound. Rows of x have sizes from 2^-12 to 2^12, and every 41st number is larger than its neighbours.
  template <class Accuracy, class X = float, class O = float>
  double worst(std::int64_t batch, std::uint64_t seed, bool with_bias = true, int multiprocessors = 2) const {
    std::int64_t const rows = packed.rows(), columns = packed.columns();
    auto numbers = gaussians(batch * columns, seed);
    std::vector<X> x(numbers.size());
    for (std::int64_t i = 0; i < batch; ++i)
      for (std::int64_t c = 0; c < columns; ++c) {
        float& one = numbers[static_cast<std::size_t>(i * columns + c)];
        one *= std::exp2(static_cast<float>(i % 5 * 6 - 12) / (sizeof(O) == 4 ? 1.0f : 8.0f)) * (c % 41 == 5 ? 20.0f : 1.0f);
        x[static_cast<std::size_t>(c * batch + i)] = pith::from_float<X>(one);  // [column][row]
        one = pith::to_float(x[static_cast<std::size_t>(c * batch + i)]);
      }
    std::vector<float> bias(static_cast<std::size_t>(2 * rows), 1e30f);  // every second one counts
    for (std::int64_t r = 0; r < rows; ++r) bias[static_cast<std::size_t>(2 * r)] = with_bias ? static_cast<float>(r % 7) - 3.0f : 0.0f;
    O const untouched = pith::from_float<O>(-77.0f);
    std::vector<O> out(static_cast<std::size_t>(batch * (rows + 3)), untouched);
    std::int64_t const wanted = on_device().template scratch_bytes<Accuracy>(emulated_environment(0, multiprocessors), batch);
    emulated_environment const env(wanted + 4096, multiprocessors);
    auto const behind = env.scratch().subspan(static_cast<std::size_t>(wanted));
    pith::tensor_view<float const, 1, pith::space::device> to_add;
    if (with_bias) to_add = {bias.data(), {rows}, {2}};
    REQUIRE(on_device().template multiply<Accuracy>(env, on_device_view(x.data(), batch, columns),
                                                    pith_test::on_device(out.data(), {batch, rows}, {rows + 3, 1}), to_add) == pith::status{});
    CHECK(env.status() == pith::status{});
    CHECK(std::all_of(behind.begin(), behind.end(), [](std::byte b) { return b == std::byte{0xff}; }));

    double most = 0;
    std::vector<double> expected, bound;
    for (std::int64_t i = 0; i < batch; ++i) {
      auto const* const row = numbers.data() + i * columns;
      expect_on_device<tile, Accuracy>(stored, {row, row + columns}, expected, bound);
      for (std::int64_t r = 0; r < rows; ++r) {
        auto const at = static_cast<std::size_t>(r);
        double const right = expected[at] + bias[2 * at], made = pith::to_float(out[static_cast<std::size_t>(i * (rows + 3) + r)]);
        double const of_output = sizeof(O) == 4 ? 0x1p-23 : std::is_same_v<O, pith::bf16> ? 0x1p-8 : 0x1p-11;
        double const error = std::fabs(made - right) / (bound[at] + of_output * (std::fabs(right) + std::fabs(bias[2 * at])) + 0x1p-25);
        most = error <= most ? most : error;  // a NaN comes through
      }
      for (std::int64_t r = rows; r < rows + 3; ++r) CHECK(pith::to_float(out[static_cast<std::size_t>(i * (rows + 3) + r)]) == -77.0f);
    }
    return most;
  }

 private:
  template <class X>
  static pith::matrix_view<X const, pith::space::device> on_device_view(X const* x, std::int64_t batch, std::int64_t columns) {
    return {x, {batch, columns}, {1, batch}};
  }
};

}  // namespace pith_test
