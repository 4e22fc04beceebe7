// SPDX-License-Identifier: Apache-2.0
// What every coder of symbol bytes has to keep, for every coder and tile size in `coders`: a new one is a line there.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "pith/codec/exponent_planes.hpp"
#include "pith/codec/exponent_rans.hpp"
#include "pith/codec/huffman.hpp"
#include "support/catch.hpp"
#include "support/digest.hpp"

namespace {

using pith_test::random_bits;

struct coder {
  std::string name;
  double excess;  // bits a number that exponents may cost more than their entropy
  std::size_t count;
  std::int64_t fixed_bytes, tail_bound;
  std::int64_t (*encode)(std::uint8_t const*, std::byte*, std::byte*) noexcept;
  void (*decode)(std::byte const*, std::byte const*, std::int64_t, std::uint8_t*) noexcept;
  bool (*check)(std::byte const*, std::byte const*, std::int64_t) noexcept;
};

template <class Coder, int Count>
coder make(char const* name, double excess) {
  using tile = typename Coder::template bind<Count>;
  static_assert(tile::fixed_bytes % 64 == 0 && tile::fixed_bytes >= 0 && tile::tail_bound > 0);
  return {
      name + (" " + std::to_string(Count)), excess, Count, tile::fixed_bytes, tile::tail_bound, tile::encode, tile::decode, tile::check};
}

// A coder whose planes lie in sections, here one behind the other.
template <class Coder>
struct in_sections {
  template <int Count>
  struct bind {
    using tile = typename Coder::template bind<Count>;
    static constexpr std::int64_t stride = tile::section_bytes, fixed_bytes = Count / 512 * stride, tail_bound = tile::tail_bound;
    static std::int64_t encode(std::uint8_t const* symbols, std::byte* fixed, std::byte* tail) noexcept {
      return tile::encode(symbols, fixed, stride, tail);
    }
    static void decode(std::byte const* fixed, std::byte const* tail, std::int64_t bytes, std::uint8_t* symbols) noexcept {
      tile::decode(fixed, stride, tail, bytes, symbols);
    }
    static bool check(std::byte const* fixed, std::byte const* tail, std::int64_t bytes) noexcept {
      return tile::check(fixed, stride, tail, bytes);
    }
  };
};

std::vector<coder> const coders = {
    make<pith::rans_exponents, 1024>("rans_exponents", 0.45),
    make<pith::rans_exponents, 8192>("rans_exponents", 0.09),
    make<pith::rans_exponents, 16384>("rans_exponents", 0.06),
    make<in_sections<pith::exponent_planes>, 1024>("exponent_planes", 0.30),
    make<in_sections<pith::exponent_planes>, 8192>("exponent_planes", 0.12),
    make<in_sections<pith::exponent_planes>, 16384>("exponent_planes", 0.12),
    make<pith::huffman, 1024>("huffman", 0.30),
    make<pith::huffman, 8192>("huffman", 0.12),
    make<pith::huffman, 16384>("huffman", 0.11),
};

constexpr std::int64_t slack = 64;

// Bytes of exactly this size, so that the sanitizers see every slip.
struct exact {
  std::unique_ptr<std::byte[]> data;
  std::size_t bytes;
  explicit exact(std::int64_t n, int fill = 0xa5) : data(new std::byte[static_cast<std::size_t>(n)]), bytes(static_cast<std::size_t>(n)) {
    std::memset(data.get(), fill, bytes);
  }
};

struct encoded {
  exact fixed;
  std::vector<std::byte> tail;
};

encoded encode(coder const& c, std::vector<std::uint8_t> const& symbols) {
  encoded out{exact(c.fixed_bytes), {}};
  exact tail(c.tail_bound);
  exact from(static_cast<std::int64_t>(symbols.size()));
  std::memcpy(from.data.get(), symbols.data(), symbols.size());
  std::int64_t const bytes = c.encode(reinterpret_cast<std::uint8_t const*>(from.data.get()), out.fixed.data.get(), tail.data.get());
  REQUIRE(bytes >= 0);
  REQUIRE(bytes <= c.tail_bound);
  out.tail.assign(tail.data.get(), tail.data.get() + bytes);
  return out;
}

bool check(coder const& c, std::byte const* fixed, std::vector<std::byte> const& tail) {
  exact in(static_cast<std::int64_t>(tail.size()));
  if (!tail.empty()) std::memcpy(in.data.get(), tail.data(), tail.size());
  return c.check(fixed, in.data.get(), static_cast<std::int64_t>(tail.size()));
}

// Decoded, with `fill` in the slack behind the tail and behind the symbols; nothing further behind may be touched.
std::vector<std::uint8_t> decode(coder const& c, std::byte const* fixed, std::vector<std::byte> const& tail, int fill) {
  exact in(static_cast<std::int64_t>(tail.size()) + slack, fill);
  std::memcpy(in.data.get(), tail.data(), tail.size());
  exact out(static_cast<std::int64_t>(c.count) + slack, fill);
  c.decode(fixed, in.data.get(), static_cast<std::int64_t>(tail.size()), reinterpret_cast<std::uint8_t*>(out.data.get()));
  auto const* first = reinterpret_cast<std::uint8_t const*>(out.data.get());
  return {first, first + c.count};
}

struct source {
  std::string name;
  std::vector<std::uint8_t> symbols;
};

double uniform(random_bits& random) { return static_cast<double>(random() >> 11) * 0x1p-53; }

// Exponents of Gaussian numbers in rows of log-normal scale, less the row's base, rotated right by one: as dynamic_float makes them.
std::vector<std::uint8_t> exponents(std::size_t count, std::uint64_t seed) {
  random_bits random(seed);
  auto normal = [&] { return std::sqrt(-2 * std::log(1 - uniform(random))) * std::cos(6.283185307179586 * uniform(random)); };
  std::vector<std::uint8_t> out(count);
  for (std::size_t row = 0; row < 32; ++row) {
    double const scale = std::exp(0.3 * normal());
    int const base = std::ilogb(scale) - 4;
    for (std::size_t i = row * (count / 32); i < (row + 1) * (count / 32); ++i) {
      int const e = (std::ilogb(scale * normal()) - base) & 255;
      out[i] = static_cast<std::uint8_t>(e >> 1 | e << 7);
    }
  }
  return out;
}

std::vector<source> sources(std::size_t count) {
  std::vector<source> out;
  random_bits random(count);
  auto add = [&](char const* name, auto symbol) {
    out.push_back({name, std::vector<std::uint8_t>(count)});
    for (std::size_t i = 0; i < count; ++i) out.back().symbols[i] = static_cast<std::uint8_t>(symbol(i));
  };
  add("all equal", [](std::size_t) { return 0x83; });
  add("all but the last equal", [&](std::size_t i) { return i + 1 == count ? 9 : 7; });
  add("all but the first equal", [](std::size_t i) { return i == 0 ? 255 : 0; });
  add("two in turn", [](std::size_t i) { return i % 2 ? 0x80 : 0x7f; });
  add("two, one of them rare", [&](std::size_t) { return random() % 64 == 0; });
  add("two halves", [&](std::size_t i) { return i < count / 2 ? 1 : 2; });
  add("every byte in turn", [](std::size_t i) { return i; });
  add("every byte once, else one", [](std::size_t i) { return i < 256 ? i : 77; });
  add("every byte once at the end", [&](std::size_t i) { return i >= count - 256 ? i : 200; });
  add("uniform", [&](std::size_t) { return random(); });
  add("uniform over 129", [&](std::size_t) { return random() % 129; });
  add("every second byte", [&](std::size_t) { return random() % 128 * 2; });
  add("geometric", [&](std::size_t) { return static_cast<int>(std::log(1 - uniform(random)) / std::log(0.6)); });
  add("steep", [&](std::size_t) { return static_cast<int>(std::log(1 - uniform(random)) / std::log(0.02)) * 37; });
  add("flat and a peak", [&](std::size_t) { return random() % 2 ? 3 : random() % 256; });
  // Fibonacci numbers: the longest codes that a tile of this size can ask for.
  add("fibonacci", [&, a = std::size_t{1}, b = std::size_t{1}, left = std::size_t{1}, s = 0](std::size_t) mutable {
    if (left == 0) {
      left = b;
      b += a;
      a = left;
      ++s;
    }
    --left;
    return s * 11;
  });
  out.push_back({"exponents", exponents(count, 1)});
  return out;
}

double entropy(std::vector<std::uint8_t> const& symbols) {
  double counts[256]{}, bits = 0;
  for (auto const s : symbols) ++counts[s];
  for (double const n : counts)
    if (n > 0) bits += n * std::log2(static_cast<double>(symbols.size()) / n);
  return bits / static_cast<double>(symbols.size());
}

}  // namespace

