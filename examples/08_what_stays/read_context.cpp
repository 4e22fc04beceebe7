// SPDX-License-Identifier: Apache-2.0
// What is done once for each text and cache: the context is read, and looked at.
#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>

#include "examples/exact_cache.hpp"
#include "pith/policy/mass.hpp"
#include "trial.hpp"

namespace example {

namespace {

using number = std::size_t;

// Statistics of one layer, [query head][slot].
struct statistics_arrays {
  std::vector<float> sum, square_sum, maximum, weighted_sum, entropy;
  head_statistics view(std::int64_t heads, std::int64_t slots) {
    auto const one = [&](std::vector<float>& of) {
      of.resize(static_cast<number>(heads * slots));
      return pith::tensor_view<float, 2>(of.data(), {heads, slots});
    };
    return {one(sum), one(square_sum), one(maximum), one(weighted_sum), one(entropy)};
  }
};

// Remembers the queries of every layer and their lse.
struct recorder {
  llama_config const& c;
  held_cache& cache;
  std::int64_t first = 0;                  // position of what is kept from
  std::vector<std::vector<float>> q, lse;  // [layer][token - first][head]...
  std::vector<float> scores, logits;       // of one row, [kv head][slot]
  std::vector<float>* replay = nullptr;

  explicit recorder(llama_config const& config, held_cache& to) : c(config), cache(to), q(static_cast<number>(c.layers)), lse(q.size()) {}

  rows_view queries(int layer) const {
    auto const& of = q[static_cast<number>(layer)];
    return rows_view(of.data(), {static_cast<std::int64_t>(of.size()) / (c.heads * c.head_dim), c.heads, c.head_dim});
  }
  pith::tensor_view<float const, 2> sums(int layer) const {
    auto const& of = lse[static_cast<number>(layer)];
    return {of.data(), {static_cast<std::int64_t>(of.size()) / c.heads, c.heads}};
  }
  void forget() {
    for (auto* all : {&q, &lse})
      for (auto& of : *all) of.clear();
  }

