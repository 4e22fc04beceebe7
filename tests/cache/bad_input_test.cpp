// SPDX-License-Identifier: Apache-2.0
// What the cache answers to bad data: a status that says what and where, and a cache that is as it was.
#include <array>

#include "cache/support.hpp"

using namespace pith_test;
using pith::errc;
using pith::status;

namespace {

struct recipe : pith::kv_cache<pith::head_dim<64>, pith::keys<pith::int8<pith::per_token<64>>>, pith::values<pith::raw<pith::bf16>>,
                               pith::raw<pith::first<4>, pith::last<32>>, pith::side<pith::positions, pith::liveness, pith::bias>> {};
struct rejecting : pith::kv_cache<pith::head_dim<64>, pith::keys<pith::raw<pith::bf16>>, pith::values<pith::raw<pith::bf16>>,
                                  pith::non_finite<pith::nan_policy::reject>> {};
struct propagating : pith::kv_cache<pith::head_dim<64>, pith::keys<pith::raw<pith::bf16>>, pith::values<pith::raw<pith::bf16>>,
                                    pith::non_finite<pith::nan_policy::propagate>> {};

pith::cache_shape const shape{
    .layers = 2, .kv_heads = 2, .query_heads = 4, .bytes = 4 << 20, .max_sequences = 3, .max_tokens = 600, .max_chunk = 50};

template <class Recipe = recipe>
pith::cache<Recipe> make_cache(pith::cache_shape const& of = shape) {
  auto made = pith::make<Recipe>(of);
  REQUIRE(made);
  return std::move(made).value();
}

tokens_of_heads const k = model_keys(1, 400, 2), v = gaussian(2, 400, 2), q = model_queries(3, 400, 4);

pith::tensor_view<float const, 3> view(tokens_of_heads const& of, int64_t tokens, int heads, int channels) {
  return {of.data.data(), {tokens, heads, channels}};
}

struct room {
  std::vector<float> data = std::vector<float>(400 * 4 * 64, 7.0f);
  pith::tensor_view<float, 3> of(int64_t tokens, int heads = 4, int channels = 64) { return {data.data(), {tokens, heads, channels}}; }
  bool untouched() const {
    for (float const x : data)
      if (x != 7.0f) return false;
    return true;
  }
};

float const not_a_number = std::numeric_limits<float>::quiet_NaN(), infinity = std::numeric_limits<float>::infinity();

bool all_finite(std::vector<float> const& numbers) {
  for (float const x : numbers)
    if (!std::isfinite(x)) return false;
  return true;
}

// Bytes that a shape needs at least: what make() says is missing is added until it is content.
template <class Recipe>
int64_t least_bytes(pith::cache_shape of) {
  of.bytes = 0;
  for (int tries = 0; tries < 8; ++tries) {
    auto const made = pith::make<Recipe>(of);
    if (made) return of.bytes;
    REQUIRE(made.error().code == errc::capacity_exceeded);
    REQUIRE(made.error().at > 0);
    of.bytes += made.error().at;
  }
  FAIL("still missing after 8 tries");
  return 0;
}

}  // namespace

TEST_CASE("handles: closed, reopened, foreign and made up ones are stale everywhere", "[cache][error]") {
  auto cache = make_cache();
  auto other = make_cache();
  pith::sequence const closed = cache.open().value();
  REQUIRE(cache.append(closed, 0, k.part(0, 10), v.part(0, 10)));
  REQUIRE(cache.close(closed));
  pith::sequence const reopened = cache.open().value();  // the same place, another generation
  REQUIRE(reopened.index == closed.index);
  pith::sequence const foreign = other.open().value();
  room out;
  for (pith::sequence const bad : {closed, foreign, pith::sequence{}, pith::sequence{reopened.cache, 3, 0},
                                   pith::sequence{reopened.cache, 0xffffffffu, 0}, pith::sequence{reopened.cache, 1, 0}}) {
    INFO(bad.cache << " " << bad.index << " " << bad.generation);
    status const stale{errc::stale_handle, bad.index};
    CHECK(cache.append(bad, 0, k.part(0, 1), v.part(0, 1)) == stale);
    CHECK(cache.attend(bad, 0, q.part(0, 1), out.of(1)) == stale);
    CHECK(cache.prefill(bad, 0, q.part(0, 1), k.part(0, 1), v.part(0, 1), out.of(1)) == stale);
    CHECK(cache.fork(bad).error() == stale);
    CHECK(cache.truncate(bad, 0).error() == stale);
    CHECK(cache.evict(bad, 0, 0, {}) == stale);
    CHECK(cache.set_bias(bad, 0, 0, 0, 1.0f) == stale);
    CHECK(cache.close(bad) == stale);
    CHECK(cache.length(bad, 0) == 0);
  }
  CHECK(out.untouched());
  CHECK(cache.length(reopened, 0) == 0);
}

