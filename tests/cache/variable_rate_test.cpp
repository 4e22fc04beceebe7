// SPDX-License-Identifier: Apache-2.0
// The segment contract for codecs of variable rate: what the tails of sealed tiles promise. Rule 11 is theirs; the others hold as for all.
#include <set>

#include "cache/random_world.hpp"
#include "pith/codec/dynamic_float.hpp"
#include "pith/codec/exponent_planes.hpp"
#include "pith/codec/huffman.hpp"
#include "pith/cpu/paged_attention.hpp"

using namespace pith_test;
using pith::bf16;
using pith::status;

namespace {

// Lossless, so that a cache of plain bf16 says what is right. Keys and values are sealed at different times.
template <class Keys, class Values>
using composition = pith::kv_cache<pith::head_dim<32>, pith::keys<Keys>, pith::values<Values>, pith::raw<pith::first<3>, pith::last<8, 40>>,
                                   pith::side<pith::liveness, pith::bias>>;
struct lossless : composition<pith::dynamic_float<bf16>, pith::dynamic_float<bf16, pith::exponent_planes>> {};
struct plain : composition<pith::raw<bf16>, pith::raw<bf16>> {};
// One side only, tiles of two lengths, another coder, fewer mantissa bits.
struct values_only : composition<pith::int8<pith::per_channel<64>>, pith::dynamic_float<bf16, pith::huffman, 3>> {};

using page = lossless::page;
int64_t constexpr text_length = 700;
pith::cache_shape const shape{
    .layers = 2, .kv_heads = 2, .query_heads = 4, .bytes = 4 << 20, .max_sequences = 6, .max_tokens = text_length, .max_chunk = 100};

template <class Recipe = lossless>
pith::cache<Recipe> make_cache(pith::cache_shape const& of = shape) {
  auto made = pith::make<Recipe>(of);
  REQUIRE(made);
  return std::move(made).value();
}

// Numbers of every size in every fourth stretch of 32 tokens: their exponents take more bits than raw ones. The rest are as models make
// them.
tokens_of_heads rows(std::uint64_t seed, int64_t tokens) {
  tokens_of_heads made = gaussian(seed, tokens, 2, 32);
  random_bits bits(seed + 100);
  for (int64_t t = 0; t < tokens; ++t)
    for (int h = 0; h < 2 && t / 32 % 4 == 1; ++h)
      for (int c = 0; c < 32; ++c) made.row(t, h)[c] = std::ldexp(made.row(t, h)[c], -static_cast<int>(bits() % 60));
  return made;
}
tokens_of_heads const k = rows(1, text_length), v = rows(2, text_length);

template <class Recipe>
status append(pith::cache<Recipe>& cache, pith::sequence to, int64_t from, int64_t count) {
  for (int layer = 0; layer < 2; ++layer)
    if (status const ok = cache.append(to, layer, k.part(from, count), v.part(from, count)); !ok) return ok;
  return {};
}

template <class A, class B>
bool same_attention(pith::cache<A> const& a, pith::sequence s, pith::cache<B> const& b, pith::sequence t) {
  bool same = true;
  for (int layer = 0; layer < 2; ++layer) {
    tokens_of_heads const q = model_queries(5, std::min<int64_t>(5, a.length(s, layer)), 4, 32);
    outputs const first = attend(a, s, layer, q), second = attend(b, t, layer, q);
    same = same && first.status && second.status && first.out.data == second.out.data && first.lse == second.lse;
  }
  return same;
}

// What the pages of these sequences own, counted page by page: fixed parts, and tails or room for them.
template <class Recipe>
int64_t owned_bytes(pith::cache<Recipe> const& cache, std::vector<pith::sequence> const& of, int64_t* raw_tails = nullptr) {
  std::set<std::uint32_t> counted;
  int64_t bytes = 0;
  auto const& memory = cache.memory();
  for (pith::sequence const s : of)
    for (int head = 0; head < memory.heads_total(); ++head) {
      pith::table const& pages = memory.table_of(s.index, head / 2, head % 2);
      for (int64_t p = 0; p < pages.pages; ++p) {
        pith::block_id const block = memory.runs->block(pages, p);
        if (block == pith::no_block || !counted.insert(block.value).second) continue;
        bytes += Recipe::page::bytes;
        int const all = Recipe::page::tokens;
        Recipe::page::for_each_tailed_tile(memory.page_pool->address(block), {0, all}, {0, all}, [&]<class Tile>(std::byte* tile) {
          bytes += pith::round_up(pith::tail_place::of(tile).bytes, 64);
          if (raw_tails != nullptr) *raw_tails += pith::tail_place::of(tile).bytes == Tile::tail_bound;
        });
      }
    }
  return bytes;
}
int64_t used_bytes(pith::cache<lossless> const& cache) { return cache.memory().page_pool->used_bytes(); }

}  // namespace

