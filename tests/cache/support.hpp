// SPDX-License-Identifier: Apache-2.0
// What the cache tests share: made-up model data, a cache's stored content read back slot by slot, and attention in double over it.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "pith/cache/kv_cache.hpp"
#include "pith/codec/hadamard.hpp"
#include "pith/codec/integer.hpp"
#include "pith/cpu/attention.hpp"
#include "support/catch.hpp"
#include "support/digest.hpp"

namespace pith_test {

using std::int64_t;

// [token][head][channel], f32.
struct tokens_of_heads {
  int64_t tokens = 0;
  int heads = 0, channels = 0;
  std::vector<float> data;

  float* row(int64_t token, int head) { return data.data() + (token * heads + head) * channels; }
  float const* row(int64_t token, int head) const { return data.data() + (token * heads + head) * channels; }
  pith::tensor_view<float const, 3> part(int64_t from, int64_t count) const {
    return {data.data() + from * heads * channels, {count, heads, channels}};
  }
  pith::tensor_view<float const, 3> all() const { return part(0, tokens); }
};

inline tokens_of_heads zeros(int64_t tokens, int heads, int channels = 64) {
  return {tokens, heads, channels, std::vector<float>(static_cast<std::size_t>(tokens * heads * channels))};
}

// The sum of four uniform numbers: near enough to a normal distribution of variance 1.
inline float normal(random_bits& bits) { return (bits.uniform() + bits.uniform() + bits.uniform() + bits.uniform()) * 0.8660254f; }

inline tokens_of_heads gaussian(std::uint64_t seed, int64_t tokens, int heads, int channels = 64) {
  tokens_of_heads made = zeros(tokens, heads, channels);
  random_bits bits(seed);
  for (float& x : made.data) x = normal(bits);
  return made;
}

// Keys as models make them: two channels with a large mean, and a first token that every query looks at (queries of `model_queries`).
inline tokens_of_heads model_keys(std::uint64_t seed, int64_t tokens, int heads, int channels = 64) {
  tokens_of_heads made = gaussian(seed, tokens, heads, channels);
  for (int64_t t = 0; t < tokens; ++t)
    for (int h = 0; h < heads; ++h) {
      float* const k = made.row(t, h);
      k[5] += 12.0f;
      k[channels - 3] = 4.0f * k[channels - 3] - 9.0f;
      if (t == 0) k[9] = 30.0f;
    }
  return made;
}
inline tokens_of_heads model_queries(std::uint64_t seed, int64_t tokens, int heads, int channels = 64) {
  tokens_of_heads made = gaussian(seed, tokens, heads, channels);
  for (int64_t t = 0; t < tokens; ++t)
    for (int h = 0; h < heads; ++h) made.row(t, h)[9] = 1.5f;
  return made;
}

inline float rounded_to_bf16(float x) { return pith::to_float(pith::from_float<pith::bf16>(x)); }

// One KV head as the cache holds it: row i is token i.
struct content {
  int dk = 0, dv = 0;
  int64_t tokens = 0;
  std::vector<float> keys, values, bias;
  std::vector<bool> live, packed_key, packed_value;
  std::vector<int64_t> position;

