// SPDX-License-Identifier: Apache-2.0
// Clusters of keys and selections of whole groups against plain ones in double precision; what LouisKV and Round Attention read.
#include "pith/policy/key_clusters.hpp"

#include "pith/policy/query_weights.hpp"
#include "pith/policy/recipes.hpp"
#include "support/catch.hpp"
#include "world.hpp"

using oracle::shape;
using oracle::shapes;
using oracle::world;
using pith::errc;
using pith::free_slot;
using pith::slot_mark;
using pith::status;
using pith::unit_score;

namespace {

using list = std::vector<std::int64_t>;
using numbers = std::vector<float>;

struct clustered {
  list groups;
  numbers centroids;
};

clustered cluster(numbers const& keys, std::int64_t channels, std::int64_t clusters, pith::cluster_options const& how) {
  std::int64_t const slots = static_cast<std::int64_t>(keys.size()) / channels;
  clustered out{list(static_cast<std::size_t>(slots)), numbers(static_cast<std::size_t>(clusters * channels))};
  oracle::memory scratch(pith::cluster_keys_scratch_bytes(slots, clusters, channels));
  REQUIRE(pith::cluster_keys(keys, channels, how, out.groups, out.centroids, scratch));
  return out;
}

double squared(numbers const& keys, std::size_t slot, numbers const& centroids, std::size_t cluster, std::size_t channels) {
  double sum = 0;
  for (std::size_t c = 0; c < channels; ++c) {
    double const x = static_cast<double>(keys[slot * channels + c]) - static_cast<double>(centroids[cluster * channels + c]);
    sum += x * x;
  }
  return sum;
}

numbers keys_of(std::mt19937& random, std::int64_t slots, std::int64_t channels, int kind) {
  numbers out(static_cast<std::size_t>(slots * channels));
  for (std::size_t i = 0; i < out.size(); ++i)
    out[i] = kind == 0   ? static_cast<float>(random() % 2001) / 1000.0f - 1.0f
             : kind == 1 ? static_cast<float>(random() % 2)  // many equal keys
             : kind == 2 ? 0.5f                              // all equal
                         : static_cast<float>(random() % 5 * 100) + static_cast<float>(random() % 100) / 100.0f;
  return out;
}

// Oldest first; `best_half` and `maximum` best first.
double score_of(numbers const& scores, list members, unit_score rule) {
  if (rule == unit_score::maximum || rule == unit_score::best_half)
    std::stable_sort(members.begin(), members.end(), [&](std::int64_t a, std::int64_t b) {
      float const x = scores[static_cast<std::size_t>(a)], y = scores[static_cast<std::size_t>(b)];
      return x != y ? x > y : a > b;
    });
  std::size_t const taken = rule == unit_score::maximum ? 1 : rule == unit_score::best_half ? (members.size() + 1) / 2 : members.size();
  double sum = 0;
  for (std::size_t i = 0; i < taken; ++i) sum += static_cast<double>(scores[static_cast<std::size_t>(members[i])]);
  return static_cast<double>(static_cast<float>(rule == unit_score::sum ? sum : sum / static_cast<double>(taken)));
}

std::vector<slot_mark> select(numbers const& scores, std::vector<slot_mark> marks, list const& groups, unit_score rule, std::int64_t room) {
  std::vector<list> members(groups.size());
  for (std::size_t s = 0; s < groups.size(); ++s)
    if (marks[s] == free_slot) members[static_cast<std::size_t>(groups[s])].push_back(static_cast<std::int64_t>(s));
  std::vector<oracle::place> order;
  for (auto const& m : members)
    if (!m.empty()) order.push_back({score_of(scores, m, rule), m.back(), 0});
  oracle::rank(order);
  for (auto const& best : order) {
    list const& m = members[static_cast<std::size_t>(groups[static_cast<std::size_t>(best.slot)])];
    room -= static_cast<std::int64_t>(m.size());
    if (room < 0) break;
    for (std::int64_t const s : m) marks[static_cast<std::size_t>(s)] = pith::chosen_slot;
  }
  return marks;
}

}  // namespace

