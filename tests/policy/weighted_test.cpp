// SPDX-License-Identifier: Apache-2.0
// Weighted slots and rows: CriticalKV ranks by score times what a value adds to the output, Finch weighs a query row by the keys it sees.
// The use counts of Attendre stand beside them.
#include "oracle.hpp"
#include "pith/policy/recipes.hpp"
#include "pith/policy/select_weighted.hpp"
#include "support/catch.hpp"
#include "world.hpp"

using oracle::shape;
using oracle::world;
using pith::chosen_slot;
using pith::errc;
using pith::free_slot;
using pith::slot_mark;
using pith::status;

namespace {

using list = std::vector<std::int64_t>;
using marks = std::vector<slot_mark>;

// Two whole sorts.
marks twice(std::vector<float> const& scores, std::vector<float> const& weights, marks of, std::int64_t room, double first,
            double epsilon) {
  std::int64_t const all = std::min<std::int64_t>(std::max<std::int64_t>(room, 0), std::count(of.begin(), of.end(), free_slot));
  auto const by_score = static_cast<std::int64_t>(std::floor(first * static_cast<double>(all)));
  of = oracle::top(scores, of, by_score);
  std::vector<float> product(scores.size());
  for (std::size_t s = 0; s < scores.size(); ++s)
    product[s] = std::isinf(scores[s]) ? scores[s] : static_cast<float>((static_cast<double>(scores[s]) + epsilon) * weights[s]);
  return oracle::top(product, of, all - by_score);
}

}  // namespace

TEST_CASE("select_twice: a part by score, the rest by product, against two sorts", "[policy][select]") {
  std::mt19937 random(80);
  for (shape const of : oracle::shapes) {
    for (std::int64_t const slots : {0, 1, 2, 17, 80}) {
      for (int trial = 0; trial < 8; ++trial) {
        auto const scores = oracle::scores(random, slots, of);
        std::vector<float> weights(scores.size());
        for (float& w : weights) w = trial % 2 == 0 ? static_cast<float>(random() % 3) : static_cast<float>(random() % 1000) / 100.0f;
        marks const before = trial % 3 == 0 ? marks(scores.size(), free_slot) : oracle::marks(random, slots);
        std::int64_t const free = pith::free_slots(before);
        oracle::memory scratch(pith::select_twice_scratch_bytes(slots));
        for (double const first : {0.0, 0.3, 0.5, 1.0})
          for (double const epsilon : {0.0, 1e-4, 2.0})
            for (std::int64_t const room : {std::int64_t{-1}, std::int64_t{0}, std::int64_t{1}, free / 2, free - 1, free, free + 1}) {
              marks after = before;
              REQUIRE(pith::select_twice(scores, weights, after, room, first, epsilon, scratch));
              CHECK(after == twice(scores, weights, before, room, first, epsilon));
              CHECK(pith::free_slots(after) == free - std::clamp<std::int64_t>(room, 0, free));
              if (first == 1.0) CHECK(after == oracle::top(scores, before, room));
            }
      }
    }
  }
}

TEST_CASE("select_twice: equal weights are one selection by score; a great value wins over a weak look", "[policy][select]") {
  std::mt19937 random(81);
  auto const scores = oracle::scores(random, 50, shape::random);
  oracle::memory scratch(pith::select_twice_scratch_bytes(50));
  marks after(50, free_slot);
  REQUIRE(pith::select_twice(scores, std::vector<float>(50, 2.0f), after, 21, 0.5, 0, scratch));
  CHECK(after == oracle::top(scores, marks(50, free_slot), 21));
  marks of(4, free_slot);
  REQUIRE(pith::select_twice(std::vector<float>{0.5f, 0.3f, 0.1f, 0.0f}, std::vector<float>{1, 1, 4, 1e6f}, of, 2, 0.5, 1e-4, scratch));
  CHECK(of == marks{chosen_slot, free_slot, free_slot, chosen_slot});
}

