// SPDX-License-Identifier: Apache-2.0
// Pruned tiles on vectors: the codec's bytes and numbers, and the very sums of raw tiles.
#include <algorithm>
#include <vector>

#include "cpu/tailed_tile.hpp"
#include "support/catch.hpp"

namespace {

using namespace pith;
using pith_test::gaussian, pith_test::random_bits, pith_test::tailed_tile;

template <class T>
std::vector<T> numbers(int kind, std::int64_t count, random_bits& random) {
  std::vector<T> x(static_cast<std::size_t>(count));
  for (T& one : x) {
    auto const bits = static_cast<std::uint16_t>(random());
    one = from_float<T>(gaussian(random));
    if (kind == 1) one.bits = bits;                       // none is zero
    if (kind == 2) one.bits = 0;                          // all are
    if (kind == 3 && bits % 2 == 0) one.bits = 0;         // half of them
    if (kind == 4 && bits % 10 < 9) one.bits = 0;         // most
    if (kind == 5) one.bits = bits % 64 == 0 ? bits : 0;  // NaNs and infinities among them
  }
  return x;
}

template <class Tile>
int wrong_tiles() {
  using T = typename Tile::scalar;
  random_bits random(1);
  int wrong = 0;
  for (int kind = 0; kind < 6; ++kind) {
    auto const rows = numbers<T>(kind, Tile::count, random);
    tailed_tile<Tile> const right(rows);
    std::int64_t const stride = Tile::channels + 24;  // rows of a wider matrix
    std::vector<T> wide(static_cast<std::size_t>(32 * stride), T{0x1234});
    for (int t = 0; t < 32; ++t) std::copy_n(rows.begin() + t * Tile::channels, Tile::channels, wide.begin() + t * stride);

    std::vector<std::byte> made(static_cast<std::size_t>(Tile::bytes + Tile::tail_bound + tail_padding));
    std::int64_t const tail = tile_engine<cpu, Tile>::encode(wide.data(), stride, made.data(), made.data() + Tile::bytes);
    tail_place::set_distance(made.data(), Tile::bytes);
    made.resize(static_cast<std::size_t>(Tile::bytes + tail));
    wrong += made.size() + tail_padding != right.bytes.size() || !std::equal(made.begin(), made.end(), right.bytes.begin());

    std::vector<T> back(wide.size(), T{0x1234});
    tile_engine<cpu, Tile>::decode(right.bytes.data(), back.data(), stride);
    for (std::size_t i = 0; i < back.size(); ++i) wrong += back[i].bits != (wide[i].bits == 0x8000 ? 0 : wide[i].bits);
    std::vector<float> floats(rows.size());
    tile_engine<cpu, Tile>::decode(right.bytes.data(), floats.data(), Tile::channels);
    for (std::size_t i = 0; i < rows.size(); ++i) wrong += !is_nan(floats[i]) && floats[i] != to_float(rows[i]);
  }
  return wrong;
}

template <class Tile, class Accuracy, int M>
bool same_sums() {
  random_bits random(7);
  auto const rows = numbers<typename Tile::scalar>(3, Tile::count, random);
  return pith_test::same_sums<Tile, Accuracy, M>(rows, random);
}

template <class T, int Channels, use Use>
using tile_of = bitmap_sparse_tile<T, Channels, Use>;

}  // namespace

TEST_CASE("pruned tiles: vectors write the codec's bytes and read every number bit for bit", "[cpu][bitmap_sparse]") {
  CHECK(wrong_tiles<tile_of<bf16, 256, use::dot>>() == 0);
  CHECK(wrong_tiles<tile_of<bf16, 96, use::mix>>() == 0);
  CHECK(wrong_tiles<tile_of<f16, 96, use::dot>>() == 0);
  CHECK(wrong_tiles<tile_of<f16, 32, use::mix>>() == 0);
}

TEST_CASE("pruned tiles: dot and mix are those of raw tiles, bit for bit", "[cpu][bitmap_sparse]") {
  CHECK(same_sums<tile_of<bf16, 256, use::dot>, integer_accuracy, 1>());
  CHECK(same_sums<tile_of<bf16, 96, use::dot>, exact_accuracy, 1>());
  CHECK(same_sums<tile_of<bf16, 64, use::dot>, integer_accuracy, 4>());
  CHECK(same_sums<tile_of<bf16, 64, use::mix>, integer_accuracy, 2>());
  CHECK(same_sums<tile_of<f16, 64, use::dot>, exact_accuracy, 2>());
  CHECK(same_sums<tile_of<f16, 64, use::mix>, exact_accuracy, 1>());
}
