// SPDX-License-Identifier: Apache-2.0
// Where a backend plugs into packed_matrix: it specialises linear_engine for its tag. Everything has been checked when it is called.
//
//   template <class Tile, class Accuracy> struct linear_engine<cpu, Tile, Accuracy>
//     scratch_bytes(tiles, batch), transposed_scratch_bytes(tiles, batch)
//     multiply(tiles, x, out, bias, scratch, run)               out[i][r] = sum_c W[r][c] x[i][c] + bias[r]
//     multiply_transposed(tiles, x, out, bias, scratch, run)    out[i][c] = sum_r W[r][c] x[i][r] + bias[c]
//
// Tiles lie row block by row block, the panels of a row block one after the other, without gaps: one product reads memory once, forwards.
#pragma once

#include <cstddef>
#include <cstdint>

#include "pith/codec/concept.hpp"
#include "pith/core/bits.hpp"

namespace pith {

template <class Backend, class Tile, class Accuracy>
struct linear_engine;

template <class Codec, int Panel, use Use>
concept packs_weights = requires {
  typename Codec::template bind<Panel, 256, Use>::storage;
};

// Columns of a tile where none are named: 256, or 128 if scales would lie more than 6 KiB behind the first code. Measured: with 256, 8-bit
// codes took 1.2 to 1.4 times as long for batches of 4 to 16, 4-bit codes with 512 twice as long for one row (docs/benchmarks.md).
template <class Codec, use Use>
constexpr int default_panel() {
  if constexpr (packs_weights<Codec, 256, Use>) {
    using storage = typename Codec::template bind<256, 256, Use>::storage;
    if constexpr (requires { storage::scale_at; })
      return storage::bytes > 6144 && (storage::along_tokens || storage::group <= 128) ? 128 : 256;
  }
  return 256;
}

// The first broken rule speaks alone; true if there is none.
template <class Codec, int Panel, use Use>
consteval bool check_weights() {
  constexpr bool panel_fits = Panel >= 32 && Panel <= 1024 && Panel % 32 == 0;
  if constexpr (!panel_fits) {
    static_assert(panel_fits, "[pith] packed_matrix<Codec, Use, Panel>: Panel is a multiple of 32 up to 1024. Fix: leave it out.");
    return false;
  } else if constexpr (!packs_weights<Codec, Panel, Use>) {
    static_assert(Panel < 0,
                  "[pith] packed_matrix<C>: C is not a codec. Fix: raw<bf16>, int4<per_token<64>, zero::none>, pipe<hadamard<64>, C>.");
    return false;
  } else if constexpr (is_calibrated<typename Codec::template bind<Panel, 256, Use>>) {
    static_assert(Panel < 0,
                  "[pith] packed_matrix<Codec>: Codec has calibrated state. Fix: apply it to the columns before packing and to x before multiplying.");
    return false;
  } else {
    return true;
  }
}
template <bool Right, class Codec, int Panel, use Use>
struct weights_binding {
  using type = no_tile<32>;
};
template <class Codec, int Panel, use Use>
struct weights_binding<true, Codec, Panel, Use> {
  using type = typename Codec::template bind<Panel, 256, Use>;
};

// The tiles of one matrix: rows are output features, columns input features.
template <tile Tile>
struct packed_tiles {
  std::byte const* data = nullptr;
  std::int64_t rows = 0, columns = 0;

  std::int64_t row_blocks() const { return divide_up(rows, Tile::tokens); }
  std::int64_t panels() const { return divide_up(columns, Tile::channels); }
  std::byte const* at(std::int64_t row_block, std::int64_t panel) const { return data + (row_block * panels() + panel) * Tile::bytes; }
};

}  // namespace pith
