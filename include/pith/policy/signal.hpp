// SPDX-License-Identifier: Apache-2.0
// Stage "signal": which statistic of a slot the policy lives on, as one number. p_i is the probability that query row i gives the slot; the
// engine sums over the rows that `query_rows` asks for (with a kernel: a second pass over the keys, once lse is known).
//
//   no_signal                  nothing: positions only                                   StreamingLLM, LaCache
//   all_attention              sum p_i over all rows of the call                         H2O
//   window_attention<W>        sum p_i over the newest W rows                            SnapKV and kin
//   weighted_attention<W>      sum n_i p_i over the newest W rows, n_i: keys that row i sees   Finch
//   global_and_window_attention<W>   sum p_i over all rows, and over the newest W brought to the same mean: the larger, or their sum   EMS
//   last_attention             p of the newest row                                       TOVA
//   window_mean_variance<W>    mean p_i + gamma var p_i over the newest W rows           CAKE, gamma 200; unbiased variance
//   maximum_attention          max p_i over all rows                                     KVzip
//   given_scores               a number that a model or the engine gives                 Locret, DMS, SirLLM, key norms
//
// Statistics of a window say nothing of the window's own slots (their columns are not complete): the newest `unscored` slots are neither
// smoothed nor meant to be ranked; protect them with window<W>.
//
// errors  shape_mismatch: a statistic is missing or has another extent
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <span>

#include "pith/core/scalar.hpp"
#include "pith/core/status.hpp"
#include "pith/policy/stage.hpp"

namespace pith {

// Statistics of the slots of one row, over `rows` query rows. weighted_sum: of p times the number of keys that the query row sees.
// window_sum: over fewer rows than sum.
struct slot_statistics {
  std::span<float const> sum{}, square_sum{}, maximum{}, given{};
  std::int64_t rows = 0;
  std::span<float const> weighted_sum{}, window_sum{};
};

inline constexpr std::int64_t all_rows = std::numeric_limits<std::int64_t>::max();

namespace signal_detail {

inline status copy(std::span<float const> from, std::span<float> out) {
  if (from.size() != out.size()) return {errc::shape_mismatch, static_cast<std::int64_t>(from.size())};
  for (std::size_t slot = 0; slot < out.size(); ++slot) out[slot] = from[slot];
  return {};
}

}  // namespace signal_detail

struct no_signal {
  static constexpr stage kind = stage::signal;
  static constexpr std::int64_t query_rows = 0, unscored = 0;
  status value(slot_statistics const&, std::span<float> out) const {
    for (float& x : out) x = 0;
    return {};
  }
};

// Sums of p over the newest Rows query rows.
template <std::int64_t Rows, std::int64_t Unscored>
struct summed_attention {
  static constexpr stage kind = stage::signal;
  static constexpr std::int64_t query_rows = Rows, unscored = Unscored;
  status value(slot_statistics const& in, std::span<float> out) const { return signal_detail::copy(in.sum, out); }
};

struct all_attention : summed_attention<all_rows, 0> {};

template <std::int64_t Rows = 32>
struct window_attention : summed_attention<Rows, Rows> {
  static constexpr bool valid = Rows > 0;
};

// p falls as 1 / n where a row sees n keys: times n, early rows of the window and late ones have one scale.
template <std::int64_t Rows = 32>
struct weighted_attention {
  static constexpr stage kind = stage::signal;
  static constexpr bool valid = Rows > 0, weighs_rows = true;
  static constexpr std::int64_t query_rows = Rows, unscored = Rows;
  status value(slot_statistics const& in, std::span<float> out) const { return signal_detail::copy(in.weighted_sum, out); }
};

enum class joined : std::uint8_t { maximum, sum };

// Means are over the slots before the window, in f64. The window's own slots, and all where it looked at none before it, have the sum over
// all rows alone: a window that looks at itself would have them outweigh everything.
template <std::int64_t Rows = 32>
struct global_and_window_attention {
  static constexpr stage kind = stage::signal;
  static constexpr bool valid = Rows > 0, has_two_sums = true;
  static constexpr std::int64_t query_rows = all_rows, window_rows = Rows, unscored = Rows;
  joined by = joined::maximum;
  status value(slot_statistics const& in, std::span<float> out) const {
    if (in.sum.size() != out.size()) return {errc::shape_mismatch, static_cast<std::int64_t>(in.sum.size())};
    if (in.window_sum.size() != out.size()) return {errc::shape_mismatch, static_cast<std::int64_t>(in.window_sum.size())};
    std::size_t const scored = out.size() - std::min(out.size(), static_cast<std::size_t>(Rows));
    double all = 0, window = 0;
    for (std::size_t slot = 0; slot < scored; ++slot)
      if (is_finite(in.sum[slot]) && is_finite(in.window_sum[slot]))
        all += static_cast<double>(in.sum[slot]), window += static_cast<double>(in.window_sum[slot]);
    double const scale = window > 0 ? all / window : 0;
    for (std::size_t slot = 0; slot < out.size(); ++slot) {
      double const a = in.sum[slot], b = slot < scored ? scale * static_cast<double>(in.window_sum[slot]) : 0;
      out[slot] = static_cast<float>(by == joined::sum || (slot < scored && is_nan(in.window_sum[slot])) ? a + b : std::max(a, b));
    }
    return {};
  }
};

struct last_attention : summed_attention<1, 0> {};

template <std::int64_t Rows = 32>
struct window_mean_variance {
  static constexpr stage kind = stage::signal;
  static constexpr bool valid = Rows > 1;
  static constexpr std::int64_t query_rows = Rows, unscored = Rows;
  double gamma = 200;
  // With fewer rows than two there is no variance: the mean alone.
  status value(slot_statistics const& in, std::span<float> out) const {
    if (in.sum.size() != out.size()) return {errc::shape_mismatch, static_cast<std::int64_t>(in.sum.size())};
    if (in.square_sum.size() != out.size()) return {errc::shape_mismatch, static_cast<std::int64_t>(in.square_sum.size())};
    double const rows = static_cast<double>(in.rows > 0 ? in.rows : 1);
    for (std::size_t slot = 0; slot < out.size(); ++slot) {
      double const sum = in.sum[slot], spread = static_cast<double>(in.square_sum[slot]) - sum * sum / rows;
      double const variance = rows > 1 && spread > 0 ? spread / (rows - 1) : 0;  // rounding may leave less than 0
      out[slot] = static_cast<float>(sum / rows + gamma * variance);
    }
    return {};
  }
};

struct maximum_attention {
  static constexpr stage kind = stage::signal;
  static constexpr std::int64_t query_rows = all_rows, unscored = 0;
  status value(slot_statistics const& in, std::span<float> out) const { return signal_detail::copy(in.maximum, out); }
};

struct given_scores {
  static constexpr stage kind = stage::signal;
  static constexpr std::int64_t query_rows = 0, unscored = 0;
  status value(slot_statistics const& in, std::span<float> out) const { return signal_detail::copy(in.given, out); }
};

}  // namespace pith