TEST_CASE("cluster_keys: no cluster is empty, centroids are means, and more iterations never fit worse", "[policy][cluster]") {
  std::mt19937 random(240);
  for (std::int64_t const channels : {1, 3, 8})
    for (std::int64_t const slots : {1, 2, 17, 60})
      for (int kind = 0; kind < 4; ++kind) {
        numbers const keys = keys_of(random, slots, channels, kind);
        for (std::int64_t const clusters : {std::int64_t{1}, (slots + 15) / 16, slots / 2, slots - 1, slots}) {
          if (clusters < 1) continue;
          double before = INFINITY;
          for (std::int64_t const iterations : {1, 2, 3, 8, 50}) {
            auto const got = cluster(keys, channels, clusters, {.iterations = iterations, .seed = 7});
            list counts(static_cast<std::size_t>(clusters), 0);
            std::vector<double> sums(got.centroids.size(), 0.0);
            double spread = 0;
            for (std::size_t s = 0; s < got.groups.size(); ++s) {
              auto const g = static_cast<std::size_t>(got.groups[s]);
              REQUIRE(g < counts.size());
              ++counts[g];
              for (std::size_t c = 0; c < static_cast<std::size_t>(channels); ++c)
                sums[g * static_cast<std::size_t>(channels) + c] += static_cast<double>(keys[s * static_cast<std::size_t>(channels) + c]);
              spread += squared(keys, s, got.centroids, g, static_cast<std::size_t>(channels));
            }
            for (std::int64_t const n : counts) CHECK(n > 0);
            for (std::size_t i = 0; i < sums.size(); ++i)
              CHECK(got.centroids[i] == static_cast<float>(sums[i] / static_cast<double>(counts[i / static_cast<std::size_t>(channels)])));
            CHECK(spread <= before * (1 + 1e-5) + 1e-9);
            before = spread;
            if (iterations == 50 && kind == 0)  // at rest: every slot is with its nearest centroid
              for (std::size_t s = 0; s < got.groups.size(); ++s)
                for (std::size_t j = 0; j < counts.size(); ++j)
                  CHECK(squared(keys, s, got.centroids, static_cast<std::size_t>(got.groups[s]), static_cast<std::size_t>(channels)) <=
                        squared(keys, s, got.centroids, j, static_cast<std::size_t>(channels)));
            if (clusters == slots) CHECK(spread == 0);
          }
        }
      }
}

TEST_CASE("cluster_keys: the same again for the same seed, another start for another; far blobs are found", "[policy][cluster]") {
  std::mt19937 random(241);
  numbers const keys = keys_of(random, 80, 4, 0);
  auto const one = cluster(keys, 4, 5, {.seed = 1, .row = 2}), again = cluster(keys, 4, 5, {.seed = 1, .row = 2});
  CHECK(one.groups == again.groups);
  CHECK(one.centroids == again.centroids);
  CHECK(one.groups != cluster(keys, 4, 5, {.seed = 2, .row = 2}).groups);
  CHECK(one.groups != cluster(keys, 4, 5, {.seed = 1, .row = 3}).groups);
  // Three blobs that take turns along the row: clusters are not runs of slots.
  numbers blobs;
  for (int s = 0; s < 60; ++s)
    for (int c = 0; c < 2; ++c) blobs.push_back(static_cast<float>(100 * (s % 3 == c) + 7 * (s % 5)) / 10.0f);
  bool found = false;
  for (std::uint64_t seed = 0; seed < 8; ++seed) {
    auto const got = cluster(blobs, 2, 3, {.iterations = 20, .seed = seed}).groups;
    bool right = true;
    for (std::size_t s = 3; s < 60; ++s) right = right && got[s] == got[s % 3];
    found = found || (right && got[0] != got[1] && got[1] != got[2] && got[0] != got[2]);
  }
  CHECK(found);
}

