// SPDX-License-Identifier: Apache-2.0
// attend and prefill against attention in double over what the cache stores.
#include <array>
#include <thread>

#include "cache/support.hpp"
#include "pith/cache/recipes.hpp"
#if __has_include(<Eigen/Core>)
#include "pith/cache/recipes_gear.hpp"
#endif

using namespace pith_test;

namespace {

struct plain : pith::kv_cache<pith::head_dim<64>, pith::keys<pith::raw<pith::bf16>>, pith::values<pith::raw<pith::bf16>>,
                              pith::raw<pith::last<32>>, pith::side<pith::positions>> {};

// Nothing is the default here: heads of two sizes, tiles of two lengths, many first tokens, a raw window of one.
struct unusual : pith::kv_cache<pith::head_dim<96, 32>, pith::keys<pith::int8<pith::per_token<>, pith::zero::none>>,
                                pith::values<pith::int4<pith::per_channel<64>>>, pith::raw<pith::last<1>, pith::first<20>>,
                                pith::pages<pith::paged<128>>> {};

template <class Accuracy>
struct sparse : pith::kv_cache<pith::head_dim<64>, pith::keys<pith::sum<pith::outliers<pith::both_ends<1>, pith::per_channel<>>, pith::int2<pith::per_channel<32>>>>,
                               pith::values<pith::pipe<pith::hadamard<64>, pith::sum<pith::outliers<pith::magnitudes<2>, pith::per_token<>>, pith::int2<pith::per_token<32>>>>>,
                               pith::raw<pith::first<4>, pith::last<32>>, pith::accuracy<Accuracy>> {};

template <class Recipe>
pith::cache<Recipe> make_cache(pith::cache_shape shape = {.kv_heads = 2, .query_heads = 4}) {
  shape.bytes = 8 << 20;
  shape.max_sequences = 4;
  shape.max_tokens = 2048;
  auto made = pith::make<Recipe>(shape);
  REQUIRE(made);
  return std::move(made).value();
}

// A cache of one layer with `tokens` model tokens.
template <class Recipe>
struct filled {
  pith::cache<Recipe> cache;
  pith::sequence of;
  tokens_of_heads k, v;

  explicit filled(int64_t tokens, int kv_heads = 2, int group = 2)
      : cache(make_cache<Recipe>({.kv_heads = kv_heads, .query_heads = kv_heads * group})),
        of(cache.open().value()),
        k(model_keys(31, tokens, kv_heads, Recipe::key_channels)),
        v(gaussian(32, tokens, kv_heads, Recipe::value_channels)) {
    REQUIRE(cache.append(of, 0, k.all(), v.all()));
  }
  tokens_of_heads queries(int64_t count) const { return model_queries(33, count, cache.shape().query_heads, Recipe::key_channels); }
  double error(int64_t count, pith::attention_options const& options = {}) const {
    return attention_error(cache, of, 0, queries(count), options);
  }
};

// Runs the pieces on threads of its own.
struct threads {
  int count = 4;

