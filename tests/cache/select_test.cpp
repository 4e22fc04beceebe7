// SPDX-License-Identifier: Apache-2.0
// Contract rule 12: heads and rows go to their own classes, and partial results merge by log-sum-exp.
#include "cache/support.hpp"
#include "laws/sample_state.hpp"
#include "pith/cache/recipes.hpp"
#include "pith/cache/select_cache.hpp"

using namespace pith_test;
using pith::errc;
using pith::status;

namespace {

using fine = pith::recipes::int8_cache_exact<64>;
using coarse = pith::recipes::kivi<64, 2, 32, 32, pith::exact_accuracy>;
using mixed = pith::select_cache<fine, coarse>;

pith::cache_shape const shape{.layers = 2, .kv_heads = 2, .query_heads = 4, .bytes = 24 << 20, .max_sequences = 3, .max_chunk = 64};

tokens_of_heads const k = model_keys(31, 700, 2), v = gaussian(32, 700, 2);

// One head of tokens_of_heads.
tokens_of_heads head_of(tokens_of_heads const& all, int first, int heads) {
  tokens_of_heads made = zeros(all.tokens, heads, all.channels);
  for (int64_t t = 0; t < all.tokens; ++t)
    for (int h = 0; h < heads; ++h) std::copy_n(all.row(t, first + h), all.channels, made.row(t, h));
  return made;
}

template <class Recipe>
pith::cache<Recipe> one_head(int query_heads = 2) {
  auto made = pith::make<Recipe>({.kv_heads = 1, .query_heads = query_heads, .bytes = 8 << 20, .max_chunk = 64});
  REQUIRE(made);
  return std::move(made).value();
}

outputs attend(mixed const& cache, mixed::sequence of, int layer, tokens_of_heads const& q, pith::attention_options how = {}) {
  outputs made = room_for(q, 64);
  how.lse = {made.lse.data(), {q.tokens, q.heads}};
  made.status = cache.attend(of, layer, q.all(), writable(made.out), how);
  return made;
}

// Which rows are important: about one in five.
std::vector<std::uint8_t> classes_of(int64_t tokens) {
  std::vector<std::uint8_t> all;
  random_bits random(4);
  for (int64_t i = 0; i < 2 * tokens; ++i) all.push_back(random() % 5 == 0 ? 0 : 1);
  return all;
}

}  // namespace

TEST_CASE("contract rule 12: a head's attention is that of its own recipe", "[contract][cache][select]") {
  std::vector<std::uint8_t> const table{0, 1, 1, 0};
  auto made = mixed::make(shape, {.table = table});
  REQUIRE(made);
  auto& cache = made.value();
  auto const of = cache.open().value();
  auto const q = model_queries(33, 3, 4);
  for (int layer = 0; layer < 2; ++layer) {
    for (int64_t t = 0; t < 700; t += 100) REQUIRE(cache.append(of, layer, k.part(t, 100), v.part(t, 100)));
    CHECK(cache.length(of, layer) == 700);
    std::vector<float> scores(2 * 700), scratch(2 * 6 * 700);
    auto const got = attend(cache, of, layer, q, {.scores = {.sum = {scores.data(), {2, 700}}, .logits = {scratch.data(), {2, 6, 700}}}});
    REQUIRE(got.status);
    for (int h = 0; h < 2; ++h) {
      auto const compare = [&]<class Recipe>(Recipe) {
        auto alone = one_head<Recipe>();
        auto const sequence = alone.open().value();
        REQUIRE(alone.append(sequence, 0, head_of(k, h, 1).all(), head_of(v, h, 1).all()));
        std::vector<float> own_scores(700);
        auto const wanted = pith_test::attend(alone, sequence, 0, head_of(q, 2 * h, 2),
                                              {.scores = {.sum = {own_scores.data(), {1, 700}}, .logits = {scratch.data(), {1, 6, 700}}}});
        int wrong = !std::equal(own_scores.begin(), own_scores.end(), scores.begin() + 700 * h);
        for (int64_t t = 0; t < 3; ++t)
          for (int g = 0; g < 2; ++g) {
            for (int c = 0; c < 64; ++c) wrong += got.out.row(t, 2 * h + g)[c] != wanted.out.row(t, g)[c];
            wrong += got.lse[static_cast<std::size_t>(t * 4 + 2 * h + g)] != wanted.lse[static_cast<std::size_t>(t * 2 + g)];
          }
        CHECK(wrong == 0);
      };
      if (table[static_cast<std::size_t>(2 * layer + h)] == 0)
        compare(fine{});
      else
        compare(coarse{});
    }
  }
}

