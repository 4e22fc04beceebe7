// SPDX-License-Identifier: Apache-2.0
// dot, mix and decode of lossless bf16 tiles. Numbers come back a group of 64 at a time, as the words of a raw tile.
//
//   dot     where bytes expand (AVX-512 VBMI2), windows go from packed bytes to the products in registers: no decoded copy exists.
//           So do planes, whose further levels are expanded first. Else, and for other coders, a tile is expanded into a raw one in the
//           first-level cache first
//   mix     expands a tile into a raw one, too
//
// error   that of the raw kernels: the numbers are the same, and so are the sums
// cost    64 numbers of a window on AVX-512: a permutation, a transposition of bits, an expansion, two interleavings, three additions; and 12
//         instructions for every 64 escapes. Of planes: two blends and an expansion instead of the first two, and about as much for every 64
//         others, further ones and escapes. On AVX2, of a window: 50 vector instructions and about 30 others, 10 for every escape that is not
//         the commonest; bits are deposited once a group, which is slow on Zen 1 and 2
#pragma once

#include <array>
#include <bit>

#include "pith/codec/dynamic_float.hpp"
#include "pith/codec/exponent_planes.hpp"
#include "pith/cpu/group_kernels.hpp"
#include "pith/simd/bit_planes.hpp"
#include "pith/simd/float_parts.hpp"

