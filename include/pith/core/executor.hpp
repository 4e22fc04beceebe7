// SPDX-License-Identifier: Apache-2.0
// Who runs independent pieces of a heavy call. The library starts no thread: the caller passes an executor.
//
// Rule E1  for_each(n, f) calls f(i) exactly once for every i in [0, n) and returns after all of them.
// Rule E2  calls may run in any order and at the same time; f does not throw.
// Rule E3  results never depend on the order or the number of threads.
#pragma once

#include <cstdint>

namespace pith {

template <class E>
concept executor = requires(E& e, std::int64_t n, void (*f)(std::int64_t)) { e.for_each(n, f); };

// One after the other, on the calling thread.
struct serial {
  template <class Function>
  constexpr void for_each(std::int64_t count, Function&& function) const {
    for (std::int64_t i = 0; i < count; ++i) function(i);
  }
};
static_assert(executor<serial>);

#if defined(_OPENMP)
// OpenMP's threads, dynamic schedule.
struct openmp {
  template <class Function>
  void for_each(std::int64_t count, Function&& function) const {
#pragma omp parallel for schedule(dynamic)
    for (std::int64_t i = 0; i < count; ++i) function(i);
  }
};
static_assert(executor<openmp>);
#endif

}  // namespace pith
