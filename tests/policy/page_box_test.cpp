// SPDX-License-Identifier: Apache-2.0
// Boxes of pages against every key of the page, whatever happened to the row; what Quest and LServe read by them.
#include "pith/policy/page_box.hpp"

#include "pith/policy/recipes.hpp"
#include "support/catch.hpp"
#include "world.hpp"

using oracle::world;
using pith::errc;
using pith::page_boxes;
using pith::status;

namespace {

using list = std::vector<std::int64_t>;
using numbers = std::vector<float>;

float one(std::mt19937& random) { return static_cast<float>(random() % 4001) / 1000.0f - 2.0f; }
numbers keys_of(std::mt19937& random, std::int64_t slots, std::int64_t channels) {
  numbers out(static_cast<std::size_t>(slots * channels));
  for (float& x : out) x = random() % 7 == 0 ? 0.0f : one(random);
  return out;
}
double dot(float const* q, float const* k, std::int64_t channels) {
  double sum = 0;
  for (std::int64_t c = 0; c < channels; ++c) sum += static_cast<double>(q[c]) * static_cast<double>(k[c]);
  return sum;
}
// Symmetric, one scale a slot.
numbers rounded(numbers keys, std::int64_t channels, int most) {
  for (std::size_t at = 0; at < keys.size(); at += static_cast<std::size_t>(channels)) {
    float largest = 0;
    for (std::size_t c = at; c < at + static_cast<std::size_t>(channels); ++c) largest = std::max(largest, std::fabs(keys[c]));
    float const scale = largest / static_cast<float>(most);
    for (std::size_t c = at; c < at + static_cast<std::size_t>(channels); ++c)
      keys[c] = scale > 0 ? std::nearbyint(keys[c] / scale) * scale : 0.0f;
  }
  return keys;
}

struct row {
  std::int64_t channels, slots_of_page;
  numbers low, high, keys;
  page_boxes boxes;

  row(std::int64_t channels_, std::int64_t page, std::int64_t parts, std::int64_t most) : channels(channels_), slots_of_page(page) {
    boxes = {.channels = channels, .slots_of_page = page, .boxes_of_page = parts};
    low.assign(static_cast<std::size_t>(boxes.numbers(most)), NAN), high = low;
    boxes.low = low, boxes.high = high;
  }
  void append(numbers const& more) {
    REQUIRE(boxes.append(more));
    keys.insert(keys.end(), more.begin(), more.end());
  }
  std::int64_t slots() const { return static_cast<std::int64_t>(keys.size()) / channels; }
  // The least that a page's bound may be: its best key.
  double best_key(std::int64_t page, float const* q) const {
    double most = -INFINITY;
    for (std::int64_t s = page * slots_of_page; s < std::min(slots(), (page + 1) * slots_of_page); ++s)
      most = std::max(most, dot(q, keys.data() + s * channels, channels));
    return most;
  }
  // A tight bound, from the keys themselves.
  double right(std::int64_t page, float const* q) const {
    double most = -INFINITY;
    for (std::int64_t from = page * slots_of_page; from < std::min(slots(), (page + 1) * slots_of_page); from += boxes.slots_of_box()) {
      double sum = 0;
      for (std::int64_t c = 0; c < channels; ++c) {
        double best = -INFINITY;
        for (std::int64_t s = from; s < std::min(slots(), from + boxes.slots_of_box()); ++s)
          best = std::max(best, static_cast<double>(q[c]) * static_cast<double>(keys[static_cast<std::size_t>(s * channels + c)]));
        sum += best;
      }
      most = std::max(most, sum);
    }
    return most;
  }
  void check(std::mt19937& random, bool tight) const {
    REQUIRE(boxes.slots == slots());
    for (int trial = 0; trial < 4; ++trial) {
      numbers const q = keys_of(random, 1, channels);
      for (std::int64_t page = 0; page < boxes.pages(); ++page) {
        float const bound = boxes.bound(page, q.data());
        CHECK(bound >= static_cast<float>(best_key(page, q.data())));
        if (tight) CHECK(bound == static_cast<float>(right(page, q.data())));
      }
    }
  }
};

}  // namespace

