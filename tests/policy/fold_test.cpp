// SPDX-License-Identifier: Apache-2.0
// States that losers are folded into: against sums in double, against plain vectors that make the same choices, and in expectation.
#include "oracle.hpp"
#include "pith/page/merge.hpp"
#include "pith/policy/kernel_fold.hpp"
#include "pith/policy/recipes_state.hpp"
#include "pith/policy/sampled_fold.hpp"
#include "support/catch.hpp"

using pith::errc;
using pith::status;

namespace {

using numbers = std::vector<float>;

numbers row(std::mt19937& random, std::size_t channels, float spread = 1) {
  numbers out(channels);
  for (float& x : out) x = spread * (static_cast<float>(random() % 2001) / 1000.0f - 1);
  return out;
}
double dot(numbers const& a, numbers const& b) {
  double sum = 0;
  for (std::size_t c = 0; c < a.size(); ++c) sum += static_cast<double>(a[c]) * static_cast<double>(b[c]);
  return sum;
}
bool is_empty(float lse) { return lse == -std::numeric_limits<float>::infinity(); }

struct kernel_state {
  numbers h, z;
  kernel_state(std::size_t features, std::size_t channels) : h(features * channels), z(features) {}
  pith::kernel_fold view() { return {h, z}; }
};

// SubGen in plain vectors, the same draws.
struct plain_subgen {
  struct cluster {
    numbers centre;
    std::int64_t count;
    std::vector<numbers> samples;
  };
  pith::sampled_fold_shape shape;
  std::uint64_t seed, of_row;
  double mu = 0;
  std::int64_t crowded = 0;
  std::vector<std::pair<numbers, numbers>> reservoir{};
  std::vector<cluster> clusters{};

  void take(numbers const& k, numbers const& v, std::int64_t birth) {
    auto const draw = [&](std::int64_t place) {
      return pith::random_unit(pith::mixed_bits(seed) ^ of_row, static_cast<std::uint64_t>(birth), static_cast<std::uint64_t>(place));
    };
    double const norm = dot(v, v);
    if (norm > 0) {
      reservoir.resize(static_cast<std::size_t>(shape.reservoir));
      for (std::int64_t i = 0; i < shape.reservoir; ++i)
        if (draw(i) < norm / (mu + norm)) reservoir[static_cast<std::size_t>(i)] = {k, v};
      mu += norm;
    }
    cluster* nearest = nullptr;
    double least = 1e300;
    for (cluster& c : clusters) {
      double square = 0;
      for (std::size_t i = 0; i < k.size(); ++i) square += std::pow(static_cast<double>(k[i]) - static_cast<double>(c.centre[i]), 2);
      if (square < least) least = square, nearest = &c;
    }
    bool const near = nearest != nullptr && std::sqrt(least) <= shape.delta;
    if (!near && static_cast<std::int64_t>(clusters.size()) < shape.clusters) {
      clusters.push_back({k, 1, std::vector<numbers>(static_cast<std::size_t>(shape.samples), k)});
      return;
    }
    crowded += near ? 0 : 1;
    ++nearest->count;
    for (std::int64_t i = 0; i < shape.samples; ++i)
      if (draw(shape.reservoir + i) < 1 / static_cast<double>(nearest->count)) nearest->samples[static_cast<std::size_t>(i)] = k;
  }
  double tau(numbers const& q, double scale) const {
    double sum = 0;
    for (cluster const& c : clusters)
      for (numbers const& k : c.samples)
        sum += static_cast<double>(c.count) / static_cast<double>(shape.samples) * std::exp(scale * dot(q, k));
    return sum;
  }
  double reservoir_mass(numbers const& q, double scale) const {
    double sum = 0;
    for (auto const& [k, v] : reservoir) sum += mu / (static_cast<double>(shape.reservoir) * dot(v, v)) * std::exp(scale * dot(q, k));
    return sum;
  }
  double z(numbers const& q, double scale, std::size_t channel) const {
    double sum = 0;
    for (auto const& [k, v] : reservoir)
      sum += mu / (static_cast<double>(shape.reservoir) * dot(v, v)) * std::exp(scale * dot(q, k)) * static_cast<double>(v[channel]);
    return sum;
  }
};

struct held {
  oracle::memory memory;
  pith::sampled_fold state;
  explicit held(pith::sampled_fold_shape const& shape, std::uint64_t seed = 1, std::uint64_t of_row = 2)
      : memory(pith::sampled_fold::bytes(shape)), state(pith::sampled_fold::make(shape, memory, seed, of_row).value()) {}
};

}  // namespace

