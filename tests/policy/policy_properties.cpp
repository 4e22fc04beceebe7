// SPDX-License-Identifier: Apache-2.0
// Laws of policies on inputs that are generated and, when a law breaks, shrunk. The release build compiles this file alone: rapidcheck
// needs exceptions and run-time types.
#include <rapidcheck.h>

#include "pith/policy/apportion.hpp"
#include "pith/policy/head_clusters.hpp"
#include "pith/policy/head_split.hpp"
#include "pith/policy/kernel_fold.hpp"
#include "pith/policy/key_clusters.hpp"
#include "pith/policy/page_box.hpp"
#include "pith/policy/position.hpp"
#include "pith/policy/recipes.hpp"
#include "pith/policy/recipes_state.hpp"
#include "pith/policy/sampled_fold.hpp"
#include "pith/policy/slerp.hpp"
#include "support/catch.hpp"
#include "world.hpp"

using oracle::world;
using pith::free_slot;
using pith::slot_mark;
using pith::stage;

namespace {

using list = std::vector<std::int64_t>;

int number(int below) { return *rc::gen::inRange(0, below); }

// Few values, so that ties are common; now and then an infinity.
std::vector<float> scores(int slots) {
  return *rc::gen::container<std::vector<float>>(static_cast<std::size_t>(slots), rc::gen::map(rc::gen::inRange(-2, 9), [](int x) {
                                                   return x == -2 ? -INFINITY : static_cast<float>(x) / 4;
                                                 }));
}
std::vector<slot_mark> marks(int slots) {
  return *rc::gen::container<std::vector<slot_mark>>(
      static_cast<std::size_t>(slots), rc::gen::element<slot_mark>(slot_mark{0}, slot_mark{0}, slot_mark{0}, slot_mark{1}, slot_mark{2}));
}
std::vector<float> row(std::size_t channels) {
  return *rc::gen::container<std::vector<float>>(
      channels, rc::gen::map(rc::gen::inRange(-1000, 1001), [](int x) { return static_cast<float>(x) / 256; }));
}
list lengths(int rows) {
  return *rc::gen::container<list>(static_cast<std::size_t>(rows),
                                   rc::gen::map(rc::gen::inRange(0, 30), [](int x) { return std::int64_t{x}; }));
}

list kept(std::vector<float> const& of, std::vector<slot_mark> at, std::int64_t count) {
  oracle::memory scratch(pith::select_scratch_bytes(static_cast<std::int64_t>(of.size())));
  RC_ASSERT(static_cast<bool>(pith::select_top(of, at, count)));
  list out(at.size());
  out.resize(static_cast<std::size_t>(pith::kept_slots(at, out)));
  return out;
}

// A world of random shape, observed and decided. `observed` rows of statistics.
struct drawn {
  std::mt19937 random{static_cast<std::uint32_t>(number(1 << 30))};
  std::int64_t layers = 1 + number(3), heads = 1 + number(3), group = 1 + number(3);
  list length = lengths(static_cast<int>(layers * heads));
  world w{random, layers, heads, group, length, 4, number(2) == 0};

