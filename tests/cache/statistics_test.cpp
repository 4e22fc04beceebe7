// SPDX-License-Identifier: Apache-2.0
// Statistics and scores of attention over a cache, slot by slot, against softmax in double over what the cache stores.
#include "cache/support.hpp"
#include "pith/cpu/statistics_engine.hpp"
#include "support/statistics_oracle.hpp"

using namespace pith_test;

namespace {

// Everything that a slot may have, and raw tails of two lengths: tiles whose keys are packed and whose values are not.
struct whole : pith::kv_cache<pith::head_dim<64>, pith::keys<pith::int4<pith::per_channel<32>>>, pith::values<pith::raw<pith::bf16>>,
                              pith::raw<pith::first<5>, pith::last<32, 70>>, pith::side<pith::positions, pith::liveness, pith::bias>> {};

using sums = pith::statistics_view<pith::group_reduction::sum, pith::statistic::sum, pith::statistic::square_sum>;

struct subject {
  static constexpr int kv_heads = 2, group = 2;
  pith::cache<whole> cache;
  pith::sequence of;
  tokens_of_heads k, v, q;

  explicit subject(int64_t tokens)
      : cache(
            std::move(pith::make<whole>(
                          {.kv_heads = kv_heads, .query_heads = kv_heads * group, .bytes = 8 << 20, .max_sequences = 3, .max_tokens = 4096})
                          .value())),
        of(cache.open().value()),
        k(model_keys(31, tokens, kv_heads)),
        v(gaussian(32, tokens, kv_heads)),
        q(model_queries(33, tokens, kv_heads * group)) {}
  void append(int64_t from, int64_t count) { REQUIRE(cache.append(of, 0, k.part(from, count), v.part(from, count))); }
};

struct statistics {
  std::vector<float> sum, square_sum, lse;
  friend bool operator==(statistics const&, statistics const&) = default;
};

// Attention of the newest rows of `q` that it returns lse for, then its statistics.
statistics statistics_of(pith::cache<whole> const& cache, pith::sequence of, pith::tensor_view<float const, 3> q,
                         pith::attention_options options = {}) {
  auto const size = static_cast<std::size_t>(2 * cache.slots(of, 0));
  statistics made{std::vector<float>(size, 7.0f), std::vector<float>(size, 7.0f),
                  std::vector<float>(static_cast<std::size_t>(q.extent[0] * 4))};
  std::vector<float> out(static_cast<std::size_t>(q.elements()));
  options.lse = {made.lse.data(), {q.extent[0], 4}};
  REQUIRE(cache.attend(of, 0, q, pith::tensor_view<float, 3>(out.data(), {q.extent[0], 4, 64}), options));
  sums const view{.sum = {made.sum.data(), {2, cache.slots(of, 0)}}, .square_sum = {made.square_sum.data(), {2, cache.slots(of, 0)}}};
  REQUIRE(cache.attention_statistics(of, 0, q, options.lse, view, {}, options));
  return made;
}

statistics_oracle expected(pith::cache<whole> const& cache, pith::sequence of, pith::tensor_view<float const, 3> q,
                           pith::attention_options options = {}) {
  statistics_oracle made(4, cache.slots(of, 0));
  for (int h = 0; h < 4; ++h) {
    content const all = stored(cache, of, 0, h / 2);
    for (int64_t i = 0; i < q.extent[0]; ++i) {
      std::vector<double> scores(static_cast<std::size_t>(cache.slots(of, 0)), unseen);
      double square = 0, k_most = 0, s_most = 0;
      for (int c = 0; c < 64; ++c) square += q(i, h, c) * q(i, h, c);
      int64_t const upper = all.tokens - q.extent[0] + i + 1;
      for (int64_t t = 0; t < upper; ++t) {
        auto const token = static_cast<std::size_t>(t);
        double sum = 0;
        for (int c = 0; c < 64; ++c) {
          double const x = all.keys[token * 64 + static_cast<std::size_t>(c)];
          sum += q(i, h, c) * x, k_most = std::max(k_most, std::fabs(x));
        }
        sum /= 8;
        if (options.soft_cap > 0) sum = options.soft_cap * std::tanh(sum / options.soft_cap);
        bool const seen = options.window == 0 || all.position[token] > all.position[static_cast<std::size_t>(upper - 1)] - options.window;
        double const s = sum + static_cast<double>(all.bias[token]);
        s_most = std::max(s_most, std::fabs(s));
        if (all.live[token] && seen) scores[static_cast<std::size_t>(cache.slot_of(of, 0, t))] = s;
      }
      made.add(h, scores, unseen, 16 * 0x1p-24 * std::sqrt(square) * 5 * k_most / 8 + 8e-7 * (1 + s_most), 0, 0);
    }
  }
  return made;
}

void check(pith::cache<whole> const& cache, pith::sequence of, pith::tensor_view<float const, 3> q,
           pith::attention_options const& options = {}) {
  INFO(cache.length(of, 0) << " tokens, " << cache.slots(of, 0) << " slots, " << q.extent[0] << " rows");
  statistics const got = statistics_of(cache, of, q, options);
  statistics_oracle right = expected(cache, of, q, options);
  int64_t const additions = q.extent[0] * subject::group;
  CHECK(right.wrong(pith::statistic::sum, pith::group_reduction::sum, subject::group, got.sum, additions) == 0);
  CHECK(right.wrong(pith::statistic::square_sum, pith::group_reduction::sum, subject::group, got.square_sum, additions) == 0);

  // The scores of the same call, in a row that is longer than the sequence.
  int64_t const slots = cache.slots(of, 0), room = slots + 3, rows = std::min<int64_t>(16, additions);
  std::vector<float> scores(static_cast<std::size_t>(2 * room), 1.0f), scratch(static_cast<std::size_t>(2 * rows * room), std::nanf("")),
      out(static_cast<std::size_t>(q.elements()));
  pith::attention_options scoring = options;
  scoring.scores = {.sum = {scores.data(), {2, room}}, .logits = {scratch.data(), {2, rows, room}}, .decay = 0};
  REQUIRE(cache.attend(of, 0, q, pith::tensor_view<float, 3>(out.data(), {q.extent[0], 4, 64}), scoring));
  for (int64_t h = 1; h >= 0; --h) {
    CHECK((scores[static_cast<std::size_t>(h * room + slots)] == 1 && scores[static_cast<std::size_t>(h * room + slots + 2)] == 1));
    scores.erase(scores.begin() + h * room + slots, scores.begin() + (h + 1) * room);
  }
  CHECK(right.wrong(pith::statistic::sum, pith::group_reduction::sum, subject::group, scores, additions) == 0);
}

}  // namespace

