// SPDX-License-Identifier: Apache-2.0
// Linear maps of rows in shared memory, one warp for each row: the numbers of the transforms' own functions, bit for bit.
//
//   transform_row<Tile>(t, row, state)      T x, as encode applies it (numbers that are not finite count as zero under saturation)
//   restore_row<Tile>(t, row, state)        T^-1 y, after decoding
//   transform_query<Tile>(t, row, state)    T^-t q
//   restore_output<Tile>(t, row, state)     as restore_row: of sums of rows
//
// A row is Tile::channels floats. All lanes of a warp call together; the row is written and seen by the warp before the call, and is so
// behind it. Many rows at once: transform_rows.hpp.
//
// order   a butterfly's sums are one fixed tree: lane l holds channels l, l + 32, ..., so that strides below 32 are shuffles and the others
//         stay in a lane. rotate adds in double, where products are exact, in ascending order. Any other transform runs in one lane
// cost    hadamard<128>, a row: 20 shuffles, 32 additions and multiplications, 8 accesses
#pragma once

#include "pith/codec/balance.hpp"
#include "pith/codec/hadamard.hpp"
#include "pith/codec/permute.hpp"
#include "pith/codec/pipe.hpp"
#include "pith/codec/rotate.hpp"
#include "pith/cuda/rounded.hpp"
#include "pith/cuda/thread.hpp"

namespace pith::device {

// f(k, c) for the channels c = lane + 32 k of a lane.
template <int Channels, class F>
PITH_HD inline void for_each_of_lane(int lane, F const& f) {
  PITH_UNROLL for (int k = 0; k < (Channels + warp_lanes - 1) / warp_lanes; ++k) {
    int const c = lane + warp_lanes * k;
    if (Channels % warp_lanes == 0 || c < Channels) f(k, c);
  }
}
template <int Channels>
inline constexpr int held_by_lane = (Channels + warp_lanes - 1) / warp_lanes;

// admit(x) is what a number counts as on its way in.
template <class Transform>
struct warp_transform {
  template <int Channels, class Thread, class Admit, class... State>
  PITH_HD static void apply(Thread& t, float* row, Admit const& admit, State const&... state) {
    for_each_of_lane<Channels>(t.lane(), [&](int, int c) { row[c] = admit(row[c]); });
    t.sync_warp();
    if (t.lane() == 0) Transform::template apply<Channels>(row, state...);
    t.sync_warp();
  }
  template <int Channels, class Thread, class... State>
  PITH_HD static void undo(Thread& t, float* row, State const&... state) {
    if (t.lane() == 0) Transform::template undo<Channels>(row, state...);
    t.sync_warp();
  }
  template <int Channels, class Thread, class... State>
  PITH_HD static void for_query(Thread& t, float* row, State const&... state) {
    if (t.lane() == 0) Transform::template for_query<Channels>(row, state...);
    t.sync_warp();
  }
};

template <int N>
struct warp_transform<hadamard<N>> {
  template <int Channels, class Thread, class Admit>
  PITH_HD static void apply(Thread& t, float* row, Admit const& admit) {
    constexpr int held = held_by_lane<Channels>;
    float x[held] = {};
    int const lane = t.lane();
    for_each_of_lane<Channels>(lane, [&](int k, int c) { x[k] = admit(row[c]); });
    shuffled<1, held>(t, x);
    PITH_UNROLL for (int apart = 1; apart < N / warp_lanes; apart *= 2)
      PITH_UNROLL for (int k = 0; k < held; ++k)
        if ((k & apart) == 0 && k + apart < held) {
          float const a = x[k], b = x[k + apart];
          x[k] = add_rn(a, b);
          x[k + apart] = sub_rn(a, b);
        }
    constexpr float scale = hadamard<N>::scale;
    for_each_of_lane<Channels>(lane, [&](int k, int c) { row[c] = mul_rn(x[k], scale); });
    t.sync_warp();
  }
  template <int Channels, class Thread>
  PITH_HD static void undo(Thread& t, float* row) {
    apply<Channels>(t, row, [](float x) { return x; });
  }

