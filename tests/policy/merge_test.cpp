// SPDX-License-Identifier: Apache-2.0
// Routes, merged rows and biases, compensation: against plain double precision, and attention that must not change.
#include "pith/policy/merge_rows.hpp"

#include <numeric>

#include "oracle.hpp"
#include "pith/policy/compensation.hpp"
#include "support/catch.hpp"

using pith::chosen_slot;
using pith::errc;
using pith::free_slot;
using pith::no_target;
using pith::slot_mark;
using pith::status;

namespace {

using list = std::vector<std::int64_t>;
using row = std::vector<float>;
using marks = std::vector<slot_mark>;

constexpr std::int64_t channels = 8;

row rows(std::mt19937& random, std::int64_t slots) {
  row out(static_cast<std::size_t>(slots * channels));
  std::normal_distribution<float> normal;
  for (float& x : out) x = normal(random);
  return out;
}

// One query over keys and values with biases, in double.
std::vector<double> attend(row const& q, row const& keys, row const& values, row const& bias) {
  std::vector<double> out(channels, 0.0);
  double sum = 0;
  for (std::size_t slot = 0; slot < keys.size() / channels; ++slot) {
    double s = bias.empty() ? 0.0 : static_cast<double>(bias[slot]);
    for (std::size_t c = 0; c < channels; ++c) s += static_cast<double>(q[c]) * static_cast<double>(keys[slot * channels + c]);
    double const p = std::exp(s);
    sum += p;
    for (std::size_t c = 0; c < channels; ++c) out[c] += p * static_cast<double>(values[slot * channels + c]);
  }
  for (double& x : out) x /= sum;
  return out;
}

double cosine(row const& keys, std::size_t a, std::size_t b) {
  double ab = 0, aa = 0, bb = 0;
  for (std::size_t c = 0; c < channels; ++c) {
    double const x = keys[a * channels + c], y = keys[b * channels + c];
    ab += x * y, aa += x * x, bb += y * y;
  }
  return aa > 0 && bb > 0 ? ab / std::sqrt(aa * bb) : 0;
}

marks random_marks(std::mt19937& random, std::int64_t slots) {
  marks out(static_cast<std::size_t>(slots));
  for (auto& mark : out) mark = random() % 3 == 0 ? chosen_slot : random() % 9 == 0 ? slot_mark{1} : free_slot;
  return out;
}

list kept(marks const& of) {
  list out;
  for (std::size_t slot = 0; slot < of.size(); ++slot)
    if (of[slot] != free_slot) out.push_back(static_cast<std::int64_t>(slot));
  return out;
}

struct merged {
  row keys, values, bias, weight;
};

merged merge(list const& target, std::int64_t targets, row const& keys, row const& values, row const& bias) {
  oracle::memory scratch(pith::merge_scratch_bytes(targets));
  merged out{row(static_cast<std::size_t>(targets * channels)), row(static_cast<std::size_t>(targets * channels)),
             row(static_cast<std::size_t>(targets)), row(target.size())};
  REQUIRE(pith::mean_weights(target, targets, bias, out.weight, scratch));
  REQUIRE(pith::merge_rows(target, out.weight, keys, channels, out.keys, scratch));
  REQUIRE(pith::merge_rows(target, out.weight, values, channels, out.values, scratch));
  REQUIRE(pith::merge_bias(target, bias, out.bias, scratch));
  return out;
}

}  // namespace

