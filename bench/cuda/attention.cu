// SPDX-License-Identifier: Apache-2.0
// paged_attention: one new token a sequence (decoding), and chunks of 512 on a stored context (prefill), beside a copy on the same device.
//
// Packed bytes are what the pages of the sequences hold, keys, values and scales; decoding reads them once. Operations of prefill are
// 4 * queries * context * channels for each query head, half of them for the chunk itself.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <vector>

#include "pith/codec/hadamard.hpp"
#include "pith/codec/kv_page.hpp"
#include "pith/cuda/environment.cuh"
#include "pith/cuda/paged_attention.hpp"

namespace {

using pith::bf16;
using pith::per_channel;
using pith::per_token;
using pith::space;

constexpr int channels = 128;

// Median milliseconds of a call, behind two that warm up; a buffer larger than the second-level cache is overwritten before each.
template <class Call>
float median_ms(std::byte* flush, std::size_t flush_bytes, Call const& call) {
  constexpr int repetitions = 9;
  cudaEvent_t begin, end;
  cudaEventCreate(&begin);
  cudaEventCreate(&end);
  std::vector<float> ms;
  for (int i = -2; i < repetitions; ++i) {
    cudaMemsetAsync(flush, i & 0xff, flush_bytes);
    cudaEventRecord(begin);
    call();
    cudaEventRecord(end);
    cudaEventSynchronize(end);
    float one = 0;
    cudaEventElapsedTime(&one, begin, end);
    if (i >= 0) ms.push_back(one);
  }
  std::sort(ms.begin(), ms.end());
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  return ms[ms.size() / 2];
}

// Codes of all kinds; every 16-bit number in it is a small finite float, so that scales are.
__global__ void fill(std::uint32_t* words, std::int64_t count) {
  for (std::int64_t i = blockIdx.x * std::int64_t{blockDim.x} + threadIdx.x; i < count; i += std::int64_t{gridDim.x} * blockDim.x) {
    std::uint32_t x = static_cast<std::uint32_t>(i) * 2654435761u;
    x ^= x >> 15, x *= 2246822519u, x ^= x >> 13;
    words[i] = (x & 0x0fff0fffu) | 0x24002400u;
  }
}

struct memory {
  std::byte* pages;
  std::size_t pages_bytes;
  std::byte* flush;
  std::size_t flush_bytes;
};
double copy_rate = 0, bf16_us = 0;

template <class Page, class Accuracy>
bool measure(char const* name, pith::cuda_environment const& env, memory const& m, std::int64_t sequences, std::int64_t context, std::int64_t queries, int kv_heads,
             int group, bool shuffled) {
  std::int64_t const heads = kv_heads * group, pages_each = pith::divide_up(context, Page::tokens), pages = pages_each * sequences;
  std::int64_t const stride = Page::bytes * kv_heads;
  if (static_cast<std::size_t>(pages * stride) > m.pages_bytes) {
    std::printf("%-28s batch %4lld context %6lld   does not fit\n", name, static_cast<long long>(sequences), static_cast<long long>(context));
    return true;
  }
  std::vector<std::int64_t> indptr, q_indptr;
  std::vector<std::uint32_t> indices(static_cast<std::size_t>(pages));
  for (std::int64_t s = 0; s <= sequences; ++s) indptr.push_back(s * pages_each), q_indptr.push_back(s * queries);
  for (std::int64_t i = 0; i < pages; ++i) indices[static_cast<std::size_t>(i)] = static_cast<std::uint32_t>(i);
  std::uint64_t state = 1;
  if (shuffled)
    for (std::size_t i = indices.size() - 1; i > 0; --i) {
      state = state * 6364136223846793005u + 1442695040888963407u;
      std::swap(indices[i], indices[(state >> 33) % (i + 1)]);
    }
  std::vector<std::int32_t> last(static_cast<std::size_t>(sequences), static_cast<std::int32_t>(context - (pages_each - 1) * Page::tokens));
  std::int64_t const rows = sequences * queries * heads;
  std::int64_t *d_indptr = nullptr, *d_queries = nullptr;
  std::uint32_t* d_indices = nullptr;
  std::int32_t* d_last = nullptr;
  bf16 *q = nullptr, *out = nullptr;
  auto const put = [](auto*& to, auto const& from) {
    cudaMalloc(&to, from.size() * sizeof from[0]);
    cudaMemcpy(to, from.data(), from.size() * sizeof from[0], cudaMemcpyHostToDevice);
  };
  put(d_indptr, indptr), put(d_queries, q_indptr), put(d_indices, indices), put(d_last, last);
  cudaMalloc(&q, static_cast<std::size_t>(rows * channels * 2));
  cudaMalloc(&out, static_cast<std::size_t>(rows * channels * 2));
  fill<<<1024, 256>>>(reinterpret_cast<std::uint32_t*>(q), rows * channels / 2);
  pith::device_pages<Page> const view{.base = m.pages, .block_stride = stride, .head_stride = Page::bytes, .blocks = pages, .kv_heads = kv_heads, .sequences = sequences,
                                      .indptr = d_indptr, .indices = d_indices, .last_page_len = d_last};
  pith::status ok;
  float const ms = median_ms(m.flush, m.flush_bytes, [&] {
    pith::status const one = pith::paged_attention<Accuracy>(pith::cuda{}, env, view, d_queries, queries,
                                                             pith::tensor_view<bf16 const, 3, space::device>(q, {sequences * queries, heads, channels}),
                                                             pith::tensor_view<bf16, 3, space::device>(out, {sequences * queries, heads, channels}));
    if (!one) ok = one;
  });
  cudaError_t const error = cudaDeviceSynchronize();
  for (void* p : {static_cast<void*>(d_indptr), static_cast<void*>(d_queries), static_cast<void*>(d_indices), static_cast<void*>(d_last), static_cast<void*>(q), static_cast<void*>(out)}) cudaFree(p);
  if (!ok || error != cudaSuccess) {
    std::printf("%-28s failed: %s, %s\n", name, pith::message(ok.code), cudaGetErrorString(error));
    return false;
  }
  if (queries == 1) {
    double const bytes = static_cast<double>(pages) * static_cast<double>(stride), rate = bytes / ms * 1e3;
    if (std::is_same_v<typename Page::key_tile, pith::raw_tile<bf16, channels, pith::use::dot>>) bf16_us = 1e3 * ms;
    std::printf("%-28s batch %4lld context %6lld group %d %s  %9.1f us  %6.0f GB/s packed, %3.0f %% of reading as fast as a copy, %5.2f x bf16 pages\n", name, static_cast<long long>(sequences),
                static_cast<long long>(context), group, shuffled ? "shuffled" : "in order", 1e3 * ms, rate * 1e-9, 100 * rate / copy_rate, bf16_us / (1e3 * ms));
  } else {
    double const operations = 4.0 * static_cast<double>(sequences * queries) * (static_cast<double>(context) - 0.5 * static_cast<double>(queries)) * channels * static_cast<double>(heads);
    std::printf("%-28s batch %4lld context %6lld chunk %lld  %9.1f us  %6.1f TFLOP/s\n", name, static_cast<long long>(sequences), static_cast<long long>(context),
                static_cast<long long>(queries), 1e3 * ms, operations / ms * 1e-9);
  }
  return true;
}

template <class Keys, class Values = Keys>
using pages_of = pith::kv_page<Keys, Values, channels, channels, 64>;
using int4_pages = pages_of<pith::int4<per_token<64>>>;
using int8_pages = pages_of<pith::int8<per_token<64>>>;
using int2_pages = pages_of<pith::int2<per_token<64>>>;
using kivi4_pages = pages_of<pith::int4<per_channel<32>>, pith::int4<per_token<64>>>;
using rotated4_pages = pages_of<pith::pipe<pith::hadamard<128>, pith::int4<per_token<>>>>;
using plain_pages = pages_of<pith::raw<bf16>>;

}  // namespace