TEST_CASE("exponent coders: every tile comes back, from its bytes alone", "[codec][coder]") {
  for (auto const& c : coders)
    for (auto const& s : sources(c.count)) {
      CAPTURE(c.name, s.name);
      auto const bytes = encode(c, s.symbols);
      CHECK(check(c, bytes.fixed.data.get(), bytes.tail));
      CHECK((decode(c, bytes.fixed.data.get(), bytes.tail, 0x00) == s.symbols));
      CHECK((decode(c, bytes.fixed.data.get(), bytes.tail, 0xff) == s.symbols));
      CHECK((encode(c, s.symbols).tail == bytes.tail));
    }
}

TEST_CASE("exponent coders: the cost over the entropy of exponents is as stated", "[codec][coder]") {
  for (auto const& c : coders) {
    CAPTURE(c.name);
    double stored = 0, least = 0;
    for (std::uint64_t seed = 0; seed < 8; ++seed) {
      auto const symbols = exponents(c.count, seed);
      auto const bytes = encode(c, symbols);
      stored += 8.0 * static_cast<double>(c.fixed_bytes + static_cast<std::int64_t>(bytes.tail.size())) / static_cast<double>(c.count);
      least += entropy(symbols);
    }
    CHECK(stored >= least);
    CHECK((stored - least) / 8 <= c.excess);
  }
}

