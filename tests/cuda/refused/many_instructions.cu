// SPDX-License-Identifier: Apache-2.0
// One conversion and one multiply-add a code: more instructions than tests/cuda/ceilings.txt grants, which the check must notice.
#include "pith/cuda/environment.cuh"

namespace composition {

struct many_instructions {
  static constexpr int threads = 128;
  std::uint32_t const* words;
  float const* numbers;
  float* out;
  int count;

  template <pith::device::device_like Thread>
  PITH_HD void operator()(Thread& t) const {
    float sum = 0;
    for (int i = 0; i < count; ++i) {
      std::uint32_t const word = words[i * 32 + t.lane()];
      PITH_UNROLL
      for (int k = 0; k < 8; ++k) sum += static_cast<float>(word >> (4 * k) & 15u) * numbers[k];
    }
    out[t.lane()] = sum;
  }
};

}  // namespace composition

template __global__ void pith::device::run_kernel<composition::many_instructions>(__grid_constant__ composition::many_instructions const);
