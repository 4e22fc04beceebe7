// SPDX-License-Identifier: Apache-2.0
// Clusters of a row's keys by k-means, their means, and what attention takes a cluster for that it does not read.
//
//   cluster_keys       groups[slot] = argmin_j |k_slot - centroid_j|^2,   centroid_j = mean of its keys, at most `iterations` times
//   group_means        mean row and number of slots of each group: centroids, mean values
//   group_bias         ln n: a group as one slot of its mean key and mean value. With one token a group that is exact      RetroInfer
//   scores_of_groups   every slot gets its group's score: what given_scores takes, and best_groups selects by
//
// Rule K1  The first centroids are the keys of distinct slots that a hash of seed, row and slot names: the same everywhere, every time.
// Rule K2  No cluster is empty: one that became so takes the slot that is farthest from its own centroid, of a cluster that has others.
// Rule K3  Ties: a slot goes to the lowest cluster; of equally far slots the newest moves. Clusters need not be neighbours.
// Rule K4  When cluster_keys returns, every centroid is the mean of its cluster's keys.
//
// errors  shape_mismatch; out_of_range (clusters outside 1 ... slots: -1; a group: `at` is the slot), not_finite (`at` is the number's
//         place), capacity_exceeded (scratch)
// cost    cluster_keys: O(iterations x slots x clusters x channels); sums in f64, slots and channels ascending; no allocation
// from    Lloyd, Least squares quantization in PCM, 1982; Wu et al., LouisKV, 2025 (16 tokens a cluster); Liu et al., ClusterKV, 2024; Chen
//         et al., RetroInfer, 2025 (the estimate)
#pragma once

#include <cmath>
#include <limits>

#include "pith/policy/select.hpp"

namespace pith {

struct cluster_options {
  std::int64_t iterations = 10;
  std::uint64_t seed = 0;
  std::int64_t row = 0;
};

constexpr std::int64_t group_means_scratch_bytes(std::int64_t groups, std::int64_t channels) {
  return lent_memory::bytes<double>(groups * channels);
}
constexpr std::int64_t cluster_keys_scratch_bytes(std::int64_t slots, std::int64_t clusters, std::int64_t channels) {
  return lent_memory::bytes<double>(slots) + lent_memory::bytes<std::int64_t>(clusters) + lent_memory::bytes<float>(slots) +
         lent_memory::bytes<slot_mark>(slots) + group_means_scratch_bytes(clusters, channels);
}

// rows [slot][channel], means [group][channel], counts [group]. A group without a slot has mean 0 and count 0.
inline status group_means(std::span<float const> rows, std::int64_t channels, std::span<std::int64_t const> groups, std::span<float> means,
                          std::span<std::int64_t> counts, std::span<std::byte> scratch) {
  auto const width = static_cast<std::size_t>(std::max<std::int64_t>(channels, 0));
  if (width == 0 || rows.size() != groups.size() * width || means.size() != counts.size() * width)
    return {errc::shape_mismatch, static_cast<std::int64_t>(rows.size())};
  for (std::size_t slot = 0; slot < groups.size(); ++slot)
    if (groups[slot] < 0 || groups[slot] >= static_cast<std::int64_t>(counts.size()))
      return {errc::out_of_range, static_cast<std::int64_t>(slot)};
  std::span<double> sums;
  if (!lent_memory(scratch).take(static_cast<std::int64_t>(means.size()), sums))
    return {errc::capacity_exceeded, group_means_scratch_bytes(static_cast<std::int64_t>(counts.size()), channels)};
  std::fill(sums.begin(), sums.end(), 0.0);
  std::fill(counts.begin(), counts.end(), std::int64_t{0});
  for (std::size_t slot = 0; slot < groups.size(); ++slot) {
    auto const g = static_cast<std::size_t>(groups[slot]);
    ++counts[g];
    for (std::size_t c = 0; c < width; ++c) sums[g * width + c] += static_cast<double>(rows[slot * width + c]);
  }
  for (std::size_t i = 0; i < means.size(); ++i)
    means[i] = counts[i / width] > 0 ? static_cast<float>(sums[i] / static_cast<double>(counts[i / width])) : 0;
  return {};
}

namespace cluster_detail {

class lloyd {
 public:
  lloyd(std::span<float const> keys, std::size_t channels, std::span<std::int64_t> groups, std::span<float> centroids)
      : keys_(keys), channels_(channels), groups_(groups), centroids_(centroids) {}

