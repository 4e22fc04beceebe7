// SPDX-License-Identifier: Apache-2.0
// The CPU's encode stores the bytes of Tile::encode, and its decode gives the numbers of Tile::decode, for every codec of the list.
#include <cstring>
#include <vector>

#include "laws/all_codecs.hpp"
#include "laws/inputs.hpp"
#include "pith/cpu/tile_engine.hpp"
#include "support/catch.hpp"

namespace {

using pith_test::random_bits;
constexpr std::size_t fence = 64;

// Rows of T with a gap after each, which is filled with what must not be touched.
template <class T>
std::vector<T> strided(std::vector<float> const& rows, int channels, int stride) {
  std::size_t const tokens = rows.size() / static_cast<std::size_t>(channels);
  std::vector<T> out(tokens * static_cast<std::size_t>(stride), pith::from_float<T>(-77.0f));
  for (std::size_t i = 0; i < rows.size(); ++i)
    out[i / static_cast<std::size_t>(channels) * static_cast<std::size_t>(stride) + i % static_cast<std::size_t>(channels)] =
        pith::from_float<T>(rows[i]);
  return out;
}

// f(arguments..., the tile's sample state if it has any)
template <class Tile, class F>
auto with_state(F f) {
  if constexpr (pith::is_calibrated<Tile>)
    return f(pith_test::sample_state<Tile>());
  else
    return f();
}

template <class Tile, class T>
bool same_bytes(std::vector<float> const& numbers, int stride) {
  std::vector<T> const rows = strided<T>(numbers, Tile::channels, stride);
  std::vector<float> exact(numbers.size());
  for (std::size_t i = 0; i < numbers.size(); ++i) exact[i] = pith::to_float(pith::from_float<T>(numbers[i]));
  constexpr auto bytes = static_cast<std::size_t>(Tile::bytes);
  std::vector<std::byte> expected(bytes + 2 * fence, std::byte{0xa5}), made(expected);
  pith::encode_tile<Tile>(exact.data(), expected.data() + fence, pith_test::sample_state<Tile>());
  with_state<Tile>([&](auto const&... state) { pith::tile_engine<pith::cpu, Tile>::encode(rows.data(), stride, made.data() + fence, state...); });
  std::size_t at = 0;
  while (at < made.size() && made[at] == expected[at]) ++at;
  if (at < made.size()) UNSCOPED_INFO("byte " << static_cast<long long>(at) - static_cast<long long>(fence) << " of " << bytes);
  return at == made.size();
}

// The same bits, or NaN in both: which NaN comes out of a sum of two is the compiler's choice.
template <class T>
bool same_number(T a, T b) {
  return std::memcmp(&a, &b, sizeof a) == 0 || (pith::is_nan(pith::to_float(a)) && pith::is_nan(pith::to_float(b)));
}

template <class Tile, class T>
int wrong_numbers(std::vector<std::byte> const& in, int stride) {
  std::vector<float> exact(static_cast<std::size_t>(Tile::tokens * Tile::channels));
  pith::decode_tile<Tile>(in.data(), exact.data(), pith_test::sample_state<Tile>());
  std::vector<T> const expected = strided<T>(exact, Tile::channels, stride);
  std::vector<T> made(expected.size() + 2 * fence, pith::from_float<T>(-77.0f));
  with_state<Tile>([&](auto const&... state) { pith::tile_engine<pith::cpu, Tile>::decode(in.data(), made.data() + fence, stride, state...); });
  int wrong = 0;
  for (std::size_t i = 0; i < made.size(); ++i) {
    bool const inside = i >= fence && i < fence + expected.size();
    wrong += !same_number(made[i], inside ? expected[i - fence] : pith::from_float<T>(-77.0f));
  }
  return wrong;
}

// The hard inputs, and what is not among them: both zeros as minimum, what is not finite, the ends of every range.
template <class Tile>
std::vector<pith_test::input> all_inputs() {
  auto all = pith_test::hard_inputs(Tile::tokens, Tile::channels, 5);
  auto const add = [&](char const* name, auto number) {
    pith_test::input next{name, std::vector<float>(static_cast<std::size_t>(Tile::tokens * Tile::channels))};
    for (float& x : next.rows) x = number();
    all.push_back(next);
  };
  random_bits random(11);
  auto const bits = [&] { return static_cast<std::uint32_t>(random()); };
  add("both zeros", [&] { return pith::bits_float(bits() & 0x80000000u); });
  add("both zeros below ones", [&] { return bits() % 4 == 0 ? 1.0f : pith::bits_float(bits() & 0x80000000u); });
  add("any bits but infinities and NaN", [&] {
    std::uint32_t const b = bits();
    return (b & 0x7f800000u) == 0x7f800000u ? 1.0f : pith::bits_float(b);
  });
  add("about the largest numbers kept",
      [&] { return (bits() % 2 ? 0x1p125f : -0x1p124f) * (1.0f + static_cast<float>(bits() % 3) * 0x1p-23f); });
  add("about the smallest range kept", [&] { return static_cast<float>(bits() % 1024) * 0x1p-102f; });
  add("beyond f16", [&] { return pith_test::gaussian(random) * 60000.0f; });
  add("below f16", [&] { return pith_test::gaussian(random) * 0x1p-24f; });
  if (Tile::nan != pith::nan_policy::propagate || !pith::is_transformed<Tile>) {
    add("some not finite", [&] {
      std::uint32_t const b = bits();
      float const special[] = {pith::bits_float(0x7fc00000u), pith::bits_float(0x7f800000u), pith::bits_float(0xff800000u),
                               pith::bits_float(0xffa12345u)};
      return b % 64 == 0 ? special[b / 64 % 4] : pith_test::gaussian(random);
    });
    add("nothing finite", [&] { return pith::bits_float(0x7f800000u | bits()); });
    add("one infinity", [n = 0, &random]() mutable { return n++ == 77 ? pith::bits_float(0x7f800000u) : pith_test::gaussian(random); });
    add("one NaN", [n = 0, &random]() mutable { return n++ == 78 ? pith::bits_float(0x7fc00000u) : pith_test::gaussian(random); });
  }
  return all;
}

}  // namespace

