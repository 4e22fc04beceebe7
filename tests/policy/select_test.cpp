// SPDX-License-Identifier: Apache-2.0
// Selections against whole sorts: ties, zeros, one-hot rows, infinities, budgets 0, 1, n - 1, n, n + 1.
#include "pith/policy/select.hpp"

#include <numeric>

#include "oracle.hpp"
#include "pith/policy/select_pooled.hpp"
#include "pith/policy/select_units.hpp"
#include "support/catch.hpp"

using oracle::kept;
using oracle::shape;
using oracle::shapes;
using pith::chosen_slot;
using pith::errc;
using pith::free_slot;
using pith::slot_mark;
using pith::status;

namespace {

using list = std::vector<std::int64_t>;
using marks = std::vector<slot_mark>;

marks top(std::vector<float> const& scores, marks of, std::int64_t count) {
  REQUIRE(pith::select_top(scores, of, count));
  return of;
}

}  // namespace

TEST_CASE("ranking: bits are ordered as floats are, zeros alike", "[policy][select]") {
  float const ascending[] = {-INFINITY, -3e38f, -1.0f, -1e-45f, 0.0f, 1e-45f, 1.0f, 3e38f, INFINITY};
  for (std::size_t i = 1; i < std::size(ascending); ++i) CHECK(pith::ordered_bits(ascending[i - 1]) < pith::ordered_bits(ascending[i]));
  CHECK(pith::ordered_bits(-0.0f) == pith::ordered_bits(0.0f));
}

TEST_CASE("select_top: the best free slots; protected ones are neither ranked nor counted", "[policy][select]") {
  std::mt19937 random(10);
  for (shape const of : shapes) {
    for (std::int64_t const slots : {0, 1, 2, 3, 17, 100}) {
      for (int trial = 0; trial < 10; ++trial) {
        auto const scores = oracle::scores(random, slots, of);
        marks const before = trial % 2 == 0 ? marks(scores.size(), free_slot) : oracle::marks(random, slots);
        std::int64_t const free = pith::free_slots(before);
        for (std::int64_t const count : {std::int64_t{-1}, std::int64_t{0}, std::int64_t{1}, free / 2, free - 1, free, free + 1}) {
          marks const after = top(scores, before, count);
          CHECK(after == oracle::top(scores, before, count));
          list const slots_kept = kept(after);
          CHECK(std::is_sorted(slots_kept.begin(), slots_kept.end()));
        }
      }
    }
  }
}

TEST_CASE("select_top: equal scores keep the newest, and more room never loses a slot", "[policy][select]") {
  std::vector<float> const equal(9, 0.5f);
  CHECK(kept(top(equal, marks(9, free_slot), 3)) == list{6, 7, 8});
  std::mt19937 random(11);
  for (shape const of : shapes) {
    auto const scores = oracle::scores(random, 60, of);
    marks before = top(scores, marks(60, free_slot), 0);
    for (std::int64_t count = 1; count <= 60; ++count) {
      marks const after = top(scores, marks(60, free_slot), count);
      for (std::size_t slot = 0; slot < after.size(); ++slot) CHECK(after[slot] >= before[slot]);
      before = after;
    }
  }
}

TEST_CASE("select_above: the threshold itself is kept", "[policy][select]") {
  std::vector<float> const scores{1, 2, -INFINITY, 2, 3, -0.0f};
  marks of{free_slot, free_slot, free_slot, 1, free_slot, free_slot};
  REQUIRE(pith::select_above(scores, of, 2.0f));
  CHECK(of == marks{free_slot, chosen_slot, free_slot, 1, chosen_slot, free_slot});
  REQUIRE(pith::select_above(scores, of, 0.0f));
  CHECK(of == marks{chosen_slot, chosen_slot, free_slot, 1, chosen_slot, chosen_slot});
  CHECK(pith::select_above(scores, of, NAN) == status{errc::not_finite, -1});
}

TEST_CASE("select_mass: the fewest that hold the mass", "[policy][select]") {
  std::mt19937 random(12);
  for (shape const of : {shape::random, shape::ties, shape::zeros, shape::one_hot}) {
    for (double const mass : {0.0, 0.5, 0.9, 1.0}) {
      auto const scores = oracle::scores(random, 40, of);
      marks const before = oracle::marks(random, 40);
      auto const places = oracle::ranked(scores, before);
      double all = 0, held = 0;
      for (auto const& p : places) all += p.score;
      std::int64_t count = 0;
      while (count < static_cast<std::int64_t>(places.size()) && held < mass * all) held += places[static_cast<std::size_t>(count++)].score;
      marks after = before;
      oracle::memory scratch(pith::select_scratch_bytes(40));
      REQUIRE(pith::select_mass(scores, after, mass, scratch));
      CHECK(after == oracle::top(scores, before, count));
    }
  }
  marks of(2, free_slot);
  oracle::memory scratch(pith::select_scratch_bytes(2));
  CHECK(pith::select_mass(std::vector<float>{1, -1}, of, 0.5, scratch) == status{errc::out_of_range, 1});
  CHECK(pith::select_mass(std::vector<float>{INFINITY, 1}, of, 0.5, scratch) == status{errc::out_of_range, 0});
  CHECK(of == marks{free_slot, free_slot});
}

