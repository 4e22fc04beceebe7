// SPDX-License-Identifier: Apache-2.0
// Where memory comes from: an arena is one range of bytes, obtained at set-up and handed out in pieces by a cursor.
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <memory>
#include <span>
#include <type_traits>
#include <utility>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "pith/core/bits.hpp"
#include "pith/core/status.hpp"

namespace pith {

// What the first byte of every arena is aligned to: a cache line, and the widest vector register.
inline constexpr std::int64_t arena_alignment = 64;

// Rule A1  [data(), data() + bytes()) may be read and written for as long as the arena lives; its contents start unspecified.
// Rule A2  data() is a multiple of arena_alignment.
// Rule A3  data() and bytes() never change, and moving the arena does not move the memory.
// Rule A4  zero bytes are legal; data() may then be null.
template <class A>
concept arena = std::is_nothrow_move_constructible_v<A> && requires(A const& a) {
  { a.data() } noexcept -> std::same_as<std::byte*>;
  { a.bytes() } noexcept -> std::same_as<std::int64_t>;
};

// Memory of its own, freed on destruction. From 4 MiB on it is aligned to 2 MiB and, on Linux, asks for huge pages; the kernel may
// decline, which costs address translations and nothing else.
class heap_arena {
 public:
  static constexpr std::int64_t page_bytes = 4096, huge_page_bytes = std::int64_t{2} << 20, huge_from_bytes = std::int64_t{4} << 20;

  // errors  out_of_range   bytes < 0
  //         out_of_memory  the system has no such range; `at` is bytes in both cases
  // cost    one allocation; the system commits its pages when they are first written
  static result<heap_arena> make(std::int64_t bytes) noexcept {
    if (bytes < 0) return status{errc::out_of_range, bytes};
    if (bytes == 0) return heap_arena(nullptr, 0);
    if (bytes > std::numeric_limits<std::int64_t>::max() - huge_page_bytes) return status{errc::out_of_memory, bytes};
    std::int64_t const alignment = bytes >= huge_from_bytes ? huge_page_bytes : page_bytes;
    auto const whole = static_cast<std::size_t>(round_up(bytes, alignment));  // aligned_alloc wants a multiple of the alignment
    void* const memory = std::aligned_alloc(static_cast<std::size_t>(alignment), whole);
    if (memory == nullptr) return status{errc::out_of_memory, bytes};
#if defined(__linux__)
    if (alignment == huge_page_bytes) static_cast<void>(::madvise(memory, whole, MADV_HUGEPAGE));
#endif
    return heap_arena(static_cast<std::byte*>(memory), bytes);
  }

  heap_arena(heap_arena&& other) noexcept : memory_(std::move(other.memory_)), bytes_(std::exchange(other.bytes_, 0)) {}
  heap_arena& operator=(heap_arena&& other) noexcept {
    memory_ = std::move(other.memory_);
    bytes_ = std::exchange(other.bytes_, 0);
    return *this;
  }

  std::byte* data() const noexcept { return memory_.get(); }
  std::int64_t bytes() const noexcept { return bytes_; }

 private:
  struct free_memory {
    void operator()(std::byte* memory) const noexcept { std::free(memory); }
  };

  heap_arena(std::byte* memory, std::int64_t bytes) noexcept : memory_(memory), bytes_(bytes) {}

  std::unique_ptr<std::byte, free_memory> memory_;
  std::int64_t bytes_;
};
static_assert(arena<heap_arena> && !std::is_copy_constructible_v<heap_arena>);

// The caller's memory, which must outlive the arena. Nothing is freed.
class borrowed_arena {
 public:
  // errors  misaligned  the address is not a multiple of arena_alignment; `at` is what it exceeds one by
  static result<borrowed_arena> make(std::span<std::byte> memory) noexcept {
    auto const past = static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(memory.data()) % arena_alignment);
    if (past != 0) return status{errc::misaligned, past};
    return borrowed_arena(memory);
  }

  std::byte* data() const noexcept { return memory_.data(); }
  std::int64_t bytes() const noexcept { return static_cast<std::int64_t>(memory_.size()); }

 private:
  explicit borrowed_arena(std::span<std::byte> memory) noexcept : memory_(memory) {}

  std::span<std::byte> memory_;
};
static_assert(arena<borrowed_arena>);

// Hands out an arena from its start to its end, once, at set-up. One thread.
class arena_cursor {
 public:
  template <arena Arena>
  explicit arena_cursor(Arena const& from) noexcept : next_(from.data()), remaining_bytes_(from.bytes()) {}

  // The next `bytes` bytes at an address that is a multiple of `alignment`, a power of two.
  //
  // errors  out_of_range       bytes < 0; `at` is bytes
  //         misaligned         alignment is not a power of two; `at` is alignment
  //         capacity_exceeded  no room, padding included; `at` is bytes and nothing was carved
  result<std::byte*> carve(std::int64_t bytes, std::int64_t alignment = arena_alignment) noexcept {
    if (bytes < 0) return status{errc::out_of_range, bytes};
    if (alignment <= 0 || (alignment & (alignment - 1)) != 0) return status{errc::misaligned, alignment};
    auto const address = reinterpret_cast<std::uintptr_t>(next_);
    auto const padding = static_cast<std::int64_t>((0 - address) & (static_cast<std::uintptr_t>(alignment) - 1));
    if (padding > remaining_bytes_ || bytes > remaining_bytes_ - padding) return status{errc::capacity_exceeded, bytes};
    std::byte* const carved = next_ + padding;
    next_ = carved + bytes;
    remaining_bytes_ -= padding + bytes;
    return carved;
  }

  std::int64_t remaining_bytes() const noexcept { return remaining_bytes_; }

 private:
  std::byte* next_;
  std::int64_t remaining_bytes_;
};

}  // namespace pith
