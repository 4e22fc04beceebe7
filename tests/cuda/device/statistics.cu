// SPDX-License-Identifier: Apache-2.0
// Statistics of attention and scores of slots on the device beside the same kernels in the emulator, which are tested against double:
// random ragged shapes over pages, and a cache.
#include <algorithm>
#include <cmath>

#include "tests/cuda/device/emulated.hpp"  // before the kernels

#include "pith/cuda/attention_statistics.hpp"
#include "pith/cuda/cache.hpp"
#include "pith/cuda/environment.cuh"
#include "tests/cuda/device/device_case.hpp"
#include "tests/cuda/device/paged_host.hpp"

namespace {

using pith::bf16;
using pith::group_reduction;
using pith::per_channel;
using pith::per_token;
using pith::space;
using pith::statistic;
using pith_test::on_device;

template <int Rank>
using view_of = pith::tensor_view<float, Rank, space::device>;
using all_of_heads = pith::device_statistics_view<group_reduction::none, statistic::sum, statistic::square_sum, statistic::maximum,
                                                  statistic::below, statistic::weighted_sum, statistic::entropy>;
using means = pith::device_statistics_view<group_reduction::mean, statistic::sum, statistic::maximum>;
using sums = pith::device_statistics_view<group_reduction::sum, statistic::sum>;

// The first place in `of` that pages may begin at.
std::byte* aligned_to_64(std::vector<std::byte>& of) {
  std::size_t const past = reinterpret_cast<std::uintptr_t>(of.data()) % 64;
  return of.data() + (past == 0 ? 0 : 64 - past);
}

// Each view of `all` into numbers of its own, `size` of them.
template <group_reduction Reduction, statistic... Wanted>
auto views_of(pith::device_statistics_view<Reduction, Wanted...>, float* all, std::int64_t rows, std::int64_t slots) {
  pith::device_statistics_view<Reduction, Wanted...> made;
  view_of<2>* const to[] = {&made.sum, &made.square_sum, &made.maximum, &made.below, &made.weighted_sum, &made.entropy};
  std::int64_t i = 0;
  ((*to[static_cast<int>(Wanted)] = view_of<2>(all + i++ * rows * slots, {rows, slots})), ...);
  return made;
}

// Exponentials and sums of products differ in their last bits, and a probability beside its threshold may fall on either side.
void near(pith_test::device_test& test, std::vector<float> const& got, std::vector<float> const& right, float most, std::int64_t may_differ,
          char const* what, int round) {
  std::int64_t far = 0, written = 0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    far += !(std::fabs(got[i] - right[i]) <= most * (0.1f + std::fabs(right[i])));
    written += right[i] != -7.0f;
  }
  test.check(far <= may_differ && written > 0, "round %d, %s: %lld of %lld numbers are not those of the emulator", round, what,
             static_cast<long long>(far), static_cast<long long>(got.size()));
}

