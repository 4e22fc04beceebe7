// SPDX-License-Identifier: Apache-2.0
// W x on tensor cores, over packed weights: the 32 rows of a block of W times 8 NT Chunks rows of x.
//
//   step      what a block of threads multiplies at once: one panel (of raw weights a piece of it) of `warps` neighbouring blocks of 32 rows,
//             a warp each, with the x of that panel for all of them
//   order     the steps of a row group follow each other, the row groups one after the other; a block takes a run of `run` steps in this
//             order, wherever row groups begin and end, so that every block has the same work
//   partial   [block + row group][row of x][row of W]: what a run adds to a row group. linear_merge.hpp adds them up, in order
//
// x lies in memory as dot_block reads it (linear_x_kernel writes it), so that weights and x take the same way: copied into a ring of `stages`
// steps in the background, one barrier a step.
//
// error   dot_block.hpp's for each step, whose part of x has a power of two of its own; sums over steps in f32, in order
// cost    every weight is read once, every x once for `warps` blocks of rows (from the second cache level)
#pragma once

#include "pith/core/view.hpp"
#include "pith/cuda/dot_block.hpp"
#include "pith/cuda/linear_feed.hpp"
#include "pith/cuda/transform.hpp"
#include "pith/linear/linear_engine.hpp"

namespace pith::device {

// What a product over such tiles needs of a block, for Chunks times 8 NT rows of x: chunks take turns, so that registers hold 8 NT.
template <class Tile, int NT, int Chunks, int Terms>
struct linear_form {
  using feed = linear_feed<Tile>;
  using storage = typename feed::storage;
  using dot = dot_block<storage, NT, Terms>;
  using query = query_block<storage, NT, Terms>;
  static constexpr int pieces = feed::pieces;
  static constexpr int rows = 8 * NT * Chunks;
  static constexpr int x_bytes = Chunks * query::bytes;

  // Two blocks on a multiprocessor hide each other's barriers, if registers allow; else one with as many warps as can be, which share x.
  static constexpr int all_shared = most_shared_bytes;
  static constexpr int half_shared = 80 << 10;  // what two can have on one multiprocessor of sm_80
  static constexpr int wanted_shared = NT >= 4 ? all_shared : half_shared;
  static constexpr int bytes(int warps) { return warps * feed::ring_bytes + x_bytes; }
  static constexpr int least(int warps) { return 2 * bytes(warps) + warps * feed::own_bytes; }
  static constexpr bool fits = least(1) <= all_shared;
  static constexpr int warps = [] {
    for (int const room : {wanted_shared, all_shared})
      for (int w = 8; w > (room == all_shared ? 1 : 2); w /= 2)
        if (least(w) <= room) return w;
    return 1;
  }();
  static constexpr int stages = [] {
    int const room = least(warps) <= wanted_shared ? wanted_shared : all_shared, most = (room - warps * feed::own_bytes) / bytes(warps);
    return most > 4 ? 4 : most < 2 ? 2 : most;
  }();
  static constexpr int stage_bytes = bytes(warps);
  static constexpr int own_at = stages * stage_bytes;  // what warps have beside the ring
  static constexpr int shared_bytes = own_at + warps * feed::own_bytes;
  // On a multiprocessor; one that has room for one only takes the others afterwards.
  static constexpr int min_blocks = warps <= 4 || (shared_bytes <= half_shared && NT < 4) ? 2 : 1;
  static constexpr int group_rows = block_tokens * warps;
};

template <class Tile, int NT, int Chunks, int Terms>
struct linear_kernel {
  using form = linear_form<Tile, NT, Chunks, Terms>;
  using dot = typename form::dot;
  using query = typename form::query;
  using feed = typename form::feed;
  static constexpr int threads = form::warps * warp_lanes;
  static constexpr int min_blocks = form::min_blocks;
  static constexpr int shared_bytes = form::shared_bytes;

