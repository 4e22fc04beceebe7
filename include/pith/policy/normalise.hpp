// SPDX-License-Identifier: Apache-2.0
// Stage "normalise": makes the scores of one row comparable with each other, or with other rows'. The state is not touched.
//
//   as_is          nothing
//   per_query      s / min(rows, T - slot): by the queries that could see the slot           kvpress ObservedAttention
//   by_maximum     s / max s of the row, if that is positive and finite
//
//   align_means(a, b)   a function of two rows: b := b mean(a) / mean(b), so that the two can be added or compared         EMS
//
// cost    O(n); no allocation
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>

#include "pith/core/scalar.hpp"
#include "pith/policy/stage.hpp"

namespace pith {

struct as_is {
  static constexpr stage kind = stage::normalise;
  void apply(std::span<float>, std::int64_t) const {}
};

struct per_query {
  static constexpr stage kind = stage::normalise;
  void apply(std::span<float> scores, std::int64_t rows) const {
    auto const slots = static_cast<std::int64_t>(scores.size());
    for (std::int64_t slot = 0; slot < slots; ++slot)
      scores[static_cast<std::size_t>(slot)] /= static_cast<float>(std::max<std::int64_t>(std::min(rows, slots - slot), 1));
  }
};

struct by_maximum {
  static constexpr stage kind = stage::normalise;
  void apply(std::span<float> scores, std::int64_t) const {
    float most = 0;
    for (float const s : scores) most = s > most ? s : most;
    if (most > 0 && is_finite(most))
      for (float& s : scores) s /= most;
  }
};

inline void align_means(std::span<float const> a, std::span<float> b) {
  double sum_a = 0, sum_b = 0;
  for (float const x : a) sum_a += static_cast<double>(x);
  for (float const x : b) sum_b += static_cast<double>(x);
  if (a.empty() || b.empty() || !(sum_b > 0) || !(sum_a > 0)) return;
  double const factor = sum_a / static_cast<double>(a.size()) / (sum_b / static_cast<double>(b.size()));
  for (float& x : b) x = static_cast<float>(static_cast<double>(x) * factor);
}

}  // namespace pith