TEST_CASE("layers, heads and tokens out of range", "[cache][error]") {
  auto cache = make_cache();
  pith::sequence const s = cache.open().value();
  for (int layer = 0; layer < 2; ++layer) REQUIRE(cache.append(s, layer, k.part(0, 100), v.part(0, 100)));
  sequence_image const before = image(cache, s);
  room out;
  for (int const layer : {-1, 2, 1 << 30}) {
    status const bad{errc::out_of_range, layer};
    CHECK(cache.append(s, layer, k.part(0, 1), v.part(0, 1)) == bad);
    CHECK(cache.attend(s, layer, q.part(0, 1), out.of(1)) == bad);
    CHECK(cache.prefill(s, layer, q.part(0, 1), k.part(0, 1), v.part(0, 1), out.of(1)) == bad);
    CHECK(cache.evict(s, layer, 0, {}) == bad);
    CHECK(cache.set_bias(s, layer, 0, 0, 1.0f) == bad);
    CHECK(cache.length(s, layer) == 0);
  }
  for (int const head : {-1, 2}) {
    CHECK(cache.evict(s, 0, head, {}) == status{errc::out_of_range, head});
    CHECK(cache.set_bias(s, 0, head, 0, 1.0f) == status{errc::out_of_range, head});
  }
  for (int64_t const token : {int64_t{-1}, int64_t{100}, int64_t{1} << 40}) {
    std::array<int64_t, 3> const some{5, token, 6};
    CHECK(cache.evict(s, 0, 1, some) == status{errc::out_of_range, token});
    CHECK(cache.set_bias(s, 0, 1, token, 1.0f) == status{errc::out_of_range, token});
  }
  for (float const bias : {not_a_number, infinity}) CHECK(cache.set_bias(s, 0, 1, 17, bias) == status{errc::not_finite, 17});
  CHECK(cache.truncate(s, -1).error() == status{errc::out_of_range, -1});
  CHECK(cache.attend(s, 0, q.part(0, 101), out.of(101)) == status{errc::out_of_range, 101});
  for (pith::attention_options const& options :
       {pith::attention_options{.scale = -1}, pith::attention_options{.scale = not_a_number}, pith::attention_options{.soft_cap = -1},
        pith::attention_options{.soft_cap = not_a_number}, pith::attention_options{.window = -1}})
    CHECK(cache.attend(s, 0, q.part(0, 1), out.of(1), options).code == errc::out_of_range);
  CHECK(image(cache, s) == before);
  CHECK(out.untouched());
}

