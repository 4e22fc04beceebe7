// SPDX-License-Identifier: Apache-2.0
// paged_attention: one new token a sequence (decoding), and chunks of 512 on a stored context (prefill), beside a copy on the same device.
//
// Packed bytes are what the pages of the sequences hold, keys, values and scales; decoding reads them once. Operations of prefill are
// 4 * queries * context * channels for each query head, half of them for the chunk itself.
#include <cstdio>
#include <vector>

#include "bench/cuda/timing.cuh"
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

struct memory {
  bench::buffer const& pages;
  bench::buffer const& flush;
};
double rate_of_copy = 0, bf16_us = 0;

template <class Page, class Accuracy>
bool measure(char const* name, pith::cuda_environment const& env, memory const& m, std::int64_t sequences, std::int64_t context, std::int64_t queries, int kv_heads,
             int group, bool shuffled) {
  std::int64_t const heads = kv_heads * group, pages_each = pith::divide_up(context, Page::tokens), pages = pages_each * sequences;
  std::int64_t const stride = Page::bytes * kv_heads;
  if (static_cast<std::size_t>(pages * stride) > m.pages.bytes()) {
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
  auto const bytes_of = [](auto const& values) { return values.size() * sizeof values[0]; };
  bench::buffer const d_indptr(bytes_of(indptr)), d_queries(bytes_of(q_indptr)), d_indices(bytes_of(indices)), d_last(bytes_of(last));
  bench::buffer const q(static_cast<std::size_t>(rows * channels * 2)), out(q.bytes());
  bench::fill(d_indptr, indptr), bench::fill(d_queries, q_indptr), bench::fill(d_indices, indices), bench::fill(d_last, last);
  bench::fill_with_numbers(q);
  pith::device_pages<Page> const view{.base = m.pages.data(), .block_stride = stride, .head_stride = Page::bytes, .blocks = pages, .kv_heads = kv_heads, .sequences = sequences,
                                      .indptr = d_indptr.as<std::int64_t>(), .indices = d_indices.as<std::uint32_t>(), .last_page_len = d_last.as<std::int32_t>()};
  pith::status ok;
  float const ms = bench::median_ms(m.flush, [&] {
    pith::status const one = pith::paged_attention<Accuracy>(pith::cuda{}, env, view, d_queries.as<std::int64_t>(), queries,
                                                             pith::tensor_view<bf16 const, 3, space::device>(q.as<bf16>(), {sequences * queries, heads, channels}),
                                                             pith::tensor_view<bf16, 3, space::device>(out.as<bf16>(), {sequences * queries, heads, channels}));
    if (!one) ok = one;
  });
  cudaError_t const error = cudaDeviceSynchronize();
  if (!ok || error != cudaSuccess) {
    std::printf("%-28s failed: %s, %s\n", name, pith::message(ok.code), cudaGetErrorString(error));
    return false;
  }
  if (queries == 1) {
    double const bytes = static_cast<double>(pages) * static_cast<double>(stride), rate = bytes / ms * 1e3;
    if (std::is_same_v<typename Page::key_tile, pith::raw_tile<bf16, channels, pith::use::dot>>) bf16_us = 1e3 * ms;
    std::printf("%-28s batch %4lld context %6lld group %d %s  %9.1f us  %6.0f GB/s packed, %3.0f %% of reading as fast as a copy, %5.2f x bf16 pages\n", name, static_cast<long long>(sequences),
                static_cast<long long>(context), group, shuffled ? "shuffled" : "in order", 1e3 * ms, rate * 1e-9, 100 * rate / rate_of_copy, bf16_us / (1e3 * ms));
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
  std::size_t free = 0, total = 0;
  if (cudaMemGetInfo(&free, &total) != cudaSuccess) return 1;
  bench::buffer const pages(std::min<std::size_t>(free / 2, std::size_t{36} << 30)), flush(std::size_t{256} << 20);
  auto made = pith::cuda_environment::make(nullptr, pith::plain_device_memory(), std::int64_t{1} << 30);
  if (!made || pages.data() == nullptr || flush.data() == nullptr) {
    std::printf("no memory on a device\n");
    return 1;
  }
  pith::cuda_environment const& env = made.value();
  memory const m{pages, flush};
  bench::fill_with_numbers(pages);
  rate_of_copy = bench::copy_rate(pages, flush);

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
  return all ? 0 : 1;
}
