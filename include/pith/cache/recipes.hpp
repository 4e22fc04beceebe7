// SPDX-License-Identifier: Apache-2.0
// Published and plain compositions by name. Each is a list of slots; derive from it to name your own, or read it as an example.
//
// HeadDim is the channels of a key and of a value head. The suffix _exact computes with decoded values (exact_accuracy), the others with
// integer codes where the codec has them. Quality and speed of each stand in docs/benchmarks.md and in the table of examples/run.sh.
#pragma once

#include "pith/cache/slots.hpp"
#include "pith/codec/block_float.hpp"
#include "pith/codec/dynamic_float.hpp"
#include "pith/codec/float8.hpp"
#include "pith/codec/hadamard.hpp"
#include "pith/codec/integer.hpp"
#include "pith/codec/permute.hpp"

namespace pith::recipes {

// The baseline: 16-bit floats in pages.
template <int HeadDim>
struct bf16_cache : kv_cache<head_dim<HeadDim>, keys<pith::raw<bf16>>, values<pith::raw<bf16>>, pith::raw<last<32>>> {};

// Keys and values without loss: every bit of the bf16 numbers, exponents coded. Coder: exponent_window, or exponent_planes: smaller, slower.
//
// from     Heilper and Singer, Lossless Compression of Neural Network Components: Weights, Checkpoints, and K/V Caches in Low-Precision
//          Formats, 2025 (exponents of K/V caches, coded apart from the mantissas)
// differs  tiles of 32 tokens that attention reads as they are; codes of one or two bits and escapes instead of Huffman's; a start for each
//          token of keys and for 32 channels of values
template <int HeadDim, class Coder = exponent_window>
struct lossless_cache
    : kv_cache<head_dim<HeadDim>, keys<dynamic_float<bf16, Coder>>, values<dynamic_float<bf16, Coder>>, pith::raw<last<32>>> {};

// Keys and values quantized per token: one scale and zero for each token and head.
template <int HeadDim, int Bits, class Accuracy = integer_accuracy, int Group = (HeadDim < 64 ? HeadDim : 64)>
struct per_token_cache : kv_cache<head_dim<HeadDim>, keys<integer<Bits, per_token<Group>>>, values<integer<Bits, per_token<Group>>>,
                                  pith::raw<first<4>, last<32>>, pith::accuracy<Accuracy>> {};
template <int HeadDim>
using int8_cache = per_token_cache<HeadDim, 8>;
template <int HeadDim>
using int4_cache = per_token_cache<HeadDim, 4>;
template <int HeadDim>
using int3_cache = per_token_cache<HeadDim, 3, integer_accuracy, 32>;
template <int HeadDim>
using int2_cache = per_token_cache<HeadDim, 2, integer_accuracy, 32>;
template <int HeadDim>
using int8_cache_exact = per_token_cache<HeadDim, 8, exact_accuracy>;
template <int HeadDim>
using int4_cache_exact = per_token_cache<HeadDim, 4, exact_accuracy>;

// KIVI: keys per channel over groups of tokens, values per token over groups of channels, the newest tokens raw.
// from     Liu et al., KIVI: A Tuning-Free Asymmetric 2bit Quantization for KV Cache, 2024, section 3
// differs  keys leave the raw window a tile at a time, not a whole window at once; codes come from the reciprocal of the stored scale
template <int HeadDim, int Bits, int Group = 32, int Last = 32, class Accuracy = integer_accuracy>
struct kivi : kv_cache<head_dim<HeadDim>, keys<integer<Bits, per_channel<Group>>>, values<integer<Bits, per_token<Group>>>,
                       pith::raw<first<4>, last<Last>>, pith::accuracy<Accuracy>> {};
template <int HeadDim>
using kivi4 = kivi<HeadDim, 4>;
template <int HeadDim>
using kivi2 = kivi<HeadDim, 2>;  // the paper's: groups of 32; its raw window is 128
template <int HeadDim>
using int8_per_channel = kivi<HeadDim, 8>;

// Keys and values rotated by a Hadamard matrix before per-token quantization: outlier channels are spread out.
// from     Ashkboos et al., QuaRot, 2024, section 4 (KV cache)
template <int HeadDim, int Bits, int Group = 32, class Accuracy = integer_accuracy>
struct rotated
    : kv_cache<head_dim<HeadDim>, keys<pipe<hadamard<HeadDim>, integer<Bits, per_token<Group>>>>,
               values<pipe<hadamard<HeadDim>, integer<Bits, per_token<Group>>>>, pith::raw<first<4>, last<32>>, pith::accuracy<Accuracy>> {
};
template <int HeadDim>
using rotated4 = rotated<HeadDim, 4>;
template <int HeadDim>
using rotated2 = rotated<HeadDim, 2>;

// Keys and values in block floating point: an exponent for each token and Group channels, Bits bits a number. block_float_cache<D, 4> is
// BFP12, block_float_cache<D, 8> BFP16.
// from     Trukhanov and Soloveychik, Accurate Block Quantization in LLMs with Outliers, 2024 (BFP12 keys, blocks of 32 and 64)
// differs  values too; the channels are not sorted
template <int HeadDim, int Bits, int Group = 32, class Accuracy = integer_accuracy>
struct block_float_cache
    : kv_cache<head_dim<HeadDim>, keys<block_float<Bits, per_token<Group>>>, values<block_float<Bits, per_token<Group>>>,
               pith::raw<first<4>, last<32>>, pith::accuracy<Accuracy>> {};

// Accurate Block Quantization: the keys' channels sorted by calibrated size first, so that outlier channels share exponents with each other.
// from     Trukhanov and Soloveychik, 2024 (K-sort). A permutation for each (layer, KV head): permutation<HeadDim>::descending(norms)
// differs  sorted when a tile is sealed and when a query comes, not in the weights; values are not sorted
template <int HeadDim, int Bits = 4, int Group = 32, class Accuracy = integer_accuracy>
struct accurate_block
    : kv_cache<head_dim<HeadDim>, keys<pipe<permute, block_float<Bits, per_token<Group>>>>, values<block_float<Bits, per_token<Group>>>,
               pith::raw<first<4>, last<32>>, pith::accuracy<Accuracy>> {};

// The plain FP8 cache: every number as an 8-bit float, no scales; T e4m3 or e5m2. With a Group (per_token<64>) the maximum of a group becomes
// the largest of T.
// from     Micikevicius et al., FP8 Formats for Deep Learning, 2022
template <int HeadDim, class T = e4m3, class Group = ungrouped>
struct fp8_cache : kv_cache<head_dim<HeadDim>, keys<float8<T, Group>>, values<float8<T, Group>>, pith::raw<last<32>>> {};

}  // namespace pith::recipes
