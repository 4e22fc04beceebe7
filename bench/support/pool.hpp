// SPDX-License-Identifier: Apache-2.0
// An executor of a few threads, each on a core of its own, the caller's the first of them. They spin for work, so that waking one costs
// nothing and no core is given away in between: made for one measurement, and gone after it. A thread that the system keeps from running
// delays only the piece that it holds.
//
// The caller takes pieces from the front, the others from the back: with two threads a piece returns to the core whose cache has it.
#pragma once

#include <atomic>
#include <memory>
#include <thread>
#include <vector>

#include "machine.hpp"
#include "pith/core/executor.hpp"

namespace bench {

class pool {
 public:
  explicit pool(int threads) {
    for (int i = 1; i < threads; ++i)
      others_.emplace_back([this, i] {
        pin(static_cast<std::size_t>(i));
        while (!closed_.load()) take_one(false);
      });
  }
  pool(pool const&) = delete;
  pool& operator=(pool const&) = delete;
  ~pool() {
    closed_.store(true);
    for (std::thread& other : others_) other.join();
  }

  // count is below 2^32
  template <class Function>
  void for_each(std::int64_t count, Function&& function) {
    call_ = [](void const* context, std::int64_t i) { (*static_cast<std::remove_reference_t<Function> const*>(context))(i); };
    context_ = std::addressof(function);
    done_.store(0);
    left_.store(static_cast<std::uint64_t>(count) << 32);
    while (take_one(true)) {
    }
    while (done_.load() < count) {
    }
  }

 private:
  // Whoever has changed left_ has a piece of the call that set it, and that call does not return before the piece is done.
  bool take_one(bool front) {
    std::uint64_t left = left_.load();
    std::uint32_t first, end;
    do {
      first = static_cast<std::uint32_t>(left), end = static_cast<std::uint32_t>(left >> 32);
      if (first >= end) return false;
    } while (!left_.compare_exchange_weak(left, front ? left + 1 : left - (1ull << 32)));
    call_(context_, front ? first : end - 1);
    done_.fetch_add(1);
    return true;
  }

  std::atomic<std::uint64_t> left_{0};  // pieces that nobody has taken: first, then end in the upper half
  std::atomic<std::int64_t> done_{0};
  std::atomic<bool> closed_{false};
  void (*call_)(void const*, std::int64_t) = nullptr;
  void const* context_ = nullptr;
  std::vector<std::thread> others_;
};
static_assert(pith::executor<pool>);

}  // namespace bench
