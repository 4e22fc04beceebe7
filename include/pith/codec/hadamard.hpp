// SPDX-License-Identifier: Apache-2.0
// The Hadamard rotation of every N consecutive channels; it spreads an outlier channel over all of them.
//
//   y = H x / sqrt(N),  H[i][j] = (-1)^popcount(i & j);   H is its own transpose and inverse
//
// Applied to rows before encoding, once to each query (<Hx, Hq> = <x, q>) and once to each output. The butterflies run with strides
// 1, 2, 4, ..., N/2 in this order, so every output is one fixed tree of sums: the same bytes everywhere.
//
// cost    N log2 N additions and N multiplications per N channels
// from    Ashkboos et al., QuaRot, 2024
#pragma once

#include "pith/core/rounding.hpp"

namespace pith {

template <int N>
struct hadamard {
  static constexpr int size = N;

  // The first broken rule speaks alone; true if there is none.
  template <int Channels>
  static consteval bool check() {
    if constexpr (N < 2 || N > 1024 || (N & (N - 1)) != 0) {
      static_assert(Channels < 0, "[pith] hadamard<N>: N is a power of two up to 1024. Fix: hadamard<64>.");
      return false;
    } else if constexpr (Channels % N != 0) {
      static_assert(Channels % N == 0, "[pith] hadamard<N>: the channels must be a multiple of N. Fix: an N that divides head_dim.");
      return false;
    } else {
      return true;
    }
  }

  // Channels is a multiple of N.
  template <int Channels>
  PITH_HD static constexpr void apply(float* row) noexcept {
    [[maybe_unused]] constexpr bool right = check<Channels>();
    for (int first = 0; first < Channels; first += N) {
      butterflies<1>(row + first);
      for (int i = 0; i < N; ++i) row[first + i] *= scale;
    }
  }
  template <int Channels>
  PITH_HD static constexpr void undo(float* row) noexcept {
    apply<Channels>(row);
  }

 private:
  // The stages from Stride on. A stride that is known when compiling lets a stage become vectors.
  template <int Stride>
  PITH_HD static constexpr void butterflies(float* x) noexcept {
    for (int i = 0; i < N; i += 2 * Stride)
      for (int j = i; j < i + Stride; ++j) {
        float const a = x[j], b = x[j + Stride];
        x[j] = a + b;
        x[j + Stride] = a - b;
      }
    if (!__builtin_is_constant_evaluated()) settle(x);  // -ffast-math would reorder the sums of neighbouring stages
    if constexpr (2 * Stride < N) butterflies<2 * Stride>(x);
  }

  static constexpr float square_root(double x) {
    double root = x;
    for (int i = 0; i < 60; ++i) root = 0.5 * (root + x / root);
    return static_cast<float>(1.0 / root);
  }

 public:
  static constexpr float scale = square_root(N);  // 1 / sqrt(N)
};

}  // namespace pith
