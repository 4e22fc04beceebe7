// SPDX-License-Identifier: Apache-2.0
// Merges attention over disjoint sets of tokens: pages of two formats, parts of a split context, other machines.
//
//   m = max(lse, other_lse);   out = (out e^(lse-m) + other e^(other_lse-m)) / (e^(lse-m) + e^(other_lse-m));   lse = m + ln(...)
//
// Merging with an empty set (lse = -infinity) changes nothing, bit for bit.
#pragma once

#include <cmath>

#include "pith/core/scalar.hpp"

namespace pith {

inline bool is_empty_lse(float lse) noexcept { return float_bits(lse) == 0xff800000u; }

// out [channel] and lse take up `other`; natural logarithms.
inline void merge_attention(float* out, float& lse, float const* other, float other_lse, int channels) noexcept {
  if (is_empty_lse(other_lse)) return;
  if (is_empty_lse(lse)) {
    for (int c = 0; c < channels; ++c) out[c] = other[c];
    lse = other_lse;
    return;
  }
  float const most = lse > other_lse ? lse : other_lse;
  float const mine = std::exp(lse - most), theirs = std::exp(other_lse - most), total = mine + theirs;
  for (int c = 0; c < channels; ++c) out[c] = (out[c] * mine + other[c] * theirs) / total;
  lse = most + std::log(total);
}

}  // namespace pith