TEST_CASE("statistics of a cache: first, sealed and staged slots, values sealed later than keys", "[cache][statistics]") {
  for (int64_t const tokens : {1, 5, 6, 40, 75, 140, 333}) {
    subject one(tokens);
    one.append(0, tokens);
    for (int64_t const rows : {1, 3, 20})
      if (rows <= tokens) check(one.cache, one.of, one.q.part(tokens - rows, rows));
  }
  subject one(300);
  one.append(0, 300);
  check(one.cache, one.of, one.q.part(290, 10), {.soft_cap = 3, .window = 100});
}

TEST_CASE("statistics of a cache: an empty sequence has none", "[cache][statistics]") {
  subject one(1);
  statistics const got = statistics_of(one.cache, one.of, one.q.part(0, 1));
  CHECK(got.sum.empty());
  CHECK(got.lse[0] == -std::numeric_limits<float>::infinity());
  check(one.cache, one.of, one.q.part(0, 1));
}

TEST_CASE("statistics of a cache: evicted tokens get 0, also where their page is gone; biases count", "[cache][statistics]") {
  subject one(400);
  one.append(0, 400);
  std::vector<int64_t> page, some;
  for (int64_t t = 69; t < 133; ++t) page.push_back(t);  // slots 64 to 127 after `first`: a page
  for (int64_t t = 2; t < 400; t += 7) some.push_back(t);
  REQUIRE(one.cache.evict(one.of, 0, 1, page));
  REQUIRE(one.cache.evict(one.of, 0, 0, some));
  REQUIRE(one.cache.set_bias(one.of, 0, 0, 200, 3.5f));
  REQUIRE(one.cache.set_bias(one.of, 0, 1, 395, -2.0f));
  REQUIRE(page_of(one.cache, one.of, 0, 1, 64) == pith::no_block);
  check(one.cache, one.of, one.q.part(399, 1));
  check(one.cache, one.of, one.q.part(380, 20));
}

TEST_CASE("statistics of a cache: slots of a cut tile get 0, and tokens after it have later slots", "[cache][statistics]") {
  subject one(300);
  one.append(0, 300);
  REQUIRE(one.cache.truncate(one.of, 150));
  one.append(150, 100);
  REQUIRE(one.cache.slots(one.of, 0) > 250);
  REQUIRE(one.cache.slot_of(one.of, 0, 240) > 240);
  check(one.cache, one.of, one.q.part(240, 10));
}

