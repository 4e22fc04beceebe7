// SPDX-License-Identifier: Apache-2.0
// Demotion to fewer bits: which rows live where, what attention over both says, and that nothing moves on an error.
#include "pith/cache/demotion.hpp"

#include <algorithm>
#include <random>

#include "cache/support.hpp"
#include "pith/cpu/attention_statistics.hpp"
#include "pith/policy/recipes_state.hpp"

using namespace pith_test;
using pith::errc;

namespace {

int constexpr layers = 2, kv_heads = 2, group = 3, channels = 16, heads = kv_heads * group;
using list = std::vector<int64_t>;

template <class Codec, int Last, class... More>
struct recipe : pith::kv_cache<pith::head_dim<channels>, pith::keys<Codec>, pith::values<Codec>, pith::raw<pith::last<Last>>,
                               pith::pages<pith::paged<32>>, More...> {};

using low_codec = pith::int4<pith::per_token<16>>;
using high = recipe<pith::raw<pith::bf16>, 32, pith::side<pith::liveness, pith::births>>;
using high8 = recipe<pith::int8<pith::per_token<16>>, 32, pith::side<pith::liveness, pith::births>>;
using low = recipe<low_codec, 1>;
using mixed = pith::demoting_cache<high, low>;

pith::cache_shape shape(int64_t max_tokens = 1024) {
  return {.layers = layers,
          .kv_heads = kv_heads,
          .query_heads = heads,
          .bytes = 8 << 20,
          .max_sequences = 3,
          .max_tokens = max_tokens,
          .max_chunk = 64};
}

// A plan over rows that lie one behind the other.
struct chosen {
  list offset, length, kept, count;
  pith::policy_plan plan;