TEST_CASE("kernel_fold: with the kept tokens it is LESS's quotient, in double", "[policy][fold]") {
  std::mt19937 random(1);
  for (int round = 0; round < 40; ++round) {
    std::size_t const features = 1 + random() % 8, channels = 1 + random() % 12;
    auto const map = [&](bool zeros) {
      numbers out = row(random, features, 2);
      for (float& x : out) x = zeros && random() % 3 == 0 ? 0 : std::fabs(x);
      return out;
    };
    kernel_state state(features, channels);
    std::vector<double> h(features * channels), z(features);
    int const folded = static_cast<int>(random() % 30);
    for (int t = 0; t < folded; ++t) {
      numbers const psi = map(true), v = row(random, channels, 3);
      REQUIRE(state.view().take(psi, v));
      for (std::size_t f = 0; f < features; ++f) {
        z[f] += static_cast<double>(psi[f]);
        for (std::size_t c = 0; c < channels; ++c) h[f * channels + c] += static_cast<double>(psi[f]) * static_cast<double>(v[c]);
      }
    }
    numbers const phi = map(false), kept_out = row(random, channels);
    float const kept_lse = static_cast<float>(random() % 100) / 20 - 2;
    numbers out(channels, NAN);
    auto const lse = state.view().answer(phi, out);
    REQUIRE(lse);
    double mass = 0;
    for (std::size_t f = 0; f < features; ++f) mass += static_cast<double>(phi[f]) * z[f];
    numbers whole = kept_out;
    float whole_lse = kept_lse;
    pith::merge_attention(whole.data(), whole_lse, out.data(), lse.value(), static_cast<int>(channels));
    double const kept_mass = std::exp(static_cast<double>(kept_lse));
    for (std::size_t c = 0; c < channels; ++c) {
      double top = kept_mass * static_cast<double>(kept_out[c]);
      for (std::size_t f = 0; f < features; ++f) top += static_cast<double>(phi[f]) * h[f * channels + c];
      CHECK(std::fabs(static_cast<double>(whole[c]) - top / (kept_mass + mass)) < 1e-5);
    }
    CHECK(std::fabs(static_cast<double>(whole_lse) - std::log(kept_mass + mass)) < 1e-5);
  }
}

TEST_CASE("kernel_fold: nothing folded changes nothing, and fuse adds what was folded apart", "[policy][fold]") {
  std::mt19937 random(2);
  kernel_state nothing(3, 4), first(3, 4), second(3, 4), all(3, 4);
  numbers out(4, NAN), kept = row(random, 4);
  numbers const before = kept;
  float lse = 0.25f;
  auto const empty = nothing.view().answer(numbers{1, 2, 3}, out);
  REQUIRE(empty);
  CHECK(is_empty(empty.value()));
  CHECK(out == numbers(4, 0.0f));
  pith::merge_attention(kept.data(), lse, out.data(), empty.value(), 4);
  CHECK(kept == before);
  CHECK(lse == 0.25f);
  for (int t = 0; t < 20; ++t) {  // small whole numbers: sums are exact in any order
    numbers psi(3), v(4);
    for (float& x : psi) x = static_cast<float>(random() % 8);
    for (float& x : v) x = static_cast<float>(static_cast<int>(random() % 15) - 7);
    REQUIRE((t % 2 == 0 ? first : second).view().take(psi, v));
    REQUIRE(all.view().take(psi, v));
  }
  REQUIRE(first.view().fuse(nothing.view()));
  REQUIRE(first.view().fuse(second.view()));
  CHECK(first.h == all.h);
  CHECK(first.z == all.z);
  first.view().clear();
  CHECK(first.h == numbers(12, 0.0f));
  CHECK(is_empty(first.view().answer(numbers{1, 1, 1}, out).value()));
  // Features that do not meet give no mass.
  kernel_state apart(2, 4);
  REQUIRE(apart.view().take(numbers{0, 5}, numbers{1, 2, 3, 4}));
  CHECK(is_empty(apart.view().answer(numbers{3, 0}, out).value()));
}

