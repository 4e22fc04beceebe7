// SPDX-License-Identifier: Apache-2.0
#include "pith/core/executor.hpp"

#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

#include "support/catch.hpp"

namespace {

// A caller's own executor: two threads, odd and even indices.
struct two_threads {
  template <class Function>
  void for_each(std::int64_t count, Function&& function) const {
    std::thread odd([&] {
      for (std::int64_t i = 1; i < count; i += 2) function(i);
    });
    for (std::int64_t i = 0; i < count; i += 2) function(i);
    odd.join();
  }
};
static_assert(pith::executor<two_threads>);
static_assert(!pith::executor<int>);

template <class Executor>
void check_rules(Executor executor) {
  for (std::int64_t count : {0, 1, 2, 7, 1000}) {
    std::vector<std::atomic<int>> calls(static_cast<std::size_t>(count));
    executor.for_each(count, [&](std::int64_t i) { calls.at(static_cast<std::size_t>(i)).fetch_add(1); });
    for (std::atomic<int> const& c : calls) CHECK(c.load() == 1);  // rule E1, and after the call: nothing is still running
  }
}

}  // namespace

TEST_CASE("executor: serial calls once for each index, in order", "[core][law]") {
  check_rules(pith::serial{});
  std::vector<std::int64_t> order;
  pith::serial{}.for_each(5, [&](std::int64_t i) { order.push_back(i); });
  CHECK(order == std::vector<std::int64_t>{0, 1, 2, 3, 4});
}

TEST_CASE("executor: serial takes a function that cannot be copied", "[core]") {
  int sum = 0;
  pith::serial{}.for_each(3, [&, step = std::make_unique<int>(2)](std::int64_t) { sum += *step; });
  CHECK(sum == 6);
}

TEST_CASE("executor: an executor of the caller's own keeps the rules", "[core][law]") { check_rules(two_threads{}); }

#if defined(_OPENMP)
TEST_CASE("executor: openmp calls once for each index", "[core][law]") { check_rules(pith::openmp{}); }
#endif
