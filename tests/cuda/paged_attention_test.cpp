// SPDX-License-Identifier: Apache-2.0
// Attention kernels, emulated, against attention in f64 over the decoded pages.
#include "cuda/device_attention.hpp"
#include "pith/codec/hadamard.hpp"

namespace {

using namespace pith;
using namespace pith_test;

template <class Keys, class Values, int Dk, int Dv = Dk, int Tokens = 64>
using page_of = kv_page<Keys, Values, Dk, Dv, Tokens>;

struct limits {
  double worst, rms;
};
// Exact accuracy has 2^-20 of a product, where the CPU's exact sums have 2^-24 of each partial sum.
inline constexpr limits two_terms{4, 2e-5}, one_term{4000, 4e-3};

template <class Page, class Accuracy = exact_accuracy, class Q = float, class O = float>
void check(std::vector<std::int64_t> lengths, std::vector<std::int64_t> queries, int heads, int group, limits most,
           attention_options options = {}, int step = 1) {
  paged_case<Page> const pages(std::move(lengths), heads, 7);
  attention_error const error = run_on_device<Accuracy, Q, O>(pages, queries, group, options, step);
  CHECK(error.broken == 0);
  CHECK(error.worst <= most.worst);
  CHECK(error.rms() <= most.rms);
  CHECK(error.lse <= most.rms * 20);
}

}  // namespace

TEST_CASE("device attention: one token over ragged sequences, every kind of codec") {
  check<page_of<int4<per_token<64>>, int4<per_token<64>>, 64>>({1, 0, 33, 700, 64}, {1, 1, 1, 1, 0}, 2, 4, two_terms);
  check<page_of<int4<per_token<64>>, int4<per_token<64>>, 64>, integer_accuracy, bf16, bf16>({1, 0, 33, 700, 64}, {1, 1, 1, 1, 0}, 2, 4,
                                                                                             one_term);
  check<page_of<int4<per_channel<32>>, int4<per_token<32>>, 128>, exact_accuracy, f16, f16>({65, 300}, {1, 1}, 1, 8, {4, 3e-4});
  check<page_of<int8<per_token<>, zero::none>, int8<per_token<16>, zero::integer>, 80>>({31, 129}, {1, 1}, 2, 1, two_terms);
  check<page_of<int2<per_channel<64>>, int2<per_token<32>>, 64, 64, 128>>({200, 128, 5}, {1, 1, 1}, 1, 3, two_terms);
  check<page_of<int3<per_token<32>>, int3<per_channel<32>>, 96, 64, 32>>({100, 32}, {1, 1}, 2, 2, two_terms);
  check<page_of<block_float<4, per_token<32>>, block_float<6, per_channel<16>>, 64>>({100, 32}, {1, 1}, 1, 5, two_terms);
  check<page_of<raw<bf16>, raw<bf16>, 128>>({90}, {1}, 1, 4, {200, 2e-5});
  check<page_of<raw<f16>, integer<5, per_token<64>>, 64>>({90}, {1}, 1, 7, two_terms);
  check<page_of<pith::pipe<hadamard<64>, int4<per_token<64>>>, pith::pipe<hadamard<64>, int4<per_token<64>>>, 64>>({1, 0, 190}, {1, 1, 1},
                                                                                                                   2, 4, {20, 2e-5});
}

TEST_CASE("device attention: many query rows, split and whole") {
  using page = page_of<int4<per_token<64>>, int4<per_token<64>>, 64>;
  check<page>({40, 3, 100, 0}, {2, 3, 1, 0}, 2, 4, two_terms);  // two tiles of 8 rows
  check<page>({200, 70, 9}, {40, 70, 9}, 1, 3, two_terms);      // warps along rows
  check<page, integer_accuracy, bf16, bf16>({500, 130}, {130, 1}, 2, 2, one_term);
  check<page_of<int8<per_channel<32>>, int8<per_channel<32>>, 64, 128>>({150}, {33}, 1, 2, two_terms);
  check<page_of<raw<bf16>, raw<bf16>, 64>>({150}, {50}, 1, 2, {200, 2e-5});
}

