// SPDX-License-Identifier: Apache-2.0
// Packing a matrix into tiles of variable rate: fixed parts first, in the order of other tiles, then all tails, row block by row block.
//
// Two passes over the matrix: the first finds how long the tails of every row block are, the second writes. Bytes do not depend on the executor.
#pragma once

#include <algorithm>
#include <memory>
#include <new>
#include <span>
#include <utility>

#include "pith/core/executor.hpp"
#include "pith/core/view.hpp"
#include "pith/linear/linear_engine.hpp"
#include "pith/page/tile_engine.hpp"

namespace pith {

template <variable_tile Tile, class Engine, class T>
class tail_packing {
 public:
  using tiles = packed_tiles<Tile>;

  explicit tail_packing(matrix_view<T> w) noexcept
      : w_(w), blocks_(divide_up(w.extent[0], Tile::tokens)), panels_(divide_up(w.extent[1], Tile::channels)) {}

  // Bytes of the packed matrix.
  //
  // errors  out_of_memory  for eight bytes a row block; `at` is how many
  template <executor Executor>
  result<std::int64_t> measure(Executor&& run) noexcept {
    tail_at_.reset(new (std::nothrow) std::int64_t[static_cast<std::size_t>(blocks_)]);
    if (tail_at_ == nullptr) return status{errc::out_of_memory, 8 * blocks_};
    run.for_each(blocks_, [&](std::int64_t block) {
      alignas(64) std::byte fixed[Tile::bytes];
      std::byte tail[Tile::tail_bound + tail_padding];
      tail_at_[block] = 0;
      for (std::int64_t panel = 0; panel < panels_; ++panel) tail_at_[block] += encode(block, panel, fixed, tail);
    });
    std::int64_t at = blocks_ * panels_ * Tile::bytes;
    for (std::int64_t block = 0; block < blocks_; ++block) at += std::exchange(tail_at_[block], at);
    return at + tail_padding;
  }

  // Into `bytes` bytes, as many as measure said.
  template <executor Executor>
  void write(std::byte* data, std::int64_t bytes, Executor&& run) const noexcept {
    run.for_each(blocks_, [&](std::int64_t block) {
      std::byte tail[Tile::tail_bound + tail_padding];
      std::byte* to = data + tail_at_[block];
      for (std::int64_t panel = 0; panel < panels_; ++panel) {
        std::byte* const fixed = data + (block * panels_ + panel) * Tile::bytes;
        std::int64_t const size = encode(block, panel, fixed, tail);
        tail_place::set_distance(fixed, to - fixed);
        std::copy_n(tail, size, to);
        to += size;
      }
    });
    std::fill_n(data + bytes - tail_padding, tail_padding, std::byte{0});
  }

 private:
  std::int64_t encode(std::int64_t block, std::int64_t panel, std::byte* fixed, std::byte* tail) const noexcept {
    using number = std::remove_const_t<T>;
    std::int64_t const row = block * Tile::tokens, column = panel * Tile::channels;
    if (row + Tile::tokens <= w_.extent[0] && column + Tile::channels <= w_.extent[1] && w_.stride[1] == 1)
      return Engine::encode(static_cast<number const*>(&w_(row, column)), w_.stride[0], fixed, tail);
    number buffer[Tile::tokens * Tile::channels];
    for (std::int64_t i = 0; i < Tile::tokens; ++i)
      for (std::int64_t j = 0; j < Tile::channels; ++j)
        buffer[i * Tile::channels + j] =
            row + i < w_.extent[0] && column + j < w_.extent[1] ? w_(row + i, column + j) : as_scalar<number>(0.0f);
    return Engine::encode(static_cast<number const*>(buffer), std::int64_t{Tile::channels}, fixed, tail);
  }

  matrix_view<T> w_;
  std::int64_t blocks_, panels_;
  std::unique_ptr<std::int64_t[]> tail_at_;
};

// The bytes of a packed matrix that begins at `memory`, if every tile in it can be read.
//
// errors  truncated   a fixed part is not there; `at` is the bytes wanted at least
//         bad_format  a tail that lies elsewhere or does not fit its tile; `at` is the tile's first byte
// cost    one pass over the codes
template <variable_tile Tile>
result<std::int64_t> check_tails(std::span<std::byte const> memory, packed_tiles<Tile> const& tiles) noexcept {
  std::int64_t const fixed = tiles.fixed_bytes(), size = std::ssize(memory);
  std::int64_t end = fixed;
  for (std::int64_t at = 0; at < fixed; at += Tile::bytes) {
    tail_place const place = tail_place::of(memory.data() + at);
    bool const inside = place.distance >= fixed - at && place.distance <= size - at && place.bytes <= size - at - place.distance &&
                        size - at - place.distance - place.bytes >= tail_padding;
    if (!inside || !Tile::check(memory.data() + at, memory.data() + at + place.distance)) return status{errc::bad_format, at};
    end = std::max(end, at + place.distance + place.bytes);
  }
  return end + tail_padding;
}

}  // namespace pith