  template <class Policy>
  void run(Policy const& p) {
    RC_ASSERT(static_cast<bool>(w.observe(p)));
    RC_ASSERT(static_cast<bool>(w.decide(p)));
  }
  std::int64_t total() const { return std::accumulate(w.kept_count.begin(), w.kept_count.end(), std::int64_t{0}); }
};

// Laws of every plan: counts, order, protection, identity.
void check_plan(drawn const& d, std::int64_t capacity, std::int64_t sinks, std::int64_t newest, bool by_row) {
  std::int64_t protected_slots = 0;
  for (std::size_t r = 0; r < d.length.size(); ++r) {
    list const stay = d.w.kept_of(static_cast<std::int64_t>(r));
    std::int64_t const n = d.length[r], own = std::min(n, sinks + newest);
    protected_slots += own;
    if (by_row) RC_ASSERT(static_cast<std::int64_t>(stay.size()) == std::min(n, std::max(capacity, own)));
    if (by_row && capacity >= n) RC_ASSERT(static_cast<std::int64_t>(stay.size()) == n);  // the identity, as the next lines show
    for (std::size_t k = 0; k < stay.size(); ++k) RC_ASSERT(stay[k] >= 0 && stay[k] < n && (k == 0 || stay[k] > stay[k - 1]));
    for (std::int64_t s = 0; s < n; ++s)
      if (s < sinks || s >= n - newest) RC_ASSERT(std::binary_search(stay.begin(), stay.end(), s));
  }
  auto const rows = static_cast<std::int64_t>(d.length.size());
  if (!by_row) RC_ASSERT(d.total() == std::min(d.w.slots(), std::max(capacity * rows, protected_slots)));
}

// A recipe on rows of one length, as wide head maps and ladders ask for.
template <class Recipe>
void check_identity() {
  std::mt19937 random(70);
  for (std::int64_t const slots : {0, 1, 33, 40}) {
    world w(random, 4, 2, 2, list(8, slots), 4);
    for (float& x : w.given) x = std::abs(x);  // dms keeps what is not negative
    Recipe const p;
    REQUIRE(w.observe(p));
    REQUIRE(w.decide(p));
    for (std::int64_t r = 0; r < 8; ++r) {
      list whole(static_cast<std::size_t>(slots));
      std::iota(whole.begin(), whole.end(), 0);
      CHECK(w.kept_of(r) == whole);
    }
  }
}

template <class Policy>
Policy with_capacity(std::int64_t tokens) {
  Policy p;
  p.template at<stage::total>().tokens = tokens;
  return p;
}

}  // namespace

TEST_CASE("law: shares lie in their bounds, sum to the total, and are within one of their level", "[policy][property]") {
  CHECK(rc::check([] {
    int const rows = 1 + number(12);
    std::vector<double> weights;
    list least, most, out(static_cast<std::size_t>(rows));
    for (int i = 0; i < rows; ++i) {
      weights.push_back(number(8) / 4.0);
      least.push_back(number(5));
      most.push_back(least.back() + number(20));
    }
    std::int64_t const low = std::accumulate(least.begin(), least.end(), std::int64_t{0}),
                       high = std::accumulate(most.begin(), most.end(), std::int64_t{0});
    std::int64_t const total = low + number(static_cast<int>(high - low) + 3);
    oracle::memory scratch(pith::apportion_scratch_bytes(rows));
    RC_ASSERT(static_cast<bool>(pith::apportion(weights, least, most, total, out, scratch)));
    RC_ASSERT(std::accumulate(out.begin(), out.end(), std::int64_t{0}) == std::min(total, high));
    for (std::size_t i = 0; i < out.size(); ++i) {
      RC_ASSERT(out[i] >= least[i] && out[i] <= most[i]);
      for (std::size_t k = 0; k < out.size(); ++k)  // of two rows without bounds in reach, the heavier has no less
        if (weights[i] > weights[k] && out[i] < most[i] && out[k] > least[k]) RC_ASSERT(out[i] >= out[k]);
    }
  }));
}

TEST_CASE("law: top is increasing, monotone in capacity, and blind to positive affine maps", "[policy][property]") {
  CHECK(rc::check([] {
    int const slots = number(40);
    auto const s = scores(slots);
    auto const m = marks(slots);
    int const count = number(slots + 2);
    list const some = kept(s, m, count), more = kept(s, m, count + 1);
    RC_ASSERT(std::is_sorted(some.begin(), some.end()));
    RC_ASSERT(std::includes(more.begin(), more.end(), some.begin(), some.end()));
    std::vector<float> mapped = s;
    for (float& x : mapped) x = 4 * x + 8;  // exact: ties stay ties
    RC_ASSERT(kept(mapped, m, count) == some);
    if (count >= slots) RC_ASSERT(static_cast<int>(some.size()) == slots);
    auto const equal = kept(std::vector<float>(static_cast<std::size_t>(slots), 0.5f),
                            std::vector<slot_mark>(static_cast<std::size_t>(slots), free_slot), count);
    for (std::size_t k = 0; k < equal.size(); ++k) RC_ASSERT(equal[equal.size() - 1 - k] == slots - 1 - static_cast<int>(k));
  }));
}

