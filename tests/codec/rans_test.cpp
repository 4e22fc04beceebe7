// SPDX-License-Identifier: Apache-2.0
#include "pith/codec/rans.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "support/catch.hpp"
#include "support/digest.hpp"

namespace {

using namespace pith;
using pith_test::random_bits;

constexpr int bits = 12;

// A source: how often each symbol occurs among `number` draws.
std::vector<std::uint8_t> draws(std::vector<double> const& weights, std::size_t number, std::uint64_t seed) {
  double const total = std::accumulate(weights.begin(), weights.end(), 0.0);
  random_bits random(seed);
  std::vector<std::uint8_t> out(number);
  for (auto& symbol : out) {
    double left = static_cast<double>(random() >> 11) * 0x1p-53 * total;
    std::size_t s = 0;
    while (s + 1 < weights.size() && left >= weights[s]) left -= weights[s++];
    symbol = static_cast<std::uint8_t>(s);
  }
  return out;
}

struct model {
  std::vector<std::uint16_t> frequencies;
  std::vector<rans_symbol> symbols;
  std::vector<std::uint8_t> slots;

  explicit model(std::vector<std::uint32_t> const& counts) : frequencies(counts.size()), symbols(counts.size()) {
    REQUIRE(rans_frequencies<bits>(counts, frequencies));
    for (std::size_t s = 0; s < counts.size(); ++s) {
      symbols[s] = {frequencies[s], static_cast<std::uint16_t>(slots.size())};
      slots.insert(slots.end(), frequencies[s], static_cast<std::uint8_t>(s));
    }
  }
};

// The code of all draws in one state.
std::vector<std::byte> encoded(model const& m, std::vector<std::uint8_t> const& from) {
  std::vector<std::byte> room(2 * from.size() + 4);
  std::byte* to = room.data() + room.size();
  std::uint32_t x = rans_start;
  for (std::size_t i = from.size(); i-- > 0;) rans_put<bits>(x, m.symbols[from[i]], to);
  rans_put_state(x, to);
  return {to, room.data() + room.size()};
}

std::vector<std::uint32_t> counts_of(std::vector<std::uint8_t> const& from, std::size_t symbols) {
  std::vector<std::uint32_t> counts(symbols);
  for (std::uint8_t const s : from) ++counts[s];
  return counts;
}

}  // namespace

TEST_CASE("rans: what is put comes back, in its entropy and at most 0.02 bit more", "[codec][rans]") {
  std::vector<std::vector<double>> sources = {{1, 1}, {1, 1000}, {5, 4, 3, 2, 1}, {}, {}, {}};
  for (int s = 0; s < 256; ++s) sources[3].push_back(1);
  for (int s = 0; s < 40; ++s) sources[4].push_back(std::pow(0.6, s));
  random_bits random(7);
  for (int s = 0; s < 100; ++s) sources[5].push_back(std::exp(3.0 * static_cast<double>(random.uniform())));
  for (std::size_t k = 0; k < sources.size(); ++k) {
    CAPTURE(k);
    auto const from = draws(sources[k], 60000, k);
    auto const counts = counts_of(from, sources[k].size());
    model const m(counts);
    auto const code = encoded(m, from);

    double entropy = 0, expected = 0;
    for (std::size_t s = 0; s < counts.size(); ++s) {
      if (counts[s] == 0) continue;
      entropy += counts[s] * std::log2(60000.0 / counts[s]);
      expected += counts[s] * std::log2(4096.0 / m.frequencies[s]);
    }
    double const stored = 8.0 * static_cast<double>(code.size());
    CHECK(stored >= entropy);  // the model is told apart, so that nothing is hidden in it
    CHECK(stored <= expected + 32 + 60000 * 0x1p-14);
    CHECK(stored <= entropy + 32 + 60000 * 0.02);

    std::byte const *at = code.data(), *const end = at + code.size();
    std::uint32_t x = 0;
    REQUIRE(rans_get_state(x, at, end));
    std::size_t wrong = 0;
    for (std::uint8_t const symbol : from) {
      std::uint8_t const got = m.slots[rans_slot<bits>(x)];
      wrong += got != symbol;
      rans_get<bits>(x, m.symbols[got], at, end);
    }
    CHECK(wrong == 0);
    CHECK(at == end);
    CHECK(x == rans_start);
  }
}

TEST_CASE("rans: states in turn share one stream", "[codec][rans]") {
  auto const from = draws({9, 5, 1, 1}, 4099, 3);
  model const m(counts_of(from, 4));
  std::vector<std::byte> room(2 * from.size() + 28);
  std::byte* to = room.data() + room.size();
  std::uint32_t x[7];
  for (auto& state : x) state = rans_start;
  for (std::size_t i = from.size(); i-- > 0;) rans_put<bits>(x[i % 7], m.symbols[from[i]], to);
  for (int k = 7; k-- > 0;) rans_put_state(x[k], to);

  std::byte const *at = to, *const end = room.data() + room.size();
  for (auto& state : x) REQUIRE(rans_get_state(state, at, end));
  std::size_t wrong = 0;
  for (std::size_t i = 0; i < from.size(); ++i) {
    std::uint8_t const got = m.slots[rans_slot<bits>(x[i % 7])];
    wrong += got != from[i];
    rans_get<bits>(x[i % 7], m.symbols[got], at, end);
  }
  CHECK(wrong == 0);
  CHECK(at == end);
  for (auto const state : x) CHECK(state == rans_start);
}

