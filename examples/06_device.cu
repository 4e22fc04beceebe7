// SPDX-License-Identifier: Apache-2.0
// Caches of the same keys and values on a GPU: appends prompts of 32 sequences at once, attends with one new token each, and compares bytes, time
// and error. nvcc -std=c++20 -O3 -arch=native -Iinclude examples/06_device.cu
#include <pith/cuda.cuh>

#include <pith/codec/hadamard.hpp>
#include <pith/codec/integer.hpp>

#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

using pith::bf16;

struct plain : pith::kv_cache<pith::head_dim<128>, pith::keys<pith::raw<bf16>>, pith::values<pith::raw<bf16>>, pith::on<pith::cuda>> {};
struct int4_rotated : pith::kv_cache<pith::head_dim<128>, pith::keys<pith::pipe<pith::hadamard<128>, pith::int4<pith::per_token<64>>>>,
                                     pith::values<pith::int4<pith::per_token<64>>>, pith::raw<pith::first<4>, pith::last<64>>,
                                     pith::accuracy<pith::integer_accuracy>, pith::on<pith::cuda>> {};

constexpr int sequences = 32, prompt = 2048, kv_heads = 8, query_heads = 32, channels = 128;
template <class T>
using view = pith::tensor_view<T, 3, pith::space::device>;

std::vector<bf16> exact;  // the first cache is the reference

template <class Composition>
pith::status run(char const* name, pith::cuda_environment const& env, bf16 const* rows, bf16 const* query, bf16* out) {
  pith::cache_shape const shape{.kv_heads = kv_heads, .query_heads = query_heads, .bytes = std::int64_t{1} << 30, .max_sequences = sequences, .max_tokens = 4096};
  using cache_type = pith::device_cache<Composition, pith::cuda_environment>;
  auto arena = pith::device_arena::make(shape.bytes + cache_type::mirror_bytes(shape));
  if (!arena) return arena.error();
  auto made = pith::make<Composition>(env, shape, {arena.value().data(), static_cast<std::size_t>(arena.value().bytes())});
  if (!made) return made.error();
  cache_type cache = std::move(made).value();
  std::vector<pith::sequence> all;
  for (int i = 0; i < sequences; ++i) all.push_back(cache.open(env).value());
  std::vector<std::int64_t> const prompts(sequences, prompt), one(sequences, 1);
  view<bf16 const> const k(rows, {sequences * prompt, kv_heads, channels}), v(rows + 64, {sequences * prompt, kv_heads, channels});
  if (pith::status const s = cache.append(env, all, 0, k, v, prompts); !s) return s;
  view<bf16 const> const q(query, {sequences, query_heads, channels});
  view<bf16> const o(out, {sequences, query_heads, channels});
  cudaEvent_t begin, end;
  cudaEventCreate(&begin), cudaEventCreate(&end);
  pith::status s = cache.attend(env, all, 0, q, o, one);
  cudaEventRecord(begin, env.stream());
  for (int i = 0; i < 20 && s; ++i) s = cache.attend(env, all, 0, q, o, one);
  cudaEventRecord(end, env.stream());
  cudaEventSynchronize(end);
  float ms = 0;
  cudaEventElapsedTime(&ms, begin, end);
  std::vector<bf16> got(static_cast<std::size_t>(sequences * query_heads * channels));
  cudaMemcpy(got.data(), out, got.size() * sizeof(bf16), cudaMemcpyDeviceToHost);
  if (exact.empty()) exact = got;
  double error = 0, norm = 0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    error += std::pow(pith::to_float(got[i]) - pith::to_float(exact[i]), 2);
    norm += std::pow(pith::to_float(exact[i]), 2);
  }
  std::printf("%-13s %5.2f bits per value  %6.0f us for %d tokens  relative error %.3f  %s\n", name, cache.bits_per_value(), 50 * ms, sequences,
              std::sqrt(error / norm), pith::message(s.code));
  return s ? pith::read_status(env) : s;
}

int main() {
  auto const env = pith::cuda_environment::make(nullptr);
  if (!env) return std::printf("no device: %s\n", pith::message(env.error().code)), 1;
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::vector<bf16> rows(static_cast<std::size_t>(sequences * prompt * kv_heads * channels) + 64), query(sequences * query_heads * channels);
  for (std::size_t i = 0; i < rows.size(); ++i) rows[i] = pith::from_float<bf16>(normal(random) * (i % 64 == 7 ? 5.0f : 1.0f));
  for (bf16& x : query) x = pith::from_float<bf16>(normal(random));
  bf16 *d_rows = nullptr, *d_query = nullptr, *out = nullptr;
  cudaMalloc(&d_rows, rows.size() * sizeof(bf16)), cudaMalloc(&d_query, query.size() * sizeof(bf16)), cudaMalloc(&out, query.size() * sizeof(bf16));
  cudaMemcpy(d_rows, rows.data(), rows.size() * sizeof(bf16), cudaMemcpyHostToDevice);
  cudaMemcpy(d_query, query.data(), query.size() * sizeof(bf16), cudaMemcpyHostToDevice);
  pith::status s = run<plain>("bf16", env.value(), d_rows, d_query, out);
  if (s) s = run<int4_rotated>("int4, rotated", env.value(), d_rows, d_query, out);
  if (!s) std::printf("%s at %lld\n", pith::message(s.code), static_cast<long long>(s.at));
  cudaFree(d_rows), cudaFree(d_query), cudaFree(out);
  return s ? 0 : 1;
}
