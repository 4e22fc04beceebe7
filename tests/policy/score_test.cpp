// SPDX-License-Identifier: Apache-2.0
// Signals, scorers, head maps, normalisation and smoothing against their formulas in double precision.
#include <deque>

#include "oracle.hpp"
#include "pith/policy/head_map.hpp"
#include "pith/policy/head_split.hpp"
#include "pith/policy/normalise.hpp"
#include "pith/policy/scorer.hpp"
#include "pith/policy/signal.hpp"
#include "pith/policy/smooth.hpp"
#include "support/catch.hpp"

using pith::errc;
using pith::status;

namespace {

using row = std::vector<float>;

template <class Pool>
row pooled(Pool const& by, row const& in) {
  row out(in.size());
  by.apply(in, out);
  return out;
}

// Steps of a growing, now and then compacted row, each slot with everything it has met.
struct history {
  std::vector<std::vector<float>> met;  // [slot][step since birth]
  std::vector<std::int64_t> born;       // [slot], as a step
  row score;
  std::vector<std::uint64_t> words;
  std::int64_t step = 0;
  std::vector<std::int64_t> visible;  // [step]

  template <class Scorer>
  void run(Scorer const& by, std::mt19937& random) {
    std::size_t const known = met.size(), more = random() % 3;
    for (std::size_t i = 0; i < more; ++i) met.emplace_back(), born.push_back(step);
    score.resize(met.size(), 77.0f);  // rule C2: garbage
    words.resize(met.size() * static_cast<std::size_t>(Scorer::history_words), ~std::uint64_t{0});
    row const p =
        oracle::scores(random, static_cast<std::int64_t>(met.size()), random() % 2 == 0 ? oracle::shape::random : oracle::shape::one_hot);
    for (std::size_t i = 0; i < met.size(); ++i) met[i].push_back(p[i]);
    visible.push_back(static_cast<std::int64_t>(met.size()));
    by.update(p, score, words, {static_cast<std::int64_t>(known), visible.back(), step});
    ++step;
  }
  void drop(std::size_t slot, std::int64_t width) {
    met.erase(met.begin() + static_cast<std::ptrdiff_t>(slot));
    born.erase(born.begin() + static_cast<std::ptrdiff_t>(slot));
    score.erase(score.begin() + static_cast<std::ptrdiff_t>(slot));
    auto const from = words.begin() + static_cast<std::ptrdiff_t>(slot) * width;
    words.erase(from, from + width);
  }
};

template <class Scorer, class Expected>
void check_scorer(Scorer const& by, Expected expected) {
  std::mt19937 random(30);
  history h;
  for (int step = 0; step < 200; ++step) {
    h.run(by, random);
    for (std::size_t i = 0; i < h.met.size(); ++i) CHECK(static_cast<double>(h.score[i]) == Approx(expected(h, i)).margin(1e-6));
    if (h.met.size() > 10) h.drop(random() % h.met.size(), Scorer::history_words);
  }
}

}  // namespace

TEST_CASE("scorers: each is its formula over all that the slot has met", "[policy][score]") {
  check_scorer(pith::fresh{}, [](history const& h, std::size_t i) { return h.met[i].back(); });
  check_scorer(pith::accumulate{}, [](history const& h, std::size_t i) {
    double sum = 0;
    for (float const p : h.met[i]) sum += p;
    return sum;
  });
  check_scorer(pith::decayed{0.75f}, [](history const& h, std::size_t i) {
    double sum = 0;
    for (float const p : h.met[i]) sum = 0.75 * sum + p;
    return sum;
  });
  check_scorer(pith::highest{}, [](history const& h, std::size_t i) { return *std::max_element(h.met[i].begin(), h.met[i].end()); });
  check_scorer(pith::at_birth{0.5f},
               [](history const& h, std::size_t i) { return h.met[i].front() * std::pow(0.5, static_cast<double>(h.met[i].size() - 1)); });
  check_scorer(pith::last_use{}, [](history const& h, std::size_t i) {
    std::int64_t last = h.born[i];
    for (std::size_t k = 0; k < h.met[i].size(); ++k)
      if (h.met[i][k] > 0) last = h.born[i] + static_cast<std::int64_t>(k);
    return static_cast<double>(last);
  });
  check_scorer(pith::use_count{0.5f, 0.25f}, [](history const& h, std::size_t i) {
    double count = 0;
    for (float const p : h.met[i]) count = 0.5 * count + (p > 0.25f ? 1 : 0);
    return count;
  });
  auto const ignored = [](std::size_t steps) {
    return [steps](history const& h, std::size_t i) {
      double count = 0;
      for (std::size_t k = h.met[i].size() > steps ? h.met[i].size() - steps : 0; k < h.met[i].size(); ++k)
        count -= h.met[i][k] < 1.0f / static_cast<float>(h.visible[static_cast<std::size_t>(h.born[i]) + k]) ? 1 : 0;
      return count;
    };
  };
  check_scorer(pith::ignored_count<5>{}, ignored(5));
  check_scorer(pith::ignored_count<64>{}, ignored(64));
  check_scorer(pith::ignored_count<100>{}, ignored(100));
}