TEST_CASE("law: a permutation of heads permutes pooled selections, and more room never loses a slot", "[policy][property]") {
  CHECK(rc::check([] {
    int const rows = 1 + number(5);
    list const length = lengths(rows);
    list offset, order(static_cast<std::size_t>(rows));
    std::vector<float> s;
    for (std::int64_t const n : length) {
      offset.push_back(static_cast<std::int64_t>(s.size()));
      for (std::int64_t i = 0; i < n; ++i) s.push_back(static_cast<float>(s.size() * 7919 % 10007));  // no two alike: rows never decide
    }
    std::iota(order.begin(), order.end(), 0);
    std::mt19937 random(static_cast<std::uint32_t>(number(1000)));
    std::shuffle(order.begin(), order.end(), random);
    auto const select = [&](list const& rows_in, std::int64_t count) {
      list from, of;
      for (std::int64_t const r : rows_in)
        from.push_back(offset[static_cast<std::size_t>(r)]), of.push_back(length[static_cast<std::size_t>(r)]);
      std::vector<slot_mark> m(s.size(), free_slot);
      RC_ASSERT(static_cast<bool>(pith::select_pooled({s, from, of}, {m, from, of}, count, 0)));
      return m;
    };
    list straight(static_cast<std::size_t>(rows));
    std::iota(straight.begin(), straight.end(), 0);
    std::int64_t const count = number(static_cast<int>(s.size()) + 2);
    auto const some = select(straight, count), more = select(straight, count + 1);
    RC_ASSERT(select(order, count) == some);
    for (std::size_t i = 0; i < s.size(); ++i) RC_ASSERT(some[i] == free_slot || more[i] != free_slot);
  }));
}

TEST_CASE("law: plans keep their budgets, their order and what is protected", "[policy][property]") {
  CHECK(rc::check([] {
    drawn d;
    std::int64_t const capacity = *rc::gen::element<std::int64_t>(0, 1, 6, 7, 8, 29, 30);
    switch (number(9)) {
      case 0: {
        d.run(with_capacity<pith::recipes::snapkv<8, 4>>(capacity));
        return check_plan(d, capacity, 0, 4, true);
      }
      case 1: {
        d.run(with_capacity<pith::recipes::pyramid_kv<8, 4>>(capacity));
        return check_plan(d, capacity, 0, 4, false);
      }
      case 2: {
        using guarded =
            pith::policy<pith::top<8, pith::accumulated_attention>, pith::protect<pith::sinks<2>, pith::recent<3>>, pith::per_query>;
        d.run(with_capacity<guarded>(capacity));
        return check_plan(d, capacity, 2, 3, true);
      }
      case 3: {
        using layered = pith::policy<pith::all_attention, pith::max_pool<3>, pith::protect<pith::recent<1>>, pith::capacity<8>,
                                     pith::table_layers, pith::pooled_heads>;
        d.run(with_capacity<layered>(capacity));
        return check_plan(d, capacity, 0, 1, false);
      }
      case 4: {
        d.run(with_capacity<pith::recipes::critical_kv<8, 4>>(capacity));
        return check_plan(d, capacity, 0, 4, true);
      }
      case 5: {
        d.run(with_capacity<pith::recipes::kv_merger<8, 3>>(capacity));
        return check_plan(d, capacity, 0, 3, true);
      }
      case 6: {
        d.run(with_capacity<pith::recipes::finch<8, 4>>(capacity));
        return check_plan(d, capacity, 0, 4, true);
      }
      case 7: {
        d.run(with_capacity<pith::recipes::cam<8, 2>>(capacity));
        return check_plan(d, capacity, 0, 2, true);
      }
      default: {
        d.run(with_capacity<pith::recipes::streaming_llm<8, 2>>(std::max<std::int64_t>(capacity, 2)));
        return check_plan(d, std::max<std::int64_t>(capacity, 2), 2, 0, true);
      }
    }
  }));
}