  template <class Function>
  void for_each(int64_t pieces, Function&& f) const {
    std::atomic<int64_t> next{0};
    std::vector<std::thread> all;
    for (int i = 0; i < count; ++i)
      all.emplace_back([&] {
        for (int64_t piece; (piece = next.fetch_add(1)) < pieces;) f(piece);
      });
    for (std::thread& one : all) one.join();
  }
};
static_assert(pith::executor<threads>);

// Root of the summed squares of what `got` differs by from exact attention over the stored content, relative to it.
template <class Recipe>
double relative_error(filled<Recipe> const& of, tokens_of_heads const& q, outputs const& got) {
  std::vector<content> const heads = stored_heads(of.cache, of.of, 0);
  double difference = 0, length = 0;
  for (int64_t i = 0; i < q.tokens; ++i)
    for (int h = 0; h < q.heads; ++h) {
      content const& all = heads[static_cast<std::size_t>(h * static_cast<int>(heads.size()) / q.heads)];
      answer const right =
          exact_attention(all, q.row(i, h), 0, all.tokens - q.tokens + i + 1, {.scale = 1 / std::sqrt(static_cast<double>(all.dk))});
      for (int c = 0; c < all.dv; ++c) {
        double const d = static_cast<double>(got.out.row(i, h)[c]) - right.out[static_cast<std::size_t>(c)];
        difference += d * d;
        length += right.out[static_cast<std::size_t>(c)] * right.out[static_cast<std::size_t>(c)];
      }
    }
  return std::sqrt(difference / length);
}

// Exact accuracy is within f32 arithmetic of the stored numbers; integer accuracy within `bound` of them on model data. Both store the
// same bytes.
template <class Exact, class Integer>
void check_recipe(double bound) {
  for (int64_t const tokens : {1, 4, 5, 36, 37, 68, 69, 300}) {
    filled<Exact> exact(tokens);
    filled<Integer> integer(tokens);
    CHECK(sealed_bytes(exact.cache, exact.of) == sealed_bytes(integer.cache, integer.of));
    for (int64_t const count : {1, 2, 9}) {
      if (count > tokens) continue;
      INFO(tokens << " tokens, " << count << " queries");
      CHECK(exact.error(count) <= 1);
      tokens_of_heads const q = integer.queries(count);
      outputs const got = attend(integer.cache, integer.of, 0, q);
      REQUIRE(got.status);
      CHECK(relative_error(integer, q, got) <= bound);
    }
  }
}

template <class T>
std::vector<T> convert(tokens_of_heads const& from) {
  std::vector<T> made;
  for (float const x : from.data) made.push_back(pith::from_float<T>(x));
  return made;
}

}  // namespace

TEST_CASE("attend: int8 per token", "[cache][attention]") {
  check_recipe<pith::recipes::int8_cache_exact<64>, pith::recipes::int8_cache<64>>(0.01);
}

TEST_CASE("attend: kivi4", "[cache][attention]") {
  check_recipe<pith::recipes::kivi<64, 4, 32, 32, pith::exact_accuracy>, pith::recipes::kivi4<64>>(0.01);
}

TEST_CASE("attend: rotated4", "[cache][attention]") {
  check_recipe<pith::recipes::rotated<64, 4, 32, pith::exact_accuracy>, pith::recipes::rotated4<64>>(0.02);
}

TEST_CASE("attend: outliers beside int2, in keys along tokens, in values along channels", "[cache][attention]") {
  check_recipe<sparse<pith::exact_accuracy>, sparse<pith::integer_accuracy>>(0.02);
}

#if __has_include(<Eigen/Core>)
TEST_CASE("attend: gear and gear_l", "[cache][attention]") {
  using namespace pith::recipes;
  check_recipe<gear<64, 2, 2, 64, 64, pith::exact_accuracy>, gear<64>>(0.02);
  check_recipe<gear_l<64, 4, 3, 128, 32, pith::exact_accuracy>, gear_l<64, 4, 3, 128, 32>>(0.02);
}
#endif

TEST_CASE("attend: block_float_cache", "[cache][attention]") {
  check_recipe<pith::recipes::block_float_cache<64, 8, 32, pith::exact_accuracy>, pith::recipes::block_float_cache<64, 8>>(0.01);
}

TEST_CASE("attend: fp8_cache", "[cache][attention]") {
  check_recipe<pith::recipes::fp8_cache<64>, pith::recipes::fp8_cache<64>>(1e-5);
}

TEST_CASE("attend: two head sizes, two tile lengths, first<20>, last<1>, pages of 128", "[cache][attention]") {
  for (int64_t const tokens : {1, 19, 20, 21, 84, 85, 86, 148, 149, 500}) {
    filled<unusual> made(tokens, 1, 3);
    for (int64_t const count : {1, 2, 19}) {
      INFO(tokens << " tokens, " << count << " queries");
      if (count <= tokens) CHECK(made.error(count) <= 1);
    }
    if (tokens > 40)
      for (int64_t const window : {1, 5, 64, 90}) CHECK(made.error(3, {.window = window}) <= 1);
  }
}

TEST_CASE("attend: bf16 pages give attention over the appended numbers, rounded to bf16", "[cache][attention]") {
  for (int64_t const tokens : {1, 2, 31, 32, 33, 63, 64, 65, 95, 96, 97, 260}) {
    filled<plain> made(tokens);
    std::vector<content> heads(2);
    for (int h = 0; h < 2; ++h) {
      heads[static_cast<std::size_t>(h)].dk = heads[static_cast<std::size_t>(h)].dv = 64;
      heads[static_cast<std::size_t>(h)].add_chunk(made.k, made.v, h, 0, tokens);
    }
    for (int64_t const count : {int64_t{1}, tokens}) {
      tokens_of_heads const q = made.queries(count);
      INFO(tokens << " tokens, " << count << " queries");
      CHECK(worst_error(heads, q, attend(made.cache, made.of, 0, q)) <= 1);
    }
  }
}

