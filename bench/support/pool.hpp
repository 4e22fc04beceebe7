// SPDX-License-Identifier: Apache-2.0
// An executor of a few threads, each on a core of its own, the caller's the first of them. They spin for work, so that waking one costs
// nothing: made for one measurement, and gone after it. A thread that the system keeps from running delays only the piece that it holds.
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
        while (!closed_.load())
          if (!take_one()) std::this_thread::yield();
      });
  }
  pool(pool const&) = delete;
  pool& operator=(pool const&) = delete;
  ~pool() {
    closed_.store(true);
    for (std::thread& other : others_) other.join();
  }

  template <class Function>
  void for_each(std::int64_t count, Function&& function) {
    call_ = [](void const* context, std::int64_t i) { (*static_cast<std::remove_reference_t<Function> const*>(context))(i); };
    context_ = std::addressof(function);
    done_.store(0);
    left_.store(count);
    while (take_one()) {
    }
    while (done_.load() < count) std::this_thread::yield();
  }

 private:
  // Whoever has lowered left_ has a piece of the call that set it, and that call does not return before the piece is done.
  bool take_one() {
    std::int64_t left = left_.load();
    while (left > 0 && !left_.compare_exchange_weak(left, left - 1)) {
    }
    if (left <= 0) return false;
    call_(context_, left - 1);
    done_.fetch_add(1);
    return true;
  }

  std::atomic<std::int64_t> left_{0}, done_{0};
  std::atomic<bool> closed_{false};
  void (*call_)(void const*, std::int64_t) = nullptr;
  void const* context_ = nullptr;
  std::vector<std::thread> others_;
};
static_assert(pith::executor<pool>);

}  // namespace bench
