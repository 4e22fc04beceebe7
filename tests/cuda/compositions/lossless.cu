// SPDX-License-Identifier: Apache-2.0
// Lossless bf16 weights: products with one row of x and with passes of 16 and 64, and decoding.
#include "pith/cuda/device_thread.cuh"
#include "pith/cuda/packed_matrix.hpp"

namespace compositions {

using pith::bf16;
using pith::use;

template <class Kernel>
__global__ void __launch_bounds__(Kernel::threads, Kernel::min_blocks) start(__grid_constant__ Kernel const kernel) {
  pith::device::device_thread thread;
  kernel(thread);
}
template <class Kernel>
__global__ void __launch_bounds__(Kernel::threads) decode(__grid_constant__ Kernel const kernel) {
  pith::device::device_thread thread;
  kernel(thread);
}

template <class Coder>
using weights = typename pith::dynamic_float<bf16, Coder>::template bind<256, 256, use::dot>;
using window = weights<pith::exponent_window>;

using pith::device::linear_kernel;
struct window_one : linear_kernel<window, 1, 1, 1> {};
struct window_one_exact : linear_kernel<window, 1, 1, 2> {};
struct window_16 : linear_kernel<window, 2, 1, 1> {};
struct window_64 : linear_kernel<window, 4, 2, 1> {};

using pith::device::float_decode_kernel;
struct decode_window : float_decode_kernel<window> {};
struct decode_huffman : float_decode_kernel<weights<pith::huffman>> {};
struct decode_rans : float_decode_kernel<weights<pith::rans_exponents>> {};

template __global__ void start(__grid_constant__ window_one const);
template __global__ void start(__grid_constant__ window_one_exact const);
template __global__ void start(__grid_constant__ window_16 const);
template __global__ void start(__grid_constant__ window_64 const);
template __global__ void decode(__grid_constant__ decode_window const);
template __global__ void decode(__grid_constant__ decode_huffman const);
template __global__ void decode(__grid_constant__ decode_rans const);

}  // namespace compositions
