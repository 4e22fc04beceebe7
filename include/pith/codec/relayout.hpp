// SPDX-License-Identifier: Apache-2.0
// Lossless changes of layout between tiles of one format: the codes and parameters move, nothing is decoded or rounded.
//
//   relayout<Codec, Channels, PageTokens, From, To>(in, out)     use::dot <-> use::mix
//   codes_of<Tile>(in, codes)                                    row-major [token][channel], one word for each code: for other libraries
//   from_codes<Tile>(codes, parameters, out)                     back; what lies behind the codes is copied from another tile
//
// The layouts of word_layout are the canonical ones, of pages, files and exchange; a backend that wants another one converts at its own door.
// errors  none: any bytes are legal. Codes beyond a format's width are cut to it
// cost    one scalar pass over the codes: for loading and exchange, not for hot paths
#pragma once

#include "pith/codec/word_layout.hpp"

namespace pith {

// A leaf whose codes lie in word_layout blocks, with its parameters behind them.
template <class Tile>
concept laid_out = requires { typename Tile::layout; };

// Where the codes end and the parameters begin.
template <laid_out Tile>
inline constexpr std::int64_t codes_end = Tile::tokens / Tile::layout::tokens * Tile::layout::bytes;

// codes [token][channel]
template <laid_out Tile>
PITH_HD constexpr void codes_of(std::byte const* in, std::uint32_t* codes) noexcept {
  using layout = typename Tile::layout;
  for (int t = 0; t < Tile::tokens; ++t)
    for (int c = 0; c < Tile::channels; ++c)
      codes[t * Tile::channels + c] = layout::get(in + t / layout::tokens * layout::bytes, t % layout::tokens, c);
}

// parameters: a tile of the same format, whose bytes behind the codes are copied; it may be `out`.
template <laid_out Tile>
PITH_HD constexpr void from_codes(std::uint32_t const* codes, std::byte const* parameters, std::byte* out) noexcept {
  using layout = typename Tile::layout;
  for (std::int64_t i = 0; i < codes_end<Tile>; ++i) out[i] = std::byte{0};
  for (int t = 0; t < Tile::tokens; ++t)
    for (int c = 0; c < Tile::channels; ++c)
      layout::set(out + t / layout::tokens * layout::bytes, t % layout::tokens, c, codes[t * Tile::channels + c]);
  for (std::int64_t i = codes_end<Tile>; i < Tile::bytes; ++i) out[i] = parameters[i];
}

// A tile of Codec bound for From becomes the same tile bound for To: the bytes that encode would have written. in and out do not overlap.
template <class Codec, int Channels, int PageTokens, use From, use To>
PITH_HD constexpr void relayout(std::byte const* in, std::byte* out) noexcept {
  using from = typename Codec::template bind<Channels, PageTokens, From>;
  using to = typename Codec::template bind<Channels, PageTokens, To>;
  static_assert(laid_out<from> && laid_out<to>, "[pith] relayout<Codec, ...>: Codec has no word layout. Fix: the leaf inside pipe<...>, or a part of sum<...>.");
  std::uint32_t codes[from::tokens * from::channels];
  codes_of<from>(in, codes);
  // Parameters have one order for both uses; only the padding around them may differ.
  constexpr std::int64_t from_end = codes_end<from>, to_end = codes_end<to>;
  constexpr std::int64_t parameters = from::bytes - from_end < to::bytes - to_end ? from::bytes - from_end : to::bytes - to_end;
  for (std::int64_t i = 0; i < to::bytes - to_end; ++i) out[to_end + i] = i < parameters ? in[from_end + i] : std::byte{0};
  from_codes<to>(codes, out, out);
}

}  // namespace pith
