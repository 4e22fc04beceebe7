// SPDX-License-Identifier: Apache-2.0
// Lossless floats of dynamic length: sign and mantissa as they are, exponents coded by how often they occur.
//
//   dynamic_float<bf16>                       every bit pattern comes back, NaN payloads included; about 11.2 bits a trained bf16 weight
//   dynamic_float<bf16, Coder>                Coder: exponent_window (default), exponent_planes (10.7), or others (docs/formats/dynamic_float.md)
//   dynamic_float<bf16, Coder, 3>             3 bits of the mantissa are kept, rounded to nearest (NeuZip): no longer lossless
//
// Each row (use::mix: each 32 channels) has a start, an exponent that is subtracted from the number's bits, y = bits - (start << M), so that
// rows of different scales cost nothing: the coder sees what is left of the exponent. A symbol is y's exponent, rotated right by one bit, and
// the rest y's sign and mantissa; or, if the coder takes pairs, its sign and half the exponent, and the rest the exponent's lowest bit and the
// mantissa. For bf16 and one rotation or none, symbol and rest are the high and the low byte of y.
//
// layout  32 rows in groups of 64 numbers: 32 lanes x 2. dot: lane = token, 2 channels, group = channel / 2. mix: lane = channel of 32,
//         2 tokens, group = token / 2 * (channels / 32) + channel / 32. Number (lane, half) of a group is its number
//         lane % 16 / 4 * 16 + lane / 16 * 8 + lane % 4 * 2 + half: interleaving the low and high bytes gives 32-bit words in lane order
// bytes   | tail_place, 12 | 4 zero | starts, 32 | 16 zero | sections of 512 numbers: rests, 64 (1 + M) bytes, and the coder's planes, if it has
//         any | and the coder's tail. All is read from front to back
// error   none if x is a T; else that of rounding to T. K kept bits: 2^-(K+1) |x| more, for a subnormal half its last kept unit, at the largest
//         exponent, where nothing rounds up, 2^-K |x|
// nan     propagate
// from    Zhang et al., 70% Size, 100% Accuracy (DFloat11), 2025; Hao et al., NeuZip, 2024
#pragma once

#include "pith/codec/exponent_window.hpp"
#include "pith/codec/raw.hpp"
#include "pith/codec/variable_rate.hpp"
#include "pith/core/float_fields.hpp"

namespace pith {

// Codes of Bits bits by number, in planes of 8, 4, 2 and 1 bits.
template <int Bits, int Count>
struct dense_planes {
  static constexpr std::int64_t bytes = static_cast<std::int64_t>(Bits) * Count / 8;

  PITH_HD static constexpr void set(std::byte* planes, int i, std::uint32_t code) noexcept { each<Bits>(planes, i, &code, true); }
  PITH_HD static constexpr std::uint32_t get(std::byte const* planes, int i) noexcept {
    std::uint32_t code = 0;
    each<Bits>(const_cast<std::byte*>(planes), i, &code, false);
    return code;
  }

 private:
  template <int Left>
  PITH_HD static constexpr void each(std::byte* plane, int i, std::uint32_t* code, bool store) noexcept {
    if constexpr (Left > 0) {
      constexpr int width = Left >= 8 ? 8 : Left >= 4 ? 4 : Left >= 2 ? 2 : 1, down = Bits - Left;
      constexpr std::uint32_t mask = (1u << width) - 1u;
      std::byte& at = plane[static_cast<std::int64_t>(i) * width / 8];
      int const shift = i * width % 8;
      if (store)
        at = static_cast<std::byte>((static_cast<std::uint32_t>(at) & ~(mask << shift)) | (*code >> down & mask) << shift);
      else
        *code |= (static_cast<std::uint32_t>(at) >> shift & mask) << down;
      each<Left - width>(plane + static_cast<std::int64_t>(Count) * width / 8, i, code, store);
    }
  }
};

template <dynamic_scalar T, class Coder, int Kept, int Channels, use Use>
struct dynamic_float_tile {
  using storage = dynamic_float_tile;
  using scalar = T;
  using fields = float_fields<T>;
  using word = typename fields::word;
  static constexpr int tokens = block_tokens, channels = Channels, count = tokens * Channels;
  static constexpr use used_for = Use;
  static constexpr nan_policy nan = nan_policy::propagate;
  static constexpr int rest_bits = 1 + Kept, dropped = fields::mantissa_bits - Kept;
  static constexpr int span = [] {
    if constexpr (requires { Coder::span; })
      return Coder::span;
    else
      return 7;
  }();
  static constexpr int packed = Use == use::dot ? Channels / 2 : tokens / 2;  // pairs of a lane
  static constexpr int sample_step = packed > 64 ? packed / 64 : 1;           // of pairs, in the choice of starts
  static constexpr int blocks = Use == use::mix ? Channels / 32 : 1;  // of 32 lanes
  static constexpr int groups = count / 64;

