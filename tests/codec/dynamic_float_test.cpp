// SPDX-License-Identifier: Apache-2.0
// Lossless floats: every bit pattern, every type, both uses; kept mantissas; starts; tiles that nobody wrote.
#include <algorithm>
#include <cmath>
#include <vector>

#include "laws/inputs.hpp"
#include "pith/codec/dynamic_float.hpp"
#include "pith/codec/exponent_planes.hpp"
#include "pith/codec/exponent_rans.hpp"
#include "pith/codec/huffman.hpp"
#include "support/catch.hpp"

namespace {

using namespace pith;
using pith_test::gaussian, pith_test::random_bits;

// A tile with its tail behind it, as a container would keep it.
template <class Tile, class S>
std::vector<std::byte> packed(std::vector<S> const& rows) {
  std::vector<std::byte> bytes(static_cast<std::size_t>(Tile::bytes + Tile::tail_bound + tail_padding), std::byte{0xa5});
  std::int64_t const tail = Tile::encode(rows.data(), bytes.data(), bytes.data() + Tile::bytes);
  REQUIRE(tail <= Tile::tail_bound);
  CHECK(tail_place::of(bytes.data()).bytes == tail);
  tail_place::set_distance(bytes.data(), Tile::bytes);
  bytes.resize(static_cast<std::size_t>(Tile::bytes + tail + tail_padding));
  return bytes;
}

template <class T>
std::int64_t different(std::vector<T> const& x, std::vector<T> const& y) {
  std::int64_t count = 0;
  for (std::size_t i = 0; i < x.size(); ++i) count += float_fields<T>::bits(x[i]) != float_fields<T>::bits(y[i]);
  return count;
}

template <class Tile>
bool comes_back(std::vector<typename Tile::scalar> const& rows) {
  auto const bytes = packed<Tile>(rows);
  if (!Tile::check(bytes.data(), bytes.data() + Tile::bytes)) return false;
  std::vector<typename Tile::scalar> back(rows.size());
  Tile::decode(bytes.data(), back.data());
  return different(rows, back) == 0;
}

// All numbers of a type of 8 or 16 bits, in order and shuffled, tile by tile.
template <class Tile>
int tiles_that_differ() {
  using T = typename Tile::scalar;
  using word = typename float_fields<T>::word;
  int wrong = 0;
  for (int shuffle = 0; shuffle < 2; ++shuffle) {
    std::vector<T> all;
    int const numbers = static_cast<int>(round_up(1 << 8 * sizeof(T), Tile::count));
    for (int i = 0; i < numbers; ++i) all.push_back(float_fields<T>::number(static_cast<word>(i * (shuffle == 0 ? 1 : 40503))));
    for (int first = 0; first < numbers; first += Tile::count)
      wrong += !comes_back<Tile>({all.begin() + first, all.begin() + first + Tile::count});
  }
  return wrong;
}

template <class T, class Coder, int Channels, use Use>
using tile_of = typename dynamic_float<T, Coder>::template bind<Channels, 64, Use>;

}  // namespace

TEST_CASE("dynamic_float: every number of 8 and 16 bits comes back bit for bit", "[codec][dynamic_float]") {
  CHECK(tiles_that_differ<tile_of<bf16, exponent_window, 256, use::dot>>() == 0);
  CHECK(tiles_that_differ<tile_of<bf16, exponent_window, 96, use::mix>>() == 0);
  CHECK(tiles_that_differ<tile_of<bf16, huffman, 256, use::dot>>() == 0);
  CHECK(tiles_that_differ<tile_of<bf16, rans_exponents, 64, use::mix>>() == 0);
  CHECK(tiles_that_differ<tile_of<bf16, exponent_planes, 256, use::dot>>() == 0);
  CHECK(tiles_that_differ<tile_of<bf16, exponent_planes, 96, use::mix>>() == 0);
  CHECK(tiles_that_differ<tile_of<f16, exponent_window, 64, use::dot>>() == 0);
  CHECK(tiles_that_differ<tile_of<f16, exponent_planes, 512, use::dot>>() == 0);
  CHECK(tiles_that_differ<tile_of<f16, huffman, 32, use::mix>>() == 0);
  CHECK(tiles_that_differ<tile_of<e4m3, exponent_window, 64, use::dot>>() == 0);
  CHECK(tiles_that_differ<tile_of<e5m2, exponent_window, 64, use::mix>>() == 0);
  CHECK(tiles_that_differ<tile_of<e5m2, rans_exponents, 64, use::dot>>() == 0);
  CHECK(tiles_that_differ<tile_of<e5m2, exponent_planes, 64, use::mix>>() == 0);
}