  template <class Cache>
  chosen(Cache const& cache, typename Cache::sequence of, auto&& stays) {
    std::vector<pith::survivor> all(2048);
    for (int r = 0; r < layers * kv_heads; ++r) {
      int64_t const n = cache.survivors(of, r / kv_heads, r % kv_heads, all).value();
      offset.push_back(static_cast<int64_t>(kept.size())), length.push_back(n), count.push_back(0);
      kept.resize(kept.size() + static_cast<std::size_t>(n), -7);
      for (int64_t i = 0; i < n; ++i)
        if (stays(r, i, n)) kept[static_cast<std::size_t>(offset.back() + count.back()++)] = i;
    }
    plan.kept = kept, plan.kept_count = count, plan.losers = pith::fate::demoted;
  }
  pith::policy_rows rows() const { return {layers, kv_heads, offset, length}; }
};

// Every row of a head, wherever it lives.
template <class High, class Low>
content all_rows(pith::demoting_cache<High, Low> const& cache, typename pith::demoting_cache<High, Low>::sequence of, int layer, int head) {
  content whole = stored(cache.high(), of.high, layer, head);
  content const other = stored(cache.low(), of.low, layer * kv_heads + head, 0);
  for (int64_t t = 0; t < other.tokens; ++t)
    whole.add(other.keys.data() + t * other.dk, other.values.data() + t * other.dv, other.live[static_cast<std::size_t>(t)], 0,
              other.packed_key[static_cast<std::size_t>(t)], other.packed_value[static_cast<std::size_t>(t)]);
  return whole;
}

template <class Cache>
outputs attend(Cache const& cache, typename Cache::sequence of, int layer, tokens_of_heads const& q, pith::attention_options how = {}) {
  outputs made = room_for(q, channels);
  how.lse = {made.lse.data(), {q.tokens, q.heads}};
  made.status = cache.attend(of, layer, q.all(), writable(made.out), how);
  return made;
}

template <class Cache>
double union_error(Cache const& cache, typename Cache::sequence of, int layer, tokens_of_heads const& q,
                   pith::attention_options const& how = {}) {
  outputs const got = attend(cache, of, layer, q, how);
  if (!got.status) return 2e9 + static_cast<double>(got.status.code);
  std::vector<content> whole;
  for (int h = 0; h < kv_heads; ++h) whole.push_back(all_rows(cache, of, layer, h));
  double worst = 0;
  for (int h = 0; h < kv_heads; ++h) {  // heads hold different numbers of rows
    tokens_of_heads part = zeros(1, group, channels);
    outputs of_head = room_for(part, channels);
    pith::attention_options mine = how;
    if (!how.sink_logits.empty()) mine.sink_logits = how.sink_logits.subspan(static_cast<std::size_t>(h * group), group);
    for (int g = 0; g < group; ++g) {
      std::copy_n(q.row(0, h * group + g), channels, part.row(0, g));
      std::copy_n(got.out.row(0, h * group + g), channels, of_head.out.row(0, g));
      of_head.lse[static_cast<std::size_t>(g)] = got.lse[static_cast<std::size_t>(h * group + g)];
    }
    worst = std::max(worst, worst_error({whole[static_cast<std::size_t>(h)]}, part, of_head, mine));
  }
  return worst;
}

bool same(outputs const& a, outputs const& b) { return a.status && b.status && a.out.data == b.out.data && a.lse == b.lse; }

template <class High>
void random_demotions(std::uint32_t seed) {
  using cache_type = pith::demoting_cache<High, low>;
  auto made = cache_type::make(shape(), 4 << 20);
  REQUIRE(made);
  auto& cache = made.value();
  auto const of = cache.open().value();
  std::mt19937 random(seed);
  auto const k = gaussian(seed, 600, kv_heads, channels), v = gaussian(seed + 1, 600, kv_heads, channels),
             q = gaussian(seed + 2, 600, heads, channels);
  std::vector<list> living(layers * kv_heads), demoted(layers * kv_heads);
  double worst = 0;
  int64_t at = 0, wrong = 0;
  while (at < 560) {
    int64_t const count = 1 + static_cast<int64_t>(random() % 40);
    for (int l = 0; l < layers; ++l) {
      if (random() % 2 == 0) {
        REQUIRE(cache.append(of, l, k.part(at, count), v.part(at, count)));
      } else {  // a chunk sees both caches and itself
        tokens_of_heads out = zeros(count, heads, channels);
        std::vector<float> lse(static_cast<std::size_t>(count * heads));
        std::vector<content> before;
        for (int h = 0; h < kv_heads; ++h) before.push_back(all_rows(cache, of, l, h));
        REQUIRE(cache.prefill(of, l, q.part(at, count), k.part(at, count), v.part(at, count), writable(out),
                              {.lse = {lse.data(), {count, heads}}}));
        for (int h = 0; h < heads; ++h) {
          content whole = before[static_cast<std::size_t>(h / group)];
          whole.add_chunk(k, v, h / group, at, 1);
          answer const right = exact_attention(whole, q.row(at, h), 0, whole.tokens, {.scale = 0.25});
          for (int c = 0; c < channels; ++c)
            wrong += !(std::fabs(static_cast<double>(out.row(0, h)[c]) - right.out[static_cast<std::size_t>(c)]) <=
                       2 * right.out_tolerance[static_cast<std::size_t>(c)]);
          wrong += !(std::fabs(static_cast<double>(lse[static_cast<std::size_t>(h)]) - right.lse) <= 2 * right.lse_tolerance);
        }
      }
      for (int h = 0; h < kv_heads; ++h)
        for (int64_t t = at; t < at + count; ++t) living[static_cast<std::size_t>(l * kv_heads + h)].push_back(t);
    }
    at += count;
    // Some rows lose nothing, some all but one, some all.
    std::vector<unsigned> how(layers * kv_heads);
    for (auto& x : how) x = static_cast<unsigned>(random() % 6);
    chosen plan(cache, of, [&](int r, int64_t i, int64_t n) {
      unsigned const x = how[static_cast<std::size_t>(r)];
      return x == 0 || (x == 1 && i == n - 1) || (x > 2 && random() % x != 0);
    });
    int64_t expected = 0;
    for (std::size_t r = 0; r < living.size(); ++r) {
      list stays;
      REQUIRE(plan.length[r] == static_cast<int64_t>(living[r].size()));
      for (int64_t i = 0, n = 0; i < plan.length[r]; ++i)
        if (n < plan.count[r] && plan.kept[static_cast<std::size_t>(plan.offset[r] + n)] == i)
          stays.push_back(living[r][static_cast<std::size_t>(i)]), ++n;
        else
          demoted[r].push_back(living[r][static_cast<std::size_t>(i)]), ++expected;
      living[r] = stays;
    }
    auto const done = cache.demote(of, plan.rows(), plan.plan);
    REQUIRE(done);
    CHECK(done.value().rows == expected);
    for (int l = 0; l < layers; ++l)
      worst = std::max(worst, union_error(cache, of, l, [&] {
                         tokens_of_heads one = zeros(1, heads, channels);
                         std::copy_n(q.row(at - 1, 0), one.data.size(), one.data.data());
                         return one;
                       }()));
  }
  CHECK(wrong == 0);
  CHECK(worst <= 2);
  // Survivors are where they should be, and demoted rows are what one encoding makes of them.
  std::vector<pith::survivor> out(1024);
  double off = 0;
  for (int r = 0; r < layers * kv_heads; ++r) {
    auto const n = cache.survivors(of, r / kv_heads, r % kv_heads, out);
    list tokens;
    for (int64_t i = 0; i < n.value(); ++i) tokens.push_back(out[static_cast<std::size_t>(i)].token);
    CHECK(tokens == living[static_cast<std::size_t>(r)]);
    auto const& gone = demoted[static_cast<std::size_t>(r)];
    CHECK(cache.demoted(of, r / kv_heads, r % kv_heads) == static_cast<int64_t>(gone.size()));
    content const there = stored(cache.low(), of.low, r, 0);
    REQUIRE(there.tokens == static_cast<int64_t>(gone.size()));
    for (std::size_t i = 0; i < gone.size(); ++i) {
      auto const compare = [&](float const* x, float const* y, bool packed) {
        auto const [least, most] = std::minmax_element(x, x + channels);
        double const step = static_cast<double>(*most - *least);
        double const allowed = (packed ? step / 15 / 2 * 1.02 + 0x1p-7 : 0.0) + (std::is_same_v<High, high8> ? step / 255 + 0x1p-7 : 0.0);
        for (int c = 0; c < channels; ++c) off = std::max(off, std::fabs(static_cast<double>(rounded_to_bf16(x[c]) - y[c])) - allowed);
      };
      compare(k.row(gone[i], r % kv_heads), there.keys.data() + i * channels, there.packed_key[i]);
      compare(v.row(gone[i], r % kv_heads), there.values.data() + i * channels, there.packed_value[i]);
    }
  }
  CHECK(off <= 0);
  CHECK(cache.close(of));
  CHECK(cache.close(of).code == errc::stale_handle);
}

}  // namespace