  using coder = typename Coder::template bind<count>;
  using rest = dense_planes<rest_bits, 512>;
  static constexpr bool in_sections = requires { coder::section_bytes; };
  static constexpr std::int64_t section_bytes = [] {
    if constexpr (in_sections)
      return rest::bytes + coder::section_bytes;
    else
      return rest::bytes;
  }();
  static constexpr std::int64_t starts_at = 16, rest_at = 64, planes_at = rest_at + rest::bytes;  // of the first section
  static constexpr std::int64_t bytes = rest_at + count / 512 * section_bytes, tail_bound = coder::tail_bound;
  static_assert(section_bytes % 64 == 0);
  static_assert(tail_bound < (std::int64_t{1} << 32));

  // Number of a token and channel.
  PITH_HD static constexpr int place_of(int token, int channel) noexcept {
    int const lane = Use == use::dot ? token : channel % 32, packed = Use == use::dot ? channel : token;
    int const group = Use == use::dot ? channel / 2 : token / 2 * blocks + channel / 32;
    return 64 * group + lane % 16 / 4 * 16 + lane / 16 * 8 + lane % 4 * 2 + packed % 2;
  }
  PITH_HD static constexpr int row_of(int token, int channel) noexcept { return Use == use::dot ? token : channel / 32; }
  // The lane that number j of a group belongs to.
  PITH_HD static constexpr int lane_of(int j) noexcept { return j % 16 / 8 * 16 + j / 16 * 4 + j % 8 / 2; }

  static constexpr bool pairs = requires { Coder::takes_pairs; };
  static constexpr int exponent_bits = fields::exponent_bits, mantissa_bits = fields::mantissa_bits;
  static constexpr std::uint32_t exponents = (1u << exponent_bits) - 1u;

  struct parts {
    std::uint32_t symbol, rest;
  };
  PITH_HD static constexpr parts split(word bits, std::uint32_t start) noexcept {
    auto const y = static_cast<word>(bits - (start << mantissa_bits));
    std::uint32_t const sign = y >> (exponent_bits + mantissa_bits), e = y >> mantissa_bits & exponents;
    std::uint32_t const mantissa = (y & ((1u << mantissa_bits) - 1u)) >> dropped;
    if constexpr (pairs)
      return {sign << 7 | e >> 1, (e & 1u) << Kept | mantissa};
    else
      return {e >> 1 | (e & 1u) << (exponent_bits - 1), sign << Kept | mantissa};
  }
  PITH_HD static constexpr word join(std::uint32_t symbol, std::uint32_t rest, std::uint32_t start) noexcept {
    std::uint32_t const top = rest >> Kept, mantissa = (rest & ((1u << Kept) - 1u)) << dropped;
    std::uint32_t const sign = pairs ? symbol >> 7 : top;
    std::uint32_t const e = (pairs ? symbol << 1 | top : symbol << 1 | symbol >> (exponent_bits - 1)) & exponents;
    return static_cast<word>((sign << (exponent_bits + mantissa_bits) | e << mantissa_bits | mantissa) + (start << mantissa_bits));
  }

  // rows [token][channel], of T or of another scalar
  template <class S>
  static std::int64_t encode(S const* rows, std::byte* out, std::byte* tail) noexcept {
    for (std::int64_t i = 0; i < bytes; ++i) out[i] = std::byte{0};
    std::uint8_t symbols[count], start[32];
    choose_starts(rows, start);
    for (int row = 0; row < 32; ++row) out[starts_at + row] = static_cast<std::byte>(start[row]);
    for (int token = 0; token < tokens; ++token)
      for (int channel = 0; channel < Channels; ++channel) {
        word const bits = kept(rows[token * Channels + channel]);
        int const place = place_of(token, channel);
        parts const split_bits = split(bits, start[row_of(token, channel)]);
        symbols[place] = static_cast<std::uint8_t>(split_bits.symbol);
        rest::set(out + rest_at + place / 512 * section_bytes, place % 512, split_bits.rest);
      }
    std::int64_t const written = [&] {
      if constexpr (in_sections)
        return coder::encode(symbols, out + planes_at, section_bytes, tail);
      else
        return coder::encode(symbols, out, tail);
    }();
    store_le(out + 8, static_cast<std::uint32_t>(written));
    return written;
  }

