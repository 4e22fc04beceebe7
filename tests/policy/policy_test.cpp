// SPDX-License-Identifier: Apache-2.0
// Whole policies over plain arrays, each against the method told in a few lines of double precision.
#include "pith/policy/policy.hpp"

#include "pith/policy/decide.hpp"
#include "pith/policy/recipes.hpp"
#include "support/catch.hpp"
#include "world.hpp"

using oracle::world;
using pith::errc;
using pith::stage;
using pith::status;

namespace {

using list = std::vector<std::int64_t>;

list all_of(std::int64_t slots) {
  list out(static_cast<std::size_t>(slots));
  std::iota(out.begin(), out.end(), 0);
  return out;
}

// The `count` best of scores[0, scored), and everything from there on.
list best_and_rest(std::vector<double> const& scores, std::int64_t scored, std::int64_t count) {
  std::vector<oracle::place> places;
  for (std::int64_t s = 0; s < scored; ++s) places.push_back({scores[static_cast<std::size_t>(s)], s, 0});
  oracle::rank(places);
  list out;
  for (std::int64_t i = 0; i < std::min(count, scored); ++i) out.push_back(places[static_cast<std::size_t>(i)].slot);
  for (std::int64_t s = scored; s < static_cast<std::int64_t>(scores.size()); ++s) out.push_back(s);
  std::sort(out.begin(), out.end());
  return out;
}

}  // namespace

TEST_CASE("keep<...>, policy<...> and bundles name one and the same policy", "[policy][policy]") {
  using spelled = pith::policy<pith::all_attention, pith::best, pith::capacity<1024>, pith::accumulate>;
  using bundled = pith::keep<pith::top<1024, pith::accumulated_attention>>::type;
  static_assert(std::is_same_v<spelled::stage_type<stage::scorer>, bundled::stage_type<stage::scorer>>);
  static_assert(std::is_same_v<bundled::stage_type<stage::total>, pith::capacity<1024>>);
  static_assert(std::is_same_v<bundled::stage_type<stage::dispose>, pith::drop>);
  static_assert(std::is_same_v<pith::keep<pith::recipes::snapkv<>>::type, pith::recipes::snapkv<>>);
  bundled p;
  p.at<stage::total>().tokens = 5;
  CHECK(p.due({.slots = 6, .capacity = 5}));
  CHECK_FALSE(p.due({.slots = 5, .capacity = 5}));
  CHECK(pith::recipes::ada_kv<>{}.at<stage::head_split>().concentrate);
}

TEST_CASE("triggers: each at its moment", "[policy][trigger]") {
  using pith::moment;
  CHECK((pith::on_prefill_end{}.due({moment::prefill_end}) && !pith::on_prefill_end{}.due({moment::step})));
  CHECK((pith::on_chunk_end{}.due({moment::chunk_end}) && pith::on_layer_done{}.due({moment::layer_done})));
  CHECK((pith::on_turn_end{}.due({moment::turn_end}) && !pith::on_turn_end{}.due({moment::step})));
  CHECK((pith::every_step{}.due({moment::step}) && pith::every_step{}.due({moment::prefill_end}) &&
         !pith::every_step{}.due({moment::turn_end})));
  CHECK((pith::every<4>{}.due({moment::step, 8}) && !pith::every<4>{}.due({moment::step, 9}) && !pith::every<4>{}.due({moment::step, 0})));
  CHECK((pith::over<3>{}.due({.slots = 14, .capacity = 10}) && !pith::over<3>{}.due({.slots = 13, .capacity = 10})));
  CHECK((pith::on_page_full<16>{}.due({.slots = 32}) && !pith::on_page_full<16>{}.due({.slots = 0}) &&
         !pith::on_page_full<16>{}.due({.slots = 33})));
  CHECK((pith::on_drift{}.due({.query_similarity = 0.5}) && !pith::on_drift{}.due({.query_similarity = 0.7})));
  CHECK((pith::on_pressure{}.due({.free_memory = 0.2}) && !pith::on_pressure{}.due({})));
}