TEST_CASE("demotion: rows live in one of two caches, and attention over both is that of one", "[cache][demotion]") {
  random_demotions<high>(1);
  random_demotions<high8>(5);
}

TEST_CASE("demotion: bytes fall, and a row costs token_bits there", "[cache][demotion]") {
  auto cache = mixed::make(shape(), 4 << 20).value();
  auto const of = cache.open().value();
  auto const k = gaussian(1, 640, kv_heads, channels), v = gaussian(2, 640, kv_heads, channels);
  for (int l = 0; l < layers; ++l) REQUIRE(cache.append(of, l, k.all(), v.all()));
  int64_t const before = cache.resident_bytes();
  chosen plan(cache, of, [](int, int64_t i, int64_t n) { return i >= n - 128; });
  auto const done = cache.demote(of, plan.rows(), plan.plan);
  REQUIRE(done);
  CHECK(done.value().bytes == before - cache.resident_bytes());
  static_assert(pith::token_bits<high> == 2 * channels * 16);
  static_assert(pith::token_bits<low> > 2 * channels * 4 && pith::token_bits<low> < 2 * channels * 7);
  // 512 rows of each head: 16 pages of bf16 come back, 16 of four bits are taken; tables of runs are the rest.
  double const rows = 512.0 * layers * kv_heads, saved = rows * static_cast<double>(pith::token_bits<high> - pith::token_bits<low>) / 8;
  CHECK(static_cast<double>(done.value().bytes) > 0.97 * saved);
  CHECK(static_cast<double>(done.value().bytes) <= saved + layers * kv_heads * low::page::bytes);  // low's newest rows are in raw room
}

