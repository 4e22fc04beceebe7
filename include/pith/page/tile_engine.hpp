// SPDX-License-Identifier: Apache-2.0
// Where a backend plugs its own encode and decode of tiles in: it specialises tile_engine for its tag.
//
//   tile_engine<cpu, Tile>::encode(rows, row_stride, out)     the bytes of Tile::encode
//   tile_engine<cpu, Tile>::decode(in, rows, row_stride)      the numbers of Tile::decode, rounded to T
//
// rows [token][channel] of f32, bf16 or f16; row_stride in elements. A tile with calibrated numbers takes its state last. Without a specialisation the scalar codec is used.
#pragma once

#include <cstddef>
#include <cstdint>

#include "pith/core/float_fields.hpp"

namespace pith {

template <class Tile>
struct scalar_tile_engine {
  static constexpr int numbers = Tile::tokens * Tile::channels;

  template <storage_scalar T, class... State>
  static void encode(T const* rows, std::int64_t row_stride, std::byte* out, State const&... state) noexcept {
    float buffer[numbers];
    for (int t = 0; t < Tile::tokens; ++t)
      for (int c = 0; c < Tile::channels; ++c) buffer[t * Tile::channels + c] = to_float(rows[t * row_stride + c]);
    Tile::encode(buffer, out, state...);
  }
  template <storage_scalar T, class... State>
  static void decode(std::byte const* in, T* rows, std::int64_t row_stride, State const&... state) noexcept {
    float buffer[numbers];
    Tile::decode(in, buffer, state...);
    for (int t = 0; t < Tile::tokens; ++t)
      for (int c = 0; c < Tile::channels; ++c) rows[t * row_stride + c] = from_float<T>(buffer[t * Tile::channels + c]);
  }
};

// A tile of variable rate also takes the place of its tail, and gives the tail's bytes back.
template <class Tile>
  requires requires { Tile::tail_bound; }
struct scalar_tile_engine<Tile> {
  template <dynamic_scalar T>
  static std::int64_t encode(T const* rows, std::int64_t row_stride, std::byte* out, std::byte* tail) noexcept {
    T buffer[Tile::tokens * Tile::channels];
    for (int t = 0; t < Tile::tokens; ++t)
      for (int c = 0; c < Tile::channels; ++c) buffer[t * Tile::channels + c] = rows[t * row_stride + c];
    return Tile::encode(buffer, out, tail);
  }
  template <dynamic_scalar T>
  static void decode(std::byte const* in, T* rows, std::int64_t row_stride) noexcept {
    T buffer[Tile::tokens * Tile::channels];
    Tile::decode(in, buffer);
    for (int t = 0; t < Tile::tokens; ++t)
      for (int c = 0; c < Tile::channels; ++c) rows[t * row_stride + c] = buffer[t * Tile::channels + c];
  }
};

template <class Backend, class Tile>
struct tile_engine : scalar_tile_engine<Tile> {};

}  // namespace pith
