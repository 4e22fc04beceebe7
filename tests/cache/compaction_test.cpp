// SPDX-License-Identifier: Apache-2.0
// Eviction that frees memory: random operations against a model of every head's rows, and what merging does to them.
#include <algorithm>
#include <array>
#include <map>

#include "cache/support.hpp"
#include "pith/codec/block_float.hpp"
#include "pith/codec/float8.hpp"
#include "support/seal.hpp"

using namespace pith_test;
using pith::errc;

namespace {

int constexpr layers = 2, kv_heads = 2, query_heads = 4, channels = 16, max_tokens = 1500;
int64_t constexpr text_tokens = 1024, first = 3;

template <class Keys, class Values, class Last, class... Sides>
struct recipe : pith::kv_cache<pith::head_dim<channels>, pith::keys<Keys>, pith::values<Values>, pith::raw<pith::first<first>, Last>,
                               pith::side<pith::liveness, pith::bias, pith::births, Sides...>> {};

using per_token = pith::int4<pith::per_token<16>>;
// Rows that move alone; keys are sealed before values. And keys of 32 tokens that share scales.
using alone = recipe<pith::raw<pith::bf16>, pith::pipe<pith::hadamard<16>, per_token>, pith::last<8, 40>, pith::positions>;
using together = recipe<pith::int4<pith::per_channel<32>>, per_token, pith::last<8>>;

// A number of the texts is at most 4 * 0.866 in size, so half a step of 32 of them is at most this; 2^-7 for the rounding of the
// parameters.
float constexpr half_step = 2 * 4 * 0.8660254f / 15 / 2 + 0x1p-7f;

// One token in one head.
struct model_row {
  bool live = true, key_is_packed = false, value_is_packed = false;
  float bias = 0;
  int changes = 0;  // of the packed key
  std::array<float, channels> key{}, value{};
};
struct model_token {
  int64_t position = 0;
  std::array<model_row, layers * kv_heads> rows;
};
using model_sequence = std::vector<model_token>;

// A row as the only one of a tile: what a codec makes of rows that it encodes alone.
template <class Tile>
std::array<float, channels> coded(std::array<float, channels> const& row) {
  std::vector<float> rows(Tile::tokens * channels);
  std::copy(row.begin(), row.end(), rows.begin());
  std::vector<std::byte> bytes(Tile::bytes);
  Tile::encode(rows.data(), bytes.data());
  Tile::decode(bytes.data(), rows.data());
  std::array<float, channels> back;
  std::copy_n(rows.begin(), channels, back.begin());
  return back;
}

template <class Recipe>
struct world {
  using page = typename Recipe::page;
  static constexpr bool all_move = pith::rows_move<typename page::key_tile>;

  tokens_of_heads k = gaussian(1, text_tokens, kv_heads, channels), v = gaussian(2, text_tokens, kv_heads, channels),
                  q = gaussian(3, text_tokens, query_heads, channels);
  pith::cache<Recipe> cache;
  std::vector<std::pair<pith::sequence, model_sequence>> open;
  random_bits bits;
  std::map<std::string, int64_t> count;
  double worst = 0;

  world(std::uint64_t seed, int64_t pages) : cache(pith::make<Recipe>(shape(pages)).value()), bits(seed) {}
  static pith::cache_shape shape(int64_t pages) {
    pith::cache_shape made{.layers = layers,
                           .kv_heads = kv_heads,
                           .query_heads = query_heads,
                           .bytes = 0,
                           .max_sequences = 5,
                           .max_tokens = max_tokens,
                           .max_chunk = 0};
    made.bytes = pith::cache_storage<Recipe>::fixed_bytes(made) + pages * page::bytes;
    return made;
  }

  int64_t below(int64_t n) { return static_cast<int64_t>(bits() % static_cast<std::uint64_t>(n)); }

