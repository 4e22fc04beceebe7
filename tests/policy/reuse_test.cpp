// SPDX-License-Identifier: Apache-2.0
// When a list of slots is chosen again: after N steps, when the query has turned away, when the rows have changed.
#include "pith/policy/reuse.hpp"

#include "oracle.hpp"
#include "pith/policy/recipes.hpp"
#include "support/catch.hpp"

using pith::drift_from;
using pith::errc;
using pith::reuse_rule;
using pith::reuse_state;
using pith::status;

namespace {

using numbers = std::vector<float>;

double cosine(numbers const& a, numbers const& b, std::size_t first, std::size_t last) {
  double dot = 0, x = 0, y = 0;
  for (std::size_t i = first; i < last; ++i) {
    dot += static_cast<double>(a[i]) * static_cast<double>(b[i]);
    x += static_cast<double>(a[i]) * static_cast<double>(a[i]), y += static_cast<double>(b[i]) * static_cast<double>(b[i]);
  }
  return dot / std::sqrt(x * y);
}

struct memory {
  numbers query;
  reuse_state state;
  explicit memory(std::size_t count) : query(count) { state.query = query; }
};

}  // namespace

TEST_CASE("reuse: every<N> reads one list in N steps; another epoch ends it at once", "[policy][reuse]") {
  pith::recipes::lserve<> const p;
  memory m(4);
  numbers const q{1, 2, 3, 4};
  std::vector<bool> chosen;
  for (int step = 0; step < 12; ++step) chosen.push_back(pith::chooses_again(p, reuse_rule{}, q, 2, 0, m.state).value());
  for (std::size_t step = 0; step < 12; ++step) CHECK(chosen[step] == (step % 4 == 0));
  CHECK(pith::chooses_again(p, reuse_rule{}, q, 2, 0, m.state).value());
  CHECK_FALSE(pith::chooses_again(p, reuse_rule{}, q, 2, 0, m.state).value());
  CHECK(pith::chooses_again(p, reuse_rule{}, q, 2, 1, m.state).value());  // rows were compacted
  for (int step = 0; step < 3; ++step) CHECK_FALSE(pith::chooses_again(p, reuse_rule{}, q, 2, 1, m.state).value());
  CHECK(pith::chooses_again(p, reuse_rule{}, q, 2, 1, m.state).value());
  m.state.forget();
  CHECK(pith::chooses_again(p, reuse_rule{}, q, 2, 1, m.state).value());
  memory always(4);
  for (int step = 0; step < 5; ++step) CHECK(pith::chooses_again(pith::recipes::quest<>{}, reuse_rule{}, q, 2, 0, always.state).value());
}

TEST_CASE("reuse: drift from the last choice and from the last step, over all numbers and by head", "[policy][reuse]") {
  std::mt19937 random(250);
  for (drift_from const from : {drift_from::last_choice, drift_from::last_step})
    for (bool const by_head : {false, true})
      for (double const least : {0.7, 0.9}) {
        pith::on_drift trigger;
        trigger.similarity = least;
        std::size_t const heads = 3, width = 4;
        memory m(heads * width);
        numbers q(heads * width, 1.0f), other;
        int again = 0, kept = 0;
        for (int step = 0; step < 200; ++step) {
          float const size = 0.5f + static_cast<float>(random() % 100) / 50.0f;  // a cosine does not see it
          for (float& x : q) x = size * (x / 2 + (static_cast<float>(random() % 1001) / 1000.0f - 0.3f) / 2);
          double similarity = 0;
          if (!other.empty())
            for (std::size_t h = 0; h < (by_head ? heads : 1); ++h)
              similarity +=
                  by_head ? cosine(other, q, h * width, (h + 1) * width) / static_cast<double>(heads) : cosine(other, q, 0, q.size());
          if (!other.empty() && std::fabs(similarity - least) < 1e-9) continue;
          auto const got = pith::chooses_again(trigger, reuse_rule{from, by_head}, q, 3, 5, m.state);
          REQUIRE(got);
          CHECK(got.value() == (other.empty() || similarity < least));
          ++(got.value() ? again : kept);
          if (got.value() || from == drift_from::last_step) other = q;
          CHECK(m.query == other);
        }
        CHECK(again > 1);
        CHECK(kept > 1);
      }
}

TEST_CASE("query_similarity: zeros are like zeros alone", "[policy][reuse]") {
  numbers const zero(2, 0.0f), one{1, 0}, turned{0, 2}, back{-3, 0};
  CHECK(pith::query_similarity(zero, zero, 1) == 1);
  CHECK(pith::query_similarity(zero, one, 1) == 0);
  CHECK(pith::query_similarity(one, turned, 1) == 0);
  CHECK(pith::query_similarity(one, back, 1) == -1);
  CHECK(pith::query_similarity(numbers{1, 0, 0, 1}, numbers{2, 0, 1, 0}, 2) == 0.5);
}

TEST_CASE("with_newer: a list that is read again has what came since", "[policy][reuse]") {
  std::vector<std::int64_t> list{1, 4, 7, -1, -1, -1};
  CHECK(pith::with_newer(list, 3, 9, 9).value() == 3);
  CHECK(pith::with_newer(list, 3, 9, 11).value() == 5);
  CHECK(list == std::vector<std::int64_t>{1, 4, 7, 9, 10, -1});
  CHECK(pith::with_newer(list, 3, 9, 13).error() == status{errc::capacity_exceeded, 7});
  CHECK(pith::with_newer(list, 3, 9, 8).error() == status{errc::shape_mismatch, 8});
}

TEST_CASE("reuse: wrong calls change nothing", "[policy][reuse]") {
  memory m(4);
  pith::every_step const p;
  CHECK(pith::chooses_again(p, reuse_rule{}, numbers(3), 1, 0, m.state).error() == status{errc::shape_mismatch, 3});
  CHECK(pith::chooses_again(p, reuse_rule{}, numbers(4), 3, 0, m.state).error() == status{errc::shape_mismatch, 4});
  CHECK(pith::chooses_again(p, reuse_rule{}, numbers(4), 0, 0, m.state).error() == status{errc::shape_mismatch, 4});
  CHECK(pith::chooses_again(p, reuse_rule{}, numbers{1, NAN, 1, 1}, 1, 0, m.state).error() == status{errc::not_finite, 1});
  CHECK_FALSE(m.state.chosen);
  CHECK(m.query == numbers(4, 0.0f));
}
