// SPDX-License-Identifier: Apache-2.0
// Position fixes, re-rotation, and one direction for two layers' rows.
#include "pith/policy/position.hpp"

#include <random>

#include "oracle.hpp"
#include "pith/policy/slerp.hpp"
#include "support/catch.hpp"

using pith::errc;
using pith::status;

namespace {

using list = std::vector<std::int64_t>;
using row = std::vector<float>;

row random_row(std::mt19937& random, std::size_t channels) {
  row out(channels);
  std::normal_distribution<float> normal;
  for (float& x : out) x = normal(random);
  return out;
}

double dot(row const& a, row const& b) {
  double sum = 0;
  for (std::size_t c = 0; c < a.size(); ++c) sum += static_cast<double>(a[c]) * static_cast<double>(b[c]);
  return sum;
}

template <class Fix>
list fixed(Fix const& by, list const& old) {
  list out(old.size());
  REQUIRE(by.fix(old, out));
  return out;
}

}  // namespace

TEST_CASE("position fixes: original, dense, shifted behind an edit", "[policy][position]") {
  list const old{0, 3, 4, 9};
  CHECK(fixed(pith::keep_original{}, old) == old);
  CHECK(fixed(pith::reindexed{}, old) == list{0, 1, 2, 3});
  CHECK(fixed(pith::edit_shift{4, 5}, old) == list{0, 3, 9, 14});
  CHECK(fixed(pith::edit_shift{9, -5 + 1}, old) == list{0, 3, 4, 5});
  CHECK(fixed(pith::edit_shift{9, -4}, fixed(pith::edit_shift{5, 4}, old)) == old);  // an edit and its inverse
  CHECK(fixed(pith::reindexed{}, {}).empty());
  list out(4, -7);
  CHECK(pith::edit_shift{9, -5}.fix(old, out) == status{errc::out_of_range, 3});
  CHECK(pith::edit_shift{0, -1}.fix(old, out) == status{errc::out_of_range, 0});
  CHECK(out == list(4, -7));
}

TEST_CASE("clamped_distance: the cap, nothing below it, and once more is the same", "[policy][position]") {
  list const old{0, 3, 4, 9};
  CHECK(fixed(pith::clamped_distance<5>{}, old) == list{4, 4, 4, 9});
  CHECK(fixed(pith::clamped_distance<6>{}, old) == list{3, 3, 4, 9});
  CHECK(fixed(pith::clamped_distance<0>{}, old) == list{9, 9, 9, 9});
  for (std::int64_t const limit : {9, 10, 1000}) CHECK(fixed(pith::clamped_distance<>{limit}, old) == old);  // T <= cap: keep_original
  CHECK(fixed(pith::clamped_distance<>{std::numeric_limits<std::int64_t>::max()}, old) == old);
  CHECK(fixed(pith::clamped_distance<5>{}, {}).empty());
  list out(4, -7);
  CHECK(pith::clamped_distance<>{-1}.fix(old, out) == status{errc::out_of_range, -1});
  CHECK(out == list(4, -7));

  // Decision after decision, from clamped positions, is one decision from the first positions.
  std::mt19937 random(51);
  pith::clamped_distance<16> const by;
  for (int trial = 0; trial < 30; ++trial) {
    list first, moved;
    std::int64_t newest = -1;
    for (int step = 0; step < 20; ++step) {
      for (std::int64_t more = random() % 4; more >= 0; --more) first.push_back(newest += 1 + random() % 3), moved.push_back(newest);
      moved = fixed(by, moved);
      CHECK(moved == fixed(by, first));
      if (std::size_t const gone = random() % first.size(); gone + 1 < first.size())
        first.erase(first.begin() + static_cast<std::ptrdiff_t>(gone)), moved.erase(moved.begin() + static_cast<std::ptrdiff_t>(gone));
    }
  }
}

TEST_CASE("clamped_distance: a query sees each key at distance min(true, limit)", "[policy][position]") {
  std::mt19937 random(52);
  pith::rope const by{8};
  for (std::int64_t const limit : {0, 1, 7, 40, 1000}) {
    list old;
    for (std::int64_t s = 0, at = 0; s < 30; ++s) old.push_back(at += 1 + random() % 4);
    std::vector<float> keys, seen;
    row const query = random_row(random, 8);
    for (std::size_t s = 0; s < old.size(); ++s) {
      row key = random_row(random, 8), near = query;
      REQUIRE(by.rotate(near, std::min(old.back() - old[s], limit)));  // the query's distance to a key at position 0
      seen.push_back(static_cast<float>(dot(near, key)));
      REQUIRE(by.rotate(key, old[s]));  // as it is stored
      keys.insert(keys.end(), key.begin(), key.end());
    }
    list const now = fixed(pith::clamped_distance<>{limit}, old);
    CHECK(std::is_sorted(now.begin(), now.end()));
    REQUIRE(by.move(keys, 8, old, now));
    row at_newest = query;
    REQUIRE(by.rotate(at_newest, old.back()));
    for (std::size_t s = 0; s < old.size(); ++s)
      CHECK(dot(at_newest, row(keys.begin() + static_cast<std::ptrdiff_t>(8 * s), keys.begin() + static_cast<std::ptrdiff_t>(8 * s + 8))) ==
            Approx(seen[s]).margin(2e-5));
  }
}

