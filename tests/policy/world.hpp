// SPDX-License-Identifier: Apache-2.0
// Rows of a made-up cache with everything a policy may ask for: ragged, with gaps between the rows, any number of heads, probabilities as a
// softmax gives them.
#pragma once

#include <numeric>

#include "oracle.hpp"
#include "pith/policy/decide.hpp"

namespace oracle {

struct world {
  using list = std::vector<std::int64_t>;

  std::int64_t layers, kv_heads, group, channels = 4, rows_of_statistics = 0;
  list offset, length;
  std::vector<float> sum, square_sum, maximum, given, weighted_sum, keys, bias, value_weights;  // statistics [row][list][slot]
  std::vector<std::uint8_t> mask, pins;
  list positions, groups;
  std::vector<double> per_layer, head_table;
  std::vector<float> score, weight, bias_out, compensation_bias;
  std::vector<std::uint64_t> history;
  list known, kept, kept_count, position, target;
  pith::policy_state state;
  pith::policy_plan plan;

  // `probabilities` [query row] of the newest `window` tokens for each (row, list), kept for oracles that want them whole.
  std::vector<std::vector<std::vector<double>>> probabilities;  // [row * group + list][query][slot]

  world(std::mt19937& random, std::int64_t layers_, std::int64_t kv_heads_, std::int64_t group_, list const& lengths, std::int64_t window,
        bool peaked = true)
      : layers(layers_), kv_heads(kv_heads_), group(group_), length(lengths) {
    std::int64_t at = 3;  // the first row begins behind a gap
    for (std::int64_t const n : length) offset.push_back(at), at += n + static_cast<std::int64_t>(random() % 3);
    auto const all = static_cast<std::size_t>(at), lists = static_cast<std::size_t>(group);
    for (auto* statistic : {&sum, &square_sum, &maximum, &given, &weighted_sum}) statistic->assign(all * lists, NAN);  // gaps hold garbage
    for (auto* of : {&keys, &bias, &score, &weight, &bias_out, &value_weights})
      of->assign(all * (of == &keys ? static_cast<std::size_t>(channels) : 1), NAN);
    mask.assign(all, 0), pins.assign(all, 0), positions.assign(all, -1), groups.assign(all, -1), history.assign(all * 8, ~std::uint64_t{0});
    known.assign(length.size(), 0), kept_count.assign(length.size(), -7), compensation_bias.assign(length.size(), NAN);
    for (auto* of : {&kept, &position, &target}) of->assign(all, -7);
    probabilities.resize(length.size() * lists);
    for (std::size_t r = 0; r < length.size(); ++r) {
      head_table.push_back(static_cast<double>(random() % 3));
      std::int64_t position_of = 0;
      for (std::int64_t s = 0; s < length[r]; ++s) {
        auto const i = static_cast<std::size_t>(offset[r] + s);
        positions[i] = position_of += 1 + static_cast<std::int64_t>(random() % 3);
        groups[i] = s * 5 % 7 % length[r];  // neither random, so that seeds give the worlds they gave, nor runs
        mask[i] = random() % 10 == 0, pins[i] = random() % 20 == 0;
        bias[i] = random() % 4 == 0 ? 0.7f : 0.0f;
        for (std::int64_t c = 0; c < channels; ++c)
          keys[i * 4 + static_cast<std::size_t>(c)] = static_cast<float>(random() % 2000) / 1000.0f - 1.0f;
        value_weights[i] = std::abs(keys[i * 4]);
      }
      for (std::size_t q = 0; q < lists; ++q) make_statistics(random, r, q, window, peaked);
    }
    for (std::int64_t l = 0; l < layers; ++l) per_layer.push_back(0.25 + static_cast<double>(random() % 100) / 25);
    rows_of_statistics = window;
    state = {score, history, known, 0, 0};
    plan.kept = kept, plan.kept_count = kept_count, plan.position = position, plan.target = target, plan.weight = weight,
    plan.bias = bias_out;
    plan.compensation_bias = compensation_bias;
  }
  world(world const&) = delete;

