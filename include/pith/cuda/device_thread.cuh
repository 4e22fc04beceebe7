// SPDX-License-Identifier: Apache-2.0
// The thread of thread.hpp on the device: one instruction for each call. Needs sm_80.
#pragma once

#include "pith/cuda/thread.hpp"

namespace pith::device {

// Members are host functions too, so that kernels may be; their bodies exist on the device only.
#if defined(__CUDA_ARCH__)
#define PITH_ON_DEVICE(...) __VA_ARGS__
#else
#define PITH_ON_DEVICE(...) __builtin_unreachable();
#endif

class device_thread {
  static constexpr unsigned everyone = 0xffffffffu;

 public:
  // The warp's number comes from a shuffle: only then does the compiler know that it is the same in all lanes, and leaves out the code that
  // would gather diverged lanes before each collective call.
  PITH_HD device_thread() { PITH_ON_DEVICE(warp_ = __shfl_sync(everyone, static_cast<int>(threadIdx.x) / warp_lanes, 0);) }

  PITH_HD int lane() const { PITH_ON_DEVICE(return static_cast<int>(threadIdx.x % warp_lanes);) }
  PITH_HD int warp() const { return warp_; }
  PITH_HD std::int64_t block_x() const { PITH_ON_DEVICE(return blockIdx.x;) }
  PITH_HD std::int64_t block_y() const { PITH_ON_DEVICE(return blockIdx.y;) }
  PITH_HD std::int64_t block_z() const { PITH_ON_DEVICE(return blockIdx.z;) }
  PITH_HD std::byte* shared() const {
#if defined(__CUDA_ARCH__)
    extern __shared__ __align__(128) std::byte pith_shared[];
    return pith_shared;
#else
    return nullptr;
#endif
  }

  PITH_HD void sync() const { PITH_ON_DEVICE(__syncthreads();) }
  PITH_HD void sync_warp() const { PITH_ON_DEVICE(__syncwarp();) }
  template <class T>
  PITH_HD T shuffle([[maybe_unused]] T x, [[maybe_unused]] int lane) const {
    PITH_ON_DEVICE(return __shfl_sync(everyone, x, lane);)
  }
  template <class T>
  PITH_HD T shuffle_xor([[maybe_unused]] T x, [[maybe_unused]] int mask) const {
    PITH_ON_DEVICE(return __shfl_xor_sync(everyone, x, mask);)
  }
  PITH_HD bool any([[maybe_unused]] bool condition) const { PITH_ON_DEVICE(return __any_sync(everyone, condition);) }
  PITH_HD std::uint32_t ballot([[maybe_unused]] bool condition) const { PITH_ON_DEVICE(return __ballot_sync(everyone, condition);) }
  PITH_HD std::uint32_t transpose([[maybe_unused]] std::uint32_t word) const {
    PITH_ON_DEVICE(std::uint32_t out; asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(out) : "r"(word)); return out;)
  }

  template <class T>
  PITH_HD void multiply(float (&c)[4], std::uint32_t const (&a)[4], std::uint32_t const (&b)[2]) const {
#if defined(__CUDA_ARCH__)
    if constexpr (__is_same(T, bf16))
      asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
          : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
          : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    else
      asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
          : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
          : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    static_cast<void>(c), static_cast<void>(a), static_cast<void>(b);
#endif
  }

  PITH_HD void copy16([[maybe_unused]] std::byte* to, [[maybe_unused]] std::byte const* from) const {
    PITH_ON_DEVICE(asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(in_shared(to)), "l"(__cvta_generic_to_global(from))
                                : "memory");)
  }
  PITH_HD void clear16(std::byte* to) const { store_word(to, word4{}); }
  PITH_HD void commit() const { PITH_ON_DEVICE(asm volatile("cp.async.commit_group;" ::: "memory");) }
  template <int Groups>
  PITH_HD void wait() const {
    PITH_ON_DEVICE(asm volatile("cp.async.wait_group %0;" ::"n"(Groups) : "memory");)
  }

  PITH_HD void store_once([[maybe_unused]] std::uint64_t* word, [[maybe_unused]] std::uint64_t value) const {
    PITH_ON_DEVICE(atomicCAS(reinterpret_cast<unsigned long long*>(word), 0ull, static_cast<unsigned long long>(value));)
  }

 private:
#if defined(__CUDA_ARCH__)
  __device__ static std::uint32_t in_shared(void const* at) { return static_cast<std::uint32_t>(__cvta_generic_to_shared(at)); }
#endif
  int warp_ = 0;
};

#undef PITH_ON_DEVICE

}  // namespace pith::device
