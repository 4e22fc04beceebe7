// SPDX-License-Identifier: Apache-2.0
// One policy that retrieves, over the rows of one layer at a time.
#pragma once

#include <algorithm>
#include <cmath>

#include "pith/policy/decide.hpp"
#include "pith/policy/reuse.hpp"
#include "retrieval.hpp"

namespace example {

// Keys are read back from the cache as f32, so that any cache may be below: this program's
// way of looking at them, which is not counted as memory; an engine looks at them where they lie.
template <class Policy>
class rows_of : public retriever {
 protected:
  using number = std::size_t;
  using numbers = std::vector<float>;
  using list = std::vector<std::int64_t>;

 public:
  rows_of(Policy const& policy, pith::reuse_rule rule, retrieval_input const& in)
      : policy_(policy),
        rule_(rule),
        model_(in.model),
        cache_(in.cache),
        at_(in.at),
        heads_(in.at.kv_heads),
        group_(in.model.heads / in.model.kv_heads),
        width_(in.model.head_dim),
        most_(in.at.most_slots),
        scale_(1 / std::sqrt(static_cast<double>(in.model.head_dim))),
        layers_(static_cast<number>(in.at.layers)) {
    number const slots = static_cast<number>(heads_ * most_), words = static_cast<number>((most_ + 63) / 64);
    for (std::int64_t h = 0; h < heads_; ++h) offset_.push_back(h * most_);
    for (layer_rows& of : layers_) {
      of.length.assign(static_cast<number>(heads_), 0), of.known = of.kept_count = of.length;
      of.score.resize(slots), of.kept.resize(slots);
      of.keys.resize(slots * static_cast<number>(width_));
      of.query.resize(static_cast<number>(in.model.heads * width_));
      of.state = {.score = of.score, .known = of.known};
      of.reuse.query = of.query;
    }
    living_.resize(static_cast<number>(most_));
    query_.resize(static_cast<number>(in.model.heads * width_));
    chosen_.resize(static_cast<number>(heads_) * words);
    statistic_.resize(slots * static_cast<number>(group_));
    scratch_.resize(static_cast<number>(pith::decide_scratch_bytes(heads_, heads_ * most_) + pith::observe_scratch_bytes(most_)));
  }

  pith::status begin() override {
    for (int l = 0; l < static_cast<int>(at_.layers); ++l)
      if (pith::status const s = take_in(l); !s) return s;
    return {};
  }

  pith::status attend(int layer, rows_view q, rows_view k, rows_view v, rows_out out) override {
    layer_rows& of = rows(layer);
    if (pith::status const s = take_in(layer); !s) return s;
    for (std::int64_t head = 0; head < model_.heads; ++head)
      for (std::int64_t c = 0; c < width_; ++c) query_[static_cast<number>(head * width_ + c)] = q(0, head, c);
    std::int64_t const slots = of.length[0];
    count_stored(static_cast<double>(heads_ * slots * 2 * width_));
    if (pith::status const s = appended(layer, k, v); !s) return s;
    if (is_dense(layer)) {
      count_read(static_cast<double>(heads_ * slots * 2 * width_));
      return attend_to_all(layer, q, out);
    }
    auto const again = pith::chooses_again(policy_, rule_, query_, model_.heads, 0, of.reuse);
    if (!again) return again.error();
    if (again.value()) {
      of.listed = slots;
      if (pith::status const s = choose(layer, q); !s) return s;
    } else {
      for (std::int64_t h = 0; h < heads_; ++h) {
        auto const made = pith::with_newer(kept_room(of, h), kept_count(of, h), of.listed, slots);
        if (!made) return made.error();
        kept_count(of, h) = made.value();
      }
      of.listed = slots;
    }
    for (std::int64_t h = 0; h < heads_; ++h) count_read(static_cast<double>(kept_count(of, h) * 2 * width_));
    return attend_to_kept(layer, q, out);
  }

  std::int64_t own_bytes() const override {
    return static_cast<std::int64_t>(layers_.size()) * heads_ * layers_[0].length[0] * static_cast<std::int64_t>(sizeof(float));  // scores
  }
  std::int64_t device_bytes() const override {
    std::int64_t bytes = own_bytes();
    for (int l = 0; l < static_cast<int>(at_.layers); ++l) {
      if (!is_on_host(l)) bytes += cache_.resident_bytes() / at_.layers;
      for (std::int64_t h = 0; is_on_host(l) && h < heads_; ++h) bytes += rows(l).kept_count[static_cast<number>(h)] * 2 * width_ * 2;
    }
    return bytes;
  }

 protected:
  struct layer_rows {
    list length, known, kept, kept_count;  // [head], [head][slot]
    std::int64_t listed = 0;               // slots when the list was chosen, and since it was continued
    numbers score, keys, query;            // [head][slot], [head][slot][channel], [query head][channel]
    pith::policy_state state;
    pith::reuse_state reuse;
  };

