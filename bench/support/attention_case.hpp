// SPDX-License-Identifier: Apache-2.0
// One row of an attention benchmark: paged_attention over layers of pages, the newest tokens as queries, f32 in and out.
//
// The error is the relative difference of the output from attention in double precision over the numbers before they were packed, with the
// same options: 1024 tokens of one KV head, 4 query heads, an outlier channel of magnitude 8 in the keys.
#pragma once

#include <cmath>

#include "pages.hpp"
#include "read_row.hpp"

namespace bench {

enum class slot_bias { none, zero, sparse };  // sparse: 1 of 64 slots is not zero

struct attention_case {
  std::string name, baseline;
  page_order pages{};
  int queries = 1;
  slot_bias bias = slot_bias::none;
  bool f32_queries = false;  // else their numbers are bf16, as a model in bf16 makes them
  float soft_cap = 0;
  bool lse = false;
  bool scores = false;  // added up by slot, for each layer; scratch is shared
  int threads = 1;
  std::string floor = "read/memory";  // the row whose bytes per second are the floor
  double peak = 0;                    // operations per second that are the floor instead
};

inline std::vector<float> query_numbers(attention_case const& as, std::int64_t count, unsigned seed) {
  auto made = numbers(count, seed);
  if (!as.f32_queries)
    for (float& x : made) x = pith::to_float(pith::from_float<pith::bf16>(x));
  return made;
}

inline std::vector<float> biases(slot_bias kind, std::int64_t slots) {
  std::vector<float> made(kind == slot_bias::none ? 0 : static_cast<std::size_t>(slots));
  if (kind == slot_bias::sparse)
    for (std::size_t i = 5; i < made.size(); i += 64) made[i] = 0.7f;  // about ln 2: the slot stands for two tokens
  return made;
}

// Attention of row m = (query token, head) in double precision, beside what was computed: adds to the squares of difference and size.
inline void compare(attention_case const& as, float const* q, std::vector<float> const& k, std::vector<float> const& v,
                    std::vector<float> const& bias, std::size_t seen, float const* out, double& off, double& size) {
  std::vector<double> p(seen), exact(head_dim);
  double most = -1e300, sum = 0;
  for (std::size_t t = 0; t < seen; ++t) {
    for (std::size_t c = 0; c < head_dim; ++c)
      p[t] += static_cast<double>(q[c]) * k[t * head_dim + c] / std::sqrt(static_cast<double>(head_dim));
    if (as.soft_cap > 0) p[t] = as.soft_cap * std::tanh(p[t] / as.soft_cap);
    if (!bias.empty()) p[t] += bias[t];
    most = std::max(most, p[t]);
  }
  for (double& x : p) sum += x = std::exp(x - most);
  for (std::size_t t = 0; t < seen; ++t)
    for (std::size_t c = 0; c < head_dim; ++c) exact[c] += p[t] / sum * v[t * head_dim + c];
  for (std::size_t c = 0; c < head_dim; ++c) {
    off += (exact[c] - out[c]) * (exact[c] - out[c]);
    size += exact[c] * exact[c];
  }
}

template <class Page, class Accuracy>
double output_error(attention_case const& as) {
  constexpr int tokens = 1024;
  int const rows = std::min(as.queries, 16);
  auto const k = numbers(tokens * head_dim, 5, true), v = numbers(tokens * head_dim, 6), q = query_numbers(as, rows * group * head_dim, 7);
  auto const bias = biases(as.bias, tokens);
  std::byte* const memory = huge(tokens / Page::tokens * Page::bytes);
  encode_tokens<Page>(k, v, tokens, memory);
  std::vector<std::uint32_t> order(tokens / Page::tokens);
  std::iota(order.begin(), order.end(), 0u);
  std::vector<std::int64_t> const indptr{0, tokens / Page::tokens}, queries{0, rows};
  std::vector<std::int32_t> const last{Page::tokens};
  std::vector<float> out(q.size());
  pith::paged_view<Page> view{.base = memory,
                              .block_stride = Page::bytes,
                              .head_stride = Page::bytes,
                              .blocks = tokens / Page::tokens,
                              .kv_heads = 1,
                              .indptr = indptr,
                              .indices = order,
                              .last_page_len = last};
  if (!bias.empty()) view.bias = {bias.data(), {1, tokens}};
  pool run(1);
  auto const done = pith::paged_attention<Accuracy, Page, float, float>(
      pith::cpu{}, view, queries, pith::tensor_view<float const, 3>(q.data(), {rows, group, head_dim}),
      pith::tensor_view<float, 3>(out.data(), {rows, group, head_dim}), {.soft_cap = as.soft_cap}, run);
  double off = 0, size = 0;
  for (int row = 0; row < rows * group; ++row)
    compare(as, &q[static_cast<std::size_t>(row) * head_dim], k, v, bias, static_cast<std::size_t>(tokens - rows + row / group + 1),
            &out[static_cast<std::size_t>(row) * head_dim], off, size);
  munmap(memory, tokens / Page::tokens * Page::bytes);
  return done ? std::sqrt(off / size) : -1;
}

template <class Page, class Accuracy>
void measure(benchmark::State& state, attention_case const& as) {
  pages_of_layers<Page> const all(as.pages);
  if (all.memory == nullptr) return state.SkipWithError("the arena is too small");
  std::int64_t const tokens = as.pages.tokens, slots = kv_heads * tokens;
  auto const q = query_numbers(as, as.queries * query_heads * head_dim, 9);
  auto const bias = biases(as.bias, all.layers * slots);
  std::vector<float> out(q.size()), lse(static_cast<std::size_t>(as.queries * query_heads));
  std::vector<std::int64_t> const queries{0, as.queries};
  pith::attention_options options{.soft_cap = as.soft_cap};
  if (as.lse) options.lse = {lse.data(), {as.queries, query_heads}};
  std::int64_t const rows = std::min(pith::slot_scores::most_rows, static_cast<std::int64_t>(as.queries) * group);
  std::vector<float> scores(static_cast<std::size_t>(as.scores ? all.layers * slots : 0)),
      logits(static_cast<std::size_t>(as.scores ? rows * slots : 0));
  pool run(as.threads);
  std::int64_t i = 0;
  for (auto _ : state) {
    auto view = all.layer(i);
    if (as.scores)
      options.scores = {.sum = {scores.data() + i * slots, {kv_heads, tokens}}, .logits = {logits.data(), {kv_heads, rows, tokens}}};
    if (!bias.empty()) view.bias = {bias.data() + i * slots, {kv_heads, tokens}};
    auto const done = pith::paged_attention<Accuracy, Page, float, float>(
        pith::cpu{}, view, queries, pith::tensor_view<float const, 3>(q.data(), {as.queries, query_heads, head_dim}),
        pith::tensor_view<float, 3>(out.data(), {as.queries, query_heads, head_dim}), options, run);
    if (!done) state.SkipWithError("attention failed");
    benchmark::ClobberMemory();
    i = (i + 1) % all.layers;
  }
  double const bytes = static_cast<double>(all.layer_bytes + static_cast<std::int64_t>(sizeof(float)) * (bias.empty() ? 0 : slots));
  double const seen =
      static_cast<double>(as.queries) * (static_cast<double>(tokens) - 0.5 * (as.queries - 1));  // (query, key) pairs of a head
  double const flops = 4.0 * head_dim * query_heads * seen;
  state.counters["packed_bytes"] = bytes;
  state.counters["values"] = 2.0 * head_dim * static_cast<double>(slots);
  if (as.queries > 1) state.counters["flops"] = flops;
  if (as.peak > 0) state.counters["floor_seconds"] = flops / as.peak;
  state.counters["threads"] = as.threads;
}

template <class Page, class Accuracy>
void add(attention_case const& as) {
  auto* const made = benchmark::RegisterBenchmark(as.name.c_str(), [as, error = -1.0](benchmark::State& state) mutable {
    if (error < 0) error = output_error<Page, Accuracy>(as);
    measure<Page, Accuracy>(state, as);
    state.counters["error"] = error;
    state.SetLabel(as.baseline);
  });
  made->MinTime(0.1)->Unit(benchmark::kMicrosecond);
  if (!processor_time) made->UseRealTime();
  floor_of[as.name] = as.floor;
}

// add.operator()<Codec>(name) for the formats that stand for the others: raw, and the two widths of integers that engines use most.
template <class Add>
void for_each_format(Add add) {
  using namespace pith;
  add.template operator()<raw<bf16>>("bf16");
  add.template operator()<int8<per_token<128>>>("int8");
  add.template operator()<int4<per_token<64>>>("int4");
}

// What an attention program does before its cases.
inline void begin_attention(bool time_of_the_processor = true) {
  pin();
  processor_time = time_of_the_processor;
  floor_rule = "packed bytes at the bandwidth of the row read/memory";
  if (std::byte* const memory = arena(arena_bytes, true); memory != nullptr) std::memset(memory, 0, arena_bytes);
  references = std::to_string(megabytes_on_huge_pages()) + " of " + std::to_string(arena_bytes >> 20) + " MB of pages lie on huge pages\n";
  add_read_row("read/memory", read_from_memory);
}

}  // namespace bench
