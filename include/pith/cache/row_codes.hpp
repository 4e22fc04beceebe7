// SPDX-License-Identifier: Apache-2.0
// Rows that can move from one tile to another as they are stored: codes and parameters, nothing decoded or rounded, however often.
//
//   rows_move<Tile>                          whether a tile's rows have their codes and parameters to themselves: raw, float8 and per_token
//                                            leaves, and transforms of these. per_channel leaves and sums encode rows together
//   move_row<Tile>(in, from, out, to)        row `from` of one tile becomes row `to` of another
//
// A tile of zero bytes decodes to finite numbers: what no row was moved to may be multiplied by a weight of 0.
// cost  keys: a word after another; values: a code after another
#pragma once

#include <cstring>

#include "pith/codec/relayout.hpp"

namespace pith {

template <class Tile>
inline constexpr bool rows_move = false;
template <class Tile>
requires laid_out<typename Tile::storage>
inline constexpr bool rows_move<Tile> = [] {
  if constexpr (requires { Tile::storage::along_tokens; })
    return !Tile::storage::along_tokens;
  else
    return true;
}();

template <class Tile>
requires(rows_move<Tile>) void move_row(std::byte const* in, int from, std::byte* out, int to) noexcept {
  using leaf = typename Tile::storage;
  using layout = typename leaf::layout;
  static_assert(leaf::tokens == layout::tokens);
  if constexpr (leaf::used_for == use::dot)
    for (std::int64_t word = 0; word < layout::bytes; word += 4 * layout::lanes) std::memcpy(out + word + 4 * to, in + word + 4 * from, 4);
  else
    for (int c = 0; c < leaf::channels; ++c) layout::set(out, to, c, layout::get(in, from, c));
  [[maybe_unused]] auto const copy = [&](std::int64_t at, std::int64_t bytes, int group) {
    if constexpr (requires { leaf::parameter_index(0, 0); })
      std::memcpy(out + at + bytes * leaf::parameter_index(to, group * leaf::group),
                  in + at + bytes * leaf::parameter_index(from, group * leaf::group), static_cast<std::size_t>(bytes));
  };
  if constexpr (requires { leaf::scale_at; })
    for (int g = 0; g < leaf::groups; ++g) copy(leaf::scale_at, sizeof(typename leaf::scale_type), g);
  if constexpr (requires { leaf::zero_at; })
    for (int g = 0; g < leaf::groups && leaf::zero_bytes > 0; ++g) copy(leaf::zero_at, leaf::zero_bytes, g);
}

}  // namespace pith
