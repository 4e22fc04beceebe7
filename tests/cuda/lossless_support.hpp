// SPDX-License-Identifier: Apache-2.0
// Lossless weights for the emulated device: numbers of all kinds, and matrices of them packed by the CPU.
#pragma once

#include <cmath>

#include "cuda/emulated_environment.hpp"
#include "linear/linear_oracle.hpp"
#include "pith/codec/exponent_rans.hpp"
#include "pith/codec/huffman.hpp"
#include "pith/cuda/packed_matrix.hpp"

namespace pith_test {

enum class weights_kind { trained, scaled_rows, every_pattern, noise, zeros, rare };

inline std::vector<pith::bf16> some_weights(weights_kind kind, std::int64_t rows, std::int64_t columns, std::uint64_t seed) {
  random_bits random(seed);
  std::vector<pith::bf16> w(static_cast<std::size_t>(rows * columns));
  for (std::size_t i = 0; i < w.size(); ++i) {
    auto const row = static_cast<std::int64_t>(i) / columns;
    auto const bits = static_cast<std::uint32_t>(random());
    if (kind == weights_kind::every_pattern)
      w[i].bits = static_cast<std::uint16_t>(i);
    else if (kind == weights_kind::noise)
      w[i].bits = static_cast<std::uint16_t>(bits);
    else if (kind == weights_kind::zeros)
      w[i].bits = 0;
    else if (kind == weights_kind::rare && bits % 61 == 0)  // more of what the escapes' list has no short code for than a round takes
      w[i].bits = static_cast<std::uint16_t>(bits >> 8);
    else
      w[i] = pith::from_float<pith::bf16>(gaussian(random) *
                                          (kind == weights_kind::scaled_rows ? std::exp2(static_cast<float>(row * 7 % 250 - 125)) : 0.02f));
  }
  return w;
}

template <class Codec>
using device_weights = pith::packed_matrix<Codec, pith::use::dot, pith::default_panel<Codec, pith::use::dot>(), pith::cuda>;

}  // namespace pith_test
