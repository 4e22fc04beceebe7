// SPDX-License-Identifier: Apache-2.0
// The rows of a matrix in device memory as tiles of packed weights: any strides, zeros behind the last row and column.
//
//   encode_tiles<Tile>(env, weight_tiles<Tile, T>{w, to, panels}, row_blocks * panels)      tile i is panel i % panels of row block i / panels
#pragma once

#include "pith/core/view.hpp"
#include "pith/cuda/encode.hpp"

namespace pith::device {

// rows.hpp's rows: those of `w` from (row, column) on.
template <class T>
struct ragged_rows {
  matrix_view<T const, space::device> w;
  std::int64_t row, column;

  template <int Channels, int Count, int Threads, class Put>
  PITH_HD void read(int thread, int first_token, Put const& put) const {
    static_assert(Channels % 4 == 0);
    for (int i = thread; i < Count * (Channels / 4); i += Threads) {
      int const token = i / (Channels / 4), channel = i % (Channels / 4) * 4;
      std::int64_t const r = row + first_token + token, c = column + channel;
      T const* const from = w.data + r * w.stride[0] + c * w.stride[1];
      quad x{};
      PITH_UNROLL for (int k = 0; k < 4; ++k)
        if (r < w.extent[0] && c + k < w.extent[1]) x.at[k] = to_float(from[k * w.stride[1]]);
      put(token, channel, x);
    }
  }
};

template <class Tile, class T>
struct weight_tiles {
  matrix_view<T const, space::device> w;
  std::byte* bytes;
  std::int64_t panels;

  PITH_HD ragged_rows<T> from(std::int64_t i) const { return {w, i / panels * Tile::tokens, i % panels * Tile::channels}; }
  PITH_HD std::byte* to(std::int64_t i) const { return bytes + i * Tile::bytes; }
  PITH_HD no_state state(std::int64_t) const { return {}; }
};

}  // namespace pith::device
