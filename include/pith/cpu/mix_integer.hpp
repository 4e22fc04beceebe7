// SPDX-License-Identifier: Apache-2.0
// mix over integer tiles.
//
// A stored number is x = u s + o with o = b - middle s. The scale goes where it is cheap:
//   per_token      sum_t w[t] x[t,c] = sum_t (w[t] s[t,g]) u[t,c] + sum_t w[t] o[t,g]         scales go into the weights
//   per_channel    sum_t w[t] x[t,c] = s[c] sum_t w[t] u[t,c] + o[c] sum_t w[t]               scales go onto the sums
//
// exact     codes become f32 and are multiplied by the (scaled) weights in f32
// integer   the (scaled) weights of a tile are rounded to 8 unsigned bits, step = max / 255, and dot4 multiplies integers. What was
//           really used, rounded * step / s, goes into the offset's sum and into `used` too: numerator and denominator agree.
//           error: |w used - w| <= step / (2 s)
// cost      4 bit, integer, M rows: per 8 * width codes one load, one shift, two masks and 2M dot4
#pragma once

#include "pith/cpu/dot_integer.hpp"

namespace pith {
inline namespace PITH_ISA {

template <int Bits, class Group, zero Zero, class Scale, int Channels, int PageTokens, class Accuracy, int M>
  requires(Channels % 16 == 0 && 16 % simd::width == 0)
struct mix_kernel<integer_tile<Bits, Group, Zero, Scale, Channels, PageTokens, use::mix>, Accuracy, M> {
  using storage = integer_tile<Bits, Group, Zero, Scale, Channels, PageTokens, use::mix>;
  using layout = typename storage::layout;
  static constexpr bool in_integers = std::is_same_v<Accuracy, integer_accuracy>;
  static constexpr bool per_channel = storage::along_tokens;
  static constexpr int groups = per_channel ? 1 : storage::groups;
  static constexpr int group = per_channel ? Channels : storage::group;
  static constexpr int segment = per_channel && storage::group < block_tokens ? storage::group : block_tokens;  // tokens weighted at once

  static constexpr int words_at_once = layout::planes > 1 ? 16 / layout::per_word : 1;  // 16 codes share words of the higher planes

  static void run(std::byte const* tile, float const* weights, int stride, float* sums, float* used) {
    for (int i = 0; i < M * groups; ++i) used[i] = 0;
    for (int first = 0; first < storage::tokens; first += segment) {
      std::byte const* const block = tile + first / block_tokens * layout::bytes;
      for (int g = 0; g < groups; ++g) {
        segment_weights w;
        prepare(tile, weights, stride, first, g, w, used);
        add(tile, block, first, g, w, sums);
      }
    }
  }

 private:
  struct segment_weights {
    alignas(64) float value[M][segment];            // exact: what multiplies a code
    alignas(64) std::uint8_t rounded[M][segment];   // integer: the same in steps, in the order of packed codes
    float step[M];
    float code_offset[M];  // step * 128 * sum of rounded, 8 bit only: signed codes are u - 128
    float offset[M];       // per_token: sum of used weight * o;  per_channel: sum of used weights
  };

  static void prepare(std::byte const* tile, float const* weights, int stride, int first, int g, segment_weights& w, float* used) {
    constexpr int vectors = segment / simd::width;
    simd::f32v used_sum[M], offset_sum[M], most[M];
    PITH_UNROLL for (int m = 0; m < M; ++m) used_sum[m] = offset_sum[m] = most[m] = simd::all(0);
    PITH_UNROLL for (int v = 0; v < vectors; ++v) {
      std::int64_t const index = static_cast<std::int64_t>(g) * storage::group_lanes + first + v * simd::width;
      simd::f32v const scale = per_channel ? simd::all(1.0f) : scale_of<storage>(tile, index);
      PITH_UNROLL for (int m = 0; m < M; ++m) {
        simd::f32v const x = simd::load(weights + m * stride + first + v * simd::width);
        simd::f32v const scaled = per_channel ? x : x * scale;
        simd::store(w.value[m] + v * simd::width, scaled);
        most[m] = simd::max(most[m], scaled);
        if constexpr (!in_integers) {
          used_sum[m] = used_sum[m] + x;
          if constexpr (!per_channel) offset_sum[m] = simd::fma(x, offset_of<storage>(tile, index, scale), offset_sum[m]);
        }
      }
    }
    if constexpr (in_integers) {
      float peak[M], inverse[M];
      simd::largest_of_each(most, peak);
      for (int m = 0; m < M; ++m) {
        w.step[m] = peak[m] * (1.0f / 255.0f);
        inverse[m] = peak[m] > 0x1p-100f ? 255.0f / peak[m] : 0.0f;
      }
      std::int32_t rounded[M][segment];
      PITH_UNROLL for (int v = 0; v < vectors; ++v) {
        std::int64_t const index = static_cast<std::int64_t>(g) * storage::group_lanes + first + v * simd::width;
        simd::f32v const scale = per_channel ? simd::all(1.0f) : scale_of<storage>(tile, index);
        simd::f32v const offset = per_channel ? simd::all(1.0f) : offset_of<storage>(tile, index, scale);
        // A scale of zero is a constant row: its weight is not rounded, and max() keeps the division finite.
        simd::f32v const per_step = per_channel ? scale : simd::all(1.0f) / simd::max(scale, simd::all(0x1p-120f));
        PITH_UNROLL for (int m = 0; m < M; ++m) {
          simd::i32v const r = simd::round_even(simd::load(w.value[m] + v * simd::width) * simd::all(inverse[m]));
          simd::store_i32(rounded[m] + v * simd::width, r);
          simd::f32v x = simd::to_float(r) * simd::all(w.step[m]);
          if constexpr (!per_channel) {
            x = simd::select_zero(scale, simd::load(weights + m * stride + first + v * simd::width), x * per_step);
            offset_sum[m] = simd::fma(x, offset, offset_sum[m]);
          }
          used_sum[m] = used_sum[m] + x;
        }
      }
      if constexpr (Bits == 8) {
        simd::f32v all_rounded[M];
        PITH_UNROLL for (int m = 0; m < M; ++m) {
          simd::i32v sum(0);
          PITH_UNROLL for (int v = 0; v < vectors; ++v) sum = sum + simd::load_i32(rounded[m] + v * simd::width);
          all_rounded[m] = simd::to_float(sum);
        }
        float total[M];
        simd::sums(all_rounded, total);
        for (int m = 0; m < M; ++m) w.code_offset[m] = 128.0f * w.step[m] * total[m];
      }
      for (int m = 0; m < M; ++m)
        for (int t = 0; t < segment; t += 16) simd::pack16<layout::plane_bits>(rounded[m] + t, w.rounded[m] + t);
    }
    float total[M];
    simd::sums(used_sum, total);
    for (int m = 0; m < M; ++m) used[m * groups + g] += total[m];
    if constexpr (per_channel)
      for (int m = 0; m < M; ++m) w.offset[m] = total[m];
    else
      simd::sums(offset_sum, w.offset);
  }

  static void add(std::byte const* tile, std::byte const* block, int first, int g, segment_weights const& w, float* sums) {
    constexpr int group_vectors = group / simd::width;
    constexpr int vectors = group_vectors % 4 == 0 && M <= 4 ? 4 : group_vectors % 2 == 0 ? 2 : 1;
    for (int c = g * group; c < (g + 1) * group; c += vectors * simd::width) {
      simd::f32v sum[M][vectors];
      if constexpr (in_integers)
        sum_integer(block, first % block_tokens, c, w, sum);
      else
        sum_exact(block, first % block_tokens, c, w, sum);
      PITH_UNROLL for (int v = 0; v < vectors; ++v) {
        simd::f32v scale = simd::all(1.0f), offset = simd::all(1.0f);
        if constexpr (per_channel) {
          std::int64_t const index = static_cast<std::int64_t>(first / storage::group) * Channels + c + v * simd::width;
          scale = scale_of<storage>(tile, index);
          offset = offset_of<storage>(tile, index, scale);
        }
        PITH_UNROLL for (int m = 0; m < M; ++m) {
          float* const to = sums + m * Channels + c + v * simd::width;
          simd::store(to, simd::fma(sum[m][v], scale, simd::fma(offset, simd::all(w.offset[m]), simd::load(to))));
        }
      }
    }
  }

  template <int Vectors>
  PITH_INLINE static void sum_integer(std::byte const* block, int token, int c, segment_weights const& w, simd::f32v (&sum)[M][Vectors]) {
    constexpr int steps = layout::per_word / 4;
    simd::i32v acc[M][Vectors];
    PITH_UNROLL for (int m = 0; m < M; ++m) PITH_UNROLL for (int v = 0; v < Vectors; ++v) acc[m][v] = simd::i32v(0);
    for (int first = 0; first < segment / layout::per_word; first += words_at_once) PITH_UNROLL for (int nth = 0; nth < words_at_once; ++nth) {
      int const i = first + nth, word = token / layout::per_word + i;
      simd::u32v rounded[steps][M];  // loaded once for all channel vectors
      PITH_UNROLL for (int step = 0; step < steps; ++step)
        PITH_UNROLL for (int m = 0; m < M; ++m)
          rounded[step][m] = simd::all_words(reinterpret_cast<std::byte const*>(w.rounded[m]) + i * layout::per_word + 4 * step);
      PITH_UNROLL for (int v = 0; v < Vectors; ++v) {
        simd::u32v const words = simd::load_words(block + 4ll * (word * Channels + c + v * simd::width));
        high_words<layout> const high = load_high<layout>(block, token + first * layout::per_word, c + v * simd::width);
        PITH_UNROLL for (int step = 0; step < steps; ++step) {
          simd::u32v codes = codes_of_step<layout>(words, high, nth, step);
          if constexpr (Bits == 8) codes = codes ^ simd::u32v(0x80808080u);  // u - 128 as a signed byte; shorter codes are signed as they are
          PITH_UNROLL for (int m = 0; m < M; ++m) acc[m][v] = simd::dot4<(Bits <= 6)>(acc[m][v], rounded[step][m], codes);
        }
      }
    }
    PITH_UNROLL for (int m = 0; m < M; ++m)
      PITH_UNROLL for (int v = 0; v < Vectors; ++v)
        sum[m][v] = simd::fma(simd::to_float(acc[m][v]), simd::all(w.step[m]), simd::all(Bits == 8 ? w.code_offset[m] : 0.0f));
  }

  template <int Vectors>
  PITH_INLINE static void sum_exact(std::byte const* block, int token, int c, segment_weights const& w, simd::f32v (&sum)[M][Vectors]) {
    PITH_UNROLL for (int m = 0; m < M; ++m) PITH_UNROLL for (int v = 0; v < Vectors; ++v) sum[m][v] = simd::all(0);
    for (int first = 0; first < segment / layout::per_word; first += words_at_once) PITH_UNROLL for (int nth = 0; nth < words_at_once; ++nth) {
      int const i = first + nth, word = token / layout::per_word + i;
      PITH_UNROLL for (int v = 0; v < Vectors; ++v) {
        simd::u32v const words = simd::load_words(block + 4ll * (word * Channels + c + v * simd::width));
        high_words<layout> const high = load_high<layout>(block, token + first * layout::per_word, c + v * simd::width);
        PITH_UNROLL for (int f = 0; f < layout::per_word; ++f) {
          simd::f32v const u = codes_of_field<layout>(words, high, nth, f);
          PITH_UNROLL for (int m = 0; m < M; ++m) sum[m][v] = simd::fma(u, simd::all(w.value[m][i * layout::per_word + f]), sum[m][v]);
        }
      }
    }
  }
};

}  // namespace PITH_ISA
}  // namespace pith
