// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "pith/simd/dot4.hpp"
#include "pith/simd/pack.hpp"
#include "support/catch.hpp"
#include "support/digest.hpp"

namespace {

using namespace pith;
using namespace pith::simd;

float exp2_of(float x) {
  float lanes[width];
  store(lanes, exp2(all(x)));
  return lanes[0];
}

// `width` words at once through dot4, against plain integers.
template <bool Small>
int wrong_dots(std::vector<std::uint32_t> const& u, std::vector<std::uint32_t> const& s, std::int32_t start) {
  int wrong = 0;
  for (std::size_t first = 0; first + width <= u.size(); first += width) {
    std::int32_t made[width];
    u32v const a = u32v::load_unaligned(u.data() + first), b = u32v::load_unaligned(s.data() + first);
    store_i32(made, dot4<Small>(i32v(start), a, b));
    for (std::size_t i = 0; i < width; ++i) {
      std::int32_t expected = start;
      for (int byte = 0; byte < 4; ++byte)
        expected +=
            static_cast<std::int32_t>(u[first + i] >> (8 * byte) & 0xffu) * static_cast<std::int8_t>(s[first + i] >> (8 * byte) & 0xffu);
      wrong += made[i] != expected;
    }
  }
  return wrong;
}

std::uint32_t word_of(int a, int b, int c, int d) {
  return static_cast<std::uint32_t>(a & 0xff) | static_cast<std::uint32_t>(b & 0xff) << 8 | static_cast<std::uint32_t>(c & 0xff) << 16 |
         static_cast<std::uint32_t>(d & 0xff) << 24;
}

template <int Bits>
void check_pack() {
  INFO(Bits << " bits");
  std::int32_t from[16];
  std::uint8_t to[16 + 8];
  std::memset(to, 0x77, sizeof to);
  for (int i = 0; i < 16; ++i) from[i] = i * 13 - 100;
  pack16<Bits>(from, to);
  for (int i = 0; i < 16; ++i) CHECK(to[i] == static_cast<std::uint8_t>(from[field_order<Bits>(i)]));
  for (int i = 16; i < 24; ++i) CHECK(to[i] == 0x77);

  // The order is that in which fields come out of their words: put code i into field i, and mask and shift.
  constexpr int per_word = 32 / Bits, steps = 8 / Bits, count = per_word > 16 ? per_word : 16;
  std::int32_t codes[count];
  for (int i = 0; i < count; ++i) codes[i] = (i * 7 + 3) & ((1 << Bits) - 1);
  constexpr std::uint32_t mask = Bits == 8 ? 0xffffffffu : Bits == 4 ? 0x0f0f0f0fu : 0x03030303u;
  std::uint8_t packed[count];
  for (int i = 0; i < count; i += 16) pack16<Bits>(codes + i, packed + i);
  for (int word = 0; word < count / per_word; ++word) {
    std::uint32_t stored = 0;
    for (int i = 0; i < per_word; ++i) stored |= static_cast<std::uint32_t>(codes[word * per_word + i]) << (i * Bits);
    for (int step = 0; step < steps; ++step) {
      std::uint8_t const* const at = packed + word * per_word + 4 * step;
      CHECK(((stored >> (step * Bits)) & mask) == word_of(at[0], at[1], at[2], at[3]));
    }
  }
}

template <class T>
int wrong_halves() {
  int wrong = 0;
  for (std::uint32_t first = 0; first < 65536; first += width) {
    std::uint32_t words[width];
    for (std::uint32_t i = 0; i < width; ++i) words[i] = (first + i) | (65535u - first - i) << 16;
    for (int half = 0; half < 2; ++half) {
      float made[width];
      store(made, half_to_float<T>(u32v::load_unaligned(words), half));
      for (std::uint32_t i = 0; i < width; ++i) {
        float const expected = to_float(T{static_cast<std::uint16_t>(words[i] >> (16 * half))});
        wrong += is_nan(expected) ? !is_nan(made[i]) : float_bits(made[i]) != float_bits(expected);
      }
    }
  }
  return wrong;
}

}  // namespace

