// SPDX-License-Identifier: Apache-2.0
// A device environment whose device is the host: kernels run at once, in the emulator.
#pragma once

#include <cstring>
#include <vector>

#include "pith/cuda/environment.hpp"
#include "tests/cuda/emulator.hpp"

namespace pith_test {

class emulated_environment {
 public:
  explicit emulated_environment(std::int64_t scratch_bytes = 8 << 20, int multiprocessors = 2)
      : storage_(static_cast<std::size_t>(scratch_bytes + 128)), multiprocessors_(multiprocessors) {}

  // Blocks run in an order that changes from launch to launch: none may wait for another.
  template <class Kernel>
  pith::status launch(Kernel const& kernel, pith::device::grid const& grid) const {
    if (grid.x <= 0 || grid.y <= 0 || grid.z <= 0) return {pith::errc::out_of_range, grid.x};
    std::uint64_t const seed = ++launches_;
    emulated_block block(Kernel::threads, grid.shared_bytes);
    std::int64_t const all = grid.x * grid.y * grid.z;
    for (std::int64_t i = 0; i < all; ++i) {
      std::int64_t const at = seed % 2 != 0 ? i : all - 1 - i;
      block.run(kernel, at % grid.x, at / grid.x % grid.y, at / grid.x / grid.y, seed + static_cast<std::uint64_t>(i) * 7);
    }
    return {};
  }
  pith::status copy(std::byte* to, std::byte const* from, std::int64_t bytes) const {
    std::memmove(to, from, static_cast<std::size_t>(bytes));
    return {};
  }
  std::span<std::byte> scratch() const {
    auto const first = reinterpret_cast<std::uintptr_t>(storage_.data()), aligned = (first + 127) / 128 * 128;
    std::size_t const bytes = (storage_.size() - 128) / 128 * 128;
    auto* const data = reinterpret_cast<std::byte*>(aligned);
    std::memset(data, 0xff, bytes);  // nothing of an earlier call may matter
    return {data, bytes};
  }
  std::uint64_t* status_word() const { return &status_; }
  pith::status status() const { return pith::device::unpack_status(status_); }
  int multiprocessors() const { return multiprocessors_; }

 private:
  mutable std::vector<std::byte> storage_;
  mutable std::uint64_t status_ = 0, launches_ = 0;
  int multiprocessors_;
};
static_assert(pith::device::environment<emulated_environment>);

}  // namespace pith_test
