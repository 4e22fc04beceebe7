// SPDX-License-Identifier: Apache-2.0
// The emulator itself: collectives against plain definitions, and mistakes that it has to notice.
#include "tests/cuda/emulator.hpp"

#include <algorithm>
#include <csignal>
#include <vector>

#if defined(__linux__)
#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>
#endif

#include "support/catch.hpp"
#include "support/digest.hpp"
#include "tests/cuda/emulated_environment.hpp"

using pith::device::device_like;
using pith_test::emulated_block;
using pith_test::emulated_environment;

namespace {

// C = A B + C of 16 x 16, 16 x 8: each lane takes its fragments out of whole matrices, as thread.hpp lists them.
template <class T>
struct product {
  static constexpr int threads = 32;
  float const *a, *b;
  float* c;

  template <device_like Thread>
  void operator()(Thread& t) const {
    int const g = t.lane() / 4, k = 2 * (t.lane() % 4);
    auto const two = [](float low, float high) { return pith::device::two_of<T>(low, high); };
    std::uint32_t fa[4], fb[2];
    for (int i = 0; i < 4; ++i) {
      float const* const row = a + 16 * (g + 8 * (i % 2)) + k + 8 * (i / 2);
      fa[i] = two(row[0], row[1]);
    }
    for (int i = 0; i < 2; ++i) fb[i] = two(b[8 * (k + 8 * i) + g], b[8 * (k + 8 * i + 1) + g]);
    float fc[4];
    for (int i = 0; i < 4; ++i) fc[i] = c[8 * (g + 8 * (i / 2)) + k + i % 2];
    t.template multiply<T>(fc, fa, fb);
    for (int i = 0; i < 4; ++i) c[8 * (g + 8 * (i / 2)) + k + i % 2] = fc[i];
  }
};

template <class T>
void check_product() {
  pith_test::random_bits random(11);
  std::vector<float> a(16 * 16), b(16 * 8), c(16 * 8), expected;
  for (float& x : a) x = static_cast<float>(static_cast<int>(random() % 33) - 16);  // exact in every format
  for (float& x : b) x = static_cast<float>(static_cast<int>(random() % 33) - 16) / 8;
  for (float& x : c) x = static_cast<float>(random() % 100);
  expected = c;
  for (std::size_t row = 0; row < 16; ++row)
    for (std::size_t column = 0; column < 8; ++column)
      for (std::size_t k = 0; k < 16; ++k) expected[8 * row + column] += a[16 * row + k] * b[8 * k + column];
  emulated_block(32, 0).run(product<T>{a.data(), b.data(), c.data()}, 0, 0, 0, 5);
  CHECK(c == expected);
}

struct collectives {
  static constexpr int threads = 64;
  std::uint32_t* out;  // [thread][6]
  std::uint64_t* word;

  template <device_like Thread>
  void operator()(Thread& t) const {
    auto const own = static_cast<std::uint32_t>(100 * t.warp() + t.lane());
    std::uint32_t* const at = out + 6 * (32 * t.warp() + t.lane());
    at[0] = t.shuffle(own, 5);
    at[1] = t.shuffle_xor(own, 17);
    at[2] = t.any(t.lane() == 31 && t.warp() == 1);
    at[3] = t.any(t.lane() == 0);
    int const g = t.lane() / 4, pair = t.lane() % 4;
    at[4] = t.transpose(static_cast<std::uint32_t>(16 * g + 2 * pair) | static_cast<std::uint32_t>(16 * g + 2 * pair + 1) << 16);
    at[5] = static_cast<std::uint32_t>(t.shuffle(static_cast<float>(t.lane()), (t.lane() + 1) % 32));
    t.store_once(word, static_cast<std::uint64_t>(own) + 1);
  }
};

// Each thread hands its number on through shared memory, with and without the barrier.
template <bool Barrier>
struct hand_on {
  static constexpr int threads = 64;
  std::uint32_t* out;

