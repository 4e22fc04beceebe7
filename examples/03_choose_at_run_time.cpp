// SPDX-License-Identifier: Apache-2.0
// Picks one of several compiled caches by a name from the command line, and checks its attention against plain attention in double.
//
//   03_choose_at_run_time kivi2        without a name: int4; a name that is not in the table lists those that are
//
// A composition is a type, so an engine compiles the few that it offers, puts each behind one abstract class, and keeps a table from
// names to factories. The virtual call is made once per layer and token, not per number.
#include <pith/pith.hpp>

#include <cmath>
#include <cstdio>
#include <memory>
#include <random>
#include <string_view>
#include <vector>

namespace {

constexpr int head_dim = 64, layers = 2, kv_heads = 2, query_heads = 4, tokens = 500;

using rows = pith::tensor_view<float const, 3>;  // [token][head][channel]
using rows_out = pith::tensor_view<float, 3>;

// What the engine knows of a cache: one sequence of it here.
class engine_cache {
 public:
  virtual ~engine_cache() = default;
  virtual pith::status append(int layer, rows keys, rows values) = 0;
  virtual pith::status attend(int layer, rows queries, rows_out out) const = 0;
  virtual std::int64_t resident_bytes() const = 0;
};

template <class Composition>
class composed_cache final : public engine_cache {
 public:
  static pith::result<std::unique_ptr<engine_cache>> make(pith::cache_shape const& shape) {
    auto cache = pith::make<Composition>(shape);
    if (!cache) return cache.error();
    auto sequence = cache.value().open();
    if (!sequence) return sequence.error();
    return std::unique_ptr<engine_cache>(new composed_cache(std::move(cache).value(), sequence.value()));
  }

  pith::status append(int layer, rows keys, rows values) override { return cache_.append(sequence_, layer, keys, values); }
  pith::status attend(int layer, rows queries, rows_out out) const override { return cache_.attend(sequence_, layer, queries, out); }
  std::int64_t resident_bytes() const override { return cache_.resident_bytes(); }

 private:
  composed_cache(pith::cache<Composition> cache, pith::sequence sequence) : cache_(std::move(cache)), sequence_(sequence) {}

  pith::cache<Composition> cache_;
  pith::sequence sequence_;
};

struct choice {
  char const* name;
  pith::result<std::unique_ptr<engine_cache>> (*make)(pith::cache_shape const&);
  double most_error;  // relative, of this program's attention
};

// The only place that names compositions. A line more is a cache more.
constexpr choice choices[] = {
    {"bf16", &composed_cache<pith::recipes::bf16_cache<head_dim>>::make, 0.01},
    {"int8", &composed_cache<pith::recipes::int8_cache<head_dim>>::make, 0.02},
    {"int4", &composed_cache<pith::recipes::int4_cache<head_dim>>::make, 0.2},
    {"kivi4", &composed_cache<pith::recipes::kivi4<head_dim>>::make, 0.2},
    {"kivi2", &composed_cache<pith::recipes::kivi2<head_dim>>::make, 0.7},
};

std::vector<float> normal_numbers(std::size_t count, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> numbers(count);
  for (float& x : numbers) x = normal(random);
  return numbers;
}

// One query token behind all others, in double.
std::vector<double> plain_attention(std::vector<float> const& q, std::vector<float> const& k, std::vector<float> const& v) {
  std::vector<double> out(q.size());
  for (std::size_t head = 0; head < query_heads; ++head) {
    std::size_t const from = head / (query_heads / kv_heads);
    double weights = 0;
    for (std::size_t t = 0; t < tokens; ++t) {
      std::size_t const row = (t * kv_heads + from) * head_dim;
      double score = 0;
      for (std::size_t c = 0; c < head_dim; ++c) score += static_cast<double>(q[head * head_dim + c]) * k[row + c];
      double const weight = std::exp(score / std::sqrt(static_cast<double>(head_dim)));
      weights += weight;
      for (std::size_t c = 0; c < head_dim; ++c) out[head * head_dim + c] += weight * v[row + c];
    }
    for (std::size_t c = 0; c < head_dim; ++c) out[head * head_dim + c] /= weights;
  }
  return out;
}

}  // namespace

int main(int argc, char** argv) {
  std::string_view const wanted = argc > 1 && argv[1][0] != '-' ? argv[1] : "int4";  // run.sh gives its options to every example
  choice const* chosen = nullptr;
  for (choice const& each : choices)
    if (wanted == each.name) chosen = &each;
  if (chosen == nullptr) {
    std::fprintf(stderr, "there is no cache named %s; there are:", argv[1]);
    for (choice const& each : choices) std::fprintf(stderr, " %s", each.name);
    return std::fprintf(stderr, "\n"), 2;
  }

  auto made = chosen->make({.layers = layers, .kv_heads = kv_heads, .query_heads = query_heads, .bytes = 4 << 20});
  if (!made) return std::fprintf(stderr, "%s: %s\n", chosen->name, pith::message(made.error().code)), 1;
  engine_cache& cache = *made.value();

  double error = 0, norm = 0;
  for (int layer = 0; layer < layers; ++layer) {
    unsigned const seed = 3 * static_cast<unsigned>(layer);
    auto const keys = normal_numbers(tokens * kv_heads * head_dim, seed), values = normal_numbers(keys.size(), seed + 1),
               query = normal_numbers(query_heads * head_dim, seed + 2);
    std::vector<float> out(query.size());
    pith::status s = cache.append(layer, rows(keys.data(), {tokens, kv_heads, head_dim}), rows(values.data(), {tokens, kv_heads, head_dim}));
    if (s) s = cache.attend(layer, rows(query.data(), {1, query_heads, head_dim}), rows_out(out.data(), {1, query_heads, head_dim}));
    if (!s) return std::fprintf(stderr, "layer %d: %s at %lld\n", layer, pith::message(s.code), static_cast<long long>(s.at)), 1;
    std::vector<double> const exact = plain_attention(query, keys, values);
    for (std::size_t i = 0; i < out.size(); ++i) {
      error += (out[i] - exact[i]) * (out[i] - exact[i]);
      norm += exact[i] * exact[i];
    }
  }
  double const relative = std::sqrt(error / norm);
  bool const right = relative <= chosen->most_error;
  std::printf("%s: %lld bytes, relative error of attention %.4f: %s\n", chosen->name, static_cast<long long>(cache.resident_bytes()), relative,
              right ? "right" : "WRONG");
  return right ? 0 : 1;
}