TEST_CASE("law: a permutation of a layer's heads permutes its plan", "[policy][property]") {
  CHECK(rc::check([] {
    drawn d;
    using one = pith::recipes::h2o<7, 2>;
    d.run(one{});
    list const before = d.w.kept_count;
    std::vector<list> plans;
    for (std::int64_t r = 0; r < d.w.rows(); ++r) plans.push_back(d.w.kept_of(r));
    std::reverse(d.w.offset.begin(), d.w.offset.end()), std::reverse(d.w.length.begin(), d.w.length.end());
    std::fill(d.w.known.begin(), d.w.known.end(), 0);
    d.run(one{});
    for (std::int64_t r = 0; r < d.w.rows(); ++r) RC_ASSERT(d.w.kept_of(r) == plans[static_cast<std::size_t>(d.w.rows() - 1 - r)]);
  }));
}

TEST_CASE("law: every recipe leaves what fits as it is", "[policy][property]") {
  check_identity<pith::recipes::scissorhands<>>();
  check_identity<pith::recipes::tova<>>();
  check_identity<pith::recipes::head_kv<>>();
  check_identity<pith::recipes::cake<>>();
  check_identity<pith::recipes::zigzag_kv<>>();
  check_identity<pith::recipes::scope<>>();
  check_identity<pith::recipes::sirllm<>>();
  check_identity<pith::recipes::razor_attention<>>();
  check_identity<pith::recipes::lacache<1024, 2>>();
  check_identity<pith::recipes::window_kv<>>();
  check_identity<pith::recipes::locret<>>();
  check_identity<pith::recipes::dms<>>();
  check_identity<pith::recipes::attendre_lra<>>();
  check_identity<pith::recipes::d2o<>>();
  check_identity<pith::recipes::elastic_cache<>>();
  check_identity<pith::recipes::quest<>>();
  check_identity<pith::recipes::finch<>>();
  check_identity<pith::recipes::attendre_lfa<>>();
  check_identity<pith::recipes::lm_infinite<>>();
  check_identity<pith::recipes::critical_kv<>>();
  check_identity<pith::recipes::kv_merger<>>();
  check_identity<pith::recipes::ems<>>();
  check_identity<pith::recipes::cam<>>();
  check_identity<pith::recipes::lserve<>>();
  check_identity<pith::recipes::token_select<>>();
  check_identity<pith::recipes::round_attention<>>();
  check_identity<pith::recipes::louis_kv<>>();
  check_identity<pith::recipes::spe_cache<>>();
  check_identity<pith::recipes::inst_infer<>>();
}

TEST_CASE("law: no key of a page scores above the page's bound, and whoever has room for all pages reads all", "[policy][property]") {
  CHECK(rc::check([] {
    std::int64_t const channels = 1 + number(6), slots = number(50), parts = 1 << number(3), page = parts * (1 + number(5));
    auto const keys = row(static_cast<std::size_t>(channels * slots)), query = row(static_cast<std::size_t>(channels));
    pith::page_boxes boxes{.channels = channels, .slots_of_page = page, .boxes_of_page = parts};
    std::vector<float> low(static_cast<std::size_t>(boxes.numbers(slots))), high(low.size()), bounds(static_cast<std::size_t>(slots));
    boxes.low = low, boxes.high = high;
    RC_ASSERT(static_cast<bool>(boxes.append(keys)));
    RC_ASSERT(static_cast<bool>(pith::slot_bounds(boxes, query, bounds)));
    for (std::size_t s = 0; s < bounds.size(); ++s) {
      double score = 0;
      for (std::size_t c = 0; c < query.size(); ++c)
        score += static_cast<double>(query[c]) * static_cast<double>(keys[s * query.size() + c]);
      RC_ASSERT(bounds[s] >= static_cast<float>(score));
    }
    std::vector<slot_mark> at(bounds.size(), free_slot);
    oracle::memory scratch(pith::select_units_scratch_bytes(slots));
    RC_ASSERT(static_cast<bool>(pith::select_units(bounds, at, pith::even_units{page}, pith::unit_score::maximum, slots, scratch)));
    RC_ASSERT(pith::free_slots(at) == 0);
  }));
}