TEST_CASE("shapes that do not fit", "[cache][error]") {
  auto cache = make_cache();
  pith::sequence const s = cache.open().value();
  REQUIRE(cache.append(s, 0, k.part(0, 100), v.part(0, 100)));
  sequence_image const before = image(cache, s);
  room out;
  auto const good_k = k.part(0, 3), good_v = v.part(0, 3);
  std::array const bad_views{view(k, 4, 2, 64), view(k, 3, 1, 64), view(k, 3, 3, 64), view(k, 3, 2, 32),
                             view(k, 3, 2, 65), view(k, 3, 2, 0),  view(k, -1, 2, 64)};
  for (auto const& bad : bad_views) {
    CHECK(cache.append(s, 0, bad, good_v).code == errc::shape_mismatch);
    CHECK(cache.append(s, 0, good_k, bad).code == errc::shape_mismatch);
    CHECK(cache.prefill(s, 0, q.part(0, 3), bad, good_v, out.of(3)).code == errc::shape_mismatch);
  }
  CHECK(cache.prefill(s, 0, q.part(0, 2), good_k, good_v, out.of(2)).code == errc::shape_mismatch);
  for (auto const& bad : {view(q, 3, 2, 64), view(q, 3, 8, 64), view(q, 3, 3, 64), view(q, 3, 4, 63), view(q, 3, 0, 64)}) {
    CHECK(cache.attend(s, 0, bad, out.of(3)).code == errc::shape_mismatch);
    CHECK(cache.prefill(s, 0, bad, good_k, good_v, out.of(3)).code == errc::shape_mismatch);
  }
  CHECK(cache.attend(s, 0, q.part(0, 3), out.of(2)).code == errc::shape_mismatch);
  CHECK(cache.attend(s, 0, q.part(0, 3), out.of(3, 2)).code == errc::shape_mismatch);
  CHECK(cache.attend(s, 0, q.part(0, 3), out.of(3, 4, 32)).code == errc::shape_mismatch);
  std::array<float, 3> const sinks{};
  CHECK(cache.attend(s, 0, q.part(0, 3), out.of(3), {.sink_logits = sinks}).code == errc::shape_mismatch);
  std::array<float, 12> lse{};
  CHECK(cache.attend(s, 0, q.part(0, 3), out.of(3), {.lse = {lse.data(), {2, 4}}}).code == errc::shape_mismatch);
  CHECK(cache.attend(s, 0, q.part(0, 3), out.of(3), {.lse = {lse.data(), {3, 3}}}).code == errc::shape_mismatch);
  CHECK(image(cache, s) == before);
  CHECK(out.untouched());
  CHECK(cache.append(s, 0, k.part(0, 0), v.part(0, 0)));  // nothing is not bad
  CHECK(image(cache, s) == before);
}

TEST_CASE("make: shapes, memory that is too small, memory that is not aligned", "[cache][error]") {
  auto const code = [](auto change) {
    pith::cache_shape bad = shape;
    change(bad);
    return pith::make<recipe>(bad).error().code;
  };
  CHECK(code([](auto& s) { s.layers = 0; }) == errc::shape_mismatch);
  CHECK(code([](auto& s) { s.kv_heads = 0; }) == errc::shape_mismatch);
  CHECK(code([](auto& s) { s.kv_heads = -2; }) == errc::shape_mismatch);
  CHECK(code([](auto& s) { s.query_heads = 0; }) == errc::shape_mismatch);
  CHECK(code([](auto& s) { s.query_heads = 5; }) == errc::shape_mismatch);
  CHECK(code([](auto& s) { s.query_heads = 1; }) == errc::shape_mismatch);
  CHECK(code([](auto& s) { s.max_sequences = 0; }) == errc::shape_mismatch);
  CHECK(code([](auto& s) { s.max_chunk = -1; }) == errc::shape_mismatch);
  CHECK(code([](auto& s) { s.max_tokens = -1; }) == errc::shape_mismatch);
  CHECK(code([](auto& s) { s.max_tokens = 0; }) == errc::shape_mismatch);  // side arrays need it
  CHECK(code([](auto& s) { s.bytes = -1; }) == errc::out_of_range);
  CHECK(code([](auto& s) { s.bytes = std::numeric_limits<int64_t>::max(); }) == errc::out_of_memory);

  int64_t const least = least_bytes<recipe>(shape);
  CHECK(least < 4 << 20);
  pith::cache_shape tight = shape;
  for (int64_t const short_of : {int64_t{1}, int64_t{64}, least / 2, least}) {
    tight.bytes = least - short_of;
    auto const made = pith::make<recipe>(tight);
    REQUIRE_FALSE(made);
    CHECK(made.error().code == errc::capacity_exceeded);
  }

  std::vector<std::byte> bytes(static_cast<std::size_t>(least + 128));
  auto const past = reinterpret_cast<std::uintptr_t>(bytes.data()) % 64;
  std::byte* const aligned = bytes.data() + (64 - past) % 64;
  for (int const off : {1, 4, 32, 63})
    CHECK(pith::make<recipe>(shape, {aligned + off, static_cast<std::size_t>(least)}).error() == status{errc::misaligned, off});
  auto borrowed = pith::make<recipe>(shape, {aligned, static_cast<std::size_t>(least)});
  REQUIRE(borrowed);
  pith::sequence const s = borrowed.value().open().value();
  REQUIRE(borrowed.value().append(s, 0, k.part(0, 40), v.part(0, 40)));
  std::byte const* const raw = borrowed.value().memory().raw_block(s.index, 0, 0);
  CHECK((raw >= aligned && raw < aligned + least));
}