  void grow(std::size_t at) {
    auto& [handle, tokens] = open[at];
    int64_t const chunk = below(5) == 0 ? below(100) : 1 + below(8), from = below(text_tokens - 100),
                  before = static_cast<int64_t>(tokens.size());
    if (before + chunk > 600) return close(at);
    std::vector<int64_t> positions;
    if constexpr (Recipe::has_positions)
      for (int64_t t = 0, p = tokens.empty() ? 0 : tokens.back().position + 1; t < chunk; ++t, ++p) positions.push_back(p += below(3));
    for (int layer = 0; layer < layers; ++layer) {
      pith::status const done = cache.append(handle, layer, k.part(from, chunk), v.part(from, chunk), positions);
      if (done) continue;
      REQUIRE(done.code == errc::capacity_exceeded);
      ++count["exhausted"];
      auto const cut = cache.truncate(handle, before);  // the layers before have it already
      if (!cut) REQUIRE((cut.error().code == errc::capacity_exceeded || cut.error().code == errc::unsupported));
      return cut ? void() : close(at);
    }
    for (int64_t t = 0; t < chunk; ++t) {
      model_token made{.position = positions.empty() ? before + t : positions[static_cast<std::size_t>(t)], .rows = {}};
      for (int i = 0; i < layers * kv_heads; ++i)
        for (int c = 0; c < channels; ++c) {
          made.rows[static_cast<std::size_t>(i)].key[static_cast<std::size_t>(c)] = rounded_to_bf16(k.row(from + t, i % kv_heads)[c]);
          made.rows[static_cast<std::size_t>(i)].value[static_cast<std::size_t>(c)] = rounded_to_bf16(v.row(from + t, i % kv_heads)[c]);
        }
      tokens.push_back(made);
    }
    ++count["append"];
  }

  void cut(std::size_t at) {
    auto& [handle, model] = open[at];
    auto const size = static_cast<int64_t>(model.size()), tokens = below(4) == 0 ? below(size + 1) : std::max<int64_t>(0, size - below(30));
    auto const done = cache.truncate(handle, tokens);
    if (!done && done.error().code == errc::unsupported) {
      REQUIRE(done.error().at > tokens);
      REQUIRE(done.error().at <= size);
      REQUIRE(
          (cache.check_truncate(handle, done.error().at) || cache.check_truncate(handle, done.error().at).code == errc::capacity_exceeded));
      REQUIRE_FALSE(cache.check_truncate(handle, done.error().at - 1));
      REQUIRE(cache.check_truncate(handle, 0));
      ++count["cut refused"];
    } else if (done) {
      model.resize(static_cast<std::size_t>(tokens));
      count["cut inexactly"] += !done.value().exact;
      ++count["cut"];
    } else {
      REQUIRE(done.error().code == errc::capacity_exceeded);
    }
  }

  void close(std::size_t at) {
    REQUIRE(cache.close(open[at].first));
    open.erase(open.begin() + static_cast<std::ptrdiff_t>(at));
    ++count["close"];
  }

  void evict(std::size_t at) {
    auto& [handle, model] = open[at];
    auto const layer = static_cast<int>(below(layers)), head = static_cast<int>(below(kv_heads));
    int64_t const dense = below(100);  // of 100 tokens these go
    std::vector<int64_t> tokens;
    int64_t const from = below(2) == 0 ? 0 : below(static_cast<int64_t>(model.size()) + 1);
    for (auto t = from; t < static_cast<int64_t>(model.size()); ++t)
      if (below(100) < dense) tokens.push_back(t);
    REQUIRE(cache.evict(handle, layer, head, tokens));
    for (int64_t const t : tokens) model[static_cast<std::size_t>(t)].rows[static_cast<std::size_t>(layer * kv_heads + head)].live = false;
    ++count["evict"];
  }

  void set_bias(std::size_t at) {
    auto& [handle, model] = open[at];
    if (model.empty()) return;
    auto const layer = static_cast<int>(below(layers)), head = static_cast<int>(below(kv_heads));
    int64_t const token = below(static_cast<int64_t>(model.size()));
    float const value = normal(bits);
    REQUIRE(cache.set_bias(handle, layer, head, token, value));
    model[static_cast<std::size_t>(token)].rows[static_cast<std::size_t>(layer * kv_heads + head)].bias = value;
  }