TEST_CASE("law: clusters are a partition without empty parts, and groups are taken whole", "[policy][property]") {
  CHECK(rc::check([] {
    int const slots = 1 + number(40), clusters = 1 + number(slots);
    auto const keys = row(static_cast<std::size_t>(2 * slots));
    list groups(static_cast<std::size_t>(slots)), counts(static_cast<std::size_t>(clusters), 0);
    std::vector<float> centroids(2 * counts.size());
    oracle::memory scratch(pith::cluster_keys_scratch_bytes(slots, clusters, 2));
    RC_ASSERT(
        static_cast<bool>(pith::cluster_keys(keys, 2, {.seed = static_cast<std::uint64_t>(number(1000))}, groups, centroids, scratch)));
    for (std::int64_t const g : groups) ++counts[static_cast<std::size_t>(g)];
    RC_ASSERT(std::count(counts.begin(), counts.end(), 0) == 0);
    auto const of = scores(slots);
    auto at = marks(slots), before = at;
    int const room = number(slots + 2);
    oracle::memory more(pith::select_groups_scratch_bytes(slots));
    RC_ASSERT(static_cast<bool>(pith::select_groups(of, at, groups, pith::unit_score::maximum, room, more)));
    std::int64_t const taken = std::count(at.begin(), at.end(), pith::chosen_slot);
    RC_ASSERT(taken <= room);
    for (std::size_t s = 0; s < at.size(); ++s)
      for (std::size_t t = 0; t < at.size(); ++t)
        if (before[s] == free_slot && before[t] == free_slot && groups[s] == groups[t]) RC_ASSERT(at[s] == at[t]);
  }));
}

TEST_CASE("law: targets are kept slots, weights are means, tokens are conserved", "[policy][property]") {
  CHECK(rc::check([] {
    drawn d;
    using merging =
        pith::policy<pith::top<4, pith::accumulated_attention>, pith::protect<pith::recent<1>>, pith::merge<pith::nearest_kept>>;
    d.run(merging{});
    for (std::int64_t r = 0; r < d.w.rows(); ++r) {
      auto const at = static_cast<std::size_t>(d.w.offset[static_cast<std::size_t>(r)]);
      list const stay = d.w.kept_of(r);
      std::vector<double> weight(stay.size(), 0.0);
      double before = 0, after = 0;
      for (std::size_t s = 0; s < static_cast<std::size_t>(d.length[static_cast<std::size_t>(r)]); ++s) {
        RC_ASSERT(d.w.target[at + s] >= 0 && d.w.target[at + s] < static_cast<std::int64_t>(stay.size()));
        RC_ASSERT(d.w.weight[at + s] >= 0);
        weight[static_cast<std::size_t>(d.w.target[at + s])] += static_cast<double>(d.w.weight[at + s]);
        before += std::exp(static_cast<double>(d.w.bias[at + s]));
      }
      for (std::size_t t = 0; t < stay.size(); ++t) {
        RC_ASSERT(std::abs(weight[t] - 1) < 1e-5);
        after += std::exp(static_cast<double>(d.w.bias_out[at + t]));
      }
      RC_ASSERT(std::abs(after - before) <= 1e-5 * before);
    }
  }));
}

