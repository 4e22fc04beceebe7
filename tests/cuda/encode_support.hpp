// SPDX-License-Identifier: Apache-2.0
// Encode and decode in the emulator beside Tile::encode and Tile::decode: memory with fences, hard numbers, comparisons.
#pragma once

#include <cstring>
#include <string>
#include <vector>

#include "laws/inputs.hpp"
#include "laws/sample_state.hpp"
#include "pith/cuda/encode.hpp"
#include "support/catch.hpp"
#include "tests/cuda/emulated_environment.hpp"

namespace pith_test {

using pith::space;

// 16-byte aligned memory with 64 bytes on both sides that must stay.
template <class T>
class fenced {
 public:
  explicit fenced(std::int64_t count, unsigned char fill = 0xa5) : count_(count), storage_(bytes() + 3 * fence) {
    std::memset(storage_.data(), fill, storage_.size());
    auto const first = reinterpret_cast<std::uintptr_t>(storage_.data());
    at_ = reinterpret_cast<T*>(storage_.data() + (fence - first % fence) % fence + fence);
    fill_ = fill;
  }
  T* data() { return at_; }
  std::size_t bytes() const { return static_cast<std::size_t>(count_) * sizeof(T); }
  bool intact() const {
    auto const* first = reinterpret_cast<unsigned char const*>(at_);
    for (std::size_t i = 0; i < fence; ++i)
      if (*(first - 1 - i) != fill_ || first[bytes() + i] != fill_) return false;
    return true;
  }

