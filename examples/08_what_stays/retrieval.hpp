// SPDX-License-Identifier: Apache-2.0
// Methods that give nothing up: each decoding step reads a part of what is stored. Their stores of keys' boxes, clusters or codes of few
// bits, and what a step has read, are counted here.
#pragma once

#include <functional>
#include <memory>
#include <string_view>

#include "held_cache.hpp"
#include "method.hpp"

namespace example {

// One text in a cache, and one budget.
struct retrieval_input {
  llama_config const& model;
  held_cache& cache;
  setting const& at;
  std::string_view text;  // the context
};

class retriever {
 public:
  virtual ~retriever() = default;

  // The cache holds the context.
  virtual pith::status begin() = 0;
  // The token that the next step feeds.
  virtual void see(char) {}
  // A step's token has been appended to the layer: its attention.
  virtual pith::status attend(int layer, rows_view q, rows_view k, rows_view v, rows_out out) = 0;

  // Resident beside the cache; and of both together, what is not on the host where a method keeps a whole copy there.
  virtual std::int64_t own_bytes() const = 0;
  virtual std::int64_t device_bytes() const = 0;

  // Numbers that steps have read, to choose and to attend, as part of all keys and values that were stored then.
  double read() const { return stored_ > 0 ? read_ / stored_ : 1; }

 protected:
  void count_read(double numbers) { read_ += numbers; }
  void count_stored(double numbers) { stored_ += numbers; }

 private:
  double read_ = 0, stored_ = 0;
};

// Those of pith/policy/recipes_retrieve.hpp.
std::vector<method> retrieving_methods();

}  // namespace example