TEST_CASE("statistics of a cache: the newest rows have the same bits after chunks of any size as after one", "[cache][statistics]") {
  subject one(333);
  one.append(0, 333);
  statistics const right = statistics_of(one.cache, one.of, one.q.part(301, 32));
  for (int64_t const chunk : {1, 50, 64}) {
    subject other(333);
    for (int64_t from = 0; from < 333; from += chunk) other.append(from, std::min<int64_t>(chunk, 333 - from));
    CHECK(statistics_of(other.cache, other.of, other.q.part(301, 32)) == right);
  }
}

TEST_CASE("statistics of a cache: a fork has those of its source, and its own when the two part", "[cache][statistics]") {
  subject one(300);
  one.append(0, 200);
  pith::sequence const fork = one.cache.fork(one.of).value();
  statistics const before = statistics_of(one.cache, one.of, one.q.part(190, 10));
  CHECK(statistics_of(one.cache, fork, one.q.part(190, 10)) == before);
  one.append(200, 100);
  std::vector<int64_t> const gone{3, 100};
  REQUIRE(one.cache.evict(one.of, 0, 0, gone));
  CHECK(statistics_of(one.cache, fork, one.q.part(190, 10)) == before);
  check(one.cache, one.of, one.q.part(290, 10));
}

// Rule S4: lse of a chunk that was raw when it was written, statistics of what is stored.
TEST_CASE("statistics of a cache: after prefill in one chunk the sums are near the rows' number, not exactly it", "[cache][statistics]") {
  pith::cache<whole> cache =
      std::move(pith::make<whole>({.kv_heads = 2, .query_heads = 4, .bytes = 8 << 20, .max_tokens = 512, .max_chunk = 256}).value());
  pith::sequence const of = cache.open().value();
  tokens_of_heads const k = model_keys(31, 256, 2), v = gaussian(32, 256, 2), q = model_queries(33, 256, 4);
  outputs const got = prefill(cache, of, 0, q, k.all(), v.all());
  REQUIRE(got.status);
  std::vector<float> sum(512), square_sum(512);
  REQUIRE(cache.attention_statistics(of, 0, q.all(), pith::tensor_view<float const, 2>(got.lse.data(), {256, 4}),
                                     sums{.sum = {sum.data(), {2, 256}}, .square_sum = {square_sum.data(), {2, 256}}}, {.newest = 32}));
  double total = 0;
  for (float const x : sum) total += static_cast<double>(x);
  CHECK(total == Approx(32 * 4).epsilon(0.05));
}

TEST_CASE("statistics of a cache: bad input is refused and nothing is written", "[cache][statistics][status]") {
  subject one(100);
  one.append(0, 50);
  std::vector<float> numbers(2 * 50, 7.0f), lse(60 * 4);
  sums view{.sum = {numbers.data(), {2, 50}}, .square_sum = {numbers.data(), {2, 50}}};
  auto const code = [&](pith::sequence of, int layer, int64_t rows) {
    return one.cache.attention_statistics(of, layer, one.q.part(0, rows), pith::tensor_view<float const, 2>(lse.data(), {rows, 4}), view)
        .code;
  };
  pith::sequence stale = one.cache.open().value();
  REQUIRE(one.cache.close(stale));
  CHECK(code(stale, 0, 1) == pith::errc::stale_handle);
  CHECK(code(one.of, 1, 1) == pith::errc::out_of_range);
  CHECK(code(one.of, 0, 51) == pith::errc::out_of_range);
  view.sum.extent[1] = 49;
  CHECK(code(one.of, 0, 1) == pith::errc::shape_mismatch);
  CHECK(std::count(numbers.begin(), numbers.end(), 7.0f) == 100);
  std::vector<float> out(4 * 64, 7.0f);
  pith::attention_options short_scores{.scores = {.sum = {numbers.data(), {2, 49}}, .logits = {lse.data(), {2, 2, 49}}}};
  CHECK(one.cache.attend(one.of, 0, one.q.part(0, 1), pith::tensor_view<float, 3>(out.data(), {1, 4, 64}), short_scores).code ==
        pith::errc::shape_mismatch);
  CHECK(std::count(out.begin(), out.end(), 7.0f) == 4 * 64);
}