  void compact(std::size_t at) {
    auto& [handle, model] = open[at];
    auto const layer = static_cast<int>(below(layers)), head = static_cast<int>(below(kv_heads));
    int64_t const bytes = cache.resident_bytes(), blocks = cache.memory().page_pool->used_blocks();
    bool const owned = owns_pages(handle, layer, head);
    std::string const other = below(4) == 0 && open.size() > 1 ? saved(at == 0 ? 1 : 0) : std::string();
    std::string const own = below(4) == 0 ? saved(at) : std::string();
    auto const done = cache.compact(handle, layer, head);
    if (!other.empty()) REQUIRE(saved(at == 0 ? 1 : 0) == other);
    if (!done) {
      REQUIRE(done.error().code == errc::capacity_exceeded);
      REQUIRE_FALSE(owned);
      REQUIRE(cache.memory().page_pool->used_blocks() == blocks);
      REQUIRE(cache.resident_bytes() == bytes);
      if (!own.empty()) REQUIRE(saved(at) == own);
      ++count["no page for a copy"];
      return;
    }
    pith::compaction const what = done.value();
    if (what.pages == 0) {
      REQUIRE((what.moved == 0 && what.encoded == 0 && cache.resident_bytes() == bytes));
      if (!own.empty()) REQUIRE(saved(at) == own);
      return;
    }
    if (owned) REQUIRE(cache.resident_bytes() <= bytes - what.pages * page::bytes);
    if (owned) REQUIRE(cache.memory().page_pool->used_blocks() == blocks - what.pages);
    if (all_move) REQUIRE(what.encoded == 0);
    count["rows moved"] += what.moved;
    count["rows encoded"] += what.encoded;
    int64_t const changes = changed(at, layer, head);
    REQUIRE(changes <= what.encoded);
    if (all_move) {  // no more pages than the survivors need, and one in front that is filled partly
      auto const& memory = cache.memory();
      pith::layer_state const& state = memory.layer(handle.index, layer);
      int64_t const sealed = std::min(state.sealed_keys, state.sealed_values);
      int64_t kept = 0, held = 0;
      for (pith::survivor const& s : survivors(handle, layer, head)) kept += s.slot >= first && s.slot - first < sealed;
      for (int64_t p = 0; p < pith::divide_up(sealed, page::tokens); ++p)
        held += memory.runs->block(memory.table_of(handle.index, layer, head), p) != pith::no_block;
      REQUIRE(held <= pith::divide_up(kept, page::tokens) + 1);
    }
    REQUIRE(cache.compact(handle, layer, head).value().pages == 0);
    ++count[owned ? "compact" : "compact a fork"];
  }
  bool owns_pages(pith::sequence of, int layer, int head) const {
    pith::table const& pages = cache.memory().table_of(of.index, layer, head);
    return pages.pages == 0 || cache.memory().runs->is_exclusive(pages, 0);
  }

  std::vector<pith::survivor> survivors(pith::sequence of, int layer, int head) const {
    std::vector<pith::survivor> all(static_cast<std::size_t>(cache.living(of, layer, head).value()));
    REQUIRE(cache.survivors(of, layer, head, all).value() == static_cast<int64_t>(all.size()));
    return all;
  }

  // Compares the rows of a head with the model's, which takes note of those that were sealed or encoded again; returns how many of the
  // latter.
  int64_t changed(std::size_t at, int layer, int head) {
    auto& [handle, model] = open[at];
    auto const all = survivors(handle, layer, head);
    std::vector<float> keys(all.size() * channels), values(all.size() * channels);
    REQUIRE(cache.read_rows(handle, layer, head, all, keys, values));
    pith::layer_state const& state = cache.memory().layer(handle.index, layer);
    std::size_t i = 0;
    int64_t changes = 0;
    bool right = true;
    for (std::size_t t = 0; t < model.size(); ++t) {
      model_row& row = model[t].rows[static_cast<std::size_t>(layer * kv_heads + head)];
      if (!row.live) continue;
      REQUIRE(i < all.size());
      right = right && all[i].token == static_cast<int64_t>(t) && (i == 0 || all[i].slot > all[i - 1].slot);
      if constexpr (Recipe::has_bias) right = right && cache.memory().biases_of(handle.index, layer, head)[all[i].slot] == row.bias;
      int64_t const staged = all[i].slot - first;
      std::array<float, channels> key, value;
      std::copy_n(keys.begin() + static_cast<std::ptrdiff_t>(i * channels), channels, key.begin());
      std::copy_n(values.begin() + static_cast<std::ptrdiff_t>(i * channels), channels, value.begin());
      if (staged >= 0 && staged < state.sealed_values && !row.value_is_packed) {
        row.value = coded<typename page::value_tile>(row.value);
        row.value_is_packed = true;
      }
      bool const newly_packed = staged >= 0 && staged < state.sealed_keys && !row.key_is_packed;
      row.key_is_packed = row.key_is_packed || newly_packed;
      if (all_move && newly_packed) row.key = coded<typename page::key_tile>(row.key);
      if (!all_move && row.key_is_packed && key != row.key) {
        for (std::size_t c = 0; c < channels; ++c) right = right && std::fabs(key[c] - row.key[c]) <= half_step * (newly_packed ? 1 : 2);
        if (!newly_packed) ++changes, ++row.changes;
        right = right && row.changes <= 1;
        row.key = key;
      }
      right = right && key == row.key && value == row.value;
      ++i;
    }
    REQUIRE(i == all.size());
    REQUIRE(right);
    return changes;
  }

