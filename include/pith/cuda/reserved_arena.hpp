// SPDX-License-Identifier: Apache-2.0
// An arena that grows and shrinks at its end and never moves: a range of addresses is reserved once, and memory is put behind its first
// bytes() bytes, in steps. Tables, kernels and recorded graphs that hold addresses into it stay valid.
//
//   [data(), data() + bytes())                       may be used                  bytes() is a multiple of step_bytes()
//   [data() + bytes(), data() + reserved_bytes())    addresses without memory     a kernel that touches them fails
//
// The driver is a type, so that the tests drive all of this without a device; arena.cuh has the real one.
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <type_traits>
#include <utility>

#include "pith/core/bits.hpp"
#include "pith/core/status.hpp"
#include "pith/page/arena.hpp"

namespace pith {

// What the arena asks of a device's virtual memory. Addresses and sizes are multiples of granularity().
//
//   reserve, free_address     a range of addresses; the whole range is freed at once, when nothing is mapped in it
//   create, release           memory behind a handle; it lives until it is released and mapped nowhere
//   map, unmap                puts a handle's memory behind addresses; what was mapped by one call is unmapped by one call
//   set_access                makes mapped addresses readable and writable
template <class D>
concept address_driver = std::is_nothrow_move_constructible_v<D> &&
    requires(D& d, std::byte* at, std::int64_t bytes, typename D::handle memory) {
  { d.granularity() }
  noexcept->std::same_as<result<std::int64_t>>;
  { d.reserve(bytes) }
  noexcept->std::same_as<result<std::byte*>>;
  { d.create(bytes) }
  noexcept->std::same_as<result<typename D::handle>>;
  { d.map(at, bytes, memory) }
  noexcept->std::same_as<status>;
  { d.set_access(at, bytes) }
  noexcept->std::same_as<status>;
  { d.unmap(at, bytes) }
  noexcept->std::same_as<status>;
  { d.release(memory) }
  noexcept->std::same_as<status>;
  { d.free_address(at, bytes) }
  noexcept->std::same_as<status>;
};

// An arena (page/arena.hpp) whose bytes() changes in grow and shrink alone: what was carved from it stays where it is. One thread.
template <address_driver Driver>
class basic_reserved_arena {
 public:
  // Reserves addresses for `most_bytes`, rounded up to steps, and no memory. step_bytes is rounded up to the driver's granularity.
  //
  // errors  out_of_range  most_bytes < 0 or step_bytes < 0 (`at` is it), or too large to round (`at` is most_bytes)
  //         misaligned    the driver gave an address that is no multiple of arena_alignment
  //         the driver's own
  static result<basic_reserved_arena> make(Driver driver, std::int64_t most_bytes, std::int64_t step_bytes) noexcept {
    if (most_bytes < 0) return status{errc::out_of_range, most_bytes};
    if (step_bytes < 0) return status{errc::out_of_range, step_bytes};
    auto const granularity = driver.granularity();
    if (!granularity) return granularity.error();
    if (granularity.value() <= 0) return status{errc::unsupported, granularity.value()};
    constexpr std::int64_t most = std::numeric_limits<std::int64_t>::max() / 4;
    if (most_bytes > most || step_bytes > most || granularity.value() > most) return status{errc::out_of_range, most_bytes};
    std::int64_t const step = round_up(step_bytes > 0 ? step_bytes : 1, granularity.value());
    std::int64_t const reserved = round_up(most_bytes, step);
    if (reserved == 0) return basic_reserved_arena(std::move(driver), nullptr, 0, step);
    auto const data = driver.reserve(reserved);
    if (!data) return data.error();
    if (auto const past = static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(data.value()) % arena_alignment); past != 0) {
      static_cast<void>(driver.free_address(data.value(), reserved));
      return status{errc::misaligned, past};
    }
    return basic_reserved_arena(std::move(driver), data.value(), reserved, step);
  }

