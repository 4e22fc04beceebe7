// SPDX-License-Identifier: Apache-2.0
// Caches in which what a policy gives up lives on: in fewer bits, or as samples.
#include <vector>

#include "cache_of.hpp"
#include "pith/cache/demotion.hpp"
#include "pith/page/merge.hpp"
#include "pith/policy/sampled_fold.hpp"

namespace example {

namespace {

using bf16 = pith::raw<pith::bf16>;
using important = shrinking<bf16, bf16, pith::exact_accuracy>;
template <class Codec>
struct unimportant : pith::kv_cache<pith::head_dim<64>, pith::keys<Codec>, pith::values<Codec>, pith::raw<pith::last<1>>,
                                    pith::pages<pith::paged<32>>, pith::accuracy<pith::integer_accuracy>> {};

using number = std::size_t;

template <class Low>
class demoting final : public held_cache {
  using cache_type = pith::demoting_cache<important, Low>;

 public:
  static std::unique_ptr<held_cache> make(llama_config const& c, std::int64_t max_tokens) {
    auto made = cache_type::make(
        {.layers = c.layers, .kv_heads = c.kv_heads, .query_heads = c.heads, .bytes = 16 << 20, .max_tokens = max_tokens}, 16 << 20);
    return made ? std::make_unique<demoting>(std::move(made).value()) : nullptr;
  }
  explicit demoting(cache_type made) : cache_(std::move(made)) {}

  pith::status clear() override {
    close();
    return take(cache_.open());
  }
  pith::status load(std::span<std::byte const> from) override {
    close();
    return take(cache_.load(from));
  }
  pith::status save(std::vector<std::byte>& out) const override {
    out.resize(static_cast<number>(cache_.saved_bytes(of_)));
    return cache_.save(of_, out);
  }
  pith::status prefill(int layer, rows_view q, rows_view k, rows_view v, rows_out out, pith::attention_options const& options) override {
    return cache_.prefill(of_, layer, q, k, v, out, options);
  }
  pith::status append(int layer, rows_view k, rows_view v) override { return cache_.append(of_, layer, k, v); }

  // Scores are probabilities among all rows: a second pass, once lse is known.
  pith::status attend(int layer, rows_view q, rows_out out, pith::attention_options const& options) override {
    pith::attention_options one = options;
    one.scores = {};
    if (options.scores.sum.data == nullptr) return cache_.attend(of_, layer, q, out, one);
    if (one.lse.data == nullptr) {
      lse_.resize(static_cast<number>(q.extent[0] * q.extent[1]));
      one.lse = {lse_.data(), {q.extent[0], q.extent[1]}};
    }
    if (pith::status const s = cache_.attend(of_, layer, q, out, one); !s) return s;
    pith::statistics_view<pith::group_reduction::sum, pith::statistic::sum> const view{.sum = options.scores.sum};
    return cache_.attention_statistics(of_, layer, q, one.lse, view);
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
    return cache_.high().read_rows(of_.high, layer, head, rows, keys, {});
  }
  pith::status read_values(int layer, int head, std::span<pith::survivor const> rows, std::span<float> values) const override {
    return cache_.high().read_rows(of_.high, layer, head, rows, {}, values);
  }

  // A plan in which the other heads keep what they have.
  pith::status drop(int layer, int head, std::span<std::int64_t const> tokens) override {
    auto const& shape = cache_.shape();
    number const most = static_cast<number>(shape.max_tokens);
    living_.resize(most);
    offset_.clear(), length_.clear(), kept_.clear(), count_.clear();
    for (int r = 0; r < shape.layers * shape.kv_heads; ++r) {
      auto const living = cache_.survivors(of_, r / shape.kv_heads, r % shape.kv_heads, living_);
      if (!living) return living.error();
      offset_.push_back(static_cast<std::int64_t>(kept_.size())), length_.push_back(living.value());
      bool const mine = r == layer * shape.kv_heads + head;
      number gone = 0;
      for (std::int64_t i = 0; i < living.value(); ++i)
        if (mine && gone < tokens.size() && tokens[gone] == living_[static_cast<number>(i)].token)
          ++gone;
        else
          kept_.push_back(i);
      count_.push_back(static_cast<std::int64_t>(kept_.size()) - offset_.back());
      kept_.resize(static_cast<number>(offset_.back() + living.value()));
    }
    pith::policy_plan plan{.kept = kept_, .kept_count = count_, .losers = pith::fate::demoted};
    return cache_.demote(of_, {shape.layers, shape.kv_heads, offset_, length_}, plan).error();
  }
  std::int64_t resident_bytes() const override { return cache_.resident_bytes(); }

 private:
  void close() { static_cast<void>(cache_.close(of_)); }
  pith::status take(pith::result<typename cache_type::sequence> made) {
    if (made) of_ = made.value();
    return made.error();
  }

  cache_type cache_;
  typename cache_type::sequence of_;
  std::vector<pith::survivor> living_;
  std::vector<std::int64_t> offset_, length_, kept_, count_;
  std::vector<float> lse_;
};

// A bf16 cache whose losers are sampled.
class folding final : public cache_of<important> {
  using base = cache_of<important>;