TEST_CASE("simd: exp2 has a relative error below 2.5e-7 from 8 to -126", "[simd]") {
  double worst = 0;
  for (int i = 0; i < 4'000'000; i += width) {
    float in[width], out[width];
    for (int j = 0; j < width; ++j) {
      // Half of the sweep is between 0 and -1, where softmax weights matter.
      float const at = static_cast<float>(i + j) / 4'000'000.0f;
      in[j] = (i / width) % 2 == 0 ? -at : 8 - 134.0f * at;
    }
    store(out, exp2(load(in)));
    for (int j = 0; j < width; ++j) {
      double const expected = std::exp2(static_cast<double>(in[j]));
      worst = std::max(worst, std::fabs(out[j] - expected) / expected);
    }
  }
  CHECK(worst < 2.5e-7);
}

TEST_CASE("simd: exp2 is exact at integers, 0 far below and for -infinity", "[simd]") {
  CHECK(exp2_of(0.0f) == 1.0f);
  CHECK(exp2_of(-0.0f) == 1.0f);
  for (int n = -8; n <= 126; ++n) CHECK(exp2_of(static_cast<float>(-n)) == std::ldexp(1.0f, -n));
  CHECK((exp2_of(-126.75f) >= 0 && exp2_of(-126.75f) < 0x1p-126f));
  for (float x : {-127.0f, -128.0f, -1000.0f, -1e30f, -std::numeric_limits<float>::max(), bits_float(0xff800000u)})
    CHECK(exp2_of(x) == 0.0f);
}

TEST_CASE("simd: round_even rounds halves to even and agrees with nearbyint", "[simd]") {
  int wrong = 0;
  for (int k = -70000; k < 70000; k += width) {
    for (float off : {0.0f, 0.5f, 0.25f, -0.49f, 0.4999f}) {
      float in[width];
      std::int32_t out[width];
      for (int j = 0; j < width; ++j) in[j] = static_cast<float>(k + j) + off;
      store_i32(out, round_even(load(in)));
      for (int j = 0; j < width; ++j) wrong += out[j] != static_cast<std::int32_t>(std::nearbyint(in[j]));
    }
  }
  for (float x : {2097151.5f, -2097151.5f, 2097151.0f, 1000000.5f}) {
    std::int32_t out[width];
    store_i32(out, round_even(all(x)));
    wrong += out[0] != static_cast<std::int32_t>(std::nearbyint(x));
  }
  CHECK(wrong == 0);
}

TEST_CASE("simd: dot4 is exact for every pair of bytes, where 16 bits would saturate too", "[simd][exhaustive]") {
  std::vector<std::uint32_t> u, s;
  for (int a = 0; a < 256; ++a)
    for (int b = -128; b < 128; ++b) {
      u.push_back(word_of(a, a, a, a)), s.push_back(word_of(b, b, b, b));  // 4 a b: pairs add up
      u.push_back(word_of(a, 255 - a, 255, 1)), s.push_back(word_of(b, -1 - b, 127, -128));
    }
  for (int corner : {0, 1, 127, 128, 254, 255})
    for (int sign : {-128, -127, -1, 0, 1, 127})
      for (int i = 0; i < 16; ++i) {
        u.push_back(word_of(i & 1 ? corner : 255, i & 2 ? corner : 255, i & 4 ? corner : 255, i & 8 ? corner : 255));
        s.push_back(word_of(i & 8 ? sign : -128, i & 4 ? sign : -128, i & 2 ? sign : -128, i & 1 ? sign : -128));
      }
  CHECK(u.size() % static_cast<std::size_t>(width) == 0);
  for (std::int32_t start : {0, 1'000'000, -1'000'000}) CHECK(wrong_dots<false>(u, s, start) == 0);
}

