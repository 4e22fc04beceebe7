// SPDX-License-Identifier: Apache-2.0
// dot and mix over 8-bit floats: bytes become f32 in registers and are multiplied in f32. Integer accuracy computes the same.
//
// A stored number is x = v s, v the value of its code. The scale goes where it is cheap:
//   dot, per_token     score[t] = sum_g s[t,g] sum_c q[c] v[t,c]
//   dot, per_channel   q'[c] = q[c] s[c] once for a token group;  score[t] = sum_c q'[c] v[t,c]
//   mix, per_token     w'[t] = w[t] s[t,g];  sums[c] += sum_t w'[t] v[t,c]
//   mix, per_channel   sums[c] += s[c] sum_t w[t] v[t,c]
//
// Coefficients (q, q', w, w') are put into the order of simd/float8.hpp once.
// cost    F16C, M rows, per 4 * width codes: 1 load, 4 vcvtph2ps, 4 (e5m2) or 10 (e4m3) half-width integer operations, 4M fma
#pragma once

#include "pith/codec/float8.hpp"
#include "pith/cpu/kernel.hpp"
#include "pith/simd/float8.hpp"

namespace pith {
inline namespace PITH_ISA {

// sum[m][v] = sum over `words` words of every lane, from lane `first` on: value times coefficient [m][stride].
template <class T, int Vectors, int M>
PITH_INLINE void float8_sums(std::byte const* block, int lanes, int first, int words, float const* coefficients, int stride,
                             simd::f32v (&sum)[M][Vectors]) {
  simd::float8_sum<T> parts[M][Vectors];
  for (int word = 0; word < words; ++word)
    PITH_UNROLL for (int v = 0; v < Vectors; ++v) {
      simd::float8_codes<T> const codes(block + 4ll * (word * lanes + first + v * simd::width));
      PITH_UNROLL for (int m = 0; m < M; ++m) parts[m][v].add(codes, coefficients + m * stride + 4 * word);
    }
  PITH_UNROLL for (int m = 0; m < M; ++m) PITH_UNROLL for (int v = 0; v < Vectors; ++v) sum[m][v] = parts[m][v].total();
}

template <class Storage>
PITH_INLINE simd::f32v float8_scale(std::byte const* tile, std::int64_t index) {
  using scale_type = typename Storage::scale_type;
  return simd::load_scalars<scale_type>(tile + Storage::scale_at + index * static_cast<std::int64_t>(sizeof(scale_type)));
}

template <class T, class Group, class Scale, int Channels, int PageTokens, class Accuracy, int M>
  requires(block_tokens % simd::width == 0 && Channels % 16 == 0 && 16 % simd::width == 0)
struct dot_kernel<float8_tile<T, Group, Scale, Channels, PageTokens, use::dot>, Accuracy, M> {
  using storage = float8_tile<T, Group, Scale, Channels, PageTokens, use::dot>;
  static constexpr int vectors = simd::width >= 16 ? 2 : 1;  // token vectors at a time
  static constexpr int chunk = vectors * simd::width;

  struct query {
    alignas(64) float value[M][Channels];  // ordered, times the factor
  };

  static void prepare(float const* q, query& out) {
    for (int m = 0; m < M; ++m)
      for (int c = 0; c < Channels; c += simd::width)
        simd::store(out.value[m] + c, simd::float8_ordered(simd::load(q + m * Channels + c)) * simd::all(simd::float8_factor<T>));
  }

  static void run(std::byte const* tile, query const& q, float* scores, int stride) {
    if constexpr (!storage::scaled) {
      for (int token = 0; token < block_tokens; token += chunk) one_group(tile, token, q.value[0], scores + token, stride);
    } else if constexpr (!storage::along_tokens) {
      for (int token = 0; token < block_tokens; token += chunk) many_groups(tile, token, q.value[0], scores + token, stride);
    } else {
      alignas(64) float folded[M][Channels];
      for (int g = 0; g < storage::groups; ++g) {
        for (int c = 0; c < Channels; c += simd::width) {
          simd::f32v const scale = simd::float8_ordered(float8_scale<storage>(tile, static_cast<std::int64_t>(g) * Channels + c));
          PITH_UNROLL for (int m = 0; m < M; ++m) simd::store(folded[m] + c, simd::load(q.value[m] + c) * scale);
        }
        for (int token = g * storage::group; token < (g + 1) * storage::group;) {
          std::byte const* const block = tile + token / block_tokens * storage::layout::bytes;
          if constexpr (storage::group % chunk == 0) {
            one_group(block, token % block_tokens, folded[0], scores + token, stride);
            token += chunk;
          } else {
            one_group<simd::width>(block, token % block_tokens, folded[0], scores + token, stride);
            token += simd::width;
          }
        }
      }
    }
  }

 private:
  // Tokens [token, token + Tokens) of a block against coefficients that hold every scale.
  template <int Tokens = chunk>
  PITH_INLINE static void one_group(std::byte const* block, int token, float const* coefficients, float* scores, int stride) {
    simd::f32v sum[M][Tokens / simd::width];
    float8_sums<T>(block, block_tokens, token, Channels / 4, coefficients, Channels, sum);
    PITH_UNROLL for (int m = 0; m < M; ++m)
      PITH_UNROLL for (int v = 0; v < Tokens / simd::width; ++v) simd::store(scores + m * stride + v * simd::width, sum[m][v]);
  }

  PITH_INLINE static void many_groups(std::byte const* tile, int token, float const* coefficients, float* scores, int stride) {
    simd::f32v score[M][vectors];
    PITH_UNROLL for (int m = 0; m < M; ++m) PITH_UNROLL for (int v = 0; v < vectors; ++v) score[m][v] = simd::all(0);
    for (int g = 0; g < storage::groups; ++g) {
      simd::f32v sum[M][vectors];
      int const from = g * storage::group;
      float8_sums<T>(tile + from * block_tokens, block_tokens, token, storage::group / 4, coefficients + from, Channels, sum);
      PITH_UNROLL for (int v = 0; v < vectors; ++v) {
        simd::f32v const scale = float8_scale<storage>(tile, static_cast<std::int64_t>(g) * storage::group_lanes + token + v * simd::width);
        PITH_UNROLL for (int m = 0; m < M; ++m) score[m][v] = simd::fma(sum[m][v], scale, score[m][v]);
      }
    }
    PITH_UNROLL for (int m = 0; m < M; ++m)
      PITH_UNROLL for (int v = 0; v < vectors; ++v) simd::store(scores + m * stride + v * simd::width, score[m][v]);
  }
};

template <class T, class Group, class Scale, int Channels, int PageTokens, class Accuracy, int M>
  requires(Channels % 16 == 0 && 16 % simd::width == 0)
struct mix_kernel<float8_tile<T, Group, Scale, Channels, PageTokens, use::mix>, Accuracy, M> {
  using storage = float8_tile<T, Group, Scale, Channels, PageTokens, use::mix>;

  static void run(std::byte const* tile, float const* weights, int stride, float* sums) {
    for (int first = 0; first < storage::tokens; first += segment) {
      std::byte const* const block = tile + first / block_tokens * storage::layout::bytes + first % block_tokens * Channels;
      for (int from = 0; from < Channels; from += group) {
        alignas(64) float ordered[M][segment];
        PITH_UNROLL for (int t = 0; t < segment; t += simd::width) {
          simd::f32v scale = simd::all(simd::float8_factor<T>);
          if constexpr (!per_channel)
            if constexpr (storage::scaled)
              scale = scale * float8_scale<storage>(tile, static_cast<std::int64_t>(from / group) * storage::group_lanes + first + t);
          PITH_UNROLL for (int m = 0; m < M; ++m)
            simd::store(ordered[m] + t, simd::float8_ordered(simd::load(weights + m * stride + first + t) * scale));
        }
        for (int c = from; c < from + group; c += vectors * simd::width) {
          simd::f32v sum[M][vectors];
          float8_sums<T>(block, Channels, c, segment / 4, ordered[0], segment, sum);
          PITH_UNROLL for (int v = 0; v < vectors; ++v) {
            simd::f32v scale = simd::all(1.0f);
            if constexpr (per_channel)
              scale = float8_scale<storage>(tile, static_cast<std::int64_t>(first / storage::group) * Channels + c + v * simd::width);
            PITH_UNROLL for (int m = 0; m < M; ++m) {
              float* const to = sums + m * Channels + c + v * simd::width;
              simd::store(to, simd::fma(sum[m][v], scale, simd::load(to)));
            }
          }
        }
      }
    }
  }

 private:
  static constexpr bool per_channel = [] {
    if constexpr (storage::scaled) return storage::along_tokens;
    return false;
  }();
  static constexpr int group = [] {  // channels that share the weights
    if constexpr (storage::scaled)
      if constexpr (!storage::along_tokens) return storage::group;
    return Channels;
  }();
  static constexpr int segment = [] {  // tokens weighted at once
    if constexpr (per_channel) return storage::group < block_tokens ? storage::group : block_tokens;
    return block_tokens;
  }();
  static constexpr int vectors = simd::width >= 16 && group % (2 * simd::width) == 0 ? 2 : 1;
};

}  // namespace PITH_ISA
}  // namespace pith
