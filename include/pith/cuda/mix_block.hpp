// SPDX-License-Identifier: Apache-2.0
// mix on tensor cores: sums over the 32 rows of a staged block, weighted by 8 NT queries' weights.
//
//   O^T += X^T P^T:   m16n8k16 with 16 channels as M, 8 queries as N, 16 tokens as K
//
// The weights come as dot_block leaves scores: lane (g, t) holds p[h][n][r] of token 4g + 2h + r/2 and query 8n + 2t + r%2. One transposition of
// 8 x 8 numbers in registers makes them the right operand: register e then holds tokens 8t+e and 8t+4+e of query g, which is the order in
// which words of tokens come apart.
//
//   sums: lane (g, t) holds o[m][n][r] of query 8n + 2t + r%2 and channel channel_of(m, g, r)
//
// scales  per_token: the weights times the scale, in a unit `lift` that keeps them within f16; the bias goes into f32 sums beside. per_channel:
//         each block's sums times the scale, plus the bias times the sum of the weights
// error   a weight, times its scale, is Terms f16 numbers (bf16 for raw<bf16>): as dot_block.hpp; at least 2^-31 of the largest product so far
#pragma once

#include "pith/cuda/mix_operand.hpp"

namespace pith::device {

template <class Storage, int NT, int Terms>
struct mix_block {
  using operand = mix_operand<Storage>;
  using element = typename operand::element;
  using stage_of = typename operand::stage;
  static constexpr bool is_integer = stage_of::is_integer;
  static constexpr int width = operand::width;
  static constexpr int tiles = Storage::channels / 16;
  static constexpr int loads = Storage::channels / (8 * width);
  static constexpr bool by_channel = [] {
    if constexpr (is_integer)
      return Storage::along_tokens;
    else
      return false;
  }();
  static constexpr bool has_bias = [] {
    if constexpr (is_integer)
      return Storage::zero_kind != zero::none;
    else
      return false;
  }();
  static constexpr int groups = [] {  // of channels that share a token's scale
    if constexpr (is_integer && !by_channel)
      return Storage::groups;
    else
      return 1;
  }();

  PITH_HD static constexpr int channel_of(int m, int g, int r) noexcept {
    return width == 4 ? 32 * (m / 2) + 4 * g + 2 * (m % 2) + r / 2 : 16 * m + 2 * g + r / 2;
  }

  float o[tiles][NT][4];
  float bias[NT][groups][2];  // this lane's tokens only; of queries 2t and 2t+1
  float lift;                 // o is in units of 1 / lift, a power of two; 0: nothing yet

  PITH_HD void clear() {
    PITH_UNROLL for (int m = 0; m < tiles; ++m)
      PITH_UNROLL for (int n = 0; n < NT; ++n)
        PITH_UNROLL for (int r = 0; r < 4; ++r) o[m][n][r] = 0;
    PITH_UNROLL for (int n = 0; n < NT; ++n)
      PITH_UNROLL for (int g = 0; g < groups; ++g) bias[n][g][0] = bias[n][g][1] = 0;
    lift = is_integer && !by_channel ? 0.0f : 1.0f;
  }

  // Multiplies what is there: queries 2t and 2t+1 of n.
  PITH_HD void scale(int n, float first, float second) {
    PITH_UNROLL for (int m = 0; m < tiles; ++m)
      PITH_UNROLL for (int r = 0; r < 4; ++r) o[m][n][r] *= r % 2 == 0 ? first : second;
    PITH_UNROLL for (int g = 0; g < groups; ++g) bias[n][g][0] *= first, bias[n][g][1] *= second;
  }

  template <class Thread>
  PITH_HD void add(Thread& t, std::byte const* stage, float const (&p)[2][NT][4]) {
    if constexpr (by_channel)
      add_by_channel(t, stage, p);
    else if constexpr (is_integer)
      add_by_token(t, stage, p);
    else {
      std::uint32_t b[Terms][NT][4];
      turn(t, p, 1.0f, b);
      PITH_UNROLL for (int i = 0; i < loads; ++i) multiply(t, stage, i, b);
    }
  }

