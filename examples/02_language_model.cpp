// SPDX-License-Identifier: Apache-2.0
// Runs a language model through one cache after another, and with packed weights, on the processor, and measures what each costs and saves:
// bytes, loss on held-out text, recall, error of the attention output, time. The compositions are listed in compositions.hpp.
//
//   02_language_model                       the whole table, with a sample of what the model writes
//   02_language_model --filter int4 --quick
#include <CLI/CLI.hpp>
#include <algorithm>
#include <atomic>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "02_language_model/measure.hpp"
#include "report.hpp"

#ifndef PITH_SOURCE_DIR
#define PITH_SOURCE_DIR "."
#endif

namespace {

using namespace example;

std::vector<plan> plans(std::string const& filter) {
  std::vector<plan> all, out;
  add_plain_caches(all);
  add_transformed_caches(all);
  add_low_bit_caches(all);
  add_packed_models(all);
  for (plan const& p : all)  // bf16 comes first and is always measured: changes are against it
    if (out.empty() || std::string(p.what.name).find(filter) != std::string::npos) out.push_back(p);
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