TEST_CASE("limits: max_sequences, max_tokens, max_chunk", "[cache][error]") {
  auto cache = make_cache();
  std::vector<pith::sequence> open;
  for (int i = 0; i < 3; ++i) open.push_back(cache.open().value());
  CHECK(cache.open().error() == status{errc::capacity_exceeded, 3});
  CHECK(cache.fork(open[0]).error() == status{errc::capacity_exceeded, 3});
  REQUIRE(cache.close(open[1]));
  open[1] = cache.fork(open[0]).value();
  CHECK(cache.open().error() == status{errc::capacity_exceeded, 3});

  pith::sequence const s = open[2];
  REQUIRE(cache.append(s, 0, k.part(0, 300), v.part(0, 300)));
  REQUIRE(cache.append(s, 0, k.part(0, 299), v.part(0, 299)));
  room out;
  CHECK(cache.append(s, 0, k.part(0, 2), v.part(0, 2)) == status{errc::capacity_exceeded, 600});
  CHECK(cache.prefill(s, 0, q.part(0, 2), k.part(0, 2), v.part(0, 2), out.of(2)) == status{errc::capacity_exceeded, 600});
  CHECK(cache.length(s, 0) == 599);
  CHECK(cache.append(s, 0, k.part(0, 1), v.part(0, 1)));
  CHECK(cache.append(s, 0, k.part(0, 1), v.part(0, 1)) == status{errc::capacity_exceeded, 600});
  CHECK(attention_error(cache, s, 0, q) <= 1);

  CHECK(cache.prefill(open[0], 0, q.part(0, 51), k.part(0, 51), v.part(0, 51), out.of(51)) == status{errc::capacity_exceeded, 50});
  CHECK(out.untouched());
  CHECK(cache.length(open[0], 0) == 0);
  CHECK(cache.prefill(open[0], 0, q.part(0, 50), k.part(0, 50), v.part(0, 50), out.of(50)));
  CHECK(cache.prefill(open[0], 0, q.part(0, 0), k.part(0, 0), v.part(0, 0), out.of(0)));
  CHECK(cache.length(open[0], 0) == 50);
}

TEST_CASE("positions must ascend", "[cache][error][positions]") {
  auto cache = make_cache();
  pith::sequence const s = cache.open().value();
  auto const append = [&](std::vector<int64_t> const& at) { return cache.append(s, 0, k.part(0, 3), v.part(0, 3), at); };
  CHECK(append({-1, 0, 1}) == status{errc::out_of_range, 0});
  CHECK(append({5, 5, 6}) == status{errc::out_of_range, 1});
  CHECK(append({5, 7, 6}) == status{errc::out_of_range, 2});
  CHECK(append({5, 6}) == status{errc::shape_mismatch, 2});
  CHECK(append({5, 6, 7, 8}) == status{errc::shape_mismatch, 4});
  CHECK(cache.length(s, 0) == 0);
  REQUIRE(append({5, 6, 9}));
  CHECK(append({9, 10, 11}) == status{errc::out_of_range, 0});
  CHECK(append({3, 10, 11}) == status{errc::out_of_range, 0});
  REQUIRE(append({10, 20, 30}));
  CHECK(cache.length(s, 0) == 6);
  auto without = make_cache<rejecting>();
  pith::sequence const t = without.open().value();
  std::array<int64_t, 3> const at{0, 1, 2};
  CHECK(without.append(t, 0, k.part(0, 3), v.part(0, 3), at) == status{errc::unsupported, 3});
}

