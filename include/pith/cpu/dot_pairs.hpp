// SPDX-License-Identifier: Apache-2.0
// What a linear layer runs for dot: the attention kernel, told that tiles follow one another in memory, and one of its own for raw bf16
// tiles: two channels at once (dot2), where the machine multiplies bf16 pairs.
//
//   q is bf16          one pass; its products are exact
//   integer accuracy   q = high + low, both bf16: two passes, |q - high - low| <= 2^-17 |q| + 2^-134
//   exact accuracy     q that is not bf16 is multiplied in f32
//
// error   f32 sums as in the plain kernel. Subnormal numbers count as zero: at most 2^-125 (|q| + |x|) + 2^-125 more for each channel
// cost    per 2 * width numbers one load, M broadcasts and M dot2 (2M in two passes). 16 accumulators hide the latency of dot2
// ahead   two rows or more leave time to ask for the next tile while a tile is multiplied; for one row the machine's own prefetching was
//         faster, and only the scales are asked for (docs/benchmarks.md)
// differs: the choice is made for the M rows of a block together; one row that is not bf16 takes the others along
#pragma once

#include <algorithm>

#include "pith/cpu/dot_integer.hpp"
#include "pith/cpu/raw_kernels.hpp"
#include "pith/simd/dot2.hpp"

namespace pith {
inline namespace PITH_ISA {

// Bytes to ask for ahead of what a kernel of M rows reads: the next tile, if it fits into half a cache.
template <class Storage, int M>
inline constexpr int ahead_bytes = M < 2 ? 0 : static_cast<int>(std::min<std::int64_t>(Storage::bytes, 8192));

template <class Storage, class Accuracy, int M>
struct linear_dot : dot_kernel<Storage, Accuracy, M> {};

template <int Bits, class Group, zero Zero, class Scale, int Channels, int PageTokens, class Accuracy, int M>
  requires(block_tokens % simd::width == 0)
struct linear_dot<integer_tile<Bits, Group, Zero, Scale, Channels, PageTokens, use::dot>, Accuracy, M>
    : dot_kernel<integer_tile<Bits, Group, Zero, Scale, Channels, PageTokens, use::dot>, Accuracy, M> {
  using base = dot_kernel<integer_tile<Bits, Group, Zero, Scale, Channels, PageTokens, use::dot>, Accuracy, M>;
  static void run(std::byte const* tile, typename base::query const& q, float* scores, int stride) {
    if constexpr (ahead_bytes<typename base::storage, M> > 0)
      base::run(tile, q, scores, stride, ask_ahead{ahead_bytes<typename base::storage, M>});
    else
      base::run(tile, q, scores, stride);
  }
};

template <int Channels, int Tokens, class Accuracy, int M>
  requires(simd::fast_dot2 && Tokens % simd::width == 0)
struct linear_dot<raw_tile<bf16, Channels, use::dot, Tokens>, Accuracy, M> {
  using storage = raw_tile<bf16, Channels, use::dot, Tokens>;
  using plain = dot_kernel<storage, Accuracy, M>;
  static constexpr int words = storage::layout::words;
  static constexpr bool splits = std::is_same_v<Accuracy, integer_accuracy>;

  struct query {
    alignas(64) std::uint32_t pair[splits ? 2 : 1][words][M];  // high, low
    int passes;                                                // 0: in f32
    typename plain::query exact;
  };

  static void prepare(float const* q, query& out) {
    std::uint32_t low_bits = 0;
    for (int i = 0; i < M * Channels; ++i) low_bits |= float_bits(q[i]) & 0xffffu;
    out.passes = low_bits == 0 ? 1 : splits ? 2 : 0;
    if (out.passes == 0) return plain::prepare(q, out.exact);
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

  static void run(std::byte const* tile, query const& q, float* scores, int stride) {
    if (q.passes == 0) return plain::run(tile, q.exact, scores, stride);
    if constexpr (splits)
      if (q.passes == 2) return run_pairs<2>(tile, q, scores, stride);
    run_pairs<1>(tile, q, scores, stride);
  }

 private:
  // x = upper + lower to 2^-17; what would round to infinity stays finite, what is not finite has no lower part.
  static bf16 upper(float x) { return is_finite(x) ? from_float_saturated<bf16>(x) : from_float<bf16>(x); }
  static bf16 lower(float x) { return from_float<bf16>(is_finite(x) ? x - to_float(upper(x)) : 0.0f); }

  template <int Passes>
  static void run_pairs(std::byte const* tile, query const& q, float* scores, int stride) {
    constexpr int vectors = Tokens / simd::width >= 2 ? 2 : 1;
    constexpr int chains = M * vectors <= 4 && words % 4 == 0 ? 4 : 1;  // sums that one row and vector are spread over, for the latency
    for (int first = 0; first < Tokens; first += vectors * simd::width) {
      simd::f32v sum[chains][M][vectors];
      PITH_UNROLL for (int k = 0; k < chains; ++k)
        PITH_UNROLL for (int m = 0; m < M; ++m) PITH_UNROLL for (int v = 0; v < vectors; ++v) sum[k][m][v] = simd::all(0);
      for (int word = 0; word < words; word += chains)
        PITH_UNROLL for (int k = 0; k < chains; ++k) {
          simd::u32v x[vectors];
          PITH_UNROLL for (int v = 0; v < vectors; ++v) {
            std::byte const* const at = tile + 4ll * ((word + k) * Tokens + first + v * simd::width);
            x[v] = simd::load_words(at);
            if constexpr (ahead_bytes<storage, M> > 0) simd::prefetch(at + ahead_bytes<storage, M>);
          }
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
          simd::store(scores + m * stride + first + v * simd::width, total);
        }
    }
  }
};

}  // namespace PITH_ISA
}  // namespace pith
