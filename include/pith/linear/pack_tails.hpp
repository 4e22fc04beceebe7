// SPDX-License-Identifier: Apache-2.0
// Packing a matrix into tiles of variable rate: fixed parts first, in the order of other tiles, then all tails, row block by row block.
//
// One pass over the matrix: fixed parts go to their places, the tails of every row block to memory aside, and from there behind the fixed
// parts when all are known. Bytes do not depend on the executor. Until then the tails take up to twice their memory.
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

  std::int64_t fixed_bytes() const noexcept { return blocks_ * panels_ * Tile::bytes; }

  // Bytes that the packed matrix is likely to fit into: tails a sixteenth longer than those of the first row block.
  std::int64_t likely_bytes() const noexcept {
    std::int64_t const tails = measured(0) * blocks_;
    return fixed_bytes() + tails + tails / 16 + tail_padding;
  }

  // Bytes of the packed matrix, of which nothing is written.
  template <executor Executor>
  result<std::int64_t> measure(Executor&& run) noexcept {
    if (status const ok = reserve(); !ok) return ok;
    run.for_each(blocks_, [&](std::int64_t block) { tails_[block].size = measured(block); });
    return place();
  }

  // Fixed parts into fixed_bytes() bytes; gives the bytes of the packed matrix.
  //
  // errors  out_of_memory  for the tails; `at` is bytes wanted for those of a row block, or for what is kept of every row block
  template <executor Executor>
  result<std::int64_t> encode(std::byte* data, Executor&& run) noexcept {
    if (status const ok = reserve(); !ok) return ok;
    run.for_each(blocks_, [&](std::int64_t block) {
      row_block_tails& tails = tails_[block];
      for (std::int64_t panel = 0; panel < panels_ && tails.fits(); ++panel)
        tails.size += encode(block, panel, data + (block * panels_ + panel) * Tile::bytes, tails.bytes.get() + tails.size);
    });
    for (std::int64_t block = 0; block < blocks_; ++block)
      if (tails_[block].bytes == nullptr) return status{errc::out_of_memory, tails_[block].capacity};
    return place();
  }

  // Tails behind the fixed parts, which now are in `bytes` bytes, as many as encode said.
  template <executor Executor>
  void write_tails(std::byte* data, std::int64_t bytes, Executor&& run) const noexcept {
    run.for_each(blocks_, [&](std::int64_t block) {
      std::byte* const to = data + tails_[block].place;
      std::copy_n(tails_[block].bytes.get(), tails_[block].size, to);
      std::int64_t before = 0;
      for (std::int64_t panel = 0; panel < panels_; ++panel) {
        std::byte* const fixed = data + (block * panels_ + panel) * Tile::bytes;
        tail_place::set_distance(fixed, to + before - fixed);
        before += tail_place::of(fixed).bytes;
      }
    });
    std::fill_n(data + bytes - tail_padding, tail_padding, std::byte{0});
  }

 private:
  struct row_block_tails {
    std::unique_ptr<std::byte[]> bytes;
    std::int64_t size = 0, capacity = 0, place = 0;

    // Another tail; if memory for it was not to be had, `bytes` is empty.
    bool fits() noexcept {
      std::int64_t const wanted = size + Tile::tail_bound + tail_padding;
      if (wanted <= capacity) return true;
      capacity = wanted + size / 2 + Tile::tail_bound;
      std::unique_ptr<std::byte[]> larger(new (std::nothrow) std::byte[static_cast<std::size_t>(capacity)]);
      if (larger != nullptr) std::copy_n(bytes.get(), size, larger.get());
      bytes = std::move(larger);
      return bytes != nullptr;
    }
  };

  status reserve() noexcept {
    tails_.reset(new (std::nothrow) row_block_tails[static_cast<std::size_t>(blocks_)]);
    if (tails_ == nullptr) return {errc::out_of_memory, static_cast<std::int64_t>(sizeof(row_block_tails)) * blocks_};
    return {};
  }
  std::int64_t measured(std::int64_t block) const noexcept {
    alignas(64) std::byte fixed[Tile::bytes];
    std::byte tail[Tile::tail_bound + tail_padding];
    std::int64_t bytes = 0;
    for (std::int64_t panel = 0; panel < panels_; ++panel) bytes += encode(block, panel, fixed, tail);
    return bytes;
  }
  std::int64_t place() noexcept {
    std::int64_t at = fixed_bytes();
    for (std::int64_t block = 0; block < blocks_; ++block) {
      tails_[block].place = at;
      at += tails_[block].size;
    }
    return at + tail_padding;
  }
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
  std::unique_ptr<row_block_tails[]> tails_;
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