TEST_CASE("select_random: by birth, not by place; probabilities are met", "[policy][select]") {
  std::size_t const slots = 20000;
  std::vector<float> const scores(slots, 0.3f);
  list births(slots);
  std::iota(births.begin(), births.end(), 1000);
  marks of(slots, free_slot), again(slots, free_slot);
  REQUIRE(pith::select_random(scores, of, 42, 3, births));
  REQUIRE(pith::select_random(scores, again, 42, 3, births));
  CHECK(of == again);
  double const rate = static_cast<double>(kept(of).size()) / static_cast<double>(slots);
  CHECK(std::abs(rate - 0.3) < 5 * std::sqrt(0.3 * 0.7 / static_cast<double>(slots)));
  marks late(slots - 500, free_slot);  // the first 500 are gone: the others' fates are the same
  REQUIRE(pith::select_random({scores.data(), slots - 500}, late, 42, 3, {births.data() + 500, slots - 500}));
  CHECK(std::equal(late.begin(), late.end(), of.begin() + 500));
  marks other(slots, free_slot);
  REQUIRE(pith::select_random(scores, other, 43, 3, births));
  CHECK(other != of);
  std::vector<float> const sure{0, 1, 2, -1, -INFINITY, INFINITY};
  marks certain(6, free_slot);
  REQUIRE(pith::select_random(sure, certain, 1));
  CHECK(kept(certain) == list{1, 2, 5});
}

TEST_CASE("select_pooled: one ranking over rows, after each row's floor", "[policy][select]") {
  std::mt19937 random(13);
  for (shape const of : shapes) {
    for (int trial = 0; trial < 20; ++trial) {
      list offset, length;
      std::vector<float> scores;
      marks before;
      for (std::uint32_t r = random() % 6; r > 0; --r) {
        offset.push_back(static_cast<std::int64_t>(scores.size()));
        length.push_back(random() % 20);
        auto const own = oracle::scores(random, length.back(), of);
        auto const held = oracle::marks(random, length.back());
        scores.insert(scores.end(), own.begin(), own.end());
        before.insert(before.end(), held.begin(), held.end());
      }
      std::int64_t const floor = trial % 3;
      marks sure = before;
      std::int64_t least = 0, free = 0;
      std::vector<oracle::place> rest;
      for (std::size_t r = 0; r < length.size(); ++r) {
        std::vector<float> const own(scores.begin() + offset[r], scores.begin() + offset[r] + length[r]);
        marks const held(before.begin() + offset[r], before.begin() + offset[r] + length[r]);
        marks const chosen = oracle::top(own, held, floor);
        std::copy(chosen.begin(), chosen.end(), sure.begin() + offset[r]);
        auto const places = oracle::ranked(own, chosen, static_cast<std::int64_t>(r));
        rest.insert(rest.end(), places.begin(), places.end());
        free += pith::free_slots(held);
        least += pith::free_slots(held) - static_cast<std::int64_t>(places.size());
      }
      oracle::rank(rest);
      for (std::int64_t const count : {least, least + 1, free - 1, free, free + 1}) {
        if (count < least) continue;
        marks expected = sure, after = before;
        for (std::int64_t i = 0; i < count - least && i < static_cast<std::int64_t>(rest.size()); ++i) {
          auto const& p = rest[static_cast<std::size_t>(i)];
          expected[static_cast<std::size_t>(offset[static_cast<std::size_t>(p.row)] + p.slot)] = chosen_slot;
        }
        REQUIRE(pith::select_pooled({scores, offset, length}, {after, offset, length}, count, floor));
        CHECK(after == expected);
      }
    }
  }
}