TEST_CASE("demotion: MiKV's masses are over all rows, and its survivors those of sums in double", "[cache][demotion][policy]") {
  int64_t const prompt = 48, steps = 90, capacity = 24, most = prompt + steps;
  using policy = pith::recipes::mikv<24, 4, 8>;
  static_assert(policy::stage_type<pith::stage::dispose>::losers == pith::fate::demoted);
  policy const mikv;
  auto cache = mixed::make(shape(), 4 << 20).value();
  auto const of = cache.open().value();
  auto const k = gaussian(7, most, kv_heads, channels), v = gaussian(8, most, kv_heads, channels), q = gaussian(9, most, heads, channels);
  int constexpr rows = layers * kv_heads;
  list offset, length(rows, 0), kept(static_cast<std::size_t>(rows * most)), count(rows), known(rows, 0);
  for (int r = 0; r < rows; ++r) offset.push_back(r * most);
  std::vector<float> score(static_cast<std::size_t>(rows * most)), sums(static_cast<std::size_t>(rows * most));
  std::vector<std::byte> scratch(
      static_cast<std::size_t>(pith::decide_scratch_bytes(rows, rows * most) + pith::observe_scratch_bytes(most)));
  pith::policy_state state{.score = score, .known = known};
  struct entry {
    int64_t token;
    double score;
  };
  std::vector<std::vector<entry>> reference(rows);
  std::vector<pith::survivor> slots(static_cast<std::size_t>(most));
  double worst_mass = 0;
  int wrong = 0;
  for (int64_t t = 0; t < most; ++t) {
    pith::policy_rows const at{layers, kv_heads, offset, length};
    for (int l = 0; l < layers; ++l) {
      REQUIRE(cache.append(of, l, k.part(t, 1), v.part(t, 1)));
      tokens_of_heads one = zeros(1, heads, channels);
      std::copy_n(q.row(t, 0), one.data.size(), one.data.data());
      outputs const got = attend(cache, of, l, one);
      REQUIRE(got.status);
      std::vector<float> statistic(static_cast<std::size_t>(kv_heads * most));
      pith::statistics_view<pith::group_reduction::mean, pith::statistic::sum> const view{.sum = {statistic.data(), {kv_heads, most}}};
      REQUIRE(cache.attention_statistics(of, l, one.all(), {got.lse.data(), {1, heads}}, view));
      for (int h = 0; h < kv_heads; ++h) {
        int const r = l * kv_heads + h;
        auto& own = reference[static_cast<std::size_t>(r)];
        own.push_back({t, 0});
        auto const n = cache.survivors(of, l, h, slots).value();
        length[static_cast<std::size_t>(r)] = n;
        REQUIRE(n == static_cast<int64_t>(own.size()));
        // Softmax over high's rows and low's, in double.
        content const low_rows = stored(cache.low(), of.low, r, 0);
        for (int g = 0; g < group; ++g) {
          auto const logit = [&](float const* key) {
            double s = 0;
            for (int c = 0; c < channels; ++c) s += static_cast<double>(one.row(0, h * group + g)[c]) * static_cast<double>(key[c]) / 4;
            return std::exp(s);
          };
          std::vector<double> p;
          double total = 0;
          for (entry const& e : own) {
            float key[channels];
            for (int c = 0; c < channels; ++c) key[c] = rounded_to_bf16(k.row(e.token, h)[c]);
            p.push_back(logit(key)), total += p.back();
          }
          for (int64_t i = 0; i < low_rows.tokens; ++i) total += logit(low_rows.keys.data() + i * channels);
          for (std::size_t i = 0; i < own.size(); ++i) own[i].score += p[i] / total / group;
        }
        for (int64_t i = 0; i < n; ++i) {
          wrong += slots[static_cast<std::size_t>(i)].token != own[static_cast<std::size_t>(i)].token;
          sums[static_cast<std::size_t>(r * most + i)] =
              statistic[static_cast<std::size_t>(h * most + slots[static_cast<std::size_t>(i)].slot)];
        }
      }
    }
    REQUIRE(pith::observe(mikv, at, {.sum = sums, .rows = 1, .visible = t + 1}, state, scratch));
    for (int r = 0; r < rows; ++r)
      for (int64_t i = 0; i < length[static_cast<std::size_t>(r)]; ++i)
        worst_mass = std::max(worst_mass, std::fabs(static_cast<double>(score[static_cast<std::size_t>(r * most + i)]) -
                                                    reference[static_cast<std::size_t>(r)][static_cast<std::size_t>(i)].score));
    if (t < prompt) continue;
    pith::policy_plan plan{.kept = kept, .kept_count = count};
    REQUIRE(pith::decide(mikv, at, {}, state, plan, scratch));
    REQUIRE(cache.demote(of, at, plan));
    pith::carry(mikv, at, plan, state);
    for (int r = 0; r < rows; ++r) {
      auto& own = reference[static_cast<std::size_t>(r)];
      while (static_cast<int64_t>(own.size()) > capacity) {  // the worst of all but the newest 8 goes
        auto const end = own.end() - 8;
        own.erase(std::min_element(own.begin(), end, [](entry const& a, entry const& b) { return a.score < b.score; }));
      }
      CHECK(cache.demoted(of, r / kv_heads, r % kv_heads) == t + 1 - capacity);
    }
  }
  CHECK(wrong == 0);
  CHECK(worst_mass < 1e-4);
}