TEST_CASE("rule 11: sealed tiles of variable rate give back every bit, raw tails too, and attention is that of plain bf16",
          "[cache][contract][variable]") {
  auto cache = make_cache();
  auto twin = make_cache<plain>();
  pith::sequence const s = cache.open().value(), t = twin.open().value();
  for (int64_t const count : {1, 2, 90, 300, 1, 210}) {
    int64_t const from = cache.length(s, 0);
    REQUIRE(append(cache, s, from, count));
    REQUIRE(append(twin, t, from, count));
    for (int layer = 0; layer < 2; ++layer)
      for (int head = 0; head < 2; ++head) {
        content const got = stored(cache, s, layer, head), right = stored(twin, t, layer, head);
        CHECK(got.keys == right.keys);
        CHECK(got.values == right.values);
        CHECK(got.packed_key == right.packed_key);
      }
    CHECK(same_attention(cache, s, twin, t));
  }
  int64_t raw_tails = 0;
  owned_bytes(cache, {s}, &raw_tails);
  CHECK(raw_tails >= 16);
  CHECK(attention_error(cache, s, 1, model_queries(5, 3, 4, 32)) <= 1);
}

TEST_CASE("rule 2: tiles of variable rate hold the same but for the distances, however the tokens came", "[cache][contract][variable]") {
  auto cache = make_cache();
  pith::sequence const once = cache.open().value(), singly = cache.open().value(), mixed_up = cache.open().value();
  REQUIRE(append(cache, once, 0, 333));
  for (int64_t t = 0; t < 333; ++t) REQUIRE(append(cache, singly, t, 1));
  random_bits bits(11);
  for (int64_t t = 0; t < 333;) {
    int64_t const count = std::min<int64_t>(333 - t, 1 + static_cast<int64_t>(bits() % 90));
    for (int layer = 0; layer < 2; ++layer)
      REQUIRE(prefill(cache, mixed_up, layer, model_queries(5, count, 4, 32), k.part(t, count), v.part(t, count)).status);
    t += count;
  }
  sequence_image const expected = image(cache, once);
  CHECK(expected.sealed.size() > 50000);
  CHECK(expected == image(cache, singly));
  CHECK(expected == image(cache, mixed_up));
}

TEST_CASE("rule 5: a cut gives back the tails of the tiles that it leaves unsealed", "[cache][contract][variable][truncate]") {
  auto cache = make_cache();
  for (int64_t const kept : {0, 2, 3, 100, 131, 195, 290, 320}) {
    pith::sequence const s = cache.open().value(), short_one = cache.open().value();
    REQUIRE(append(cache, s, 0, 333));
    REQUIRE(cache.truncate(s, kept));
    CHECK(used_bytes(cache) == owned_bytes(cache, {s}));
    REQUIRE(append(cache, s, 400, 200));
    CHECK(attention_error(cache, s, 1, model_queries(5, 3, 4, 32)) <= 1);
    CHECK(used_bytes(cache) == owned_bytes(cache, {s}));
    REQUIRE(cache.truncate(s, 0));
    CHECK(used_bytes(cache) == 0);
    REQUIRE(cache.close(s));
    REQUIRE(cache.close(short_one));
  }
}

