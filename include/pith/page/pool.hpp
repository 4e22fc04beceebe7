// SPDX-License-Identifier: Apache-2.0
// A pool of equal blocks over the caller's memory: which are free is one bit each, and a table's blocks tend to lie in ascending runs.
//
//   address(b) = memory + b * block_bytes, in 64 bits
//
// A block is taken right after the one that the caller hints at. Where that one is taken or there is no hint, a new run begins in 64
// blocks that are all free, if there are such, so that it has room to grow; otherwise any free block does.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <mutex>
#include <new>
#include <span>
#include <type_traits>
#include <utility>

#include "pith/core/bits.hpp"
#include "pith/core/status.hpp"

namespace pith {

struct block_id {
  std::uint32_t value = 0xffffffffu;  // no block

  PITH_HD friend constexpr bool operator==(block_id, block_id) noexcept = default;
};

inline constexpr block_id no_block{};

// A mutex that every object has of its own: moving the object moves nothing here, so it may be moved only before threads share it.
struct own_mutex : std::mutex {
  own_mutex() = default;
  own_mutex(own_mutex&&) noexcept : std::mutex() {}
};

// Thread-safe, except for moving. The memory must outlive the pool; the pool never touches it.
class block_pool {
 public:
  static constexpr std::int64_t alignment = 64;
  static constexpr std::int64_t max_blocks = 0xffffffff;  // the last 32-bit id is no_block

  // errors  misaligned     block_bytes is not a positive multiple of `alignment` (`at` is block_bytes), or memory is not a multiple
  //                        of it (`at` is what it exceeds one by)
  //         out_of_range   blocks < 0, blocks > max_blocks, or all of them exceed 63 bits of bytes; `at` is blocks
  //         out_of_memory  for the bits; `at` is their bytes
  // cost    one allocation of a bit for each block; the only one
  static result<block_pool> make(std::byte* memory, std::int64_t block_bytes, std::int64_t blocks) noexcept {
    if (block_bytes <= 0 || block_bytes % alignment != 0) return status{errc::misaligned, block_bytes};
    auto const past = static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(memory) % alignment);
    if (past != 0) return status{errc::misaligned, past};
    if (blocks < 0 || blocks > max_blocks || blocks > std::numeric_limits<std::int64_t>::max() / block_bytes)
      return status{errc::out_of_range, blocks};
    std::int64_t const words = divide_up(blocks, word_blocks);
    std::unique_ptr<std::uint64_t[]> free(new (std::nothrow) std::uint64_t[static_cast<std::size_t>(words)]);
    if (free == nullptr) return status{errc::out_of_memory, words * std::int64_t{sizeof(std::uint64_t)}};
    return block_pool(memory, block_bytes, blocks, std::move(free));
  }

  block_pool(block_pool&&) noexcept;

  // A free block, the one after `hint` if that is free.
  //
  // errors  capacity_exceeded  every block is used; `at` is 1
  // cost    one bit when the hint holds, else up to blocks / 64 words
  result<block_id> allocate(block_id hint = no_block) noexcept {
    std::lock_guard const lock(mutex_);
    if (used_ == blocks_) return status{errc::capacity_exceeded, 1};
    return take(hint);
  }

  // Fills `ids` with free blocks, each hinted by the one before it: all of them or none.
  //
  // errors  capacity_exceeded  fewer are free; `at` is ids.size(), and neither the pool nor ids was changed
  status allocate_many(std::span<block_id> ids, block_id hint = no_block) noexcept {
    auto const wanted = static_cast<std::int64_t>(ids.size());
    std::lock_guard const lock(mutex_);
    if (wanted > blocks_ - used_) return {errc::capacity_exceeded, wanted};
    for (block_id& id : ids) hint = id = take(hint);
    return {};
  }

  // Makes a used block free.
  //
  // errors  out_of_range  the block is free already, or not of this pool; `at` is its number and nothing was changed
  status release(block_id id) noexcept {
    std::lock_guard const lock(mutex_);
    if (id.value >= blocks_ || is_free(id.value)) return {errc::out_of_range, id.value};
    std::uint64_t& word = free_.get()[id.value / word_blocks];
    word |= bit(id.value);
    whole_words_ += word == whole;
    --used_;
    return {};
  }

  std::byte* address(block_id id) const noexcept {
    PITH_EXPECTS(id.value < blocks_);
    return memory_ + std::int64_t{id.value} * block_bytes_;
  }

  std::int64_t block_bytes() const noexcept { return block_bytes_; }
  std::int64_t blocks() const noexcept { return blocks_; }
  std::int64_t used_blocks() const noexcept {
    std::lock_guard const lock(mutex_);
    return used_;
  }
  std::int64_t used_bytes() const noexcept { return used_blocks() * block_bytes_; }

 private:
  static constexpr std::int64_t word_blocks = 64;
  static constexpr std::uint64_t whole = ~std::uint64_t{0};

  block_pool(std::byte* memory, std::int64_t block_bytes, std::int64_t blocks, std::unique_ptr<std::uint64_t[]> free) noexcept
      : memory_(memory), block_bytes_(block_bytes), blocks_(blocks), whole_words_(blocks / word_blocks), free_(std::move(free)) {
    for (std::int64_t i = 0; i < whole_words_; ++i) free_.get()[i] = whole;
    if (blocks % word_blocks != 0) free_.get()[whole_words_] = bit(blocks) - 1;
  }

  static std::uint64_t bit(std::int64_t block) noexcept { return std::uint64_t{1} << (block % word_blocks); }
  bool is_free(std::int64_t block) const noexcept { return (free_.get()[block / word_blocks] & bit(block)) != 0; }

  // Marks a free block as used and returns it. At least one is free.
  block_id take(block_id hint) noexcept {
    std::int64_t block = std::int64_t{hint.value} + 1;
    if (block >= blocks_ || !is_free(block)) {
      std::int64_t const word = word_for_new_run();
      block = word * word_blocks + std::countr_zero(free_.get()[word]);
    }
    std::uint64_t& word = free_.get()[block / word_blocks];
    whole_words_ -= word == whole;
    word &= ~bit(block);
    ++used_;
    return {static_cast<std::uint32_t>(block)};
  }

  // A wholly free word if there is one, else one that is not full. The search goes on where the last one ended.
  std::int64_t word_for_new_run() noexcept {
    std::int64_t const words = divide_up(blocks_, word_blocks);
    for (;; cursor_ = cursor_ + 1 < words ? cursor_ + 1 : 0) {
      std::uint64_t const free = free_.get()[cursor_];
      if (whole_words_ > 0 ? free == whole : free != 0) return cursor_;
    }
  }

  std::byte* memory_;
  std::int64_t block_bytes_;
  std::int64_t blocks_;
  std::int64_t used_ = 0;
  std::int64_t whole_words_;  // words whose 64 blocks are all free
  std::int64_t cursor_ = 0;   // a word
  std::unique_ptr<std::uint64_t[]> free_;
  mutable own_mutex mutex_;
};

// Defaulted outside the class, which makes it a host function to nvcc.
inline block_pool::block_pool(block_pool&&) noexcept = default;
static_assert(std::is_nothrow_move_constructible_v<block_pool> && !std::is_copy_constructible_v<block_pool>);

}  // namespace pith
