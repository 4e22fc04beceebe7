// SPDX-License-Identifier: Apache-2.0
// keep<...>: policies in a cache against the same policies on rows in plain vectors, with attention in double.
#include "pith/cache/keep.hpp"

#include "cache/support.hpp"
#include "pith/cache/recipes_keep.hpp"
#include "pith/cpu/statistics_engine.hpp"

using namespace pith_test;

namespace {

using plain_rows = pith::raw<pith::bf16>;
template <class... Stages>
using bf16_cache = pith::kv_cache<pith::head_dim<64>, pith::keys<plain_rows>, pith::values<plain_rows>,
                                  pith::raw<pith::first<4>, pith::last<32>>, pith::keep<Stages...>>;

struct heavy : bf16_cache<pith::recipes::h2o<96, 24>> {};
struct ragged : bf16_cache<pith::recipes::ada_kv<48, 8>> {};
struct streaming : pith::recipes::streaming_cache<64, 150> {};
struct snap : pith::recipes::snapkv_cache<64, 80, 8> {};
struct compensating : bf16_cache<pith::every_step, pith::protect<pith::sinks<4>>, pith::capacity<100>, pith::newest, pith::compensate> {};

constexpr int layers = 2, kv_heads = 2, group = 2, query_heads = kv_heads * group, channels = 64;
constexpr pith::cache_shape shape{.layers = layers,
                                  .kv_heads = kv_heads,
                                  .query_heads = query_heads,
                                  .bytes = 8 << 20,
                                  .max_sequences = 2,
                                  .max_tokens = 512,
                                  .max_chunk = 64};

struct model_data {
  std::vector<tokens_of_heads> k, v, q;  // [layer]
  model_data(std::uint64_t seed, int64_t tokens) {
    for (int l = 0; l < layers; ++l) {
      k.push_back(gaussian(seed + 10 * static_cast<std::uint64_t>(l), tokens, kv_heads));
      v.push_back(gaussian(seed + 10 * static_cast<std::uint64_t>(l) + 1, tokens, kv_heads));
      q.push_back(gaussian(seed + 10 * static_cast<std::uint64_t>(l) + 2, tokens, query_heads));
      for (int64_t t = 0; t < tokens; ++t)  // newer keys are longer: old sums do not win for ever
        for (float& x : std::span(k.back().row(t, 0), kv_heads * channels)) x *= 1.5f + 0.01f * static_cast<float>(t);
    }
  }
};

using output = std::vector<float>;

template <class Cache>
output prefill(Cache& cache, pith::sequence of, model_data const& data, int l, int64_t from, int64_t count) {
  output out(static_cast<std::size_t>(count * query_heads * channels));
  auto const i = static_cast<std::size_t>(l);
  REQUIRE(cache.prefill(of, l, data.q[i].part(from, count), data.k[i].part(from, count), data.v[i].part(from, count),
                        pith::tensor_view<float, 3>(out.data(), {count, query_heads, channels})));
  return out;
}
template <class Cache>
output attend(Cache& cache, pith::sequence of, model_data const& data, int l, int64_t token) {
  output out(query_heads * channels);
  REQUIRE(cache.attend(of, l, data.q[static_cast<std::size_t>(l)].part(token, 1),
                       pith::tensor_view<float, 3>(out.data(), {1, query_heads, channels})));
  return out;
}
template <class Cache>
void append(Cache& cache, pith::sequence of, model_data const& data, int l, int64_t token) {
  auto const i = static_cast<std::size_t>(l);
  REQUIRE(cache.append(of, l, data.k[i].part(token, 1), data.v[i].part(token, 1)));
}

template <class Cache>
std::vector<int64_t> tokens_of(Cache const& cache, pith::sequence of, int l, int h) {
  std::vector<pith::survivor> all(512);
  all.resize(static_cast<std::size_t>(cache.survivors(of, l, h, all).value()));
  std::vector<int64_t> tokens;
  for (pith::survivor const& one : all) tokens.push_back(one.token);
  return tokens;
}

// Rows that are kept, with their scores, [layer][head].
struct row {
  int64_t token;
  double score = 0;
};
struct reference {
  model_data const* data;
  std::vector<std::vector<row>> rows = std::vector<std::vector<row>>(layers * kv_heads);

