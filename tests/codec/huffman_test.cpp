// SPDX-License-Identifier: Apache-2.0
#include "pith/codec/huffman.hpp"

#include <algorithm>
#include <array>
#include <numeric>
#include <utility>
#include <vector>

#include "support/catch.hpp"
#include "support/digest.hpp"

namespace {

using namespace pith;
using pith_test::random_bits;

std::vector<std::uint8_t> lengths_of(std::vector<std::uint32_t> const& counts) {
  std::vector<std::uint8_t> lengths(counts.size());
  huffman_lengths(counts.data(), static_cast<int>(counts.size()), lengths.data());
  return lengths;
}

std::uint64_t cost(std::vector<std::uint32_t> const& counts, std::vector<std::uint8_t> const& lengths) {
  return std::inner_product(counts.begin(), counts.end(), lengths.begin(), std::uint64_t{0});
}

// The least cost of all codes of at most 12 bits, tried one by one. counts: from the most frequent on; `open` nodes are at this depth.
std::uint64_t least_cost(std::vector<std::uint32_t> const& counts, std::size_t given, std::size_t open, int depth) {
  std::size_t const left = counts.size() - given;
  if (open > left || (open < left && depth == 12)) return ~std::uint64_t{0};
  if (open == left)
    return std::accumulate(counts.begin() + static_cast<std::ptrdiff_t>(given), counts.end(), std::uint64_t{0}) *
           static_cast<std::uint64_t>(depth);
  std::uint64_t best = ~std::uint64_t{0}, sum = 0;
  for (std::size_t leaves = 0; leaves < open; ++leaves) {
    std::uint64_t const rest = least_cost(counts, given + leaves, 2 * (open - leaves), depth + 1);
    if (rest != ~std::uint64_t{0}) best = std::min(best, sum * static_cast<std::uint64_t>(depth) + rest);
    sum += counts[given + leaves];
  }
  return best;
}

}  // namespace

TEST_CASE("huffman_lengths: no code of at most 12 bits is cheaper", "[codec][huffman]") {
  random_bits random(3);
  for (int round = 0; round < 60; ++round) {
    std::vector<std::uint32_t> counts(2 + random() % 15);
    std::uint32_t a = 1, b = 1;
    for (auto& c : counts) {
      c = round % 3 == 0 ? a : round % 3 == 1 ? 1 + static_cast<std::uint32_t>(random() % 9) : 1u << random() % 16;
      a = std::exchange(b, a + b);
    }
    std::sort(counts.rbegin(), counts.rend());
    auto const lengths = lengths_of(counts);
    CAPTURE(round, counts.size());
    CHECK(huffman_complete(lengths.data(), static_cast<int>(lengths.size())));
    CHECK(cost(counts, lengths) == least_cost(counts, 0, 1, 0));
  }
}

TEST_CASE("huffman_lengths: two symbols, all 256 of them, and counts that ask for longer codes", "[codec][huffman][edge]") {
  CHECK(lengths_of({1, 1000000}) == std::vector<std::uint8_t>{1, 1});
  CHECK(lengths_of(std::vector<std::uint32_t>(256, 5)) == std::vector<std::uint8_t>(256, 8));
  std::vector<std::uint32_t> counts(256, 1);
  for (std::size_t i = 0; i < 20; ++i) counts[i] = 1u << i;
  auto const lengths = lengths_of(counts);
  CHECK(huffman_complete(lengths.data(), 256));
  CHECK(*std::max_element(lengths.begin(), lengths.end()) == 12);
}

TEST_CASE("huffman_complete: every 12 bits begin with one code", "[codec][huffman]") {
  std::array<std::uint8_t, 4> lengths{1, 2, 3, 3};
  CHECK(huffman_complete(lengths.data(), 4));
  CHECK_FALSE(huffman_complete(lengths.data(), 3));
  for (int const wrong : {0, 1, 2, 4, 13, 15}) {
    lengths[3] = static_cast<std::uint8_t>(wrong);
    CHECK_FALSE(huffman_complete(lengths.data(), 4));
  }
}

