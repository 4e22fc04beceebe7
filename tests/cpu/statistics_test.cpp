// SPDX-License-Identifier: Apache-2.0
// Statistics and scores of attention over packed pages against softmax in double over the decoded pages.
#include "cpu/statistics_case.hpp"

namespace {

using namespace pith;
using namespace pith_test;

using small_page = kv_page<int4<per_channel<32>>, raw<bf16>, 64, 64, 64>;  // values matter to nothing here
using all_of_heads = statistics_view<group_reduction::none, statistic::sum, statistic::square_sum, statistic::maximum, statistic::below,
                                     statistic::weighted_sum, statistic::entropy, statistic::row_entropy>;

using sums_of_groups = statistics_view<group_reduction::sum, statistic::sum, statistic::entropy>;

std::vector<std::int64_t> const lengths{70, 0, 1, 64, 33, 130};
std::vector<std::int64_t> const queries{3, 2, 1, 0, 5, 20};

template <class Page>
void check_all_of_heads(paged_case<Page> const& pages, std::vector<std::int64_t> const& counts, int group, attention_options options = {},
                        statistics_rows rows = {}) {
  statistics_case<Page> one(pages, counts, group, options, rows);
  std::vector<statistics_oracle::row> expected;
  statistics_oracle right = one.expected(expected);
  for (std::size_t i = 0; i < expected.size(); ++i) one.lse[i] = static_cast<float>(expected[i].lse);
  auto const got = one.template statistics<exact_accuracy>(all_of_heads{});
  for (int which = 0; which < 6; ++which) {
    INFO("statistic " << which);
    CHECK(right.wrong(static_cast<statistic>(which), group_reduction::none, group, got[static_cast<std::size_t>(which)], one.tokens) == 0);
  }
  std::int64_t wrong = 0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    auto const [low, high] = expected[i].entropy;
    double const x = got[6][i], rounding = 0x1p-24 * static_cast<double>(one.slots) * high;
    wrong += high == -1 ? x != 0 : !(x >= low - rounding && x <= high + rounding);
  }
  for (float const p : got[2]) wrong += !(p >= 0 && p <= 1);
  CHECK(wrong == 0);
}

template <class View, group_reduction Reduction, statistic... Wanted>
void check_reduction_of(statistics_case<small_page> const& one, statistics_view<Reduction, Wanted...>) {
  auto const got = one.statistics<exact_accuracy>(View{});
  std::size_t i = 0;
  for (statistic const which : {Wanted...}) {
    INFO("reduction " << static_cast<int>(Reduction) << ", statistic " << static_cast<int>(which));
    CHECK(one.expected().wrong(which, Reduction, one.group, got[i++], one.tokens * one.group) == 0);
  }
}
template <class View>
void check_reduction(paged_case<small_page> const& pages, int group) {
  statistics_case<small_page> one(pages, queries, group);
  one.attend<exact_accuracy>();
  check_reduction_of<View>(one, View{});
}

}  // namespace

TEST_CASE("statistics: every one of them over a ragged batch, for every group size, exact", "[cpu][statistics]") {
  paged_case<small_page> const pages(lengths, 2, 1);
  for (int const group : {1, 3, 8}) {
    INFO("group " << group);
    check_all_of_heads(pages, queries, group);
  }
}

TEST_CASE("statistics: soft cap, window, sinks, bias, removed slots and a sequence that sees nothing", "[cpu][statistics]") {
  paged_case<small_page> pages(lengths, 2, 3);
  std::vector<float> const sinks{0.5f, -3.0f, 4.0f, minus_infinity};
  check_all_of_heads(pages, queries, 2, {.soft_cap = 1.5f});
  check_all_of_heads(pages, queries, 2, {.window = 7});
  pages.add_bias(4, 5);
  check_all_of_heads(pages, queries, 2);
  check_all_of_heads(pages, queries, 2, {.scale = 0.3f, .soft_cap = 2.5f, .window = 40, .sink_logits = sinks});
}

TEST_CASE("statistics: the newest rows, every third of them, more of them than there are, and none", "[cpu][statistics]") {
  paged_case<small_page> const pages(lengths, 2, 1);
  check_all_of_heads(pages, queries, 2, {}, {.newest = 4});
  check_all_of_heads(pages, queries, 2, {}, {.newest = 17, .stride = 3});
  check_all_of_heads(pages, queries, 2, {}, {.newest = 1000, .stride = 40});
  check_all_of_heads(pages, queries, 2, {}, {.newest = 0});
}