TEST_CASE("law: two stages by score and by product are increasing in room; runs partition what is not kept", "[policy][property]") {
  CHECK(rc::check([] {
    int const slots = number(30);
    auto const s = scores(slots);
    auto const m = marks(slots);
    std::vector<float> weights(s.size());
    for (float& w : weights) w = static_cast<float>(number(4));
    oracle::memory scratch(pith::choose_scratch_bytes(slots));
    int const room = number(slots + 2);
    double const first = number(5) / 4.0;
    auto some = m, more = m;
    RC_ASSERT(static_cast<bool>(pith::select_twice(s, weights, some, room, first, 0.5, scratch)));
    RC_ASSERT(static_cast<bool>(pith::select_twice(s, weights, more, room + 1, first, 0.5, scratch)));
    for (std::size_t i = 0; i < m.size(); ++i) RC_ASSERT(some[i] == free_slot || more[i] != free_slot);

    auto const keys = row(s.size() * 2);
    auto runs = m;
    list target(m.size());
    RC_ASSERT(static_cast<bool>(pith::select_runs(keys, 2, s, runs, room, first, scratch)));
    RC_ASSERT(static_cast<bool>(pith::route_own_run(keys, 2, runs, target)));
    RC_ASSERT(pith::free_slots(runs) == std::max<std::int64_t>(pith::free_slots(m) - room, 0));
    std::int64_t last = 0;
    for (std::size_t i = 0; i < m.size(); ++i) {  // targets ascend, so that every run is contiguous
      if (target[i] == pith::no_target) continue;
      RC_ASSERT(target[i] >= last);
      last = target[i];
    }
  }));
}

TEST_CASE("law: rotations add up; directions on an arc have length 1 and are symmetric", "[policy][property]") {
  CHECK(rc::check([] {
    auto const key = row(8);
    int const a = number(100000), b = number(100000);
    auto moved = key, direct = key;
    pith::rope const by{8};
    RC_ASSERT(static_cast<bool>(by.rotate(moved, a)) && static_cast<bool>(by.rotate(moved, b - a)) &&
              static_cast<bool>(by.rotate(direct, b)));
    for (std::size_t c = 0; c < 8; ++c) RC_ASSERT(std::abs(moved[c] - direct[c]) <= 1e-5f);
  }));
  CHECK(rc::check([] {
    auto const a = row(6), b = row(6);
    double const t = number(5) / 4.0;
    std::vector<float> there(6), back(6);
    auto const first = pith::slerp(a, b, t, there).value(), second = pith::slerp(b, a, 1 - t, back).value();
    RC_ASSERT(first.retain == second.retain);
    if (first.retain) return;
    double length = 0;
    for (std::size_t c = 0; c < 6; ++c) {
      length += static_cast<double>(there[c]) * static_cast<double>(there[c]);
      RC_ASSERT(std::abs(there[c] - back[c]) <= 1e-5f);
    }
    RC_ASSERT(std::abs(length - 1) <= 1e-5);
  }));
}

TEST_CASE("law: folding nothing changes nothing, and fusing may be done in any order", "[policy][property]") {
  CHECK(rc::check([] {
    std::size_t const features = static_cast<std::size_t>(1 + number(4)), channels = static_cast<std::size_t>(1 + number(5));
    struct state {
      std::vector<float> h, z;
      pith::kernel_fold view() { return {h, z}; }
    };
    auto const some = [&](int rows) {  // whole numbers: sums are exact
      state out{std::vector<float>(features * channels), std::vector<float>(features)};
      for (int t = 0; t < rows; ++t) {
        std::vector<float> psi(features), v(channels);
        for (float& x : psi) x = static_cast<float>(number(6));
        for (float& x : v) x = static_cast<float>(number(13) - 6);
        RC_ASSERT(static_cast<bool>(out.view().take(psi, v)));
      }
      return out;
    };
    state const a = some(number(6)), b = some(number(6)), c = some(number(6)), nothing = some(0);
    auto const fused = [](state x, state const& y) {
      state other = y;
      RC_ASSERT(static_cast<bool>(x.view().fuse(other.view())));
      return x;
    };
    state const left = fused(fused(a, b), c), right = fused(a, fused(b, c)), back = fused(fused(c, b), a), same = fused(a, nothing);
    RC_ASSERT(left.h == right.h && left.z == right.z);
    RC_ASSERT(left.h == back.h && left.z == back.z);
    RC_ASSERT(same.h == a.h && same.z == a.z);
  }));
}

