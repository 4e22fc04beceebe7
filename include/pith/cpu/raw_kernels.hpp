// SPDX-License-Identifier: Apache-2.0
// dot and mix over raw tiles in f32: 16-bit words are split into two vectors by a shift and a mask, then multiplied and added.
// raw_pairs.hpp has the kernels for bf16 on machines that multiply its pairs.
//
// cost    dot and mix, bf16: (2 unpack + 2M fma) per 2 * width numbers, one load of packed data for all M rows
#pragma once

#include "pith/codec/raw.hpp"
#include "pith/cpu/kernel.hpp"

namespace pith {
inline namespace PITH_ISA {

// The M rows' numbers for one channel lie together; padding is zero.
template <int Channels, int M>
struct raw_query {
  float value[Channels + 1][M];
};

// The words of a tile for dot, in vectors of neighbouring tokens. Kernels ask for them in their order in the tile.
template <int Tokens, class Ask>
struct words_of {
  std::byte const* tile;
  Ask ask;

  template <int Vectors>
  PITH_INLINE void operator()(int word, int first, simd::u32v (&x)[Vectors]) const {
    PITH_UNROLL for (int v = 0; v < Vectors; ++v) {
      std::byte const* const at = tile + 4ll * (word * Tokens + first + v * simd::width);
      x[v] = simd::load_words(at);
      ask(at);
    }
  }
};

template <storage_scalar T, int Channels, int Tokens, int M>
struct raw_dot {
  using storage = raw_tile<T, Channels, use::dot, Tokens>;
  static constexpr int per_word = storage::layout::per_word;

  using query = raw_query<Channels, M>;

  static void prepare(float const* q, query& out, query_scale scale = {}) {
    for (int c = 0; c < storage::layout::words * per_word; ++c)
      for (int m = 0; m < M; ++m) out.value[c][m] = c < Channels ? q[m * Channels + c] * scale.value : 0.0f;
  }

  template <class Ask = ask_nothing>
  static void run(std::byte const* tile, query const& q, float* scores, int stride, Ask ask = {}) {
    run_words(words_of<Tokens, Ask>{tile, ask}, q, scores, stride);
  }
  template <class Source>
  static void run_words(Source source, query const& q, float* scores, int stride) {
    constexpr int vectors = Tokens / simd::width >= 2 ? 2 : 1;  // token vectors at a time: 2M accumulators
    for (int first = 0; first < Tokens; first += vectors * simd::width) {
      simd::f32v sum[M][vectors];
      PITH_UNROLL for (int m = 0; m < M; ++m) PITH_UNROLL for (int v = 0; v < vectors; ++v) sum[m][v] = simd::all(0);
      for (int word = 0; word < storage::layout::words; ++word) {
        simd::u32v words[vectors];
        source(word, first, words);
        PITH_UNROLL for (int v = 0; v < vectors; ++v)
          PITH_UNROLL for (int half = 0; half < per_word; ++half) {
            simd::f32v const x = simd::half_to_float<T>(words[v], half);
            PITH_UNROLL for (int m = 0; m < M; ++m) sum[m][v] = simd::fma(x, simd::all(q.value[word * per_word + half][m]), sum[m][v]);
          }
      }
      PITH_UNROLL for (int m = 0; m < M; ++m)
        PITH_UNROLL for (int v = 0; v < vectors; ++v) simd::store(scores + m * stride + first + v * simd::width, sum[m][v]);
    }
  }
};

template <storage_scalar T, int Channels, int Tokens, int M>
struct raw_mix {
  using storage = raw_tile<T, Channels, use::mix, Tokens>;

  template <class Ask = ask_nothing>
  static void run(std::byte const* tile, float const* weights, int stride, float* sums, Ask ask = {}) {
    constexpr int per_word = storage::layout::per_word;
    // Few rows leave accumulators for longer runs of memory: 1.8 times as fast on a stream of tiles.
    constexpr int all = Channels / simd::width, most = M == 1 ? 16 : M == 2 ? 8 : 4;
    constexpr int vectors = simd::width >= 16 && all % most == 0 ? most : all % 4 == 0 ? 4 : all % 2 == 0 ? 2 : 1;
    for (int first = 0; first < Channels; first += vectors * simd::width) {
      simd::f32v sum[M][vectors];
      PITH_UNROLL for (int m = 0; m < M; ++m)
        PITH_UNROLL for (int v = 0; v < vectors; ++v) sum[m][v] = simd::load(sums + m * Channels + first + v * simd::width);
      for (int word = 0; word < storage::layout::words; ++word) {
        PITH_UNROLL for (int v = 0; v < vectors; ++v) {
          std::byte const* const at = tile + 4ll * (word * Channels + first + v * simd::width);
          simd::u32v const words = simd::load_words(at);
          ask(at);
          PITH_UNROLL for (int half = 0; half < per_word; ++half) {
            simd::f32v const x = simd::half_to_float<T>(words, half);
            PITH_UNROLL for (int m = 0; m < M; ++m) sum[m][v] =
                simd::fma(x, simd::all(weights[m * stride + word * per_word + half]), sum[m][v]);
          }
        }
      }
      PITH_UNROLL for (int m = 0; m < M; ++m)
        PITH_UNROLL for (int v = 0; v < vectors; ++v) simd::store(sums + m * Channels + first + v * simd::width, sum[m][v]);
    }
  }
};

template <storage_scalar T, int Channels, int Tokens, class Accuracy, int M>
  requires(Tokens % simd::width == 0)
struct dot_kernel<raw_tile<T, Channels, use::dot, Tokens>, Accuracy, M> : raw_dot<T, Channels, Tokens, M> {};

template <storage_scalar T, int Channels, int Tokens, class Accuracy, int M>
  requires(Channels % simd::width == 0)
struct mix_kernel<raw_tile<T, Channels, use::mix, Tokens>, Accuracy, M> : raw_mix<T, Channels, Tokens, M> {};

}  // namespace PITH_ISA
}  // namespace pith
