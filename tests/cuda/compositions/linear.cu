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
struct int4_one : linear_kernel<int4_weights, 1, 1, 1> {};
struct int4_one_exact : linear_kernel<int4_weights, 1, 1, 2> {};
struct int4_16 : linear_kernel<int4_weights, 2, 1, 1> {};
struct int4_32 : linear_kernel<int4_weights, 4, 1, 1> {};
struct int4_64 : linear_kernel<int4_weights, 4, 2, 1> {};
struct int4_32_exact : linear_kernel<int4_weights, 4, 1, 2> {};
struct int4_zeros_exact : linear_kernel<int4_zeros, 1, 1, 2> {};
struct int8_one : linear_kernel<int8_weights, 1, 1, 1> {};
struct int8_64 : linear_kernel<int8_weights, 4, 2, 1> {};
struct int3_one : linear_kernel<int3_weights, 1, 1, 1> {};
struct bf16_one : linear_kernel<bf16_weights, 1, 1, 1> {};
struct bf16_64 : linear_kernel<bf16_weights, 4, 2, 1> {};
struct by_channel_one : linear_kernel<by_channel, 1, 1, 1> {};
struct by_channel_32 : linear_kernel<by_channel, 4, 1, 1> {};
struct rotated_x : pith::device::linear_x_kernel<rotated, 1, 1, 2, bf16> {};
struct bf16_x : pith::device::linear_x_kernel<bf16_weights, 4, 2, 1, bf16> {};
struct merge : pith::device::linear_merge_kernel<bf16> {};

template __global__ void start(__grid_constant__ int4_one const);
template __global__ void start(__grid_constant__ int4_one_exact const);
template __global__ void start(__grid_constant__ int4_16 const);
template __global__ void start(__grid_constant__ int4_32 const);
template __global__ void start(__grid_constant__ int4_64 const);
template __global__ void start(__grid_constant__ int4_32_exact const);
template __global__ void start(__grid_constant__ int4_zeros_exact const);
template __global__ void start(__grid_constant__ int8_one const);
template __global__ void start(__grid_constant__ int8_64 const);
template __global__ void start(__grid_constant__ int3_one const);
template __global__ void start(__grid_constant__ bf16_one const);
template __global__ void start(__grid_constant__ bf16_64 const);
template __global__ void start(__grid_constant__ by_channel_one const);
template __global__ void start(__grid_constant__ by_channel_32 const);
template __global__ void prepare(__grid_constant__ rotated_x const);
template __global__ void prepare(__grid_constant__ bf16_x const);
template __global__ void prepare(__grid_constant__ merge const);

}  // namespace compositions
