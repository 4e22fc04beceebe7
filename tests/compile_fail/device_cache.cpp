// SPDX-License-Identifier: Apache-2.0
#include "pith/cache/keep.hpp"
#include "pith/cache/kv_cache.hpp"
#include "pith/codec/dynamic_float.hpp"
#include "pith/codec/integer.hpp"
#include "pith/codec/outliers.hpp"
#include "pith/codec/permute.hpp"
#include "pith/codec/sum.hpp"
#include "pith/cpu/attention.hpp"
#include "pith/cuda/attention_statistics.hpp"
#include "pith/cuda/cache.hpp"

// expect 1: make<Recipe>(shape): the composition runs on<cuda>. Fix: make<Recipe>(env, shape, memory) of "pith/cuda/cache.hpp".
// expect 2: make<Recipe>(env, ...): the composition does not run on the device. Fix: add on<cuda> to its slots.
// expect 3: make<Recipe>(env, ...): the composition does not run on the device. Fix: add on<cuda> to its slots.
// expect 4: on<cuda>: side<positions> is not kept on the device. Fix: leave it out; windows count tokens.
// expect 5: make<Recipe>(env, shape, memory): a codec of this composition has calibrated state.
// expect 6: this codec has no device form. Fix: raw, int2 to int8,
// refuse 7: evict
// expect 8: make<Recipe>(shape): the composition runs on<cuda>.
// expect 9: this codec has no device form. Fix: raw, int2 to int8,
// expect 10: on<cuda>: the device's cache keeps every token. Fix: leave out keep<...>;
// expect 11: on<cuda>: the device's cache is not compacted. Fix: leave out side<births>.
// expect 12: attention_statistics(cuda{}, ...): statistic::row_entropy is not computed on a device. Fix: statistic::entropy;
// expect 13: attention_statistics(cuda{}, ...): statistic::row_entropy is not computed on a device. Fix: statistic::entropy;
// expect 14: attention_statistics(cuda{}, ...): the view names no statistic. Fix: device_statistics_view<
using namespace pith;

// What a stream and its memory look like from the host.
struct environment {
  template <class Kernel>
  status launch(Kernel const&, device::grid const&) const {
    return {};
  }
  status copy(std::byte*, std::byte const*, std::int64_t) const { return {}; }
  std::span<std::byte> scratch() const { return {}; }
  std::uint64_t* status_word() const { return nullptr; }
  int multiprocessors() const { return 1; }
};

using four_bits = int4<per_token<16>>;
struct plain : kv_cache<head_dim<64>, keys<four_bits>, values<four_bits>> {};
struct on_cpu : kv_cache<head_dim<64>, keys<four_bits>, values<four_bits>, on<cpu>> {};
struct on_device : kv_cache<head_dim<64>, keys<four_bits>, values<four_bits>, on<cuda>> {};
struct with_positions : kv_cache<head_dim<64>, keys<four_bits>, values<four_bits>, side<positions>, on<cuda>> {};
struct permuted : kv_cache<head_dim<64>, keys<pith::pipe<permute, four_bits>>, values<four_bits>, on<cuda>> {};
struct summed
    : kv_cache<head_dim<64>, keys<sum<outliers<both_ends<1>, per_token<>, leave::mean>, four_bits>>, values<four_bits>, on<cuda>> {};
struct lossless : kv_cache<head_dim<64>, keys<four_bits>, values<dynamic_float<bf16>>, on<cuda>> {};
struct evictable : kv_cache<head_dim<64>, keys<four_bits>, values<four_bits>, side<liveness>, on<cuda>> {};

struct compacted : kv_cache<head_dim<64>, keys<four_bits>, values<four_bits>, side<liveness, births>, on<cuda>> {};
struct choosing : kv_cache<head_dim<64>, keys<four_bits>, values<four_bits>, pith::keep<pith::capacity<64>, pith::newest>, on<cuda>> {};

template <class Recipe>
auto make_on_device() {
  return make<Recipe>(environment{}, {.max_sequences = 4, .max_tokens = 1000}, std::span<std::byte>{});
}
template <class Recipe>
status append_on_device(device_cache<Recipe, environment>& cache) {
  tensor_view<bf16, 3, space::device> const rows;
  return cache.append(environment{}, {}, 0, rows, rows, {});
}

template <statistic Which>
status rank_on_device(device_cache<on_device, environment>& cache) {
  tensor_view<bf16, 3, space::device> const rows;
  return cache.attention_statistics(environment{}, {}, 0, rows, {}, {}, device_statistics_view<group_reduction::none, Which>{});
}
template <statistic... Which>
status rank_pages_on_device() {
  tensor_view<bf16, 3, space::device> const rows;
  return attention_statistics(cuda{}, environment{}, device_pages<on_device::page>{}, nullptr, 0, rows, {},
                              device_statistics_view<group_reduction::none, Which...>{});
}

#if PITH_WRONG == 1
auto wrong() { return make<on_device>({.bytes = 1 << 20}); }
#elif PITH_WRONG == 2
auto wrong() { return make_on_device<plain>(); }
#elif PITH_WRONG == 3
auto wrong() { return make_on_device<on_cpu>(); }
#elif PITH_WRONG == 4
auto wrong() { return make_on_device<with_positions>(); }
#elif PITH_WRONG == 5
auto wrong() { return make_on_device<permuted>(); }
#elif PITH_WRONG == 6
auto wrong() { return make_on_device<summed>(); }
#elif PITH_WRONG == 7
auto wrong(device_cache<on_device, environment>& cache) { return cache.evict(environment{}, {}, 0, 0, {}); }
#elif PITH_WRONG == 8
auto wrong() { return make<permuted>({.bytes = 1 << 20}, calibration<permuted::page>{}); }
#elif PITH_WRONG == 9
auto wrong() { return make_on_device<lossless>(); }
#elif PITH_WRONG == 10
auto wrong() { return make_on_device<choosing>(); }
#elif PITH_WRONG == 11
auto wrong() { return make_on_device<compacted>(); }
#elif PITH_WRONG == 12
auto wrong(device_cache<on_device, environment>& cache) { return rank_on_device<statistic::row_entropy>(cache); }
#elif PITH_WRONG == 13
auto wrong() { return rank_pages_on_device<statistic::row_entropy>(); }
#elif PITH_WRONG == 14
auto wrong() { return rank_pages_on_device<>(); }
#else
auto right_host() { return make<plain>({.bytes = 1 << 20}); }
auto right() { return make_on_device<on_device>(); }
auto right_append(device_cache<on_device, environment>& cache) { return append_on_device(cache); }
auto right_statistics(device_cache<on_device, environment>& cache) { return rank_on_device<statistic::entropy>(cache); }
auto right_pages() { return rank_pages_on_device<statistic::entropy>(); }
auto right_source(device_cache<on_device, environment>& cache) { return cache.source({}, 0, {}); }
auto right_evict(device_cache<evictable, environment>& cache) { return cache.evict(environment{}, {}, 0, 0, {}); }
#endif
