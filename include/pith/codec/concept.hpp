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
// Rule C9  a tile that depends on calibrated numbers names their type `state`, and its functions take it as a last argument. A state is
//          trivially copyable, checks itself, and adds itself to a fingerprint. encode_tile, decode_tile and tile_error_bound call any tile.
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "pith/core/fingerprint.hpp"
#include "pith/core/status.hpp"

namespace pith {

// Which verb a tile is laid out for: dot puts neighbouring tokens into neighbouring words (keys, weights), mix neighbouring channels
// (values).
enum class use : std::uint8_t { dot, mix };

enum class nan_policy : std::uint8_t { saturate, propagate, reject };

// The state of a tile that has none.
struct no_state {
  PITH_HD constexpr status check() const noexcept { return {}; }
  constexpr void digest(fingerprint&) const noexcept {}
};

template <class S>
concept calibrated_state = std::is_trivially_copyable_v<S> && requires(S const& s, fingerprint& into) {
  { s.check() } noexcept -> std::same_as<status>;
  { s.digest(into) } noexcept;
};

template <class T>
struct state_type {
  using type = no_state;
};
template <class T>
  requires requires { typename T::state; }
struct state_type<T> {
  using type = typename T::state;
};
template <class T>
using state_of = typename state_type<T>::type;
template <class T>
inline constexpr bool is_calibrated = !std::is_same_v<state_of<T>, no_state>;

template <class Tile>
PITH_HD constexpr void encode_tile(float const* rows, std::byte* out, [[maybe_unused]] state_of<Tile> const& state) noexcept {
  if constexpr (is_calibrated<Tile>)
    Tile::encode(rows, out, state);
  else
    Tile::encode(rows, out);
}
template <class Tile>
PITH_HD constexpr void decode_tile(std::byte const* in, float* rows, [[maybe_unused]] state_of<Tile> const& state) noexcept {
  if constexpr (is_calibrated<Tile>)
    Tile::decode(in, rows, state);
  else
    Tile::decode(in, rows);
}
template <class Tile>
PITH_HD constexpr void tile_error_bound(float const* rows, float* bound, [[maybe_unused]] state_of<Tile> const& state) noexcept {
  if constexpr (is_calibrated<Tile>)
    Tile::error_bound(rows, bound, state);
  else
    Tile::error_bound(rows, bound);
}

template <class T, class... State>
concept tile_functions = requires(float const* rows, std::byte* out, std::byte const* in, float* back, State const&... state) {
  { T::encode(rows, out, state...) } noexcept;         // rows [token][channel], contiguous
  { T::decode(in, back, state...) } noexcept;
  { T::error_bound(rows, back, state...) } noexcept;   // [token][channel]
};

template <class T>
concept tile = requires {
  { T::tokens } -> std::convertible_to<int>;           // rows encoded at once
  { T::channels } -> std::convertible_to<int>;         // numbers in a row
  { T::bytes } -> std::convertible_to<std::int64_t>;   // stored size, parameters and padding included
} && ((is_calibrated<T> && calibrated_state<state_of<T>> && tile_functions<T, state_of<T>>) || (!is_calibrated<T> && tile_functions<T>));

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

template <class C, int Channels, int PageTokens, use Use>
concept bindable = requires { typename C::template bind<Channels, PageTokens, Use>; };

// Effective bits per value of a tile, everything counted.
template <tile T>
inline constexpr double bits_per_value = 8.0 * static_cast<double>(T::bytes) / (static_cast<double>(T::tokens) * T::channels);

// Tokens in one layout block: 32, or 16 for the short raw segments.
inline constexpr int block_tokens = 32;

}  // namespace pith
