// SPDX-License-Identifier: Apache-2.0
// encode on the CPU: the bytes of Tile::encode, from rows of f32, bf16 or f16.
//
// Integer tiles take three steps: the ranges of all groups (smallest and largest along the grouped axis, lanes over the other one), their
// parameters (one division each for s and 1/s), then the codes, whole words of `width` lanes at a time:
//   u = rne(clamp((x - low) * inverse, least - shift, top - shift)) + shift        least = 1 for zero::none, else 0
// which is the codec's own clamp of a finite x, since rounding keeps order. The sum that rounds leaves the code in its low bits over a
// constant; a word adds up its shifted fields and takes all the constants off at the end.
//
// bytes   those of Tile::encode, under every flag: no product feeds a sum, minimum and maximum compare integers (core/rounding.hpp)
// cost    4 bit, per token, zero::real, bf16, for `width` numbers: 15 vector instructions (2 transpose, 5 range, 8 code), 4 fewer for
//         zero::none. A tile that holds NaN, infinity or a number beyond 2^125 goes through Tile::encode.
#pragma once

#include "pith/codec/integer.hpp"
#include "pith/codec/pipe.hpp"
#include "pith/codec/raw.hpp"
#include "pith/cpu/row_source.hpp"
#include "pith/page/tile_engine.hpp"

