// SPDX-License-Identifier: Apache-2.0
// Random operations on a cache against a model that keeps, for every sequence, the list of its tokens and who is alive. Recipes are
// lossless, so that the model's numbers are the cache's, and have side<liveness, bias>.
#pragma once

#include <algorithm>
#include <array>
#include <map>

#include "cache/support.hpp"

namespace pith_test {

using pith::errc;

int64_t constexpr text_tokens = 1024;

template <class Recipe>
struct random_world {
  static int constexpr layers = 2, kv_heads = 2, query_heads = 4, channels = Recipe::key_channels, max_tokens = 700;

  struct model_token {
    int64_t text;  // row of the text
    std::array<bool, layers * kv_heads> live;
    std::array<float, layers * kv_heads> bias;
  };
  using model_sequence = std::vector<model_token>;

  tokens_of_heads k, v, q = gaussian(3, text_tokens, query_heads, channels);
  pith::cache<Recipe> cache;
  std::vector<std::pair<pith::sequence, model_sequence>> open;
  std::vector<pith::sequence> closed;
  random_bits bits;
  std::map<std::string, int64_t> count;

  random_world(std::uint64_t seed, int64_t bytes, tokens_of_heads keys, tokens_of_heads values)
      : k(std::move(keys)),
        v(std::move(values)),
        cache(pith::make<Recipe>({.layers = layers,
                                  .kv_heads = kv_heads,
                                  .query_heads = query_heads,
                                  .bytes = bytes,
                                  .max_sequences = 6,
                                  .max_tokens = max_tokens,
                                  .max_chunk = 64})
                  .value()),
        bits(seed) {}

  int64_t below(int64_t n) { return static_cast<int64_t>(bits() % static_cast<std::uint64_t>(n)); }

  std::vector<content> contents(model_sequence const& of, int layer) const {
    std::vector<content> all(kv_heads);
    for (int h = 0; h < kv_heads; ++h) {
      content& head = all[static_cast<std::size_t>(h)];
      head.dk = head.dv = channels;
      auto const at = static_cast<std::size_t>(layer * kv_heads + h);
      for (model_token const& token : of) {
        head.add_chunk(k, v, h, token.text, 1);
        head.live.back() = token.live[at];
        head.bias.back() = token.bias[at];
      }
    }
    return all;
  }
  static model_token fresh(int64_t text) {
    model_token made{.text = text, .live = {}, .bias = {}};
    made.live.fill(true);
    return made;
  }

  // The same chunk goes to every layer; where the pool ends in between, the layers that have it give it back.
  void grow(std::size_t at, bool with_attention) {
    auto& [handle, tokens] = open[at];
    int64_t const chunk = below(8) == 0 ? below(65) : 1 + below(6), from = below(text_tokens - 64),
                  before = static_cast<int64_t>(tokens.size());
    for (int layer = 0; layer < layers; ++layer) {
      pith::status done;
      if (with_attention) {
        tokens_of_heads queries = zeros(chunk, query_heads, channels);
        std::copy_n(q.row(from, 0), queries.data.size(), queries.data.data());
        outputs const got = prefill(cache, handle, layer, queries, k.part(from, chunk), v.part(from, chunk));
        done = got.status;
        if (done) {
          model_sequence with = tokens;
          for (int64_t t = 0; t < chunk; ++t) with.push_back(fresh(from + t));
          if (below(4) == 0) REQUIRE(worst_error(contents(with, layer), queries, got) <= 1);
        }
      } else {
        done = cache.append(handle, layer, k.part(from, chunk), v.part(from, chunk));
      }
      if (done) continue;
      REQUIRE(done.code == errc::capacity_exceeded);
      ++count["exhausted"];
      REQUIRE(cache.length(handle, layer) == before);
      cut(at, before);
      return;
    }
    for (int64_t t = 0; t < chunk; ++t) tokens.push_back(fresh(from + t));
    ++count[with_attention ? "prefill" : "append"];
  }

  void cut(std::size_t at, int64_t tokens) {
    auto& [handle, model] = open[at];
    auto const done = cache.truncate(handle, tokens);
    if (!done) {
      REQUIRE(done.error() == pith::status{errc::capacity_exceeded, pith::layer_state::max_holes});
      ++count["too many cuts"];
      if (static_cast<int64_t>(model.size()) == tokens) close(at);  // the layers differ: nothing else is left to do
      return;
    }
    count["cut inexactly"] += !done.value().exact;
    if (tokens < static_cast<int64_t>(model.size())) model.resize(static_cast<std::size_t>(tokens));
    ++count["truncate"];
  }

  void close(std::size_t at) {
    REQUIRE(cache.close(open[at].first));
    closed.push_back(open[at].first);
    open.erase(open.begin() + static_cast<std::ptrdiff_t>(at));
    ++count["close"];
  }

