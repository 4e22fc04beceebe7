// SPDX-License-Identifier: Apache-2.0
// Totals, layer splits and head splits: published shapes, with sums that hold.
#include <numeric>

#include "oracle.hpp"
#include "pith/policy/capacity.hpp"
#include "pith/policy/head_split.hpp"
#include "pith/policy/layer_split.hpp"
#include "pith/policy/mass.hpp"
#include "support/catch.hpp"

using pith::errc;
using pith::status;

namespace {

using list = std::vector<std::int64_t>;

template <class Split>
std::vector<double> weights(Split const& split, pith::layer_statistics const& in, std::size_t layers) {
  std::vector<double> out(layers);
  REQUIRE(split.weights(in, out));
  return out;
}

list shares(std::vector<double> const& weights, list const& most, std::int64_t total) {
  list out(weights.size());
  oracle::memory scratch(pith::apportion_scratch_bytes(static_cast<std::int64_t>(out.size())));
  REQUIRE(pith::apportion(weights, list(out.size(), 0), most, total, out, scratch));
  return out;
}

// A layer of heads with scores and marks.
struct heads {
  std::vector<float> scores;
  std::vector<pith::slot_mark> marks;
  list offset, length, free;
  std::vector<double> table;

  heads(std::mt19937& random, list const& lengths, oracle::shape shape) : length(lengths) {
    for (std::int64_t const n : lengths) {
      offset.push_back(static_cast<std::int64_t>(scores.size()));
      auto const own = oracle::scores(random, n, shape);
      auto const held = oracle::marks(random, n);
      scores.insert(scores.end(), own.begin(), own.end());
      marks.insert(marks.end(), held.begin(), held.end());
      free.push_back(pith::free_slots(held));
      table.push_back(static_cast<double>(random() % 3));
    }
  }
  pith::head_split_input input(std::int64_t share) const { return {{scores, offset, length}, {marks, offset, length}, free, table, share}; }
  template <class Split>
  list split(Split const& by, std::int64_t share) const {
    list out(length.size(), -7);
    oracle::memory scratch(pith::head_split_scratch_bytes(static_cast<std::int64_t>(out.size())));
    REQUIRE(by.split(input(share), out, scratch));
    return out;
  }
};

std::int64_t sum(list const& of) { return std::accumulate(of.begin(), of.end(), std::int64_t{0}); }

}  // namespace

TEST_CASE("totals: tokens a row, a ratio, a schedule", "[policy][budget]") {
  list const lengths{100, 50, 0, 7};
  CHECK(pith::capacity<10>{}.total({lengths}) == 40);
  CHECK(pith::capacity<std::numeric_limits<std::int64_t>::max()>{}.total({lengths}) == pith::no_limit);
  CHECK(pith::unbounded{}.total({lengths}) == pith::no_limit);
  CHECK(pith::capacity_ratio{0.5}.total({lengths}) == 78);
  CHECK(pith::capacity_ratio{1}.total({lengths}) == 157);
  CHECK(pith::capacity_ratio{0}.total({lengths}) == 0);
  CHECK(pith::capacity_ratio{0.29}.total({list{100}}) == 29);  // 28.999999999999996 in f64
  CHECK(pith::capacity_ratio{0.7}.total({list{10}}) == 7);
  pith::growing_capacity<256> grows;
  CHECK(grows.total({lengths, 0}) == 4 * 256);
  CHECK(grows.total({lengths, 44}) == 4 * 258);
  grows.most = 257;
  CHECK(grows.total({lengths, 44}) == 4 * 257);
}

TEST_CASE("arithmetic_layers: PyramidKV's shape, and the total is kept where the published formula exceeds it by 40 %",
          "[policy][budget]") {
  std::int64_t const layers = 64, capacity = 64, window = 8, base = capacity - window;
  auto const w = weights(pith::arithmetic_layers{}, {}, layers);
  CHECK(std::accumulate(w.begin(), w.end(), 0.0) == Approx(layers));
  CHECK(w.front() == Approx(1.95));
  CHECK(w.back() == Approx(0.05));
  list const out = shares(w, list(layers, 4096), layers * base);
  CHECK(sum(out) == layers * base);
  CHECK(std::is_sorted(out.rbegin(), out.rend()));
  CHECK(out.front() == 109);
  CHECK(out.back() == 3);
  // The formula: min = floor(base / beta), max = 2 base - min, steps of floor((max - min) / (L - 1)).
  std::int64_t const least = base / 20, most = 2 * base - least, step = (most - least) / (layers - 1);
  std::int64_t published = 0;
  for (std::int64_t l = 0; l < layers; ++l) published += most - l * step;
  CHECK(published == 5024);  // of 3584
  CHECK(weights(pith::arithmetic_layers{}, {}, 1) == std::vector<double>{1});
  CHECK(sum(shares(w, list(layers, 60), layers * base)) == layers * base);
}

