// SPDX-License-Identifier: Apache-2.0
// The reference: attention in f32 over every key and value as they were, nothing compressed. Its layout serves plain loops: keys are
// kept as [channel][token], so that one channel's product with all tokens is vector code, and values as [token][channel].
//
//   score[t] = sum_c q[c] K[t][c] / sqrt(head_dim)      p = exp(score - max)      out[c] = sum_t p[t] V[t][c] / sum_t p[t]
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "llama.hpp"

namespace example {

class exact_cache {
 public:
  exact_cache(llama_config const& config, int capacity) : config_(config), capacity_(capacity + 16), score_(static_cast<std::size_t>(capacity_)) {
    clear();
  }

  void clear() {
    layers_.assign(static_cast<std::size_t>(config_.layers), layer_rows{});
    for (layer_rows& l : layers_) {
      l.keys.assign(static_cast<std::size_t>(config_.kv_heads * config_.head_dim * capacity_), 0.0f);
      l.values = l.keys;
    }
  }

  pith::status append(int layer, rows_view k, rows_view v) {
    layer_rows& l = layers_[static_cast<std::size_t>(layer)];
    int const tokens = static_cast<int>(k.extent[0]), width = config_.head_dim;
    if (l.length + tokens > capacity_) return {pith::errc::capacity_exceeded, l.length + tokens};
    for (int head = 0; head < config_.kv_heads; ++head)
      for (int t = 0; t < tokens; ++t)
        for (int c = 0; c < width; ++c) {
          l.keys[static_cast<std::size_t>((head * width + c) * capacity_ + l.length + t)] = k(t, head, c);
          l.values[static_cast<std::size_t>((head * capacity_ + l.length + t) * width + c)] = v(t, head, c);
        }
    l.length += tokens;
    return {};
  }

  // Remembers the chunk, then attends causally: the queries are the newest tokens.
  pith::status operator()(int layer, rows_view q, rows_view k, rows_view v, rows_out out) {
    if (pith::status const s = append(layer, k, v); !s) return s;
    layer_rows const& l = layers_[static_cast<std::size_t>(layer)];
    int const tokens = static_cast<int>(k.extent[0]);
    int const group = config_.heads / config_.kv_heads;
    for (int t = 0; t < tokens; ++t)
      for (int head = 0; head < config_.heads; ++head)
        attend(l, head / group, &q(t, head, 0), l.length - tokens + t + 1, &out(t, head, 0));
    return {};
  }

 private:
  struct layer_rows {
    std::vector<float> keys, values;
    int length = 0;
  };

  void attend(layer_rows const& l, int head, float const* q, int seen, float* out) {
    int const width = config_.head_dim;
    float const scale = 1.0f / std::sqrt(static_cast<float>(width));
    float* const score = score_.data();
    std::fill(score, score + seen, 0.0f);
    for (int c = 0; c < width; c += 4) {  // four channels a pass: fewer loads and stores of the scores
      float const* keys = l.keys.data() + static_cast<std::ptrdiff_t>(head * width + c) * capacity_;
      float const a = q[c] * scale, b = q[c + 1] * scale, d = q[c + 2] * scale, e = q[c + 3] * scale;
      for (int t = 0; t < seen; ++t)
        score[t] += a * keys[t] + b * keys[capacity_ + t] + d * keys[2 * capacity_ + t] + e * keys[3 * capacity_ + t];
    }
    float const highest = *std::max_element(score, score + seen);
    for (int t = 0; t < seen; ++t) score[t] = detail::fast_exp(score[t] - highest);
    float total = 0;
    for (int t = 0; t < seen; ++t) total += score[t];

    float sum[256] = {};
    float const* values = l.values.data() + static_cast<std::ptrdiff_t>(head) * capacity_ * width;
    int t = 0;
    for (; t + 4 <= seen; t += 4) {  // four tokens a pass, for the same reason
      float const* v = values + t * width;
      for (int c = 0; c < width; ++c)
        sum[c] += score[t] * v[c] + score[t + 1] * v[width + c] + score[t + 2] * v[2 * width + c] + score[t + 3] * v[3 * width + c];
    }
    for (; t < seen; ++t)
      for (int c = 0; c < width; ++c) sum[c] += score[t] * values[t * width + c];
    for (int c = 0; c < width; ++c) out[c] = sum[c] / total;
  }

  llama_config config_;
  int capacity_;  // 16 more than asked for: rows a power of two apart would meet in the same cache sets
  std::vector<layer_rows> layers_;
  std::vector<float> score_;
};

}  // namespace example
