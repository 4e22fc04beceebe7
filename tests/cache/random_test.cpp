// SPDX-License-Identifier: Apache-2.0
#include "cache/random_world.hpp"

using namespace pith_test;

namespace {

// bf16 pages, so that the model's numbers are the cache's; a tile is 32 tokens of a page of 64, keys and values leave staging apart.
struct recipe : pith::kv_cache<pith::head_dim<16>, pith::keys<pith::raw<pith::bf16>>, pith::values<pith::raw<pith::bf16>>,
                               pith::raw<pith::first<3>, pith::last<8, 40>>, pith::side<pith::liveness, pith::bias>> {};

}  // namespace

TEST_CASE("random operations: the cache agrees with a list of tokens", "[cache][random]") {
  run_random_operations<recipe>({500000, 700000, 500000, 700000}, 10000, gaussian(1, text_tokens, 2, 16), gaussian(2, text_tokens, 2, 16));
}