  std::string saved(std::size_t at) const {
    std::string bytes(static_cast<std::size_t>(cache.saved_bytes(open[at].first)), '\0');
    REQUIRE(cache.save(open[at].first, {reinterpret_cast<std::byte*>(bytes.data()), bytes.size()}));
    return bytes;
  }
  void reload(std::size_t at) {
    std::string const bytes = saved(at);
    auto const made = cache.load({reinterpret_cast<std::byte const*>(bytes.data()), bytes.size()});
    if (!made) {
      REQUIRE(made.error().code == errc::capacity_exceeded);
      return;
    }
    open.emplace_back(made.value(), open[at].second);
    REQUIRE(saved(open.size() - 1) == bytes);
    ++count["load"];
  }
  void fork(std::size_t at) {
    auto const made = cache.fork(open[at].first);
    if (!made) {
      REQUIRE(open.size() == 5);
      return;
    }
    open.emplace_back(made.value(), open[at].second);
    ++count["fork"];
  }

  void step() {
    int64_t const what = below(100);
    if (open.empty() || what < 3) {
      if (auto const made = cache.open(); made) open.emplace_back(made.value(), model_sequence{});
      return;
    }
    auto const at = static_cast<std::size_t>(below(static_cast<int64_t>(open.size())));
    note(at);
    what < 50   ? grow(at)
    : what < 54 ? fork(at)
    : what < 60 ? cut(at)
    : what < 72 ? evict(at)
    : what < 76 ? set_bias(at)
    : what < 95 ? compact(at)
    : what < 97 ? reload(at)
                : close(at);
  }
  // Sealing shows before anything else can change the rows.
  void note(std::size_t at) {
    for (int i = 0; i < layers * kv_heads; ++i) REQUIRE(changed(at, i / kv_heads, i % kv_heads) == 0);
  }

  void attend() {
    auto const at = static_cast<std::size_t>(below(static_cast<int64_t>(open.size())));
    note(at);
    auto const& [handle, model] = open[at];
    auto const layer = static_cast<int>(below(layers));
    std::vector<content> heads(kv_heads);
    for (int h = 0; h < kv_heads; ++h) {
      heads[static_cast<std::size_t>(h)].dk = heads[static_cast<std::size_t>(h)].dv = channels;
      for (model_token const& token : model) {
        model_row const& row = token.rows[static_cast<std::size_t>(layer * kv_heads + h)];
        heads[static_cast<std::size_t>(h)].add(row.key.data(), row.value.data(), row.live, row.bias, row.key_is_packed, row.value_is_packed,
                                               token.position);
      }
    }
    tokens_of_heads queries = zeros(std::min<int64_t>(static_cast<int64_t>(model.size()), 1 + below(3)), query_heads, channels);
    std::copy_n(q.data.begin() + below(1000) * 4, queries.data.size(), queries.data.begin());
    pith::attention_options const options{.window = below(3) == 0 ? 1 + below(200) : 0};
    outputs const got = pith_test::attend(cache, handle, layer, queries, options);
    REQUIRE(got.status);
    worst = std::max(worst, worst_error(heads, queries, got, options));
    REQUIRE(worst <= 1);
  }
};

template <class Recipe>
std::map<std::string, int64_t> run(std::uint64_t seed, int64_t operations, int64_t pages) {
  world<Recipe> all(seed, pages);
  for (int64_t operation = 0; operation < operations; ++operation) {
    INFO("seed " << seed << ", operation " << operation);
    all.step();
    if (operation % 4 == 0 && !all.open.empty()) all.attend();
  }
  while (!all.open.empty()) all.close(0);
  CHECK(all.cache.memory().page_pool->used_blocks() == 0);
  CHECK(all.cache.memory().runs->used_runs() == 0);
  CHECK(all.cache.resident_bytes() == 0);
  return all.count;
}

void happened(std::map<std::string, int64_t> const& count, std::initializer_list<char const*> what) {
  for (char const* const name : what) {
    INFO(name);
    CHECK((count.contains(name) && count.at(name) > 10));
  }
}

}  // namespace

