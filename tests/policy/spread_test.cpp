// SPDX-License-Identifier: Apache-2.0
// EMS: two sums, three classes. CaM: values that go to the next kept slots, behind a gate.
#include "oracle.hpp"
#include "pith/policy/compensation.hpp"
#include "pith/policy/recipes.hpp"
#include "support/catch.hpp"
#include "world.hpp"

using oracle::world;
using pith::chosen_slot;
using pith::errc;
using pith::free_slot;
using pith::no_target;
using pith::slot_mark;
using pith::stage;
using pith::status;

namespace {

using list = std::vector<std::int64_t>;
using marks = std::vector<slot_mark>;
using row = std::vector<float>;

// The sums brought to one mean over the slots before the window.
std::vector<double> joined(row const& all, row const& window, std::size_t rows, bool sum) {
  std::size_t const scored = all.size() - std::min(all.size(), rows);
  double of_all = 0, of_window = 0;
  for (std::size_t s = 0; s < scored; ++s) of_all += static_cast<double>(all[s]), of_window += static_cast<double>(window[s]);
  double const scale = of_window > 0 ? of_all / of_window : 0;
  std::vector<double> out;
  for (std::size_t s = 0; s < all.size(); ++s) {
    double const a = all[s], b = s < scored ? scale * static_cast<double>(window[s]) : 0;
    out.push_back(sum ? a + b : std::max(a, b));
  }
  return out;
}

double cosine(float const* a, float const* b, std::int64_t channels) {
  double ab = 0, aa = 0, bb = 0;
  for (std::int64_t c = 0; c < channels; ++c) {
    double const x = a[c], y = b[c];
    ab += x * y, aa += x * x, bb += y * y;
  }
  return aa * bb > 0 ? std::clamp(ab / std::sqrt(aa * bb), -1.0, 1.0) : 0;
}

}  // namespace

TEST_CASE("global_and_window_attention: both sums have one mean, then the larger or their sum", "[policy][signal]") {
  std::mt19937 random(100);
  for (std::size_t const slots : {0u, 1u, 4u, 5u, 30u})
    for (int trial = 0; trial < 6; ++trial) {
      row all(slots), window(slots);
      for (std::size_t s = 0; s < slots; ++s) {
        all[s] = static_cast<float>(random() % 1000) / 100.0f;
        window[s] = trial == 0 || random() % 3 == 0 ? 0.0f : static_cast<float>(random() % 100) / 100.0f;  // trial 0: looked at nothing
      }
      for (auto const by : {pith::joined::maximum, pith::joined::sum}) {
        row out(slots);
        REQUIRE(pith::global_and_window_attention<4>{by}.value({.sum = all, .window_sum = window}, out));
        auto const expected = joined(all, window, 4, by == pith::joined::sum);
        for (std::size_t s = 0; s < slots; ++s) CHECK(out[s] == Approx(expected[s]).epsilon(1e-6));
        if (trial == 0) CHECK(out == all);
      }
    }
  // A window that looks at itself alone: nothing overflows, and its own slots do not either.
  row all(40, 2.5f), window(40, 1e-40f), spared(40);
  std::fill(window.begin() + 36, window.end(), 9.0f);
  REQUIRE(pith::global_and_window_attention<4>{}.value({.sum = all, .window_sum = window}, spared));
  for (float const x : spared) CHECK(x == Approx(2.5f));
  row out(3);
  CHECK(pith::global_and_window_attention<4>{}.value({.sum = row(3)}, out) == status{errc::shape_mismatch, 0});
  CHECK(pith::global_and_window_attention<4>{}.value({.sum = row(2), .window_sum = row(3)}, out) == status{errc::shape_mismatch, 2});
  for (auto const by : {pith::joined::maximum, pith::joined::sum})
    for (bool const in_window : {false, true}) {  // a NaN stays where it is
      row with{1, 2, 3}, local{1, 1, 1};
      (in_window ? local : with)[1] = NAN;
      REQUIRE(pith::global_and_window_attention<1>{by}.value({.sum = with, .window_sum = local}, out));
      CHECK((std::isnan(out[1]) && !std::isnan(out[0]) && !std::isnan(out[2])));
    }
}

