// SPDX-License-Identifier: Apache-2.0
// decode on the CPU: the numbers of Tile::decode, rounded to f32, bf16 or f16 rows.
//
// Lanes run over channels: the words of a use::dot block are transposed first, while they are still packed. Where a scale belongs to a
// token and codes have at most 4 bits, the 16 numbers of its group are computed and rounded once, and a code is looked up.
//
// zero::real multiplies and adds, which compilers fuse where they can. With f16 scales a product of a code and a scale is exact and
// fusing changes nothing; with others the lanes go through the codec's own times_plus().
//
// cost    AVX-512, bf16, 16 numbers: 4 bit per token a shift and a look-up (mix), a permutation more (dot), beside narrowing and storing;
//         8 bit a mask, a conversion, a multiply-add
#pragma once

#include "pith/codec/integer.hpp"
#include "pith/codec/pipe.hpp"
#include "pith/codec/raw.hpp"
#include "pith/page/tile_engine.hpp"
#include "pith/simd/numbers.hpp"
#include "pith/simd/transpose.hpp"
#include "pith/simd/unpack.hpp"

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
      T* const first = rows + b * block_tokens * row_stride;
      if constexpr (Use == use::dot)
        token_rows(in + b * layout::bytes, b, p, first, row_stride);
      else
        channel_lanes(in + b * layout::bytes, b, p, first, row_stride);
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

  // x of `width` codes.
  PITH_INLINE static simd::f32v number(simd::u32v u, simd::f32v scale, simd::f32v low) {
    simd::f32v const code = simd::to_float(simd::as_int(u));
    if constexpr (Zero == zero::none) {
      return (code - simd::all(static_cast<float>(tile::middle))) * scale;
    } else if constexpr (Zero == zero::integer) {
      return (code - low) * scale;
    } else if constexpr (std::is_same_v<Scale, f16>) {
      return code * scale + low;
    } else {
      float codes[width], scales[width], zeros[width];
      simd::store(codes, code);
      simd::store(scales, scale);
      simd::store(zeros, low);
      for (int i = 0; i < width; ++i) codes[i] = tile::times_plus(static_cast<int>(codes[i]), scales[i], zeros[i]);
      return simd::load(codes);
    }
  }

  // The numbers of one token and one group of channels; with per_channel, of `width` channels.
  template <storage_scalar T>
  struct row_part {
    static constexpr bool normal = std::is_same_v<Scale, f16>;  // multiples of f16's smallest number
    static constexpr bool tabled = simd::has_lookup && Bits <= 4 && !tile::along_tokens;
    simd::u32v table;
    simd::f32v scale, low;

    PITH_INLINE row_part(group_values const& p, int token, int channel) {
      std::int64_t const index = tile::parameter_index(token, channel);
      scale = tile::along_tokens ? simd::load(p.scale + index) : simd::all(p.scale[index]);
      if constexpr (Zero != zero::none) low = tile::along_tokens ? simd::load(p.low + index) : simd::all(p.low[index]);
      if constexpr (tabled) {
        alignas(64) std::uint32_t codes[width];
        for (int i = 0; i < width; ++i) codes[i] = static_cast<std::uint32_t>(i & tile::top);
        table = simd::bits_of<T, normal>(number(simd::u32v::load_unaligned(codes), scale, low));
      }
    }
    // What lies above the code in its lane does not matter.
    PITH_INLINE void put(T* to, simd::u32v code) const {
      if constexpr (tabled)
        simd::store_bits(to, simd::lookup(table, code));
      else
        simd::store_numbers<T, normal>(to, number(code & top_bits(), scale, low));
    }
    PITH_INLINE void put(T* to, simd::u32v a, simd::u32v b) const {
      if constexpr (tabled)
        simd::store_bits(to, simd::lookup(table, a), simd::lookup(table, b));
      else
        simd::store_numbers<T, normal>(to, number(a & top_bits(), scale, low), number(b & top_bits(), scale, low));
    }
    PITH_INLINE static simd::u32v top_bits() { return simd::u32v(static_cast<std::uint32_t>(tile::top)); }
  };
  static constexpr struct high_bit_table {
    std::uint32_t at[32];
    constexpr high_bit_table() : at{} {
      for (int i = 0; i < 32; ++i) at[i] = static_cast<std::uint32_t>(layout::high_bit(i));
    }
  } high_bits{};
  static constexpr int part = tile::along_tokens ? width : tile::group;  // channels of a row_part

  // A block of use::dot: words of a token are neighbours after the transposition, the high plane's behind the others.
  template <storage_scalar T>
  static void token_rows(std::byte const* block, int b, group_values const& p, T* rows, std::int64_t stride) {
    constexpr int words = layout::words_before(layout::planes);
    alignas(64) std::byte row[block_tokens][4 * words];
    simd::transpose<words, block_tokens>(block, 4 * block_tokens, row[0], 4 * words);
    for (int t = 0; t < block_tokens; ++t)
      for (int g = 0; g < Channels; g += part) {
        row_part<T> const values(p, b * block_tokens + t, g);
        T* const to = rows + t * stride;
        if constexpr (part % (2 * width) == 0)
          for (int c = g; c < g + part; c += 2 * width) values.put(to + c, code_of(row[t], c), code_of(row[t], c + width));
        else
          for (int c = g; c < g + part; c += width) values.put(to + c, code_of(row[t], c));
      }
  }
  PITH_INLINE static simd::u32v code_of(std::byte const* row, int channel) {
    simd::u32v const code = simd::fields_of<layout::plane_bits>(row, channel);
    if constexpr (Bits != 3) return code;
    std::uint32_t const high = load_le<std::uint32_t>(row + 4 * (layout::words + channel / 32));
    return (code & simd::u32v(3u)) | ((simd::shifted_right(high, high_bits.at + channel % 32) & simd::u32v(1u)) << 2);
  }

  // A block of use::mix: the fields of a word are tokens.
  template <storage_scalar T>
  static void channel_lanes(std::byte const* block, int b, group_values const& p, T* rows, std::int64_t stride) {
    constexpr int plane = layout::plane_bits, fields = 8 / plane * 4, at_once = fields < 8 ? fields : 8;  // tables of 8 tokens in registers
    for (int token = 0; token < block_tokens; token += at_once)
      for (int g = 0; g < Channels; g += part) {
        auto const of = [&](int i) { return row_part<T>(p, b * block_tokens + token + i, g); };
        row_part<T> const values[] = {of(0), of(1), of(2), of(3), of(4 % at_once), of(5 % at_once), of(6 % at_once), of(7 % at_once)};
        int const word = token / fields, first = token % fields;
        for (int c = g; c < g + part; c += width) {
          simd::u32v const low = simd::load_words(block + 4ll * (word * Channels + c)) >> (first * plane);
          simd::u32v high(0u);
          if constexpr (Bits == 3)  // the token's bit comes to bit 0 after the shift below
            high = simd::load_words(block + 4ll * ((layout::words + word / 2) * Channels + c)) >> layout::high_bit(token % 32);
          PITH_UNROLL for (int i = 0; i < at_once; ++i) {
            simd::u32v code = i == 0 ? low : low >> (plane * i);
            if constexpr (Bits == 3) code = (code & simd::u32v(3u)) | (((high >> layout::high_bit(i)) & simd::u32v(1u)) << 2);
            values[i].put(rows + (token + i) * stride + c, code);
          }
        }
      }
  }
};

