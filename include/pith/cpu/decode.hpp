// SPDX-License-Identifier: Apache-2.0
// decode on the CPU: the numbers of Tile::decode, rounded to f32, bf16 or f16 rows.
//
// zero::real multiplies and adds, which compilers fuse where they can. With f16 scales a product of a code and a scale is exact and
// fusing changes nothing; with others the lanes go through the codec's own times_plus().
#pragma once

#include "pith/codec/integer.hpp"
#include "pith/codec/pipe.hpp"
#include "pith/codec/raw.hpp"
#include "pith/cpu/row_sink.hpp"
#include "pith/page/tile_engine.hpp"

namespace pith {
inline namespace PITH_ISA {

template <class Tile>
struct decode_kernel {
  template <storage_scalar T, class... State>
  static void run(std::byte const* in, T* rows, std::int64_t row_stride, State const&... state) {
    scalar_tile_engine<Tile>::decode(in, rows, row_stride, state...);
  }
};

template <int Bits, class Group, zero Zero, class Scale, int Channels, int PageTokens, use Use>
  requires(Channels % 16 == 0 && 16 % simd::width == 0 && (Bits < 5 || Bits == 8))
struct decode_kernel<integer_tile<Bits, Group, Zero, Scale, Channels, PageTokens, Use>> {
  using tile = integer_tile<Bits, Group, Zero, Scale, Channels, PageTokens, Use>;
  using layout = typename tile::layout;
  static constexpr int width = simd::width;
  static constexpr int parameters = tile::groups * tile::group_lanes;

  template <storage_scalar T>
  static void run(std::byte const* in, T* rows, std::int64_t row_stride) {
    group_values p;
    load(in, p);
    for (int b = 0; b < tile::blocks; ++b) {
      row_sink<T, Channels, block_tokens, Use> sink(rows + b * block_tokens * row_stride, row_stride);
      block(in + b * layout::bytes, b, p, sink);
      sink.finish();
    }
  }

 private:
  // Of every group, in the order of parameter_index: x = (u - low) scale, or u scale + low for zero::real.
  struct group_values {
    alignas(64) float scale[parameters];
    alignas(64) float low[Zero == zero::none ? 1 : parameters];
  };

  static void load(std::byte const* in, group_values& p) {
    constexpr auto scale_bytes = static_cast<std::int64_t>(sizeof(Scale));
    for (int i = 0; i < parameters; i += width) {
      simd::store(p.scale + i, simd::load_scalars<Scale>(in + tile::scale_at + i * scale_bytes));
      if constexpr (Zero == zero::real) simd::store(p.low + i, simd::load_scalars<Scale>(in + tile::zero_at + i * scale_bytes));
      if constexpr (Zero == zero::integer)
        for (int j = i; j < i + width; ++j) p.low[j] = static_cast<float>(static_cast<int>(in[tile::zero_at + j]));
    }
  }

  // Vectors where parameters differ from lane to lane, else one number for all.
  static constexpr bool differ_by_lane = tile::along_tokens == (Use == use::mix);
  PITH_INLINE static simd::f32v value_of(float const* values, std::int64_t index) {
    if constexpr (differ_by_lane)
      return simd::load(values + index);
    else
      return simd::all(values[index]);
  }

  PITH_INLINE static simd::f32v number(simd::u32v u, int packed, int lane, int b, group_values const& p) {
    int const token = b * block_tokens + (Use == use::dot ? lane : packed), channel = Use == use::dot ? packed : lane;
    std::int64_t const index = tile::parameter_index(token, channel);
    simd::f32v const code = simd::to_float(simd::as_int(u)), scale = value_of(p.scale, index);
    if constexpr (Zero == zero::none) {
      return (code - simd::all(static_cast<float>(tile::middle))) * scale;
    } else if constexpr (Zero == zero::integer) {
      return (code - value_of(p.low, index)) * scale;
    } else if constexpr (std::is_same_v<Scale, f16>) {
      return code * scale + value_of(p.low, index);
    } else {
      float codes[width], scales[width], zeros[width];
      simd::store(codes, code);
      simd::store(scales, scale);
      simd::store(zeros, value_of(p.low, index));
      for (int i = 0; i < width; ++i) codes[i] = tile::times_plus(static_cast<int>(codes[i]), scales[i], zeros[i]);
      return simd::load(codes);
    }
  }

  template <class Sink>
  static void block(std::byte const* codes, int b, group_values const& p, Sink& sink) {
    constexpr int plane = layout::plane_bits, fields = layout::per_word;
    for (int word = 0; word < layout::words; ++word)
      for (int lane = 0; lane < layout::lanes; lane += width) {
        simd::u32v const low = simd::load_words(codes + 4ll * (word * layout::lanes + lane));
        simd::u32v high(0u);
        if constexpr (Bits == 3)
          high = simd::load_words(codes + 4ll * ((layout::words + word / 2) * layout::lanes + lane)) >> (word % 2 == 0 ? 0 : 4);
        auto const x = [&](int i) {
          simd::u32v u = simd::field<plane>(low, i);
          if constexpr (Bits == 3) u = u | (((high >> layout::high_bit(i)) & simd::u32v(1u)) << 2);
          return number(u, word * fields + i, lane, b, p);
        };
        PITH_UNROLL for (int i = 0; i < fields; i += 2) sink.put(word * fields + i, lane, x(i), x(i + 1));
      }
  }
};

template <storage_scalar S, int Channels, use Use, int Tokens>
  requires(Channels % 16 == 0 && Tokens % simd::width == 0)
struct decode_kernel<raw_tile<S, Channels, Use, Tokens>> {
  using layout = typename raw_tile<S, Channels, Use, Tokens>::layout;

  template <storage_scalar T>
  static void run(std::byte const* in, T* rows, std::int64_t row_stride) {
    constexpr int per_word = layout::per_word;
    row_sink<T, Channels, Tokens, Use> sink(rows, row_stride);
    for (int packed = 0; packed < layout::packed; packed += 2)
      for (int lane = 0; lane < layout::lanes; lane += simd::width) {
        std::byte const* const at = in + 4ll * (packed / per_word * layout::lanes + lane);
        simd::u32v const words = simd::load_words(at), next = per_word == 2 ? words : simd::load_words(at + 4ll * layout::lanes);
        sink.put(packed, lane, simd::half_to_float<S>(words, 0), simd::half_to_float<S>(next, per_word - 1));
      }
    sink.finish();
  }
};

// The inner codec's numbers as f32, then the transform's own arithmetic.
template <class Transform, class Inner>
struct decode_kernel<transformed_tile<Transform, Inner>> {
  using tile = transformed_tile<Transform, Inner>;

  template <storage_scalar T>
  static void run(std::byte const* in, T* rows, std::int64_t row_stride, state_of<tile> const& state = {}) {
    alignas(64) float buffer[tile::tokens * tile::channels];
    if constexpr (is_calibrated<Inner>)
      decode_kernel<Inner>::run(in, buffer, tile::channels, tile::inner_of(state));
    else
      decode_kernel<Inner>::run(in, buffer, tile::channels);
    settle(buffer);
    for (int t = 0; t < tile::tokens; ++t) {
      float* const row = buffer + t * tile::channels;
      tile::restore_row(row, state);
      for (int c = 0; c < tile::channels; ++c) rows[t * row_stride + c] = from_float<T>(row[c]);
    }
  }
};

}  // namespace PITH_ISA
}  // namespace pith