TEST_CASE("kernel_fold: wrong rows are refused and change nothing", "[policy][fold][errors]") {
  kernel_state state(2, 3);
  numbers const psi{1, 2}, v{1, 2, 3};
  numbers out(3);
  REQUIRE(state.view().take(psi, v));
  auto const h = state.h;
  CHECK(state.view().take(numbers{1}, v) == status{errc::shape_mismatch, 1});
  CHECK(state.view().take(psi, numbers{1}) == status{errc::shape_mismatch, 1});
  CHECK(state.view().take(numbers{1, -1}, v) == status{errc::out_of_range, 1});
  CHECK(state.view().take(numbers{NAN, 1}, v) == status{errc::not_finite, 0});
  CHECK(state.view().take(psi, numbers{1, 2, INFINITY}) == status{errc::not_finite, 2});
  CHECK(state.view().answer(numbers{1, -2}, out).error() == status{errc::out_of_range, 1});
  CHECK(state.view().answer(psi, std::span(out).first(2)).error() == status{errc::shape_mismatch, 2});
  CHECK(state.view().fuse(kernel_state(3, 3).view()) == status{errc::shape_mismatch, 3});
  CHECK(state.view().fuse(kernel_state(2, 4).view()) == status{errc::shape_mismatch, 8});
  CHECK(pith::kernel_fold{}.take({}, {}).code == errc::shape_mismatch);
  CHECK(state.h == h);
}

TEST_CASE("sampled_fold: the same choices as SubGen in plain vectors", "[policy][fold]") {
  std::mt19937 random(3);
  for (int round = 0; round < 60; ++round) {
    pith::sampled_fold_shape const shape{.key_channels = 1 + static_cast<std::int64_t>(random() % 6),
                                         .value_channels = 1 + static_cast<std::int64_t>(random() % 6),
                                         .clusters = 1 + static_cast<std::int64_t>(random() % 6),
                                         .samples = 1 + static_cast<std::int64_t>(random() % 4),
                                         .reservoir = 1 + static_cast<std::int64_t>(random() % 8),
                                         .delta = static_cast<double>(random() % 5) / 2,
                                         .mean = round % 3 == 0};
    held own(shape, round, 7);
    plain_subgen plain{.shape = shape, .seed = static_cast<std::uint64_t>(round), .of_row = 7};
    int const rows = static_cast<int>(random() % 40);
    for (int t = 0; t < rows; ++t) {
      numbers const k = row(random, static_cast<std::size_t>(shape.key_channels), 2);
      numbers v = row(random, static_cast<std::size_t>(shape.value_channels));
      if (random() % 6 == 0) std::fill(v.begin(), v.end(), 0.0f);
      REQUIRE(own.state.take(k, v, 3 * t));
      plain.take(k, v, 3 * t);
      numbers const q = row(random, k.size());
      numbers out(v.size(), NAN);
      auto const lse = own.state.answer(q, 0.5, out);
      REQUIRE(lse);
      double const tau = plain.tau(q, 0.5);
      CHECK(std::fabs(static_cast<double>(lse.value()) - std::log(tau)) < 1e-5);
      for (std::size_t c = 0; c < v.size(); ++c) {
        double const right = plain.z(q, 0.5, c) / (!shape.mean ? tau : plain.mu > 0 ? plain.reservoir_mass(q, 0.5) : 1);
        CHECK(std::fabs(static_cast<double>(out[c]) - right) < 1e-5 * (1 + std::fabs(right)));
      }
    }
    CHECK(own.state.rows() == rows);
    CHECK(own.state.clusters() == static_cast<std::int64_t>(plain.clusters.size()));
    CHECK(own.state.crowded() == plain.crowded);
  }
}

