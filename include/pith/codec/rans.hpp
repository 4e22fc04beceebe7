// SPDX-License-Identifier: Apache-2.0
// Range asymmetric numeral systems: symbols whose frequencies sum to 2^Bits, in close to their information.
//
//   put   x -> (x / f) 2^Bits + x mod f + c                   f: the symbol's frequency, c: the sum of those before it
//   get   s has c <= x mod 2^Bits < c + f;                    x -> f (x >> Bits) + (x mod 2^Bits) - c
//
// The state x has 32 bits and stays in [2^16, 2^32): two bytes at a time move between it and memory. What is put last is got first, so an
// encoder goes from the last symbol to the first and writes downwards; the decoder reads upwards.
//
// bytes   a state, 4, and log2(2^Bits / f) bits a symbol, about 2^-15 of them more
// errors  a decoder never reads at or behind `end`: there bytes count as zeros. All was right if in the end the state is rans_start
// cost    put: a division; get: a multiplication and the caller's table lookup
// from    Duda, Asymmetric numeral systems, 2013; Giesen, Interleaved entropy coders, 2014
#pragma once

#include <span>

#include "pith/core/bits.hpp"
#include "pith/core/status.hpp"

namespace pith {

inline constexpr std::uint32_t rans_start = 1u << 16;  // of an encoder; what its decoder ends with

struct rans_symbol {
  std::uint16_t frequency, start;  // start + frequency <= 2^Bits
};

// Writes below `to` and moves it down. 1 <= frequency.
template <int Bits>
PITH_HD constexpr void rans_put(std::uint32_t& x, rans_symbol s, std::byte*& to) noexcept {
  static_assert(Bits >= 1 && Bits <= 15);
  if (x >> (32 - Bits) >= s.frequency) {
    to -= 2;
    store_le(to, static_cast<std::uint16_t>(x));
    x >>= 16;
  }
  x = (x / s.frequency << Bits) + x % s.frequency + s.start;
}
PITH_HD constexpr void rans_put_state(std::uint32_t x, std::byte*& to) noexcept { store_le(to -= 4, x); }

template <int Bits>
PITH_HD constexpr std::uint32_t rans_slot(std::uint32_t x) noexcept {
  return x & ((1u << Bits) - 1u);
}
// Takes the symbol that rans_slot shows.
template <int Bits>
PITH_HD constexpr void rans_get(std::uint32_t& x, rans_symbol s, std::byte const*& at, std::byte const* end) noexcept {
  x = s.frequency * (x >> Bits) + rans_slot<Bits>(x) - s.start;
  if (x < rans_start) {
    x = x << 16 | (end - at >= 2 ? load_le<std::uint16_t>(at) : std::uint16_t{0});
    if (end - at >= 2) at += 2;
  }
}
// A state that an encoder wrote: false if there are no four bytes, or it is no state.
PITH_HD constexpr bool rans_get_state(std::uint32_t& x, std::byte const*& at, std::byte const* end) noexcept {
  if (end - at < 4) return false;
  x = load_le<std::uint32_t>(at);
  at += 4;
  return x >= rans_start;
}

// Frequencies of symbols from how often they occur: at least 1 where a symbol occurs, 0 elsewhere, with the sum 2^Bits. What rounding leaves
// over is taken from, or given to, the most frequent symbol, again and again, the first among equals: the same everywhere.
//
// errors  shape_mismatch  not one frequency for each count; `at` is the counts
//         out_of_range    no symbol occurs, or more than 2^Bits do; `at` is how many
template <int Bits>
constexpr status rans_frequencies(std::span<std::uint32_t const> counts, std::span<std::uint16_t> frequencies) noexcept {
  constexpr std::int64_t whole = std::int64_t{1} << Bits;
  if (counts.size() != frequencies.size()) return {errc::shape_mismatch, static_cast<std::int64_t>(counts.size())};
  std::uint64_t total = 0;
  std::int64_t occurring = 0, sum = 0;
  for (std::uint32_t const count : counts) {
    total += count;
    occurring += count > 0;
  }
  if (occurring == 0 || occurring > whole) return {errc::out_of_range, occurring};
  for (std::size_t i = 0; i < counts.size(); ++i) {
    std::uint64_t const rounded = ((std::uint64_t{counts[i]} << (Bits + 1)) + total) / (2 * total);
    frequencies[i] = static_cast<std::uint16_t>(counts[i] == 0 ? 0 : rounded == 0 ? 1 : rounded);
    sum += frequencies[i];
  }
  while (sum != whole) {
    std::size_t most = 0;
    for (std::size_t i = 1; i < counts.size(); ++i)
      if (frequencies[i] > frequencies[most]) most = i;
    // At most an eighth of it at once; what is left goes round again.
    std::int64_t const room = frequencies[most] / 8 > 1 ? frequencies[most] / 8 : 1, off = whole - sum;
    std::int64_t const step = off > room ? room : off < -room ? -room : off;
    frequencies[most] = static_cast<std::uint16_t>(frequencies[most] + step);
    sum += step;
  }
  return {};
}

}  // namespace pith
