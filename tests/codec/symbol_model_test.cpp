// SPDX-License-Identifier: Apache-2.0
// Symbols with static statistics: what is written is read, in close to the length that the tables promise; bad bytes are refused.
#include <cmath>

#include "pith/codec/symbol_coder.hpp"
#include "support/catch.hpp"
#include "support/digest.hpp"

using pith::errc;
using pith::symbol_model;

namespace {

constexpr int contexts = 24;

// Symbols of each context: sums of three uniform numbers, wider and wider, with an escape now and then.
struct sample {
  std::vector<std::uint8_t> symbols[contexts];
  std::vector<std::uint32_t> plain[contexts];
  std::vector<std::uint32_t> counts;

  sample(std::uint64_t seed, int each) : counts(contexts * 256) {
    pith_test::random_bits random(seed);
    for (int c = 0; c < contexts; ++c)
      for (int i = 0; i < each; ++i) {
        float const x = (random.uniform() + random.uniform() + random.uniform()) * static_cast<float>(1 + 2 * c);
        symbols[c].push_back(static_cast<std::uint8_t>(random() % 200 == 0 ? symbol_model::escape : 127 + std::lround(x)));
        plain[c].push_back(static_cast<std::uint32_t>(random()));
        ++counts[static_cast<std::size_t>(c * 256 + symbols[c].back())];
      }
  }
  double bits(symbol_model const& m, int plain_bits) const {
    double sum = 0;
    for (int c = 0; c < contexts; ++c)
      for (std::uint8_t const s : symbols[c]) {
        bool const coded = s != symbol_model::escape && m.of(c).of[s].frequency > 0;
        sum += std::log2(4096.0 / m.of(c).of[coded ? s : symbol_model::escape].frequency) + (coded ? 0 : plain_bits);
      }
    return sum;
  }
};

template <int PlainBits>
std::vector<std::byte> write(symbol_model const& m, sample const& of, std::size_t room = 1 << 20) {
  std::vector<std::byte> buffer(room + 32, std::byte{0xa5});
  pith::symbol_writer writer(buffer.data() + 16, buffer.data() + 16 + room);
  for (int c = contexts - 1; c >= 0; --c)
    writer.run<PlainBits>(
        m.of(c), static_cast<int>(of.symbols[c].size()), [&](int i) { return of.symbols[c][static_cast<std::size_t>(i)]; },
        [&](int i) { return of.plain[c][static_cast<std::size_t>(i)]; });
  std::byte* const first = writer.finish();
  for (int i = 0; i < 16; ++i)
    REQUIRE((buffer[static_cast<std::size_t>(i)] == std::byte{0xa5} && buffer[room + 16 + static_cast<std::size_t>(i)] == std::byte{0xa5}));
  if (writer.full()) return {};
  return {first, buffer.data() + 16 + room};
}

// Symbols that came back wrong; -1 if the stream's end was not met.
template <int PlainBits>
int wrong(symbol_model const& m, sample const& of, std::span<std::byte const> stream) {
  pith::symbol_reader reader;
  if (!reader.start(stream.data(), stream.data() + stream.size())) return -1;
  int count = 0;
  for (int c = 0; c < contexts; ++c) {
    std::uint32_t kept = 0;
    reader.run<PlainBits>(
        m.of(c), static_cast<int>(of.symbols[c].size()),
        [&](int i, std::uint8_t s) {
          auto const at = static_cast<std::size_t>(i);
          bool const coded = m.of(c).of[of.symbols[c][at]].frequency > 0 && of.symbols[c][at] != symbol_model::escape;
          std::uint32_t const mask = PlainBits == 32 ? ~0u : (1u << PlainBits % 32) - 1;
          count += coded ? s != of.symbols[c][at] : s != symbol_model::escape || kept != (of.plain[c][at] & mask);
        },
        [&](int, std::uint32_t bits) { kept = bits; });
  }
  return reader.finished() ? count : -1;
}

std::vector<std::byte> stored(symbol_model const& m) {
  std::vector<std::byte> bytes(static_cast<std::size_t>(m.stored_bytes()));
  m.write(bytes.data());
  return bytes;
}

void seal_again(std::vector<std::byte>& bytes) {
  pith::fingerprint all;
  all.add_bytes(bytes.data(), static_cast<std::int64_t>(bytes.size()) - 8);
  pith::store_le(bytes.data() + bytes.size() - 8, all.value());
}

}  // namespace

TEST_CASE("symbol_model: what is written is read, escapes with their plain bits, in the length of its tables", "[codec][symbols]") {
  sample const seen(1, 900), other(2, 333);
  double before = 1e9;
  for (int const tables : {1, 3, 8, 24}) {
    auto const m = symbol_model::fit(seen.counts, contexts, tables).value();
    CHECK(m.tables() == tables);
    auto const stream = write<32>(m, other);
    CHECK(wrong<32>(m, other, stream) == 0);
    double const ideal = other.bits(m, 32);
    CHECK(std::abs(8.0 * static_cast<double>(stream.size()) - ideal) < 0.001 * ideal + 8 * 32);
    CHECK(ideal < before * 1.01);  // more tables describe better
    before = ideal;
    auto const eleven = write<11>(m, other), five = write<5>(m, other);
    CHECK(wrong<11>(m, other, eleven) == 0);
    CHECK(wrong<5>(m, other, five) == 0);
  }
}