template <class Page, class Accuracy, class View>
void compare(pith_test::device_test& test, int rounds, float most) {
  constexpr int dk = Page::key_channels, dv = Page::value_channels, kinds = View::host::of_slots;
  auto made = pith::cuda_environment::make(nullptr, pith::plain_device_memory());
  if (!test.need(made.error(), "environment")) return;
  pith_test::random_bits random(31);
  for (int round = 0; round < rounds; ++round) {
    std::vector<std::int64_t> lengths, q_indptr{0};
    std::int64_t queries_most = 0;
    int const kv_heads = 1 + static_cast<int>(random() % 2), group = 1 + static_cast<int>(random() % 8);
    for (std::size_t s = 0, count = 1 + random() % 3; s < count; ++s) {
      lengths.push_back(1 + static_cast<std::int64_t>(random() % (s == 0 ? 700 : 100)));
      std::int64_t const queries = round % 2 == 0 ? 1 : static_cast<std::int64_t>(random() % 30);
      q_indptr.push_back(q_indptr.back() + std::min(lengths.back(), queries));
      queries_most = std::max(queries_most, q_indptr.back() - q_indptr[s]);
    }
    pith_test::paged_host<Page> const host(lengths, kv_heads, random);
    std::int64_t const tokens = q_indptr.back(), heads = kv_heads * group,
                       slots = static_cast<std::int64_t>(host.indices.size()) * Page::tokens;
    std::int64_t const rows = View::host::reduction == group_reduction::none ? heads : kv_heads;
    std::vector<bf16> q(static_cast<std::size_t>(tokens * heads * dk));
    for (bf16& x : q) x = pith::from_float<bf16>(random.uniform());
    std::vector<float> weights(static_cast<std::size_t>(tokens)), thresholds(weights);
    for (float& x : weights) x = random.uniform();
    for (float& x : thresholds) x = 0.01f * random.uniform();
    on_device<std::byte> const bytes(host.bytes);
    on_device<std::int64_t> const indptr(host.indptr), queries(q_indptr);
    on_device<std::uint32_t> const indices(host.indices);
    on_device<std::int32_t> const last(host.last_page_len);
    on_device<bf16> const asked(q);
    on_device<float> const out(static_cast<std::size_t>(tokens * heads * dv)), lse(static_cast<std::size_t>(tokens * heads)),
        d_weights(weights), d_thresholds(thresholds);
    pith::device_pages<Page> pages{.base = bytes.data(),
                                   .block_stride = host.block_stride,
                                   .head_stride = host.head_stride,
                                   .blocks = host.blocks,
                                   .kv_heads = kv_heads,
                                   .sequences = static_cast<std::int64_t>(lengths.size()),
                                   .indptr = indptr.data(),
                                   .indices = indices.data(),
                                   .last_page_len = last.data()};
    pith::device_pages<Page> emulated_pages = pages;
    std::vector<std::byte> aligned(host.bytes.size() + 64);
    emulated_pages.base =
        std::copy(host.bytes.begin(), host.bytes.end(), aligned_to_64(aligned)) - static_cast<std::ptrdiff_t>(host.bytes.size());
    emulated_pages.indptr = host.indptr.data(), emulated_pages.indices = host.indices.data();
    emulated_pages.last_page_len = host.last_page_len.data();

    // lse, and with few rows scores along with it.
    std::int64_t const window = round % 3 == 2 ? 50 : 0, score_rows = queries_most * group;
    bool const scored = score_rows > 0 && score_rows <= 16;
    std::vector<float> const before(static_cast<std::size_t>(kv_heads * slots), -7.0f);
    on_device<float> const scores(before), logits(static_cast<std::size_t>(kv_heads * 16 * slots));
    pith::tensor_view<bf16 const, 3, space::device> const q_view(asked.data(), {tokens, heads, dk});
    view_of<3> const out_view(out.data(), {tokens, heads, dv});
    pith::device_attention_options const options{.window = window, .lse = view_of<2>(lse.data(), {tokens, heads})};
    pith::device_slot_scores const wanted{
        .sum = view_of<2>(scores.data(), {kv_heads, slots}), .logits = view_of<3>(logits.data(), {kv_heads, 16, slots}), .decay = 0};
    pith::status const attended = scored ? pith::paged_attention<Accuracy>(pith::cuda{}, made.value(), pages, queries.data(), queries_most,
                                                                           q_view, out_view, options, wanted)
                                         : pith::paged_attention<Accuracy>(pith::cuda{}, made.value(), pages, queries.data(), queries_most,
                                                                           q_view, out_view, options);
    if (!test.need(attended, "paged_attention")) return;
    std::vector<float> known = lse.values(test);

    std::vector<float> right(static_cast<std::size_t>(kinds * rows * slots), -7.0f);
    on_device<float> const numbers(right);
    std::int64_t const newest = round % 4 == 3 ? 5 : 1000, stride = 1 + round % 2;
    pith_test::emulated_environment const emulated;
    pith::tensor_view<bf16 const, 3, space::device> const emulated_q(q.data(), {tokens, heads, dk});
    if (!test.need(pith::attention_statistics<Accuracy>(pith::cuda{}, made.value(), pages, queries.data(), queries_most, q_view,
                                                        options.lse, views_of(View{}, numbers.data(), rows, slots),
                                                        {newest, stride, d_weights.data(), d_thresholds.data()}, {.window = window}),
                   "attention_statistics"))
      return;
    if (!test.need(
            pith::attention_statistics<Accuracy>(pith::cuda{}, emulated, emulated_pages, q_indptr.data(), queries_most, emulated_q,
                                                 view_of<2>(known.data(), {tokens, heads}), views_of(View{}, right.data(), rows, slots),
                                                 {newest, stride, weights.data(), thresholds.data()}, {.window = window}),
            "attention_statistics, emulated"))
      return;
    near(test, numbers.values(test), right, most, View::host::has(statistic::below) ? 3 : 0, "statistics", round);
    if (!scored) continue;
    // A decode step's scores are a second pass's sums over all of its rows.
    std::vector<float> second = before;
    if (!test.need(pith::attention_statistics<Accuracy>(pith::cuda{}, emulated, emulated_pages, q_indptr.data(), queries_most, emulated_q,
                                                        view_of<2>(known.data(), {tokens, heads}),
                                                        views_of(sums{}, second.data(), kv_heads, slots), {}, {.window = window}),
                   "sums, emulated"))
      return;
    for (std::size_t s = 0; s < lengths.size(); ++s)
      if (q_indptr[s + 1] == q_indptr[s])  // a sequence without queries keeps its scores
        for (int h = 0; h < kv_heads; ++h)
          std::fill_n(second.begin() + h * slots + host.indptr[s] * Page::tokens, (host.indptr[s + 1] - host.indptr[s]) * Page::tokens,
                      -7.0f);
    near(test, scores.values(test), second, most, 0, "scores", round);
  }
}

