// SPDX-License-Identifier: Apache-2.0
// The model's matrices in a Pith codec.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <vector>

#include "llama.hpp"
#include "pith/pith.hpp"

namespace example {

template <class Codec, class Accuracy>
class packed_weights final : public weights {
 public:
  static matrix make(float const* w, int outputs, int inputs) {
    auto made = packed::pack(pith::matrix_view<float const>(w, {outputs, inputs}));
    if (!made) std::fprintf(stderr, "packing %d x %d: %s\n", outputs, inputs, pith::message(made.error().code)), std::exit(1);
    return std::make_unique<packed_weights>(std::move(made).value());
  }

  using packed = pith::packed_matrix<Codec>;
  explicit packed_weights(packed made) : packed_(std::move(made)) {}

  void multiply(float const* x, int tokens, float* y) const override {
    thread_local std::vector<std::byte> scratch;
    scratch.resize(std::max(scratch.size(), static_cast<std::size_t>(packed_.template scratch_bytes<Accuracy>(tokens))));
    pith::status const done = packed_.template multiply<Accuracy>(pith::matrix_view<float const>(x, {tokens, packed_.columns()}),
                                                                  pith::matrix_view<float>(y, {tokens, packed_.rows()}), std::span(scratch));
    if (!done) std::fprintf(stderr, "multiply: %s\n", pith::message(done.code)), std::exit(1);
  }
  std::int64_t bytes() const override { return static_cast<std::int64_t>(packed_.bytes().size()); }

 private:
  packed packed_;
};

}  // namespace example