 private:
  static constexpr std::size_t fence = 64;
  std::int64_t count_;
  std::vector<unsigned char> storage_;
  T* at_;
  unsigned char fill_;
};

template <class Tile>
pith::state_of<Tile> const* device_state() {
  if constexpr (pith::is_calibrated<Tile>)
    return &sample_state<Tile>();
  else
    return nullptr;
}

// `tiles` tiles of the same input, turned by one row from one to the next.
template <class Tile, class T>
std::vector<float> exact_rows(std::vector<float> const& numbers, int tiles) {
  std::vector<float> rows;
  for (int tile = 0; tile < tiles; ++tile)
    for (int i = 0; i < Tile::tokens * Tile::channels; ++i)
      rows.push_back(pith::to_float(
          pith::from_float<T>(numbers[static_cast<std::size_t>((i + tile * Tile::channels) % (Tile::tokens * Tile::channels))])));
  return rows;
}

template <class Tile, class T>
bool same_bytes(std::vector<float> const& numbers, int gap, int tiles) {
  int const stride = Tile::channels + gap;
  std::int64_t const out_stride = Tile::bytes + 64;
  std::vector<float> const exact = exact_rows<Tile, T>(numbers, tiles);
  fenced<T> rows(static_cast<std::int64_t>(tiles) * Tile::tokens * stride, 0xff);
  for (std::size_t i = 0; i < exact.size(); ++i)
    rows.data()[i / Tile::channels * static_cast<std::size_t>(stride) + i % Tile::channels] = pith::from_float<T>(exact[i]);
  fenced<std::byte> expected(tiles * out_stride), made(tiles * out_stride);
  for (int tile = 0; tile < tiles; ++tile)
    pith::encode_tile<Tile>(exact.data() + tile * Tile::tokens * Tile::channels, expected.data() + tile * out_stride, sample_state<Tile>());
  emulated_environment const env;
  pith::matrix_view<T, space::device> const view(rows.data(), {tiles * Tile::tokens, Tile::channels}, {stride, 1});
  REQUIRE(pith::encode_tiles<Tile>(env, view, made.data(), out_stride, device_state<Tile>()));
  std::size_t at = 0;
  while (at < made.bytes() && made.data()[at] == expected.data()[at]) ++at;
  if (at < made.bytes())
    UNSCOPED_INFO("byte " << at << " of " << Tile::bytes << ": " << static_cast<int>(made.data()[at]) << ", expected "
                          << static_cast<int>(expected.data()[at]));
  return at == made.bytes() && made.intact() && rows.intact();
}

// The same bits, or NaN in both.
template <class T>
bool same_number(T a, T b) {
  return std::memcmp(&a, &b, sizeof a) == 0 || (pith::is_nan(pith::to_float(a)) && pith::is_nan(pith::to_float(b)));
}

template <class Tile, class T>
int wrong_numbers(std::byte const* in, std::int64_t in_stride, int gap, int tiles) {
  int const stride = Tile::channels + gap;
  fenced<T> rows(static_cast<std::int64_t>(tiles) * Tile::tokens * stride);
  emulated_environment const env;
  pith::matrix_view<T, space::device> const view(rows.data(), {tiles * Tile::tokens, Tile::channels}, {stride, 1});
  REQUIRE(pith::decode_tiles<Tile>(env, in, in_stride, view, device_state<Tile>()));
  std::vector<float> exact(static_cast<std::size_t>(Tile::tokens * Tile::channels));
  int wrong = rows.intact() ? 0 : 1;
  for (int tile = 0; tile < tiles; ++tile) {
    pith::decode_tile<Tile>(in + tile * in_stride, exact.data(), sample_state<Tile>());
    for (int t = 0; t < Tile::tokens; ++t)
      for (int c = 0; c < stride; ++c) {
        T const& x = rows.data()[(tile * Tile::tokens + t) * stride + c];
        T untouched;
        std::memset(&untouched, 0xa5, sizeof untouched);
        wrong +=
            !same_number(x, c < Tile::channels ? pith::from_float<T>(exact[static_cast<std::size_t>(t * Tile::channels + c)]) : untouched);
      }
  }
  return wrong;
}

template <class Tile>
std::vector<input> hard_numbers(std::uint64_t seed) {
  auto all = hard_inputs(Tile::tokens, Tile::channels, seed);
  auto const add = [&](char const* name, auto number) {
    input next{name, std::vector<float>(static_cast<std::size_t>(Tile::tokens * Tile::channels))};
    for (float& x : next.rows) x = number();
    all.push_back(next);
  };
  random_bits random(seed + 11);
  auto const bits = [&] { return static_cast<std::uint32_t>(random()); };
  add("both zeros", [&] { return pith::bits_float(bits() & 0x80000000u); });
  add("both zeros below ones", [&] { return bits() % 4 == 0 ? 1.0f : pith::bits_float(bits() & 0x80000000u); });
  add("both zeros above minus ones", [&] { return bits() % 4 == 0 ? -1.0f : pith::bits_float(bits() & 0x80000000u); });
  add("any bits but infinities and NaN", [&] {
    std::uint32_t const b = bits();
    return (b & 0x7f800000u) == 0x7f800000u ? 1.0f : pith::bits_float(b);
  });
  add("about the largest numbers kept",
      [&] { return (bits() % 2 ? 0x1p125f : -0x1p124f) * (1.0f + static_cast<float>(bits() % 3) * 0x1p-23f); });
  add("about the smallest range kept", [&] { return static_cast<float>(bits() % 1024) * 0x1p-102f; });
  add("beyond f16", [&] { return gaussian(random) * 60000.0f; });
  add("below f16", [&] { return gaussian(random) * 0x1p-24f; });
  if (Tile::nan != pith::nan_policy::propagate || !pith::is_transformed<Tile>) {  // sums of infinities are NaN, of one payload or another
    add("some not finite", [&] {
      std::uint32_t const b = bits();
      float const special[] = {pith::bits_float(0x7fc00000u), pith::bits_float(0x7f800000u), pith::bits_float(0xff800000u),
                               pith::bits_float(0xffa12345u)};
      return b % 64 == 0 ? special[b / 64 % 4] : gaussian(random);
    });
    add("nothing finite", [&] { return pith::bits_float(0x7f800000u | bits()); });
    add("one infinity", [n = 0, &random]() mutable { return n++ == 77 ? pith::bits_float(0x7f800000u) : gaussian(random) + 9.0f; });
    add("one NaN", [n = 0, &random]() mutable { return n++ == 78 ? pith::bits_float(0x7fc00000u) : gaussian(random); });
    add("one NaN among the positive",
        [n = 0, &random]() mutable { return n++ == 79 ? pith::bits_float(0xffc00000u) : gaussian(random) + 20.0f; });
  }
  return all;
}

// Sums of infinities are NaN, whose payload is not said.
template <class Tile>
constexpr bool overflows = Tile::nan == pith::nan_policy::propagate && pith::is_transformed<Tile>;

template <class Tile, class T>
void check_encode(char const* name, std::uint64_t seed) {
  INFO(name << ", " << Tile::tokens << " x " << Tile::channels);
  int which = 0;
  for (auto const& x : hard_numbers<Tile>(seed)) {
    INFO(x.name);
    ++which;
    if (overflows<Tile> &&
        (x.name == "largest floats" || x.name == "any bits but infinities and NaN" || (std::is_same_v<T, pith::f16> && x.name == "large")))
      continue;
    CHECK((same_bytes<Tile, T>(x.rows, 8 * (which % 3), 1 + which % 2)));
  }
}

template <class Tile, class T>
void check_decode(char const* name, std::uint64_t seed) {
  INFO(name << ", " << Tile::tokens << " x " << Tile::channels);
  random_bits random(seed);
  fenced<std::byte> bytes(2 * (Tile::bytes + 64));
  int which = 0;
  for (auto const& x : hard_numbers<Tile>(seed)) {
    if (++which % 3 != 0) continue;
    INFO(x.name);
    pith::encode_tile<Tile>(x.rows.data(), bytes.data(), sample_state<Tile>());
    CHECK(wrong_numbers<Tile, T>(bytes.data(), Tile::bytes + 64, 8, 1) == 0);
  }
  for (int round = 0; round < 4; ++round) {
    INFO("random bytes, round " << round);
    for (std::size_t i = 0; i < bytes.bytes(); ++i) bytes.data()[i] = static_cast<std::byte>(random());
    CHECK(wrong_numbers<Tile, T>(bytes.data(), Tile::bytes + 64 * (round % 2), 8 * (round / 2), 2) == 0);
  }
}

// X(type of the rows, channels, tokens of a page, use, codec): one test case's list.
#define PITH_CHECK_ENCODE(T, Channels, PageTokens, Use, ...) \
  pith_test::check_encode<typename __VA_ARGS__::template bind<Channels, PageTokens, use::Use>, T>(#__VA_ARGS__ " " #Use, 5);
#define PITH_CHECK_DECODE(T, Channels, PageTokens, Use, ...) \
  pith_test::check_decode<typename __VA_ARGS__::template bind<Channels, PageTokens, use::Use>, T>(#__VA_ARGS__ " " #Use, 6);

}  // namespace pith_test