TEST_CASE("compaction: random operations, rows that move alone", "[cache][compaction][random]") {
  happened(run<alone>(1, 3500, 60), {"append", "fork", "cut", "cut inexactly", "cut refused", "evict", "load", "close", "exhausted",
                                     "compact", "compact a fork", "no page for a copy", "rows moved"});
}
TEST_CASE("compaction: random operations, rows encoded together, once more at most", "[cache][compaction][random]") {
  happened(run<together>(3, 2500, 60),
           {"append", "fork", "cut", "cut refused", "evict", "load", "exhausted", "compact", "compact a fork", "rows encoded"});
}

namespace {

// `count` tokens of a text, the same in all layers.
template <class Recipe>
pith::sequence filled(pith::cache<Recipe>& cache, tokens_of_heads const& k, tokens_of_heads const& v) {
  pith::sequence const made = cache.open().value();
  for (int layer = 0; layer < layers; ++layer) REQUIRE(cache.append(made, layer, k.all(), v.all()));
  return made;
}
// Every token of `of` repeats one of `different` rows.
tokens_of_heads repeated(tokens_of_heads of, int64_t different) {
  for (int64_t t = different; t < of.tokens; ++t) std::copy_n(of.row(t % different, 0), of.heads * of.channels, of.row(t, 0));
  return of;
}
template <class Recipe>
std::vector<pith::survivor> survivors(pith::cache<Recipe> const& cache, pith::sequence of, int layer, int head) {
  std::vector<pith::survivor> all(static_cast<std::size_t>(cache.living(of, layer, head).value()));
  REQUIRE(cache.survivors(of, layer, head, all));
  return all;
}
template <class Recipe>
std::vector<float> keys_of(pith::cache<Recipe> const& cache, pith::sequence of, int layer, int head) {
  auto const all = survivors(cache, of, layer, head);
  std::vector<float> keys(all.size() * channels);
  REQUIRE(cache.read_rows(of, layer, head, all, keys, {}));
  return keys;
}
template <class Recipe>
std::string saved(pith::cache<Recipe> const& cache, pith::sequence of) {
  std::string bytes(static_cast<std::size_t>(cache.saved_bytes(of)), '\0');
  REQUIRE(cache.save(of, {reinterpret_cast<std::byte*>(bytes.data()), bytes.size()}));
  return bytes;
}

struct plan_of {
  std::vector<int64_t> into;
  std::vector<float> weights;
  std::vector<std::byte> scratch;

  explicit plan_of(std::size_t survivors) : into(survivors), weights(survivors, 1.0f), scratch(100000) {
    for (std::size_t i = 0; i < survivors; ++i) into[i] = static_cast<int64_t>(i);
  }
  pith::merge_plan plan() const { return {into, weights}; }
};

template <class Tile>
void move_rows() {
  random_bits bits(7);
  std::vector<float> rows(Tile::tokens * Tile::channels), before(rows.size()), after(rows.size());
  for (float& x : rows) x = normal(bits) * 3 + 1;
  std::vector<std::byte> from(Tile::bytes), to(Tile::bytes);
  Tile::encode(rows.data(), from.data());
  Tile::decode(from.data(), before.data());
  for (int t = 0; t < Tile::tokens; t += 1 + t % 3) pith::move_row<Tile>(from.data(), Tile::tokens - 1 - t, to.data(), t);
  Tile::decode(to.data(), after.data());
  for (int t = 0; t < Tile::tokens; t += 1 + t % 3)
    for (int c = 0; c < Tile::channels; ++c)
      REQUIRE(after[static_cast<std::size_t>(t * Tile::channels + c)] ==
              before[static_cast<std::size_t>((Tile::tokens - 1 - t) * Tile::channels + c)]);
  for (float const x : after) REQUIRE(pith::is_finite(x));
}
template <class Codec>
void move_rows_of() {
  move_rows<typename Codec::template bind<32, 64, pith::use::dot>>();
  move_rows<typename Codec::template bind<32, 64, pith::use::mix>>();
}

}  // namespace

