// SPDX-License-Identifier: Apache-2.0
// Calibrated numbers to try a tile with: the same on every machine, exact in f32, and far from doing nothing.
#pragma once

#include <type_traits>
#include <vector>

#include "pith/codec/balance.hpp"
#include "pith/codec/permute.hpp"
#include "pith/codec/pipe.hpp"
#include "pith/codec/rotate.hpp"

namespace pith_test {

inline pith::no_state sample_of(pith::no_state const*) { return {}; }

template <int N>
pith::permutation<N> sample_of(pith::permutation<N> const*) {
  pith::permutation<N> p = pith::permutation<N>::identity();
  for (int i = 0; i < N; ++i) p.order[i] = static_cast<std::uint16_t>((i * 37 + 11) % N);  // 37 has no factor of N = 2^a 5^b
  return p;
}

// Between 1/8 and 8, not all powers of two.
template <int N>
pith::channel_scales<N> sample_of(pith::channel_scales<N> const*) {
  std::vector<float> scales(N);
  for (int c = 0; c < N; ++c) scales[static_cast<std::size_t>(c)] = (c % 7 == 0 ? 0.125f : 1.0f) * static_cast<float>(1 + c % 8);
  return pith::channel_scales<N>::from(scales).value();
}

// The reflection 1 - v v' / 32 with 64 elements +-1 in v.
template <int N>
pith::rotation<N> sample_of(pith::rotation<N> const*) {
  static_assert(N >= 64);
  auto const v = [](int i) { return i >= 64 ? 0.0f : i * 5 % 7 < 3 ? -1.0f : 1.0f; };
  std::vector<float> matrix(static_cast<std::size_t>(N) * N);
  for (int i = 0; i < N; ++i)
    for (int j = 0; j < N; ++j) matrix[static_cast<std::size_t>(i * N + j)] = (i == j ? 1.0f : 0.0f) - v(i) * v(j) / 32.0f;
  return pith::rotation<N>::from(matrix).value();
}

template <class Outer, class Inner>
pith::chained_state<Outer, Inner> sample_of(pith::chained_state<Outer, Inner> const*) {
  return {sample_of(static_cast<Outer const*>(nullptr)), sample_of(static_cast<Inner const*>(nullptr))};
}

template <class Tile>
pith::state_of<Tile> const& sample_state() {
  static pith::state_of<Tile> const state = sample_of(static_cast<pith::state_of<Tile> const*>(nullptr));
  return state;
}

}  // namespace pith_test
