// SPDX-License-Identifier: Apache-2.0
// Two caches of one composition, the host's and a device's whose memory is the host's: every call goes to both, and their bytes are compared.
#pragma once

#include <algorithm>
#include <cstring>
#include <limits>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "pith/cache/kv_cache.hpp"
#include "pith/codec/hadamard.hpp"
#include "pith/codec/integer.hpp"
#include "pith/codec/permute.hpp"
#include "pith/cpu/attention.hpp"
#include "pith/cuda/cache.hpp"
#include "support/catch.hpp"
#include "support/digest.hpp"
#include "tests/cuda/emulated_environment.hpp"

namespace pith_test {

using pith::errc;

using std::int64_t;
inline constexpr int layers = 2, kv_heads = 2;

// The emulated device, which takes no more arguments than a real one.
struct counting_environment : emulated_environment {
  template <class Kernel>
  pith::status launch(Kernel const& kernel, pith::device::grid const& grid) const {
    static_assert(sizeof(Kernel) <= 4096 && std::is_trivially_copyable_v<Kernel>);
    return emulated_environment::launch(kernel, grid);
  }
};
static_assert(pith::device::environment<counting_environment>);

class aligned_bytes {
 public:
  explicit aligned_bytes(int64_t bytes) : storage_(static_cast<std::size_t>(bytes + 64), std::byte{0xa5}) {}
  std::span<std::byte> span() {
    auto const past = reinterpret_cast<std::uintptr_t>(storage_.data()) % 64;
    return std::span(storage_).subspan(past == 0 ? 0 : 64 - past, storage_.size() - 64);
  }

 private:
  std::vector<std::byte> storage_;
};

template <class Host, class Device, class T>
struct twins {
  using page = typename Host::page;
  using segments = pith::raw_segments<Host>;
  static constexpr int64_t text_tokens = 512;

  counting_environment env;
  pith::cache_shape shape;
  aligned_bytes bytes;
  pith::cache<Host> host;
  pith::device_cache<Device, counting_environment> device;
  std::vector<std::pair<pith::sequence, pith::sequence>> open;
  std::vector<T> k, v;  // [token][head][channel], read at any token
  random_bits bits;

  twins(pith::cache_shape const& of, std::uint64_t seed, pith::calibration<page> const& calibrated)
      : shape(of),
        bytes(of.bytes + pith::device_cache<Device, counting_environment>::mirror_bytes(of)),
        host(pith::cache<Host>::with_memory(of, {}, calibrated).value()),
        device(pith::make<Device>(env, of, bytes.span(), calibrated).value()),
        bits(seed) {
    k.resize(static_cast<std::size_t>(2 * text_tokens * shape.kv_heads * Host::key_channels));
    v.resize(static_cast<std::size_t>(2 * text_tokens * shape.kv_heads * Host::value_channels));
    for (auto* rows : {&k, &v})
      for (T& x : *rows) {
        std::uint64_t const what = bits() % 2000;
        float const number = (bits.uniform() + bits.uniform()) * 3.0f;
        x = pith::from_float<T>(what == 0   ? std::numeric_limits<float>::quiet_NaN()
                                : what == 1 ? std::numeric_limits<float>::infinity()
                                : what == 2 ? -3e38f
                                            : number);
      }
  }

  std::span<std::byte> memory() { return bytes.span(); }
  int64_t below(int64_t n) { return static_cast<int64_t>(bits() % static_cast<std::uint64_t>(n)); }

  // Tokens [from, from + count) of the text: heads lie far apart, channels side by side or, `spread`, with another number between.
  template <pith::space Space>
  auto text(int64_t from, int64_t count, bool spread = false) {
    auto const view = [&](std::vector<T>& of, int64_t channels) {
      return spread ? pith::tensor_view<T const, 3, Space>(of.data() + 2 * from * channels, {count, shape.kv_heads, channels},
                                                           {2 * channels, 2 * text_tokens * channels, 2})
                    : pith::tensor_view<T const, 3, Space>(of.data() + from * channels, {count, shape.kv_heads, channels},
                                                           {channels, text_tokens * channels, 1});
    };
    return std::pair(view(k, Host::key_channels), view(v, Host::value_channels));
  }
  auto device_rows(int64_t from, int64_t count, bool spread = false) { return text<pith::space::device>(from, count, spread); }

