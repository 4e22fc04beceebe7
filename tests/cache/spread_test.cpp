// SPDX-License-Identifier: Apache-2.0
// Values of losers that go to the next survivors: rows of a head against plain sums, and CaM in a cache against rows in plain vectors.
#include "cache/support.hpp"
#include "pith/cache/keep.hpp"
#include "pith/codec/integer.hpp"
#include "pith/cpu/statistics_engine.hpp"
#include "pith/policy/recipes.hpp"

using namespace pith_test;
using pith::errc;

namespace {

int constexpr channels = 16;

template <class Codec, class Last, class... Sides>
struct recipe : pith::kv_cache<pith::head_dim<channels>, pith::keys<Codec>, pith::values<Codec>, pith::raw<pith::first<3>, Last>,
                               pith::side<pith::liveness, pith::births, Sides...>> {};
using plain = recipe<pith::raw<pith::bf16>, pith::last<8>>;
using biased = recipe<pith::raw<pith::bf16>, pith::last<8>, pith::bias>;
using eight_bits = recipe<pith::int8<pith::per_token<16>>, pith::last<8>, pith::bias>;

struct head_rows {
  std::vector<pith::survivor> slots;
  std::vector<float> keys, values;
};

template <class Recipe>
head_rows rows_of(pith::cache<Recipe> const& cache, pith::sequence of, int layer, int head) {
  head_rows out;
  out.slots.resize(400);
  out.slots.resize(static_cast<std::size_t>(cache.survivors(of, layer, head, out.slots).value()));
  out.keys.resize(out.slots.size() * channels), out.values.resize(out.keys.size());
  REQUIRE(cache.read_rows(of, layer, head, out.slots, out.keys, out.values));
  return out;
}

// Every third or so leaves; half of the gates are open.
template <class Recipe>
void check_spread(std::uint64_t seed, float half_step) {
  auto cache = pith::make<Recipe>({.layers = 1, .kv_heads = 2, .query_heads = 2, .bytes = 1 << 20, .max_tokens = 400}).value();
  pith::sequence const of = cache.open().value();
  auto const k = gaussian(seed, 300, 2, channels), v = gaussian(seed + 1, 300, 2, channels);
  REQUIRE(cache.append(of, 0, k.all(), v.all()));
  random_bits bits(seed);
  if constexpr (Recipe::has_bias)
    for (int64_t t = 0; t < 300; t += 5) REQUIRE(cache.set_bias(of, 0, 1, t, 0.5f));
  for (int64_t const next : {int64_t{1}, int64_t{3}, int64_t{32}, int64_t{1000}})
    for (int head = 0; head < 2; ++head) {
      head_rows const before = rows_of(cache, of, 0, head);
      std::size_t const n = before.slots.size();
      std::vector<bool> stays(n);
      for (std::size_t i = 0; i < n; ++i) stays[i] = bits() % 4 != 0;
      std::vector<int64_t> into(n, pith::merge_plan::dropped);
      std::vector<float> weights(n, 7.0f);  // of what stays they do not matter
      int64_t behind = pith::merge_plan::dropped;
      for (std::size_t i = n; i-- > 0;) {
        if (stays[i]) behind = static_cast<int64_t>(i);
        into[i] = behind;
        if (!stays[i]) weights[i] = bits() % 2 == 0 ? 1.0f / static_cast<float>(next) : 0.0f;
      }
      std::vector<double> expected(before.values.begin(), before.values.end());
      std::vector<bool> touched(n);
      for (std::size_t i = 0; i < n; ++i) {
        int64_t left = next;
        for (std::size_t j = i; !stays[i] && weights[i] > 0 && j < n && left > 0; ++j)
          if (stays[j]) {
            touched[j] = true, --left;
            for (std::size_t c = 0; c < channels; ++c)
              expected[j * channels + c] += static_cast<double>(weights[i]) * static_cast<double>(before.values[i * channels + c]);
          }
      }
      std::vector<float> bias_before;
      if constexpr (Recipe::has_bias)
        for (auto const& s : before.slots) bias_before.push_back(cache.memory().biases_of(of.index, 0, head)[s.slot]);
      std::vector<std::byte> scratch(
          static_cast<std::size_t>(pith::cache<Recipe>::merge_scratch_bytes(static_cast<int64_t>(n), static_cast<int64_t>(n))));
      auto const done = cache.compact(of, 0, head, {into, weights, {}, next}, scratch);
      REQUIRE(done);
      CHECK(done.value().merged == std::count(touched.begin(), touched.end(), true));
      head_rows const after = rows_of(cache, of, 0, head);
      REQUIRE(static_cast<int64_t>(after.slots.size()) == std::count(stays.begin(), stays.end(), true));
      std::size_t at = 0;
      for (std::size_t i = 0; i < n; ++i) {
        if (!stays[i]) continue;
        CHECK(after.slots[at].token == before.slots[i].token);
        if constexpr (Recipe::has_bias) CHECK(cache.memory().biases_of(of.index, 0, head)[after.slots[at].slot] == bias_before[i]);
        for (std::size_t c = 0; c < channels; ++c) {
          float const key = after.keys[at * channels + c], value = after.values[at * channels + c];
          double const right = expected[i * channels + c];
          if (!touched[i]) {
            CHECK((key == before.keys[i * channels + c] && value == before.values[i * channels + c]));
            continue;
          }
          if (half_step == 0) CHECK(key == before.keys[i * channels + c]);
          // Rounded to bf16 where a row is raw, else to a step of its codec.
          CHECK(key == Approx(before.keys[i * channels + c]).margin(half_step));
          CHECK(value == Approx(right).epsilon(0x1p-8).margin(1e-6 + 3 * static_cast<double>(half_step)));
        }
        ++at;
      }
    }
}

// Rows that CaM keeps, in double.
struct tale_row {
  int64_t token;
  double score = 0;
  std::array<double, channels> value{};
};

struct cam_cache : pith::kv_cache<pith::head_dim<channels>, pith::keys<pith::raw<pith::bf16>>, pith::values<pith::raw<pith::bf16>>,
                                  pith::raw<pith::first<3>, pith::last<8>>, pith::keep<pith::recipes::cam<40, 10, 4>>> {};

}  // namespace