TEST_CASE("statistics: several ranges of slots", "[cpu][statistics]") {
  check_all_of_heads(paged_case<small_page>({4200, 2048, 2049}, 1, 8), {7, 1, 2}, 2);
}

TEST_CASE("statistics: raw pages, and rotated ones of int8 whose tiles are longer than a step", "[cpu][statistics]") {
  check_all_of_heads(paged_case<kv_page<raw<bf16>, raw<bf16>, 64, 64, 32>>(lengths, 2, 4), queries, 2);
  paged_case<kv_page<pith::pipe<hadamard<64>, int8<per_channel<256>>>, raw<bf16>, 64, 64, 256>> pages({2300, 5}, 2, 6);
  pages.add_bias(-1, 7);
  check_all_of_heads(pages, {5, 2}, 2);
}

TEST_CASE("statistics: the group's sum, mean and maximum are those of its heads", "[cpu][statistics]") {
  paged_case<small_page> const pages(lengths, 2, 2);
  check_reduction<statistics_view<group_reduction::mean, statistic::square_sum, statistic::sum>>(pages, 3);
  check_reduction<statistics_view<group_reduction::maximum, statistic::maximum>>(pages, 3);
  check_reduction<statistics_view<group_reduction::maximum, statistic::entropy, statistic::maximum>>(pages, 3);
}

TEST_CASE("statistics: no bit depends on the executor or on what else is in the batch; slots that nobody sees are set to 0",
          "[cpu][statistics]") {
  paged_case<small_page> const pages({70, 0, 4200}, 2, 1);
  statistics_case<small_page> one(pages, {3, 2, 33}, 2, {.window = 50});
  one.attend<exact_accuracy>();
  auto const forwards = one.statistics<exact_accuracy>(all_of_heads{}, 7.0f),
             backwards = one.statistics<exact_accuracy>(all_of_heads{}, 7.0f, true);
  CHECK(forwards == backwards);
  std::int64_t zeros = 0, untouched = 0;
  for (float const x : forwards[0]) zeros += x == 0, untouched += x == 7;
  CHECK(untouched == 4 * (2 * 64 - 70 + 66 * 64 - 4200));  // behind the sequences' last tokens
  CHECK(zeros == 4 * (70 - 52 + 4200 - 82));

  paged_case<small_page> third = pages;  // its pages are those of `pages`
  third.lengths = {4200}, third.indptr.erase(third.indptr.begin(), third.indptr.begin() + 2),
  third.last_page_len = {pages.last_page_len[2]};
  third.memory.data = pages.memory.data;
  statistics_case<small_page> alone(third, {33}, 2, {.window = 50});
  alone.q.assign(one.q.begin() + 5 * 4 * 64, one.q.end()), alone.lse.assign(one.lse.begin() + 5 * 4, one.lse.end());
  alone.weights.assign(one.weights.begin() + 5, one.weights.end()),
      alone.thresholds.assign(one.thresholds.begin() + 5, one.thresholds.end());
  alone.chosen.weights = alone.weights, alone.chosen.thresholds = alone.thresholds;
  auto const got = alone.statistics<exact_accuracy>(all_of_heads{}, 7.0f);
  for (std::size_t which = 0; which < 6; ++which)
    for (int h = 0; h < 4; ++h)
      CHECK(std::equal(got[which].begin() + h * one.slots + 128, got[which].begin() + (h + 1) * one.slots,
                       forwards[which].begin() + h * one.slots + 128));
}

