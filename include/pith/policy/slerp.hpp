// SPDX-License-Identifier: Apache-2.0
// One row for two layers: a common direction on the arc between both, and the length of each.
//
//   cos w = <x1, x2> / (|x1| |x2|);   e = sin((1 - t) w) / sin w  x1/|x1| + sin(t w) / sin w  x2/|x2|;   restored: x1 = |x1| e, x2 = |x2| e
//
// Rule Z1  |e| = 1; t = 0 gives x1's direction, t = 1 x2's; swapping the rows and t with 1 - t changes nothing.
// Rule Z2  For small w the arc is a line. Rows that point opposite ways, or of length 0, have no arc: the pair is to be retained.
// Rule Z3  Retained pairs are kept as they are: those of distance >= most - gamma (most - least), the most dissimilar ones.
//
// errors  shape_mismatch; not_finite (a row with NaN or infinity; `at` is the first)
// cost    three passes over the channels, sums in f64; no allocation
// from    Liu et al., MiniCache, 2024; t 0.6 (towards the later layer), gamma 0.05
// differs the paper's inequality retains the similar pairs, its text the dissimilar ones; this follows the text
#pragma once

#include <algorithm>
#include <cmath>
#include <span>

#include "pith/core/scalar.hpp"
#include "pith/core/status.hpp"

namespace pith {

struct slerp_pair {
  float first_length = 0, second_length = 0;
  float distance = 0;   // w / pi, in [0, 1]
  bool retain = false;  // there is no arc: keep both rows
};

inline result<slerp_pair> slerp(std::span<float const> first, std::span<float const> second, double t, std::span<float> direction) {
  if (first.size() != second.size() || direction.size() != first.size())
    return status{errc::shape_mismatch, static_cast<std::int64_t>(second.size())};
  double a = 0, b = 0, ab = 0;
  for (std::size_t c = 0; c < first.size(); ++c) {
    if (!is_finite(first[c]) || !is_finite(second[c])) return status{errc::not_finite, static_cast<std::int64_t>(c)};
    double const x = first[c], y = second[c];
    a += x * x, b += y * y, ab += x * y;
  }
  a = std::sqrt(a), b = std::sqrt(b);
  slerp_pair out{static_cast<float>(a), static_cast<float>(b), 1.0f, true};
  std::fill(direction.begin(), direction.end(), 0.0f);
  if (!(a > 0) || !(b > 0)) return out;
  // The angle from half chords: exact where the cosine is near 1 or -1.
  double apart = 0, together = 0;
  for (std::size_t c = 0; c < first.size(); ++c) {
    double const x = first[c] / a, y = second[c] / b;
    apart += (x - y) * (x - y), together += (x + y) * (x + y);
  }
  double const w = 2 * std::atan2(std::sqrt(apart), std::sqrt(together)), pi = 3.14159265358979323846;
  out.distance = static_cast<float>(w / pi);
  if (pi - w < 1e-6) return out;
  out.retain = false;
  bool const line = w < 1e-6;
  double const from_first = line ? 1 - t : std::sin((1 - t) * w) / std::sin(w), from_second = line ? t : std::sin(t * w) / std::sin(w);
  double length = 0;
  for (std::size_t c = 0; c < first.size(); ++c) {
    double const e = from_first * (first[c] / a) + from_second * (second[c] / b);
    length += e * e;
  }
  for (std::size_t c = 0; c < first.size(); ++c)
    direction[c] = static_cast<float>((from_first * (first[c] / a) + from_second * (second[c] / b)) / std::sqrt(length));
  return out;
}

inline void restore_row(std::span<float const> direction, float length, std::span<float> out) {
  for (std::size_t c = 0; c < out.size(); ++c) out[c] = length * direction[c];
}

// The distances that were seen so far, of pairs that have an arc: a stream's own bounds of rule Z3.
struct slerp_bounds {
  float least = 1, most = 0;

  void see(slerp_pair const& p) {
    if (!p.retain) least = std::min(least, p.distance), most = std::max(most, p.distance);
  }
  bool retains(slerp_pair const& p, double gamma) const {
    double const bound = static_cast<double>(most) - gamma * (static_cast<double>(most) - static_cast<double>(least));
    return p.retain || static_cast<double>(p.distance) >= bound;
  }
};

// Sets `retain` of the most dissimilar pairs; those without an arc stay retained and do not move the bounds. Returns how many are retained.
inline std::int64_t retain_dissimilar(std::span<slerp_pair> pairs, double gamma) {
  slerp_bounds bounds;
  for (slerp_pair const& p : pairs) bounds.see(p);
  std::int64_t count = 0;
  for (slerp_pair& p : pairs) {
    p.retain = bounds.retains(p, gamma);
    count += p.retain;
  }
  return count;
}

}  // namespace pith
