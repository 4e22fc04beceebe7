// SPDX-License-Identifier: Apache-2.0
// Clusters of heads against mean distances taken anew each time, and attention that they share.
#include "pith/policy/head_clusters.hpp"
#include "oracle.hpp"
#include "support/catch.hpp"

using pith::errc;
using pith::status;

namespace {

using list = std::vector<std::int64_t>;

struct answer {
  list cluster, representative;
  status done;
};

answer cluster(std::vector<float> const& rows, std::int64_t heads, std::int64_t k) {
  answer out{list(static_cast<std::size_t>(heads), -7), list(static_cast<std::size_t>(std::max<std::int64_t>(k, 0)), -7), {}};
  oracle::memory scratch(pith::cluster_heads_scratch_bytes(heads));
  out.done = pith::cluster_heads(rows, heads, k, out.cluster, out.representative, scratch);
  return out;
}

// Average link, every mean taken over all pairs.
answer plain(std::vector<float> const& rows, std::int64_t heads, std::int64_t k) {
  std::size_t const width = rows.size() / static_cast<std::size_t>(heads);
  auto const cosine = [&](std::int64_t a, std::int64_t b) {
    double ab = 0, aa = 0, bb = 0;
    for (std::size_t i = 0; i < width; ++i) {
      double const x = rows[static_cast<std::size_t>(a) * width + i], y = rows[static_cast<std::size_t>(b) * width + i];
      ab += x * y, aa += x * x, bb += y * y;
    }
    return aa > 0 && bb > 0 ? ab / std::sqrt(aa) / std::sqrt(bb) : 0;
  };
  std::vector<list> all;
  for (std::int64_t h = 0; h < heads; ++h) all.push_back({h});
  while (static_cast<std::int64_t>(all.size()) > k) {
    std::size_t first = 0, second = 1;
    double least = 1e300;
    for (std::size_t a = 0; a < all.size(); ++a)
      for (std::size_t b = a + 1; b < all.size(); ++b) {
        double sum = 0;
        for (std::int64_t const x : all[a])
          for (std::int64_t const y : all[b]) sum += 1 - cosine(x, y);
        sum /= static_cast<double>(all[a].size() * all[b].size());
        if (sum < least - 1e-12) least = sum, first = a, second = b;
      }
    all[first].insert(all[first].end(), all[second].begin(), all[second].end());
    all.erase(all.begin() + static_cast<std::ptrdiff_t>(second));
  }
  answer out{list(static_cast<std::size_t>(heads)), {}, {}};
  for (std::size_t c = 0; c < all.size(); ++c) {
    out.representative.push_back(*std::min_element(all[c].begin(), all[c].end()));
    for (std::int64_t const h : all[c]) out.cluster[static_cast<std::size_t>(h)] = static_cast<std::int64_t>(c);
  }
  return out;
}

}  // namespace

TEST_CASE("cluster_heads: average link over cosine distances, as taken anew each time", "[policy][head_clusters]") {
  std::mt19937 random(1);
  for (int round = 0; round < 80; ++round) {
    std::int64_t const heads = 1 + static_cast<std::int64_t>(random() % 10);
    std::size_t const width = 1 + random() % 15;
    std::vector<float> rows(static_cast<std::size_t>(heads) * width);
    for (float& x : rows) x = static_cast<float>(random() % 1000) / 1000.0f;
    if (random() % 4 == 0) std::fill_n(rows.begin(), width, 0.0f);
    for (std::int64_t k = 1; k <= heads; ++k) {
      answer const got = cluster(rows, heads, k), right = plain(rows, heads, k);
      REQUIRE(got.done);
      if (width > 2) CHECK(got.cluster == right.cluster);  // rows of one number are all alike: rounding decides
      if (width > 2) CHECK(got.representative == right.representative);
      for (std::size_t c = 0; c < got.representative.size(); ++c) {
        CHECK(std::find(got.cluster.begin(), got.cluster.end(), static_cast<std::int64_t>(c)) - got.cluster.begin() ==
              got.representative[c]);
        CHECK((c == 0 || got.representative[c] > got.representative[c - 1]));
      }
    }
  }
}

