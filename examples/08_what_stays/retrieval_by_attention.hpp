// SPDX-License-Identifier: Apache-2.0
// Retrieval by attention that was computed: of another layer, or in few bits. Round Attention and SpeCache.
#pragma once

#include "pith/page/merge.hpp"
#include "pith/policy/recipes_retrieve.hpp"
#include "retrieval_rows.hpp"

namespace example {

// Round Attention: rounds are lines, cut after 64 bytes at the next space. Layers up to the watershed read all, those behind it what its
// attention to the newest round's bytes so far says. The context's rows of these lie on the host.
class by_rounds : public rows_of<pith::recipes::round_attention<>> {
  using policy = pith::recipes::round_attention<>;
  using base = rows_of<policy>;

 public:
  by_rounds(policy const& of, int watershed, retrieval_input const& in)
      : base(of, {}, in), watershed_(watershed), sums_(static_cast<number>(heads_ * most_)) {
    logits_.resize(static_cast<number>(in.model.heads * most_));
    groups_.resize(sums_.size()), mask_.resize(sums_.size());
    for (char const c : in.text) see(c);
  }

  void see(char c) override {
    if (begins_) {
      ++round_, in_round_ = 0;
      auto& state = layers_[static_cast<number>(watershed_)].state;  // attention of the round before no longer counts
      std::fill(state.known.begin(), state.known.end(), 0);
    }
    round_of_.push_back(round_);
    begins_ = c == '\n' || (++in_round_ >= 64 && c == ' ');
  }

 protected:
  bool is_dense(int layer) const override { return layer <= watershed_; }
  bool is_on_host(int layer) const override { return layer > watershed_; }

  pith::status attend_to_all(int layer, rows_view q, rows_out out) override {
    if (layer != watershed_) return base::attend_to_all(layer, q, out);
    pith::attention_options options;
    options.scores = {.sum = {sums_.data(), {heads_, most_}}, .logits = {logits_.data(), {heads_, group_, most_}}, .decay = 0};
    if (pith::status const s = cache_.attend(layer, q, out, options); !s) return s;
    return base::choose(layer, q);
  }
  // The layers behind the watershed read its list.
  pith::status choose(int layer, rows_view) override {
    rows(layer).kept = rows(watershed_).kept, rows(layer).kept_count = rows(watershed_).kept_count;
    return {};
  }
  pith::status look(int layer, rows_view, pith::policy_statistics& in) override {
    for (std::int64_t h = 0; h < heads_; ++h)
      for (std::int64_t s = 0; s < rows(layer).length[static_cast<number>(h)]; ++s) {
        auto const at = static_cast<number>(h * most_ + s);
        groups_[at] = round_of_[static_cast<number>(s)];
        mask_[at] = groups_[at] == round_;
      }
    in.sum = sums_;
    return {};
  }
  pith::policy_input more(int) override { return {.mask = mask_, .groups = groups_}; }

 private:
  int watershed_;
  numbers sums_, logits_;
  list round_of_, groups_;
  std::vector<std::uint8_t> mask_;
  std::int64_t round_ = -1, in_round_ = 0;
  bool begins_ = true;
};

// SpeCache: a second cache of 2 bits is near, the bf16 rows are on the host. The step's query looks at the near copy; the slots that it
// finds best are read in bf16, all others in 2 bits, and the two parts merged. The paper asks with a guessed next token one step ahead, so
// that the rows have come by then; asking with the token itself is what a guess that is always right would read.
class by_few_bits : public rows_of<pith::recipes::spe_cache<>> {
  using policy = pith::recipes::spe_cache<>;
  using base = rows_of<policy>;

 public:
  by_few_bits(policy const& of, retrieval_input const& in)
      : base(of, {}, in), near_(make_held_cache(storage::kivi2, in.model, in.at.most_slots)) {
    number const all = static_cast<number>(in.model.heads);
    sums_.resize(static_cast<number>(heads_ * most_)), logits_.resize(all * static_cast<number>(most_));
    other_.resize(all * static_cast<number>(width_)), lse_.resize(all), other_lse_.resize(all);
  }

  pith::status begin() override {
    if (!near_) return {pith::errc::out_of_memory, most_};
    if (pith::status const s = near_->clear(); !s) return s;
    std::vector<pith::survivor> living(static_cast<number>(most_));
    numbers one(static_cast<number>(most_ * width_)), keys(one.size() * static_cast<number>(heads_)), values(keys.size());
    for (int l = 0; l < static_cast<int>(at_.layers); ++l) {
      std::int64_t slots = 0;
      for (int h = 0; h < static_cast<int>(heads_); ++h) {
        auto const count = cache_.survivors(l, h, living);
        if (!count) return count.error();
        slots = count.value();
        auto const rows = std::span<pith::survivor const>(living).first(static_cast<number>(slots));
        auto const part = std::span(one).first(static_cast<number>(slots * width_));
        for (bool const key : {true, false}) {
          pith::status const s = key ? cache_.read_keys(l, h, rows, part) : cache_.read_values(l, h, rows, part);
          if (!s) return s;
          for (std::int64_t t = 0; t < slots; ++t)
            std::copy_n(part.begin() + t * width_, width_, (key ? keys : values).begin() + (t * heads_ + h) * width_);
        }
      }
      pith::status const s =
          near_->append(l, rows_view(keys.data(), {slots, heads_, width_}), rows_view(values.data(), {slots, heads_, width_}));
      if (!s) return s;
    }
    return base::begin();
  }

  std::int64_t own_bytes() const override { return base::own_bytes() + near_->resident_bytes(); }

 protected:
  bool is_on_host(int) const override { return true; }
  pith::status appended(int layer, rows_view k, rows_view v) override { return near_->append(layer, k, v); }

  pith::status look(int layer, rows_view q, pith::policy_statistics& in) override {
    pith::attention_options options;
    options.scores = {.sum = {sums_.data(), {heads_, most_}}, .logits = {logits_.data(), {heads_, group_, most_}}, .decay = 0};
    // One pass over the near copy chooses and, where the rows are there already, attends: counted once, by its bytes.
    double const all = static_cast<double>(heads_ * rows(layer).length[0] * 2 * width_);
    count_read(all * static_cast<double>(near_->resident_bytes()) / static_cast<double>(cache_.resident_bytes()));
    in.sum = sums_;
    return near_->attend(layer, q, out_of(other_), options);
  }
  pith::status attend_to_kept(int layer, rows_view q, rows_out out) override {
    auto const lse_of = [&](numbers& of) { return pith::tensor_view<float, 2>(of.data(), {1, model_.heads}); };
    pith::attention_options options{.lse = lse_of(lse_)};
    if (pith::status const s = attend_among_kept(layer, q, out, options); !s) return s;
    mark(layer, false);
    options.lse = lse_of(other_lse_);
    if (pith::status const s = near_->attend_among(layer, bits(), q, out_of(other_), options); !s) return s;
    for (std::int64_t head = 0; head < model_.heads; ++head)
      pith::merge_attention(&out(0, head, 0), lse_[static_cast<number>(head)], other_.data() + head * width_,
                            other_lse_[static_cast<number>(head)], static_cast<int>(width_));
    return {};
  }

 private:
  rows_out out_of(numbers& of) const { return rows_out(of.data(), {1, model_.heads, width_}); }

  std::unique_ptr<held_cache> near_;
  numbers sums_, logits_, other_, lse_, other_lse_;
};

}  // namespace example