  // Brings the sums to what they stand for; by all lanes, at the end. The biases' sums of all tokens come together.
  template <class Thread>
  PITH_HD void finish(Thread& t) {
    float const unit = lift > 0 ? inverse_power(lift) : 0.0f;
    PITH_UNROLL for (int n = 0; n < NT; ++n) {
      if constexpr (has_bias && !by_channel) {
        PITH_UNROLL for (int group = 0; group < groups; ++group)
          PITH_UNROLL for (int i = 0; i < 2; ++i)
            bias[n][group][i] = sum_over_lanes<4>(t, bias[n][group][i]);
      }
      PITH_UNROLL for (int m = 0; m < tiles; ++m)
        PITH_UNROLL for (int r = 0; r < 4; ++r) {
          o[m][n][r] *= unit;
          if constexpr (has_bias && !by_channel) o[m][n][r] += bias[n][16 * m / (Storage::channels / groups)][r % 2];
        }
    }
    lift = 1.0f;
  }

 private:
  // Weights times `factor` as right operands.
  template <class Thread>
  PITH_HD static void turn(Thread& t, float const (&p)[2][NT][4], float factor, std::uint32_t (&b)[Terms][NT][4]) {
    float const factors[4] = {factor, factor, factor, factor};
    turn(t, p, factors, b);
  }
  // The same with a factor for each of the lane's tokens 4g .. 4g+3.
  template <class Thread>
  PITH_HD static void turn(Thread& t, float const (&p)[2][NT][4], float const (&factor)[4], std::uint32_t (&b)[Terms][NT][4]) {
    PITH_UNROLL for (int n = 0; n < NT; ++n)
      PITH_UNROLL for (int e = 0; e < 4; ++e) {
        float const x = p[e / 2][n][2 * (e % 2)] * factor[e], y = p[e / 2][n][2 * (e % 2) + 1] * factor[e];
        std::uint32_t const near = two_of<element>(x, y);
        b[0][n][e] = t.transpose(near);
        if constexpr (Terms == 2) b[1][n][e] = t.transpose(two_of<element>(x - low_of<element>(near), y - high_of<element>(near)));
      }
  }

  // c[w / 2] += the sums over all tokens of load i's channels.
  template <class Thread>
  PITH_HD static void multiply(Thread& t, std::byte const* stage, int i, std::uint32_t const (&b)[Terms][NT][4], float (*c)[NT][4]) {
    operand x;
    x.load(stage, 8 * width * i + width * (t.lane() / 4), t.lane() % 4);
    PITH_UNROLL for (int h = 0; h < width / 2; ++h)
      PITH_UNROLL for (int k = 0; k < 2; ++k) {
        std::uint32_t const a[4] = {x.get(2 * h, 2 * k), x.get(2 * h + 1, 2 * k), x.get(2 * h, 2 * k + 1), x.get(2 * h + 1, 2 * k + 1)};
        PITH_UNROLL for (int n = 0; n < NT; ++n)
          PITH_UNROLL for (int term = 0; term < Terms; ++term) {
            std::uint32_t const right[2] = {b[term][n][2 * k], b[term][n][2 * k + 1]};
            t.template multiply<element>(c[h][n], a, right);
          }
      }
  }
  template <class Thread>
  PITH_HD void multiply(Thread& t, std::byte const* stage, int i, std::uint32_t const (&b)[Terms][NT][4]) {
    multiply(t, stage, i, b, o + i * (width / 2));
  }

