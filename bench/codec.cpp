// SPDX-License-Identifier: Apache-2.0
// Encoding and decoding tiles, sealing staged tokens and appending, one thread, head_dim 128, bf16 rows.
//
// Tiles and rows stay in L2: eight tiles are visited in turn. Times are of the processor; GB/s are of bf16 numbers. The floor is copying the same bytes with memcpy in
// the same run; the baseline of a case is that copy. The error is the relative root mean square of decode(encode(x)) - x.
#include <cmath>
#include <memory>
#include <random>

#include "pith/pith.hpp"
#include "support/machine.hpp"
#include "support/report.hpp"

namespace {

using pith::bf16;
using pith::use;
constexpr int channels = 128, different = 8, kv_heads = 8;

std::vector<bf16> numbers(std::int64_t count) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::vector<bf16> x(static_cast<std::size_t>(count));
  for (bf16& one : x) one = pith::from_float<bf16>(normal(random));
  return x;
}

// Registers a case whose iteration handles `values` bf16 numbers.
template <class Make>
void add(std::string const& name, double values, double error, Make make) {
  benchmark::RegisterBenchmark(("codec/" + name).c_str(), [=](benchmark::State& state) {
    auto step = make();
    std::int64_t i = 0;
    for (auto _ : state) {
      if (!step(i++)) state.SkipWithError("failed");
      benchmark::ClobberMemory();
    }
    state.SetLabel("codec/memcpy");
    state.counters["packed_bytes"] = values * sizeof(bf16);
    state.counters["values"] = values;
    state.counters["error"] = error;
  })->MinTime(0.05)->Unit(benchmark::kMicrosecond);
}

template <class Tile>
struct tiles {
  static constexpr std::int64_t rows = Tile::tokens * channels;
  std::vector<bf16> from = numbers(different * rows), back = from;
  std::unique_ptr<std::byte, decltype(&std::free)> packed{static_cast<std::byte*>(std::aligned_alloc(64, different * Tile::bytes)),
                                                          &std::free};
  using engine = pith::tile_engine<pith::cpu, Tile>;

  tiles() {
    for (int i = 0; i < different; ++i) encode(i);
  }
  void encode(std::int64_t i) { engine::encode(from.data() + i % different * rows, channels, packed.get() + i % different * Tile::bytes); }
  void decode(std::int64_t i) { engine::decode(packed.get() + i % different * Tile::bytes, back.data() + i % different * rows, channels); }
  double error() {
    std::vector<float> x(rows), y(rows);
    for (std::size_t i = 0; i < x.size(); ++i) x[i] = pith::to_float(from[i]);
    Tile::encode(x.data(), packed.get());
    Tile::decode(packed.get(), y.data());
    double off = 0, size = 0;
    for (std::size_t i = 0; i < x.size(); ++i) off += (x[i] - y[i]) * (x[i] - y[i]), size += x[i] * x[i];
    return std::sqrt(off / size);
  }
};

template <class Codec, use Use>
void add_tile(std::string const& name) {
  using tile = typename Codec::template bind<channels, 64, Use>;
  double const error = tiles<tile>().error(), values = tiles<tile>::rows;
  add("encode/" + name, values, error, [] {
    return [t = std::make_shared<tiles<tile>>()](std::int64_t i) { return t->encode(i), true; };
  });
  add("decode/" + name, values, error, [] {
    return [t = std::make_shared<tiles<tile>>()](std::int64_t i) { return t->decode(i), true; };
  });
  // What a cache does with a staged tile.
  using raw = pith::raw_tile<bf16, channels, Use>;
  add("seal/" + name, values, error, [] {
    return [t = std::make_shared<tiles<tile>>(), staged = std::make_shared<tiles<raw>>()](std::int64_t i) {
      alignas(64) bf16 rows[tiles<tile>::rows];
      for (int first = 0; first < tile::tokens; first += raw::tokens)
        tiles<raw>::engine::decode(staged->packed.get() + (i + first) % different * raw::bytes, rows + first * channels, channels);
      tiles<tile>::engine::encode(rows, channels, t->packed.get() + i % different * tile::bytes);
      return true;
    };
  });
}

