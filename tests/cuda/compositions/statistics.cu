// SPDX-License-Identifier: Apache-2.0
// Statistics of attention over pages and over a cache, and decoding with scores of slots.
#include "pith/codec/hadamard.hpp"
#include "pith/codec/kv_page.hpp"
#include "pith/cuda/attention_statistics.hpp"
#include "pith/cuda/cache.hpp"
#include "pith/cuda/environment.cuh"

namespace composition {

using pith::bf16;
using pith::group_reduction;
using pith::per_channel;
using pith::per_token;
using pith::statistic;
namespace device = pith::device;

template <class Keys, class Values = Keys>
using pages_of = pith::kv_page<Keys, Values, 128, 128, 64>;
using int4_pages = pages_of<pith::int4<per_token<64>>>;
using int8_pages = pages_of<pith::int8<per_token<64>>>;
using kivi4_pages = pages_of<pith::int4<per_channel<32>>, pith::int4<per_token<32>>>;
using bf16_pages = pages_of<pith::raw<bf16>>;
using widest_pages = pith::kv_page<pith::int4<per_token<64>>, pith::int4<per_token<64>>, 256, 256, 64>;

struct kivi : pith::kv_cache<pith::head_dim<128>, pith::keys<pith::int4<per_channel<32>>>, pith::values<pith::int4<per_token<64>>>,
                             pith::raw<pith::first<4>, pith::last<32, 64>>, pith::side<pith::liveness, pith::bias>, pith::on<pith::cuda>> {};

using sum = pith::statistics_view<group_reduction::sum, statistic::sum>;
using variance = pith::statistics_view<group_reduction::none, statistic::sum, statistic::square_sum>;
using every = pith::statistics_view<group_reduction::mean, statistic::sum, statistic::square_sum, statistic::maximum, statistic::below, statistic::weighted_sum,
                                    statistic::entropy>;
template <class Page, class View, int Tiles, int Terms = 1>
using over_pages = device::attention_statistics_kernel<Page, device::page_source<Page>, bf16, Tiles, Terms, View>;
template <class Page, int Terms = 1>
using scored = device::attention_kernel<Page, device::page_source<Page>, bf16, 1, Terms, device::warps_along::tokens, device::keep_logits>;

// Kernels under short names.
struct int4_sum_8 : over_pages<int4_pages, sum, 1> {};
struct int4_sum_32 : over_pages<int4_pages, sum, 4> {};
struct int4_exact_sum_32 : over_pages<int4_pages, sum, 4, 2> {};
struct int4_every_32 : over_pages<int4_pages, every, 4> {};
struct int8_variance_32 : over_pages<int8_pages, variance, 4> {};
struct kivi4_exact_sum_32 : over_pages<kivi4_pages, sum, 4, 2> {};
struct bf16_sum_32 : over_pages<bf16_pages, sum, 4> {};
struct widest_exact_every_16 : over_pages<widest_pages, every, 2, 2> {};
struct cache_every_32 : device::attention_statistics_kernel<kivi::page, device::cache_source<kivi>, bf16, 4, 2, every> {};
struct int4_scored : scored<int4_pages> {};
struct int8_scored : scored<int8_pages> {};
struct bf16_scored : scored<bf16_pages> {};
struct int4_exact_scored : scored<int4_pages, 2> {};
struct pages_scores : device::slot_scores_kernel<int4_pages, device::page_source<int4_pages>> {};
struct cache_scores : device::slot_scores_kernel<kivi::page, device::cache_source<kivi>> {};

}  // namespace composition

#define PITH_START(...) template __global__ void pith::device::run_kernel<__VA_ARGS__>(__grid_constant__ __VA_ARGS__ const)
PITH_START(composition::int4_sum_8);
PITH_START(composition::int4_sum_32);
PITH_START(composition::int4_exact_sum_32);
PITH_START(composition::int4_every_32);
PITH_START(composition::int8_variance_32);
PITH_START(composition::kivi4_exact_sum_32);
PITH_START(composition::bf16_sum_32);
PITH_START(composition::widest_exact_every_16);
PITH_START(composition::cache_every_32);
PITH_START(composition::int4_scored);
PITH_START(composition::int8_scored);
PITH_START(composition::bf16_scored);
PITH_START(composition::int4_exact_scored);
PITH_START(composition::pages_scores);
PITH_START(composition::cache_scores);
