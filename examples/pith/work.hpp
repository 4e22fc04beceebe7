// SPDX-License-Identifier: Apache-2.0
// Threads, turns, the progress bar, and the end by a signal.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <csignal>
#include <cstdio>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#include <unistd.h>

#include "error.hpp"
#include "pith/core/executor.hpp"

namespace tool {

// An executor of `count` threads, the caller's among them, which sleep between calls. Pieces are taken from the first on, so that one may
// wait for those before it. One call at a time.
class threads {
 public:
  explicit threads(int count) {
    for (int i = 1; i < count; ++i) others_.emplace_back([this] { serve(); });
  }
  threads(threads const&) = delete;
  threads& operator=(threads const&) = delete;
  ~threads() {
    post({}, nullptr);
    for (std::thread& other : others_) other.join();
  }

  template <class Function>
  void for_each(std::int64_t pieces, Function&& function) {
    std::atomic<std::int64_t> next{0};
    auto const run = [&] {
      for (std::int64_t i; (i = next.fetch_add(1)) < pieces;) function(i);
    };
    if (pieces > 1) post([](void const* of) { (*static_cast<decltype(run)*>(of))(); }, &run);
    run();
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return busy_ == 0; });
  }

 private:
  using job = void (*)(void const*);

  void post(job run, void const* of) {
    std::lock_guard const lock(mutex_);
    job_ = run, of_ = of, busy_ = std::ssize(others_), ++call_;
    changed_.notify_all();
  }
  void serve() {
    for (std::int64_t served = 0;;) {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [&] { return call_ != served; });
      served = call_;
      if (job_ == nullptr) return;
      lock.unlock();
      job_(of_);
      lock.lock();
      if (--busy_ == 0) changed_.notify_all();
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::int64_t call_ = 0, busy_ = 0;
  job job_ = nullptr;
  void const* of_ = nullptr;
  std::vector<std::thread> others_;
};
static_assert(pith::executor<threads>);

inline std::atomic<int> caught_signal{0};

inline void watch_signals() {
  struct sigaction action {};
  action.sa_handler = [](int signal) { caught_signal.store(signal); };
  for (int const signal : {SIGINT, SIGTERM, SIGHUP}) ::sigaction(signal, &action, nullptr);
  std::signal(SIGXFSZ, SIG_IGN);  // a write past the size limit fails like one to a full disk
}
inline void stop_if_asked() {
  if (int const signal = caught_signal.load(); signal != 0) throw failure(128 + signal, "interrupted");
}

// Runs pieces that may throw: the first exception comes out when all threads have stopped. wait(i) in piece i waits until all before it
// have passed; a piece that is done, or that throws, has.
class pipeline {
 public:
  template <class Executor, class Function>
  void run(Executor& run, std::int64_t pieces, Function&& function) {
    turn_ = 0;
    run.for_each(pieces, [&](std::int64_t i) {
      try {
        if (!failed_.load()) {
          stop_if_asked();
          function(i);
        }
      } catch (...) {
        std::lock_guard const lock(mutex_);
        if (!failed_.exchange(true)) error_ = std::current_exception();
      }
      pass(i);
    });
    if (error_) std::rethrow_exception(error_);
  }
  void wait(std::int64_t i) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return turn_ >= i || failed_.load(); });
    if (failed_.load()) throw failure(bad_io, "stopped");  // another piece's error comes out
  }
  // After wait(i).
  void pass(std::int64_t i) {
    std::lock_guard const lock(mutex_);
    if (turn_ <= i) turn_ = i + 1;
    changed_.notify_all();
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::int64_t turn_ = 0;
  std::atomic<bool> failed_{false};
  std::exception_ptr error_;
};

// One line on a terminal, written over itself; nothing elsewhere.
class progress {
 public:
  progress(char const* what, std::int64_t total, bool quiet) : what_(what), total_(total), shown_(!quiet && ::isatty(2) == 1) {}
  progress(progress const&) = delete;
  progress& operator=(progress const&) = delete;
  ~progress() {
    if (shown_) std::fputs("\r\x1b[K", stderr);
  }

  void expect(std::int64_t total) { total_ = total; }
  void add(std::int64_t bytes) {
    std::int64_t const now = done_.fetch_add(bytes) + bytes;
    if (!shown_) return;
    std::unique_lock const lock(mutex_, std::try_to_lock);
    auto const time = clock::now();
    if (!lock.owns_lock() || time - last_ < std::chrono::milliseconds(100)) return;
    last_ = time;
    double const seconds = std::chrono::duration<double>(time - start_).count(),
                 share = total_ > 0 ? static_cast<double>(now) / static_cast<double>(total_) : 1;
    int const full = std::clamp(static_cast<int>(30 * share), 0, 30);
    std::fprintf(stderr, "\r%s [%.*s%.*s] %3.0f %%  %.2f of %.2f GB  %.2f GB/s ", what_, full, "##############################", 30 - full,
                 "..............................", 100 * share, static_cast<double>(now) / 1e9, static_cast<double>(total_) / 1e9,
                 static_cast<double>(now) / 1e9 / seconds);
  }

 private:
  using clock = std::chrono::steady_clock;
  char const* what_;
  std::int64_t total_;
  bool shown_;
  std::atomic<std::int64_t> done_{0};
  std::mutex mutex_;
  clock::time_point start_ = clock::now(), last_ = start_;
};

}  // namespace tool
