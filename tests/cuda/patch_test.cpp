// SPDX-License-Identifier: Apache-2.0
// Small changes of device memory by kernels' arguments: as many as a launch takes, one more, and many more.
#include "pith/cuda/patch.hpp"

#include <algorithm>
#include <vector>

#include "support/catch.hpp"
#include "support/digest.hpp"
#include "tests/cuda/emulated_environment.hpp"

using namespace pith_test;
namespace device = pith::device;

namespace {

struct broken {
  int* launches;
  template <class Kernel>
  pith::status launch(Kernel const&, device::grid const&) const {
    return ++*launches == 2 ? pith::status{pith::errc::out_of_memory, 5} : pith::status{};
  }
};

}  // namespace

TEST_CASE("queues launch when they are full and when they are flushed", "[cuda][patch]") {
  emulated_environment const env;
  for (int const count : {0, 1, 3, device::ascending_kernel::most, device::ascending_kernel::most + 1, 1000}) {
    INFO(count << " entries");
    std::vector<std::uint32_t> words(3000, 7), wanted = words;
    std::vector<std::uint64_t> wide(1000, 7), wanted_wide = wide;
    device::queue<device::ascending_kernel, emulated_environment> ranges(env);
    device::queue<device::word_kernel, emulated_environment> singles(env);
    for (int i = 0; i < count; ++i) {
      auto const size = static_cast<std::uint32_t>(i % 3);
      ranges.add({words.data() + 3 * i, 100u * static_cast<std::uint32_t>(i), size});
      for (std::uint32_t k = 0; k < size; ++k) wanted[static_cast<std::size_t>(3 * i) + k] = 100u * static_cast<std::uint32_t>(i) + k;
      singles.add({wide.data() + i, 0x123456789abcdefull * static_cast<unsigned>(i)});
      wanted_wide[static_cast<std::size_t>(i)] = 0x123456789abcdefull * static_cast<unsigned>(i);
    }
    REQUIRE(ranges.flush());
    REQUIRE(singles.flush());
    CHECK(words == wanted);
    CHECK(wide == wanted_wide);
    REQUIRE(ranges.flush());  // there is nothing left to do
    CHECK(words == wanted);
  }
  std::vector<std::uint32_t> longer(1001, 7);
  device::queue<device::ascending_kernel, emulated_environment> ranges(env);
  ranges.add({longer.data(), 5, 1000});
  REQUIRE(ranges.flush());
  CHECK(longer[0] == 5);
  CHECK(longer[999] == 1004);
  CHECK(longer[1000] == 7);
}

TEST_CASE("copies and zeros of any length, aligned to 16 bytes or to 4", "[cuda][patch]") {
  emulated_environment const env;
  random_bits bits(5);
  std::vector<std::byte> from(1 << 18), to(1 << 18, std::byte{7}), wanted = to;
  for (std::byte& b : from) b = static_cast<std::byte>(bits());
  device::queue<device::copy_kernel, emulated_environment> copies(env);
  std::size_t at = 0;
  for (int i = 0; i < 500; ++i) {
    std::size_t const bytes = i % 50 == 0 ? 20000 : i % 7 == 0 ? 0 : 4 * (bits() % 40), gap = 4 * (bits() % 5);
    if (at + bytes + gap > to.size()) break;
    bool const zero = i % 5 == 0;
    copies.add({to.data() + at, zero ? nullptr : from.data() + at, static_cast<std::int64_t>(bytes)});
    for (std::size_t k = at; k < at + bytes; ++k) wanted[k] = zero ? std::byte{0} : from[k];
    at += bytes + gap;
  }
  REQUIRE(copies.flush());
  CHECK(to == wanted);
}

TEST_CASE("bytes of the host come to device memory whole", "[cuda][patch]") {
  emulated_environment const env;
  random_bits bits(6);
  for (std::int64_t const bytes : {0, 4, 4032, 4036, 20000}) {
    std::vector<std::byte> from(static_cast<std::size_t>(bytes)), to(static_cast<std::size_t>(bytes) + 4, std::byte{7});
    for (std::byte& b : from) b = static_cast<std::byte>(bits());
    REQUIRE(device::upload(env, to.data(), from.data(), bytes));
    CHECK(std::equal(from.begin(), from.end(), to.begin()));
    CHECK(to.back() == std::byte{7});
  }
}

TEST_CASE("the first launch that fails is told, and nothing is launched behind it", "[cuda][patch]") {
  int launches = 0;
  broken const env{&launches};
  std::vector<std::uint64_t> wide(2000);
  device::queue<device::word_kernel, broken> singles(env);
  for (std::uint64_t& word : wide) singles.add({&word, 1});
  CHECK(singles.flush() == pith::status{pith::errc::out_of_memory, 5});
  CHECK(launches == 2);
  CHECK(device::upload(env, nullptr, nullptr, 0));
}