TEST_CASE("sampled_fold: numerator and denominator are right in expectation", "[policy][fold]") {
  std::mt19937 random(4);
  int constexpr rows = 24, seeds = 4000;
  std::vector<numbers> keys, values;
  for (int t = 0; t < rows; ++t) keys.push_back(row(random, 4)), values.push_back(row(random, 3, 1 + static_cast<float>(t % 3)));
  numbers const q = row(random, 4, 2);
  double tau = 0, z[3] = {};
  for (int t = 0; t < rows; ++t) {
    double const e = std::exp(dot(q, keys[static_cast<std::size_t>(t)]));
    tau += e;
    for (std::size_t c = 0; c < 3; ++c) z[c] += e * static_cast<double>(values[static_cast<std::size_t>(t)][c]);
  }
  double sum[4] = {}, square[4] = {};
  for (int seed = 0; seed < seeds; ++seed) {
    held one({.key_channels = 4, .value_channels = 3, .clusters = 3, .samples = 2, .reservoir = 4, .delta = 1.5},
             static_cast<std::uint64_t>(seed));
    for (std::size_t t = 0; t < rows; ++t) REQUIRE(one.state.take(keys[t], values[t], static_cast<std::int64_t>(t)));
    numbers out(3);
    double const mass = std::exp(static_cast<double>(one.state.answer(q, 1, out).value()));
    double const got[] = {mass, static_cast<double>(out[0]) * mass, static_cast<double>(out[1]) * mass, static_cast<double>(out[2]) * mass};
    for (int i = 0; i < 4; ++i) sum[i] += got[i], square[i] += got[i] * got[i];
  }
  double const right[] = {tau, z[0], z[1], z[2]};
  for (int i = 0; i < 4; ++i) {
    double const mean = sum[i] / seeds, deviation = std::sqrt((square[i] / seeds - mean * mean) / seeds);
    CHECK(deviation > 0);
    CHECK(std::fabs(mean - right[i]) < 5 * deviation);
  }
}

TEST_CASE("sampled_fold: one row, and equal rows, are answered exactly; a copy goes its own way", "[policy][fold]") {
  std::mt19937 random(5);
  pith::sampled_fold_shape const shape{.key_channels = 5, .value_channels = 3, .clusters = 2, .samples = 3, .reservoir = 4, .delta = 0};
  held own(shape), other(shape, 9, 9);
  numbers const q = row(random, 5), k = row(random, 5), v = row(random, 3);
  numbers out(3, NAN);
  CHECK(is_empty(own.state.answer(q, 1, out).value()));
  CHECK(out == numbers(3, 0.0f));
  for (int n = 1; n <= 5; ++n) {
    REQUIRE(own.state.take(k, v, n));
    CHECK(std::fabs(static_cast<double>(own.state.answer(q, 0.25, out).value()) - (0.25 * dot(q, k) + std::log(n))) < 1e-6);
    for (std::size_t c = 0; c < 3; ++c) CHECK(std::fabs(out[c] - v[c]) < 1e-6f);
  }
  REQUIRE(other.state.copy(own.state));
  numbers after(3);
  float const lse = own.state.answer(q, 1, out).value();
  CHECK(other.state.answer(q, 1, after).value() == lse);
  CHECK(after == out);
  REQUIRE(other.state.take(row(random, 5), row(random, 3), 17));
  CHECK(other.state.answer(q, 1, after).value() != lse);
  CHECK(own.state.answer(q, 1, after).value() == lse);
  own.state.clear();
  CHECK(is_empty(own.state.answer(q, 1, out).value()));
}

