// SPDX-License-Identifier: Apache-2.0
// What a packed matrix must give, in double, and how far f32 and integers may be from it.
#pragma once

#include <cmath>
#include <thread>
#include <vector>

#include "cpu/kernel_oracle.hpp"
#include "pith/pith.hpp"

namespace pith_test {

struct two_threads {
  template <class Function>
  void for_each(std::int64_t count, Function&& function) const {
    std::thread odd([&] {
      for (std::int64_t i = 1; i < count; i += 2) function(i);
    });
    for (std::int64_t i = count - 1 - (count - 1) % 2; i >= 0; i -= 2) function(i);
    odd.join();
  }
};

inline std::vector<float> gaussians(std::int64_t count, std::uint64_t seed) {
  random_bits random(seed);
  std::vector<float> x(static_cast<std::size_t>(count));
  for (float& one : x) one = gaussian(random);
  return x;
}

// A weight as the kernels see it: x = (u - middle) s + b for integers; transformed rows stay in their basis.
template <class Tile>
struct stored_matrix {
  std::int64_t rows, columns;  // with padding
  std::vector<stored_number> at;

  template <class Matrix>
  explicit stored_matrix(Matrix const& w)
      : rows(pith::round_up(w.rows(), Tile::tokens)),
        columns(pith::round_up(w.columns(), Tile::channels)),
        at(static_cast<std::size_t>(rows * columns)) {
    std::int64_t const panels = columns / Tile::channels;
    for (std::int64_t block = 0; block < rows / Tile::tokens; ++block)
      for (std::int64_t panel = 0; panel < panels; ++panel) {
        std::byte const* const first = w.bytes().data() + (block * panels + panel) * Tile::bytes;
        auto const numbers = stored_numbers<typename Tile::storage>(std::vector<std::byte>(first, first + Tile::bytes));
        for (std::int64_t t = 0; t < Tile::tokens; ++t)
          for (std::int64_t c = 0; c < Tile::channels; ++c)
            at[static_cast<std::size_t>((block * Tile::tokens + t) * columns + panel * Tile::channels + c)] =
                numbers[static_cast<std::size_t>(t * Tile::channels + c)];
      }
  }
  stored_number const& operator()(std::int64_t r, std::int64_t c) const { return at[static_cast<std::size_t>(r * columns + c)]; }
};

// True if a scale belongs to a column and a run of rows.
template <class Storage>
constexpr bool storage_along_tokens() {
  if constexpr (requires { Storage::along_tokens; })
    return Storage::along_tokens;
  else
    return true;
}

// The largest part of a query's step that 8 or 15 bits leave, from the rule that the kernel states.
template <int Bits>
double query_step(std::vector<double> const& q) {
  double most = 0, squares = 0;
  for (double x : q) most = std::max(most, std::fabs(x)), squares += x * x;
  double const step = most / 127, rounding = step * step * static_cast<double>(q.size());
  bool const narrow = rounding <= 12.0 / 16384 * squares * 1.001 || rounding * std::pow(4, Bits) / 12 <= 0.25 * squares * 1.001;
  return narrow ? step : most / 16256;
}

// One row of x against the whole stored matrix: expected[r] and bound[r].
template <class Tile, class Accuracy>
void expect_product(stored_matrix<Tile> const& w, std::vector<float> x, std::vector<double>& expected, std::vector<double>& bound) {
  using storage = typename Tile::storage;
  constexpr bool integers = std::is_same_v<Accuracy, pith::integer_accuracy>;
  x.resize(static_cast<std::size_t>(w.columns));
  expected.assign(static_cast<std::size_t>(w.rows), 0);
  bound.assign(static_cast<std::size_t>(w.rows), 0);
  for (std::int64_t first = 0; first < w.columns; first += Tile::channels) {
    float* const q = x.data() + first;
    if constexpr (pith::is_transformed<Tile>) Tile::transform_query(q);
    for (std::int64_t r = 0; r < w.rows; ++r) {
      double size = 0, rounding = 0;
      for (std::int64_t c = 0; c < Tile::channels; ++c) {
        stored_number const& n = w(r, first + c);
        expected[static_cast<std::size_t>(r)] += q[c] * n.value;
        size += std::fabs(q[c]) * n.size;
      }
      if constexpr (integers && requires { storage::middle; }) {
        std::vector<double> folded(static_cast<std::size_t>(Tile::channels));
        for (std::int64_t c = 0; c < Tile::channels; ++c)
          folded[static_cast<std::size_t>(c)] = q[c] * (storage::along_tokens ? w(r, first + c).scale : 1.0);
        double const step = query_step<storage::bits>(folded);
        for (std::int64_t c = 0; c < Tile::channels; ++c)
          rounding += w(r, first + c).centred * (storage::along_tokens ? 1.0 : std::fabs(w(r, first + c).scale));
        rounding *= 0.5 * step * (1 + 0x1p-8);
      } else if constexpr (integers) {
        rounding = 0x1p-17 * size;  // raw<bf16> on machines with pair products
      }
      bound[static_cast<std::size_t>(r)] += (static_cast<double>(w.columns + w.columns / Tile::channels) + 16) * 0x1p-24 * size + rounding +
                                            0x1p-110 * static_cast<double>(Tile::channels);
    }
  }
}

}  // namespace pith_test
