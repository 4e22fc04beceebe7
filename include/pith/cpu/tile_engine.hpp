// SPDX-License-Identifier: Apache-2.0
// The CPU's encode and decode of tiles, where kv_cache and engines find them.
#pragma once

#include "pith/cpu/decode.hpp"
#include "pith/cpu/encode.hpp"
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

}  // namespace pith
