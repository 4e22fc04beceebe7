// SPDX-License-Identifier: Apache-2.0
// Stage "total": how many tokens all rows keep together, protected ones included. A row is one (layer, KV head).
//
//   capacity<N>              N a row                                                       most methods
//   capacity_ratio           floor(ratio sum of lengths)                                   KVzip, kvpress
//   growing_capacity<N, D>   N + floor(step / D) a row, at most `most`                     SCOPE, adaptive (D 15)
//   byte_capacity<B, Bits>   floor(8 B / Bits) a row, Bits those of a token in its codec       token precision
//   unbounded                all that there is
//
// from     Zhang et al., More Tokens, Lower Precision, 2024, for byte_capacity: a quarter of the bits, four times the tokens
// differs  SCOPE counts calls of layers, this counts steps. A ratio's product within 2^-40 of a whole number counts as that number, so that
//          0.29 of 100 is 29.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <span>

#include "pith/policy/stage.hpp"

namespace pith {

// All a total depends on. `step` counts the tokens that were decoded.
struct total_input {
  std::span<std::int64_t const> lengths;  // [row]
  std::int64_t step = 0;
};

inline constexpr std::int64_t no_limit = std::numeric_limits<std::int64_t>::max();

namespace capacity_detail {

inline std::int64_t times(std::int64_t tokens, std::int64_t rows) {
  return rows > 0 && tokens > no_limit / rows ? no_limit : tokens * rows;
}

}  // namespace capacity_detail

template <std::int64_t Tokens>
struct capacity {
  static constexpr stage kind = stage::total;
  static constexpr bool valid = Tokens >= 0;
  std::int64_t tokens = Tokens;  // of a row

  std::int64_t total(total_input const& in) const { return capacity_detail::times(tokens, static_cast<std::int64_t>(in.lengths.size())); }
};

struct capacity_ratio {
  static constexpr stage kind = stage::total;
  double ratio = 0.5;  // in [0, 1]

  std::int64_t total(total_input const& in) const {
    double sum = 0;
    for (std::int64_t const n : in.lengths) sum += static_cast<double>(n);
    double const product = ratio * sum, nearest = std::nearbyint(product);
    return static_cast<std::int64_t>(std::abs(product - nearest) <= 0x1p-40 * nearest ? nearest : std::floor(product));
  }
};

template <std::int64_t Tokens, std::int64_t Every = 15>
struct growing_capacity {
  static constexpr stage kind = stage::total;
  static constexpr bool valid = Tokens >= 0 && Every > 0;
  std::int64_t tokens = Tokens, every = Every, most = no_limit;

  std::int64_t total(total_input const& in) const {
    std::int64_t const row = tokens + in.step / every;
    return capacity_detail::times(row < most ? row : most, static_cast<std::int64_t>(in.lengths.size()));
  }
};

// What a row's bytes have room for: the same bytes hold more tokens of a codec with fewer bits. A cache's own numbers are
// token_bits<Recipe>.
template <std::int64_t Bytes, std::int64_t TokenBits>
struct byte_capacity {
  static constexpr stage kind = stage::total;
  static constexpr bool valid = Bytes >= 0 && Bytes <= no_limit / 8 && TokenBits > 0;
  std::int64_t bytes = Bytes, token_bits = TokenBits;  // of a row; of a key and a value, scales included

  std::int64_t total(total_input const& in) const {
    return capacity_detail::times(8 * bytes / token_bits, static_cast<std::int64_t>(in.lengths.size()));
  }
};

struct unbounded {
  static constexpr stage kind = stage::total;
  std::int64_t total(total_input const&) const { return no_limit; }
};

}  // namespace pith
