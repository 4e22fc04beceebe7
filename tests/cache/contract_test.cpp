// SPDX-License-Identifier: Apache-2.0
// The segment contract, rule by rule: what first, sealed and staged slots promise.
#include <algorithm>
#include <array>

#include "cache/support.hpp"

using namespace pith_test;

namespace {

// Keys and values are sealed at different times and in tiles of different codecs; a page is sealed in two steps.
template <int First>
struct mixed : pith::kv_cache<pith::head_dim<64>, pith::keys<pith::int4<pith::per_channel<32>>>,
                              pith::values<pith::int8<pith::per_token<32>>>, pith::raw<pith::first<First>, pith::last<32, 64>>,
                              pith::pages<pith::paged<64>>, pith::side<pith::liveness, pith::bias>> {};
using recipe = mixed<4>;

struct biased
    : pith::kv_cache<pith::head_dim<64>, pith::keys<pith::int4<pith::per_channel<32>>>, pith::values<pith::int4<pith::per_token<32>>>,
                     pith::raw<pith::first<4>, pith::last<32>>, pith::side<pith::bias>, pith::accuracy<pith::integer_accuracy>> {};

// Values leave staging first, so that a cut may leave dead slots among raw keys.
struct late_keys : pith::kv_cache<pith::head_dim<64>, pith::keys<pith::int4<pith::per_channel<32>>>,
                                  pith::values<pith::int8<pith::per_token<32>>>, pith::raw<pith::first<4>, pith::last<96, 32>>> {};

pith::cache_shape const shape{
    .layers = 2, .kv_heads = 2, .query_heads = 4, .bytes = 8 << 20, .max_sequences = 8, .max_tokens = 1024, .max_chunk = 100};

template <class Recipe = recipe>
pith::cache<Recipe> make_cache(pith::cache_shape const& of = shape) {
  auto made = pith::make<Recipe>(of);
  REQUIRE(made);
  return std::move(made).value();
}

// The same text for every test: token t of layer l.
struct text {
  std::array<tokens_of_heads, 2> k{model_keys(1, 700, 2), model_keys(2, 700, 2)}, v{gaussian(3, 700, 2), gaussian(4, 700, 2)};
};
text const& data() {
  static text const made;
  return made;
}
tokens_of_heads queries(int64_t tokens, std::uint64_t seed = 5) { return model_queries(seed, tokens, 4); }

template <class Recipe>
void append(pith::cache<Recipe>& cache, pith::sequence to, int64_t from, int64_t count) {
  for (int layer = 0; layer < cache.shape().layers; ++layer)
    REQUIRE(cache.append(to, layer, data().k[static_cast<std::size_t>(layer)].part(from, count),
                         data().v[static_cast<std::size_t>(layer)].part(from, count)));
}

template <class Recipe>
void check_attention(pith::cache<Recipe> const& cache, pith::sequence of, int64_t tokens = 3) {
  for (int layer = 0; layer < cache.shape().layers; ++layer)
    CHECK(attention_error(cache, of, layer, queries(std::min(tokens, cache.length(of, layer)))) <= 1);
}

// Every stored row is still recognizably the row that was appended: tokens[i] is the text's token that should be token i.
template <class Recipe>
void check_rows(pith::cache<Recipe> const& cache, pith::sequence of, std::vector<int64_t> const& tokens) {
  for (int layer = 0; layer < cache.shape().layers; ++layer) {
    REQUIRE(cache.length(of, layer) == static_cast<int64_t>(tokens.size()));
    for (int head = 0; head < 2; ++head) {
      content const all = stored(cache, of, layer, head);
      for (int64_t t = 0; t < all.tokens; ++t) {
        if (!all.live[static_cast<std::size_t>(t)]) continue;
        float const* const wanted = data().v[static_cast<std::size_t>(layer)].row(tokens[static_cast<std::size_t>(t)], head);
        float difference = 0, length = 0;
        for (int c = 0; c < all.dv; ++c) {
          float const d = all.values[static_cast<std::size_t>(t * all.dv + c)] - wanted[c];
          difference += d * d;
          length += wanted[c] * wanted[c];
        }
        if (!(difference < 0.001f * length))
          FAIL("layer " << layer << " head " << head << " token " << t << ": " << difference << " of " << length);
      }
    }
  }
}
std::vector<int64_t> count(int64_t from, int64_t to, std::vector<int64_t> before = {}) {
  for (int64_t t = from; t < to; ++t) before.push_back(t);
  return before;
}

bool same_attention(pith::cache<recipe> const& a, pith::sequence s, pith::cache<recipe> const& b, pith::sequence t) {
  bool same = true;
  for (int layer = 0; layer < 2; ++layer) {
    tokens_of_heads const q = queries(std::min<int64_t>(5, a.length(s, layer)));
    outputs const first = attend(a, s, layer, q), second = attend(b, t, layer, q);
    same = same && first.status && second.status && first.out.data == second.out.data && first.lse == second.lse;
  }
  return same;
}

}  // namespace