TEST_CASE("score_weights: shares of a target's scores, even where there are none", "[policy][merge]") {
  list const target{0, 0, no_target, 1, 1, 2, 2};
  row const scores{1, 3, NAN, 0, 0, -5, 2};
  row weight(7);
  oracle::memory scratch(pith::merge_scratch_bytes(3));
  REQUIRE(pith::score_weights(target, 3, scores, weight, scratch));
  CHECK(weight == row{0.25f, 0.75f, 0, 0.5f, 0.5f, 0, 1});
  CHECK(pith::score_weights(target, 3, row{1, NAN, 0, 0, 0, 0, 0}, weight, scratch) == status{errc::not_finite, 1});
  CHECK(pith::score_weights(target, 3, row{1, 0, 0, INFINITY, 0, 0, 0}, weight, scratch) == status{errc::not_finite, 3});
  CHECK(pith::score_weights(target, 2, scores, weight, scratch) == status{errc::out_of_range, 5});
  CHECK(pith::score_weights(target, 3, row(6), weight, scratch) == status{errc::shape_mismatch, 6});
  CHECK(pith::score_weights(target, 3, scores, weight, {}).code == errc::capacity_exceeded);
}

TEST_CASE("EMS: important slots stay, what resembles one merges by attention, the rest is dropped", "[policy][policy]") {
  std::mt19937 random(101);
  std::int64_t merged = 0, dropped = 0;
  for (std::int64_t const group : {1, 3}) {
    for (list const& lengths : {list{40, 40, 40, 40}, list{3, 17, 8, 60}, list{1, 0, 12, 13}}) {
      world w(random, 2, 2, group, lengths, 4);
      row all = w.maximum;  // some other number of each slot for the sum over all rows
      for (float& x : all) x *= 7;
      pith::recipes::ems<12, 4> const p;
      pith::policy_statistics statistics = w.statistics();
      statistics.window_sum = w.sum, statistics.sum = all;
      oracle::memory scratch(pith::decide_scratch_bytes(w.rows(), w.slots()) + pith::observe_scratch_bytes(60));
      REQUIRE(pith::observe(p, w.where(), statistics, w.state, scratch));
      REQUIRE(w.decide(p));
      for (std::size_t layer = 0; layer < 2; ++layer) {  // heads share the layer's total
        std::int64_t const held = w.kept_count[2 * layer] + w.kept_count[2 * layer + 1];
        CHECK(held == std::min<std::int64_t>(lengths[2 * layer] + lengths[2 * layer + 1], 24));
      }
      for (std::size_t r = 0; r < lengths.size(); ++r) {
        auto const slots = static_cast<std::size_t>(lengths[r]), at = static_cast<std::size_t>(w.offset[r]);
        std::vector<double> mean(slots, 0.0);
        for (std::size_t q = 0; q < static_cast<std::size_t>(group); ++q) {
          auto const from = static_cast<std::ptrdiff_t>(static_cast<std::size_t>(group) * at + q * slots);
          auto const n = static_cast<std::ptrdiff_t>(slots);
          auto const one =
              joined(row(all.begin() + from, all.begin() + from + n), row(w.sum.begin() + from, w.sum.begin() + from + n), 4, false);
          for (std::size_t s = 0; s < slots; ++s) mean[s] += one[s] / static_cast<double>(group);
        }
        // The head's share holds the best of its own scores.
        list const stay = w.kept_of(static_cast<std::int64_t>(r));
        std::vector<oracle::place> places;
        for (std::size_t s = 0; s + 4 < slots; ++s) places.push_back({mean[s], static_cast<std::int64_t>(s), 0});
        oracle::rank(places);
        list expected;
        std::size_t const window = std::min<std::size_t>(slots, 4);
        for (std::size_t k = 0; k + window < stay.size(); ++k) expected.push_back(places[k].slot);
        for (std::size_t s = slots - window; s < slots; ++s) expected.push_back(static_cast<std::int64_t>(s));
        std::sort(expected.begin(), expected.end());
        CHECK(stay == expected);

        std::vector<double> sum(stay.size(), 0.0), weight(stay.size(), 0.0);
        auto const key = [&](std::size_t s) { return w.keys.data() + (at + s) * 4; };
        for (std::size_t s = 0; s < slots; ++s) {
          std::int64_t const to = w.target[at + s];
          if (!std::binary_search(stay.begin(), stay.end(), static_cast<std::int64_t>(s))) {
            double most = -2;
            std::int64_t best = no_target;
            for (std::size_t k = 0; k < stay.size(); ++k)
              if (double const c = cosine(key(s), key(static_cast<std::size_t>(stay[k])), 4); c >= most)
                most = c, best = static_cast<std::int64_t>(k);
            CHECK(to == (most >= 0.6 ? best : no_target));
            ++(to == no_target ? dropped : merged);
          }
          if (to == no_target) continue;
          sum[static_cast<std::size_t>(to)] += mean[s], weight[static_cast<std::size_t>(to)] += static_cast<double>(w.weight[at + s]);
        }
        for (std::size_t s = 0; s < slots; ++s)
          if (std::int64_t const to = w.target[at + s]; to != no_target && sum[static_cast<std::size_t>(to)] > 0)
            CHECK(w.weight[at + s] == Approx(mean[s] / sum[static_cast<std::size_t>(to)]).epsilon(1e-4).margin(1e-7));
        for (double const whole : weight) CHECK(whole == Approx(1));
      }
    }
  }
  CHECK((merged > 20 && dropped > 20));
}

