// SPDX-License-Identifier: Apache-2.0
// Attention over packed pages against double precision over the decoded pages.
#include "cpu/attention_oracle.hpp"

namespace {

using namespace pith;
using namespace pith_test;

// A batch with an empty sequence that has queries, one without queries, one of a single token, and whole and partial pages.
std::vector<std::int64_t> const lengths{70, 0, 1, 64, 33, 130};
std::vector<std::int64_t> const queries{3, 2, 1, 0, 5, 2};

using small_page = kv_page<int4<per_channel<32>>, int4<per_token<64>>, 64, 64, 64>;

struct reversed {
  void for_each(std::int64_t count, auto&& f) const {
    for (std::int64_t i = count; i-- > 0;) f(i);
  }
};

void check_exact(attention_error const& error) {
  CHECK(error.broken == 0);
  CHECK(error.worst <= 1);
  CHECK(error.lse <= 2e-5);
}

}  // namespace

TEST_CASE("attention: a ragged batch of int4 pages in random order is exact, for every group size", "[cpu][attention]") {
  paged_case<small_page> const pages(lengths, 2, 1);
  for (int group : {1, 2, 4, 8}) {
    INFO("group " << group);
    auto const error = run_attention<exact_accuracy, float, float>(pages, queries, group);
    check_exact(error);
    CHECK(error.empty_rows == 2 * 2 * group);
  }
}

TEST_CASE("attention: more than 16 query rows, one more, and prefill of a whole sequence", "[cpu][attention]") {
  paged_case<small_page> const pages({70, 40, 17}, 1, 2);
  check_exact(run_attention<exact_accuracy, float, float>(pages, {17, 40, 17}, 1));
  check_exact(run_attention<exact_accuracy, float, float>(pages, {6, 11, 1}, 3));
}

TEST_CASE("attention: soft cap, window, sinks, bias and their sum", "[cpu][attention]") {
  paged_case<small_page> pages(lengths, 2, 3);
  std::vector<float> const sinks{0.5f, -3.0f, 4.0f, minus_infinity};
  attention_options capped, windowed, sinking, scaled, all;
  capped.soft_cap = 1.5f;
  windowed.window = 7;
  sinking.sink_logits = sinks;
  scaled.scale = 0.7f;
  all = {.scale = 0.3f, .soft_cap = 2.5f, .window = 40, .sink_logits = sinks};
  check_exact(run_attention<exact_accuracy, float, float>(pages, queries, 2, capped));
  check_exact(run_attention<exact_accuracy, float, float>(pages, queries, 2, windowed));
  check_exact(run_attention<exact_accuracy, float, float>(pages, queries, 2, scaled));
  pages.add_bias(-1, 5);
  check_exact(run_attention<exact_accuracy, float, float>(pages, queries, 2));
  check_exact(run_attention<exact_accuracy, float, float>(pages, queries, 2, all));
}

TEST_CASE("attention: a sink logit is a key of value zero, also where nothing else is seen", "[cpu][attention]") {
  paged_case<small_page> const pages(lengths, 2, 3);
  std::vector<float> const sinks{0.5f, -3.0f, 4.0f, 88.0f};
  attention_options options;
  options.sink_logits = sinks;
  auto const error = run_attention<exact_accuracy, float, float>(pages, queries, 2, options);
  check_exact(error);
  CHECK(error.empty_rows == 8);  // lse is the sink there
}

TEST_CASE("attention: rows whose every slot has a bias of -infinity give 0 and -infinity", "[cpu][attention]") {
  paged_case<small_page> pages(lengths, 2, 4);
  pages.add_bias(4, 6);  // sequence 4, with 5 queries, sees nothing
  auto const error = run_attention<exact_accuracy, float, float>(pages, queries, 1);
  check_exact(error);
  CHECK(error.empty_rows >= 2 * (2 + 5));
}

TEST_CASE("attention: queries and outputs of bf16 and f16 with any strides", "[cpu][attention]") {
  paged_case<small_page> const pages({70, 5}, 2, 5);
  check_exact(run_attention<exact_accuracy, bf16, float>(pages, {3, 2}, 2, {}, 2));
  check_exact(run_attention<exact_accuracy, f16, bf16>(pages, {3, 2}, 2, {}, 1));
  check_exact(run_attention<exact_accuracy, float, f16>(pages, {3, 2}, 2, {}, 3));
}

TEST_CASE("attention: large scores, and a peak that comes late, do not overflow", "[cpu][attention]") {
  paged_case<small_page> const pages({130}, 1, 6);
  attention_options options;
  options.scale = 40;  // scores of thousands
  auto const error = run_attention<exact_accuracy, float, float>(pages, {4}, 2, options);
  CHECK(error.broken == 0);
  CHECK(error.worst <= 1);
}

// Sums over a part of the sequence depend on nothing else: the result for a sequence is the same alone and in a batch, bit for bit.
TEST_CASE("attention: a sequence gives the same bits alone and in a batch, and under any executor", "[cpu][attention]") {
  paged_case<small_page> const pages(lengths, 2, 1);
  std::vector<std::int64_t> const q_indptr{0, 3, 5, 6, 6, 11, 13};
  random_bits random(4);
  std::vector<float> q(13 * 4 * 64), together(q.size()), alone(q.size()), backwards(q.size());
  for (float& x : q) x = gaussian(random);
  auto view = [](std::vector<float>& x) { return tensor_view<float, 3>(x.data(), {13, 4, 64}); };
  REQUIRE(paged_attention(cpu{}, pages.view(), q_indptr, view(q), view(together)));
  REQUIRE(paged_attention(cpu{}, pages.view(), q_indptr, view(q), view(backwards), {}, reversed{}));
  CHECK(together == backwards);
  for (std::size_t s = 0; s < lengths.size(); ++s) {
    auto one = pages.view();
    one.indptr = one.indptr.subspan(s, 2);
    one.last_page_len = one.last_page_len.subspan(s, 1);
    std::vector<std::int64_t> const one_indptr{0, q_indptr[s + 1] - q_indptr[s]};
    REQUIRE(
        paged_attention(cpu{}, one, one_indptr, view(q).part(q_indptr[s], one_indptr[1]), view(alone).part(q_indptr[s], one_indptr[1])));
  }
  CHECK(together == alone);
}
