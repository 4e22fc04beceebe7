// SPDX-License-Identifier: Apache-2.0
// mix over integer tiles.
//
// A stored number is x = (u - c) s + o with c in the middle of the codes; where codes are symmetric, o is zero. The scale goes where it is
// cheap:
//   per_token      sum_t w[t] x[t,c] = sum_t (w[t] s[t,g]) (u[t,c] - c) + sum_t w[t] o[t,g]     scales go into the weights
//   per_channel    sum_t w[t] x[t,c] = s[c] sum_t w[t] (u[t,c] - c) + o[c] sum_t w[t]           scales go onto the sums
//
// exact     codes become f32 and are multiplied by the (scaled) weights in f32
// integer   the (scaled) weights of a tile, or of neighbouring tiles, are rounded to 8 unsigned bits, step = max / 255, and dot4 multiplies
//           integers. Only what u - c adds meets rounded weights; the middle of a group, o, meets the weights themselves.
//           error: |sum error| <= step/2 sum_t |u - c| (times s[c], per_channel), and the roundings of neighbours cancel
// cost      4 bit, integer, M rows: per 8 * width codes one load, one shift, two masks and 2M dot4. Weights, per_token: 6 instructions for
//           `width` of them, once for each row and channel group; what all channels of a group are raised by stays in lanes
#pragma once

#include "pith/cpu/dot_integer.hpp"