TEST_CASE("page_boxes: bounds of pages hold for every key and are tight, however the keys came", "[policy][page_box]") {
  std::mt19937 random(220);
  for (std::int64_t const channels : {1, 4, 7})
    for (auto const& [page, parts] : {std::pair<int, int>{1, 1}, {16, 1}, {16, 4}, {8, 8}, {64, 4}})
      for (std::int64_t const slots : {0, 1, 15, 16, 17, 100}) {
        numbers const all = keys_of(random, slots, channels);
        row whole(channels, page, parts, slots), pieces(channels, page, parts, slots);
        whole.append(all);
        for (std::int64_t at = 0; at < slots;) {
          std::int64_t const n = std::min<std::int64_t>(slots - at, 1 + static_cast<std::int64_t>(random() % 9));
          pieces.append({all.begin() + at * channels, all.begin() + (at + n) * channels});
          at += n;
        }
        whole.check(random, true);
        CHECK(std::equal(whole.low.begin(), whole.low.begin() + whole.boxes.numbers(slots), pieces.low.begin()));
        CHECK(std::equal(whole.high.begin(), whole.high.begin() + whole.boxes.numbers(slots), pieces.high.begin()));
      }
}

TEST_CASE("page_boxes: bounds hold after a truncation, a copy, a compaction, a merge and a quantisation", "[policy][page_box]") {
  std::mt19937 random(221);
  for (int trial = 0; trial < 60; ++trial) {
    std::int64_t const channels = 1 + static_cast<std::int64_t>(random() % 6), parts = random() % 2 == 0 ? 1 : 4;
    row r(channels, 8, parts, 200);
    r.append(keys_of(random, 20 + static_cast<std::int64_t>(random() % 80), channels));
    // The newest slots are taken back, others come.
    std::int64_t const to = static_cast<std::int64_t>(random() % static_cast<unsigned>(r.slots() + 1));
    REQUIRE(r.boxes.shorten(to));
    r.keys.resize(static_cast<std::size_t>(to * channels));
    r.check(random, false);
    r.append(keys_of(random, 11, channels));
    r.check(random, false);
    // A copy goes its own way.
    row copy = r;
    copy.boxes.low = copy.low, copy.boxes.high = copy.high;
    copy.append(keys_of(random, 9, channels));
    copy.check(random, false);
    r.check(random, false);
    // One page's rows are written anew, larger than before.
    std::int64_t const page = static_cast<std::int64_t>(random() % static_cast<unsigned>(r.boxes.pages()));
    auto const from = r.keys.begin() + page * 8 * channels, end = r.keys.begin() + std::min(r.slots(), page * 8 + 8) * channels;
    for (auto x = from; x != end; ++x) *x = 3 * *x + 1;
    REQUIRE(r.boxes.rebuild(page, {from, end}));
    r.check(random, false);
    // Every third slot leaves, the others move together: boxes are made anew, and tight.
    numbers rest;
    for (std::int64_t s = 0; s < r.slots(); ++s)
      if (s % 3 != 0) rest.insert(rest.end(), r.keys.begin() + s * channels, r.keys.begin() + (s + 1) * channels);
    REQUIRE(r.boxes.shorten(0));
    r.keys.clear();
    r.append(rest);
    r.check(random, true);
    // What attention reads has been rounded to few bits: the boxes of these numbers.
    r.keys = rounded(r.keys, channels, 3);
    for (std::int64_t p = 0; p < r.boxes.pages(); ++p) {
      auto const begin = r.keys.begin() + p * 8 * channels, last = r.keys.begin() + std::min(r.slots(), p * 8 + 8) * channels;
      REQUIRE(r.boxes.rebuild(p, {begin, last}));
    }
    r.check(random, true);
  }
}

