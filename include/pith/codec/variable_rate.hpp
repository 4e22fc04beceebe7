// SPDX-License-Identifier: Apache-2.0
// What a codec of variable rate is: its tile has a part of fixed size and a tail that takes as many bytes as the numbers need.
//
//   fixed part   Tile::bytes, a multiple of 64. It begins with a tail_place: how far from its first byte the tail lies, and how long that is
//   tail         up to Tile::tail_bound bytes, anywhere; a reader may look at tail_padding bytes more
//
// A container puts fixed parts where it puts other tiles, tails where it likes, and sets the place: so a pointer to the fixed part is all
// that a kernel needs. There is no state: whatever depends on the numbers is in the tile.
//
// Rule V1  encode writes `bytes` bytes and the tail's, at most tail_bound, and returns how many; the place's distance stays 0.
// Rule V2  decode needs a tile that `check` has passed; check takes any bytes and reads none outside the fixed part and the tail.
// Rules C1, C3, C4, C6 and C7 of concept.hpp hold; C2 with the tail's bytes.
#pragma once

#include "pith/codec/concept.hpp"
#include "pith/core/bits.hpp"

namespace pith {

inline constexpr std::int64_t tail_padding = 64;

struct tail_place {
  std::int64_t distance;  // from the first byte of the fixed part
  std::int64_t bytes;     // below 2^32

  PITH_HD static constexpr tail_place of(std::byte const* tile) noexcept {
    return {static_cast<std::int64_t>(load_le<std::uint64_t>(tile)), load_le<std::uint32_t>(tile + 8)};
  }
  PITH_HD static constexpr std::byte const* tail(std::byte const* tile) noexcept { return tile + of(tile).distance; }
  PITH_HD static constexpr void set_distance(std::byte* tile, std::int64_t distance) noexcept {
    store_le(tile, static_cast<std::uint64_t>(distance));
  }
};

// Whether a codec's tiles have tails: nothing that keeps tiles of one size side by side can hold them.
template <class C, int Channels, int PageTokens, use Use>
concept has_variable_rate = requires { C::template bind<Channels, PageTokens, Use>::tail_bound; };

template <class T>
concept variable_tile = requires(float const* rows, std::byte* out, std::byte const* in, float* back) {
  { T::tokens } -> std::convertible_to<int>;
  { T::channels } -> std::convertible_to<int>;
  { T::bytes } -> std::convertible_to<std::int64_t>;
  { T::tail_bound } -> std::convertible_to<std::int64_t>;
  { T::encode(rows, out, out) } noexcept -> std::same_as<std::int64_t>;  // fixed part, tail
  { T::decode(in, back) } noexcept;
  { T::check(in, in) } noexcept -> std::same_as<bool>;  // fixed part, tail of tail_place::of(fixed).bytes
};

}  // namespace pith
