// SPDX-License-Identifier: Apache-2.0
// What one query gives the slots of a row, exact or from a few channels of the keys: scores that a step's reading is chosen by.
//
//   query_weights      w = softmax(scale q . k) over the candidates, 0 elsewhere
//                        a head's soft vote (TokenSelect: summed over heads), a centroid's score (LouisKV: mean over the group)
//   largest_channels   the r channels of largest |q_c|, ascending; ties: the higher channel
//   partial_weights    w = softmax(scale q_r . k_r / sqrt(|q_r|_1 / |q|_1)) over these channels r alone            SparQ, InstInfer
//   mass_of            the sum of some slots' weights: alpha
//   blend_mean         out = alpha out + (1 - alpha) mean:  what was not read is taken for the mean value          SparQ
//   mean_row           that mean, over rows as they come
//
// Each gives one list; head maps and pooling are stages of the policy. Candidates are the slots that are free in `marks`; empty: all.
//
// errors  shape_mismatch; out_of_range (a channel: `at`; r outside 0 ... channels; alpha outside [0, 1] by more than rounding: -1; a slot:
//         `at`), not_finite (a query, -1 - the channel; a logit: `at` is the slot), capacity_exceeded (scratch)
// cost    O(slots x channels that are read); sums in f64, channels and slots ascending; no allocation
// from    Wu et al., TokenSelect, 2024; Ribar et al., SparQ Attention, 2024; Pan et al., InstInfer, 2024
// differs SparQ keeps keys twice, a channel's neighbours in memory too; here rows are plain, and how they lie is the caller's
#pragma once

#include <cmath>

#include "pith/policy/select.hpp"