  template <device_like Thread>
  void operator()(Thread& t) const {
    int const i = 32 * t.warp() + t.lane();
    auto* const words = reinterpret_cast<std::uint32_t*>(t.shared());
    words[i] = static_cast<std::uint32_t>(i);
    if constexpr (Barrier) t.sync();
    out[i] = words[(i + 33) % 64];
  }
};

// Copies 16 bytes for each lane in two groups, and waits for Left of them to be left.
template <int Left>
struct copies {
  static constexpr int threads = 32;
  std::byte const* from;
  std::uint32_t* out;

  template <device_like Thread>
  void operator()(Thread& t) const {
    std::byte* const mine = t.shared() + 32 * t.lane();
    t.copy16(mine, from + 32 * t.lane());
    t.commit();
    t.copy16(mine + 16, from + 32 * t.lane() + 16);
    t.commit();
    t.template wait<Left>();
    t.sync_warp();
    std::byte const* const next = t.shared() + 32 * ((t.lane() + 1) % 32);
    out[2 * t.lane()] = pith::device::load_word<std::uint32_t>(next);
    out[2 * t.lane() + 1] = pith::device::load_word<std::uint32_t>(next + 16);
  }
};

struct well_behaved {
  static constexpr int threads = 64;
  std::uint32_t* out;
  template <device_like Thread>
  void operator()(Thread& t) const {
    t.sync();
    out[32 * t.warp() + t.lane()] = t.any(true);
  }
};
struct half_a_barrier {
  static constexpr int threads = 64;
  template <device_like Thread>
  void operator()(Thread& t) const {
    if (t.warp() == 0) t.sync();
  }
};
struct different_calls {
  static constexpr int threads = 32;
  template <device_like Thread>
  void operator()(Thread& t) const {
    if (t.lane() < 16)
      static_cast<void>(t.any(true));
    else
      t.sync_warp();
  }
};
struct past_the_end {
  static constexpr int threads = 32;
  template <device_like Thread>
  void operator()(Thread& t) const {
    t.shared()[64 + t.lane()] = std::byte{1};
  }
};
struct misaligned_copy {
  static constexpr int threads = 32;
  std::byte const* from;
  template <device_like Thread>
  void operator()(Thread& t) const {
    t.copy16(t.shared() + 8, from);
  }
};

struct where {
  static constexpr int threads = 32;
  std::int64_t* out;
  void operator()(pith_test::emulated_thread& t) const {
    if (t.lane() == 0) ++out[t.block_x() + 3 * (t.block_y() + 2 * t.block_z())];
  }
};

#if defined(__linux__)
template <class Kernel>
bool aborts(Kernel const& kernel) {
  pid_t const child = fork();
  if (child == 0) {
    std::signal(SIGABRT, SIG_DFL);
    dup2(open("/dev/null", O_WRONLY), 2);
    emulated_block(Kernel::threads, 64).run(kernel, 0, 0, 0, 1);
    _exit(0);
  }
  int state = 0;
  waitpid(child, &state, 0);
  return WIFSIGNALED(state) && WTERMSIG(state) == SIGABRT;
}
#endif

}  // namespace

TEST_CASE("emulator: multiply is the product of the documented fragments", "[cuda][emulator]") {
  check_product<pith::f16>();
  check_product<pith::bf16>();
}

TEST_CASE("emulator: shuffles, votes and transposes stay in the warp", "[cuda][emulator]") {
  for (std::uint64_t seed = 0; seed < 8; ++seed) {
    std::vector<std::uint32_t> out(64 * 6);
    std::uint64_t word = 0;
    emulated_block(collectives::threads, 0).run(collectives{out.data(), &word}, 0, 0, 0, seed);
    for (std::uint32_t i = 0; i < 64; ++i) {
      std::uint32_t const lane = i % 32, warp = i / 32, g = lane / 4, t = lane % 4;
      std::uint32_t const* const at = &out[6 * i];
      bool const right = at[0] == 100 * warp + 5 && at[1] == 100 * warp + (lane ^ 17u) && at[2] == warp && at[3] == 1 &&
                         at[4] == ((16 * (2 * t) + g) | (16 * (2 * t + 1) + g) << 16) && at[5] == (lane + 1) % 32;
      if (!right) FAIL("seed " << seed << ", thread " << i);
    }
    CHECK(word >= 1);
    CHECK((word - 1) % 100 < 32);
  }
}

