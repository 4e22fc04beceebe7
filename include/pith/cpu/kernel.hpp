// SPDX-License-Identifier: Apache-2.0
// The two verbs on the CPU, for M query rows at once, and the generic form that is right for every codec.
//
//   dot_kernel<Storage, Accuracy, M>    scores[m][t] = sum_c X[t][c] q[m][c]
//   mix_kernel<Storage, Accuracy, M>    sums[m][c] += sum_t w[m][t] X[t][c]
//
// Storage is the leaf tile that is read (rows may be stored in a transformed basis: the caller transforms q and restores sums).
// Accuracy exact multiplies decoded values in f32. Accuracy integer quantizes q, or w, to 8 bits and multiplies integers; a codec
// without integer codes computes exactly, or in bf16 pairs (raw_pairs.hpp).
// Specialisations are in raw_kernels.hpp, raw_pairs.hpp, dot_integer.hpp, mix_integer.hpp, float8_kernels.hpp, sum_kernels.hpp.
#pragma once

#include "pith/codec/concept.hpp"
#include "pith/page/attention_engine.hpp"
#include "pith/simd/vec.hpp"

namespace pith {

inline namespace PITH_ISA {

struct cpu {};  // the backend; a type that names it carries the instruction set in its name

// What a kernel does for each line of packed bytes that it reads: nothing, or ask for the line that lies `bytes` further on.
struct ask_nothing {
  PITH_INLINE void operator()(std::byte const*) const {}
};
struct ask_ahead {
  std::uintptr_t bytes;  // modulo 2^64: the other line may lie in another allocation, before this one
  PITH_INLINE void operator()(std::byte const* at) const {
    if constexpr (4 * simd::width < 64)
      if (reinterpret_cast<std::uintptr_t>(at) % 64 >= 4 * simd::width) return;  // only for the first vector of a line
    simd::prefetch_far(reinterpret_cast<std::uintptr_t>(at) + bytes);
  }
};
// The line that lies `bytes` further on, into the first level: for kernels that compute so much that few loads of theirs wait at a time.
struct ask_near {
  std::uintptr_t bytes;
  PITH_INLINE void operator()(std::byte const* at) const {
    simd::prefetch(reinterpret_cast<std::byte const*>(reinterpret_cast<std::uintptr_t>(at) + bytes));
  }
};
// One line of four, where the processor's own streams bring the others: raw pages in address order are read so fast that asking for every
// line holds the reads up (67 % of the read bandwidth, without asking 76 %, this way 84 %). Packed pages need every line (59 %, 21 %).
struct ask_ahead_sparsely {
  std::uintptr_t bytes;
  PITH_INLINE void operator()(std::byte const* at) const {
    if (reinterpret_cast<std::uintptr_t>(at) / 64 % 4 == 0) simd::prefetch_far(reinterpret_cast<std::uintptr_t>(at) + bytes);
  }
};

// Multiplies a query that is given as it is: kernels that can, see the caller's own numbers, which are often bf16.
struct query_scale {
  float value = 1;
};

template <class Storage, class Accuracy, int M>
struct dot_kernel {
  using storage = Storage;
  static constexpr int tokens = Storage::tokens;
  static constexpr int channels = Storage::channels;

  struct query {
    float value[M][channels];
  };

  // q [m][channel], contiguous
  static void prepare(float const* q, query& out) {
    for (int i = 0; i < M * channels; ++i) out.value[i / channels][i % channels] = q[i];
  }

  // scores [m][stride]
  static void run(std::byte const* tile, query const& q, float* scores, int stride) {
    float rows[tokens * channels];
    Storage::decode(tile, rows);
    for (int m = 0; m < M; ++m)
      for (int t = 0; t < tokens; ++t) {
        float sum = 0;
        for (int c = 0; c < channels; ++c) sum += q.value[m][c] * rows[t * channels + c];
        scores[m * stride + t] = sum;
      }
  }
};

// What a mix kernel keeps outside the sums; most keep nothing.
struct no_lanes {
  void scale(int, float) {}
  void move_to(float*) {}
};
template <class Mix>
struct lanes_of_kernel {
  using type = no_lanes;
};
template <class Mix>
  requires requires { typename Mix::lanes; }
struct lanes_of_kernel<Mix> {
  using type = typename Mix::lanes;
};
template <class Mix>
using lanes_of = typename lanes_of_kernel<Mix>::type;

template <class Storage, class Accuracy, int M>
struct mix_kernel {
  using storage = Storage;
  static constexpr int tokens = Storage::tokens;
  static constexpr int channels = Storage::channels;

  // weights [m][stride], sums [m][channel]
  static void run(std::byte const* tile, float const* weights, int stride, float* sums) {
    float rows[tokens * channels];
    Storage::decode(tile, rows);
    for (int m = 0; m < M; ++m)
      for (int t = 0; t < tokens; ++t)
        for (int c = 0; c < channels; ++c) sums[m * channels + c] += weights[m * stride + t] * rows[t * channels + c];
  }
};

// Prepares a query for scores of which `tolerance` may be lost, if the kernel can lose any.
template <class Dot>
PITH_INLINE void prepare_within(float tolerance, float const* q, typename Dot::query& out) {
  if constexpr (requires { Dot::prepare(q, out, tolerance); })
    Dot::prepare(q, out, tolerance);
  else
    Dot::prepare(q, out);
}

// A run of tiles: tile_at(t) gives the one that starts at token t. Kernels that can ask for what follows are given `ask`; mix kernels that
// take two neighbouring tiles at once are given two.
template <class Dot, class TileAt, class Ask>
PITH_INLINE void dot_tiles(int tokens, TileAt tile_at, typename Dot::query const& query, float* scores, int stride, Ask ask) {
  for (int t = 0; t < tokens; t += Dot::storage::tokens) {
    if constexpr (requires { Dot::run(tile_at(t), query, scores, stride, ask); })
      Dot::run(tile_at(t), query, scores + t, stride, ask);
    else
      Dot::run(tile_at(t), query, scores + t, stride);
  }
}
template <class Mix, class TileAt, class Lanes, class Ask>
PITH_INLINE void mix_tiles(int tokens, TileAt tile_at, float const* weights, int stride, float* sums, Lanes& rest, Ask ask) {
  constexpr int one = Mix::storage::tokens;
  int t = 0;
  if constexpr (requires { Mix::template add<1>(tile_at(t), weights, stride, sums, rest, ask); }) {
    if constexpr (2 * one <= 64)
      for (; t + 2 * one <= tokens; t += 2 * one) Mix::template add<2>(tile_at(t), weights + t, stride, sums, rest, ask);
    for (; t < tokens; t += one) Mix::template add<1>(tile_at(t), weights + t, stride, sums, rest, ask);
  } else {
    for (; t < tokens; t += one) {
      if constexpr (requires { Mix::run(tile_at(t), weights, stride, sums, ask); })
        Mix::run(tile_at(t), weights + t, stride, sums, ask);
      else
        Mix::run(tile_at(t), weights + t, stride, sums);
    }
  }
}

}  // namespace PITH_ISA

template <>
struct default_backend<void> {
  using type = cpu;
};

}  // namespace pith
