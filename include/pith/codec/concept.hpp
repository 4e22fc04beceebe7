// SPDX-License-Identifier: Apache-2.0
// What a codec is.
//
// A codec describes a format; bound to a shape it gives a tile, the unit that is encoded at once: `tokens` rows of `channels` numbers
// (rows are tokens or output features). A tile type has no state.
//
//   using tile = Codec::template bind<Channels, PageTokens, use::dot>;
//
// Rule C1  |x - decode(encode(x))| <= error_bound(x), element by element, for finite x.
// Rule C2  encode is a function of the tile's rows alone and writes exactly `bytes` bytes, padding as zero.
// Rule C3  a tile of zeros decodes to zeros.
// Rule C4  NaN and infinity follow `nan`: saturate gives finite numbers and disturbs only its own group; propagate keeps them.
// Rule C5  decode accepts any bytes: it reads `bytes` bytes and never fails.
// Rule C6  dot and mix (cpu/, cuda/) agree with decoding and multiplying, within their stated bounds.
// Rule C7  the same bytes on every instruction set and under every floating-point flag but flush-to-zero.
// Rule C8  a transform before a leaf is linear and is undone by decode: <T x, T' q> = <x, q>.
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>

namespace pith {

// Which verb a tile is laid out for: dot puts neighbouring tokens into neighbouring words (keys, weights), mix neighbouring channels
// (values).
enum class use : std::uint8_t { dot, mix };

enum class nan_policy : std::uint8_t { saturate, propagate, reject };

template <class T>
concept tile = requires(float const* rows, std::byte* out, std::byte const* in, float* back) {
  { T::tokens } -> std::convertible_to<int>;           // rows encoded at once
  { T::channels } -> std::convertible_to<int>;         // numbers in a row
  { T::bytes } -> std::convertible_to<std::int64_t>;   // stored size, parameters and padding included
  { T::encode(rows, out) } noexcept;                   // rows [token][channel], contiguous
  { T::decode(in, back) } noexcept;
  { T::error_bound(rows, back) } noexcept;             // [token][channel]
};

// What a codec binds to where its parameters or the shape are wrong: by then its check has said so, and nothing else complains.
template <int Channels>
struct no_tile {
  using storage = no_tile;
  static constexpr int tokens = 32;
  static constexpr int channels = Channels;
  static constexpr std::int64_t bytes = 64;
  static constexpr nan_policy nan = nan_policy::saturate;
  static void encode(float const*, std::byte*) noexcept {}
  static void decode(std::byte const*, float*) noexcept {}
  static void error_bound(float const*, float*) noexcept {}
};

template <class C, int Channels = 64, int PageTokens = 64>
concept codec =
    tile<typename C::template bind<Channels, PageTokens, use::dot>> && tile<typename C::template bind<Channels, PageTokens, use::mix>>;

// Effective bits per value of a tile, everything counted.
template <tile T>
inline constexpr double bits_per_value = 8.0 * static_cast<double>(T::bytes) / (static_cast<double>(T::tokens) * T::channels);

// Tokens in one layout block: 32, or 16 for the short raw segments.
inline constexpr int block_tokens = 32;

}  // namespace pith
