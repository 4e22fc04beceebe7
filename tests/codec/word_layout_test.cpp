// SPDX-License-Identifier: Apache-2.0
#include "pith/codec/word_layout.hpp"

#include <cstring>
#include <vector>

#include "support/catch.hpp"
#include "support/digest.hpp"

namespace {

using pith::use;

// Every place gets a random code in random order; then all codes are read back, and a second round must replace the first.
template <class Layout>
void check_places() {
  INFO(Layout::bits << " bits, " << Layout::channels << " channels, " << Layout::tokens << " tokens");
  pith_test::random_bits random(2);
  std::vector<std::byte> block(static_cast<std::size_t>(Layout::bytes) + 8, std::byte{0});
  std::memset(block.data() + Layout::bytes, 0x77, 8);
  std::vector<std::uint32_t> codes(static_cast<std::size_t>(Layout::tokens) * Layout::channels);
  for (int round = 0; round < 2; ++round) {
    for (int t = Layout::tokens; t-- > 0;)
      for (int c = 0; c < Layout::channels; ++c) {
        std::uint32_t const code = static_cast<std::uint32_t>(random() >> 32) >> (32 - Layout::bits);
        codes[static_cast<std::size_t>(t * Layout::channels + c)] = code;
        Layout::set(block.data(), t, c, code);
      }
    int wrong = 0;
    for (int t = 0; t < Layout::tokens; ++t)
      for (int c = 0; c < Layout::channels; ++c)
        wrong += Layout::get(block.data(), t, c) != codes[static_cast<std::size_t>(t * Layout::channels + c)];
    CHECK(wrong == 0);
  }
  for (int i = 0; i < 8; ++i) CHECK(block[static_cast<std::size_t>(Layout::bytes + i)] == std::byte{0x77});
}

}  // namespace

TEST_CASE("word_layout: every place holds its own code, for all widths and both uses", "[codec][law]") {
  using pith::word_layout;
  check_places<word_layout<2, 64, 32, use::dot>>();
  check_places<word_layout<2, 80, 32, use::mix>>();
  check_places<word_layout<3, 64, 32, use::mix>>();
  check_places<word_layout<3, 80, 32, use::dot>>();
  check_places<word_layout<4, 80, 32, use::dot>>();
  check_places<word_layout<4, 96, 32, use::mix>>();
  check_places<word_layout<5, 80, 32, use::dot>>();
  check_places<word_layout<5, 48, 32, use::mix>>();
  check_places<word_layout<6, 80, 32, use::dot>>();
  check_places<word_layout<6, 64, 32, use::mix>>();
  check_places<word_layout<7, 80, 32, use::dot>>();
  check_places<word_layout<7, 96, 32, use::mix>>();
  check_places<word_layout<8, 64, 32, use::dot>>();
  check_places<word_layout<16, 80, 16, use::mix>>();
  check_places<word_layout<16, 80, 16, use::dot>>();
  check_places<word_layout<32, 64, 32, use::dot>>();
}

TEST_CASE("word_layout: a code's bits are where the diagram says", "[codec]") {
  using keys = pith::word_layout<4, 64, 32, use::dot>;  // word 32 * (channel / 8) + token, field channel % 8
  std::vector<std::byte> block(keys::bytes);
  keys::set(block.data(), 5, 19, 0xf);
  CHECK(pith::load_le<std::uint32_t>(block.data() + 4 * (2 * 32 + 5)) == 0xf000u);
  using values = pith::word_layout<4, 64, 32, use::mix>;  // word channels * (token / 8) + channel, field token % 8
  block.assign(values::bytes, std::byte{0});
  values::set(block.data(), 31, 19, 0x9);
  CHECK(pith::load_le<std::uint32_t>(block.data() + 4 * (3 * 64 + 19)) == 0x90000000u);

  // Three bits: channel 22 is field 6 = 4*1 + 2 of the low word 2*0 + 1, so bit 8*1 + 4*1 + 2 of the high word 0.
  using three = pith::word_layout<3, 64, 32, use::dot>;
  CHECK(three::bytes == 4 * 32 * (4 + 2));
  block.assign(three::bytes, std::byte{0});
  three::set(block.data(), 7, 22, 0b101);
  CHECK(pith::load_le<std::uint32_t>(block.data() + 4 * (1 * 32 + 7)) == 0b01u << 12);
  CHECK(pith::load_le<std::uint32_t>(block.data() + 4 * (4 * 32 + 7)) == 1u << 14);

  // Seven bits: channel 29 is field 5 = 2*2 + 1 of the 4-bit word 3, step 7. Its next two bits are step 7 % 4 of byte 2 in word 1 of the
  // second plane, its top bit step 7 of byte 2 in word 0 of the third.
  using seven = pith::word_layout<7, 64, 32, use::dot>;
  CHECK(seven::bytes == 4 * 32 * (8 + 4 + 2));
  block.assign(seven::bytes, std::byte{0});
  seven::set(block.data(), 7, 29, 0b1'10'0101);
  CHECK(pith::load_le<std::uint32_t>(block.data() + 4 * (3 * 32 + 7)) == 0b0101u << 20);
  CHECK(pith::load_le<std::uint32_t>(block.data() + 4 * ((8 + 1) * 32 + 7)) == 0b10u << (16 + 2 * 3));
  CHECK(pith::load_le<std::uint32_t>(block.data() + 4 * ((8 + 4 + 0) * 32 + 7)) == 1u << (16 + 7));
}

TEST_CASE("word_layout: the bits of a higher plane are one to a place", "[codec]") {
  auto check = []<class Layout>(Layout) {
    for (int plane = 1; plane < Layout::planes; ++plane) {
      std::uint32_t seen = 0;
      for (int p = 0; p < 32 / Layout::bits_of(plane); ++p) seen |= ((1u << Layout::bits_of(plane)) - 1u) << Layout::high_bit(p, plane);
      CHECK(seen == ~0u);
    }
  };
  check(pith::word_layout<3, 64, 32, use::dot>{});
  check(pith::word_layout<5, 64, 32, use::dot>{});
  check(pith::word_layout<6, 64, 32, use::mix>{});
  check(pith::word_layout<7, 64, 32, use::mix>{});
}