TEST_CASE("exponent coders: bytes that check passes are decoded inside their bounds", "[codec][coder][hostile]") {
  for (auto const& c : coders) {
    CAPTURE(c.name);
    random_bits random(c.count);
    int passed = 0, refused = 0;
    auto attempt = [&](std::byte const* fixed, std::vector<std::byte> const& tail) {
      if (!check(c, fixed, tail)) return void(++refused);
      ++passed;
      (void)decode(c, fixed, tail, static_cast<int>(random() & 255));
    };
    int const rounds = 8192 * 12 / static_cast<int>(c.count);
    for (auto const& s : sources(c.count)) {
      auto const good = encode(c, s.symbols);
      for (std::size_t const kept : {std::size_t{0}, std::size_t{1}, std::size_t{9}, good.tail.size() / 2, good.tail.size() - 1}) {
        if (kept >= good.tail.size()) continue;
        std::vector<std::byte> cut(good.tail.begin(), good.tail.begin() + static_cast<std::ptrdiff_t>(kept));
        attempt(good.fixed.data.get(), cut);
      }
      for (int round = 0; round < rounds; ++round) {
        auto tail = good.tail;
        exact fixed(c.fixed_bytes);
        if (c.fixed_bytes > 0) std::memcpy(fixed.data.get(), good.fixed.data.get(), fixed.bytes);
        // Flips where the table is, or anywhere.
        std::size_t const reach = round % 2 ? std::min<std::size_t>(tail.size(), 48) : tail.size();
        for (std::uint64_t flips = 1 + random() % 3; flips-- > 0;) {
          if (reach > 0) tail[random() % reach] ^= static_cast<std::byte>(1u << random() % 8);
          if (fixed.bytes > 0) fixed.data[random() % fixed.bytes] ^= static_cast<std::byte>(1u << random() % 8);
        }
        attempt(fixed.data.get(), tail);
      }
    }
    for (int round = 0; round < 20 * rounds; ++round) {
      std::vector<std::byte> tail(random() % static_cast<std::uint64_t>(c.tail_bound + 9));
      for (auto& b : tail) b = static_cast<std::byte>(random());
      if (!tail.empty() && round % 4) tail[0] &= std::byte{3};  // a kind that exists
      exact fixed(c.fixed_bytes, static_cast<int>(random() & 255));
      attempt(fixed.data.get(), tail);
    }
    CHECK(passed > 0);
    CHECK(refused > 0);
  }
}