TEST_CASE("an exhausted pool changes nothing, and room made elsewhere is enough", "[cache][error][capacity]") {
  pith::cache_shape tight = shape;
  tight.bytes = least_bytes<recipe>(shape) + 6 * recipe::page::bytes;  // 10 pages; a layer's two heads take two at a time
  auto cache = make_cache(tight);
  REQUIRE(cache.memory().page_pool->blocks() == 10);
  pith::sequence const s = cache.open().value(), other = cache.open().value();
  REQUIRE(cache.append(other, 0, k.part(0, 4 + 32 + 128), v.part(0, 4 + 32 + 128)));  // 4 pages
  REQUIRE(cache.append(s, 0, k.part(0, 4 + 32 + 60), v.part(0, 4 + 32 + 60)));        // 2 pages, the second tile staged
  REQUIRE(cache.append(s, 1, k.part(0, 4 + 32 + 60), v.part(0, 4 + 32 + 60)));        // 2 pages
  pith::sequence const fork = cache.fork(s).value();
  sequence_image const before = image(cache, s), fork_before = image(cache, fork);
  outputs const said = attend(cache, s, 0, model_queries(9, 3, 4));
  room out;
  for (int tries = 0; tries < 3; ++tries) {
    status const full = cache.append(s, 0, k.part(100, 200), v.part(100, 200));
    CHECK(full.code == errc::capacity_exceeded);
    CHECK(full.at > 0);
    CHECK(cache.prefill(s, 0, q.part(0, 50), k.part(100, 50), v.part(100, 50), out.of(50)).code == errc::capacity_exceeded);
    CHECK(image(cache, s) == before);
    CHECK(image(cache, fork) == fork_before);
  }
  CHECK(out.untouched());
  outputs const again = attend(cache, s, 0, model_queries(9, 3, 4));
  CHECK(said.out.data == again.out.data);
  CHECK(said.lse == again.lse);
  REQUIRE(cache.close(other));
  REQUIRE(cache.append(s, 0, k.part(100, 160), v.part(100, 160)));
  CHECK(attention_error(cache, s, 0, model_queries(9, 3, 4)) <= 1);
  CHECK(image(cache, fork) == fork_before);
  REQUIRE(cache.close(fork));
  REQUIRE(cache.append(s, 0, k.part(260, 40), v.part(260, 40)));
  REQUIRE(cache.close(s));
  CHECK(cache.memory().page_pool->used_blocks() == 0);
  CHECK(cache.memory().runs->used_runs() == 0);
  CHECK(cache.resident_bytes() == 0);
}

TEST_CASE("what was reserved stays reserved when a longer append fails", "[cache][error][capacity]") {
  pith::cache_shape tight = shape;
  tight.bytes = least_bytes<recipe>(shape) + 4 * recipe::page::bytes;  // 8 pages
  auto cache = make_cache(tight);
  pith::sequence const s = cache.open().value(), other = cache.open().value();
  REQUIRE(cache.reserve_tokens(s, 0, 4 + 32 + 128));  // 4 pages
  REQUIRE(cache.memory().page_pool->used_blocks() == 4);
  CHECK(cache.append(s, 0, k.part(0, 400), v.part(0, 400)).code == errc::capacity_exceeded);
  CHECK(cache.memory().page_pool->used_blocks() == 4);
  REQUIRE(cache.append(other, 0, k.part(0, 4 + 32 + 128), v.part(0, 4 + 32 + 128)));  // the other 4
  CHECK(cache.append(s, 0, k.part(0, 4 + 32 + 128), v.part(0, 4 + 32 + 128)));
}