TEST_CASE("signals: the statistic they name, and a status if it is not there", "[policy][score]") {
  row const sum{3, 1}, squares{5, 0.5f}, most{2, 1}, given{7, 8};
  pith::slot_statistics const in{sum, squares, most, given, 4};
  auto const of = [&](auto const& signal) {
    row out(2);
    REQUIRE(signal.value(in, out));
    return out;
  };
  CHECK(of(pith::no_signal{}) == row{0, 0});
  CHECK(of(pith::all_attention{}) == sum);
  CHECK(of(pith::window_attention<4>{}) == sum);
  CHECK(of(pith::last_attention{}) == sum);
  CHECK(of(pith::maximum_attention{}) == most);
  CHECK(of(pith::given_scores{}) == given);
  CHECK(of(pith::window_mean_variance<4>{.gamma = 10})[0] == Approx(0.75 + 10 * (5 - 9.0 / 4) / 3));
  row out(2);
  CHECK(pith::all_attention{}.value({}, out) == status{errc::shape_mismatch, 0});
  CHECK(pith::window_mean_variance<4>{}.value({.sum = sum}, out) == status{errc::shape_mismatch, 0});
}

TEST_CASE("window_mean_variance: the rows' own mean and unbiased variance", "[policy][score]") {
  std::mt19937 random(31);
  for (std::int64_t const rows : {1, 2, 32}) {
    std::vector<double> p;
    for (std::int64_t i = 0; i < rows; ++i) p.push_back(static_cast<double>(random() % 1000) / 1000);
    double mean = 0, spread = 0, sum = 0, squares = 0;
    for (double const x : p) mean += x / static_cast<double>(rows), sum += x, squares += x * x;
    for (double const x : p) spread += (x - mean) * (x - mean);
    row out(1);
    row const sums{static_cast<float>(sum)}, square_sums{static_cast<float>(squares)};
    REQUIRE(pith::window_mean_variance<32>{}.value({sums, square_sums, {}, {}, rows}, out));
    CHECK(out[0] == Approx(mean + (rows > 1 ? 200 * spread / static_cast<double>(rows - 1) : 0)).epsilon(1e-4));
  }
}

TEST_CASE("head_map: mean, maximum, sum", "[policy][score]") {
  row const a{1, -2, 3}, b{2, -4, 0};
  auto const of = [&](auto map) {
    row out(3, NAN);
    map.take(a, out, 0), map.take(b, out, 1), map.finish(out, 2);
    return out;
  };
  CHECK(of(pith::mean_over_group{}) == row{1.5f, -3, 1.5f});
  CHECK(of(pith::max_over_group{}) == row{2, -2, 3});
  CHECK(of(pith::sum_over_group{}) == row{3, -6, 3});
  row out(1);
  pith::max_over_group::take(row{NAN}, out, 0), pith::max_over_group::take(row{1}, out, 1);
  CHECK(pith::is_nan(out[0]));
}