TEST_CASE("demotion: a fork keeps its rows whatever the other demotes", "[cache][demotion]") {
  auto cache = mixed::make(shape(), 4 << 20).value();
  auto const first = cache.open().value();
  auto const k = gaussian(11, 400, kv_heads, channels), v = gaussian(12, 400, kv_heads, channels), q = gaussian(13, 1, heads, channels);
  for (int l = 0; l < layers; ++l) REQUIRE(cache.append(first, l, k.part(0, 300), v.part(0, 300)));
  chosen some(cache, first, [](int r, int64_t i, int64_t) { return (i + r) % 3 != 0; });
  REQUIRE(cache.demote(first, some.rows(), some.plan));
  auto const second = cache.fork(first).value();
  outputs const before = attend(cache, first, 1, q);
  CHECK(same(before, attend(cache, second, 1, q)));
  chosen more(cache, second, [](int, int64_t i, int64_t) { return i % 2 == 0; });
  REQUIRE(cache.demote(second, more.rows(), more.plan));
  CHECK(same(before, attend(cache, first, 1, q)));
  for (int l = 0; l < layers; ++l) {
    CHECK(union_error(cache, second, l, q) <= 2);
    REQUIRE(cache.append(second, l, k.part(300, 100), v.part(300, 100)));
    CHECK(union_error(cache, second, l, q) <= 2);
    CHECK(union_error(cache, first, l, q) <= 2);
  }
  CHECK(same(before, attend(cache, first, 1, q)));
  std::vector<std::byte> bytes(static_cast<std::size_t>(cache.saved_bytes(second)));
  REQUIRE(cache.save(second, bytes));
  auto const loaded = cache.load(bytes);
  REQUIRE(loaded);
  CHECK(same(attend(cache, second, 0, q), attend(cache, loaded.value(), 0, q)));
  CHECK(cache.load(std::span(bytes).first(7)).error().code == errc::truncated);
  CHECK(cache.load(bytes).error().code == errc::capacity_exceeded);  // three are open
  REQUIRE(cache.close(second));
  CHECK(same(before, attend(cache, first, 1, q)));
  auto const cut = cache.load(std::span(bytes).first(bytes.size() - 1));
  CHECK_FALSE(cut);
  CHECK(cache.open());  // what a failed load opened was closed
}

