// SPDX-License-Identifier: Apache-2.0
// Statistics of attention over packed pages, emulated, against softmax in double over the decoded pages and against the CPU's.
#include "cuda/device_statistics.hpp"

namespace {

using namespace pith;
using namespace pith_test;

using small_page = kv_page<int4<per_channel<32>>, raw<bf16>, 64, 64, 64>;  // values matter to nothing here
using kept_page = kv_page<int8<per_token<64>>, int4<per_token<64>>, 128, 64, 64>;
using raw_page = kv_page<raw<bf16>, int4<per_token<32>>, 80, 64, 32>;
using wide_page = kv_page<int4<per_token<64>>, int4<per_token<64>>, 192, 64, 64>;

using all_of_heads = statistics_view<group_reduction::none, statistic::sum, statistic::square_sum, statistic::maximum, statistic::below,
                                     statistic::weighted_sum, statistic::entropy>;

std::vector<std::int64_t> const lengths{70, 0, 1, 64, 33, 130};
std::vector<std::int64_t> const queries{3, 2, 1, 0, 5, 20};

// Each number within its interval in double, and near the CPU's.
template <class Accuracy, class Page, group_reduction Reduction, statistic... Wanted>
void check_of(statistics_case<Page>& one, statistics_view<Reduction, Wanted...> view) {
  std::vector<statistics_oracle::row> rows;
  // A query is two numbers of 16 bits, and a score's sums are as the emulator's products give them: 2^-20 of the largest partial sum.
  one.precision = std::is_same_v<typename Page::key_tile, typename raw_page::key_tile> ? 0x1p-16 : 0x1p-20;
  statistics_oracle right = one.expected(rows);
  for (std::size_t i = 0; i < rows.size(); ++i) one.lse[i] = static_cast<float>(rows[i].lse);
  auto const got = device_statistics<Accuracy>(one, view), host = one.template statistics<exact_accuracy>(view);
  std::int64_t const additions = one.tokens * one.group;
  std::size_t i = 0;
  for (statistic const which : {Wanted...}) {
    INFO("reduction " << static_cast<int>(Reduction) << ", statistic " << static_cast<int>(which));
    CHECK(right.wrong(which, Reduction, one.group, got[i], additions) == 0);
    std::int64_t far = 0;
    for (std::size_t at = 0; at < got[i].size(); ++at) {
      float const a = got[i][at], b = host[i][at], size = b < 0 ? -b : b;
      far += which != statistic::below && !(std::fabs(a - b) <= (one.precision == 0x1p-20 ? 1e-4f : 2e-3f) * (size + 0.1f));
    }
    CHECK(far == 0);
    ++i;
  }
}
template <class Page>
void check(paged_case<Page> const& pages, std::vector<std::int64_t> const& counts, int group, attention_options options = {},
           statistics_rows rows = {}) {
  statistics_case<Page> one(pages, counts, group, options, rows);
  check_of<exact_accuracy>(one, all_of_heads{});
}

}  // namespace

TEST_CASE("device statistics: every one of them over a ragged batch, for every group size", "[cuda][statistics]") {
  paged_case<small_page> const pages(lengths, 2, 1);
  for (int const group : {1, 3, 8}) {
    INFO("group " << group);
    check(pages, queries, group);
  }
}

TEST_CASE("device statistics: int8, raw and wide keys", "[cuda][statistics]") {
  check(paged_case<kept_page>({100, 5}, 1, 4), {9, 1}, 4);
  check(paged_case<raw_page>({100, 33}, 2, 4), {33, 3}, 2);
  check(paged_case<wide_page>({100, 5}, 1, 4), {19, 1}, 2);
}

TEST_CASE("device statistics: soft cap, window, sinks, bias, removed slots and a sequence that sees nothing", "[cuda][statistics]") {
  paged_case<small_page> pages(lengths, 2, 3);
  std::vector<float> const sinks{0.5f, -3.0f, 4.0f, minus_infinity};
  check(pages, queries, 2, {.soft_cap = 1.5f});
  check(pages, queries, 2, {.window = 7});
  pages.add_bias(4, 5);
  check(pages, queries, 2);
  check(pages, queries, 2, {.scale = 0.3f, .soft_cap = 2.5f, .window = 40, .sink_logits = sinks});
}

TEST_CASE("device statistics: the newest rows, every third of them, more of them than there are, and none", "[cuda][statistics]") {
  paged_case<small_page> const pages(lengths, 2, 1);
  check(pages, queries, 2, {}, {.newest = 1});
  check(pages, queries, 2, {}, {.newest = 4});
  check(pages, queries, 2, {}, {.newest = 17, .stride = 3});
  check(pages, queries, 2, {}, {.newest = 1000, .stride = 40});
  check(pages, queries, 2, {}, {.newest = 0});
}

