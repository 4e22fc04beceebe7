// SPDX-License-Identifier: Apache-2.0
// Kernels that launch refuses with a message; WRONG says which.
#include <memory>

#include "pith/cuda/environment.cuh"

#if WRONG == 1
struct kernel {
  static constexpr int threads = 128;
  std::unique_ptr<int> owned;
#elif WRONG == 2
struct kernel {
#else
struct kernel {
  static constexpr int threads = 100;
#endif
  template <pith::device::device_like Thread>
  PITH_HD void operator()(Thread&) const {}
};

pith::status run(pith::cuda_environment const& env) { return env.launch(kernel{}, {1}); }