template <class Codec>
void add_both(std::string const& name) {
  add_tile<Codec, use::dot>(name + "/dot");
  add_tile<Codec, use::mix>(name + "/mix");
}

// `tokens` tokens of one layer, `kv_heads` heads, keys and values; sealing included. A sequence is cut to nothing after 4096 tokens.
template <class Keys, class Values>
void add_append(std::string const& name, int tokens) {
  using recipe = pith::kv_cache<pith::head_dim<channels>, pith::keys<Keys>, pith::values<Values>>;
  add("append/" + name + "/" + std::to_string(tokens), 2.0 * tokens * kv_heads * channels, 0, [=] {
    struct holder {
      pith::cache<recipe> cache;
      pith::sequence of;
      std::vector<bf16> x;
      std::int64_t length = 0;
    };
    auto made = pith::make<recipe>({.kv_heads = kv_heads, .query_heads = kv_heads, .bytes = 64 << 20});
    auto held = std::make_shared<holder>(holder{std::move(made.value()), {}, numbers(2 * tokens * kv_heads * channels)});
    held->of = held->cache.open().value();
    return [=](std::int64_t) {
      pith::tensor_view<bf16 const, 3> const k{held->x.data(), {tokens, kv_heads, channels}};
      pith::tensor_view<bf16 const, 3> const v{held->x.data() + tokens * kv_heads * channels, {tokens, kv_heads, channels}};
      bool ok = static_cast<bool>(held->cache.append(held->of, 0, k, v));
      if ((held->length += tokens) >= 4096) {
        ok = ok && static_cast<bool>(held->cache.truncate(held->of, 0));
        held->length = 0;
      }
      return ok;
    };
  });
}

}  // namespace

int main(int argc, char** argv) {
  using namespace pith;
  using pith::pipe;
  bench::pin();
  std::vector<bf16> const from = numbers(different * 32 * channels);
  std::vector<bf16> to = from;
  auto const copy = [&](std::int64_t i) {
    std::int64_t const at = i % different * 32 * channels;
    std::memcpy(to.data() + at, from.data() + at, 32 * channels * sizeof(bf16));
    return true;
  };
  bench::processor_time = true;
  bench::floor_name = "memcpy in cache, one thread";
  bench::floor_rule = "the same bytes at the speed of that memcpy";
  bench::read_bandwidth = bench::measure_rate(32 * channels * sizeof(bf16), copy);
  add("memcpy", 32 * channels, 0, [&] { return copy; });
  add_both<pith::raw<bf16>>("bf16");
  add_both<int8<per_token<64>>>("int8");
  add_both<int8<per_token<64>, zero::none>>("int8_none");
  add_both<int4<per_token<64>>>("int4");
  add_both<int4<per_token<64>, zero::none>>("int4_none");
  add_both<int4<per_token<64>, zero::integer>>("int4_integer");
  add_both<int4<per_channel<32>>>("int4_channels");
  add_both<int3<per_token<64>>>("int3");
  add_both<int2<per_token<64>>>("int2");
  add_both<int2<per_channel<32>>>("int2_channels");
  add_both<pipe<hadamard<128>, int4<per_token<64>>>>("rotated4");
  for (int const tokens : {1, 64}) {
    add_append<pith::raw<bf16>, pith::raw<bf16>>("bf16", tokens);
    add_append<int8<per_token<64>>, int8<per_token<64>>>("int8", tokens);
    add_append<int4<per_token<64>>, int4<per_token<64>>>("int4", tokens);
    add_append<int4<per_channel<32>>, int4<per_token<64>>>("kivi4", tokens);
  }
  return bench::run(argc, argv, "Encode, decode, seal and append, bf16 rows, head_dim 128, 1 thread; append: 8 KV heads, keys and values");
}
