// SPDX-License-Identifier: Apache-2.0
// The next byte from logits: the likeliest, or drawn from the smallest set of bytes that holds a share top_p of the probability.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "llama.hpp"

namespace example {

inline char greedy(std::span<float const> logits) {
  return static_cast<char>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

struct sampler {
  float temperature = 0.7f;
  float top_p = 0.9f;
  std::mt19937_64 random{1};

  char operator()(std::span<float const> logits) {
    std::vector<int> order(logits.size());
    std::iota(order.begin(), order.end(), 0);
    std::sort(order.begin(), order.end(), [&](int a, int b) { return logits[static_cast<std::size_t>(a)] > logits[static_cast<std::size_t>(b)]; });
    std::vector<double> weight(logits.size());
    double const highest = logits[static_cast<std::size_t>(order[0])];
    double total = 0;
    for (std::size_t i = 0; i < order.size(); ++i) total += weight[i] = std::exp((logits[static_cast<std::size_t>(order[i])] - highest) / temperature);
    std::size_t kept = 0;
    double share = 0;
    while (kept < order.size() && share < top_p * total) share += weight[kept++];
    double left = share * static_cast<double>(random() >> 11) * 0x1p-53;
    for (std::size_t i = 0; i + 1 < kept; ++i)
      if ((left -= weight[i]) < 0) return static_cast<char>(order[i]);
    return static_cast<char>(order[kept - 1]);
  }
};

// Feeds text in chunks and leaves the logits of the last chunk in `logits`. Returns the position after it.
template <class Attention>
pith::status feed(llama const& model, std::string_view text, int chunk, int& position, Attention&& attention, std::vector<float>& logits,
                  llama_scratch& scratch) {
  for (std::size_t at = 0; at < text.size(); at += static_cast<std::size_t>(chunk)) {
    std::string_view const part = text.substr(at, static_cast<std::size_t>(chunk));
    pith::status const s = forward(model, part, position, attention, logits, scratch);
    if (!s) return s;
    position += static_cast<int>(part.size());
  }
  return {};
}

// `count` bytes that continue the prompt; choose(logits of the last token) picks each.
template <class Attention, class Choose>
pith::result<std::string> generate(llama const& model, std::string_view prompt, int count, int chunk, Attention&& attention, Choose&& choose) {
  std::vector<float> logits;
  llama_scratch scratch;
  std::string out;
  int position = 0;
  std::size_t const vocab = static_cast<std::size_t>(model.config.vocab);
  pith::status s = feed(model, prompt, chunk, position, attention, logits, scratch);
  while (s && static_cast<int>(out.size()) < count) {
    out += choose(std::span<float const>(logits).last(vocab));
    if (static_cast<int>(out.size()) < count) s = feed(model, std::string_view(out).substr(out.size() - 1), 1, position, attention, logits, scratch);
  }
  if (!s) return s;
  return out;
}

}  // namespace example