TEST_CASE("routes: each loser goes to one kept slot or none, and to the one the rule names", "[policy][merge]") {
  std::mt19937 random(40);
  for (std::int64_t const slots : {0, 1, 2, 5, 30}) {
    for (int trial = 0; trial < 20; ++trial) {
      marks const of = random_marks(random, slots);
      list const stay = kept(of);
      row keys = rows(random, slots);
      if (trial % 4 == 0)  // ties: keys from three
        for (std::size_t i = 0; i < keys.size(); ++i) keys[i] = keys[i % (3 * channels)];
      if (slots > 2) std::fill_n(keys.begin() + channels, channels, 0.0f);
      list positions;
      for (std::int64_t s = 0, at = 0; s < slots; ++s) positions.push_back(at += 1 + random() % 4);
      list near(of.size()), far(of.size()), alike(of.size()), one(of.size()), none(of.size());
      row similarity(of.size());
      REQUIRE(pith::route_nearest(of, {}, near));
      REQUIRE(pith::route_nearest(of, positions, far));
      REQUIRE(pith::route_most_similar(keys, channels, of, 0.25, alike, similarity));
      REQUIRE(pith::route_one(of, one));
      REQUIRE(pith::route_dropped(of, none));
      for (std::size_t slot = 0; slot < of.size(); ++slot) {
        auto const own = std::lower_bound(stay.begin(), stay.end(), static_cast<std::int64_t>(slot));
        if (of[slot] != free_slot) {
          std::int64_t const index = own - stay.begin();
          CHECK((near[slot] == index && far[slot] == index && alike[slot] == index && one[slot] == index && none[slot] == index));
          CHECK(similarity[slot] == 1);
          continue;
        }
        std::int64_t nearest = no_target, by_position = no_target, best = no_target;
        double most = -1;
        for (std::size_t k = 0; k < stay.size(); ++k) {
          auto const at = static_cast<std::size_t>(stay[k]);
          auto const away = [&](std::int64_t index, list const* of_slots) {
            auto const to = static_cast<std::size_t>(stay[static_cast<std::size_t>(index)]);
            return of_slots != nullptr ? std::abs((*of_slots)[to] - (*of_slots)[slot])
                                       : std::abs(static_cast<std::int64_t>(to) - static_cast<std::int64_t>(slot));
          };
          auto const index = static_cast<std::int64_t>(k);
          if (nearest == no_target || away(index, nullptr) <= away(nearest, nullptr)) nearest = index;
          if (by_position == no_target || away(index, &positions) <= away(by_position, &positions)) by_position = index;
          if (double const c = cosine(keys, slot, at); best == no_target || c >= most - 1e-12) most = std::max(c, most), best = index;
        }
        CHECK(near[slot] == nearest);
        CHECK(far[slot] == by_position);
        CHECK(similarity[slot] == Approx(most).margin(1e-6));
        CHECK((similarity[slot] >= -1 && similarity[slot] <= 1));
        if (std::abs(most - 0.25) > 1e-9 && trial % 4 != 0) CHECK(alike[slot] == (best != no_target && most >= 0.25 ? best : no_target));
        if (alike[slot] != no_target)  // ties: some kept slot of the largest cosine
          CHECK(cosine(keys, slot, static_cast<std::size_t>(stay[static_cast<std::size_t>(alike[slot])])) == Approx(most).margin(1e-9));
        CHECK(one[slot] == static_cast<std::int64_t>(stay.size()));
        CHECK(none[slot] == no_target);
      }
    }
  }
}

TEST_CASE("route_runs: runs of neighbours that are alike, from the end, to the best of each", "[policy][merge]") {
  std::mt19937 random(41);
  for (std::int64_t const slots : {0, 1, 2, 40}) {
    for (oracle::shape const shape : {oracle::shape::random, oracle::shape::ties, oracle::shape::zeros}) {
      row keys;
      for (std::int64_t s = 0; s < slots; ++s) {  // now and then a new direction
        row const fresh = rows(random, 1);
        for (std::int64_t c = 0; c < channels; ++c)
          keys.push_back(s > 0 && random() % 100 < 97 ? keys[keys.size() - channels] + 0.1f * fresh[static_cast<std::size_t>(c)]
                                                      : fresh[static_cast<std::size_t>(c)]);
      }
      row const scores = oracle::scores(random, slots, shape);
      marks before(static_cast<std::size_t>(slots), free_slot);
      for (auto& mark : before) mark = random() % 8 == 0 ? slot_mark{2} : free_slot;
      marks after = before;
      list target(before.size());
      REQUIRE(pith::route_runs(keys, channels, scores, after, 0.75, target));
      list expected(before.size()), owner(before.size());
      for (std::int64_t last = slots - 1; last >= 0;) {
        std::int64_t first = last;
        auto const open = [&](std::int64_t s) { return before[static_cast<std::size_t>(s)] == free_slot; };
        while (open(last) && first > 0 && open(first - 1) &&
               cosine(keys, static_cast<std::size_t>(first - 1), static_cast<std::size_t>(first)) >= 0.75)
          --first;
        std::int64_t best = first;
        for (std::int64_t s = first; s <= last; ++s)
          if (scores[static_cast<std::size_t>(s)] >= scores[static_cast<std::size_t>(best)]) best = s;
        for (std::int64_t s = first; s <= last; ++s) owner[static_cast<std::size_t>(s)] = best;
        last = first - 1;
      }
      list const stay = kept(after);
      for (std::size_t slot = 0; slot < owner.size(); ++slot) {
        CHECK(std::binary_search(stay.begin(), stay.end(), owner[slot]));
        CHECK(stay[static_cast<std::size_t>(target[slot])] == owner[slot]);
        CHECK((after[slot] == free_slot) == (owner[slot] != static_cast<std::int64_t>(slot)));
      }
    }
  }
}