TEST_CASE("cluster_heads: equal rows come first, zeros are far from all, ties go to the first heads", "[policy][head_clusters]") {
  std::vector<float> const rows{1, 0, 0, 1, 2, 0, 0, 3, 0, 0};  // heads 0 and 2 point one way, 1 and 3 another, 4 nowhere
  CHECK(cluster(rows, 5, 3).cluster == list{0, 1, 0, 1, 2});
  CHECK(cluster(rows, 5, 4).cluster == list{0, 1, 0, 2, 3});
  CHECK(cluster(rows, 5, 2).cluster == list{0, 0, 0, 0, 1});
  CHECK(cluster(rows, 5, 1).representative == list{0});
  CHECK(cluster(rows, 5, 5).representative == list{0, 1, 2, 3, 4});
}

TEST_CASE("share_scores: attention of a cluster is its representative's, values are a head's own", "[policy][head_clusters]") {
  std::mt19937 random(2);
  std::int64_t const heads = 6, slots = 9;
  std::vector<float> rows(static_cast<std::size_t>(heads) * 15), p(static_cast<std::size_t>(heads * slots));
  for (float& x : rows) x = static_cast<float>(random() % 100);
  for (float& x : p) x = static_cast<float>(random() % 1000) / 1000.0f;
  auto const found = cluster(rows, heads, 3);
  auto shared = p;
  REQUIRE(pith::share_scores(shared, slots, found.cluster, found.representative));
  for (std::int64_t h = 0; h < heads; ++h) {
    std::int64_t const from = found.representative[static_cast<std::size_t>(found.cluster[static_cast<std::size_t>(h)])];
    CHECK(std::equal(p.begin() + from * slots, p.begin() + (from + 1) * slots, shared.begin() + h * slots));
  }
  // As many clusters as heads: nothing is shared.
  auto const alone = cluster(rows, heads, heads);
  auto same = p;
  REQUIRE(pith::share_scores(same, slots, alone.cluster, alone.representative));
  CHECK(same == p);
  // Heads of one cluster that attend alike lose nothing: all of them have the same row.
  std::vector<float> equal;
  for (std::int64_t h = 0; h < heads; ++h) equal.insert(equal.end(), p.begin(), p.begin() + slots);
  auto const before = equal;
  auto const one = cluster(equal, heads, 1);
  REQUIRE(pith::share_scores(equal, slots, one.cluster, one.representative));
  CHECK(equal == before);
}

TEST_CASE("cluster_heads, share_scores: wrong calls are refused", "[policy][head_clusters][errors]") {
  std::vector<float> rows(12, 1.0f);
  CHECK(cluster(rows, 5, 2).done.code == errc::shape_mismatch);
  CHECK(cluster(rows, 4, 0).done == status{errc::out_of_range, 0});
  CHECK(cluster(rows, 4, 5).done == status{errc::out_of_range, 5});
  list of(4), first(2);
  oracle::memory scratch(pith::cluster_heads_scratch_bytes(4)), few(20);
  CHECK(pith::cluster_heads(rows, 4, 2, std::span(of).first(3), first, scratch) == status{errc::shape_mismatch, 3});
  CHECK(pith::cluster_heads(rows, 4, 2, of, std::span(first).first(1), scratch) == status{errc::shape_mismatch, 1});
  CHECK(pith::cluster_heads(rows, 4, 2, of, first, few) == status{errc::capacity_exceeded, pith::cluster_heads_scratch_bytes(4)});
  rows[7] = NAN;
  CHECK(cluster(rows, 4, 2).done == status{errc::not_finite, 7});
  std::vector<float> scores(8, 1.0f);
  CHECK(pith::share_scores(scores, 3, list{0, 0}, list{0}) == status{errc::shape_mismatch, 8});
  CHECK(pith::share_scores(scores, 4, list{0, 1}, list{0}) == status{errc::out_of_range, 1});
  CHECK(pith::share_scores(scores, 4, list{0, 0}, list{2}) == status{errc::out_of_range, 0});
  CHECK(pith::share_scores(scores, 4, list{0, 1}, list{0, 0}) == status{errc::out_of_range, 1});
}