TEST_CASE("a table by layer gives every head of a layer the same recipe", "[cache][select]") {
  std::vector<std::uint8_t> const table{1, 0};
  auto made = mixed::make(shape, {.table = table});
  REQUIRE(made);
  for (int layer = 0; layer < 2; ++layer)
    for (int h = 0; h < 2; ++h) CHECK(made.value().class_of(layer, h) == table[static_cast<std::size_t>(layer)]);
  auto only_first = mixed::make(shape, {});
  REQUIRE(only_first);  // the other recipe serves nobody and takes nothing
  auto const of = only_first.value().open().value();
  REQUIRE(only_first.value().append(of, 0, k.all(), v.all()));
  CHECK(only_first.value().bits_per_value() > 8);
}

TEST_CASE("contract rule 12: rows of two classes are seen as one sequence", "[contract][cache][select]") {
  auto made = mixed::make(shape, {.by_row = true, .share = {0.2, 0.8}});
  REQUIRE(made);
  auto& cache = made.value();
  auto const of = cache.open().value();
  auto const all = classes_of(700);
  pith::matrix_view<std::uint8_t const> const classes(all.data(), {700, 2});
  for (int64_t t = 0; t < 700; t += 70) REQUIRE(cache.append(of, 1, k.part(t, 70), v.part(t, 70), classes.part(t, 70)));
  CHECK(cache.length(of, 1) == 700);
  auto const q = model_queries(33, 1, 4);
  std::vector<float> const sinks{1.0f, -2.0f, 3.0f, 0.5f};
  for (bool const with_sinks : {false, true}) {
    pith::attention_options how{.soft_cap = with_sinks ? 30.0f : 0.0f};
    if (with_sinks) how.sink_logits = sinks;
    auto const got = attend(cache, of, 1, q, how);
    REQUIRE(got.status);
    // What each class stores, put together.
    std::vector<content> heads;
    for (int h = 0; h < 2; ++h) {
      content both;
      auto const add = [&]<class Recipe>(Recipe, int which) {
        auto alone = one_head<Recipe>();
        auto const sequence = alone.open().value();
        for (int64_t t = 0; t < 700; ++t)
          if (all[static_cast<std::size_t>(2 * t + h)] == which)
            REQUIRE(alone.append(sequence, 0, head_of(k, h, 1).part(t, 1), head_of(v, h, 1).part(t, 1)));
        content const part = stored(alone, sequence, 0, 0);
        both.dk = part.dk, both.dv = part.dv;
        both.tokens += part.tokens;
        auto const join = [](auto& to, auto const& from) { to.insert(to.end(), from.begin(), from.end()); };
        join(both.keys, part.keys), join(both.values, part.values), join(both.packed_key, part.packed_key), join(both.packed_value, part.packed_value);
        join(both.live, part.live), join(both.bias, part.bias), join(both.position, part.position);
      };
      add(fine{}, 0);
      add(coarse{}, 1);
      REQUIRE(both.tokens == 700);
      heads.push_back(both);
    }
    CHECK(worst_error(heads, q, got, how) <= 2);  // the merge rounds once more
  }
}

