// SPDX-License-Identifier: Apache-2.0
// What host code of this backend needs from a device, in one argument: a stream in order, scratch memory, a word for errors.
//
//   env.launch(kernel, grid)       starts a kernel (thread.hpp) behind everything that was started before; never waits
//   env.copy(to, from, bytes)      device memory to device memory, in the same order
//   env.scratch()                  device memory that one call may use from start to end; a later call in the stream uses the same bytes
//   env.status_word()              device memory; kernels set it once (device_error), the caller reads it when it likes
//   env.multiprocessors()
//
// The real one is environment.cuh's cuda_environment; the tests have one that runs kernels on the host.
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>

#include "pith/core/status.hpp"

namespace pith {

struct cuda {};  // the backend

namespace device {

struct grid {
  std::int64_t x = 1, y = 1, z = 1;
  std::int64_t shared_bytes = 0;
};

template <class E>
concept environment = requires(E const& env, std::byte* to, std::byte const* from) {
  { env.copy(to, from, std::int64_t{}) } -> std::same_as<status>;
  { env.scratch() } -> std::same_as<std::span<std::byte>>;
  { env.status_word() } -> std::same_as<std::uint64_t*>;
  { env.multiprocessors() } -> std::same_as<int>;
};

// A status in one word: 0 is ok, else the code in the upper 8 bits and `at` below (its lower 56 bits).
PITH_HD constexpr std::uint64_t pack_status(status const& s) noexcept {
  return static_cast<std::uint64_t>(s.code) << 56 | (static_cast<std::uint64_t>(s.at) & 0x00ffffffffffffffull);
}
constexpr status unpack_status(std::uint64_t word) noexcept {
  return {static_cast<errc>(word >> 56), static_cast<std::int64_t>(word << 8) >> 8};
}

}  // namespace device
}  // namespace pith