TEST_CASE("spread: the next survivors get the values, keys and biases stay", "[cache][compaction][merge]") {
  check_spread<plain>(51, 0);
  check_spread<biased>(52, 0);
  check_spread<eight_bits>(53, 0.05f);
}

TEST_CASE("spread: closed gates change nothing but who is there; wrong plans change nothing at all", "[cache][compaction][merge]") {
  auto cache = pith::make<plain>({.layers = 1, .kv_heads = 1, .query_heads = 1, .bytes = 1 << 20, .max_tokens = 400}).value();
  pith::sequence const of = cache.open().value();
  auto const k = gaussian(61, 100, 1, channels), v = gaussian(62, 100, 1, channels);
  REQUIRE(cache.append(of, 0, k.all(), v.all()));
  head_rows const before = rows_of(cache, of, 0, 0);
  std::vector<int64_t> into(100);
  for (std::size_t i = 0; i < 100; ++i) into[i] = static_cast<int64_t>(i % 2 == 0 ? i + 1 : i);
  std::vector<float> weights(100, 0.0f);
  std::vector<std::byte> scratch(100000);
  CHECK(cache.compact(of, 0, 0, {into, weights, {}, -1}, scratch).error() == pith::status{errc::out_of_range, -1});
  CHECK(cache.compact(of, 0, 0, {into, weights, {}, 4}, std::span(scratch).first(64)).error().code == errc::capacity_exceeded);
  weights[6] = NAN;
  CHECK(cache.compact(of, 0, 0, {into, weights, {}, 4}, scratch).error() == pith::status{errc::not_finite, 6});
  weights[6] = 0;
  CHECK(rows_of(cache, of, 0, 0).values == before.values);
  CHECK(cache.compact(of, 0, 0, {into, weights, {}, 4}, scratch).value().merged == 0);
  head_rows const after = rows_of(cache, of, 0, 0);
  REQUIRE(after.slots.size() == 50);
  for (std::size_t i = 0; i < 50; ++i) {
    CHECK(after.slots[i].token == before.slots[2 * i + 1].token);
    for (std::size_t c = 0; c < channels; ++c) CHECK(after.values[i * channels + c] == before.values[(2 * i + 1) * channels + c]);
  }

  // One of the next has a sealed key and a raw value: it cannot take, and the plan is refused where it stands.
  using halves = recipe<pith::raw<pith::bf16>, pith::last<8, 40>>;
  auto other = pith::make<halves>({.layers = 1, .kv_heads = 1, .query_heads = 1, .bytes = 1 << 20, .max_tokens = 400}).value();
  pith::sequence const half = other.open().value();
  REQUIRE(other.append(half, 0, k.all(), v.all()));
  std::vector<int64_t> one(100);
  for (std::size_t i = 0; i < 100; ++i) one[i] = static_cast<int64_t>(i);
  one[10] = 11;
  std::vector<float> open(100, 0.5f);
  CHECK(other.compact(half, 0, 0, {one, open, {}, 4}, scratch));
  one.resize(99), open.resize(99);
  for (std::size_t i = 0; i < 99; ++i) one[i] = static_cast<int64_t>(i);
  one[10] = 11;
  auto const refused = other.compact(half, 0, 0, {one, open, {}, 90}, scratch).error();
  CHECK(refused == pith::status{errc::unsupported, 34});  // slot 35: 32 values behind the first 3 are sealed, and more keys
}

