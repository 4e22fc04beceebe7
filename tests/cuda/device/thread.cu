// SPDX-License-Identifier: Apache-2.0
// thread.hpp: the device's collectives do what the emulator's do, so that what the emulator proves holds on the device.
#include <cmath>
#include <cstring>

#include "pith/cuda/environment.cuh"
#include "tests/cuda/device/device_case.hpp"
#include "tests/cuda/device/emulated.hpp"
#include "tests/support/digest.hpp"

namespace {

using pith::device::device_like;

// Every collective once, on words that depend on the thread; 12 results a thread.
struct collectives {
  static constexpr int threads = 128, results = 12;
  std::uint32_t const* in;  // [block][thread][4]
  std::uint32_t* out;       // [block][thread][results]
  std::uint64_t* word;

  template <device_like Thread>
  PITH_HD void operator()(Thread& t) const {
    std::int64_t const thread = ((t.block_z() * 2 + t.block_y()) * 3 + t.block_x()) * threads + 32 * t.warp() + t.lane();
    std::uint32_t const* const mine = in + 4 * thread;
    std::uint32_t* const at = out + results * thread;
    at[0] = t.shuffle(mine[0], 7);
    at[1] = t.shuffle(mine[0], static_cast<int>(mine[1] & 31u));
    at[2] = t.shuffle_xor(mine[0], 16);
    at[3] = pith::float_bits(t.shuffle_xor(static_cast<float>(t.lane()), 3));
    at[4] = t.any((mine[2] & 63u) == 0);
    at[5] = t.transpose(mine[3]);
    // Through shared memory: a neighbour's number, and copies in two groups of which one is left under way.
    auto* const words = reinterpret_cast<std::uint32_t*>(t.shared());
    int const i = 32 * t.warp() + t.lane();
    words[i] = mine[0];
    t.sync();
    at[6] = words[(i + 33) % threads];
    t.sync();
    std::byte* const own = t.shared() + 32 * i;
    t.copy16(own, reinterpret_cast<std::byte const*>(mine));
    t.commit();
    t.clear16(own + 16);
    t.copy16(t.shared() + 32 * threads + 16 * i, reinterpret_cast<std::byte const*>(mine));
    t.commit();
    t.template wait<1>();
    t.sync_warp();
    at[7] = pith::device::load_word<std::uint32_t>(t.shared() + 32 * (i ^ 1) + 4);
    at[8] = pith::device::load_word<pith::device::word4>(t.shared() + 32 * (i ^ 1) + 16).at[3];
    t.template wait<0>();
    t.sync();
    at[9] = pith::device::load_word<pith::device::word4>(t.shared() + 32 * threads + 16 * ((i + 64) % threads)).at[2];
    at[10] = static_cast<std::uint32_t>(t.warp());
    at[11] = static_cast<std::uint32_t>(reinterpret_cast<std::uintptr_t>(t.shared()) % 128);
    t.store_once(word, 77);
  }
};

// c += A B on fragments as they are in memory.
template <class T>
struct product {
  static constexpr int threads = 32;
  std::uint32_t const* in;  // [block][lane][6]
  float* c;                 // [block][lane][4]

  template <device_like Thread>
  PITH_HD void operator()(Thread& t) const {
    std::int64_t const thread = 32 * t.block_x() + t.lane();
    std::uint32_t a[4], b[2];
    float sum[4];
    PITH_UNROLL
    for (int i = 0; i < 4; ++i) a[i] = in[6 * thread + i], sum[i] = c[4 * thread + i];
    PITH_UNROLL
    for (int i = 0; i < 2; ++i) b[i] = in[6 * thread + 4 + i];
    t.template multiply<T>(sum, a, b);
    PITH_UNROLL
    for (int i = 0; i < 4; ++i) c[4 * thread + i] = sum[i];
  }
};

template <class T>
void check_product(pith_test::device_test& test, bool exact) {
  constexpr std::int64_t blocks = 64;
  pith_test::random_bits random(5);
  std::vector<std::uint32_t> in(32 * 6 * blocks);
  std::vector<float> c(32 * 4 * blocks);
  auto const number = [&] { return exact ? static_cast<float>(static_cast<int>(random() % 65) - 32) / 4 : random.uniform(); };
  for (std::uint32_t& x : in) {
    float const low = number();
    x = pith::device::two_of<T>(low, number());
  }
  for (float& x : c) x = exact ? static_cast<float>(random() % 1000) : random.uniform();
  auto made = pith::cuda_environment::make(nullptr, pith::plain_device_memory());
  if (!test.need(made.error(), "environment")) return;
  pith_test::on_device<std::uint32_t> const device_in(in);
  pith_test::on_device<float> const device_c(c);
  if (!test.need(made.value().launch(product<T>{device_in.data(), device_c.data()}, {blocks}), "launch")) return;
  std::vector<float> const got = device_c.values(test);
  pith_test::emulated_environment const emulated;
  test.need(emulated.launch(product<T>{in.data(), c.data()}, {blocks}), "emulator");
  for (std::size_t i = 0; i < c.size(); ++i) {
    // 16 products below 1 and a number below 1: tensor cores align to the largest and cut off, at 2^-23 of it or better.
    float const bound = exact ? 0.0f : 17 * 0x1p-22f;
    test.check(std::abs(got[i] - c[i]) <= bound, "number %d is %a, not %a", static_cast<int>(i), got[i], c[i]);
  }
}

}  // namespace

DEVICE_CASE("thread: collectives as in the emulator") {
  pith::device::grid const grid{.x = 3, .y = 2, .z = 2, .shared_bytes = collectives::threads * 48};
  std::size_t const all = static_cast<std::size_t>(grid.x * grid.y * grid.z) * collectives::threads;
  pith_test::random_bits random(3);
  std::vector<std::uint32_t> in(4 * all), expected(collectives::results * all);
  for (std::uint32_t& x : in) x = static_cast<std::uint32_t>(random());
  std::uint64_t word = 0;
  pith_test::emulated_environment const emulated;
  test.need(emulated.launch(collectives{in.data(), expected.data(), &word}, grid), "emulator");

  auto made = pith::cuda_environment::make(nullptr, pith::plain_device_memory());
  if (!test.need(made.error(), "environment")) return;
  pith_test::on_device<std::uint32_t> const device_in(in), out(expected.size());
  pith_test::on_device<std::uint64_t> const device_word(1);
  if (!test.need(made.value().launch(collectives{device_in.data(), out.data(), device_word.data()}, grid), "launch")) return;
  std::vector<std::uint32_t> const got = out.values(test);
  for (std::size_t i = 0; i < got.size(); ++i)
    test.check(got[i] == expected[i], "thread %d, result %d is %08x, not %08x", static_cast<int>(i / collectives::results),
               static_cast<int>(i % collectives::results), got[i], expected[i]);
  test.check(device_word.values(test)[0] == 77 && word == 77, "store_once");
}

DEVICE_CASE("thread: multiply, exact sums") {
  check_product<pith::f16>(test, true);
  check_product<pith::bf16>(test, true);
}
DEVICE_CASE("thread: multiply, rounded sums within their bound") {
  check_product<pith::f16>(test, false);
  check_product<pith::bf16>(test, false);
}