  void evict(std::size_t at) {
    auto& [handle, model] = open[at];
    if (model.empty()) return;
    auto const layer = static_cast<int>(below(layers)), head = static_cast<int>(below(kv_heads));
    int64_t const size = static_cast<int64_t>(model.size()), from = below(size),
                  to = std::min(size, from + (below(3) == 0 ? 140 : 1 + below(4)));
    std::vector<int64_t> tokens;
    for (int64_t t = from; t < to; ++t) tokens.push_back(t);
    if (below(2) == 0) std::reverse(tokens.begin(), tokens.end());
    REQUIRE(cache.evict(handle, layer, head, tokens));
    for (int64_t const t : tokens) model[static_cast<std::size_t>(t)].live[static_cast<std::size_t>(layer * kv_heads + head)] = false;
    ++count["evict"];
  }

  void set_bias(std::size_t at) {
    auto& [handle, model] = open[at];
    if (model.empty()) return;
    auto const layer = static_cast<int>(below(layers)), head = static_cast<int>(below(kv_heads));
    int64_t const token = below(static_cast<int64_t>(model.size()));
    float const value = below(5) == 0 ? -std::numeric_limits<float>::infinity() : normal(bits) * 2;
    REQUIRE(cache.set_bias(handle, layer, head, token, value));
    model[static_cast<std::size_t>(token)].bias[static_cast<std::size_t>(layer * kv_heads + head)] = value;
    ++count["bias"];
  }

  void fork(std::size_t at) {
    auto const made = cache.fork(open[at].first);
    if (!made) {
      REQUIRE(made.error() == pith::status{errc::capacity_exceeded, 6});
      REQUIRE(open.size() == 6);
      return;
    }
    open.emplace_back(made.value(), open[at].second);
    ++count["fork"];
  }

  void step() {
    int64_t const what = below(100);
    if (open.empty() || what < 4) {
      auto const made = cache.open();
      REQUIRE(static_cast<bool>(made) == (open.size() < 6));
      if (made) open.emplace_back(made.value(), model_sequence{});
      return;
    }
    auto const at = static_cast<std::size_t>(below(static_cast<int64_t>(open.size())));
    auto const size = static_cast<int64_t>(open[at].second.size());
    if (what < 50)
      grow(at, false);
    else if (what < 60)
      grow(at, true);
    else if (what < 67)
      fork(at);
    else if (what < 79)
      cut(at, below(3) == 0 ? below(size + 2) : std::max<int64_t>(0, size - below(12)));
    else if (what < 88)
      evict(at);
    else if (what < 95)
      set_bias(at);
    else
      close(at);
  }

  void check() {
    for (auto const& [handle, model] : open)
      for (int layer = 0; layer < layers; ++layer) REQUIRE(cache.length(handle, layer) == static_cast<int64_t>(model.size()));
    if (!closed.empty())
      REQUIRE(cache.close(closed[static_cast<std::size_t>(below(static_cast<int64_t>(closed.size())))]).code == errc::stale_handle);
    if (open.empty()) return;
    auto const& [handle, model] = open[static_cast<std::size_t>(below(static_cast<int64_t>(open.size())))];
    auto const layer = static_cast<int>(below(layers));
    tokens_of_heads queries = zeros(std::min<int64_t>(static_cast<int64_t>(model.size()), 1 + below(3)), query_heads, channels);
    std::copy_n(q.data.begin() + below(1000) * 4, queries.data.size(), queries.data.begin());
    pith::attention_options const options{.window = below(3) == 0 ? 1 + below(100) : 0};
    outputs const got = attend(cache, handle, layer, queries, options);
    REQUIRE(got.status);
    double const error = worst_error(contents(model, layer), queries, got, options);
    worst = std::max(worst, error);
    if (error > 1)
      FAIL(model.size() << " tokens, layer " << layer << ", window " << options.window << ": error " << error << " of what is allowed");
  }
  double worst = 0;
};

// Many of them in caches of little memory; says how often what was done. All memory is free in the end.
template <class Recipe>
void run_random_operations(std::vector<int64_t> const& arenas, int64_t operations, tokens_of_heads const& k, tokens_of_heads const& v) {
  std::map<std::string, int64_t> count;
  for (std::size_t i = 0; i < arenas.size(); ++i) {
    random_world<Recipe> all(i + 1, arenas[i], k, v);
    for (int64_t operation = 0; operation < operations; ++operation) {
      INFO("seed " << i + 1 << ", operation " << operation);
      all.step();
      if (operation % 8 == 0) all.check();
    }
    INFO("seed " << i + 1);
    while (!all.open.empty()) all.close(static_cast<std::size_t>(all.below(static_cast<int64_t>(all.open.size()))));
    CHECK(all.cache.memory().page_pool->used_blocks() == 0);
    CHECK(all.cache.memory().page_pool->used_bytes() == 0);
    CHECK(all.cache.memory().raw_pool->used_blocks() == 0);
    CHECK(all.cache.memory().runs->used_runs() == 0);
    CHECK(all.cache.resident_bytes() == 0);
    for (auto const& [what, times] : all.count) count[what] += times;
  }
  for (char const* const what :
       {"append", "prefill", "fork", "truncate", "cut inexactly", "evict", "bias", "close", "exhausted"}) {  // everything did happen
    INFO(what << " " << count[what]);
    CHECK(count[what] > operations / 400);
  }
}

}  // namespace pith_test
