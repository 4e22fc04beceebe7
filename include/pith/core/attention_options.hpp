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

// How much attention each slot got in this call, summed over the query rows: what a decode step adds to the scores of an eviction policy.
//
//   sum[kv_head][slot] = decay sum[kv_head][slot] + sum over rows of e^(s - lse);   0 is added to a slot that no row sees
//
// The scores are those that the kernel used, whatever its accuracy. Slots count as biases do. With decay = 0 what stood there is not read.
// differs a device takes them as an argument of their own (cuda/slot_scores.hpp)
// cost    4 bytes written and read, and one exponential, for each (row, slot); meant for decoding: for many rows there is a second pass over
//         the keys (page/attention_statistics.hpp)
struct slot_scores {
  static constexpr std::int64_t most_rows = 16;
  tensor_view<float, 2> sum{};     // no data: not wanted; slots are neighbours in memory
  tensor_view<float, 3> logits{};  // scratch [kv_head][row][slot], as many rows as a KV head has (query tokens * group), at most most_rows
  float decay = 1;
};

struct attention_options {
  float scale = 0;                       // 0: 1 / sqrt(channels of a key)
  float soft_cap = 0;                    // 0: none
  std::int64_t window = 0;               // a query at position p sees keys at positions above p - window; 0: all
  std::span<float const> sink_logits{};  // one per query head, natural units: a key of that logit with value 0; empty: none
  tensor_view<float, 2> lse{};           // [token][query_head], written if data is set; natural log; -infinity for an empty row
  slot_scores scores{};                  // added up if its sum is set
};

}  // namespace pith