  typename feed::matrix weights;
  std::byte const* x;           // [step of a row group][chunk] query blocks
  float* partial;
  std::int64_t steps;           // of all row groups
  std::int64_t run;             // of a block
  std::int32_t row_blocks;      // of 32 rows
  std::int32_t steps_of_group;  // panels times pieces
  std::int32_t batch;           // rows of x

  template <device_like Thread>
  PITH_HD void operator()(Thread& t) const {
    std::int64_t const first = t.block_x() * run;
    int left = static_cast<int>(first + run < steps ? run : steps - first), wanted = left;
    place now{static_cast<int>(first / steps_of_group), static_cast<int>(first % steps_of_group)};
    source ahead{now, {}, nullptr};
    typename feed::reader reader;
    find(t, ahead);
    PITH_UNROLL for (int i = 0; i < form::stages - 1; ++i) start(t, i, ahead, wanted);
    float sums[Chunks][2][NT][4] = {};
    int ring = 0;
    while (left > 0) {
      t.template wait<form::stages - 2>();
      t.sync();  // everyone's copies are here, and everyone is done with the step before
      start(t, ring == 0 ? form::stages - 1 : ring - 1, ahead, wanted);
      bool const mine = now.group * form::warps + t.warp() < row_blocks;  // there may be none behind the last rows
      if (mine) {
        std::byte* const stage = t.shared() + ring * form::stage_bytes;
        add(t, reader.view(t, weights, stage + t.warp() * feed::ring_bytes, own_of(t), piece_of(t, now)), stage + form::warps * feed::ring_bytes, sums);
      }
      ring = ring + 1 == form::stages ? 0 : ring + 1;
      --left;
      bool const last = ++now.step == steps_of_group;
      if (last || left == 0) {
        if (mine) save(t, now.group, sums);
        PITH_UNROLL for (int c = 0; c < Chunks; ++c)
          PITH_UNROLL for (int h = 0; h < 2; ++h)
            PITH_UNROLL for (int n = 0; n < NT; ++n)
              PITH_UNROLL for (int r = 0; r < 4; ++r) sums[c][h][n][r] = 0;
      }
      if (last) now.step = 0, ++now.group;
    }
    t.template wait<0>();
  }

 private:
  struct place {
    int group, step;  // step counts in its row group
  };
  struct source {
    place at;
    feed weights;  // this warp's; none behind the last rows
    std::byte const* x;
  };
  template <class Thread>
  PITH_HD static std::byte* own_of(Thread& t) {
    return t.shared() + form::own_at + t.warp() * feed::own_bytes;
  }
  template <class Thread>
  PITH_HD std::int64_t piece_of(Thread& t, place const& at) const {
    return static_cast<std::int64_t>((at.group * form::warps + t.warp()) / feed::blocks) * steps_of_group + at.step;
  }
  template <class Thread>
  PITH_HD void find(Thread& t, source& s) const {
    s.weights.from = nullptr;
    if (s.at.group * form::warps + t.warp() < row_blocks) s.weights.seek(t, weights, piece_of(t, s.at));
    s.x = x + static_cast<std::int64_t>(s.at.step) * form::x_bytes;
  }

  // The copies of one step, if there is one, as a group of their own: a warp's weights, and its share of x. Then on to the next step.
  template <class Thread>
  PITH_HD void start(Thread& t, int ring, source& from, int& wanted) const {
    if (wanted > 0) {
      std::byte* const to = t.shared() + ring * form::stage_bytes;
      if (from.weights.from != nullptr)
        from.weights.start(t, weights, to + t.warp() * feed::ring_bytes, own_of(t),
                           feed::blocks == 1 ? 0 : (from.at.group * form::warps + t.warp()) % feed::blocks);
      constexpr int granules = form::x_bytes / 16;
      int const thread = thread_of(t);
      PITH_UNROLL for (int base = 0; base < granules; base += threads) if (granules % threads == 0 || base + thread < granules)
          t.copy16(to + form::warps * feed::ring_bytes + 16 * (base + thread), from.x + 16 * (base + thread));
      from.x += form::x_bytes;
      if (++from.at.step == steps_of_group) {
        from.at.step = 0, ++from.at.group;
        find(t, from);
      }
      --wanted;
    }
    t.commit();
  }

