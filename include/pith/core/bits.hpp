// SPDX-License-Identifier: Apache-2.0
// Little-endian loads and stores, and unsigned fields packed into 32-bit words: field i of a word sits at bits [i*Bits, (i+1)*Bits).
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "config.hpp"
#include "scalar.hpp"

namespace pith {

// Plain byte arithmetic, so that it works in constant evaluation and on the device; compilers fold it to one move on
// little-endian machines in the memcpy branch.
template <class Word>
PITH_HD constexpr Word load_le(std::byte const* from) noexcept {
  if (!__builtin_is_constant_evaluated()) {
    if constexpr (std::endian::native == std::endian::little) {
      Word value;
      memcpy(&value, from, sizeof(Word));
      return value;
    }
  }
  Word value = 0;
  for (std::size_t i = 0; i < sizeof(Word); ++i)
    value = static_cast<Word>(value | (static_cast<Word>(from[i]) << (8 * i)));
  return value;
}

template <class Word>
PITH_HD constexpr void store_le(std::byte* to, Word value) noexcept {
  if (!__builtin_is_constant_evaluated()) {
    if constexpr (std::endian::native == std::endian::little) {
      memcpy(to, &value, sizeof(Word));
      return;
    }
  }
  for (std::size_t i = 0; i < sizeof(Word); ++i) to[i] = static_cast<std::byte>((value >> (8 * i)) & 0xffu);
}

// One stored scalar, little-endian.
template <scale_scalar T>
PITH_HD constexpr float load_scalar(std::byte const* from) noexcept {
  if constexpr (sizeof(T) == 1)
    return to_float(T{static_cast<std::uint8_t>(*from)});
  else if constexpr (sizeof(T) == 2)
    return to_float(T{load_le<std::uint16_t>(from)});
  else
    return bits_float(load_le<std::uint32_t>(from));
}

template <scale_scalar T>
PITH_HD constexpr void store_scalar(std::byte* to, T value) noexcept {
  if constexpr (sizeof(T) == 1)
    *to = static_cast<std::byte>(value.bits);
  else if constexpr (sizeof(T) == 2)
    store_le<std::uint16_t>(to, value.bits);
  else
    store_le<std::uint32_t>(to, float_bits(value));
}

// Field i of a word, and the same word with field i set. Bits divides 32.
template <int Bits>
PITH_HD constexpr std::uint32_t field(std::uint32_t word, int i) noexcept {
  static_assert(Bits > 0 && Bits < 32 && 32 % Bits == 0, "[pith] field<Bits>: Bits must divide 32. Fix: store 3 bits as planes of 2 and 1.");
  return (word >> (i * Bits)) & ((1u << Bits) - 1u);
}

template <int Bits>
PITH_HD constexpr std::uint32_t with_field(std::uint32_t word, int i, std::uint32_t value) noexcept {
  std::uint32_t const mask = ((1u << Bits) - 1u) << (i * Bits);
  return (word & ~mask) | ((value << (i * Bits)) & mask);
}

PITH_HD constexpr std::int64_t round_up(std::int64_t value, std::int64_t multiple) noexcept {
  return (value + multiple - 1) / multiple * multiple;
}
PITH_HD constexpr std::int64_t divide_up(std::int64_t value, std::int64_t by) noexcept { return (value + by - 1) / by; }

}  // namespace pith
