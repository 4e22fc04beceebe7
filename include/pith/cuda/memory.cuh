// SPDX-License-Identifier: Apache-2.0
// Device memory from wherever the program takes it, and what the runtime says as a status.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "pith/core/status.hpp"

namespace pith {

// out_of_memory and unsupported with `at`; everything else is device_error, and then `at` is the runtime's number of the error. Takes the
// error back where that is possible, so that the program's own next check does not find it.
inline status device_status(cudaError_t error, std::int64_t at = 0) noexcept {
  if (error == cudaSuccess) return {};
  static_cast<void>(cudaGetLastError());
  if (error == cudaErrorMemoryAllocation) return {errc::out_of_memory, at};
  if (error == cudaErrorNotSupported) return {errc::unsupported, at};
  return {errc::device_error, static_cast<std::int64_t>(error)};
}

// Two functions and what they work on, which must outlive whatever was allocated. A program with an allocator of its own gives these:
//
//   cudaError_t take(void* pool, void** to, std::size_t bytes, cudaStream_t stream) {
//     *to = static_cast<rmm::mr::device_memory_resource*>(pool)->allocate(bytes, stream);
//     return cudaSuccess;
//   }
//   device_memory_resource{&pool, take, give}
//
// Memory may be used by work in the stream behind allocate, and until deallocate's place in it; addresses are multiples of 256. The default
// is the runtime's stream-ordered pool: giving back waits for nothing and is safe behind kernels that still run.
struct device_memory_resource {
  static cudaError_t take(void*, void** to, std::size_t bytes, cudaStream_t stream) noexcept { return cudaMallocAsync(to, bytes, stream); }
  static void give(void*, void* memory, std::size_t, cudaStream_t stream) noexcept { static_cast<void>(cudaFreeAsync(memory, stream)); }
  static cudaError_t take_plain(void*, void** to, std::size_t bytes, cudaStream_t) noexcept { return cudaMalloc(to, bytes); }
  static void give_plain(void*, void* memory, std::size_t, cudaStream_t) noexcept { static_cast<void>(cudaFree(memory)); }

  void* context = nullptr;
  cudaError_t (*allocate)(void* context, void** to, std::size_t bytes, cudaStream_t stream) = take;
  void (*deallocate)(void* context, void* memory, std::size_t bytes, cudaStream_t stream) = give;
};

// cudaMalloc and cudaFree: memory for every stream, at once. Giving back waits for the whole device.
inline device_memory_resource plain_device_memory() noexcept {
  return {nullptr, device_memory_resource::take_plain, device_memory_resource::give_plain};
}

// An allocation that is given back where it came from.
class device_allocation {
 public:
  static constexpr std::int64_t alignment = 256;

  // errors  out_of_range   bytes < 0; `at` is bytes
  //         out_of_memory  `at` is bytes
  //         misaligned     the resource's address; `at` is what it exceeds a multiple of 256 by
  //         unsupported    the device has no such allocator; `at` is bytes
  //         device_error
  static result<device_allocation> make(std::int64_t bytes, cudaStream_t stream, device_memory_resource const& resource) noexcept {
    if (bytes < 0) return status{errc::out_of_range, bytes};
    if (bytes == 0) return device_allocation(nullptr, 0, stream, resource);
    void* memory = nullptr;
    if (status const s = device_status(resource.allocate(resource.context, &memory, static_cast<std::size_t>(bytes), stream), bytes); !s)
      return s;
    if (memory == nullptr) return status{errc::out_of_memory, bytes};
    auto const past = static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(memory) % alignment);
    if (past == 0) return device_allocation(static_cast<std::byte*>(memory), bytes, stream, resource);
    resource.deallocate(resource.context, memory, static_cast<std::size_t>(bytes), stream);
    return status{errc::misaligned, past};
  }

  device_allocation(device_allocation&& other) noexcept
      : data_(other.data_), bytes_(other.bytes_), stream_(other.stream_), resource_(other.resource_) {
    other.data_ = nullptr;
    other.bytes_ = 0;
  }
  device_allocation& operator=(device_allocation&&) = delete;
  ~device_allocation() {
    if (data_ != nullptr) resource_.deallocate(resource_.context, data_, static_cast<std::size_t>(bytes_), stream_);
  }

  std::byte* data() const noexcept { return data_; }
  std::int64_t bytes() const noexcept { return bytes_; }

 private:
  device_allocation(std::byte* data, std::int64_t bytes, cudaStream_t stream, device_memory_resource const& resource) noexcept
      : data_(data), bytes_(bytes), stream_(stream), resource_(resource) {}

  std::byte* data_;
  std::int64_t bytes_;
  cudaStream_t stream_;
  device_memory_resource resource_;
};

// Whether the device may use an address: its own memory, or memory that both sides see. Slow; for preconditions.
inline bool is_device_pointer(void const* at) noexcept {
  cudaPointerAttributes attributes{};
  if (cudaPointerGetAttributes(&attributes, at) != cudaSuccess) {
    static_cast<void>(cudaGetLastError());
    return false;
  }
  return attributes.type == cudaMemoryTypeDevice || attributes.type == cudaMemoryTypeManaged;
}

}  // namespace pith
