// SPDX-License-Identifier: Apache-2.0
// What a policy beside a cache costs a decoding step: 2 layers, 32 query heads, 8 KV heads, head_dim 128, full of `capacity` tokens a head.
//
//   plain       append and attention, then the token is cut off again: the same number of tokens each time, nothing is counted or dropped
//   streaming   4 first and the newest ones stay; positions alone decide
//   h2o, tova   attention is counted, one token a head leaves each step
//
// Ratios are to the plain cache of the same codec. In processor time of one thread.
#include <random>

#include "pith/cache/keep.hpp"
#include "pith/codec/integer.hpp"
#include "pith/cpu/attention.hpp"
#include "pith/cpu/statistics_engine.hpp"
#include "pith/policy/recipes.hpp"
#include "support/machine.hpp"
#include "support/report.hpp"

namespace {

using namespace pith;
constexpr int layers = 2, kv_heads = 8, query_heads = 32, width = 128;

template <class Codec, class... Policy>
struct kept : kv_cache<head_dim<width>, keys<Codec>, values<Codec>, pith::raw<first<4>, last<32>>, keep<Policy...>> {};
template <class Codec>
struct kept<Codec> : kv_cache<head_dim<width>, keys<Codec>, values<Codec>, pith::raw<first<4>, last<32>>, side<liveness, births>> {};

struct numbers {
  std::vector<bf16> k, v;
  std::vector<float> q, out;
  static constexpr std::int64_t different = 64;
  numbers() : out(query_heads * width) {
    std::mt19937 random(3);
    std::normal_distribution<float> normal;
    for (std::int64_t i = 0; i < different * kv_heads * width; ++i) k.push_back(from_float<bf16>(normal(random))), v.push_back(k.back());
    for (std::int64_t i = 0; i < different * query_heads * width; ++i) q.push_back(normal(random));
  }
  tensor_view<bf16 const, 3> rows(std::vector<bf16> const& of, std::int64_t step) const {
    return {of.data() + step % different * kv_heads * width, {1, kv_heads, width}};
  }
  tensor_view<float const, 3> queries(std::int64_t step) const {
    return {q.data() + step % different * query_heads * width, {1, query_heads, width}};
  }
};

template <class Recipe>
void measure(benchmark::State& state, std::int64_t capacity, std::string const& baseline) {
  constexpr bool keeps = Recipe::keeps;
  std::int64_t const room = keeps ? capacity + (1 << 15) : capacity + 64;  // slots are never used twice within a sequence
  auto made = make<Recipe>({.layers = layers, .kv_heads = kv_heads, .query_heads = query_heads, .bytes = 512 << 20, .max_tokens = room});
  if (!made) return state.SkipWithError("no memory");
  auto cache = std::move(made).value();
  numbers all;
  tensor_view<float, 3> const out(all.out.data(), {1, query_heads, width});
  if constexpr (keeps)
    if constexpr (requires { cache.policy().template at<stage::total>().tokens; })
      cache.policy().template at<stage::total>().tokens = capacity;
  sequence of{};
  std::int64_t step = 0;
  status ok;
  auto const advance = [&] {
    for (int l = 0; ok && l < layers; ++l) {
      ok = cache.append(of, l, all.rows(all.k, step), all.rows(all.v, step));
      if (ok) ok = cache.attend(of, l, all.queries(step + l), out);
    }
    ++step;
  };
  auto const begin = [&] {
    if (step > 0) ok = cache.close(of);
    auto const opened = cache.open();
    if (!opened) return void(ok = opened.error());
    of = opened.value();
    for (step = 0; ok && step < capacity;) advance();
  };
  begin();
  for (auto _ : state) {
    if (step + 2 > room) {
      state.PauseTiming();
      begin();
      state.ResumeTiming();
    }
    advance();
    if constexpr (!keeps) ok = cache.truncate(of, capacity).error(), step = capacity;
    if (!ok) return state.SkipWithError(message(ok.code));
  }
  state.counters["packed_bytes"] =
      static_cast<double>(layers * kv_heads * Recipe::page::bytes) / Recipe::page::tokens * static_cast<double>(capacity);
  state.SetLabel(baseline);
}

template <class Codec, class... Policy>
void add(std::string const& name, std::int64_t capacity, std::string const& baseline) {
  benchmark::RegisterBenchmark(name.c_str(), [=](benchmark::State& state) { measure<kept<Codec, Policy...>>(state, capacity, baseline); })
      ->MinTime(0.2)
      ->Unit(benchmark::kMicrosecond);
}

template <class Codec>
void add_all(std::string const& codec) {
  for (std::int64_t const capacity : {512, 2048}) {
    std::string const at = "keep/" + codec + "/", of = "_" + std::to_string(capacity), plain = at + "plain" + of;
    add<Codec>(plain, capacity, plain);
    add<Codec, every_step, protect<sinks<4>>, pith::capacity<1024>, newest>(at + "streaming" + of, capacity, plain);
    add<Codec, recipes::h2o<1024, 64>>(at + "h2o" + of, capacity, plain);
    add<Codec, recipes::tova<1024>>(at + "tova" + of, capacity, plain);
  }
}

}  // namespace

int main(int argc, char** argv) {
  bench::processor_time = true;
  bench::pin();
  bench::read_bandwidth = bench::measure_read_bandwidth(std::int64_t{256} << 20, bench::thread_now);
  add_all<raw<bf16>>("bf16");
  add_all<int8<per_token<64>>>("int8");
  add_all<int4<per_token<64>>>("int4");
  return bench::run(argc, argv, "Policies beside a cache: a decoding step of 2 layers, 32 query heads, 8 KV heads, head_dim 128, 1 thread");
}
