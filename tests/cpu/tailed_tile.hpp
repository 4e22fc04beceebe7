// SPDX-License-Identifier: Apache-2.0
// A tile of variable rate with its tail behind it, and its products beside those of the raw tile of the same numbers.
#pragma once

#include <vector>

#include "laws/inputs.hpp"
#include "pith/pith.hpp"

namespace pith_test {

template <class Tile>
struct tailed_tile {
  using scalar = typename Tile::scalar;
  std::vector<std::byte> bytes;
  std::int64_t tail;

  explicit tailed_tile(std::vector<scalar> const& rows)
      : bytes(static_cast<std::size_t>(Tile::bytes + Tile::tail_bound + pith::tail_padding)),
        tail(Tile::encode(rows.data(), bytes.data(), bytes.data() + Tile::bytes)) {
    pith::tail_place::set_distance(bytes.data(), Tile::bytes);
    bytes.resize(static_cast<std::size_t>(Tile::bytes + tail + pith::tail_padding));
  }
};

// Whether dot or mix of M rows over the tile and over the raw one give the same bits.
template <class Tile, class Accuracy, int M>
bool same_sums(std::vector<typename Tile::scalar> const& rows, random_bits& random) {
  using raw_tile = pith::raw_form<Tile>;
  tailed_tile<Tile> const tile(rows);
  std::vector<float> floats(rows.size());
  for (std::size_t i = 0; i < rows.size(); ++i) floats[i] = pith::to_float(rows[i]);
  alignas(64) std::byte raw_bytes[raw_tile::bytes];
  raw_tile::encode(floats.data(), raw_bytes);
  constexpr bool dots = Tile::used_for == pith::use::dot;
  constexpr int in = dots ? Tile::channels : 32, out = dots ? 32 : Tile::channels;
  alignas(64) float x[M][in];
  std::vector<float> packed(M * out), plain(M * out);
  for (auto& row : x)
    for (float& one : row) one = gaussian(random);
  if constexpr (dots) {
    using packed_dot = pith::dot_kernel<Tile, Accuracy, M>;
    static typename packed_dot::query q;
    packed_dot::prepare(x[0], q);
    packed_dot::run(tile.bytes.data(), q, packed.data(), out);
    pith::dot_kernel<raw_tile, Accuracy, M>::run(raw_bytes, q, plain.data(), out);
  } else {
    pith::mix_kernel<Tile, Accuracy, M>::run(tile.bytes.data(), x[0], in, packed.data());
    pith::mix_kernel<raw_tile, Accuracy, M>::run(raw_bytes, x[0], in, plain.data());
  }
  return packed == plain;
}

}  // namespace pith_test
