// SPDX-License-Identifier: Apache-2.0
// A row that only reads: what the memory, or a cache, gives at the time of the other rows, which have it as their floor.
//
// Bandwidth on shared machines moves while a program runs: a floor from before the first row may be above or below what the last one had.
#pragma once

#include "pool.hpp"
#include "report.hpp"

namespace bench {

inline constexpr std::int64_t read_from_memory = 256 << 20;  // bytes: more than any cache

// `bytes` of memory are summed in eight pieces by `threads` threads.
inline void add_read_row(std::string const& name, std::int64_t bytes, int threads = 1) {
  auto* const made = benchmark::RegisterBenchmark(name.c_str(), [=](benchmark::State& state) {
    constexpr std::int64_t pieces = 8;
    std::byte* const memory = huge(bytes);
    if (memory == nullptr) return state.SkipWithError("no memory");
    for (std::int64_t i = 0; i < bytes; i += 4096) memory[i] = std::byte{1};
    pool run(threads);
    for (auto _ : state)
      run.for_each(pieces, [&](std::int64_t i) { benchmark::DoNotOptimize(sum_of(memory + bytes / pieces * i, bytes / pieces)); });
    munmap(memory, static_cast<std::size_t>(bytes));
    state.counters["packed_bytes"] = static_cast<double>(bytes);
    state.counters["threads"] = threads;
    state.SetLabel(name);
  });
  made->MinTime(0.1)->Unit(benchmark::kMicrosecond);
  if (!processor_time) made->UseRealTime();
  floor_of[name] = name;
}

}  // namespace bench