TEST_CASE("demotion: a sink counts once, and an empty sequence is empty", "[cache][demotion]") {
  auto cache = mixed::make(shape(), 4 << 20).value();
  auto const of = cache.open().value();
  auto const k = gaussian(21, 100, kv_heads, channels), v = gaussian(22, 100, kv_heads, channels), q = gaussian(23, 1, heads, channels);
  outputs const empty = attend(cache, of, 0, q);
  REQUIRE(empty.status);
  CHECK(std::all_of(empty.lse.begin(), empty.lse.end(), [](float x) { return x == -std::numeric_limits<float>::infinity(); }));
  for (int l = 0; l < layers; ++l) REQUIRE(cache.append(of, l, k.all(), v.all()));
  chosen whole(cache, of, [](int, int64_t, int64_t) { return true; });
  auto const nothing = cache.demote(of, whole.rows(), whole.plan);
  REQUIRE(nothing);
  CHECK((nothing.value().rows == 0 && nothing.value().bytes == 0));
  // All rows of one head, half of the others'.
  chosen some(cache, of, [](int r, int64_t i, int64_t) { return r != 1 && i % 2 == 0; });
  REQUIRE(cache.demote(of, some.rows(), some.plan));
  std::vector<float> const sinks{0.5f, -1, 2, 0, 1, 3};
  for (int l = 0; l < layers; ++l) {
    CHECK(union_error(cache, of, l, q) <= 2);
    CHECK(union_error(cache, of, l, q, {.soft_cap = 3, .sink_logits = sinks}) <= 2);
  }
}

TEST_CASE("demotion: wrong plans and calls are refused and nothing moves", "[cache][demotion][errors]") {
  CHECK(mixed::make(shape(0), 1 << 20).error().code == errc::shape_mismatch);
  auto cache = mixed::make(shape(), 4 << 20).value();
  auto const of = cache.open().value();
  auto const k = gaussian(31, 200, kv_heads, channels), v = gaussian(32, 200, kv_heads, channels), q = gaussian(33, 2, heads, channels);
  auto const one = gaussian(34, 1, heads, channels);
  for (int l = 0; l < layers; ++l) REQUIRE(cache.append(of, l, k.all(), v.all()));
  outputs const before = attend(cache, of, 0, one);
  chosen plan(cache, of, [](int, int64_t i, int64_t) { return i % 2 == 0; });
  auto const refused = [&](errc code, int64_t at) {
    auto const done = cache.demote(of, plan.rows(), plan.plan);
    CHECK(done.error() == pith::status{code, at});
    CHECK(same(before, attend(cache, of, 0, one)));
    CHECK(cache.demoted(of, 0, 0) == 0);
  };
  plan.plan.losers = pith::fate::dropped;
  refused(errc::unsupported, static_cast<int64_t>(pith::fate::dropped));
  plan.plan.losers = pith::fate::demoted;
  std::swap(plan.kept[3], plan.kept[4]);
  refused(errc::out_of_range, 0);
  std::swap(plan.kept[3], plan.kept[4]);
  ++plan.length[0], --plan.length[1];
  refused(errc::shape_mismatch, 0);
  --plan.length[0], ++plan.length[1];
  plan.count[2] = 201;
  refused(errc::out_of_range, 2);
  plan.count[2] = 100;
  plan.plan.kept_count = std::span(plan.count).first(3);
  refused(errc::shape_mismatch, 4);
  plan.plan.kept_count = plan.count;
  CHECK(cache.demote(of, {1, 4, plan.offset, plan.length}, plan.plan).error().code == errc::shape_mismatch);
  CHECK(attend(cache, of, 0, q).status);  // no row has been demoted: as cache<High>
  CHECK(attend(cache, of, 0, q, {.window = 5}).status == pith::status{errc::unsupported, 5});
  std::vector<float> scores(2 * 200), logits(2 * 6 * 200);
  CHECK(attend(cache, of, 0, q, {.scores = {.sum = {scores.data(), {2, 200}}, .logits = {logits.data(), {2, 6, 200}}}}).status.code ==
        errc::unsupported);
  CHECK(attend(cache, of, layers, q).status.code == errc::out_of_range);
  CHECK(attend(cache, of, 0, gaussian(1, 1, heads - 1, channels)).status.code == errc::shape_mismatch);
  REQUIRE(cache.demote(of, plan.rows(), plan.plan));
  CHECK(attend(cache, of, 0, q).status == pith::status{errc::unsupported, 2});
  CHECK(cache.demote(of, plan.rows(), plan.plan).error() == pith::status{errc::shape_mismatch, 0});  // the rows have left
  auto const stale = of;
  REQUIRE(cache.close(of));
  CHECK(attend(cache, stale, 0, one).status.code == errc::stale_handle);
  CHECK(cache.demote(stale, plan.rows(), plan.plan).error().code == errc::stale_handle);
  CHECK(cache.fork(stale).error().code == errc::stale_handle);
  CHECK(cache.save(stale, {}).code == errc::stale_handle);
}

