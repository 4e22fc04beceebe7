// SPDX-License-Identifier: Apache-2.0
// A device's cache and the host's side by side: pages of 16-bit floats, and tiles of keys that are longer than those of values.
#include "cuda/cache_support.hpp"

using namespace pith_test;

namespace {

struct plain : pith::kv_cache<pith::head_dim<32>, pith::keys<pith::raw<pith::bf16>>, pith::values<pith::raw<pith::bf16>>, pith::on<pith::cuda>> {};
struct plain_host : pith::kv_cache<pith::head_dim<32>, pith::keys<pith::raw<pith::bf16>>, pith::values<pith::raw<pith::bf16>>> {};

// KIVI's kinds of groups; tiles of keys are longer than those of values.
struct long_tiles : pith::kv_cache<pith::head_dim<16, 32>, pith::keys<pith::int4<pith::per_channel<64>>>, pith::values<pith::int2<pith::per_token<32>>>,
                                   pith::raw<pith::first<4>, pith::last<64, 32>>, pith::pages<pith::paged<128>>, pith::on<pith::cuda>> {};
struct long_tiles_host : pith::kv_cache<pith::head_dim<16, 32>, pith::keys<pith::int4<pith::per_channel<64>>>, pith::values<pith::int2<pith::per_token<32>>>,
                                        pith::raw<pith::first<4>, pith::last<64, 32>>, pith::pages<pith::paged<128>>> {};


}  // namespace

TEST_CASE("a device's cache has the host's bytes: bf16", "[cuda][cache][random]") { random_operations<plain_host, plain, pith::bf16>(1, 400, {}); }

TEST_CASE("a device's cache has the host's bytes: tiles of keys twice as long, and longer raw", "[cuda][cache][random]") {
  random_operations<long_tiles_host, long_tiles, pith::f16>(3, 400, {});
}

TEST_CASE("what a kernel reads of a cache whose keys stay raw longer than values", "[cuda][cache][source]") {
  pith::cache_shape const shape{.layers = layers, .kv_heads = kv_heads, .query_heads = 4, .bytes = 2 << 20, .max_sequences = 6, .max_tokens = 400, .max_chunk = 70};
  twins<long_tiles_host, long_tiles, pith::f16> unmasked(shape, 12, {});
  for (int i = 0; i < 3; ++i) unmasked.open_one();
  REQUIRE(unmasked.append_many({0, 1, 2}, 0, {3, 100, 333}));
  unmasked.compare_source({2, 1, 0}, 0, std::vector<int64_t>{3, 100, 1}, {});
}