TEST_CASE("merge: without losers everything comes out bit for bit, -0 and NaN payloads too", "[policy][merge]") {
  std::mt19937 random(42);
  row keys = rows(random, 6), bias(6);
  keys[3] = -0.0f;
  for (float& b : bias) b = std::log(1.0f + static_cast<float>(random() % 50));
  list target(6);
  std::iota(target.begin(), target.end(), 0);
  merged const out = merge(target, 6, keys, keys, bias);
  for (std::size_t i = 0; i < keys.size(); ++i) CHECK(pith::float_bits(out.keys[i]) == pith::float_bits(keys[i]));
  CHECK(out.bias == bias);
}

TEST_CASE("merge: equal tokens with a bias of ln m leave every query's attention as it was", "[policy][merge]") {
  std::mt19937 random(43);
  for (int trial = 0; trial < 20; ++trial) {
    std::int64_t const distinct = 1 + random() % 6, slots = distinct + random() % 20;
    row const base_keys = rows(random, distinct), base_values = rows(random, distinct);
    row keys, values, bias;
    list target;
    for (std::int64_t s = 0; s < slots; ++s) {
      std::int64_t const kind = s < distinct ? s : random() % distinct;
      target.push_back(kind);
      keys.insert(keys.end(), base_keys.begin() + kind * channels, base_keys.begin() + (kind + 1) * channels);
      values.insert(values.end(), base_values.begin() + kind * channels, base_values.begin() + (kind + 1) * channels);
      bias.push_back(trial % 2 == 0 ? 0.0f : static_cast<float>(random() % 100) / 40.0f);  // slots that stand for several already
    }
    merged const out = merge(target, distinct, keys, values, trial % 2 == 0 ? row{} : bias);
    for (int query = 0; query < 5; ++query) {
      row const q = rows(random, 1);
      auto const before = attend(q, keys, values, bias), after = attend(q, out.keys, out.values, out.bias);
      for (std::size_t c = 0; c < channels; ++c) CHECK(after[c] == Approx(before[c]).margin(1e-5));
    }
  }
}

TEST_CASE("merge: multiplicity is conserved, weights are a mean, and what is dropped is gone", "[policy][merge]") {
  std::mt19937 random(44);
  for (int trial = 0; trial < 30; ++trial) {
    std::int64_t const slots = 1 + random() % 30;
    marks of = random_marks(random, slots);
    of[0] = chosen_slot;
    auto const targets = static_cast<std::int64_t>(kept(of).size());
    row const keys = rows(random, slots), values = rows(random, slots);
    row bias(static_cast<std::size_t>(slots));
    for (float& b : bias) b = random() % 5 == 0 ? -INFINITY : static_cast<float>(random() % 300) / 10.0f;
    list target(of.size());
    REQUIRE(pith::route_most_similar(keys, channels, of, 0.0, target));
    merged const out = merge(target, targets, keys, values, bias);
    double before = 0, after = 0;
    std::vector<double> sum(static_cast<std::size_t>(targets), 0.0), norm(static_cast<std::size_t>(targets), 0.0);
    for (std::size_t s = 0; s < of.size(); ++s) {
      CHECK(out.weight[s] >= 0);
      if (target[s] == no_target) {
        CHECK(out.weight[s] == 0);
        continue;
      }
      auto const t = static_cast<std::size_t>(target[s]);
      before += std::exp(static_cast<double>(bias[s]));
      sum[t] += static_cast<double>(out.weight[s]);
      double length = 0;
      for (std::size_t c = 0; c < channels; ++c) length += std::pow(static_cast<double>(values[s * channels + c]), 2.0);
      norm[t] = std::max(norm[t], std::sqrt(length));
    }
    for (float const b : out.bias) after += std::exp(static_cast<double>(b));
    CHECK(after == Approx(before).epsilon(1e-5));
    for (std::size_t t = 0; t < sum.size(); ++t) {
      CHECK(sum[t] == Approx(1));
      double length = 0;
      for (std::size_t c = 0; c < channels; ++c) length += std::pow(static_cast<double>(out.values[t * channels + c]), 2.0);
      CHECK(std::sqrt(length) <= norm[t] * (1 + 1e-5));
    }
  }
}

