// SPDX-License-Identifier: Apache-2.0
// Published policies as compositions; those that retrieve are in recipes_retrieve.hpp. C is what a KV head keeps, protected slots included;
// W the rows of the observation window; what a paper sets as a real number is a field of a stage (at<stage::...>()).
//
// differs  see the stages: shares sum to their totals, ties go to the newer slot, heads are mapped first, survivors ascend
#pragma once

#include "pith/policy/policy.hpp"
#include "pith/policy/recipes_retrieve.hpp"

namespace pith::recipes {

// Xiao et al., Efficient Streaming Language Models with Attention Sinks, 2023
template <std::int64_t C = 1024, std::int64_t Sinks = 4>
struct streaming_llm : policy<every_step, protect<sinks<Sinks>>, capacity<C>, newest, reindexed> {};

// Han et al., LM-Infinite, 2023: the newest Limit, and sinks that are never seen from farther away than that
template <std::int64_t Limit = 4096, std::int64_t Sinks = 10>
struct lm_infinite : policy<every_step, protect<sinks<Sinks>>, capacity<Limit + Sinks>, newest, clamped_distance<Limit>> {};

// Zhang et al., H2O, 2023: half of the slots by score, half the newest
template <std::int64_t C = 1024, std::int64_t Recent = C / 2>
struct h2o : policy<every_step, top<C, accumulated_attention>, protect<recent<Recent>>> {};

// Liu et al., Scissorhands, 2023: half is dropped at once whenever 2 C is exceeded
template <std::int64_t C = 1024, std::int64_t Recent = 10, std::int64_t Steps = 400>
struct scissorhands : policy<over<C>, all_attention, ignored_count<Steps>, protect<recent<Recent>>, capacity<C>, best> {};

// Oren et al., Transformers are Multi-State RNNs (TOVA), 2024. differs: the newest slot is protected
template <std::int64_t C = 1024>
struct tova : policy<every_step, last_attention, mean_over_layer, protect<recent<1>>, capacity<C>, best> {};

// Li et al., SnapKV, 2024
template <std::int64_t C = 2048, std::int64_t W = 32>
struct snapkv : policy<on_prefill_end, window_attention<W>, average_pool<5>, protect<window<W>>, capacity<C>, best> {};

// Cai et al., PyramidKV, 2024
template <std::int64_t C = 2048, std::int64_t W = 8>
struct pyramid_kv : policy<on_prefill_end, window_attention<W>, average_pool<5>, protect<window<W>>, capacity<C>, arithmetic_layers, best> {
};

// Feng et al., Ada-KV, 2024
template <std::int64_t C = 1024, std::int64_t W = 32>
struct ada_kv : policy<on_prefill_end, window_attention<W>, max_pool<7>, protect<window<W>>, capacity<C>, pooled_heads, best> {
  constexpr ada_kv() { this->template at<stage::head_split>().concentrate = true; }
};

// Feng et al., CriticalKV, 2025, on SnapKV: policy_input.value_weights is the mean over the group's query heads of |W_O v|_1.
// differs: scores are sums over the window and there means, so epsilon is W times theirs
template <std::int64_t C = 2048, std::int64_t W = 32>
struct critical_kv : policy<on_prefill_end, window_attention<W>, average_pool<5>, protect<window<W>>, capacity<C>, best_twice> {
  constexpr critical_kv() { this->template at<stage::select>().epsilon = 1e-4 * static_cast<double>(W); }
};

// Fu et al., HeadKV, 2024: budget.head_table holds each head's importance
template <std::int64_t C = 1024, std::int64_t W = 32>
struct head_kv : policy<on_prefill_end, window_attention<W>, max_pool<7>, protect<window<W>>, capacity<C>, table_heads, best> {};

// Qin et al., CAKE, 2025: asked again after each layer, for the layers that are done (budget.total)
template <std::int64_t C = 1024, std::int64_t W = 32>
struct cake
    : policy<on_layer_done, window_mean_variance<W>, average_pool<5>, protect<window<W>>, capacity<C>, entropy_variance_layers, best> {};

// Zhong et al., ZigZagKV, 2024: budget.layers.uncertainty is the mean of tokens_of_mass over a layer's heads
template <std::int64_t C = 1024, std::int64_t W = 32>
struct zigzag_kv : policy<on_prefill_end, window_attention<W>, average_pool<5>, protect<window<W>>, capacity<C>, uncertainty_layers, best> {
};

// Ni et al., SCOPE, 2024: `mask` names the prompt's slots that stay
template <std::int64_t C = 512, std::int64_t Recent = 256>
struct scope : policy<every_step, last_attention, protect<masked_slots, recent<Recent>>, growing_capacity<C>, best> {};

// Yao et al., SirLLM, 2024: scores are surprisals, the same for all rows
template <std::int64_t C = 1024>
struct sirllm : policy<over<0>, given_scores, at_birth, protect<sinks<4>>, capacity<C>, best, reindexed> {};

// Corallo and Papotti, Finch, 2024: chunk by chunk, by what the question's rows look at. W is the question's length: set protect's window
// where it comes with the text
template <std::int64_t C = 1024, std::int64_t W = 32>
struct finch : policy<on_chunk_end, weighted_attention<W>, protect<window<W>>, capacity<C>, best, reindexed> {};

// Tang et al., RazorAttention, 2024: budget.head_table is not zero for retrieval heads
template <std::int64_t Stream = 4000>
struct razor_attention : policy<every_step, protect<sinks<4>>, unbounded, full_or_stream_heads<Stream>, newest, compensate> {};

// Shi et al., LaCache, 2025
template <std::int64_t C = 1024, std::int64_t Span = 16, std::int64_t Overlap = 0>
struct lacache : policy<over<0>, capacity<C>, ladder_steps<Span, Overlap>, reindexed> {};

// Zuo et al., WindowKV, 2025, "localisation": groups of layers share the first one's plan. differs: each group has as much as the others
template <std::int64_t C = 1024, std::int64_t W = 32, std::int64_t Layers = 8>
struct window_kv
    : policy<on_prefill_end, window_attention<W>, first_of_layers<Layers, sum_over_layer>, protect<window<W>>, capacity<C>, best_units<8>> {
  constexpr window_kv() { this->template at<stage::select>().rule = unit_score::best_half; }
};

// Huang et al., Locret, 2024: scores of the trained heads
template <std::int64_t C = 6000, std::int64_t Recent = 2500>
struct locret : policy<on_chunk_end, given_scores, at_birth, protect<recent<Recent>>, capacity<C>, best> {};

// Kim et al., KVzip, 2025: statistics of the repeated context
template <std::int64_t Sinks = 4>
struct kvzip : policy<on_prefill_end, maximum_attention, max_over_group, highest, protect<sinks<Sinks>>, capacity_ratio, best_of_all> {
  constexpr kvzip() { this->template at<stage::total>().ratio = 0.3; }
};

// Lancucki et al., Inference-Time Hyper-Scaling with KV Cache Compression (DMS), 2025: scores are the negated eviction logits
template <std::int64_t Recent = 512>
struct dms : policy<every_step, given_scores, at_birth, protect<recent<Recent>>, unbounded, above> {};

// Yang and Hua, Attendre, 2024: least recently attended
template <std::int64_t C = 1024>
struct attendre_lra : policy<on_chunk_end, all_attention, last_use, capacity<C>, best> {};

// The same: least frequently attended
template <std::int64_t C = 1024>
struct attendre_lfa : policy<on_chunk_end, all_attention, use_count, capacity<C>, best> {};

// Wan et al., D2O, 2024; its gate is compensation.hpp's moving_gate
template <std::int64_t C = 1024, std::int64_t Recent = C / 2>
struct d2o : policy<every_step, all_attention, accumulate, protect<sinks<4>, recent<Recent>>, capacity<C>, variance_layers, best,
                    merge<most_similar, by_similarity>> {};

// Liu et al., Elastic Cache, 2024
template <std::int64_t C = 1024>
struct elastic_cache : policy<on_prefill_end, all_attention, mean_over_layer, protect<sinks<1>, recent<1>>, capacity<C>, best,
                              merge<nearest_kept, by_tokens>> {};

// Wang et al., KVMerger, 2024: recent tokens and heavy hitters as they are, the others in runs; merged slots have a bias. differs: the
// capacity decides how alike a run is; all layers merge
template <std::int64_t C = 1024, std::int64_t Recent = C / 4>
struct kv_merger : policy<on_prefill_end, all_attention, protect<recent<Recent>>, capacity<C>, best_runs, merge<own_run, by_distance>> {};

// Li et al., EMS, 2024: kept centres take what resembles them, the rest is dropped. differs: by cosines of keys alone, keys merge with
// their lengths, and the threshold is not the paper's, which is not public
template <std::int64_t C = 256, std::int64_t W = 32>
struct ems : policy<on_prefill_end, global_and_window_attention<W>, protect<window<W>>, capacity<C>, pooled_heads, best,
                    merge<most_similar, by_score>> {
  constexpr ems() { this->template at<stage::dispose>().to.threshold = 0.6; }
};

// Zhang et al., CaM, 2024, on H2O. One loser a step: the parts of many at once add up. differs: the gate compares with the slots that take;
// births decide, not a generator
template <std::int64_t C = 1024, std::int64_t Recent = C / 2, std::int64_t Next = 32>
struct cam : policy<every_step, top<C, accumulated_attention>, protect<recent<Recent>>, spread<Next>> {};

}  // namespace pith::recipes