  std::vector<row>& of(int l, int h) { return rows[static_cast<std::size_t>(l * kv_heads + h)]; }
  void add(int l, int64_t token) {
    for (int h = 0; h < kv_heads; ++h) of(l, h).push_back({token});
  }
  // Probabilities of one query over the rows of its KV head; 0 for newer ones.
  std::vector<double> weights(int l, int query_head, int64_t token) {
    std::vector<double> p;
    double most = -1e300, sum = 0;
    float const* const q = data->q[static_cast<std::size_t>(l)].row(token, query_head);
    for (row const& one : of(l, query_head / group)) {
      float const* const k = data->k[static_cast<std::size_t>(l)].row(one.token, query_head / group);
      double s = 0;
      for (int c = 0; c < channels; ++c) s += static_cast<double>(q[c]) * static_cast<double>(rounded_to_bf16(k[c]));
      p.push_back(one.token <= token ? s / 8 : -1e300);
      most = std::max(most, p.back());
    }
    for (double& x : p) sum += x = std::exp(x - most);
    for (double& x : p) x /= sum;
    return p;
  }
  // Adds what a query looks at to the scores of its rows.
  void look(int l, int64_t token) {
    for (int head = 0; head < query_heads; ++head) {
      auto const p = weights(l, head, token);
      for (std::size_t i = 0; i < p.size(); ++i) of(l, head / group)[i].score += p[i] / group;
    }
  }
  void check_output(output const& got, int l, int64_t token, int64_t at = 0) {
    double worst = 0;
    for (int head = 0; head < query_heads; ++head) {
      auto const p = weights(l, head, token);
      for (int c = 0; c < channels; ++c) {
        double sum = 0;
        for (std::size_t i = 0; i < p.size(); ++i)
          sum += p[i] * static_cast<double>(
                            rounded_to_bf16(data->v[static_cast<std::size_t>(l)].row(of(l, head / group)[i].token, head / group)[c]));
        worst =
            std::max(worst, std::fabs(sum - static_cast<double>(got[static_cast<std::size_t>((at * query_heads + head) * channels + c)])));
      }
    }
    CHECK(worst < 2e-5);  // sums of at most 300 numbers of size 4 in f32
  }
  // Keeps what the cache has kept of the tokens before `next`, if that is right: the best of each row beside the `newest` ones. Scores in
  // f32 may order rows otherwise that differ by less than their rounding.
  template <class Cache>
  void follow(Cache const& cache, pith::sequence s, int64_t next, int64_t capacity, int64_t newest) {
    for (int l = 0; l < layers; ++l)
      for (int h = 0; h < kv_heads; ++h) {
        auto got = tokens_of(cache, s, l, h);
        std::erase_if(got, [&](int64_t token) { return token >= next; });
        auto& mine = of(l, h);
        auto const length = static_cast<int64_t>(mine.size());
        REQUIRE(static_cast<int64_t>(got.size()) == std::min(length, capacity));
        std::vector<double> ranked;
        for (int64_t i = 0; i < length - newest; ++i) ranked.push_back(mine[static_cast<std::size_t>(i)].score);
        std::sort(ranked.rbegin(), ranked.rend());
        double const least = length <= capacity ? -1 : ranked[static_cast<std::size_t>(capacity - newest - 1)],
                     slack = 1e-5 * std::max(least, 0.0);
        std::vector<row> kept;
        for (int64_t i = 0; i < length; ++i) {
          row const& one = mine[static_cast<std::size_t>(i)];
          bool const is_kept = std::binary_search(got.begin(), got.end(), one.token);
          bool const must = i >= length - newest || one.score > least + slack, may = must || one.score >= least - slack;
          if (is_kept ? !may : must)
            FAIL_CHECK("layer " << l << " head " << h << " token " << one.token << " score " << one.score << " least " << least);
          if (is_kept) kept.push_back(one);
        }
        CHECK(kept.size() == got.size());
        mine = kept;
      }
  }
};

constexpr int64_t kept_heavy = 96, recent_heavy = 24;

// What the step before was decided to keep shows when the next one begins.
void heavy_step(pith::cache<heavy>& cache, pith::sequence s, model_data const& data, reference& right, int64_t token) {
  for (int l = 0; l < layers; ++l) {
    append(cache, s, data, l, token);
    if (l == 0) right.follow(cache, s, token, kept_heavy, recent_heavy);
    right.add(l, token);
    right.check_output(attend(cache, s, data, l, token), l, token);
    right.look(l, token);
  }
}

int64_t pages_of(pith::cache<heavy> const& cache, pith::sequence s) {
  int64_t held = 0;
  for (int l = 0; l < layers; ++l)
    for (int h = 0; h < kv_heads; ++h)
      for (int64_t p = 0; p < cache.memory().table_of(s.index, l, h).pages; ++p)
        held += cache.memory().runs->block(cache.memory().table_of(s.index, l, h), p) != pith::no_block;
  return held;
}

double tokens_stood_for(pith::cache<compensating> const& cache, pith::sequence s, int l, int h) {
  std::vector<pith::survivor> all(512);
  double sum = 0;
  int64_t const count = cache.survivors(s, l, h, all).value();
  for (int64_t i = 0; i < count; ++i)
    sum += std::exp(static_cast<double>(cache.memory().biases_of(s.index, l, h)[all[static_cast<std::size_t>(i)].slot]));
  return sum;
}

}  // namespace