template <storage_scalar S, int Channels, use Use, int Tokens>
  requires(Channels % 16 == 0 && Tokens % simd::width == 0)
struct decode_kernel<raw_tile<S, Channels, Use, Tokens>> {
  using layout = typename raw_tile<S, Channels, Use, Tokens>::layout;

  template <storage_scalar T>
  static void run(std::byte const* in, T* rows, std::int64_t row_stride) {
    constexpr bool as_bits = std::is_same_v<S, T> && sizeof(T) == 2 && std::endian::native == std::endian::little;
    if constexpr (Use == use::dot) {  // a token's words, transposed, are its row
      alignas(64) std::byte row[Tokens][4 * layout::words];
      simd::transpose<layout::words, Tokens>(in, 4 * Tokens, row[0], 4 * layout::words);
      for (int t = 0; t < Tokens; ++t) {
        T* const to = rows + t * row_stride;
        if constexpr (as_bits && Channels % (2 * simd::width) == 0)
          for (int c = 0; c < Channels; c += 2 * simd::width)
            simd::store_words(reinterpret_cast<std::byte*>(to + c), simd::quieted<T>(simd::load_words(row[t] + 2 * c)));
        else
          for (int c = 0; c < Channels; c += simd::width)
            simd::store_numbers<T>(to + c, simd::load_scalars<S>(row[t] + c * static_cast<int>(sizeof(S))));
      }
    } else {
      constexpr int per_word = layout::per_word;
      for (int word = 0; word < layout::words; ++word)
        for (int c = 0; c < Channels; c += simd::width) {
          simd::u32v const words = simd::load_words(in + 4ll * (word * Channels + c));
          T* const to = rows + word * per_word * row_stride + c;
          if constexpr (as_bits) {
            simd::u32v const both = simd::quieted<T>(words);
            simd::store_bits(to, both);
            simd::store_bits(to + row_stride, both >> 16);
          } else {
            PITH_UNROLL for (int half = 0; half < per_word; ++half)
              simd::store_numbers<T>(to + half * row_stride, simd::half_to_float<S>(words, half));
          }
        }
    }
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
