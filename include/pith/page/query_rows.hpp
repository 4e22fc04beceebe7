// SPDX-License-Identifier: Apache-2.0
// The queries and outputs of one attention call as a backend reads and writes them: rows of one KV head.
#pragma once

#include <algorithm>
#include <cmath>

#include "pith/core/attention_options.hpp"
#include "pith/core/scalar.hpp"
#include "pith/core/status.hpp"
#include "pith/page/attention_engine.hpp"

namespace pith {

template <storage_scalar Q, storage_scalar O>
struct query_rows {
  tensor_view<Q const, 3> q{};  // [token][query_head][channel]
  tensor_view<O, 3> out{};      // [token][query_head][channel]
  attention_options const* options = nullptr;
  std::int64_t first_token = 0;  // of the view: the first query token of the sequence
  std::int64_t tokens = 0;       // query tokens of the sequence
  int head = 0;                  // KV head
  int group = 1;                 // query heads per KV head
  float scale = 1;               // times log2 e
  std::int64_t first_slot = 0;   // of the sequence, in slot_scores
  void const* slots = nullptr;   // what limits() asks: slot_range(slots, query token, &lower, &upper)
  void (*slot_range)(void const* slots, std::int64_t token, std::int64_t* lower, std::int64_t* upper) = nullptr;

  head_rows rows() const {
    head_rows all;
    all.rows = tokens * group;
    all.context = this;
    all.soft_cap = options->soft_cap;
    all.scale = scale;
    all.load = [](void const* context, std::int64_t row, float* query) {
      auto const& self = *static_cast<query_rows const*>(context);
      Q const* const from = &self.q(self.first_token + row / self.group, self.head * self.group + row % self.group, 0);
      for (std::int64_t c = 0; c < self.q.extent[2]; ++c) query[c] = to_float(from[c * self.q.stride[2]]);
    };
    all.save = [](void const* context, std::int64_t row, float const* output, float lse) {
      auto const& self = *static_cast<query_rows const*>(context);
      std::int64_t const token = self.first_token + row / self.group, head = self.head * self.group + row % self.group;
      O* const to = &self.out(token, head, 0);
      for (std::int64_t c = 0; c < self.out.extent[2]; ++c) to[c * self.out.stride[2]] = from_float<O>(output[c]);
      if (self.options->lse.data != nullptr) self.options->lse(token, head) = lse;
    };
    all.limits = [](void const* context, std::int64_t row, std::int64_t* lower, std::int64_t* upper) {
      auto const& self = *static_cast<query_rows const*>(context);
      self.slot_range(self.slots, row / self.group, lower, upper);
    };
    if (!options->sink_logits.empty())
      all.sink = [](void const* context, std::int64_t row) {
        auto const& self = *static_cast<query_rows const*>(context);
        return self.options->sink_logits[static_cast<std::size_t>(self.head * self.group + row % self.group)];
      };
    if (slot_scores const& to = options->scores; to.sum.data != nullptr) {
      all.scores = to.sum.data + head * to.sum.stride[0] + first_slot;
      all.logits = to.logits.data + head * to.logits.stride[0] + first_slot;
      all.logit_stride = to.logits.stride[1];
      all.score_decay = to.decay;
    }
    return all;
  }

  // slots: of the longest row of scores
  // errors  shape_mismatch; `at` is the extent that does not fit
  static status check(std::type_identity_t<tensor_view<Q const, 3>> q, tensor_view<O, 3> out, attention_options const& options,
                      int kv_heads, int dk, int dv, std::int64_t slots = 0) {
    if (q.extent[2] != dk) return {errc::shape_mismatch, q.extent[2]};
    if (kv_heads <= 0 || q.extent[1] <= 0 || q.extent[1] % kv_heads != 0) return {errc::shape_mismatch, q.extent[1]};
    if (out.extent[0] != q.extent[0] || out.extent[1] != q.extent[1] || out.extent[2] != dv) return {errc::shape_mismatch, out.extent[2]};
    if (!options.sink_logits.empty() && static_cast<std::int64_t>(options.sink_logits.size()) != q.extent[1])
      return {errc::shape_mismatch, static_cast<std::int64_t>(options.sink_logits.size())};
    if (options.lse.data != nullptr && (options.lse.extent[0] < q.extent[0] || options.lse.extent[1] != q.extent[1]))
      return {errc::shape_mismatch, options.lse.extent[1]};
    if (slot_scores const& to = options.scores; to.sum.data != nullptr) {
      std::int64_t const rows = std::min(slot_scores::most_rows, q.extent[0] * (q.extent[1] / kv_heads));
      if (to.sum.extent[0] != kv_heads || to.sum.extent[1] < slots || to.sum.stride[1] != 1) return {errc::shape_mismatch, to.sum.extent[1]};
      if (to.logits.data == nullptr || to.logits.extent[0] != kv_heads || to.logits.extent[1] < rows || to.logits.extent[2] < slots ||
          to.logits.stride[2] != 1)
        return {errc::shape_mismatch, to.logits.extent[2]};
    }
    if (!(options.soft_cap >= 0) || !(options.scale >= 0) || options.window < 0) return {errc::out_of_range, options.window};
    return {};
  }
};

inline float base2_scale(attention_options const& options, int key_channels) {
  return (options.scale > 0 ? options.scale : 1.0f / std::sqrt(static_cast<float>(key_channels))) * 1.44269504088896340736f;
}

}  // namespace pith