TEST_CASE("keep: H2O's survivors and outputs are those of plain rows, prompt in chunks, steps, and a fork of its own", "[cache][keep]") {
  auto cache = pith::make<heavy>(shape).value();
  pith::sequence const s = cache.open().value();
  model_data const data(1, 300);
  reference right{&data};
  for (int64_t from = 0; from < 150; from += 50)
    for (int l = 0; l < layers; ++l) {
      output const out = prefill(cache, s, data, l, from, 50);
      for (int64_t t = from; t < from + 50; ++t) right.add(l, t);
      for (int64_t t = from; t < from + 50; t += 7) right.check_output(out, l, t, t - from);
      for (int64_t t = from; t < from + 50; ++t) right.look(l, t);
    }
  CHECK(cache.append(s, 0, data.k[0].part(150, 1), data.v[0].part(150, 1)).code == pith::errc::unsupported);
  pith::keep_report const done = cache.end_prefill(s).value();
  CHECK((done.rows == 4 && done.kept == 4 * kept_heavy && done.dropped == 4 * (150 - kept_heavy)));
  right.follow(cache, s, 150, kept_heavy, recent_heavy);
  for (int64_t token = 150; token < 220; ++token) heavy_step(cache, s, data, right, token);

  model_data other = data;  // from here on other tokens
  for (int l = 0; l < layers; ++l)
    for (tokens_of_heads* x :
         {&other.k[static_cast<std::size_t>(l)], &other.v[static_cast<std::size_t>(l)], &other.q[static_cast<std::size_t>(l)]})
      for (int64_t i = 220 * x->heads * channels; i < static_cast<int64_t>(x->data.size()); ++i)
        x->data[static_cast<std::size_t>(i)] *= -0.7f;
  pith::sequence const f = cache.fork(s).value();
  reference forked = right;
  forked.data = &other;
  for (int64_t token = 220; token < 300; ++token) {
    heavy_step(cache, s, data, right, token);
    heavy_step(cache, f, other, forked, token);
  }
  CHECK(tokens_of(cache, s, 0, 0) != tokens_of(cache, f, 0, 0));
  REQUIRE(cache.end_step(s));
  right.follow(cache, s, 300, kept_heavy, recent_heavy);
  REQUIRE(cache.close(f));

  // 300 tokens were stored, 96 are: first and staging hold 36 to 67 of the slots, and what survives of the others fills two pages and
  // parts.
  CHECK(pages_of(cache, s) <= layers * kv_heads * 3);
  pith::cache<pith::unkept<heavy>> all = std::move(pith::make<pith::unkept<heavy>>(shape).value());
  pith::sequence const a = all.open().value();
  for (int l = 0; l < layers; ++l)
    REQUIRE(all.append(a, l, data.k[static_cast<std::size_t>(l)].all(), data.v[static_cast<std::size_t>(l)].all()));
  int64_t const pages = all.memory().page_pool->used_blocks() - cache.memory().page_pool->used_blocks();
  CHECK(pages >= layers * kv_heads * 2);
  CHECK(cache.memory().page_pool->used_blocks() == pages_of(cache, s));
}

