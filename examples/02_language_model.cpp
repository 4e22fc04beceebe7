// SPDX-License-Identifier: Apache-2.0
// Runs a language model through one cache after another, and with packed weights, on the processor, and measures what each costs and saves:
// bytes, loss on held-out text, recall, error of the attention output, time. The compositions are listed in compositions.hpp.
//
//   02_language_model                       the whole table, with a sample of what the model writes
//   02_language_model --filter int4 --quick
#include <CLI/CLI.hpp>
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "cached_attention.hpp"
#include "compositions.hpp"
#include "evaluate.hpp"
#include "report.hpp"

#ifndef PITH_SOURCE_DIR
#define PITH_SOURCE_DIR "."
#endif

namespace {

using namespace example;

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

double median(std::vector<double>& of) {
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

std::vector<plan> plans(std::string const& filter) {
  std::vector<plan> out;
  for_each_composition([&]<class How>(choice const& what, How) {
    bool const baseline = out.empty();  // bf16 comes first and is always measured: changes are against it
    if (baseline || std::string(what.name).find(filter) != std::string::npos) out.push_back({what, &measure_quality<How>, &measure_speed<How>});
  });
  return out;
}

// Runs the model over a window with exact attention and keeps what its layers make.
pith::status record(llama const& model, std::string_view window, std::vector<std::vector<float>>& queries, std::vector<std::vector<float>>& keys,
                    std::vector<std::vector<float>>& values) {
  llama_config const& c = model.config;
  exact_cache exact(c, c.context);
  for (auto* rows : {&queries, &keys, &values}) rows->assign(static_cast<std::size_t>(c.layers), {});
  auto const recording = [&](int layer, rows_view q, rows_view k, rows_view v, rows_out out) {
    auto const keep = [&](std::vector<std::vector<float>>& rows, rows_view from) {
      std::vector<float>& to = rows[static_cast<std::size_t>(layer)];
      to.insert(to.end(), from.data, from.data + from.elements());
    };
    keep(queries, q), keep(keys, k), keep(values, v);
    return exact(layer, q, k, v, out);
  };
  return window_bits(model, window, 128, recording).error();
}

bool read_file(std::string const& path, std::string& content) {
  std::ifstream file(path, std::ios::binary);
  content.assign(std::istreambuf_iterator<char>(file), {});
  return static_cast<bool>(file);
}

report_row make_row(plan const& p, quality const& q, speed const& v, quality const& baseline, double values_stored, llama const& model) {
  report_row row{.name = p.what.name, .weights = p.what.weights, .keys = p.what.keys, .values = p.what.values};
  row.bits_per_weight = 8.0 * static_cast<double>(model.matrix_bytes()) / static_cast<double>(model.matrix_numbers());
  row.token_us = v.token_microseconds;
  row.resident_bytes = v.resident_bytes;
  row.bits_per_value = 8.0 * static_cast<double>(v.resident_bytes) / values_stored;
  double const windows = static_cast<double>(q.window_bits.size());
  double square = 0;
  for (std::size_t i = 0; i < q.window_bits.size(); ++i) {
    double const change = q.window_bits[i] - baseline.window_bits[i];
    row.bits_per_byte += q.window_bits[i] / windows;
    row.bits_per_byte_change += change / windows;
    square += change * change / windows;
  }
  row.change_error = windows > 1 ? std::sqrt(std::max(0.0, square - row.bits_per_byte_change * row.bits_per_byte_change) / (windows - 1)) : 0;
  row.recall = q.recall;
  row.attention_relative_error = q.attention_error;
  row.decode_us_per_token = v.microseconds;
  row.speed_ratio_to_bf16 = v.ratio;
  return row;
}

}  // namespace

int main(int argc, char** argv) {
  std::string json, html, filter, folder = PITH_SOURCE_DIR "/examples/model";
  int bytes = 0, threads = 2;
  bool quick = false;
  study s;
  s.prompt = "And it came to pass in those days, that ";
  CLI::App options("Runs a language model through compressed caches and measures what each costs and saves.");
  options.add_option("--json", json, "write the table as JSON to this file");
  options.add_option("--html", html, "write the table and a picture as one HTML page to this file");
  options.add_option("--filter", filter, "only caches with this text in their name (and bf16)");
  options.add_option("--prompt", s.prompt, "text that the model continues");
  options.add_option("--bytes", bytes, "held-out bytes to measure the loss on (a multiple of the model's context is used)");
  options.add_option("--threads", threads, "threads for the quality figures; decoding is timed on one");
  options.add_option("--model", folder, "folder of pith-kjv.safetensors and held_out.txt");
  options.add_flag("--quick", quick, "few bytes, few passages: a look, not a measurement");
  CLI11_PARSE(options, argc, argv);

  std::string weights;
  if (!read_file(folder + "/pith-kjv.safetensors", weights) || !read_file(folder + "/held_out.txt", s.held_out)) {
    std::fprintf(stderr, "cannot read the model in %s; --model names its folder\n", folder.c_str());
    return 1;
  }
  pith::result<llama> loaded = load_llama(std::as_bytes(std::span(weights)));
  if (!loaded) {
    std::fprintf(stderr, "pith-kjv.safetensors: %s at byte %lld\n", pith::message(loaded.error().code), static_cast<long long>(loaded.error().at));
    return 1;
  }
  s.model = std::move(loaded).value();
  llama_config const& c = s.model.config;
  if (s.prompt.empty() || static_cast<int>(s.prompt.size()) > c.context - 256 || static_cast<int>(s.held_out.size()) < 2 * c.context) {
    std::fprintf(stderr, "the prompt must hold 1 to %d bytes, and the held-out text %d\n", c.context - 256, 2 * c.context);
    return 1;
  }
  if (bytes <= 0) bytes = (quick ? 2 : 16) * c.context;
  int const passages = quick ? 10 : 48, turns = quick ? 5 : 25;
  s.resident_tokens = c.context;
  std::size_t const for_calibration = static_cast<std::size_t>(c.context) + 1;
  std::string_view const measured_text = std::string_view(s.held_out).substr(for_calibration);
  s.windows = held_out_windows(measured_text, c.context, std::max(1, bytes / c.context));
  s.passages = recall_passages(measured_text, s.distance, 4, passages);
  std::vector<std::vector<float>> unused;
  pith::status recorded = record(s.model, s.windows[0], s.queries, s.keys, s.values);
  if (recorded) recorded = record(s.model, std::string_view(s.held_out).substr(0, for_calibration), unused, s.calibration.keys, s.calibration.values);
  if (!recorded) {
    std::fprintf(stderr, "forward pass: %s\n", pith::message(recorded.code));
    return 1;
  }

  // Quality: every cache is independent of the others, so threads take one after another.
  std::vector<plan> all = plans(filter);
  std::vector<matrix_maker> makers;
  std::vector<llama> models;
  for (plan& p : all) {
    p.model = static_cast<std::size_t>(std::find(makers.begin(), makers.end(), p.what.make_matrix) - makers.begin());
    if (p.model < makers.size()) continue;
    makers.push_back(p.what.make_matrix);
    models.push_back(load_llama(std::as_bytes(std::span(weights)), p.what.make_matrix).value());  // the file was good before
  }
  std::vector<quality> qualities(all.size());
  std::atomic<std::size_t> next{0};
  std::mutex progress;
  auto const work = [&] {
    for (std::size_t i = next++; i < all.size(); i = next++) {
      qualities[i] = all[i].measure_quality(s, models[all[i].model]);
      std::lock_guard const lock(progress);
      std::fprintf(stderr, "quality  %zu of %zu  %s\n", i + 1, all.size(), all[i].what.name);
    }
  };
  std::vector<std::thread> pool;
  for (int i = 1; i < threads; ++i) pool.emplace_back(work);
  work();
  for (std::thread& thread : pool) thread.join();

  // Time: one cache beside bf16, nothing else running.
  double const values_stored = 2.0 * c.layers * c.kv_heads * c.head_dim * static_cast<double>(s.resident_tokens);
  report out;
  for (std::size_t i = 0; i < all.size(); ++i) {
    speed const measured = all[i].measure_speed(s, models[all[i].model], turns);
    for (pith::status const failure : {qualities[i].failure, measured.failure})
      if (!failure) {
        std::fprintf(stderr, "%s: %s at %lld\n", all[i].what.name, pith::message(failure.code), static_cast<long long>(failure.at));
        return 1;
      }
    std::fprintf(stderr, "time     %zu of %zu  %s\n", i + 1, all.size(), all[i].what.name);
    out.rows.push_back(make_row(all[i], qualities[i], measured, qualities[0], values_stored, models[all[i].model]));
  }

  out.model = {{"name", "pith-kjv"}, {"layers", c.layers}, {"query_heads", c.heads}, {"kv_heads", c.kv_heads}, {"head_dim", c.head_dim},
               {"context", c.context}, {"chunk", s.chunk}, {"held_out_bytes", s.windows.size() * static_cast<std::size_t>(c.context)},
               {"recall_distance", s.distance}, {"recall_passages", passages}, {"resident_tokens", s.resident_tokens}, {"timed_context", s.timed_context}};
  out.caption = detail::text(
      "Loss on %zu held-out bytes in windows of %d, fed in chunks of %d; recall of a number stated %d bytes earlier, %d passages; resident bytes of one "
      "sequence of %lld tokens; decode is append and attend of all %d layers for one token at %d tokens of context, a token the whole model at up to "
      "200 tokens, both on one core.",
      s.windows.size() * static_cast<std::size_t>(c.context), c.context, s.chunk, s.distance, passages, static_cast<long long>(s.resident_tokens), c.layers,
      s.timed_context);
  for (std::size_t i = 0, shown = 0; i < all.size() && shown < 2; ++i)
    if (i == 0 || std::string_view(all[i].what.name).starts_with("int4")) {
      std::printf("--- %s\n%s%s\n\n", all[i].what.name, s.prompt.c_str(), qualities[i].sample.c_str());
      ++shown;
    }
  print(out);
  if (!json.empty() && !detail::write_file(json, to_json(out))) return std::fprintf(stderr, "cannot write %s\n", json.c_str()), 1;
  if (!html.empty() && !detail::write_file(html, to_html(out))) return std::fprintf(stderr, "cannot write %s\n", html.c_str()), 1;
  return 0;
}
