// SPDX-License-Identifier: Apache-2.0
// What has left a row as sums over features: a state of fixed size that answers a query like a set of tokens does (stage "fold").
//
//   take    H += psi(k)' v;   z += psi(k)
//   answer  out = phi(q) H / (phi(q) z),   lse = ln(phi(q) z);   with the kept tokens (merge_attention, page/merge.hpp):
//           o = (phi(q) H + sum_kept e^s v) / (phi(q) z + sum_kept e^s)
//
// phi and psi are trained maps to R features, none below 0, with phi(q) psi(k) near e^s; the caller applies them. H is [feature][channel],
// z [feature], both the caller's and zeros at first. A state cannot be undone: a fork copies it.
//
// Rule L1  Nothing folded: out = 0, lse = -infinity, and merging with it changes nothing, bit for bit.
// Rule L2  fuse() of two states is the state of both sets of rows, but for rounding: products and sums in f64, rounded to f32 once each.
//
// errors  shape_mismatch; not_finite, out_of_range (a feature below 0): `at` is the feature or channel. Nothing is changed on an error
// cost    R (channels + 1) products each; no allocation
// from    Dong et al., LESS, 2024; R 8
// differs LESS has a map of two layers a head, trained for one model and one ratio; here the maps are the caller's
#pragma once

#include <cmath>
#include <limits>
#include <span>

#include "pith/core/scalar.hpp"
#include "pith/core/status.hpp"

namespace pith {

struct kernel_fold {
  std::span<float> numerator{};  // H
  std::span<float> mass{};       // z

  std::size_t features() const { return mass.size(); }
  std::size_t channels() const { return mass.empty() ? 0 : numerator.size() / mass.size(); }

  void clear() const {
    for (float& x : numerator) x = 0;
    for (float& x : mass) x = 0;
  }

  // A row leaves: psi of its key, and its value.
  status take(std::span<float const> key_features, std::span<float const> value) const {
    if (status const ok = check_features(key_features); !ok) return ok;
    if (value.size() != channels()) return {errc::shape_mismatch, static_cast<std::int64_t>(value.size())};
    for (std::size_t c = 0; c < value.size(); ++c)
      if (!is_finite(value[c])) return {errc::not_finite, static_cast<std::int64_t>(c)};
    for (std::size_t f = 0; f < features(); ++f) {
      double const x = key_features[f];
      for (std::size_t c = 0; c < value.size(); ++c) add(numerator[f * value.size() + c], x * static_cast<double>(value[c]));
      add(mass[f], x);
    }
    return {};
  }

  // Takes up what another state of the same maps holds.
  status fuse(kernel_fold const& other) const {
    if (other.mass.size() != mass.size()) return {errc::shape_mismatch, static_cast<std::int64_t>(other.mass.size())};
    if (other.numerator.size() != numerator.size()) return {errc::shape_mismatch, static_cast<std::int64_t>(other.numerator.size())};
    for (std::size_t i = 0; i < numerator.size(); ++i) add(numerator[i], other.numerator[i]);
    for (std::size_t f = 0; f < mass.size(); ++f) add(mass[f], other.mass[f]);
    return {};
  }

  // phi of a query; returns lse, natural logarithm.
  result<float> answer(std::span<float const> query_features, std::span<float> out) const {
    if (status const ok = check_features(query_features); !ok) return ok;
    if (out.size() != channels()) return status{errc::shape_mismatch, static_cast<std::int64_t>(out.size())};
    double total = 0;
    for (std::size_t f = 0; f < features(); ++f) total += static_cast<double>(query_features[f]) * static_cast<double>(mass[f]);
    for (std::size_t c = 0; c < out.size(); ++c) {
      double sum = 0;
      for (std::size_t f = 0; f < features(); ++f)
        sum += static_cast<double>(query_features[f]) * static_cast<double>(numerator[f * out.size() + c]);
      out[c] = total > 0 ? static_cast<float>(sum / total) : 0.0f;
    }
    return total > 0 ? static_cast<float>(std::log(total)) : -std::numeric_limits<float>::infinity();
  }

 private:
  static void add(float& to, double x) { to = static_cast<float>(static_cast<double>(to) + x); }
  status check_features(std::span<float const> of) const {
    if (mass.empty() || numerator.size() % mass.size() != 0) return {errc::shape_mismatch, static_cast<std::int64_t>(numerator.size())};
    if (of.size() != features()) return {errc::shape_mismatch, static_cast<std::int64_t>(of.size())};
    for (std::size_t f = 0; f < of.size(); ++f) {
      if (!is_finite(of[f])) return {errc::not_finite, static_cast<std::int64_t>(f)};
      if (of[f] < 0) return {errc::out_of_range, static_cast<std::int64_t>(f)};
    }
    return {};
  }
};

}  // namespace pith
