// SPDX-License-Identifier: Apache-2.0
// Compositions with calibrated state: make() checks it, every head uses its own, and it counts as memory.
#include "cache/support.hpp"
#include "laws/sample_state.hpp"

using namespace pith_test;
using pith::errc;
using pith::status;

namespace {

template <class Keys, class Values = pith::int8<pith::per_token<64>>, class Accuracy = pith::exact_accuracy>
struct calibrated : pith::kv_cache<pith::head_dim<64>, pith::keys<Keys>, pith::values<Values>, pith::raw<pith::first<4>, pith::last<32>>,
                                   pith::accuracy<Accuracy>> {};

using ordered_keys = pith::pipe<pith::permute, pith::int8<pith::per_token<32>>>;
using balanced_keys = pith::pipe<pith::balance, pith::int8<pith::per_token<64>>>;
using rotated_keys = pith::pipe<pith::rotate, pith::int8<pith::per_token<64>>>;
using chained_keys = pith::pipe<pith::balance, pith::pipe<pith::hadamard<64>, pith::pipe<pith::permute, pith::int8<pith::per_channel<32>>>>>;

pith::cache_shape const shape{.layers = 2, .kv_heads = 2, .query_heads = 4, .bytes = 8 << 20, .max_sequences = 2};

template <class Recipe, class Keys, class Values>
double error_of(std::vector<Keys> const& keys, std::vector<Values> const& values) {
  auto made = pith::make<Recipe>(shape, {.keys = {keys}, .values = {values}});
  REQUIRE(made);
  auto cache = std::move(made).value();
  auto const of = cache.open().value();
  auto const k = model_keys(31, 500, 2), v = gaussian(32, 500, 2), q = model_queries(33, 3, 4);
  double worst = 0, off = 0;
  for (int layer = 0; layer < 2; ++layer) {
    REQUIRE(cache.append(of, layer, k.all(), v.all()));
    worst = std::max(worst, attention_error(cache, of, layer, q));
    // What is stored is what was given, within two steps of 8 bits: rows reach from -50 to 50, and a scale is up to 11 times another.
    std::vector<content> const heads = stored_heads(cache, of, layer);
    for (int h = 0; h < 2; ++h)
      for (int64_t t = 0; t < 500; ++t)
        for (int c = 0; c < 64; ++c) {
          auto const at = static_cast<std::size_t>(t * 64 + c);
          off = std::max(off, std::fabs(static_cast<double>(heads[static_cast<std::size_t>(h)].keys[at]) - static_cast<double>(k.row(t, h)[c])));
          off = std::max(off, std::fabs(static_cast<double>(heads[static_cast<std::size_t>(h)].values[at]) - static_cast<double>(v.row(t, h)[c])));
        }
  }
  CHECK(off < 2 * 100.0 / 255 * 11);
  CHECK(off > 0);
  return worst;
}

// Another state for each (layer, head).
template <int N>
std::vector<pith::permutation<N>> orders(int heads) {
  std::vector<pith::permutation<N>> all;
  for (int h = 0; h < heads; ++h) {
    auto p = pith::permutation<N>::identity();
    for (int i = 0; i < N; ++i) p.order[i] = static_cast<std::uint16_t>((i * (2 * h + 3) + h) % N);
    REQUIRE(p.check());
    all.push_back(p);
  }
  return all;
}
template <int N>
std::vector<pith::channel_scales<N>> scales(int heads) {
  std::vector<pith::channel_scales<N>> all;
  for (int h = 0; h < heads; ++h) {
    std::vector<float> numbers(N);
    for (int c = 0; c < N; ++c) numbers[static_cast<std::size_t>(c)] = 0.25f * static_cast<float>(1 + (c + 5 * h) % 11);
    all.push_back(pith::channel_scales<N>::from(numbers).value());
  }
  return all;
}

std::vector<pith::no_state> const none;

}  // namespace

TEST_CASE("attention over calibrated codecs is attention over what they store", "[cache][calibration]") {
  CHECK(error_of<calibrated<ordered_keys>>(orders<64>(4), none) <= 1);
  CHECK(error_of<calibrated<balanced_keys>>(scales<64>(4), none) <= 1);
  CHECK(error_of<calibrated<rotated_keys>>(std::vector(4, sample_state<calibrated<rotated_keys>::page::key_tile>()), none) <= 1);
  CHECK(error_of<calibrated<pith::raw<pith::bf16>, pith::pipe<pith::permute, pith::int8<pith::per_token<32>>>>>(none, orders<64>(4)) <= 1);
  CHECK(error_of<calibrated<ordered_keys, pith::pipe<pith::balance, pith::int8<pith::per_token<64>>>>>(orders<64>(4), scales<64>(4)) <= 1);
}

TEST_CASE("states of a chain of transforms", "[cache][calibration]") {
  using recipe = calibrated<chained_keys>;
  using state = pith::state_of<recipe::page::key_tile>;
  std::vector<state> all;
  auto const s = scales<64>(4);
  auto const p = orders<64>(4);
  for (std::size_t i = 0; i < 4; ++i) all.push_back({s[i], p[i]});
  CHECK(error_of<recipe>(all, none) <= 1);
}

TEST_CASE("make refuses calibration that is missing or wrong, and names the head", "[cache][calibration]") {
  using recipe = calibrated<ordered_keys, pith::pipe<pith::balance, pith::int8<pith::per_token<64>>>>;
  auto keys = orders<64>(4);
  auto values = scales<64>(4);
  REQUIRE(pith::make<recipe>(shape, {{keys}, {values}}));
  CHECK(pith::make<recipe>(shape, pith::calibration<recipe::page>{}).error() == status{errc::shape_mismatch, 0});
  CHECK(pith::make<recipe>(shape, {{std::span(keys).first(3)}, {values}}).error() == status{errc::shape_mismatch, 3});
  CHECK(pith::make<recipe>(shape, {{keys}, {std::span(values).first(1)}}).error() == status{errc::shape_mismatch, 1});
  keys[2].order[7] = keys[2].order[8];
  CHECK(pith::make<recipe>(shape, {{keys}, {values}}).error() == status{errc::bad_calibration, 2});
  keys = orders<64>(4);
  values[3].inverse[0] *= 1.5f;  // no longer the inverse
  CHECK(pith::make<recipe>(shape, {{keys}, {values}}).error() == status{errc::bad_calibration, 3});
}

TEST_CASE("contract rule 13: the identity is that of the head's own state", "[contract][cache]") {
  using recipe = calibrated<ordered_keys>;
  auto keys = orders<64>(4);
  keys[3] = keys[0];
  auto const cache = pith::make<recipe>(shape, {{keys}, {}});
  REQUIRE(cache);
  CHECK(cache.value().identity(0, 0) == cache.value().identity(1, 1));
  CHECK(cache.value().identity(0, 0) != cache.value().identity(0, 1));
  CHECK(cache.value().identity(0, 1) != cache.value().identity(1, 0));
}

TEST_CASE("contract rule 14: calibrated numbers are resident", "[contract][cache]") {
  auto const with = pith::make<calibrated<ordered_keys>>(shape, {{orders<64>(4)}, {}});
  auto const without = pith::make<calibrated<pith::int8<pith::per_token<32>>>>(shape);
  REQUIRE(with);
  REQUIRE(without);
  CHECK(with.value().resident_bytes() == without.value().resident_bytes() + 4 * 64 * 2);
}