TEST_CASE("sampled_fold: scores that spread widely are refused as a quotient and bounded as a mean", "[policy][fold]") {
  for (bool const mean : {false, true}) {
    held own({.key_channels = 1, .value_channels = 2, .clusters = 1, .samples = 1, .reservoir = 64, .delta = 0, .mean = mean});
    for (int t = 0; t < 200; ++t) REQUIRE(own.state.take(numbers{t % 2 == 0 ? -300.0f : 300.0f}, numbers{1, static_cast<float>(t % 2)}, t));
    // Half of the reservoir is far above or far below the one sample of the one cluster.
    int refused = 0;
    for (float const q : {1.0f, -1.0f}) {
      numbers out(2);
      auto const lse = own.state.answer(numbers{q}, 1, out);
      refused += !lse;
      if (!lse) {
        CHECK(lse.error() == status{errc::not_finite, -1});
      } else if (mean) {
        CHECK(out[0] == 1.0f);
        CHECK((out[1] >= 0 && out[1] <= 1));
      }
    }
    CHECK(refused == (mean ? 0 : 1));
  }
}

TEST_CASE("sampled_fold: a full set of clusters is reported, and wrong rows are refused", "[policy][fold][errors]") {
  pith::sampled_fold_shape const shape{.key_channels = 1, .value_channels = 1, .clusters = 2, .samples = 1, .reservoir = 1, .delta = 0.5};
  held own(shape);
  for (int t = 0; t < 6; ++t) REQUIRE(own.state.take(numbers{static_cast<float>(t)}, numbers{1}, t));
  CHECK(own.state.clusters() == 2);
  CHECK(own.state.crowded() == 4);
  numbers out(1);
  CHECK(own.state.take(numbers{1, 2}, numbers{1}, 1) == status{errc::shape_mismatch, 2});
  CHECK(own.state.take(numbers{1}, numbers{NAN}, 1) == status{errc::not_finite, 0});
  CHECK(own.state.take(numbers{INFINITY}, numbers{1}, 1) == status{errc::not_finite, 0});
  CHECK(own.state.answer(numbers{NAN}, 1, out).error() == status{errc::not_finite, 0});
  CHECK(own.state.answer(numbers{1}, 1, {}).error() == status{errc::shape_mismatch, 0});
  CHECK(own.state.rows() == 6);
  oracle::memory few(pith::sampled_fold::bytes(shape) / 2);
  CHECK(pith::sampled_fold::make(shape, few).error() == status{errc::capacity_exceeded, pith::sampled_fold::bytes(shape)});
  CHECK(pith::sampled_fold::make({.key_channels = 1, .value_channels = 1, .clusters = 0}, few).error().code == errc::shape_mismatch);
  held wider({.key_channels = 2, .value_channels = 1});
  CHECK(own.state.copy(wider.state).code == errc::shape_mismatch);
}

TEST_CASE("byte_capacity: the same bytes hold more tokens of fewer bits", "[policy][budget]") {
  std::vector<std::int64_t> const lengths{100, 200, 300};
  pith::byte_capacity<4096, 2048> bytes;
  CHECK(bytes.total({lengths, 0}) == 3 * 16);
  bytes.token_bits = 576;  // int4 of 128 numbers, with its scales
  CHECK(bytes.total({lengths, 0}) == 3 * 56);
  bytes.bytes = 71;
  CHECK(bytes.total({lengths, 0}) == 0);
  using pruned = pith::recipes::quantized_pruning<4096, 576, pith::window_attention<32>, pith::protect<pith::window<32>>, pith::best>;
  CHECK(pruned{}.at<pith::stage::total>().total({lengths, 0}) == 3 * 56);
  CHECK(pith::recipes::less<64>::stage_type<pith::stage::dispose>::losers == pith::fate::folded);
  CHECK(pith::recipes::subgen<64>::stage_type<pith::stage::dispose>::losers == pith::fate::folded);
}
