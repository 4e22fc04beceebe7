// SPDX-License-Identifier: Apache-2.0
// Weights of a query against a softmax in double precision; approximate ones where they must be exact; what TokenSelect and InstInfer read.
#include "pith/policy/query_weights.hpp"

#include "pith/policy/recipes.hpp"
#include "support/catch.hpp"
#include "world.hpp"

using oracle::world;
using pith::errc;
using pith::free_slot;
using pith::slot_mark;
using pith::status;

namespace {

using list = std::vector<std::int64_t>;
using numbers = std::vector<float>;

numbers random_numbers(std::mt19937& random, std::size_t count) {
  numbers out(count);
  for (float& x : out) x = random() % 9 == 0 ? 0.0f : static_cast<float>(random() % 4001) / 1000.0f - 2.0f;
  return out;
}

// softmax(by sum over `channels` of q k) over the free slots.
std::vector<double> softmax(numbers const& q, numbers const& keys, list const& channels, double by, std::vector<slot_mark> const& marks) {
  std::vector<double> out(marks.size(), 0.0);
  double all = 0;
  for (std::size_t s = 0; s < marks.size(); ++s) {
    if (marks[s] != free_slot) continue;
    double logit = 0;
    for (std::int64_t const c : channels)
      logit += static_cast<double>(q[static_cast<std::size_t>(c)]) * static_cast<double>(keys[s * q.size() + static_cast<std::size_t>(c)]);
    all += out[s] = std::exp(by * logit);
  }
  for (double& x : out) x /= all > 0 ? all : 1;
  return out;
}

list largest(numbers const& q, std::int64_t r) {
  std::vector<oracle::place> order;
  for (std::size_t c = 0; c < q.size(); ++c) order.push_back({std::fabs(q[c]), static_cast<std::int64_t>(c), 0});
  oracle::rank(order);
  list out;
  for (std::int64_t i = 0; i < r; ++i) out.push_back(order[static_cast<std::size_t>(i)].slot);
  std::sort(out.begin(), out.end());
  return out;
}

void check(numbers const& got, std::vector<double> const& right) {
  REQUIRE(got.size() == right.size());
  for (std::size_t s = 0; s < got.size(); ++s) CHECK(got[s] == Approx(right[s]).epsilon(2e-5).margin(1e-12));
}

list all_of(std::size_t channels) {
  list out(channels);
  std::iota(out.begin(), out.end(), 0);
  return out;
}

}  // namespace

TEST_CASE("query_weights, partial_weights: softmax over the candidates, in all channels and in the largest", "[policy][query_weights]") {
  std::mt19937 random(230);
  for (std::size_t const channels : {1u, 4u, 9u})
    for (std::int64_t const slots : {0, 1, 2, 50})
      for (int trial = 0; trial < 6; ++trial) {
        numbers const q = trial == 0 ? numbers(channels, 0.0f) : random_numbers(random, channels);
        numbers const keys = random_numbers(random, channels * static_cast<std::size_t>(slots));
        std::vector<slot_mark> const marks = trial < 2    ? std::vector<slot_mark>(static_cast<std::size_t>(slots), free_slot)
                                             : trial == 2 ? std::vector<slot_mark>(static_cast<std::size_t>(slots), slot_mark{1})
                                                          : oracle::marks(random, slots);
        double const scale = 0.5 + trial;
        numbers out(static_cast<std::size_t>(slots), NAN), whole = out;
        REQUIRE(pith::query_weights(q, keys, scale, marks, out));
        check(out, softmax(q, keys, all_of(channels), scale, marks));
        if (trial < 2) {
          REQUIRE(pith::query_weights(q, keys, scale, {}, whole));
          CHECK(whole == out);
        }
        for (std::int64_t const r : {std::int64_t{0}, std::int64_t{1}, static_cast<std::int64_t>(channels)}) {
          list some(static_cast<std::size_t>(r));
          oracle::memory scratch(pith::largest_channels_scratch_bytes(static_cast<std::int64_t>(channels)));
          REQUIRE(pith::largest_channels(q, some, scratch));
          CHECK(some == largest(q, r));
          double part = 0, all = 0;
          for (float const x : q) all += std::fabs(static_cast<double>(x));
          for (std::int64_t const c : some) part += std::fabs(static_cast<double>(q[static_cast<std::size_t>(c)]));
          numbers near(static_cast<std::size_t>(slots), NAN);
          REQUIRE(pith::partial_weights(q, keys, some, scale, marks, near));
          check(near, softmax(q, keys, some, part > 0 ? scale / std::sqrt(part / all) : 0, marks));
          if (r == static_cast<std::int64_t>(channels)) check(near, softmax(q, keys, some, scale, marks));  // all channels: exact
        }
      }
}

