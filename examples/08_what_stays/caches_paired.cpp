// SPDX-License-Identifier: Apache-2.0
// MiniCache: the deeper layers in pairs that share directions, attention over the restored rows in plain loops.
#include <cmath>
#include <cstring>
#include <vector>

#include "cache_of.hpp"
#include "pith/cache/layer_pair.hpp"

namespace example {

namespace {

using bf16 = pith::raw<pith::bf16>;
using shallow = shrinking<bf16, bf16, pith::exact_accuracy>;
template <class Codec>
struct directions
    : pith::kv_cache<pith::head_dim<64>, pith::keys<Codec>, pith::values<Codec>, pith::raw<pith::last<32>>, pith::pages<pith::paged<32>>> {
};

using number = std::size_t;

template <class Codec>
class paired final : public held_cache {
  using pair_type = pith::layer_pair<directions<Codec>>;
  static constexpr number width = 64;

 public:
  static std::unique_ptr<held_cache> make(llama_config const& c, std::int64_t max_tokens) {
    int const pairs = c.layers / 4, first = c.layers - 2 * pairs;  // whole pairs of the upper half
    auto made =
        pith::make<shallow>({.layers = first, .kv_heads = c.kv_heads, .query_heads = c.heads, .bytes = 16 << 20, .max_tokens = max_tokens});
    if (!made) return nullptr;
    auto out = std::make_unique<paired>(c, first, std::move(made).value());
    for (int p = 0; p < pairs; ++p) {
      auto pair = pair_type::make({.kv_heads = c.kv_heads, .bytes = 4 << 20, .max_tokens = max_tokens});
      if (!pair) return nullptr;
      out->pairs_.push_back({std::move(pair).value(), {}, {}});
    }
    return out;
  }
  paired(llama_config const& config, int first, pith::cache<shallow> made) : c_(config), first_(first), cache_(std::move(made)) {}

  pith::status clear() override {
    if (pith::status const s = empty(); !s) return s;
    return take(cache_.open());
  }
  // The layers that are alone; then every chunk of rows that the pairs were given, to be given to them again.
  pith::status save(std::vector<std::byte>& out) const override {
    auto const alone = static_cast<std::uint64_t>(cache_.saved_bytes(of_));
    out.clear();
    write(out, &alone, 1);
    out.resize(out.size() + alone);
    if (pith::status const s = cache_.save(of_, std::span(out).subspan(sizeof alone)); !s) return s;
    for (pair_state const& pair : pairs_) {
      std::uint64_t const chunks = pair.history.size();
      write(out, &chunks, 1);
      for (chunk const& one : pair.history) {
        write(out, &one.tokens, 1);
        for (auto const& rows : one.rows) write(out, rows.data(), rows.size());
      }
    }
    return {};
  }
  pith::status load(std::span<std::byte const> from) override {
    if (pith::status const s = empty(); !s) return s;
    std::uint64_t alone = 0, chunks = 0;
    read(from, &alone, 1);
    if (pith::status const s = take(cache_.load(from.first(alone))); !s) return s;
    from = from.subspan(alone);
    for (pair_state& pair : pairs_) {
      read(from, &chunks, 1);
      for (std::uint64_t i = 0; i < chunks; ++i) {
        read(from, &pair.waiting.tokens, 1);
        for (auto& rows : pair.waiting.rows) {
          rows.resize(static_cast<number>(pair.waiting.tokens * c_.kv_heads) * width);
          read(from, rows.data(), rows.size());
        }
        if (pith::status const s = store(pair); !s) return s;
      }
    }
    return {};
  }

  pith::status prefill(int layer, rows_view q, rows_view k, rows_view v, rows_out out, pith::attention_options const& options) override {
    if (layer < first_) return cache_.prefill(of_, layer, q, k, v, out, options);
    wait(layer, k, v);
    return attend(layer, q, out, options);
  }
  pith::status append(int layer, rows_view k, rows_view v) override {
    if (layer < first_) return cache_.append(of_, layer, k, v);
    wait(layer, k, v);
    return {};
  }
  // The rows that wait for the other layer are seen raw; when both are there they are stored.
  pith::status attend(int layer, rows_view q, rows_out out, pith::attention_options const& options) override {
    if (layer < first_) return cache_.attend(of_, layer, q, out, options);
    pair_state& pair = of(layer);
    int const which = (layer - first_) % 2, group = c_.heads / c_.kv_heads;
    std::int64_t const past = pair.rows.length(), count = q.extent[0];
    auto const all = static_cast<number>(past + count);
    std::vector<float> keys(all * width), values(all * width);
    for (int h = 0; h < c_.kv_heads; ++h) {
      number const before = static_cast<number>(past) * width;
      if (pith::status const s = pair.rows.restore(which, h, 0, past, std::span(keys).first(before), std::span(values).first(before)); !s)
        return s;
      for (std::int64_t t = 0; t < count; ++t) {
        number const from = static_cast<number>(t * c_.kv_heads + h) * width, to = before + static_cast<number>(t) * width;
        std::copy_n(pair.waiting.rows[2 * which].begin() + static_cast<std::ptrdiff_t>(from), width,
                    keys.begin() + static_cast<std::ptrdiff_t>(to));
        std::copy_n(pair.waiting.rows[2 * which + 1].begin() + static_cast<std::ptrdiff_t>(from), width,
                    values.begin() + static_cast<std::ptrdiff_t>(to));
      }
      for (int g = h * group; g < (h + 1) * group; ++g)
        for (std::int64_t t = 0; t < count; ++t) {
          float const lse = attend_row(&q(t, g, 0), keys, values, static_cast<number>(past + t + 1), &out(t, g, 0));
          if (options.lse.data != nullptr) options.lse(t, g) = lse;
        }
    }
    return which == 1 ? store(pair) : pith::status{};
  }
  bool observes() const override { return false; }

