// SPDX-License-Identifier: Apache-2.0
#include "pith/cache/layer_pair.hpp"
#include "pith/cpu/attention.hpp"
#if PITH_WRONG == 1
#include "pith/cache/keep.hpp"
#endif

// expect 1: layer_pair<Recipe>: nothing leaves a pair of layers. Fix: leave keep<...> out.
using namespace pith;

template <class... More>
struct recipe : kv_cache<head_dim<64>, keys<int8<per_token<32>>>, values<int8<per_token<32>>>, More...> {};

#if PITH_WRONG == 1
using wrong = layer_pair<recipe<keep<capacity<64>, newest>>>;
#else
using wrong = layer_pair<recipe<>>;
#endif

bool one() { return static_cast<bool>(wrong::make({.max_tokens = 64})); }
