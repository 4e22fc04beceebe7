// SPDX-License-Identifier: Apache-2.0
// A 64-bit fingerprint of a format and its calibrated numbers: tells pages of different codecs apart. Not a defence against forgery.
//
//   h = (h ^ byte) * 0x100000001b3, starting from 0xcbf29ce484222325 (FNV-1a), over little-endian bytes: the same on every machine
#pragma once

#include <cstddef>
#include <cstdint>

#include "pith/core/scalar.hpp"

namespace pith {

class fingerprint {
 public:
  constexpr void add_byte(std::uint8_t byte) noexcept { value_ = (value_ ^ byte) * 0x100000001b3ull; }
  constexpr void add(std::uint64_t x) noexcept {
    for (int i = 0; i < 8; ++i) add_byte(static_cast<std::uint8_t>(x >> (8 * i)));
  }
  constexpr void add(float x) noexcept {
    for (int i = 0; i < 4; ++i) add_byte(static_cast<std::uint8_t>(float_bits(x) >> (8 * i)));
  }
  constexpr void add_bytes(std::byte const* from, std::int64_t count) noexcept {
    for (std::int64_t i = 0; i < count; ++i) add_byte(static_cast<std::uint8_t>(from[i]));
  }
  constexpr std::uint64_t value() const noexcept { return value_; }

 private:
  std::uint64_t value_ = 0xcbf29ce484222325ull;
};

}  // namespace pith