  basic_reserved_arena(basic_reserved_arena&& other) noexcept
      : driver_(std::move(other.driver_)),
        data_(std::exchange(other.data_, nullptr)),
        reserved_(std::exchange(other.reserved_, 0)),
        step_(other.step_),
        usable_(std::exchange(other.usable_, 0)),
        mapped_(std::exchange(other.mapped_, 0)) {}
  basic_reserved_arena& operator=(basic_reserved_arena&&) = delete;
  ~basic_reserved_arena() {
    // Addresses with memory behind them cannot be freed: should the driver refuse to unmap, both are left to the end of the process.
    if (data_ != nullptr && unmap_down_to(0)) static_cast<void>(driver_.free_address(data_, reserved_));
  }

  std::byte* data() const noexcept { return data_; }
  std::int64_t bytes() const noexcept { return usable_; }
  std::int64_t reserved_bytes() const noexcept { return reserved_; }
  std::int64_t step_bytes() const noexcept { return step_; }

  // Puts memory behind the first `bytes` bytes, rounded up to steps; never takes any away. Contents stay, and new ones are unspecified.
  //
  // errors  out_of_range       bytes < 0; `at` is bytes
  //         capacity_exceeded  more than is reserved; `at` is bytes
  //         the driver's own, and then bytes() is what it was
  // cost    each step is a create, a map and a release, then one set_access; on the host, tens of microseconds a step. Kernels run on
  status grow(std::int64_t bytes) noexcept {
    if (bytes < 0) return {errc::out_of_range, bytes};
    if (bytes > reserved_) return {errc::capacity_exceeded, bytes};
    std::int64_t const wanted = round_up(bytes, step_);
    if (wanted <= usable_) return {};
    if (status const s = unmap_down_to(usable_); !s) return s;  // what a failed call had to leave
    while (mapped_ < wanted)
      if (status const s = map_step(); !s) return undo(s);
    if (status const s = driver_.set_access(data_ + usable_, wanted - usable_); !s) return undo(s);
    usable_ = wanted;
    return {};
  }

  // Gives back the memory behind all but the first `bytes` bytes, rounded up to steps. The caller waits first: nothing on the device may
  // still use it.
  //
  // errors  out_of_range  bytes < 0; `at` is bytes
  //         the driver's own; bytes() then says what is left
  status shrink(std::int64_t bytes) noexcept {
    if (bytes < 0) return {errc::out_of_range, bytes};
    if (bytes >= usable_) return {};
    return unmap_down_to(round_up(bytes, step_));
  }

 private:
  basic_reserved_arena(Driver driver, std::byte* data, std::int64_t reserved, std::int64_t step) noexcept
      : driver_(std::move(driver)), data_(data), reserved_(reserved), step_(step) {}

  // The handle is released as soon as it is mapped: the mapping keeps the memory, so unmapping frees it and no handles need be kept.
  status map_step() noexcept {
    auto const memory = driver_.create(step_);
    if (!memory) return memory.error();
    status const mapped = driver_.map(data_ + mapped_, step_, memory.value());
    if (mapped) mapped_ += step_;
    status const released = driver_.release(memory.value());
    if (!released) static_cast<void>(driver_.release(memory.value()));
    return mapped ? released : mapped;
  }

  status undo(status const& why) noexcept {
    static_cast<void>(unmap_down_to(usable_));  // what cannot be unmapped now is by the next call
    return why;
  }

  status unmap_down_to(std::int64_t bytes) noexcept {
    while (mapped_ > bytes) {
      if (status const s = driver_.unmap(data_ + mapped_ - step_, step_); !s) return s;
      mapped_ -= step_;
      usable_ = usable_ < mapped_ ? usable_ : mapped_;
    }
    return {};
  }

  [[no_unique_address]] Driver driver_;
  std::byte* data_;
  std::int64_t reserved_, step_;
  std::int64_t usable_ = 0;
  std::int64_t mapped_ = 0;  // >= usable_; more only while growing and after a rollback that the driver refused
};

}  // namespace pith