namespace pith {
inline namespace PITH_ISA {

// What every sum of a channel group is still to be raised by, spread over lanes: added up at the end of a context, not once a tile.
template <int Channels, int Groups, int M>
struct mix_lanes {
  alignas(64) float shift[M][Groups][simd::width] = {};

  void scale(int m, float factor) {
    for (float(&lanes)[simd::width] : shift[m]) simd::store(lanes, simd::load(lanes) * simd::all(factor));
  }
  // sums [m][channel]
  void move_to(float* sums) {
    constexpr int group = Channels / Groups;
    for (int m = 0; m < M; ++m)
      for (int g = 0; g < Groups; ++g) {
        simd::f32v const raise = simd::all(simd::sum(simd::load(shift[m][g])));
        for (int c = 0; c < group; c += simd::width) {
          float* const to = sums + m * Channels + g * group + c;
          simd::store(to, simd::load(to) + raise);
        }
        simd::store(shift[m][g], simd::all(0));
      }
  }
};

template <int Bits, class Group, zero Zero, class Scale, int Channels, int PageTokens, class Accuracy, int M>
  requires(Channels % 16 == 0 && 16 % simd::width == 0)
struct mix_kernel<integer_tile<Bits, Group, Zero, Scale, Channels, PageTokens, use::mix>, Accuracy, M> {
  using storage = integer_tile<Bits, Group, Zero, Scale, Channels, PageTokens, use::mix>;
  using layout = typename storage::layout;
  static constexpr bool in_integers = std::is_same_v<Accuracy, integer_accuracy>;
  static constexpr bool per_channel = storage::along_tokens;
  static constexpr int groups = per_channel ? 1 : storage::groups;
  static constexpr int group = per_channel ? Channels : storage::group;
  using lanes = mix_lanes<Channels, groups, M>;

  // weights [m][stride], sums [m][channel]
  static void run(std::byte const* tile, float const* weights, int stride, float* sums) {
    lanes rest;
    add<1>(tile, weights, stride, sums, rest);
    if constexpr (!per_channel) rest.move_to(sums);
  }

  // The same over `Tiles` tiles that follow one another; what is left to add stays in `rest`.
  template <int Tiles, class Ask = ask_nothing>
  static void add(std::byte const* tile, float const* weights, int stride, float* sums, lanes& rest, Ask ask = {}) {
    constexpr int segment = !per_channel ? Tiles * block_tokens : storage::group < block_tokens ? storage::group : block_tokens;
    for (int i = 0; i < Tiles; ++i) ask_for_parameters<storage>(tile + i * storage::bytes, ask);
    for (int t = 0; t < Tiles * storage::tokens; t += segment)
      add_segment<segment>(tile + t / storage::tokens * storage::bytes, t % storage::tokens, weights + t, stride, sums, rest, ask);
  }

 private:
  static constexpr bool symmetric = storage::zero_kind == zero::none;
  static constexpr float centre = !in_integers ? 0 : symmetric || Bits == 8 ? storage::middle : 0.5f * storage::top;
  static constexpr float code_centre = in_integers && Bits == 8 ? 128.0f : 0.0f;  // what the multiplied codes are already less
  static constexpr int words_at_once = layout::planes > 1 ? 16 / layout::per_word : 1;  // 16 codes share words of the higher planes
  static constexpr int blocks_apart = static_cast<int>(per_channel ? layout::bytes : storage::bytes);

  template <int Tokens>
  struct segment_weights {
    alignas(64) float value[in_integers ? 1 : M][Tokens];           // exact: what multiplies a code
    static constexpr int padded = static_cast<int>(round_up(Tokens, 4 * simd::width));
    alignas(64) std::uint8_t rounded[in_integers ? M : 1][padded];  // integer: the same in steps, in the order of packed codes
    float step[M];
    float offset[M];  // in steps: what u, as it is multiplied, has too much for each channel; per_channel
    float total[M];   // sum of weights; per_channel
  };

  // Scale and offset o of tokens [t, t + width) of a segment; per_channel ones are not the weights' business.
  PITH_INLINE static simd::f32v token_scale(std::byte const* tile, int g, int t) {
    if constexpr (per_channel) return simd::all(1.0f);
    return scale_of<storage>(tile + t / block_tokens * storage::bytes,
                             static_cast<std::int64_t>(g) * storage::group_lanes + t % block_tokens);
  }
  PITH_INLINE static simd::f32v token_offset(std::byte const* tile, int g, int t, simd::f32v scale) {
    if constexpr (per_channel) return simd::all(0);
    return middle_of(tile + t / block_tokens * storage::bytes, static_cast<std::int64_t>(g) * storage::group_lanes + t % block_tokens,
                     scale);
  }
  // What the middle of the codes stands for; in exact accuracy, where nothing is rounded, what code 0 does.
  PITH_INLINE static simd::f32v middle_of(std::byte const* tile, std::int64_t index, simd::f32v scale) {
    if constexpr (centre == 0)
      return offset_of<storage>(tile, index, scale);
    else if constexpr (symmetric)
      return simd::all(0);
    else
      return simd::fma(scale, simd::all(centre), offset_of<storage>(tile, index, scale));
  }

  // Tokens from `first` of the tile on (of `Tokens` / 32 tiles if there are more). All groups' weights are ready before the first product:
  // their chains of dependent instructions then run beside one another.
  template <int Tokens, class Ask>
  static void add_segment(std::byte const* tile, int first, float const* weights, int stride, float* sums, lanes& rest, Ask ask) {
    segment_weights<Tokens> w[groups];
    if constexpr (in_integers) {
      for (int g = 0; g < groups; ++g) round(tile, g, weights, stride, w[g], rest);
    } else {
      for (int g = 0; g < groups; ++g) scale(tile, g, weights, stride, w[g], rest);
    }
    constexpr int group_vectors = group / simd::width;
    constexpr int vectors = group_vectors % 4 == 0 && M <= 4 ? 4 : group_vectors % 2 == 0 ? 2 : 1;
    std::byte const* const block = tile + first / block_tokens * layout::bytes;
    for (int c = 0; c < Channels; c += vectors * simd::width) {
      simd::f32v sum[M][vectors];
      segment_weights<Tokens> const& mine = w[c / group];
      if constexpr (in_integers)
        sum_integer<Tokens>(block, first % block_tokens, c, mine, sum, ask);
      else
        sum_exact<Tokens>(block, first % block_tokens, c, mine, sum, ask);
      PITH_UNROLL for (int v = 0; v < vectors; ++v) {
        simd::f32v channel_scale = simd::all(1.0f), offset = simd::all(0);
        if constexpr (per_channel) {
          std::int64_t const index = static_cast<std::int64_t>(first / storage::group) * Channels + c + v * simd::width;
          channel_scale = scale_of<storage>(tile, index);
          offset = middle_of(tile, index, channel_scale);
        }
        PITH_UNROLL for (int m = 0; m < M; ++m) {
          float* const to = sums + m * Channels + c + v * simd::width;
          simd::f32v const step = simd::all(in_integers ? mine.step[m] : 1.0f);
          if constexpr (per_channel)
            simd::store(to, simd::fma((sum[m][v] - simd::all(mine.offset[m])) * step, channel_scale,
                                      simd::fma(offset, simd::all(mine.total[m]), simd::load(to))));
          else
            simd::store(to, simd::fma(sum[m][v], step, simd::load(to)));
        }
      }
    }
  }

  template <int Tokens>
  static void scale(std::byte const* tile, int g, float const* weights, int stride, segment_weights<Tokens>& w, lanes& rest) {
    simd::f32v total[M], shift[M];
    PITH_UNROLL for (int m = 0; m < M; ++m) total[m] = shift[m] = simd::all(0);
    for (int t = 0; t < Tokens; t += simd::width) {
      simd::f32v const scale = token_scale(tile, g, t), offset = token_offset(tile, g, t, scale);
      PITH_UNROLL for (int m = 0; m < M; ++m) {
        simd::f32v const x = simd::load(weights + m * stride + t);
        simd::store(w.value[m] + t, x * scale);
        if constexpr (per_channel)
          total[m] = total[m] + x;
        else
          shift[m] = simd::fma(x, offset, shift[m]);
      }
    }
    if constexpr (per_channel) {
      simd::sums(total, w.total);
      for (int m = 0; m < M; ++m) w.offset[m] = 0;
    } else {
      PITH_UNROLL for (int m = 0; m < M; ++m) simd::store(rest.shift[m][g], shift[m] + simd::load(rest.shift[m][g]));
    }
  }

  template <int Tokens>
  PITH_INLINE static void round(std::byte const* tile, int g, float const* weights, int stride, segment_weights<Tokens>& w, lanes& rest) {
    constexpr int vectors = Tokens / simd::width;
    simd::f32v scaled[M][vectors], most[M], shift[M], total[M];
    PITH_UNROLL for (int m = 0; m < M; ++m) shift[m] = simd::load(rest.shift[m][g]), total[m] = simd::all(0);
    PITH_UNROLL for (int v = 0; v < vectors; ++v) {
      simd::f32v const scale = token_scale(tile, g, v * simd::width), offset = token_offset(tile, g, v * simd::width, scale);
      PITH_UNROLL for (int m = 0; m < M; ++m) {
        simd::f32v const x = simd::load(weights + m * stride + v * simd::width);
        scaled[m][v] = x * scale;
        most[m] = v == 0 ? scaled[m][v] : simd::max(most[m], scaled[m][v]);
        if constexpr (per_channel)
          total[m] = total[m] + x;
        else if constexpr (!symmetric)
          shift[m] = simd::fma(x, offset, shift[m]);
      }
    }
    float peak[M], inverse[M];
    simd::largest_of_each(most, peak);
    for (int m = 0; m < M; ++m) {
      w.step[m] = peak[m] * (1.0f / 255.0f);
      inverse[m] = peak[m] > 0x1p-100f ? 255.0f / peak[m] : 0.0f;
    }
    simd::f32v rounded_sum[M];
    PITH_UNROLL for (int m = 0; m < M; ++m) {
      simd::u32v bits[vectors];  // the integer is in the low bits
      PITH_UNROLL for (int v = 0; v < vectors; ++v) bits[v] =
          simd::as_words(simd::fma(scaled[m][v], simd::all(inverse[m]), simd::all(simd::unsigned_raise)));
      simd::pack_bytes<layout::plane_bits>(bits, w.rounded[m]);
    }
    if constexpr (centre != code_centre) {
      PITH_UNROLL for (int m = 0; m < M; ++m) {
        simd::i32v sum(0);
        constexpr int padding = segment_weights<Tokens>::padded - Tokens;
        if constexpr (padding > 0) std::memset(w.rounded[m] + Tokens, 0, padding);
        for (int t = 0; t < Tokens; t += 4 * simd::width)
          sum = simd::dot4<true>(sum, simd::load_words(reinterpret_cast<std::byte const*>(w.rounded[m]) + t), simd::u32v(0x01010101u));
        rounded_sum[m] = simd::to_float(sum) * simd::all(centre - code_centre);
      }
    }
    if constexpr (per_channel) {
      simd::sums(total, w.total);
      for (int m = 0; m < M; ++m) w.offset[m] = 0;
      if constexpr (centre != code_centre) simd::sums(rounded_sum, w.offset);
    } else if constexpr (!symmetric || centre != code_centre) {
      PITH_UNROLL for (int m = 0; m < M; ++m) {
        if constexpr (centre != code_centre) shift[m] = shift[m] - rounded_sum[m] * simd::all(w.step[m]);
        simd::store(rest.shift[m][g], shift[m]);
      }
    }
  }

  template <int Tokens, class Ask, int Vectors>
  PITH_INLINE static void sum_integer(std::byte const* block, int token, int c, segment_weights<Tokens> const& w,
                                      simd::f32v (&sum)[M][Vectors], Ask ask) {
    constexpr int steps = layout::per_word / 4;
    simd::i32v acc[M][Vectors];
    PITH_UNROLL for (int m = 0; m < M; ++m) PITH_UNROLL for (int v = 0; v < Vectors; ++v) acc[m][v] = simd::i32v(0);
    for (int t = 0; t < Tokens; t += words_at_once * layout::per_word) {
      std::byte const* const words_of_block = block + t / block_tokens * static_cast<std::int64_t>(blocks_apart);
      int const in_block = token + t % block_tokens;
      high_words<layout> high[Vectors];
      PITH_UNROLL for (int v = 0; v < Vectors; ++v) high[v] = load_high<layout>(words_of_block, in_block, c + v * simd::width, ask);
      PITH_UNROLL for (int nth = 0; nth < words_at_once; ++nth) {
        simd::u32v words[Vectors];
        PITH_UNROLL for (int v = 0; v < Vectors; ++v) {
          std::byte const* const at = words_of_block + 4ll * ((in_block / layout::per_word + nth) * Channels + c + v * simd::width);
          words[v] = simd::load_words(at);
          ask(at);
        }
        PITH_UNROLL for (int step = 0; step < steps; ++step) {
          simd::u32v rounded[M];  // loaded once for all channel vectors
          PITH_UNROLL for (int m = 0; m < M; ++m)
            rounded[m] = simd::all_words(reinterpret_cast<std::byte const*>(w.rounded[m]) + t + nth * layout::per_word + 4 * step);
          PITH_UNROLL for (int v = 0; v < Vectors; ++v) {
            simd::u32v codes = codes_of_step<layout>(words[v], high[v], nth, step);
            if constexpr (Bits == 8)
              codes = codes ^ simd::u32v(0x80808080u);  // u - 128 as a signed byte; shorter codes are signed as they are
            PITH_UNROLL for (int m = 0; m < M; ++m) acc[m][v] = simd::dot4<(Bits <= 6)>(acc[m][v], rounded[m], codes);
          }
        }
      }
    }
    PITH_UNROLL for (int m = 0; m < M; ++m) PITH_UNROLL for (int v = 0; v < Vectors; ++v) sum[m][v] = simd::to_float(acc[m][v]);
  }

  template <int Tokens, class Ask, int Vectors>
  PITH_INLINE static void sum_exact(std::byte const* block, int token, int c, segment_weights<Tokens> const& w,
                                    simd::f32v (&sum)[M][Vectors], Ask ask) {
    PITH_UNROLL for (int m = 0; m < M; ++m) PITH_UNROLL for (int v = 0; v < Vectors; ++v) sum[m][v] = simd::all(0);
    for (int t = 0; t < Tokens; t += words_at_once * layout::per_word) {
      std::byte const* const words_of_block = block + t / block_tokens * static_cast<std::int64_t>(blocks_apart);
      int const in_block = token + t % block_tokens;
      high_words<layout> high[Vectors];
      PITH_UNROLL for (int v = 0; v < Vectors; ++v) high[v] = load_high<layout>(words_of_block, in_block, c + v * simd::width, ask);
      PITH_UNROLL for (int nth = 0; nth < words_at_once; ++nth) PITH_UNROLL for (int v = 0; v < Vectors; ++v) {
        std::byte const* const at = words_of_block + 4ll * ((in_block / layout::per_word + nth) * Channels + c + v * simd::width);
        simd::u32v const words = simd::load_words(at);
        ask(at);
        PITH_UNROLL for (int f = 0; f < layout::per_word; ++f) {
          simd::f32v const u = codes_of_field<layout>(words, high[v], nth, f);
          PITH_UNROLL for (int m = 0; m < M; ++m) sum[m][v] =
              simd::fma(u, simd::all(w.value[m][t + nth * layout::per_word + f]), sum[m][v]);
        }
      }
    }
  }
};

}  // namespace PITH_ISA
}  // namespace pith
