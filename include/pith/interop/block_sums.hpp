// SPDX-License-Identifier: Apache-2.0
// XXH3 checksums of 64 bits: of bytes, and of the blocks of a run of bytes that is written or read in any order.
//
//   block i of a run is its bytes [i B, (i + 1) B), the last one shorter
//
//   block_sums sums(B);
//   sums.add(at, bytes);            every byte once, from any thread
//   sums.finish(length);            sums.values()[i] is checksum(block i)
//
// cost    whole blocks are summed where they are; one that comes in pieces is kept until it is whole: a block for every writer that goes
//         forwards
// from    https://github.com/Cyan4973/xxHash, XXH3_64bits, seed 0
//
// Optional: the only part of the library that includes <xxhash.h>, whose functions it compiles itself; there is nothing to link.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <span>
#include <vector>

#ifndef XXH_INLINE_ALL
#define XXH_INLINE_ALL
#endif
#include <xxhash.h>

#include "pith/core/bits.hpp"

namespace pith {

inline std::uint64_t checksum(std::span<std::byte const> bytes) noexcept { return XXH3_64bits(bytes.data(), bytes.size()); }

class block_sums {
 public:
  explicit block_sums(std::int64_t block_bytes) : block_(block_bytes) { PITH_EXPECTS(block_bytes > 0); }

  void add(std::int64_t at, std::span<std::byte const> bytes) {
    while (!bytes.empty()) {
      std::int64_t const block = at / block_, within = at % block_;
      auto const piece = bytes.first(static_cast<std::size_t>(std::min(block_ - within, std::ssize(bytes))));
      if (std::ssize(piece) == block_) {
        put(block, checksum(piece));
      } else {
        std::lock_guard const lock(mutex_);
        auto part = std::ranges::find(parts_, block, &part::block);
        if (part == parts_.end()) part = parts_.insert(parts_.end(), {block, 0, std::vector<std::byte>(static_cast<std::size_t>(block_))});
        std::ranges::copy(piece, part->bytes.begin() + within);
        part->filled += std::ssize(piece);
        if (part->filled == block_) close(part);
      }
      at += std::ssize(piece);
      bytes = bytes.subspan(piece.size());
    }
  }

  // After the last byte, of `length`: the last block may be short.
  void finish([[maybe_unused]] std::int64_t length) {
    std::lock_guard const lock(mutex_);
    if (!parts_.empty()) {
      PITH_EXPECTS(parts_.size() == 1 && parts_.front().filled == length - parts_.front().block * block_);
      parts_.front().bytes.resize(static_cast<std::size_t>(parts_.front().filled));
      close(parts_.begin());
    }
    PITH_EXPECTS(std::ssize(values_) == divide_up(length, block_));
  }

  std::vector<std::uint64_t> const& values() const noexcept { return values_; }

 private:
  struct part {
    std::int64_t block, filled;
    std::vector<std::byte> bytes;
  };

  void put(std::int64_t block, std::uint64_t value) {
    std::lock_guard const lock(mutex_);
    keep(block, value);
  }
  void close(std::vector<part>::iterator part) {
    keep(part->block, checksum(part->bytes));
    parts_.erase(part);
  }
  void keep(std::int64_t block, std::uint64_t value) {
    if (block >= std::ssize(values_)) values_.resize(static_cast<std::size_t>(block + 1));
    values_[static_cast<std::size_t>(block)] = value;
  }

  std::int64_t block_;
  std::mutex mutex_;
  std::vector<std::uint64_t> values_;
  std::vector<part> parts_;
};

}  // namespace pith
