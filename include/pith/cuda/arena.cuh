// SPDX-License-Identifier: Apache-2.0
// Arenas (page/arena.hpp) of device memory: one allocation, or a reserved range that grows. page/pool.hpp cuts either into blocks: it never
// touches the memory.
//
// A block that is released may still be read by a kernel that was started before. Released blocks are handed out again at once, so: work
// that writes a reused block goes into the same stream as the work that read it, or into one that waits for it (cudaStreamWaitEvent). A
// sequence that is closed while another stream reads it is the caller's to wait for.
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <utility>

#include "pith/cuda/memory.cuh"
#include "pith/cuda/reserved_arena.hpp"

namespace pith {

// Memory for every stream, obtained once and freed on destruction.
class device_arena {
 public:
  // errors  as device_allocation::make
  static result<device_arena> make(std::int64_t bytes, device_memory_resource const& resource = plain_device_memory(),
                                   cudaStream_t stream = nullptr) noexcept {
    auto memory = device_allocation::make(bytes, stream, resource);
    if (!memory) return memory.error();
    return device_arena(std::move(memory).value());
  }

  device_arena(device_arena&&) noexcept;

  std::byte* data() const noexcept { return memory_.data(); }
  std::int64_t bytes() const noexcept { return memory_.bytes(); }

 private:
  explicit device_arena(device_allocation memory) noexcept : memory_(std::move(memory)) {}

  device_allocation memory_;
};
// Defaulted outside the class, which makes it a host function to nvcc.
inline device_arena::device_arena(device_arena&&) noexcept = default;
static_assert(arena<device_arena>);

// The driver's virtual memory calls, of the device that is current in make. They are asked for by name: nothing links to libcuda.
class cuda_addresses {
 public:
  using handle = CUmemGenericAllocationHandle;

  // errors  unsupported   the driver or the device has no virtual memory calls
  //         device_error
  static result<cuda_addresses> make() noexcept {
    cuda_addresses d;
    int supported = 0, current = 0;
    // The driver's context exists only after the runtime's first call that needs it.
    if (status const s = device_status(cudaFree(nullptr)); !s) return s;
    if (status const s = device_status(cudaGetDevice(&current)); !s) return s;
    bool const found = find("cuDeviceGet", d.get_device_) && find("cuDeviceGetAttribute", d.get_attribute_) &&
                       find("cuMemGetAllocationGranularity", d.get_granularity_) && find("cuMemAddressReserve", d.reserve_) &&
                       find("cuMemAddressFree", d.free_) && find("cuMemCreate", d.create_) && find("cuMemRelease", d.release_) &&
                       find("cuMemMap", d.map_) && find("cuMemUnmap", d.unmap_) && find("cuMemSetAccess", d.set_access_);
    if (!found) return status{errc::unsupported, 0};
    CUdevice device = 0;
    if (status const s = said(d.get_device_(&device, current)); !s) return s;
    if (status const s = said(d.get_attribute_(&supported, CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED, device)); !s) return s;
    if (supported == 0) return status{errc::unsupported, current};
    d.properties_.type = CU_MEM_ALLOCATION_TYPE_PINNED;
    d.properties_.location = {CU_MEM_LOCATION_TYPE_DEVICE, current};
    return d;
  }

