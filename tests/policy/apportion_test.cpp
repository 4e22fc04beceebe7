// SPDX-License-Identifier: Apache-2.0
#include "pith/policy/apportion.hpp"

#include "oracle.hpp"
#include "support/catch.hpp"

using pith::errc;
using pith::status;

namespace {

using list = std::vector<std::int64_t>;

struct problem {
  std::vector<double> weights;
  list least, most;
  std::int64_t total;
};

status solve(problem const& p, list& out) {
  oracle::memory scratch(pith::apportion_scratch_bytes(static_cast<std::int64_t>(p.weights.size())));
  out.assign(p.weights.size(), -7);
  return pith::apportion(p.weights, p.least, p.most, p.total, out, scratch);
}

list shares(problem const& p) {
  list out;
  REQUIRE(solve(p, out));
  return out;
}

std::int64_t sum(list const& of) {
  std::int64_t all = 0;
  for (std::int64_t const x : of) all += x;
  return all;
}

// The level by its definition: sums over sorted breakpoints, in long double.
long double level(problem const& p) {
  std::vector<long double> points{0};
  for (std::size_t i = 0; i < p.weights.size(); ++i)
    if (p.weights[i] > 0)
      points.push_back(p.least[i] / static_cast<long double>(p.weights[i])),
          points.push_back(p.most[i] / static_cast<long double>(p.weights[i]));
  std::sort(points.begin(), points.end());
  auto const filled = [&](long double at) {
    long double all = 0;
    for (std::size_t i = 0; i < p.weights.size(); ++i)
      all += std::min<long double>(std::max<long double>(at * p.weights[i], p.least[i]), p.most[i]);
    return all;
  };
  for (std::size_t k = 1; k < points.size(); ++k) {
    long double const low = filled(points[k - 1]), high = filled(points[k]);
    if (high >= p.total && high > low) return points[k - 1] + (points[k] - points[k - 1]) * (p.total - low) / (high - low);
  }
  return points.back();
}

problem random_problem(std::mt19937& random) {
  problem p;
  std::size_t const rows = 1 + random() % 20;
  for (std::size_t i = 0; i < rows; ++i) {
    p.weights.push_back(random() % 5 == 0 ? 0.0 : static_cast<double>(random() % 1000) / (1 + random() % 9));
    p.least.push_back(random() % 3 == 0 ? random() % 20 : 0);
    p.most.push_back(p.least.back() + random() % 60);
  }
  p.total = sum(p.least) + static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(sum(p.most) - sum(p.least) + 3));
  return p;
}

}  // namespace

TEST_CASE("apportion: whole shares, then the largest fractions, then the lower index", "[policy][apportion]") {
  CHECK(shares({{1, 1, 1}, {0, 0, 0}, {9, 9, 9}, 7}) == list{3, 2, 2});
  CHECK(shares({{5, 3, 2}, {0, 0, 0}, {9, 9, 9}, 10}) == list{5, 3, 2});
  CHECK(shares({{47, 16, 15.8, 12, 6.1, 3.1}, {0, 0, 0, 0, 0, 0}, {99, 99, 99, 99, 99, 99}, 10}) == list{5, 2, 1, 1, 1, 0});
}

TEST_CASE("apportion: bounds hold, and what they refuse goes to the others by weight", "[policy][apportion]") {
  CHECK(shares({{1, 1, 2}, {0, 0, 0}, {1, 100, 100}, 13}) == list{1, 4, 8});
  CHECK(shares({{1, 1, 8}, {3, 0, 0}, {100, 100, 100}, 12}) == list{3, 1, 8});
  CHECK(shares({{1, 0, 0}, {0, 0, 0}, {4, 9, 9}, 9}) == list{4, 3, 2});  // no room left where there is weight: equal shares
  CHECK(shares({{0, 0}, {0, 0}, {9, 9}, 5}) == list{3, 2});
  CHECK(shares({{1e-300, 1e300}, {0, 0}, {50, 7}, 20}) == list{13, 7});
  CHECK(shares({{1, 3}, {0, 0}, {5, 6}, 11}) == list{5, 6});
  CHECK(shares({{1, 3}, {2, 2}, {5, 6}, 1000}) == list{5, 6});
  CHECK(shares({{1, 3}, {2, 2}, {5, 6}, 4}) == list{2, 2});
  CHECK(shares({{}, {}, {}, 4}).empty());
  std::int64_t const all = std::numeric_limits<std::int64_t>::max();
  CHECK(shares({{1, 1}, {0, 0}, {all, all}, 9}) == list{5, 4});  // "as much as there is" as a bound, and as a total
  CHECK(shares({{1, 1}, {0, 0}, {3, 4}, all}) == list{3, 4});
}