TEST_CASE("a prefill by row sees its own chunk raw and causally", "[cache][select]") {
  auto made = mixed::make(shape, {.by_row = true});
  REQUIRE(made);
  auto& cache = made.value();
  auto const of = cache.open().value();
  auto const q = model_queries(35, 50, 4);
  auto const all = classes_of(50);
  outputs got = room_for(q, 64);
  REQUIRE(cache.prefill(of, 0, q.all(), k.part(0, 50), v.part(0, 50), writable(got.out), {.lse = {got.lse.data(), {50, 4}}}, {all.data(), {50, 2}}));
  auto plain = pith::make<fine>({.kv_heads = 2, .query_heads = 4, .bytes = 8 << 20, .max_chunk = 64});
  REQUIRE(plain);
  auto const sequence = plain.value().open().value();
  auto const wanted = prefill(plain.value(), sequence, 0, q, k.part(0, 50), v.part(0, 50));
  REQUIRE(wanted.status);
  CHECK(got.out.data == wanted.out.data);  // nothing was stored before: the chunk is all there is
  CHECK(got.lse == wanted.lse);
  CHECK(cache.length(of, 0) == 50);
  // A second chunk sees the first one too: against the rows in double, 8 bits and 2 bits of error apart.
  REQUIRE(cache.prefill(of, 0, q.all(), k.part(50, 50), v.part(50, 50), writable(got.out), {}, {all.data(), {50, 2}}));
  auto const second = prefill(plain.value(), sequence, 0, q, k.part(50, 50), v.part(50, 50));
  double off = 0, size = 0;
  for (std::size_t i = 0; i < got.out.data.size(); ++i) {
    off += std::fabs(static_cast<double>(got.out.data[i]) - static_cast<double>(second.out.data[i]));
    size += std::fabs(static_cast<double>(second.out.data[i]));
  }
  CHECK(off < 1e-3 * size);  // 100 tokens are all raw still: only the order of sums differs
}

TEST_CASE("fork, truncate and close go to every class", "[cache][select]") {
  std::vector<std::uint8_t> const table{0, 1};
  auto made = mixed::make(shape, {.table = table});
  REQUIRE(made);
  auto& cache = made.value();
  auto const of = cache.open().value();
  auto const q = model_queries(33, 1, 4);
  for (int layer = 0; layer < 2; ++layer) REQUIRE(cache.append(of, layer, k.part(0, 300), v.part(0, 300)));
  auto const before = attend(cache, of, 1, q);
  std::int64_t const bytes = cache.resident_bytes();
  auto const forked = cache.fork(of);
  REQUIRE(forked);
  for (int layer = 0; layer < 2; ++layer) REQUIRE(cache.append(forked.value(), layer, k.part(300, 200), v.part(300, 200)));
  CHECK(attend(cache, of, 1, q).out.data == before.out.data);
  auto const cut = cache.truncate(forked.value(), 300);
  REQUIRE(cut);
  CHECK(cache.length(forked.value(), 0) == 300);
  CHECK(cache.length(forked.value(), 1) == 300);
  REQUIRE(cache.close(forked.value()));
  CHECK(cache.resident_bytes() == bytes);
  CHECK(attend(cache, forked.value(), 0, q).status.code == errc::stale_handle);
  CHECK(cache.append(forked.value(), 0, k.part(0, 1), v.part(0, 1)).code == errc::stale_handle);
}

TEST_CASE("select_cache refuses what it cannot do", "[cache][select]") {
  std::vector<std::uint8_t> table{0, 1, 2, 0};
  CHECK(mixed::make(shape, {.table = table}).error() == status{errc::out_of_range, 2});
  table = {0, 1, 0};
  CHECK(mixed::make(shape, {.table = table}).error() == status{errc::shape_mismatch, 3});
  auto small = shape;
  small.bytes = 1000;
  CHECK(mixed::make(small).error().code == errc::capacity_exceeded);
  auto none = shape;
  none.kv_heads = 0;
  CHECK(mixed::make(none).error().code == errc::shape_mismatch);

  auto by_row = mixed::make(shape, {.by_row = true});
  REQUIRE(by_row);
  auto const of = by_row.value().open().value();
  auto const two = model_queries(33, 2, 4), one = model_queries(33, 1, 4);
  REQUIRE(by_row.value().append(of, 0, k.part(0, 2), v.part(0, 2)));
  CHECK(attend(by_row.value(), of, 0, two).status.code == errc::unsupported);
  CHECK(attend(by_row.value(), of, 0, one, {.window = 4}).status.code == errc::unsupported);
  std::vector<float> scores(16);
  pith::slot_scores const scored{.sum = {scores.data(), {2, 2}}, .logits = {scores.data(), {2, 2, 2}}};
  CHECK(attend(by_row.value(), of, 0, one, {.scores = scored}).status.code == errc::unsupported);
  CHECK(by_row.value().truncate(of, 1).error().code == errc::unsupported);
  std::vector<std::uint8_t> classes{0, 0, 0, 7};
  CHECK(by_row.value().append(of, 0, k.part(0, 2), v.part(0, 2), {classes.data(), {2, 2}}) == status{errc::out_of_range, 1});
  CHECK(by_row.value().append(of, 0, k.part(0, 3), v.part(0, 3), {classes.data(), {2, 2}}).code == errc::shape_mismatch);
  CHECK(by_row.value().append(of, 2, k.part(0, 1), v.part(0, 1)).code == errc::out_of_range);
  CHECK(attend(by_row.value(), {}, 0, one).status.code == errc::stale_handle);
  mixed::sequence wild = of;
  wild.of[0].index = 4'000'000'000u;
  CHECK(attend(by_row.value(), wild, 0, one).status.code == errc::stale_handle);
  CHECK(by_row.value().length(of, 0) == 2);

  auto by_head = mixed::make(shape);
  REQUIRE(by_head);
  auto const other = by_head.value().open().value();
  classes = {0, 0};
  CHECK(by_head.value().append(other, 0, k.part(0, 1), v.part(0, 1), {classes.data(), {1, 2}}).code == errc::unsupported);
}

