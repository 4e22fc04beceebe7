// SPDX-License-Identifier: Apache-2.0
// Packed tiles for the tests of dot and mix blocks, what they decode to, and how large a product of their codes can be.
#pragma once

#include <cmath>
#include <vector>

#include "pith/codec/block_float.hpp"
#include "pith/codec/integer.hpp"
#include "pith/codec/raw.hpp"
#include "pith/cuda/tile_stage.hpp"

namespace pith_test {

template <class Tile>
class some_tiles {
 public:
  // rows [count * tokens][channels]
  some_tiles(std::vector<float> const& rows, int count) : storage_(static_cast<std::size_t>(count * Tile::bytes + 64)), decoded(rows.size()) {
    data = reinterpret_cast<std::byte*>((reinterpret_cast<std::uintptr_t>(storage_.data()) + 63) / 64 * 64);
    for (int i = 0; i < count; ++i) {
      Tile::encode(rows.data() + i * Tile::tokens * Tile::channels, data + i * Tile::bytes);
      Tile::decode(data + i * Tile::bytes, decoded.data() + i * Tile::tokens * Tile::channels);
    }
  }

  // A product of codes is as large as the scale allows, however small the number is.
  double spread(int token, int channel) const {
    double sum = std::fabs(static_cast<double>(decoded[static_cast<std::size_t>(token * Tile::channels + channel)]));
    if constexpr (pith::device::is_integer_tile<Tile>) {
      using scalar = typename Tile::scale_type;
      std::byte const* const at = data + token / Tile::tokens * Tile::bytes + Tile::scale_at;
      sum += 2.0 * Tile::middle * static_cast<double>(pith::load_scalar<scalar>(at + Tile::parameter_index(token % Tile::tokens, channel) * static_cast<std::int64_t>(sizeof(scalar))));
    }
    return sum;
  }

 private:
  std::vector<std::byte> storage_;

 public:
  std::byte* data = nullptr;
  std::vector<float> decoded;
};

// Of a product: how far Terms numbers of T are from what they stand for.
template <class T>
constexpr double relative_error(int terms) {
  return std::is_same_v<T, pith::bf16> ? (terms == 2 ? 0x1p-16 : 0x1p-8) : terms == 2 ? 0x1p-20 : 0x1p-11;
}

}  // namespace pith_test