TEST_CASE("attend: one, two and four query heads for a KV head, any number of queries", "[cache][attention]") {
  for (int const group : {1, 2, 3, 4})
    for (int const kv_heads : {1, 3}) {
      filled<plain> made(150, kv_heads, group);
      for (int64_t const count : {1, 2, 3, 4, 5, 16, 17, 150}) {
        INFO(kv_heads << " KV heads, group " << group << ", " << count << " queries");
        CHECK(made.error(count) <= 1);
      }
    }
}

TEST_CASE("attend: window, soft cap, scale and sinks, alone and together", "[cache][attention]") {
  filled<plain> made(200);
  std::array<float, 4> const sinks{-3.0f, 0.0f, 2.5f, 40.0f};
  for (int64_t const window : {0, 1, 2, 31, 32, 33, 64, 100, 199, 200, 201, 5000})
    for (float const cap : {0.0f, 2.0f, 50.0f})
      for (bool const with_sinks : {false, true})
        for (float const scale : {0.0f, 0.03f}) {
          pith::attention_options options{.scale = scale, .soft_cap = cap, .window = window};
          if (with_sinks) options.sink_logits = sinks;
          INFO("window " << window << " cap " << cap << " sinks " << with_sinks << " scale " << scale);
          CHECK(made.error(2, options) <= 1);
        }
}

TEST_CASE("attend: windows count positions, which may have gaps", "[cache][attention][positions]") {
  auto cache = make_cache<plain>();
  pith::sequence const s = cache.open().value();
  tokens_of_heads const k = model_keys(41, 400, 2), v = gaussian(42, 400, 2);
  random_bits bits(43);
  std::vector<int64_t> at;
  for (int64_t position = 5, i = 0; i < 170; ++i, position += 1 + static_cast<int64_t>(bits() % 4 == 0 ? bits() % 30 : 0))
    at.push_back(position);
  std::span<int64_t const> const positions(at);
  REQUIRE(cache.append(s, 0, k.part(0, 100), v.part(0, 100), positions.first(100)));
  for (int64_t const window : {1, 2, 17, 60, 200, 4000})
    CHECK(attention_error(cache, s, 0, model_queries(44, 5, 4), {.window = window}) <= 1);

  for (int64_t const window : {1, 33, 150}) {
    pith::sequence const fork = cache.fork(s).value();
    std::vector<content> heads = stored_heads(cache, fork, 0);
    for (int h = 0; h < 2; ++h) heads[static_cast<std::size_t>(h)].add_chunk(k, v, h, 100, 70, positions.subspan(100));
    tokens_of_heads const q = model_queries(45, 70, 4);
    outputs const got = prefill(cache, fork, 0, q, k.part(100, 70), v.part(100, 70), {.window = window}, positions.subspan(100));
    REQUIRE(got.status);
    CHECK(worst_error(heads, q, got, {.window = window}) <= 1);
    CHECK(stored(cache, fork, 0, 0).position == at);
    REQUIRE(cache.append(fork, 0, k.part(170, 3), v.part(170, 3)));  // without positions: they go on by one
    CHECK(stored(cache, fork, 0, 1).position.back() == at.back() + 3);
    REQUIRE(cache.close(fork));
  }

  REQUIRE_FALSE(cache.truncate(s, 50).value().exact);  // slots 50..63 are dead
  std::array<int64_t, 2> const next{at[49] + 1, at[49] + 9};
  REQUIRE(cache.append(s, 0, k.part(200, 2), v.part(200, 2), next));
  REQUIRE(cache.append(s, 0, k.part(202, 60), v.part(202, 60)));
  content const after = stored(cache, s, 0, 0);
  CHECK(after.position[49] == at[49]);
  CHECK(after.position[50] == at[49] + 1);
  CHECK(after.position[52] == at[49] + 10);
  for (int64_t const window : {1, 2, 17, 58, 59, 60, 70, 200})
    CHECK(attention_error(cache, s, 0, model_queries(46, 5, 4), {.window = window}) <= 1);
}