namespace pith {

namespace weight_detail {

inline status check(std::span<float const> query, std::span<float const> keys, std::span<slot_mark const> marks, std::span<float> out) {
  if (query.empty() || keys.size() != out.size() * query.size()) return {errc::shape_mismatch, static_cast<std::int64_t>(keys.size())};
  if (!marks.empty() && marks.size() != out.size()) return {errc::shape_mismatch, static_cast<std::int64_t>(marks.size())};
  for (std::size_t c = 0; c < query.size(); ++c)
    if (!is_finite(query[c])) return {errc::not_finite, -1 - static_cast<std::int64_t>(c)};
  return {};
}

// out = softmax of logit(slot) over the candidates.
template <class Logit>
status softmax(std::span<slot_mark const> marks, std::span<float> out, Logit logit) {
  double most = 0, sum = 0;
  bool any = false;
  auto const candidate = [&](std::size_t slot) { return marks.empty() || marks[slot] == free_slot; };
  for (std::size_t slot = 0; slot < out.size(); ++slot) {
    out[slot] = 0;
    if (!candidate(slot)) continue;
    out[slot] = static_cast<float>(logit(slot));
    if (!is_finite(out[slot])) return {errc::not_finite, static_cast<std::int64_t>(slot)};
    most = any ? std::max(most, static_cast<double>(out[slot])) : static_cast<double>(out[slot]);
    any = true;
  }
  for (std::size_t slot = 0; slot < out.size(); ++slot)
    if (candidate(slot)) sum += std::exp(static_cast<double>(out[slot]) - most);
  for (std::size_t slot = 0; slot < out.size(); ++slot)
    if (candidate(slot)) out[slot] = static_cast<float>(std::exp(static_cast<double>(out[slot]) - most) / sum);
  return {};
}

}  // namespace weight_detail

// keys [slot][channel]
inline status query_weights(std::span<float const> query, std::span<float const> keys, double scale, std::span<slot_mark const> marks,
                            std::span<float> out) {
  if (status const ok = weight_detail::check(query, keys, marks, out); !ok) return ok;
  return weight_detail::softmax(marks, out, [&](std::size_t slot) {
    double sum = 0;
    for (std::size_t c = 0; c < query.size(); ++c)
      sum += static_cast<double>(query[c]) * static_cast<double>(keys[slot * query.size() + c]);
    return scale * sum;
  });
}

constexpr std::int64_t largest_channels_scratch_bytes(std::int64_t channels) {
  return lent_memory::bytes<float>(channels) + lent_memory::bytes<slot_mark>(channels) + lent_memory::bytes<std::int64_t>(channels);
}

// As many channels as `out` has room for.
inline status largest_channels(std::span<float const> query, std::span<std::int64_t> out, std::span<std::byte> scratch) {
  auto const channels = static_cast<std::int64_t>(query.size());
  if (out.size() > query.size()) return {errc::out_of_range, static_cast<std::int64_t>(out.size())};
  std::span<float> sizes;
  std::span<slot_mark> marks;
  std::span<std::int64_t> kept;
  lent_memory memory(scratch);
  if (!memory.take(channels, sizes) || !memory.take(channels, marks) || !memory.take(channels, kept))
    return {errc::capacity_exceeded, largest_channels_scratch_bytes(channels)};
  for (std::size_t c = 0; c < query.size(); ++c) {
    if (!is_finite(query[c])) return {errc::not_finite, -1 - static_cast<std::int64_t>(c)};
    sizes[c] = std::fabs(query[c]), marks[c] = free_slot;
  }
  if (status const ok = select_top(sizes, marks, static_cast<std::int64_t>(out.size())); !ok) return ok;
  std::copy_n(kept.begin(), kept_slots(marks, kept), out.begin());
  return {};
}

// `channels` are of largest_channels, or any others. Without any, or for a query of zeros, all candidates weigh the same.
inline status partial_weights(std::span<float const> query, std::span<float const> keys, std::span<std::int64_t const> channels,
                              double scale, std::span<slot_mark const> marks, std::span<float> out) {
  if (status const ok = weight_detail::check(query, keys, marks, out); !ok) return ok;
  double all = 0, part = 0;
  for (float const x : query) all += std::fabs(static_cast<double>(x));
  for (std::int64_t const c : channels) {
    if (c < 0 || c >= static_cast<std::int64_t>(query.size())) return {errc::out_of_range, c};
    part += std::fabs(static_cast<double>(query[static_cast<std::size_t>(c)]));
  }
  double const by = part > 0 ? scale / std::sqrt(part / all) : 0;
  return weight_detail::softmax(marks, out, [&](std::size_t slot) {
    double sum = 0;
    for (std::int64_t const c : channels) {
      auto const i = static_cast<std::size_t>(c);
      sum += static_cast<double>(query[i]) * static_cast<double>(keys[slot * query.size() + i]);
    }
    return by * sum;
  });
}

// The weights of `slots` together.
inline result<double> mass_of(std::span<float const> weights, std::span<std::int64_t const> slots) {
  double sum = 0;
  for (std::int64_t const slot : slots) {
    if (slot < 0 || slot >= static_cast<std::int64_t>(weights.size())) return status{errc::out_of_range, slot};
    sum += static_cast<double>(weights[static_cast<std::size_t>(slot)]);
  }
  return sum;
}

// out [channel] is attention to what was read, whose part of all is alpha.
inline status blend_mean(std::span<float> out, double alpha, std::span<float const> mean) {
  if (mean.size() != out.size()) return {errc::shape_mismatch, static_cast<std::int64_t>(mean.size())};
  if (!(alpha >= 0 && alpha <= 1.0001)) return {errc::out_of_range, -1};  // f32 weights may sum to a little more than 1
  alpha = std::min(alpha, 1.0);
  for (std::size_t c = 0; c < out.size(); ++c)
    out[c] = static_cast<float>(alpha * static_cast<double>(out[c]) + (1 - alpha) * static_cast<double>(mean[c]));
  return {};
}

// sum [channel] in f64, so that the mean does not depend on how many rows came at once.
struct mean_row {
  std::span<double> sum{};
  std::int64_t rows = 0;

  // rows [row][channel]
  status append(std::span<float const> more) {
    if (sum.empty() || more.size() % sum.size() != 0) return {errc::shape_mismatch, static_cast<std::int64_t>(more.size())};
    for (std::size_t i = 0; i < more.size(); ++i)
      if (!is_finite(more[i])) return {errc::not_finite, static_cast<std::int64_t>(i)};
    for (std::size_t i = 0; i < more.size(); ++i) sum[i % sum.size()] += static_cast<double>(more[i]);
    rows += static_cast<std::int64_t>(more.size() / sum.size());
    return {};
  }
  // Zeros if there is no row.
  status mean(std::span<float> out) const {
    if (out.size() != sum.size()) return {errc::shape_mismatch, static_cast<std::int64_t>(out.size())};
    for (std::size_t c = 0; c < out.size(); ++c) out[c] = rows > 0 ? static_cast<float>(sum[c] / static_cast<double>(rows)) : 0;
    return {};
  }
};

}  // namespace pith
