// SPDX-License-Identifier: Apache-2.0
// What stands between dot and softmax, for M query rows at once: soft cap, biases, masks. Attention and its statistics share it, so that
// both see the same scores.
//
//   s[t] = q . k[t] (scaled, base 2), capped, + bias[t];   -1e30 where masked
#pragma once

#include <algorithm>
#include <cmath>
#include <span>

#include "pith/page/attention_engine.hpp"
#include "pith/simd/vec.hpp"

namespace pith {
inline namespace PITH_ISA {

inline constexpr float log2_e = 1.44269504088896340736f;
inline constexpr float ln_2 = 0.69314718055994530942f;
inline constexpr float masked = -1e30f;              // finite, so that -ffast-math cannot break it; scores stay far above
inline constexpr int step_tokens = 256;              // most tokens of one step
inline constexpr float largest_integer_bias = 2.8f;  // a slot for 16 tokens; steps with a larger one are computed exactly

// What one step sees beside its tiles. Slots are the row indices of the sequence.
struct step_scope {
  std::int64_t first_slot = 0;
  std::int64_t slots = 0;               // of the sequence: nothing behind them is seen or read from the side arrays
  std::span<slot_range const> dead{};   // slots that nobody sees, ascending
  std::uint64_t const* live = nullptr;  // bit per slot of the sequence, or none: all live
  float const* bias = nullptr;          // natural-log units, per slot of the sequence, or none

  // The biases of slots first_slot + t and following, zero behind the last.
  simd::f32v bias_at(int t) const {
    std::int64_t const slot = first_slot + t;
    if (slot + simd::width <= slots) return simd::load(bias + slot);
    float lanes[simd::width] = {};
    for (int i = 0; i < simd::width && slot + i < slots; ++i) lanes[i] = bias[slot + i];
    return simd::load(lanes);
  }
  // Whether a slot of the step stands for so much that its neighbours' rounded weights would suffer.
  bool has_large_bias(int tokens) const {
    if (bias == nullptr) return false;
    simd::f32v most = bias_at(0);
    for (int t = simd::width; t < tokens; t += simd::width) most = simd::max(most, bias_at(t));
    return simd::any_above(most, largest_integer_bias);
  }
};

template <int M>
class score_rows {
 public:
  // Row m sees slots in [lower[m], upper[m]).
  std::int64_t lower[M], upper[M];

  void begin(float soft_cap) { soft_cap_ = soft_cap; }

  // Whether any row sees any of the step's slots.
  bool sees(std::int64_t first_slot, int tokens) const {
    bool any = false;
    for (int m = 0; m < M; ++m) any = any || (lower[m] < first_slot + tokens && upper[m] > first_slot);
    return any;
  }
  // The scores of a step of `tokens` slots, from its products.
  void finish(float (&scores)[M][step_tokens], int tokens, step_scope const& scope) const {
    if (soft_cap_ > 0) cap(scores, tokens);
    if (scope.bias != nullptr) add_bias(scores, tokens, scope);
    mask(scores, tokens, scope);
  }

 private:
  float soft_cap_ = 0;

  // cap tanh(s / cap). Small scores, s <= 0.4 cap, bend by an odd polynomial with a relative error below 2e-7, in 5 instructions instead
  // of 25.
  void cap(float (&scores)[M][step_tokens], int tokens) const {
    float const inverse = ln_2 / soft_cap_, k = inverse * inverse;
    float const limit = soft_cap_ > 1e-5f && soft_cap_ < 1e5f ? 0.4f / inverse : -1.0f;
    simd::f32v const bend1 = simd::all(-0.3333188295f * k), bend2 = simd::all(0.1327762902f * k * k),
                     bend3 = simd::all(-0.0477942228f * k * k * k);
    for (int m = 0; m < M; ++m) {
      simd::f32v most = simd::all(0);
      for (int t = 0; t < tokens; t += simd::width) most = simd::max(most, simd::magnitude(simd::load(scores[m] + t)));
      bool const small = !simd::any_above(most, limit);
      for (int t = 0; t < tokens; t += simd::width) {
        simd::f32v const s = simd::load(scores[m] + t);
        if (small) {
          simd::f32v const square = s * s, bend = simd::fma(simd::fma(bend3, square, bend2), square, bend1);
          simd::store(scores[m] + t, simd::fma(s * square, bend, s));
        } else {
          simd::store(scores[m] + t, simd::tanh(s * simd::all(inverse)) * simd::all(soft_cap_ * log2_e));
        }
      }
    }
  }

  static void add_bias(float (&scores)[M][step_tokens], int tokens, step_scope const& scope) {
    for (int t = 0; t < tokens; t += simd::width) {
      simd::f32v const b = simd::max(scope.bias_at(t) * simd::all(log2_e), simd::all(masked));
      PITH_UNROLL for (int m = 0; m < M; ++m) simd::store(scores[m] + t, simd::load(scores[m] + t) + b);
    }
  }

  void mask(float (&scores)[M][step_tokens], int tokens, step_scope const& scope) const {
    for (int m = 0; m < M; ++m) {
      int const from = static_cast<int>(std::clamp<std::int64_t>(lower[m] - scope.first_slot, 0, tokens));
      int const to = static_cast<int>(std::clamp<std::int64_t>(std::min(upper[m], scope.slots) - scope.first_slot, 0, tokens));
      for (int t = 0; t < from; ++t) scores[m][t] = masked;
      for (int t = to; t < tokens; ++t) scores[m][t] = masked;
    }
    for (slot_range const& hole : scope.dead)
      for (std::int64_t slot = std::max(hole.begin, scope.first_slot); slot < std::min(hole.end, scope.first_slot + tokens); ++slot)
        for (int m = 0; m < M; ++m) scores[m][slot - scope.first_slot] = masked;
    if (scope.live == nullptr) return;
    for (int t = 0; t < tokens && scope.first_slot + t < scope.slots; ++t) {
      std::int64_t const slot = scope.first_slot + t;
      if ((scope.live[slot / 64] >> (slot % 64) & 1u) == 0)
        for (int m = 0; m < M; ++m) scores[m][t] = masked;
    }
  }
};

}  // namespace PITH_ISA
}  // namespace pith