  std::int64_t rows() const { return layers * kv_heads; }
  pith::policy_rows where() const { return {layers, kv_heads, offset, length}; }
  pith::policy_statistics statistics() const {
    return {sum, square_sum, maximum, given, group, rows_of_statistics, length.empty() ? 0 : length[0], weighted_sum, sum};
  }
  pith::policy_input input() const {
    pith::policy_input in;
    in.mask = mask, in.pins = pins, in.positions = positions, in.keys = keys, in.channels = channels, in.bias = bias,
    in.value_weights = value_weights, in.groups = groups;
    in.budget.layers = {per_layer, per_layer, per_layer, per_layer};
    in.budget.head_table = head_table;
    return in;
  }
  std::int64_t slots() const { return std::accumulate(length.begin(), length.end(), std::int64_t{0}); }

  template <class Policy>
  pith::status observe(Policy const& policy) {
    memory scratch(pith::observe_scratch_bytes(length.empty() ? 0 : *std::max_element(length.begin(), length.end())));
    return pith::observe(policy, where(), statistics(), state, scratch);
  }
  template <class Policy>
  pith::status decide(Policy const& policy) {
    memory scratch(pith::decide_scratch_bytes(rows(), slots()));
    return pith::decide(policy, where(), input(), state, plan, scratch);
  }
  list kept_of(std::int64_t r) const {
    auto const from = kept.begin() + offset[static_cast<std::size_t>(r)];
    return {from, from + kept_count[static_cast<std::size_t>(r)]};
  }
  // A row's mean over its lists, in the order of the library's additions.
  std::vector<float> mapped(std::vector<float> const& statistic, std::size_t r) const {
    std::vector<float> out(static_cast<std::size_t>(length[r]));
    for (std::size_t s = 0; s < out.size(); ++s) {
      float total = 0;
      for (std::int64_t q = 0; q < group; ++q) total += statistic[static_cast<std::size_t>(group * offset[r] + q * length[r]) + s];
      out[s] = group > 1 ? total / static_cast<float>(group) : total;
    }
    return out;
  }

 private:
  void make_statistics(std::mt19937& random, std::size_t r, std::size_t q, std::int64_t window, bool peaked) {
    auto const slots = static_cast<std::size_t>(length[r]);
    std::size_t const at = static_cast<std::size_t>(group * offset[r]) + q * slots;
    std::vector<double> total(slots, 0.0), squares(slots, 0.0), most(slots, 0.0), weighted(slots, 0.0);
    for (std::int64_t i = 0; i < window; ++i) {
      std::int64_t const visible = std::max<std::int64_t>(length[r] - window + i + 1, 0);
      std::vector<double> p(slots, 0.0);
      double all = 0;
      for (std::int64_t s = 0; s < std::min(visible, length[r]); ++s) {
        double const logit = peaked ? static_cast<double>(random() % 800) / 100 : static_cast<double>(random() % 2);
        all += p[static_cast<std::size_t>(s)] = std::exp(logit);
      }
      for (std::size_t s = 0; s < slots; ++s) {
        p[s] = all > 0 ? p[s] / all : 0;
        total[s] += p[s], squares[s] += p[s] * p[s], most[s] = std::max(most[s], p[s]);
        weighted[s] += static_cast<double>(visible) * p[s];
      }
      probabilities[r * static_cast<std::size_t>(group) + q].push_back(p);
    }
    for (std::size_t s = 0; s < slots; ++s) {
      weighted_sum[at + s] = static_cast<float>(weighted[s]);
      sum[at + s] = static_cast<float>(total[s]), square_sum[at + s] = static_cast<float>(squares[s]);
      maximum[at + s] = static_cast<float>(most[s]), given[at + s] = static_cast<float>(random() % 100) / 50.0f - 1.0f;
    }
  }
};

}  // namespace oracle
