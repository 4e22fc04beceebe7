// SPDX-License-Identifier: Apache-2.0
// Codes of codec/exponent_planes.hpp for vectors: bits into the places of a mask, and the bytes that 64 codes in planes stand for.
#pragma once

#include <bit>

#include "pith/core/bits.hpp"
#include "pith/simd/float_parts.hpp"

namespace pith {
inline namespace PITH_ISA {
namespace simd {

// 64 bits of a stream from bit `at` on.
PITH_INLINE std::uint64_t bits_at(std::byte const* stream, int at) {
  std::byte const* const from = stream + at / 8;
  return load_le<std::uint64_t>(from) >> at % 8 | load_le<std::uint64_t>(from + 8) << 1 << (63 - at % 8);
}

// Of five planes the number that weighs them 1, 2, 1, 1, 2 is the place of a byte in the table, whose lower 8 bytes count. Where it is 7,
// in `escaped`, the next of `escapes`, which has room for 64.
#if defined(__AVX512BW__) && !defined(PITH_NO_SIMD)
PITH_INLINE bytes64 ranked_bytes(std::uint64_t const (&plane)[5], std::uint64_t escaped, std::uint64_t table, std::uint8_t const* escapes) {
  __m512i const one = _mm512_set1_epi8(1), two = _mm512_set1_epi8(2);
  __m512i rank = _mm512_maskz_mov_epi8(plane[0], one);
  rank = _mm512_mask_add_epi8(rank, plane[1], rank, two);
  rank = _mm512_mask_add_epi8(rank, plane[2], rank, one);
  rank = _mm512_mask_add_epi8(rank, plane[3], rank, one);
  rank = _mm512_mask_add_epi8(rank, plane[4], rank, two);
  __m512i const bytes = _mm512_shuffle_epi8(_mm512_set1_epi64(static_cast<long long>(table)), rank);
  if (escaped == 0) return {bytes};
  alignas(64) std::uint8_t all[64];
  _mm512_store_si512(all, bytes);
  for (; escaped != 0; escaped &= escaped - 1) all[std::countr_zero(escaped)] = *escapes++;
  return load_bytes64(all);
}
#elif defined(__AVX2__) && !defined(PITH_NO_SIMD)
PITH_INLINE __m256i ranked_bytes32(std::uint64_t const (&plane)[5], int shift, __m256i table) {
  auto const bytes = [&](int k) { return bit_bytes(static_cast<std::uint32_t>(plane[k] >> shift)); };
  __m256i const twice = _mm256_add_epi8(bytes(1), bytes(4));
  __m256i const rank = _mm256_add_epi8(_mm256_add_epi8(_mm256_add_epi8(twice, twice), bytes(0)), _mm256_add_epi8(bytes(2), bytes(3)));
  return _mm256_shuffle_epi8(table, _mm256_sub_epi8(_mm256_setzero_si256(), rank));
}
PITH_INLINE bytes64 ranked_bytes(std::uint64_t const (&plane)[5], std::uint64_t escaped, std::uint64_t table, std::uint8_t const* escapes) {
  __m256i const entries = _mm256_set1_epi64x(static_cast<long long>(table));
  bytes64 const codes{ranked_bytes32(plane, 0, entries), ranked_bytes32(plane, 32, entries)};
  if (escaped == 0) return codes;
  alignas(32) std::uint8_t all[64];
  store_bytes64(all, codes);
  for (; escaped != 0; escaped &= escaped - 1) all[std::countr_zero(escaped)] = *escapes++;
  return load_bytes64(all);
}
#else
bytes64 ranked_bytes(std::uint64_t const (&)[5], std::uint64_t, std::uint64_t, std::uint8_t const*);  // named where it is not compiled
#endif

// Codes of two planes where bytes expand: 0, 1 and 2 give an entry, 3 the next of `others`, which has room for 64.
#if defined(__AVX512VBMI__) && defined(__AVX512VBMI2__) && defined(__GFNI__) && !defined(PITH_NO_SIMD)
struct code_entries {
  __m512i zero, one, two;
};
PITH_INLINE code_entries load_entries(std::byte const* from) {
  auto const entry = [&](int k) { return _mm512_set1_epi8(static_cast<char>(from[k])); };
  return {entry(0), entry(1), entry(2)};
}
PITH_INLINE bytes64 coded_bytes(std::uint64_t low, std::uint64_t high, code_entries const& entries, std::uint8_t const* others) {
  __m512i const bytes = _mm512_mask_mov_epi8(_mm512_mask_mov_epi8(entries.zero, low, entries.one), high, entries.two);
  __m512i next = _mm512_loadu_si512(others);
  asm("" : "+v"(next));  // expanding from memory waits for it
  return {_mm512_mask_expand_epi8(bytes, low & high, next)};
}
#else
struct code_entries {};  // named where it is not compiled
code_entries load_entries(std::byte const*);
bytes64 coded_bytes(std::uint64_t, std::uint64_t, code_entries const&, std::uint8_t const*);
#endif

}  // namespace simd
}  // namespace PITH_ISA
}  // namespace pith
