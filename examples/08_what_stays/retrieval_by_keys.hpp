// SPDX-License-Identifier: Apache-2.0
// Retrieval by what the keys say of a query: Quest, LServe, TokenSelect, LouisKV and InstInfer.
#pragma once

#include "pith/policy/key_clusters.hpp"
#include "pith/policy/page_box.hpp"
#include "pith/policy/query_weights.hpp"
#include "pith/policy/recipes_retrieve.hpp"
#include "retrieval_rows.hpp"

namespace example {

// Quest and LServe: pages by the boxes of their keys.
template <class Policy>
class by_boxes : public rows_of<Policy> {
  using base = rows_of<Policy>;
  using typename base::number, typename base::numbers;

 public:
  by_boxes(Policy const& policy, std::int64_t page, std::int64_t parts, std::vector<double> table, retrieval_input const& in)
      : base(policy, {}, in), table_(std::move(table)) {
    for (std::int64_t r = 0; r < in.at.rows(); ++r) {
      pith::page_boxes boxes{.channels = this->width_, .slots_of_page = page, .boxes_of_page = parts};
      for (auto* to : {&low_, &high_}) to->emplace_back(static_cast<number>(boxes.numbers(this->most_)));
      boxes.low = low_.back(), boxes.high = high_.back();
      boxes_.push_back(boxes);
    }
  }
  std::int64_t own_bytes() const override {
    std::int64_t bytes = base::own_bytes();
    for (auto const& of : boxes_) bytes += 2 * of.numbers(of.slots) * static_cast<std::int64_t>(sizeof(float));
    return bytes;
  }

 protected:
  pith::status learn(int layer, std::int64_t head, std::span<pith::survivor const>, std::span<float const> keys) override {
    return boxes(layer, head).append(keys);
  }
  pith::status look(int layer, rows_view, pith::policy_statistics& in) override {
    for (std::int64_t h = 0; h < this->heads_; ++h) {
      auto const& of = boxes(layer, h);
      bool const streams = !table_.empty() && table_[static_cast<number>(layer * this->heads_ + h)] == 0;
      if (!streams) this->count_read(static_cast<double>(2 * of.numbers(of.slots)));
      pith::status const s = pith::slot_bounds(of, this->queries_of(h), this->statistic_of(this->rows(layer), h, 0, 1));
      if (!s) return s;
    }
    in.given = this->statistic_;  // the largest over the group already
    return {};
  }
  pith::policy_input more(int layer) override {
    pith::policy_input in;
    if (!table_.empty())
      in.budget.head_table =
          std::span<double const>(table_).subspan(static_cast<number>(layer * this->heads_), static_cast<number>(this->heads_));
    return in;
  }

 private:
  pith::page_boxes& boxes(int layer, std::int64_t head) { return boxes_[static_cast<number>(layer * this->heads_ + head)]; }

  std::vector<double> table_;
  std::vector<numbers> low_, high_;
  std::vector<pith::page_boxes> boxes_;
};

// TokenSelect: every head votes over the slots that are not read anyway.
class by_votes : public rows_of<pith::recipes::token_select<>> {
  using policy = pith::recipes::token_select<>;
  using base = rows_of<policy>;

 public:
  by_votes(policy const& of, retrieval_input const& in) : base(of, policy::reuse, in) {}

 protected:
  pith::status look(int layer, rows_view, pith::policy_statistics& in) override {
    layer_rows const& of = rows(layer);
    for (std::int64_t h = 0; h < heads_; ++h) {
      marks_.assign(static_cast<number>(of.length[static_cast<number>(h)]), pith::free_slot);
      if (pith::status const s = policy_.at<pith::stage::protect>().mark(marks_, {}); !s) return s;
      count_read(static_cast<double>(pith::free_slots(marks_) * width_));
      for (std::int64_t g = 0; g < group_; ++g) {
        pith::status const s = pith::query_weights(query_of(h, g), keys_of(of, h), scale_, marks_, statistic_of(of, h, g, group_));
        if (!s) return s;
      }
    }
    in.given = statistic_, in.lists = group_;
    return {};
  }

 private:
  std::vector<pith::slot_mark> marks_;
};

// LouisKV: the context's keys in clusters, what came later in runs between choices; whole groups by their mean keys.
class by_clusters : public rows_of<pith::recipes::louis_kv<>> {
  using policy = pith::recipes::louis_kv<>;
  using base = rows_of<policy>;

 public:
  by_clusters(policy const& of, retrieval_input const& in)
      : base(of, policy::reuse, in), groups_(static_cast<number>(in.at.layers), list(static_cast<number>(heads_ * most_))) {
    count_.assign(static_cast<number>(in.at.rows()), 0);
    centroids_.resize(static_cast<number>(in.at.rows()));
    sizes_.resize(static_cast<number>(most_)), weights_.resize(static_cast<number>(most_));
    memory_.resize(static_cast<number>(std::max(pith::cluster_keys_scratch_bytes(most_, most_ / slots_of_cluster + 1, width_),
                                                pith::group_means_scratch_bytes(most_, width_))));
  }
  std::int64_t own_bytes() const override {
    std::int64_t bytes = base::own_bytes() + static_cast<std::int64_t>(layers_.size()) * heads_ * layers_[0].length[0] * 8;  // groups
    for (auto const& of : centroids_) bytes += static_cast<std::int64_t>(of.size() * sizeof(float));
    return bytes;
  }

 protected:
  bool is_on_host(int) const override { return true; }

