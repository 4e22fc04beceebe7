// SPDX-License-Identifier: Apache-2.0
#include "pith/cache/select_cache.hpp"
#include "pith/codec/balance.hpp"
#include "pith/codec/integer.hpp"
#include "pith/codec/permute.hpp"
#include "pith/codec/relayout.hpp"
#include "pith/cpu/attention.hpp"
#include "pith/cpu/linear.hpp"
#include "pith/linear/packed_matrix.hpp"

// expect 1: make<Recipe>(shape): a codec of this composition has calibrated state. Fix: make<Recipe>(shape, calibration).
// refuse 2: no matching
// expect 3: select_cache<A, B, ...>: heads of different sizes. Fix: give every recipe the same head_dim.
// expect 4: relayout<Codec, ...>: Codec has no word layout. Fix: the leaf inside pipe<...>, or a part of sum<...>.
// expect 5: packed_matrix<Codec>: Codec has calibrated state.
using namespace pith;

template <int HeadDim>
struct ordered : kv_cache<head_dim<HeadDim>, keys<pith::pipe<permute, int8<per_token<32>>>>, values<int8<per_token<32>>>> {};
template <int HeadDim>
struct plain : kv_cache<head_dim<HeadDim>, keys<int8<per_token<32>>>, values<int8<per_token<32>>>> {};

#if PITH_WRONG == 1
bool wrong() { return static_cast<bool>(make<ordered<64>>({})); }
#elif PITH_WRONG == 2
bool wrong() {
  channel_scales<64> const* scales = nullptr;
  return static_cast<bool>(make<ordered<64>>({}, {.keys = {std::span(scales, 0)}}));
}
#elif PITH_WRONG == 3
using wrong = select_cache<plain<64>, plain<128>>;
bool made = static_cast<bool>(wrong::make({}));
#elif PITH_WRONG == 4
void wrong(std::byte const* in, std::byte* out) { relayout<pith::pipe<permute, int8<per_token<32>>>, 64, 64, use::dot, use::mix>(in, out); }
#elif PITH_WRONG == 5
std::int64_t wrong() { return packed_matrix<pith::pipe<balance, int8<per_token<32>>>>::bound_bytes(1, 1); }
#else
bool right(std::span<permutation<64> const> states) { return static_cast<bool>(make<ordered<64>>({}, {.keys = {states}})); }
#endif
