// SPDX-License-Identifier: Apache-2.0
// Online softmax for M query rows over pieces of a context: the middle of attention, between dot and mix.
//
//   s[t] = q . k[t] (scaled, base 2), capped, + bias[t];   m >= max s - 8;   p[t] = 2^(s[t] - m)
//   out = sum p[t] v[t] / sum p[t],   lse = ln sum e^(s[t])
//
// Pieces come in any order; the running maximum rescales what was summed before. Nothing that is masked, and no empty piece, changes
// anything.
// from    Milakov and Gimelshein, Online normalizer calculation for softmax, 2018
#pragma once

#include <algorithm>
#include <cmath>

#include "pith/codec/kv_page.hpp"
#include "pith/codec/pipe.hpp"
#include "pith/cpu/dot_integer.hpp"
#include "pith/cpu/float8_kernels.hpp"
#include "pith/cpu/mix_integer.hpp"
#include "pith/cpu/raw_pairs.hpp"
#include "pith/cpu/sum_kernels.hpp"
#include "pith/page/attention_engine.hpp"

namespace pith {
inline namespace PITH_ISA {

inline constexpr float log2_e = 1.44269504088896340736f;
inline constexpr float ln_2 = 0.69314718055994530942f;
inline constexpr float masked = -1e30f;  // finite, so that -ffast-math cannot break it; scores stay far above
inline constexpr int step_tokens = 256;  // most tokens of one step
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

template <int KeyChannels, int ValueChannels, class Lanes, int M>
class row_block {
 public:
  // Row m sees slots in [lower[m], upper[m]).
  std::int64_t lower[M], upper[M];

  void begin(float const* sink_logits, float soft_cap) {
    soft_cap_ = soft_cap;
    rest_ = Lanes{};
    for (int m = 0; m < M; ++m) {
      float const sink = sink_logits != nullptr ? sink_logits[m] * log2_e : masked;
      max_[m] = sink > masked ? sink : masked;
      simd::store(total_[m], simd::all(0));
      total_[m][0] = max_[m] > masked / 2 ? 1.0f : 0.0f;
      for (float& sum : sums_[m]) sum = 0;
    }
  }

  // One step over `tokens` slots. Dot and Mix are kernels; key_at(t) and value_at(t) give the tile that starts at token t of the step.
  template <class Dot, class Mix, class KeyAt, class ValueAt, class Ask = ask_nothing>
  void step(typename Dot::query const& query, int tokens, step_scope const& scope, KeyAt key_at, ValueAt value_at, Ask ask = {}) {
    alignas(64) float scores[M][step_tokens];
    std::int64_t const last = scope.first_slot + tokens;
    bool any = false;
    for (int m = 0; m < M; ++m) any = any || (lower[m] < last && upper[m] > scope.first_slot);
    if (!any) return;
    dot_tiles<Dot>(tokens, key_at, query, scores[0], step_tokens, ask);
    if (soft_cap_ > 0) cap(scores, tokens);
    if (scope.bias != nullptr) add_bias(scores, tokens, scope);
    mask(scores, tokens, scope);
    if (!weigh(scores, tokens)) return;
    mix_tiles<Mix>(tokens, value_at, scores[0], step_tokens, sums_[0], rest_, ask);
  }

  // Brings in what the mix kernels left to add.
  void gather() { rest_.move_to(sums_[0]); }

  // Brings sums that were gathered in a transformed basis back.
  template <class ValueTile>
  void restore(state_of<ValueTile> const& calibration) {
    gather();
    for (int m = 0; m < M; ++m) ValueTile::restore_output(sums_[m], calibration);
  }

  // out [channel]
  void output(int m, float* out) const {
    float const sum = total(m);
    for (int c = 0; c < ValueChannels; ++c) out[c] = sum > 0 ? sums_[m][c] / sum : 0.0f;
  }
  float lse(int m) const {
    return total(m) > 0 ? (max_[m] + std::log2(total(m))) * ln_2 : bits_float(0xff800000u);
  }

 private:
  static constexpr float slack = 8;
  float soft_cap_ = 0;
  float max_[M];
  alignas(64) float total_[M][simd::width];  // of the weights, in lanes
  alignas(64) float sums_[M][ValueChannels];
  [[no_unique_address]] Lanes rest_;

  float total(int m) const { return simd::sum(simd::load(total_[m])); }

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

  // Scores become weights; false if no row has any. What they are relative to follows the maximum only when that is left by 2^slack, so
  // that the exponentials need not wait for the maximum of their own step.
  bool weigh(float (&scores)[M][step_tokens], int tokens) {
    simd::f32v most[M], sum[M], base[M];
    PITH_UNROLL for (int m = 0; m < M; ++m) {
      most[m] = simd::load(scores[m]);
      for (int t = simd::width; t < tokens; t += simd::width) most[m] = simd::max(most[m], simd::load(scores[m] + t));
    }
    float peak[M];
    simd::largest_of_each(most, peak);
    bool any = false;
    PITH_UNROLL for (int m = 0; m < M; ++m) {
      if (peak[m] > max_[m] + slack) [[unlikely]] {
        float lanes[simd::width];
        simd::store(lanes, simd::exp2(simd::all(max_[m] - peak[m])));
        rescale(m, lanes[0]);
        max_[m] = peak[m];
      }
      any = any || peak[m] > masked / 2;
      base[m] = simd::all(max_[m] > masked / 2 ? max_[m] : 0.0f);  // a row that has seen nothing yet gets weights 2^masked = 0
      sum[m] = simd::all(0);
    }
    for (int t = 0; t < tokens; t += simd::width)
      PITH_UNROLL for (int m = 0; m < M; ++m) {
        simd::f32v const p = simd::exp2(simd::load(scores[m] + t) - base[m]);
        simd::store(scores[m] + t, p);
        sum[m] = sum[m] + p;
      }
    PITH_UNROLL for (int m = 0; m < M; ++m) simd::store(total_[m], simd::load(total_[m]) + sum[m]);
    return any;
  }

  void rescale(int m, float factor) {
    simd::store(total_[m], simd::load(total_[m]) * simd::all(factor));
    for (int c = 0; c < ValueChannels; c += simd::width) simd::store(sums_[m] + c, simd::load(sums_[m] + c) * simd::all(factor));
    rest_.scale(m, factor);
  }
};

}  // namespace PITH_ISA
}  // namespace pith