TEST_CASE("what an append takes before the pool ends is given back", "[cache][error][capacity]") {
  pith::cache_shape tight = shape;
  tight.bytes = least_bytes<recipe>(shape) + 4 * recipe::page::bytes;  // 8 pages
  auto cache = make_cache(tight);
  pith::sequence const s = cache.open().value(), other = cache.open().value();
  REQUIRE(cache.append(s, 0, k.part(0, 4 + 32 + 192), v.part(0, 4 + 32 + 192)));  // 6 pages
  int64_t const runs = cache.memory().runs->used_runs();
  REQUIRE(cache.memory().page_pool->used_blocks() == 6);
  CHECK(cache.append(s, 0, k.part(0, 128), v.part(0, 128)) == status{errc::capacity_exceeded, 4});  // there is room for one head
  CHECK(cache.memory().page_pool->used_blocks() == 6);
  CHECK(cache.memory().runs->used_runs() == runs);
  REQUIRE(cache.append(other, 0, k.part(0, 4 + 32 + 64), v.part(0, 4 + 32 + 64)));
  CHECK(cache.memory().page_pool->used_blocks() == 8);
  CHECK(attention_error(cache, s, 0, model_queries(9, 3, 4)) <= 1);
}

TEST_CASE("truncate: more than 16 cut tiles are refused, and nothing was cut", "[cache][error][truncate]") {
  auto cache = make_cache<rejecting>();
  pith::sequence const s = cache.open().value();
  int64_t tokens = 0;
  for (int i = 0; i < 16; ++i) {
    for (int layer = 0; layer < 2; ++layer) REQUIRE(cache.append(s, layer, k.part(0, 80), v.part(0, 80)));
    tokens += 9;
    auto const cut = cache.truncate(s, tokens);
    REQUIRE(cut);
    CHECK_FALSE(cut.value().exact);
    CHECK(cut.value().dead_slots == 23 * (i + 1));
  }
  for (int layer = 0; layer < 2; ++layer) REQUIRE(cache.append(s, layer, k.part(0, 80), v.part(0, 80)));
  sequence_image const before = image(cache, s);
  CHECK(cache.truncate(s, tokens + 9).error() == status{errc::capacity_exceeded, 16});
  CHECK(image(cache, s) == before);
  for (int layer = 0; layer < 2; ++layer) CHECK(attention_error(cache, s, layer, model_queries(9, 70, 4)) <= 1);
  CHECK(cache.truncate(s, tokens + 32).value().exact);       // a cut at a tile's end needs no dead slot
  CHECK_FALSE(cache.truncate(s, tokens - 9).value().exact);  // the last cut is undone, and there is room for one more
  for (int layer = 0; layer < 2; ++layer) REQUIRE(cache.append(s, layer, k.part(0, 80), v.part(0, 80)));
  CHECK_FALSE(cache.truncate(s, tokens).value().exact);
  CHECK(cache.truncate(s, 100));
  CHECK(cache.length(s, 0) == 100);
  CHECK(attention_error(cache, s, 0, model_queries(9, 70, 4)) <= 1);
}

