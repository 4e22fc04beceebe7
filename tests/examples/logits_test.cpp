// SPDX-License-Identifier: Apache-2.0
// The example model's forward pass against logits that PyTorch computed in f32 from the same bf16 weights (examples/model/export.py).
// The prompt is fed in chunks of 16 bytes, so that most of what a query sees comes out of the cache.
#include <cmath>
#include <string>
#include <vector>

#include "examples/cached_attention.hpp"
#include "examples/compositions.hpp"
#include "examples/evaluate.hpp"
#include "examples/model.hpp"

namespace {

using namespace example;
using pith_test::read_model_file;

struct golden {
  llama model;
  std::string prompt;
  std::vector<float> logits;  // of the last tokens, [token][vocab]
};

golden const& loaded() {
  static golden const g = [] {
    golden out;
    std::string const weights = read_model_file("pith-kjv.safetensors"), expected = read_model_file("golden.safetensors");
    auto model = load_llama(std::as_bytes(std::span(weights)));
    auto file = pith::safetensors::read(std::as_bytes(std::span(expected)));
    REQUIRE(model);
    REQUIRE(file);
    auto const* prompt = file.value().find("prompt");
    auto const* logits = file.value().find("logits");
    REQUIRE(prompt);
    REQUIRE(logits);
    out.model = std::move(model).value();
    out.prompt.assign(reinterpret_cast<char const*>(prompt->bytes.data()), prompt->bytes.size());
    out.logits.resize(static_cast<std::size_t>(logits->elements()));
    REQUIRE(pith::safetensors::decode(*logits, out.logits));
    return out;
  }();
  return g;
}

// Exact attention over keys and values rounded to bf16, which is all that a bf16 cache loses.
class rounded_attention {
 public:
  explicit rounded_attention(llama_config const& config) : exact_(config, config.context) {}
  pith::status operator()(int layer, rows_view q, rows_view k, rows_view v, rows_out out) {
    return exact_(layer, q, rounded(k, keys_), rounded(v, values_), out);
  }

 private:
  static rows_view rounded(rows_view from, std::vector<float>& to) {
    to.assign(from.data, from.data + from.elements());
    for (float& x : to) x = pith::to_float(pith::from_float<pith::bf16>(x));
    return rows_view(to.data(), {from.extent[0], from.extent[1], from.extent[2]});
  }
  exact_cache exact_;
  std::vector<float> keys_, values_;
};

// The logits of the prompt's last tokens, as many as the golden file has.
template <class Attention>
std::vector<float> run(Attention&& attention, std::size_t chunk, llama const& model = loaded().model) {
  golden const& g = loaded();
  std::vector<float> logits, all;
  llama_scratch scratch;
  for (std::size_t at = 0; at < g.prompt.size(); at += chunk) {
    REQUIRE(forward(model, std::string_view(g.prompt).substr(at, chunk), static_cast<int>(at), attention, logits, scratch));
    all.insert(all.end(), logits.begin(), logits.end());
  }
  all.erase(all.begin(), all.end() - static_cast<std::ptrdiff_t>(g.logits.size()));
  return all;
}

// ||logits - expected|| / ||expected||
double relative_error(std::vector<float> const& logits, std::vector<float> const& expected) {
  double error = 0, norm = 0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    double const d = logits[i] - static_cast<double>(expected[i]);
    error += d * d;
    norm += static_cast<double>(expected[i]) * expected[i];
  }
  return std::sqrt(error / norm);
}

template <class Composition>
std::vector<float> run_cache(std::size_t chunk) {
  auto made = pith::make<Composition>(shape_of(loaded().model.config, 16 << 20));
  REQUIRE(made);
  cached_attention attention(made.value());
  return run(attention, chunk);
}

struct f32_pages : pith::kv_cache<pith::head_dim<64>, pith::keys<pith::raw<float>>, pith::values<pith::raw<float>>, pith::raw<pith::last<32>>> {};

// Sums of at most 704 products in another order, through 6 layers: some tens of units of 2^-24.
constexpr double f32_tolerance = 1e-5;

// Keys and values are rounded to bf16, unit 2^-9; each changes a layer's attention output by about that much, relatively, and 6 layers
// add up in the worst case.
constexpr double bf16_tolerance = 6 * 2 * 0x1p-9;

constexpr std::size_t chunks[] = {1, 16};

}  // namespace

TEST_CASE("llama: exact attention gives PyTorch's logits, whatever the chunk", "[examples][golden]") {
  for (std::size_t const chunk : {std::size_t{1}, std::size_t{16}, std::size_t{384}}) {
    exact_cache exact(loaded().model.config, loaded().model.config.context);
    INFO(chunk);
    CHECK(relative_error(run(exact, chunk), loaded().logits) < f32_tolerance);
  }
}

TEST_CASE("llama: a bf16 cache gives PyTorch's logits within the rounding of its keys and values", "[examples][golden]") {
  for (std::size_t const chunk : chunks) {
    double const error = relative_error(run_cache<bf16_cache>(chunk), loaded().logits);
    INFO(chunk);
    CHECK(error < bf16_tolerance);
    CHECK(error > f32_tolerance);  // the cache is really in the path
  }
}

TEST_CASE("llama: a bf16 cache loses nothing but the rounding of its keys and values", "[examples][golden]") {
  for (std::size_t const chunk : chunks) {
    rounded_attention rounded(loaded().model.config);
    std::vector<float> const expected = run(rounded, chunk), logits = run_cache<bf16_cache>(chunk);
    // A difference of f32_tolerance before rounding flips a share f32_tolerance / 2^-9 of the roundings; the squares of the flips add up.
    double const rounding = relative_error(expected, loaded().logits);
    double const tolerance = f32_tolerance + rounding * std::sqrt(f32_tolerance / 0x1p-9);
    INFO(chunk);
    CHECK(relative_error(logits, expected) < tolerance);
    CHECK(tolerance < rounding / 8);
    // Pages of f32 hold what the bf16 staging held: no difference but the order of sums.
    CHECK(relative_error(run_cache<f32_pages>(chunk), logits) < f32_tolerance);
  }
}

TEST_CASE("llama: packed bf16 weights are the file's own, and give PyTorch's logits", "[examples][golden][linear]") {
  std::string const weights = read_model_file("pith-kjv.safetensors");
  auto const with = [&](matrix_maker make) {
    auto model = load_llama(std::as_bytes(std::span(weights)), make);
    REQUIRE(model);
    exact_cache exact(model.value().config, model.value().config.context);
    CHECK(model.value().matrix_bytes() < 2.1 * static_cast<double>(model.value().matrix_numbers()));
    return relative_error(run(exact, 16, model.value()), loaded().logits);
  };
  CHECK(with(&packed_weights<pith::raw<pith::bf16>, pith::exact_accuracy>::make) < f32_tolerance);
  // Numbers of 16 bits in place of 24: 2^-17 for each of 6 layers' 7 matrices in the worst case.
  CHECK(with(&packed_weights<pith::raw<pith::bf16>, pith::integer_accuracy>::make) < 42 * 0x1p-17);
}
