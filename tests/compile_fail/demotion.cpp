// SPDX-License-Identifier: Apache-2.0
#include "pith/cache/demotion.hpp"
#include "pith/codec/integer.hpp"
#include "pith/cpu/attention.hpp"
#if PITH_WRONG == 3
#include "pith/cache/keep.hpp"
#endif

// expect 1: demoting_cache<High, Low>: rows leave the first cache. Fix: side<liveness, births> in it.
// expect 2: demoting_cache<High, Low>: heads of different sizes. Fix: give both the same head_dim.
// expect 3: demoting_cache<High, Low>: the policy decides beside the cache. Fix: leave keep<...> out.
using namespace pith;

template <int HeadDim, class... More>
struct recipe : kv_cache<head_dim<HeadDim>, keys<int8<per_token<32>>>, values<int8<per_token<32>>>, More...> {};

#if PITH_WRONG == 1
using wrong = demoting_cache<recipe<64>, recipe<64>>;
#elif PITH_WRONG == 2
using wrong = demoting_cache<recipe<64, side<liveness, births>>, recipe<32>>;
#elif PITH_WRONG == 3
using wrong = demoting_cache<recipe<64, side<liveness, births>>, recipe<64, keep<capacity<64>, newest>>>;
#else
using wrong = demoting_cache<recipe<64, side<liveness, births>>, recipe<64>>;
#endif

bool one() { return static_cast<bool>(wrong::make({.max_tokens = 64}, 1 << 20)); }
