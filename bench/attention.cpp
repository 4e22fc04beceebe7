// SPDX-License-Identifier: Apache-2.0
// Decode attention over packed pages: one query token, 32 query heads, 8 KV heads, head_dim 128, pages of 64 tokens, one thread.
//
// KV is streamed from memory: at least 256 MB of layers are visited in turn. The floor is the packed bytes of one layer at the read
// bandwidth measured by this program. The error is the relative difference of the output from attention in double precision over the
// numbers before they were packed (1024 tokens, an outlier channel of magnitude 8 in the keys); the baseline is bf16 pages.
#include <cmath>
#include <numeric>
#include <random>

#include "pith/pith.hpp"
#include "support/machine.hpp"
#include "support/report.hpp"

namespace {

constexpr int head_dim = 128, query_heads = 32, kv_heads = 8, group = query_heads / kv_heads;
constexpr std::int64_t streamed = 256 << 20;

std::vector<float> numbers(std::int64_t count, unsigned seed, bool keys) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> x(static_cast<std::size_t>(count));
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = normal(random) * (keys && i % head_dim == 17 ? 8.0f : 1.0f);
  return x;
}

template <class Page>
void encode_page(float const* k, float const* v, std::byte* page) {
  using key_tile = typename Page::key_tile;
  using value_tile = typename Page::value_tile;
  for (int t = 0; t < Page::tokens; t += key_tile::tokens) key_tile::encode(k + t * head_dim, page + Page::key_tile_at(t));
  for (int t = 0; t < Page::tokens; t += value_tile::tokens) value_tile::encode(v + t * head_dim, page + Page::value_tile_at(t));
}

// One arena for all compositions: its pages are touched once, not by every benchmark.
std::byte* arena(std::int64_t bytes) {
  static std::int64_t const size = 3 * streamed / 2;
  static std::byte* const memory = bench::huge(size);
  return bytes <= size ? memory : nullptr;
}

// Layers of pages, head-major: [layer][head][page].
template <class Page>
struct pages_of_layers {
  std::int64_t context, pages, layers, layer_bytes;
  std::byte* memory;
  std::vector<std::uint32_t> order;
  std::vector<std::int64_t> indptr;
  std::vector<std::int32_t> last;

  pages_of_layers(std::int64_t tokens, bool shuffled) : context(tokens), pages(tokens / Page::tokens) {
    layer_bytes = pages * kv_heads * Page::bytes;
    layers = std::max<std::int64_t>(1, (streamed + layer_bytes - 1) / layer_bytes);
    memory = arena(layers * layer_bytes);
    constexpr int different = 16;
    std::vector<std::byte> sample(static_cast<std::size_t>(different * Page::bytes));
    auto const k = numbers(different * Page::tokens * head_dim, 1, true), v = numbers(different * Page::tokens * head_dim, 2, false);
    for (int i = 0; i < different; ++i)
      encode_page<Page>(&k[static_cast<std::size_t>(i) * Page::tokens * head_dim], &v[static_cast<std::size_t>(i) * Page::tokens * head_dim], &sample[static_cast<std::size_t>(i * Page::bytes)]);
    for (std::int64_t i = 0; i < layers * pages * kv_heads; ++i) std::memcpy(memory + i * Page::bytes, &sample[static_cast<std::size_t>(i % different * Page::bytes)], Page::bytes);
    order.resize(static_cast<std::size_t>(pages));
    std::iota(order.begin(), order.end(), 0u);
    if (shuffled) std::shuffle(order.begin(), order.end(), std::mt19937(3));
    indptr = {0, pages};
    last = {Page::tokens};
  }
  pith::paged_view<Page> layer(std::int64_t i) const {
    return {.base = memory + i * layer_bytes, .block_stride = Page::bytes, .head_stride = pages * Page::bytes, .blocks = pages, .kv_heads = kv_heads, .indptr = indptr, .indices = order, .last_page_len = last};
  }
};