  void open_one() {
    auto const a = host.open();
    auto const b = device.open(env);
    REQUIRE(a.error() == b.error());
    if (a) open.emplace_back(a.value(), b.value());
  }
  bool fork_one(std::size_t at, bool expected = true) {
    auto const a = host.fork(open[at].first);
    auto const b = device.fork(env, open[at].second);
    REQUIRE(a.error() == b.error());
    REQUIRE(static_cast<bool>(a) == expected);
    if (a) open.emplace_back(a.value(), b.value());
    return static_cast<bool>(a);
  }
  void close_one(std::size_t at) {
    REQUIRE(host.close(open[at].first));
    REQUIRE(device.close(open[at].second));
    open.erase(open.begin() + static_cast<std::ptrdiff_t>(at));
  }
  pith::truncation truncate_one(std::size_t at, int64_t tokens) {
    auto const a = host.truncate(open[at].first, tokens);
    auto const b = device.truncate(env, open[at].second, tokens);
    REQUIRE(a.error() == b.error());
    if (!a) return {};
    REQUIRE(a.value().exact == b.value().exact);
    REQUIRE(a.value().dead_slots == b.value().dead_slots);
    return a.value();
  }
  void evict_one(std::size_t at, int layer, int head, std::vector<int64_t> const& tokens) {
    if constexpr (Host::has_liveness)
      REQUIRE(host.evict(open[at].first, layer, head, tokens) == device.evict(env, open[at].second, layer, head, tokens));
  }
  void bias_one(std::size_t at, int layer, int head, int64_t token, float value) {
    if constexpr (Host::has_bias)
      REQUIRE(host.set_bias(open[at].first, layer, head, token, value) == device.set_bias(env, open[at].second, layer, head, token, value));
  }

  // One sequence, rows as they lie in the text.
  bool append_one(std::size_t at, int layer, int64_t tokens) {
    int64_t const from = below(text_tokens / 2);
    bool const spread = below(2) == 0;
    auto const [host_k, host_v] = text<pith::space::host>(from, tokens, spread);
    auto const [device_k, device_v] = device_rows(from, tokens, spread);
    pith::status const done = host.append(open[at].first, layer, host_k, host_v);
    REQUIRE(device.append(env, std::span(&open[at].second, 1), layer, device_k, device_v, std::span(&tokens, 1)) == done);
    return static_cast<bool>(done);
  }

  // Whether it went well. Where there is no room for all, the sequences are tried one by one, and the first that fails does so in both.
  bool append_many(std::vector<std::size_t> const& at, int layer, std::vector<int64_t> const& counts) {
    int64_t const from = below(text_tokens / 2);
    int64_t all = 0;
    std::vector<pith::sequence> which;
    for (std::size_t i = 0; i < at.size(); ++i) {
      all += counts[i];
      which.push_back(open[at[i]].second);
    }
    std::vector<T> packed_k, packed_v;  // the device's rows follow each other
    for (auto const& [to, of, channels] : {std::tuple(&packed_k, &k, Host::key_channels), std::tuple(&packed_v, &v, Host::value_channels)})
      for (std::size_t i = 0; i < at.size(); ++i)
        for (int64_t t = 0; t < counts[i]; ++t)
          for (int h = 0; h < shape.kv_heads; ++h) {
            int64_t const row = (from + static_cast<int64_t>(i) * 3) % (text_tokens / 2) + t;
            to->insert(to->end(), of->begin() + (h * text_tokens + row) * channels, of->begin() + (h * text_tokens + row + 1) * channels);
          }
    pith::tensor_view<T, 3, pith::space::device> const rows_k(packed_k.data(), {all, shape.kv_heads, Host::key_channels}),
        rows_v(packed_v.data(), {all, shape.kv_heads, Host::value_channels});
    pith::status const done = device.append(env, which, layer, rows_k, rows_v, counts);
    if (!done) REQUIRE(done.code == errc::capacity_exceeded);
    if (!done) compare(false);
    bool well = true;
    for (std::size_t i = 0; i < at.size(); ++i) {
      int64_t const row = (from + static_cast<int64_t>(i) * 3) % (text_tokens / 2);
      auto const [part_k, part_v] = text<pith::space::host>(row, counts[i]);
      pith::status const alone = host.append(open[at[i]].first, layer, part_k, part_v);
      if (done) {
        REQUIRE(alone);
        continue;
      }
      auto const [device_k, device_v] = device_rows(row, counts[i]);
      REQUIRE(device.append(env, std::span(&which[i], 1), layer, device_k, device_v, std::span(&counts[i], 1)) == alone);
      well = well && static_cast<bool>(alone);
    }
    if (!done) REQUIRE_FALSE(well);
    return well;
  }

