// SPDX-License-Identifier: Apache-2.0
// Codes of codec/exponent_planes.hpp for vectors: bits into the places of a mask, and the bytes that 64 codes in planes stand for.
//
// deposits_bits: the processor does the former (BMI2; fast from Haswell and Zen 3 on).
#pragma once

#include <array>
#include <bit>

#include "pith/core/bits.hpp"
#include "pith/simd/float_parts.hpp"

namespace pith {
inline namespace PITH_ISA {
namespace simd {

// Bits `at` and on of a stream, 57 of them or more; behind them zeros.
PITH_INLINE std::uint64_t bits_at(std::byte const* stream, std::uint64_t at) { return load_le<std::uint64_t>(stream + at / 8) >> at % 8; }
// 64 of them.
PITH_INLINE std::uint64_t all_bits_at(std::byte const* stream, std::uint64_t at) {
  return bits_at(stream, at) | load_le<std::uint64_t>(stream + at / 8 + 8) << 1 << (63 - at % 8);
}

#if defined(__BMI2__) && defined(__AVX2__) && defined(__x86_64__) && !defined(PITH_NO_SIMD)
inline constexpr bool deposits_bits = true;
PITH_INLINE std::uint64_t deposit_bits(std::uint64_t bits, std::uint64_t mask) { return _pdep_u64(bits, mask); }
#else
inline constexpr bool deposits_bits = false;
std::uint64_t deposit_bits(std::uint64_t, std::uint64_t);
#endif

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

// The same where bytes expand: the first two planes from memory, then three of four. `next` is moved to the next group's escapes.
#if defined(__AVX512VBMI__) && defined(__AVX512VBMI2__) && defined(__GFNI__) && !defined(PITH_NO_SIMD)
using plane_table = __m512i;
// By the planes' bits, the first one's lowest. What has fewer planes than its code is not asked for.
PITH_INLINE plane_table plane_entries(std::uint64_t table) {
  __m512i const place = _mm512_castsi256_si512(
      _mm256_setr_epi8(0, 1, 2, 3, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0, 0, 7));
  return _mm512_permutexvar_epi8(place, _mm512_set1_epi64(static_cast<long long>(table)));
}
PITH_INLINE bytes64 planes_symbols(std::byte const* two, std::uint64_t const* three, plane_table table, std::uint8_t const*& next) {
  alignas(64) static constexpr auto rows = [] {  // eight matrices of 8 x 8 bits: row 7 gives bit 0
    std::array<std::uint8_t, 64> from{};
    for (std::size_t i = 0; i < 64; ++i)
      from[i] = static_cast<std::uint8_t>(i % 8 > 5 ? 32 + 8 * (7 - i % 8) + i / 8 : i % 8 > 2 ? 8 * (5 - i % 8) + i / 8 : 0);
    return from;
  }();
  __m512i const further = _mm512_castsi256_si512(_mm256_loadu_si256(reinterpret_cast<__m256i const*>(three)));
  __m512i const all = _mm512_inserti32x4(further, _mm_loadu_si128(reinterpret_cast<__m128i const*>(two)), 2);
  __m512i const matrix = _mm512_maskz_permutexvar_epi8(0xf8f8f8f8f8f8f8f8u, _mm512_load_si512(rows.data()), all);
  __m512i const code = _mm512_gf2p8affine_epi64_epi8(_mm512_set1_epi64(static_cast<long long>(0x8040201008040201u)), matrix, 0);
  std::uint64_t const escaped = _mm512_cmpeq_epi8_mask(code, _mm512_set1_epi8(31));
  __m512i escapes = _mm512_loadu_si512(next);
  asm("" : "+v"(escapes));  // expanding from memory waits for it
  next += std::popcount(escaped);
  return {_mm512_mask_expand_epi8(_mm512_permutexvar_epi8(code, table), escaped, escapes)};
}
#else
struct plane_table {};
plane_table plane_entries(std::uint64_t);
bytes64 planes_symbols(std::byte const*, std::uint64_t const*, plane_table, std::uint8_t const*&);
#endif

}  // namespace simd
}  // namespace PITH_ISA
}  // namespace pith