TEST_CASE("rule 6: a fork shares tails with their pages; a page that is copied has its own", "[cache][contract][variable][fork]") {
  auto cache = make_cache(), apart = make_cache();
  for (int64_t const tokens : {3, 70, 100, 132, 200, 333}) {
    pith::sequence const s = cache.open().value();
    REQUIRE(append(cache, s, 0, tokens));
    int64_t const before = used_bytes(cache);
    pith::sequence const fork = cache.fork(s).value();
    CHECK(used_bytes(cache) == before);
    CHECK(image(cache, s) == image(cache, fork));
    pith::sequence const twin_s = apart.open().value(), twin_fork = apart.open().value();
    REQUIRE(append(apart, twin_s, 0, tokens));
    REQUIRE(append(apart, twin_fork, 0, tokens));
    REQUIRE(append(cache, s, 500, 90));
    REQUIRE(append(apart, twin_s, 500, 90));
    REQUIRE(append(cache, fork, 400, 77));
    REQUIRE(append(apart, twin_fork, 400, 77));
    CHECK(image(cache, s) == image(apart, twin_s));
    CHECK(image(cache, fork) == image(apart, twin_fork));
    CHECK(same_attention(cache, fork, apart, twin_fork));
    CHECK(used_bytes(cache) >= owned_bytes(cache, {s, fork}));  // a run that both continue still holds the page that both have copied
    REQUIRE(cache.truncate(fork, tokens / 2));                  // s shares pages of it: their tails stay
    CHECK(image(cache, s) == image(apart, twin_s));
    REQUIRE(cache.close(s));
    REQUIRE(append(cache, fork, 400, 77));
    CHECK(attention_error(cache, fork, 0, model_queries(5, 3, 4, 32)) <= 1);
    REQUIRE(cache.close(fork));
    CHECK(used_bytes(cache) == 0);
    REQUIRE(apart.close(twin_s));
    REQUIRE(apart.close(twin_fork));
  }
}

TEST_CASE("rule 7: a wholly dead page gives back its tails; a cut that needs it again finds zeros", "[cache][contract][variable][evict]") {
  auto cache = make_cache();
  pith::sequence const s = cache.open().value();
  REQUIRE(append(cache, s, 0, 333));
  int64_t const before = used_bytes(cache);
  std::vector<int64_t> dead;
  for (int64_t t = 3; t < 3 + 128; ++t) dead.push_back(t);
  REQUIRE(cache.evict(s, 0, 0, dead));
  CHECK(used_bytes(cache) < before - 2 * page::bytes);
  CHECK(used_bytes(cache) == owned_bytes(cache, {s}));
  CHECK(attention_error(cache, s, 0, model_queries(5, 3, 4, 32)) <= 1);
  REQUIRE(cache.truncate(s, 80));
  REQUIRE(append(cache, s, 400, 100));
  CHECK(used_bytes(cache) == owned_bytes(cache, {s}));
  CHECK(attention_error(cache, s, 0, model_queries(5, 3, 4, 32)) <= 1);
  REQUIRE(cache.close(s));
  CHECK(cache.resident_bytes() == 0);
}

TEST_CASE("rule 14: tails count in resident_bytes and bits_per_value, in lines of 64 bytes", "[cache][contract][variable]") {
  auto cache = make_cache();
  pith::sequence const s = cache.open().value();
  int64_t const empty = cache.resident_bytes();
  REQUIRE(append(cache, s, 0, 600));
  int64_t const owned = owned_bytes(cache, {s});
  CHECK(cache.resident_bytes() == empty + owned + cache.memory().runs->used_bytes());
  CHECK(cache.bits_per_value() == 8.0 * static_cast<double>(cache.resident_bytes()) / (600.0 * 2 * 2 * 64));
  REQUIRE(cache.reserve_tokens(s, 0, 64));  // room for the longest tails counts as well
  CHECK(used_bytes(cache) == owned_bytes(cache, {s}));
  CHECK(used_bytes(cache) > owned);
}

TEST_CASE("what was reserved can be appended however full the cache is, with raw tails too", "[cache][variable][error]") {
  auto tight = shape;
  tight.bytes = pith::cache_storage<lossless>::fixed_bytes(shape) + 250000;
  auto cache = make_cache(tight);
  pith::sequence const s = cache.open().value(), other = cache.open().value();
  REQUIRE(append(cache, s, 0, 60));
  for (int layer = 0; layer < 2; ++layer) REQUIRE(cache.reserve_tokens(s, layer, 100));
  int64_t filled = 0;
  while (append(cache, other, filled % 600, 1)) ++filled;
  CHECK(filled > 150);
  CHECK(cache.reserve_tokens(s, 0, 400).code == errc::capacity_exceeded);  // what was reserved before stays so
  for (int64_t t = 0; t < 100; ++t) REQUIRE(append(cache, s, 32 + t, 1));
  CHECK(attention_error(cache, s, 1, model_queries(5, 3, 4, 32)) <= 1);
}

