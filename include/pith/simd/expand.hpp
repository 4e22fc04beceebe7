// SPDX-License-Identifier: Apache-2.0
// 16-bit numbers to the places that a bitmap names, zero elsewhere, and back: 64 at a time, as 32 words of two numbers.
//
//   expand_halves    AVX-512 VBMI2: two expansions in registers. AVX2: a byte of the bitmap chooses a shuffle from a table of 4 KiB
//   compress_halves  AVX-512 VBMI2 only
#pragma once

#include <array>
#include <bit>

#include "pith/simd/float_parts.hpp"

namespace pith {
inline namespace PITH_ISA {
namespace simd {

// Bytes of the halves that a bitmap names. Unsigned, so that no sign is extended on the way to an address.
template <class Bits>
PITH_INLINE std::size_t halves_bytes(Bits bits) {
  return std::size_t{2} * static_cast<unsigned>(std::popcount(bits));
}

#if defined(__AVX512VBMI__) && defined(__AVX512VBMI2__) && defined(__GFNI__) && \
    !defined(PITH_NO_SIMD)  // as expands_bytes: one name of PITH_ISA
inline constexpr bool expands_halves = true;

// Returns where the next numbers are. 64 bytes behind the last may be read.
PITH_INLINE std::byte const* expand_halves(std::uint64_t bits, std::byte const* from, u32v (&words)[group_words]) {
  auto const low = static_cast<std::uint32_t>(bits), high = static_cast<std::uint32_t>(bits >> 32);
  std::byte const* const second = from + halves_bytes(low);
  __m512i a = _mm512_loadu_si512(from), b = _mm512_loadu_si512(second);
  asm("" : "+v"(a), "+v"(b));  // expanding from memory waits for it: 2.7 times as long when it is not in the cache
  words[0] = u32v(_mm512_maskz_expand_epi16(low, a));
  words[1] = u32v(_mm512_maskz_expand_epi16(high, b));
  return second + halves_bytes(high);
}

// The bitmap; the numbers that are no zero, of either sign, go to `to`, of which 128 bytes may be written, and `to` behind them.
PITH_INLINE std::uint64_t compress_halves(u32v const (&words)[group_words], std::byte*& to) {
  std::uint64_t bits = 0;
  PITH_UNROLL for (int v = 0; v < group_words; ++v) {
    std::uint32_t const some = _mm512_test_epi16_mask(words[v], _mm512_set1_epi16(0x7fff));
    _mm512_storeu_si512(to, _mm512_maskz_compress_epi16(some, words[v]));
    to += halves_bytes(some);
    bits |= static_cast<std::uint64_t>(some) << (32 * v);
  }
  return bits;
}
#else
inline constexpr bool expands_halves = false;
std::uint64_t compress_halves(u32v const (&)[group_words], std::byte*&);  // named in code that is not compiled then

#if defined(__AVX2__) && !defined(PITH_NO_SIMD)
// Bytes of the numbers that go to eight places; 0x80 makes zero.
alignas(64) inline constexpr auto expansions = [] {
  std::array<std::array<std::uint8_t, 16>, 256> table{};
  for (std::size_t bits = 0; bits < 256; ++bits)
    for (std::size_t i = 0, next = 0; i < 8; ++i)
      for (std::size_t half = 0; half < 2; ++half)
        table[bits][2 * i + half] = (bits >> i & 1u) != 0 ? static_cast<std::uint8_t>(next++) : std::uint8_t{0x80};
  return table;
}();

PITH_INLINE std::byte const* expand_halves(std::uint64_t bits, std::byte const* from, u32v (&words)[group_words]) {
  __m128i eight[8];
  PITH_UNROLL for (int i = 0; i < 8; ++i) {
    auto const here = static_cast<std::uint8_t>(bits >> (8 * i));
    eight[i] = _mm_shuffle_epi8(_mm_loadu_si128(reinterpret_cast<__m128i const*>(from)),
                                _mm_load_si128(reinterpret_cast<__m128i const*>(expansions[here].data())));
    from += halves_bytes(here);
  }
  auto const sixteen = [&](int i) { return _mm256_set_m128i(eight[i + 1], eight[i]); };
#if defined(__AVX512F__)
  PITH_UNROLL for (int v = 0; v < group_words; ++v) words[v] =
      u32v(_mm512_inserti64x4(_mm512_castsi256_si512(sixteen(4 * v)), sixteen(4 * v + 2), 1));
#else
  PITH_UNROLL for (int v = 0; v < group_words; ++v) words[v] = u32v(sixteen(2 * v));
#endif
  return from;
}
#else
PITH_INLINE std::byte const* expand_halves(std::uint64_t bits, std::byte const* from, u32v (&words)[group_words]) {
  std::uint32_t lanes[32];
  for (int lane = 0; lane < 32; ++lane) {
    std::uint32_t half[2] = {};
    for (int i = 0; i < 2; ++i)
      if ((bits >> (2 * lane + i) & 1u) != 0) {
        half[i] = load_le<std::uint16_t>(from);
        from += 2;
      }
    lanes[lane] = half[0] | half[1] << 16;
  }
  for (int v = 0; v < group_words; ++v) words[v] = u32v::load_unaligned(lanes + v * width);
  return from;
}
#endif
#endif

}  // namespace simd
}  // namespace PITH_ISA
}  // namespace pith
