// SPDX-License-Identifier: Apache-2.0
#include "pith/codec/exponent_rans.hpp"

#include <algorithm>
#include <bit>
#include <vector>

#include "support/catch.hpp"
#include "support/digest.hpp"

namespace {

using namespace pith;
using pith_test::random_bits;

constexpr int count = 4096, lanes = 32;
using tile = rans_exponents::bind<count>;

// As a warp does it: all lanes take a symbol, then those that need a byte take it by their rank among the lanes below.
std::vector<std::uint8_t> decode_as_warp(std::vector<std::byte> const& tail, std::int64_t bytes) {
  std::uint32_t slots[256], x[lanes];
  std::byte const* at = tail.data() + load_rans_slots(tail.data(), slots);
  for (int lane = 0; lane < lanes; ++lane) x[lane] = load_le<std::uint16_t>(at + 2 * lane);
  at += 2 * lanes;
  int const escapes = load_le<std::uint16_t>(tail.data() + 2), tail_steps = static_cast<int>(tail[0]) - 2, steps = count / lanes;
  std::byte const* escaped = tail.data() + bytes - escapes;
  std::vector<std::uint8_t> out(count);
  for (int t = 0; t < steps; ++t) {
    std::uint32_t ballot = 0, escape = 0;
    for (int lane = 0; lane < lanes; ++lane) {
      std::uint32_t const slot = slots[x[lane] & 255u];
      out[static_cast<std::size_t>(lanes * t + lane)] = static_cast<std::uint8_t>(slot);
      escape |= std::uint32_t{escapes > 0 && (slot & 255u) == static_cast<std::uint32_t>(tail[1])} << lane;
      ballot |= std::uint32_t{rans_take(x[lane], slot) && t < steps - tail_steps} << lane;
    }
    for (int lane = 0; lane < lanes; ++lane) {
      std::uint32_t const below = (1u << lane) - 1u;
      if (ballot >> lane & 1) x[lane] = x[lane] << 8 | static_cast<std::uint32_t>(at[std::popcount(ballot & below)]);
      if (escape >> lane & 1)
        out[static_cast<std::size_t>(lanes * t + lane)] = static_cast<std::uint8_t>(escaped[std::popcount(escape & below)]);
    }
    at += std::popcount(ballot);
    escaped += std::popcount(escape);
  }
  CHECK(at == tail.data() + bytes - escapes);
  CHECK(escaped == tail.data() + bytes);
  return out;
}

}  // namespace

TEST_CASE("rans_exponents: 32 lanes with ballot and popcount decode what was encoded", "[codec][rans]") {
  random_bits random(1);
  for (int round = 0; round < 20; ++round) {
    std::vector<std::uint8_t> symbols(count), host(count + 64);
    std::uint64_t const spread = 2 + static_cast<std::uint64_t>(round);
    for (auto& s : symbols) {
      std::uint64_t const r = random();
      s = static_cast<std::uint8_t>(r % 2 ? 0 : r % 512 == 2 ? random() : random() % spread << 7 | random() % spread >> 1);
    }
    std::vector<std::byte> tail(tile::tail_bound + 64);
    std::int64_t const bytes = tile::encode(symbols.data(), nullptr, tail.data());
    REQUIRE(static_cast<int>(tail[0]) >= 2);
    CAPTURE(round, bytes);
    CHECK((decode_as_warp(tail, bytes) == symbols));
    tile::decode(nullptr, tail.data(), bytes, host.data());
    host.resize(count);
    CHECK((host == symbols));
  }
}

TEST_CASE("rans_exponents: rare symbols share an entry, a single rare one has its own", "[codec][rans]") {
  std::vector<std::uint8_t> symbols(count, 0x80);
  for (std::size_t i = 0; i < count; i += 2) symbols[i] = 0;
  std::vector<std::byte> tail(tile::tail_bound);
  symbols[77] = 0x33;
  (void)tile::encode(symbols.data(), nullptr, tail.data());
  CHECK(load_le<std::uint16_t>(tail.data() + 2) == 0);
  CHECK(load_symbols(tail.data() + 4, 257).number == 3);
  symbols[78] = 0x44;
  symbols[79] = 0x33;
  std::int64_t const bytes = tile::encode(symbols.data(), nullptr, tail.data());
  CHECK(load_le<std::uint16_t>(tail.data() + 2) == 3);
  CHECK(tail[1] == std::byte{0x33});
  CHECK(load_symbols(tail.data() + 4, 257).number == 2);
  std::vector<int> last;
  for (int i = 3; i > 0; --i) last.push_back(static_cast<int>(tail[static_cast<std::size_t>(bytes - i)]));
  CHECK(last == std::vector<int>{0x33, 0x44, 0x33});
}

TEST_CASE("symbol sets: runs in the order of exponents, over the end of the order", "[codec][rans]") {
  std::byte stored[257];
  auto stored_of = [&](std::vector<std::uint8_t> const& symbols) {
    symbol_set const made = store_symbols([&](int s) { return std::count(symbols.begin(), symbols.end(), s) > 0; }, stored);
    CHECK(made.number == static_cast<int>(symbols.size()));
    symbol_set const again = load_symbols(stored, made.bytes);
    CHECK(again.number == made.number);
    CHECK(again.bytes == made.bytes);
    CHECK(load_symbols(stored, made.bytes - 1).number == 0);
    std::vector<std::uint8_t> back;
    each_symbol(stored, [&](int i, std::uint8_t s) {
      CHECK(i == static_cast<int>(back.size()));
      back.push_back(s);
    });
    CHECK(back == symbols);
    return made.bytes;
  };
  CHECK(stored_of({0x7f, 0xff, 0x00, 0x80, 0x01}) == 3);
  CHECK(stored_of({0x00, 0x80, 0x02}) == 5);
  CHECK(stored_of({0xff}) == 3);
  std::vector<std::uint8_t> all, every_second;
  for (int i = 0; i < 256; ++i) all.push_back(symbol_at(i));
  for (int i = 0; i < 128; ++i) every_second.push_back(static_cast<std::uint8_t>(i));
  CHECK(stored_of(all) == 3);
  CHECK(stored_of(every_second) == 257);
  stored[0] = std::byte{0};
  CHECK(load_symbols(stored, 257).number == 0);
  std::byte const too_many[] = {std::byte{2}, std::byte{0}, std::byte{255}, std::byte{9}, std::byte{0}};
  CHECK(load_symbols(too_many, 5).number == 0);
}
