// SPDX-License-Identifier: Apache-2.0
// Pruned tiles: every bit pattern but -0, both uses, what they cost, tiles that nobody wrote.
#include "pith/codec/bitmap_sparse.hpp"

#include <algorithm>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "laws/inputs.hpp"
#include "support/catch.hpp"

namespace {

using namespace pith;
using pith_test::gaussian, pith_test::random_bits;

// A tile with its tail behind it, as a container would keep it.
template <class Tile, class S>
std::vector<std::byte> packed(std::vector<S> const& rows) {
  std::vector<std::byte> bytes(static_cast<std::size_t>(Tile::bytes + Tile::tail_bound), std::byte{0xa5});
  std::int64_t const tail = Tile::encode(rows.data(), bytes.data(), bytes.data() + Tile::bytes);
  REQUIRE(tail <= Tile::tail_bound);
  CHECK(tail_place::of(bytes.data()).bytes == tail);
  CHECK(tail_place::of(bytes.data()).distance == 0);
  tail_place::set_distance(bytes.data(), Tile::bytes);
  bytes.resize(static_cast<std::size_t>(Tile::bytes + tail));
  return bytes;
}

template <class T, int Channels, use Use>
using tile_of = typename bitmap_sparse<T>::template bind<Channels, 64, Use>;

// All 65536 numbers, in order and shuffled: those that come back otherwise.
template <class Tile>
std::vector<unsigned> changed() {
  using T = typename Tile::scalar;
  std::vector<unsigned> wrong;
  std::vector<T> rows(Tile::count), back(Tile::count);
  for (unsigned step : {1u, 40503u})
    for (unsigned first = 0; first < 65536; first += Tile::count) {
      for (unsigned i = 0; i < Tile::count; ++i) rows[i].bits = static_cast<std::uint16_t>((first + i) * step);
      auto const bytes = packed<Tile>(rows);
      if (!Tile::check(bytes.data(), bytes.data() + Tile::bytes)) FAIL("refused");
      Tile::decode(bytes.data(), back.data());
      for (std::size_t i = 0; i < rows.size(); ++i)
        if (back[i].bits != rows[i].bits) wrong.push_back(rows[i].bits << 16 | back[i].bits);
    }
  return wrong;
}

}  // namespace

TEST_CASE("bitmap_sparse: every number comes back bit for bit, but -0 as +0", "[codec][bitmap_sparse]") {
  std::vector<unsigned> const expected(2, 0x80000000u);
  CHECK(changed<tile_of<bf16, 256, use::dot>>() == expected);
  CHECK(changed<tile_of<bf16, 64, use::mix>>() == expected);
  CHECK(changed<tile_of<f16, 32, use::dot>>() == expected);
  CHECK(changed<tile_of<f16, 128, use::mix>>() == expected);
}

TEST_CASE("bitmap_sparse: a number takes a bit and a sixteenth, and two bytes if it is not zero", "[codec][bitmap_sparse]") {
  using tile = tile_of<bf16, 256, use::dot>;
  CHECK(tile::bytes == 64 + 1024);
  std::vector<float> rows(tile::count);
  CHECK(packed<tile>(rows).size() == tile::bytes);
  rows[77] = -0.0f;
  rows[78] = 1e-45f;  // rounds to zero
  CHECK(packed<tile>(rows).size() == tile::bytes);
  for (std::size_t i = 0; i < rows.size(); i += 2) rows[i] = 1;
  CHECK(packed<tile>(rows).size() == tile::bytes + 2 * tile::count / 2);
  std::fill(rows.begin(), rows.end(), -1.0f);
  CHECK(packed<tile>(rows).size() == static_cast<std::size_t>(tile::bytes + tile::tail_bound));
}

TEST_CASE("bitmap_sparse: the order of numbers is that of a raw tile's halves", "[codec][bitmap_sparse]") {
  auto const check = [&]<class Tile>(Tile) {
    using raw_tile = typename raw<bf16>::template bind<Tile::channels, 64, Tile::used_for>;
    random_bits random(3);
    std::vector<float> rows(Tile::count);
    for (float& x : rows) x = random() % 3 == 0 ? to_float(from_float<bf16>(gaussian(random))) : 0.0f;
    std::vector<std::byte> raw_bytes(static_cast<std::size_t>(raw_tile::bytes));
    raw_tile::encode(rows.data(), raw_bytes.data());
    auto const bytes = packed<Tile>(rows);
    std::size_t next = static_cast<std::size_t>(Tile::bytes);
    int wrong = 0;
    for (int k = 0; k < Tile::count; ++k) {
      auto const half = load_le<std::uint16_t>(raw_bytes.data() + 2 * k);
      wrong += Tile::is_stored(bytes.data(), k) != (half != 0);
      if (half == 0) continue;
      wrong += next + 2 > bytes.size() || load_le<std::uint16_t>(bytes.data() + next) != half;
      next += 2;
    }
    CHECK(wrong == 0);
    CHECK(next == bytes.size());
  };
  check(tile_of<bf16, 96, use::dot>{});
  check(tile_of<bf16, 96, use::mix>{});
}