TEST_CASE("saturate: NaN and infinity become numbers and disturb no other row", "[cache][error][nan]") {
  auto cache = make_cache();
  pith::sequence const clean = cache.open().value(), dirty = cache.open().value();
  tokens_of_heads bad_k = k, bad_v = v;
  std::vector<int64_t> const bad{2, 10, 40, 41, 120, 150};  // first, sealed, staged
  for (int64_t const t : bad)
    for (int h = 0; h < 2; ++h) {
      bad_k.row(t, h)[3] = t % 3 == 0 ? not_a_number : infinity;
      bad_k.row(t, h)[60] = -infinity;
      bad_v.row(t, h)[t % 64] = t % 2 == 0 ? infinity : not_a_number;
    }
  REQUIRE(cache.append(clean, 0, k.part(0, 160), v.part(0, 160)));
  REQUIRE(cache.append(dirty, 0, bad_k.part(0, 130), bad_v.part(0, 130)));
  REQUIRE(prefill(cache, dirty, 0, model_queries(4, 30, 4), bad_k.part(130, 30), bad_v.part(130, 30)).status);
  for (int h = 0; h < 2; ++h) {
    content const right = stored(cache, clean, 0, h), got = stored(cache, dirty, 0, h);
    CHECK(all_finite(got.keys));
    CHECK(all_finite(got.values));
    for (int64_t t = 0; t < 160; ++t) {
      if (std::find(bad.begin(), bad.end(), t) != bad.end()) continue;
      CHECK(std::equal(right.keys.begin() + t * 64, right.keys.begin() + (t + 1) * 64, got.keys.begin() + t * 64));
      CHECK(std::equal(right.values.begin() + t * 64, right.values.begin() + (t + 1) * 64, got.values.begin() + t * 64));
    }
    for (int c = 0; c < 64; ++c)
      if (c != 10) CHECK(right.values[static_cast<std::size_t>(10 * 64 + c)] == got.values[static_cast<std::size_t>(10 * 64 + c)]);
  }
  outputs const got = attend(cache, dirty, 0, model_queries(5, 160, 4));
  REQUIRE(got.status);
  CHECK(all_finite(got.out.data));
  CHECK(all_finite(got.lse));
  REQUIRE(cache.evict(dirty, 0, 0, bad));  // without the bad rows the answer is the clean one's
  REQUIRE(cache.evict(dirty, 0, 1, bad));
  REQUIRE(cache.evict(clean, 0, 0, bad));
  REQUIRE(cache.evict(clean, 0, 1, bad));
  outputs const a = attend(cache, dirty, 0, model_queries(5, 3, 4)), b = attend(cache, clean, 0, model_queries(5, 3, 4));
  CHECK(a.out.data == b.out.data);
  CHECK(a.lse == b.lse);
}

TEST_CASE("reject: NaN and infinity are refused with the token, and nothing was added", "[cache][error][nan]") {
  auto cache = make_cache<rejecting>();
  pith::sequence const s = cache.open().value();
  REQUIRE(cache.append(s, 0, k.part(0, 90), v.part(0, 90)));
  sequence_image const before = image(cache, s);
  room out;
  for (int64_t const token : {0, 7, 49})
    for (float const bad : {not_a_number, infinity, -infinity})
      for (bool const in_keys : {true, false})
        for (int const channel : {0, 63}) {
          tokens_of_heads bad_k = k, bad_v = v;
          (in_keys ? bad_k : bad_v).row(token, 1)[channel] = bad;
          CHECK(cache.append(s, 0, bad_k.part(0, 50), bad_v.part(0, 50)) == status{errc::not_finite, token});
          CHECK(cache.prefill(s, 0, q.part(0, 50), bad_k.part(0, 50), bad_v.part(0, 50), out.of(50)) == status{errc::not_finite, token});
        }
  CHECK(image(cache, s) == before);
  CHECK(out.untouched());
}

TEST_CASE("propagate: a number that is not finite stays, until its token is cut off", "[cache][error][nan][truncate]") {
  auto cache = make_cache<propagating>();
  pith::sequence const s = cache.open().value();
  tokens_of_heads bad_v = v, bad_k = k;
  bad_v.row(70, 0)[5] = not_a_number;
  bad_k.row(71, 1)[6] = infinity;
  REQUIRE(cache.append(s, 0, bad_k.part(0, 72), bad_v.part(0, 72)));
  outputs const with = attend(cache, s, 0, model_queries(5, 1, 4));
  CHECK(std::isnan(with.out.row(0, 0)[5]));
  REQUIRE(cache.truncate(s, 70).value().exact);
  CHECK(attention_error(cache, s, 0, model_queries(5, 1, 4)) <= 1);
  REQUIRE(cache.append(s, 0, bad_k.part(0, 1), bad_v.part(0, 1)));
  CHECK(attention_error(cache, s, 0, model_queries(5, 1, 4)) <= 1);
}