TEST_CASE("select_twice: wrong weights are refused with their place, and marks stay", "[policy][select][errors]") {
  std::vector<float> const scores{1, 2, 3, 4};
  marks const before{free_slot, 1, free_slot, free_slot};
  marks of = before;
  oracle::memory scratch(pith::select_twice_scratch_bytes(4));
  auto const with = [&](std::vector<float> const& weights, double first = 0.5, double epsilon = 1e-4) {
    status const ok = pith::select_twice(scores, weights, of, 2, first, epsilon, scratch);
    if (!ok) CHECK(of == before);
    return ok;
  };
  CHECK(with({1, 1, 1}) == status{errc::shape_mismatch, 3});
  CHECK(with({1, 1, NAN, 1}) == status{errc::not_finite, 2});
  CHECK(with({1, 1, 1, INFINITY}) == status{errc::not_finite, 3});
  CHECK(with({-1, 1, 1, 1}) == status{errc::out_of_range, 0});
  CHECK(with({1, 1, 1, 1}, -0.1) == status{errc::out_of_range, -1});
  CHECK(with({1, 1, 1, 1}, 1.5) == status{errc::out_of_range, -1});
  CHECK(with({1, 1, 1, 1}, NAN) == status{errc::out_of_range, -1});
  CHECK(with({1, 1, 1, 1}, 0.5, -1) == status{errc::out_of_range, -1});
  CHECK(with({1, 1, 1, 1}, 0.5, INFINITY) == status{errc::out_of_range, -1});
  CHECK(pith::select_twice(scores, scores, of, 2, 0.5, 0, {}).code == errc::capacity_exceeded);
  CHECK(pith::select_twice(std::vector<float>{NAN, 1, 1, 1}, scores, of, 2, 0.5, 0, scratch) == status{errc::not_finite, 0});
  CHECK(with({1, NAN, 1, 1}));  // a protected slot's weight is not looked at
}

TEST_CASE("CriticalKV: SnapKV's scores, then the size of the value's output", "[policy][policy]") {
  std::mt19937 random(82);
  for (std::int64_t const group : {1, 3}) {
    for (list const& lengths : {list{40, 40, 40, 40}, list{3, 17, 8, 60}, list{1, 0, 13, 14}}) {
      world w(random, 2, 2, group, lengths, 4);
      std::vector<float> weights(w.score.size(), NAN);  // gaps hold garbage
      for (std::size_t r = 0; r < lengths.size(); ++r)
        for (std::int64_t s = 0; s < lengths[r]; ++s)
          weights[static_cast<std::size_t>(w.offset[r] + s)] = static_cast<float>(random() % 500) / 100.0f;
      pith::recipes::critical_kv<13, 4> const p;
      CHECK(p.at<pith::stage::select>().epsilon == 4e-4);
      REQUIRE(w.observe(p));
      pith::policy_input in = w.input();
      in.value_weights = weights;
      oracle::memory scratch(pith::decide_scratch_bytes(w.rows(), w.slots()));
      REQUIRE(pith::decide(p, w.where(), in, w.state, w.plan, scratch));
      for (std::size_t r = 0; r < lengths.size(); ++r) {
        std::int64_t const slots = lengths[r], before = std::max<std::int64_t>(slots - 4, 0);
        auto const mean = w.mapped(w.sum, r);
        std::vector<float> pooled(mean);
        marks of(mean.size(), free_slot);
        for (std::int64_t s = before; s < slots; ++s) of[static_cast<std::size_t>(s)] = 1;
        for (std::int64_t s = 0; s < before; ++s) {
          double sum = 0;
          for (std::int64_t k = std::max<std::int64_t>(s - 2, 0); k <= std::min(s + 2, before - 1); ++k)
            sum += static_cast<double>(mean[static_cast<std::size_t>(k)]);
          pooled[static_cast<std::size_t>(s)] = static_cast<float>(sum / 5);
        }
        auto const at = weights.begin() + w.offset[r];
        CHECK(w.kept_of(static_cast<std::int64_t>(r)) == oracle::kept(twice(pooled, {at, at + slots}, of, 9, 0.5, 4e-4)));
      }
      pith::policy_input none = in;
      none.value_weights = {};
      CHECK(pith::decide(p, w.where(), none, w.state, w.plan, scratch).code == errc::out_of_range);
      auto const bad = static_cast<std::size_t>(w.offset[3] + 2);
      weights[bad] = NAN;
      CHECK(pith::decide(p, w.where(), in, w.state, w.plan, scratch) == status{errc::not_finite, static_cast<std::int64_t>(bad)});
      weights[bad] = -1;
      CHECK(pith::decide(p, w.where(), in, w.state, w.plan, scratch) == status{errc::out_of_range, static_cast<std::int64_t>(bad)});
    }
  }
}

