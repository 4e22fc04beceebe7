// SPDX-License-Identifier: Apache-2.0
// Caches that keep a part of their tokens, by name: a published policy over a codec. A KV head holds Tokens tokens, those protected
// included.
//
//   snapkv        the prompt's tokens that its last W queries look at most, 4-bit            Li et al., SnapKV, 2024
//   h2o           half by accumulated attention, half the newest, 4-bit                      Zhang et al., H2O, 2023
//   streaming     the first tokens and the newest, bf16                                      Xiao et al., StreamingLLM, 2023
//
// differs  codes are per token, keys too: such rows move as they are stored, so that compaction rounds nothing twice (cache/compactor.hpp).
//          StreamingLLM renumbers positions inside the cache; the keys here are rotated once and keep theirs, as in LM-Infinite
#pragma once

#include "pith/cache/keep.hpp"
#include "pith/codec/integer.hpp"
#include "pith/policy/recipes.hpp"

namespace pith::recipes {

template <int HeadDim, std::int64_t Tokens = 2048, std::int64_t W = 32, int Group = (HeadDim < 64 ? 16 : 64)>
struct snapkv_cache : kv_cache<head_dim<HeadDim>, keys<int4<per_token<Group>>>, values<int4<per_token<Group>>>,
                               pith::raw<first<4>, last<32>>, keep<snapkv<Tokens, W>>> {};

template <int HeadDim, std::int64_t Tokens = 1024, int Group = (HeadDim < 64 ? 16 : 64)>
struct h2o_cache : kv_cache<head_dim<HeadDim>, keys<int4<per_token<Group>>>, values<int4<per_token<Group>>>, pith::raw<first<4>, last<32>>,
                            keep<h2o<Tokens>>> {};

template <int HeadDim, std::int64_t Tokens = 1024, std::int64_t Sinks = 4>
struct streaming_cache : kv_cache<head_dim<HeadDim>, keys<pith::raw<bf16>>, values<pith::raw<bf16>>, pith::raw<first<4>, last<32>>,
                                  keep<every_step, protect<sinks<Sinks>>, capacity<Tokens>, newest>> {};

}  // namespace pith::recipes
