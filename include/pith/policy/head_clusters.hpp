// SPDX-License-Identifier: Apache-2.0
// Query heads that attend alike share one head's attention: agglomerative clusters of heads, by their attention rows of the first tokens.
//
//   d(a, b) = 1 - cos(row a, row b);   d(A, B) = mean of d(a, b) over a in A, b in B;   the nearest two become one until k are left
//
//   cluster_heads(rows, heads, k, cluster, representative, scratch)     rows [head][number]: probabilities of the first 5 tokens, say
//   share_scores(scores, slots, cluster, representative)                a head's scores or probabilities become its representative's
//
// The representative is a cluster's first head, and clusters are numbered by their first heads: queries and keys of the other heads are
// needed no more, their values are.
//
// Ties: the pair with the lower first heads. A row of zeros is at distance 1 from every other. Sums in f64; the mean is carried along
// (Lance and Williams), which is the same number but for rounding.
//
// errors  shape_mismatch; out_of_range (k is not in 1 ... heads; share_scores: a cluster that does not exist, `at` is the head), not_finite
//         (`at` is the place in rows), capacity_exceeded (scratch)
// cost    heads^2 numbers + heads^3; no allocation
// from    Agarwal et al., CHAI, 2024: clusters after 5 tokens, k a layer found offline
// differs CHAI has a KV head for each query head, and frees the keys of heads that are not representatives; grouped queries share keys
// already
#pragma once

#include <algorithm>
#include <cmath>

#include "pith/core/scalar.hpp"
#include "pith/core/status.hpp"
#include "pith/policy/scratch.hpp"

namespace pith {

constexpr std::int64_t cluster_heads_scratch_bytes(std::int64_t heads) {
  return lent_memory::bytes<double>(heads * heads) + lent_memory::bytes<std::int64_t>(heads);
}

// cluster [head], representative [k].
inline status cluster_heads(std::span<float const> rows, std::int64_t heads, std::int64_t k, std::span<std::int64_t> cluster,
                            std::span<std::int64_t> representative, std::span<std::byte> scratch) {
  if (heads < 1 || static_cast<std::int64_t>(rows.size()) % heads != 0)
    return {errc::shape_mismatch, static_cast<std::int64_t>(rows.size())};
  if (static_cast<std::int64_t>(cluster.size()) != heads) return {errc::shape_mismatch, static_cast<std::int64_t>(cluster.size())};
  if (k < 1 || k > heads) return {errc::out_of_range, k};
  if (static_cast<std::int64_t>(representative.size()) != k)
    return {errc::shape_mismatch, static_cast<std::int64_t>(representative.size())};
  for (std::size_t i = 0; i < rows.size(); ++i)
    if (!is_finite(rows[i])) return {errc::not_finite, static_cast<std::int64_t>(i)};
  lent_memory memory(scratch);
  std::span<double> apart;
  std::span<std::int64_t> members;  // 0: part of an earlier head's cluster
  if (!memory.take(heads * heads, apart) || !memory.take(heads, members))
    return {errc::capacity_exceeded, cluster_heads_scratch_bytes(heads)};

  std::int64_t const width = static_cast<std::int64_t>(rows.size()) / heads;
  auto const d = [&](std::int64_t a, std::int64_t b) -> double& {
    return apart[static_cast<std::size_t>(std::min(a, b) * heads + std::max(a, b))];
  };
  auto const size = [&](std::int64_t head) -> std::int64_t& { return members[static_cast<std::size_t>(head)]; };
  auto const dot = [&](std::int64_t a, std::int64_t b) {
    double sum = 0;
    for (std::int64_t i = 0; i < width; ++i)
      sum += static_cast<double>(rows[static_cast<std::size_t>(a * width + i)]) *
             static_cast<double>(rows[static_cast<std::size_t>(b * width + i)]);
    return sum;
  };
  for (std::int64_t a = 0; a < heads; ++a) {
    d(a, a) = dot(a, a), size(a) = 1, cluster[static_cast<std::size_t>(a)] = a;
    for (std::int64_t b = 0; b < a; ++b) {
      double const lengths = std::sqrt(d(a, a)) * std::sqrt(d(b, b));
      d(b, a) = lengths > 0 ? 1 - dot(a, b) / lengths : 1;
    }
  }
  for (std::int64_t left = heads; left > k; --left) {
    std::int64_t first = -1, second = -1;
    for (std::int64_t a = 0; a < heads; ++a)
      for (std::int64_t b = a + 1; b < heads && size(a) > 0; ++b)
        if (size(b) > 0 && (first < 0 || d(a, b) < d(first, second))) first = a, second = b;
    double const mine = static_cast<double>(size(first)), theirs = static_cast<double>(size(second));
    for (std::int64_t c = 0; c < heads; ++c)
      if (size(c) > 0 && c != first && c != second) d(first, c) = (mine * d(first, c) + theirs * d(second, c)) / (mine + theirs);
    size(first) += size(second), size(second) = 0;
    for (std::int64_t& of : cluster)
      if (of == second) of = first;
  }
  // From first heads to numbers.
  std::int64_t count = 0;
  for (std::int64_t a = 0; a < heads; ++a)
    if (size(a) > 0) representative[static_cast<std::size_t>(count)] = a, size(a) = ++count;
  for (std::int64_t& of : cluster) of = size(of) - 1;
  return {};
}

// scores [head][slot], changed in place. A representative's own row stays as it is.
inline status share_scores(std::span<float> scores, std::int64_t slots, std::span<std::int64_t const> cluster,
                           std::span<std::int64_t const> representative) {
  auto const heads = static_cast<std::int64_t>(cluster.size()), clusters = static_cast<std::int64_t>(representative.size());
  if (slots < 0 || static_cast<std::int64_t>(scores.size()) != heads * slots)
    return {errc::shape_mismatch, static_cast<std::int64_t>(scores.size())};
  for (std::int64_t h = 0; h < heads; ++h) {
    std::int64_t const c = cluster[static_cast<std::size_t>(h)];
    if (c < 0 || c >= clusters) return {errc::out_of_range, h};
    std::int64_t const from = representative[static_cast<std::size_t>(c)];
    if (from < 0 || from >= heads || cluster[static_cast<std::size_t>(from)] != c) return {errc::out_of_range, h};
  }
  for (std::int64_t h = 0; h < heads; ++h) {
    std::int64_t const from = representative[static_cast<std::size_t>(cluster[static_cast<std::size_t>(h)])];
    if (from != h) std::copy_n(scores.begin() + from * slots, slots, scores.begin() + h * slots);
  }
  return {};
}

}  // namespace pith