TEST_CASE("bitmap_sparse: numbers of other types are rounded to the tile's, within error_bound", "[codec][bitmap_sparse]") {
  using tile = tile_of<f16, 32, use::dot>;
  random_bits random(5);
  std::vector<float> rows(tile::count), back(rows.size()), bound(rows.size());
  for (float& x : rows) x = random() % 2 == 0 ? gaussian(random) : 0.0f;
  rows[0] = 1e6f, rows[1] = 1e-9f, rows[2] = bits_float(0x7fc00000u);
  auto const bytes = packed<tile>(rows);
  tile::decode(bytes.data(), back.data());
  tile::error_bound(rows.data(), bound.data());
  int wrong = 0;
  for (std::size_t i = 3; i < rows.size(); ++i) {
    wrong += back[i] != to_float(from_float<f16>(rows[i]));
    wrong += !((back[i] < rows[i] ? rows[i] - back[i] : back[i] - rows[i]) <= bound[i]);
  }
  CHECK(wrong == 0);
  CHECK(float_bits(back[0]) == 0x7f800000u);
  CHECK(back[1] == 0.0f);
  CHECK(bound[1] == 1e-9f);
  CHECK(is_nan(back[2]));
}

TEST_CASE("bitmap_sparse: check takes any bitmap whose bits are as many as the tail's numbers, and decode reads it",
          "[codec][bitmap_sparse][fuzz]") {
  using tile = tile_of<bf16, 32, use::dot>;
  random_bits random(7);
  std::vector<bf16> rows(tile::count), back(rows.size());
  int refused = 0, accepted = 0;
  for (int round = 0; round < 2000; ++round) {
    for (bf16& x : rows) x.bits = static_cast<std::uint16_t>(random() % 2 == 0 ? random() : 0);
    auto bytes = packed<tile>(rows);
    auto const tail = static_cast<std::int64_t>(bytes.size()) - tile::bytes;
    if (round % 2 == 0) {  // as many bits at other places
      for (int i = 0; i < 20; ++i) {
        auto const a = static_cast<std::size_t>(tile::bitmap_at) + random() % (tile::count / 8),
                   b = static_cast<std::size_t>(tile::bitmap_at) + random() % (tile::count / 8);
        std::swap(bytes[a], bytes[b]);
      }
    } else {
      bytes[round % 4 == 1 ? 8 : static_cast<std::size_t>(tile::bitmap_at) + random() % (tile::count / 8)] ^=
          static_cast<std::byte>(1 + random() % 255);
    }
    if (tail_place::of(bytes.data()).bytes > tail) continue;  // what the header says is not there
    if (!tile::check(bytes.data(), bytes.data() + tile::bytes)) {
      ++refused;
      continue;
    }
    ++accepted;
    tile::decode(bytes.data(), back.data());
  }
  CHECK(refused > 100);
  CHECK(accepted > 1000);
}

TEST_CASE("golden: bitmap_sparse makes the bytes of an independent implementation", "[golden][bitmap_sparse]") {
  auto const file = [](std::string const& name) {
    std::ifstream in(PITH_SOURCE_DIR "/tests/golden/" + name, std::ios::binary);
    std::string const text{std::istreambuf_iterator<char>(in), {}};
    std::vector<std::byte> bytes(text.size());
    std::transform(text.begin(), text.end(), bytes.begin(), [](char c) { return static_cast<std::byte>(c); });
    return bytes;
  };
  auto const rows_bytes = file("rows_64.f32");
  std::vector<float> rows;
  for (std::size_t i = 0; i < 32 * 64; ++i) {
    float const x = load_scalar<float>(rows_bytes.data() + 4 * i);
    rows.push_back(x > 0.5f || x < -0.5f ? x : float_bits(x) % 2 == 0 ? 0.0f : -0.0f);
  }
  auto const check = [&]<class Tile>(Tile, char const* name) {
    INFO(name);
    std::vector<std::byte> bytes(static_cast<std::size_t>(Tile::bytes + Tile::tail_bound));
    bytes.resize(static_cast<std::size_t>(Tile::bytes + Tile::encode(rows.data(), bytes.data(), bytes.data() + Tile::bytes)));
    CHECK((bytes == file(name)));
  };
  check(tile_of<bf16, 64, use::dot>{}, "bitmap_sparse_bf16_64_dot.bin");
  check(tile_of<bf16, 64, use::mix>{}, "bitmap_sparse_bf16_64_mix.bin");
  check(tile_of<f16, 64, use::dot>{}, "bitmap_sparse_f16_64_dot.bin");
  check(tile_of<f16, 64, use::mix>{}, "bitmap_sparse_f16_64_mix.bin");
}
