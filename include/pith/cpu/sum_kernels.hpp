// SPDX-License-Identifier: Apache-2.0
// dot and mix over sums and over the stages that only sums use.
//
//   dot   every stage's scores, added;  outliers: scores[t] += d q[c] for each entry (t, c, d);  low rank: scores = A (B q)
//   mix   every stage's sums, added;    outliers: sums[c] += d w[t];                             low rank: sums += B' (A' w)
//
// Stages without integer codes compute exactly under both accuracies; the others round the query, or the weights, each for itself.
// cost    outliers: M multiply-adds for each entry, one at a time; low rank: R (tokens + channels) M multiply-adds for a tile
#pragma once

#include <tuple>

#include "pith/codec/outliers.hpp"
#include "pith/codec/sum.hpp"
#include "pith/cpu/kernel.hpp"

namespace pith {
inline namespace PITH_ISA {

// f(token, channel, value) for every entry that is used.
template <class Storage, class F>
PITH_INLINE void for_each_outlier(std::byte const* tile, F f) {
  using value_type = typename Storage::value_type;
  for (int entry = 0; entry < Storage::entries; ++entry)
    for (int first = 0; first < Storage::vectors; first += simd::width) {  // vectors side by side
      std::byte const* const place = tile + Storage::place_at + entry * Storage::vectors + first;
      float value[simd::width];
      std::int64_t const at_value = (entry * Storage::vectors + first) * static_cast<std::int64_t>(sizeof(value_type));
      simd::store(value, simd::load_scalars<value_type>(tile + at_value));
      int const token = Storage::token_of(first, 0), channel = Storage::channel_of(first, 0);
      PITH_UNROLL for (int i = 0; i < simd::width; ++i) {
        int const at = static_cast<int>(place[i]);
        if (at >= Storage::length) continue;
        if constexpr (Storage::along_tokens)
          f(token + at, channel + i, value[i]);
        else
          f(token + i, channel + at, value[i]);
      }
    }
}

// Vector stores: for a kilobyte, faster than what compilers make of = {}.
template <int Count>
PITH_INLINE void clear(float* to) {
  for (int i = 0; i < Count; i += simd::width) simd::store(to + i, simd::all(0));
}

template <class Which, class Group, leave Leave, storage_scalar Value, int Channels, int PageTokens, class Accuracy, int M>
  requires(Channels % 16 == 0 && 16 % simd::width == 0)
struct dot_kernel<outlier_tile<Which, Group, Leave, Value, Channels, PageTokens>, Accuracy, M> {
  using storage = outlier_tile<Which, Group, Leave, Value, Channels, PageTokens>;

  struct query {
    float value[Channels][M];
  };

  static void prepare(float const* q, query& out) {
    for (int c = 0; c < Channels; ++c)
      for (int m = 0; m < M; ++m) out.value[c][m] = q[m * Channels + c];
  }

  static void run(std::byte const* tile, query const& q, float* scores, int stride) {
    alignas(64) float sum[storage::tokens][M];
    clear<storage::tokens * M>(sum[0]);
    for_each_outlier<storage>(tile, [&](int token, int channel, float value) {
      PITH_UNROLL for (int m = 0; m < M; ++m) sum[token][m] += value * q.value[channel][m];
    });
    for (int m = 0; m < M; ++m)
      for (int t = 0; t < storage::tokens; ++t) scores[m * stride + t] = sum[t][m];
  }
};

template <class Which, class Group, leave Leave, storage_scalar Value, int Channels, int PageTokens, class Accuracy, int M>
  requires(Channels % 16 == 0 && 16 % simd::width == 0)
struct mix_kernel<outlier_tile<Which, Group, Leave, Value, Channels, PageTokens>, Accuracy, M> {
  using storage = outlier_tile<Which, Group, Leave, Value, Channels, PageTokens>;

  static void run(std::byte const* tile, float const* weights, int stride, float* sums) {
    for_each_outlier<storage>(tile, [&](int token, int channel, float value) {
      PITH_UNROLL for (int m = 0; m < M; ++m) sums[m * Channels + channel] += value * weights[m * stride + token];
    });
  }
};

// A tile of codec/low_rank.hpp: that header needs Eigen, its kernels do not.
template <class Storage>
concept low_rank_storage = requires {
  typename Storage::scalar;
  Storage::rank;
  Storage::channel_factor_at;
};

template <low_rank_storage Storage, class Accuracy, int M>
  requires(Storage::channels % 16 == 0 && 16 % simd::width == 0)
struct dot_kernel<Storage, Accuracy, M> {
  using storage = Storage;
  using scalar = typename Storage::scalar;

  struct query {
    float value[M][Storage::channels];
  };

  static void prepare(float const* q, query& out) {
    for (int i = 0; i < M * Storage::channels; ++i) out.value[i / Storage::channels][i % Storage::channels] = q[i];
  }

  static void run(std::byte const* tile, query const& q, float* scores, int stride) {
    constexpr std::int64_t size = sizeof(scalar);
    float projected[Storage::rank][M];  // B q
    for (int r = 0; r < Storage::rank; ++r) {
      simd::f32v sum[M];
      PITH_UNROLL for (int m = 0; m < M; ++m) sum[m] = simd::all(0);
      for (int c = 0; c < Storage::channels; c += simd::width) {
        simd::f32v const b = simd::load_scalars<scalar>(tile + Storage::channel_factor_at + size * (r * Storage::channels + c));
        PITH_UNROLL for (int m = 0; m < M; ++m) sum[m] = simd::fma(b, simd::load(q.value[m] + c), sum[m]);
      }
      simd::sums(sum, projected[r]);
    }
    for (int t = 0; t < Storage::tokens; t += simd::width) {
      simd::f32v score[M];
      PITH_UNROLL for (int m = 0; m < M; ++m) score[m] = simd::all(0);
      for (int r = 0; r < Storage::rank; ++r) {
        simd::f32v const a = simd::load_scalars<scalar>(tile + size * (r * Storage::tokens + t));
        PITH_UNROLL for (int m = 0; m < M; ++m) score[m] = simd::fma(a, simd::all(projected[r][m]), score[m]);
      }
      PITH_UNROLL for (int m = 0; m < M; ++m) simd::store(scores + m * stride + t, score[m]);
    }
  }
};

template <low_rank_storage Storage, class Accuracy, int M>
  requires(Storage::channels % 16 == 0 && 16 % simd::width == 0)
struct mix_kernel<Storage, Accuracy, M> {
  using storage = Storage;
  using scalar = typename Storage::scalar;

  static void run(std::byte const* tile, float const* weights, int stride, float* sums) {
    constexpr std::int64_t size = sizeof(scalar);
    float projected[Storage::rank][M];  // A' w
    for (int r = 0; r < Storage::rank; ++r) {
      simd::f32v sum[M];
      PITH_UNROLL for (int m = 0; m < M; ++m) sum[m] = simd::all(0);
      for (int t = 0; t < Storage::tokens; t += simd::width) {
        simd::f32v const a = simd::load_scalars<scalar>(tile + size * (r * Storage::tokens + t));
        PITH_UNROLL for (int m = 0; m < M; ++m) sum[m] = simd::fma(a, simd::load(weights + m * stride + t), sum[m]);
      }
      simd::sums(sum, projected[r]);
    }
    for (int c = 0; c < Storage::channels; c += simd::width)
      PITH_UNROLL for (int m = 0; m < M; ++m) {
        simd::f32v sum = simd::load(sums + m * Storage::channels + c);
        for (int r = 0; r < Storage::rank; ++r)
          sum = simd::fma(simd::load_scalars<scalar>(tile + Storage::channel_factor_at + size * (r * Storage::channels + c)),
                          simd::all(projected[r][m]), sum);
        simd::store(sums + m * Storage::channels + c, sum);
      }
  }
};

template <class First, class... Rest, class Accuracy, int M>
  requires(First::channels % 16 == 0 && 16 % simd::width == 0)
struct dot_kernel<sum_tile<First, Rest...>, Accuracy, M> {
  using storage = sum_tile<First, Rest...>;
  template <int I>
  using stage = std::tuple_element_t<static_cast<std::size_t>(I), std::tuple<dot_kernel<typename First::storage, Accuracy, M>,
                                                                            dot_kernel<typename Rest::storage, Accuracy, M>...>>;

  using query = std::tuple<typename dot_kernel<typename First::storage, Accuracy, M>::query,
                           typename dot_kernel<typename Rest::storage, Accuracy, M>::query...>;

  static void prepare(float const* q, query& out, float tolerance = 0) { prepare_from<0>(q, out, tolerance); }
  static void run(std::byte const* tile, query const& q, float* scores, int stride) { run_from<0>(tile, q, scores, stride); }

 private:
  template <int I>
  static void prepare_from(float const* q, query& out, float tolerance) {
    prepare_within<stage<I>>(tolerance, q, std::get<I>(out));
    if constexpr (I + 1 < storage::stages) prepare_from<I + 1>(q, out, tolerance);
  }

  template <int I>
  static void run_from(std::byte const* tile, query const& q, float* scores, int stride) {
    using leaf = typename stage<I>::storage;
    alignas(64) float part[I == 0 ? 1 : M * leaf::tokens];
    for (int i = 0; i < storage::tokens / leaf::tokens; ++i) {
      std::byte const* const from = tile + storage::part_at(I) + i * leaf::bytes;
      float* const to = scores + i * leaf::tokens;
      if constexpr (I == 0) {
        stage<I>::run(from, std::get<I>(q), to, stride);
      } else {
        stage<I>::run(from, std::get<I>(q), part, leaf::tokens);
        for (int m = 0; m < M; ++m)
          for (int t = 0; t < leaf::tokens; t += simd::width)
            simd::store(to + m * stride + t, simd::load(to + m * stride + t) + simd::load(part + m * leaf::tokens + t));
      }
    }
    if constexpr (I + 1 < storage::stages) run_from<I + 1>(tile, q, scores, stride);
  }
};

template <class First, class... Rest, class Accuracy, int M>
  requires(First::channels % 16 == 0 && 16 % simd::width == 0)
struct mix_kernel<sum_tile<First, Rest...>, Accuracy, M> {
  using storage = sum_tile<First, Rest...>;
  template <int I>
  using stage = std::tuple_element_t<static_cast<std::size_t>(I), std::tuple<mix_kernel<typename First::storage, Accuracy, M>,
                                                                            mix_kernel<typename Rest::storage, Accuracy, M>...>>;

  static void run(std::byte const* tile, float const* weights, int stride, float* sums) { run_from<0>(tile, weights, stride, sums); }

 private:
  template <int I>
  static void run_from(std::byte const* tile, float const* weights, int stride, float* sums) {
    using leaf = typename stage<I>::storage;
    for (int i = 0; i < storage::tokens / leaf::tokens; ++i)
      stage<I>::run(tile + storage::part_at(I) + i * leaf::bytes, weights + i * leaf::tokens, stride, sums);
    if constexpr (I + 1 < storage::stages) run_from<I + 1>(tile, weights, stride, sums);
  }
};

}  // namespace PITH_ISA
}  // namespace pith