TEST_CASE("keep: a capacity that everything fits in changes no bit, and costs what the policy's arrays do", "[cache][keep]") {
  auto cache = pith::make<heavy>(shape).value();
  auto all = pith::make<pith::unkept<heavy>>(shape).value();
  cache.policy().at<pith::stage::total>().tokens = 512;
  pith::sequence const s = cache.open().value(), a = all.open().value();
  model_data const data(2, 170);
  for (int l = 0; l < layers; ++l) CHECK(prefill(cache, s, data, l, 0, 64) == prefill(all, a, data, l, 0, 64));
  REQUIRE(cache.end_prefill(s));
  for (int64_t token = 64; token < 170; ++token)
    for (int l = 0; l < layers; ++l) {
      append(cache, s, data, l, token);
      append(all, a, data, l, token);
      CHECK(attend(cache, s, data, l, token) == attend(all, a, data, l, token));
    }
  CHECK(cache.memory().page_pool->used_blocks() == all.memory().page_pool->used_blocks());
  CHECK(cache.resident_bytes() > all.resident_bytes() + 4 * layers * kv_heads * shape.max_tokens);
  CHECK(cache.resident_bytes() < shape.bytes);
}

TEST_CASE("keep: Ada-KV's window over chunks, ragged heads; SnapKV's even ones", "[cache][keep]") {
  for (double const floor : {0.2, 1.0}) {  // 1: even shares
    auto cache = pith::make<ragged>(shape).value();
    cache.policy().at<pith::stage::head_split>().floor = floor;
    pith::sequence const s = cache.open().value();
    model_data data(3, 200);
    for (float& x : data.k[1].data) x *= 1.5f;
    reference right{&data};
    int64_t const chunks[] = {64, 64, 5, 17, 4};  // the window of 8 spans the last two
    int64_t from = 0;
    for (int64_t const count : chunks) {
      for (int l = 0; l < layers; ++l) prefill(cache, s, data, l, from, count);
      from += count;
    }
    std::vector<int64_t> offset, length(4, from), known(4, 0), counts(4), kept(static_cast<std::size_t>(4 * from));
    std::vector<float> sums, score(static_cast<std::size_t>(4 * from));
    for (int l = 0; l < layers; ++l) {
      for (int64_t t = 0; t < from; ++t) right.add(l, t);
      for (int64_t t = from - 8; t < from; ++t) right.look(l, t);
      for (int h = 0; h < kv_heads; ++h) {
        offset.push_back(static_cast<int64_t>(sums.size()));
        for (row const& one : right.of(l, h)) sums.push_back(static_cast<float>(one.score));
      }
    }
    std::vector<std::byte> scratch(static_cast<std::size_t>(pith::decide_scratch_bytes(4, 4 * from)));
    pith::policy_rows const rows{.layers = 2, .kv_heads = 2, .offset = offset, .length = length};
    pith::policy_state state{.score = score, .known = known};
    pith::policy_plan plan{.kept = kept, .kept_count = counts};
    REQUIRE(pith::observe(cache.policy(), rows, {.sum = sums, .rows = 8}, state, scratch));
    REQUIRE(pith::decide(cache.policy(), rows, {.statistic_rows = 8}, state, plan, scratch));

    pith::keep_report const done = cache.end_prefill(s).value();
    CHECK((done.rows == 4 && done.kept == 4 * 48 && done.raised == 0));
    for (int l = 0; l < layers; ++l) {
      for (int h = 0; h < kv_heads; ++h) {
        auto const r = static_cast<std::size_t>(l * kv_heads + h);
        std::vector<int64_t> const expected(kept.begin() + offset[r], kept.begin() + offset[r] + counts[r]);
        CHECK(tokens_of(cache, s, l, h) == expected);
        std::erase_if(right.of(l, h), [&](row const& one) { return !std::binary_search(expected.begin(), expected.end(), one.token); });
      }
      CHECK(counts[static_cast<std::size_t>(2 * l)] + counts[static_cast<std::size_t>(2 * l + 1)] == 96);
      CHECK((floor == 1) == (counts[static_cast<std::size_t>(2 * l)] == 48));
    }
    for (int64_t token = from; token < from + 20; ++token)  // decoding drops nothing
      for (int l = 0; l < layers; ++l) {
        append(cache, s, data, l, token);
        right.add(l, token);
        right.check_output(attend(cache, s, data, l, token), l, token);
      }
    CHECK(cache.living(s, 1, 0).value() == counts[2] + 20);
    CHECK(cache.truncate(s, from - 1).error() == pith::status{pith::errc::unsupported, from});
    REQUIRE(cache.truncate(s, from + 3));
    CHECK(cache.living(s, 1, 0).value() == counts[2] + 3);
  }
}