TEST_CASE("SnapKV: window sums, mean over the group, average of 5, the window and the best before it", "[policy][policy]") {
  std::mt19937 random(60);
  for (std::int64_t const group : {1, 4}) {
    for (list const& lengths : {list{40, 40, 40, 40}, list{3, 17, 8, 60}, list{1, 0, 9, 12}}) {
      world w(random, 2, 2, group, lengths, 4);
      pith::recipes::snapkv<12, 4> const p;
      REQUIRE(w.observe(p));
      REQUIRE(w.decide(p));
      for (std::size_t r = 0; r < lengths.size(); ++r) {
        std::int64_t const slots = lengths[r], before = std::max<std::int64_t>(slots - 4, 0);
        std::vector<double> mean(static_cast<std::size_t>(slots), 0.0), pooled(mean);
        for (std::int64_t q = 0; q < group; ++q)
          for (auto const& row : w.probabilities[r * static_cast<std::size_t>(group) + static_cast<std::size_t>(q)])
            for (std::size_t s = 0; s < mean.size(); ++s) mean[s] += row[s] / static_cast<double>(group);
        for (std::int64_t s = 0; s < before; ++s)
          for (std::int64_t k = std::max<std::int64_t>(s - 2, 0); k <= std::min(s + 2, before - 1); ++k)
            pooled[static_cast<std::size_t>(s)] += mean[static_cast<std::size_t>(k)] / 5;
        CHECK(w.kept_of(static_cast<std::int64_t>(r)) == best_and_rest(pooled, before, 8));
      }
      CHECK((w.plan.budget.raised == 0 && w.plan.budget.clipped == 0));
    }
  }
}

TEST_CASE("H2O over many steps: the state travels with the survivors", "[policy][policy]") {
  // One row that grows by a token a step; the tale is told by births.
  std::mt19937 random(61);
  std::int64_t const room = 64;
  list const offset{0};
  list length{0}, known{0}, kept(room), kept_count(1);
  std::vector<float> score(room), p(room);
  pith::policy_state state{score, {}, known, 0, 0};
  pith::policy_plan plan;
  plan.kept = kept, plan.kept_count = kept_count;
  pith::recipes::h2o<8, 3> const policy;
  struct token {
    std::int64_t birth;
    float score;
  };
  std::vector<token> tale;
  list births;
  for (std::int64_t step = 0; step < 300; ++step) {
    std::int64_t const more = step % 40 == 39 ? 20 : 1;
    for (std::int64_t i = 0; i < more; ++i) tale.push_back({step * 100 + i, 0}), births.push_back(tale.back().birth);
    length[0] = static_cast<std::int64_t>(tale.size());
    for (std::int64_t s = 0; s < length[0]; ++s) {
      p[static_cast<std::size_t>(s)] = random() % 3 == 0 ? 0.0f : static_cast<float>(random() % 8) / 8.0f;
      tale[static_cast<std::size_t>(s)].score += p[static_cast<std::size_t>(s)];
    }
    pith::policy_rows const rows{1, 1, offset, length};
    oracle::memory scratch(pith::decide_scratch_bytes(1, length[0]));
    REQUIRE(pith::observe(policy, rows, {p, {}, {}, {}, 1, 1, length[0]}, state, scratch));
    REQUIRE(pith::decide(policy, rows, {}, state, plan, scratch));
    pith::carry(policy, rows, plan, state);
    std::vector<double> scores;
    for (token const& t : tale) scores.push_back(t.score);
    std::int64_t const heavy = std::max<std::int64_t>(length[0] - 3, 0);
    list const expected = length[0] <= 8 ? all_of(length[0]) : best_and_rest(scores, heavy, 5);
    REQUIRE(list(kept.begin(), kept.begin() + kept_count[0]) == expected);
    std::vector<token> left;
    list births_left;
    for (std::int64_t const s : expected)
      left.push_back(tale[static_cast<std::size_t>(s)]), births_left.push_back(births[static_cast<std::size_t>(s)]);
    tale = left, births = births_left;
    CHECK(std::is_sorted(births.begin(), births.end()));
    CHECK(known[0] == static_cast<std::int64_t>(tale.size()));
    for (std::size_t s = 0; s < tale.size(); ++s) CHECK(score[s] == tale[s].score);
  }
}