TEST_CASE("rule 1: tiles are counted from the end of first, so raw sinks shift nothing", "[cache][contract]") {
  auto with = make_cache<mixed<4>>();
  auto without = make_cache<mixed<0>>();
  pith::sequence const a = with.open().value(), b = without.open().value();
  append(with, a, 0, 304);
  append(without, b, 4, 300);
  std::string const bytes = sealed_bytes(with, a);
  CHECK(bytes.size() > 10000);
  CHECK(bytes == sealed_bytes(without, b));
}

TEST_CASE("rule 2: bytes depend on the slot number alone, not on how the tokens came", "[cache][contract]") {
  auto cache = make_cache();
  pith::sequence const once = cache.open().value(), singly = cache.open().value(), mixed_up = cache.open().value();
  append(cache, once, 0, 333);
  for (int64_t t = 0; t < 333; ++t) append(cache, singly, t, 1);
  random_bits bits(11);
  for (int64_t t = 0; t < 333;) {
    int64_t const count = std::min<int64_t>(333 - t, 1 + static_cast<int64_t>(bits() % 90));
    if (bits() % 2 == 0)
      append(cache, mixed_up, t, count);
    else
      for (int layer = 0; layer < 2; ++layer)
        REQUIRE(prefill(cache, mixed_up, layer, queries(count), data().k[static_cast<std::size_t>(layer)].part(t, count),
                        data().v[static_cast<std::size_t>(layer)].part(t, count))
                    .status);
    t += count;
  }
  sequence_image const expected = image(cache, once);
  CHECK(expected == image(cache, singly));
  CHECK(expected == image(cache, mixed_up));
  pith::layer_state const& state = cache.memory().layer(once.index, 0);
  CHECK(state.sealed_keys == (333 - 4 - 32) / 32 * 32);  // at least 32 keys and 64 values are raw
  CHECK(state.sealed_values == (333 - 4 - 64) / 32 * 32);
  check_attention(cache, mixed_up);
  check_rows(cache, mixed_up, count(0, 333));
}

TEST_CASE("rule 3: a sealed tile is never written again", "[cache][contract]") {
  auto cache = make_cache();
  pith::sequence const s = cache.open().value();
  append(cache, s, 0, 250);
  pith::layer_state const then = cache.memory().layer(s.index, 0);
  std::string const bytes = sealed_bytes(cache, s);
  auto const unchanged = [&] { return sealed_bytes(cache, s, then.sealed_keys, then.sealed_values) == bytes; };
  append(cache, s, 250, 100);
  CHECK(unchanged());
  std::array<int64_t, 4> const evicted{7, 60, 61, 200};
  REQUIRE(cache.evict(s, 0, 1, evicted));
  REQUIRE(cache.set_bias(s, 1, 0, 30, 3.0f));
  CHECK(unchanged());
  check_attention(cache, s, 20);
  CHECK(unchanged());
  pith::sequence const fork = cache.fork(s).value();
  REQUIRE(cache.truncate(fork, 200));
  append(cache, fork, 400, 200);
  CHECK(unchanged());
  REQUIRE(cache.truncate(s, 290));
  append(cache, s, 500, 100);
  CHECK(unchanged());
}

