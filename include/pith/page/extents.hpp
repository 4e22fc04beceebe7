// SPDX-License-Identifier: Apache-2.0
// A heap of extents over the caller's memory: any number of bytes up to a limit, in granules of 64 bytes.
//
//   allocate   cuts the smallest free extent that is large enough, at its front or at its back
//   release    joins an extent with its free neighbours at once: no two free ones ever touch
//
// There is a list of the free extents of each size, and a last one of those that are as large as any request. A bit says whether a list has
// any, another whether a granule is free. What a free extent is stands in its own bytes:
//
//   | next, u32 | previous, u32 | granules, u32 | ... | granules, u32 |        the last one is for the extent behind it
//
// Large pieces cut at the front and small ones at the back stay apart for as long as there is room between them.
// from   Knuth, The Art of Computer Programming 1, section 2.5 (boundary tags, best fit)
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <new>
#include <type_traits>
#include <utility>

#include "pith/page/pool.hpp"

namespace pith {

// Thread-safe, except for moving. The memory must outlive the heap; the bytes of free extents are the heap's own.
class extent_heap {
 public:
  static constexpr std::int64_t granule = 64;
  static constexpr std::int64_t max_granules = 0xfffffffe;  // the last 32-bit numbers are none
  enum class end : std::uint8_t { front, back };

  // Of bytes / granule granules, for requests of at most `largest` bytes.
  //
  // errors  misaligned     memory is not a multiple of a granule; `at` is what it exceeds one by
  //         out_of_range   bytes < 0 or more than max_granules, or largest not in 1..2^31; `at` is the one that is wrong
  //         out_of_memory  for the bits and lists; `at` is their bytes
  // cost    a bit for each granule, 4 bytes for each size; allocated here and nowhere else
  static result<extent_heap> make(std::byte* memory, std::int64_t bytes, std::int64_t largest) noexcept {
    auto const past = static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(memory) % granule);
    if (past != 0) return status{errc::misaligned, past};
    if (bytes < 0 || bytes / granule > max_granules) return status{errc::out_of_range, bytes};
    if (largest < 1 || largest > std::int64_t{1} << 31) return status{errc::out_of_range, largest};
    std::int64_t const granules = bytes / granule, sizes = divide_up(largest, granule);
    std::int64_t const words = divide_up(granules, 64), list_words = sizes / 64 + 1;
    std::unique_ptr<std::uint64_t[]> bits(new (std::nothrow) std::uint64_t[static_cast<std::size_t>(words + list_words)]());
    std::unique_ptr<std::uint32_t[]> lists(new (std::nothrow) std::uint32_t[static_cast<std::size_t>(sizes + 1)]);
    if (bits == nullptr || lists == nullptr) return status{errc::out_of_memory, 8 * (words + list_words) + 4 * (sizes + 1)};
    return extent_heap(memory, static_cast<std::uint32_t>(granules), static_cast<std::uint32_t>(sizes), std::move(bits), std::move(lists));
  }

  extent_heap(extent_heap&&) noexcept;

  // An extent of `bytes` bytes, rounded up to granules; its address is a multiple of one.
  //
  // errors  out_of_range       bytes not in 1..largest; `at` is bytes
  //         capacity_exceeded  no free extent is large enough; `at` is bytes and nothing was changed
  // cost    one bit for each 64 sizes, and what 64 granules each take
  result<std::byte*> allocate(std::int64_t bytes, end from) noexcept {
    if (bytes < 1 || divide_up(bytes, granule) > sizes_) return status{errc::out_of_range, bytes};
    std::lock_guard const lock(mutex_);
    std::uint32_t const first = take(count_of(bytes), from);
    if (first == none) return status{errc::capacity_exceeded, bytes};
    return address(first);
  }

  // Gives an extent back; `bytes` is what it was allocated with.
  //
  // errors  out_of_range  it is not of this heap, or free; `at` is bytes and nothing was changed
  status release(std::byte* at, std::int64_t bytes) noexcept {
    std::lock_guard const lock(mutex_);
    return give_back(at, bytes) ? status{} : status{errc::out_of_range, bytes};
  }

  // Gives an extent back and takes one of `wanted` bytes, no more than it has, where that fits best: this cannot fail.
  std::byte* trade(std::byte* at, std::int64_t bytes, std::int64_t wanted, end from) noexcept {
    std::lock_guard const lock(mutex_);
    [[maybe_unused]] bool const known = give_back(at, bytes);
    PITH_EXPECTS(known && wanted > 0 && wanted <= bytes);
    return address(take(count_of(wanted), from));
  }

  // Whether bytes like these could be given back: as far as their two ends tell.
  bool holds(std::byte const* at, std::int64_t bytes) const noexcept {
    std::lock_guard const lock(mutex_);
    return is_used(at, bytes);
  }

  std::int64_t bytes() const noexcept { return std::int64_t{granules_} * granule; }
  std::int64_t used_bytes() const noexcept {
    std::lock_guard const lock(mutex_);
    return used_ * granule;
  }

 private:
  static constexpr std::uint32_t none = 0xffffffffu;

