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
#include "pith/cpu/score_rows.hpp"
#include "pith/cpu/sum_kernels.hpp"

namespace pith {
inline namespace PITH_ISA {

template <int KeyChannels, int ValueChannels, class Lanes, int M>
class row_block : public score_rows<M> {
 public:
  void begin(float const* sink_logits, float soft_cap) {
    score_rows<M>::begin(soft_cap);
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
    if (!this->sees(scope.first_slot, tokens)) {
      if (logits_ != nullptr) clear_logits(scope.first_slot, std::min(tokens, seen_slots(scope)));
      return;
    }
    dot_tiles<Dot>(tokens, key_at, query, scores[0], step_tokens, ask);
    this->finish(scores, tokens, scope);
    if (logits_ != nullptr) keep_logits(scores, std::min(tokens, seen_slots(scope)), scope.first_slot);
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
  float lse(int m) const { return total(m) > 0 ? base2_lse(m) * ln_2 : bits_float(0xff800000u); }
  // Of a row that has seen nothing: more than any score.
  float base2_lse(int m) const { return total(m) > 0 ? max_[m] + std::log2(total(m)) : -masked; }

  // From here on the scores of `rows` rows are kept, [row][stride] by slot; masked ones are -1e30.
  void keep_logits_in(float* logits, std::int64_t stride, int rows) { logits_ = logits, logit_stride_ = stride, logit_rows_ = rows; }
  void clear_logits(std::int64_t slot, std::int64_t slots) {
    for (int m = 0; m < logit_rows_; ++m) std::fill_n(logits_ + m * logit_stride_ + slot, slots, masked);
  }

 private:
  static constexpr float slack = 8;
  float* logits_ = nullptr;
  std::int64_t logit_stride_ = 0;
  int logit_rows_ = 0;
  float max_[M];
  alignas(64) float total_[M][simd::width];  // of the weights, in lanes
  alignas(64) float sums_[M][ValueChannels];
  [[no_unique_address]] Lanes rest_;

  float total(int m) const { return simd::sum(simd::load(total_[m])); }

  static int seen_slots(step_scope const& scope) { return static_cast<int>(std::min<std::int64_t>(scope.slots - scope.first_slot, step_tokens)); }
  void keep_logits(float const (&scores)[M][step_tokens], int tokens, std::int64_t slot) {
    for (int m = 0; m < logit_rows_; ++m) std::copy_n(scores[m], tokens, logits_ + m * logit_stride_ + slot);
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