TEST_CASE("device statistics: several parts of a sequence, and several pieces of a part", "[cuda][statistics]") {
  using sums = statistics_view<group_reduction::sum, statistic::sum, statistic::maximum>;
  paged_case<kept_page> const parts({1100, 257}, 1, 8);
  statistics_case<kept_page> ragged(parts, {3, 40}, 2);
  check_of<exact_accuracy>(ragged, sums{});
  // One multiprocessor has one part of more slots than a block's sums are held of. No bit depends on how many there are.
  paged_case<small_page> const pages({2300}, 8, 8);
  statistics_case<small_page> one(pages, {33}, 1);
  one.attend<exact_accuracy>();
  auto const few = device_statistics<exact_accuracy>(one, sums{}, 0, 1), many = device_statistics<exact_accuracy>(one, sums{}, 0, 64);
  CHECK(few == many);
}

TEST_CASE("device statistics: heads reduced, together and one after the other", "[cuda][statistics]") {
  paged_case<small_page> const pages({70, 1, 130}, 2, 1);
  auto const reduce = [&]<class View>(View view) {
    statistics_case<small_page> one(pages, {3, 1, 20}, 3);
    check_of<exact_accuracy>(one, view);
  };
  reduce(statistics_view<group_reduction::sum, statistic::sum, statistic::entropy>{});
  reduce(statistics_view<group_reduction::sum, statistic::entropy, statistic::maximum, statistic::sum>{});
  reduce(statistics_view<group_reduction::mean, statistic::square_sum, statistic::below, statistic::entropy>{});
  reduce(statistics_view<group_reduction::mean, statistic::maximum, statistic::weighted_sum>{});
  reduce(statistics_view<group_reduction::maximum, statistic::maximum>{});
  reduce(statistics_view<group_reduction::maximum, statistic::sum, statistic::maximum>{});
}

TEST_CASE("device statistics: every slot of a sequence is written, masked ones exactly 0, and none behind its last", "[cuda][statistics]") {
  paged_case<small_page> const pages(lengths, 2, 1);
  for (std::int64_t const newest : {0, 1000}) {
    statistics_case<small_page> one(pages, queries, 2, {.window = 20}, {.newest = newest});
    one.attend<exact_accuracy>();
    auto const got = device_statistics<exact_accuracy>(one, all_of_heads{}, std::nanf("")),
               cpu = one.statistics<exact_accuracy>(all_of_heads{}, std::nanf(""));
    std::int64_t wrong = 0;
    for (std::size_t i = 0; i < got.size(); ++i)
      for (std::size_t at = 0; at < got[i].size(); ++at)
        wrong += std::isnan(got[i][at]) != std::isnan(cpu[i][at]) || (cpu[i][at] == 0 && got[i][at] != 0);
    CHECK(wrong == 0);
  }
}

TEST_CASE("device statistics: one term is near what two give", "[cuda][statistics]") {
  paged_case<kept_page> const pages({300, 40}, 2, 4);
  statistics_case<kept_page> one(pages, {20, 3}, 2);
  one.attend<exact_accuracy>();
  using sums = statistics_view<group_reduction::sum, statistic::sum>;
  auto const exact = device_statistics<exact_accuracy>(one, sums{}), rounded = device_statistics<integer_accuracy>(one, sums{});
  double worst = 0, all = 0;
  for (std::size_t i = 0; i < exact[0].size(); ++i) {
    worst = std::max(worst, std::fabs(static_cast<double>(exact[0][i]) - static_cast<double>(rounded[0][i])));
    all += static_cast<double>(exact[0][i]);
  }
  CHECK(worst <= 2e-2);
  CHECK(worst > 0);
  CHECK(all == Approx(23 * 4).epsilon(1e-4));  // each row gives 1
}

