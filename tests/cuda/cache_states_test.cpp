// SPDX-License-Identifier: Apache-2.0
// A device's cache and the host's side by side: codecs with transforms, with calibrated numbers and without.
#include "cuda/cache_support.hpp"

using namespace pith_test;

namespace {

struct rotated : pith::kv_cache<pith::head_dim<16>, pith::keys<pith::pipe<pith::hadamard<16>, pith::int8<pith::per_channel<32>>>>,
                                pith::values<pith::pipe<pith::hadamard<16>, pith::int4<pith::per_token<16>>>>, pith::raw<pith::first<20>, pith::last<1>>,
                                pith::side<pith::bias>, pith::pages<pith::paged<32>>, pith::on<pith::cuda>> {};
struct rotated_host : pith::kv_cache<pith::head_dim<16>, pith::keys<pith::pipe<pith::hadamard<16>, pith::int8<pith::per_channel<32>>>>,
                                     pith::values<pith::pipe<pith::hadamard<16>, pith::int4<pith::per_token<16>>>>, pith::raw<pith::first<20>, pith::last<1>>,
                                     pith::side<pith::bias>, pith::pages<pith::paged<32>>> {};

struct permuted : pith::kv_cache<pith::head_dim<16>, pith::keys<pith::pipe<pith::permute, pith::int4<pith::per_token<16>>>>,
                                 pith::values<pith::raw<pith::f16>>, pith::non_finite<pith::nan_policy::propagate>, pith::side<pith::liveness>,
                                 pith::on<pith::cuda>> {};
struct permuted_host : pith::kv_cache<pith::head_dim<16>, pith::keys<pith::pipe<pith::permute, pith::int4<pith::per_token<16>>>>,
                                      pith::values<pith::raw<pith::f16>>, pith::non_finite<pith::nan_policy::propagate>, pith::side<pith::liveness>> {};

std::vector<pith::permutation<16>> permutations() {
  std::vector<pith::permutation<16>> all;
  random_bits bits(77);
  for (int i = 0; i < layers * kv_heads; ++i) {
    std::vector<float> sizes(16);
    for (float& x : sizes) x = bits.uniform();
    all.push_back(pith::permutation<16>::descending(sizes).value());
  }
  return all;
}


}  // namespace

TEST_CASE("a device's cache has the host's bytes: rotated, a page is one tile", "[cuda][cache][random]") {
  random_operations<rotated_host, rotated, float>(4, 400, {});
}

TEST_CASE("a device's cache has the host's bytes: permuted, not a number stays", "[cuda][cache][random]") {
  auto const all = permutations();
  auto const count = random_operations<permuted_host, permuted, float>(5, 400, {.keys = {all}});
  CHECK(count.at("side") > 10);
}

TEST_CASE("calibrated numbers are one for each head", "[cuda][cache][error]") {
  pith::cache_shape const shape{.layers = layers, .kv_heads = kv_heads, .query_heads = 4, .max_sequences = 1, .max_tokens = 300};
  counting_environment const env;
  aligned_bytes memory(1 << 20);
  auto all = permutations();
  CHECK(pith::make<permuted>(env, shape, memory.span(), {.keys = {all}}));
  CHECK(pith::make<permuted>(env, shape, memory.span(), {}).error() == pith::status{errc::shape_mismatch, 0});
  all[2].order[3] = all[2].order[4];
  CHECK(pith::make<permuted>(env, shape, memory.span(), {.keys = {all}}).error() == pith::status{errc::bad_calibration, 2});
}
