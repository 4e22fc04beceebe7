// SPDX-License-Identifier: Apache-2.0
// A list of rare bytes with a few common ones among them: what coders of exponents keep for symbols that their planes have no code for.
//
//   a byte    1 bit: it is common[0], or not; then 2 bits: common[1..3], or none of them; then itself
//
// bytes   | common, 4 | count, u16 | 1 bit for every one | 2 bits for every further one | bytes, the last one first |,
//         bits from a byte's lowest on, filled up with zeros
#pragma once

#include <cstring>

#include "pith/core/bits.hpp"

namespace pith {

struct byte_escapes {
  static constexpr std::int64_t first_at = 6;

  int escapes;
  std::byte const *first, *second;  // bits of the two stages

  static byte_escapes of(std::byte const* from) noexcept {
    int const escapes = load_le<std::uint16_t>(from + 4);
    return {escapes, from + first_at, from + first_at + divide_up(escapes, 8)};
  }

  // One after the other.
  class reader {
   public:
    reader(std::byte const* from, std::int64_t bytes) noexcept
        : common_(from), first_(of(from).first), second_(of(from).second), raw_(bytes) {}
    unsigned next() noexcept {
      unsigned which = bits<1>(first_, escape_++);
      if (which == 1) which += bits<2>(second_, further_++);
      return static_cast<unsigned>(which < 4 ? common_[which] : common_[--raw_]);
    }

   private:
    std::byte const *common_, *first_, *second_;
    std::int64_t raw_;
    int escape_ = 0, further_ = 0;
  };

  // Whether they are a list of so many, and as long as that is.
  static bool check(std::byte const* from, std::int64_t bytes, int escapes) noexcept {
    if (bytes < first_at) return false;
    byte_escapes const list = of(from);
    std::int64_t least = first_at + divide_up(escapes, 8);
    if (list.escapes != escapes || least > bytes) return false;
    int further = 0;
    for (int i = 0; i < escapes; ++i) further += static_cast<int>(bits<1>(list.first, i));
    least += divide_up(further, 4);
    if (least > bytes) return false;
    for (int i = 0; i < further; ++i) least += bits<2>(list.second, i) == 3;
    return least == bytes;
  }

  // Which values are the common ones, and what all of them take. Values are First to Values - 1.
  template <int First, int Values>
  struct ranking {
    std::uint8_t which[Values];  // of common[4]; 4: none of them
    int further, raws;           // values that are not common[0], and those that are none of the four

    static ranking of(std::uint8_t const* values, int count, std::byte* common) noexcept {
      std::uint16_t counts[4][Values]{};  // four, so that a count seldom waits for the one before
      for (int i = 0; i < count; ++i) ++counts[i % 4][values[i]];
      std::uint32_t key[Values];  // the larger the more frequent, and the earlier among equals
      for (unsigned i = 0; i < Values; ++i)
        key[i] = static_cast<std::uint32_t>(counts[0][i] + counts[1][i] + counts[2][i] + counts[3][i]) * Values + (Values - 1 - i);
      for (int i = 0; i < First; ++i) key[i] = 0;
      ranking r;
      std::memset(r.which, 4, sizeof r.which);
      r.further = r.raws = count;
      for (int k = 0; k < 4; ++k) {
        std::uint32_t most = 0;
        for (int i = 0; i < Values; ++i) most = key[i] > most ? key[i] : most;
        std::uint32_t const at = Values - 1 - most % Values;
        common[k] = static_cast<std::byte>(at);
        if (most >= Values) r.which[at] = static_cast<std::uint8_t>(k);
        r.raws -= static_cast<int>(most / Values);
        if (k == 0) r.further = r.raws;
        key[at] = Values - 1 - at;
      }
      return r;
    }
    std::int64_t bytes(int count) const noexcept { return first_at + divide_up(count, 8) + divide_up(further, 4) + raws; }
  };

  // The bytes written, or -1: they would be `bound` or more.
  template <int First, int Values>
  static std::int64_t encode(std::uint8_t const* values, int count, std::byte* to, std::int64_t bound) noexcept {
    auto const rank = ranking<First, Values>::of(values, count, to);
    std::int64_t const second_at = first_at + divide_up(count, 8), bytes = rank.bytes(count);
    if (bytes >= bound) return -1;
    store_le(to + 4, static_cast<std::uint16_t>(count));
    std::memset(to + first_at, 0, static_cast<std::size_t>(bytes - first_at));
    int second = 0;
    std::int64_t raw = bytes;
    for (int i = 0; i < count; ++i) {
      int const k = rank.which[values[i]];
      if (k == 0) continue;
      to[first_at + i / 8] |= static_cast<std::byte>(1u << i % 8);
      to[second_at + second / 4] |= static_cast<std::byte>(static_cast<unsigned>(k - 1) << second % 4 * 2);
      ++second;
      if (k == 4) to[--raw] = static_cast<std::byte>(values[i]);
    }
    return bytes;
  }

  template <int Bits>
  static unsigned bits(std::byte const* from, int i) noexcept {
    return static_cast<unsigned>(from[i * Bits / 8] >> i * Bits % 8) & ((1u << Bits) - 1u);
  }
};

}  // namespace pith