  extent_heap(std::byte* memory, std::uint32_t granules, std::uint32_t sizes, std::unique_ptr<std::uint64_t[]> bits,
              std::unique_ptr<std::uint32_t[]> lists) noexcept
      : memory_(memory), granules_(granules), sizes_(sizes), bits_(std::move(bits)), heads_(std::move(lists)) {
    for (std::uint32_t list = 0; list <= sizes; ++list) heads_.get()[list] = none;
    mark(0, granules, true);
    if (granules > 0) insert(0, granules);
  }

  static std::uint32_t count_of(std::int64_t bytes) noexcept { return static_cast<std::uint32_t>(divide_up(bytes, granule)); }
  std::byte* address(std::uint32_t first) const noexcept { return memory_ + std::int64_t{first} * granule; }

  bool is_free(std::uint32_t at) const noexcept { return (bits_.get()[at / 64] >> (at % 64) & 1u) != 0; }
  void mark(std::uint32_t first, std::uint32_t count, bool as_free) noexcept {
    for (std::uint64_t at = first, to = at + count; at < to;) {
      std::uint64_t const stop = std::min((at / 64 + 1) * 64, to), some = ~std::uint64_t{0} >> (64 - (stop - at)) << at % 64;
      std::uint64_t& word = bits_.get()[at / 64];
      word = as_free ? word | some : word & ~some;
      at = stop;
    }
  }

  // The fields of a free extent.
  std::uint32_t field(std::uint32_t first, int which) const noexcept { return load_le<std::uint32_t>(address(first) + 4 * which); }
  void set_field(std::uint32_t first, int which, std::uint32_t to) noexcept { store_le(address(first) + 4 * which, to); }
  static constexpr int next = 0, previous = 1, size = 2, last = granule / 4 - 1;  // the last one of its last granule

  std::uint32_t list_of(std::uint32_t count) const noexcept { return count < sizes_ ? count : sizes_; }
  std::uint64_t& has_any(std::uint32_t list) noexcept { return bits_.get()[divide_up(granules_, 64) + list / 64]; }

  void insert(std::uint32_t first, std::uint32_t count) noexcept {
    std::uint32_t const list = list_of(count), second = std::exchange(heads_.get()[list], first);
    set_field(first, next, second);
    set_field(first, previous, none);
    set_field(first, size, count);
    set_field(first + count - 1, last, count);
    if (second != none) set_field(second, previous, first);
    has_any(list) |= std::uint64_t{1} << list % 64;
  }
  void remove(std::uint32_t first) noexcept {
    std::uint32_t const list = list_of(field(first, size)), before = field(first, previous), after = field(first, next);
    if (before == none)
      heads_.get()[list] = after;
    else
      set_field(before, next, after);
    if (after != none) set_field(after, previous, before);
    if (heads_.get()[list] == none) has_any(list) &= ~(std::uint64_t{1} << list % 64);
  }

  // The first list from `list` on that has any, or none.
  std::uint32_t list_from(std::uint32_t list) noexcept {
    std::uint64_t some = has_any(list) >> list % 64 << list % 64;
    for (; some == 0 && list / 64 < sizes_ / 64; some = has_any(list)) list = (list / 64 + 1) * 64;
    return some == 0 ? none : list / 64 * 64 + static_cast<std::uint32_t>(std::countr_zero(some));
  }

  std::uint32_t take(std::uint32_t count, end from) noexcept {
    std::uint32_t const list = list_from(count);
    if (list == none) return none;
    std::uint32_t const first = heads_.get()[list], whole = field(first, size), rest = whole - count;
    remove(first);
    std::uint32_t const taken = from == end::front ? first : first + rest;
    if (rest > 0) insert(from == end::front ? first + count : first, rest);
    mark(taken, count, false);
    used_ += count;
    return taken;
  }

  bool is_used(std::byte const* at, std::int64_t bytes) const noexcept {
    std::int64_t const from = at - memory_, granules = divide_up(bytes, granule);
    if (bytes < 1 || granules > sizes_ || from < 0 || from % granule != 0 || from / granule + granules > granules_) return false;
    return !is_free(static_cast<std::uint32_t>(from / granule)) && !is_free(static_cast<std::uint32_t>(from / granule + granules - 1));
  }

  bool give_back(std::byte* at, std::int64_t bytes) noexcept {
    if (!is_used(at, bytes)) return false;
    auto first = static_cast<std::uint32_t>((at - memory_) / granule);
    std::uint32_t count = count_of(bytes);
    mark(first, count, true);
    used_ -= count;
    if (first > 0 && is_free(first - 1)) {
      std::uint32_t const before = field(first - 1, last);
      first -= before;
      count += before;
      remove(first);
    }
    if (first + count < granules_ && is_free(first + count)) {
      std::uint32_t const behind = first + count;
      count += field(behind, size);
      remove(behind);
    }
    insert(first, count);
    return true;
  }

  std::byte* memory_;
  std::uint32_t granules_;
  std::uint32_t sizes_;                     // granules of the largest request: what the last list holds at least
  std::int64_t used_ = 0;                   // granules
  std::unique_ptr<std::uint64_t[]> bits_;   // of granules that are free, then of lists that have any
  std::unique_ptr<std::uint32_t[]> heads_;  // of the lists
  mutable own_mutex mutex_;
};

// Defaulted outside the class, which makes it a host function to nvcc.
inline extent_heap::extent_heap(extent_heap&&) noexcept = default;
static_assert(std::is_nothrow_move_constructible_v<extent_heap> && !std::is_copy_constructible_v<extent_heap>);

}  // namespace pith
