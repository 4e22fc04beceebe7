// SPDX-License-Identifier: Apache-2.0
// The arithmetic of merging, given where each slot goes (merge_route.hpp): rows with weights, and multiplicities.
//
//   out[t] = sum w_i row_i over the slots with target t        w >= 0; mean-type weights have sum 1 for each target
//   bias_out[t] = ln sum e^bias_i                              a slot that stands for m tokens has bias ln m
//
// The bias is what makes a merge exact: m equal tokens, merged into one with bias ln m, leave attention as it was in numerator and
// denominator.
//
//   mean_weights        w_i = e^bias_i / sum e^bias                         exact for equal tokens, and a mean over tokens, not over slots
//   similarity_weights  w_i = max(cos_i, 0) / sum, a kept slot's cosine 1   D2O
//   score_weights       w_i = max(score_i, 0) / sum                         EMS; even where that is 0
//   gaussian_weights    w_i = g_i / sum, g_i = exp(-|k_i - k_t|^2 / (2 sigma^2)), a kept slot's g is 1      KVMerger, sigma 5
//
// Rule M1  Without losers rows and biases come out bit for bit.
// Rule M2  sum e^bias is the same before and after, but for what is dropped.
//
// errors  shape_mismatch (extents), out_of_range (a target past the end, `at` is the slot), not_finite (a bias that is NaN or +infinity),
//         capacity_exceeded (scratch). in and out do not overlap
// cost    O(n channels); no allocation
// from    KVMerger, D2O (see merge_route.hpp); RazorAttention's N_d is a bias
// differs D2O's code does not divide by the sum of weights. KVMerger multiplies values by the run's length and leaves the
//         denominator alone: `times_count` does that, and is not exact; with a bias it is not needed
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "pith/policy/merge_route.hpp"
#include "pith/policy/scratch.hpp"

