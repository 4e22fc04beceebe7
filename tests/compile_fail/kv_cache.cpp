// SPDX-License-Identifier: Apache-2.0
#include "pith/cache/kv_cache.hpp"
#include "pith/codec/dynamic_float.hpp"
#include "pith/codec/hadamard.hpp"
#include "pith/codec/integer.hpp"
#if PITH_WRONG != 26
#include "pith/cpu/attention.hpp"
#endif

// expect 1: kv_cache<...>: exactly one keys<Codec> is needed. Fix: keys<int4<per_token<64>>>.
// expect 2: kv_cache<...>: exactly one values<Codec> is needed. Fix: values<int4<per_token<64>>>.
// expect 3: kv_cache<...>: exactly one head_dim is needed. Fix: head_dim<64>.
// expect 4: kv_cache<...>: exactly one keys<Codec> is needed.
// expect 5: kv_cache<...>: a slot is given twice. Fix: keep one of each kind.
// expect 6: kv_cache<...>: every argument is a slot. Fix: wrap it:
// expect 7: keys<C>: C is not a codec. Fix: raw<bf16>,
// expect 8: values<C>: C is not a codec. Fix: raw<bf16>,
// expect 9: last<N>: a query sees its own token raw, so N is at least 1. Fix: last<32>.
// expect 10: first<N>: N is 0 to 256. Fix: first<4>.
// expect 11: side<...>: the side arrays are positions, liveness, bias and births. Fix: side<liveness>.
// expect 12: paged<N>: a page holds whole blocks of 32 tokens. Fix: paged<64>.
// expect 13: head_dim<K, V>: multiples of 16 up to 256. Fix: pad the head to the next multiple of 16.
// expect 14: per_token<G>: the channels must be a multiple of the group G.
// expect 15: per_channel<G>: a group spans G tokens of a page.
// expect 16: hadamard<N>: N is a power of two up to 1024. Fix: hadamard<64>.
// expect 17: hadamard<N>: the channels must be a multiple of N. Fix: an N that divides head_dim.
// expect 18: integer<Bits, ...>: Bits is 2 to 8. Fix: int4<...>.
// expect 19: integer<Bits, Group>: Group says who shares a scale. Fix: per_token<64> or per_channel<32>.
// expect 20: per_token<G>, per_channel<G>: G is 16, 32, 64, 128 or 256.
// expect 21: accuracy<A>: A is exact_accuracy or integer_accuracy. Fix: accuracy<integer_accuracy>.
// expect 22: kv_cache<...>: every argument is a slot. Fix: wrap it:
// expect 23: hadamard<N>: N is a power of two up to 1024. Fix: hadamard<64>.
// expect 24: head_dim<K, V>: multiples of 16 up to 256.
// expect 25: kv_cache<...>: every argument is a slot. Fix: wrap it:
// expect 26: kv_cache<...>: no backend is included. Fix: #include "pith/cpu/attention.hpp".
// expect 27: last<N>: a query sees its own token raw, so N is at least 1. Fix: last<32>.
// expect 28: per_channel<G>: a group spans G tokens of a page.
// expect 29: pipe<T, C>: C has a variable rate. Fix: C alone,
// expect 30: keys<C>: C takes heads of a multiple of 32 channels. Fix: pad the head, or raw<bf16>.
using namespace pith;
using codec_type = int4<per_token<16>>;

