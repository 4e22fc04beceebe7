// SPDX-License-Identifier: Apache-2.0
#include "pith/core/bits.hpp"

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "support/catch.hpp"

namespace {

// Every value in every field of words of all zeros, all ones and mixed bits: the field holds it and the others are untouched.
template <int Bits>
int wrong_fields() {
  int wrong = 0;
  for (std::uint32_t background : {0u, 0xffffffffu, 0xa5c3961eu, 0x5a3c69e1u})
    for (int i = 0; i < 32 / Bits; ++i)
      for (std::uint32_t value = 0; value < (1u << Bits); ++value) {
        std::uint32_t const word = pith::with_field<Bits>(background, i, value);
        wrong += pith::field<Bits>(word, i) != value;
        for (int other = 0; other < 32 / Bits; ++other)
          if (other != i) wrong += pith::field<Bits>(word, other) != pith::field<Bits>(background, other);
        wrong += pith::with_field<Bits>(background, i, value | (0xffffff00u << Bits)) != word;  // higher bits of a value are cut
      }
  return wrong;
}

}  // namespace

TEST_CASE("bits: every value fits every field and leaves its neighbours alone", "[core][exhaustive]") {
  CHECK(wrong_fields<1>() == 0);
  CHECK(wrong_fields<2>() == 0);
  CHECK(wrong_fields<4>() == 0);
  CHECK(wrong_fields<8>() == 0);
  CHECK(wrong_fields<16>() == 0);
}

TEST_CASE("bits: field 0 sits in the lowest bits", "[core]") {
  static_assert(pith::field<4>(0x87654321u, 0) == 1 && pith::field<4>(0x87654321u, 7) == 8);
  static_assert(pith::with_field<8>(0, 3, 0xab) == 0xab000000u);
  SUCCEED();
}

TEMPLATE_TEST_CASE("bits: words are little-endian at any address, at run time as in constant expressions", "[core]", std::uint8_t,
                   std::uint16_t, std::uint32_t, std::uint64_t) {
  TestType const value = static_cast<TestType>(0x1122334455667788ull);
  for (int shift = 0; shift < 8; ++shift) {
    std::byte bytes[17] = {};
    pith::store_le<TestType>(bytes + shift, value);
    for (std::size_t i = 0; i < sizeof(TestType); ++i)
      CHECK(bytes[shift + i] == static_cast<std::byte>(static_cast<std::uint64_t>(value) >> (8 * i)));
    CHECK(bytes[shift + sizeof(TestType)] == std::byte{0});
    CHECK(pith::load_le<TestType>(bytes + shift) == value);
  }
  constexpr bool same = [] {
    std::byte bytes[sizeof(TestType)] = {};
    pith::store_le<TestType>(bytes, static_cast<TestType>(0x1122334455667788ull));
    return pith::load_le<TestType>(bytes) == static_cast<TestType>(0x1122334455667788ull) && bytes[0] == std::byte{0x88};
  }();
  static_assert(same);
}

TEST_CASE("bits: stored scalars take their own size and keep their bits", "[core]") {
  std::byte bytes[4] = {};
  pith::store_scalar(bytes, pith::from_float<pith::bf16>(-2.5f));
  CHECK(pith::load_scalar<pith::bf16>(bytes) == -2.5f);
  CHECK(bytes[2] == std::byte{0});
  pith::store_scalar(bytes, pith::from_float<pith::f16>(0.1f));
  CHECK(pith::load_scalar<pith::f16>(bytes) == pith::to_float(pith::from_float<pith::f16>(0.1f)));
  pith::store_scalar(bytes, 0x1.234566p-130f);
  CHECK(pith::load_scalar<float>(bytes) == 0x1.234566p-130f);
}

TEST_CASE("bits: rounding up to multiples is 64-bit", "[core][overflow]") {
  static_assert(pith::round_up(0, 64) == 0 && pith::round_up(1, 64) == 64 && pith::round_up(64, 64) == 64);
  static_assert(pith::divide_up(0, 7) == 0 && pith::divide_up(7, 7) == 1 && pith::divide_up(8, 7) == 2);
  static_assert(pith::round_up((std::int64_t{1} << 40) + 1, 4096) == (std::int64_t{1} << 40) + 4096);
  SUCCEED();
}
