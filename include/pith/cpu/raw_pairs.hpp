// SPDX-License-Identifier: Apache-2.0
// dot and mix over raw bf16 tiles where the machine multiplies bf16 pairs (dot2): two neighbours of a word at once.
//
// dot   q is bf16          one pass; its products are exact
//       integer accuracy   q = high + low, both bf16: two passes, |q - high - low| <= 2^-17 |q| + 2^-134
//       exact accuracy     q that is not bf16 is multiplied in f32
// mix   integer accuracy   weights are rounded to bf16: |error| <= 2^-9 sum_t w[t] |x[t,c]|
//       exact accuracy     f32
//
// error   f32 sums as in the plain kernels. Subnormal numbers count as zero: at most 2^-125 (|q| + |x|) + 2^-125 more for each product
// cost    dot: per 2 * width numbers one load, M broadcasts and M dot2 (2M in two passes); mix the same, and 2 instructions
//       for `width` weights
// differs: dot's choice is made for the M rows of a block together; one row that is not bf16 takes the others along
#pragma once

#include "pith/cpu/raw_kernels.hpp"
#include "pith/simd/dot2.hpp"
#include "pith/simd/numbers.hpp"

namespace pith {
inline namespace PITH_ISA {

template <int Channels, int M, int Parts>
struct pair_query {
  alignas(64) std::uint32_t pair[Parts][divide_up(Channels, 2)][M];  // high, low
  int passes;                                                        // 0: in f32
  float scale;                                                       // of the scores
  raw_query<Channels, M> exact;
};

template <int Channels, int Tokens, class Accuracy, int M>
  requires(simd::fast_dot2 && Tokens % simd::width == 0)
struct dot_kernel<raw_tile<bf16, Channels, use::dot, Tokens>, Accuracy, M> {
  using storage = raw_tile<bf16, Channels, use::dot, Tokens>;
  using plain = raw_dot<bf16, Channels, Tokens, M>;
  static constexpr int words = storage::layout::words;
  static constexpr bool splits = std::is_same_v<Accuracy, integer_accuracy>;

  using query = pair_query<Channels, M, splits ? 2 : 1>;

  static void prepare(float const* q, query& out, query_scale scale = {}) {
    std::uint32_t low_bits = 0;
    for (int i = 0; i < M * Channels; ++i) low_bits |= float_bits(q[i]) & 0xffffu;
    out.passes = low_bits == 0 ? 1 : splits ? 2 : 0;
    out.scale = scale.value;
    if (out.passes == 0) return plain::prepare(q, out.exact, scale);
    for (int m = 0; m < M; ++m)
      for (int word = 0; word < words; ++word) {
        float const first = q[m * Channels + 2 * word], second = 2 * word + 1 < Channels ? q[m * Channels + 2 * word + 1] : 0.0f;
        if (out.passes == 1) {
          out.pair[0][word][m] = float_bits(first) >> 16 | float_bits(second);
        } else if constexpr (splits) {
          out.pair[0][word][m] = upper(first).bits | static_cast<std::uint32_t>(upper(second).bits) << 16;
          out.pair[1][word][m] = lower(first).bits | static_cast<std::uint32_t>(lower(second).bits) << 16;
        }
      }
  }

  template <class Ask = ask_nothing>
  static void run(std::byte const* tile, query const& q, float* scores, int stride, Ask ask = {}) {
    run_words(words_of<Tokens, Ask>{tile, ask}, q, scores, stride);
  }
  template <class Source>
  static void run_words(Source source, query const& q, float* scores, int stride) {
    if (q.passes == 0) return plain::run_words(source, q.exact, scores, stride);
    if constexpr (splits)
      if (q.passes == 2) return run_pairs<2>(source, q, scores, stride);
    run_pairs<1>(source, q, scores, stride);
  }

 private:
  // x = upper + lower to 2^-17; what would round to infinity stays finite, what is not finite has no lower part.
  static bf16 upper(float x) { return is_finite(x) ? from_float_saturated<bf16>(x) : from_float<bf16>(x); }
  static bf16 lower(float x) { return from_float<bf16>(is_finite(x) ? x - to_float(upper(x)) : 0.0f); }

  template <int Passes, class Source>
  static void run_pairs(Source source, query const& q, float* scores, int stride) {
    constexpr int vectors = Tokens / simd::width >= 2 ? 2 : 1;
    constexpr int chains = M * vectors <= 4 && words % 4 == 0 ? 4 : 1;  // sums that one row and vector are spread over, for the latency
    for (int first = 0; first < Tokens; first += vectors * simd::width) {
      simd::f32v sum[chains][M][vectors];
      PITH_UNROLL for (int k = 0; k < chains; ++k)
        PITH_UNROLL for (int m = 0; m < M; ++m) PITH_UNROLL for (int v = 0; v < vectors; ++v) sum[k][m][v] = simd::all(0);
      for (int word = 0; word < words; word += chains)
        PITH_UNROLL for (int k = 0; k < chains; ++k) {
          simd::u32v x[vectors];
          source(word + k, first, x);
          PITH_UNROLL for (int pass = 0; pass < Passes; ++pass)
            PITH_UNROLL for (int m = 0; m < M; ++m) {
              simd::u32v const pair(q.pair[pass][word + k][m]);
              PITH_UNROLL for (int v = 0; v < vectors; ++v) sum[k][m][v] = simd::dot2(sum[k][m][v], x[v], pair);
            }
        }
      PITH_UNROLL for (int m = 0; m < M; ++m)
        PITH_UNROLL for (int v = 0; v < vectors; ++v) {
          simd::f32v total = sum[0][m][v];
          PITH_UNROLL for (int k = 1; k < chains; ++k) total = total + sum[k][m][v];
          simd::store(scores + m * stride + first + v * simd::width, total * simd::all(q.scale));
        }
    }
  }
};

template <int Channels, int Tokens, int M>
  requires(simd::fast_dot2 && Channels % simd::width == 0 && Tokens % 16 == 0)
struct mix_kernel<raw_tile<bf16, Channels, use::mix, Tokens>, integer_accuracy, M> {
  using storage = raw_tile<bf16, Channels, use::mix, Tokens>;

  template <class Ask = ask_nothing>
  static void run(std::byte const* tile, float const* weights, int stride, float* sums, Ask ask = {}) {
    constexpr int all = Channels / simd::width, vectors = all % 4 == 0 ? 4 : all % 2 == 0 ? 2 : 1;
    alignas(64) std::byte rounded[M][Tokens * 2];  // neighbours of a row are a pair
    PITH_UNROLL for (int m = 0; m < M; ++m)
      for (int t = 0; t < Tokens; t += simd::width)
        simd::store_bits(reinterpret_cast<bf16*>(rounded[m]) + t, simd::bits_of<bf16, true>(simd::load(weights + m * stride + t)));
    for (int first = 0; first < Channels; first += vectors * simd::width) {
      simd::f32v sum[M][vectors];
      PITH_UNROLL for (int m = 0; m < M; ++m)
        PITH_UNROLL for (int v = 0; v < vectors; ++v) sum[m][v] = simd::load(sums + m * Channels + first + v * simd::width);
      for (int word = 0; word < storage::layout::words; ++word) {
        simd::u32v pair[M];
        PITH_UNROLL for (int m = 0; m < M; ++m) pair[m] = simd::u32v(load_le<std::uint32_t>(rounded[m] + 4 * word));
        PITH_UNROLL for (int v = 0; v < vectors; ++v) {
          std::byte const* const at = tile + 4ll * (word * Channels + first + v * simd::width);
          simd::u32v const x = simd::load_words(at);
          ask(at);
          PITH_UNROLL for (int m = 0; m < M; ++m) sum[m][v] = simd::dot2(sum[m][v], x, pair[m]);
        }
      }
      PITH_UNROLL for (int m = 0; m < M; ++m)
        PITH_UNROLL for (int v = 0; v < vectors; ++v) simd::store(sums + m * Channels + first + v * simd::width, sum[m][v]);
    }
  }
};

}  // namespace PITH_ISA
}  // namespace pith