TEST_CASE("dynamic_float: f32 comes back bit for bit, NaN payloads included", "[codec][dynamic_float]") {
  random_bits random(3);
  using tile = tile_of<float, exponent_window, 64, use::dot>;
  std::vector<float> rows(tile::count);
  for (int kind = 0; kind < 8; ++kind) {
    for (std::size_t i = 0; i < rows.size(); ++i) {
      auto const bits = static_cast<std::uint32_t>(random());
      rows[i] = kind == 0   ? bits_float(bits)
                : kind == 1 ? bits_float(0x7f800000u | (bits & 0x807fffffu))  // infinities and NaNs
                : kind == 2 ? bits_float(bits & 0x807fffffu)                  // zeros and subnormals
                : kind == 3 ? bits_float(0x80000000u)
                            : gaussian(random) * std::exp2(static_cast<float>(kind));
    }
    CHECK(comes_back<tile>(rows));
    CHECK(comes_back<tile_of<float, huffman, 64, use::mix>>(rows));
    CHECK(comes_back<tile_of<float, exponent_planes, 64, use::dot>>(rows));
  }
}

TEST_CASE("dynamic_float: rows of any scale cost the same, and what cannot be compressed grows by what is stated", "[codec][dynamic_float]") {
  using tile = tile_of<bf16, exponent_window, 256, use::dot>;
  random_bits random(5);
  std::vector<float> rows(tile::count);
  auto const bits = [&] { return 8.0 * static_cast<double>(packed<tile>(rows).size() - tail_padding) / tile::count; };
  for (float& x : rows) x = gaussian(random);
  double const even = bits();
  CHECK(even < 11.2);
  using planes = tile_of<bf16, exponent_planes, 256, use::dot>;
  CHECK(8.0 * static_cast<double>(packed<planes>(rows).size() - tail_padding) / planes::count < 10.75);
  for (int row = 0; row < 32; ++row)
    for (int c = 0; c < 256; ++c) rows[static_cast<std::size_t>(row * 256 + c)] *= std::exp2(static_cast<float>(6 * row - 100));
  CHECK(std::abs(bits() - even) < 0.01);
  std::vector<bf16> noise(tile::count);
  for (bf16& x : noise) x.bits = static_cast<std::uint16_t>(random());
  CHECK(packed<tile>(noise).size() == static_cast<std::size_t>(tile::bytes + tile::count + tail_padding));  // 19.06 bits
  CHECK(comes_back<tile>(noise));
}

