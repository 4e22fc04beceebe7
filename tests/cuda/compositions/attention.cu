// SPDX-License-Identifier: Apache-2.0
// Attention over pages: decoding and prefill of the compositions that engines will ask for first.
#include "pith/codec/block_float.hpp"
#include "pith/codec/hadamard.hpp"
#include "pith/codec/kv_page.hpp"
#include "pith/cuda/device_thread.cuh"
#include "pith/cuda/paged_attention.hpp"

namespace composition {

using namespace pith::device;
using pith::bf16;
using pith::kv_page;
using pith::per_channel;
using pith::per_token;
using pith::raw;

using int4_pages = kv_page<pith::int4<per_token<64>>, pith::int4<per_token<64>>, 128, 128, 64>;
using int8_pages = kv_page<pith::int8<per_token<64>>, pith::int8<per_token<64>>, 128, 128, 64>;
using kivi4_pages = kv_page<pith::int4<per_channel<32>>, pith::int4<per_token<32>>, 128, 128, 64>;
using kivi2_pages = kv_page<pith::int2<per_channel<32>>, pith::int2<per_token<32>>, 128, 128, 64>;
using int3_pages = kv_page<pith::int3<per_token<32>>, pith::int3<per_token<32>>, 128, 128, 64>;
using bf16_pages = kv_page<raw<bf16>, raw<bf16>, 128, 128, 64>;
using rotated_pages = kv_page<pith::pipe<pith::hadamard<128>, pith::int4<per_token<>>>, pith::pipe<pith::hadamard<128>, pith::int4<per_token<>>>, 128, 128, 64>;
using block_float_pages = kv_page<pith::block_float<4, per_token<32>>, pith::block_float<4, per_channel<32>>, 64, 64, 64>;
using widest_pages = kv_page<pith::int4<per_token<64>>, pith::int4<per_token<64>>, 256, 256, 64>;
using wide_pages = kv_page<pith::int8<per_token<64>>, pith::int8<per_token<64>>, 192, 128, 64>;

template <class Kernel>
__global__ void __launch_bounds__(Kernel::threads, Kernel::min_blocks) start(__grid_constant__ Kernel const kernel) {
  device_thread thread;
  kernel(thread);
}
template <class Page, int Terms>
using decode = attention_kernel<Page, page_source<Page>, bf16, 1, Terms, warps_along::tokens>;
template <class Page, int Tiles = 2, int Terms = 1>
using prefill = attention_kernel<Page, page_source<Page>, bf16, Tiles, Terms, warps_along::rows>;

}  // namespace composition

#define PITH_START(...) template __global__ void composition::start(__grid_constant__ __VA_ARGS__ const)
PITH_START(composition::decode<composition::int4_pages, 1>);
PITH_START(composition::decode<composition::int4_pages, 2>);
PITH_START(composition::prefill<composition::int4_pages>);
PITH_START(composition::decode<composition::int8_pages, 1>);
PITH_START(composition::decode<composition::int8_pages, 2>);
PITH_START(composition::prefill<composition::int8_pages>);
PITH_START(composition::decode<composition::kivi4_pages, 1>);
PITH_START(composition::prefill<composition::kivi4_pages>);
PITH_START(composition::decode<composition::kivi2_pages, 1>);
PITH_START(composition::decode<composition::int3_pages, 1>);
PITH_START(composition::decode<composition::bf16_pages, 1>);
PITH_START(composition::decode<composition::bf16_pages, 2>);
PITH_START(composition::prefill<composition::bf16_pages>);
PITH_START(composition::decode<composition::rotated_pages, 1>);
PITH_START(composition::decode<composition::block_float_pages, 2>);
PITH_START(composition::decode<composition::wide_pages, 1>);
PITH_START(composition::decode<composition::widest_pages, 2>);
PITH_START(composition::prefill<composition::widest_pages, 1, 2>);
