// SPDX-License-Identifier: Apache-2.0
// dot over integer tiles.
//
// A stored number is x = (u - middle) s + b. The scale goes where it is cheap:
//   per_token      score[t] = sum_g s[t,g] (sum_c q[c] u[t,c] - middle Q[g]) + b[t,g] Q[g],   Q[g] = sum_c q[c] over the group
//   per_channel    q'[c] = q[c] s[c] once for a token group;  score[t] = sum_c q'[c] u[t,c] - middle sum q' + sum_c q[c] b[c]
//
// exact     codes become f32 and are multiplied by q (or q') in f32
// integer   q (or q') is rounded to 8 bits, step = max|q| / 127, and dot4 multiplies integers. When that rounding would be a larger
//           error than the codes' own (an outlier channel in q'), or larger than the caller tolerates, it is rounded to 15 bits,
//           step = max|q| / 16256, 128 high + low, in two passes. Chosen from the bounds: for each row and token group where scales are
//           in the query, else for each row and tile, by the tile's largest scale.
//           error: |score error| <= step/2 * sum_c |u - middle| s, beside the codec's own
// cost      4 bit, integer, M rows: per 8 * width codes one load, one shift, two masks and 2M dot4; a higher plane (3, 5, 6, 7 bits) adds
//           a load, and a shift, a mask and an or for every M dot4
#pragma once

#include <algorithm>
#include <cmath>

#include "pith/codec/integer.hpp"
#include "pith/cpu/kernel.hpp"
#include "pith/cpu/packed_codes.hpp"
#include "pith/simd/dot4.hpp"
#include "pith/simd/pack.hpp"