TEST_CASE("TOVA: one set of slots for all heads of a layer", "[policy][policy]") {
  std::mt19937 random(62);
  world w(random, 2, 3, 2, list(6, 30), 1);
  pith::recipes::tova<7> const p;
  REQUIRE(w.observe(p));
  REQUIRE(w.decide(p));
  for (std::int64_t l = 0; l < 2; ++l) {
    std::vector<double> mean(30, 0.0);
    for (std::size_t list = 0; list < 6; ++list)
      for (std::size_t s = 0; s < 30; ++s) mean[s] += w.probabilities[static_cast<std::size_t>(l) * 6 + list][0][s];
    for (std::int64_t h = 0; h < 3; ++h) CHECK(w.kept_of(3 * l + h) == best_and_rest(mean, 29, 6));
  }
  world ragged(random, 1, 2, 1, {5, 6}, 1);
  CHECK(ragged.observe(p) == status{errc::shape_mismatch, 1});
}

TEST_CASE("StreamingLLM, RazorAttention, LaCache: no statistics at all", "[policy][policy]") {
  std::mt19937 random(63);
  world w(random, 2, 2, 1, {30, 4, 0, 9}, 0);
  pith::recipes::streaming_llm<10, 4> const stream;
  REQUIRE(w.decide(stream));
  CHECK(w.kept_of(0) == list{0, 1, 2, 3, 24, 25, 26, 27, 28, 29});
  CHECK((w.kept_of(1) == all_of(4) && w.kept_of(2).empty() && w.kept_of(3) == all_of(9)));
  for (std::int64_t i = 0; i < 10; ++i) CHECK(w.position[static_cast<std::size_t>(w.offset[0] + i)] == i);

  pith::recipes::razor_attention<3> const razor;
  w.head_table = {1, 0, 0, 0};
  REQUIRE(w.decide(razor));
  CHECK(w.kept_of(0) == all_of(30));
  CHECK((w.kept_of(1) == all_of(4) && w.kept_of(3) == list{0, 1, 2, 3, 6, 7, 8}));
  CHECK(w.compensation_bias[0] == -INFINITY);
  double tokens = 0;
  for (std::int64_t s = 4; s < 6; ++s) {
    CHECK(w.target[static_cast<std::size_t>(w.offset[3] + s)] == 7);
    tokens += std::exp(static_cast<double>(w.bias[static_cast<std::size_t>(w.offset[3] + s)]));
  }
  CHECK(w.compensation_bias[3] == Approx(std::log(tokens)));

  world even(random, 8, 2, 1, list(16, 40), 0);
  pith::recipes::lacache<24, 4> ladder;
  ladder.at<stage::select>().sinks = 2;
  REQUIRE(even.decide(ladder));
  pith::ladder const by = pith::ladder::make({8, 4, 0, 2, 24}).value();
  for (std::int64_t r = 0; r < 16; ++r) {
    list expected = all_of(40);
    std::int64_t cursor = 0;
    expected.resize(static_cast<std::size_t>(by.shorten(expected, r / 2, cursor)));
    CHECK(even.kept_of(r) == expected);
    CHECK(even.plan.cursor == cursor);
  }
}

