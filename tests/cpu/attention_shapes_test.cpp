// SPDX-License-Identifier: Apache-2.0
// Exact attention over head sizes and codecs.
#include "cpu/attention_oracle.hpp"

namespace {

using namespace pith;
using namespace pith_test;

template <class Page>
void check_exact(char const* name) {
  INFO(name);
  paged_case<Page> const pages({Page::tokens + 5, 0, 2 * Page::tokens}, 2, 11);
  auto const error = run_attention<exact_accuracy, float, float>(pages, {2, 1, 3}, 2);
  CHECK(error.broken == 0);
  CHECK(error.worst <= 1);
  CHECK(error.lse <= 2e-5);
}

}  // namespace

#define CHECK_EXACT(...) check_exact<kv_page<__VA_ARGS__>>(#__VA_ARGS__)

TEST_CASE("attention: head sizes 64, 80, 96, 128, 256 and 192 with 128 are exact", "[cpu][attention]") {
  CHECK_EXACT(raw<bf16>, raw<bf16>, 80, 80, 32);
  CHECK_EXACT(int8<per_token<32>>, int3<per_token<32>>, 96, 96, 64);
  CHECK_EXACT(int4<per_channel<64>>, int2<per_channel<32>>, 256, 256, 64);
  CHECK_EXACT(int8<per_channel<32>>, int4<per_token<64>>, 192, 128, 32);
}

TEST_CASE("attention: tiles of 128 and 256 tokens, and short channel groups, are exact", "[cpu][attention]") {
  CHECK_EXACT(int4<per_channel<128>>, int4<per_token<64>>, 64, 64, 128);
  CHECK_EXACT(int8<per_channel<16>>, int4<per_channel<>>, 64, 64, 256);
}

TEST_CASE("attention: codes in three planes, block floating point and 8-bit floats are exact", "[cpu][attention]") {
  CHECK_EXACT(int7<per_channel<32>>, block_float<5, per_token<16>>, 80, 80, 32);
  CHECK_EXACT(float8<e4m3, per_channel<64>>, float8<e5m2, per_token<32>, float>, 64, 96, 64);
}

TEST_CASE("attention: rotated keys and values are exact", "[cpu][attention]") {
  CHECK_EXACT(pith::pipe<hadamard<128>, int4<per_channel<32>>>, pith::pipe<hadamard<64>, int4<per_token<32>>>, 128, 128, 64);
}
