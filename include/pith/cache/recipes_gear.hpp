// SPDX-License-Identifier: Apache-2.0
// GEAR and GEAR-L: low-bit integers, a low-rank matrix for what their errors have in common, and a few exact outliers.
//
//   x = outliers + integers + low rank;   keys as KIVI's per channel, values per token
//
// Beside cache/recipes.hpp because low_rank needs Eigen; not in <pith/pith.hpp>.
// from     Kang et al., GEAR: An Efficient KV Cache Compression Recipe for Near-Lossless Generative Inference of LLM, 2024, sections 3, 4
// differs  a chunk is a page of Tokens, prefill and decoding alike, and has one rank; one outlier at each end of a vector (a channel of the
//          page, a token's channels of one head), not 1 % of all heads' channels; an outlier is a delta that the next stages correct, so
//          that low rank adds no error there; where a vector is a group, the outlier leaves the vector's end, not its mean: attention's
//          error is 6 % less on the example model; every step of the power iteration is orthogonalised
// quality  the example model (head_dim 64), nothing raw, relative error of keys, values and attention: 2-bit kivi in groups of 64 (2.5 bits
//          per value) 0.316, 0.444, 0.608; gear_l (3.5 bits) 0.282, 0.410, 0.552; gear (4.25 bits) 0.245, 0.338, 0.464. Plain 3-bit kivi
//          (3.5 bits) has 0.134, 0.190, 0.317: there, a third bit buys more
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

// Bits 2 (the paper's), 3, 4 or 8. Rank 2 and 64 tokens are the paper's for decoding. Longer pages cost fewer bits: 256 tokens halve those
// of the rank (head_dim 128) and quarter those of the keys' outliers.
template <int HeadDim, int Bits = 2, int Rank = 2, int Tokens = 64, int Group = (HeadDim < 64 ? 16 : 64), class Accuracy = integer_accuracy>
struct gear
    : kv_cache<head_dim<HeadDim>, keys<sum<gear_outliers<per_channel<>, Tokens, Group>, integer<Bits, per_channel<Group>>, low_rank<Rank>>>,
               values<sum<gear_outliers<per_token<>, HeadDim, Group>, integer<Bits, per_token<Group>>, low_rank<Rank>>>,
               pages<paged<Tokens>>, pith::raw<first<4>, last<32>>, pith::accuracy<Accuracy>> {};

// Without outliers.
template <int HeadDim, int Bits = 2, int Rank = 2, int Tokens = 64, int Group = (HeadDim < 64 ? 16 : 64), class Accuracy = integer_accuracy>
struct gear_l : kv_cache<head_dim<HeadDim>, keys<sum<integer<Bits, per_channel<Group>>, low_rank<Rank>>>,
                         values<sum<integer<Bits, per_token<Group>>, low_rank<Rank>>>, pages<paged<Tokens>>, pith::raw<first<4>, last<32>>,
                         pith::accuracy<Accuracy>> {};

}  // namespace pith::recipes
