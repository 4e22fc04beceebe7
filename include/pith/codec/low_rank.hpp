// SPDX-License-Identifier: Apache-2.0
// A tile as a product of two thin matrices; as a stage of a sum it catches what the other stages' errors have in common.
//
//   x'[t][c] = sum_r A[r][t] B[r][c],   the projection of the tile onto an R-dimensional space of its columns
//
//   sum<outliers<both_ends<1>, per_channel<>>, int2<per_channel<32>>, low_rank<2>>     GEAR's keys
//
// Fit: three steps of subspace iteration, Q = orthogonal(E P), P = E' Q, from a fixed start; then A = Q and B = (Q'Q)^-1 Q'E, and each
// pair of factors is balanced by a power of two. All numbers are integers of 20 bits held in doubles, so every sum is exact: Eigen may add
// in any order and as wide as the machine is, and the bytes are the same everywhere (rule C7). Nothing is allocated.
//
// bytes   A [r][token], then B [r][channel], f16 or bf16, padded to 64: R (tokens + channels) 16 / (tokens channels) bits per value
// error   what is left of the tile, computed by encoding it
// nan     saturate: what is not finite counts as zero. Numbers beyond 2^115 are cut to it; f16 factors reach about 2^31, bf16 all of it
// cost    encode: 6 R multiply-adds for each number. Longer tiles cost fewer bits: a rank of 2 takes 0.75 bits at 64 tokens and 128
//         channels, 0.375 at 256 tokens
// from    Kang et al., GEAR, 2024, section 3 (power iteration); differs: every step is orthogonalised, by Gram and Schmidt, not only
//         the last
//
// Needs Eigen 3.4. <pith/pith.hpp> does not include it even where Eigen is found: what that header means must not depend on what else is
// installed. The kernels (cpu/) and readers of the format do not need Eigen.
#pragma once

#if !__has_include(<Eigen/Core>)
#error "[pith] codec/low_rank.hpp needs Eigen. Fix: add the folder that holds Eigen/Core to the include path (CMake: Eigen3::Eigen)."
#endif
#include <Eigen/Core>
#include <cmath>

#include "pith/codec/concept.hpp"
#include "pith/codec/groups.hpp"
#include "pith/core/bits.hpp"
#include "pith/core/rounding.hpp"

namespace pith {

template <int Rank, storage_scalar Scalar, int Channels, int Tokens>
struct low_rank_tile {
  using storage = low_rank_tile;
  using scalar = Scalar;
  static constexpr nan_policy nan = nan_policy::saturate;
  static constexpr int tokens = Tokens;
  static constexpr int channels = Channels;
  static constexpr int rank = Rank;
  static constexpr std::int64_t channel_factor_at = static_cast<std::int64_t>(sizeof(Scalar)) * Rank * Tokens;  // A starts at 0
  static constexpr std::int64_t bytes = round_up(static_cast<std::int64_t>(sizeof(Scalar)) * Rank * (Tokens + Channels), 64);

  static void encode(float const* rows, std::byte* out) noexcept {
    for (std::int64_t i = 0; i < bytes; ++i) out[i] = std::byte{0};
    double integers[Tokens * Channels];
    int const exponent = to_integers(rows, integers);
    if (exponent == nothing) return;
    Eigen::Map<Eigen::Matrix<double, Tokens, Channels, Eigen::RowMajor> const> const e(integers);
    Eigen::Matrix<double, Channels, Rank> p;
    Eigen::Matrix<double, Tokens, Rank> q;
    for (int r = 0; r < Rank; ++r)
      for (int c = 0; c < Channels; ++c) p(c, r) = start(c * Rank + r);
    for (int step = 0; step < steps; ++step) {
      q.noalias() = e.lazyProduct(p);
      orthogonalise(q);
      p.noalias() = e.transpose().lazyProduct(q);
      if (step + 1 < steps)
        for (int r = 0; r < Rank; ++r) rescale(p.col(r));
    }
    for (int r = 0; r < Rank; ++r) {
      double const squares = q.col(r).squaredNorm(), most = p.col(r).cwiseAbs().maxCoeff();
      if (squares == 0 || most == 0) continue;
      int const balance = (std::ilogb(quotient(most, squares)) + exponent - bits) / 2;
      for (int t = 0; t < Tokens; ++t) store(out, r * Tokens + t, std::ldexp(q(t, r), balance));
      for (int c = 0; c < Channels; ++c)
        store(out, Rank * Tokens + r * Channels + c, std::ldexp(quotient(p(c, r), squares), exponent - balance));
    }
  }

  // Products of 16-bit factors are exact in f32 and every sum is settled: the same numbers under every flag.
  PITH_HD static void decode(std::byte const* in, float* rows) noexcept {
    for (int i = 0; i < Tokens * Channels; ++i) rows[i] = 0;
    for (int r = 0; r < Rank; ++r) {
      float b[Channels];
      for (int c = 0; c < Channels; ++c) b[c] = factor(in, Rank * Tokens + r * Channels + c);
      for (int t = 0; t < Tokens; ++t) {
        float const a = factor(in, r * Tokens + t);
        for (int c = 0; c < Channels; ++c) rows[t * Channels + c] += a * b[c];
      }
      settle(rows);
    }
  }

  static void error_bound(float const* rows, float* bound) noexcept {
    std::byte encoded[bytes];
    encode(rows, encoded);
    decode(encoded, bound);
    for (int i = 0; i < Tokens * Channels; ++i) {
      float const error = rows[i] - bound[i];
      bound[i] = (1 + 0x1p-22f) * (error < 0 ? -error : error) + 0x1p-149f;
    }
  }