TEST_CASE("attend: each layer has its own positions", "[cache][attention][positions]") {
  auto cache = make_cache<plain>({.layers = 2, .kv_heads = 1, .query_heads = 1});
  pith::sequence const s = cache.open().value();
  tokens_of_heads const k = model_keys(51, 300, 1), v = gaussian(52, 300, 1);
  REQUIRE(cache.append(s, 0, k.part(0, 100), v.part(0, 100)));  // one layer is ahead when the step is given up
  REQUIRE(cache.append(s, 1, k.part(0, 70), v.part(0, 70)));
  REQUIRE(cache.truncate(s, 50));
  for (int layer = 0; layer < 2; ++layer) REQUIRE(cache.append(s, layer, k.part(100, 80), v.part(100, 80)));
  for (int layer = 0; layer < 2; ++layer) {
    content const all = stored(cache, s, layer, 0);
    REQUIRE(all.tokens == 130);
    for (int64_t t = 0; t < all.tokens; ++t) CHECK(all.position[static_cast<std::size_t>(t)] == t);
    for (int64_t const window : {10, 80, 81, 90}) CHECK(attention_error(cache, s, layer, model_queries(53, 2, 1), {.window = window}) <= 1);
  }
}

TEST_CASE("attend: a sequence without tokens gives zeros and lse -infinity, or the sink", "[cache][attention][edge]") {
  auto cache = make_cache<plain>();
  pith::sequence const s = cache.open().value();
  tokens_of_heads const q = model_queries(61, 5, 4);
  std::array<float, 4> const sinks{-3.0f, 0.0f, 2.5f, 40.0f};
  for (int64_t const window : {0, 3}) {
    outputs const bare = attend(cache, s, 0, q, {.window = window});
    REQUIRE(bare.status);
    for (float const x : bare.out.data) REQUIRE(x == 0);
    for (float const x : bare.lse) CHECK(x == -std::numeric_limits<float>::infinity());
    outputs const sunk = attend(cache, s, 0, q, {.window = window, .sink_logits = sinks});
    for (float const x : sunk.out.data) REQUIRE(x == 0);
    for (std::size_t i = 0; i < sunk.lse.size(); ++i) CHECK(sunk.lse[i] == Approx(sinks[i % 4]).margin(1e-5));
  }
  CHECK(attend(cache, s, 0, zeros(0, 4)).status);  // no query is no work
}

TEST_CASE("append: bf16, f16 and f32 and any strides store the same", "[cache][append]") {
  tokens_of_heads k = model_keys(71, 120, 2), v = gaussian(72, 120, 2);
  for (float& x : k.data) x = pith::to_float(pith::from_float<pith::f16>(rounded_to_bf16(x)));  // exact in all three
  for (float& x : v.data) x = pith::to_float(pith::from_float<pith::f16>(rounded_to_bf16(x) + 4.0f));
  for (float& x : v.data) x = rounded_to_bf16(x);
  auto cache = make_cache<plain>();
  pith::sequence const s = cache.open().value();
  REQUIRE(cache.append(s, 0, k.all(), v.all()));
  sequence_image const expected = image(cache, s);
  auto const check = [&](auto keys, auto values) {
    pith::sequence const other = cache.open().value();
    REQUIRE(cache.append(other, 0, keys, values));
    CHECK(image(cache, other) == expected);
    REQUIRE(cache.close(other));
  };
  auto const k16 = convert<pith::f16>(k), v16 = convert<pith::f16>(v);
  auto const kb = convert<pith::bf16>(k), vb = convert<pith::bf16>(v);
  check(pith::tensor_view<pith::f16 const, 3>(k16.data(), {120, 2, 64}), pith::tensor_view<pith::bf16 const, 3>(vb.data(), {120, 2, 64}));
  check(pith::tensor_view<pith::bf16 const, 3>(kb.data(), {120, 2, 64}), pith::tensor_view<pith::f16 const, 3>(v16.data(), {120, 2, 64}));

  std::vector<float> k_heads_first(2 * 120 * 64);  // [head][token][channel], and every third number of a longer row
  std::vector<pith::bf16> v_spread(120 * 2 * 64 * 3, pith::bf16{0x7fc0});
  for (int64_t t = 0; t < 120; ++t)
    for (int h = 0; h < 2; ++h)
      for (int c = 0; c < 64; ++c) {
        k_heads_first[static_cast<std::size_t>((h * 120 + t) * 64 + c)] = k.row(t, h)[c];
        v_spread[static_cast<std::size_t>(((t * 2 + h) * 64 + c) * 3)] = pith::from_float<pith::bf16>(v.row(t, h)[c]);
      }
  check(pith::tensor_view<float, 3>(k_heads_first.data(), {120, 2, 64}, {64, 120 * 64, 1}),
        pith::tensor_view<pith::bf16, 3>(v_spread.data(), {120, 2, 64}, {2 * 64 * 3, 64 * 3, 3}));

  std::vector<float> backwards(k.data.rbegin(), k.data.rend());  // negative strides
  check(pith::tensor_view<float, 3>(backwards.data() + backwards.size() - 1, {120, 2, 64}, {-128, -64, -1}), v.all());
}