namespace pith {
inline namespace PITH_ISA {

template <class Tile>
struct encode_kernel {
  template <storage_scalar T, class... State>
  static void run(T const* rows, std::int64_t row_stride, std::byte* out, State const&... state) {
    scalar_tile_engine<Tile>::encode(rows, row_stride, out, state...);
  }
};

template <int Bits, class Group, zero Zero, class Scale, int Channels, int PageTokens, use Use>
  requires(Channels % 16 == 0 && 16 % simd::width == 0 && (Bits < 5 || Bits == 8) && storage_scalar<Scale>)
struct encode_kernel<integer_tile<Bits, Group, Zero, Scale, Channels, PageTokens, Use>> {
  using tile = integer_tile<Bits, Group, Zero, Scale, Channels, PageTokens, Use>;
  using layout = typename tile::layout;
  static constexpr int width = simd::width;
  static constexpr int parameters = tile::groups * tile::group_lanes;
  static constexpr int scale_bytes = static_cast<int>(sizeof(Scale));

  template <storage_scalar T>
  static void run(T const* rows, std::int64_t row_stride, std::byte* out) {
    group_values p;
    simd::i32v worst(0);
    if constexpr (across == Use && tile::blocks == 1) {
      row_source<T, Channels, block_tokens, Use> const source(rows, row_stride);
      ranges(source, 0, p, worst);
      if (!all_fit(worst)) return scalar_tile_engine<tile>::encode(rows, row_stride, out);
      fit(p, out);
      codes(source, 0, p, out);
    } else {
      for (int b = 0; b < tile::blocks; ++b)
        ranges(row_source<T, Channels, block_tokens, across>(rows + b * block_tokens * row_stride, row_stride), b, p, worst);
      if (!all_fit(worst)) return scalar_tile_engine<tile>::encode(rows, row_stride, out);
      fit(p, out);
      for (int b = 0; b < tile::blocks; ++b)
        codes(row_source<T, Channels, block_tokens, Use>(rows + b * block_tokens * row_stride, row_stride), b, p, out + b * layout::bytes);
    }
    for (std::int64_t i = tile::used; i < tile::bytes; ++i) out[i] = std::byte{0};
  }

 private:
  // Of every group, in the order of parameter_index.
  struct group_values {
    alignas(64) float low[parameters];      // first the smallest number
    alignas(64) float inverse[parameters];  // first the largest; zero::none: the largest magnitude
    alignas(64) float shift[Zero == zero::integer ? parameters : 1];
  };

  static constexpr use across = tile::along_tokens ? use::mix : use::dot;  // lanes over what is not grouped

  // The ranges of block b. worst: the largest magnitude so far, as bits.
  template <class Source>
  static void ranges(Source const& source, int b, group_values& p, simd::i32v& worst) {
    constexpr int lanes = tile::along_tokens ? Channels : block_tokens, grouped = tile::along_tokens ? block_tokens : Channels;
    constexpr int run = tile::group < grouped ? tile::group : grouped;
    for (int first = 0; first < grouped; first += run)
      for (int lane = 0; lane < lanes; lane += width) {
        int const token = b * block_tokens + (tile::along_tokens ? first : lane), channel = tile::along_tokens ? lane : first;
        bool const goes_on = tile::along_tokens && token % tile::group != 0;
        range(source, first, run, lane, goes_on, tile::parameter_index(token, channel), p, worst);
      }
  }

  // False if a number is not finite or beyond the codec's range.
  static bool all_fit(simd::i32v worst) {
    std::int32_t most[width];
    simd::store_i32(most, worst);
    bool fits = true;
    for (std::int32_t const m : most) fits = fits && m <= static_cast<std::int32_t>(float_bits(tile::huge));
    return fits;
  }

  // Adds numbers first .. first + count of a group to its range; goes_on: the group began in an earlier block.
  template <class Source>
  PITH_INLINE static void range(Source const& source, int first, int count, int lane, bool goes_on, std::int64_t index, group_values& p,
                                simd::i32v& worst) {
    auto const bits = [](simd::f32v x) { return simd::as_int(simd::as_words(x)); };
    simd::i32v const magnitude(0x7fffffff);
    if constexpr (Zero == zero::none) {
      simd::i32v most = goes_on ? bits(simd::load(p.inverse + index)) : simd::i32v(0);
      for (int i = first; i < first + count; i += 2)
        PITH_UNROLL for (int j = 0; j < 2; ++j) most = simd::max(most, bits(source.at(i + j, lane)) & magnitude);
      simd::store(p.inverse + index, simd::as_float(simd::as_words(most)));
      worst = simd::max(worst, most);
    } else {
      simd::i32v least = simd::ordered(bits(goes_on ? simd::load(p.low + index) : source.at(first, lane)));
      simd::i32v most = goes_on ? simd::ordered(bits(simd::load(p.inverse + index))) : least;
      for (int i = first; i < first + count; i += 2)
        PITH_UNROLL for (int j = 0; j < 2; ++j) {
          simd::i32v const x = simd::ordered(bits(source.at(i + j, lane)));
          least = simd::min(least, x);
          most = simd::max(most, x);
        }
      least = simd::ordered(least);
      most = simd::ordered(most);
      simd::store(p.low + index, simd::as_float(simd::as_words(least)));
      simd::store(p.inverse + index, simd::as_float(simd::as_words(most)));
      worst = simd::max(worst, simd::max(least & magnitude, most & magnitude));
    }
  }

  // The codec's fit and store_parameters for `width` groups at a time.
  static void fit(group_values& p, std::byte* out) {
    simd::f32v const none = simd::all(0.0f);
    for (int i = 0; i < parameters; i += width) {
      simd::f32v const most = simd::load(p.inverse + i);
      simd::f32v range = most;
      if constexpr (Zero == zero::real) {
        simd::f32v const least = positive_zero(simd::load(p.low + i));
        std::byte* const at = out + tile::zero_at + static_cast<std::int64_t>(i) * scale_bytes;
        simd::store_scalars<Scale>(at, saturated(least));
        simd::f32v const low = simd::load_scalars<Scale>(at);
        simd::store(p.low + i, low);
        range = most - low;
      } else if constexpr (Zero == zero::integer) {
        range = simd::max(most, none) - simd::min(simd::load(p.low + i), none);
      }
      std::byte* const at = out + tile::scale_at + static_cast<std::int64_t>(i) * scale_bytes;
      constexpr float steps = static_cast<float>(Zero == zero::none ? tile::middle - 1 : tile::top);
      simd::store_scalars<Scale>(at, saturated(simd::where_above(range, tile::tiny, simd::div_rn(range, simd::all(steps)))));
      simd::f32v scale = simd::load_scalars<Scale>(at);
      if constexpr (!std::is_same_v<Scale, f16>) {  // f16 has nothing so small
        scale = simd::where_above(scale, tile::tiny, scale);
        simd::store_scalars<Scale>(at, scale);
      }
      simd::f32v const inverse = simd::where_above(scale, 0.0f, simd::div_rn(simd::all(1.0f), simd::max(scale, simd::all(tile::tiny))));
      simd::store(p.inverse + i, inverse);
      if constexpr (Zero == zero::integer) {
        simd::f32v const low = simd::min(simd::load(p.low + i), none);
        simd::i32v const shift = simd::round_even(simd::min(simd::max((none - low) * inverse, none), simd::all(tile::top)));
        simd::store(p.shift + i, simd::to_float(shift));
        std::int32_t bytes[width];
        simd::store_i32(bytes, shift);
        for (int j = 0; j < width; ++j) out[tile::zero_at + i + j] = static_cast<std::byte>(bytes[j]);
      }
    }
  }
  static simd::f32v saturated(simd::f32v x) {
    return simd::max(simd::min(x, simd::all(largest<Scale>)), simd::all(-largest<Scale>));
  }
  // -0 as +0, as the codec stores a minimum of zero.
  static simd::f32v positive_zero(simd::f32v x) {
    simd::i32v const bits = simd::as_int(simd::as_words(x)), magnitude = bits & simd::i32v(0x7fffffff);
    simd::i32v const is_zero = (magnitude - simd::i32v(1)) >> 31;  // all ones for a zero
    return simd::as_float(simd::as_words(bits & (is_zero ^ simd::i32v(-1))));
  }

  // Parameters of one packed index: vectors where they differ from lane to lane, else one number for all.
  static constexpr bool differ_by_lane = tile::along_tokens == (Use == use::mix);
  PITH_INLINE static simd::f32v value_of(float const* values, std::int64_t index) {
    if constexpr (differ_by_lane)
      return simd::load(values + index);
    else
      return simd::all(values[index]);
  }

  static constexpr int offset = Zero == zero::none ? tile::middle : 0;  // even: it may join the sum that rounds
  static constexpr std::uint32_t rounding_bits = 0x4b400000u;           // 1.5 * 2^23

  // The code in the low bits of a word, rounding_bits above it.
  template <class Source>
  PITH_INLINE static simd::u32v code(Source const& source, int packed, int lane, int b, group_values const& p) {
    int const token = b * block_tokens + (Use == use::dot ? lane : packed), channel = Use == use::dot ? packed : lane;
    std::int64_t const index = tile::parameter_index(token, channel);
    simd::f32v x = source.at(packed, lane);
    if constexpr (Zero == zero::real) x = x - value_of(p.low, index);
    x = x * value_of(p.inverse, index);
    simd::f32v shift = simd::all(0.0f);
    if constexpr (Zero == zero::integer) shift = value_of(p.shift, index);
    constexpr float least = Zero == zero::none ? 1.0f - tile::middle : 0.0f, most = static_cast<float>(tile::top - offset);
    x = simd::min(simd::max(x, simd::all(least) - shift), simd::all(most) - shift);
    simd::u32v const sum = simd::as_words(x + simd::all(12582912.0f + static_cast<float>(offset)));
    if constexpr (Zero == zero::integer) {
      constexpr float unit = 8388608.0f;  // shift as an integer: the low bits of shift + 2^23
      return sum + (simd::as_words(shift + simd::all(unit)) & simd::u32v(static_cast<std::uint32_t>(tile::top)));
    } else {
      return sum;
    }
  }

  template <class Source>
  static void codes(Source const& source, int b, group_values const& p, std::byte* block) {
    constexpr int fields = layout::per_word;
    for (int word = 0; word < layout::words; word += Bits == 3 ? 2 : 1)
      for (int lane = 0; lane < layout::lanes; lane += width) {
        std::byte* const at = block + 4ll * (word * layout::lanes + lane);
        if constexpr (Bits != 3) {
          simd::u32v sum(0u - constant(fields));
          PITH_UNROLL for (int i = 0; i < fields; ++i) sum = sum + (code(source, word * fields + i, lane, b, p) << (Bits * i));
          simd::store_words(at, sum);
        } else {  // 16 codes give a word of their low bits and half a word of high bits
          simd::u32v high(0u);
          for (int half = 0; half < 2 && word + half < layout::words; ++half) {
            simd::u32v low(0u);
            PITH_UNROLL for (int i = 0; i < fields; ++i) {
              simd::u32v const u = code(source, (word + half) * fields + i, lane, b, p);
              low = low | ((u & simd::u32v(3u)) << (2 * i));
              high = high | (((u >> 2) & simd::u32v(1u)) << (layout::high_bit(i) + 4 * half));
            }
            simd::store_words(at + 4ll * half * layout::lanes, low);
          }
          simd::store_words(block + 4ll * ((layout::words + word / 2) * layout::lanes + lane), high);
        }
      }
  }
  // What the fields of a word hold above their codes.
  static constexpr std::uint32_t constant(int fields) {
    std::uint32_t sum = 0;
    for (int i = 0; i < fields; ++i) sum += rounding_bits << (layout::plane_bits * i);
    return sum;
  }
};

template <storage_scalar S, int Channels, use Use, int Tokens>
  requires(Channels % 16 == 0 && Tokens % simd::width == 0)
struct encode_kernel<raw_tile<S, Channels, Use, Tokens>> {
  using layout = typename raw_tile<S, Channels, Use, Tokens>::layout;

  template <storage_scalar T>
  static void run(T const* rows, std::int64_t row_stride, std::byte* out) {
    constexpr bool as_bits = std::is_same_v<S, T> && sizeof(T) == 2 && std::endian::native == std::endian::little;
    row_source<T, Channels, Tokens, Use> const source(rows, row_stride);
    for (int word = 0; word < layout::words; ++word)
      for (int lane = 0; lane < layout::lanes; lane += simd::width) {
        simd::u32v bits;
        if constexpr (as_bits) {
          bits = simd::quieted<T>(source.words_at(word, lane));
        } else {
          bits = simd::bits_of<S>(source.at(word * layout::per_word, lane));
          if constexpr (layout::per_word == 2) bits = bits | (simd::bits_of<S>(source.at(2 * word + 1, lane)) << 16);
        }
        simd::store_words(out + 4ll * (word * layout::lanes + lane), bits);
      }
  }
};

// The transform's own arithmetic on f32 rows, then the fast encoder of what it feeds.
template <class Transform, class Inner>
struct encode_kernel<transformed_tile<Transform, Inner>> {
  using tile = transformed_tile<Transform, Inner>;

  template <storage_scalar T>
  static void run(T const* rows, std::int64_t row_stride, std::byte* out, state_of<tile> const& state = {}) {
    alignas(64) float buffer[tile::tokens * tile::channels];
    for (int t = 0; t < tile::tokens; ++t) {
      float* const row = buffer + t * tile::channels;
      for (int c = 0; c < tile::channels; ++c) row[c] = tile::admitted(to_float(rows[t * row_stride + c]));
      tile::transform_row(row, state);
    }
    settle(buffer);
    if constexpr (is_calibrated<Inner>)
      encode_kernel<Inner>::run(buffer, tile::channels, out, tile::inner_of(state));
    else
      encode_kernel<Inner>::run(buffer, tile::channels, out);
  }
};

}  // namespace PITH_ISA
}  // namespace pith