TEST_CASE("demotion: without room in the second cache nothing moves", "[cache][demotion][errors]") {
  pith::cache_shape low_shape{
      .layers = layers * kv_heads, .kv_heads = 1, .query_heads = group, .bytes = 0, .max_sequences = 3, .max_tokens = 1024, .max_chunk = 0};
  int64_t const few = pith::cache_storage<low>::fixed_bytes(low_shape) + 6 * low::page::bytes;  // a page and a half a head
  auto cache = mixed::make(shape(), few).value();
  auto const of = cache.open().value();
  auto const k = gaussian(41, 200, kv_heads, channels), v = gaussian(42, 200, kv_heads, channels), q = gaussian(43, 1, heads, channels);
  for (int l = 0; l < layers; ++l) REQUIRE(cache.append(of, l, k.all(), v.all()));
  outputs const before = attend(cache, of, 1, q);
  chosen plan(cache, of, [](int, int64_t i, int64_t n) { return i >= n - 100; });
  CHECK(cache.demote(of, plan.rows(), plan.plan).error().code == errc::capacity_exceeded);
  CHECK(same(before, attend(cache, of, 1, q)));
  std::vector<pith::survivor> all(400);
  for (int r = 0; r < layers * kv_heads; ++r) {
    CHECK(cache.survivors(of, r / kv_heads, r % kv_heads, all).value() == 200);
    CHECK(cache.demoted(of, r / kv_heads, r % kv_heads) == 0);
  }
  // Head 0 has its pages already.
  chosen less(cache, of, [](int r, int64_t i, int64_t n) { return r != 0 || i >= n - 100; });
  CHECK(cache.demote(of, less.rows(), less.plan));
}

TEST_CASE("demotion: a second cache that rejects such numbers says so before a row moves", "[cache][demotion][errors]") {
  using strict = recipe<low_codec, 1, pith::non_finite<pith::nan_policy::reject>>;
  using loose = recipe<pith::raw<pith::bf16>, 32, pith::side<pith::liveness, pith::births>, pith::non_finite<pith::nan_policy::propagate>>;
  auto cache = pith::demoting_cache<loose, strict>::make(shape(), 4 << 20).value();
  auto const of = cache.open().value();
  auto k = gaussian(51, 150, kv_heads, channels);
  auto const v = gaussian(52, 150, kv_heads, channels);
  k.row(70, 1)[3] = std::numeric_limits<float>::infinity();
  for (int l = 0; l < layers; ++l) REQUIRE(cache.append(of, l, k.all(), v.all()));
  chosen plan(cache, of, [](int, int64_t i, int64_t n) { return i >= n - 50; });
  CHECK(cache.demote(of, plan.rows(), plan.plan).error() == pith::status{errc::not_finite, 1});
  for (int h = 0; h < kv_heads; ++h) CHECK(cache.demoted(of, 0, h) == 0);
  chosen but_one(cache, of, [](int, int64_t i, int64_t n) { return i >= n - 50 || i == 70; });
  CHECK(cache.demote(of, but_one.rows(), but_one.plan));
}