 public:
  static std::unique_ptr<held_cache> make(llama_config const& c, std::int64_t max_tokens) {
    auto made = pith::make<important>(
        {.layers = c.layers, .kv_heads = c.kv_heads, .query_heads = c.heads, .bytes = 16 << 20, .max_tokens = max_tokens});
    return made ? std::make_unique<folding>(std::move(made).value()) : nullptr;
  }
  explicit folding(pith::cache<important> made) : base(std::move(made)) {
    auto const& shape = cache_.shape();
    auto const rows = static_cast<number>(shape.layers * shape.kv_heads), each = static_cast<number>(pith::sampled_fold::bytes(samples));
    memory_.resize(rows * each);
    for (number r = 0; r < rows; ++r)
      folds_.push_back(pith::sampled_fold::make(samples, std::span(memory_).subspan(r * each, each), 1, r).value());
  }

  pith::status clear() override {
    forget();
    return base::clear();
  }
  // Only what has not folded anything yet is saved.
  pith::status load(std::span<std::byte const> from) override {
    forget();
    return base::load(from);
  }
  pith::status save(std::vector<std::byte>& out) const override {
    for (pith::sampled_fold const& one : folds_)
      if (one.rows() > 0) return {pith::errc::unsupported, one.rows()};
    return base::save(out);
  }
  pith::status prefill(int layer, rows_view q, rows_view k, rows_view v, rows_out out, pith::attention_options const& options) override {
    pith::attention_options const one = with_lse(q, options);
    if (pith::status const s = base::prefill(layer, q, k, v, out, one); !s) return s;
    return add_folded(layer, q, out, one);
  }
  pith::status attend(int layer, rows_view q, rows_out out, pith::attention_options const& options) override {
    pith::attention_options const one = with_lse(q, options);
    if (pith::status const s = base::attend(layer, q, out, one); !s) return s;
    return add_folded(layer, q, out, one);
  }
  // What is folded cannot be left out of a step, nor merged.
  pith::status attend_among(int layer, pith::tensor_view<std::uint64_t, 2>, rows_view, rows_out, pith::attention_options const&) override {
    return unsupported(layer);
  }
  pith::status merge(int layer, int, pith::merge_plan const&) override { return unsupported(layer); }
  pith::status drop(int layer, int head, std::span<std::int64_t const> tokens) override {
    std::vector<pith::survivor> rows(static_cast<number>(cache_.shape().max_tokens));
    auto const living = survivors(layer, head, rows);
    if (!living) return living.error();
    rows.resize(static_cast<number>(living.value()));
    std::erase_if(rows, [&](pith::survivor const& row) { return !std::binary_search(tokens.begin(), tokens.end(), row.token); });
    std::vector<float> keys(rows.size() * width), values(rows.size() * width);
    pith::status s = cache_.read_rows(of_, layer, head, rows, keys, values);
    for (number i = 0; s && i < rows.size(); ++i)
      s = fold_of(layer, head).take(std::span(keys).subspan(i * width, width), std::span(values).subspan(i * width, width), rows[i].token);
    return s ? base::drop(layer, head, tokens) : s;
  }
  std::int64_t resident_bytes() const override { return base::resident_bytes() + static_cast<std::int64_t>(memory_.size()); }

 private:
  static constexpr number width = 64;
  static constexpr pith::sampled_fold_shape samples{
      .key_channels = width, .value_channels = width, .clusters = 16, .samples = 1, .reservoir = 16, .delta = 4, .mean = true};

  pith::sampled_fold& fold_of(int layer, std::int64_t head) { return folds_[static_cast<number>(layer * cache_.shape().kv_heads + head)]; }
  pith::attention_options with_lse(rows_view q, pith::attention_options one) {
    if (one.lse.data != nullptr) return one;
    lse_.resize(static_cast<number>(q.extent[0] * q.extent[1]));
    one.lse = {lse_.data(), {q.extent[0], q.extent[1]}};
    return one;
  }
  pith::status add_folded(int layer, rows_view q, rows_out out, pith::attention_options const& how) {
    std::int64_t const group = cache_.shape().query_heads / cache_.shape().kv_heads;
    for (std::int64_t t = 0; t < q.extent[0]; ++t)
      for (std::int64_t h = 0; h < q.extent[1]; ++h) {
        float answer[width];
        auto const lse = fold_of(layer, h / group).answer(std::span(&q(t, h, 0), width), 1 / std::sqrt(static_cast<double>(width)), answer);
        if (!lse) return lse.error();
        pith::merge_attention(&out(t, h, 0), how.lse(t, h), answer, lse.value(), width);
      }
    return {};
  }
  void forget() {
    for (pith::sampled_fold& one : folds_) one.clear();
  }

  std::vector<std::byte> memory_;
  std::vector<pith::sampled_fold> folds_;
  std::vector<float> lse_;
};

}  // namespace

std::unique_ptr<held_cache> make_demoting_int4(llama_config const& c, std::int64_t max_tokens) {
  return demoting<unimportant<pith::int4<pith::per_token<64>>>>::make(c, max_tokens);
}
std::unique_ptr<held_cache> make_demoting_int2(llama_config const& c, std::int64_t max_tokens) {
  return demoting<unimportant<pith::int2<pith::per_token<32>>>>::make(c, max_tokens);
}
std::unique_ptr<held_cache> make_folding(llama_config const& c, std::int64_t max_tokens) { return folding::make(c, max_tokens); }

std::int64_t token_bits(storage what) {
  using int8 = pith::int8<pith::per_token<64>>;
  using int4 = pith::int4<pith::per_token<64>>;
  switch (what) {
    case storage::int8: return pith::token_bits<shrinking<int8, int8, pith::integer_accuracy>>;
    case storage::int4: return pith::token_bits<shrinking<int4, int4, pith::integer_accuracy>>;
    default: return pith::token_bits<important>;
  }
}

}  // namespace example