TEST_CASE("group_means, group_bias: a cluster as one slot is exact if it is one token, or equal ones", "[policy][cluster]") {
  std::mt19937 random(242);
  std::int64_t const channels = 4, slots = 24;
  for (bool const single : {true, false}) {
    numbers keys = keys_of(random, slots, channels, 0), values = keys_of(random, slots, channels, 0);
    if (!single)  // eight kinds of token, three times each
      for (std::size_t i = 32; i < keys.size(); ++i) keys[i] = keys[i - 32], values[i] = values[i - 32];
    std::int64_t const clusters = single ? slots : 8;
    list groups(static_cast<std::size_t>(slots)), counts(static_cast<std::size_t>(clusters));
    numbers centroids(static_cast<std::size_t>(clusters * channels)), mean_values = centroids, bias(static_cast<std::size_t>(clusters));
    for (std::size_t s = 0; s < 24; ++s) groups[s] = static_cast<std::int64_t>(s) % clusters;
    oracle::memory scratch(pith::group_means_scratch_bytes(clusters, channels));
    REQUIRE(pith::group_means(keys, channels, groups, centroids, counts, scratch));
    REQUIRE(pith::group_means(values, channels, groups, mean_values, counts, scratch));
    REQUIRE(pith::group_bias(counts, bias));
    numbers const q = keys_of(random, 1, channels, 0);
    auto const attend = [&](numbers const& k, numbers const& v, numbers const& b) {
      std::vector<double> out(4, 0.0);
      double all = 0;
      for (std::size_t s = 0; s < k.size() / 4; ++s) {
        double logit = b.empty() ? 0 : static_cast<double>(b[s]);
        for (std::size_t c = 0; c < 4; ++c) logit += static_cast<double>(q[c]) * static_cast<double>(k[s * 4 + c]);
        all += std::exp(logit);
        for (std::size_t c = 0; c < 4; ++c) out[c] += std::exp(logit) * static_cast<double>(v[s * 4 + c]);
      }
      for (double& x : out) x /= all;
      return out;
    };
    auto const right = attend(keys, values, {}), got = attend(centroids, mean_values, bias);
    for (std::size_t c = 0; c < 4; ++c) CHECK(got[c] == Approx(right[c]).margin(1e-6));
    if (single) {
      CHECK(centroids == keys);
      CHECK(bias == numbers(24, 0.0f));
    }
  }
  list counts{0, 1, 3};
  numbers bias(3);
  REQUIRE(pith::group_bias(counts, bias));
  CHECK(bias == numbers{-INFINITY, 0.0f, static_cast<float>(std::log(3.0))});
}

TEST_CASE("select_groups: whole groups by their score, wherever their slots lie", "[policy][cluster]") {
  std::mt19937 random(243);
  for (shape const of : shapes) {
    if (of == shape::infinite) continue;
    for (std::int64_t const slots : {0, 1, 2, 19, 60})
      for (unit_score const rule : {unit_score::mean, unit_score::maximum, unit_score::best_half, unit_score::sum})
        for (int trial = 0; trial < 4; ++trial) {
          numbers const scores = oracle::scores(random, slots, of);
          auto const before =
              trial % 2 == 0 ? std::vector<slot_mark>(static_cast<std::size_t>(slots), free_slot) : oracle::marks(random, slots);
          list groups(static_cast<std::size_t>(slots));
          for (auto& g : groups) g = trial == 3 ? slots - 1 : static_cast<std::int64_t>(random() % static_cast<unsigned>(slots / 3 + 1));
          oracle::memory scratch(pith::select_groups_scratch_bytes(slots));
          for (std::int64_t const room : {std::int64_t{-1}, std::int64_t{0}, std::int64_t{1}, slots / 2, slots - 1, slots, slots + 1}) {
            auto got = before;
            REQUIRE(pith::select_groups(scores, got, groups, rule, room, scratch));
            CHECK(got == select(scores, before, groups, rule, room));
          }
        }
  }
}

TEST_CASE("select_groups: groups that are runs are select_units'", "[policy][cluster]") {
  std::mt19937 random(244);
  for (unit_score const rule : {unit_score::mean, unit_score::maximum, unit_score::best_half, unit_score::sum})
    for (std::int64_t const room : {0, 7, 20, 64}) {
      numbers const scores = oracle::scores(random, 64, shape::ties);
      auto runs = oracle::marks(random, 64), same = runs;
      list groups(64);
      for (std::size_t s = 0; s < 64; ++s) groups[s] = static_cast<std::int64_t>(s) / 7;
      oracle::memory scratch(pith::select_groups_scratch_bytes(64));
      REQUIRE(pith::select_units(scores, runs, pith::even_units{7}, rule, room, scratch));
      REQUIRE(pith::select_groups(scores, same, groups, rule, room, scratch));
      CHECK(runs == same);
    }
}

