// SPDX-License-Identifier: Apache-2.0
// What the machine can do, measured in the same process as the benchmarks: the floor that results are compared with.
#pragma once

#include <sched.h>
#include <sys/mman.h>
#include <time.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <vector>

#include "pith/simd/vec.hpp"

namespace bench {

inline double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// The processor time of this thread: what others do on a shared core meanwhile does not count.
inline double thread_now() {
  timespec t{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

// Stays on one core, the first that the process may use, so that caches and clocks do not change under a measurement.
inline void pin() {
  cpu_set_t allowed, one;
  CPU_ZERO(&one);
  if (sched_getaffinity(0, sizeof allowed, &allowed) == 0)
    for (int core = 0; core < CPU_SETSIZE && CPU_COUNT(&one) == 0; ++core)
      if (CPU_ISSET(core, &allowed)) CPU_SET(core, &one);
  if (CPU_COUNT(&one) == 0 || sched_setaffinity(0, sizeof one, &one) != 0) std::fprintf(stderr, "not pinned\n");
}

// Memory on huge pages where the kernel gives them.
inline std::byte* huge(std::int64_t bytes) {
  void* const memory = mmap(nullptr, static_cast<std::size_t>(bytes), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return nullptr;
  madvise(memory, static_cast<std::size_t>(bytes), MADV_HUGEPAGE);
  return static_cast<std::byte*>(memory);
}

// Bytes per second of summing `bytes` of memory on one thread: the median of nine passes.
inline double measure_read_bandwidth(std::int64_t bytes, double (*clock)() = now) {
  std::byte* const memory = huge(bytes);
  if (memory == nullptr) return 0;
  for (std::int64_t i = 0; i < bytes; i += 4096) memory[i] = std::byte{1};
  std::vector<double> seconds;
  std::uint32_t sink = 0;
  for (int pass = 0; pass < 9; ++pass) {
    double const start = clock();
    pith::simd::u32v sum[8];
    for (auto& s : sum) s = pith::simd::u32v(0u);
    constexpr int step = pith::simd::width * 4;
    for (std::int64_t i = 0; i + 8 * step <= bytes; i += 8 * step)
      for (int j = 0; j < 8; ++j) sum[j] = sum[j] + pith::simd::load_words(memory + i + j * step);
    std::uint32_t lanes[pith::simd::width];
    for (auto& s : sum) {
      s.store_unaligned(lanes);
      for (std::uint32_t lane : lanes) sink += lane;
    }
    seconds.push_back(clock() - start);
  }
  std::nth_element(seconds.begin(), seconds.begin() + 4, seconds.end());
  munmap(memory, static_cast<std::size_t>(bytes));
  if (sink == 1) std::fprintf(stderr, " ");
  return static_cast<double>(bytes) / seconds[4];
}

// Bytes per second of step(i), which handles `bytes` bytes: the median of nine times a thousand steps.
template <class Step>
double measure_rate(double bytes, Step step) {
  std::vector<double> seconds;
  for (int pass = 0; pass < 9; ++pass) {
    double const start = now();
    for (std::int64_t i = 0; i < 1000; ++i) {
      step(i);
      asm volatile("" : : : "memory");
    }
    seconds.push_back(now() - start);
  }
  std::nth_element(seconds.begin(), seconds.begin() + 4, seconds.end());
  return 1000 * bytes / seconds[4];
}

}  // namespace bench
