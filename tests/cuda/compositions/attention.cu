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

// Kernels under short names.
struct int4_decode : decode<int4_pages, 1> {};
struct int4_exact_decode : decode<int4_pages, 2> {};
struct int4_prefill : prefill<int4_pages> {};
struct int8_decode : decode<int8_pages, 1> {};
struct int8_exact_decode : decode<int8_pages, 2> {};
struct int8_prefill : prefill<int8_pages> {};
struct kivi4_decode : decode<kivi4_pages, 1> {};
struct kivi4_prefill : prefill<kivi4_pages> {};
struct kivi2_decode : decode<kivi2_pages, 1> {};
struct int3_decode : decode<int3_pages, 1> {};
struct bf16_decode : decode<bf16_pages, 1> {};
struct bf16_exact_decode : decode<bf16_pages, 2> {};
struct bf16_prefill : prefill<bf16_pages> {};
struct rotated_decode : decode<rotated_pages, 1> {};
struct block_float_exact_decode : decode<block_float_pages, 2> {};
struct wide_decode : decode<wide_pages, 1> {};
struct widest_exact_decode : decode<widest_pages, 2> {};
struct widest_exact_prefill : prefill<widest_pages, 1, 2> {};

}  // namespace composition

#define PITH_START(...) template __global__ void composition::start(__grid_constant__ __VA_ARGS__ const)
PITH_START(composition::int4_decode);
PITH_START(composition::int4_exact_decode);
PITH_START(composition::int4_prefill);
PITH_START(composition::int8_decode);
PITH_START(composition::int8_exact_decode);
PITH_START(composition::int8_prefill);
PITH_START(composition::kivi4_decode);
PITH_START(composition::kivi4_prefill);
PITH_START(composition::kivi2_decode);
PITH_START(composition::int3_decode);
PITH_START(composition::bf16_decode);
PITH_START(composition::bf16_exact_decode);
PITH_START(composition::bf16_prefill);
PITH_START(composition::rotated_decode);
PITH_START(composition::block_float_exact_decode);
PITH_START(composition::wide_decode);
PITH_START(composition::widest_exact_decode);
PITH_START(composition::widest_exact_prefill);