TEST_CASE("keep: protected slots above the capacity raise it, and are counted", "[cache][keep]") {
  auto cache = pith::make<ragged>(shape).value();
  cache.policy().at<pith::stage::total>().tokens = 5;  // the window has 8
  pith::sequence const s = cache.open().value();
  model_data const data(4, 40);
  for (int l = 0; l < layers; ++l) prefill(cache, s, data, l, 0, 40);
  pith::keep_report const done = cache.end_prefill(s).value();
  CHECK((done.kept == 4 * 8 && done.raised == 4 * 3 && done.clipped == 0));
}

TEST_CASE("keep: StreamingLLM keeps the first and the newest, and pages come back", "[cache][keep]") {
  auto cache = pith::make<streaming>(shape).value();
  pith::sequence const s = cache.open().value();
  model_data const data(5, 500);
  reference right{&data};
  int64_t most = 0;
  for (int64_t token = 0; token < 500; ++token)
    for (int l = 0; l < layers; ++l) {
      append(cache, s, data, l, token);
      if (l == 0)
        for (auto& rows : right.rows)
          if (rows.size() > 150) rows.erase(rows.begin() + 4);
      right.add(l, token);
      if (token % 50 == 7) right.check_output(attend(cache, s, data, l, token), l, token);
      most = std::max(most, cache.memory().page_pool->used_blocks());
    }
  REQUIRE(cache.end_step(s));
  std::vector<int64_t> expected{0, 1, 2, 3};
  for (int64_t token = 500 - 146; token < 500; ++token) expected.push_back(token);
  for (int h = 0; h < kv_heads; ++h) CHECK(tokens_of(cache, s, 1, h) == expected);
  CHECK(most <= layers * kv_heads * 4);  // 146 tokens lie in four pages at most
}

TEST_CASE("keep: a drafted step that is cut before the next one drops nothing", "[cache][keep]") {
  auto cache = pith::make<streaming>(shape).value();
  pith::sequence const s = cache.open().value();
  model_data const data(6, 200);
  for (int l = 0; l < layers; ++l) REQUIRE(cache.append(s, l, data.k[0].part(0, 150), data.v[0].part(0, 150)));
  for (int l = 0; l < layers; ++l) REQUIRE(cache.append(s, l, data.k[0].part(150, 8), data.v[0].part(150, 8)));
  REQUIRE(cache.truncate(s, 150));
  CHECK(cache.living(s, 0, 0).value() == 150);
  for (int l = 0; l < layers; ++l) append(cache, s, data, l, 150);
  CHECK(cache.living(s, 0, 0).value() == 151);
  REQUIRE(cache.end_step(s));
  CHECK(cache.living(s, 0, 0).value() == 150);
  CHECK(tokens_of(cache, s, 0, 0)[4] == 5);
}

TEST_CASE("keep: a compensating row stands for every token that it ever had", "[cache][keep]") {
  auto cache = pith::make<compensating>(shape).value();
  pith::sequence const s = cache.open().value();
  model_data data(7, 260);
  // Equal rows between the sinks and the newest: attention is as if nothing had left.
  for (int l = 0; l < layers; ++l)
    for (tokens_of_heads* x : {&data.k[static_cast<std::size_t>(l)], &data.v[static_cast<std::size_t>(l)]})
      for (int64_t t = 4; t < 260; ++t)
        for (int h = 0; h < kv_heads; ++h) std::copy_n(x->row(4, h), channels, x->row(t, h));
  reference right{&data};
  for (int64_t token = 0; token < 260; ++token)
    for (int l = 0; l < layers; ++l) {
      append(cache, s, data, l, token);
      right.add(l, token);
      if (token % 20 == 9) right.check_output(attend(cache, s, data, l, token), l, token);
    }
  REQUIRE(cache.end_step(s));
  for (int l = 0; l < layers; ++l)
    for (int h = 0; h < kv_heads; ++h) {
      CHECK(cache.living(s, l, h).value() == 101);
      CHECK(std::fabs(tokens_stood_for(cache, s, l, h) - 260) < 1e-3);
    }
  pith::sequence const f = cache.fork(s).value();  // merges copy what is shared
  output const before = attend(cache, s, data, 0, 259);
  for (int l = 0; l < layers; ++l) append(cache, f, data, l, 5);
  REQUIRE(cache.end_step(f));
  CHECK(attend(cache, s, data, 0, 259) == before);
  CHECK(std::fabs(tokens_stood_for(cache, f, 0, 0) - 261) < 1e-3);
}