TEST_CASE("page_bounds, slot_bounds: the largest over a group's queries; finer boxes are never looser", "[policy][page_box]") {
  std::mt19937 random(222);
  for (std::int64_t const group : {1, 2, 5}) {
    std::int64_t const channels = 6, slots = 75;
    row coarse(channels, 16, 1, slots), fine(channels, 16, 4, slots);
    numbers const keys = keys_of(random, slots, channels), queries = keys_of(random, group, channels);
    coarse.append(keys), fine.append(keys);
    numbers of_pages(5), of_slots(75), finer(5);
    REQUIRE(page_bounds(coarse.boxes, queries, of_pages));
    REQUIRE(page_bounds(fine.boxes, queries, finer));
    REQUIRE(slot_bounds(coarse.boxes, queries, of_slots));
    for (std::size_t p = 0; p < 5; ++p) {
      double most = -INFINITY;
      for (std::int64_t g = 0; g < group; ++g)
        most = std::max(most, coarse.right(static_cast<std::int64_t>(p), queries.data() + g * channels));
      CHECK(of_pages[p] == static_cast<float>(most));
      CHECK(finer[p] <= of_pages[p]);
      for (std::size_t s = 16 * p; s < std::min<std::size_t>(75, 16 * p + 16); ++s) CHECK(of_slots[s] == of_pages[p]);
    }
  }
}

TEST_CASE("page_boxes: wrong calls are refused and change nothing", "[policy][page_box]") {
  row r(2, 4, 2, 6);
  r.append({1, 2, 3, 4, 5, 6});
  auto const low = r.low, high = r.high;
  CHECK(r.boxes.append(numbers{1, 2, 3}) == status{errc::shape_mismatch, 3});
  CHECK(r.boxes.append(numbers{1, 2, 3, NAN}) == status{errc::not_finite, 3});
  CHECK(r.boxes.append(numbers{INFINITY, 2}) == status{errc::not_finite, 0});
  CHECK(r.boxes.append(numbers(8)) == status{errc::capacity_exceeded, 8});
  CHECK(r.boxes.rebuild(1, numbers(2)) == status{errc::out_of_range, 1});
  CHECK(r.boxes.rebuild(-1, numbers(2)) == status{errc::out_of_range, -1});
  CHECK(r.boxes.rebuild(0, numbers(8)) == status{errc::shape_mismatch, 8});  // the page holds three slots
  CHECK(r.boxes.shorten(4) == status{errc::out_of_range, 4});
  CHECK(r.boxes.shorten(-1) == status{errc::out_of_range, -1});
  CHECK(std::equal(low.begin(), low.begin() + 4, r.low.begin()));
  CHECK(std::equal(high.begin(), high.begin() + 4, r.high.begin()));
  CHECK(r.boxes.slots == 3);
  numbers out(1), longer(2);
  CHECK(page_bounds(r.boxes, numbers{1, NAN}, out) == status{errc::not_finite, 1});
  CHECK(page_bounds(r.boxes, numbers{1}, out) == status{errc::shape_mismatch, 1});
  CHECK(page_bounds(r.boxes, numbers{1, 2}, longer) == status{errc::shape_mismatch, 2});
  CHECK(slot_bounds(r.boxes, numbers{1, 2}, out) == status{errc::shape_mismatch, 1});
  for (page_boxes wrong : {page_boxes{.channels = 0}, page_boxes{.channels = 2, .slots_of_page = 6, .boxes_of_page = 4},
                           page_boxes{.channels = 2, .slots_of_page = 0}, page_boxes{.channels = 2, .slots = 1}})
    CHECK(wrong.append(numbers{1, 2}).code == errc::shape_mismatch);
}