// Probabilities of a row sum to 1 under integer accuracy too: lse and the second pass see the same scores.
TEST_CASE("statistics: the sums of integer accuracy are its own scores', also where a large bias makes steps exact", "[cpu][statistics]") {
  paged_case<small_page> pages({300, 64}, 2, 1);
  for (bool const biased : {false, true}) {
    if (biased) {
      pages.add_bias(-1, 5);
      for (std::size_t i = 40; i < pages.bias.size(); i += 150) pages.bias[i] = 5;
    }
    statistics_case<small_page> one(pages, {40, 3}, 2, {.soft_cap = 30});
    one.attend<integer_accuracy>();
    auto const got = one.statistics<integer_accuracy>(sums_of_groups{});
    for (std::size_t head = 0; head < 2; ++head) {
      double sums[2] = {}, entropy = 0;
      for (std::size_t t = 0; t < 384; ++t) sums[t / 320] += got[0][head * 384 + t], entropy += got[1][head * 384 + t];
      CHECK(sums[0] == Approx(40 * 2).epsilon(1e-5));
      CHECK(sums[1] == Approx(3 * 2).epsilon(1e-5));
      CHECK((entropy > 0 && entropy < 2 * (40 * std::log(300) + 3 * std::log(64))));
    }
  }
}

namespace {

// A right call, to be spoilt.
struct request {
  sums_of_groups view;
  tensor_view<float const, 3> q;
  tensor_view<float const, 2> lse;
  std::vector<std::int64_t> q_indptr;
  statistics_rows chosen;
  attention_options options;
};

}  // namespace

TEST_CASE("statistics: refuse what does not fit, and write nothing then", "[cpu][statistics][status]") {
  paged_case<small_page> const pages({70, 5}, 2, 1);
  statistics_case<small_page> const one(pages, {3, 2}, 2);
  std::vector<float> numbers(2 * 192, 7.0f);
  auto const refused = [&](errc code, void (*spoil)(request&)) {
    request spoilt{{.sum = {numbers.data(), {2, 192}}, .entropy = {numbers.data(), {2, 192}}},
                   one.queries(),
                   {one.lse.data(), {5, 4}},
                   one.q_indptr,
                   {},
                   {}};
    spoil(spoilt);
    CHECK(attention_statistics<integer_accuracy>(cpu{}, pages.view(), spoilt.q_indptr, spoilt.q, spoilt.lse, spoilt.view, spoilt.chosen,
                                                 spoilt.options, either_way{})
              .code == code);
    CHECK(std::count(numbers.begin(), numbers.end(), 7.0f) == 2 * 192);
  };
  refused(errc::shape_mismatch, [](request& r) { r.view.sum = {}; });
  refused(errc::shape_mismatch, [](request& r) { r.view.sum.extent[0] = 4; });
  refused(errc::shape_mismatch, [](request& r) { r.view.entropy.extent[1] = 191; });
  refused(errc::shape_mismatch, [](request& r) { r.view.sum.stride[1] = 2; });
  refused(errc::shape_mismatch, [](request& r) { r.lse = {}; });
  refused(errc::shape_mismatch, [](request& r) { r.lse.extent[0] = 4; });
  refused(errc::out_of_range, [](request& r) { r.chosen.stride = 0; });
  refused(errc::out_of_range, [](request& r) { r.chosen.newest = -1; });
  refused(errc::out_of_range, [](request& r) { r.options.soft_cap = -1; });
  refused(errc::shape_mismatch, [](request& r) { r.q.extent[2] = 63; });
  refused(errc::shape_mismatch, [](request& r) { r.q_indptr[1] = -1; });

  statistics_case<small_page> few(pages, {3, 2}, 2);
  std::vector<float> made(4 * 192);
  all_of_heads view{.sum = {made.data(), {4, 192}}};
  view.square_sum = view.maximum = view.below = view.weighted_sum = view.entropy = view.sum;
  auto const run = [&] {
    return attention_statistics<exact_accuracy>(cpu{}, pages.view(), few.q_indptr, few.queries(),
                                                tensor_view<float const, 2>(few.lse.data(), {5, 4}), view, few.chosen, {}, either_way{});
  };
  CHECK(run() == status{errc::shape_mismatch, 0});  // no view of row entropies
  view.row_entropy = {made.data(), {5, 4}};
  CHECK(run() == status{});
  few.chosen.weights = few.chosen.weights.first(4);
  CHECK(run() == status{errc::shape_mismatch, 4});
  few.chosen.weights = few.weights, few.chosen.thresholds = {};
  CHECK(run() == status{errc::shape_mismatch, 0});
}