TEST_CASE("rule 4: a query sees the raw values of its own chunk", "[cache][contract]") {
  auto cache = make_cache();
  pith::sequence const s = cache.open().value();
  int64_t done = 0;
  for (int64_t const count : {3, 1, 40, 100, 97, 1, 64}) {
    for (int layer = 0; layer < 2; ++layer) {
      auto const& k = data().k[static_cast<std::size_t>(layer)];
      auto const& v = data().v[static_cast<std::size_t>(layer)];
      std::vector<content> heads = stored_heads(cache, s, layer);
      for (int head = 0; head < 2; ++head) heads[static_cast<std::size_t>(head)].add_chunk(k, v, head, done, count);
      tokens_of_heads const q = queries(count, static_cast<std::uint64_t>(100 + done));
      outputs const got = prefill(cache, s, layer, q, k.part(done, count), v.part(done, count));
      REQUIRE(got.status);
      INFO("layer " << layer << ", " << done << " tokens and a chunk of " << count);
      CHECK(worst_error(heads, q, got) <= 1);
      CHECK(cache.length(s, layer) == done + count);
    }
    done += count;
  }
}

TEST_CASE("rule 5: truncate is exact inside staging", "[cache][contract][truncate]") {
  auto cache = make_cache();
  pith::sequence const s = cache.open().value(), never = cache.open().value();
  append(cache, never, 0, 150);
  append(cache, s, 0, 150);
  append(cache, s, 600, 8);  // a draft that seals nothing
  auto const cut = cache.truncate(s, 150);
  REQUIRE(cut);
  CHECK(cut.value().exact);
  CHECK(cut.value().dead_slots == 0);
  CHECK(image(cache, s) == image(cache, never));
  CHECK(same_attention(cache, s, cache, never));
  append(cache, s, 600, 20);  // a draft that seals a tile of both; what is sealed stays so
  REQUIRE(cache.truncate(s, 150).value().exact);
  check_attention(cache, s);
  append(cache, s, 150, 70);
  append(cache, never, 150, 70);
  CHECK(image(cache, s) == image(cache, never));
  CHECK(same_attention(cache, s, cache, never));
}

TEST_CASE("rule 5: a cut inside sealed tiles leaves dead slots that nobody sees", "[cache][contract][truncate]") {
  auto cache = make_cache();
  pith::sequence const s = cache.open().value();
  append(cache, s, 0, 170);
  auto const cut = cache.truncate(s, 110);  // 106 slots after first: the tile that ends at 128 has 22 dead ones
  REQUIRE(cut);
  CHECK_FALSE(cut.value().exact);
  CHECK(cut.value().dead_slots == 22);
  CHECK(cache.length(s, 1) == 110);
  check_rows(cache, s, count(0, 110));
  check_attention(cache, s, 7);
  append(cache, s, 400, 150);
  std::vector<int64_t> tokens = count(400, 550, count(0, 110));
  check_rows(cache, s, tokens);
  check_attention(cache, s, 60);
  for (int64_t const window : {1, 20, 149, 150, 151, 200}) CHECK(attention_error(cache, s, 0, queries(3), {.window = window}) <= 1);

  SECTION("again, before the dead slots") {
    REQUIRE_FALSE(cache.truncate(s, 77).value().exact);
    append(cache, s, 0, 90);
    check_rows(cache, s, count(0, 90, count(0, 77)));
    check_attention(cache, s, 30);
  }
  SECTION("again, at the dead slots") {
    auto const again = cache.truncate(s, 110);
    REQUIRE(again);
    CHECK(again.value().dead_slots == 22);
    append(cache, s, 0, 90);
    check_rows(cache, s, count(0, 90, count(0, 110)));
    check_attention(cache, s, 30);
  }
  SECTION("again, behind the dead slots") {
    REQUIRE(cache.truncate(s, 115));
    append(cache, s, 0, 90);
    check_rows(cache, s, count(0, 90, count(400, 405, count(0, 110))));
    check_attention(cache, s, 30);
  }
  SECTION("a truncated sequence is forked") {
    pith::sequence const fork = cache.fork(s).value();
    append(cache, fork, 0, 64);
    append(cache, s, 0, 64);
    CHECK(image(cache, s) == image(cache, fork));
    CHECK(same_attention(cache, s, cache, fork));
  }
}