TEST_CASE("apportion: rules A1 to A3 on random problems, against the level by its definition", "[policy][apportion]") {
  std::mt19937 random(1);
  for (int trial = 0; trial < 2000; ++trial) {
    problem const p = random_problem(random);
    list const out = shares(p);
    CHECK(sum(out) == std::min(p.total, sum(p.most)));
    double heaviest = 0;
    for (std::size_t i = 0; i < out.size(); ++i) {
      CHECK((p.least[i] <= out[i] && out[i] <= p.most[i]));
      heaviest += p.weights[i] > 0 ? static_cast<double>(p.most[i]) : static_cast<double>(p.least[i]);
    }
    if (static_cast<double>(p.total) >= heaviest) continue;  // rule A5 holds here
    long double const at = level(p);
    for (std::size_t i = 0; i < out.size(); ++i) {
      long double const x = std::min<long double>(std::max<long double>(at * p.weights[i], p.least[i]), p.most[i]);
      CHECK(std::abs(x - out[i]) < 1 + 1e-9L);
    }
  }
}

TEST_CASE("apportion: an order of the rows is an order of the shares, where no fractions are equal", "[policy][apportion]") {
  std::mt19937 random(2);
  for (int trial = 0; trial < 200; ++trial) {
    problem p;
    for (int i = 0; i < 9; ++i) {
      p.weights.push_back(std::sqrt(2.0 + static_cast<double>(random() % 100000)));  // irrational: fractions differ
      p.least.push_back(0);
      p.most.push_back(500);
    }
    p.total = random() % 2000;
    std::sort(p.weights.begin(), p.weights.end());
    if (std::adjacent_find(p.weights.begin(), p.weights.end()) != p.weights.end()) continue;
    list const forwards = shares(p);
    std::reverse(p.weights.begin(), p.weights.end());
    list backwards = shares(p);
    std::reverse(backwards.begin(), backwards.end());
    CHECK(forwards == backwards);
  }
}

TEST_CASE("apportion: what cannot be shared out is refused and nothing is written", "[policy][apportion][errors]") {
  double const nan = std::numeric_limits<double>::quiet_NaN(), infinity = std::numeric_limits<double>::infinity();
  auto const refused = [](problem const& p, status expected) {
    list out;
    CHECK(solve(p, out) == expected);
    CHECK(out == list(p.weights.size(), -7));
  };
  refused({{1, 1}, {0, 0}, {1}, 1}, {errc::shape_mismatch, 1});
  refused({{1, -1}, {0, 0}, {1, 1}, 1}, {errc::out_of_range, 1});
  refused({{nan, 1}, {0, 0}, {1, 1}, 1}, {errc::out_of_range, 0});
  refused({{1, infinity}, {0, 0}, {1, 1}, 1}, {errc::out_of_range, 1});
  refused({{1, 1}, {0, 2}, {1, 1}, 1}, {errc::out_of_range, 1});
  refused({{1, 1}, {-1, 0}, {1, 1}, 1}, {errc::out_of_range, 0});
  refused({{1, 1}, {0, 0}, {1, 1}, -1}, {errc::out_of_range, -1});
  refused({{1, 1}, {4, 5}, {9, 9}, 8}, {errc::capacity_exceeded, 9});
  list out(2, -7);
  CHECK(pith::apportion(std::vector<double>{1, 1}, list{0, 0}, list{5, 5}, 3, out, {}) ==
        status{errc::capacity_exceeded, pith::apportion_scratch_bytes(2)});
  CHECK(out == list{-7, -7});
}