  result<std::int64_t> granularity() noexcept {
    std::size_t bytes = 0;
    if (status const s = said(get_granularity_(&bytes, &properties_, CU_MEM_ALLOC_GRANULARITY_RECOMMENDED)); !s) return s;
    return static_cast<std::int64_t>(bytes);
  }
  result<std::byte*> reserve(std::int64_t bytes) noexcept {
    CUdeviceptr at = 0;
    if (status const s = said(reserve_(&at, static_cast<std::size_t>(bytes), 0, 0, 0), bytes); !s) return s;
    return reinterpret_cast<std::byte*>(at);
  }
  result<handle> create(std::int64_t bytes) noexcept {
    handle memory = 0;
    if (status const s = said(create_(&memory, static_cast<std::size_t>(bytes), &properties_, 0), bytes); !s) return s;
    return memory;
  }
  status map(std::byte* at, std::int64_t bytes, handle memory) noexcept {
    return said(map_(number(at), static_cast<std::size_t>(bytes), 0, memory, 0), bytes);
  }
  status set_access(std::byte* at, std::int64_t bytes) noexcept {
    CUmemAccessDesc const access{properties_.location, CU_MEM_ACCESS_FLAGS_PROT_READWRITE};
    return said(set_access_(number(at), static_cast<std::size_t>(bytes), &access, 1), bytes);
  }
  status unmap(std::byte* at, std::int64_t bytes) noexcept { return said(unmap_(number(at), static_cast<std::size_t>(bytes)), bytes); }
  status release(handle memory) noexcept { return said(release_(memory)); }
  status free_address(std::byte* at, std::int64_t bytes) noexcept {
    return said(free_(number(at), static_cast<std::size_t>(bytes)), bytes);
  }

 private:
  static CUdeviceptr number(std::byte* at) noexcept { return static_cast<CUdeviceptr>(reinterpret_cast<std::uintptr_t>(at)); }
  static status said(CUresult result, std::int64_t at = 0) noexcept {
    if (result == CUDA_SUCCESS) return {};
    if (result == CUDA_ERROR_OUT_OF_MEMORY) return {errc::out_of_memory, at};
    if (result == CUDA_ERROR_NOT_SUPPORTED) return {errc::unsupported, at};
    return {errc::device_error, static_cast<std::int64_t>(result)};
  }
  template <class Function>
  static bool find(char const* name, Function*& to) noexcept {
    void* found = nullptr;
    cudaDriverEntryPointQueryResult answer{};
#if CUDART_VERSION >= 12050
    cudaError_t const error = cudaGetDriverEntryPointByVersion(name, &found, 12000, cudaEnableDefault, &answer);
#else
    cudaError_t const error = cudaGetDriverEntryPoint(name, &found, cudaEnableDefault, &answer);
#endif
    if (error != cudaSuccess) static_cast<void>(cudaGetLastError());
    to = reinterpret_cast<Function*>(found);
    return error == cudaSuccess && answer == cudaDriverEntryPointSuccess && found != nullptr;
  }

  decltype(cuDeviceGet)* get_device_ = nullptr;
  decltype(cuDeviceGetAttribute)* get_attribute_ = nullptr;
  decltype(cuMemGetAllocationGranularity)* get_granularity_ = nullptr;
  decltype(cuMemAddressReserve)* reserve_ = nullptr;
  decltype(cuMemAddressFree)* free_ = nullptr;
  decltype(cuMemCreate)* create_ = nullptr;
  decltype(cuMemRelease)* release_ = nullptr;
  decltype(cuMemMap)* map_ = nullptr;
  decltype(cuMemUnmap)* unmap_ = nullptr;
  decltype(cuMemSetAccess)* set_access_ = nullptr;
  CUmemAllocationProp properties_{};
};

// Grows and shrinks at its end, in steps, at addresses that never change (reserved_arena.hpp). Not to be grown while a graph is recorded.
using reserved_arena = basic_reserved_arena<cuda_addresses>;
static_assert(arena<reserved_arena>);

// 32 MiB a step: sixteen of the device's 2 MiB pages, so that growing a cache by gigabytes is tens of calls.
//
// errors  as cuda_addresses::make and basic_reserved_arena::make
inline result<reserved_arena> make_reserved_arena(std::int64_t most_bytes, std::int64_t step_bytes = std::int64_t{32} << 20) noexcept {
  auto driver = cuda_addresses::make();
  if (!driver) return driver.error();
  return reserved_arena::make(driver.value(), most_bytes, step_bytes);
}

}  // namespace pith
