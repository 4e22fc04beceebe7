// SPDX-License-Identifier: Apache-2.0
// The least that a kernel over 4-bit codes does: 32-token blocks of 128 channels, words to fragments, products with 8 columns. No scales.
#include "pith/cuda/environment.cuh"

namespace composition {

struct unpack_int4 {
  static constexpr int threads = 128, min_blocks = 3;
  std::byte const* words;        // [block][16 words of a token][32 tokens]
  std::uint32_t const* columns;  // [step][lane][2]
  float* out;                    // [warp][lane][8]
  std::int64_t blocks;

  template <pith::device::device_like Thread>
  PITH_HD void operator()(Thread& t) const {
    using pith::device::and_or;
    int const g = t.lane() / 4, pair = t.lane() % 4;
    std::uint32_t b[8][2];
    PITH_UNROLL
    for (int i = 0; i < 8; ++i) {
      b[i][0] = columns[(i * 32 + t.lane()) * 2];
      b[i][1] = columns[(i * 32 + t.lane()) * 2 + 1];
    }
    float sum[2][4] = {};
    std::int64_t const warp = t.block_x() * (threads / 32) + t.warp();
    std::byte const* at = words + warp * blocks * 2048 + (32 * pair + 4 * g) * 4;
    for (std::int64_t block = 0; block < blocks; ++block, at += 2048) {
      pith::device::word4 w[4];
      PITH_UNROLL
      for (int i = 0; i < 4; ++i) w[i] = pith::device::load_word<pith::device::word4>(at + 512 * i);
      PITH_UNROLL
      for (int i = 0; i < 4; ++i) PITH_UNROLL
      for (int tile = 0; tile < 2; ++tile) PITH_UNROLL
      for (int half = 0; half < 2; ++half) {
        std::uint32_t const low = w[i].at[2 * tile] >> (8 * half), high = w[i].at[2 * tile + 1] >> (8 * half);
        std::uint32_t const a[4] = {and_or(low, 0x000f000fu, 0x64006400u), and_or(high, 0x000f000fu, 0x64006400u),
                                    and_or(low, 0x00f000f0u, 0x64006400u), and_or(high, 0x00f000f0u, 0x64006400u)};
        t.template multiply<pith::f16>(sum[tile], a, b[2 * i + half]);
      }
    }
    PITH_UNROLL
    for (int i = 0; i < 8; ++i) out[(warp * 32 + t.lane()) * 8 + i] = sum[i / 4][i % 4];
  }
};

}  // namespace composition

template __global__ void pith::device::run_kernel<composition::unpack_int4>(__grid_constant__ composition::unpack_int4 const);