TEST_CASE("CaM: a gate by score, seed, row and birth; the value's parts go to the next kept slots", "[policy][policy]") {
  std::mt19937 random(102);
  std::int64_t open = 0, closed = 0;
  for (std::int64_t const seed : {1, 2, 3}) {
    for (list const& lengths : {list{40, 40, 40, 40}, list{3, 17, 8, 60}, list{1, 0, 10, 11}}) {
      world w(random, 2, 2, 2, lengths, 4);
      pith::recipes::cam<10, 4, 5> const p;
      REQUIRE(w.observe(p));
      pith::policy_input in = w.input();
      in.seed = static_cast<std::uint64_t>(seed), in.births = w.positions;
      oracle::memory scratch(pith::decide_scratch_bytes(w.rows(), w.slots()));
      REQUIRE(pith::decide(p, w.where(), in, w.state, w.plan, scratch));
      CHECK(w.plan.losers == pith::fate::spread);
      std::vector<float> const score = w.score;
      for (std::size_t r = 0; r < lengths.size(); ++r) {
        auto const slots = static_cast<std::size_t>(lengths[r]), at = static_cast<std::size_t>(w.offset[r]);
        list const stay = w.kept_of(static_cast<std::int64_t>(r));
        marks of(slots, free_slot);
        for (std::int64_t const s : stay) of[static_cast<std::size_t>(s)] = chosen_slot;
        std::vector<std::uint8_t> gates(slots);
        for (std::size_t s = 0; s < slots; ++s) {
          auto const behind = std::lower_bound(stay.begin(), stay.end(), static_cast<std::int64_t>(s));
          if (of[s] != free_slot) {
            CHECK(w.target[at + s] == behind - stay.begin());
            CHECK(w.weight[at + s] == 1);
            continue;
          }
          CHECK(w.target[at + s] == (behind == stay.end() ? no_target : behind - stay.begin()));
          double sum = 0, count = 0;
          for (auto k = behind; k != stay.end() && count < 5; ++k, ++count)
            sum += static_cast<double>(score[at + static_cast<std::size_t>(*k)]);
          double const chance = count > 0 && sum > 0 ? static_cast<double>(score[at + s]) / (sum / count) : 0;
          gates[s] = pith::random_unit(static_cast<std::uint64_t>(seed), r, static_cast<std::uint64_t>(w.positions[at + s])) < chance;
          CHECK(w.weight[at + s] == (gates[s] != 0 ? 0.2f : 0.0f));
          ++(gates[s] != 0 ? open : closed);
        }
        for (std::size_t k = 0; k < stay.size(); ++k)  // nothing merges into a key: multiplicities stay
          CHECK(w.bias_out[at + k] == w.bias[at + static_cast<std::size_t>(stay[k])]);
        // Carried out from the plan, it is spread_to_next.
        row values(slots * 3), by_plan;
        for (float& x : values) x = static_cast<float>(random() % 100);
        for (std::int64_t const s : stay) by_plan.insert(by_plan.end(), values.begin() + 3 * s, values.begin() + 3 * s + 3);
        for (std::size_t s = 0; s < slots; ++s)
          for (std::int64_t k = w.target[at + s], last = k + 5; of[s] == free_slot && k != no_target; ++k) {
            if (k == last || k == static_cast<std::int64_t>(stay.size())) break;
            for (std::size_t c = 0; c < 3; ++c) by_plan[static_cast<std::size_t>(k) * 3 + c] += w.weight[at + s] * values[s * 3 + c];
          }
        REQUIRE(pith::spread_to_next(values, 3, of, gates, 5));
        for (std::size_t k = 0; k < stay.size(); ++k)
          for (std::size_t c = 0; c < 3; ++c)
            CHECK(by_plan[k * 3 + c] == Approx(values[static_cast<std::size_t>(stay[k]) * 3 + c]).epsilon(1e-5));
      }
      auto const first = w.weight;  // once more: the same; another seed: another plan
      REQUIRE(pith::decide(p, w.where(), in, w.state, w.plan, scratch));
      for (std::size_t r = 0; r < lengths.size(); ++r)
        for (std::int64_t s = 0; s < lengths[r]; ++s)
          CHECK(first[static_cast<std::size_t>(w.offset[r] + s)] == w.weight[static_cast<std::size_t>(w.offset[r] + s)]);
      pith::carry(p, w.where(), w.plan, w.state);
      for (std::size_t r = 0; r < lengths.size(); ++r) {
        CHECK(w.known[r] == w.kept_count[r]);
        for (std::size_t k = 0; k < w.kept_of(static_cast<std::int64_t>(r)).size(); ++k)
          CHECK(w.score[static_cast<std::size_t>(w.offset[r]) + k] ==
                score[static_cast<std::size_t>(w.offset[r] + w.kept_of(static_cast<std::int64_t>(r))[k])]);
      }
    }
  }
  CHECK((open > 20 && closed > 20));
}