TEST_CASE("a full class adds nothing anywhere", "[cache][select]") {
  auto tight = shape;
  tight.layers = 1;
  tight.bytes = 700'000;
  auto made = mixed::make(tight, {.by_row = true});
  REQUIRE(made);
  auto const of = made.value().open().value();
  status last;
  int64_t added = 0;
  std::vector<std::uint8_t> const all = classes_of(20);
  while (added < 20'000 && (last = made.value().append(of, 0, k.part(added % 600, 20), v.part(added % 600, 20), {all.data(), {20, 2}}))) added += 20;
  CHECK(last.code == errc::capacity_exceeded);
  CHECK(added > 200);
  CHECK(made.value().length(of, 0) == added);
}

TEST_CASE("calibrated states reach the class that serves the head", "[cache][select][calibration]") {
  struct ordered : pith::kv_cache<pith::head_dim<64>, pith::keys<pith::pipe<pith::permute, pith::int8<pith::per_token<32>>>>,
                                  pith::values<pith::int8<pith::per_token<64>>>> {};
  using both = pith::select_cache<fine, ordered>;
  std::vector<pith::permutation<64>> states;
  for (int i = 0; i < 4; ++i) {
    states.push_back(pith::permutation<64>::identity());
    std::swap(states.back().order[0], states.back().order[i + 1]);
  }
  std::vector<std::uint8_t> const table{0, 1, 1, 0};
  auto made = both::make(shape, {.table = table, .states = {{}, {.keys = {states}}}});
  REQUIRE(made);
  auto const of = made.value().open().value();
  for (int layer = 0; layer < 2; ++layer) REQUIRE(made.value().append(of, layer, k.all(), v.all()));
  CHECK(both::make(shape, {.table = table, .states = {{}, {.keys = {std::span(states).first(2)}}}}).error() == status{errc::shape_mismatch, 2});
  states[2].order[5] = 64;
  CHECK(both::make(shape, {.table = table, .states = {{}, {.keys = {states}}}}).error().code == errc::bad_calibration);
}

TEST_CASE("merging partial attention: an empty part changes nothing, bit for bit", "[cache][select]") {
  float const none = -std::numeric_limits<float>::infinity();
  std::vector<float> out{1.5f, -0.0f, 3e-30f}, other{9, 9, 9};
  float lse = 0.25f;
  auto const before = out;
  pith::merge_attention(out.data(), lse, other.data(), none, 3);
  CHECK(std::memcmp(out.data(), before.data(), 12) == 0);
  CHECK(lse == 0.25f);
  float empty = none;
  pith::merge_attention(other.data(), empty, out.data(), lse, 3);
  CHECK(std::memcmp(other.data(), before.data(), 12) == 0);
  CHECK(empty == 0.25f);
  // Two tokens of scores 1 and 3.
  std::vector<float> a{2.0f}, b{4.0f};
  float la = 1.0f;
  pith::merge_attention(a.data(), la, b.data(), 3.0f, 1);
  CHECK(a[0] == Approx((2 * std::exp(1.0) + 4 * std::exp(3.0)) / (std::exp(1.0) + std::exp(3.0))));
  CHECK(la == Approx(std::log(std::exp(1.0) + std::exp(3.0))));
}
