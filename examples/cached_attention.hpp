// SPDX-License-Identifier: Apache-2.0
// The model's attention through a Pith cache: one sequence, opened on construction, closed at the end.
//
// A chunk of several tokens goes through prefill: it sees itself as it is and the past as the cache gives it back. A single token is
// appended and attends to the cache alone, which is what generation does.
#pragma once

#include <cmath>
#include <utility>
#include <vector>

#include "exact_cache.hpp"
#include "pith/pith.hpp"

namespace example {

inline pith::cache_shape shape_of(llama_config const& c, std::int64_t bytes) {
  return {.layers = c.layers, .kv_heads = c.kv_heads, .query_heads = c.heads, .bytes = bytes, .max_sequences = 2};
}

// Cache is a pith::cache or a pith::select_cache.
template <class Cache>
class cached_attention {
 public:
  explicit cached_attention(Cache& cache) : cache_(cache), opened_(cache.open()) {}
  cached_attention(cached_attention const&) = delete;
  ~cached_attention() {
    if (opened_) static_cast<void>(cache_.close(opened_.value()));
  }

  pith::status operator()(int layer, rows_view q, rows_view k, rows_view v, rows_out out) {
    if (!opened_) return opened_.error();
    if (q.extent[0] > 1) return cache_.prefill(opened_.value(), layer, q, k, v, out);
    pith::status const s = cache_.append(opened_.value(), layer, k, v);
    return s ? cache_.attend(opened_.value(), layer, q, out) : s;
  }

 private:
  Cache& cache_;
  decltype(std::declval<Cache&>().open()) opened_;
};

// Runs the cache and, beside it, exact attention over the same queries, keys and values; the model goes on with the cache's output.
//
//   relative error = ||out - exact|| / ||exact||, over all layers, tokens and heads
template <class Attention>
class compared_attention {
 public:
  compared_attention(Attention& tested, llama_config const& config) : tested_(tested), exact_(config, config.context) {}

  pith::status operator()(int layer, rows_view q, rows_view k, rows_view v, rows_out out) {
    pith::status s = tested_(layer, q, k, v, out);
    reference_.resize(static_cast<std::size_t>(out.elements()));
    if (s) s = exact_(layer, q, k, v, rows_out(reference_.data(), {out.extent[0], out.extent[1], out.extent[2]}));
    for (std::size_t i = 0; s && i < reference_.size(); ++i) {
      double const exact = reference_[i], difference = out.data[i] - exact;
      error_ += difference * difference;
      norm_ += exact * exact;
    }
    return s;
  }

  double relative_error() const { return std::sqrt(error_ / norm_); }

 private:
  Attention& tested_;
  exact_cache exact_;
  std::vector<float> reference_;
  double error_ = 0, norm_ = 0;
};

}  // namespace example
