// SPDX-License-Identifier: Apache-2.0
// GEAR and GEAR-L: low-bit integers, a low-rank matrix for what their errors have in common, and a few exact outliers.
//
//   x = outliers + integers + low rank;   keys as KIVI's per channel, values per token
//
// Beside cache/recipes.hpp because low_rank needs Eigen; not in <pith/pith.hpp>.
// from     Kang et al., GEAR: An Efficient KV Cache Compression Recipe for Near-Lossless Generative Inference of LLM, 2024, sections 3, 4
// differs  a chunk is a page of Tokens, prefill and decoding alike, and has one rank; one outlier at each end of a vector of a page's tokens
//          (keys) or of a head's channels (values), not 1 % of all heads' channels; an outlier is a delta that the next stages correct,
//          so low rank adds no error there; where a vector is a group, the outlier leaves the vector's end, not its mean: 6 % less error on
//          the example model; every step of the power iteration is orthogonalised
#pragma once

#include "pith/cache/slots.hpp"
#include "pith/codec/integer.hpp"
#include "pith/codec/low_rank.hpp"
#include "pith/codec/outliers.hpp"
#include "pith/codec/sum.hpp"

namespace pith::recipes {

// One outlier at each end of a vector; what it leaves fits groups of Group.
template <class Vector, int Length, int Group>
using gear_outliers = outliers<both_ends<1>, Vector, Length == Group ? leave::end : leave::mean>;

// Bits 2 (the paper's), 3, 4 or 8. Rank 2 and 64 tokens are the paper's for decoding; pages<paged<256>> with rank 4 halve the rank's bits.
template <int HeadDim, int Bits = 2, int Rank = 2, int Tokens = 64, int Group = (HeadDim < 64 ? 16 : 64), class Accuracy = integer_accuracy>
struct gear : kv_cache<head_dim<HeadDim>,
                       keys<sum<gear_outliers<per_channel<>, Tokens, Group>, integer<Bits, per_channel<Group>>, low_rank<Rank>>>,
                       values<sum<gear_outliers<per_token<>, HeadDim, Group>, integer<Bits, per_token<Group>>, low_rank<Rank>>>,
                       pages<paged<Tokens>>, pith::raw<first<4>, last<32>>, pith::accuracy<Accuracy>> {};

// Without outliers.
template <int HeadDim, int Bits = 2, int Rank = 2, int Tokens = 64, int Group = (HeadDim < 64 ? 16 : 64), class Accuracy = integer_accuracy>
struct gear_l : kv_cache<head_dim<HeadDim>, keys<sum<integer<Bits, per_channel<Group>>, low_rank<Rank>>>,
                         values<sum<integer<Bits, per_token<Group>>, low_rank<Rank>>>, pages<paged<Tokens>>,
                         pith::raw<first<4>, last<32>>, pith::accuracy<Accuracy>> {};

}  // namespace pith::recipes