TEST_CASE("tile_engine<cpu>: encode stores the bytes of the scalar codec, from rows of any type and stride", "[cpu][identity]") {
  pith_test::for_each_tile([]<class Tile>(char const* name) {
    INFO(name << ", " << Tile::channels << " channels");
    for (auto const& x : all_inputs<Tile>()) {
      INFO(x.name);
      bool const overflows = Tile::nan == pith::nan_policy::propagate && pith::is_transformed<Tile>;  // sums of infinities are NaN
      if (overflows && (x.name == "largest floats" || x.name == "any bits but infinities and NaN")) continue;
      bool const f32 = same_bytes<Tile, float>(x.rows, Tile::channels) && same_bytes<Tile, float>(x.rows, Tile::channels + 5);
      bool const bf16 = same_bytes<Tile, pith::bf16>(x.rows, Tile::channels) && same_bytes<Tile, pith::bf16>(x.rows, Tile::channels + 3);
      CHECK((f32 && bf16));
      if (overflows) continue;
      CHECK((same_bytes<Tile, pith::f16>(x.rows, Tile::channels) && same_bytes<Tile, pith::f16>(x.rows, 2 * Tile::channels)));
    }
  });
}

TEST_CASE("tile_engine<cpu>: decode gives the numbers of the scalar codec, whatever the bytes", "[cpu][identity]") {
  pith_test::for_each_tile([]<class Tile>(char const* name) {
    INFO(name << ", " << Tile::channels << " channels");
    random_bits random(6);
    std::vector<std::byte> bytes(static_cast<std::size_t>(Tile::bytes));
    for (auto const& x : all_inputs<Tile>()) {
      INFO(x.name);
      pith::encode_tile<Tile>(x.rows.data(), bytes.data(), pith_test::sample_state<Tile>());
      CHECK(wrong_numbers<Tile, float>(bytes, Tile::channels) == 0);
      CHECK(wrong_numbers<Tile, pith::bf16>(bytes, Tile::channels + 7) == 0);
      CHECK(wrong_numbers<Tile, pith::f16>(bytes, 2 * Tile::channels) == 0);
    }
    for (int round = 0; round < 20; ++round) {
      INFO("random bytes, round " << round);
      for (std::byte& b : bytes) b = static_cast<std::byte>(random());
      CHECK(wrong_numbers<Tile, float>(bytes, Tile::channels + 1) == 0);
      CHECK(wrong_numbers<Tile, pith::bf16>(bytes, Tile::channels) == 0);
      CHECK(wrong_numbers<Tile, pith::f16>(bytes, Tile::channels + 2) == 0);
    }
  });
}