namespace pith {
inline namespace PITH_ISA {

// A whole bf16 tile, nothing dropped.
template <class Coder, int Channels, use Use>
using bf16_tile = dynamic_float_tile<bf16, Coder, 7, Channels, Use>;

template <class Coder, int Channels, use Use>
inline constexpr bool in_groups<bf16_tile<Coder, Channels, Use>> = true;

template <class Tile>
inline constexpr bool has_windows = false;
template <int Channels, use Use>
inline constexpr bool has_windows<bf16_tile<exponent_window, Channels, Use>> = true;

template <class Tile>
inline constexpr bool has_planes = false;
template <int Channels, use Use>
inline constexpr bool has_planes<bf16_tile<exponent_planes, Channels, Use>> = true;

// The escapes of a tile in their order, less Less, which a window's code adds; `to` has room for 64 more.
template <class Tile, unsigned Less = 3>
  requires(simd::expands_bytes)
PITH_INLINE void expand_escapes(std::byte const* tail, std::int64_t tail_bytes, std::uint8_t* to) {
  auto const from = byte_escapes::of(tail);
  std::uint8_t common[4];
  for (int k = 0; k < 4; ++k) common[k] = static_cast<std::uint8_t>(static_cast<std::uint8_t>(tail[k]) - Less);
  std::uint8_t further[Tile::count + 64];
  std::int64_t raw = tail_bytes;
  int const ones = static_cast<int>(std::min<std::int64_t>(4 * (tail + tail_bytes - from.second), Tile::count));  // or fewer: raw bytes follow
  for (int i = 0; i < ones; i += 64)
    for (std::uint64_t last = simd::look_up_codes(from.second + i / 4, common, further + i); last != 0 && raw > 0; last &= last - 1)
      further[i + std::countr_zero(last)] = static_cast<std::uint8_t>(static_cast<std::uint8_t>(tail[--raw]) - Less);
  std::uint8_t const* next = further;
  for (int i = 0; i < from.escapes; i += 64) {
    auto bits = load_le<std::uint64_t>(from.first + i / 8);
    if (from.escapes - i < 64) bits &= (std::uint64_t{1} << (from.escapes - i)) - 1;
    simd::spread_bytes(bits, next, common[0], to + i);
    next += std::popcount(bits);
  }
}

// Of a tile in planes the symbols that are none of a group's three, in their order; `to` has room for 64 more.
template <class Tile>
  requires(simd::expands_bytes)
PITH_INLINE void expand_others(std::byte const* tail, std::int64_t tail_bytes, std::uint8_t* to) {
  using coder = typename Tile::coder;
  auto const at = coder::places::of(tail);
  std::uint8_t escapes[Tile::count + 64], further[Tile::count + 64];
  expand_escapes<Tile, 0>(tail + at.escapes, tail_bytes - at.escapes, escapes);
  simd::code_entries const entries = simd::load_entries(tail + 4);
  std::uint8_t const* next = escapes;
  for (int i = 0; i < at.further_bits; i += 64) {
    auto const low = load_le<std::uint64_t>(tail + at.low + i / 8), high = load_le<std::uint64_t>(tail + at.high + i / 8);
    simd::store_bytes64(further + i, simd::coded_bytes(low, high, entries, next));
    next += std::popcount(low & high);
  }
  next = further;
  for (int i = 0; i < at.other_bits; i += 64) {
    auto const bits = load_le<std::uint64_t>(tail + coder::streams_at + i / 8);
    simd::spread_bytes(bits, next, static_cast<std::uint8_t>(tail[3]), to + i);
    next += std::popcount(bits);
  }
}

// The symbols of a tile in planes: each level's next bits go to where the level above has ones. `symbols` has room for 64 more.
template <class Tile>
  requires(simd::deposits_bits)
PITH_INLINE void put_planes(std::byte const* tile, std::uint8_t* symbols) {
  using coder = typename Tile::coder;
  tail_place const place = tail_place::of(tile);
  std::byte const* const tail = tile + place.distance;
  auto const at = coder::places::of(tail);
  byte_escapes::reader from(tail + at.escapes, place.bytes - at.escapes);
  std::uint8_t escapes[Tile::count + 64];
  for (int i = 0, n = byte_escapes::of(tail + at.escapes).escapes; i < n; ++i) escapes[i] = static_cast<std::uint8_t>(from.next());
  auto const table = load_le<std::uint64_t>(tail);  // byte 7 is where escapes go
  std::uint8_t const* next = escapes;
  int others = 0, further = 0;
  for (int group = 0; group < Tile::groups; ++group) {
    std::byte const* const planes = tile + group / 8 * Tile::section_bytes + Tile::planes_at + 16 * (group % 8);
    std::uint64_t plane[5]{load_le<std::uint64_t>(planes), load_le<std::uint64_t>(planes + 8)};
    std::uint64_t const other = plane[0] & plane[1];
    plane[2] = simd::deposit(simd::bits_at(tail + coder::streams_at, others), other);
    plane[3] = simd::deposit(simd::bits_at(tail + at.low, further), plane[2]);
    plane[4] = simd::deposit(simd::bits_at(tail + at.high, further), plane[2]);
    others += std::popcount(other);
    further += std::popcount(plane[2]);
    std::uint64_t const escaped = plane[3] & plane[4];
    simd::store_bytes64(symbols + 64ll * group, simd::ranked_bytes(plane, escaped, table, next));
    next += std::popcount(escaped);
  }
}

// What a group's symbols come from: symbols that stand somewhere, or planes and escapes.
enum class groups_of { symbols, windows, planes };

// Gives the words of a tile's groups, one after the other. Kernels copy it, so that its cursors stay in registers.
template <class Tile, groups_of From, class Ask>
struct group_source {
  static constexpr int plane_bytes = From == groups_of::planes ? 16 : 24;  // of a group

  std::uint32_t const* start;  // of every row, in both halves of a word
  std::uint8_t const* next;    // escape, other, or symbol
  std::byte const *rests, *planes;
  [[no_unique_address]] std::conditional_t<From == groups_of::planes, simd::code_entries, ask_nothing> entries{};

  [[no_unique_address]] Ask ask;

  PITH_INLINE group_source(std::byte const* tile, std::uint32_t const* starts, std::uint8_t const* escapes_or_symbols, Ask for_more)
      : start(starts), next(escapes_or_symbols), rests(tile + Tile::rest_at), planes(tile + Tile::planes_at), ask(for_more) {}

  PITH_INLINE void operator()(int group, simd::u32v (&words)[simd::group_words]) {
    simd::bytes64 const rest = simd::load_bytes64(rests);
    simd::bytes64 symbols;
    if constexpr (From == groups_of::planes) {
      auto const low = load_le<std::uint64_t>(planes), high = load_le<std::uint64_t>(planes + 8);
      symbols = simd::coded_bytes(low, high, entries, next);
      next += std::popcount(low & high);
    } else if constexpr (From == groups_of::windows) {
      std::uint64_t const escaped = load_le<std::uint64_t>(planes + 8) & load_le<std::uint64_t>(planes + 16);
      symbols = simd::window_symbols(planes, escaped, next);
      next += std::popcount(escaped);
    } else {
      symbols = simd::load_bytes64(next);
      next += 64;
    }
    rests += 64;
    planes += plane_bytes;
    if (Tile::section_bytes != Tile::rest::bytes && group % 8 == 7) {
      rests += Tile::section_bytes - 8 * 64;
      planes += Tile::section_bytes - 8 * plane_bytes;
      PITH_UNROLL for (int i = 0; i < Tile::section_bytes; i += 64) ask(rests + i);
    }
    if constexpr (Tile::pairs)
      simd::join_bytes(rest, symbols, words);
    else
      simd::join_exponents(rest, symbols, words);
    PITH_UNROLL for (int v = 0; v < simd::group_words; ++v)
      words[v] = simd::add16(words[v], Tile::used_for == use::dot ? simd::u32v::load_unaligned(start + v * simd::width)
                                                                  : simd::u32v(start[Tile::blocks == 1 ? 0 : group % Tile::blocks]));
  }
};

// use_source(source) with the source of a tile's groups.
template <class Tile, class Use, class Ask = ask_nothing>
PITH_INLINE void with_groups(std::byte const* tile, Use use_source, Ask ask = {}) {
  alignas(64) std::uint32_t start[32];
  alignas(64) std::uint8_t symbols[Tile::count + 64];
  tail_place const place = tail_place::of(tile);
  std::byte const* const tail = tile + place.distance;
  for (int row = 0; row < 32; ++row) start[row] = (Tile::start_of(tile, row) << 7) * 0x10001u;
  if constexpr (has_windows<Tile> && simd::expands_bytes) {
    if (place.bytes != Tile::tail_bound) {
      if constexpr (!std::is_same_v<Ask, ask_nothing>)  // what is likely to be the next tile's
        PITH_UNROLL for (std::int64_t i = 0; i < 6 * 64; i += 64) simd::prefetch(tail + place.bytes + i);
      expand_escapes<Tile>(tail, place.bytes, symbols);
      return use_source(group_source<Tile, groups_of::windows, Ask>(tile, start, symbols, ask));
    }
  } else if constexpr (has_planes<Tile> && simd::expands_bytes) {
    if (place.bytes != Tile::tail_bound) {
      expand_others<Tile>(tail, place.bytes, symbols);
      group_source<Tile, groups_of::planes, Ask> source(tile, start, symbols, ask);
      source.entries = simd::load_entries(tail);
      return use_source(source);
    }
  } else if constexpr (has_planes<Tile> && simd::deposits_bits) {
    if (place.bytes != Tile::tail_bound) {
      put_planes<Tile>(tile, symbols);
      return use_source(group_source<Tile, groups_of::symbols, Ask>(tile, start, symbols, ask));
    }
  }
  Tile::decode_symbols(tile, symbols);
  use_source(group_source<Tile, groups_of::symbols, Ask>(tile, start, symbols, ask));
}

// Windows into a raw tile where bits can be deposited: every escape becomes the commonest one first, which is a code like the others. Those that
// are not, fewer than one a group, are noted by place and corrected in the raw tile, where the high byte's difference is added.
template <class Tile>
  requires(has_windows<Tile> && simd::deposits_bits)
inline void expand_windows(std::byte const* tile, std::byte* raw) {
  alignas(64) std::uint32_t start[32];
  for (int row = 0; row < 32; ++row) start[row] = (Tile::start_of(tile, row) << 7) * 0x10001u;
  tail_place const place = tail_place::of(tile);
  std::byte const* const tail = tile + place.distance;
  auto const from = Tile::coder::parts::of(tail);
  auto const common = static_cast<std::uint8_t>(tail[0] & std::byte{127});

  std::uint16_t places[Tile::count + 4];
  std::uint16_t* noted = places;
  std::uint64_t escape = 0;
  std::byte* to = raw;
  unsigned first = 0;  // number of a group
  for (std::byte const* section = tile; section < tile + Tile::groups / 8 * Tile::section_bytes; section += Tile::section_bytes)
    for (std::byte const *rest = section + Tile::rest_at, *planes = section + Tile::planes_at; rest < section + Tile::planes_at;
         rest += 64, planes += 24, first += 64, to += 128) {
      simd::u32v words[simd::group_words];
      simd::join_bytes(simd::load_bytes64(rest), simd::code_bytes(planes, common), words);
      std::uint32_t const* const of_rows = start + (Tile::used_for == use::dot || Tile::blocks == 1 ? 0 : first / 64 % Tile::blocks);
      PITH_UNROLL for (int v = 0; v < simd::group_words; ++v)
        simd::store_words(to + 4ll * v * simd::width,
                          simd::add16(words[v], Tile::used_for == use::dot ? simd::u32v::load_unaligned(of_rows + v * simd::width)
                                                                           : simd::u32v(*of_rows)));

      std::uint64_t const escaped = load_le<std::uint64_t>(planes + 8) & load_le<std::uint64_t>(planes + 16);
      auto const count = static_cast<unsigned>(std::popcount(escaped));
      std::uint64_t bits = load_le<std::uint64_t>(from.first + escape / 8) >> escape % 8;
      if (count > 57) bits |= static_cast<std::uint64_t>(from.first[escape / 8 + 8]) << 1 << (63 - escape % 8);
      escape += count;
      std::uint64_t left = simd::deposit(bits, escaped);
      int const others = std::popcount(left);
      auto const note = [&](int i) {
        noted[i] = static_cast<std::uint16_t>(first + simd::lowest_bit(left));
        left &= left - 1;
      };
      PITH_UNROLL for (int i = 0; i < 3; ++i) note(i);  // without a branch; the next group's are written over what is none
      for (int i = 3; i < others; ++i) note(i);
      noted += others;
    }

  static constexpr auto in_words = [] {
    std::array<std::uint8_t, 64> at{};
    for (int j = 0; j < 64; ++j) at[static_cast<std::size_t>(j)] = static_cast<std::uint8_t>(4 * Tile::lane_of(j) + j % 2 * 2);
    return at;
  }();
  std::byte const* other = tail + place.bytes;
  std::int64_t i = 0;
  for (std::uint16_t const* at = places; at < noted; ++at, ++i) {
    unsigned const code = static_cast<unsigned>(from.second[i / 4]) >> i % 4 * 2 & 3u;
    other -= code == 3;
    auto const h = static_cast<std::uint32_t>(*(code == 3 ? other : tail + 1 + code)) & 127u;
    std::byte* const number = raw + 2 * (*at & ~63u) + in_words[*at & 63u];
    store_le(number, static_cast<std::uint16_t>(load_le<std::uint16_t>(number) + ((h - common) << 8)));
  }
}

template <class Tile, class Ask = ask_nothing>
PITH_INLINE void expand_tile(std::byte const* tile, std::byte* raw, Ask ask = {}) {
  if constexpr (has_windows<Tile> && !simd::expands_bytes && simd::deposits_bits)
    if (tail_place::of(tile).bytes != Tile::tail_bound) return expand_windows<Tile>(tile, raw);
  auto const write = [=](auto source) { write_groups<Tile::groups>(source, raw); };
  with_groups<Tile>(tile, write, ask);
}

template <class Coder, int Channels, class Accuracy, int M>
struct dot_kernel<bf16_tile<Coder, Channels, use::dot>, Accuracy, M>
    : dot_by_groups<bf16_tile<Coder, Channels, use::dot>, Accuracy, M,
                    (has_windows<bf16_tile<Coder, Channels, use::dot>> || has_planes<bf16_tile<Coder, Channels, use::dot>>)&&simd::expands_bytes> {
};

template <class Coder, int Channels, class Accuracy, int M>
struct mix_kernel<bf16_tile<Coder, Channels, use::mix>, Accuracy, M> : mix_by_groups<bf16_tile<Coder, Channels, use::mix>, Accuracy, M> {};

}  // namespace PITH_ISA
}  // namespace pith
