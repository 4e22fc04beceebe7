// SPDX-License-Identifier: Apache-2.0
// What ranking slots costs beside attention over the same pages: scores of a decode step, and statistics of a prompt's newest queries, on a
// device.
//
// A decode step without scores, with them, and followed by a second pass over the keys for its one query token; then the second pass for
// the newest 32 query tokens, a sum and everything that there is by slot. Keys are the bytes of keys of the pages, read once.
#include <cstdio>
#include <vector>

#include "bench/cuda/timing.cuh"
#include "pith/codec/kv_page.hpp"
#include "pith/cuda/attention_statistics.hpp"
#include "pith/cuda/environment.cuh"

namespace {

using pith::bf16;
using pith::group_reduction;
using pith::per_token;
using pith::space;
using pith::statistic;

constexpr int channels = 128, kv_heads = 8, group = 4, heads = kv_heads * group;

using sums = pith::device_statistics_view<group_reduction::sum, statistic::sum>;
using all_of_groups = pith::device_statistics_view<group_reduction::mean, statistic::sum, statistic::square_sum, statistic::below,
                                                   statistic::weighted_sum, statistic::entropy>;

template <class Page>
bool measure(char const* name, pith::cuda_environment const& env, bench::buffer const& memory, bench::buffer const& flush,
             std::int64_t sequences, std::int64_t context) {
  std::int64_t const pages_each = pith::divide_up(context, Page::tokens), pages = pages_each * sequences, stride = Page::bytes * kv_heads;
  std::int64_t const slots = pages * Page::tokens, most_queries = 32;
  if (static_cast<std::size_t>(pages * stride) > memory.bytes()) {
    std::printf("%-8s batch %4lld context %6lld   does not fit\n", name, static_cast<long long>(sequences),
                static_cast<long long>(context));
    return true;
  }
  std::vector<std::int64_t> indptr, one, many;
  std::vector<std::uint32_t> indices;
  for (std::int64_t s = 0; s <= sequences; ++s) indptr.push_back(s * pages_each), one.push_back(s), many.push_back(s * most_queries);
  for (std::int64_t i = 0; i < pages; ++i) indices.push_back(static_cast<std::uint32_t>(i));
  std::vector<std::int32_t> const last(static_cast<std::size_t>(sequences),
                                       static_cast<std::int32_t>(context - (pages_each - 1) * Page::tokens));
  auto const bytes_of = [](auto const& values) { return values.size() * sizeof values[0]; };
  bench::buffer const d_indptr(bytes_of(indptr)), d_one(bytes_of(one)), d_many(bytes_of(many)), d_indices(bytes_of(indices)),
      d_last(bytes_of(last));
  bench::fill(d_indptr, indptr), bench::fill(d_one, one), bench::fill(d_many, many), bench::fill(d_indices, indices),
      bench::fill(d_last, last);
  std::int64_t const tokens = sequences * most_queries;
  bench::buffer const q(static_cast<std::size_t>(tokens * heads * channels * 2)), out(q.bytes()),
      lse(static_cast<std::size_t>(tokens * heads * 4)), numbers(static_cast<std::size_t>(5 * kv_heads * slots * 4)),
      logits(static_cast<std::size_t>(heads * slots * 4)), per_row(static_cast<std::size_t>(tokens * 4));
  if (numbers.data() == nullptr || logits.data() == nullptr) {
    std::printf("%-8s no memory\n", name);
    return false;
  }
  bench::fill_with_numbers(q);
  cudaMemset(per_row.data(), 0, per_row.bytes());
  pith::device_pages<Page> const view{.base = memory.data(),
                                      .block_stride = stride,
                                      .head_stride = Page::bytes,
                                      .blocks = pages,
                                      .kv_heads = kv_heads,
                                      .sequences = sequences,
                                      .indptr = d_indptr.as<std::int64_t>(),
                                      .indices = d_indices.as<std::uint32_t>(),
                                      .last_page_len = d_last.as<std::int32_t>()};
  auto const rows = [&](bench::buffer const& of, std::int64_t count) {
    return pith::tensor_view<bf16, 3, space::device>(of.as<bf16>(), {count, heads, channels});
  };
  auto const slot_view = [&](int which) {
    return pith::tensor_view<float, 2, space::device>(numbers.as<float>() + which * kv_heads * slots, {kv_heads, slots});
  };
  auto const known = [&](std::int64_t count) { return pith::tensor_view<float, 2, space::device>(lse.as<float>(), {count, heads}); };
  pith::tensor_view<bf16 const, 3, space::device> const q_one = rows(q, sequences), q_many = rows(q, tokens);
  pith::status ok;
  auto const time = [&](auto const& call) {
    float const ms = bench::median_ms(flush, [&] {
      pith::status const now = call();
      if (!now) ok = now;
    });
    return 1e3 * static_cast<double>(ms);
  };
  using pith::integer_accuracy;
  auto const attend = [&](pith::device_attention_options const& options) {
    return pith::paged_attention<integer_accuracy>(pith::cuda{}, env, view, d_one.as<std::int64_t>(), 1, q_one, rows(out, sequences),
                                                   options);
  };
  auto const rank_one = [&] {
    return pith::attention_statistics<integer_accuracy>(pith::cuda{}, env, view, d_one.as<std::int64_t>(), 1, q_one, known(sequences),
                                                        sums{.sum = slot_view(0)});
  };
  double const plain = time([&] { return attend({}); });
  double const scored = time([&] {
    return pith::paged_attention<integer_accuracy>(
        pith::cuda{}, env, view, d_one.as<std::int64_t>(), 1, q_one, rows(out, sequences), {},
        {.sum = slot_view(0), .logits = pith::tensor_view<float, 3, space::device>(logits.as<float>(), {kv_heads, group, slots})});
  });
  double const twice = time([&] {
    pith::status const first = attend({.lse = known(sequences)});
    return first ? rank_one() : first;
  });
  std::printf(
      "%-8s batch %4lld context %6lld   decode step %8.1f us   with scores %8.1f us, %5.2f x   with a second pass %8.1f us, %5.2f x\n",
      name, static_cast<long long>(sequences), static_cast<long long>(context), plain, scored, scored / plain, twice, twice / plain);

  pith::status const prompt = pith::paged_attention<integer_accuracy>(pith::cuda{}, env, view, d_many.as<std::int64_t>(), most_queries,
                                                                      q_many, rows(out, tokens), {.lse = known(tokens)});
  if (!prompt) ok = prompt;
  double const attended = time([&] {
    return pith::paged_attention<integer_accuracy>(pith::cuda{}, env, view, d_many.as<std::int64_t>(), most_queries, q_many,
                                                   rows(out, tokens), {.lse = known(tokens)});
  });
  auto const rank = [&](auto const& wanted) {
    return pith::attention_statistics<integer_accuracy>(pith::cuda{}, env, view, d_many.as<std::int64_t>(), most_queries, q_many,
                                                        known(tokens), wanted,
                                                        {.weights = per_row.as<float>(), .thresholds = per_row.as<float>()});
  };
  double const summed = time([&] { return rank(sums{.sum = slot_view(0)}); });
  double const every = time([&] {
    return rank(all_of_groups{
        .sum = slot_view(0), .square_sum = slot_view(1), .below = slot_view(2), .weighted_sum = slot_view(3), .entropy = slot_view(4)});
  });
  std::printf(
      "%-8s batch %4lld context %6lld   32 queries  %8.1f us   their sums  %8.1f us, %5.2f x, %5.0f GB/s of keys   five statistics %8.1f "
      "us, %5.2f x\n",
      name, static_cast<long long>(sequences), static_cast<long long>(context), attended, summed, summed / attended,
      static_cast<double>(Page::values_at) * static_cast<double>(pages * kv_heads) / summed * 1e-3, every, every / attended);
  cudaError_t const error = cudaDeviceSynchronize();
  if (ok && error == cudaSuccess) return true;
  std::printf("%-8s failed: %s, %s\n", name, pith::message(ok.code), cudaGetErrorString(error));
  return false;
}

template <class Codec>
using pages_of = pith::kv_page<Codec, Codec, channels, channels, 64>;

}  // namespace

int main() {
  std::size_t free = 0, total = 0;
  if (cudaMemGetInfo(&free, &total) != cudaSuccess) return 1;
  bench::buffer const pages(std::min<std::size_t>(free / 3, std::size_t{24} << 30)), flush(std::size_t{256} << 20);
  auto made = pith::cuda_environment::make(nullptr, pith::plain_device_memory(), std::int64_t{1} << 30);
  if (!made || pages.data() == nullptr || flush.data() == nullptr) {
    std::printf("no memory on a device\n");
    return 1;
  }
  bench::fill_with_numbers(pages);
  bool all = true;
  for (std::int64_t const context : {8192, 32768})
    for (std::int64_t const sequences : {1, 8, 32}) {
      all = measure<pages_of<pith::raw<bf16>>>("bf16", made.value(), pages, flush, sequences, context) && all;
      all = measure<pages_of<pith::int8<per_token<64>>>>("int8", made.value(), pages, flush, sequences, context) && all;
      all = measure<pages_of<pith::int4<per_token<64>>>>("int4", made.value(), pages, flush, sequences, context) && all;
    }
  return all ? 0 : 1;
}
