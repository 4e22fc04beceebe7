// SPDX-License-Identifier: Apache-2.0
// A device's cache and the host's cache of the same composition, side by side: the same statuses and the same bytes after every call.
#include "pith/cuda/cache.hpp"

#include "cuda/cache_support.hpp"

using namespace pith_test;
using pith::errc;
using pith::status;

namespace {

struct sided : pith::kv_cache<pith::head_dim<32, 16>, pith::keys<pith::int4<pith::per_token<16>>>, pith::values<pith::int4<pith::per_token<16>>>,
                              pith::raw<pith::first<4>, pith::last<8, 40>>, pith::side<pith::liveness, pith::bias>, pith::on<pith::cuda>> {};
struct sided_host : pith::kv_cache<pith::head_dim<32, 16>, pith::keys<pith::int4<pith::per_token<16>>>, pith::values<pith::int4<pith::per_token<16>>>,
                                   pith::raw<pith::first<4>, pith::last<8, 40>>, pith::side<pith::liveness, pith::bias>> {};

}  // namespace

TEST_CASE("a device's cache has the bytes and statuses of the host's", "[cuda][cache][random]") {
  auto const count = random_operations<sided_host, sided, float>(2, 500, {});
  CHECK(count.at("side") > 10);
}

TEST_CASE("appends to more sequences than a launch takes", "[cuda][cache]") {
  int constexpr many = 150;
  pith::cache_shape const shape{.layers = 1, .kv_heads = 1, .query_heads = 1, .bytes = 4 << 20, .max_sequences = many, .max_tokens = 256, .max_chunk = 32};
  twins<sided_host, sided, float> both(shape, 9, {});
  std::vector<std::size_t> which;
  for (std::size_t i = 0; i < many; ++i) {
    both.open_one();
    which.push_back(i);
  }
  for (int step = 0; step < 4; ++step) {
    std::vector<int64_t> counts;
    for (int i = 0; i < many; ++i) counts.push_back((i * 7 + step * 13) % 60);
    REQUIRE(both.append_many(which, 0, counts));
    both.compare();
  }
  both.fork_one(3, false);  // there is no room
}

TEST_CASE("an append that one of many sequences has no room for adds nothing to any", "[cuda][cache][error]") {
  pith::cache_shape shape{.layers = 1, .kv_heads = 2, .query_heads = 2, .bytes = 0, .max_sequences = 3, .max_tokens = 1000, .max_chunk = 32};
  shape.bytes = pith::cache_storage<sided_host>::fixed_bytes(shape) + 8 * sided_host::page::bytes + 64;
  twins<sided_host, sided, float> both(shape, 21, {});
  for (int i = 0; i < 3; ++i) both.open_one();
  auto const used = [&] { return both.device.memory().page_pool->used_blocks(); };
  REQUIRE(both.device.memory().page_pool->blocks() == 8);
  REQUIRE(both.append_many({0, 1, 2}, 0, {50, 60, 5}));
  both.compare();
  int64_t const before = used();
  auto const [k, v] = both.device_rows(0, 300);
  std::vector<pith::sequence> const which{both.open[0].second, both.open[1].second, both.open[2].second};
  for (int tries = 0; tries < 2; ++tries) {
    CHECK(both.device.append(both.env, which, 0, k, v, std::vector<int64_t>{70, 10, 220}).code == errc::capacity_exceeded);
    CHECK(used() == before);
    both.compare();
  }
  for (auto const& [of, handle] : both.open) CHECK(both.device.length(handle, 0) == both.host.length(of, 0));
  REQUIRE(both.append_many({0, 1, 2}, 0, {70, 10, 5}));
  both.compare();
}