TEST_CASE("splits: the whole budget, no more, through layers and heads", "[policy][policy]") {
  std::mt19937 random(64);
  for (int trial = 0; trial < 20; ++trial) {
    list lengths;
    for (int r = 0; r < 6; ++r) lengths.push_back(random() % 50);
    world w(random, 3, 2, 2, lengths, 4);
    auto const total = [&] { return std::accumulate(w.kept_count.begin(), w.kept_count.end(), std::int64_t{0}); };
    pith::recipes::pyramid_kv<12, 4> const pyramid;
    REQUIRE(w.observe(pyramid));
    REQUIRE(w.decide(pyramid));
    CHECK(total() == std::min<std::int64_t>(w.slots(), 6 * 12));
    pith::recipes::ada_kv<12, 4> const ada;
    REQUIRE(w.observe(ada));
    REQUIRE(w.decide(ada));
    for (std::int64_t l = 0; l < 3; ++l)
      CHECK(w.kept_count[static_cast<std::size_t>(2 * l)] + w.kept_count[static_cast<std::size_t>(2 * l + 1)] ==
            std::min<std::int64_t>(lengths[static_cast<std::size_t>(2 * l)] + lengths[static_cast<std::size_t>(2 * l + 1)], 24));
    pith::recipes::kvzip<2> const zip;
    REQUIRE(w.observe(zip));
    REQUIRE(w.decide(zip));
    std::int64_t sure = 0;
    for (std::int64_t const n : lengths) sure += std::min<std::int64_t>(n, 2);
    std::int64_t const wanted = pith::capacity_ratio{0.3}.total({lengths});
    CHECK(total() == std::max(wanted, sure));
    CHECK(w.plan.budget.raised == std::max<std::int64_t>(sure - wanted, 0));
  }
}

TEST_CASE("KVzip: the maximum over group and rows, one ranking over the model", "[policy][policy]") {
  std::mt19937 random(65);
  world w(random, 2, 2, 3, {20, 11, 25, 0}, 5);
  pith::recipes::kvzip<2> const p;
  REQUIRE(w.observe(p));
  REQUIRE(w.decide(p));
  std::vector<oracle::place> places;
  for (std::size_t r = 0; r < 4; ++r)
    for (std::int64_t s = 2; s < w.length[r]; ++s) {
      float most = 0;
      for (std::int64_t q = 0; q < 3; ++q)
        most = std::max(most, w.maximum[static_cast<std::size_t>(3 * w.offset[r] + q * w.length[r] + s)]);
      places.push_back({most, s, static_cast<std::int64_t>(r)});
    }
  oracle::rank(places);
  places.resize(static_cast<std::size_t>(16 - 6));  // 0.3 of 56, and three rows of two sinks
  std::vector<list> expected(4);
  for (std::int64_t const r : {0, 1, 2}) expected[static_cast<std::size_t>(r)] = {0, 1};
  for (auto const& place : places) expected[static_cast<std::size_t>(place.row)].push_back(place.slot);
  for (std::size_t r = 0; r < 4; ++r) {
    std::sort(expected[r].begin(), expected[r].end());
    CHECK(w.kept_of(static_cast<std::int64_t>(r)) == expected[r]);
  }
}

TEST_CASE("protection that exceeds the capacity is raised or clipped, and reported", "[policy][policy]") {
  std::mt19937 random(66);
  using guarded = pith::policy<pith::top<3, pith::accumulated_attention>, pith::protect<pith::sinks<2>, pith::recent<4>>>;
  world w(random, 1, 2, 1, {20, 2}, 5);
  guarded p;
  REQUIRE(w.observe(p));
  REQUIRE(w.decide(p));
  CHECK(w.kept_of(0) == list{0, 1, 16, 17, 18, 19});
  CHECK((w.plan.budget.raised == 3 && w.plan.budget.clipped == 0));
  p.at<stage::protect>().when_full = pith::overflow::clip;
  REQUIRE(w.decide(p));
  CHECK(w.kept_of(0) == list{0, 1, 19});
  CHECK(w.kept_of(1) == list{0, 1});
  CHECK((w.plan.budget.raised == 0 && w.plan.budget.clipped == 3));
  p.at<stage::total>().tokens = 0;
  REQUIRE(w.decide(p));
  CHECK((w.kept_of(0).empty() && w.kept_of(1).empty() && w.plan.budget.clipped == 8));

  using split = pith::policy<pith::top<3, pith::accumulated_attention>, pith::protect<pith::recent<5>>, pith::uniform_heads>;
  split s;
  s.at<stage::protect>().when_full = pith::overflow::clip;
  REQUIRE(w.decide(s));  // 7 protected slots of the layer, 6 allowed: 4 and 2
  CHECK((w.kept_of(0) == list{16, 17, 18, 19} && w.kept_of(1) == list{0, 1}));
  CHECK(w.plan.budget.clipped == 1);
}