TEST_CASE("rule 5: dead slots widen no group when their tile is sealed later", "[cache][contract][truncate]") {
  auto cache = make_cache<late_keys>();
  pith::sequence const s = cache.open().value();
  append(cache, s, 0, 110);
  tokens_of_heads huge = data().k[0];
  for (float& x : huge.data) x *= 1000.0f;
  for (int layer = 0; layer < 2; ++layer) REQUIRE(cache.append(s, layer, huge.part(110, 60), huge.part(110, 60)));
  REQUIRE(cache.memory().layer(s.index, 0).sealed_keys < 106);  // values are sealed beyond the cut, keys are not
  REQUIRE(cache.truncate(s, 110).value().dead_slots == 22);
  append(cache, s, 110, 190);
  REQUIRE(cache.memory().layer(s.index, 0).sealed_keys > 128);
  check_rows(cache, s, count(0, 300));
  for (int layer = 0; layer < 2; ++layer) {
    content const all = stored(cache, s, layer, 1);
    for (int64_t t = 0; t < 300; ++t)
      for (int c = 0; c < 64; ++c)  // half of 15 steps of a range that is at most 8 standard deviations
        if (c != 9 &&
            !(std::fabs(all.keys[static_cast<std::size_t>(t * 64 + c)] - data().k[static_cast<std::size_t>(layer)].row(t, 1)[c]) < 1.1f))
          FAIL("token " << t << " channel " << c);
  }
}

TEST_CASE("rule 5: every length can be cut to", "[cache][contract][truncate]") {
  auto cache = make_cache();
  pith::sequence const s = cache.open().value();
  append(cache, s, 0, 230);
  for (int64_t tokens = 229; tokens >= 0; tokens -= tokens < 12 ? 1 : 7) {
    pith::sequence const cut = cache.fork(s).value();
    auto const done = cache.truncate(cut, tokens);
    REQUIRE(done);
    INFO("cut to " << tokens);
    check_rows(cache, cut, count(0, tokens));
    pith::layer_state const& state = cache.memory().layer(cut.index, 1);
    CHECK(done.value().exact == (state.slots == tokens));
    CHECK(done.value().dead_slots == state.slots - tokens);
    append(cache, cut, 300, 75);
    check_rows(cache, cut, count(300, 375, count(0, tokens)));
    CHECK(attention_error(cache, cut, 1, queries(4)) <= 1);
    REQUIRE(cache.close(cut));
  }
  CHECK(image(cache, s).numbers[0] == 230);
}

TEST_CASE("rule 5: to nothing, and to more than there is", "[cache][contract][truncate]") {
  auto cache = make_cache();
  pith::sequence const s = cache.open().value(), fresh = cache.open().value();
  append(cache, s, 0, 210);
  sequence_image const before = image(cache, s);
  for (int64_t const tokens : {210, 211, 100000}) {
    auto const done = cache.truncate(s, tokens);
    REQUIRE(done);
    CHECK(done.value().exact);
    CHECK(done.value().dead_slots == 0);
  }
  CHECK(image(cache, s) == before);
  auto const done = cache.truncate(s, 0);
  REQUIRE(done);
  CHECK(done.value().exact);
  CHECK(cache.memory().page_pool->used_blocks() == 0);
  CHECK(image(cache, s) == image(cache, fresh));
  append(cache, s, 5, 140);
  append(cache, fresh, 5, 140);
  CHECK(image(cache, s) == image(cache, fresh));
  CHECK(same_attention(cache, s, cache, fresh));
}