TEST_CASE("query_weights: logits far apart neither overflow nor vanish wrongly", "[policy][query_weights]") {
  numbers const keys{1000, -1000, 999, 1000};
  numbers out(4);
  REQUIRE(pith::query_weights(numbers{1}, keys, 1.0, {}, out));
  check(out, {1 / (2 + std::exp(-1.0)), 0, std::exp(-1.0) / (2 + std::exp(-1.0)), 1 / (2 + std::exp(-1.0))});
}

TEST_CASE("blend_mean, mean_row: what was not read counts as the mean value", "[policy][query_weights]") {
  std::mt19937 random(231);
  std::size_t const channels = 5, slots = 40;
  numbers const q = random_numbers(random, channels), keys = random_numbers(random, channels * slots),
                values = random_numbers(random, channels * slots);
  std::vector<double> sums(channels, 0.0), apart(channels, 0.0);
  pith::mean_row mean{sums}, pieces{apart};
  REQUIRE(mean.append(values));
  for (std::size_t at = 0; at < slots;) {
    std::size_t const n = std::min<std::size_t>(slots - at, 1 + random() % 5);
    REQUIRE(pieces.append({values.data() + at * channels, n * channels}));
    at += n;
  }
  numbers got(channels), again(channels);
  REQUIRE(mean.mean(got));
  REQUIRE(pieces.mean(again));
  CHECK(got == again);
  CHECK(mean.rows == static_cast<std::int64_t>(slots));
  for (std::size_t c = 0; c < channels; ++c) {
    double sum = 0;
    for (std::size_t s = 0; s < slots; ++s) sum += static_cast<double>(values[s * channels + c]);
    CHECK(got[c] == static_cast<float>(sum / static_cast<double>(slots)));
  }

  // Attention to some slots, blended by their exact mass, is attention to all with the others' values replaced by the mean.
  numbers weights(slots);
  REQUIRE(pith::query_weights(q, keys, 0.7, {}, weights));
  list const read{1, 5, 6, 30, 39};
  auto const alpha = pith::mass_of(weights, read);
  REQUIRE(alpha);
  numbers out(channels, 0.0f);
  std::vector<double> right(channels, 0.0);
  for (std::size_t c = 0; c < channels; ++c) {
    double part = 0, mass = 0;
    for (std::int64_t const s : read) {
      auto const i = static_cast<std::size_t>(s);
      part += static_cast<double>(weights[i]) * static_cast<double>(values[i * channels + c]), mass += static_cast<double>(weights[i]);
    }
    out[c] = static_cast<float>(part / mass);
    right[c] = part + (1 - mass) * static_cast<double>(got[c]);
  }
  REQUIRE(pith::blend_mean(out, alpha.value(), got));
  for (std::size_t c = 0; c < channels; ++c) CHECK(out[c] == Approx(right[c]).margin(1e-6));
  numbers const before = out;
  REQUIRE(pith::blend_mean(out, 1.0, got));
  CHECK(out == before);
  REQUIRE(pith::blend_mean(out, 0.0, got));
  CHECK(out == got);
  std::vector<double> none(2, 0.0);
  numbers zeros(2, 3.0f);
  REQUIRE(pith::mean_row{none}.mean(zeros));
  CHECK(zeros == numbers{0, 0});
}

TEST_CASE("query_weights and kin: errors name their place", "[policy][query_weights]") {
  numbers out(2);
  oracle::memory scratch(pith::largest_channels_scratch_bytes(2));
  list one(1), three(3);
  CHECK(pith::query_weights(numbers{1, 2}, numbers(3), 1, {}, out) == status{errc::shape_mismatch, 3});
  CHECK(pith::query_weights({}, {}, 1, {}, out) == status{errc::shape_mismatch, 0});
  CHECK(pith::query_weights(numbers{1}, numbers(2), 1, std::vector<slot_mark>(3), out) == status{errc::shape_mismatch, 3});
  CHECK(pith::query_weights(numbers{1, NAN}, numbers(4), 1, {}, out) == status{errc::not_finite, -2});
  CHECK(pith::query_weights(numbers{1}, numbers{0, NAN}, 1, {}, out) == status{errc::not_finite, 1});
  CHECK(pith::query_weights(numbers{1}, numbers{0, NAN}, 1, std::vector<slot_mark>{free_slot, 1}, out));  // not looked at
  CHECK(pith::query_weights(numbers{3e38f}, numbers{3e38f, 0}, 1, {}, out) == status{errc::not_finite, 0});
  CHECK(pith::partial_weights(numbers{1, 2}, numbers(4), list{2}, 1, {}, out) == status{errc::out_of_range, 2});
  CHECK(pith::partial_weights(numbers{1, 2}, numbers(4), list{-1}, 1, {}, out) == status{errc::out_of_range, -1});
  CHECK(pith::largest_channels(numbers{1, 2}, three, scratch) == status{errc::out_of_range, 3});
  CHECK(pith::largest_channels(numbers{1, NAN}, one, scratch) == status{errc::not_finite, -2});
  CHECK(pith::largest_channels(numbers{1, 2}, one, {}) == status{errc::capacity_exceeded, pith::largest_channels_scratch_bytes(2)});
  CHECK(pith::mass_of(out, list{2}).error() == status{errc::out_of_range, 2});
  CHECK(pith::blend_mean(out, 0.5, numbers(1)) == status{errc::shape_mismatch, 1});
  for (double const wrong : {-0.1, 1.1, static_cast<double>(NAN)})
    CHECK(pith::blend_mean(out, wrong, numbers(2)) == status{errc::out_of_range, -1});
  std::vector<double> sums(2, 0.0);
  pith::mean_row mean{sums};
  CHECK(mean.append(numbers(3)) == status{errc::shape_mismatch, 3});
  CHECK(mean.append(numbers{1, INFINITY}) == status{errc::not_finite, 1});
  CHECK(mean.rows == 0);
}