TEST_CASE("spread_weights: clamped, and refused with a place", "[policy][merge][errors]") {
  marks const of{free_slot, chosen_slot, free_slot, 1, free_slot};
  row weight(5);
  REQUIRE(pith::spread_weights(of, row{9, 1, 0, 1, 9}, 4, 7, 0, {}, weight));  // sure, never, nobody behind
  CHECK(weight == row{0.25f, 1, 0, 1, 0});
  REQUIRE(pith::spread_weights(of, row{0.5f, 0, 0, 0, 0}, 1, 7, 0, {}, weight));  // the next have nothing: any score is more
  CHECK(weight == row{1, 1, 0, 1, 0});
  CHECK(pith::spread_weights(of, row{0, 0, NAN, 0, 0}, 1, 7, 0, {}, weight) == status{errc::not_finite, 2});
  CHECK(pith::spread_weights(of, row(4), 1, 7, 0, {}, weight) == status{errc::shape_mismatch, 4});
  CHECK(pith::spread_weights(of, row(5), 0, 7, 0, {}, weight) == status{errc::out_of_range, -1});
  CHECK(pith::spread_weights(of, row(5), 1, 7, 0, list(3), weight) == status{errc::shape_mismatch, 3});
  // Half open: as often as not, whatever else there is.
  std::int64_t open = 0;
  for (std::int64_t birth = 0; birth < 4000; ++birth) {
    row one(2);
    REQUIRE(pith::spread_weights(marks{free_slot, chosen_slot}, row{1, 2}, 1, 11, 3, list{birth, 0}, one));
    open += one[0] > 0;
  }
  CHECK(std::abs(static_cast<double>(open) - 2000) < 5 * std::sqrt(1000.0));
}
