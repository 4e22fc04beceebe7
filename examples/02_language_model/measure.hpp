// SPDX-License-Identifier: Apache-2.0
// What is measured of one cache and one way to store the weights. Templates over the cache: each file of this folder compiles a part of the
// list of compositions.hpp, so that they compile at the same time.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "examples/cached_attention.hpp"
#include "examples/compositions.hpp"
#include "examples/evaluate.hpp"

namespace example {

// Everything that is the same for all caches.
struct study {
  llama model;  // with its matrices as they are in the file
  std::string held_out, prompt;
  int chunk = 16;                // bytes fed at once
  int distance = 1000;           // of the recall passages, in bytes
  int timed_context = 8192;      // tokens in the cache when decoding is timed
  std::int64_t resident_tokens;  // tokens in the cache when its bytes are counted
  std::vector<std::string_view> windows;
  std::vector<recall_passage> passages;
  // One window's queries, keys and values of every layer, as the model made them: [layer][token][head][channel]; and those of text that
  // nothing else is measured on, for calibration.
  std::vector<std::vector<float>> queries, keys, values;
  calibration_rows calibration;

  rows_view part(std::vector<std::vector<float>> const& rows, int heads, int layer, std::int64_t first, std::int64_t count) const {
    int const width = model.config.head_dim;
    return rows_view(rows[static_cast<std::size_t>(layer)].data() + first * heads * width, {count, heads, width});
  }
};

struct quality {
  std::vector<double> window_bits;
  double recall = 0, attention_error = 0;
  std::string sample;
  pith::status failure;
};

struct speed {
  std::int64_t resident_bytes = 0;
  double microseconds = 0, ratio = 0;  // append and attend of all layers
  double token_microseconds = 0;       // the whole model
  pith::status failure;
};

constexpr std::int64_t pool_bytes = 64 << 20;

template <class How>
quality measure_quality(study const& s, llama const& model) {
  quality out;
  auto made = How::make(shape_of(model.config, pool_bytes), model.config, s.calibration);
  if (!made) return out.failure = made.error(), out;
  auto& cache = made.value();

  for (std::string_view const window : s.windows) {
    cached_attention attention(cache);
    auto const with_exact_beside = [&] {
      compared_attention compared(attention, model.config);
      pith::result<double> const bits = window_bits(model, window, s.chunk, compared);
      out.attention_error = compared.relative_error();
      return bits;
    };
    pith::result<double> const bits = out.window_bits.empty() ? with_exact_beside() : window_bits(model, window, s.chunk, attention);
    if (!bits) return out.failure = bits.error(), out;
    out.window_bits.push_back(bits.value());
  }
  for (recall_passage const& passage : s.passages) {
    cached_attention attention(cache);
    pith::result<bool> const right = recalls(model, passage, s.chunk, attention);
    if (!right) return out.failure = right.error(), out;
    out.recall += right.value() / static_cast<double>(s.passages.size());
  }
  cached_attention attention(cache);
  pith::result<std::string> text = generate(model, s.prompt, 240, s.chunk, attention, sampler{});
  if (!text) return out.failure = text.error(), out;
  out.sample = text.value();
  return out;
}

// Appends tokens first, first + 1, ... of the recorded window (again from its start when it ends) and decodes one query for each.
template <class Cache, class Sequence>
pith::status decode_tokens(study const& s, Cache& cache, Sequence sequence, std::int64_t first, int count, std::vector<float>& out) {
  llama_config const& c = s.model.config;
  out.resize(static_cast<std::size_t>(c.heads * c.head_dim));
  for (int t = 0; t < count; ++t)
    for (int layer = 0; layer < c.layers; ++layer) {
      std::int64_t const at = (first + t) % c.context;
      pith::status done = cache.append(sequence, layer, s.part(s.keys, c.kv_heads, layer, at, 1), s.part(s.values, c.kv_heads, layer, at, 1));
      if (done) done = cache.attend(sequence, layer, s.part(s.queries, c.heads, layer, at, 1), rows_out(out.data(), {1, c.heads, c.head_dim}));
      if (!done) return done;
    }
  return {};
}

template <class Cache, class Sequence>
pith::status fill(study const& s, Cache& cache, Sequence sequence, std::int64_t tokens) {
  llama_config const& c = s.model.config;
  for (std::int64_t done = 0; done < tokens; done += c.context)
    for (int layer = 0; layer < c.layers; ++layer) {
      std::int64_t const count = std::min<std::int64_t>(c.context, tokens - done);
      pith::status const appended = cache.append(sequence, layer, s.part(s.keys, c.kv_heads, layer, 0, count), s.part(s.values, c.kv_heads, layer, 0, count));
      if (!appended) return appended;
    }
  return {};
}

inline double median(std::vector<double>& of) {
  std::nth_element(of.begin(), of.begin() + static_cast<std::ptrdiff_t>(of.size() / 2), of.end());
  return of[of.size() / 2];
}

// Microseconds for one byte through the whole model, one byte at a time, the median over a stretch of held-out text.
template <class Cache>
pith::result<double> measure_token(study const& s, llama const& model, Cache& cache) {
  cached_attention attention(cache);
  std::vector<float> logits;
  llama_scratch scratch;
  std::vector<double> times;
  for (int t = 0; t < 200; ++t) {
    auto const before = std::chrono::steady_clock::now();
    pith::status const done = forward(model, s.windows[0].substr(static_cast<std::size_t>(t), 1), t, attention, logits, scratch);
    if (!done) return done;
    if (t >= 20) times.push_back(std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - before).count());
  }
  return median(times);
}