TEST_CASE("keep: SnapKV over 4-bit rows: each head keeps as many, its window among them, in fewer pages", "[cache][keep]") {
  auto cache = pith::make<snap>(shape).value();
  pith::sequence const s = cache.open().value();
  model_data const data(10, 340);
  for (int64_t from = 0; from < 320; from += 64)
    for (int l = 0; l < layers; ++l) prefill(cache, s, data, l, from, 64);
  int64_t const before = cache.resident_bytes();
  pith::keep_report const done = cache.end_prefill(s).value();
  CHECK((done.kept == 4 * 80 && done.dropped == 4 * 240 && done.masked_rows == 0));
  CHECK(done.bytes == before - cache.resident_bytes());
  CHECK(done.bytes >= 4 * 2 * snap::page::bytes);  // of five pages that were begun
  for (int l = 0; l < layers; ++l)
    for (int h = 0; h < kv_heads; ++h) {
      auto const tokens = tokens_of(cache, s, l, h);
      CHECK((tokens.size() == 80 && tokens[72] == 312));
    }
  for (int64_t token = 320; token < 340; ++token)
    for (int l = 0; l < layers; ++l) {
      append(cache, s, data, l, token);
      attend(cache, s, data, l, token);
    }
  CHECK(cache.living(s, 0, 1).value() == 100);
}

TEST_CASE("keep: attention among chosen slots is that over their rows, and changes nothing", "[cache][keep]") {
  auto cache = pith::make<pith::unkept<heavy>>(shape).value();
  pith::sequence const s = cache.open().value();
  model_data const data(11, 300);
  REQUIRE(cache.append(s, 0, data.k[0].all(), data.v[0].all()));
  int64_t const gone[] = {7, 130, 290};
  REQUIRE(cache.evict(s, 0, 1, gone));
  reference right{&data};
  std::vector<std::uint64_t> bits(2 * 5);
  for (int h = 0; h < kv_heads; ++h)
    for (int64_t token = 0; token < 300; ++token) {
      if (token % 3 == h && (token < 60 || token > 200)) continue;
      if (token >= 100 && token < 180) continue;  // a whole page
      bits[static_cast<std::size_t>(h * 5 + token / 64)] |= std::uint64_t{1} << token % 64;
      if (h == 0 || std::find(gone, gone + 3, token) == gone + 3) right.of(0, h).push_back({token});
    }
  output const before = attend(cache, s, data, 0, 299);
  output got(query_heads * channels);
  pith::tensor_view<std::uint64_t, 2> const chosen(bits.data(), {2, 5});
  auto const q = data.q[0].part(299, 1);
  pith::tensor_view<float, 3> const out(got.data(), {1, query_heads, channels});
  REQUIRE(cache.attend_among(s, 0, chosen, q, out));
  right.check_output(got, 0, 299);
  CHECK(attend(cache, s, data, 0, 299) == before);
  CHECK(cache.attend_among(s, 0, pith::tensor_view<std::uint64_t, 2>(bits.data(), {2, 4}), q, out).code == pith::errc::shape_mismatch);
}

TEST_CASE("keep: wrong calls change nothing", "[cache][keep]") {
  auto cache = pith::make<heavy>(shape).value();
  pith::sequence const s = cache.open().value();
  model_data data(8, 80);
  std::vector<float> out(64 * query_heads * channels);
  data.q[0].row(5, 1)[3] = std::nanf("");
  CHECK(cache.prefill(s, 0, data.q[0].part(0, 64), data.k[0].part(0, 64), data.v[0].part(0, 64),
                      pith::tensor_view<float, 3>(out.data(), {64, query_heads, channels})) == pith::status{pith::errc::not_finite, 5});
  CHECK(cache.length(s, 0) == 0);
  append(cache, s, data, 0, 5);
  CHECK(cache.end_step(s).error() == pith::status{pith::errc::shape_mismatch, 1});  // layer 1 has no token
  append(cache, s, data, 1, 5);
  CHECK(cache.attend(s, 0, data.q[0].part(5, 1), pith::tensor_view<float, 3>(out.data(), {1, query_heads, channels})) ==
        pith::status{pith::errc::not_finite, 0});
  CHECK(cache.apply(s).error() == pith::status{pith::errc::shape_mismatch, 0});  // not observed
  CHECK(cache.apply(s, 7).error().code == pith::errc::out_of_range);
  REQUIRE(cache.close(s));
  CHECK(cache.apply(s).error().code == pith::errc::stale_handle);
  CHECK(cache.end_turn(s).error().code == pith::errc::stale_handle);
  CHECK(pith::make<heavy>({.layers = 1, .bytes = 1 << 20}).error().code == pith::errc::shape_mismatch);  // max_tokens
  CHECK(pith::make<heavy>({.layers = 1, .bytes = 1 << 10, .max_tokens = 100}).error().code == pith::errc::capacity_exceeded);
}

