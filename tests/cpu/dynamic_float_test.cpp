// SPDX-License-Identifier: Apache-2.0
// Lossless tiles on vectors: the codec's bytes, every number bit for bit, and the very sums of raw tiles.
#include <algorithm>
#include <vector>

#include "cpu/tailed_tile.hpp"
#include "pith/codec/exponent_rans.hpp"
#include "pith/codec/huffman.hpp"
#include "support/catch.hpp"

namespace {

using namespace pith;
using pith_test::gaussian, pith_test::random_bits, pith_test::tailed_tile;

std::vector<bf16> numbers(int kind, std::int64_t count, random_bits& random) {
  std::vector<bf16> x(static_cast<std::size_t>(count));
  for (bf16& one : x) {
    auto const bits = static_cast<std::uint16_t>(random());
    one = from_float<bf16>(gaussian(random) * (kind == 1 && bits % 16 == 0 ? 1e20f : 1.0f));
    if (kind == 2) one.bits = bits;                                   // more escapes than a tail holds
    if (kind == 3) one.bits = bits & 0x8000u;                         // zeros of both signs
    if (kind == 4 && bits % 8 == 0) one.bits = bits | 0x7f80u;        // infinities and NaNs
    if (kind == 5) one.bits = static_cast<std::uint16_t>(bits & 0x807fu);  // subnormals
  }
  return x;
}

template <class Tile>
int wrong_tiles() {
  random_bits random(1);
  int wrong = 0;
  for (int kind = 0; kind < 6; ++kind) {
    auto const rows = numbers(kind, Tile::count, random);
    tailed_tile<Tile> const right(rows);
    std::int64_t const stride = Tile::channels + 24;  // rows of a wider matrix
    std::vector<bf16> wide(static_cast<std::size_t>(32 * stride), bf16{0x1234});
    for (int t = 0; t < 32; ++t) std::copy_n(rows.begin() + t * Tile::channels, Tile::channels, wide.begin() + t * stride);

    std::vector<std::byte> fixed(static_cast<std::size_t>(Tile::bytes)), tail(static_cast<std::size_t>(Tile::tail_bound + tail_padding));
    std::int64_t const bytes = tile_engine<cpu, Tile>::encode(wide.data(), stride, fixed.data(), tail.data());
    tail_place::set_distance(fixed.data(), Tile::bytes);
    wrong += bytes != right.tail || !std::equal(fixed.begin(), fixed.end(), right.bytes.begin()) ||
             !std::equal(tail.begin(), tail.begin() + right.tail, right.bytes.begin() + Tile::bytes);

    std::vector<bf16> back(wide.size(), bf16{0x1234});
    tile_engine<cpu, Tile>::decode(right.bytes.data(), back.data(), stride);
    wrong += back != wide;
    std::vector<float> numbers(rows.size());
    tile_engine<cpu, Tile>::decode(right.bytes.data(), numbers.data(), Tile::channels);
    for (std::size_t i = 0; i < rows.size(); ++i) wrong += float_bits(numbers[i]) != float_bits(to_float(rows[i]));
  }
  return wrong;
}

template <class Tile, class Accuracy, int M>
bool same_sums() {
  random_bits random(7);
  auto const rows = numbers(0, Tile::count, random);
  return pith_test::same_sums<Tile, Accuracy, M>(rows, random);
}

template <class Coder, int Channels, use Use>
using tile_of = bf16_tile<Coder, Channels, Use>;

}  // namespace

TEST_CASE("lossless tiles: vectors write the codec's bytes and read every number bit for bit", "[cpu][dynamic_float]") {
  CHECK(wrong_tiles<tile_of<exponent_window, 256, use::dot>>() == 0);
  CHECK(wrong_tiles<tile_of<exponent_window, 96, use::dot>>() == 0);
  CHECK(wrong_tiles<tile_of<exponent_window, 64, use::mix>>() == 0);
  CHECK(wrong_tiles<tile_of<exponent_planes, 256, use::dot>>() == 0);
  CHECK(wrong_tiles<tile_of<exponent_planes, 96, use::mix>>() == 0);
  CHECK(wrong_tiles<tile_of<huffman, 64, use::dot>>() == 0);
  CHECK(wrong_tiles<tile_of<rans_exponents, 96, use::mix>>() == 0);
}

TEST_CASE("lossless tiles: dot and mix are those of raw tiles, bit for bit", "[cpu][dynamic_float]") {
  CHECK(same_sums<tile_of<exponent_window, 256, use::dot>, integer_accuracy, 1>());
  CHECK(same_sums<tile_of<exponent_window, 256, use::dot>, exact_accuracy, 1>());
  CHECK(same_sums<tile_of<exponent_window, 64, use::dot>, integer_accuracy, 4>());
  CHECK(same_sums<tile_of<exponent_window, 64, use::dot>, exact_accuracy, 4>());
  CHECK(same_sums<tile_of<exponent_planes, 256, use::dot>, exact_accuracy, 1>());
  CHECK(same_sums<tile_of<exponent_planes, 64, use::dot>, integer_accuracy, 4>());
  CHECK(same_sums<tile_of<exponent_planes, 64, use::mix>, exact_accuracy, 1>());
  CHECK(same_sums<tile_of<huffman, 64, use::dot>, integer_accuracy, 2>());
  CHECK(same_sums<tile_of<exponent_window, 64, use::mix>, integer_accuracy, 2>());
  CHECK(same_sums<tile_of<rans_exponents, 64, use::mix>, exact_accuracy, 1>());
}