TEST_CASE("quest: the pages of the largest bounds and the last one, whole; with room for all pages everything", "[policy][page_box]") {
  std::mt19937 random(223);
  for (std::int64_t const group : {1, 3}) {
    list const lengths{100, 33, 16, 1, 0, 64};
    world w(random, 3, 2, group, lengths, 1);
    std::vector<numbers> bounds;
    for (std::size_t r = 0; r < lengths.size(); ++r) {
      row of(w.channels, 16, 1, lengths[r]);
      of.append({w.keys.begin() + w.offset[r] * 4, w.keys.begin() + (w.offset[r] + lengths[r]) * 4});
      numbers largest(static_cast<std::size_t>(of.boxes.pages()), -INFINITY);
      for (std::int64_t g = 0; g < group; ++g) {
        numbers const q = keys_of(random, 1, w.channels);
        std::span<float> const to(w.given.data() + group * w.offset[r] + g * lengths[r], static_cast<std::size_t>(lengths[r]));
        REQUIRE(slot_bounds(of.boxes, q, to));
        for (std::size_t s = 0; s < to.size(); ++s) largest[s / 16] = std::max(largest[s / 16], to[s]);
      }
      bounds.push_back(largest);
    }
    for (std::int64_t const capacity : {0, 1, 16, 32, 48, 70, 112, 4096}) {
      pith::recipes::quest<> p;
      p.at<pith::stage::total>().tokens = capacity;
      std::fill(w.known.begin(), w.known.end(), 0);
      REQUIRE(w.observe(p));
      REQUIRE(w.decide(p));
      CHECK(w.plan.losers == pith::fate::still_there);
      for (std::size_t r = 0; r < lengths.size(); ++r) {
        std::int64_t const slots = lengths[r], last = slots > 0 ? (slots - 1) / 16 : 0;
        std::vector<oracle::place> pages;
        for (std::int64_t p_ = 0; p_ < last; ++p_) pages.push_back({bounds[r][static_cast<std::size_t>(p_)], p_, 0});
        oracle::rank(pages);
        std::int64_t const room = (std::max(capacity, slots - 16 * last) - (slots - 16 * last)) / 16;
        pages.resize(static_cast<std::size_t>(std::min<std::int64_t>(room, static_cast<std::int64_t>(pages.size()))));
        list right;
        for (std::int64_t s = 0; s < slots; ++s)
          if (s / 16 == last || std::any_of(pages.begin(), pages.end(), [&](auto const& p_) { return p_.slot == s / 16; }))
            right.push_back(s);
        CHECK(w.kept_of(static_cast<std::int64_t>(r)) == right);
        if (capacity >= slots) CHECK(static_cast<std::int64_t>(right.size()) == slots);
      }
    }
  }
}

TEST_CASE("lserve: named heads read their pages, the others a stream", "[policy][page_box]") {
  std::mt19937 random(224);
  list const lengths{400, 400, 300, 400};
  world w(random, 2, 2, 2, lengths, 1);
  w.head_table = {1, 0, 1, 0};
  for (std::size_t r = 0; r < lengths.size(); ++r)
    for (std::int64_t g = 0; g < 2; ++g)  // page 2 is the best
      for (std::int64_t s = 0; s < lengths[r]; ++s)
        w.given[static_cast<std::size_t>(2 * w.offset[r] + g * lengths[r] + s)] = s / 64 == 2 ? 9.0f : static_cast<float>(s / 64);
  pith::recipes::lserve<100, 8, 16> const p;
  static_assert(std::is_same_v<decltype(p)::stage_type<pith::stage::trigger>, pith::every<4>>);
  REQUIRE(w.observe(p));
  REQUIRE(w.decide(p));
  for (std::int64_t r = 0; r < 4; ++r) {
    std::int64_t const slots = lengths[static_cast<std::size_t>(r)];
    list right;
    for (std::int64_t s = 0; s < slots; ++s)
      if (s < 8 || s >= slots - 16 || (r % 2 == 0 && s / 64 == 2)) right.push_back(s);
    CHECK(w.kept_of(r) == right);
  }
  CHECK(pith::recipes::lserve<>{}.at<pith::stage::head_split>().full == 4096 - 384);
  CHECK(pith::recipes::lserve<4, 8, 16>{}.at<pith::stage::head_split>().full == 0);
}