TEST_CASE("keep: CaM's survivors have the parts of what left", "[cache][keep]") {
  int constexpr kv_heads = 2, capacity = 40, recent = 10, next = 4, tokens = 160;
  auto cache =
      pith::make<cam_cache>({.layers = 1, .kv_heads = kv_heads, .query_heads = kv_heads, .bytes = 1 << 20, .max_tokens = 200}).value();
  pith::sequence const s = cache.open().value();
  pith::keep_input input;
  input.seed = 17;
  REQUIRE(cache.set_input(s, input));
  auto const k = gaussian(71, tokens, kv_heads, channels), v = gaussian(72, tokens, kv_heads, channels),
             q = gaussian(73, tokens, kv_heads, channels);
  std::vector<std::vector<tale_row>> tale(kv_heads);
  int64_t open = 0, closed = 0;
  for (int64_t t = 0; t < tokens; ++t) {
    REQUIRE(cache.append(s, 0, k.part(t, 1), v.part(t, 1)));
    std::vector<float> out(kv_heads * channels);
    for (int h = 0; h < kv_heads; ++h) {
      auto& mine = tale[static_cast<std::size_t>(h)];
      std::vector<pith::survivor> slots(200);
      slots.resize(static_cast<std::size_t>(cache.survivors(s, 0, h, slots).value()));
      // What the step before was decided to keep; who stays is H2O's affair, and tested there.
      std::vector<tale_row> left;
      std::vector<std::size_t> stay;
      for (std::size_t i = 0; i < mine.size(); ++i)
        if (std::any_of(slots.begin(), slots.end(), [&](auto const& one) { return one.token == mine[i].token; })) stay.push_back(i);
      REQUIRE(stay.size() == std::min<std::size_t>(mine.size(), capacity));
      for (std::size_t i = mine.size() - std::min<std::size_t>(mine.size(), recent); i < mine.size(); ++i)
        CHECK(std::binary_search(stay.begin(), stay.end(), i));
      std::vector<tale_row> const before = mine;
      for (std::size_t i = 0; i < before.size(); ++i) {
        if (std::binary_search(stay.begin(), stay.end(), i)) continue;
        auto const behind = std::lower_bound(stay.begin(), stay.end(), i);
        double sum = 0, count = 0;
        for (auto j = behind; j != stay.end() && count < next; ++j, ++count) sum += before[*j].score;
        bool const gate = count > 0 && pith::chance_gate(before[i].score, sum / count, 17, h, before[i].token);
        ++(gate ? open : closed);
        count = 0;
        for (auto j = behind; gate && j != stay.end() && count < next; ++j, ++count)
          for (std::size_t c = 0; c < channels; ++c) mine[*j].value[c] += before[i].value[c] / next;
      }
      for (std::size_t const i : stay) left.push_back(mine[i]);
      mine = left;
      mine.push_back({t});
      for (std::size_t c = 0; c < channels; ++c) mine.back().value[c] = static_cast<double>(rounded_to_bf16(v.row(t, h)[c]));
      std::vector<double> p;
      double whole = 0;
      for (tale_row const& one : mine) {
        double dot = 0;
        for (int c = 0; c < channels; ++c)
          dot += static_cast<double>(q.row(t, h)[c]) * static_cast<double>(rounded_to_bf16(k.row(one.token, h)[c]));
        whole += p.emplace_back(std::exp(dot / 4));
      }
      for (std::size_t i = 0; i < mine.size(); ++i) mine[i].score += p[i] / whole;
      std::vector<float> keys(slots.size() * channels), values(keys.size());
      REQUIRE(cache.read_rows(s, 0, h, slots, keys, values));
      REQUIRE(slots.size() == mine.size());
      for (std::size_t i = 0; i < mine.size(); ++i)
        for (std::size_t c = 0; c < channels; ++c) {
          CHECK(values[i * channels + c] == Approx(mine[i].value[c]).epsilon(0.02).margin(0.05));  // bf16, once for each that came
          CHECK(keys[i * channels + c] == rounded_to_bf16(k.row(mine[i].token, h)[c]));
        }
    }
    REQUIRE(cache.attend(s, 0, q.part(t, 1), pith::tensor_view<float, 3>(out.data(), {1, kv_heads, channels})));
  }
  CHECK((open > 20 && closed > 5));
}