TEST_CASE("merge weights: cosines and Gaussians by their formulas; a run's values times its count", "[policy][merge]") {
  std::mt19937 random(45);
  std::int64_t const slots = 12;
  row const keys = rows(random, slots);
  marks of(static_cast<std::size_t>(slots), free_slot);
  of[2] = of[7] = chosen_slot;
  list target(of.size());
  row alike(of.size()), gauss(of.size());
  oracle::memory scratch(pith::merge_scratch_bytes(slots));
  REQUIRE(pith::route_most_similar(keys, channels, of, -1, target, alike));
  row const cosines = alike;
  REQUIRE(pith::similarity_weights(target, 2, alike, scratch));
  REQUIRE(pith::gaussian_weights(keys, channels, of, target, 2, 1.5, gauss, scratch));
  for (std::int64_t t = 0; t < 2; ++t) {
    double sum_alike = 0, sum_gauss = 0;
    std::size_t const own = t == 0 ? 2 : 7;
    auto const g = [&](std::size_t s) {
      double distance = 0;
      for (std::size_t c = 0; c < channels; ++c)
        distance += std::pow(static_cast<double>(keys[s * channels + c] - keys[own * channels + c]), 2.0);
      return std::exp(-distance / (2 * 1.5 * 1.5));
    };
    for (std::size_t s = 0; s < of.size(); ++s)
      if (target[s] == t) sum_alike += std::max(static_cast<double>(cosines[s]), 0.0), sum_gauss += g(s);
    for (std::size_t s = 0; s < of.size(); ++s) {
      if (target[s] != t) continue;
      CHECK(alike[s] == Approx(std::max(static_cast<double>(cosines[s]), 0.0) / sum_alike));
      CHECK(gauss[s] == Approx(g(s) / sum_gauss).epsilon(1e-4));
    }
  }
  row mean(2 * channels), times(2 * channels);
  REQUIRE(pith::merge_rows(target, gauss, keys, channels, mean, scratch));
  REQUIRE(pith::merge_rows(target, gauss, keys, channels, times, scratch, true));
  auto const in_first = static_cast<float>(std::count(target.begin(), target.end(), 0));
  CHECK(times[3] == mean[3] * in_first);
}

TEST_CASE("merge: wrong targets, weights, biases and scratch are refused", "[policy][merge][errors]") {
  row const keys(3 * channels, 1.0f);
  row out(2 * channels), weight(3), bias(2);
  oracle::memory scratch(pith::merge_scratch_bytes(2));
  CHECK(pith::merge_rows(list{0, 2, 1}, weight, keys, channels, out, scratch) == status{errc::out_of_range, 1});
  CHECK(pith::merge_rows(list{0, -2, 1}, weight, keys, channels, out, scratch) == status{errc::out_of_range, 1});
  CHECK(pith::merge_rows(list{0, 1}, weight, keys, channels, out, scratch) == status{errc::shape_mismatch, 3});
  CHECK(pith::merge_rows(list{0, 1, 1}, weight, keys, 7, out, scratch) == status{errc::shape_mismatch, 7});
  CHECK(pith::merge_rows(list{0, 1, 1}, weight, keys, channels, out, {}).code == errc::capacity_exceeded);
  CHECK(pith::merge_bias(list{0, 1, 1}, row{0, NAN, 0}, bias, scratch) == status{errc::not_finite, 1});
  CHECK(pith::merge_bias(list{0, 1, 1}, row{0, 0, INFINITY}, bias, scratch) == status{errc::not_finite, 2});
  CHECK(pith::merge_bias(list{0, 1, 1}, row{0}, bias, scratch) == status{errc::shape_mismatch, 1});
  CHECK(pith::merge_bias(list{0, 1, 1}, {}, bias, {}).code == errc::capacity_exceeded);
  row negative{1, -1, 1}, none{1, 0, 0};
  CHECK(pith::normalise_weights(list{0, 1, 1}, 2, negative, scratch) == status{errc::out_of_range, 1});
  CHECK(pith::normalise_weights(list{0, 1, 1}, 2, none, scratch) == status{errc::out_of_range, 1});
  list target(3);
  marks of{free_slot, chosen_slot, free_slot};
  CHECK(pith::route_most_similar(keys, 7, of, 0, target) == status{errc::shape_mismatch, 7});
  CHECK(pith::route_nearest(of, list{0, 5, 4}, target) == status{errc::out_of_range, 2});
  CHECK(pith::route_runs(keys, channels, row{1, 1, NAN}, of, 0.5, target) == status{errc::not_finite, 2});
  CHECK(pith::gaussian_weights(keys, channels, of, list{0, 0, 1}, 2, 1, weight, scratch) == status{errc::out_of_range, 2});
  CHECK(pith::gaussian_weights(keys, channels, of, list{0, 0, 0}, 1, 0, weight, scratch) == status{errc::out_of_range, -1});
}

