// SPDX-License-Identifier: Apache-2.0
// How packed weights come to the warp that multiplies them, piece by piece: linear_kernel's ring and loop are the same for all of them.
//
//   feed      where a warp's next copies come from: seek() goes to a piece, start() copies it in the background and moves on
//   reader    what has been copied, as dot_block reads it: view() of one piece after the other
//
// Here: tiles of one size, whose bytes are all there is. Of variable rate: window_feed.hpp.
#pragma once

#include "pith/cuda/dot_operand.hpp"

namespace pith::device {

// The piece of a tile that a step takes. Words of raw numbers lie in the order of the channels, so that 64 of them are a tile themselves.
template <class Leaf>
struct linear_piece {
  using storage = Leaf;
};
template <storage_scalar T, int Channels>
struct linear_piece<raw_tile<T, Channels, use::dot>> {
  using storage = raw_tile<T, Channels % 64 == 0 ? 64 : 32, use::dot>;
};

template <class Tile>
struct linear_feed {
  using storage = typename linear_piece<typename Tile::storage>::storage;
  using stage = tile_stage<storage>;
  static constexpr int pieces = Tile::channels / storage::channels;  // of a tile
  static constexpr std::int64_t piece_bytes = Tile::bytes / pieces;
  static constexpr int blocks = Tile::tokens / block_tokens;  // of 32 rows, in a tile
  static constexpr int ring_bytes = stage::bytes;             // of a step, for a warp
  static constexpr int own_bytes = 0;                         // of a warp, beside the ring
  static constexpr int least_run = 1;                         // what runs of steps are multiples of

  struct matrix {
    std::byte const* data;
  };
  std::byte const* from = nullptr;  // null: there is none

  // piece: counted through the whole matrix.
  template <class Thread>
  PITH_HD void seek(Thread&, matrix const& m, std::int64_t piece) {
    from = m.data + piece * piece_bytes;
  }
  template <class Thread>
  PITH_HD void start(Thread& t, matrix const&, std::byte* to, std::byte*, int block) {
    stage::template start<warp_lanes>(t, t.lane(), to, from, block);
    from += piece_bytes;
  }

  struct reader {
    template <class Thread>
    PITH_HD std::byte const* view(Thread&, matrix const&, std::byte const* stage, std::byte*, std::int64_t) {
      return stage;
    }
  };
};

}  // namespace pith::device