  status run(cluster_options const& how, std::span<std::byte> scratch) {
    auto const slots = static_cast<std::int64_t>(groups_.size());
    std::int64_t const clusters = static_cast<std::int64_t>(centroids_.size() / channels_);
    std::span<float> order;
    std::span<slot_mark> marks;
    lent_memory memory(scratch);
    if (!memory.take(slots, distance_) || !memory.take(clusters, counts_) || !memory.take(slots, order) || !memory.take(slots, marks))
      return {errc::capacity_exceeded, cluster_keys_scratch_bytes(slots, clusters, static_cast<std::int64_t>(channels_))};
    for (std::size_t slot = 0; slot < order.size(); ++slot) {
      order[slot] = static_cast<float>(random_unit(how.seed, static_cast<std::uint64_t>(how.row), slot));
      marks[slot] = free_slot;
      groups_[slot] = -1;
    }
    if (status const ok = select_top(order, marks, clusters); !ok) return ok;
    auto to = centroids_.begin();
    for (std::size_t slot = 0; slot < marks.size(); ++slot)
      if (marks[slot] == chosen_slot) to = std::copy_n(keys_.begin() + static_cast<std::ptrdiff_t>(slot * channels_), channels_, to);
    for (std::int64_t i = 0; i < std::max<std::int64_t>(how.iterations, 1); ++i) {
      if (!assign()) return {};
      status const ok = group_means(keys_, static_cast<std::int64_t>(channels_), groups_, centroids_, counts_, memory.rest());
      if (!ok) return ok;
    }
    return {};
  }

 private:
  double squared_distance(std::size_t slot, std::size_t cluster) const {
    double sum = 0;
    for (std::size_t c = 0; c < channels_; ++c) {
      double const x = static_cast<double>(keys_[slot * channels_ + c]) - static_cast<double>(centroids_[cluster * channels_ + c]);
      sum += x * x;
    }
    return sum;
  }

  // Whether a slot has changed its cluster.
  bool assign() {
    bool changed = false;
    std::fill(counts_.begin(), counts_.end(), std::int64_t{0});
    for (std::size_t slot = 0; slot < groups_.size(); ++slot) {
      std::size_t nearest = 0;
      double least = squared_distance(slot, 0);
      for (std::size_t cluster = 1; cluster < counts_.size(); ++cluster)
        if (double const d = squared_distance(slot, cluster); d < least) least = d, nearest = cluster;
      changed = changed || groups_[slot] != static_cast<std::int64_t>(nearest);
      groups_[slot] = static_cast<std::int64_t>(nearest);
      distance_[slot] = least;
      ++counts_[nearest];
    }
    for (std::size_t cluster = 0; cluster < counts_.size(); ++cluster)
      if (counts_[cluster] == 0) fill(cluster), changed = true;
    return changed;
  }

  // There are as many slots as clusters, so that another cluster has two.
  void fill(std::size_t cluster) {
    std::size_t farthest = groups_.size();
    for (std::size_t slot = 0; slot < groups_.size(); ++slot)
      if (counts_[static_cast<std::size_t>(groups_[slot])] > 1 && (farthest == groups_.size() || distance_[slot] >= distance_[farthest]))
        farthest = slot;
    --counts_[static_cast<std::size_t>(groups_[farthest])];
    groups_[farthest] = static_cast<std::int64_t>(cluster);
    distance_[farthest] = 0;
    counts_[cluster] = 1;
  }

  std::span<float const> keys_;
  std::size_t channels_;
  std::span<std::int64_t> groups_;
  std::span<float> centroids_;
  std::span<double> distance_;
  std::span<std::int64_t> counts_;
};

}  // namespace cluster_detail

// keys [slot][channel]; groups [slot] and centroids [cluster][channel] are written. Without slots there are no clusters.
inline status cluster_keys(std::span<float const> keys, std::int64_t channels, cluster_options const& how, std::span<std::int64_t> groups,
                           std::span<float> centroids, std::span<std::byte> scratch) {
  auto const width = static_cast<std::size_t>(std::max<std::int64_t>(channels, 0));
  if (width == 0 || keys.size() != groups.size() * width || centroids.size() % width != 0)
    return {errc::shape_mismatch, static_cast<std::int64_t>(keys.size())};
  std::size_t const clusters = centroids.size() / width;
  if (groups.empty() && clusters == 0) return {};
  if (clusters < 1 || clusters > groups.size()) return {errc::out_of_range, -1};
  for (std::size_t i = 0; i < keys.size(); ++i)
    if (!is_finite(keys[i])) return {errc::not_finite, static_cast<std::int64_t>(i)};
  return cluster_detail::lloyd(keys, width, groups, centroids).run(how, scratch);
}

// -infinity for a group without a slot: it is not there.
inline status group_bias(std::span<std::int64_t const> counts, std::span<float> bias) {
  if (bias.size() != counts.size()) return {errc::shape_mismatch, static_cast<std::int64_t>(bias.size())};
  for (std::size_t g = 0; g < counts.size(); ++g)
    bias[g] = counts[g] > 0 ? static_cast<float>(std::log(static_cast<double>(counts[g]))) : -std::numeric_limits<float>::infinity();
  return {};
}

inline status scores_of_groups(std::span<float const> group_scores, std::span<std::int64_t const> groups, std::span<float> out) {
  if (out.size() != groups.size()) return {errc::shape_mismatch, static_cast<std::int64_t>(out.size())};
  for (std::size_t slot = 0; slot < groups.size(); ++slot)
    if (groups[slot] < 0 || groups[slot] >= static_cast<std::int64_t>(group_scores.size()))
      return {errc::out_of_range, static_cast<std::int64_t>(slot)};
  for (std::size_t slot = 0; slot < groups.size(); ++slot) out[slot] = group_scores[static_cast<std::size_t>(groups[slot])];
  return {};
}

}  // namespace pith
