// SPDX-License-Identifier: Apache-2.0
// The CPU's encode and decode of tiles, where kv_cache and engines find them.
#pragma once

#include "pith/cpu/bitmap_sparse_kernels.hpp"
#include "pith/cpu/decode.hpp"
#include "pith/cpu/encode.hpp"
#include "pith/cpu/encode_dynamic_float.hpp"
#include "pith/cpu/kernel.hpp"

namespace pith {

template <class Tile>
struct tile_engine<cpu, Tile> {
  template <storage_scalar T, class... State>
  static void encode(T const* rows, std::int64_t row_stride, std::byte* out, State const&... state) noexcept {
    encode_kernel<Tile>::run(rows, row_stride, out, state...);
  }
  template <storage_scalar T, class... State>
  static void decode(std::byte const* in, T* rows, std::int64_t row_stride, State const&... state) noexcept {
    decode_kernel<Tile>::run(in, rows, row_stride, state...);
  }
};

template <variable_tile Tile>
struct tile_engine<cpu, Tile> : scalar_tile_engine<Tile> {};

template <variable_tile Tile>
requires in_groups<Tile>
struct tile_engine<cpu, Tile> : scalar_tile_engine<Tile> {
  using scalar = typename Tile::scalar;

  template <dynamic_scalar T>
  static std::int64_t encode(T const* rows, std::int64_t row_stride, std::byte* out, std::byte* tail) noexcept {
    if constexpr (std::is_same_v<T, scalar> && encodes_windows<Tile>)
      return window_encoder<Tile>::run(rows, row_stride, out, tail);
    else if constexpr (std::is_same_v<T, scalar> && has_bitmap<Tile> && simd::expands_halves)
      return encode_bitmap<Tile>(rows, row_stride, out, tail);
    else
      return scalar_tile_engine<Tile>::encode(rows, row_stride, out, tail);
  }
  template <dynamic_scalar T>
  static void decode(std::byte const* in, T* rows, std::int64_t row_stride) noexcept {
    alignas(64) std::byte raw[raw_form<Tile>::bytes];
    expand_tile<Tile>(in, raw, ask_nothing{});
    if constexpr (!std::is_same_v<T, scalar>)
      decode_kernel<raw_form<Tile>>::run(raw, rows, row_stride);
    else  // bit for bit: NaNs that signal do so still
      copy_rows(raw, rows, row_stride);
  }

 private:
  static void copy_rows(std::byte const* raw, scalar* rows, std::int64_t row_stride) noexcept {
    if constexpr (Tile::used_for == use::dot && std::endian::native == std::endian::little)
      simd::transpose<Tile::channels / 2, 32>(raw, 128, reinterpret_cast<std::byte*>(rows), 2 * row_stride);
    else
      for (int t = 0; t < 32; ++t)
        for (int c = 0; c < Tile::channels; ++c)
          rows[t * row_stride + c] = scalar{static_cast<std::uint16_t>(raw_form<Tile>::layout::get(raw, t, c))};
  }
};

}  // namespace pith