TEST_CASE("keep: any order of calls leaves rows within their budget and a sequence that can be read", "[cache][keep][random]") {
  pith::cache_shape small = shape;
  small.max_sequences = 3;
  small.bytes = 3 << 20;
  auto cache = pith::make<heavy>(small).value();
  cache.policy().at<pith::stage::total>().tokens = 60;
  cache.policy().at<pith::stage::protect>().when_full = pith::overflow::clip;
  model_data const data(9, 512);
  std::vector<pith::sequence> open{cache.open().value()};
  output out(64 * query_heads * channels);
  auto const view = [&](int64_t count) { return pith::tensor_view<float, 3>(out.data(), {count, query_heads, channels}); };
  int decisions = 0;
  for (int step = 0; step < 1500; ++step) {
    auto const i = static_cast<std::size_t>(step / 9) % open.size();
    pith::sequence const s = open[i];
    int64_t const tokens = cache.length(s, 0), count = std::min<int64_t>(1 + step % 40, 512 - tokens), what = step * 7919 % 23;
    pith::status ok;
    if (what < 12) {
      for (int l = 0; l < layers && ok; ++l) {
        auto const at = static_cast<std::size_t>(l);
        if (what < 9 || count < 1) {
          ok = count < 1 ? pith::status{pith::errc::capacity_exceeded, 0}
                         : cache.append(s, l, data.k[at].part(tokens, 1), data.v[at].part(tokens, 1));
          if (ok && what != 8) ok = cache.attend(s, l, data.q[at].part(tokens, 1), view(1));
        } else {
          ok = cache.prefill(s, l, data.q[at].part(tokens, count), data.k[at].part(tokens, count), data.v[at].part(tokens, count),
                             view(count));
        }
      }
      if (!ok) static_cast<void>(cache.truncate(s, tokens));  // layers of one length again
    } else if (what < 17) {
      auto const done = what == 12   ? cache.end_step(s)
                        : what == 13 ? cache.end_turn(s)
                        : what == 14 ? cache.apply(s)
                                     : cache.end_prefill(s);
      ok = done.error();
      if (done && done.value().rows > 0) {
        ++decisions;
        int64_t living = 0;
        for (int l = 0; l < layers; ++l)
          for (int h = 0; h < kv_heads; ++h) {
            CHECK(cache.living(s, l, h).value() <= 60);
            living += cache.living(s, l, h).value();
          }
        CHECK(living == done.value().kept);
      }
    } else if (what < 19) {
      ok = cache.truncate(s, tokens > 0 ? tokens - step % 3 : 0).error();
    } else if (what == 19 && step % 5 == 0) {
      ok = cache.truncate(s, 0).error();
    } else if (what == 20) {
      if (auto made = cache.fork(s)) open.push_back(made.value());
    } else if (what == 21 && open.size() > 1) {
      REQUIRE(cache.close(s));
      open.erase(open.begin() + static_cast<std::ptrdiff_t>(i));
    } else if (what == 22) {
      std::vector<std::byte> saved(static_cast<std::size_t>(cache.saved_bytes(s)));
      REQUIRE(cache.save(s, saved));
      if (auto made = cache.load(saved)) {
        CHECK(tokens_of(cache, made.value(), 1, 1) == tokens_of(cache, s, 1, 1));
        open.push_back(made.value());
      }
    }
    INFO("step " << step << " call " << what << " code " << static_cast<int>(ok.code));
    CHECK((ok || ok.code == pith::errc::unsupported || ok.code == pith::errc::capacity_exceeded || ok.code == pith::errc::shape_mismatch));
    if (int64_t const now = cache.length(open[0], 1); now > 0) CHECK(cache.attend(open[0], 1, data.q[1].part(now - 1, 1), view(1)));
    REQUIRE(std::all_of(out.begin(), out.end(), [](float x) { return pith::is_finite(x); }));
  }
  CHECK(decisions > 50);
}