namespace pith {
inline namespace PITH_ISA {

// What attention tolerates: the standard deviation of a score, in units of log 2, that 8 bits may cause. Without it a model whose
// scores reach hundreds loses up to 6 % of an output (docs/numerics.md).
inline constexpr float score_tolerance = 0.25f;

// A row of numbers as 8-bit or 15-bit integers in the order of packed codes.
template <int Bits, int Channels>
struct rounded_row {
  static constexpr int plane_bits = first_plane<Bits>;
  static constexpr int size = static_cast<int>(round_up(Channels, std::max(32, 4 * simd::width)));
  alignas(64) std::uint8_t high[size];  // the 8-bit value, or the upper part of the 15-bit one
  alignas(64) std::uint8_t low[size];
  float step = 0;
  bool wide = false;  // there are low bytes, and step is that of 15 bits

  // 8 bits are enough if the row's rounding, step/sqrt(12) in every channel, is below 1/128 of the row, or if its effect on a score,
  // times the root mean square of u - middle, is at most half of the codes' own error, |row|/sqrt(12).
  static bool narrow_enough(float most, float squares) {
    constexpr float code_square = static_cast<float>((1 << Bits) * (1 << Bits)) / 12.0f;  // mean of (u - middle)^2
    float const step = most / 127.0f, rounding = step * step * static_cast<float>(Channels);
    return rounding <= 12.0f * 0x1p-14f * squares || rounding * code_square <= 0.25f * squares;
  }
  // The largest scale with which 8 bits are enough, for codes whose root mean square about the middle is `spread`: the row must allow them,
  // and the standard deviation that they cause in a score must be tolerated (0: any is).
  static float narrow_scale(float most, float squares, float spread, float tolerance) {
    if (!narrow_enough(most, squares)) return -1;
    float const per_scale = most / 127.0f * std::sqrt(static_cast<float>(Channels) / 12.0f) * spread;
    return tolerance > 0 && per_scale > 0x1p-60f ? tolerance / per_scale : any_scale;
  }
  static constexpr float any_scale = 0x1p120f;

  // row has `size` numbers, zero beyond Channels, the largest |number| is `most`. Returns lanes whose sum is that of all rounded integers.
  PITH_INLINE simd::i32v round(float const* row, float most, bool to_15_bits) {
    wide = to_15_bits;
    step = most * (wide ? 1.0f / 16256.0f : 1.0f / 127.0f);
    simd::f32v const inverse = simd::all(inverse_step(most)), raise = simd::all(simd::signed_raise);
    constexpr int at_once = size % 64 == 0 ? 64 : 32, vectors = at_once / simd::width;
    simd::i32v sum(0), low_sum(0);
    if (!wide) std::memset(low, 0, sizeof low);
    for (int c = 0; c < size; c += at_once) {
      simd::u32v bits[vectors], low_bits[vectors];  // the integers are in the low bits
      PITH_UNROLL for (int v = 0; v < vectors; ++v) bits[v] =
          simd::as_words(simd::fma(simd::load(row + c + v * simd::width), inverse, raise));
      if (wide) {
        PITH_UNROLL for (int v = 0; v < vectors; ++v) {
          simd::i32v const x = simd::lowered_integer(bits[v]), upper = (x + simd::i32v(64)) >> 7;
          bits[v] = simd::as_words(upper);
          low_bits[v] = simd::as_words(x - (upper << 7));
        }
        simd::pack_bytes<plane_bits>(low_bits, low + c);
      }
      simd::pack_bytes<plane_bits>(bits, high + c);
    }
    for (int c = 0; c < size; c += 4 * simd::width) {
      simd::u32v const ones(0x01010101u);
      sum = simd::dot4<true>(sum, ones, simd::load_words(reinterpret_cast<std::byte const*>(high) + c));
      if (wide) low_sum = simd::dot4<true>(low_sum, ones, simd::load_words(reinterpret_cast<std::byte const*>(low) + c));
    }
    return wide ? (sum << 7) + low_sum : sum;
  }
  float high_step() const { return wide ? 128.0f * step : step; }
  float inverse_step(float most) const { return most > 0x1p-100f ? (wide ? 16256.0f : 127.0f) / most : 0.0f; }
};

template <int Bits, class Group, zero Zero, class Scale, int Channels, int PageTokens, class Accuracy, int M>
  requires(block_tokens % simd::width == 0)
struct dot_kernel<integer_tile<Bits, Group, Zero, Scale, Channels, PageTokens, use::dot>, Accuracy, M> {
  using storage = integer_tile<Bits, Group, Zero, Scale, Channels, PageTokens, use::dot>;
  using layout = typename storage::layout;
  static constexpr bool in_integers = std::is_same_v<Accuracy, integer_accuracy>;
  static constexpr bool folds = storage::along_tokens;  // the channel scales go into the query
  static constexpr int padded = rounded_row<Bits, Channels>::size;
  static constexpr int groups = folds ? 1 : storage::groups;
  static constexpr int group = folds ? Channels : storage::group;

  // Root mean square of u - middle: even codes per channel; per token outlier channels take half the range and more.
  static constexpr float code_spread = static_cast<float>(1 << Bits) * (folds ? 0.2887f : 0.1443f);

  static constexpr bool rounds_once = in_integers && !folds;  // the query is rounded when it is prepared

  struct query {
    alignas(64) float value[rounds_once ? 1 : M][padded];
    float total[M][groups];  // sum of q over a group; of a rounded query in units of its 8-bit step
    rounded_row<Bits, Channels> rounded[rounds_once ? M : 1];
    std::int32_t rounded_total[rounds_once ? 2 : 1][M][groups];  // sums of the rounded bytes: high, low
    float tolerance;
    float narrow_scale[M], least_narrow_scale;  // per_token: tiles with larger scales need the low bytes
  };

  // tolerance: of a score's standard deviation, or 0: the row's own numbers decide (narrow_enough)
  static void prepare(float const* q, query& out, float tolerance = 0) {
    out.tolerance = tolerance;
    out.least_narrow_scale = rounded_row<Bits, Channels>::any_scale;
    for (int m = 0; m < M; ++m) {
      float* const row = out.value[rounds_once ? 0 : m];
      for (int c = 0; c < padded; ++c) row[c] = c < Channels ? q[m * Channels + c] : 0.0f;
      for (int g = 0; g < groups; ++g) out.total[m][g] = sum_of_group(row + g * group);
      if constexpr (rounds_once) {
        simd::f32v most = simd::all(0), squares = simd::all(0);
        for (int c = 0; c < padded; c += simd::width) {
          simd::f32v const x = simd::load(row + c);
          most = simd::max(most, simd::magnitude(x));
          squares = simd::fma(x, x, squares);
        }
        rounded_row<Bits, Channels>& rounded = out.rounded[m];
        float const peak = simd::largest(most);
        out.narrow_scale[m] = rounded.narrow_scale(peak, simd::sum(squares), code_spread, tolerance);
        out.least_narrow_scale = std::min(out.least_narrow_scale, out.narrow_scale[m]);
        rounded.round(row, peak, out.narrow_scale[m] < rounded.any_scale);
        float const step = rounded.high_step(), steps = step > 0x1p-120f ? 1.0f / step : 0.0f;
        for (int g = 0; g < groups; ++g) {
          out.total[m][g] *= steps;
          for (int part = 0; part < 2; ++part) {
            std::uint8_t const* const bytes = part == 0 ? rounded.high : rounded.low;
            std::int32_t total = 0;
            for (int c = g * group; c < (g + 1) * group; ++c) total += static_cast<std::int8_t>(bytes[c]);
            out.rounded_total[part][m][g] = total;
          }
        }
      }
    }
  }

  template <class Ask = ask_nothing>
  static void run(std::byte const* tile, query const& q, float* scores, int stride, Ask ask = {}) {
    ask_for_parameters<storage>(tile, ask);
    if constexpr (folds)
      run_per_channel(tile, q, scores, stride, ask);
    else
      run_per_token(tile, q, scores, stride, ask);
  }

 private:
  static constexpr int vectors = simd::width >= 8 ? 2 : 1;  // token vectors at a time
  static constexpr int chunk = vectors * simd::width <= 16 || storage::group >= 32 || !folds ? vectors * simd::width : 16;
  static constexpr int chunk_vectors = chunk / simd::width;
  static constexpr int words_at_once = layout::planes > 1 ? 16 / layout::per_word : 1;  // 16 codes share words of the higher planes
  using sums_type = simd::f32v[M][chunk_vectors];

  // sum_c q[c] u[t,c] over channels [from, to), f32 lanes over tokens first .. first + chunk of a block
  template <class Ask>
  static void sum_exact(std::byte const* block, int first, int from, int to, float const (*q)[padded], sums_type& sum, Ask ask) {
    PITH_UNROLL for (int m = 0; m < M; ++m) PITH_UNROLL for (int v = 0; v < chunk_vectors; ++v) sum[m][v] = simd::all(0);
    for (int c = from; c < to; c += 16) {
      PITH_UNROLL for (int v = 0; v < chunk_vectors; ++v) {
        high_words<layout> const high = load_high<layout>(block, c, first + v * simd::width, ask);
        for (int first_word = c / layout::per_word; first_word < (c + 16) / layout::per_word; first_word += words_at_once) {
          PITH_UNROLL for (int nth = 0; nth < words_at_once; ++nth) {
            int const word = first_word + nth;
            std::byte const* const at = block + 4ll * (word * block_tokens + first + v * simd::width);
            simd::u32v const words = simd::load_words(at);
            ask(at);
            PITH_UNROLL for (int i = 0; i < layout::per_word; ++i) {
              simd::f32v const u = codes_of_field<layout>(words, high, nth, i);
              PITH_UNROLL for (int m = 0; m < M; ++m) sum[m][v] = simd::fma(u, simd::all(q[m][word * layout::per_word + i]), sum[m][v]);
            }
          }
        }
      }
    }
  }

  static float sum_of_group(float const* q) {
    simd::f32v sum = simd::all(0);
    constexpr int whole_vectors = group / simd::width * simd::width;
    for (int c = 0; c < whole_vectors; c += simd::width) sum = sum + simd::load(q + c);
    float total = simd::sum(sum);
    for (int c = whole_vectors; c < group; ++c) total += q[c];
    return total;
  }

  // the same in integers, times the step
  template <class Ask>
  static void sum_integer(std::byte const* block, int first, int from, int to, rounded_row<Bits, Channels> const* q, sums_type& sum,
                          Ask ask) {
    simd::i32v acc[M][chunk_vectors];
    bool any_wide = false;
    PITH_UNROLL for (int m = 0; m < M; ++m) {
      any_wide = any_wide || q[m].wide;
      PITH_UNROLL for (int v = 0; v < chunk_vectors; ++v) acc[m][v] = simd::i32v(0);
    }
    accumulate(block, first, from, to, q, false, acc, ask);
    PITH_UNROLL for (int m = 0; m < M; ++m)
      PITH_UNROLL for (int v = 0; v < chunk_vectors; ++v) sum[m][v] = simd::to_float(acc[m][v]) * simd::all(q[m].high_step());
    if (any_wide) {
      PITH_UNROLL for (int m = 0; m < M; ++m) PITH_UNROLL for (int v = 0; v < chunk_vectors; ++v) acc[m][v] = simd::i32v(0);
      accumulate(block, first, from, to, q, true, acc, ask_nothing{});
      for (int m = 0; m < M; ++m)
        for (int v = 0; v < chunk_vectors; ++v) sum[m][v] = simd::fma(simd::to_float(acc[m][v]), simd::all(q[m].step), sum[m][v]);
    }
  }

  // acc += sum_c q[c] u[t,c] over the high or the low bytes of Rows rows of q
  template <class Ask, int Rows>
  PITH_INLINE static void accumulate(std::byte const* block, int first, int from, int to, rounded_row<Bits, Channels> const* q,
                                     bool low_part, simd::i32v (&acc)[Rows][chunk_vectors], Ask ask) {
    constexpr int steps = layout::per_word / 4;
    std::byte const* bytes[Rows];
    PITH_UNROLL for (int m = 0; m < Rows; ++m) bytes[m] = reinterpret_cast<std::byte const*>(low_part ? q[m].low : q[m].high);
    for (int first_word = from / layout::per_word; first_word < to / layout::per_word; first_word += words_at_once) {
      high_words<layout> high[chunk_vectors];
      PITH_UNROLL for (int v = 0; v < chunk_vectors; ++v) high[v] =
          load_high<layout>(block, first_word * layout::per_word, first + v * simd::width, ask);
      PITH_UNROLL for (int nth = 0; nth < words_at_once; ++nth) {
        int const word = first_word + nth;
        simd::u32v words[chunk_vectors], codes[chunk_vectors];
        PITH_UNROLL for (int v = 0; v < chunk_vectors; ++v) {
          std::byte const* const at = block + 4ll * (word * block_tokens + first + v * simd::width);
          words[v] = simd::load_words(at);
          ask(at);
        }
        PITH_UNROLL for (int step = 0; step < steps; ++step) {
          PITH_UNROLL for (int v = 0; v < chunk_vectors; ++v) codes[v] = codes_of_step<layout>(words[v], high[v], nth, step);
          PITH_UNROLL for (int m = 0; m < Rows; ++m) {
            simd::u32v const rounded =
                simd::all_words(bytes[m] + word * layout::per_word + 4 * step);  // one broadcast for all token vectors
            PITH_UNROLL for (int v = 0; v < chunk_vectors; ++v) acc[m][v] = simd::dot4<(Bits <= 7)>(acc[m][v], codes[v], rounded);
          }
        }
      }
    }
  }

  template <class Ask>
  static void run_per_token(std::byte const* tile, query const& q, float* scores, int stride, Ask ask) {
    for (int first = 0; first < block_tokens; first += chunk) {
      simd::f32v score[M][chunk_vectors], most[chunk_vectors];
      PITH_UNROLL for (int m = 0; m < M; ++m) PITH_UNROLL for (int v = 0; v < chunk_vectors; ++v) score[m][v] = simd::all(0);
      for (int g = 0; g < groups; ++g) {
        sums_type sum;  // sum_c q[c] (u[t,c] - middle), in units of a rounded query's step
        if constexpr (in_integers) {
          centred_integer(tile, first, g, q, sum, ask);
        } else {
          sum_exact(tile, first, g * group, (g + 1) * group, q.value, sum, ask);
          PITH_UNROLL for (int m = 0; m < M; ++m)
            PITH_UNROLL for (int v = 0; v < chunk_vectors; ++v)
              sum[m][v] = sum[m][v] - simd::all(static_cast<float>(storage::middle) * q.total[m][g]);
        }
        PITH_UNROLL for (int v = 0; v < chunk_vectors; ++v) {
          std::int64_t const index = static_cast<std::int64_t>(g) * storage::group_lanes + first + v * simd::width;
          simd::f32v const scale = scale_of<storage>(tile, index);
          if constexpr (in_integers) most[v] = g == 0 ? scale : simd::max(most[v], scale);
          PITH_UNROLL for (int m = 0; m < M; ++m) score[m][v] = simd::fma(scale, sum[m][v], score[m][v]);
          if constexpr (storage::zero_kind != zero::none) {
            simd::f32v const bias =
                simd::fma(scale, simd::all(static_cast<float>(storage::middle)), offset_of<storage>(tile, index, scale));
            PITH_UNROLL for (int m = 0; m < M; ++m) score[m][v] = simd::fma(bias, simd::all(q.total[m][g]), score[m][v]);
          }
        }
      }
      PITH_UNROLL for (int m = 0; m < M; ++m) PITH_UNROLL for (int v = 0; v < chunk_vectors; ++v) simd::store(
          scores + m * stride + first + v * simd::width, in_integers ? score[m][v] * simd::all(q.rounded[m].high_step()) : score[m][v]);
      if constexpr (in_integers) {
        PITH_UNROLL for (int v = 1; v < chunk_vectors; ++v) most[0] = simd::max(most[0], most[v]);
        if (simd::any_above(most[0], q.least_narrow_scale)) [[unlikely]]
          refine(tile, first, simd::largest(most[0]), q, scores + first, stride);
      }
    }
  }

  // The low bytes of the rows that need them: of all together if most do.
  static void refine(std::byte const* tile, int first, float scale, query const& q, float* scores, int stride) {
    int wide = 0;
    for (int m = 0; m < M; ++m) wide += scale > q.narrow_scale[m];
    if (2 * wide > M) return add_low<M>(tile, first, 0, q, scores, stride);
    for (int m = 0; m < M; ++m)
      if (scale > q.narrow_scale[m]) add_low<1>(tile, first, m, q, scores, stride);
  }

  // sum_c q[c] (u[t,c] - middle) over group g, in steps of the rounded query: exact
  template <class Ask>
  PITH_INLINE static void centred_integer(std::byte const* tile, int first, int g, query const& q, sums_type& sum, Ask ask) {
    simd::i32v acc[M][chunk_vectors];
    PITH_UNROLL for (int m = 0; m < M; ++m)
      PITH_UNROLL for (int v = 0; v < chunk_vectors; ++v) acc[m][v] = simd::i32v(-storage::middle * q.rounded_total[0][m][g]);
    accumulate(tile, first, g * group, (g + 1) * group, q.rounded, false, acc, ask);
    PITH_UNROLL for (int m = 0; m < M; ++m) PITH_UNROLL for (int v = 0; v < chunk_vectors; ++v) sum[m][v] = simd::to_float(acc[m][v]);
  }

  // What the low bytes of rows [row, row + Rows) add.
  template <int Rows>
  static void add_low(std::byte const* tile, int first, int row, query const& q, float* scores, int stride) {
    simd::f32v score[Rows][chunk_vectors];
    PITH_UNROLL for (int m = 0; m < Rows; ++m) PITH_UNROLL for (int v = 0; v < chunk_vectors; ++v) score[m][v] = simd::all(0);
    for (int g = 0; g < groups; ++g) {
      simd::i32v acc[Rows][chunk_vectors];
      PITH_UNROLL for (int m = 0; m < Rows; ++m)
        PITH_UNROLL for (int v = 0; v < chunk_vectors; ++v) acc[m][v] = simd::i32v(-storage::middle * q.rounded_total[1][row + m][g]);
      accumulate(tile, first, g * group, (g + 1) * group, q.rounded + row, true, acc, ask_nothing{});
      PITH_UNROLL for (int v = 0; v < chunk_vectors; ++v) {
        simd::f32v const scale = scale_of<storage>(tile, static_cast<std::int64_t>(g) * storage::group_lanes + first + v * simd::width);
        PITH_UNROLL for (int m = 0; m < Rows; ++m) score[m][v] = simd::fma(scale, simd::to_float(acc[m][v]), score[m][v]);
      }
    }
    PITH_UNROLL for (int m = 0; m < Rows; ++m)
      PITH_UNROLL for (int v = 0; v < chunk_vectors; ++v) {
        float* const to = scores + (row + m) * stride + v * simd::width;
        simd::store(to, simd::fma(score[m][v], simd::all(q.rounded[row + m].wide ? q.rounded[row + m].step : 0.0f), simd::load(to)));
      }
  }

  template <class Ask>
  static void run_per_channel(std::byte const* tile, query const& q, float* scores, int stride, Ask ask) {
    alignas(64) float folded[M][padded];
    rounded_row<Bits, Channels> rounded[in_integers ? M : 1];
    constexpr float centre = in_integers ? storage::middle : 0;
    for (int g = 0; g < storage::groups; ++g) {
      simd::f32v constants[M], most[M], squares[M];  // constants: the same for all tokens
      PITH_UNROLL for (int m = 0; m < M; ++m) constants[m] = most[m] = squares[m] = simd::all(0);
      for (int c = 0; c < Channels; c += simd::width) {
        std::int64_t const index = static_cast<std::int64_t>(g) * Channels + c;
        simd::f32v const scale = scale_of<storage>(tile, index);
        simd::f32v const bias = simd::fma(scale, simd::all(centre), offset_of<storage>(tile, index, scale));
        PITH_UNROLL for (int m = 0; m < M; ++m) {
          simd::f32v const x = simd::load(q.value[m] + c), scaled = x * scale;
          simd::store(folded[m] + c, scaled);
          constants[m] = simd::fma(x, bias, constants[m]);
          if constexpr (in_integers) {
            most[m] = simd::max(most[m], simd::magnitude(scaled));
            squares[m] = simd::fma(scaled, scaled, squares[m]);
          }
        }
      }
      for (int m = 0; m < M; ++m)
        for (int c = Channels; c < padded; ++c) folded[m][c] = 0;
      if constexpr (in_integers) {
        float peak[M], size[M];
        simd::largest_of_each(most, peak);
        simd::sums(squares, size);
        for (int m = 0; m < M; ++m) {
          rounded_row<Bits, Channels>& row = rounded[m];
          bool const narrow = row.narrow_scale(peak[m], size[m], code_spread, q.tolerance) >= 1;
          simd::f32v const codes = simd::to_float(row.round(folded[m], peak[m], !narrow));
          constants[m] = constants[m] - codes * simd::all(centre * row.step);  // the rounded query meets u - middle
        }
      }
      float constant[M];
      simd::sums(constants, constant);
      for (int token = g * storage::group; token < (g + 1) * storage::group; token += chunk) {
        std::byte const* const block = tile + token / block_tokens * layout::bytes;
        sums_type sum;
        if constexpr (in_integers)
          sum_integer(block, token % block_tokens, 0, Channels, rounded, sum, ask);
        else
          sum_exact(block, token % block_tokens, 0, Channels, folded, sum, ask);
        PITH_UNROLL for (int m = 0; m < M; ++m)
          PITH_UNROLL for (int v = 0; v < chunk_vectors; ++v)
            simd::store(scores + m * stride + token + v * simd::width, sum[m][v] + simd::all(constant[m]));
      }
    }
  }
};

}  // namespace PITH_ISA
}  // namespace pith
