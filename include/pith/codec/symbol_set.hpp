// SPDX-License-Identifier: Apache-2.0
// Which symbol bytes a tile has and how often: what a coder chooses its table from, and how the table says which symbols it is of.
//
// Symbols are exponents rotated right by one, so that the common ones are neighbours when they are rotated back. A set of symbols is runs
// of neighbours in that order, in which 255 is followed by 0: symbols 7f ff 00 80 01 are the run fe ff 00 01 02.
//
// bytes   0: runs, 1 to 128;   then of each run the first, rotated left by one, and its length - 1. Any set of 1 to 256 symbols
// cost    counting: about half a nanosecond a byte
#pragma once

#include <cstddef>
#include <cstdint>

#include "pith/core/config.hpp"

namespace pith {

// The symbol at a place of the order, any integer.
PITH_HD constexpr std::uint8_t symbol_at(int place) noexcept { return static_cast<std::uint8_t>((place & 255) >> 1 | (place & 1) << 7); }

// counts: 256 numbers, by symbol, written whole. Four counters in turn: equal neighbours do not wait for each other.
constexpr void count_symbols(std::uint8_t const* symbols, std::int64_t number, std::uint32_t* counts) noexcept {
  std::uint32_t part[4][256]{};
  std::int64_t i = 0;
  for (; i + 4 <= number; i += 4)
    for (int k = 0; k < 4; ++k) ++part[k][symbols[i + k]];
  for (; i < number; ++i) ++part[0][symbols[i]];
  for (int s = 0; s < 256; ++s) counts[s] = part[0][s] + part[1][s] + part[2][s] + part[3][s];
}

struct symbol_set {
  int number, bytes;  // of symbols; of the stored set; both 0 if there is none
};

// Stores the set of symbols that `has(symbol)` says, at most 257 bytes.
template <class Has>
constexpr symbol_set store_symbols(Has has, std::byte* to) noexcept {
  symbol_set set{};
  int start = 0, runs = 0;  // where no run goes on
  while (start < 256 && has(symbol_at(start - 1))) ++start;
  for (int i = start & 255, end = i + 256; i < end; ++i) {
    if (!has(symbol_at(i))) continue;
    bool const goes_on = set.number > 0 && i > (start & 255) && has(symbol_at(i - 1));
    if (!goes_on) {
      to[1 + 2 * runs++] = static_cast<std::byte>(i & 255);
      to[2 * runs] = std::byte{255};
    }
    to[2 * runs] = static_cast<std::byte>((static_cast<int>(to[2 * runs]) + 1) & 255);
    ++set.number;
  }
  to[0] = static_cast<std::byte>(runs);
  set.bytes = 1 + 2 * runs;
  return set;
}

// Reads at most `bytes` bytes. number = bytes = 0 if they end early or are no set of at most 256 symbols.
PITH_HD constexpr symbol_set load_symbols(std::byte const* from, std::int64_t bytes) noexcept {
  int const runs = bytes > 0 ? static_cast<int>(from[0]) : 0;
  if (bytes < 1 + 2 * runs) return {0, 0};
  int number = 0;
  for (int r = 0; r < runs; ++r) number += static_cast<int>(from[2 + 2 * r]) + 1;
  return runs == 0 || number > 256 ? symbol_set{0, 0} : symbol_set{number, 1 + 2 * runs};
}

// Calls give(i, symbol) for the symbols of a stored set, in order; on the host, `give` may be a host function.
#if defined(__CUDACC__)
#pragma nv_exec_check_disable
#endif
template <class Give>
PITH_HD constexpr void each_symbol(std::byte const* from, Give give) noexcept {
  int const runs = static_cast<int>(from[0]);
  for (int r = 0, i = 0; r < runs; ++r) {
    int const first = static_cast<int>(from[1 + 2 * r]), last = first + static_cast<int>(from[2 + 2 * r]);
    for (int place = first; place <= last; ++place) give(i++, symbol_at(place));
  }
}

}  // namespace pith