  template <class Thread, class View>
  PITH_HD void add(Thread& t, View const& own, std::byte const* queries, float (&sums)[Chunks][2][NT][4]) const {
    for (int chunk = 0; chunk == 0 || 8 * NT * chunk < batch; ++chunk, queries += query::bytes) {  // not unrolled: registers are for one
      float s[2][NT][4] = {};
      dot::run(t, own, queries, s);
      PITH_UNROLL for (int n = 0; n < NT; ++n) {
        word2 const factor = load_word<word2>(queries + query::factor_at(8 * n + 2 * (t.lane() % 4)));
        PITH_UNROLL for (int c = 0; c < Chunks; ++c)
          if (c == chunk)
            PITH_UNROLL for (int h = 0; h < 2; ++h)
              PITH_UNROLL for (int r = 0; r < 4; ++r) sums[c][h][n][r] += bits_float(factor.at[r % 2]) * s[h][n][r];
      }
      if (Chunks == 1) break;
    }
  }

  template <class Thread>
  PITH_HD void save(Thread& t, int group, float const (&sums)[Chunks][2][NT][4]) const {
    float* const to = partial + (t.block_x() + group) * batch * form::group_rows + block_tokens * t.warp() +
                      dot::operand::first_row(t.lane() / 4);
    PITH_UNROLL for (int c = 0; c < Chunks; ++c)
      PITH_UNROLL for (int n = 0; n < NT; ++n)
        PITH_UNROLL for (int i = 0; i < 2; ++i) {
          int const row = 8 * (c * NT + n) + 2 * (t.lane() % 4) + i;
          if (row < batch)
            store_word(reinterpret_cast<std::byte*>(to + row * form::group_rows),
                       word4{{float_bits(sums[c][0][n][i]), float_bits(sums[c][0][n][2 + i]), float_bits(sums[c][1][n][i]),
                              float_bits(sums[c][1][n][2 + i])}});
        }
  }
};

// Lays x down as steps read it: a warp takes one row of one panel, transforms it as the weights were, and rounds it.
template <class Tile, int NT, int Chunks, int Terms, class X>
struct linear_x_kernel {
  using form = linear_form<Tile, NT, Chunks, Terms>;
  using query = typename form::query;
  static constexpr int warps = 8, threads = warps * warp_lanes;
  static constexpr int row_bytes = static_cast<int>(round_up(4 * Tile::channels, 128));
  static constexpr int shared_bytes = warps * row_bytes;

  tensor_view<X const, 2, space::device> x;
  std::byte* to;

  // Grid: x panels, y rows in eights, those that are not there included.
  template <device_like Thread>
  PITH_HD void operator()(Thread& t) const {
    auto* const row = reinterpret_cast<float*>(t.shared() + t.warp() * row_bytes);
    std::int64_t const panel = t.block_x();
    int const number = static_cast<int>(t.block_y()) * warps + t.warp();
    for_each_of_lane<Tile::channels>(t.lane(), [&](int, int c) {
      std::int64_t const column = panel * Tile::channels + c;
      row[c] = number < x.extent[0] && column < x.extent[1] ? to_float(x.data[number * x.stride[0] + column * x.stride[1]]) : 0.0f;
    });
    t.sync_warp();
    transform_query<Tile>(t, row, {});
    std::byte* block = to + panel * form::pieces * form::x_bytes + number / (8 * NT) * query::bytes;
    for (int piece = 0; piece < form::pieces; ++piece, block += form::x_bytes)
      query::write(t, block, number % (8 * NT), row + piece * form::storage::channels, 1.0f);
  }
};

}  // namespace pith::device