TEST_CASE("rule 6: a fork copies raw segments, shares pages, and both go on alone", "[cache][contract][fork]") {
  auto cache = make_cache();
  auto apart = make_cache();
  pith::sequence const s = cache.open().value();
  for (int64_t const tokens : {0, 3, 4, 70, 100, 132, 200, 333}) {
    INFO(tokens << " tokens, " << cache.length(s, 0) << " before");
    append(cache, s, cache.length(s, 0), tokens - cache.length(s, 0));
    int64_t const pages = cache.memory().page_pool->used_blocks(), runs = cache.memory().runs->used_runs(),
                  raw = cache.memory().raw_pool->used_blocks();
    pith::sequence const fork = cache.fork(s).value();
    CHECK(cache.memory().page_pool->used_blocks() == pages);
    CHECK(cache.memory().runs->used_runs() == runs);
    CHECK(cache.memory().raw_pool->used_blocks() == raw + cache.memory().heads_total());
    CHECK(image(cache, s) == image(cache, fork));
    CHECK(same_attention(cache, s, cache, fork));

    pith::sequence const twin_s = apart.open().value(), twin_fork = apart.open().value();
    append(apart, twin_s, 0, tokens);
    append(apart, twin_fork, 0, tokens);
    pith::sequence const other = cache.fork(s).value();  // s itself is kept for the next length
    append(cache, other, 500, 90);
    append(apart, twin_s, 500, 90);
    CHECK(image(cache, fork).numbers[0] == tokens);
    append(cache, fork, 400, 77);
    append(apart, twin_fork, 400, 77);
    CHECK(image(cache, other) == image(apart, twin_s));
    CHECK(image(cache, fork) == image(apart, twin_fork));
    CHECK(same_attention(cache, other, apart, twin_s));
    CHECK(same_attention(cache, fork, apart, twin_fork));
    for (pith::sequence const done : {fork, other}) REQUIRE(cache.close(done));
    for (pith::sequence const done : {twin_s, twin_fork}) REQUIRE(apart.close(done));
    CHECK(cache.memory().page_pool->used_blocks() == pages);
  }
}

TEST_CASE("rule 6: pages reserved before a fork are not written by both", "[cache][contract][fork]") {
  for (int64_t const before : {0, 4, 100, 164, 228}) {
    INFO(before << " tokens before");
    auto cache = make_cache();
    auto apart = make_cache();
    pith::sequence const s = cache.open().value();
    append(cache, s, 0, before);
    for (int layer = 0; layer < cache.shape().layers; ++layer) REQUIRE(cache.reserve_tokens(s, layer, 300));
    pith::sequence const fork = cache.fork(s).value();
    append(cache, s, before, 200);
    append(cache, fork, 400, 200);
    pith::sequence const twin_s = apart.open().value(), twin_fork = apart.open().value();
    append(apart, twin_s, 0, before + 200);
    append(apart, twin_fork, 0, before);
    append(apart, twin_fork, 400, 200);
    CHECK(image(cache, s) == image(apart, twin_s));
    CHECK(image(cache, fork) == image(apart, twin_fork));
  }
}

TEST_CASE("rule 6: forks of forks, closed in any order, leave nothing behind", "[cache][contract][fork]") {
  auto cache = make_cache();
  auto apart = make_cache();
  random_bits bits(17);
  for (int round = 0; round < 12; ++round) {
    std::vector<pith::sequence> open{cache.open().value()};
    std::vector<std::vector<int64_t>> tokens(1);
    auto const add = [&](std::size_t to, int64_t from, int64_t count_) {
      append(cache, open[to], from, count_);
      tokens[to] = count(from, from + count_, tokens[to]);
    };
    add(0, 0, 40 + static_cast<int64_t>(bits() % 100));
    while (open.size() < 7) {
      auto const from = static_cast<std::size_t>(bits() % open.size());
      open.push_back(cache.fork(open[from]).value());
      tokens.push_back(tokens[from]);
      add(bits() % 2 == 0 ? from : open.size() - 1, static_cast<int64_t>(bits() % 500), static_cast<int64_t>(bits() % 70));
    }
    while (!open.empty()) {
      auto const at = static_cast<std::size_t>(bits() % open.size());
      pith::sequence const twin = apart.open().value();
      for (std::size_t i = 0; i < tokens[at].size(); ++i) append(apart, twin, tokens[at][i], 1);
      CHECK(image(cache, open[at]) == image(apart, twin));
      CHECK(same_attention(cache, open[at], apart, twin));
      REQUIRE(apart.close(twin));
      REQUIRE(cache.close(open[at]));
      open.erase(open.begin() + static_cast<std::ptrdiff_t>(at));
      tokens.erase(tokens.begin() + static_cast<std::ptrdiff_t>(at));
    }
    CHECK(cache.memory().page_pool->used_blocks() == 0);
    CHECK(cache.memory().raw_pool->used_blocks() == 0);
    CHECK(cache.memory().runs->used_runs() == 0);
    CHECK(cache.resident_bytes() == 0);
  }
}

