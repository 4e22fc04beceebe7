// SPDX-License-Identifier: Apache-2.0
// 128 numbers in 64 registers: the check of the compositions must refuse it.
#include "pith/cuda/environment.cuh"

namespace composition {

struct spill {
  static constexpr int threads = 1024;
  float* numbers;
  int rounds;

  template <pith::device::device_like Thread>
  PITH_HD void operator()(Thread& t) const {
    float r[128];
    PITH_UNROLL
    for (int i = 0; i < 128; ++i) r[i] = numbers[i * 32 + t.lane()];
    for (int k = 0; k < rounds; ++k) PITH_UNROLL
    for (int i = 0; i < 128; ++i) r[i] = r[i] * r[(i * 7 + 1) % 128] + 1;
    PITH_UNROLL
    for (int i = 0; i < 128; ++i) numbers[i * 32 + t.lane()] = r[i];
  }
};

}  // namespace composition

template __global__ void pith::device::run_kernel<composition::spill>(__grid_constant__ composition::spill const);
