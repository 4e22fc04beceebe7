// SPDX-License-Identifier: Apache-2.0
// What a cache costs in quality: loss on held-out text, and recall of a number stated long before. Both are measured through the cache,
// the text fed in chunks of `chunk` bytes: a query sees the chunk it is in as it was, and everything older as the cache gives it back.
#pragma once

#include <cmath>
#include <cstdint>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "llama.hpp"
#include "sampling.hpp"

namespace example {

// Equal windows spread evenly over the text, one byte longer than the positions that they fill.
inline std::vector<std::string_view> held_out_windows(std::string_view text, int window, int count) {
  std::vector<std::string_view> out;
  std::size_t const length = static_cast<std::size_t>(window) + 1;
  if (text.size() < length) return out;
  for (int i = 0; i < count; ++i)
    out.push_back(text.substr(static_cast<std::size_t>(i) * (text.size() - length) / static_cast<std::size_t>(count > 1 ? count - 1 : 1), length));
  return out;
}

// -log2 of the probability that the logits give to `target`.
inline double surprise_bits(std::span<float const> logits, char target) {
  float highest = logits[0];
  for (float const x : logits) highest = std::max(highest, x);
  float total = 0;
  for (float const x : logits) total += detail::fast_exp(x - highest);
  return (std::log(static_cast<double>(total)) + highest - logits[static_cast<unsigned char>(target)]) / std::log(2.0);
}

// Mean bits per byte over the window's bytes but the first, which nothing predicts.
template <class Attention>
pith::result<double> window_bits(llama const& model, std::string_view window, int chunk, Attention&& attention) {
  std::vector<float> logits;
  llama_scratch scratch;
  double bits = 0;
  std::size_t const vocab = static_cast<std::size_t>(model.config.vocab), predicted = window.size() - 1;
  for (std::size_t at = 0; at < predicted; at += static_cast<std::size_t>(chunk)) {
    std::string_view const part = window.substr(at, std::min(static_cast<std::size_t>(chunk), predicted - at));
    pith::status const s = forward(model, part, static_cast<int>(at), attention, logits, scratch);
    if (!s) return s;
    for (std::size_t t = 0; t < part.size(); ++t) bits += surprise_bits(std::span<float const>(logits).subspan(t * vocab, vocab), window[at + t + 1]);
  }
  return bits / static_cast<double>(predicted);
}

// A prompt that ends just before a four-digit answer.
struct recall_passage {
  std::string prompt, answer;
};

// "the number of X is 4821." with an invented name X, held-out text with other such facts set into it, "the number of X is ".
// `distance` bytes lie between the end of the statement and the answer.
inline std::vector<recall_passage> recall_passages(std::string_view text, int distance, int distractors, int count) {
  std::mt19937_64 random(1);
  auto const below = [&](std::size_t bound) { return static_cast<std::size_t>(random() % bound); };
  auto const name = [&] {
    constexpr std::string_view consonants = "bcdfghjklmnprstvwz", vowels = "aeiou";
    std::string out;
    for (std::size_t syllables = 2 + below(2); syllables > 0; --syllables) out += {consonants[below(18)], vowels[below(5)]};
    return out;
  };
  auto const number = [&] {
    std::string const digits = std::to_string(below(10'000));
    return std::string(4 - digits.size(), '0') + digits;
  };
  auto const question_of = [](std::string const& x) { return std::string("the number of ") + x + " is "; };
  auto const fact = [&](std::string const& x, std::string const& n) { return question_of(x) + n + ".\n"; };

  std::vector<recall_passage> out;
  while (static_cast<int>(out.size()) < count) {
    std::string const asked = name(), answer = number(), question = question_of(asked);
    std::size_t const between = static_cast<std::size_t>(distance) - question.size() - 2;
    std::string body(text.substr(below(text.size() - between - 8), between));
    for (int i = 0; i < distractors;) {
      std::string const other = name();
      if (other == asked) continue;
      std::string line(1, '\n');
      line += fact(other, number());
      body.replace(below(body.size() - line.size()), line.size(), line);
      ++i;
    }
    body.back() = '\n';
    out.push_back({fact(asked, answer) + body + question, answer});
  }
  return out;
}

// Whether greedy decoding gives all digits of the answer; stops at the first wrong one.
template <class Attention>
pith::result<bool> recalls(llama const& model, recall_passage const& passage, int chunk, Attention&& attention) {
  std::vector<float> logits;
  llama_scratch scratch;
  int position = 0;
  std::size_t const vocab = static_cast<std::size_t>(model.config.vocab);
  pith::status s = feed(model, passage.prompt, chunk, position, attention, logits, scratch);
  for (char const digit : passage.answer) {
    if (!s) return s;
    if (greedy(std::span<float const>(logits).last(vocab)) != digit) return false;
    s = feed(model, std::string_view(&digit, 1), 1, position, attention, logits, scratch);
  }
  return true;
}

}  // namespace example