TEST_CASE("select_units: whole pages by their mean, maximum or best half", "[policy][select]") {
  std::mt19937 random(14);
  for (shape const of : {shape::random, shape::ties, shape::zeros, shape::one_hot, shape::negative}) {
    for (pith::unit_score const rule : {pith::unit_score::mean, pith::unit_score::maximum, pith::unit_score::best_half}) {
      for (std::int64_t const slots : {0, 1, 7, 8, 9, 50}) {
        auto const scores = oracle::scores(random, slots, of);
        marks const before = oracle::marks(random, slots);
        list starts;
        for (std::int64_t start = 0; start < slots; start += 8) starts.push_back(start);
        std::vector<oracle::place> units;
        for (std::size_t u = 0; u < starts.size(); ++u) {
          std::int64_t const last = u + 1 < starts.size() ? starts[u + 1] : slots;
          std::vector<double> own;
          for (std::int64_t s = starts[u]; s < last; ++s)
            if (before[static_cast<std::size_t>(s)] == free_slot) own.push_back(scores[static_cast<std::size_t>(s)]);
          if (own.empty()) continue;
          auto const free = static_cast<std::int64_t>(own.size());
          if (rule != pith::unit_score::mean) {
            std::sort(own.rbegin(), own.rend());
            own.resize(rule == pith::unit_score::maximum ? 1 : (own.size() + 1) / 2);
          }
          double const mean = std::accumulate(own.begin(), own.end(), 0.0) / static_cast<double>(own.size());
          units.push_back({static_cast<float>(mean), static_cast<std::int64_t>(u), free});
        }
        oracle::rank(units);
        for (std::int64_t const room : {std::int64_t{-1}, std::int64_t{0}, std::int64_t{8}, slots / 2, slots}) {
          marks expected = before, after = before, listed = before;
          std::int64_t left = room;
          for (auto const& unit : units) {
            if ((left -= unit.row) < 0) break;
            for (std::int64_t s = 8 * unit.slot; s < std::min(8 * unit.slot + 8, slots); ++s)
              if (auto& mark = expected[static_cast<std::size_t>(s)]; mark == free_slot) mark = chosen_slot;
          }
          oracle::memory scratch(pith::select_units_scratch_bytes(slots));
          REQUIRE(pith::select_units(scores, after, pith::even_units{8}, rule, room, scratch));
          REQUIRE(pith::select_units(scores, listed, pith::listed_units{starts}, rule, room, scratch));
          CHECK(after == expected);
          CHECK(listed == expected);
        }
      }
    }
  }
}

TEST_CASE("selections refuse NaN, wrong extents and too little scratch, and change no mark", "[policy][select][errors]") {
  std::vector<float> const scores{1, NAN, 3, NAN};
  marks const before{free_slot, 1, free_slot, free_slot};
  marks of = before;
  oracle::memory scratch(1000);
  status const bad{errc::not_finite, 3};  // slot 1 is protected: its score is nobody's business
  CHECK(pith::select_top(scores, of, 1) == bad);
  CHECK(pith::select_above(scores, of, 0) == bad);
  CHECK(pith::select_mass(scores, of, 0.5, scratch) == bad);
  CHECK(pith::select_random(scores, of, 1) == bad);
  CHECK(pith::select_units(scores, of, pith::even_units{2}, pith::unit_score::mean, 3, scratch) == bad);
  list const offset{0, 2}, length{2, 2};
  CHECK(pith::select_pooled({scores, offset, length}, {of, offset, length}, 1, 0) == bad);
  std::vector<float> const good{1, 2, 3, 4};
  CHECK(pith::select_pooled({good, offset, length}, {of, offset, length}, 0, 1) == status{errc::out_of_range, -1});
  CHECK(pith::select_pooled({good, offset, list{2, 3}}, {of, offset, length}, 1, 0) == status{errc::out_of_range, 1});
  CHECK(pith::select_mass(good, of, 1, {}).code == errc::capacity_exceeded);
  CHECK(pith::select_units(good, of, pith::even_units{2}, pith::unit_score::mean, 3, {}).code == errc::capacity_exceeded);
  CHECK(pith::select_units(good, of, pith::even_units{0}, pith::unit_score::mean, 3, scratch) == status{errc::out_of_range, 0});
  CHECK(pith::select_units(good, of, pith::listed_units{list{0, 2, 2}}, pith::unit_score::mean, 3, scratch) ==
        status{errc::out_of_range, 2});
  CHECK(pith::select_units(good, of, pith::listed_units{list{1}}, pith::unit_score::mean, 3, scratch) == status{errc::out_of_range, 0});
  CHECK(pith::select_top({good.data(), 3}, of, 1) == status{errc::shape_mismatch, 3});
  std::vector<float> const both{INFINITY, -INFINITY, 1, 1};
  marks free(4, free_slot);
  CHECK(pith::select_units(both, free, pith::even_units{2}, pith::unit_score::mean, 3, scratch) == status{errc::not_finite, 0});
  CHECK(free == marks(4, free_slot));
  CHECK(of == before);
}
