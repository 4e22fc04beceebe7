// SPDX-License-Identifier: Apache-2.0
// A packed matrix in runs of rows: what was packed apart is put together, and any run of row blocks is taken out, whatever the codec.
//
//   whole matrix        | fixed parts of row block 0, 1, 2, ... | tails of row block 0, 1, 2, ... | 64 zeros |      (packed_matrix.hpp)
//   rows packed alone   | fixed parts of these | tails of these | 64 zeros |
//
// A row block's bytes are the same in both, up to the distance from a fixed part to its tail. So a matrix larger than memory is packed run
// by run, each written to two places of a file, and a run is read from two places. A codec of fixed rate has no tails and one place.
//
//   run_bytes const parts = split(layout, rows, columns, packed_alone);     spans of the fixed parts and of the tails
//   move_tails(layout, parts.fixed, by);                                    before they are written elsewhere
//
// errors  bad_format  a tail that does not lie right behind the tail before it; `at` is the byte of the fixed parts where its tile begins
// cost    one pass over 16 bytes a tile
#pragma once

#include <span>

#include "pith/linear/packed_matrix.hpp"

namespace pith {

// What has to be known of a packed_matrix's type.
struct tile_layout {
  std::int64_t tokens = 32, channels = 256, bytes = 0, tail_bound = 0;
  bool has_tails = false;

  std::int64_t row_blocks(std::int64_t rows) const noexcept { return divide_up(rows, tokens); }
  std::int64_t panels(std::int64_t columns) const noexcept { return divide_up(columns, channels); }
  std::int64_t fixed_bytes(std::int64_t rows, std::int64_t columns) const noexcept { return row_blocks(rows) * panels(columns) * bytes; }
  std::int64_t padding() const noexcept { return has_tails ? tail_padding : 0; }
  // Bytes of a packed matrix at most; the largest int64 if that does not fit.
  std::int64_t bound_bytes(std::int64_t rows, std::int64_t columns) const noexcept {
    std::int64_t total = 0;
    bool const over = __builtin_mul_overflow(row_blocks(rows), panels(columns), &total) ||
                      __builtin_mul_overflow(total, bytes + tail_bound, &total) || __builtin_add_overflow(total, padding(), &total);
    return over ? std::numeric_limits<std::int64_t>::max() : total;
  }
};

template <class Matrix>
constexpr tile_layout layout_of() noexcept {
  using tile = typename Matrix::tile;
  if constexpr (variable_tile<tile>)
    return {tile::tokens, tile::channels, tile::bytes, tile::tail_bound, true};
  else
    return {tile::tokens, tile::channels, tile::bytes, 0, false};
}

struct run_bytes {
  std::span<std::byte> fixed, tails;  // tails without the 64 zeros behind them
};

// `packed` is a whole packed matrix of these rows, as packed_matrix gives it.
inline run_bytes split(tile_layout const& layout, std::int64_t rows, std::int64_t columns, std::span<std::byte> packed) noexcept {
  auto const fixed = static_cast<std::size_t>(layout.fixed_bytes(rows, columns)),
             end = packed.size() - static_cast<std::size_t>(layout.padding());
  return {packed.first(fixed), packed.subspan(fixed, end - fixed)};
}

// Of fixed parts whose tails come to lie `by` bytes farther behind them.
inline void move_tails(tile_layout const& layout, std::span<std::byte> fixed, std::int64_t by) noexcept {
  for (std::int64_t at = 0; layout.has_tails && at < std::ssize(fixed); at += layout.bytes) {
    std::byte* const tile = fixed.data() + at;  // unsigned: distances from a file may be anything
    tail_place::set_distance(
        tile, static_cast<std::int64_t>(static_cast<std::uint64_t>(tail_place::of(tile).distance) + static_cast<std::uint64_t>(by)));
  }
}

struct tail_extent {
  std::int64_t begin = 0, end = 0;  // bytes of the whole packed matrix
};

// Where the tails of a run's fixed parts lie, which begin at byte `fixed_at` of a packed matrix of `bytes` bytes in all.
inline result<tail_extent> tails_of(tile_layout const& layout, std::span<std::byte const> fixed, std::int64_t fixed_at,
                                    std::int64_t bytes) noexcept {
  tail_extent out;
  if (!layout.has_tails) return out;
  std::int64_t const last = bytes - tail_padding;
  for (std::int64_t at = 0; at < std::ssize(fixed); at += layout.bytes) {
    tail_place const place = tail_place::of(fixed.data() + at);
    bool const inside = place.distance > 0 && place.distance <= last - fixed_at - at && place.bytes <= layout.tail_bound;
    if (at == 0 && inside) out.begin = out.end = fixed_at + place.distance;
    if (!inside || fixed_at + at + place.distance != out.end || place.bytes > last - out.end) return status{errc::bad_format, at};
    out.end += place.bytes;
  }
  return out;
}

}  // namespace pith