  std::int64_t slots(int layer) const override { return layer < first_ ? cache_.slots(of_, layer) : of(layer).rows.length(); }
  pith::result<std::int64_t> survivors(int layer, int head, std::span<pith::survivor> out) const override {
    if (layer < first_) return cache_.survivors(of_, layer, head, out);
    for (std::int64_t t = 0; t < slots(layer); ++t) out[static_cast<number>(t)] = {t, t};
    return slots(layer);
  }
  std::int64_t resident_bytes() const override {
    std::int64_t sum = cache_.resident_bytes();
    for (pair_state const& pair : pairs_) sum += pair.rows.resident_bytes();
    return sum;
  }

 private:
  struct chunk {
    std::int64_t tokens = 0;
    std::vector<float> rows[4];  // keys and values of the first layer, then of the second
  };
  struct pair_state {
    pair_type rows;
    chunk waiting;
    std::vector<chunk> history;  // for save(); no part of the cache
  };

  pair_state& of(int layer) { return pairs_[static_cast<number>((layer - first_) / 2)]; }
  pair_state const& of(int layer) const { return pairs_[static_cast<number>((layer - first_) / 2)]; }

  void wait(int layer, rows_view k, rows_view v) {
    chunk& to = of(layer).waiting;
    to.tokens = k.extent[0];
    number const which = static_cast<number>((layer - first_) % 2);
    for (auto const& [rows, from] : {std::pair(&to.rows[2 * which], &k), std::pair(&to.rows[2 * which + 1], &v)}) {
      rows->clear();
      for (std::int64_t t = 0; t < to.tokens; ++t)
        for (int h = 0; h < c_.kv_heads; ++h)
          for (number c = 0; c < width; ++c) rows->push_back((*from)(t, h, static_cast<std::int64_t>(c)));
    }
  }
  pith::status store(pair_state& pair) {
    auto const view = [&](number i) {
      return rows_view(pair.waiting.rows[i].data(), {pair.waiting.tokens, c_.kv_heads, static_cast<std::int64_t>(width)});
    };
    if (pith::status const s = pair.rows.append(view(0), view(1), view(2), view(3)); !s) return s;
    pair.history.push_back(pair.waiting);
    return {};
  }
  static float attend_row(float const* q, std::vector<float> const& keys, std::vector<float> const& values, number count, float* out) {
    std::vector<float> score(count);
    float most = -INFINITY;
    for (number t = 0; t < count; ++t) {
      float sum = 0;
      for (number c = 0; c < width; ++c) sum += q[c] * keys[t * width + c];
      score[t] = sum / std::sqrt(static_cast<float>(width));
      most = std::max(most, score[t]);
    }
    double total = 0;
    for (float& x : score) total += x = std::exp(x - most);
    float sums[width] = {};
    for (number t = 0; t < count; ++t)
      for (number c = 0; c < width; ++c) sums[c] += score[t] * values[t * width + c];
    for (number c = 0; c < width; ++c) out[c] = sums[c] / static_cast<float>(total);
    return most + static_cast<float>(std::log(total));
  }

  template <class T>
  static void write(std::vector<std::byte>& to, T const* from, number count) {
    auto const* const bytes = reinterpret_cast<std::byte const*>(from);
    to.insert(to.end(), bytes, bytes + count * sizeof(T));
  }
  template <class T>
  static void read(std::span<std::byte const>& from, T* to, number count) {
    std::memcpy(to, from.data(), count * sizeof(T));
    from = from.subspan(count * sizeof(T));
  }
  pith::status empty() {
    static_cast<void>(cache_.close(of_));  // a stale handle the first time
    for (pair_state& pair : pairs_) {
      pair.history.clear();
      if (pith::status const s = pair.rows.clear(); !s) return s;
    }
    return {};
  }
  pith::status take(pith::result<pith::sequence> made) {
    if (made) of_ = made.value();
    return made.error();
  }

  llama_config c_;
  int first_;
  pith::cache<shallow> cache_;
  pith::sequence of_;
  std::vector<pair_state> pairs_;
};

}  // namespace

std::unique_ptr<held_cache> make_paired_bf16(llama_config const& c, std::int64_t max_tokens) { return paired<bf16>::make(c, max_tokens); }
std::unique_ptr<held_cache> make_paired_int4(llama_config const& c, std::int64_t max_tokens) {
  return paired<pith::int4<pith::per_token<64>>>::make(c, max_tokens);
}

}  // namespace example