TEST_CASE("Finch: rows weigh as many keys as they see; the question stays", "[policy][policy]") {
  std::mt19937 random(83);
  for (std::int64_t const group : {1, 2, 4}) {
    for (list const& lengths : {list{40, 40, 40, 40}, list{3, 17, 8, 60}, list{1, 0, 10, 11}}) {
      world w(random, 2, 2, group, lengths, 4);
      pith::recipes::finch<10, 4> const p;
      REQUIRE(w.observe(p));
      REQUIRE(w.decide(p));
      for (std::size_t r = 0; r < lengths.size(); ++r) {
        std::int64_t const slots = lengths[r];
        std::vector<oracle::place> places;
        for (std::int64_t s = 0; s + 4 < slots; ++s) {
          double score = 0;
          for (std::size_t q = 0; q < static_cast<std::size_t>(group); ++q)
            for (std::int64_t i = 0; i < 4; ++i)
              score += static_cast<double>(slots - 3 + i) *
                       w.probabilities[r * static_cast<std::size_t>(group) + q][static_cast<std::size_t>(i)][static_cast<std::size_t>(s)];
          places.push_back({score, s, 0});
        }
        oracle::rank(places);
        list expected;
        for (std::size_t i = 0; i < std::min<std::size_t>(places.size(), 6); ++i) expected.push_back(places[i].slot);
        for (std::int64_t s = std::max<std::int64_t>(slots - 4, 0); s < slots; ++s) expected.push_back(s);
        std::sort(expected.begin(), expected.end());
        CHECK(w.kept_of(static_cast<std::int64_t>(r)) == expected);
        for (std::size_t k = 0; k < expected.size(); ++k)  // positions inside the cache
          CHECK(w.position[static_cast<std::size_t>(w.offset[r]) + k] == static_cast<std::int64_t>(k));
      }
      pith::policy_statistics missing = w.statistics();
      missing.weighted_sum = {};
      oracle::memory scratch(pith::observe_scratch_bytes(60));
      CHECK(pith::observe(p, w.where(), missing, w.state, scratch) == status{errc::shape_mismatch, 0});
    }
  }
}

TEST_CASE("Finch: an early row's look counts less than a late row's equal share of a longer past", "[policy][signal]") {
  // Two rows, of 2 and of 200 visible keys; slot 0 has the average of the first, slot 1 twice the average of the second.
  std::vector<float> const weighted{2 * 0.5f, 200 * 0.01f}, plain{0.5f, 0.01f};
  std::vector<float> out(2);
  REQUIRE(pith::weighted_attention<4>{}.value({.sum = plain, .weighted_sum = weighted}, out));
  CHECK(out[1] > out[0]);
  REQUIRE(pith::window_attention<4>{}.value({.sum = plain, .weighted_sum = weighted}, out));
  CHECK(out[1] < out[0]);
}

TEST_CASE("Attendre LFA: what has been used least often goes, whenever it was used; LRA asks when", "[policy][policy]") {
  std::mt19937 random(84);
  std::int64_t const room = 40;
  list const offset{0};
  list length{0}, known{0}, kept(room), kept_count(1);
  std::vector<float> score(room), p(room);
  pith::policy_state state{score, {}, known, 0, 0};
  pith::policy_plan plan;
  plan.kept = kept, plan.kept_count = kept_count;
  pith::recipes::attendre_lfa<12> policy;
  policy.at<pith::stage::scorer>().threshold = 0.25f;
  std::vector<int> uses;
  for (int step = 0; step < 100; ++step) {
    uses.insert(uses.end(), 1 + random() % 5, 0);
    length[0] = static_cast<std::int64_t>(uses.size());
    std::vector<float> counted(uses.size());
    for (std::size_t s = 0; s < uses.size(); ++s) {
      p[s] = static_cast<float>(random() % 8) / 16.0f;
      uses[s] += p[s] > 0.25f;
      counted[s] = static_cast<float>(uses[s]);
    }
    pith::policy_rows const rows{1, 1, offset, length};
    oracle::memory scratch(pith::decide_scratch_bytes(1, length[0]));
    REQUIRE(pith::observe(policy, rows, {.sum = p, .rows = 1, .visible = length[0]}, state, scratch));
    REQUIRE(pith::decide(policy, rows, {}, state, plan, scratch));
    pith::carry(policy, rows, plan, state);
    list const expected = oracle::kept(oracle::top(counted, marks(uses.size(), free_slot), 12));
    REQUIRE(list(kept.begin(), kept.begin() + kept_count[0]) == expected);
    std::vector<int> left;
    for (std::int64_t const s : expected) left.push_back(uses[static_cast<std::size_t>(s)]);
    uses = left;
    for (std::size_t s = 0; s < uses.size(); ++s) CHECK(score[s] == static_cast<float>(uses[s]));
  }
  CHECK(policy.due({.at = pith::moment::chunk_end}));
  CHECK_FALSE(policy.due({.at = pith::moment::step}));
}