TEST_CASE("symbol_model: every symbol can be coded by a model that saw one", "[codec][symbols]") {
  std::vector<std::uint32_t> counts(contexts * 256);
  counts[3 * 256 + 200] = 1;
  auto const m = symbol_model::fit(counts, contexts, 32).value();
  CHECK(m.tables() == 1);
  sample all(3, 600);
  for (int c = 0; c < contexts; ++c)
    for (std::size_t i = 0; i < 256; ++i) all.symbols[c][i] = static_cast<std::uint8_t>(i);
  CHECK(wrong<32>(m, all, write<32>(m, all)) == 0);
}

TEST_CASE("symbol_model: tables hold a whole and no gaps", "[codec][symbols]") {
  auto const m = symbol_model::fit(sample(4, 50).counts, contexts, 7).value();
  for (int c = 0; c < contexts; ++c) {
    auto const& t = m.of(c);
    int sum = 0;
    for (int s = 0; s < 256; ++s) {
      CHECK(t.of[s].start == sum);
      CHECK((t.of[s].frequency > 0) == ((s >= t.lowest && s <= t.highest) || s == symbol_model::escape));
      for (int i = 0; i < t.of[s].frequency; ++i) REQUIRE(t.symbol_at[sum + i] == s);
      sum += t.of[s].frequency;
    }
    CHECK(sum == 4096);
  }
  for (std::uint32_t f = 1; f <= 4096; ++f) REQUIRE(std::abs(symbol_model::length(f) / 65536.0 - std::log2(4096.0 / f)) < 3e-5);
}

TEST_CASE("symbol_model: arguments that make no sense are refused", "[codec][symbols]") {
  std::vector<std::uint32_t> counts(2 * 256);
  CHECK(symbol_model::fit(counts, 2, 4).error() == pith::status{errc::out_of_range, 0});  // nothing counted
  counts[5] = 1;
  CHECK(symbol_model::fit(counts, 3, 4).error() == pith::status{errc::shape_mismatch, 512});
  CHECK(symbol_model::fit(counts, 0, 4).error().code == errc::out_of_range);
  CHECK(symbol_model::fit(counts, 2, 0).error() == pith::status{errc::out_of_range, 0});
  CHECK(symbol_model::fit(counts, 2, 257).error() == pith::status{errc::out_of_range, 257});
}

TEST_CASE("symbol_writer: never leaves its room, and says when it was too small", "[codec][symbols]") {
  sample const of(5, 40);
  auto const m = symbol_model::fit(of.counts, contexts, 4).value();
  std::size_t const needed = write<32>(m, of).size();
  for (std::size_t room = 0; room < needed + 60; ++room) {
    auto const stream = write<32>(m, of, room);
    if (room < needed) CHECK(stream.empty());
    if (room >= needed + 16) CHECK(stream.size() == needed);
  }
}

TEST_CASE("symbol_model: a stored model is the same one, a broken one is refused", "[codec][symbols][fuzz]") {
  sample const of(6, 300);
  auto const m = symbol_model::fit(of.counts, contexts, 5).value();
  auto const bytes = stored(m);
  auto const again = symbol_model::read(bytes);
  REQUIRE(again);
  CHECK(again.value().identity() == m.identity());
  CHECK(stored(again.value()) == bytes);
  CHECK(wrong<32>(again.value(), of, write<32>(m, of)) == 0);
  for (std::size_t size = 0; size < bytes.size(); ++size) {
    std::vector<std::byte> const cut(bytes.begin(),
                                     bytes.begin() + static_cast<std::ptrdiff_t>(size));  // its own block: reads behind it are seen
    CHECK(!symbol_model::read(cut));
  }
  pith_test::random_bits random(7);
  int accepted = 0;
  for (int i = 0; i < 3000; ++i) {
    auto broken = bytes;
    std::size_t const at = static_cast<std::size_t>(random() % (i % 2 == 0 ? 40 : broken.size() - 8));
    broken[at] ^= static_cast<std::byte>(1 + random() % 255);
    REQUIRE(!symbol_model::read(broken));
    seal_again(broken);  // a right fingerprint over wrong contents
    auto const read = symbol_model::read(broken);
    if (!read) continue;
    ++accepted;  // another assignment of contexts, say: then it is a model, and codes
    if (read.value().contexts() == contexts) REQUIRE(wrong<32>(read.value(), of, write<32>(read.value(), of)) == 0);
  }
  CHECK(accepted < 1500);
}

TEST_CASE("symbol_reader: any bytes give some symbols, and most an end that says so", "[codec][symbols][fuzz]") {
  sample const of(8, 100);
  auto const m = symbol_model::fit(of.counts, contexts, 5).value();
  auto const stream = write<32>(m, of);
  pith_test::random_bits random(9);
  int unnoticed = 0;
  for (int i = 0; i < 2000; ++i) {
    std::vector<std::byte> broken = stream;
    if (i % 3 == 0) broken.resize(random() % stream.size());
    if (i % 3 == 1) broken[random() % broken.size()] ^= static_cast<std::byte>(1 + random() % 255);
    if (i % 3 == 2)
      for (std::byte& b : broken) b = static_cast<std::byte>(random());
    unnoticed += wrong<32>(m, of, broken) >= 0;
  }
  CHECK(unnoticed < 40);  // the last words of a state can change into others that end alike: what must be safe has a fingerprint
}
