// SPDX-License-Identifier: Apache-2.0
// words.hpp: the instruction of the device and the plain code of the host give the same bits. The host's are proved in words_test.cpp.
#include "pith/cuda/words.hpp"

#include <cmath>

#include "tests/cuda/device/device_case.hpp"
#include "tests/support/digest.hpp"

namespace {

namespace dev = pith::device;
using words = std::vector<std::uint32_t>;

// One result for each triple of words.
template <class Function>
__global__ void on_each(Function f, std::uint32_t const* a, std::uint32_t const* b, std::uint32_t const* c, std::uint32_t* out, int count) {
  int const i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < count) out[i] = f(a[i], b[i], c[i]);
}

bool is_nan_f16(std::uint32_t bits) { return (bits & 0x7fffu) > 0x7c00u; }
bool is_nan_bf16(std::uint32_t bits) { return (bits & 0x7fffu) > 0x7f80u; }
bool is_nan_f32(std::uint32_t bits) { return (bits & 0x7fffffffu) > 0x7f800000u; }

enum class holds { bits, two_f16, two_bf16, one_f32 };

// Equal bits; of NaNs only that they are.
bool same(std::uint32_t x, std::uint32_t y, holds what) {
  if (x == y) return true;
  if (what == holds::one_f32) return is_nan_f32(x) && is_nan_f32(y);
  if (what == holds::bits) return false;
  auto const half = [&](std::uint32_t p, std::uint32_t q) {
    return p == q || (what == holds::two_f16 ? is_nan_f16(p) && is_nan_f16(q) : is_nan_bf16(p) && is_nan_bf16(q));
  };
  return half(x & 0xffffu, y & 0xffffu) && half(x >> 16, y >> 16);
}

template <class Function>
void compare(pith_test::device_test& test, holds what, Function f, words const& a, words const& b, words const& c) {
  pith_test::on_device<std::uint32_t> const da(a), db(b), dc(c), out(a.size());
  int const count = static_cast<int>(a.size());
  on_each<<<(count + 255) / 256, 256>>>(f, da.data(), db.data(), dc.data(), out.data(), count);
  if (!test.need(cudaGetLastError(), "launch")) return;
  words const got = out.values(test);
  for (std::size_t i = 0; i < a.size(); ++i) {
    std::uint32_t const expected = f(a[i], b[i], c[i]);
    test.check(same(got[i], expected, what), "(%08x, %08x, %08x): %08x on the device, %08x on the host", a[i], b[i], c[i], got[i],
               expected);
  }
}

words random_words(std::size_t count, std::uint64_t seed) {
  pith_test::random_bits random(seed);
  words out(count);
  for (std::uint32_t& x : out) x = static_cast<std::uint32_t>(random());
  return out;
}
// Floats that two_f16 and two_bf16 find hard: near the middle of two neighbours, near overflow, subnormal.
words hard_floats(std::size_t count, std::uint64_t seed) {
  words out = random_words(count, seed);
  for (std::size_t i = 0; i < count; ++i) {
    std::uint32_t& x = out[i];
    if (i % 4 == 0) x = (x & 0x80ffffffu) | (0x30u + (x >> 24 & 0x1fu)) << 24;  // the range of f16
    if (i % 3 == 0) x = (x & 0xffffe000u) + 0x1000u + static_cast<std::uint32_t>(i / 3 % 3) - 1;
    if (i % 3 == 1) x = (x & 0xffff0000u) + 0x8000u + static_cast<std::uint32_t>(i / 3 % 3) - 1;
  }
  return out;
}

constexpr std::size_t many = 1 << 20;

struct and_or_all {
  PITH_HD std::uint32_t operator()(std::uint32_t a, std::uint32_t b, std::uint32_t c) const { return dev::and_or(a, b, c); }
};
struct pick_all {
  PITH_HD std::uint32_t operator()(std::uint32_t a, std::uint32_t b, std::uint32_t c) const { return dev::pick_bytes(a, b, c & 0x7777u); }
};
struct fma_all {
  PITH_HD std::uint32_t operator()(std::uint32_t a, std::uint32_t b, std::uint32_t c) const { return dev::fma_f16(a, b, c); }
};
template <class T>
struct two_all {
  PITH_HD std::uint32_t operator()(std::uint32_t a, std::uint32_t b, std::uint32_t) const {
    return dev::two_of<T>(pith::bits_float(a), pith::bits_float(b));
  }
};
template <class T>
struct half_all {
  PITH_HD std::uint32_t operator()(std::uint32_t a, std::uint32_t high, std::uint32_t) const {
    return pith::float_bits(high != 0 ? dev::high_of<T>(a) : dev::low_of<T>(a));
  }
};
template <class T>
struct scale_all {
  PITH_HD std::uint32_t operator()(std::uint32_t a, std::uint32_t, std::uint32_t) const {
    alignas(4) std::byte stored[4];
    dev::store_word(stored, a);
    return pith::float_bits(dev::scale_at<T>(stored));
  }
};
struct exp2_all {
  PITH_HD std::uint32_t operator()(std::uint32_t a, std::uint32_t, std::uint32_t) const {
    return pith::float_bits(dev::exp2_fast(pith::bits_float(a)));
  }
};

}  // namespace