#if PITH_WRONG == 1
struct recipe : kv_cache<head_dim<64>, values<codec_type>> {};
#elif PITH_WRONG == 2
struct recipe : kv_cache<head_dim<64>, keys<codec_type>> {};
#elif PITH_WRONG == 3
struct recipe : kv_cache<keys<codec_type>, values<codec_type>> {};
#elif PITH_WRONG == 4
struct recipe : kv_cache<head_dim<64>, keys<codec_type>, keys<codec_type>, values<codec_type>> {};
#elif PITH_WRONG == 5
struct recipe : kv_cache<head_dim<64>, keys<codec_type>, values<codec_type>, pages<paged<64>>, pages<paged<128>>> {};
#elif PITH_WRONG == 6
struct recipe : kv_cache<head_dim<64>, keys<codec_type>, codec_type> {};
#elif PITH_WRONG == 7
struct recipe : kv_cache<head_dim<64>, keys<int>, values<codec_type>> {};
#elif PITH_WRONG == 8
struct recipe : kv_cache<head_dim<64>, keys<codec_type>, values<bf16>> {};
#elif PITH_WRONG == 9
struct recipe : kv_cache<head_dim<64>, keys<codec_type>, values<codec_type>, raw<first<4>, last<0>>> {};
#elif PITH_WRONG == 10
struct recipe : kv_cache<head_dim<64>, keys<codec_type>, values<codec_type>, raw<first<1000>, last<0>>> {};
#elif PITH_WRONG == 11
struct recipe : kv_cache<head_dim<64>, keys<codec_type>, values<codec_type>, side<int>> {};
#elif PITH_WRONG == 12
struct recipe : kv_cache<head_dim<64>, keys<codec_type>, values<codec_type>, pages<paged<48>>> {};
#elif PITH_WRONG == 13
struct recipe : kv_cache<head_dim<20>, keys<raw<bf16>>, values<raw<bf16>>> {};
#elif PITH_WRONG == 14
struct recipe : kv_cache<head_dim<80>, keys<int4<per_token<64>>>, values<int4<per_token<64>>>> {};
#elif PITH_WRONG == 15
struct recipe : kv_cache<head_dim<64>, keys<int4<per_channel<128>>>, values<codec_type>, pages<paged<64>>> {};
#elif PITH_WRONG == 16
struct recipe : kv_cache<head_dim<96>, keys<pith::pipe<hadamard<48>, codec_type>>, values<codec_type>> {};
#elif PITH_WRONG == 17
struct recipe : kv_cache<head_dim<80>, keys<pith::pipe<hadamard<64>, codec_type>>, values<codec_type>> {};
#elif PITH_WRONG == 18
struct recipe : kv_cache<head_dim<64>, keys<integer<9, per_token<32>>>, values<integer<9, per_token<32>>>> {};
#elif PITH_WRONG == 19
struct recipe : kv_cache<head_dim<64>, keys<codec_type>, values<integer<4, int>>> {};
#elif PITH_WRONG == 20
struct recipe : kv_cache<head_dim<64>, keys<int4<per_token<24>>>, values<codec_type>> {};
#elif PITH_WRONG == 21
struct recipe : kv_cache<head_dim<64>, keys<codec_type>, values<codec_type>, accuracy<int>> {};
#elif PITH_WRONG == 22
struct recipe : kv_cache<head_dim<64>, keys<codec_type>, values<codec_type>, first<4>, last<32>> {};  // not inside raw<...>
#elif PITH_WRONG == 23
struct recipe : kv_cache<head_dim<64>, keys<codec_type>, values<pith::pipe<hadamard<3>, codec_type>>> {};
#elif PITH_WRONG == 24
struct recipe : kv_cache<head_dim<64, 512>, keys<codec_type>, values<codec_type>> {};
#elif PITH_WRONG == 25
struct recipe : kv_cache<head_dim<64>, keys<codec_type>, values<codec_type>, pages<int>> {};
#elif PITH_WRONG == 26
struct recipe : kv_cache<head_dim<64>, keys<codec_type>, values<codec_type>> {};
#elif PITH_WRONG == 27
struct recipe : kv_cache<head_dim<64>, keys<codec_type>, values<codec_type>, raw<last<0>>> {};
#elif PITH_WRONG == 28
struct recipe : kv_cache<head_dim<64>, keys<pith::pipe<hadamard<64>, int4<per_channel<64>>>>, values<codec_type>, pages<paged<96>>> {};
#elif PITH_WRONG == 29
struct recipe : kv_cache<head_dim<64>, keys<pith::pipe<hadamard<64>, dynamic_float<bf16>>>, values<codec_type>> {};
#elif PITH_WRONG == 30
struct recipe : kv_cache<head_dim<80>, keys<dynamic_float<bf16>>, values<codec_type>> {};
#else
struct recipe : kv_cache<values<codec_type>, raw<last<32, 64>, first<4>>, side<bias, liveness>, keys<pith::pipe<hadamard<16>, codec_type>>,
                         head_dim<80, 64>, pages<paged<128>>, accuracy<exact_accuracy>> {};
#endif

auto make_one() { return make<recipe>({.bytes = 1 << 20}); }
std::int64_t one_page() { return recipe::page::bytes; }