TEST_CASE("rule 7: evicted tokens are never seen, and dead pages are given back", "[cache][contract][evict]") {
  auto cache = make_cache();
  pith::sequence const s = cache.open().value();
  append(cache, s, 0, 300);
  std::vector<int64_t> some;
  random_bits bits(23);
  for (int64_t t = 0; t < 300; ++t)
    if (bits() % 3 == 0) some.push_back(t);
  REQUIRE(cache.evict(s, 0, 1, some));
  check_attention(cache, s, 3);
  for (int64_t const window : {1, 2, 40, 250}) CHECK(attention_error(cache, s, 0, queries(2), {.window = window}) <= 1);
  append(cache, s, 300, 100);  // new slots live
  check_attention(cache, s, 3);
  CHECK(stored(cache, s, 0, 1).live[399]);

  int64_t const pages = cache.memory().page_pool->used_blocks();
  REQUIRE(cache.evict(s, 0, 0, count(4, 4 + 128)));  // two whole pages of one head
  CHECK(cache.memory().page_pool->used_blocks() == pages - 2);
  REQUIRE(cache.evict(s, 0, 0, count(4, 4 + 128)));  // again: nothing more
  CHECK(cache.memory().page_pool->used_blocks() == pages - 2);
  check_attention(cache, s, 3);

  pith::sequence const fork = cache.fork(s).value();
  CHECK(same_attention(cache, s, cache, fork));
  REQUIRE(cache.evict(s, 1, 1, count(4, 4 + 64)));  // the fork shares this page
  CHECK(cache.memory().page_pool->used_blocks() == pages - 2);
  check_attention(cache, s, 3);
  CHECK(stored(cache, fork, 1, 1).live[10]);
  check_attention(cache, fork, 3);
  append(cache, s, 400, 100);
  append(cache, fork, 500, 100);
  check_attention(cache, s, 3);
  check_attention(cache, fork, 3);

  REQUIRE(cache.evict(s, 0, 0, count(0, 500)));  // a head without any token
  tokens_of_heads const q = queries(2);
  outputs const got = attend(cache, s, 0, q);
  REQUIRE(got.status);
  CHECK(std::all_of(got.out.row(0, 0), got.out.row(0, 2), [](float x) { return x == 0; }));
  CHECK(got.lse[0] == -std::numeric_limits<float>::infinity());
  check_attention(cache, s, 2);
  REQUIRE(cache.close(s));
  REQUIRE(cache.close(fork));
  CHECK(cache.resident_bytes() == 0);
}

TEST_CASE("rule 7: a page whose tokens were all evicted while raw is given back when it is sealed", "[cache][contract][evict]") {
  auto cache = make_cache();
  pith::sequence const s = cache.open().value();
  append(cache, s, 0, 68);
  REQUIRE(cache.evict(s, 0, 0, count(4, 68)));
  append(cache, s, 68, 100);
  CHECK(page_of(cache, s, 0, 0, 0) == pith::no_block);
  CHECK_FALSE(page_of(cache, s, 0, 1, 0) == pith::no_block);
  check_attention(cache, s, 3);
}