  // `balanced`: no call has taken pages and then failed.
  void compare(bool balanced = true) {
    auto const& a = host.memory();
    auto const& b = device.memory();
    if (balanced) {
      REQUIRE(a.page_pool->used_blocks() == b.page_pool->used_blocks());
      REQUIRE(a.runs->used_runs() == b.runs->used_runs());
      REQUIRE(host.stored_values() == device.stored_values());
      REQUIRE(device.resident_bytes() >= host.resident_bytes());
    }
    for (auto const& [x, y] : open)
      for (int layer = 0; layer < shape.layers; ++layer) {
        REQUIRE(host.length(x, layer) == device.length(y, layer));
        pith::layer_state const& state = a.layer(x.index, layer);
        compare_state(state, b.layer(y.index, layer));
        compare_state(state, device.device_memory().state_of_layer(y.index, layer));
        for (int head = 0; head < shape.kv_heads; ++head) compare_head(x.index, y.index, layer, head, state);
      }
  }

  static void compare_state(pith::layer_state const& a, pith::layer_state const& b) {
    bool same = a.tokens == b.tokens && a.slots == b.slots && a.sealed_keys == b.sealed_keys && a.sealed_values == b.sealed_values &&
                a.hole_count == b.hole_count;
    for (int i = 0; i < a.hole_count && same; ++i) same = a.holes[i].begin == b.holes[i].begin && a.holes[i].end == b.holes[i].end;
    REQUIRE(same);
  }

  static bool same(std::byte const* a, std::byte const* b, int64_t bytes) { return std::memcmp(a, b, static_cast<std::size_t>(bytes)) == 0; }

  void compare_head(int64_t x, int64_t y, int layer, int head, pith::layer_state const& state) {
    INFO("sequence " << y << ", layer " << layer << ", head " << head << ", slots " << state.slots << ", sealed " << state.sealed_keys << ", "
                     << state.sealed_values);
    auto const& a = host.memory();
    auto const& there = device.device_memory();
    std::uint32_t const* const table = there.table_of(y, layer, head);
    auto const tiles = [&](auto tile, int64_t sealed, auto at, auto raw, auto raw_tile_of) {
      using tile_type = decltype(tile);
      for (int64_t slot = 0; slot < sealed; slot += tile_type::tokens) {
        pith::block_id const block = a.runs->block(a.table_of(x, layer, head), slot / page::tokens);
        std::uint32_t const other = table[slot / page::tokens];
        REQUIRE((block == pith::no_block) == (other == pith::no_block.value));
        if (block == pith::no_block) continue;
        int64_t const place = at(static_cast<int>(slot % page::tokens));
        INFO("tile at slot " << slot);
        REQUIRE(same(a.page_pool->address(block) + place, there.page_at(other) + place, tile_type::bytes));
      }
      for (int64_t slot = sealed; slot < state.slots - Host::first_tokens; slot += 32) {
        INFO("raw tile at slot " << slot);
        REQUIRE(same(raw_tile_of(a.raw_block(x, layer, head), slot), raw_tile_of(there.raw_block(y, layer, head), slot), decltype(raw)::bytes));
      }
    };
    tiles(typename page::key_tile{}, state.sealed_keys, &page::key_tile_at, typename segments::key_tile{}, &segments::key_tile_of);
    tiles(typename page::value_tile{}, state.sealed_values, &page::value_tile_at, typename segments::value_tile{}, &segments::value_tile_of);
    if (state.slots > 0) REQUIRE(same(a.raw_block(x, layer, head), there.raw_block(y, layer, head), segments::keys_at));
    bool sides = true;
    for (int64_t slot = 0; slot < state.slots; ++slot) {
      if constexpr (Host::has_liveness)
        sides = sides && ((a.live_of(x, layer, head)[slot / 64] ^ there.live_of(y, layer, head)[slot / 64]) >> (slot % 64) & 1u) == 0;
      if constexpr (Host::has_bias)
        sides = sides && same(reinterpret_cast<std::byte*>(a.biases_of(x, layer, head) + slot),
                              reinterpret_cast<std::byte*>(there.biases_of(y, layer, head) + slot), 4);
    }
    REQUIRE(sides);
  }