  // What methods differ in. Keys of new slots have come in; a step's rows have been appended; statistics of a step's query (and what was
  // read for them); a layer that reads all; a layer whose rows lie on the host.
  virtual pith::status learn(int, std::int64_t /*head*/, std::span<pith::survivor const> /*rows*/, std::span<float const> /*keys*/) {
    return {};
  }
  virtual pith::status appended(int, rows_view, rows_view) { return {}; }
  virtual pith::status look(int layer, rows_view q, pith::policy_statistics& in) = 0;
  virtual pith::policy_input more(int) { return {}; }
  virtual bool is_dense(int) const { return false; }
  virtual bool is_on_host(int) const { return false; }
  virtual pith::status attend_to_all(int layer, rows_view q, rows_out out) { return cache_.attend(layer, q, out, {}); }
  virtual pith::status attend_to_kept(int layer, rows_view q, rows_out out) { return attend_among_kept(layer, q, out, {}); }

  virtual pith::status choose(int layer, rows_view q) {
    layer_rows& of = rows(layer);
    pith::policy_rows const where{1, heads_, offset_, of.length};
    pith::policy_statistics in{.lists = 1, .rows = 1, .visible = of.length[0]};
    if (pith::status const s = look(layer, q, in); !s) return s;
    if (pith::status const s = pith::observe(policy_, where, in, of.state, scratch_); !s) return s;
    pith::policy_plan plan{.kept = of.kept, .kept_count = of.kept_count};
    return pith::decide(policy_, where, more(layer), of.state, plan, scratch_);
  }

  pith::status attend_among_kept(int layer, rows_view q, rows_out out, pith::attention_options const& options) {
    mark(layer, true);
    return cache_.attend_among(layer, bits(), q, out, options);
  }
  // A bit for each slot that is kept, or for each that is not. Nothing leaves, so that place i is slot i.
  void mark(int layer, bool kept) {
    layer_rows& of = rows(layer);
    std::int64_t const words = (most_ + 63) / 64;
    std::fill(chosen_.begin(), chosen_.end(), std::uint64_t{0});
    for (std::int64_t h = 0; h < heads_; ++h) {
      auto const read = kept_room(of, h).first(static_cast<number>(kept_count(of, h)));
      number k = 0;
      for (std::int64_t slot = 0; slot < of.length[static_cast<number>(h)]; ++slot) {
        bool const among = k < read.size() && read[k] == slot;
        k += among;
        if (among == kept) chosen_[static_cast<number>(h * words + slot / 64)] |= std::uint64_t{1} << slot % 64;
      }
    }
  }
  pith::tensor_view<std::uint64_t, 2> bits() { return {chosen_.data(), {heads_, (most_ + 63) / 64}}; }

  layer_rows& rows(int layer) { return layers_[static_cast<number>(layer)]; }
  layer_rows const& rows(int layer) const { return layers_[static_cast<number>(layer)]; }
  std::span<std::int64_t> kept_room(layer_rows& of, std::int64_t head) const {
    return std::span(of.kept).subspan(static_cast<number>(head * most_), static_cast<number>(most_));
  }
  std::int64_t& kept_count(layer_rows& of, std::int64_t head) const { return of.kept_count[static_cast<number>(head)]; }
  std::span<float const> keys_of(layer_rows const& of, std::int64_t head) const {
    return std::span<float const>(of.keys).subspan(static_cast<number>(head * most_ * width_),
                                                   static_cast<number>(of.length[static_cast<number>(head)] * width_));
  }
  // Of the query heads that read a KV head, [query][channel].
  std::span<float const> queries_of(std::int64_t head) const {
    return std::span<float const>(query_).subspan(static_cast<number>(head * group_ * width_), static_cast<number>(group_ * width_));
  }
  std::span<float const> query_of(std::int64_t head, std::int64_t g) const {
    return queries_of(head).subspan(static_cast<number>(g * width_), static_cast<number>(width_));
  }
  // Where a list of statistics goes.
  std::span<float> statistic_of(layer_rows const& of, std::int64_t head, std::int64_t g, std::int64_t lists) {
    std::int64_t const slots = of.length[static_cast<number>(head)];
    return std::span(statistic_).subspan(static_cast<number>(lists * head * most_ + g * slots), static_cast<number>(slots));
  }

  Policy policy_;
  pith::reuse_rule rule_;
  llama_config const& model_;
  held_cache& cache_;
  setting at_;
  std::int64_t heads_, group_, width_, most_;
  double scale_;
  list offset_;
  std::vector<layer_rows> layers_;
  numbers query_, statistic_;
  std::vector<std::uint64_t> chosen_;
  std::vector<std::byte> scratch_;

 private:
  pith::status take_in(int layer) {
    layer_rows& of = rows(layer);
    for (std::int64_t h = 0; h < heads_; ++h) {
      auto const count = cache_.survivors(layer, static_cast<int>(h), living_);
      if (!count) return count.error();
      std::int64_t& known = of.length[static_cast<number>(h)];
      std::int64_t const fresh = count.value() - known;
      if (count.value() > 0 && living_[static_cast<number>(count.value() - 1)].slot != count.value() - 1)
        return {pith::errc::unsupported, layer};  // something has left
      auto const more = std::span<pith::survivor const>(living_).subspan(static_cast<number>(known), static_cast<number>(fresh));
      auto const keys = std::span(of.keys).subspan(static_cast<number>((h * most_ + known) * width_), static_cast<number>(fresh * width_));
      known = count.value();
      if (fresh == 0) continue;
      if (pith::status const s = cache_.read_keys(layer, static_cast<int>(h), more, keys); !s) return s;
      if (pith::status const s = learn(layer, h, more, keys); !s) return s;
    }
    return {};
  }

  std::vector<pith::survivor> living_;
};

}  // namespace example