TEST_CASE("compaction: rows that move alone move as they are stored", "[cache][compaction]") {
  move_rows_of<pith::raw<pith::bf16>>();
  move_rows_of<pith::raw<float>>();
  move_rows_of<pith::int4<pith::per_token<16>>>();
  move_rows_of<pith::int7<pith::per_token<32>, pith::zero::integer, float>>();
  move_rows_of<pith::int3<pith::per_token<>, pith::zero::none, pith::bf16>>();
  move_rows_of<pith::block_float<5, pith::per_token<16>>>();
  move_rows_of<pith::float8<pith::e4m3>>();
  move_rows_of<pith::mxfp8<pith::e5m2>>();
  move_rows_of<pith::pipe<pith::hadamard<32>, pith::int8<pith::per_token<32>>>>();
  STATIC_REQUIRE_FALSE(pith::rows_move<pith::int4<pith::per_channel<32>>::bind<32, 64, pith::use::dot>>);
}

TEST_CASE("compaction: resident bytes follow the survivors, attention stays", "[cache][compaction]") {
  int64_t constexpr tokens = 1000;
  auto const k = gaussian(11, tokens, kv_heads, channels), v = gaussian(12, tokens, kv_heads, channels),
             q = gaussian(13, 4, query_heads, channels);
  auto cache = pith::make<alone>(world<alone>::shape(200)).value();
  pith::sequence const of = filled(cache, k, v);
  int64_t const all = cache.resident_bytes(), pages = cache.memory().page_pool->used_blocks();
  for (int layer = 0; layer < layers; ++layer)
    for (int head = 0; head < kv_heads; ++head) {
      std::vector<int64_t> gone;
      for (int64_t t = 0; t < tokens; ++t)
        if (t % (5 + 3 * head) != 0) gone.push_back(t);
      REQUIRE(cache.evict(of, layer, head, gone));
    }
  CHECK(cache.resident_bytes() == all);  // no page is without a survivor
  outputs const masked = attend(cache, of, 1, q);
  int64_t given_back = 0;
  for (int layer = 0; layer < layers; ++layer)
    for (int head = 0; head < kv_heads; ++head) {
      CHECK(cache.compact(of, layer, head, 100).value().pages == 0);  // that many are not to be had
      pith::compaction const done = cache.compact(of, layer, head).value();
      CHECK(done.encoded == 0);
      given_back += done.pages;
      int64_t const kept = 928 / (5 + 3 * head);  // of tokens 3 .. 930, in 14.5 pages
      CHECK(15 - done.pages <= pith::divide_up(kept, alone::page::tokens) + 1);
    }
  CHECK(pages - given_back == cache.memory().page_pool->used_blocks());
  CHECK(cache.resident_bytes() == all - given_back * alone::page::bytes);
  outputs const packed = attend(cache, of, 1, q);
  for (std::size_t i = 0; i < packed.out.data.size(); ++i) CHECK(packed.out.data[i] == Approx(masked.out.data[i]).margin(1e-5));
  for (std::size_t i = 0; i < packed.lse.size(); ++i) CHECK(packed.lse[i] == Approx(masked.lse[i]).margin(1e-5));
}

