// SPDX-License-Identifier: Apache-2.0
// held_cache over a composition.
#pragma once

#include "held_cache.hpp"
#include "pith/pith.hpp"

namespace example {

// Pages of 32 tokens: what leaves comes back in small pieces.
template <class Keys, class Values, class Accuracy, class... Side>
struct shrinking
    : pith::kv_cache<pith::head_dim<64>, pith::keys<Keys>, pith::values<Values>, pith::raw<pith::last<32>>, pith::pages<pith::paged<32>>,
                     pith::accuracy<Accuracy>, pith::side<pith::liveness, pith::births, Side...>> {};

template <class Recipe>
class cache_of : public held_cache {
 public:
  static std::unique_ptr<held_cache> make(llama_config const& c, std::int64_t max_tokens) {
    pith::cache_shape const shape{
        .layers = c.layers, .kv_heads = c.kv_heads, .query_heads = c.heads, .bytes = 16 << 20, .max_tokens = max_tokens};
    auto made = pith::make<Recipe>(shape);
    if (!made) return nullptr;
    return std::make_unique<cache_of>(std::move(made).value());
  }
  explicit cache_of(pith::cache<Recipe> made) : cache_(std::move(made)) {}

  pith::status clear() override {
    close();
    return take(cache_.open());
  }
  pith::status load(std::span<std::byte const> from) override {
    close();
    return take(cache_.load(from));
  }
  pith::status save(std::vector<std::byte>& out) const override {
    out.resize(static_cast<std::size_t>(cache_.saved_bytes(of_)));
    return cache_.save(of_, out);
  }

  pith::status prefill(int layer, rows_view q, rows_view k, rows_view v, rows_out out, pith::attention_options const& options) override {
    return cache_.prefill(of_, layer, q, k, v, out, options);
  }
  pith::status append(int layer, rows_view k, rows_view v) override { return cache_.append(of_, layer, k, v); }
  pith::status attend(int layer, rows_view q, rows_out out, pith::attention_options const& options) override {
    return cache_.attend(of_, layer, q, out, options);
  }
  pith::status attend_among(int layer, pith::tensor_view<std::uint64_t, 2> chosen, rows_view q, rows_out out,
                            pith::attention_options const& options) override {
    return cache_.attend_among(of_, layer, chosen, q, out, options);
  }
  pith::status statistics(int layer, rows_view q, pith::tensor_view<float const, 2> lse, std::int64_t newest,
                          std::span<float const> weights, head_statistics out) const override {
    return cache_.attention_statistics(of_, layer, q, lse, out.view(), {.newest = newest, .weights = weights});
  }

  std::int64_t slots(int layer) const override { return cache_.slots(of_, layer); }
  pith::result<std::int64_t> survivors(int layer, int head, std::span<pith::survivor> out) const override {
    return cache_.survivors(of_, layer, head, out);
  }
  pith::status read_keys(int layer, int head, std::span<pith::survivor const> rows, std::span<float> keys) const override {
    return cache_.read_rows(of_, layer, head, rows, keys, {});
  }
  pith::status read_values(int layer, int head, std::span<pith::survivor const> rows, std::span<float> values) const override {
    return cache_.read_rows(of_, layer, head, rows, {}, values);
  }
  pith::status drop(int layer, int head, std::span<std::int64_t const> tokens) override {
    pith::status const s = cache_.evict(of_, layer, head, tokens);
    return s ? cache_.compact(of_, layer, head).error() : s;
  }
  pith::status merge(int layer, int head, pith::merge_plan const& plan) override {
    auto const survivors = static_cast<std::int64_t>(plan.into.size());
    scratch_.resize(static_cast<std::size_t>(pith::cache_compactor<Recipe>::merge_scratch_bytes(survivors, survivors)));
    return cache_.compact(of_, layer, head, plan, scratch_).error();
  }
  pith::status set_bias(int layer, int head, std::int64_t token, float value) override {
    if constexpr (Recipe::has_bias) return cache_.set_bias(of_, layer, head, token, value);
    return {pith::errc::unsupported, layer};
  }
  std::int64_t resident_bytes() const override { return cache_.resident_bytes(); }

 protected:
  pith::cache<Recipe> cache_;
  pith::sequence of_;

 private:
  void close() { static_cast<void>(cache_.close(of_)); }  // a stale handle the first time
  pith::status take(pith::result<pith::sequence> made) {
    if (made) of_ = made.value();
    return made.error();
  }

  std::vector<std::byte> scratch_;
};

std::unique_ptr<held_cache> make_bf16(llama_config const&, std::int64_t max_tokens);
std::unique_ptr<held_cache> make_bf16_biased(llama_config const&, std::int64_t max_tokens);
std::unique_ptr<held_cache> make_int8(llama_config const&, std::int64_t max_tokens);
std::unique_ptr<held_cache> make_int4(llama_config const&, std::int64_t max_tokens);
std::unique_ptr<held_cache> make_kivi2(llama_config const&, std::int64_t max_tokens);
std::unique_ptr<held_cache> make_demoting_int4(llama_config const&, std::int64_t max_tokens);
std::unique_ptr<held_cache> make_demoting_int2(llama_config const&, std::int64_t max_tokens);
std::unique_ptr<held_cache> make_folding(llama_config const&, std::int64_t max_tokens);
std::unique_ptr<held_cache> make_paired_bf16(llama_config const&, std::int64_t max_tokens);
std::unique_ptr<held_cache> make_paired_int4(llama_config const&, std::int64_t max_tokens);

}  // namespace example
