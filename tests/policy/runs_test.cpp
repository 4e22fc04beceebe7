// SPDX-License-Identifier: Apache-2.0
// KVMerger under a budget: heavy hitters, runs cut where neighbours are least alike, pivots, and the way back from marks and keys.
#include "pith/policy/select_runs.hpp"

#include "oracle.hpp"
#include "pith/policy/recipes.hpp"
#include "support/catch.hpp"
#include "world.hpp"

using oracle::world;
using pith::chosen_slot;
using pith::errc;
using pith::free_slot;
using pith::heavy_slot;
using pith::no_target;
using pith::slot_mark;
using pith::status;

namespace {

using list = std::vector<std::int64_t>;
using marks = std::vector<slot_mark>;
using row = std::vector<float>;

constexpr std::int64_t channels = 4;

// Few directions, so that equal cosines are common; or none alike.
row keys_of(std::mt19937& random, std::int64_t slots, bool ties) {
  row out(static_cast<std::size_t>(slots * channels));
  for (float& x : out) x = ties ? static_cast<float>(random() % 2) : static_cast<float>(random() % 2000) / 1000.0f - 1.0f;
  return out;
}

float cosine(row const& keys, std::size_t a, std::size_t b) {
  double ab = 0, aa = 0, bb = 0;
  for (std::size_t c = 0; c < channels; ++c) {
    double const x = keys[a * channels + c], y = keys[b * channels + c];
    ab += x * y, aa += x * x, bb += y * y;
  }
  double const cosine = aa * bb > 0 ? ab / std::sqrt(aa * bb) : 0;
  return static_cast<float>(std::clamp(cosine, -1.0, 1.0));
}

struct answer {
  marks after;
  list owner;  // of each loser: its pivot, or -1
};

// Runs as sets of slots, cut one after another.
answer runs(row const& keys, row const& scores, marks const& before, std::int64_t room, double heavy) {
  answer out{before, list(before.size(), -1)};
  std::int64_t const free = std::count(before.begin(), before.end(), free_slot);
  room = std::clamp<std::int64_t>(room, 0, free);
  if (room == free) {
    std::replace(out.after.begin(), out.after.end(), free_slot, chosen_slot);
    return out;
  }
  auto const hitters = static_cast<std::int64_t>(std::floor(heavy * static_cast<double>(room)));
  auto const places = oracle::ranked(scores, before);
  for (std::int64_t i = 0; i < hitters; ++i) out.after[static_cast<std::size_t>(places[static_cast<std::size_t>(i)].slot)] = heavy_slot;
  std::vector<list> sets;
  for (std::size_t s = 0; s < before.size(); ++s) {
    if (out.after[s] != free_slot) continue;
    if (s == 0 || out.after[s - 1] != free_slot) sets.emplace_back();
    sets.back().push_back(static_cast<std::int64_t>(s));
  }
  std::int64_t const pivots = room - hitters;
  while (static_cast<std::int64_t>(sets.size()) < pivots) {
    std::size_t set = 0, place = 0;
    float least = 2;
    for (std::size_t i = 0; i < sets.size(); ++i)
      for (std::size_t k = 1; k < sets[i].size(); ++k)
        if (float const c = cosine(keys, static_cast<std::size_t>(sets[i][k - 1]), static_cast<std::size_t>(sets[i][k])); c <= least)
          least = c, set = i, place = k;  // of equal ones the newer: sets ascend
    auto const at = static_cast<std::ptrdiff_t>(place);
    list const behind(sets[set].begin() + at, sets[set].end());
    sets[set].resize(place);
    sets.insert(sets.begin() + static_cast<std::ptrdiff_t>(set) + 1, behind);
  }
  std::vector<std::pair<oracle::place, list>> best;
  for (list const& set : sets) {
    oracle::place most{-INFINITY, -1, 0};
    for (std::int64_t const s : set)
      if (double const x = scores[static_cast<std::size_t>(s)]; x >= most.score) most = {x, s, 0};
    best.emplace_back(most, set);
  }
  std::sort(best.begin(), best.end(), [](auto const& a, auto const& b) {
    return a.first.score != b.first.score ? a.first.score > b.first.score : a.first.slot > b.first.slot;
  });
  for (std::size_t i = 0; i < best.size() && static_cast<std::int64_t>(i) < pivots; ++i) {
    out.after[static_cast<std::size_t>(best[i].first.slot)] = chosen_slot;
    for (std::int64_t const s : best[i].second) out.owner[static_cast<std::size_t>(s)] = best[i].first.slot;
  }
  return out;
}

}  // namespace

