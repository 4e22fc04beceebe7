// SPDX-License-Identifier: Apache-2.0
// What one call of attention may ask for, the same for every backend.
//
//   s[t] = scale q . k[t];   s = cap tanh(s / cap) if soft_cap > 0;   s[t] += bias[t];   masked by causality and window
//   out = sum_t e^s[t] v[t] / (sum_t e^s[t] + e^sink),   lse = ln(sum_t e^s[t] + e^sink)
#pragma once

#include <cstdint>
#include <span>

#include "pith/core/view.hpp"

namespace pith {

struct attention_options {
  float scale = 0;                       // 0: 1 / sqrt(channels of a key)
  float soft_cap = 0;                    // 0: none
  std::int64_t window = 0;               // a query at position p sees keys at positions above p - window; 0: all
  std::span<float const> sink_logits{};  // one per query head, natural units: a key of that logit with value 0; empty: none
  tensor_view<float, 2> lse{};           // [token][query_head], written if data is set; natural log; -infinity for an empty row
};

}  // namespace pith