  template <class S>
  static void decode(std::byte const* in, S* rows) noexcept {
    std::uint8_t symbols[count + 64];
    decode_symbols(in, symbols);
    for (int token = 0; token < tokens; ++token)
      for (int channel = 0; channel < Channels; ++channel) {
        int const place = place_of(token, channel);
        word const bits = join(symbols[place], rest::get(in + rest_at + place / 512 * section_bytes, place % 512), start_of(in, row_of(token, channel)));
        rows[token * Channels + channel] = as_scalar<S>(fields::number(bits));
      }
  }

  // In the order of places; 64 more may be written.
  static void decode_symbols(std::byte const* in, std::uint8_t* symbols) noexcept {
    tail_place const place = tail_place::of(in);
    if constexpr (in_sections)
      coder::decode(in + planes_at, section_bytes, in + place.distance, place.bytes, symbols);
    else
      coder::decode(in, in + place.distance, place.bytes, symbols);
  }

  static bool check(std::byte const* in, std::byte const* tail) noexcept {
    std::int64_t const tail_bytes = tail_place::of(in).bytes;
    if (tail_bytes > tail_bound) return false;
    if constexpr (in_sections)
      return coder::check(in + planes_at, section_bytes, tail, tail_bytes);
    else
      return coder::check(in, tail, tail_bytes);
  }

  // The distance itself.
  static void error_bound(float const* rows, float* bound) noexcept {
    for (int i = 0; i < count; ++i) {
      float const near = to_float(fields::number(kept(rows[i]))), off = near - rows[i];
      bound[i] = !is_finite(near) ? bits_float(0x7f800000u) : off < 0 ? -off : off;
    }
  }

  PITH_HD static constexpr std::uint32_t start_of(std::byte const* in, int row) noexcept {
    return static_cast<std::uint8_t>(in[starts_at + row]);
  }

 private:
  template <class S>
  PITH_HD static constexpr word kept(S x) noexcept {
    return fields::template rounded<Kept>(fields::bits(as_scalar<T>(x)));
  }
  PITH_HD static constexpr std::uint32_t exponent_of(word bits) noexcept { return bits >> mantissa_bits & exponents; }

 public:
  // For every row the first start whose `span` exponents hold most of a sample: up to 128 numbers of a token, all of 32 channels.
  template <class S>
  static void choose_starts(S const* rows, std::uint8_t* start) noexcept {
    for (int row = 0; row < 32; ++row) start[row] = 0;
    for (int row = 0; row < (Use == use::dot ? 32 : blocks); ++row) {
      std::uint16_t counts[256 + span]{};
      for (int pair = 0; pair < packed; pair += sample_step)
        for (int half = 0; half < 2; ++half)
          for (int lane = 0; lane < (Use == use::dot ? 1 : 32); ++lane) {
            int const token = Use == use::dot ? row : 2 * pair + half, channel = Use == use::dot ? 2 * pair + half : 32 * row + lane;
            ++counts[exponent_of(kept(rows[token * Channels + channel]))];
          }
      start[row] = best_start(counts);
    }
  }
  // counts[256 + span], zeros at the end
  PITH_HD static constexpr std::uint8_t best_start(std::uint16_t const* counts) noexcept {
    int inside = 0, most = -1, best = 0;
    for (int e = 0; e < span; ++e) inside += counts[e];
    for (int first = 0; first + span <= 1 << exponent_bits; ++first) {
      if (inside > most) {
        most = inside;
        best = first;
      }
      inside += counts[first + span] - counts[first];
    }
    return static_cast<std::uint8_t>(best);
  }
};

template <dynamic_scalar T, class Coder = exponent_window, int Kept = float_fields<T>::mantissa_bits>
struct dynamic_float {
  template <int Channels, int PageTokens, use Use>
    requires(Channels % 32 == 0 && Channels <= 1024)
  using bind = dynamic_float_tile<T, Coder, Kept, Channels, Use>;
};

static_assert(variable_tile<dynamic_float<bf16>::bind<64, 64, use::dot>>);

}  // namespace pith