  // A kernel's view of sequences against the host's.
  void compare_source(std::vector<std::size_t> const& at, int layer, std::vector<int64_t> const& queries, std::vector<int64_t> const& chunk) {
    std::vector<pith::sequence> which;
    int64_t all = 0, row = 0;
    for (std::size_t i = 0; i < at.size(); ++i) {
      which.push_back(open[at[i]].second);
      all += chunk.empty() ? 0 : chunk[i];
    }
    auto const [k_rows, v_rows] = text<pith::space::device>(0, all);
    auto const [k_text, v_text] = text<pith::space::host>(0, all);
    if (!chunk.empty()) REQUIRE(device.load_chunk(env, which, layer, k_rows, v_rows, chunk));
    auto const source = device.source(which, layer, queries, chunk);
    emulated_thread thread;
    int64_t first_query = 0;
    for (std::size_t i = 0; i < at.size(); ++i) {
      INFO("the call's sequence " << i);
      int64_t const place = static_cast<int64_t>(i), brought = chunk.empty() ? 0 : chunk[i];
      CHECK(source.queries(place).first == first_query);
      CHECK(source.queries(place).count == queries[i]);
      first_query += queries[i];
      pith::layer_state const& state = host.memory().layer(open[at[i]].first.index, layer);
      auto const seen_by = [&](int64_t token) { return token < state.tokens ? state.slot_of(token) : state.slots + token - state.tokens; };
      for (int64_t window : {0, 1, 50})
        for (int64_t t = 0; t < queries[i]; ++t) {
          int64_t lower = -1, upper = -1;
          source.limits(place, t, window, &lower, &upper);
          int64_t const token = state.tokens + brought - queries[i] + t;
          if (token < 0) continue;
          CHECK(upper == seen_by(token) + 1);
          CHECK(lower == (window == 0 || token < window ? 0 : seen_by(token - window + 1)));
        }
      for (int h = 0; h < shape.kv_heads; ++h) {
        pith::segment_source<Host> const right{host.memory(), open[at[i]].first.index, layer, h, brought};
        auto const got = source.at(place, h);
        REQUIRE(got.first_tokens() == right.first_tokens());
        REQUIRE(got.stored() == right.stored());
        REQUIRE(got.sealed_keys() == right.sealed_keys());
        REQUIRE(got.sealed_values() == right.sealed_values());
        REQUIRE(got.chunk_tokens() == brought);
        CHECK(source.packed_blocks(place) == right.sealed_values() / 32);
        CHECK(source.raw_blocks(place) == (right.first_tokens() + 31) / 32 + (right.stored() - right.sealed_values() + 31) / 32 + (brought + 31) / 32);
        std::vector<bool> there(static_cast<std::size_t>((std::max(right.sealed_keys(), right.sealed_values()) + page::tokens - 1) / page::tokens));
        right.for_each_page([&](int64_t base, std::byte const* bytes_of_page) {
          std::byte const* const other = got.page(thread, base / page::tokens);
          REQUIRE(other != nullptr);
          there[static_cast<std::size_t>(base / page::tokens)] = true;
          for (int64_t slot = base; slot < std::min(base + page::tokens, right.sealed_keys()); slot += page::key_tile::tokens) {
            int64_t const tile = page::key_tile_at(static_cast<int>(slot - base));
            CHECK(same(bytes_of_page + tile, other + tile, page::key_tile::bytes));
          }
        });
        for (std::size_t p = 0; p < there.size(); ++p) CHECK((got.page(thread, static_cast<int64_t>(p)) != nullptr) == there[p]);
        for (int64_t slot = right.sealed_keys(); slot < right.stored(); slot += 32)
          CHECK(same(got.staging_keys(slot), right.staging_keys(slot), segments::key_tile::bytes));
        for (int64_t slot = right.sealed_values(); slot < right.stored(); slot += 32)
          CHECK(same(got.staging_values(slot), right.staging_values(slot), segments::value_tile::bytes));
        if (right.first_tokens() > 0) CHECK(same(got.first_keys(), right.first_keys(), segments::first_key_tile::bytes));
        if (right.first_tokens() > 0) CHECK(same(got.first_values(), right.first_values(), segments::first_value_tile::bytes));
        for (int64_t t = 0; t < pith::round_up(brought, 32); ++t) {
          bool same_row = true;
          for (int c = 0; c < Host::key_channels; ++c) {
            float const wanted = t < brought ? pith::to_float(pith::raw_bf16<Host::nan>(k_text(row + t, h, c))) : 0.0f;
            same_row = same_row && pith::float_bits(segments::key_tile::get(got.chunk_keys(t), static_cast<int>(t % 32), c)) == pith::float_bits(wanted);
          }
          for (int c = 0; c < Host::value_channels; ++c) {
            float const wanted = t < brought ? pith::to_float(pith::raw_bf16<Host::nan>(v_text(row + t, h, c))) : 0.0f;
            same_row = same_row && pith::float_bits(segments::value_tile::get(got.chunk_values(t), static_cast<int>(t % 32), c)) == pith::float_bits(wanted);
          }
          CHECK(same_row);
        }
        for (int64_t slot = 0; slot < state.slots + brought; ++slot) {
          bool dead = false;
          for (pith::slot_range const& hole : right.dead()) dead = dead || (slot >= hole.begin && slot < hole.end);
          if (Host::has_liveness && slot < state.slots) dead = dead || (right.live()[slot / 64] >> (slot % 64) & 1u) == 0;
          CHECK((!got.hides() || got.visible(slot)) == !dead);
          CHECK(got.bias(slot) == (Host::has_bias && slot < state.slots ? right.bias()[slot] : 0.0f));
        }
      }
      row += brought;
    }
  }
};

// How often each kind of call was made; each was.
template <class Host, class Device, class T>
std::map<std::string, int64_t> random_operations(std::uint64_t seed, int steps, pith::calibration<typename Host::page> const& calibrated) {
  pith::cache_shape shape{.layers = layers, .kv_heads = kv_heads, .query_heads = 4, .bytes = 0, .max_sequences = 5, .max_tokens = 420, .max_chunk = 32};
  shape.bytes = pith::cache_storage<Host>::fixed_bytes(shape) + 44 * Host::page::bytes * 64 / Host::page::tokens + 64;
  twins<Host, Device, T> all(shape, seed, calibrated);
  std::map<std::string, int64_t> count;
  for (int step = 0; step < steps; ++step) {
    INFO("seed " << seed << ", step " << step);
    int64_t const what = all.below(100);
    if (all.open.empty() || what < 6) {
      all.open_one();
      continue;
    }
    auto const at = static_cast<std::size_t>(all.below(static_cast<int64_t>(all.open.size())));
    auto const layer = static_cast<int>(all.below(layers)), head = static_cast<int>(all.below(kv_heads));
    int64_t const size = all.host.length(all.open[at].first, layer);
    if (what < 56) {
      std::vector<std::size_t> which{at};
      for (std::size_t i = 0; i < all.open.size() && all.below(2) == 0; ++i)
        if (i != at) which.push_back(i);
      std::vector<int64_t> counts;
      for (std::size_t i = 0; i < which.size(); ++i) counts.push_back(all.below(6) == 0 ? all.below(200) : all.below(3) == 0 ? 1 : all.below(40));
      bool const well = which.size() == 1 ? all.append_one(at, layer, counts[0]) : all.append_many(which, layer, counts);
      ++count[!well ? "exhausted" : which.size() > 1 ? "append many" : "append"];
    } else if (what < 66) {
      if (all.open.size() < 5) {
        all.fork_one(at);
        ++count["fork"];
      }
    } else if (what < 80) {
      auto const done = all.truncate_one(at, all.below(2) == 0 ? all.below(size + 2) : std::max<int64_t>(0, size - all.below(12)));
      ++count["truncate"];
      count["cut inexactly"] += !done.exact;
    } else if (what < 90) {
      if (size == 0) continue;
      int64_t const from = all.below(size), to = std::min(size, from + (all.below(2) == 0 ? 140 : 1 + all.below(4)));
      std::vector<int64_t> tokens;
      for (int64_t t = from; t < to; ++t) tokens.push_back(t);
      all.evict_one(at, layer, head, tokens);
      all.bias_one(at, layer, head, from, static_cast<float>(all.bits.uniform()));
      ++count["side"];
    } else if (what < 95) {
      int64_t const tokens = all.below(100);
      auto const a = all.host.reserve_tokens(all.open[at].first, layer, tokens);
      REQUIRE(a == all.device.reserve_tokens(all.env, all.open[at].second, layer, tokens));
    } else {
      all.close_one(at);
      ++count["close"];
    }
    all.compare();
  }
  while (!all.open.empty()) all.close_one(all.open.size() - 1);
  CHECK(all.device.memory().page_pool->used_blocks() == 0);
  CHECK(all.device.memory().runs->used_runs() == 0);
  CHECK(all.device.resident_bytes() == all.host.resident_bytes());
  CHECK(all.env.status());
  for (char const* const what : {"append", "append many", "fork", "truncate", "cut inexactly", "close", "exhausted"}) {
    INFO(what << " " << count[what]);
    CHECK(count[what] > 3);
  }
  return count;
}

}  // namespace pith_test