  pith::status operator()(int layer, rows_view queries, rows_view k, rows_view v, rows_out out) {
    std::int64_t const tokens = queries.extent[0];
    auto& to = q[static_cast<number>(layer)];
    to.insert(to.end(), queries.data, queries.data + queries.elements());
    auto& sum = lse[static_cast<number>(layer)];
    sum.resize(sum.size() + static_cast<number>(tokens * c.heads));
    pith::attention_options options{.lse = {sum.data() + static_cast<std::ptrdiff_t>(sum.size()) - tokens * c.heads, {tokens, c.heads}}};
    if (tokens > 1) return cache.prefill(layer, queries, k, v, out, options);
    if (pith::status const s = cache.append(layer, k, v); !s) return s;
    if (replay == nullptr) return cache.attend(layer, queries, out, options);
    std::int64_t const slots = static_cast<std::int64_t>(scores.size()) / c.kv_heads;
    int const group = c.heads / c.kv_heads;
    logits.resize(scores.size() * static_cast<number>(group));
    options.scores = {.sum = {scores.data(), {c.kv_heads, slots}}, .logits = {logits.data(), {c.kv_heads, group, slots}}, .decay = 0};
    pith::status const s = cache.attend(layer, queries, out, options);
    for (float const x : scores) replay->push_back(x / static_cast<float>(group));
    return s;
  }
};

void copy_rows(std::vector<float> const& from, std::vector<float>& to) { to.insert(to.end(), from.begin(), from.end()); }

// Numbers of a layer that budgets are split by, from the columns before the window.
pith::status layer_numbers(statistics_arrays const& window, std::vector<float> const& all_sum, std::int64_t heads, std::int64_t tokens,
                           read_context& out) {
  std::int64_t const seen = std::max<std::int64_t>(tokens - observed_window, 0);
  double const rows = static_cast<double>(std::min(observed_window, tokens));
  double entropy = 0, variance = 0, uncertainty = 0, column_variance = 0;
  std::vector<std::byte> scratch(static_cast<number>(pith::tokens_of_mass_scratch_bytes(tokens)));
  for (std::int64_t h = 0; h < heads; ++h) {
    for (std::int64_t t = 0; t < seen; ++t) {
      auto const at = static_cast<number>(h * tokens + t);
      double const sum = window.sum[at];
      entropy += window.entropy[at];
      variance += std::max(0.0, window.square_sum[at] - sum * sum / rows) / std::max(rows - 1, 1.0);
    }
    auto const row = std::span(window.sum).subspan(static_cast<number>(h * tokens), static_cast<number>(seen));
    auto const needed = pith::tokens_of_mass(row, 0.9, scratch);
    if (!needed) return needed.error();
    uncertainty += static_cast<double>(needed.value()) / static_cast<double>(heads);
    double total = 0, square = 0;
    for (std::int64_t t = 0; t < tokens; ++t) total += all_sum[static_cast<number>(h * tokens + t)];
    for (std::int64_t t = 0; t < tokens; ++t) {
      double const x = all_sum[static_cast<number>(h * tokens + t)] / total - 1 / static_cast<double>(tokens);
      square += x * x;
    }
    column_variance += square / static_cast<double>(tokens * heads);
  }
  out.entropy.push_back(entropy), out.variance.push_back(variance);
  out.uncertainty.push_back(uncertainty), out.column_variance.push_back(column_variance);
  return {};
}

// Each query head's part of the output projection alone: its channels are set, the others are 0.
pith::status weigh_values(llama const& model, held_cache const& cache, int layer, std::int64_t tokens, std::vector<float>& out) {
  llama_config const& c = model.config;
  int const group = c.heads / c.kv_heads;
  number const count = static_cast<number>(tokens), width = static_cast<number>(c.head_dim), inputs = static_cast<number>(c.heads) * width,
               outputs = static_cast<number>(c.dim);
  std::vector<pith::survivor> rows(count);
  std::vector<float> values(count * width), x(count * inputs), y(count * outputs);
  for (int h = 0; h < c.kv_heads; ++h) {
    auto const living = cache.survivors(layer, h, rows);
    if (!living) return living.error();
    if (pith::status const s = cache.read_values(layer, h, rows, values); !s) return s;
    std::vector<double> sum(count, 0.0);
    for (int head = h * group; head < (h + 1) * group; ++head) {
      std::fill(x.begin(), x.end(), 0.0f);
      for (number t = 0; t < count; ++t)
        std::copy_n(values.begin() + static_cast<std::ptrdiff_t>(t * width), width,
                    x.begin() + static_cast<std::ptrdiff_t>(t * inputs + static_cast<number>(head) * width));
      model.blocks[static_cast<number>(layer)].o->multiply(x.data(), static_cast<int>(tokens), y.data());
      for (number t = 0; t < count; ++t)
        for (number o = 0; o < outputs; ++o) sum[t] += std::fabs(static_cast<double>(y[t * outputs + o]));
    }
    for (double const one : sum) out.push_back(static_cast<float>(one / group));
  }
  return {};
}

}  // namespace

pith::result<read_context> read_through(llama const& model, held_cache& cache, std::string_view context, std::int64_t repeat) {
  constexpr std::int64_t chunk = 64;
  llama_config const& c = model.config;
  number const vocab = static_cast<number>(c.vocab);
  auto const tokens = static_cast<std::int64_t>(context.size());
  read_context out;
  out.tokens = tokens;
  out.text = context;
  out.replayed = std::min(replayed_rows, tokens);
  out.surprisal.push_back(8);  // nothing predicts the first byte
  recorder record(c, cache);
  record.scores.resize(static_cast<number>(c.kv_heads * tokens));
  std::vector<float> logits;
  llama_scratch scratch;

  pith::status s = cache.clear();
  auto const read = [&](std::int64_t at, std::int64_t count) {
    std::string_view const part = context.substr(static_cast<number>(at), static_cast<number>(count));
    s = forward(model, part, static_cast<int>(at), record, logits, scratch);
    for (number t = 0; s && t < part.size(); ++t) {
      auto const row = std::span<float const>(logits).subspan(t * vocab, vocab);
      if (out.surprisal.size() < context.size())
        out.surprisal.push_back(static_cast<float>(surprise_bits(row, context[static_cast<number>(at) + t + 1])));
      out.logits.assign(row.begin(), row.end());
    }
  };
  std::int64_t const whole = tokens - out.replayed;
  for (std::int64_t at = 0; s && at < whole; at += chunk) read(at, std::min(chunk, whole - at));
  record.replay = &out.replay;
  for (std::int64_t at = whole; s && at < tokens; ++at) read(at, 1);
  record.replay = nullptr;

  statistics_arrays of;
  std::vector<float> seen(static_cast<number>(std::max(tokens, repeat)));  // tokens that each row sees
  std::iota(seen.begin(), seen.end(), 1.0f);
  for (int l = 0; s && cache.observes() && l < c.layers; ++l) {
    s = cache.statistics(l, record.queries(l), record.sums(l), tokens, seen, of.view(c.heads, tokens));
    if (!s) break;
    std::vector<float> const all = of.sum;
    copy_rows(all, out.all_sum);
    s = cache.statistics(l, record.queries(l), record.sums(l), observed_window, seen, of.view(c.heads, tokens));
    copy_rows(of.sum, out.window_sum), copy_rows(of.square_sum, out.window_square_sum);
    copy_rows(of.weighted_sum, out.window_weighted_sum);
    if (s) s = layer_numbers(of, all, c.heads, tokens, out);
    if (s) s = weigh_values(model, cache, l, tokens, out.value_weights);
  }
  if (s) s = cache.save(out.stored);

  // KVzip: the context once more, and how much its tokens are looked at then.
  number const width = static_cast<number>(tokens);
  out.repeated_maximum.assign(static_cast<number>(c.layers * c.heads) * width, 0.0f);
  for (std::int64_t at = 0; s && at < repeat; at += chunk) {
    record.forget();
    std::int64_t const count = std::min(chunk, repeat - at);
    s = forward(model, context.substr(static_cast<number>(at), static_cast<number>(count)), static_cast<int>(tokens + at), record, logits,
                scratch);
    for (int l = 0; s && l < c.layers; ++l) {
      std::int64_t const slots = cache.slots(l);
      s = cache.statistics(l, record.queries(l), record.sums(l), count, seen, of.view(c.heads, slots));
      for (int h = 0; h < c.heads; ++h)
        for (number t = 0; t < width; ++t) {
          float& most = out.repeated_maximum[static_cast<number>(l * c.heads + h) * width + t];
          most = std::max(most, t < static_cast<number>(repeat) ? of.maximum[static_cast<number>(h * slots) + t] : 1.0f);
        }
    }
  }
  if (!s) return s;
  return out;
}

pith::result<std::vector<double>> retrieval_scores(llama const& model) {
  constexpr int block = 64, copies = 4, all = block * copies;
  llama_config const& c = model.config;
  std::mt19937_64 random(1);
  std::string text;
  for (int i = 0; i < block; ++i) text += static_cast<char>('a' + random() % 26);
  for (int i = 0; i < copies - 1; ++i) text += text.substr(0, block);

  exact_cache exact(c, all);
  int const group = c.heads / c.kv_heads;
  std::vector<double> out(static_cast<number>(c.layers * c.kv_heads), 0.0);
  auto const probe = [&](int layer, rows_view q, rows_view k, rows_view v, rows_out attended) {
    std::vector<double> p(all);
    for (int head = 0; head < c.heads; ++head) {
      double looked = 0;
      for (int i = block; i < all; ++i) {
        double total = 0;
        for (int j = 0; j <= i; ++j) {
          double dot = 0;
          for (int x = 0; x < c.head_dim; ++x) dot += static_cast<double>(q(i, head, x)) * static_cast<double>(k(j, head / group, x));
          total += p[static_cast<number>(j)] = std::exp(dot / std::sqrt(c.head_dim));
        }
        for (int j = i - block + 1; j > 0; j -= block) looked += p[static_cast<number>(j)] / total / (all - block);
      }
      double& most = out[static_cast<number>(layer * c.kv_heads + head / group)];
      most = std::max(most, looked);
    }
    return exact(layer, q, k, v, attended);
  };
  std::vector<float> logits;
  llama_scratch scratch;
  if (pith::status const s = forward(model, text, 0, probe, logits, scratch); !s) return s;
  return out;
}

}  // namespace example