namespace {

// Attention with scores in `sums`; the scratch holds garbage.
template <class Accuracy>
std::vector<float> score(statistics_case<small_page>& one, std::vector<float>& sums, float decay) {
  std::int64_t const rows = std::min<std::int64_t>(16, one.tokens * one.group);
  std::vector<float> scratch(static_cast<std::size_t>(one.pages.kv_heads * rows * one.slots), std::nanf(""));
  one.options.scores = {.sum = {sums.data(), {one.pages.kv_heads, one.slots}},
                        .logits = {scratch.data(), {one.pages.kv_heads, rows, one.slots}},
                        .decay = decay};
  one.template attend<Accuracy>();
  one.options.scores = {};
  return one.out;
}

}  // namespace

TEST_CASE("scores: a decode step adds its attention to each slot, and changes no output", "[cpu][statistics]") {
  paged_case<small_page> pages(lengths, 2, 1);
  for (auto const& counts : {std::vector<std::int64_t>{1, 1, 1, 1, 1, 1}, queries})
    for (int const group : {1, 2, 3, 8, 20})
      for (attention_options const& options : {attention_options{}, attention_options{.soft_cap = 2, .window = 9}}) {
        INFO("group " << group << ", window " << options.window);
        statistics_case<small_page> one(pages, counts, group, options);
        one.attend<exact_accuracy>();
        auto const without = one.out;
        std::vector<float> sums(static_cast<std::size_t>(2 * one.slots), 0.0f);
        CHECK(score<exact_accuracy>(one, sums, 1) == without);
        CHECK(one.expected().wrong(statistic::sum, group_reduction::sum, group, sums, one.tokens * group) == 0);
      }
}

TEST_CASE("scores: they decay first; with decay 0 what stood there is not read; no number behind a sequence is touched",
          "[cpu][statistics]") {
  paged_case<small_page> pages({70, 0, 5}, 2, 1);
  pages.add_bias(-1, 4);
  statistics_case<small_page> one(pages, {1, 1, 1}, 2);
  std::vector<float> fresh(2 * 192, std::nanf("")), kept(2 * 192, 3.0f);
  score<exact_accuracy>(one, fresh, 0);
  score<exact_accuracy>(one, kept, 0.5f);
  for (std::size_t i = 0; i < fresh.size(); ++i) {
    std::size_t const slot = i % 192;
    if (slot < 70 || (slot >= 128 && slot < 133)) {
      CHECK(kept[i] == Approx(1.5f + fresh[i]).epsilon(1e-6));
    } else {
      CHECK((std::isnan(fresh[i]) && kept[i] == 3.0f));
    }
  }
}

TEST_CASE("scores: the second pass gives the same, for integer accuracy too", "[cpu][statistics]") {
  paged_case<small_page> pages({300, 64, 1}, 2, 1);
  pages.add_bias(-1, 5);
  statistics_case<small_page> one(pages, {5, 1, 1}, 4);
  std::vector<float> sums(static_cast<std::size_t>(2 * one.slots), 0.0f);
  score<integer_accuracy>(one, sums, 1);
  auto const second = one.statistics<integer_accuracy>(sums_of_groups{})[0];
  // lse is rounded to f32 in between
  for (std::size_t i = 0; i < sums.size(); ++i) CHECK(std::fabs(sums[i] - second[i]) <= 8e-7 * (1 + 20) * second[i]);
}

TEST_CASE("scores: refused where they do not fit", "[cpu][statistics][status]") {
  paged_case<small_page> const pages({70, 5}, 2, 1);
  statistics_case<small_page> one(pages, {1, 1}, 2);
  std::vector<float> sums(2 * 192), scratch(2 * 4 * 192);
  auto const refused = [&](void (*spoil)(slot_scores&)) {
    attention_options options{.scores = {.sum = {sums.data(), {2, 192}}, .logits = {scratch.data(), {2, 4, 192}}}};
    spoil(options.scores);
    CHECK(paged_attention<exact_accuracy, small_page, float, float>(cpu{}, pages.view(), one.q_indptr, one.queries(),
                                                                    {one.out.data(), {2, 4, 64}}, options)
              .code == errc::shape_mismatch);
  };
  refused([](slot_scores& s) { s.sum.extent[0] = 1; });
  refused([](slot_scores& s) { s.sum.extent[1] = 191; });
  refused([](slot_scores& s) { s.logits = {}; });
  refused([](slot_scores& s) { s.logits.extent[1] = 3; });
  refused([](slot_scores& s) { s.logits.stride[2] = 2; });
}