 private:
  // Neighbours Stride lanes apart: a + b in the lower one, a - b in the upper one.
  template <int Stride, int Held, class Thread>
  PITH_HD static void shuffled(Thread& t, float (&x)[Held]) {
    if constexpr (Stride < N && Stride < warp_lanes) {
      float const sign = (t.lane() & Stride) != 0 ? -1.0f : 1.0f;
      PITH_UNROLL for (int k = 0; k < Held; ++k) x[k] = add_signed(t.shuffle_xor(x[k], Stride), x[k], sign);
      shuffled<2 * Stride, Held>(t, x);
    }
  }
};

template <>
struct warp_transform<permute> {
  template <int Channels, class Thread, class Admit>
  PITH_HD static void apply(Thread& t, float* row, Admit const& admit, permutation<Channels> const& p) {
    float x[held_by_lane<Channels>] = {};
    for_each_of_lane<Channels>(t.lane(), [&](int k, int c) { x[k] = admit(row[p.order[c]]); });
    t.sync_warp();
    for_each_of_lane<Channels>(t.lane(), [&](int k, int c) { row[c] = x[k]; });
    t.sync_warp();
  }
  template <int Channels, class Thread>
  PITH_HD static void undo(Thread& t, float* row, permutation<Channels> const& p) {
    float x[held_by_lane<Channels>] = {};
    for_each_of_lane<Channels>(t.lane(), [&](int k, int c) { x[k] = row[c]; });
    t.sync_warp();
    for_each_of_lane<Channels>(t.lane(), [&](int k, int c) { row[p.order[c]] = x[k]; });
    t.sync_warp();
  }
};

template <>
struct warp_transform<balance> {
  template <int Channels, class Thread, class Admit>
  PITH_HD static void apply(Thread& t, float* row, Admit const& admit, channel_scales<Channels> const& s) {
    for_each_of_lane<Channels>(t.lane(), [&](int, int c) { row[c] = mul_rn(admit(row[c]), s.inverse[c]); });
    t.sync_warp();
  }
  template <int Channels, class Thread>
  PITH_HD static void undo(Thread& t, float* row, channel_scales<Channels> const& s) {
    for_each_of_lane<Channels>(t.lane(), [&](int, int c) {
      float const limit = s.scale[c] > 1 ? mul_rn(0x1p127f, s.inverse[c]) : 0x1.fp127f, x = row[c];
      row[c] = mul_rn(is_finite(x) ? between(x, -limit, limit) : x, s.scale[c]);
    });
    t.sync_warp();
  }
  template <int Channels, class Thread>
  PITH_HD static void for_query(Thread& t, float* row, channel_scales<Channels> const& s) {
    for_each_of_lane<Channels>(t.lane(), [&](int, int c) { row[c] = mul_rn(row[c], s.scale[c]); });
    t.sync_warp();
  }
};

template <>
struct warp_transform<rotate> {
  template <int Channels, class Thread, class Admit>
  PITH_HD static void apply(Thread& t, float* row, Admit const& admit, rotation<Channels> const& r) {
    sums<Channels>(t, row, [&](int c, int from) { return static_cast<double>(r.column[from][c]) * admit(row[from]); });
  }
  template <int Channels, class Thread>
  PITH_HD static void undo(Thread& t, float* row, rotation<Channels> const& r) {
    sums<Channels>(t, row, [&](int c, int from) { return static_cast<double>(r.column[c][from]) * row[from]; });
  }

 private:
  template <int Channels, class Thread, class Product>
  PITH_HD static void sums(Thread& t, float* row, Product const& product) {
    double sum[held_by_lane<Channels>] = {};
    for (int from = 0; from < Channels; ++from) {
      for_each_of_lane<Channels>(t.lane(), [&](int k, int c) { sum[k] += product(c, from); });
      settle(sum);
    }
    t.sync_warp();
    for_each_of_lane<Channels>(t.lane(), [&](int k, int c) { row[c] = static_cast<float>(sum[k]); });
    t.sync_warp();
  }
};

// f(the transform's state if it has any...), and g(what stands behind it, its state)
template <class Tile, class F>
PITH_HD inline void with_outer(state_of<Tile> const& state, F const& f) {
  if constexpr (Tile::has_outer)
    f(Tile::outer_of(state));
  else
    f();
}
template <class Tile, class G>
PITH_HD inline void with_inner(state_of<Tile> const& state, G const& g) {
  if constexpr (is_calibrated<typename Tile::inner>)
    g(Tile::inner_of(state));
  else
    g(no_state{});
}

template <class Tile, class Thread>
PITH_HD inline void transform_row(Thread& t, float* row, [[maybe_unused]] state_of<Tile> const& state) {
  if constexpr (is_transformed<Tile>) {
    with_outer<Tile>(state, [&](auto const&... outer) {
      warp_transform<typename Tile::transform>::template apply<Tile::channels>(t, row, [](float x) { return Tile::admitted(x); }, outer...);
    });
    with_inner<Tile>(state, [&](auto const& inner) { transform_row<typename Tile::inner>(t, row, inner); });
  }
}

template <class Tile, class Thread>
PITH_HD inline void restore_row(Thread& t, float* row, [[maybe_unused]] state_of<Tile> const& state) {
  if constexpr (is_transformed<Tile>) {
    with_inner<Tile>(state, [&](auto const& inner) { restore_row<typename Tile::inner>(t, row, inner); });
    with_outer<Tile>(
        state, [&](auto const&... outer) { warp_transform<typename Tile::transform>::template undo<Tile::channels>(t, row, outer...); });
  }
}
template <class Tile, class Thread>
PITH_HD inline void restore_output(Thread& t, float* row, state_of<Tile> const& state) {
  restore_row<Tile>(t, row, state);
}

// T^-t q of one transform, which is T q where T is orthogonal.
template <class Transform, int Channels, class Thread, class... State>
PITH_HD inline void turn_query(Thread& t, float* row, State const&... state) {
  if constexpr (requires { Transform::template for_query<Channels>(row, state...); })
    warp_transform<Transform>::template for_query<Channels>(t, row, state...);
  else
    warp_transform<Transform>::template apply<Channels>(t, row, [](float x) { return x; }, state...);
}
template <class Tile, class Thread>
PITH_HD inline void transform_query(Thread& t, float* row, [[maybe_unused]] state_of<Tile> const& state) {
  if constexpr (is_transformed<Tile>) {
    with_outer<Tile>(state, [&](auto const&... outer) { turn_query<typename Tile::transform, Tile::channels>(t, row, outer...); });
    with_inner<Tile>(state, [&](auto const& inner) { transform_query<typename Tile::inner>(t, row, inner); });
  }
}

}  // namespace pith::device