TEST_CASE("simd: dot4 of small products, 2 |u s| <= 32767, is exact", "[simd][exhaustive]") {
  std::vector<std::uint32_t> u, s;
  pith_test::random_bits random(1);
  for (int a = 0; a < 16; ++a)
    for (int b = -128; b < 128; ++b) {
      u.push_back(word_of(a, 15 - a, 15, a)), s.push_back(word_of(b, b, -128, 127));
      u.push_back(word_of(15, 15, 15, 15)), s.push_back(word_of(b, b, b, b));
    }
  CHECK(wrong_dots<true>(u, s, 7) == 0);
  u.clear(), s.clear();
  for (int i = 0; i < 4096; ++i) {  // weights of 8 bits with signed codes of 4: the other order
    auto const r = random();
    u.push_back(static_cast<std::uint32_t>(r)), s.push_back(static_cast<std::uint32_t>(r >> 32) & 0x0f0f0f0fu);
  }
  u.push_back(~0u), s.push_back(0x0f0f0f0fu);
  while (u.size() % static_cast<std::size_t>(width) != 0) u.push_back(~0u), s.push_back(0x0f0f0f0fu);
  CHECK(wrong_dots<true>(u, s, 0) == 0);
}

TEST_CASE("simd: pack16 puts bytes where the fields of 2, 4 and 8 bits come out", "[simd]") {
  check_pack<2>();
  check_pack<4>();
  check_pack<8>();
}

TEST_CASE("simd: half_to_float converts all 65536 patterns of f16 and bf16, from either half", "[simd][exhaustive]") {
  CHECK(wrong_halves<f16>() == 0);
  CHECK(wrong_halves<bf16>() == 0);
}

TEST_CASE("simd: load_scalars reads all 65536 patterns of f16 and bf16, and f32", "[simd][exhaustive]") {
  std::vector<std::byte> bytes(2 * 65536);
  for (std::uint32_t i = 0; i < 65536; ++i) store_le<std::uint16_t>(bytes.data() + 2 * i, static_cast<std::uint16_t>(i));
  int wrong = 0;
  for (std::uint32_t first = 0; first < 65536; first += width) {
    float half[width], brain[width];
    store(half, load_scalars<f16>(bytes.data() + 2 * first));
    store(brain, load_scalars<bf16>(bytes.data() + 2 * first));
    for (std::uint32_t i = 0; i < width; ++i) {
      auto const pattern = static_cast<std::uint16_t>(first + i);
      float const h = to_float(f16{pattern}), b = to_float(bf16{pattern});
      wrong += is_nan(h) ? !is_nan(half[i]) : float_bits(half[i]) != float_bits(h);
      wrong += is_nan(b) ? !is_nan(brain[i]) : float_bits(brain[i]) != float_bits(b);
    }
  }
  CHECK(wrong == 0);
  float in[width], out[width];
  std::byte stored[sizeof in];
  for (int i = 0; i < width; ++i) in[i] = static_cast<float>(i) - 1.5f, store_scalar(stored + 4 * i, in[i]);
  store(out, load_scalars<float>(stored));
  CHECK(std::memcmp(in, out, sizeof in) == 0);
}

TEST_CASE("simd: sum, largest, select_zero and the bit casts do what they say", "[simd]") {
  float in[width];
  float total = 0, most = -1e9f;
  for (int i = 0; i < width; ++i) in[i] = static_cast<float>((i * 5) % 7 - 3), total += in[i], most = std::max(most, in[i]);
  CHECK(sum(load(in)) == total);
  CHECK(pith::simd::largest(load(in)) == most);
  float chosen[width];
  store(chosen, select_zero(load(in), all(9), load(in)));
  for (int i = 0; i < width; ++i) CHECK(chosen[i] == (in[i] == 0 ? 9.0f : in[i]));
  store(chosen, as_float(as_words(load(in))));
  CHECK(std::memcmp(in, chosen, sizeof in) == 0);
  std::uint32_t fields[width];
  pith::simd::field<4>(u32v(0xfedcba98u), 7).store_unaligned(fields);
  CHECK(fields[width - 1] == 0xf);
  pith::simd::field<2>(u32v(0xfedcba98u), 1).store_unaligned(fields);
  CHECK(fields[0] == 2);
  all_words(reinterpret_cast<std::byte const*>("\x01\x02\x03\x04")).store_unaligned(fields);
  CHECK(fields[width - 1] == 0x04030201u);
}