TEST_CASE("clusters and groups: errors name their place", "[policy][cluster]") {
  oracle::memory scratch(4096);
  std::vector<slot_mark> marks(3, free_slot);
  numbers const scores{1, 2, 3};
  auto const none = marks;
  CHECK(pith::select_groups(scores, marks, list{0, 1}, unit_score::mean, 3, scratch) == status{errc::shape_mismatch, 2});
  CHECK(pith::select_groups(scores, marks, list{0, 1, 3}, unit_score::mean, 3, scratch) == status{errc::out_of_range, 2});
  CHECK(pith::select_groups(scores, marks, list{0, -1, 2}, unit_score::mean, 3, scratch) == status{errc::out_of_range, 1});
  CHECK(pith::select_groups(numbers{1, NAN, 2}, marks, list{0, 0, 0}, unit_score::mean, 3, scratch) == status{errc::not_finite, 1});
  CHECK(pith::select_groups(numbers{INFINITY, 1, -INFINITY}, marks, list{0, 1, 0}, unit_score::mean, 3, scratch) ==
        status{errc::not_finite, 2});
  CHECK(pith::select_groups(scores, marks, list{0, 0, 0}, unit_score::mean, 3, {}) ==
        status{errc::capacity_exceeded, pith::select_groups_scratch_bytes(3)});
  CHECK(marks == none);
  list groups(3), counts(2);
  numbers centroids(4), keys(6);
  pith::cluster_options const how;
  CHECK(pith::cluster_keys(keys, 0, how, groups, centroids, scratch) == status{errc::shape_mismatch, 6});
  CHECK(pith::cluster_keys(numbers(5), 2, how, groups, centroids, scratch) == status{errc::shape_mismatch, 5});
  numbers many(8);
  CHECK(pith::cluster_keys(keys, 2, how, groups, many, scratch) == status{errc::out_of_range, -1});
  CHECK(pith::cluster_keys(keys, 2, how, groups, {}, scratch) == status{errc::out_of_range, -1});
  CHECK(pith::cluster_keys({}, 2, how, {}, {}, scratch));
  CHECK(pith::cluster_keys(numbers{0, 0, 0, INFINITY, 0, 0}, 2, how, groups, centroids, scratch) == status{errc::not_finite, 3});
  CHECK(pith::cluster_keys(keys, 2, how, groups, centroids, {}) ==
        status{errc::capacity_exceeded, pith::cluster_keys_scratch_bytes(3, 2, 2)});
  CHECK(pith::group_means(keys, 2, list{0, 1, 2}, centroids, counts, scratch) == status{errc::out_of_range, 2});
  CHECK(pith::group_means(keys, 2, list{0, 1}, centroids, counts, scratch) == status{errc::shape_mismatch, 6});
  CHECK(pith::group_means(keys, 2, list{0, 1, 1}, centroids, counts, {}) ==
        status{errc::capacity_exceeded, pith::group_means_scratch_bytes(2, 2)});
  CHECK(pith::group_bias(counts, centroids) == status{errc::shape_mismatch, 4});
  CHECK(pith::scores_of_groups(numbers{1}, list{0, 1}, many) == status{errc::shape_mismatch, 8});
  CHECK(pith::scores_of_groups(numbers{1}, list{0, 1, 0, 0, 0, 0, 0, 0}, many) == status{errc::out_of_range, 1});
}