TEST_CASE("device statistics: refuses what the host can see, and starts nothing", "[cuda][statistics][error]") {
  paged_case<small_page> const pages({40}, 2, 7);
  statistics_case<small_page> const one(pages, {2}, 2);
  using asked = device_statistics_view<group_reduction::sum, statistic::sum, statistic::weighted_sum, statistic::below>;
  std::vector<float> numbers(3 * 4 * 64, -77.0f);
  using view = tensor_view<float, 2, space::device>;
  auto const all = [&](view to) { return asked{.sum = to, .below = to, .weighted_sum = to}; };
  view const right(numbers.data(), {2, 64});
  tensor_view<float const, 2, space::device> const lse(one.lse.data(), {2, 4});
  auto const refused = [&](asked const& out, tensor_view<float const, 2, space::device> known, device_statistics_rows const& rows,
                           device_attention_options const& options = {}, std::int64_t scratch = 8 << 20) {
    emulated_environment const env(scratch);
    status const got = attention_statistics(cuda{}, env, as_device(pages.view()), one.q_indptr.data(), 2, as_device(one.queries()), known,
                                            out, rows, options);
    for (float x : numbers) CHECK(x == -77.0f);
    return got.code;
  };
  device_statistics_rows const rows = as_device(one.chosen);
  CHECK(refused(all(right), {}, rows) == errc::shape_mismatch);
  CHECK(refused(all(right), {one.lse.data(), {2, 2}}, rows) == errc::shape_mismatch);
  CHECK(refused(all({}), lse, rows) == errc::shape_mismatch);
  CHECK(refused(all({numbers.data(), {4, 64}}), lse, rows) == errc::shape_mismatch);
  CHECK(refused(all({numbers.data(), {2, 64}, {128, 2}}), lse, rows) == errc::shape_mismatch);
  CHECK(refused(all(right), lse, {.weights = one.weights.data()}) == errc::shape_mismatch);
  CHECK(refused(all(right), lse, {.thresholds = one.thresholds.data()}) == errc::shape_mismatch);
  CHECK(refused(all(right), lse, {.newest = -1, .weights = rows.weights, .thresholds = rows.thresholds}) == errc::out_of_range);
  CHECK(refused(all(right), lse, {.stride = 0, .weights = rows.weights, .thresholds = rows.thresholds}) == errc::out_of_range);
  CHECK(refused(all(right), lse, rows, {.window = -1}) == errc::out_of_range);
  CHECK(refused(all(right), lse, rows, {}, 128) == errc::capacity_exceeded);
}

namespace {

// Attention with scores in `sums`, on the emulated device; the scratch holds garbage.
template <class Page>
status score(statistics_case<Page>& one, std::vector<float>& sums, float decay, std::vector<float>& out, bool with_lse = true) {
  std::int64_t most = 0;
  for (std::int64_t const n : one.counts) most = std::max(most, n);
  std::int64_t const rows = std::max<std::int64_t>(most * one.group, 1), heads = one.pages.kv_heads,
                     room = one.slots + 1;  // no row is aligned alike
  std::vector<float> logits(static_cast<std::size_t>(heads * rows * room), std::nanf(""));
  out.assign(static_cast<std::size_t>(one.tokens * one.heads * Page::value_channels), 0);
  device_attention_options options = as_device(one.options);
  if (with_lse) options.lse = {one.lse.data(), {one.tokens, one.heads}};
  emulated_environment const env;
  status const made =
      paged_attention(cuda{}, env, as_device(one.pages.view()), one.q_indptr.data(), most, as_device(one.queries()),
                      tensor_view<float, 3, space::device>(out.data(), {one.tokens, one.heads, Page::value_channels}), options,
                      {.sum = {sums.data(), {heads, one.slots}}, .logits = {logits.data(), {heads, rows, room}}, .decay = decay});
  return made ? env.status() : made;
}

}  // namespace

TEST_CASE("device scores: a decode step adds its attention to each slot, and changes no output", "[cuda][statistics]") {
  paged_case<kept_page> pages({70, 0, 1, 64, 33, 300}, 2, 1);
  for (bool const biased : {false, true}) {
    if (biased) pages.add_bias(4, 5);
    for (auto const& counts : {std::vector<std::int64_t>{1, 1, 1, 1, 1, 1}, std::vector<std::int64_t>{2, 1, 1, 0, 2, 2}})
      for (int const group : {1, 3, 8})
        for (attention_options const& how : {attention_options{}, attention_options{.soft_cap = 2, .window = 9}}) {
          INFO("group " << group << ", window " << how.window << ", biased " << biased);
          statistics_case<kept_page> one(pages, counts, group, how);
          one.precision = 0x1p-20;
          std::vector<float> sums(static_cast<std::size_t>(2 * one.slots), 0.0f), out, again(sums), other;
          REQUIRE(score(one, sums, 1, out) == status{});
          CHECK(one.expected().wrong(statistic::sum, group_reduction::sum, group, sums, one.tokens * group) == 0);
          REQUIRE(score(one, again, 1, other, false) == status{});
          CHECK(again == sums);
          CHECK(other == out);
          emulated_environment const env;
          std::int64_t most = 0;
          for (std::int64_t const n : counts) most = std::max(most, n);
          REQUIRE(paged_attention(cuda{}, env, as_device(pages.view()), one.q_indptr.data(), most, as_device(one.queries()),
                                  tensor_view<float, 3, space::device>(other.data(), {one.tokens, one.heads, 64}),
                                  as_device(one.options)) == status{});
          CHECK(other == out);
        }
  }
}