namespace {

struct scored_cache : pith::kv_cache<pith::head_dim<channels>, pith::keys<pith::raw<pith::bf16>>, pith::values<pith::raw<pith::bf16>>,
                                     pith::raw<pith::first<3>, pith::last<8>>,
                                     pith::keep<pith::every_step, pith::top<24, pith::accumulated_attention>,
                                                pith::protect<pith::recent<6>>, pith::merge<pith::most_similar, pith::by_score>>> {};

}  // namespace

TEST_CASE("keep: merging by score keeps every token's mass, and rows stay means", "[cache][keep][merge]") {
  auto cache = pith::make<scored_cache>({.layers = 1, .kv_heads = 2, .query_heads = 4, .bytes = 1 << 20, .max_tokens = 200}).value();
  cache.policy().at<pith::stage::dispose>().to.threshold = -1;  // every loser finds a slot
  pith::sequence const s = cache.open().value();
  auto const k = gaussian(81, 120, 2, channels), v = gaussian(82, 120, 2, channels), q = gaussian(83, 120, 4, channels);
  std::vector<float> out(4 * channels);
  for (int64_t t = 0; t < 120; ++t) {
    REQUIRE(cache.append(s, 0, k.part(t, 1), v.part(t, 1)));
    REQUIRE(cache.attend(s, 0, q.part(t, 1), pith::tensor_view<float, 3>(out.data(), {1, 4, channels})));
  }
  pith::keep_report const done = cache.end_step(s).value();
  CHECK((done.merged == 2 && done.dropped == 0));
  for (int h = 0; h < 2; ++h) {
    std::vector<pith::survivor> slots(24);
    REQUIRE(cache.survivors(s, 0, h, slots).value() == 24);
    double tokens = 0;
    for (auto const& one : slots) tokens += std::exp(static_cast<double>(cache.memory().biases_of(s.index, 0, h)[one.slot]));
    CHECK(tokens == Approx(120).epsilon(1e-4));
    std::vector<float> values(24 * channels);
    REQUIRE(cache.read_rows(s, 0, h, slots, {}, values));
    for (int c = 0; c < channels; ++c) {
      float least = 100, most = -100;
      for (int64_t t = 0; t < 120; ++t) least = std::min(least, v.row(t, h)[c]), most = std::max(most, v.row(t, h)[c]);
      for (std::size_t i = 0; i < 24; ++i) {  // a mean of what was there, but for bf16
        CHECK(values[i * channels + static_cast<std::size_t>(c)] <= most + 0.05f);
        CHECK(values[i * channels + static_cast<std::size_t>(c)] >= least - 0.05f);
      }
    }
  }
}