using int4_pages = pith::kv_page<pith::int4<per_token<64>>, pith::int4<per_token<64>>, 128, 128, 64>;
using int8_pages = pith::kv_page<pith::int8<per_token<64>>, pith::int8<per_token<64>>, 64, 64, 64>;
using kivi4_pages = pith::kv_page<pith::int4<per_channel<32>>, pith::int4<per_token<32>>, 128, 128, 64>;
using bf16_pages = pith::kv_page<pith::raw<bf16>, pith::raw<bf16>, 128, 128, 64>;

// First and newest tokens raw, of values more than of keys; hidden slots.
struct kivi : pith::kv_cache<pith::head_dim<64>, pith::keys<pith::int4<per_channel<32>>>, pith::values<pith::int4<per_token<64>>>,
                             pith::raw<pith::first<5>, pith::last<8, 70>>, pith::side<pith::liveness>, pith::on<pith::cuda>> {};

// Appends to a cache, evicts, attends and ranks; sums [sequence][kv_head][slot], then scores of the same.
constexpr std::int64_t cache_slots = 320, cache_tokens[] = {40, 300}, cache_queries[] = {1, 3};
template <class Environment>
pith::status rank(Environment const& env, std::span<std::byte> memory, bf16 const* rows, bf16 const* q, float* numbers, float* lse,
                  float* logits, bf16* out) {
  auto made =
      pith::make<kivi>(env, {.kv_heads = 2, .query_heads = 6, .bytes = 2 << 20, .max_sequences = 2, .max_tokens = cache_slots}, memory);
  if (!made) return made.error();
  auto& cache = made.value();
  pith::sequence const both[] = {cache.open(env).value(), cache.open(env).value()};
  pith::tensor_view<bf16 const, 3, space::device> const all(rows, {340, 2, 64}), asked(q, {4, 6, 64});
  if (pith::status const ok = cache.append(env, both, 0, all, all, cache_tokens); !ok) return ok;
  std::int64_t const gone[] = {3, 77, 299};
  if (pith::status const ok = cache.evict(env, both[1], 0, 1, gone); !ok) return ok;
  view_of<2> const known(lse, {4, 6});
  pith::status const ok =
      cache.attend(env, both, 0, asked, pith::tensor_view<bf16, 3, space::device>(out, {4, 6, 64}), cache_queries, {.lse = known},
                   {.sum = view_of<2>(numbers + 4 * cache_slots, {2, cache_slots}),
                    .logits = view_of<3>(logits, {2, 9, cache_slots}),
                    .decay = 0,
                    .sum_stride = 2 * cache_slots,
                    .logits_stride = 18 * cache_slots});
  if (!ok) return ok;
  sums view{.sum = view_of<2>(numbers, {2, cache_slots})};
  view.sequence_stride = 2 * cache_slots;
  return cache.attention_statistics(env, both, 0, asked, known, cache_queries, view);
}

