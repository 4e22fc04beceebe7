// SPDX-License-Identifier: Apache-2.0
// The environment of environment.hpp on a real device: a stream, scratch memory, a status word. Nothing here waits for the device but
// read_status; launch and copy may be recorded in a graph.
#pragma once

#include <cuda_runtime.h>

#include <atomic>
#include <limits>
#include <span>
#include <type_traits>
#include <utility>

#include "pith/cuda/device_thread.cuh"
#include "pith/cuda/environment.hpp"
#include "pith/cuda/memory.cuh"

namespace pith {
namespace device {

// Blocks that an SM should hold at once: what the compiler divides the registers by.
template <class Kernel>
inline constexpr int min_blocks_of = 1;
template <class Kernel>
requires requires { Kernel::min_blocks; }
inline constexpr int min_blocks_of<Kernel> = Kernel::min_blocks;

// The only __global__ function. The kernel object lies in constant memory, where all lanes read it at once.
template <class Kernel>
__global__ void __launch_bounds__(Kernel::threads, min_blocks_of<Kernel>) run_kernel(__grid_constant__ Kernel const kernel) {
  device_thread thread;
  kernel(thread);
}

// The first broken rule speaks alone; true if there is none.
template <class Kernel>
consteval bool check_kernel() {
  constexpr bool is_bytes = std::is_trivially_copyable_v<Kernel>;
  if constexpr (!is_bytes) {
    static_assert(is_bytes,
                  "[pith] launch(kernel, grid): a kernel is copied to the device as bytes. Fix: members that are pointers and numbers.");
    return false;
  } else if constexpr (!requires { Kernel::threads; }) {
    static_assert(!is_bytes,
                  "[pith] launch(kernel, grid): a kernel says how many threads a block has. Fix: static constexpr int threads = 128;");
    return false;
  } else {
    constexpr bool whole_warps = Kernel::threads > 0 && Kernel::threads <= 1024 && Kernel::threads % warp_lanes == 0;
    static_assert(whole_warps,
                  "[pith] launch(kernel, grid): threads is a multiple of 32, at most 1024. Fix: static constexpr int threads = 128;");
    return whole_warps;
  }
}

}  // namespace device

// Of one device, the one that is current in make and in every call; the stream must outlive it. One thread at a time, as the stream.
class cuda_environment {
 public:
  static constexpr std::int64_t default_scratch_bytes = std::int64_t{8} << 20;

  // errors  out_of_range   scratch_bytes < 0; `at` is it
  //         out_of_memory  misaligned  unsupported  device_error    from the resource (memory.cuh) or the runtime
  // cost    one allocation, one memset in the stream
  static result<cuda_environment> make(cudaStream_t stream, device_memory_resource resource = {},
                                       std::int64_t scratch_bytes = default_scratch_bytes) noexcept {
    if (scratch_bytes < 0 || scratch_bytes > std::numeric_limits<std::int64_t>::max() - device_allocation::alignment)
      return status{errc::out_of_range, scratch_bytes};
    int device = 0, multiprocessors = 0, most_shared = 0;
    if (status const s = device_status(cudaGetDevice(&device)); !s) return s;
    if (status const s = device_status(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device)); !s) return s;
    if (status const s = device_status(cudaDeviceGetAttribute(&most_shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device)); !s) return s;
    auto memory = device_allocation::make(scratch_bytes + device_allocation::alignment, stream, resource);
    if (!memory) return memory.error();
    if (status const s = device_status(cudaMemsetAsync(memory.value().data(), 0, sizeof(std::uint64_t), stream)); !s) return s;
    return cuda_environment(stream, std::move(memory).value(), device, multiprocessors, most_shared);
  }

  cuda_environment(cuda_environment&&) noexcept;

  // Starts `kernel` in the stream.
  //
  // errors  out_of_range  an extent of the grid that is not positive or more than the device takes (2^31 - 1, 65535, 65535), or more shared
  //                       memory than a block may have; `at` is it
  //         device_error  the runtime refused it, or an earlier kernel failed
  template <class Kernel>
  status launch(Kernel const& kernel, device::grid const& grid) const noexcept {
    if constexpr (device::check_kernel<Kernel>()) {
      return launch_checked(kernel, grid);
    } else {
      return {errc::unsupported, 0};
    }
  }

