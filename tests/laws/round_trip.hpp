// SPDX-License-Identifier: Apache-2.0
// A tile's rows as bytes, and bytes as rows.
#pragma once

#include <cstddef>
#include <vector>

namespace pith_test {

template <class Tile>
std::vector<std::byte> encoded(std::vector<float> const& rows) {
  std::vector<std::byte> bytes(static_cast<std::size_t>(Tile::bytes));
  Tile::encode(rows.data(), bytes.data());
  return bytes;
}

template <class Tile>
std::vector<float> decoded(std::vector<std::byte> const& bytes) {
  std::vector<float> rows(static_cast<std::size_t>(Tile::tokens) * Tile::channels);
  Tile::decode(bytes.data(), rows.data());
  return rows;
}

}  // namespace pith_test
