// SPDX-License-Identifier: Apache-2.0
// Attention in integer accuracy against double precision over the decoded pages.
#include "cpu/attention_oracle.hpp"

namespace {

using namespace pith;
using namespace pith_test;

// Integer accuracy rounds queries and weights to 8 bits. Measured on these gaussian rows: 0.4 % of the output, a worst score of 0.03.
constexpr double integer_rms = 0.01, integer_lse = 0.05;

template <class Page>
void check_integer(char const* name) {
  INFO(name);
  paged_case<Page> pages({Page::tokens + 5, 0, 2 * Page::tokens}, 2, 12);
  auto error = run_attention<integer_accuracy, float, float>(pages, {2, 1, 3}, 2);
  INFO("rms " << error.rms() << ", lse " << error.lse);
  CHECK(error.broken == 0);
  CHECK(error.rms() <= integer_rms);
  CHECK(error.lse <= integer_lse);
}

}  // namespace

#define CHECK_INTEGER(...) check_integer<kv_page<__VA_ARGS__>>(#__VA_ARGS__)

TEST_CASE("attention: integer accuracy stays near the decoded pages", "[cpu][attention]") {
  CHECK_INTEGER(int4<per_channel<32>>, int4<per_token<64>>, 64, 64, 64);
  CHECK_INTEGER(int8<per_channel<32>>, int8<per_token<32>>, 80, 96, 32);
  CHECK_INTEGER(int6<per_channel<32>>, int7<per_token<64>>, 64, 64, 64);
  CHECK_INTEGER(block_float<5, per_token<32>>, mxfp8<e4m3>, 64, 64, 64);
  CHECK_INTEGER(pith::pipe<hadamard<128>, int4<per_token<64>>>, pith::pipe<hadamard<64>, int4<per_token<32>>>, 128, 128, 64);
}

TEST_CASE("attention: integer accuracy multiplies exactly where a slot has a large bias", "[cpu][attention]") {
  using page = kv_page<int4<per_channel<32>>, int4<per_token<64>>, 64, 64, 64>;
  paged_case<page> pages({69, 0, 130}, 2, 13);
  pages.add_bias(-1, 7);
  for (std::size_t i = 0; i < pages.bias.size(); i += 64) pages.bias[i] = 3;  // one in every step; a slot for 20 tokens
  auto const error = run_attention<integer_accuracy, float, float>(pages, {2, 1, 3}, 2);
  CHECK(error.broken == 0);
  CHECK(error.worst <= 1);
  CHECK(error.lse <= 2e-5);
}

TEST_CASE("attention: integer accuracy takes small biases, and slots removed by a bias", "[cpu][attention]") {
  using page = kv_page<int4<per_channel<32>>, int4<per_token<64>>, 64, 64, 64>;
  paged_case<page> pages({69, 0, 130}, 2, 13);
  pages.add_bias(-1, 7);
  for (float& bias : pages.bias) bias = std::min(bias, pith::largest_integer_bias);
  auto const error = run_attention<integer_accuracy, float, float>(pages, {2, 1, 3}, 2);
  CHECK(error.broken == 0);
  CHECK(error.worst > 1);  // not exact: else nothing is tested
  CHECK(error.rms() <= integer_rms);
}