TEST_CASE("rope: rotations add up, keep lengths, and attention sees differences of positions only", "[policy][position]") {
  std::mt19937 random(50);
  std::vector<double> const yarn{1.0, 0.3, 0.01, 0.002};
  for (pith::rope const& by : {pith::rope{8}, pith::rope{16, 500000, pith::rope_pairs::neighbours},
                               pith::rope{8, 0, pith::rope_pairs::halves, yarn}, pith::rope{0}}) {
    for (int trial = 0; trial < 20; ++trial) {
      std::int64_t const a = random() % 4000, b = random() % 4000, shift = random() % 100000;
      row const key = random_row(random, 16), query = random_row(random, 16);
      auto const at = [&](row x, std::int64_t position) {
        REQUIRE(by.rotate(x, position));
        return x;
      };
      row moved = at(key, a), direct = at(key, b);
      row const there = at(moved, b - a);
      for (std::size_t c = 0; c < 16; ++c) CHECK(there[c] == Approx(direct[c]).margin(2e-6));
      for (auto c = static_cast<std::size_t>(by.rotary); c < 16; ++c) CHECK(there[c] == key[c]);  // partial RoPE
      CHECK(dot(moved, moved) == Approx(dot(key, key)).epsilon(1e-5));
      CHECK(dot(at(query, a + shift), at(key, b + shift)) == Approx(dot(at(query, a), at(key, b))).margin(1e-4));
      CHECK(at(key, 0) == key);
      // The formula, for one pair.
      if (by.rotary == 16) {
        double const angle = static_cast<double>(a) * std::pow(500000.0, -6.0 / 16);
        CHECK(moved[6] == Approx(key[6] * std::cos(angle) - key[7] * std::sin(angle)).margin(1e-6));
      }
    }
  }
  row keys = random_row(random, 3 * 8);
  row const before = keys;
  REQUIRE(pith::rope{8}.move(keys, 8, list{0, 7, 9}, list{0, 1, 2}));
  CHECK(std::equal(keys.begin(), keys.begin() + 8, before.begin()));
  CHECK(keys[8] != before[8]);
  REQUIRE(pith::rope{8}.move(keys, 8, list{0, 1, 2}, list{0, 7, 9}));
  for (std::size_t i = 0; i < keys.size(); ++i) CHECK(keys[i] == Approx(before[i]).margin(2e-6));
  CHECK(pith::rope{9}.rotate(keys, 1) == status{errc::out_of_range, 9});
  CHECK(pith::rope{26}.rotate(keys, 1) == status{errc::out_of_range, 26});
  CHECK(pith::rope{4, 0, pith::rope_pairs::halves, yarn}.rotate(keys, 1) == status{errc::shape_mismatch, 4});
  CHECK(pith::rope{8}.move(keys, 8, list{0, 7}, list{0, 1, 2}) == status{errc::shape_mismatch, 8});
}

TEST_CASE("slerp: unit length, ends, symmetry, small and opposite angles", "[policy][slerp]") {
  std::mt19937 random(51);
  row out(8), swapped(8);
  for (int trial = 0; trial < 50; ++trial) {
    row const a = random_row(random, 8);
    row b = random_row(random, 8);
    if (trial % 3 == 0)  // nearly, or exactly, the same direction
      for (std::size_t c = 0; c < 8; ++c) b[c] = 3 * a[c] + (trial % 2 == 0 ? 0.0f : 1e-5f * b[c]);
    double const la = std::sqrt(dot(a, a)), lb = std::sqrt(dot(b, b));
    for (double const t : {0.0, 0.25, 0.6, 1.0}) {
      auto const pair = pith::slerp(a, b, t, out).value();
      REQUIRE_FALSE(pair.retain);
      CHECK(dot(out, out) == Approx(1).epsilon(1e-6));
      CHECK(pair.first_length == Approx(la));
      CHECK(pair.second_length == Approx(lb));
      double const w = std::acos(std::clamp(dot(a, b) / (la * lb), -1.0, 1.0));
      if (trial % 3 != 0) {
        CHECK(pair.distance == Approx(w / 3.14159265358979).epsilon(1e-5));
        for (std::size_t c = 0; c < 8; ++c)
          CHECK(out[c] == Approx((std::sin((1 - t) * w) * a[c] / la + std::sin(t * w) * b[c] / lb) / std::sin(w)).margin(1e-6));
      }
      REQUIRE(pith::slerp(b, a, 1 - t, swapped));
      for (std::size_t c = 0; c < 8; ++c) CHECK(out[c] == Approx(swapped[c]).margin(1e-6));
      row restored(8);
      pith::restore_row(out, pair.first_length, restored);
      if (t == 0)
        for (std::size_t c = 0; c < 8; ++c) CHECK(restored[c] == Approx(a[c]).margin(1e-5));
    }
    row opposite = a;
    for (float& x : opposite) x *= -2;
    CHECK(pith::slerp(a, opposite, 0.6, out).value().retain);
    CHECK(pith::slerp(a, row(8), 0.6, out).value().retain);
  }
  row bad(8);
  bad[5] = INFINITY;
  CHECK(pith::slerp(bad, row(8, 1.0f), 0.6, out).error() == status{errc::not_finite, 5});
  CHECK(pith::slerp(row(7), row(8), 0.6, out).error() == status{errc::shape_mismatch, 8});
}

TEST_CASE("retain_dissimilar: the pairs nearest to the largest distance, and those without an arc", "[policy][slerp]") {
  std::vector<pith::slerp_pair> pairs;
  for (float const d : {0.1f, 0.2f, 0.48f, 0.5f}) pairs.push_back({1, 1, d, false});
  pairs.push_back({1, 0, 1, true});
  CHECK(pith::retain_dissimilar(pairs, 0.06) == 3);  // bound 0.476
  CHECK((!pairs[0].retain && !pairs[1].retain && pairs[2].retain && pairs[3].retain && pairs[4].retain));
  CHECK(pith::retain_dissimilar({}, 0.05) == 0);
}