  // errors  out_of_range  bytes < 0; `at` is bytes
  //         device_error
  status copy(std::byte* to, std::byte const* from, std::int64_t bytes) const noexcept {
    if (bytes < 0) return {errc::out_of_range, bytes};
    if (bytes == 0) return {};
    PITH_EXPECTS(is_device_pointer(to) && is_device_pointer(from));
    return device_status(cudaMemcpyAsync(to, from, static_cast<std::size_t>(bytes), cudaMemcpyDeviceToDevice, stream_));
  }

  std::span<std::byte> scratch() const noexcept {
    return {memory_.data() + device_allocation::alignment, static_cast<std::size_t>(memory_.bytes() - device_allocation::alignment)};
  }
  std::uint64_t* status_word() const noexcept { return reinterpret_cast<std::uint64_t*>(memory_.data()); }
  int multiprocessors() const noexcept { return multiprocessors_; }
  cudaStream_t stream() const noexcept { return stream_; }

 private:
  static constexpr std::int64_t unasked_shared_bytes = 48 << 10;

  cuda_environment(cudaStream_t stream, device_allocation memory, int device, int multiprocessors, int most_shared) noexcept
      : stream_(stream), memory_(std::move(memory)), device_(device), multiprocessors_(multiprocessors), most_shared_(most_shared) {}

  template <class Kernel>
  status launch_checked(Kernel const& kernel, device::grid const& grid) const noexcept {
    if (grid.x <= 0 || grid.x > 0x7fffffff) return {errc::out_of_range, grid.x};
    if (grid.y <= 0 || grid.y > 65535) return {errc::out_of_range, grid.y};
    if (grid.z <= 0 || grid.z > 65535) return {errc::out_of_range, grid.z};
    if (grid.shared_bytes < 0 || grid.shared_bytes > most_shared_) return {errc::out_of_range, grid.shared_bytes};
    if (grid.shared_bytes > unasked_shared_bytes)
      if (status const s = allow_shared<Kernel>(); !s) return s;
    dim3 const blocks(static_cast<unsigned>(grid.x), static_cast<unsigned>(grid.y), static_cast<unsigned>(grid.z));
    void* arguments[] = {const_cast<Kernel*>(&kernel)};
    return device_status(cudaLaunchKernel(reinterpret_cast<void const*>(&device::run_kernel<Kernel>), blocks, dim3(Kernel::threads),
                                          arguments, static_cast<std::size_t>(grid.shared_bytes), stream_));
  }

  // Once for each kernel and device (of more than 64 devices, each time): the limit of the kernel becomes that of the device.
  template <class Kernel>
  status allow_shared() const noexcept {
    static std::atomic<std::uint64_t> allowed{0};
    std::uint64_t const bit = device_ < 64 ? std::uint64_t{1} << device_ : 0;
    if ((allowed.load(std::memory_order_relaxed) & bit) != 0) return {};
    status const s = device_status(cudaFuncSetAttribute(reinterpret_cast<void const*>(&device::run_kernel<Kernel>),
                                                        cudaFuncAttributeMaxDynamicSharedMemorySize, most_shared_));
    if (s) allowed.fetch_or(bit, std::memory_order_relaxed);
    return s;
  }

  cudaStream_t stream_;
  device_allocation memory_;  // the status word, then scratch
  int device_, multiprocessors_, most_shared_;
};
// Defaulted outside the class, which makes it a host function to nvcc.
inline cuda_environment::cuda_environment(cuda_environment&&) noexcept = default;
static_assert(device::environment<cuda_environment>);

// What kernels reported since the last clear. WAITS for everything that was started in the stream before.
//
// errors  what the first kernel to complain said, else device_error where work in the stream failed
inline status read_status(cuda_environment const& env) noexcept {
  std::uint64_t word = 0;
  if (status const s = device_status(cudaMemcpyAsync(&word, env.status_word(), sizeof word, cudaMemcpyDeviceToHost, env.stream())); !s)
    return s;
  if (status const s = device_status(cudaStreamSynchronize(env.stream())); !s) return s;
  return device::unpack_status(word);
}

// Behind what was started before; does not wait.
inline status clear_status(cuda_environment const& env) noexcept {
  return device_status(cudaMemsetAsync(env.status_word(), 0, sizeof(std::uint64_t), env.stream()));
}

}  // namespace pith
