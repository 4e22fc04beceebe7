// SPDX-License-Identifier: Apache-2.0
// Calibrated numbers for each (layer, KV head) from rows that the model made on text that nothing is measured on.
//
//   permutation      channels by their root mean square, largest first (Accurate Block Quantization)
//   channel_scales   the largest magnitude of a channel over the geometric mean of all
//   rotation         the principal axes: eigenvectors of the rows' second moments
#pragma once

#include <Eigen/Eigenvalues>
#include <algorithm>
#include <cmath>
#include <vector>

#include "llama.hpp"
#include "pith/pith.hpp"

namespace example {

// [layer][token][kv_head][channel]
struct calibration_rows {
  std::vector<std::vector<float>> keys, values;
};

namespace detail {

// One head's rows as a matrix [token][channel].
inline Eigen::MatrixXd rows_of(std::vector<float> const& layer, int kv_heads, int head, int channels) {
  Eigen::MatrixXd out(static_cast<Eigen::Index>(layer.size()) / (kv_heads * channels), channels);
  for (Eigen::Index t = 0; t < out.rows(); ++t)
    for (int c = 0; c < channels; ++c) out(t, c) = layer[static_cast<std::size_t>((t * kv_heads + head) * channels + c)];
  return out;
}

inline pith::no_state fit(pith::no_state const*, Eigen::MatrixXd const&) { return {}; }

template <int N>
pith::permutation<N> fit(pith::permutation<N> const*, Eigen::MatrixXd const& rows) {
  Eigen::VectorXf const sizes = rows.colwise().norm().cast<float>();
  return pith::permutation<N>::descending({sizes.data(), static_cast<std::size_t>(N)}).value();
}

template <int N>
pith::channel_scales<N> fit(pith::channel_scales<N> const*, Eigen::MatrixXd const& rows) {
  Eigen::ArrayXd const largest = rows.cwiseAbs().colwise().maxCoeff().transpose().array().max(1e-6);
  Eigen::ArrayXf const scales = (largest / std::exp(largest.log().mean())).max(0x1p-12).min(0x1p12).cast<float>();
  return pith::channel_scales<N>::from({scales.data(), static_cast<std::size_t>(N)}).value();
}

template <int N>
pith::rotation<N> fit(pith::rotation<N> const*, Eigen::MatrixXd const& rows) {
  Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> const solved(rows.transpose() * rows);
  Eigen::MatrixXf const axes = solved.eigenvectors().cast<float>();  // columns: column-major, so each axis is one row for from()
  return pith::rotation<N>::from({axes.data(), static_cast<std::size_t>(N) * N}).value();
}

}  // namespace detail

// States of one codec for every (layer, KV head); empty if it has none.
template <class State>
std::vector<State> fit_heads(std::vector<std::vector<float>> const& layers, llama_config const& c) {
  std::vector<State> all;
  if constexpr (!std::is_same_v<State, pith::no_state>)
    for (std::vector<float> const& layer : layers)
      for (int head = 0; head < c.kv_heads; ++head)
        all.push_back(detail::fit(static_cast<State const*>(nullptr), detail::rows_of(layer, c.kv_heads, head, c.head_dim)));
  return all;
}

}  // namespace example
