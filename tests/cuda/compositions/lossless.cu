// SPDX-License-Identifier: Apache-2.0
// Lossless bf16 weights: products with one row of x and with passes of 16 and 64, and decoding; and of a product what a piece of 2048
// weights takes in a warp, 64 a lane.
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

using piece = pith::device::window_tile<64>;

// Planes and tail to symbols, the tail's head and its end included; loops over lists are counted as if they ran once.
struct piece_symbols {
  static constexpr int threads = 32;
  std::byte const* tail;
  std::uint64_t* finished;

  template <class Thread>
  PITH_HD void operator()(Thread& t) const {
    pith::device::window_symbols symbols;
    symbols.open(t, tail, 100, 8192);
    symbols.expand(t, t.shared() + piece::coder::plane_at(t.lane(), 0, piece::section_bytes), 0, t.shared() + 4096);
    finished[t.lane()] = symbols.finished();
  }
};

// Rests and symbols to operands, and their products with 8 rows of x.
struct piece_products {
  static constexpr int threads = 32;
  float* sums;
  std::uint32_t starts[4];
  int pieces;

  template <class Thread>
  PITH_HD void operator()(Thread& t) const {
    float s[2][1][4] = {};
    for (int i = 0; i < pieces; ++i) {
      pith::device::window_view const view{
          t.shared() + 8192 * i, t.shared() + 8192 * i + 4096, {starts[0], starts[1], starts[2], starts[3]}};
      pith::device::dot_block<piece, 1, 1>::run(t, view, t.shared() + 8192 * i + 6144, s);
    }
    for (int i = 0; i < 8; ++i) sums[t.lane() + 32 * i] = s[i / 4][0][i % 4];
  }
};

template __global__ void decode(__grid_constant__ piece_symbols const);
template __global__ void decode(__grid_constant__ piece_products const);
template __global__ void start(__grid_constant__ window_one const);
template __global__ void start(__grid_constant__ window_one_exact const);
template __global__ void start(__grid_constant__ window_16 const);
template __global__ void start(__grid_constant__ window_64 const);
template __global__ void decode(__grid_constant__ decode_window const);
template __global__ void decode(__grid_constant__ decode_huffman const);
template __global__ void decode(__grid_constant__ decode_rans const);

}  // namespace compositions