TEST_CASE("token_select: all heads of a layer vote for one set of slots", "[policy][query_weights]") {
  std::mt19937 random(232);
  std::int64_t const slots = 60, group = 2, sinks = 4, recent = 6;
  for (std::int64_t const capacity : {0, 10, 11, 25, 59, 60, 61}) {
    world w(random, 2, 3, group, list(6, slots), 1);
    std::vector<slot_mark> marks(static_cast<std::size_t>(slots), free_slot);
    for (std::size_t s = 0; s < 60; ++s)
      if (s < 4 || s >= 54) marks[s] = 1;
    std::vector<std::vector<double>> votes(2, std::vector<double>(60, 0.0));
    for (std::size_t r = 0; r < 6; ++r)
      for (std::int64_t g = 0; g < group; ++g) {
        numbers const q = random_numbers(random, 4), keys(w.keys.begin() + w.offset[r] * 4, w.keys.begin() + (w.offset[r] + slots) * 4);
        std::span<float> const to(w.given.data() + group * w.offset[r] + g * slots, 60);
        REQUIRE(pith::query_weights(q, keys, 2.0, marks, to));
        auto const own = softmax(q, keys, all_of(4), 2.0, marks);
        for (std::size_t s = 0; s < 60; ++s) votes[r / 3][s] += own[s];
      }
    pith::recipes::token_select<30, 4, 6> p;
    CHECK(p.at<pith::stage::trigger>().similarity == 0.9);
    p.at<pith::stage::total>().tokens = capacity;
    REQUIRE(w.observe(p));
    REQUIRE(w.decide(p));
    for (std::int64_t r = 0; r < 6; ++r) {
      numbers const scores(votes[static_cast<std::size_t>(r / 3)].begin(), votes[static_cast<std::size_t>(r / 3)].end());
      list const right = oracle::kept(oracle::top(scores, marks, std::max<std::int64_t>(capacity - sinks - recent, 0)));
      CHECK(w.kept_of(r) == right);
    }
  }
}

TEST_CASE("inst_infer, spe_cache: the best slots by the mean over the group", "[policy][query_weights]") {
  std::mt19937 random(233);
  list const lengths{30, 7, 1, 0};
  world w(random, 2, 2, 3, lengths, 1);
  auto const run = [&](auto p, std::vector<float> const& statistic, std::int64_t capacity, std::int64_t newest) {
    p.template at<pith::stage::total>().tokens = capacity;
    std::fill(w.known.begin(), w.known.end(), 0);
    REQUIRE(w.observe(p));
    REQUIRE(w.decide(p));
    CHECK(w.plan.losers == pith::fate::still_there);
    for (std::size_t r = 0; r < 4; ++r) {
      std::vector<slot_mark> marks(static_cast<std::size_t>(lengths[r]), free_slot);
      for (std::int64_t s = std::max<std::int64_t>(lengths[r] - newest, 0); s < lengths[r]; ++s) marks[static_cast<std::size_t>(s)] = 1;
      std::int64_t const room = capacity - std::min(lengths[r], newest);
      CHECK(w.kept_of(static_cast<std::int64_t>(r)) == oracle::kept(oracle::top(w.mapped(statistic, r), marks, room)));
    }
  };
  for (std::int64_t const capacity : {0, 1, 5, 29, 30, 31}) {
    run(pith::recipes::inst_infer<>{}, w.given, capacity, 1);
    run(pith::recipes::spe_cache<>{}, w.sum, capacity, 0);
  }
}