TEST_CASE("dynamic_float: a kept mantissa is the nearest one, ties to even, and never a new infinity", "[codec][dynamic_float]") {
  CHECK(float_fields<bf16>::rounded<3>(0x3f88) == 0x3f80);  // 1.0625: a tie, down to even
  CHECK(float_fields<bf16>::rounded<3>(0x3f98) == 0x3fa0);  // 1.1875: a tie, up to even
  CHECK(float_fields<bf16>::rounded<0>(0x3fc1) == 0x4000);  // carries into the exponent
  CHECK(float_fields<bf16>::rounded<3>(0x7f7f) == 0x7f70);  // the largest stays finite
  CHECK(float_fields<bf16>::rounded<3>(0x7f81) == 0x7f90);  // a NaN stays one
  CHECK(float_fields<bf16>::rounded<3>(0xff80) == 0xff80);
  CHECK(float_fields<bf16>::rounded<0>(0x7fc0) == 0x7f80);  // but without a mantissa
  using three = dynamic_float<bf16, rans_exponents, 3>::bind<64, 64, use::dot>;
  using one = dynamic_float<bf16, exponent_window, 1>::bind<64, 64, use::mix>;
  random_bits random(9);
  std::vector<float> rows(three::count), back(rows.size());
  for (float& x : rows) x = gaussian(random) * std::exp2(static_cast<float>(random() % 20));
  std::vector<bf16> exact;
  for (float& x : rows) exact.push_back(from_float<bf16>(x)), x = to_float(exact.back());
  auto const check = [&]<class Tile>(Tile, int kept) {
    auto const bytes = packed<Tile>(exact);
    Tile::decode(bytes.data(), back.data());
    int far = 0;
    for (std::size_t i = 0; i < rows.size(); ++i) far += !(std::fabs(back[i] - rows[i]) <= std::ldexp(std::fabs(rows[i]), -kept - 1));
    CHECK(far == 0);
    std::vector<float> bound(rows.size());
    Tile::error_bound(rows.data(), bound.data());
    for (std::size_t i = 0; i < rows.size(); ++i) far += !(std::fabs(back[i] - rows[i]) <= bound[i]);
    CHECK(far == 0);
  };
  check(three{}, 3);
  check(one{}, 1);
  CHECK(three::rest::bytes == 512 * 4 / 8);
}

TEST_CASE("dynamic_float: numbers of other types are rounded to the tile's", "[codec][dynamic_float]") {
  using tile = tile_of<bf16, exponent_window, 64, use::dot>;
  random_bits random(11);
  std::vector<float> rows(tile::count), back(rows.size());
  for (float& x : rows) x = gaussian(random);
  rows[7] = bits_float(0x7f800001u);  // a NaN whose payload a bf16 does not hold stays a NaN
  auto const bytes = packed<tile>(rows);
  tile::decode(bytes.data(), back.data());
  int wrong = 0;
  for (std::size_t i = 0; i < rows.size(); ++i)
    wrong += i == 7 ? !is_nan(back[i]) : float_bits(back[i]) != float_bits(to_float(from_float<bf16>(rows[i])));
  CHECK(wrong == 0);
}

TEST_CASE("dynamic_float: check refuses what decode could not read", "[codec][dynamic_float][fuzz]") {
  using tile = tile_of<bf16, exponent_window, 64, use::dot>;
  random_bits random(13);
  std::vector<bf16> rows(tile::count), back(rows.size());
  int refused = 0, accepted = 0;
  for (int round = 0; round < 4000; ++round) {
    for (bf16& x : rows) x = from_float<bf16>(gaussian(random) * (random() % 50 == 0 ? 1e6f : 1.0f));
    auto bytes = packed<tile>(rows);
    std::size_t const tail = bytes.size() - static_cast<std::size_t>(tile::bytes + tail_padding);
    for (int hits = static_cast<int>(random() % 4); hits >= 0; --hits) {
      std::size_t const where = random() % 3 == 0 ? 8 + random() % 4 : 16 + random() % (bytes.size() - tail_padding - 16);
      bytes[where] = static_cast<std::byte>(random());
    }
    // What the header says may not be there.
    if (tail_place::of(bytes.data()).bytes > static_cast<std::int64_t>(tail)) continue;
    std::vector<std::byte> const copy(bytes.begin(), bytes.end());  // exactly as long, for the sanitizers
    if (!tile::check(copy.data(), copy.data() + tile::bytes)) {
      ++refused;
      continue;
    }
    ++accepted;
    tile::decode(copy.data(), back.data());
  }
  CHECK(refused > 100);
  CHECK(accepted > 100);
}