TEST_CASE("attend: queries and outputs of 16 bits and with strides", "[cache][attention]") {
  filled<plain> made(100);
  tokens_of_heads q = made.queries(3);
  for (float& x : q.data) x = rounded_to_bf16(x);
  outputs const expected = attend(made.cache, made.of, 0, q);
  auto const q16 = convert<pith::bf16>(q);
  std::vector<pith::f16> out(3 * 4 * 64 * 2, pith::f16{0x1234});
  pith::tensor_view<pith::f16, 3> const spread(out.data(), {3, 4, 64}, {128, 3 * 128, 2});  // [head][token][channel], every second number
  REQUIRE(made.cache.attend(made.of, 0, pith::tensor_view<pith::bf16 const, 3>(q16.data(), {3, 4, 64}), spread));
  for (int64_t i = 0; i < 3; ++i)
    for (int h = 0; h < 4; ++h)
      for (int c = 0; c < 64; ++c) {
        REQUIRE(spread(i, h, c) == pith::from_float<pith::f16>(expected.out.row(i, h)[c]));
        REQUIRE((&spread(i, h, c))[1] == pith::f16{0x1234});
      }
}

TEST_CASE("attend, prefill: threads change no bit", "[cache][attention][threads]") {
  filled<pith::recipes::kivi4<64>> made(280, 5, 2);
  tokens_of_heads const q = made.queries(7);
  outputs const alone = attend(made.cache, made.of, 0, q);
  for (int const count : {1, 2, 4, 9}) {
    outputs const together = attend(made.cache, made.of, 0, q, {}, threads{count});
    CHECK(alone.out.data == together.out.data);
    CHECK(alone.lse == together.lse);
  }
  pith::sequence const fork = made.cache.fork(made.of).value();
  outputs const serial = prefill(made.cache, made.of, 0, q, made.k.part(0, 7), made.v.part(0, 7));
  tokens_of_heads out = zeros(7, 10);
  REQUIRE(made.cache.prefill(fork, 0, q.all(), made.k.part(0, 7), made.v.part(0, 7), writable(out), {}, threads{}));
  CHECK(serial.out.data == out.data);
  CHECK(image(made.cache, fork) == image(made.cache, made.of));
}

TEST_CASE("attend: different sequences at the same time", "[cache][attention][threads]") {
  auto cache = make_cache<plain>();
  tokens_of_heads const k = model_keys(81, 200, 2), v = gaussian(82, 200, 2), q = model_queries(83, 1, 4);
  std::array<pith::sequence, 3> const open{cache.open().value(), cache.open().value(), cache.open().value()};
  std::array<std::vector<float>, 3> out;
  std::atomic<int> errors{0};
  threads{3}.for_each(3, [&](int64_t i) {
    tokens_of_heads one = zeros(1, 4);
    for (int64_t t = 0; t < 200; ++t) {
      errors += !cache.append(open[static_cast<std::size_t>(i)], 0, k.part(t, 1), v.part(t, 1));
      errors += !cache.attend(open[static_cast<std::size_t>(i)], 0, q.all(), writable(one));
    }
    out[static_cast<std::size_t>(i)] = one.data;
  });
  CHECK(errors == 0);
  CHECK(out[0] == out[1]);
  CHECK(out[0] == out[2]);
  CHECK(image(cache, open[0]) == image(cache, open[2]));
}
