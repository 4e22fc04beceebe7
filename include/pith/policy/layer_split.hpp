// SPDX-License-Identifier: Apache-2.0
// Stage "layer split": what share of the total each layer has. A split gives weights; apportion() makes whole tokens of them, after
// protected slots have been set aside.
//
//   uniform_layers           w = 1
//   arithmetic_layers        w from 2 - 1/beta (first layer) down to 1/beta (last), in equal steps            PyramidKV, beta 20
//   variance_layers          w = exp(-variance) / sum                                                         D2O
//   entropy_variance_layers  w = entropy^(1/tau_entropy) variance^(1/tau_variance)                            CAKE, 1.6 and 0.4
//   uncertainty_layers       w = floor + (1 - floor) layers u / sum u, u = the tokens that hold 90 % of mass  ZigZagKV
//   table_layers             w = the caller's, one a layer
//
// A cascade (CAKE) asks for the first m layers alone each time a layer is done: the same total over fewer layers.
//
// errors  shape_mismatch: a statistic is missing or has another extent; out_of_range: it is negative, or no number (`at` is the layer)
// from    Cai et al., PyramidKV, 2024; Wan et al., D2O, 2024; Qin et al., CAKE, 2025; Zhong et al., ZigZagKV, 2024
// differs the sums of PyramidKV's formula exceed the total by up to 40 %, and one layer divides by zero; here shares always sum to it.
//         ZigZagKV names no floor: 0.15 of an even share. A layer's bounds (D2O: 1 % to 100 %) are apportion()'s.
#pragma once

#include <cmath>
#include <limits>
#include <span>

#include "pith/core/status.hpp"
#include "pith/policy/stage.hpp"

namespace pith {

// Numbers of each layer; a split reads those it names.
struct layer_statistics {
  std::span<double const> entropy{}, variance{}, uncertainty{}, table{};
};

namespace layer_detail {

inline status check(std::span<double const> numbers, std::size_t layers) {
  if (numbers.size() != layers) return {errc::shape_mismatch, static_cast<std::int64_t>(numbers.size())};
  for (std::size_t l = 0; l < layers; ++l)
    if (!(numbers[l] >= 0 && numbers[l] <= std::numeric_limits<double>::max())) return {errc::out_of_range, static_cast<std::int64_t>(l)};
  return {};
}

}  // namespace layer_detail

struct uniform_layers {
  static constexpr stage kind = stage::layer_split;
  status weights(layer_statistics const&, std::span<double> out) const {
    for (double& w : out) w = 1;
    return {};
  }
};

struct arithmetic_layers {
  static constexpr stage kind = stage::layer_split;
  double beta = 20;  // the last layer has 1/beta of an even share; at least 1
  status weights(layer_statistics const&, std::span<double> out) const {
    if (!(beta >= 1)) return {errc::out_of_range, -1};
    double const first = out.size() == 1 ? 1 : 2 - 1 / beta, last = 1 / beta;
    for (std::size_t l = 0; l < out.size(); ++l)
      out[l] = l == 0 ? first : first + (last - first) * static_cast<double>(l) / static_cast<double>(out.size() - 1);
    return {};
  }
};

struct variance_layers {
  static constexpr stage kind = stage::layer_split;
  status weights(layer_statistics const& in, std::span<double> out) const {
    if (status const ok = layer_detail::check(in.variance, out.size()); !ok) return ok;
    double least = std::numeric_limits<double>::max();
    for (double const v : in.variance) least = v < least ? v : least;
    for (std::size_t l = 0; l < out.size(); ++l) out[l] = std::exp(least - in.variance[l]);
    return {};
  }
};

struct entropy_variance_layers {
  static constexpr stage kind = stage::layer_split;
  double tau_entropy = 1.6, tau_variance = 0.4;
  status weights(layer_statistics const& in, std::span<double> out) const {
    if (!(tau_entropy > 0 && tau_variance > 0)) return {errc::out_of_range, -1};
    if (status const ok = layer_detail::check(in.entropy, out.size()); !ok) return ok;
    if (status const ok = layer_detail::check(in.variance, out.size()); !ok) return ok;
    for (std::size_t l = 0; l < out.size(); ++l) {
      out[l] = std::pow(in.entropy[l], 1 / tau_entropy) * std::pow(in.variance[l], 1 / tau_variance);
      if (!(out[l] <= std::numeric_limits<double>::max())) return {errc::out_of_range, static_cast<std::int64_t>(l)};
    }
    return {};
  }
};

struct uncertainty_layers {
  static constexpr stage kind = stage::layer_split;
  double floor = 0.15;  // of an even share, in [0, 1]
  status weights(layer_statistics const& in, std::span<double> out) const {
    if (!(floor >= 0 && floor <= 1)) return {errc::out_of_range, -1};
    if (status const ok = layer_detail::check(in.uncertainty, out.size()); !ok) return ok;
    double sum = 0;
    for (double const u : in.uncertainty) sum += u;
    for (std::size_t l = 0; l < out.size(); ++l)
      out[l] = sum > 0 ? floor + (1 - floor) * static_cast<double>(out.size()) * in.uncertainty[l] / sum : 1;
    return {};
  }
};

struct table_layers {
  static constexpr stage kind = stage::layer_split;
  status weights(layer_statistics const& in, std::span<double> out) const {
    if (status const ok = layer_detail::check(in.table, out.size()); !ok) return ok;
    for (std::size_t l = 0; l < out.size(); ++l) out[l] = in.table[l];
    return {};
  }
};

}  // namespace pith
