// SPDX-License-Identifier: Apache-2.0
// Eviction that frees memory: random operations against a model of every head's rows, and what merging does to them.
#include <algorithm>
#include <array>
#include <map>

#include "cache/support.hpp"
#include "pith/codec/block_float.hpp"
#include "pith/codec/float8.hpp"

using namespace pith_test;
using pith::errc;

namespace {

int constexpr layers = 2, kv_heads = 2, query_heads = 4, channels = 16, max_tokens = 1500;
int64_t constexpr text_tokens = 1024, first = 3;

template <class Keys, class Values, class Last, class... Sides>
struct recipe : pith::kv_cache<pith::head_dim<channels>, pith::keys<Keys>, pith::values<Values>, pith::raw<pith::first<first>, Last>,
                               pith::side<pith::liveness, pith::bias, pith::births, Sides...>> {};

using per_token = pith::int4<pith::per_token<16>>;
using exact = recipe<pith::raw<pith::bf16>, pith::raw<pith::bf16>, pith::last<8, 40>, pith::positions>;  // sealed apart
using alone = recipe<pith::pipe<pith::hadamard<16>, per_token>, per_token, pith::last<8>>;                // rows that move alone
using together = recipe<pith::int4<pith::per_channel<32>>, per_token, pith::last<8>>;                     // keys of 32 tokens share scales

// A number of the texts is at most 4 * 0.866 in size, so half a step of 32 of them is at most this; 2^-7 for the rounding of the parameters.
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

  world(std::uint64_t seed, int64_t pages)
      : cache(pith::make<Recipe>(shape(pages)).value()), bits(seed) {}
  static pith::cache_shape shape(int64_t pages) {
    pith::cache_shape made{.layers = layers, .kv_heads = kv_heads, .query_heads = query_heads, .bytes = 0, .max_sequences = 5, .max_tokens = max_tokens, .max_chunk = 0};
    made.bytes = pith::cache_storage<Recipe>::fixed_bytes(made) + pages * page::bytes;
    return made;
  }

  int64_t below(int64_t n) { return static_cast<int64_t>(bits() % static_cast<std::uint64_t>(n)); }

  void grow(std::size_t at) {
    auto& [handle, tokens] = open[at];
    int64_t const chunk = below(5) == 0 ? below(100) : 1 + below(8), from = below(text_tokens - 100), before = static_cast<int64_t>(tokens.size());
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
      REQUIRE((cache.check_truncate(handle, done.error().at) || cache.check_truncate(handle, done.error().at).code == errc::capacity_exceeded));
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
      for (int64_t p = 0; p < pith::divide_up(sealed, page::tokens); ++p) held += memory.runs->block(memory.table_of(handle.index, layer, head), p) != pith::no_block;
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

  // Compares the rows of a head with the model's, which takes note of those that were sealed or encoded again; returns how many of the latter.
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
    what < 50 ? grow(at) : what < 54 ? fork(at) : what < 60 ? cut(at) : what < 72 ? evict(at) : what < 76 ? set_bias(at) : what < 95 ? compact(at) : what < 97 ? reload(at) : close(at);
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
        heads[static_cast<std::size_t>(h)].add(row.key.data(), row.value.data(), row.live, row.bias, row.key_is_packed, row.value_is_packed, token.position);
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

TEST_CASE("compaction: random operations, rows stored as they are, keys and values sealed apart", "[cache][compaction][random]") {
  happened(run<exact>(1, 6000, 60), {"append", "fork", "cut", "cut inexactly", "cut refused", "evict", "load", "close", "exhausted", "compact",
                                     "compact a fork", "no page for a copy", "rows moved"});
}
TEST_CASE("compaction: random operations, rows encoded alone", "[cache][compaction][random]") {
  happened(run<alone>(2, 6000, 60), {"append", "fork", "cut", "cut refused", "evict", "load", "exhausted", "compact", "compact a fork", "no page for a copy"});
}
TEST_CASE("compaction: random operations, rows encoded together, once more at most", "[cache][compaction][random]") {
  happened(run<together>(3, 6000, 60), {"append", "fork", "cut", "cut refused", "evict", "load", "exhausted", "compact", "compact a fork", "rows encoded"});
}
