// SPDX-License-Identifier: Apache-2.0
#include "pith/policy/policy.hpp"

// expect 1: policy<...>: every argument is a stage, or a bundle of stages. Fix: capacity<1024>, best, all_attention, accumulate,
// expect 2: policy<...>: two stages of one kind. Fix: keep one of each; classes of slots go into one protect<sinks<4>, recent<64>>;
// expect 3: policy<...>: best needs something to rank by. Fix: name a signal, say accumulated_attention; or select newest.
// expect 4: policy<...>: newest and ladder_steps look at no score. Fix: leave the signal out, or select best.
// expect 5: window_attention<Rows>: the window's own slots have no score, so they are to be protected. Fix: protect<window<Rows>>.
// expect 6: average_pool<K>, max_pool<K>: K is odd and positive. Fix: average_pool<5>.
// expect 7: best_of_all: all rows are ranked together, so there is nothing to split. Fix: leave the layer and head splits out.
// expect 8: ladder_steps<...>: it keeps its own sinks, and equally many slots everywhere. Fix: leave protect and splits out.
// expect 9: policy<...>: a map over the layer or the model gives all heads the same slots, a head split different ones.
// expect 10: merge<Route, by_similarity>: only most_similar knows the similarity; demote<Bits>: 1 to 16 bits;
// expect 11: protect<...>: every argument is a class of slots. Fix: sinks<4>, recent<64>,
// expect 12: capacity<N>, growing_capacity<N, Every>: N >= 0 and Every > 0. Fix: capacity<1024>.
// expect 13: policy<...>: every argument is a stage, or a bundle of stages.
// expect 14: clamped_distance<Limit>: Limit >= 0. Fix: clamped_distance<4096>.
// expect 15: window_attention<Rows>, weighted_attention<Rows>: at least 1 row,
// expect 16: spread<Next>, by_score: they ask for scores, which newest and ladder_steps do not make.
// expect 17: spread<Next>, by_score: they ask for scores, which newest and ladder_steps do not make.
// expect 18: merge<Route, by_similarity>: only most_similar knows the similarity; demote<Bits>: 1 to 16 bits; spread<Next>: Next > 0.
// expect 19: first_of_layers<N, Map>: N > 0 layers, and a map over a layer. Fix: first_of_layers<8, sum_over_layer>.
// expect 20: fold: rows that were folded cannot be turned to new positions. Fix: leave reindexed and edit_shift out.
// expect 21: byte_capacity<Bytes, TokenBits>: Bytes >= 0 and TokenBits > 0. Fix: byte_capacity<65536, 2048>.
using namespace pith;

#if PITH_WRONG == 1
using wrong = policy<top<64, accumulated_attention>, int>;
#elif PITH_WRONG == 2
using wrong = policy<top<64, accumulated_attention>, capacity<128>>;
#elif PITH_WRONG == 3
using wrong = policy<top<64>>;
#elif PITH_WRONG == 4
using wrong = policy<all_attention, newest>;
#elif PITH_WRONG == 5
using wrong = policy<window_attention<32>, protect<sinks<4>, window<16>>>;
#elif PITH_WRONG == 6
using wrong = policy<all_attention, average_pool<4>>;
#elif PITH_WRONG == 7
using wrong = policy<maximum_attention, best_of_all, arithmetic_layers>;
#elif PITH_WRONG == 8
using wrong = policy<ladder_steps<16>, protect<sinks<4>>>;
#elif PITH_WRONG == 9
using wrong = policy<last_attention, mean_over_layer, pooled_heads>;
#elif PITH_WRONG == 10
using wrong = policy<all_attention, merge<nearest_kept, by_similarity>>;
#elif PITH_WRONG == 11
using wrong = policy<all_attention, protect<sinks<4>, capacity<5>>>;
#elif PITH_WRONG == 12
using wrong = policy<all_attention, capacity<-1>>;
#elif PITH_WRONG == 13
using wrong = policy<all_attention, recent<64>>;  // not inside protect<...>
#elif PITH_WRONG == 14
using wrong = policy<newest, clamped_distance<-1>>;
#elif PITH_WRONG == 15
using wrong = policy<weighted_attention<0>>;
#elif PITH_WRONG == 16
using wrong = policy<newest, spread<8>>;
#elif PITH_WRONG == 17
using wrong = policy<best, merge<nearest_kept, by_score>>;
#elif PITH_WRONG == 18
using wrong = policy<all_attention, spread<0>>;
#elif PITH_WRONG == 19
using wrong = policy<all_attention, first_of_layers<4, sum_over_group>>;
#elif PITH_WRONG == 20
using wrong = policy<newest, fold, reindexed>;
#elif PITH_WRONG == 21
using wrong = policy<newest, byte_capacity<4096, 0>>;
#else
using wrong = policy<reindexed, best, protect<recent<64>, sinks<4>>, max_pool<7>, window_attention<32>, capacity<512>, pooled_heads>;
#endif

int one() { return keep<wrong>::type{}.due({}); }
