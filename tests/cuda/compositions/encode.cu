// SPDX-License-Identifier: Apache-2.0
// Compositions whose encode and decode kernels are compiled for a device in the ordinary test run: without spills and without a stack.
#include "pith/codec/hadamard.hpp"
#include "pith/cuda/device_thread.cuh"
#include "pith/cuda/encode.hpp"

namespace compositions {

using pith::bf16;
using pith::use;

template <class Kernel>
__global__ void __launch_bounds__(Kernel::threads) start(Kernel kernel) {
  pith::device::device_thread thread;
  kernel(thread);
}

template <class Tile>
using encode_rows = pith::device::encode_kernel<Tile, pith::device::tiles_in_order<Tile, bf16 const, std::byte>>;
template <class Tile>
using decode_rows = pith::device::decode_kernel<Tile, pith::device::tiles_in_order<Tile, bf16, std::byte const>>;

using kivi_keys = pith::int4<pith::per_channel<32>>::bind<128, 64, use::dot>;
using kivi_values = pith::int4<pith::per_token<64>>::bind<128, 64, use::mix>;
using rotated_keys = pith::pipe<pith::hadamard<128>, pith::int4<pith::per_token<64>>>::bind<128, 64, use::dot>;
using small_values = pith::int3<pith::per_token<32>, pith::zero::none>::bind<128, 64, use::mix>;



template __global__ void start(encode_rows<kivi_keys>);
template __global__ void start(encode_rows<kivi_values>);
template __global__ void start(encode_rows<rotated_keys>);
template __global__ void start(encode_rows<small_values>);
template __global__ void start(decode_rows<kivi_keys>);
template __global__ void start(decode_rows<rotated_keys>);

}  // namespace compositions
