// SPDX-License-Identifier: Apache-2.0
// One slot that stands for everything that left a row, and values that losers leave to their neighbours.
//
//   compensation    k = mean of the keys that left, v = mean of their values, bias = ln (how many)                 RazorAttention
//                   o = (sum_kept e^s v + m e^(q k) v_mean) / (sum_kept e^s + m e^(q k))
//   spread_to_next  v_j += v_i / m for the next m kept slots j, if the loser's gate is open; keys are not touched   CaM, m 32
//   chance_gate     open with probability clamp(score_i / mean of the next window's scores, 0, 1)                    CaM
//   spread_weights  1 / m where a loser's gate is open, 0 where not: chance_gate with the next m kept slots' scores  CaM
//   moving_gate     open if u >= tau, then tau = alpha tau + beta u; u = a step's mean of largest cosines          D2O, 0.5 and 0.5
//
// Compensation is exact for equal tokens, and a running mean: rows may leave one by one. Sums in f64, means in f32.
//
// errors  shape_mismatch; spread_weights: not_finite (a score that is NaN: `at` is the slot), out_of_range (m below 1: -1)
// from    Tang et al., RazorAttention, 2024; Zhang et al., CaM, 2024; Wan et al., D2O, 2024
// differs RazorAttention averages rotated keys, which shrink with the span they are taken over; give rows before RoPE where that matters.
//         CaM draws from a generator with a state; here a loser's birth decides. Where fewer than m kept slots follow, v_i / m goes to
//         each of them.
#pragma once

#include <cmath>

#include "pith/policy/random.hpp"
#include "pith/policy/ranking.hpp"

namespace pith {

// The caller's rows, [channels] each.
struct compensation {
  std::span<float> key{}, value{};
  double tokens = 0;

  // A row that stands for e^bias tokens leaves.
  status take(std::span<float const> k, std::span<float const> v, float bias = 0) {
    if (k.size() != key.size() || v.size() != value.size()) return {errc::shape_mismatch, static_cast<std::int64_t>(k.size())};
    double const more = std::exp(static_cast<double>(bias));
    if (!(more > 0)) return {};  // stands for nothing
    double const share = more / (tokens + more);
    for (std::size_t c = 0; c < k.size(); ++c) move(key[c], k[c], share);
    for (std::size_t c = 0; c < v.size(); ++c) move(value[c], v[c], share);
    tokens += more;
    return {};
  }
  float bias() const { return static_cast<float>(std::log(tokens)); }  // -infinity: nothing has left

 private:
  void move(float& mean, float x, double share) const {
    mean = static_cast<float>(tokens > 0 ? static_cast<double>(mean) + (static_cast<double>(x) - static_cast<double>(mean)) * share
                                         : static_cast<double>(x));
  }
};

// values [slot][channels] of one row, changed in place at kept slots; open [slot], not zero: the loser's value goes to the next.
inline status spread_to_next(std::span<float> values, std::int64_t channels, std::span<slot_mark const> marks,
                             std::span<std::uint8_t const> open, std::int64_t next) {
  if (channels < 1 || values.size() != marks.size() * static_cast<std::size_t>(channels)) return {errc::shape_mismatch, channels};
  if (open.size() != marks.size()) return {errc::shape_mismatch, static_cast<std::int64_t>(open.size())};
  auto const row = [&](std::size_t slot) { return values.data() + slot * static_cast<std::size_t>(channels); };
  for (std::size_t slot = 0; slot < marks.size(); ++slot) {
    if (marks[slot] != free_slot || open[slot] == 0) continue;
    std::int64_t left = next;
    for (std::size_t to = slot + 1; to < marks.size() && left > 0; ++to) {
      if (marks[to] == free_slot) continue;
      for (std::int64_t c = 0; c < channels; ++c) row(to)[c] += row(slot)[c] / static_cast<float>(next);
      --left;
    }
  }
  return {};
}

// Whether the loser that was born as token `birth` of `row` is merged.
inline bool chance_gate(double score, double mean_of_window, std::uint64_t seed, std::int64_t row, std::int64_t birth) {
  double const p = mean_of_window > 0 ? score / mean_of_window : score > 0 ? 1 : 0;
  return random_unit(seed, static_cast<std::uint64_t>(row), static_cast<std::uint64_t>(birth)) < p;
}

// weight [slot]; a kept slot's is 1, and so is the part of itself that it keeps. births empty: slots. cost  O(n + losers x next)
inline status spread_weights(std::span<slot_mark const> marks, std::span<float const> scores, std::int64_t next, std::uint64_t seed,
                             std::int64_t row, std::span<std::int64_t const> births, std::span<float> weight) {
  if (scores.size() != marks.size()) return {errc::shape_mismatch, static_cast<std::int64_t>(scores.size())};
  if (weight.size() != marks.size()) return {errc::shape_mismatch, static_cast<std::int64_t>(weight.size())};
  if (!births.empty() && births.size() != marks.size()) return {errc::shape_mismatch, static_cast<std::int64_t>(births.size())};
  if (next < 1) return {errc::out_of_range, -1};
  for (std::size_t slot = 0; slot < marks.size(); ++slot)
    if (is_nan(scores[slot])) return {errc::not_finite, static_cast<std::int64_t>(slot)};
  for (std::size_t slot = 0; slot < marks.size(); ++slot) {
    weight[slot] = 1;
    if (marks[slot] != free_slot) continue;
    double sum = 0;
    std::int64_t count = 0;
    for (std::size_t to = slot + 1; to < marks.size() && count < next; ++to)
      if (marks[to] != free_slot) sum += static_cast<double>(scores[to]), ++count;
    std::int64_t const birth = births.empty() ? static_cast<std::int64_t>(slot) : births[slot];
    bool const open = count > 0 && chance_gate(static_cast<double>(scores[slot]), sum / static_cast<double>(count), seed, row, birth);
    weight[slot] = open ? 1.0f / static_cast<float>(next) : 0.0f;
  }
  return {};
}

struct moving_gate {
  double alpha = 0.5, beta = 0.5, tau = 0;
  bool open(double u) {
    bool const yes = u >= tau;
    tau = alpha * tau + beta * u;
    return yes;
  }
};

}  // namespace pith