TEST_CASE("law: samples depend on the rows and their births alone, and fresh clusters answer the mass exactly", "[policy][property]") {
  CHECK(rc::check([] {
    int const rows = 1 + number(12);
    pith::sampled_fold_shape const shape{
        .key_channels = 6, .value_channels = 6, .clusters = rows, .samples = 1 + number(3), .reservoir = 1 + number(5), .delta = 0};
    oracle::memory first(pith::sampled_fold::bytes(shape)), second(pith::sampled_fold::bytes(shape));
    auto one = pith::sampled_fold::make(shape, first, 3, 4).value(), two = pith::sampled_fold::make(shape, second, 3, 4).value();
    auto const q = row(6);
    double mass = 0;
    for (int t = 0; t < rows; ++t) {
      auto const k = row(6), v = row(6);
      RC_ASSERT(one.take(k, v, t) && two.take(k, v, t));
      double dot = 0;
      for (std::size_t c = 0; c < 6; ++c) dot += static_cast<double>(q[c]) * static_cast<double>(k[c]);
      mass += std::exp(0.125 * dot);
    }
    std::vector<float> a(6), b(6);
    auto const lse = one.answer(q, 0.125, a), again = two.answer(q, 0.125, b);
    RC_ASSERT(lse && again && lse.value() == again.value() && a == b);
    RC_ASSERT(std::abs(static_cast<double>(lse.value()) - std::log(mass)) <= 1e-5 * (1 + std::abs(std::log(mass))));
    RC_ASSERT(one.crowded() == 0);
  }));
}

TEST_CASE("law: a head's cluster is numbered by its first head, and one more cluster splits one", "[policy][property]") {
  CHECK(rc::check([] {
    int const heads = 2 + number(6), k = 1 + number(heads - 1);
    std::vector<float> rows;
    for (int h = 0; h < heads; ++h) {
      auto const one = row(6);
      rows.insert(rows.end(), one.begin(), one.end());
    }
    oracle::memory scratch(pith::cluster_heads_scratch_bytes(heads));
    list coarse(static_cast<std::size_t>(heads)), fine(coarse), few(static_cast<std::size_t>(k)), more(static_cast<std::size_t>(k + 1));
    RC_ASSERT(static_cast<bool>(pith::cluster_heads(rows, heads, k, coarse, few, scratch)));
    RC_ASSERT(static_cast<bool>(pith::cluster_heads(rows, heads, k + 1, fine, more, scratch)));
    RC_ASSERT(few[0] == 0 && more[0] == 0);
    for (std::size_t h = 0; h < fine.size(); ++h) {
      std::size_t const first = static_cast<std::size_t>(more[static_cast<std::size_t>(fine[h])]);
      RC_ASSERT(first <= h && fine[first] == fine[h]);
      RC_ASSERT(coarse[first] == coarse[h]);  // heads that are together stay so
    }
  }));
}

TEST_CASE("law: demoted slots are ranked no more, and the scores of the others move with them", "[policy][property]") {
  CHECK(rc::check([] {
    drawn in;
    pith::recipes::mikv<6, 4, 2> const demoting;
    in.run(demoting);
    auto const before = in.w.score;
    pith::carry(demoting, in.w.where(), in.w.plan, in.w.state);
    RC_ASSERT(in.w.plan.losers == pith::fate::demoted);
    for (std::size_t r = 0; r < in.length.size(); ++r) {
      RC_ASSERT(in.w.known[r] == in.w.kept_count[r]);
      RC_ASSERT(in.w.kept_count[r] == std::min<std::int64_t>(6, in.length[r]));
      for (std::int64_t k = 0; k < in.w.kept_count[r]; ++k) {
        auto const at = static_cast<std::size_t>(in.w.offset[r] + k);
        RC_ASSERT(in.w.score[at] == before[static_cast<std::size_t>(in.w.offset[r] + in.w.kept[at])]);
      }
    }
  }));
}
