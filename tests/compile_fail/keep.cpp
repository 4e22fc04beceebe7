// SPDX-License-Identifier: Apache-2.0
#if PITH_WRONG == 1
#include "pith/cache/kv_cache.hpp"
#include "pith/policy/recipes.hpp"
#else
#include "pith/cache/keep.hpp"
#include "pith/cache/select_cache.hpp"
#include "pith/policy/recipes.hpp"
#endif
#include "pith/codec/integer.hpp"
#include "pith/cpu/attention.hpp"
#if PITH_WRONG != 1 && PITH_WRONG != 12
#include "pith/cpu/statistics_engine.hpp"
#endif

// expect 1: keep<...>: caches that choose what stays are in a header of their own. Fix: #include "pith/cache/keep.hpp".
// expect 2: keep<...>: the cache's keys are rotated for their positions already. Fix: leave reindexed, clamped_distance and
// expect 3: keep<...>: a cache drops, merges, spreads or compensates. Fix: drop; to retrieve,
// expect 4: keep<...>: on_drift compares queries that the cache does not keep. Fix: every<16>.
// expect 5: keep<...>: scores come layer by layer, and a map over the model needs all at once. Fix: mean_over_layer.
// expect 6: keep<...>: NaN cannot be ranked. Fix: non_finite<nan_policy::saturate>.
// expect 7: keep<...>: rows that others are merged into are encoded again, one by one. Fix: int8<per_token<64>>, or drop.
// expect 8: keep<...>: a merged row's key and value are sealed together. Fix: last<32>, the same for both.
// expect 9: select_cache<A, B, ...>: what stays is chosen in one cache. Fix: leave out keep<...>, and use the recipe alone.
// expect 10: policy<...>: best needs something to rank by. Fix: name a signal, say accumulated_attention; or select newest.
// expect 11: kv_cache<...>: a slot is given twice. Fix: keep one of each kind.
// expect 12: attention_statistics(): no second pass is included. Fix: #include "pith/cpu/statistics_engine.hpp".
// expect 13: keep<...>: weighted_attention weighs query rows by keys seen, of which heads may hold different numbers.
// expect 14: keep<...>: best_twice weighs slots by the model's output projection, which the cache does not know.
// expect 15: keep<...>: the cache's keys are rotated for their positions already.
// expect 16: keep<...>: global_and_window_attention is two sums, and the cache makes one.
// expect 17: keep<...>: best_runs and own_run ask for all keys when it is decided, and the cache reads those of rows that lose.
// expect 18: keep<...>: scores come layer by layer, and first_of_layers gives one layer's to the next.
// expect 19: keep<...>: the cache does not know which slots are a group. Fix: best_units<16>.
using namespace pith;
using four_bits = int4<per_token<64>>;
template <class Keep, class Keys = four_bits, class... Others>
using cache_with = kv_cache<head_dim<64>, keys<Keys>, values<four_bits>, Keep, Others...>;

#if PITH_WRONG == 2
struct recipe : cache_with<keep<recipes::streaming_llm<>>> {};
#elif PITH_WRONG == 3
struct recipe : cache_with<keep<recipes::quest<>>> {};
#elif PITH_WRONG == 4
struct recipe : cache_with<keep<on_drift, newest>> {};
#elif PITH_WRONG == 5
struct recipe : cache_with<keep<top<64, accumulated_attention>, mean_over_model>> {};
#elif PITH_WRONG == 6
struct recipe : cache_with<keep<recipes::h2o<>>, four_bits, non_finite<nan_policy::propagate>> {};
#elif PITH_WRONG == 7
struct recipe : cache_with<keep<recipes::elastic_cache<>>, int4<per_channel<32>>> {};
#elif PITH_WRONG == 8
struct recipe : cache_with<keep<recipes::razor_attention<>>, four_bits, raw<last<32, 64>>> {};
#elif PITH_WRONG == 10
struct recipe : cache_with<keep<top<64>>> {};
#elif PITH_WRONG == 11
struct recipe : cache_with<keep<recipes::h2o<>>, four_bits, keep<recipes::snapkv<>>> {};
#elif PITH_WRONG == 13
struct recipe : cache_with<keep<weighted_attention<8>, protect<window<8>>>> {};
#elif PITH_WRONG == 14
struct recipe : cache_with<keep<recipes::critical_kv<>>> {};
#elif PITH_WRONG == 15
struct recipe : cache_with<keep<recipes::lm_infinite<>>> {};
#elif PITH_WRONG == 16
struct recipe : cache_with<keep<recipes::ems<>>> {};
#elif PITH_WRONG == 17
struct recipe : cache_with<keep<recipes::kv_merger<>>> {};
#elif PITH_WRONG == 18
struct recipe : cache_with<keep<recipes::window_kv<>>> {};
#elif PITH_WRONG == 19
struct recipe : cache_with<keep<accumulated_attention, best_groups>> {};
#else
struct recipe : cache_with<keep<recipes::h2o<>>> {};
#endif

#if PITH_WRONG == 9
using wrong = select_cache<recipe>;
std::int64_t channels() { return wrong::key_channels; }
#elif PITH_WRONG == 1
std::int64_t one_page() { return recipe::page::bytes; }
#elif PITH_WRONG == 12
status attend(cache<recipe>& of, tensor_view<float const, 3> q, tensor_view<float, 3> out) { return of.attend({}, 0, q, out); }
#else
auto make_one() { return make<recipe>({.bytes = 1 << 20, .max_tokens = 100}); }
#endif