int main() {
  memory m{};
  std::size_t free = 0, total = 0;
  if (cudaMemGetInfo(&free, &total) != cudaSuccess) return 1;
  m.flush_bytes = std::size_t{256} << 20;
  m.pages_bytes = std::min<std::size_t>(free / 2, std::size_t{36} << 30);
  if (cudaMalloc(&m.pages, m.pages_bytes) != cudaSuccess || cudaMalloc(&m.flush, m.flush_bytes) != cudaSuccess) return 1;
  fill<<<4096, 256>>>(reinterpret_cast<std::uint32_t*>(m.pages), static_cast<std::int64_t>(m.pages_bytes / 4));
  auto made = pith::cuda_environment::make(nullptr, pith::plain_device_memory(), std::int64_t{1} << 30);
  if (!made) return 1;
  pith::cuda_environment const& env = made.value();
  std::size_t const half = std::min<std::size_t>(m.pages_bytes / 2, std::size_t{4} << 30);
  copy_rate = 2.0 * static_cast<double>(half) / median_ms(m.flush, m.flush_bytes, [&] { cudaMemcpyAsync(m.pages + half, m.pages, half, cudaMemcpyDeviceToDevice); }) * 1e3;
  std::printf("copy %.0f GB/s, read and written\n", copy_rate * 1e-9);

  using pith::exact_accuracy;
  using pith::integer_accuracy;
  bool all = true;
  for (std::int64_t const context : {8192, 32768})
    for (std::int64_t const sequences : {1, 8, 64}) {
      all = measure<plain_pages, integer_accuracy>("bf16", env, m, sequences, context, 1, 8, 4, true) && all;
      all = measure<int8_pages, integer_accuracy>("int8", env, m, sequences, context, 1, 8, 4, true) && all;
      all = measure<int4_pages, integer_accuracy>("int4", env, m, sequences, context, 1, 8, 4, true) && all;
      all = measure<int2_pages, integer_accuracy>("int2", env, m, sequences, context, 1, 8, 4, true) && all;
      all = measure<kivi4_pages, integer_accuracy>("kivi4", env, m, sequences, context, 1, 8, 4, true) && all;
      all = measure<rotated4_pages, integer_accuracy>("rotated4", env, m, sequences, context, 1, 8, 4, true) && all;
      all = measure<int4_pages, exact_accuracy>("int4, two terms", env, m, sequences, context, 1, 8, 4, true) && all;
    }
  all = measure<int4_pages, integer_accuracy>("int4", env, m, 64, 8192, 1, 8, 4, false) && all;
  all = measure<int4_pages, integer_accuracy>("int4", env, m, 64, 8192, 1, 8, 8, true) && all;
  all = measure<int4_pages, integer_accuracy>("int4", env, m, 64, 8192, 1, 8, 1, true) && all;
  for (std::int64_t const context : {4096, 32768}) {
    all = measure<plain_pages, integer_accuracy>("bf16", env, m, 4, context, 512, 8, 4, true) && all;
    all = measure<int8_pages, integer_accuracy>("int8", env, m, 4, context, 512, 8, 4, true) && all;
    all = measure<int4_pages, integer_accuracy>("int4", env, m, 4, context, 512, 8, 4, true) && all;
    all = measure<int4_pages, exact_accuracy>("int4, two terms", env, m, 4, context, 512, 8, 4, true) && all;
  }
  cudaFree(m.pages);
  cudaFree(m.flush);
  return all ? 0 : 1;
}
