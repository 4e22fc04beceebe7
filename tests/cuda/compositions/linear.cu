// SPDX-License-Identifier: Apache-2.0
// Products with packed weights: one row of x and passes of 64, 32, 16.
#include "pith/codec/hadamard.hpp"
#include "pith/codec/integer.hpp"
#include "pith/codec/pipe.hpp"
#include "pith/codec/raw.hpp"
#include "pith/cuda/device_thread.cuh"
#include "pith/cuda/linear_kernel.hpp"
#include "pith/cuda/linear_merge.hpp"

namespace compositions {

using pith::bf16;
using pith::use;

template <class Kernel>
__global__ void __launch_bounds__(Kernel::threads, Kernel::min_blocks) start(__grid_constant__ Kernel const kernel) {
  pith::device::device_thread thread;
  kernel(thread);
}
template <class Kernel>
__global__ void __launch_bounds__(Kernel::threads) prepare(__grid_constant__ Kernel const kernel) {
  pith::device::device_thread thread;
  kernel(thread);
}

using int4_weights = pith::int4<pith::per_token<64>, pith::zero::none>::bind<256, 256, use::dot>;
using int4_zeros = pith::int4<pith::per_token<64>>::bind<256, 256, use::dot>;
using int8_weights = pith::int8<pith::per_token<64>, pith::zero::none>::bind<128, 256, use::dot>;
using int3_weights = pith::int3<pith::per_token<128>>::bind<256, 256, use::dot>;
using bf16_weights = pith::raw<bf16>::bind<256, 256, use::dot>;
using by_channel = pith::int4<pith::per_channel<32>>::bind<256, 256, use::dot>;
using rotated = pith::pipe<pith::hadamard<128>, pith::int4<pith::per_token<64>, pith::zero::none>>::bind<256, 256, use::dot>;

using pith::device::linear_kernel;
template __global__ void start(__grid_constant__ linear_kernel<int4_weights, 1, 1, 1> const);
template __global__ void start(__grid_constant__ linear_kernel<int4_weights, 1, 1, 2> const);
template __global__ void start(__grid_constant__ linear_kernel<int4_weights, 2, 1, 1> const);
template __global__ void start(__grid_constant__ linear_kernel<int4_weights, 4, 1, 1> const);
template __global__ void start(__grid_constant__ linear_kernel<int4_weights, 4, 2, 1> const);
template __global__ void start(__grid_constant__ linear_kernel<int4_weights, 4, 1, 2> const);
template __global__ void start(__grid_constant__ linear_kernel<int4_zeros, 1, 1, 2> const);
template __global__ void start(__grid_constant__ linear_kernel<int8_weights, 1, 1, 1> const);
template __global__ void start(__grid_constant__ linear_kernel<int8_weights, 4, 2, 1> const);
template __global__ void start(__grid_constant__ linear_kernel<int3_weights, 1, 1, 1> const);
template __global__ void start(__grid_constant__ linear_kernel<bf16_weights, 1, 1, 1> const);
template __global__ void start(__grid_constant__ linear_kernel<bf16_weights, 4, 2, 1> const);
template __global__ void start(__grid_constant__ linear_kernel<by_channel, 1, 1, 1> const);
template __global__ void start(__grid_constant__ linear_kernel<by_channel, 4, 1, 1> const);
template __global__ void prepare(__grid_constant__ pith::device::linear_x_kernel<rotated, 1, 1, 2, bf16> const);
template __global__ void prepare(__grid_constant__ pith::device::linear_x_kernel<bf16_weights, 4, 2, 1, bf16> const);
template __global__ void prepare(__grid_constant__ pith::device::linear_merge_kernel<bf16> const);

}  // namespace compositions