TEST_CASE("LM-Infinite: sinks and the newest, and positions no farther back than the limit", "[policy][policy]") {
  std::mt19937 random(85);
  world w(random, 1, 3, 1, {30, 8, 0}, 0);
  pith::recipes::lm_infinite<6, 2> const p;
  REQUIRE(w.decide(p));
  CHECK(w.kept_of(0) == list{0, 1, 24, 25, 26, 27, 28, 29});
  CHECK(w.kept_of(1) == list{0, 1, 2, 3, 4, 5, 6, 7});
  for (std::int64_t r = 0; r < 2; ++r) {
    auto const at = static_cast<std::size_t>(w.offset[static_cast<std::size_t>(r)]);
    list const stay = w.kept_of(r);
    std::int64_t const newest = w.positions[at + static_cast<std::size_t>(stay.back())];
    for (std::size_t k = 0; k < stay.size(); ++k)
      CHECK(w.position[at + k] == std::max(w.positions[at + static_cast<std::size_t>(stay[k])], newest - 6));
  }
  // A limit that nothing exceeds: positions are the old ones.
  pith::recipes::lm_infinite<6, 2> far;
  far.at<pith::stage::position>().limit = 1000;
  REQUIRE(w.decide(far));
  for (std::size_t k = 0; k < 8; ++k)
    CHECK(w.position[static_cast<std::size_t>(w.offset[0]) + k] == w.positions[static_cast<std::size_t>(w.offset[0] + w.kept_of(0)[k])]);
}

TEST_CASE("WindowKV: the first layer of a group speaks for all of it", "[policy][policy]") {
  std::mt19937 random(86);
  for (std::int64_t const layers : {1, 3, 4, 6}) {
    world w(random, layers, 2, 2, list(static_cast<std::size_t>(2 * layers), 60), 4);
    pith::recipes::window_kv<30, 4, 1> const alone;
    REQUIRE(w.observe(alone));
    REQUIRE(w.decide(alone));
    std::vector<list> own;
    for (std::int64_t r = 0; r < w.rows(); ++r) own.push_back(w.kept_of(r));
    std::fill(w.known.begin(), w.known.end(), 0);
    if (layers > 1)  // nobody looks at what the others' queries say
      std::fill_n(w.sum.begin() + 2 * w.offset[2], 2 * 60, NAN);
    pith::recipes::window_kv<30, 4, 4> const shared;
    REQUIRE(w.observe(shared));
    REQUIRE(w.decide(shared));
    for (std::int64_t r = 0; r < w.rows(); ++r) CHECK(w.kept_of(r) == own[static_cast<std::size_t>(r / 8 * 8)]);
    if (layers > 3) CHECK(own[2] != own[0]);
    if (layers > 4) CHECK(w.kept_of(8) != w.kept_of(0));
    w.sum[static_cast<std::size_t>(2 * w.offset[0] + 7)] = NAN;
    CHECK(w.observe(shared) == status{errc::not_finite, w.offset[0] + 7});
  }
  world ragged(random, 4, 1, 1, {5, 5, 6, 5}, 4);
  CHECK(ragged.observe(pith::recipes::window_kv<30, 4, 4>{}) == status{errc::shape_mismatch, 2});
  CHECK(ragged.observe(pith::recipes::window_kv<30, 4, 2>{}) == status{errc::shape_mismatch, 3});
}