TEST_CASE("rule 7: a page that was given back is there again when a cut makes it the last one", "[cache][contract][evict][truncate]") {
  auto cache = make_cache();
  pith::sequence const s = cache.open().value();
  append(cache, s, 0, 300);
  REQUIRE(cache.evict(s, 0, 0, count(4, 4 + 128)));
  std::vector<int64_t> tokens;
  SECTION("in the middle of a tile") {
    REQUIRE(cache.truncate(s, 80));
    tokens = count(0, 80);
  }
  SECTION("at the end of a tile") {
    REQUIRE(cache.truncate(s, 100));
    tokens = count(0, 100);
  }
  SECTION("at the end of a page") {
    REQUIRE(cache.truncate(s, 68));
    tokens = count(0, 68);
  }
  pith::sequence const fork = cache.fork(s).value();
  append(cache, s, 300, 200);
  check_attention(cache, s, 3);
  append(cache, fork, 450, 200);
  check_attention(cache, fork, 3);
  for (int head = 0; head < 2; ++head) {
    content const all = stored(cache, fork, 0, head);
    CHECK(std::find(all.live.begin() + static_cast<std::ptrdiff_t>(tokens.size()), all.live.end(), false) == all.live.end());
  }
  check_rows(cache, s, count(300, 500, tokens));
  check_rows(cache, fork, count(450, 650, tokens));
  REQUIRE(cache.close(s));
  REQUIRE(cache.close(fork));
  CHECK(cache.resident_bytes() == 0);
}

TEST_CASE("rule 8: a slot with a large bias makes its step exact and drowns nobody", "[cache][contract][bias]") {
  pith::cache_shape small = shape;
  small.layers = 1;
  auto cache = make_cache<biased>(small);
  pith::sequence const s = cache.open().value();
  append(cache, s, 0, 4 + 64 + 40);  // one page: with a large bias, everything is computed exactly
  float const minus_infinity = -std::numeric_limits<float>::infinity();
  for (float const bias : {std::log(1000.0f), -20.0f, 80.0f, -1e30f, minus_infinity})
    for (int64_t const token : {0, 3, 4, 40, 67, 68, 107}) {
      INFO("bias " << bias << " on token " << token);
      for (int head = 0; head < 2; ++head) {
        REQUIRE(cache.set_bias(s, 0, head, 10, 3.0f));  // keeps the page exact
        REQUIRE(cache.set_bias(s, 0, head, token, bias));
      }
      CHECK(attention_error(cache, s, 0, queries(3)) <= 1);
      for (int head = 0; head < 2; ++head) REQUIRE(cache.set_bias(s, 0, head, token, 0));
    }
}

TEST_CASE("rule 8: integer accuracy stays within its error, with and without biased tiles", "[cache][contract][bias]") {
  pith::cache_shape small = shape;
  small.layers = 1;
  auto cache = make_cache<biased>(small);
  pith::sequence const s = cache.open().value();
  append(cache, s, 0, 600);
  for (float const bias : {0.0f, std::log(1000.0f), -20.0f}) {
    for (int head = 0; head < 2; ++head)
      for (int64_t const token : {30, 200, 411}) REQUIRE(cache.set_bias(s, 0, head, token, bias));
    tokens_of_heads const q = queries(8);
    outputs const got = attend(cache, s, 0, q);
    REQUIRE(got.status);
    std::vector<content> const heads = stored_heads(cache, s, 0);
    double difference = 0, length = 0, lse_error = 0;
    for (int64_t i = 0; i < q.tokens; ++i)
      for (int h = 0; h < 4; ++h) {
        answer const right = exact_attention(heads[static_cast<std::size_t>(h / 2)], q.row(i, h), 0, 600 - 8 + i + 1, {});
        for (int c = 0; c < 64; ++c) {
          double const d = static_cast<double>(got.out.row(i, h)[c]) - right.out[static_cast<std::size_t>(c)];
          difference += d * d;
          length += right.out[static_cast<std::size_t>(c)] * right.out[static_cast<std::size_t>(c)];
        }
        lse_error = std::max(lse_error, std::fabs(static_cast<double>(got.lse[static_cast<std::size_t>(i * 4 + h)]) - right.lse));
      }
    INFO("bias " << bias << ": relative error " << std::sqrt(difference / length) << ", lse " << lse_error);
    CHECK(std::sqrt(difference / length) < 0.01);
    CHECK(lse_error < 0.01);
  }
}