TEST_CASE("device attention: window, soft cap, sinks, biases, strides") {
  using page = page_of<int4<per_token<64>>, int4<per_token<64>>, 64>;
  check<page>({200, 40}, {1, 2}, 2, 4, two_terms, {.window = 33});
  check<page>({200, 90}, {20, 60}, 1, 2, two_terms, {.window = 7});
  check<page>({200, 40}, {1, 2}, 2, 4, two_terms, {.soft_cap = 2.5f});
  check<page>({200, 40}, {1, 2}, 2, 4, two_terms, {.scale = 0.5f}, 3);
  std::vector<float> const sinks{0.5f, -2.0f, 3.0f, 80.0f, -30.0f, 0.0f, 1.0f, 2.0f};
  check<page>({200, 0, 40}, {1, 1, 2}, 2, 4, two_terms, {.sink_logits = sinks});
  paged_case<page> biased({200, 50, 70}, 2, 3);
  biased.add_bias(1, 5);
  attention_error const error = run_on_device<exact_accuracy, float, float>(biased, {1, 1, 30}, 4);
  CHECK(error.broken == 0);
  CHECK(error.empty_rows == 8);
  CHECK(error.worst <= two_terms.worst);
}

TEST_CASE("device attention: a block id that is none is reported and left out") {
  using page = page_of<int8<per_token<64>>, int8<per_token<64>>, 64>;
  paged_case<page> pages({200}, 1, 7);
  emulated_environment const env;
  std::vector<float> q(64, 1.0f), out(64), without(64);
  std::vector<std::int64_t> const q_indptr{0, 1};
  auto const run = [&](std::vector<float>& to) {
    return paged_attention<exact_accuracy>(cuda{}, env, as_device(pages.view()), q_indptr.data(), 1,
                                           tensor_view<float const, 3, space::device>(q.data(), {1, 1, 64}),
                                           tensor_view<float, 3, space::device>(to.data(), {1, 1, 64}));
  };
  pages.indices[1] = static_cast<std::uint32_t>(pages.blocks);
  CHECK(run(out) == status{});
  CHECK(env.status() == status{errc::out_of_range, 1});
  for (float x : out) CHECK(std::isfinite(x));
  paged_case<page> shorter({200}, 1, 7);
  shorter.bias.assign(256, 0.0f);
  for (int t = 64; t < 128; ++t) shorter.bias[static_cast<std::size_t>(t)] = minus_infinity;
  CHECK(paged_attention<exact_accuracy>(cuda{}, env, as_device(shorter.view()), q_indptr.data(), 1,
                                        tensor_view<float const, 3, space::device>(q.data(), {1, 1, 64}),
                                        tensor_view<float, 3, space::device>(without.data(), {1, 1, 64})) == status{});
  for (int c = 0; c < 64; ++c) CHECK(std::fabs(out[static_cast<std::size_t>(c)] - without[static_cast<std::size_t>(c)]) <= 1e-5f);
}

TEST_CASE("device attention: refuses what the host can see, and starts nothing") {
  using page = page_of<int4<per_token<64>>, int4<per_token<64>>, 64>;
  paged_case<page> const pages({40}, 2, 7);
  std::vector<std::int64_t> const q_indptr{0, 1};
  std::vector<float> q(4 * 64), out(4 * 64, -77.0f);
  using view = tensor_view<float const, 3, space::device>;
  using out_view = tensor_view<float, 3, space::device>;
  auto const refused = [&](device_pages<page> from, view asked, out_view to, device_attention_options options = {},
                           std::int64_t scratch = 8 << 20) {
    emulated_environment const env(scratch);
    status const got = paged_attention<exact_accuracy>(cuda{}, env, from, q_indptr.data(), 1, asked, to, options);
    for (float x : out) CHECK(x == -77.0f);
    return got.code;
  };
  device_pages<page> const right = as_device(pages.view());
  view const q_view(q.data(), {1, 4, 64});
  out_view const to(out.data(), {1, 4, 64});
  device_pages<page> wrong = right;
  wrong.base += 32;
  CHECK(refused(wrong, q_view, to) == errc::misaligned);
  wrong = right, wrong.block_stride = 64;
  CHECK(refused(wrong, q_view, to) == errc::shape_mismatch);
  wrong = right, wrong.kv_heads = 0;
  CHECK(refused(wrong, q_view, to) == errc::shape_mismatch);
  CHECK(refused(right, view(q.data(), {1, 4, 32}), to) == errc::shape_mismatch);
  CHECK(refused(right, view(q.data(), {1, 3, 64}), to) == errc::shape_mismatch);
  CHECK(refused(right, q_view, out_view(out.data(), {1, 4, 32})) == errc::shape_mismatch);
  CHECK(refused(right, q_view, to, {.soft_cap = -1}) == errc::out_of_range);
  CHECK(refused(right, q_view, to, {.window = -1}) == errc::out_of_range);
  CHECK(refused(right, q_view, to, {}, 256) == errc::capacity_exceeded);
}