TEST_CASE("compensation: a running mean, exact for equal tokens, still a mean after 100000 rows", "[policy][merge]") {
  std::mt19937 random(46);
  row k(channels, 9.0f), v(channels, 9.0f);
  pith::compensation slot{k, v};
  CHECK(slot.bias() == -INFINITY);
  row const key = rows(random, 1), value = rows(random, 1), others = rows(random, 3), their_values = rows(random, 3);
  row keys = others, values = their_values;
  for (int i = 0; i < 5; ++i) {
    REQUIRE(slot.take(key, value));
    keys.insert(keys.end(), key.begin(), key.end()), values.insert(values.end(), value.begin(), value.end());
  }
  CHECK(k == key);
  CHECK(slot.bias() == std::log(5.0f));
  row short_keys = others, short_values = their_values, bias(3, 0.0f);
  short_keys.insert(short_keys.end(), k.begin(), k.end()), short_values.insert(short_values.end(), v.begin(), v.end());
  bias.push_back(slot.bias());
  row const q = rows(random, 1);
  auto const before = attend(q, keys, values, {}), after = attend(q, short_keys, short_values, bias);
  for (std::size_t c = 0; c < channels; ++c) CHECK(after[c] == Approx(before[c]).margin(1e-6));
  CHECK(slot.take(row(3), value) == status{errc::shape_mismatch, 3});

  pith::compensation many{k, v};
  std::vector<double> sum(channels, 0.0);
  for (int i = 0; i < 100000; ++i) {
    row const x = rows(random, 1);
    for (std::size_t c = 0; c < channels; ++c) sum[c] += static_cast<double>(x[c] + 3.0f);
    row shifted = x;
    for (float& y : shifted) y += 3.0f;
    REQUIRE(many.take(shifted, x));
  }
  for (std::size_t c = 0; c < channels; ++c) CHECK(k[c] == Approx(sum[c] / 100000).epsilon(1e-5));
}

TEST_CASE("spread_to_next and its gate: v / m in expectation times the probability", "[policy][merge]") {
  marks const of{free_slot, chosen_slot, free_slot, 1, chosen_slot, chosen_slot};
  row values(of.size() * channels);
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i / channels);
  std::vector<std::uint8_t> open{0, 0, 1, 1, 0, 0};
  REQUIRE(pith::spread_to_next(values, channels, of, open, 2));
  for (std::size_t s = 0; s < of.size(); ++s)  // only the loser 2 gives: half of its 2 to each of the slots 3 and 4
    CHECK(values[s * channels] == static_cast<float>(s) + (s == 3 || s == 4 ? 1.0f : 0.0f));
  CHECK(pith::spread_to_next(values, channels, of, {}, 2) == status{errc::shape_mismatch, 0});

  int const trials = 20000;
  int merged = 0;
  for (int seed = 0; seed < trials; ++seed) merged += pith::chance_gate(0.3, 0.4, static_cast<std::uint64_t>(seed), 2, 17);
  CHECK(std::abs(static_cast<double>(merged) / trials - 0.75) < 5 * std::sqrt(0.75 * 0.25 / trials));
  CHECK(pith::chance_gate(5, 0.4, 1, 2, 3));
  CHECK_FALSE(pith::chance_gate(0, 0.4, 1, 2, 3));
  CHECK_FALSE(pith::chance_gate(0, 0, 1, 2, 3));
  pith::moving_gate gate;
  CHECK(gate.open(0.5));
  CHECK(gate.tau == 0.25);
  CHECK_FALSE(gate.open(0.125));
}