  void add(float const* key, float const* value, bool is_live = true, float with_bias = 0, bool key_is_packed = false,
           bool value_is_packed = false, int64_t at = -1) {
    keys.insert(keys.end(), key, key + dk);
    values.insert(values.end(), value, value + dv);
    bias.push_back(with_bias);
    live.push_back(is_live);
    packed_key.push_back(key_is_packed);
    packed_value.push_back(value_is_packed);
    position.push_back(at >= 0 ? at : position.empty() ? 0 : position.back() + 1);
    ++tokens;
  }
  void add_chunk(tokens_of_heads const& k, tokens_of_heads const& v, int head, int64_t from, int64_t count,
                 std::span<int64_t const> at = {}) {
    std::vector<float> key(static_cast<std::size_t>(dk)), value(static_cast<std::size_t>(dv));
    for (int64_t t = from; t < from + count; ++t) {
      for (int c = 0; c < dk; ++c) key[static_cast<std::size_t>(c)] = rounded_to_bf16(k.row(t, head)[c]);
      for (int c = 0; c < dv; ++c) value[static_cast<std::size_t>(c)] = rounded_to_bf16(v.row(t, head)[c]);
      add(key.data(), value.data(), true, 0, false, false, at.empty() ? -1 : at[static_cast<std::size_t>(t - from)]);
    }
  }
};

template <class Recipe>
pith::block_id page_of(pith::cache<Recipe> const& cache, pith::sequence of, int layer, int head, int64_t staged_slot) {
  auto const& memory = cache.memory();
  return memory.runs->block(memory.table_of(of.index, layer, head), staged_slot / Recipe::page::tokens);
}

template <class Recipe>
content stored(pith::cache<Recipe> const& cache, pith::sequence of, int layer, int head) {
  using segments = pith::raw_segments<Recipe>;
  using page = typename Recipe::page;
  using key_tile = typename page::key_tile;
  using value_tile = typename page::value_tile;
  auto const& memory = cache.memory();
  pith::layer_state const& state = memory.layer(of.index, layer);
  std::byte* const raw = memory.raw_block(of.index, layer, head);
  content all;
  all.dk = Recipe::key_channels;
  all.dv = Recipe::value_channels;
  std::vector<float> key_rows(key_tile::tokens * key_tile::channels), value_rows(value_tile::tokens * value_tile::channels);
  std::vector<float> key(static_cast<std::size_t>(all.dk)), value(static_cast<std::size_t>(all.dv));
  int64_t key_tile_decoded = -1, value_tile_decoded = -1;
  for (int64_t token = 0; token < state.tokens; ++token) {
    int64_t const slot = state.slot_of(token), staged = slot - Recipe::first_tokens;
    bool const key_is_packed = staged >= 0 && staged < state.sealed_keys, value_is_packed = staged >= 0 && staged < state.sealed_values;
    bool live = true;
    if constexpr (Recipe::has_liveness) live = (memory.live_of(of.index, layer, head)[slot / 64] >> (slot % 64) & 1u) != 0;
    bool const given_back = (key_is_packed || value_is_packed) && page_of(cache, of, layer, head, staged) == pith::no_block;
    if (given_back) REQUIRE_FALSE(live);
    std::byte const* const bytes =
        (key_is_packed || value_is_packed) && !given_back ? memory.page_pool->address(page_of(cache, of, layer, head, staged)) : nullptr;
    if (key_is_packed && bytes != nullptr && staged / key_tile::tokens != key_tile_decoded) {
      key_tile_decoded = staged / key_tile::tokens;
      pith::decode_tile<key_tile>(bytes + page::key_tile_at(static_cast<int>(staged % page::tokens)), key_rows.data(), memory.states().keys.of(layer * memory.shape.kv_heads + head));
    }
    if (value_is_packed && bytes != nullptr && staged / value_tile::tokens != value_tile_decoded) {
      value_tile_decoded = staged / value_tile::tokens;
      pith::decode_tile<value_tile>(bytes + page::value_tile_at(static_cast<int>(staged % page::tokens)), value_rows.data(), memory.states().values.of(layer * memory.shape.kv_heads + head));
    }
    for (int c = 0; c < all.dk; ++c)
      key[static_cast<std::size_t>(c)] = staged < 0 ? segments::first_key_tile::get(raw, static_cast<int>(slot), c)
                                         : !key_is_packed
                                             ? segments::key_tile::get(segments::key_tile_of(raw, staged), static_cast<int>(staged % 32), c)
                                         : given_back ? 0.0f
                                                      : key_rows[static_cast<std::size_t>(staged % key_tile::tokens * all.dk + c)];
    for (int c = 0; c < all.dv; ++c)
      value[static_cast<std::size_t>(c)] =
          staged < 0         ? segments::first_value_tile::get(raw + segments::first_values_at, static_cast<int>(slot), c)
          : !value_is_packed ? segments::value_tile::get(segments::value_tile_of(raw, staged), static_cast<int>(staged % 32), c)
          : given_back       ? 0.0f
                             : value_rows[static_cast<std::size_t>(staged % value_tile::tokens * all.dv + c)];
    float bias = 0;
    if constexpr (Recipe::has_bias) bias = memory.biases_of(of.index, layer, head)[slot];
    int64_t position = -1;
    if constexpr (Recipe::has_positions) position = memory.positions_of(of.index, layer)[slot];
    all.add(key.data(), value.data(), live, bias, key_is_packed, value_is_packed, position);
  }
  return all;
}

// Everything that a sequence is: lengths, the bytes of its sealed tiles, the raw rows in use, the side arrays in use.
struct sequence_image {
  std::vector<int64_t> numbers;
  std::string sealed;
  std::vector<float> raw;
  friend bool operator==(sequence_image const&, sequence_image const&) = default;
};

// What a tile holds, wherever its tail lies: all bytes but the distance, and the tail.
template <class Tile>
void add_tile(std::byte const* tile, std::string& to) {
  auto const add = [&](std::byte const* from, int64_t size) {
    to.append(reinterpret_cast<char const*>(from), static_cast<std::size_t>(size));
  };
  if constexpr (pith::variable_tile<Tile>) {
    add(tile + 8, Tile::bytes - 8);
    add(pith::tail_place::tail(tile), pith::tail_place::of(tile).bytes);
  } else {
    add(tile, Tile::bytes);
  }
}

// The bytes of the sealed tiles of the first `keys` and `values` slots after the raw first ones; all of them by default.
template <class Recipe>
std::string sealed_bytes(pith::cache<Recipe> const& cache, pith::sequence of, int64_t keys = 1ll << 60, int64_t values = 1ll << 60) {
  using page = typename Recipe::page;
  std::string bytes;
  for (int layer = 0; layer < cache.shape().layers; ++layer)
    for (int head = 0; head < cache.shape().kv_heads; ++head) {
      pith::layer_state const& state = cache.memory().layer(of.index, layer);
      auto const add = [&]<class Tile>(int64_t slot, int64_t at) {
        pith::block_id const block = page_of(cache, of, layer, head, slot);
        if (block == pith::no_block)
          bytes += "given back";
        else
          add_tile<Tile>(cache.memory().page_pool->address(block) + at, bytes);
      };
      for (int64_t slot = 0; slot < std::min(keys, state.sealed_keys); slot += page::key_tile::tokens)
        add.template operator()<typename page::key_tile>(slot, page::key_tile_at(static_cast<int>(slot % page::tokens)));
      for (int64_t slot = 0; slot < std::min(values, state.sealed_values); slot += page::value_tile::tokens)
        add.template operator()<typename page::value_tile>(slot, page::value_tile_at(static_cast<int>(slot % page::tokens)));
    }
  return bytes;
}

template <class Recipe>
sequence_image image(pith::cache<Recipe> const& cache, pith::sequence of) {
  sequence_image made;
  made.sealed = sealed_bytes(cache, of);
  for (int layer = 0; layer < cache.shape().layers; ++layer) {
    pith::layer_state const& state = cache.memory().layer(of.index, layer);
    for (int64_t const n : {state.tokens, state.slots, state.sealed_keys, state.sealed_values, static_cast<int64_t>(state.hole_count)})
      made.numbers.push_back(n);
    for (int i = 0; i < state.hole_count; ++i) made.numbers.insert(made.numbers.end(), {state.holes[i].begin, state.holes[i].end});
    for (int head = 0; head < cache.shape().kv_heads; ++head) {
      content const all = stored(cache, of, layer, head);
      for (int64_t t = 0; t < all.tokens; ++t) {
        if (!all.packed_key[static_cast<std::size_t>(t)])
          made.raw.insert(made.raw.end(), all.keys.begin() + t * all.dk, all.keys.begin() + (t + 1) * all.dk);
        if (!all.packed_value[static_cast<std::size_t>(t)])
          made.raw.insert(made.raw.end(), all.values.begin() + t * all.dv, all.values.begin() + (t + 1) * all.dv);
        made.raw.push_back(all.bias[static_cast<std::size_t>(t)]);
        made.raw.push_back(all.live[static_cast<std::size_t>(t)] ? 1.0f : 0.0f);
      }
    }
  }
  return made;
}

// What attention says, and what it may say: the answer in double, and how far f32 arithmetic may be from it.
//
//   score error e[t] <= 24 eps sum_c |q[c]| (|k[t,c]| + r) + |q| |k[t]| 24 eps + 8 eps (|s| + |bias|) + cap 2^-20
//     (r: what quantized rows add, the largest number of their row and channel: codes times scale and offset are summed apart)
//   output error    <= sum_t w[t] e[t] |v[t,c]| + (sum_t w[t] e[t]) sum_t w[t] |v[t,c]| + 2^-17 sum_t w[t] (|v[t,c]| + 2 max_c |v[t,c]|)
struct answer {
  std::vector<double> out, out_tolerance;
  double lse = -std::numeric_limits<double>::infinity(), lse_tolerance = 0;
};

struct seen {
  double scale = 0.125, cap = 0;
  bool has_sink = false;
  double sink = 0;
};

inline answer exact_attention(content const& all, float const* query, int64_t from, int64_t to, seen const& how) {
  double constexpr eps = 0x1p-24;
  std::vector<double> score, error;
  std::vector<int64_t> token;
  auto const size = [](auto x) { return std::fabs(static_cast<double>(x)); };
  std::vector<double> widest(static_cast<std::size_t>(all.dk));
  for (int64_t t = 0; t < all.tokens; ++t)
    for (int c = 0; c < all.dk && all.packed_key[static_cast<std::size_t>(t)]; ++c)
      widest[static_cast<std::size_t>(c)] =
          std::max(widest[static_cast<std::size_t>(c)], size(all.keys[static_cast<std::size_t>(t * all.dk + c)]));
  double most = -std::numeric_limits<double>::infinity();
  for (int64_t t = std::max<int64_t>(0, from); t < to; ++t) {
    auto const at = static_cast<std::size_t>(t);
    if (!all.live[at] || all.bias[at] == -std::numeric_limits<float>::infinity()) continue;
    float const* const key = all.keys.data() + t * all.dk;
    double row_widest = 0, s = 0, e = 0, qq = 0, kk = 0;
    for (int c = 0; c < all.dk; ++c) row_widest = std::max(row_widest, size(key[c]));
    for (int c = 0; c < all.dk; ++c) {
      double const q = static_cast<double>(query[c]) * how.scale;
      s += q * static_cast<double>(key[c]);
      qq += q * q;
      kk += static_cast<double>(key[c]) * static_cast<double>(key[c]);
      e += 24 * eps * size(q) * (size(key[c]) + (all.packed_key[at] ? row_widest + widest[static_cast<std::size_t>(c)] : 0.0));
    }
    e += 24 * eps * std::sqrt(qq * kk) + how.cap * 0x1p-20;
    if (how.cap > 0) s = how.cap * std::tanh(s / how.cap);
    s += static_cast<double>(all.bias[at]);
    e += 8 * eps * (size(s) + size(all.bias[at]));
    score.push_back(s);
    error.push_back(e);
    token.push_back(t);
    most = std::max(most, s);
  }
  answer made;
  made.out.assign(static_cast<std::size_t>(all.dv), 0.0);
  made.out_tolerance.assign(static_cast<std::size_t>(all.dv), 0.0);
  if (how.has_sink) most = std::max(most, how.sink);
  if (token.empty() && !how.has_sink) return made;
  double total = how.has_sink ? std::exp(how.sink - most) : 0.0, weighted_error = 0;
  for (double const s : score) total += std::exp(s - most);
  std::vector<double> absolute(static_cast<std::size_t>(all.dv));
  for (std::size_t i = 0; i < token.size(); ++i) {
    double const w = std::exp(score[i] - most) / total;
    weighted_error += w * error[i];
    float const* const value = all.values.data() + token[i] * all.dv;
    double row_widest = 0;
    for (int c = 0; c < all.dv; ++c) row_widest = std::max(row_widest, size(value[c]));
    for (int c = 0; c < all.dv; ++c) {
      auto const at = static_cast<std::size_t>(c);
      made.out[at] += w * static_cast<double>(value[c]);
      absolute[at] += w * size(value[c]);
      made.out_tolerance[at] += w * error[i] * size(value[c]) + 0x1p-17 * w * (size(value[c]) + 2 * row_widest);
    }
  }
  for (std::size_t c = 0; c < absolute.size(); ++c) made.out_tolerance[c] += weighted_error * absolute[c] + 1e-30;
  made.lse = most + std::log(total);
  made.lse_tolerance = weighted_error + 0x1p-20 * (1 + std::fabs(made.lse));
  return made;
}

struct outputs {
  tokens_of_heads out;
  std::vector<float> lse;
  pith::status status;
};

inline outputs room_for(tokens_of_heads const& q, int dv = 64) {
  return {{q.tokens, q.heads, dv, std::vector<float>(static_cast<std::size_t>(q.tokens * q.heads * dv), 1e30f)},
          std::vector<float>(static_cast<std::size_t>(q.tokens * q.heads), 1e30f),
          {}};
}
inline pith::tensor_view<float, 3> writable(tokens_of_heads& of) { return {of.data.data(), {of.tokens, of.heads, of.channels}}; }

template <class Recipe, class Executor = pith::serial>
outputs attend(pith::cache<Recipe> const& cache, pith::sequence of, int layer, tokens_of_heads const& q,
               pith::attention_options options = {}, Executor&& run = {}) {
  outputs made = room_for(q, Recipe::value_channels);
  options.lse = {made.lse.data(), {q.tokens, q.heads}};
  made.status = cache.attend(of, layer, q.all(), writable(made.out), options, run);
  return made;
}

template <class Recipe>
outputs prefill(pith::cache<Recipe>& cache, pith::sequence of, int layer, tokens_of_heads const& q, pith::tensor_view<float const, 3> k,
                pith::tensor_view<float const, 3> v, pith::attention_options options = {}, std::span<int64_t const> at = {}) {
  outputs made = room_for(q, Recipe::value_channels);
  options.lse = {made.lse.data(), {q.tokens, q.heads}};
  made.status = cache.prefill(of, layer, q.all(), k, v, writable(made.out), options, pith::serial{}, at);
  return made;
}

// The largest error of out and lse in units of what is allowed: at most 1 if all is well. The queries are the newest tokens of `heads`.
inline double worst_error(std::vector<content> const& heads, tokens_of_heads const& q, outputs const& got,
                          pith::attention_options const& options = {}) {
  double worst = 0;
  auto const note = [&](double error, double allowed) {
    worst = error <= allowed && !std::isnan(error) ? std::max(worst, allowed > 0 ? error / allowed : 0.0) : 1e9 + error;
  };
  int const group = q.heads / static_cast<int>(heads.size());
  for (int64_t i = 0; i < q.tokens; ++i)
    for (int h = 0; h < q.heads && worst < 1e9; ++h) {
      content const& all = heads[static_cast<std::size_t>(h / group)];
      seen how{.scale = options.scale > 0 ? static_cast<double>(options.scale) : 1 / std::sqrt(static_cast<double>(all.dk)),
               .cap = static_cast<double>(options.soft_cap)};
      if (!options.sink_logits.empty()) {
        how.has_sink = true;
        how.sink = static_cast<double>(options.sink_logits[static_cast<std::size_t>(h)]);
      }
      int64_t const to = all.tokens - q.tokens + i + 1;
      int64_t from = 0;
      if (options.window > 0 && to > 0)
        while (from < to && all.position[static_cast<std::size_t>(from)] <= all.position[static_cast<std::size_t>(to - 1)] - options.window)
          ++from;
      answer const right = exact_attention(all, q.row(i, h), from, std::max<int64_t>(0, to), how);
      for (int c = 0; c < all.dv; ++c)
        note(std::fabs(static_cast<double>(got.out.row(i, h)[c]) - right.out[static_cast<std::size_t>(c)]),
             right.out_tolerance[static_cast<std::size_t>(c)]);
      double const lse = static_cast<double>(got.lse[static_cast<std::size_t>(i * q.heads + h)]);
      if (std::isinf(right.lse))
        note(lse == right.lse ? 0.0 : 1.0, 0.0);
      else
        note(std::fabs(lse - right.lse), right.lse_tolerance);
    }
  return worst;
}

template <class Recipe>
std::vector<content> stored_heads(pith::cache<Recipe> const& cache, pith::sequence of, int layer) {
  std::vector<content> all;
  for (int head = 0; head < cache.shape().kv_heads; ++head) all.push_back(stored(cache, of, layer, head));
  return all;
}

// Attends and compares with the cache's own content.
template <class Recipe>
double attention_error(pith::cache<Recipe> const& cache, pith::sequence of, int layer, tokens_of_heads const& q,
                       pith::attention_options const& options = {}) {
  outputs const got = attend(cache, of, layer, q, options);
  if (!got.status) return 2e9 + static_cast<double>(got.status.code);
  return worst_error(stored_heads(cache, of, layer), q, got, options);
}

}  // namespace pith_test