TEST_CASE("select_runs: cut after cut, against sets of slots; route_own_run finds the runs again", "[policy][select][merge]") {
  std::mt19937 random(90);
  for (oracle::shape const of :
       {oracle::shape::random, oracle::shape::ties, oracle::shape::zeros, oracle::shape::one_hot, oracle::shape::negative}) {
    for (std::int64_t const slots : {0, 1, 2, 3, 20, 60}) {
      for (int trial = 0; trial < 8; ++trial) {
        row const keys = keys_of(random, slots, trial % 2 == 0), scores = oracle::scores(random, slots, of);
        marks const before = trial % 3 == 0 ? marks(scores.size(), free_slot) : oracle::marks(random, slots);
        std::int64_t const free = pith::free_slots(before);
        oracle::memory scratch(pith::select_scratch_bytes(slots));
        for (double const heavy : {0.0, 0.25, 0.5, 1.0})
          for (std::int64_t const room :
               {std::int64_t{-1}, std::int64_t{0}, std::int64_t{1}, free / 3, free / 2, free - 1, free, free + 1}) {
            marks after = before;
            REQUIRE(pith::select_runs(keys, channels, scores, after, room, heavy, scratch));
            answer const expected = runs(keys, scores, before, room, heavy);
            CHECK(after == expected.after);
            CHECK(pith::free_slots(after) == free - std::clamp<std::int64_t>(room, 0, free));
            list target(after.size());
            REQUIRE(pith::route_own_run(keys, channels, after, target));
            list const stay = oracle::kept(after);
            for (std::size_t s = 0; s < after.size(); ++s) {
              if (after[s] != free_slot)
                CHECK(stay[static_cast<std::size_t>(target[s])] == static_cast<std::int64_t>(s));
              else
                CHECK((target[s] == no_target ? -1 : stay[static_cast<std::size_t>(target[s])]) == expected.owner[s]);
            }
          }
      }
    }
  }
}

TEST_CASE("select_runs: runs never cross what is kept, and equal neighbours share one", "[policy][select]") {
  // Two directions: 0 0 0 1 1 1 | kept | 1 1, scores rise.
  row keys, scores;
  for (int s = 0; s < 9; ++s)
    for (int c = 0; c < channels; ++c) keys.push_back(static_cast<float>(c == (s < 3 ? 0 : 1))), scores.resize(keys.size() / channels);
  for (std::size_t s = 0; s < 9; ++s) scores[s] = static_cast<float>(s);
  marks of(9, free_slot);
  of[6] = 2;
  oracle::memory scratch(pith::select_scratch_bytes(9));
  REQUIRE(pith::select_runs(keys, channels, scores, of, 3, 0, scratch));
  CHECK(oracle::kept(of) == list{2, 5, 6, 8});
  list target(9);
  REQUIRE(pith::route_own_run(keys, channels, of, target));
  CHECK(target == list{0, 0, 0, 1, 1, 1, 2, 3, 3});
}

TEST_CASE("route_own_run: the nearest chosen slots take, protected ones do not", "[policy][merge]") {
  row const keys(8 * channels, 1.0f);  // all alike: of equal pairs the newer is cut
  list target(8);
  REQUIRE(pith::route_own_run(keys, channels, marks{0, 1, 0, 0, chosen_slot, 0, 0, chosen_slot}, target));
  CHECK(target == list{no_target, 0, 1, 1, 1, 1, 1, 2});
  REQUIRE(pith::route_own_run(keys, channels, marks{0, chosen_slot, 0, heavy_slot, 0, 0, 1, 0}, target));
  CHECK(target == list{0, 0, 0, 1, no_target, no_target, 2, no_target});
  CHECK(pith::route_own_run(keys, 3, marks(8, free_slot), target) == status{errc::shape_mismatch, 3});
  CHECK(pith::route_own_run(keys, channels, marks(7, free_slot), target) == status{errc::shape_mismatch, 8});
}

