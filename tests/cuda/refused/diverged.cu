// SPDX-License-Identifier: Apache-2.0
// A loop with shuffles whose length is read from memory: the compiler cannot know that it is the same in all lanes.
#include "pith/cuda/environment.cuh"

namespace composition {

struct diverged {
  static constexpr int threads = 128;
  int const* lengths;
  float* numbers;

  template <pith::device::device_like Thread>
  PITH_HD void operator()(Thread& t) const {
    float sum = numbers[t.lane()];
    for (int i = lengths[t.lane() % 2]; i > 0; --i) {
      sum += t.shuffle_xor(sum, 1);
      if (t.any(sum > 100)) sum *= numbers[i];
    }
    numbers[t.lane()] = sum;
  }
};

}  // namespace composition

template __global__ void pith::device::run_kernel<composition::diverged>(__grid_constant__ composition::diverged const);