TEST_CASE("D2O and Elastic Cache: losers have targets, weights and biases", "[policy][policy]") {
  std::mt19937 random(67);
  world w(random, 1, 2, 1, {30, 30}, 3);
  pith::recipes::d2o<12, 4> const p;
  REQUIRE(w.observe(p));
  REQUIRE(w.decide(p));
  CHECK(w.plan.losers == pith::fate::merged);
  for (std::int64_t r = 0; r < 2; ++r) {
    list const stay = w.kept_of(r);
    auto const at = static_cast<std::size_t>(w.offset[static_cast<std::size_t>(r)]);
    std::vector<double> weight(stay.size(), 0.0), tokens(stay.size(), 0.0);
    for (std::size_t s = 0; s < 30; ++s) {
      std::int64_t const to = w.target[at + s];
      auto const own = std::lower_bound(stay.begin(), stay.end(), static_cast<std::int64_t>(s));
      if (own != stay.end() && *own == static_cast<std::int64_t>(s)) CHECK(to == own - stay.begin());
      if (to == pith::no_target) continue;
      weight[static_cast<std::size_t>(to)] += static_cast<double>(w.weight[at + s]);
      tokens[static_cast<std::size_t>(to)] += std::exp(static_cast<double>(w.bias[at + s]));
    }
    for (std::size_t t = 0; t < stay.size(); ++t) {
      CHECK(weight[t] == Approx(1));
      CHECK(w.bias_out[at + t] == Approx(std::log(tokens[t])).margin(1e-6));
    }
  }
  pith::recipes::elastic_cache<12> const nearest;
  REQUIRE(w.observe(nearest));
  REQUIRE(w.decide(nearest));
  CHECK(std::count(w.target.begin() + w.offset[0], w.target.begin() + w.offset[0] + 30, pith::no_target) == 0);
}

TEST_CASE("a cascade of CAKE: with the model's total, the layers that are done never hold more", "[policy][policy]") {
  std::mt19937 random(68);
  std::int64_t const layers = 6, heads = 2, window = 4, capacity = 14, tokens = 40;
  world w(random, layers, heads, 2, list(static_cast<std::size_t>(layers * heads), tokens), window);
  pith::recipes::cake<capacity, window> const p;
  list offset = w.offset, length;
  for (std::int64_t m = 1; m <= layers; ++m) {
    for (std::int64_t h = 0; h < heads; ++h) length.push_back(tokens);
    auto const rows = static_cast<std::size_t>(m * heads);
    pith::policy_rows const done{m, heads, {offset.data(), rows}, length};
    pith::policy_input in = w.input();
    std::vector<double> const numbers(w.per_layer.begin(), w.per_layer.begin() + m);
    in.budget.layers = {numbers, numbers, {}, {}};
    in.budget.head_table = {};
    in.budget.total = (capacity - window) * layers * heads + m * window * heads;
    oracle::memory scratch(pith::decide_scratch_bytes(m * heads, m * heads * tokens));
    pith::policy_state state{w.score, {}, {w.known.data(), rows}, 0, 0};
    for (std::size_t r = rows - static_cast<std::size_t>(heads); r < rows; ++r) {  // the new layer's scores; the others keep theirs
      pith::policy_state own{w.score, {}, {w.known.data() + r, 1}, 0, 0};
      REQUIRE(pith::observe(p, pith::policy_rows{1, 1, {offset.data() + r, 1}, {length.data() + r, 1}}, w.statistics(), own, scratch));
    }
    pith::policy_plan plan = w.plan;
    plan.kept_count = {w.kept_count.data(), rows};
    REQUIRE(pith::decide(p, done, in, state, plan, scratch));
    pith::carry(p, done, plan, state);
    std::int64_t held = 0;
    for (std::size_t r = 0; r < rows; ++r) held += length[r] = w.kept_count[r];
    CHECK(held <= in.budget.total);
    if (m == layers) CHECK(held == capacity * layers * heads);
  }
}