void compare_caches(pith_test::device_test& test) {
  auto env = pith::cuda_environment::make(nullptr, pith::plain_device_memory());
  if (!test.need(env.error(), "environment")) return;
  pith_test::emulated_environment const emulated;
  pith_test::random_bits random(5);
  std::vector<bf16> rows(340 * 2 * 64), q(4 * 6 * 64), out(q.size());
  for (auto* all : {&rows, &q})
    for (bf16& x : *all) x = pith::from_float<bf16>(2 * random.uniform());
  auto const bytes = static_cast<std::size_t>(
      (2 << 20) + pith::device_cache<kivi, pith_test::emulated_environment>::mirror_bytes(
                      {.kv_heads = 2, .query_heads = 6, .bytes = 2 << 20, .max_sequences = 2, .max_tokens = cache_slots}));
  std::vector<std::byte> memory(bytes + 64);
  std::vector<float> right(8 * cache_slots, -7.0f), lse(24), logits(2 * 18 * cache_slots);
  if (!test.need(rank(emulated, std::span(aligned_to_64(memory), bytes), rows.data(), q.data(), right.data(), lse.data(), logits.data(),
                      out.data()),
                 "emulated"))
    return;
  on_device<std::byte> const device_memory(bytes);
  on_device<bf16> const device_rows(rows), device_q(q), device_out(out);
  on_device<float> const numbers(std::vector<float>(right.size(), -7.0f)), device_lse(lse), device_logits(logits);
  if (!test.need(rank(env.value(), std::span(device_memory.data(), bytes), device_rows.data(), device_q.data(), numbers.data(),
                      device_lse.data(), device_logits.data(), device_out.data()),
                 "device"))
    return;
  near(test, numbers.values(test), right, 1e-3f, 0, "cache", 0);
  test.need(pith::read_status(env.value()), "kernels");
}

}  // namespace

DEVICE_CASE("statistics: int4, every one of them, exact") { compare<int4_pages, pith::exact_accuracy, all_of_heads>(test, 6, 1e-3f); }
DEVICE_CASE("statistics: int8, means of groups, one term") { compare<int8_pages, pith::integer_accuracy, means>(test, 6, 5e-3f); }
DEVICE_CASE("statistics: kivi4, sums, exact") { compare<kivi4_pages, pith::exact_accuracy, sums>(test, 6, 1e-3f); }
DEVICE_CASE("statistics: bf16, sums, exact") { compare<bf16_pages, pith::exact_accuracy, sums>(test, 4, 1e-3f); }
DEVICE_CASE("statistics: over a cache, with scores of a decode step") { compare_caches(test); }
DEVICE_CASE("sanitize: statistics: int8 and scores") { compare<int8_pages, pith::exact_accuracy, sums>(test, 2, 1e-3f); }