  pith::status learn(int layer, std::int64_t head, std::span<pith::survivor const> rows_, std::span<float const> keys) override {
    std::int64_t& count = count_[row(layer, head)];
    auto const to = std::span(groups_[static_cast<number>(layer)]).subspan(static_cast<number>(head * most_ + rows_[0].slot), rows_.size());
    if (rows_[0].slot == 0) {  // the context
      std::int64_t const clusters = (static_cast<std::int64_t>(rows_.size()) + slots_of_cluster - 1) / slots_of_cluster;
      numbers& centroids = centroids_[row(layer, head)];
      centroids.resize(static_cast<number>(clusters * width_));
      pith::cluster_options const how{.row = static_cast<std::int64_t>(row(layer, head))};
      count = clusters;
      return pith::cluster_keys(keys, width_, how, to, centroids, memory_);
    }
    if (rows(layer).reuse.steps <= 1) ++count;  // the step before chose: a run begins
    std::fill(to.begin(), to.end(), count - 1);
    return {};
  }
  pith::status look(int layer, rows_view, pith::policy_statistics& in) override {
    layer_rows const& of = rows(layer);
    for (std::int64_t h = 0; h < heads_; ++h) {
      auto const count = static_cast<number>(count_[row(layer, h)]);
      auto const groups = std::span<std::int64_t const>(groups_[static_cast<number>(layer)])
                              .subspan(static_cast<number>(h * most_), static_cast<number>(of.length[static_cast<number>(h)]));
      numbers& centroids = centroids_[row(layer, h)];
      centroids.resize(count * static_cast<number>(width_));
      pith::status s = pith::group_means(keys_of(of, h), width_, groups, centroids, std::span(sizes_).first(count), memory_);
      count_read(static_cast<double>(centroids.size()));
      for (std::int64_t g = 0; s && g < group_; ++g) {
        s = pith::query_weights(query_of(h, g), centroids, scale_, {}, std::span(weights_).first(count));
        if (s) s = pith::scores_of_groups(std::span<float const>(weights_).first(count), groups, statistic_of(of, h, g, group_));
      }
      if (!s) return s;
    }
    in.given = statistic_, in.lists = group_;
    return {};
  }
  pith::policy_input more(int layer) override { return {.groups = groups_[static_cast<number>(layer)]}; }

 private:
  static constexpr std::int64_t slots_of_cluster = 16;
  number row(int layer, std::int64_t head) const { return static_cast<number>(layer * heads_ + head); }

  std::vector<list> groups_;  // [layer][head][slot]
  list count_, sizes_;
  std::vector<numbers> centroids_;
  numbers weights_;
  std::vector<std::byte> memory_;
};

// InstInfer: approximate weights from a quarter of the channels; what is not read counts as the mean value.
class by_channels : public rows_of<pith::recipes::inst_infer<>> {
  using policy = pith::recipes::inst_infer<>;
  using base = rows_of<policy>;

 public:
  by_channels(policy const& of, retrieval_input const& in)
      : base(of, {}, in), sums_(static_cast<number>(in.at.rows()), std::vector<double>(static_cast<number>(width_), 0.0)) {
    for (auto& sum : sums_) means_.push_back({.sum = sum});
    channels_.resize(static_cast<number>(width_ / 4)), mean_.resize(static_cast<number>(width_));
    memory_.resize(static_cast<number>(pith::largest_channels_scratch_bytes(width_)));
  }
  std::int64_t own_bytes() const override {
    return base::own_bytes() + static_cast<std::int64_t>(sums_.size()) * width_ * static_cast<std::int64_t>(sizeof(double));
  }

 protected:
  pith::status learn(int layer, std::int64_t head, std::span<pith::survivor const> rows, std::span<float const>) override {
    values_.resize(rows.size() * static_cast<number>(width_));
    if (pith::status const s = cache_.read_values(layer, static_cast<int>(head), rows, values_); !s) return s;
    return mean_of(layer, head).append(values_);
  }
  pith::status look(int layer, rows_view, pith::policy_statistics& in) override {
    layer_rows const& of = rows(layer);
    for (std::int64_t h = 0; h < heads_; ++h)
      for (std::int64_t g = 0; g < group_; ++g) {
        pith::status s = pith::largest_channels(query_of(h, g), channels_, memory_);
        if (s) s = pith::partial_weights(query_of(h, g), keys_of(of, h), channels_, scale_, {}, statistic_of(of, h, g, group_));
        if (!s) return s;
        count_read(static_cast<double>(of.length[static_cast<number>(h)]) * static_cast<double>(channels_.size()));
      }
    in.given = statistic_, in.lists = group_;
    return {};
  }
  pith::status attend_to_kept(int layer, rows_view q, rows_out out) override {
    if (pith::status const s = base::attend_to_kept(layer, q, out); !s) return s;
    layer_rows& of = rows(layer);
    for (std::int64_t h = 0; h < heads_; ++h) {
      if (pith::status const s = mean_of(layer, h).mean(mean_); !s) return s;
      for (std::int64_t g = 0; g < group_; ++g) {
        auto const alpha = pith::mass_of(statistic_of(of, h, g, group_), kept_room(of, h).first(static_cast<number>(kept_count(of, h))));
        if (!alpha) return alpha.error();
        pith::status const s = pith::blend_mean(std::span(&out(0, h * group_ + g, 0), static_cast<number>(width_)), alpha.value(), mean_);
        if (!s) return s;
      }
    }
    return {};
  }

 private:
  pith::mean_row& mean_of(int layer, std::int64_t head) { return means_[static_cast<number>(layer * heads_ + head)]; }

  std::vector<std::vector<double>> sums_;
  std::vector<pith::mean_row> means_;
  numbers mean_, values_;
  list channels_;
  std::vector<std::byte> memory_;
};

}  // namespace example
