// SPDX-License-Identifier: Apache-2.0
// What the statistics that eviction policies need cost, beside the attention that they belong to; 32 query heads, 8 KV heads, head_dim 128.
//
//   prefill_4096        attention of all 4096 tokens, causal: the baseline of the rows with a window
//   window_64_of_N      sums of the newest 64 query rows over N tokens, in a second pass over the keys
//   moments_64_of_N     sum, square sum and maximum of each query head
//   all_of_4096         sums of all 4096 rows
//   decode_N            one query token over N tokens;   decode_scores_N   the same, and its attention added up by slot
//
// GFLOP/s counts q . k of the visible pairs for statistics, twice that for attention. By that count a window of w rows is w / T of a causal
// prefill of T tokens; times (GFLOP/s of prefill) / (GFLOP/s of the window) it is the share of time.
// All in processor time of one thread.
#include "support/attention_case.hpp"

namespace {

using namespace pith;
using sums = statistics_view<group_reduction::sum, statistic::sum>;
using moments = statistics_view<group_reduction::none, statistic::sum, statistic::square_sum, statistic::maximum>;

template <class Page, class View>
void measure(benchmark::State& state, std::int64_t tokens, std::int64_t rows, std::string const& baseline) {
  bench::pages_of_layers<Page> const all({.tokens = tokens, .visited = 0});
  if (all.memory == nullptr) return state.SkipWithError("the arena is too small");
  auto const q = bench::query_numbers({}, rows * bench::query_heads * bench::head_dim, 9);
  std::vector<float> const lse(static_cast<std::size_t>(rows * bench::query_heads), 12.0f);  // about ln of 32768 and some variance
  std::vector<std::int64_t> const queries{0, rows};
  std::int64_t const heads = View::reduction == group_reduction::none ? bench::query_heads : bench::kv_heads;
  std::vector<float> numbers(static_cast<std::size_t>(View::of_slots * heads * tokens));
  tensor_view<float, 2> const first(numbers.data(), {heads, tokens});
  View out{.sum = first, .square_sum = first, .maximum = first};
  out.square_sum.data += (View::of_slots > 1) * heads * tokens, out.maximum.data += (View::of_slots > 2) * 2 * heads * tokens;
  for (auto _ : state) {
    auto const done = attention_statistics<integer_accuracy>(
        cpu{}, all.layer(0), queries, tensor_view<float const, 3>(q.data(), {rows, bench::query_heads, bench::head_dim}),
        tensor_view<float const, 2>(lse.data(), {rows, bench::query_heads}), out);
    if (!done) state.SkipWithError("statistics failed");
    benchmark::ClobberMemory();
  }
  double const seen = static_cast<double>(rows) * (static_cast<double>(tokens) - 0.5 * static_cast<double>(rows - 1));
  state.counters["packed_bytes"] = static_cast<double>(all.layer_bytes) / 2;
  state.counters["flops"] = 2.0 * bench::head_dim * bench::query_heads * seen;
  state.SetLabel(baseline);
}

template <class Page, class View>
void add_statistics(std::string const& name, std::int64_t tokens, std::int64_t rows, std::string const& baseline) {
  benchmark::RegisterBenchmark(name.c_str(), [=](benchmark::State& state) { measure<Page, View>(state, tokens, rows, baseline); })
      ->MinTime(0.1)
      ->Unit(benchmark::kMicrosecond);
  bench::floor_of[name] = "read/memory";
}

template <class Codec>
void add(std::string const& name) {
  using page = kv_page<Codec, Codec, bench::head_dim, bench::head_dim, 64>;
  std::string const at = "statistics/" + name + "/", prefill = at + "prefill_4096";
  bench::add<page, integer_accuracy>({.name = prefill, .baseline = prefill, .pages = {.tokens = 4096, .visited = 0}, .queries = 4096});
  add_statistics<page, sums>(at + "window_64_of_4096", 4096, 64, prefill);
  add_statistics<page, moments>(at + "moments_64_of_4096", 4096, 64, prefill);
  add_statistics<page, sums>(at + "all_of_4096", 4096, 4096, prefill);
  add_statistics<page, sums>(at + "window_64_of_32768", 32768, 64, "");
  for (std::int64_t const tokens : {8192, 32768}) {
    std::string const plain = at + "decode_" + std::to_string(tokens);
    bench::add<page, integer_accuracy>({.name = plain, .baseline = plain, .pages = {.tokens = tokens}});
    bench::add<page, integer_accuracy>(
        {.name = at + "decode_scores_" + std::to_string(tokens), .baseline = plain, .pages = {.tokens = tokens}, .scores = true});
  }
}

}  // namespace

int main(int argc, char** argv) {
  bench::begin_attention();
  bench::for_each_format([]<class Codec>(std::string const& name) { add<Codec>(name); });
  return bench::run(argc, argv, "Statistics of attention, 32 query heads, 8 KV heads, head_dim 128, 1 thread");
}
