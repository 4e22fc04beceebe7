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
#include <string>
#include <vector>

#include "pith/simd/dot2.hpp"
#include "pith/simd/dot4.hpp"

namespace bench {

inline double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// The processor time of this thread: what others do on a shared core meanwhile does not count.
inline double thread_now() {
  timespec t{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

// The cores that the process was given, before any thread was pinned.
inline std::vector<int> const& cores() {
  static std::vector<int> const given = [] {
    std::vector<int> all;
    cpu_set_t allowed;
    if (sched_getaffinity(0, sizeof allowed, &allowed) == 0)
      for (int core = 0; core < CPU_SETSIZE; ++core)
        if (CPU_ISSET(core, &allowed)) all.push_back(core);
    return all;
  }();
  return given;
}

// The calling thread stays on one core, so that caches and clocks do not change under a measurement; threads that it starts inherit that.
inline void pin(std::size_t which = 0) {
  cpu_set_t one;
  CPU_ZERO(&one);
  if (which < cores().size()) CPU_SET(cores()[which], &one);
  if (CPU_COUNT(&one) == 0 || sched_setaffinity(0, sizeof one, &one) != 0) std::fprintf(stderr, "not pinned\n");
}

// Memory on huge pages where the kernel gives them, or on pages of 4 KiB.
inline std::byte* reserve(std::int64_t bytes, int advice) {
  void* const memory = mmap(nullptr, static_cast<std::size_t>(bytes), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return nullptr;
  madvise(memory, static_cast<std::size_t>(bytes), advice);
  return static_cast<std::byte*>(memory);
}
inline std::byte* huge(std::int64_t bytes) { return reserve(bytes, MADV_HUGEPAGE); }
inline std::byte* small(std::int64_t bytes) { return reserve(bytes, MADV_NOHUGEPAGE); }

// Megabytes of the process that lie on huge pages now; -1 where the kernel does not say.
inline std::int64_t megabytes_on_huge_pages() {
  std::FILE* const file = std::fopen("/proc/self/smaps_rollup", "r");
  if (file == nullptr) return -1;
  long long kilobytes = -1;
  for (char line[256]; std::fgets(line, sizeof line, file) != nullptr;)
    if (std::sscanf(line, "AnonHugePages: %lld", &kilobytes) == 1) break;
  std::fclose(file);
  return kilobytes < 0 ? -1 : kilobytes >> 10;
}

inline std::uint32_t sum_of(std::byte const* memory, std::int64_t bytes) {
  pith::simd::u32v sum[8];
  for (auto& s : sum) s = pith::simd::u32v(0u);
  constexpr int step = pith::simd::width * 4;
  for (std::int64_t i = 0; i + 8 * step <= bytes; i += 8 * step)
    for (int j = 0; j < 8; ++j) sum[j] = sum[j] + pith::simd::load_words(memory + i + j * step);
  std::uint32_t total = 0;
  for (auto& s : sum) {
    std::uint32_t lanes[pith::simd::width];
    s.store_unaligned(lanes);
    for (std::uint32_t lane : lanes) total += lane;
  }
  return total;
}

// Bytes per second of summing `bytes` of memory on one thread: the median of nine passes.
inline double measure_read_bandwidth(std::int64_t bytes, double (*clock)() = now) {
  std::byte* const memory = huge(bytes);
  if (memory == nullptr) return 0;
  for (std::int64_t i = 0; i < bytes; i += 4096) memory[i] = std::byte{1};
  std::vector<double> seconds;
  for (int pass = 0; pass < 9; ++pass) {
    double const start = clock();
    std::uint32_t const sum = sum_of(memory, bytes);
    asm volatile("" : : "r"(sum));
    seconds.push_back(clock() - start);
  }
  std::nth_element(seconds.begin(), seconds.begin() + 4, seconds.end());
  munmap(memory, static_cast<std::size_t>(bytes));
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

// Operations per second of sixteen independent chains of step(accumulator): the lower quartile of the times of fifteen passes.
template <class Vector, class Step>
double measure_peak(double operations, Step step) {
  std::vector<double> seconds;
  for (int pass = 0; pass < 15; ++pass) {
    Vector acc[16];
    for (int j = 0; j < 16; ++j) acc[j] = Vector(j);  // chains that a compiler cannot take for one
    double const start = thread_now();
    constexpr int rounds = 300000;
    for (int i = 0; i < rounds; ++i) {
      PITH_UNROLL for (int j = 0; j < 16; ++j) acc[j] = step(acc[j]);
      asm volatile("" : : : "memory");  // the factors are read again: nothing is known about their product
    }
    seconds.push_back((thread_now() - start) / rounds);
    Vector total = acc[0];
    for (int j = 1; j < 16; ++j) total = total + acc[j];
    asm volatile("" : : "m"(total));
  }
  std::nth_element(seconds.begin(), seconds.begin() + 3, seconds.end());
  return 16 * pith::simd::width * operations / seconds[3];
}

// What one core multiplies and adds in a second; a product and its sum are two operations.
struct peaks {
  double bytes, pairs, floats;  // 8 bit, bf16 pairs, f32
};
inline double measure_peak_of_bytes() {
  pith::simd::u32v ones(0x01010101u);
  asm volatile("" : "+m"(ones));
  return measure_peak<pith::simd::i32v>(8, [&](pith::simd::i32v a) { return pith::simd::dot4<false>(a, ones, ones); });
}
inline peaks const& core_peaks() {
  static peaks const measured = [] {
    using namespace pith;
    simd::u32v ones(0x01010101u);
    simd::f32v one = simd::all(1.0f);
    asm volatile("" : "+m"(ones), "+m"(one));
    return peaks{measure_peak_of_bytes(), measure_peak<simd::f32v>(4, [&](simd::f32v a) { return simd::dot2(a, ones, ones); }),
                 measure_peak<simd::f32v>(2, [&](simd::f32v a) { return simd::fma(one, one, a); })};
  }();
  return measured;
}
inline std::string peaks_line() {
  char line[160];
  std::snprintf(line, sizeof line, "one core multiplies and adds: 8 bit %.0f Gop/s, bf16 pairs %.0f GFLOP/s, f32 %.0f GFLOP/s\n",
                core_peaks().bytes / 1e9, core_peaks().pairs / 1e9, core_peaks().floats / 1e9);
  return line;
}

}  // namespace bench
