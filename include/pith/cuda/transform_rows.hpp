// SPDX-License-Identifier: Apache-2.0
// Linear maps of the rows of a tile in shared memory, by a block of threads: the numbers of the transforms' own functions, bit for bit.
//
//   transform_rows<Tile, Count, Threads>(t, thread, rows, pitch, state)      as encode applies them
//   restore_rows<Tile, Count, Threads>(t, thread, rows, pitch, state)        after decoding
//
// Count rows lie `pitch` floats apart, a multiple of 4. A barrier stands before the call, and the caller puts one behind it.
//
// hadamard: strides 1 to 8 in the registers of a thread that has 16 neighbours, then 8 quads of channels that lie 16, 128, ... apart. Lanes
// run over rows, so that a pitch of an odd number of quads has no bank conflicts. Other transforms: a warp for each row.
//
// cost  hadamard<128>, 13 instructions a number on sm_80, of which 7 add and 1 multiplies
#pragma once

#include "pith/cuda/transform.hpp"

namespace pith::device {

template <class Transform>
struct block_transform {
  static constexpr bool exists = false;
};

template <int N>
  requires(N >= 16 && N <= 1024)
struct block_transform<hadamard<N>> {
  static constexpr bool exists = true;

  // limit: numbers of larger magnitude, infinities and NaN go through admit.
  template <int Channels, int Count, int Threads, class Thread, class Admit>
  PITH_HD static void apply(Thread& t, int thread, float* rows, int pitch, float limit, Admit const& admit) {
    for_each_item<Count * (Channels / 16), Threads>(thread, [&](int i) {
      float* const at = rows + i % Count * pitch + i / Count * 16;
      float x[16];
      PITH_UNROLL for (int k = 0; k < 16; k += 4) {
        quad const four = load_quad(at + k);
        PITH_UNROLL for (int j = 0; j < 4; ++j) x[k + j] = four.at[j];
      }
      float worst = 0;
      PITH_UNROLL for (int k = 0; k < 16; ++k) worst = max_or_nan(worst, magnitude(x[k]));
      if (!(worst <= limit))
        PITH_UNROLL for (int k = 0; k < 16; ++k) x[k] = admit(x[k]);
      PITH_UNROLL for (int apart = 1; apart < 16; apart *= 2)
        PITH_UNROLL for (int k = 0; k < 16; ++k)
          if ((k & apart) == 0) butterfly(x[k], x[k + apart]);
      PITH_UNROLL for (int k = 0; k < 16; k += 4) store_quad(at + k, scaled<16>({{x[k], x[k + 1], x[k + 2], x[k + 3]}}));
    });
    later<Channels, Count, Threads, 16>(t, thread, rows, pitch);
  }

 private:
  PITH_HD static void butterfly(float& low, float& high) {
    float const a = low, b = high;
    low = add_rn(a, b);
    high = sub_rn(a, b);
  }
  // Behind the last stage only.
  template <int Done>
  PITH_HD static quad scaled(quad x) {
    if constexpr (Done == N) {
      constexpr float scale = hadamard<N>::scale;
      PITH_UNROLL for (int j = 0; j < 4; ++j) x.at[j] = mul_rn(x.at[j], scale);
    }
    return x;
  }

  // The stages from Stride on.
  template <int Channels, int Count, int Threads, int Stride, class Thread>
  PITH_HD static void later(Thread& t, int thread, float* rows, int pitch) {
    if constexpr (Stride < N) {
      constexpr int points = N / Stride < 8 ? N / Stride : 8;
      t.sync();
      for_each_item<Count * (Channels / 4 / points), Threads>(thread, [&](int i) {
        int const item = i / Count;
        float* const at = rows + i % Count * pitch + item / (Stride / 4) * (Stride * points) + item % (Stride / 4) * 4;
        quad x[points];
        PITH_UNROLL for (int k = 0; k < points; ++k) x[k] = load_quad(at + k * Stride);
        PITH_UNROLL for (int apart = 1; apart < points; apart *= 2)
          PITH_UNROLL for (int k = 0; k < points; ++k)
            if ((k & apart) == 0)
              PITH_UNROLL for (int j = 0; j < 4; ++j) butterfly(x[k].at[j], x[k + apart].at[j]);
        PITH_UNROLL for (int k = 0; k < points; ++k) store_quad(at + k * Stride, scaled<Stride * points>(x[k]));
      });
      later<Channels, Count, Threads, Stride * points>(t, thread, rows, pitch);
    }
  }
};

template <class Tile, int Count, int Threads, class Thread>
PITH_HD inline void transform_rows(Thread& t, int thread, float* rows, int pitch, [[maybe_unused]] state_of<Tile> const& state) {
  if constexpr (is_transformed<Tile>) {
    using transform = typename Tile::transform;
    constexpr auto admit = [](float x) { return Tile::admitted(x); };
    if constexpr (block_transform<transform>::exists) {
      constexpr float limit = Tile::nan == nan_policy::propagate ? 0x1.fffffep127f : 0x1p115f;
      block_transform<transform>::template apply<Tile::channels, Count, Threads>(t, thread, rows, pitch, limit, admit);
    } else {
      with_outer<Tile>(state, [&](auto const&... outer) {
        for (int r = t.warp(); r < Count; r += Threads / warp_lanes)
          warp_transform<transform>::template apply<Tile::channels>(
              t, rows + r * pitch, [](float x) { return Tile::admitted(x); }, outer...);
      });
    }
    if constexpr (is_transformed<typename Tile::inner>) {
      t.sync();
      with_inner<Tile>(state,
                       [&](auto const& inner) { transform_rows<typename Tile::inner, Count, Threads>(t, thread, rows, pitch, inner); });
    }
  }
}

template <class Tile, int Count, int Threads, class Thread>
PITH_HD inline void restore_rows(Thread& t, int thread, float* rows, int pitch, [[maybe_unused]] state_of<Tile> const& state) {
  if constexpr (is_transformed<Tile>) {
    using transform = typename Tile::transform;
    if constexpr (is_transformed<typename Tile::inner>) {
      with_inner<Tile>(state,
                       [&](auto const& inner) { restore_rows<typename Tile::inner, Count, Threads>(t, thread, rows, pitch, inner); });
      t.sync();
    }
    if constexpr (block_transform<transform>::exists) {
      block_transform<transform>::template apply<Tile::channels, Count, Threads>(t, thread, rows, pitch, 0x1.fffffep127f,
                                                                                 [](float x) { return x; });
    } else {
      with_outer<Tile>(state, [&](auto const&... outer) {
        for (int r = t.warp(); r < Count; r += Threads / warp_lanes)
          warp_transform<transform>::template undo<Tile::channels>(t, rows + r * pitch, outer...);
      });
    }
  }
}

}  // namespace pith::device