TEST_CASE("layer splits from statistics: their formulas, plain", "[policy][budget]") {
  std::vector<double> const variance{0.5, 2, 0.25}, entropy{3, 1, 4}, tokens{10, 30, 20};
  pith::layer_statistics const in{entropy, variance, tokens, tokens};
  auto const calm = weights(pith::variance_layers{}, in, 3);
  double const softmax = std::exp(-0.5) + std::exp(-2.0) + std::exp(-0.25);
  for (std::size_t l = 0; l < 3; ++l) CHECK(calm[l] / (calm[0] + calm[1] + calm[2]) == Approx(std::exp(-variance[l]) / softmax));
  auto const cake = weights(pith::entropy_variance_layers{}, in, 3);
  for (std::size_t l = 0; l < 3; ++l) CHECK(cake[l] == Approx(std::pow(entropy[l], 1 / 1.6) * std::pow(variance[l], 2.5)));
  auto const zigzag = weights(pith::uncertainty_layers{.floor = 0.2}, in, 3);
  for (std::size_t l = 0; l < 3; ++l) CHECK(zigzag[l] == Approx(0.2 + 0.8 * 3 * tokens[l] / 60));
  CHECK(weights(pith::table_layers{}, in, 3) == tokens);
  CHECK(weights(pith::uniform_layers{}, {}, 2) == std::vector<double>{1, 1});
  std::vector<double> const flat(3, 0.0);
  CHECK(weights(pith::uncertainty_layers{}, {.uncertainty = flat}, 3) == std::vector<double>{1, 1, 1});

  std::vector<double> out(3);
  std::vector<double> const wrong{1, -1, 1};
  CHECK(pith::variance_layers{}.weights({}, out) == status{errc::shape_mismatch, 0});
  CHECK(pith::entropy_variance_layers{}.weights({.entropy = entropy}, out) == status{errc::shape_mismatch, 0});
  CHECK(pith::table_layers{}.weights({.table = wrong}, out) == status{errc::out_of_range, 1});
  CHECK(pith::arithmetic_layers{.beta = 0.5}.weights({}, out) == status{errc::out_of_range, -1});
}

TEST_CASE("a cascade over layers never holds more than the total", "[policy][budget]") {
  std::mt19937 random(3);
  for (int trial = 0; trial < 50; ++trial) {
    std::int64_t const layers = 1 + random() % 12, window = random() % 5, capacity = window + 1 + random() % 40, tokens = 1 + random() % 90;
    std::vector<double> entropy, variance;
    list length;  // of the layers that are done, window included
    for (std::int64_t m = 0; m < layers; ++m) {
      entropy.push_back(1 + static_cast<double>(random() % 100));
      variance.push_back(static_cast<double>(random() % 100) / 10);
      length.push_back(tokens);
      list most = length;
      for (std::int64_t& n : most) n = std::max<std::int64_t>(n - window, 0);
      list const share =
          shares(weights(pith::entropy_variance_layers{}, {entropy, variance}, length.size()), most, (capacity - window) * layers);
      for (std::size_t l = 0; l < length.size(); ++l) length[l] = share[l] + std::min(length[l], window);
      CHECK(sum(length) <= (capacity - window) * layers + (m + 1) * window);
    }
    CHECK(sum(length) <= capacity * layers);
  }
}

TEST_CASE("head splits: shares sum to the layer's, or to what is free", "[policy][budget]") {
  std::mt19937 random(4);
  for (oracle::shape const shape : oracle::shapes) {
    for (int trial = 0; trial < 40; ++trial) {
      list lengths;
      for (std::uint32_t h = 1 + random() % 8; h > 0; --h) lengths.push_back(random() % 40);
      heads const layer(random, lengths, shape);
      std::int64_t const all = sum(layer.free);
      for (std::int64_t const share : {std::int64_t{0}, std::int64_t{1}, all - 1, all, all + 1, all / 2}) {
        if (share < 0) continue;
        for (list const& out : {layer.split(pith::uniform_heads{}, share), layer.split(pith::pooled_heads{}, share),
                                layer.split(pith::table_heads{}, share)}) {
          CHECK(sum(out) == std::min(share, all));
          for (std::size_t h = 0; h < out.size(); ++h) CHECK((out[h] >= 0 && out[h] <= layer.free[h]));
        }
      }
    }
  }
}