TEST_CASE("emulator: a missing barrier shows as the bytes that shared memory starts with", "[cuda][emulator]") {
  std::int64_t garbage = 0;
  for (std::uint64_t seed = 0; seed < 16; ++seed) {
    std::vector<std::uint32_t> out(64);
    emulated_block(64, 256).run(hand_on<true>{out.data()}, 0, 0, 0, seed);
    for (std::uint32_t i = 0; i < 64; ++i) CHECK(out[i] == (i + 33) % 64);
    emulated_block(64, 256).run(hand_on<false>{out.data()}, 0, 0, 0, seed);
    std::int64_t const wrong = std::count(out.begin(), out.end(), 0xffffffffu);
    CHECK(wrong > 0);
    garbage += wrong;
  }
  CHECK(garbage >= 16 * 16);
}

TEST_CASE("emulator: a copy is not there before it is waited for", "[cuda][emulator]") {
  alignas(16) std::byte from[32 * 32];
  for (std::size_t i = 0; i < sizeof from; ++i) from[i] = static_cast<std::byte>(i / 16 % 128);
  auto const run = [&](auto kernel) {
    std::vector<std::uint32_t> out(64);
    kernel.from = from, kernel.out = out.data();
    emulated_block(32, 32 * 32).run(kernel, 0, 0, 0, 3);
    return out;
  };
  auto const all = run(copies<0>{}), first = run(copies<1>{}), none = run(copies<2>{});
  for (std::uint32_t i = 0; i < 32; ++i) {
    std::uint32_t const unit = 2 * ((i + 1) % 32);
    CHECK(all[2 * i] == unit * 0x01010101u);
    CHECK(all[2 * i + 1] == (unit + 1) * 0x01010101u);
    CHECK(first[2 * i] == all[2 * i]);
    CHECK(first[2 * i + 1] == 0xffffffffu);
    CHECK(none[2 * i] == 0xffffffffu);
  }
}

#if defined(__linux__)
TEST_CASE("emulator: a kernel that would hang or write elsewhere ends the program", "[cuda][emulator]") {
  alignas(16) std::byte from[16] = {};
  CHECK(aborts(half_a_barrier{}));
  CHECK(aborts(different_calls{}));
  CHECK(aborts(past_the_end{}));
  CHECK(aborts(misaligned_copy{from}));
  std::uint32_t out[64];
  CHECK_FALSE(aborts(well_behaved{out}));
}
#endif

TEST_CASE("emulated_environment: an empty grid is refused, blocks see where they are, scratch is never what it was", "[cuda][emulator]") {
  emulated_environment const env(1000);
  CHECK(env.launch(where{nullptr}, {0}) == pith::status{pith::errc::out_of_range, 0});
  std::vector<std::int64_t> out(24);
  for (int i = 1; i <= 2; ++i) {
    REQUIRE(env.launch(where{out.data()}, {.x = 3, .y = 2, .z = 4}));
    CHECK(out == std::vector<std::int64_t>(24, i));
  }
  auto const scratch = env.scratch();
  CHECK(scratch.size() >= 896);
  CHECK(reinterpret_cast<std::uintptr_t>(scratch.data()) % 128 == 0);
  scratch[5] = std::byte{1};
  CHECK(env.scratch()[5] == std::byte{0xff});
  CHECK(env.status());
  *env.status_word() = pith::device::pack_status({pith::errc::not_finite, -3});
  CHECK(env.status() == pith::status{pith::errc::not_finite, -3});
}