TEST_CASE("louis_kv: whole clusters by their centroids, sinks and newest slots besides", "[policy][cluster]") {
  std::mt19937 random(245);
  list const lengths{70, 41, 5, 0};
  for (std::int64_t const capacity : {0, 9, 20, 40, 69, 70, 71}) {
    world w(random, 2, 2, 2, lengths, 1);
    list& groups = w.groups;
    std::vector<std::vector<double>> mean(4);
    for (std::size_t r = 0; r < 4; ++r) {
      auto const slots = static_cast<std::size_t>(lengths[r]);
      if (slots == 0) continue;
      numbers const keys(w.keys.begin() + w.offset[r] * 4, w.keys.begin() + (w.offset[r] + lengths[r]) * 4);
      auto const own = cluster(keys, 4, (lengths[r] + 7) / 8, {.row = static_cast<std::int64_t>(r)});
      std::copy(own.groups.begin(), own.groups.end(), groups.begin() + w.offset[r]);
      mean[r].assign(slots, 0.0);
      for (std::int64_t g = 0; g < 2; ++g) {
        numbers const q = keys_of(random, 1, 4, 0);
        numbers weights(own.centroids.size() / 4);
        REQUIRE(pith::query_weights(q, own.centroids, 3, {}, weights));
        std::span<float> const to(w.given.data() + 2 * w.offset[r] + g * lengths[r], slots);
        REQUIRE(pith::scores_of_groups(weights, own.groups, to));
        for (std::size_t s = 0; s < slots; ++s) mean[r][s] += static_cast<double>(to[s]) / 2;
      }
    }
    pith::recipes::louis_kv<32, 3, 5> p;
    p.at<pith::stage::total>().tokens = capacity;
    auto in = w.input();
    REQUIRE(w.observe(p));
    oracle::memory scratch(pith::decide_scratch_bytes(w.rows(), w.slots()));
    REQUIRE(pith::decide(p, w.where(), in, w.state, w.plan, scratch));
    for (std::size_t r = 0; r < 4; ++r) {
      std::vector<slot_mark> marks(static_cast<std::size_t>(lengths[r]), free_slot);
      for (std::int64_t s = 0; s < lengths[r]; ++s)
        if (s < 3 || s >= lengths[r] - 5) marks[static_cast<std::size_t>(s)] = 1;
      std::int64_t const guarded = lengths[r] - pith::free_slots(marks);
      list const own(groups.begin() + w.offset[r], groups.begin() + w.offset[r] + lengths[r]);
      numbers const scores(mean[r].begin(), mean[r].end());
      CHECK(w.kept_of(static_cast<std::int64_t>(r)) ==
            oracle::kept(select(scores, marks, own, unit_score::mean, std::max<std::int64_t>(capacity - guarded, 0))));
    }
    in.groups = {};
    CHECK(pith::decide(p, w.where(), in, w.state, w.plan, scratch) == status{errc::shape_mismatch, 0});
  }
}

TEST_CASE("round_attention: rounds by their mass over all heads, the current one besides", "[policy][cluster]") {
  std::mt19937 random(246);
  std::int64_t const slots = 48, group = 2;
  world w(random, 1, 3, group, list(3, slots), 6);
  std::fill(w.mask.begin(), w.mask.end(), std::uint8_t{0});
  list& groups = w.groups;
  for (std::size_t r = 0; r < 3; ++r)
    for (std::int64_t s = 0; s < slots; ++s) {
      auto const at = static_cast<std::size_t>(w.offset[r] + s);
      groups[at] = s < 5 ? 0 : s < 17 ? 1 : s < 20 ? 2 : s < 38 ? 3 : 4;
      w.mask[at] = s >= 38;
    }
  std::vector<double> mass(5, 0.0);
  for (std::size_t r = 0; r < 3; ++r)
    for (std::int64_t g = 0; g < group; ++g)
      for (std::int64_t s = 0; s < slots; ++s)
        mass[static_cast<std::size_t>(groups[static_cast<std::size_t>(w.offset[r] + s)])] +=
            static_cast<double>(w.sum[static_cast<std::size_t>(group * w.offset[r] + g * slots + s)]);
  std::int64_t const sizes[] = {5, 12, 3, 18};
  list order{0, 1, 2, 3};
  std::sort(order.begin(), order.end(),
            [&](std::int64_t a, std::int64_t b) { return mass[static_cast<std::size_t>(a)] > mass[static_cast<std::size_t>(b)]; });
  auto const in = w.input();
  pith::recipes::round_attention<> p;
  REQUIRE(w.observe(p));
  for (std::int64_t const capacity : {0, 10, 20, 30, 40, 47, 48}) {
    p.at<pith::stage::total>().tokens = capacity;
    oracle::memory scratch(pith::decide_scratch_bytes(3, 3 * slots));
    REQUIRE(pith::decide(p, w.where(), in, w.state, w.plan, scratch));
    std::vector<bool> read{false, false, false, false, true};
    std::int64_t room = capacity - 10;
    for (std::int64_t const g : order) {
      room -= sizes[g];
      if (room < 0) break;
      read[static_cast<std::size_t>(g)] = true;
    }
    for (std::int64_t r = 0; r < 3; ++r) {
      list right;
      for (std::int64_t s = 0; s < slots; ++s)
        if (read[static_cast<std::size_t>(groups[static_cast<std::size_t>(w.offset[0] + s)])]) right.push_back(s);
      CHECK(w.kept_of(r) == right);
    }
  }
}