  template <class Thread>
  PITH_HD void add_by_token(Thread& t, std::byte const* stage, float const (&p)[2][NT][4]) {
    std::byte const* const parameters = stage + stage_of::codes_bytes;
    int const first = t.lane() / 4 * 4;
    // Few groups' scales stay in registers; many are read again.
    constexpr bool kept = groups <= 4;
    float scales[kept ? groups : 1][4], biases[kept ? groups : 1][4], largest_scale[4] = {}, most = 0;
    PITH_UNROLL for (int group = 0; group < groups; ++group) {
      int const at = kept ? group : 0;
      load_parameters<Storage>(parameters, group, first, scales[at], biases[at]);
      PITH_UNROLL for (int e = 0; e < 4; ++e) largest_scale[e] = group == 0 ? scales[at][e] : larger(largest_scale[e], scales[at][e]);
    }
    PITH_UNROLL for (int e = 0; e < 4; ++e) {
      float weight = 0;
      PITH_UNROLL for (int n = 0; n < NT; ++n)
        PITH_UNROLL for (int i = 0; i < 2; ++i) weight = n + i == 0 ? p[e / 2][n][2 * (e % 2)] : larger(weight, p[e / 2][n][2 * (e % 2) + i]);
      most = larger(most, weight * largest_scale[e]);
    }
    if (t.any(most * lift > 0x1p15f || (lift == 0 && most > 0))) raise(t, most);
    PITH_UNROLL for (int group = 0; group < groups; ++group) {
      int const at = kept ? group : 0;
      if constexpr (!kept) load_parameters<Storage>(parameters, group, first, scales[at], biases[at]);
      if constexpr (has_bias) {
        PITH_UNROLL for (int n = 0; n < NT; ++n)
          PITH_UNROLL for (int e = 0; e < 4; ++e)
            PITH_UNROLL for (int i = 0; i < 2; ++i) bias[n][group][i] += p[e / 2][n][2 * (e % 2) + i] * biases[at][e];
      }
      float lifted[4];
      PITH_UNROLL for (int e = 0; e < 4; ++e) lifted[e] = scales[at][e] * lift;
      std::uint32_t b[Terms][NT][4];
      turn(t, p, lifted, b);
      constexpr int per_group = loads / groups;
      PITH_UNROLL for (int i = 0; i < per_group; ++i) multiply(t, stage, group * per_group + i, b);
    }
  }

  // A unit in which the largest product is 2^6 to 2^7; what is there follows.
  template <class Thread>
  PITH_HD void raise(Thread& t, float most) {
    most = largest_over_lanes(t, most);
    float const wanted = 64.0f * inverse_power(power_below(most)), raised = wanted < 0x1p120f ? wanted : 0x1p120f;
    float const ratio = lift > 0 ? raised * inverse_power(lift) : 1.0f;
    PITH_UNROLL for (int m = 0; m < tiles; ++m)
      PITH_UNROLL for (int n = 0; n < NT; ++n)
        PITH_UNROLL for (int r = 0; r < 4; ++r) o[m][n][r] *= ratio;
    lift = raised;
  }

  // A group of 16 tokens takes the lanes that hold its pairs.
  template <class Thread>
  PITH_HD void add_by_channel(Thread& t, std::byte const* stage, float const (&p)[2][NT][4]) {
    constexpr int subs = Storage::group < block_tokens ? block_tokens / Storage::group : 1;
    std::byte const* const parameters = stage + stage_of::codes_bytes;
    int const g = t.lane() / 4, quad = t.lane() % 4;
    std::uint32_t all[Terms][NT][4];
    turn(t, p, 1.0f, all);
    PITH_UNROLL for (int sub = 0; sub < subs; ++sub) {
      std::uint32_t b[Terms][NT][4];
      bool const mine = subs == 1 || 8 * quad / Storage::group == sub;
      PITH_UNROLL for (int term = 0; term < Terms; ++term)
        PITH_UNROLL for (int n = 0; n < NT; ++n)
          PITH_UNROLL for (int e = 0; e < 4; ++e) b[term][n][e] = mine ? all[term][n][e] : 0u;
      float total[NT][2] = {};  // of the weights
      if constexpr (has_bias) {
        PITH_UNROLL for (int n = 0; n < NT; ++n)
          PITH_UNROLL for (int i = 0; i < 2; ++i) {
            float sum = (p[0][n][i] + p[0][n][2 + i]) + (p[1][n][i] + p[1][n][2 + i]);
            if (subs > 1 && 4 * g / Storage::group != sub) sum = 0;
            total[n][i] = sum_over_lanes<4>(t, sum);
          }
      }
      PITH_UNROLL for (int i = 0; i < loads; ++i) {
        float part[width / 2][NT][4] = {}, scales[width], biases[width];
        multiply(t, stage, i, b, part);
        load_parameters<Storage>(parameters, sub, 8 * width * i + width * g, scales, biases);
        PITH_UNROLL for (int h = 0; h < width / 2; ++h)
          PITH_UNROLL for (int n = 0; n < NT; ++n)
            PITH_UNROLL for (int r = 0; r < 4; ++r) {
              float& sum = o[i * (width / 2) + h][n][r];
              sum += scales[2 * h + r / 2] * part[h][n][r];
              if constexpr (has_bias) sum += biases[2 * h + r / 2] * total[n][r % 2];
            }
      }
    }
  }
};

}  // namespace pith::device