 private:
  static constexpr int steps = 3;
  static constexpr int bits = 20;             // of the integers: a sum over 256 products stays below 2^53
  static constexpr int nothing = -1'000'000;  // the exponent of a tile of zeros

  // rows = integers * 2^exponent, rounded.
  static int to_integers(float const* rows, double* integers) noexcept {
    float most = 0;
    for (int i = 0; i < Tokens * Channels; ++i) {
      float const x = is_finite(rows[i]) ? clamp(rows[i], -0x1p115f, 0x1p115f) : 0.0f, size = x < 0 ? -x : x;
      integers[i] = static_cast<double>(x);
      most = size > most ? size : most;
    }
    if (most == 0) return nothing;
    int const exponent = std::ilogb(most) + 1 - bits;
    double const scale = std::ldexp(1.0, -exponent);
    for (int i = 0; i < Tokens * Channels; ++i) integers[i] = nearest(integers[i] * scale);
    return exponent;
  }

  // Integers of 20 bits and a sign that look random.
  static double start(int i) noexcept {
    std::uint32_t hash = static_cast<std::uint32_t>(i + 1) * 0x9e3779b9u;
    hash = (hash ^ hash >> 16) * 0x85ebca6bu;
    hash = (hash ^ hash >> 13) * 0xc2b2ae35u;
    return static_cast<double>(hash >> 12) - 0x1p19;
  }

  // Both are one rounding under every flag: -ffast-math may not see through them.
  static double nearest(double x) noexcept { return static_cast<double>(std::llrint(x)); }
  static double quotient(double a, double b) noexcept {
    double volatile divisor = b, result = a / divisor;
    return result;
  }

  // The column times a power of two, rounded to 20 bits: its length does not matter.
  template <class Column>
  static void rescale(Column&& x) noexcept {
    double const most = x.cwiseAbs().maxCoeff();
    if (most == 0) return;
    double const scale = std::ldexp(1.0, bits - 1 - std::ilogb(most));
    for (Eigen::Index i = 0; i < x.size(); ++i) x[i] = nearest(x[i] * scale);
  }

  // Gram and Schmidt, twice: columns that were almost parallel are rounding noise after the first time.
  static void orthogonalise(Eigen::Matrix<double, Tokens, Rank>& q) noexcept {
    for (int j = 0; j < Rank; ++j) {
      rescale(q.col(j));
      for (int again = 0; again < 2; ++again) {
        for (int i = 0; i < j; ++i) {
          double const squares = q.col(i).squaredNorm();
          if (squares == 0) continue;
          double const part = quotient(q.col(i).dot(q.col(j)), squares);
          for (int t = 0; t < Tokens; ++t) q(t, j) -= nearest(part * q(t, i));
        }
        rescale(q.col(j));
      }
    }
  }

  // Factors below 2^-60 are zero: products of two stay exact.
  static void store(std::byte* out, int at, double x) noexcept {
    float const number = x > -0x1p-60 && x < 0x1p-60 ? 0.0f : static_cast<float>(x);
    store_scalar<Scalar>(out + at * static_cast<std::int64_t>(sizeof(Scalar)), from_float_saturated<Scalar>(number));
  }
  PITH_HD static float factor(std::byte const* in, int at) noexcept {
    return load_scalar<Scalar>(in + at * static_cast<std::int64_t>(sizeof(Scalar)));
  }
};

// The first broken rule speaks alone; true if there is none.
template <int Rank, class Scalar, int Tokens, int PageTokens>
consteval bool check_low_rank() {
  constexpr int tokens = Tokens != whole ? Tokens : PageTokens;
  if constexpr (Rank < 1 || Rank > 16) {
    static_assert(Rank == 1, "[pith] low_rank<Rank>: Rank is 1 to 16. Fix: low_rank<2>.");
    return false;
  } else if constexpr (!std::is_same_v<Scalar, f16> && !std::is_same_v<Scalar, bf16>) {
    static_assert(std::is_same_v<Scalar, f16>, "[pith] low_rank<Rank, Scalar>: Scalar is f16 or bf16. Fix: f16.");
    return false;
  } else if constexpr (tokens < block_tokens || tokens > 256 || tokens % block_tokens != 0 || PageTokens % tokens != 0) {
    static_assert(tokens < 0,
                  "[pith] low_rank<Rank, Scalar, Tokens>: a tile has whole blocks of 32 tokens, at most 256, and pages hold whole tiles. "
                  "Fix: low_rank<2, f16, 64>, or leave Tokens out for a page.");
    return false;
  } else {
    return true;
  }
}
template <bool Right, int Rank, class Scalar, int Channels, int Tokens>
struct low_rank_binding {
  using type = no_tile<Channels>;
};
template <int Rank, class Scalar, int Channels, int Tokens>
struct low_rank_binding<true, Rank, Scalar, Channels, Tokens> {
  using type = low_rank_tile<Rank, Scalar, Channels, Tokens>;
};

// A tile is a page of at most 256 tokens, or Tokens of it; the same for dot and mix.
template <int Rank, class Scalar = f16, int Tokens = whole>
struct low_rank {
  template <int Channels, int PageTokens, use Use>
  using bind = typename low_rank_binding<check_low_rank<Rank, Scalar, Tokens, PageTokens>(), Rank, Scalar, Channels,
                                         Tokens != whole ? Tokens : PageTokens>::type;
};

static_assert(codec<low_rank<2>> && codec<low_rank<4, bf16, 32>>);

}  // namespace pith