namespace pith {

namespace merge_detail {

inline status check_targets(std::span<std::int64_t const> target, std::int64_t targets) {
  for (std::size_t slot = 0; slot < target.size(); ++slot)
    if (target[slot] < no_target || target[slot] >= targets) return {errc::out_of_range, static_cast<std::int64_t>(slot)};
  return {};
}
inline double bias_of(std::span<float const> bias, std::size_t slot) { return bias.empty() ? 0.0 : static_cast<double>(bias[slot]); }

}  // namespace merge_detail

constexpr std::int64_t merge_scratch_bytes(std::int64_t targets) { return 2 * lent_memory::bytes<double>(targets); }

// Divides each slot's weight by the sum of its target's.
// errors  out_of_range: a weight that is negative or no number, or a target without weight (`at` is the slot)
inline status normalise_weights(std::span<std::int64_t const> target, std::int64_t targets, std::span<float> weight,
                                std::span<std::byte> scratch) {
  if (weight.size() != target.size()) return {errc::shape_mismatch, static_cast<std::int64_t>(weight.size())};
  if (status const ok = merge_detail::check_targets(target, targets); !ok) return ok;
  std::span<double> sum;
  if (!lent_memory(scratch).take(targets, sum)) return {errc::capacity_exceeded, merge_scratch_bytes(targets)};
  std::fill(sum.begin(), sum.end(), 0.0);
  for (std::size_t slot = 0; slot < target.size(); ++slot) {
    if (target[slot] == no_target) continue;
    if (!(weight[slot] >= 0) || !is_finite(weight[slot])) return {errc::out_of_range, static_cast<std::int64_t>(slot)};
    sum[static_cast<std::size_t>(target[slot])] += static_cast<double>(weight[slot]);
  }
  for (std::size_t slot = 0; slot < target.size(); ++slot)
    if (target[slot] != no_target && !(sum[static_cast<std::size_t>(target[slot])] > 0))
      return {errc::out_of_range, static_cast<std::int64_t>(slot)};
  for (std::size_t slot = 0; slot < target.size(); ++slot)
    weight[slot] = target[slot] == no_target
                       ? 0.0f
                       : static_cast<float>(static_cast<double>(weight[slot]) / sum[static_cast<std::size_t>(target[slot])]);
  return {};
}

// bias empty: zeros. `most`, [target], is the largest bias, `sum` of e^(bias - most).
namespace merge_detail {

inline status masses(std::span<std::int64_t const> target, std::int64_t targets, std::span<float const> bias, std::span<double>& most,
                     std::span<double>& sum, std::span<std::byte> scratch) {
  if (!bias.empty() && bias.size() != target.size()) return {errc::shape_mismatch, static_cast<std::int64_t>(bias.size())};
  if (status const ok = check_targets(target, targets); !ok) return ok;
  for (std::size_t slot = 0; slot < bias.size(); ++slot)
    if (is_nan(bias[slot]) || float_bits(bias[slot]) == 0x7f800000u) return {errc::not_finite, static_cast<std::int64_t>(slot)};
  lent_memory memory(scratch);
  if (!memory.take(targets, most) || !memory.take(targets, sum)) return {errc::capacity_exceeded, merge_scratch_bytes(targets)};
  std::fill(most.begin(), most.end(), -std::numeric_limits<double>::infinity());
  std::fill(sum.begin(), sum.end(), 0.0);
  for (std::size_t slot = 0; slot < target.size(); ++slot)
    if (target[slot] != no_target) {
      double& m = most[static_cast<std::size_t>(target[slot])];
      m = std::max(m, bias_of(bias, slot));
    }
  for (std::size_t slot = 0; slot < target.size(); ++slot) {
    if (target[slot] == no_target) continue;
    auto const t = static_cast<std::size_t>(target[slot]);
    if (most[t] > -std::numeric_limits<double>::infinity()) sum[t] += std::exp(bias_of(bias, slot) - most[t]);
  }
  return {};
}

}  // namespace merge_detail

inline status merge_bias(std::span<std::int64_t const> target, std::span<float const> bias, std::span<float> out,
                         std::span<std::byte> scratch) {
  std::span<double> most, sum;
  auto const targets = static_cast<std::int64_t>(out.size());
  if (status const ok = merge_detail::masses(target, targets, bias, most, sum, scratch); !ok) return ok;
  for (std::size_t t = 0; t < out.size(); ++t)
    out[t] = static_cast<float>(sum[t] > 0 ? most[t] + std::log(sum[t]) : -std::numeric_limits<double>::infinity());
  return {};
}

// Slots that weigh nothing at all (bias -infinity) share their target evenly if it has no others.
inline status mean_weights(std::span<std::int64_t const> target, std::int64_t targets, std::span<float const> bias, std::span<float> weight,
                           std::span<std::byte> scratch) {
  if (weight.size() != target.size()) return {errc::shape_mismatch, static_cast<std::int64_t>(weight.size())};
  std::span<double> most, sum;
  if (status const ok = merge_detail::masses(target, targets, bias, most, sum, scratch); !ok) return ok;
  for (std::size_t slot = 0; slot < target.size(); ++slot) {
    auto const t = static_cast<std::size_t>(target[slot]);
    weight[slot] = target[slot] == no_target ? 0.0f
                   : sum[t] > 0              ? static_cast<float>(std::exp(merge_detail::bias_of(bias, slot) - most[t]))
                                             : 1.0f;
  }
  return normalise_weights(target, targets, weight, scratch);
}

// `similarity` as route_most_similar leaves it; weights take its place.
inline status similarity_weights(std::span<std::int64_t const> target, std::int64_t targets, std::span<float> similarity,
                                 std::span<std::byte> scratch) {
  for (float& s : similarity) s = s > 0 ? s : 0.0f;
  return normalise_weights(target, targets, similarity, scratch);
}

// errors  not_finite (a score that is NaN or infinite: `at` is the slot)
inline status score_weights(std::span<std::int64_t const> target, std::int64_t targets, std::span<float const> scores,
                            std::span<float> weight, std::span<std::byte> scratch) {
  if (weight.size() != target.size()) return {errc::shape_mismatch, static_cast<std::int64_t>(weight.size())};
  if (scores.size() != target.size()) return {errc::shape_mismatch, static_cast<std::int64_t>(scores.size())};
  if (status const ok = merge_detail::check_targets(target, targets); !ok) return ok;
  std::span<double> sum;
  if (!lent_memory(scratch).take(targets, sum)) return {errc::capacity_exceeded, merge_scratch_bytes(targets)};
  std::fill(sum.begin(), sum.end(), 0.0);
  for (std::size_t slot = 0; slot < target.size(); ++slot) {
    if (target[slot] == no_target) continue;
    if (!is_finite(scores[slot])) return {errc::not_finite, static_cast<std::int64_t>(slot)};
    sum[static_cast<std::size_t>(target[slot])] += std::max(static_cast<double>(scores[slot]), 0.0);
  }
  for (std::size_t slot = 0; slot < target.size(); ++slot) {
    bool const none = target[slot] != no_target && !(sum[static_cast<std::size_t>(target[slot])] > 0);
    weight[slot] = none ? 1.0f : std::max(scores[slot], 0.0f);
  }
  return normalise_weights(target, targets, weight, scratch);
}

// Every target is a kept slot of the row (not route_one's). errors  out_of_range: sigma is not positive, or there is no kept slot of a
// target
inline status gaussian_weights(std::span<float const> keys, std::int64_t channels, std::span<slot_mark const> marks,
                               std::span<std::int64_t const> target, std::int64_t targets, double sigma, std::span<float> weight,
                               std::span<std::byte> scratch) {
  if (!(sigma > 0)) return {errc::out_of_range, -1};
  if (marks.size() != target.size() || weight.size() != target.size())
    return {errc::shape_mismatch, static_cast<std::int64_t>(marks.size())};
  if (channels < 1 || keys.size() != target.size() * static_cast<std::size_t>(channels)) return {errc::shape_mismatch, channels};
  if (status const ok = merge_detail::check_targets(target, targets); !ok) return ok;
  std::span<std::int64_t> own;
  if (!lent_memory(scratch).take(targets, own)) return {errc::capacity_exceeded, merge_scratch_bytes(targets)};
  std::fill(own.begin(), own.end(), no_target);
  for (std::size_t slot = 0; slot < target.size(); ++slot)
    if (marks[slot] != free_slot && target[slot] != no_target)
      own[static_cast<std::size_t>(target[slot])] = static_cast<std::int64_t>(slot);
  for (std::size_t slot = 0; slot < target.size(); ++slot) {
    weight[slot] = 0;
    if (target[slot] == no_target) continue;
    std::int64_t const to = own[static_cast<std::size_t>(target[slot])];
    if (to == no_target) return {errc::out_of_range, static_cast<std::int64_t>(slot)};
    double distance = 0;
    for (std::int64_t c = 0; c < channels; ++c) {
      double const d = static_cast<double>(keys[slot * static_cast<std::size_t>(channels) + static_cast<std::size_t>(c)]) -
                       static_cast<double>(keys[static_cast<std::size_t>(to * channels + c)]);
      distance += d * d;
    }
    weight[slot] = static_cast<float>(std::exp(-distance / (2 * sigma * sigma)));
  }
  return normalise_weights(target, targets, weight, scratch);
}

// rows [slot][channels], out [target][channels]; targets that nothing goes to are 0. With `times_count` a target's row is multiplied by its
// number of slots.
inline status merge_rows(std::span<std::int64_t const> target, std::span<float const> weight, std::span<float const> rows,
                         std::int64_t channels, std::span<float> out, std::span<std::byte> scratch, bool times_count = false) {
  if (weight.size() != target.size()) return {errc::shape_mismatch, static_cast<std::int64_t>(weight.size())};
  if (channels < 1 || rows.size() != target.size() * static_cast<std::size_t>(channels) ||
      out.size() % static_cast<std::size_t>(channels) != 0)
    return {errc::shape_mismatch, channels};
  auto const targets = static_cast<std::int64_t>(out.size()) / channels;
  if (status const ok = merge_detail::check_targets(target, targets); !ok) return ok;
  std::span<std::int64_t> count;
  if (!lent_memory(scratch).take(targets, count)) return {errc::capacity_exceeded, merge_scratch_bytes(targets)};
  std::fill(count.begin(), count.end(), 0);
  std::fill(out.begin(), out.end(), 0.0f);
  for (std::size_t slot = 0; slot < target.size(); ++slot) {
    if (target[slot] == no_target) continue;
    float const* const in = rows.data() + slot * static_cast<std::size_t>(channels);
    float* const to = out.data() + target[slot] * channels;
    bool const first = count[static_cast<std::size_t>(target[slot])]++ == 0;  // 1 * x is x, bit for bit; 0 + -0 is not
    for (std::int64_t c = 0; c < channels; ++c) to[c] = first ? weight[slot] * in[c] : to[c] + weight[slot] * in[c];
  }
  if (!times_count) return {};
  for (std::int64_t t = 0; t < targets; ++t)
    for (std::int64_t c = 0; c < channels; ++c)
      out[static_cast<std::size_t>(t * channels + c)] *= static_cast<float>(count[static_cast<std::size_t>(t)]);
  return {};
}

}  // namespace pith
