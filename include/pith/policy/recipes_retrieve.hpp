// SPDX-License-Identifier: Apache-2.0
// Published retrieval methods as compositions: nothing leaves, and a step reads the kept slots alone. C is what a KV head reads, protected
// slots included. Each says where its scores come from, and, if lists are reused, by which rule (reuse.hpp).
//
// differs  the heads of a group read one list of their KV head; ties go to the newer slot; dense layers are the caller's
#pragma once

#include "pith/policy/policy.hpp"
#include "pith/policy/reuse.hpp"

namespace pith::recipes {

// Tang et al., Quest, 2024: given = slot_bounds of pages of 16 (page_box.hpp)
template <std::int64_t C = 4096>
struct quest : policy<every_step, given_scores, max_over_group, protect<last_page<16>>, capacity<C>, best_units<16>, retrieve> {
  constexpr quest() { this->template at<stage::select>().rule = unit_score::maximum; }
};

// Yang et al., LServe, 2025: given = slot_bounds of pages of 64 with 4 boxes; budget.head_table is not zero for heads that read C slots,
// the others read sinks and newest slots alone. differs: the former read sinks and newest slots too
template <std::int64_t C = 4096, std::int64_t Sinks = 128, std::int64_t Recent = 256>
struct lserve : policy<every<4>, given_scores, max_over_group, protect<sinks<Sinks>, recent<Recent>>, unbounded, full_or_stream_heads<0>,
                       best_units<64>, retrieve> {
  constexpr lserve() {
    this->template at<stage::select>().rule = unit_score::maximum;
    this->template at<stage::head_split>().full = C > Sinks + Recent ? C - Sinks - Recent : 0;
  }
};

// Wu et al., TokenSelect, 2024: given = query_weights of each head over the slots that are not protected; all heads of a layer vote.
// differs: positions stay as they were
template <std::int64_t C = 2048 + 128 + 512, std::int64_t Sinks = 128, std::int64_t Recent = 512>
struct token_select : policy<on_drift, given_scores, sum_over_layer, protect<sinks<Sinks>, recent<Recent>>, capacity<C>, best, retrieve> {
  static constexpr reuse_rule reuse{};
  constexpr token_select() { this->template at<stage::trigger>().similarity = 0.9; }
};

// Tang et al., Round Attention, 2025: asked at the watershed layer for all layers behind it, whose rows of a round share groups; `mask`
// names the round that is being answered
template <std::int64_t C = 4096>
struct round_attention
    : policy<every_step, all_attention, accumulate, sum_over_layer, protect<masked_slots>, capacity<C>, best_groups, retrieve> {
  constexpr round_attention() { this->template at<stage::select>().rule = unit_score::sum; }
};

// Wu et al., LouisKV, 2025: groups of cluster_keys (the prompt) and of runs between drifts (what was generated); given = query_weights of
// their centroids, spread over their slots
template <std::int64_t C = 2048, std::int64_t Sinks = 16, std::int64_t Recent = 64>
struct louis_kv
    : policy<on_drift, given_scores, mean_over_group, protect<sinks<Sinks>, recent<Recent>>, capacity<C>, best_groups, retrieve> {
  static constexpr reuse_rule reuse{drift_from::last_step, true};
};

// Jie et al., SpeCache, 2025: sum = the attention of the next token's query to the copy of few bits; kept slots are read in full precision,
// the others in few bits, and the two merged (page/merge.hpp)
template <std::int64_t C = 256>
struct spe_cache : policy<every_step, last_attention, capacity<C>, best, retrieve> {};

// Pan et al., InstInfer, 2024, after SparQ: given = partial_weights; the output is blended with the mean value by their mass (blend_mean)
template <std::int64_t C = 1024>
struct inst_infer : policy<every_step, given_scores, mean_over_group, protect<recent<1>>, capacity<C>, best, retrieve> {};

}  // namespace pith::recipes