TEST_CASE("normalise: by the queries that saw a slot, by the maximum; equal means", "[policy][score]") {
  row s{8, 6, 4, 2};
  pith::per_query{}.apply(s, pith::all_rows);
  CHECK(s == row{2, 2, 2, 2});
  s = {8, 6, 4, 2};
  pith::per_query{}.apply(s, 2);
  CHECK(s == row{4, 3, 2, 2});
  pith::by_maximum{}.apply(s, 0);
  CHECK(s == row{1, 0.75f, 0.5f, 0.5f});
  row zero{0, 0}, wide{1, INFINITY};
  pith::by_maximum{}.apply(zero, 0), pith::by_maximum{}.apply(wide, 0), pith::as_is{}.apply(wide, 0);
  CHECK(zero == row{0, 0});
  CHECK(wide[0] == 1);
  row b{1, 3};
  pith::align_means(row{4, 4, 4}, b);
  CHECK(b == row{2, 6});
}

TEST_CASE("pools: the stated borders, odd widths wider than the row too, constant inside", "[policy][score]") {
  std::mt19937 random(32);
  for (std::int64_t const slots : {0, 1, 2, 3, 7, 40}) {
    row const in = oracle::scores(random, slots, oracle::shape::negative);
    row const average = pooled(pith::average_pool<7>{}, in), inside = pooled(pith::average_pool<7>{pith::border::zeros}, in);
    row const mean = pooled(pith::average_pool<7>{pith::border::inside}, in), most = pooled(pith::max_pool<7>{}, in);
    CHECK(average == inside);
    for (std::int64_t i = 0; i < slots; ++i) {
      double sum = 0, largest = -1e30, count = 0;
      for (std::int64_t k = std::max<std::int64_t>(i - 3, 0); k <= std::min(i + 3, slots - 1); ++k) {
        sum += in[static_cast<std::size_t>(k)], largest = std::max<double>(largest, in[static_cast<std::size_t>(k)]), ++count;
      }
      CHECK(average[static_cast<std::size_t>(i)] == Approx(sum / 7));
      CHECK(mean[static_cast<std::size_t>(i)] == Approx(sum / count));
      CHECK(most[static_cast<std::size_t>(i)] == static_cast<float>(largest));
    }
    CHECK(pooled(pith::no_smoothing{}, in) == in);
    CHECK(pooled(pith::average_pool<1>{}, in) == in);
    row const constant(static_cast<std::size_t>(slots), 0.25f);
    CHECK(pooled(pith::max_pool<5>{}, constant) == constant);
    CHECK(pooled(pith::average_pool<5>{pith::border::inside}, constant) == constant);
  }
  CHECK(pooled(pith::average_pool<3>{}, row{3, 3, 3, 3}) == row{2, 3, 3, 2});
  row const bad = pooled(pith::max_pool<3>{}, row{1, NAN, 3, 4});
  CHECK((pith::is_nan(bad[1]) && !pith::is_nan(bad[3])));
}

TEST_CASE("pooled_heads with concentration: a flat head gives way to a peaked one", "[policy][budget]") {
  // Head 0: one large score and zeros; head 1: flat. Their best three scores are the same in sum.
  row const scores{0.6f, 0, 0, 0, 0, 0, 0.2f, 0.2f, 0.2f, 0.2f, 0.2f, 0.2f};
  std::vector<pith::slot_mark> const marks(12, pith::free_slot);
  std::vector<std::int64_t> const offset{0, 6}, length{6, 6}, free{6, 6};
  pith::head_split_input const in{{scores, offset, length}, {marks, offset, length}, free, {}, 6};
  oracle::memory scratch(pith::head_split_scratch_bytes(2));
  std::vector<std::int64_t> out(2);
  REQUIRE(pith::pooled_heads{.floor = 0, .concentrate = true}.split(in, out, scratch));
  // Factors: 0.6 / 0.6 = 1 and 0.6 / 1.2 = 0.5. Ranked: 0.6, then six of 0.1.
  CHECK(out == std::vector<std::int64_t>{1, 5});
  row const lower{0.6f, 0.12f, 0.12f, 0, 0, 0, 0.2f, 0.2f, 0.2f, 0.2f, 0.2f, 0.2f};
  pith::head_split_input const second{{lower, offset, length}, {marks, offset, length}, free, {}, 6};
  REQUIRE(pith::pooled_heads{.floor = 0}.split(second, out, scratch));
  CHECK(out == std::vector<std::int64_t>{1, 5});
  REQUIRE(pith::pooled_heads{.floor = 0, .concentrate = true}.split(second, out, scratch));
  CHECK(out == std::vector<std::int64_t>{3, 3});  // 0.12 beats half of 0.2
}