TEST_CASE("an append for whose tails there is no room leaves the cache as it was", "[cache][variable][error]") {
  auto tight = shape;
  tight.bytes = pith::cache_storage<lossless>::fixed_bytes(shape) + 120000;
  auto cache = make_cache(tight);
  pith::sequence const s = cache.open().value(), other = cache.open().value();
  REQUIRE(append(cache, other, 0, 100));
  REQUIRE(append(cache, s, 0, 75));
  int failed = 0;
  for (int64_t count = 500; count > 0; count = failed > 400 ? 0 : count - 1) {
    sequence_image const before = failed % 50 == 0 ? image(cache, s) : sequence_image{};
    int64_t const used = used_bytes(cache);
    status const done = cache.append(s, 0, k.part(100, count), v.part(100, count));
    if (done) break;
    ++failed;
    REQUIRE(done.code == errc::capacity_exceeded);
    REQUIRE(used_bytes(cache) == used);
    if (!before.numbers.empty()) REQUIRE(image(cache, s) == before);
  }
  CHECK(failed > 50);
  CHECK(attention_error(cache, s, 0, model_queries(5, 3, 4, 32)) <= 1);
  int64_t const length = cache.length(s, 0);
  while (cache.append(s, 0, k.part(300, 1), v.part(300, 1))) {
  }
  CHECK(cache.length(s, 0) > length);
  REQUIRE(cache.close(other));
  CHECK(cache.append(s, 0, k.part(300, 60), v.part(300, 60)));
  CHECK(attention_error(cache, s, 0, model_queries(5, 3, 4, 32)) <= 1);
}

TEST_CASE("one side of variable rate, another coder, fewer bits of the mantissa", "[cache][contract][variable]") {
  auto cache = make_cache<values_only>();
  pith::sequence const s = cache.open().value();
  REQUIRE(append(cache, s, 0, 333));
  pith::sequence const fork = cache.fork(s).value();
  REQUIRE(append(cache, fork, 333, 100));
  REQUIRE(cache.truncate(s, 250));
  REQUIRE(append(cache, s, 250, 83));
  for (pith::sequence const each : {s, fork}) CHECK(attention_error(cache, each, 1, model_queries(5, 3, 4, 32)) <= 1);
  CHECK(cache.memory().page_pool->used_bytes() >= owned_bytes(cache, {s, fork}));
  for (pith::sequence const each : {s, fork}) REQUIRE(cache.close(each));
  CHECK(cache.resident_bytes() == 0);
}

TEST_CASE("paged_attention reads pages of an engine's own whose tails lie anywhere", "[cache][variable][paged]") {
  auto cache = make_cache();
  pith::sequence const s = cache.open().value();
  REQUIRE(append(cache, s, 0, 200));
  int const pages = 2, tokens = pages * page::tokens;  // what is sealed of both
  REQUIRE(cache.memory().layer(s.index, 0).sealed_values == tokens);
  std::vector<std::byte> memory(64 + 4 * page::bytes), tails(20000);
  std::byte* const base = memory.data() + (64 - reinterpret_cast<std::uintptr_t>(memory.data()) % 64) % 64;
  std::byte* next = tails.data() + tails.size() - pith::tail_padding;
  std::uint32_t const indices[] = {3, 1};
  for (int p = 0; p < pages; ++p) {
    std::byte* const from = cache.memory().page_pool->address(page_of(cache, s, 0, 1, p * page::tokens));
    std::byte* const to = base + indices[p] * page::bytes;
    std::copy_n(from, page::bytes, to);
    page::for_each_tailed_tile(from, {0, page::tokens}, {0, page::tokens}, [&]<class Tile>(std::byte const* tile) {
      next -= pith::tail_place::of(tile).bytes;
      std::copy_n(pith::tail_place::tail(tile), pith::tail_place::of(tile).bytes, next);
      std::byte* const its_copy = to + (tile - from);
      pith::tail_place::set_distance(its_copy, next - its_copy);
    });
  }
  REQUIRE(cache.close(s));
  int64_t const indptr[] = {0, pages}, q_indptr[] = {0, 3};
  std::int32_t const last_page_len[] = {page::tokens};
  pith::paged_view<page> const view{.base = base,
                                    .block_stride = page::bytes,
                                    .head_stride = page::bytes,
                                    .blocks = 4,
                                    .kv_heads = 1,
                                    .indptr = indptr,
                                    .indices = indices,
                                    .last_page_len = last_page_len};
  tokens_of_heads const q = model_queries(5, 3, 2, 32);
  outputs got = room_for(q, 32);
  got.status = pith::paged_attention(pith::cpu{}, view, q_indptr, q.all(), writable(got.out),
                                     {.lse = pith::tensor_view<float, 2>(got.lse.data(), {3, 2})});
  REQUIRE(got.status);
  content right;
  right.dk = right.dv = 32;
  right.add_chunk(k, v, 1, 3, tokens);
  CHECK(worst_error({right}, q, got) <= 1);
}