TEST_CASE("device scores: they decay first; with decay 0 what stood there is not read; sinks count; no other number is touched",
          "[cuda][statistics]") {
  paged_case<small_page> pages({70, 0, 5}, 2, 1);
  pages.add_bias(-1, 4);
  std::vector<float> const sinks{0.5f, -3.0f, 4.0f, minus_infinity};
  statistics_case<small_page> one(pages, {1, 1, 1}, 2, {.sink_logits = sinks});
  one.precision = 0x1p-20;
  std::vector<float> fresh(2 * 192, std::nanf("")), kept(2 * 192, 3.0f), out;
  REQUIRE(score(one, fresh, 0, out) == status{});
  REQUIRE(score(one, kept, 0.5f, out) == status{});
  for (std::size_t i = 0; i < fresh.size(); ++i) {
    std::size_t const slot = i % 192;
    if (slot < 70 || (slot >= 128 && slot < 133)) {
      CHECK(kept[i] == Approx(1.5f + fresh[i]).epsilon(1e-6));
    } else {
      CHECK((std::isnan(fresh[i]) && kept[i] == 3.0f));
      fresh[i] = 0;
    }
  }
  CHECK(one.expected().wrong(statistic::sum, group_reduction::sum, 2, fresh, 6) == 0);
}

TEST_CASE("device scores: a sequence without queries keeps its own, and a page that is none gives 0", "[cuda][statistics]") {
  paged_case<kept_page> pages({200, 64}, 1, 1);
  statistics_case<kept_page> one(pages, {1, 0}, 2);
  std::vector<float> sums(static_cast<std::size_t>(one.slots), 3.0f), out;
  pages.indices[1] = static_cast<std::uint32_t>(pages.blocks);
  CHECK(score(one, sums, 0.5f, out) == status{errc::out_of_range, 1});
  std::int64_t wrong = 0;
  for (std::size_t t = 0; t < sums.size(); ++t)
    wrong += t >= 200 ? sums[t] != 3.0f : t >= 64 && t < 128 ? sums[t] != 1.5f : !(sums[t] > 1.5f && sums[t] <= 3.5f);
  CHECK(wrong == 0);
}

TEST_CASE("device scores: refuses what the host can see, and starts nothing", "[cuda][statistics][error]") {
  paged_case<small_page> const pages({40}, 2, 7);
  statistics_case<small_page> const one(pages, {2}, 2);
  std::vector<float> numbers(2 * 4 * 64, -77.0f), out(2 * 4 * 64, -77.0f);
  auto const refused = [&](device_slot_scores const& scores, std::int64_t most = 2) {
    emulated_environment const env;
    status const got = paged_attention(cuda{}, env, as_device(pages.view()), one.q_indptr.data(), most, as_device(one.queries()),
                                       tensor_view<float, 3, space::device>(out.data(), {2, 4, 64}), {}, scores);
    for (float x : numbers) CHECK(x == -77.0f);
    for (float x : out) CHECK(x == -77.0f);
    return got.code;
  };
  tensor_view<float, 2, space::device> const sum(numbers.data(), {2, 64});
  tensor_view<float, 3, space::device> const logits(numbers.data(), {2, 4, 64});
  CHECK(refused({}) == errc::shape_mismatch);
  CHECK(refused({.sum = sum}) == errc::shape_mismatch);
  CHECK(refused({.logits = logits}) == errc::shape_mismatch);
  CHECK(refused({.sum = {numbers.data(), {1, 64}}, .logits = logits}) == errc::shape_mismatch);
  CHECK(refused({.sum = sum, .logits = {numbers.data(), {2, 3, 64}}}) == errc::shape_mismatch);
  CHECK(refused({.sum = sum, .logits = {numbers.data(), {2, 4, 64}, {256, 1, 4}}}) == errc::shape_mismatch);
  CHECK(refused({.sum = sum, .logits = logits, .decay = std::nanf("")}) == errc::out_of_range);
  CHECK(refused({.sum = sum, .logits = logits}, 9) == errc::out_of_range);
}