TEST_CASE("huffman: chunks decoded each for itself in two phases give what the host's decoder gives", "[codec][huffman]") {
  using tile = huffman::bind<8192>;
  random_bits random(5);
  for (int round = 0; round < 24; ++round) {
    std::vector<std::uint8_t> symbols(8192);
    std::uint64_t const spread = 1 + static_cast<std::uint64_t>(round);  // from one chunk to a tile that is nearly raw
    for (auto& s : symbols) s = static_cast<std::uint8_t>(random() % (random() % 7 ? spread : 3 * spread));
    if (round == 0) std::fill(symbols.begin(), symbols.end() - 1, std::uint8_t{9});
    std::vector<std::byte> tail(tile::tail_bound);
    std::int64_t const bytes = tile::encode(symbols.data(), nullptr, tail.data());
    CAPTURE(round, bytes);
    REQUIRE(tail[0] == std::byte{2});
    tail.resize(static_cast<std::size_t>(bytes) + 64, std::byte{0x5a});
    huffman_layout at;
    REQUIRE(at.load(tail.data(), bytes));
    huffman_table table;
    at.fill(table);

    std::vector<int> places(static_cast<std::size_t>(at.chunks) + 1);
    for (int chunk = 0; chunk < at.chunks; ++chunk)
      places[static_cast<std::size_t>(chunk) + 1] =
          places[static_cast<std::size_t>(chunk)] + count_chunk(at.stream, chunk, at.gaps[chunk], table);
    CHECK(places.back() >= 8192);  // with what the bits behind the last symbol look like
    CHECK(places[places.size() - 2] <= 8192);
    std::vector<std::uint8_t> chunked(8192), host(8192 + 64);
    for (int chunk = at.chunks; chunk-- > 0;)  // in any order
      decode_chunk(at.stream, chunk, at.gaps[chunk], table, places[static_cast<std::size_t>(chunk)], 8192, chunked.data());
    CHECK((chunked == symbols));
    tile::decode(nullptr, tail.data(), bytes, host.data());
    host.resize(8192);
    CHECK((host == chunked));
  }
}

TEST_CASE("huffman: chunks of any bytes that check passes stay inside the tail's 64 bytes more and the tile", "[codec][huffman][hostile]") {
  using tile = huffman::bind<1024>;
  random_bits random(9);
  int passed = 0;
  for (int round = 0; round < 400; ++round) {
    std::vector<std::uint8_t> symbols(1024);
    for (auto& s : symbols) s = static_cast<std::uint8_t>(random() % 3 ? random() % 3 : random() % 20);
    std::vector<std::byte> tail(tile::tail_bound);
    std::int64_t const bytes = tile::encode(symbols.data(), nullptr, tail.data());
    for (int flips = 0; flips < 3; ++flips)
      tail[random() % static_cast<std::uint64_t>(bytes)] ^= static_cast<std::byte>(1u << random() % 8);
    if (!tile::check(nullptr, tail.data(), bytes) || tail[0] != std::byte{2}) continue;
    ++passed;
    std::vector<std::byte> const exact = [&] {  // nothing more: the sanitizers see a read behind it
      tail.resize(static_cast<std::size_t>(bytes) + 64, static_cast<std::byte>(random()));
      return tail;
    }();
    huffman_layout at;
    REQUIRE(at.load(exact.data(), bytes));
    huffman_table table;
    at.fill(table);
    std::vector<std::uint8_t> out(1024);
    for (int chunk = 0, place = 0; chunk < at.chunks; ++chunk) {
      int const number = count_chunk(at.stream, chunk, at.gaps[chunk], table);
      CHECK(number <= 8 * huffman_chunk);
      decode_chunk(at.stream, chunk, at.gaps[chunk], table, place, 1024, out.data());
      place += number;
    }
  }
  CHECK(passed > 20);
}

TEST_CASE("huffman: a tile by hand", "[codec][huffman]") {
  using tile = huffman::bind<1024>;
  std::vector<std::uint8_t> symbols(1024, 0x80);  // exponents 1, 0 and 2: one run
  for (std::size_t i = 0; i < 1024; i += 4) symbols[i] = i % 8 ? 0x01 : 0x00;
  std::vector<std::byte> tail(tile::tail_bound);
  std::int64_t const bytes = tile::encode(symbols.data(), nullptr, tail.data());
  // 1280 bits: 160 bytes, 5 chunks, runs of 2, 2, 1 and none. Lengths of 00, 80, 01: 2, 1, 2; codes 80: 0, 00: 10, 01: 11.
  REQUIRE(bytes == 10 + 3 + 2 + 3 + 160);
  std::vector<int> const head = {2, 0, 160, 0, 409 & 255, 409 >> 8, 819 & 255, 819 >> 8, 0, 4, 1, 0, 2, 0x12, 0x02, 0x10, 0x00, 0x00};
  for (std::size_t i = 0; i < head.size(); ++i) {
    CAPTURE(i);
    CHECK(static_cast<int>(tail[i]) == head[i]);
  }
  CHECK(tail[18] == std::byte{0b10000110});  // 00 80 80 80 01 80
}