TEST_CASE("a snapshot holds tails, and another cache finds places for them", "[cache][snapshot][variable]") {
  auto cache = make_cache(), second = make_cache();
  pith::sequence const s = cache.open().value(), filler = second.open().value();
  REQUIRE(append(cache, s, 0, 333));
  std::vector<int64_t> dead;
  for (int64_t t = 3; t < 3 + 64; ++t) dead.push_back(t);
  REQUIRE(cache.evict(s, 0, 1, dead));
  REQUIRE(cache.reserve_tokens(s, 1, 64));  // nobody's tails are saved
  REQUIRE(append(second, filler, 200, 111));
  std::vector<std::byte> bytes(static_cast<std::size_t>(cache.saved_bytes(s)));
  REQUIRE(cache.save(s, bytes));
  auto const loaded = second.load(bytes);
  REQUIRE(loaded);
  CHECK(image(second, loaded.value()) == image(cache, s));
  CHECK(used_bytes(second) == owned_bytes(second, {filler, loaded.value()}));
  std::vector<std::byte> again(static_cast<std::size_t>(second.saved_bytes(loaded.value())));
  REQUIRE(second.save(loaded.value(), again));
  CHECK(again == bytes);
  REQUIRE(append(cache, s, 400, 100));
  REQUIRE(append(second, loaded.value(), 400, 100));
  CHECK(same_attention(cache, s, second, loaded.value()));
  CHECK(pith::page_identity<page>({}, {}) != pith::page_identity<plain::page>({}, {}));
  CHECK(pith::page_identity<page>({}, {}) != pith::page_identity<values_only::page>({}, {}));
  CHECK(make_cache<plain>().load(bytes).error().code == errc::wrong_format);
}

TEST_CASE("broken tails of a snapshot are refused, or can be read, and leave nothing behind", "[cache][snapshot][variable][fuzz]") {
  auto small = shape;
  small.layers = 1;
  auto cache = make_cache(small);
  pith::sequence const s = cache.open().value();
  REQUIRE(cache.append(s, 0, k.part(0, 170), v.part(0, 170)));
  std::vector<std::byte> bytes(static_cast<std::size_t>(cache.saved_bytes(s)));
  REQUIRE(cache.save(s, bytes));
  int64_t const before = cache.resident_bytes();
  tokens_of_heads const q = model_queries(5, 2, 4, 32);
  int accepted = 0, refused = 0;
  auto const attempt = [&](std::vector<std::byte> broken) {
    pith::fingerprint all;  // a right one over wrong contents
    all.add_bytes(broken.data(), static_cast<int64_t>(broken.size()) - 8);
    pith::store_le<std::uint64_t>(broken.data() + broken.size() - 8, all.value());
    if (auto const loaded = cache.load(broken)) {
      ++accepted;
      CHECK(attend(cache, loaded.value(), 0, q).status);
      CHECK(cache.append(loaded.value(), 0, k.part(0, 70), v.part(0, 70)));
      REQUIRE(cache.close(loaded.value()));
    } else {
      ++refused;
    }
    REQUIRE(cache.resident_bytes() == before);
  };
  random_bits random(7);
  for (int i = 0; i < 300; ++i) {
    auto broken = bytes;
    int const changes = 1 + static_cast<int>(random() % 4);
    for (int j = 0; j < changes; ++j) broken[64 + random() % (broken.size() - 72)] = static_cast<std::byte>(random());
    if (i % 7 == 0) broken.resize(broken.size() - random() % 2000);
    attempt(broken);
  }
  CHECK(accepted > 20);
  CHECK(refused > 20);
  auto tight = small;
  tight.bytes = pith::cache_storage<lossless>::fixed_bytes(small) + 2 * (page::bytes + page::tails_bound) + 4000;
  auto little = make_cache(tight);
  CHECK(little.load(bytes).error().code == errc::capacity_exceeded);
  CHECK(little.resident_bytes() == 0);
}

TEST_CASE("random operations: a cache of variable rate agrees with a list of tokens", "[cache][random][variable]") {
  run_random_operations<lossless>({600000, 750000}, 2000, rows(1, text_tokens), rows(2, text_tokens));
}