TEST_CASE("pooled_heads: counts of the best over all heads, with and without a floor", "[policy][budget]") {
  std::mt19937 random(5);
  for (oracle::shape const shape : oracle::shapes) {
    heads const layer(random, {30, 12, 0, 25}, shape);
    std::int64_t const share = sum(layer.free) / 3;
    std::vector<oracle::place> places;
    for (std::size_t h = 0; h < layer.length.size(); ++h)
      for (std::int64_t slot = 0; slot < layer.length[h]; ++slot)
        if (auto const at = static_cast<std::size_t>(layer.offset[h] + slot); layer.marks[at] == pith::free_slot)
          places.push_back({layer.scores[at], slot, static_cast<std::int64_t>(h)});
    oracle::rank(places);
    list counts(layer.length.size(), 0);
    for (std::int64_t i = 0; i < share; ++i) ++counts[static_cast<std::size_t>(places[static_cast<std::size_t>(i)].row)];
    CHECK(layer.split(pith::pooled_heads{.floor = 0}, share) == counts);
    list const even = layer.split(pith::pooled_heads{.floor = 1}, share);
    CHECK(even == layer.split(pith::uniform_heads{}, share));
    list const mixed = layer.split(pith::pooled_heads{}, share);
    for (std::size_t h = 0; h < counts.size(); ++h)  // at least the floor of 20 %, rounded down
      CHECK(mixed[h] >= std::min(layer.free[h], share / static_cast<std::int64_t>(5 * counts.size())));
  }
}

TEST_CASE("full_or_stream_heads: retrieval heads keep all, the others a stream", "[policy][budget]") {
  std::mt19937 random(6);
  heads layer(random, {30, 12, 20}, oracle::shape::random);
  layer.table = {1, 0, 0};
  CHECK(layer.split(pith::full_or_stream_heads<5>{}, pith::no_limit) == list{layer.free[0], std::min<std::int64_t>(5, layer.free[1]), 5});
  list out(3, -7);
  std::int64_t const needed = sum(layer.split(pith::full_or_stream_heads<5>{}, pith::no_limit));
  pith::full_or_stream_heads<5> bounded;
  bounded.full = 9;
  CHECK(layer.split(bounded, pith::no_limit) ==
        list{std::min<std::int64_t>(9, layer.free[0]), std::min<std::int64_t>(5, layer.free[1]), 5});
  CHECK(pith::full_or_stream_heads<5>{}.split(layer.input(needed - 1), out, {}) == status{errc::capacity_exceeded, needed});
  CHECK(out == list{-7, -7, -7});
}

TEST_CASE("head splits refuse NaN scores, wrong extents and too little scratch", "[policy][budget][errors]") {
  std::mt19937 random(7);
  heads layer(random, {6, 6}, oracle::shape::random);
  std::fill(layer.marks.begin(), layer.marks.end(), pith::free_slot);
  layer.free = {6, 6};
  list out(2);
  oracle::memory scratch(pith::head_split_scratch_bytes(2));
  CHECK(pith::pooled_heads{}.split(layer.input(3), out, {}).code == errc::capacity_exceeded);
  CHECK(pith::uniform_heads{}.split(layer.input(3), out, {}).code == errc::capacity_exceeded);
  CHECK(pith::pooled_heads{.floor = 2}.split(layer.input(3), out, scratch) == status{errc::out_of_range, -1});
  layer.scores[8] = NAN;
  CHECK(pith::pooled_heads{}.split(layer.input(3), out, scratch) == status{errc::not_finite, 2});
  layer.free = {6, 5};
  layer.scores[8] = 0;
  CHECK(pith::pooled_heads{}.split(layer.input(3), out, scratch) == status{errc::shape_mismatch, 1});
}

TEST_CASE("tokens_of_mass: the fewest tokens, by whole sorts", "[policy][budget]") {
  std::mt19937 random(8);
  for (oracle::shape const shape : {oracle::shape::random, oracle::shape::ties, oracle::shape::zeros, oracle::shape::one_hot}) {
    for (std::int64_t const slots : {0, 1, 2, 50}) {
      auto const p = oracle::scores(random, slots, shape);
      oracle::memory scratch(pith::tokens_of_mass_scratch_bytes(slots));
      std::vector<double> sorted(p.begin(), p.end());
      std::sort(sorted.rbegin(), sorted.rend());
      double const all = std::accumulate(sorted.begin(), sorted.end(), 0.0);
      double held = 0;
      std::int64_t count = 0;
      while (held < 0.9 * all) held += sorted[static_cast<std::size_t>(count++)];
      CHECK(pith::tokens_of_mass(p, 0.9, scratch).value() == count);
    }
  }
  oracle::memory scratch(pith::tokens_of_mass_scratch_bytes(3));
  CHECK(pith::tokens_of_mass(std::vector<float>{1, -1, 1}, 0.9, scratch).error() == status{errc::out_of_range, 1});
  CHECK(pith::tokens_of_mass(std::vector<float>{1, 1, NAN}, 0.9, scratch).error() == status{errc::not_finite, 2});
  CHECK(pith::tokens_of_mass(std::vector<float>{1, 1, 1}, 0.9, {}).error().code == errc::capacity_exceeded);
}