TEST_CASE("compaction: equal rows merge into one, and attention does not notice", "[cache][compaction][merge]") {
  auto const k = repeated(gaussian(21, 400, kv_heads, channels), 7), v = repeated(gaussian(22, 400, kv_heads, channels), 7),
             q = gaussian(23, 1, query_heads, channels);
  auto cache = pith::make<alone>(world<alone>::shape(100)).value();
  pith::sequence const of = filled(cache, k, v);
  outputs const before = attend(cache, of, 0, q);
  for (int head = 0; head < kv_heads; ++head) {
    // Tokens up to 384 go into the first of their kind, which is in `first`, or sealed; then all of one kind into one that is staged.
    int64_t const last = 385;
    plan_of all(400);
    for (int64_t t = 7; t < last; ++t) all.into[static_cast<std::size_t>(t)] = t % 7;
    for (int64_t t = 0; t < last; ++t) all.weights[static_cast<std::size_t>(t)] = 1.0f / 55;
    pith::compaction const done = cache.compact(of, 0, head, all.plan(), all.scratch).value();
    CHECK(done.merged == 7);
    CHECK(done.encoded == 4);  // the others are in `first`
    CHECK(done.pages == 5);    // of 6
    auto const left = survivors(cache, of, 0, head);
    REQUIRE(left.size() == 7 + 15);
    for (std::size_t i = 0; i < 7; ++i) {
      CHECK(left[i].token == static_cast<int64_t>(i));
      CHECK(cache.memory().biases_of(of.index, 0, head)[left[i].slot] == Approx(std::log(55.0f)));
    }
    plan_of rest(22);
    rest.into = {7 + 7, 1, 2, 3, 4, 5, 6, 14, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 14};  // 385, 392, 399 are of kind 0
    rest.weights[0] = 55.0f / 58;
    rest.weights[7] = rest.weights[14] = rest.weights[21] = 1.0f / 58;
    REQUIRE(cache.compact(of, 0, head, rest.plan(), rest.scratch));
  }
  outputs const after = attend(cache, of, 0, q);
  for (std::size_t i = 0; i < after.out.data.size(); ++i)  // a mean of equal values may have another rounded scale, by 2^-11 of their range
    CHECK(after.out.data[i] == Approx(before.out.data[i]).margin(4 * 4 * 2 * 0.866 * 0x1p-11));
  for (std::size_t i = 0; i < after.lse.size(); ++i) CHECK(after.lse[i] == Approx(before.lse[i]).margin(1e-5));
}

TEST_CASE("compaction: one slot stands for all that left a head", "[cache][compaction][merge]") {
  auto const k = gaussian(31, 300, kv_heads, channels), v = gaussian(32, 300, kv_heads, channels);
  auto cache = pith::make<together>(world<together>::shape(100)).value();
  pith::sequence const of = filled(cache, k, v);
  std::vector<float> const keys = keys_of(cache, of, 1, 0);
  plan_of all(300);
  int64_t constexpr target = 200;
  for (int64_t t = first; t < 250; ++t) all.into[static_cast<std::size_t>(t)] = target;
  for (int64_t t = first; t < 250; ++t) all.weights[static_cast<std::size_t>(t)] = 1.0f / (250 - first);
  pith::compaction const done = cache.compact(of, 1, 0, all.plan(), all.scratch).value();
  CHECK(done.merged == 1);
  CHECK(done.pages == 3);
  auto const left = survivors(cache, of, 1, 0);
  REQUIRE(left.size() == 300 - (250 - first) + 1);
  CHECK(left[first].token == target);
  CHECK(cache.memory().biases_of(of.index, 1, 0)[left[first].slot] == Approx(std::log(250.0f - first)));
  std::vector<float> const now = keys_of(cache, of, 1, 0);
  for (int c = 0; c < channels; ++c) {
    double mean = 0;
    for (int64_t t = first; t < 250; ++t) mean += static_cast<double>(keys[static_cast<std::size_t>(t * channels + c)]) / (250 - first);
    CHECK(std::fabs(static_cast<double>(now[static_cast<std::size_t>(first * channels + c)]) - mean) <= half_step);
  }
  // Its rows have been encoded their second time: nothing goes into them any more, and they move with their unit.
  std::string const bytes = saved(cache, of);
  plan_of again(left.size());
  again.into[first + 5] = first;
  CHECK(cache.compact(of, 1, 0, again.plan(), again.scratch).error() == pith::status{errc::unsupported, first});
  CHECK((saved(cache, of) == bytes));
}