TEST_CASE("what the device's cache refuses", "[cuda][cache][error]") {
  pith::cache_shape const shape{.layers = layers, .kv_heads = kv_heads, .query_heads = 4, .bytes = 1 << 20, .max_sequences = 3, .max_tokens = 300, .max_chunk = 64};
  twins<sided_host, sided, float> both(shape, 9, {});
  both.open_one(), both.open_one();
  auto& cache = both.device;
  auto const& env = both.env;
  auto const rows = both.device_rows(10, 20);
  pith::sequence const a = both.open[0].second, b = both.open[1].second;
  pith::sequence stale = a;
  ++stale.generation;
  auto const append = [&](std::vector<pith::sequence> const& which, int layer, std::vector<int64_t> const& counts) {
    return cache.append(env, which, layer, rows.first, rows.second, counts);
  };
  CHECK(append({a, stale}, 0, {10, 10}) == status{errc::stale_handle, a.index});
  CHECK(append({a, a}, 0, {10, 10}) == status{errc::out_of_range, 1});
  CHECK(append({a, b}, layers, {10, 10}) == status{errc::out_of_range, layers});
  CHECK(append({a, b}, 0, {21, -1}) == status{errc::out_of_range, 1});
  CHECK(append({a, b}, 0, {10, 11}) == status{errc::shape_mismatch, 20});
  CHECK(append({a, b}, 0, {20}) == status{errc::shape_mismatch, 1});
  auto narrow = rows;
  narrow.first.extent[2] = 16;
  CHECK(cache.append(env, std::vector{a}, 0, narrow.first, narrow.second, std::vector<int64_t>{20}) == status{errc::shape_mismatch, 16});
  CHECK(cache.append(env, {}, 0, rows.first.part(0, 0), rows.second.part(0, 0), {}));
  CHECK(cache.load_chunk(env, std::vector{a}, 0, both.device_rows(0, 65).first, both.device_rows(0, 65).second, std::vector<int64_t>{65}) ==
        status{errc::capacity_exceeded, 64});
  CHECK(cache.reserve_tokens(env, a, 0, -1) == status{errc::out_of_range, -1});
  CHECK(cache.reserve_tokens(env, a, 0, 301) == status{errc::capacity_exceeded, 300});
  CHECK(cache.truncate(env, a, -1).error() == status{errc::out_of_range, -1});
  CHECK(cache.evict(env, a, 0, 0, std::vector<int64_t>{0}) == status{errc::out_of_range, 0});
  CHECK(cache.set_bias(env, a, 0, kv_heads, 0, 1) == status{errc::out_of_range, kv_heads});
  CHECK(cache.close(stale) == status{errc::stale_handle, a.index});
  CHECK(cache.fork(env, stale).error() == status{errc::stale_handle, a.index});
  both.compare();

  auto const make = [&](pith::cache_shape const& of, std::span<std::byte> memory) { return pith::make<sided>(env, of, memory).error().code; };
  pith::cache_shape wrong = shape;
  wrong.max_tokens = 0;
  CHECK(make(wrong, both.memory()) == errc::shape_mismatch);
  CHECK(make(shape, {}) == errc::capacity_exceeded);
  CHECK(make(shape, both.memory().first(5000)) == errc::capacity_exceeded);
  CHECK(make(shape, both.memory().subspan(16)) == errc::misaligned);
}

TEST_CASE("numbers that are refused are told in the status word", "[cuda][cache][error]") {
  struct strict : pith::kv_cache<pith::head_dim<16>, pith::keys<pith::int4<pith::per_token<16>>>, pith::values<pith::raw<pith::bf16>>,
                                 pith::non_finite<pith::nan_policy::reject>, pith::on<pith::cuda>> {};
  counting_environment env;
  aligned_bytes memory(1 << 20);
  auto cache = pith::make<strict>(env, {.query_heads = 1, .max_sequences = 2, .max_tokens = 200}, memory.span()).value();
  std::vector<pith::sequence> const which{cache.open(env).value(), cache.open(env).value()};
  std::vector<float> k(40 * 16, 1.0f), v(40 * 16, 2.0f);
  pith::tensor_view<float, 3, pith::space::device> const keys(k.data(), {40, 1, 16}), values(v.data(), {40, 1, 16});
  REQUIRE(cache.append(env, which, 0, keys, values, std::vector<int64_t>{25, 15}));
  CHECK(env.status());
  v[31 * 16 + 5] = std::numeric_limits<float>::infinity();
  REQUIRE(cache.append(env, which, 0, keys, values, std::vector<int64_t>{25, 15}));
  CHECK(env.status() == status{errc::not_finite, 31});
}

TEST_CASE("what an attention kernel reads of a cache is what the host's attention reads", "[cuda][cache][source]") {
  pith::cache_shape const shape{.layers = layers, .kv_heads = kv_heads, .query_heads = 4, .bytes = 2 << 20, .max_sequences = 6, .max_tokens = 400, .max_chunk = 70};
  twins<sided_host, sided, float> both(shape, 11, {});
  for (int i = 0; i < 5; ++i) both.open_one();
  REQUIRE(both.append_many({0, 1, 2, 3}, 1, {3, 60, 200, 333}));
  both.truncate_one(2, 150);
  both.truncate_one(3, 331);
  both.evict_one(2, 1, 1, {0, 5, 77, 149});
  both.bias_one(1, 1, 0, 59, 1.5f);
  REQUIRE(both.append_many({2}, 1, {20}));
  both.compare();
  std::vector<int64_t> const queries{1, 5, 7, 64, 0}, chunk{2, 33, 70, 64, 0};
  both.compare_source({0, 1, 2, 3, 4}, 1, queries, chunk);
  both.compare_source({4, 2}, 1, std::vector<int64_t>{0, 3}, {});
}
