// SPDX-License-Identifier: Apache-2.0
// Published policies whose losers live on: in fewer bits, or folded into a state. C is what a KV head keeps as it is, protected slots
// included; the rest as in recipes.hpp.
//
// differs  see the stages, cache/demotion.hpp, kernel_fold.hpp and sampled_fold.hpp
#pragma once

#include "pith/policy/policy.hpp"

namespace pith::recipes {

// Yang et al., No Token Left Behind (MiKV), 2024: H2O's scores; the important slots stay, the others go to Bits bits
template <std::int64_t C = 1024, int Bits = 4, std::int64_t Recent = C / 2>
struct mikv : policy<every_step, top<C, accumulated_attention>, protect<recent<Recent>>, demote<Bits>> {};

// Zhang et al., More Tokens, Lower Precision, 2024: any policy without a total of its own; Bytes a KV head, TokenBits of a key and a value
// in the cache's codec (cache/demotion.hpp: token_bits)
template <std::int64_t Bytes, std::int64_t TokenBits, class... Stages>
struct quantized_pruning : policy<Stages..., byte_capacity<Bytes, TokenBits>> {};

// Dong et al., LESS, 2024: H2O, and what leaves is folded by two trained feature maps (kernel_fold.hpp)
template <std::int64_t C = 1024, std::int64_t Recent = C / 2>
struct less : policy<every_step, top<C, accumulated_attention>, protect<recent<Recent>>, fold> {};

// Zandieh et al., SubGen, 2024: the newest slots stay, what leaves is sampled (sampled_fold.hpp)
template <std::int64_t C = 1024>
struct subgen : policy<every_step, capacity<C>, newest, fold> {};

}  // namespace pith::recipes