TEST_CASE("compaction: plans that are wrong change nothing", "[cache][compaction][merge][edge]") {
  auto const k = gaussian(41, 200, kv_heads, channels), v = gaussian(42, 200, kv_heads, channels);
  auto cache = pith::make<alone>(world<alone>::shape(20)).value();
  pith::sequence const of = filled(cache, k, v);
  std::string const bytes = saved(cache, of);
  auto const answer = [&](plan_of const& plan, int head = 0) {
    auto scratch = plan.scratch;
    auto const done = cache.compact(of, 0, head, plan.plan(), scratch);
    CHECK((saved(cache, of) == bytes));
    return done ? pith::status{} : done.error();
  };
  plan_of right(200);
  CHECK(answer(right));  // all stay
  CHECK(answer(plan_of(199)) == pith::status{errc::shape_mismatch, 200});
  CHECK(answer(right, 2).code == errc::out_of_range);
  plan_of wrong = right;
  wrong.into[9] = 200;
  CHECK(answer(wrong) == pith::status{errc::out_of_range, 9});
  wrong.into[9] = -2;
  CHECK(answer(wrong) == pith::status{errc::out_of_range, 9});
  wrong.into[9] = 10, wrong.into[10] = 11;  // into a loser
  CHECK(answer(wrong) == pith::status{errc::out_of_range, 9});
  wrong = right;
  wrong.weights[3] = std::numeric_limits<float>::infinity();
  CHECK(answer(wrong) == pith::status{errc::not_finite, 3});
  wrong = right;
  wrong.into[100] = 150;  // its key is sealed, its value is not
  CHECK(answer(wrong) == pith::status{errc::unsupported, 150});
  wrong = right;
  wrong.into[5] = 6;
  int64_t const needed = decltype(cache)::merge_scratch_bytes(200, 1);
  for (int64_t const size : {int64_t{0}, int64_t{3000}, needed - 1}) {
    wrong.scratch.resize(static_cast<std::size_t>(size));
    CHECK(answer(wrong).code == errc::capacity_exceeded);
  }
  std::vector<float> rows(16);
  std::vector<pith::survivor> some{{5, 5}};
  CHECK(cache.survivors(of, 0, 0, some).error() == pith::status{errc::capacity_exceeded, 200});
  CHECK(cache.read_rows(of, 0, 0, std::vector<pith::survivor>{{5, 5}, {200, 0}}, {}, {}) == pith::status{errc::out_of_range, 1});
  CHECK(cache.read_rows(of, 0, 0, some, std::span(rows).first(15), {}).code == errc::shape_mismatch);
  wrong.scratch.resize(static_cast<std::size_t>(needed));
  pith::sequence const fork = cache.fork(of).value();
  pith::sequence const other = cache.open().value();
  while (cache.append(other, 0, k.part(0, 32), v.part(0, 32))) continue;
  CHECK(answer(wrong).code == errc::capacity_exceeded);  // for a copy of what the fork shares
  REQUIRE(cache.close(fork));
  CHECK(cache.compact(of, 0, 0, wrong.plan(), wrong.scratch).value().merged == 1);  // in its own pages
}

TEST_CASE("compaction: any bytes of a compacted sequence load as something or not at all", "[cache][compaction][edge]") {
  auto cache = pith::make<together>(world<together>::shape(60)).value();
  pith::sequence const of = filled(cache, gaussian(51, 300, kv_heads, channels), gaussian(52, 300, kv_heads, channels));
  std::vector<int64_t> gone;
  for (int64_t t = 0; t < 290; ++t)
    if (t % 3 != 0) gone.push_back(t);
  for (int layer = 0; layer < layers; ++layer) {
    REQUIRE(cache.evict(of, layer, 0, gone));
    REQUIRE(cache.compact(of, layer, 0).value().pages == 2);
  }
  std::string const bytes = saved(cache, of);
  random_bits bits(5);
  int loaded = 0;
  for (int round = 0; round < 1500; ++round) {
    std::string wrong = bytes;
    for (int i = 0; i < 1 + round % 3; ++i) {
      auto const at = bits() % (round % 2 == 0 ? wrong.size() : 2500);
      wrong[at] = static_cast<char>(round % 5 == 0 ? bits() : static_cast<unsigned char>(wrong[at]) ^ (1u << (bits() % 8)));
    }
    std::span<std::byte> const span{reinterpret_cast<std::byte*>(wrong.data()), wrong.size()};
    seal_fingerprint(span);
    auto const made = cache.load(span);
    if (!made) continue;
    ++loaded;
    static_cast<void>(attend(cache, made.value(), round % layers, gaussian(53, 1, query_heads, channels), {.window = round % 7 * 40}));
    for (int head = 0; head < kv_heads; ++head) {
      static_cast<void>(keys_of(cache, made.value(), 0, head));
      REQUIRE(cache.compact(made.value(), 0, head));
      static_cast<void>(keys_of(cache, made.value(), 0, head));
    }
    REQUIRE(cache.evict(made.value(), 0, 0, gone));
    static_cast<void>(cache.truncate(made.value(), static_cast<int64_t>(bits() % 300)));
    REQUIRE(cache.close(made.value()));
  }
  CHECK(loaded > 100);
  CHECK(loaded < 1400);
}