TEST_CASE("rans: one symbol is free", "[codec][rans][edge]") {
  model const m({0, 17, 0});
  CHECK(m.frequencies == std::vector<std::uint16_t>{0, 1 << bits, 0});
  CHECK(encoded(m, std::vector<std::uint8_t>(5000, 1)).size() == 4);
}

TEST_CASE("rans_frequencies: the sum is 2^Bits, what occurs has at least 1, and nothing else has any", "[codec][rans]") {
  random_bits random(11);
  for (int round = 0; round < 400; ++round) {
    std::vector<std::uint32_t> counts(1 + random() % 300);
    int const kind = static_cast<int>(random() % 4);
    for (auto& c : counts) {
      std::uint32_t const r = static_cast<std::uint32_t>(random());
      c = kind == 0 ? r % 3 : kind == 1 ? r : kind == 2 ? 1u << r % 32 : r % 8 == 0;
    }
    if (kind == 2) counts[0] = 0xffffffffu;  // a giant: all others round to nothing and are given their 1 at its cost
    std::int64_t const occurring = static_cast<std::int64_t>(counts.size()) - std::count(counts.begin(), counts.end(), 0u);
    std::vector<std::uint16_t> frequencies(counts.size(), 0xaaaa);
    auto const verdict = rans_frequencies<8>(counts, frequencies);
    if (occurring == 0 || occurring > 256) {
      CHECK(verdict == status{errc::out_of_range, occurring});
      continue;
    }
    REQUIRE(verdict);
    int sum = 0, wrong = 0;
    for (std::size_t s = 0; s < counts.size(); ++s) {
      sum += frequencies[s];
      wrong += (counts[s] > 0) != (frequencies[s] > 0);
    }
    CHECK(sum == 256);
    CHECK(wrong == 0);
  }
}

TEST_CASE("rans_frequencies: as many symbols as slots, and one more", "[codec][rans][edge]") {
  std::vector<std::uint32_t> counts(16);
  for (std::size_t s = 0; s < 16; ++s) counts[s] = static_cast<std::uint32_t>(1 + 1000 * s);
  std::vector<std::uint16_t> frequencies(16);
  REQUIRE(rans_frequencies<4>(counts, frequencies));
  CHECK(frequencies == std::vector<std::uint16_t>(16, 1));
  counts.push_back(1);
  frequencies.push_back(0);
  CHECK(rans_frequencies<4>(counts, frequencies) == status{errc::out_of_range, 17});
  CHECK(rans_frequencies<4>(std::vector<std::uint32_t>(3), std::span(frequencies).first(3)) == status{errc::out_of_range, 0});
  CHECK(rans_frequencies<4>(counts, std::span(frequencies).first(3)) == status{errc::shape_mismatch, 17});
}

TEST_CASE("rans: a decoder stops at the end of any bytes", "[codec][rans][hostile]") {
  auto const from = draws({9, 5, 1, 1}, 3000, 5);
  model const m(counts_of(from, 4));
  auto const good = encoded(m, from);
  random_bits random(13);
  for (int round = 0; round < 200; ++round) {
    auto bytes = good;
    bytes.resize(random() % (good.size() + 1));  // the sanitizers see a read behind it
    if (round % 2)
      for (auto& b : bytes) b = static_cast<std::byte>(random());
    bytes.shrink_to_fit();
    std::byte const *at = bytes.data(), *const end = at + bytes.size();
    std::uint32_t x = 0;
    bool const starts = rans_get_state(x, at, end);
    CHECK((starts || bytes.size() < 4 || x < rans_start));
    CHECK(at - bytes.data() == (bytes.size() < 4 ? 0 : 4));
    bool inside = true;
    for (int i = 0; i < 5000; ++i) {
      rans_get<bits>(x, m.symbols[m.slots[rans_slot<bits>(x)]], at, end);
      inside &= at <= end;
    }
    CHECK(inside);
  }
}

TEST_CASE("rans works in constant evaluation", "[codec][rans]") {
  constexpr bool same = [] {
    std::byte room[64]{};
    std::byte* to = room + 64;
    rans_symbol const symbols[2] = {{3, 0}, {1, 3}};
    std::uint32_t x = rans_start;
    for (int i = 40; i-- > 0;) rans_put<2>(x, symbols[i % 5 == 0], to);
    std::byte const* at = to;
    bool right = true;
    for (int i = 0; i < 40; ++i) {
      right &= (rans_slot<2>(x) == 3) == (i % 5 == 0);
      rans_get<2>(x, symbols[i % 5 == 0], at, room + 64);
    }
    return right && x == rans_start && at == room + 64;
  }();
  static_assert(same);
}