TEST_CASE("select_runs: wrong numbers are refused with their place, and marks stay", "[policy][select][errors]") {
  row keys(4 * channels, 1.0f);
  row const scores{1, 2, 3, 4};
  marks const before{free_slot, 1, free_slot, free_slot};
  marks of = before;
  oracle::memory scratch(pith::select_scratch_bytes(4));
  CHECK(pith::select_runs(keys, 0, scores, of, 2, 0, scratch) == status{errc::shape_mismatch, 0});
  CHECK(pith::select_runs(keys, 3, scores, of, 2, 0, scratch) == status{errc::shape_mismatch, 3});
  CHECK(pith::select_runs(keys, channels, row{1, 2, 3}, of, 2, 0, scratch) == status{errc::shape_mismatch, 3});
  CHECK(pith::select_runs(keys, channels, row{1, 2, NAN, 4}, of, 2, 0, scratch) == status{errc::not_finite, 2});
  CHECK(pith::select_runs(keys, channels, scores, of, 2, 1.25, scratch) == status{errc::out_of_range, -1});
  CHECK(pith::select_runs(keys, channels, scores, of, 2, NAN, scratch) == status{errc::out_of_range, -1});
  CHECK(pith::select_runs(keys, channels, scores, of, 2, 0, {}).code == errc::capacity_exceeded);
  keys[3 * channels + 1] = INFINITY;
  CHECK(pith::select_runs(keys, channels, scores, of, 2, 0, scratch) == status{errc::not_finite, 3});
  CHECK(of == before);
  keys[3 * channels + 1] = 0, keys[channels] = NAN;  // a protected slot's key is not looked at
  CHECK(pith::select_runs(keys, channels, scores, of, 2, 0, scratch));
}

TEST_CASE("KVMerger: the budget is met, heavy hitters stand alone, Gaussian means and biases of runs", "[policy][policy]") {
  std::mt19937 random(91);
  for (std::int64_t const group : {1, 2}) {
    for (list const& lengths : {list{40, 40, 40, 40}, list{3, 17, 8, 60}, list{1, 0, 16, 17}}) {
      world w(random, 2, 2, group, lengths, 6);
      pith::recipes::kv_merger<16, 4> p;
      REQUIRE(w.observe(p));
      REQUIRE(w.decide(p));
      CHECK(w.plan.losers == pith::fate::merged);
      for (std::size_t r = 0; r < lengths.size(); ++r) {
        auto const slots = static_cast<std::size_t>(lengths[r]), at = static_cast<std::size_t>(w.offset[r]);
        list const stay = w.kept_of(static_cast<std::int64_t>(r));
        CHECK(stay.size() == std::min<std::size_t>(slots, 16));
        marks before(slots, free_slot);
        for (std::size_t s = slots - std::min<std::size_t>(slots, 4); s < slots; ++s) before[s] = 1;
        row const keys(w.keys.begin() + w.offset[r] * channels, w.keys.begin() + (w.offset[r] + lengths[r]) * channels);
        answer const expected = runs(keys, w.mapped(w.sum, r), before, 12, 0.25);
        CHECK(stay == oracle::kept(expected.after));
        std::vector<double> weight(stay.size(), 0.0), tokens(stay.size(), 0.0), whole(stay.size(), 0.0);
        auto const gaussian = [&](std::size_t s, std::size_t to) {
          double distance = 0;
          for (std::size_t c = 0; c < channels; ++c)
            distance += std::pow(static_cast<double>(keys[s * channels + c]) - static_cast<double>(keys[to * channels + c]), 2.0);
          return std::exp(-distance / 50);
        };
        for (bool const sums : {true, false})
          for (std::size_t s = 0; s < slots; ++s) {
            std::int64_t const to = w.target[at + s];
            if (expected.after[s] == free_slot) CHECK((to == no_target ? -1 : stay[static_cast<std::size_t>(to)]) == expected.owner[s]);
            if (to == no_target) continue;
            auto const t = static_cast<std::size_t>(to);
            double const g = gaussian(s, static_cast<std::size_t>(stay[t]));
            if (sums)
              whole[t] += g, tokens[t] += std::exp(static_cast<double>(w.bias[at + s])), weight[t] += static_cast<double>(w.weight[at + s]);
            else
              CHECK(w.weight[at + s] == Approx(g / whole[t]).epsilon(1e-5));
          }
        for (std::size_t t = 0; t < stay.size(); ++t) {
          CHECK(weight[t] == Approx(1));
          CHECK(w.bias_out[at + t] == Approx(std::log(tokens[t])).margin(1e-6));
        }
      }
      pith::policy_input in = w.input();
      in.keys = {}, in.channels = 0;
      oracle::memory scratch(pith::decide_scratch_bytes(w.rows(), w.slots()));
      CHECK(pith::decide(p, w.where(), in, w.state, w.plan, scratch).code == errc::shape_mismatch);
    }
  }
}