TEST_CASE("decide: NaN, arrays that do not fit and too little scratch are refused with a place", "[policy][policy][errors]") {
  std::mt19937 random(69);
  using plain = pith::policy<pith::top<5, pith::accumulated_attention>>;
  plain const p;
  world w(random, 1, 2, 2, {9, 12}, 3);
  CHECK(w.decide(p) == status{errc::shape_mismatch, 0});  // not observed yet
  w.sum[static_cast<std::size_t>(2 * w.offset[1] + 12 + 7)] = NAN;
  std::vector<float> const before = w.score;
  CHECK(w.observe(p) == status{errc::not_finite, w.offset[1] + 7});
  CHECK(w.state.step == 0);
  CHECK(std::equal(before.begin(), before.end(), w.score.begin(),
                   [](float a, float b) { return pith::float_bits(a) == pith::float_bits(b); }));
  w.sum[static_cast<std::size_t>(2 * w.offset[1] + 12 + 7)] = 0.5f;
  REQUIRE(w.observe(p));
  REQUIRE(w.decide(p));
  w.score[static_cast<std::size_t>(w.offset[1] + 4)] = NAN;
  CHECK(w.decide(p) == status{errc::not_finite, w.offset[1] + 4});
  w.score[static_cast<std::size_t>(w.offset[1] + 4)] = -INFINITY;
  CHECK(w.decide(p));

  for (std::int64_t bytes = pith::decide_scratch_bytes(2, 21), step = 1; bytes > 0; bytes -= step, step += 3) {
    oracle::memory scratch(bytes);
    status const ok = pith::decide(p, w.where(), w.input(), w.state, w.plan, scratch);
    CHECK((ok || ok.code == errc::capacity_exceeded));
  }
  CHECK(pith::decide(p, w.where(), w.input(), w.state, w.plan, {}).code == errc::capacity_exceeded);
  oracle::memory scratch(pith::decide_scratch_bytes(2, 21));
  pith::policy_plan plan = w.plan;
  plan.kept_count = plan.kept_count.first(1);
  CHECK(pith::decide(p, w.where(), w.input(), w.state, plan, scratch) == status{errc::shape_mismatch, 1});
  plan = w.plan, plan.kept = plan.kept.first(20);
  CHECK(pith::decide(p, w.where(), w.input(), w.state, plan, scratch) == status{errc::out_of_range, 1});
  pith::policy_input in = w.input();
  in.mask = in.mask.first(5);
  CHECK(pith::decide(p, w.where(), in, w.state, w.plan, scratch).code == errc::out_of_range);
  pith::policy_rows rows = w.where();
  rows.layers = 2;
  CHECK(pith::decide(p, rows, w.input(), w.state, w.plan, scratch) == status{errc::shape_mismatch, 2});
  pith::policy_statistics missing = w.statistics();
  missing.sum = {};
  CHECK(pith::observe(p, w.where(), missing, w.state, scratch) == status{errc::shape_mismatch, 0});
  using similar = pith::policy<pith::top<5, pith::accumulated_attention>, pith::merge<pith::most_similar>>;
  in = w.input(), in.keys = {}, in.channels = 0;
  CHECK(pith::decide(similar{}, w.where(), in, w.state, w.plan, scratch).code == errc::shape_mismatch);
}