// Relative error of the output against double precision over unpacked numbers.
template <class Page, class Accuracy>
double output_error() {
  constexpr int tokens = 1024;
  auto const k = numbers(tokens * head_dim, 5, true), v = numbers(tokens * head_dim, 6, false), q = numbers(group * head_dim, 7, false);
  std::byte* const memory = bench::huge(tokens / Page::tokens * Page::bytes);
  for (int t = 0; t < tokens; t += Page::tokens) encode_page<Page>(&k[static_cast<std::size_t>(t) * head_dim], &v[static_cast<std::size_t>(t) * head_dim], memory + t / Page::tokens * Page::bytes);
  std::vector<std::uint32_t> order(tokens / Page::tokens);
  std::iota(order.begin(), order.end(), 0u);
  std::vector<std::int64_t> const indptr{0, tokens / Page::tokens}, queries{0, 1};
  std::vector<std::int32_t> const last{Page::tokens};
  std::vector<float> out(q.size());
  pith::paged_view<Page> const view{.base = memory, .block_stride = Page::bytes, .head_stride = Page::bytes, .blocks = tokens / Page::tokens, .kv_heads = 1, .indptr = indptr, .indices = order, .last_page_len = last};
  auto const done = pith::paged_attention<Accuracy, Page, float>(pith::cpu{}, view, queries, {q.data(), {1, group, head_dim}}, pith::tensor_view<float, 3>(out.data(), {1, group, head_dim}));
  double off = 0, size = 0;
  for (int m = 0; m < group && done; ++m) {
    std::vector<double> p(tokens);
    double most = -1e300, sum = 0;
    for (int t = 0; t < tokens; ++t) {
      for (int c = 0; c < head_dim; ++c) p[t] += static_cast<double>(q[m * head_dim + c]) * k[t * head_dim + c] / std::sqrt(static_cast<double>(head_dim));
      most = std::max(most, p[t]);
    }
    for (double& x : p) sum += x = std::exp(x - most);
    for (int c = 0; c < head_dim; ++c) {
      double exact = 0;
      for (int t = 0; t < tokens; ++t) exact += p[t] / sum * v[t * head_dim + c];
      off += (exact - out[m * head_dim + c]) * (exact - out[m * head_dim + c]);
      size += exact * exact;
    }
  }
  munmap(memory, tokens / Page::tokens * Page::bytes);
  return done ? std::sqrt(off / size) : -1;
}

template <class Keys, class Values, class Accuracy>
void add(std::string const& name) {
  using page = pith::kv_page<Keys, Values, head_dim, head_dim, 64>;
  for (std::int64_t const context : {4096, 32768})
    for (bool const shuffled : {false, true}) {
      if (shuffled && context == 4096) continue;
      std::string const suffix = "/" + std::to_string(context) + (shuffled ? "/random_order" : "");
      benchmark::RegisterBenchmark(("attention/" + name + suffix).c_str(), [=](benchmark::State& state) {
        static double const error = output_error<page, Accuracy>();
        pages_of_layers<page> const layers(context, shuffled);
        auto const q = numbers(query_heads * head_dim, 9, false);
        std::vector<float> out(q.size());
        std::vector<std::int64_t> const queries{0, 1};
        std::int64_t layer = 0;
        for (auto _ : state) {
          auto const done = pith::paged_attention<Accuracy, page, float>(pith::cpu{}, layers.layer(layer), queries, {q.data(), {1, query_heads, head_dim}},
                                                                         pith::tensor_view<float, 3>(out.data(), {1, query_heads, head_dim}));
          if (!done) state.SkipWithError("attention failed");
          benchmark::ClobberMemory();
          layer = (layer + 1) % layers.layers;
        }
        state.SetLabel("attention/bf16" + suffix);
        state.counters["packed_bytes"] = static_cast<double>(layers.layer_bytes);
        state.counters["values"] = 2.0 * kv_heads * static_cast<double>(context) * head_dim;
        state.counters["error"] = error;
      })->UseRealTime()->MinTime(0.2)->Unit(benchmark::kMicrosecond);
    }
}

}  // namespace

int main(int argc, char** argv) {
  using namespace pith;
  bench::pin();
  bench::read_bandwidth = bench::measure_read_bandwidth(1 << 30);
  using bf = pith::raw<bf16>;
  add<bf, bf, exact_accuracy>("bf16");
  add<int8<per_token<128>>, int8<per_token<128>>, integer_accuracy>("int8");
  add<int8<per_token<128>>, int8<per_token<128>>, exact_accuracy>("int8_exact");
  add<int4<per_token<64>>, int4<per_token<64>>, integer_accuracy>("int4");
  add<int4<per_token<64>>, int4<per_token<64>>, exact_accuracy>("int4_exact");
  add<int3<per_token<64>>, int3<per_token<64>>, integer_accuracy>("int3");
  add<int2<per_token<64>>, int2<per_token<64>>, integer_accuracy>("int2");
  add<int4<per_channel<32>>, int4<per_token<64>>, integer_accuracy>("kivi4");
  add<pith::pipe<hadamard<128>, int4<per_token<64>>>, pith::pipe<hadamard<128>, int4<per_token<64>>>, integer_accuracy>("rotated4");
  return bench::run(argc, argv, "Decode attention, 32 query heads, 8 KV heads, head_dim 128, pages of 64 tokens, 1 thread");
}