DEVICE_CASE("words: and_or and pick_bytes") {
  compare(test, holds::bits, and_or_all{}, random_words(many, 1), random_words(many, 2), random_words(many, 3));
  compare(test, holds::bits, pick_all{}, random_words(many, 1), random_words(many, 2), random_words(many, 3));
}
DEVICE_CASE("words: fma_f16") {
  compare(test, holds::two_f16, fma_all{}, random_words(many, 4), random_words(many, 5), random_words(many, 6));
  words a(many), b(many), c(many);  // products of codes and scales, as kernels have them
  for (std::uint32_t i = 0; i < many; ++i) {
    a[i] = 0x64006400u | (i & 0xffu) | (i >> 4 & 0xffu) << 16;
    b[i] = (i * 2654435761u & 0x3fff3fffu) | 0x20002000u;
    c[i] = 0xe400e400u ^ (i * 40503u & 0x80ff80ffu);
  }
  compare(test, holds::two_f16, fma_all{}, a, b, c);
}
DEVICE_CASE("words: two_f16 and two_bf16") {
  words const none(many);
  compare(test, holds::two_f16, two_all<pith::f16>{}, hard_floats(many, 7), hard_floats(many, 8), none);
  compare(test, holds::two_bf16, two_all<pith::bf16>{}, hard_floats(many, 7), hard_floats(many, 8), none);
}
DEVICE_CASE("words: every 16-bit float in either half") {
  words a(1 << 17), high(1 << 17);
  for (std::uint32_t i = 0; i < a.size(); ++i) a[i] = (i & 0xffffu) * 0x10001u ^ 0x12340000u, high[i] = i >> 16;
  compare(test, holds::one_f32, half_all<pith::f16>{}, a, high, a);
  compare(test, holds::one_f32, half_all<pith::bf16>{}, a, high, a);
}
DEVICE_CASE("words: every stored scale") {
  words a(1 << 16);
  for (std::uint32_t i = 0; i < a.size(); ++i) a[i] = i;
  compare(test, holds::one_f32, scale_all<pith::f16>{}, a, a, a);
  compare(test, holds::one_f32, scale_all<pith::bf16>{}, a, a, a);
  compare(test, holds::one_f32, scale_all<pith::e8m0>{}, a, a, a);
  words const floats = random_words(many, 9);
  compare(test, holds::one_f32, scale_all<float>{}, floats, floats, floats);
}
DEVICE_CASE("words: exp2_fast is within its bound, and exact at 0") {
  words a(many);
  for (std::uint32_t i = 0; i < many; ++i) a[i] = pith::float_bits(-130.0f + 0.00024f * static_cast<float>(i));
  a[0] = pith::float_bits(0.0f), a[1] = pith::float_bits(-INFINITY);
  pith_test::on_device<std::uint32_t> const in(a), out(many);
  on_each<<<many / 256, 256>>>(exp2_all{}, in.data(), in.data(), in.data(), out.data(), static_cast<int>(many));
  words const got = out.values(test);
  test.check(pith::bits_float(got[0]) == 1.0f && pith::bits_float(got[1]) == 0.0f, "2^0 = %a, 2^-inf = %a", pith::bits_float(got[0]),
             pith::bits_float(got[1]));
  for (std::size_t i = 2; i < many; ++i) {
    float const x = pith::bits_float(a[i]), y = pith::bits_float(got[i]);
    double const exact = std::exp2(static_cast<double>(x));
    test.check(std::abs(y - exact) <= 0x1p-22 * exact || (x < -126.0f && y == 0.0f), "2^%a = %a", x, y);
  }
}