// Time of append and attend for one token of all layers, beside the bf16 cache: the two take turns, and the median turn counts.
template <class How>
speed measure_speed(study const& s, llama const& model, int turns) {
  speed out;
  auto made = How::make(shape_of(s.model.config, pool_bytes), s.model.config, s.calibration);
  auto made_baseline = pith::make<bf16_cache>(shape_of(s.model.config, pool_bytes));
  if (!made) return out.failure = made.error(), out;
  if (!made_baseline) return out.failure = made_baseline.error(), out;
  auto& cache = made.value();
  auto& baseline = made_baseline.value();
  auto const token = measure_token(s, model, cache);
  if (!token) return out.failure = token.error(), out;
  out.token_microseconds = token.value();
  auto opened = cache.open();
  auto opened_baseline = baseline.open();
  if (!opened) return out.failure = opened.error(), out;
  if (!opened_baseline) return out.failure = opened_baseline.error(), out;

  out.failure = fill(s, cache, opened.value(), s.resident_tokens);
  out.resident_bytes = cache.resident_bytes();
  constexpr int tokens_a_turn = 8;
  std::int64_t const start = s.timed_context - static_cast<std::int64_t>(turns + 1) * tokens_a_turn;
  if (out.failure) out.failure = fill(s, cache, opened.value(), start - s.resident_tokens);
  if (out.failure) out.failure = fill(s, baseline, opened_baseline.value(), start);

  std::vector<double> times, ratios;
  std::vector<float> scratch;
  auto const timed = [&](auto& which, auto const& sequence, std::int64_t first) {
    auto const before = std::chrono::steady_clock::now();
    if (out.failure) out.failure = decode_tokens(s, which, sequence, first, tokens_a_turn, scratch);
    return std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - before).count() / tokens_a_turn;
  };
  for (int turn = 0; turn <= turns && out.failure; ++turn) {
    std::int64_t const first = start + turn * tokens_a_turn;
    double mine = 0, other = 0;
    if (turn % 2 == 0) mine = timed(cache, opened.value(), first);
    other = timed(baseline, opened_baseline.value(), first);
    if (turn % 2 == 1) mine = timed(cache, opened.value(), first);
    if (turn == 0) continue;  // warm-up
    times.push_back(mine);
    ratios.push_back(other / mine);
  }
  if (!out.failure) return out;
  out.microseconds = median(times);
  out.ratio = median(ratios);
  static_cast<void>(cache.close(opened.value()));
  static_cast<void>(baseline.close(opened_baseline.value()));
  return out;
}

struct plan {
  choice what;
  quality (*measure_quality)(study const&, llama const&);
  speed (*measure_speed)(study const&, llama const&, int turns);
  std::size_t model = 0;  // which of the models with packed matrices
};

// Visits compositions: a plan for each.
struct plan_list {
  std::vector<plan>& plans;

  template <class How>
  void operator()(choice const& what, How) const {
    plans.push_back({what, &measure_quality<How>, &measure_speed<How>});
  }
};

// The whole list, in its order.
void add_plain_caches(std::vector<plan>& plans);
void add_transformed_caches(std::vector<plan>& plans);
void add_low_bit_caches(std::vector<plan>& plans);
void add_packed_models(std::vector<plan>& plans);

}  // namespace example
