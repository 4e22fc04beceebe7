// SPDX-License-Identifier: Apache-2.0
// Words of a raw tile into the bytes and planes of codec/dynamic_float.hpp, where bytes can be compressed (AVX-512 VBMI2).
//
//   likely_starts       every row's start, by the exponents from the row's largest down
//   first_largest_sum   one row's start, by counts of all exponents
//   split_bytes, window_planes, pack_further   what simd/float_parts.hpp joins and expands
#pragma once

#include <algorithm>

#include "pith/simd/float_parts.hpp"

namespace pith {
inline namespace PITH_ISA {
namespace simd {

#if defined(__AVX512VBMI__) && defined(__AVX512VBMI2__) && defined(__GFNI__) && !defined(PITH_NO_SIMD)
// The bytes of join_bytes.
PITH_INLINE void split_bytes(u32v const (&words)[group_words], bytes64& rest, bytes64& symbol) {
  __m512i const low = _mm512_set1_epi16(0xff);
  rest.bytes = _mm512_packus_epi16(_mm512_and_si512(words[0], low), _mm512_and_si512(words[1], low));
  symbol.bytes = _mm512_packus_epi16(_mm512_srli_epi16(words[0], 8), _mm512_srli_epi16(words[1], 8));
}
PITH_INLINE u32v sub16(u32v a, u32v b) { return u32v(_mm512_sub_epi16(a, b)); }

// The planes of window_symbols; what they do not say, the lower seven bits of the others, goes to `escapes`: up to 64 bytes are written,
// the number of those that count is returned.
PITH_INLINE int window_planes(bytes64 symbols, std::byte* planes, std::uint8_t* escapes) {
  __m512i const h = _mm512_and_si512(symbols.bytes, _mm512_set1_epi8(127)), code = _mm512_min_epu8(h, _mm512_set1_epi8(3));
  std::uint64_t const low = _mm512_test_epi8_mask(code, _mm512_set1_epi8(1)), high = _mm512_test_epi8_mask(code, _mm512_set1_epi8(2));
  store_le<std::uint64_t>(planes, _mm512_movepi8_mask(symbols.bytes));
  store_le<std::uint64_t>(planes + 8, low);
  store_le<std::uint64_t>(planes + 16, high);
  _mm512_storeu_si512(escapes, _mm512_maskz_compress_epi8(low & high, h));
  return std::popcount(low & high);
}

// The first of 256 places from which Span counts have the largest sum, which is below 256; 64 zeros follow the counts.
template <int Span>
PITH_INLINE int first_largest_sum(std::uint8_t const* counts) {
  __m512i sum[4], most = _mm512_setzero_si512();
  for (int k = 0; k < 4; ++k) {
    sum[k] = _mm512_loadu_si512(counts + 64 * k);
    for (int i = 1; i < Span; ++i) sum[k] = _mm512_add_epi8(sum[k], _mm512_loadu_si512(counts + 64 * k + i));
    most = _mm512_max_epu8(most, sum[k]);
  }
  most = _mm512_max_epu8(most, _mm512_shuffle_i64x2(most, most, 0x4e));
  most = _mm512_max_epu8(most, _mm512_shuffle_i64x2(most, most, 0xb1));
  most = _mm512_max_epu8(most, _mm512_shuffle_epi32(most, _MM_PERM_BADC));
  most = _mm512_max_epu8(most, _mm512_shuffle_epi32(most, _MM_PERM_CDAB));
  most = _mm512_max_epu8(most, _mm512_rol_epi32(most, 16));
  most = _mm512_max_epu8(most, _mm512_or_si512(_mm512_srli_epi16(most, 8), _mm512_slli_epi16(most, 8)));
  for (int k = 0; k < 4; ++k)
    if (std::uint64_t const at = _mm512_cmpeq_epi8_mask(sum[k], most); at != 0) return 64 * k + std::countr_zero(at);
  return 0;
}

// start[row] = the first start from which Span exponents hold most of a row's numbers. words: Pairs times 32 rows of two numbers, `step`
// words apart. The rows whose bit is not set need counts of all exponents: most of their numbers are far below the largest one.
//
// Counted are the twelve exponents from a row's largest down, two of them in a byte. A start below those holds no more than what lies below
// the first seven of them, so it cannot hold as many as the best start counted.
template <int Span, int Pairs>
inline std::uint32_t likely_starts(std::uint32_t const* words, std::int64_t step, std::uint8_t* start) {
  constexpr int bins = 12;
  static_assert(Span < bins && 2 * Pairs < 256);
  __m512i const nibble = _mm512_set1_epi8(15), even = _mm512_set1_epi16(0xff);
  alignas(64) std::uint8_t exponents[Pairs][64];  // of rows r and 16 + r: at 4 r and 4 r + 1, and of the second numbers two bytes on
  __m512i top = _mm512_setzero_si512();
  for (int pair = 0; pair < Pairs; ++pair) {
    __m512i const low = _mm512_loadu_si512(words + pair * step), high = _mm512_loadu_si512(words + pair * step + 16);
    __m512i const both = _mm512_ternarylogic_epi64(even, _mm512_srli_epi16(low, 7), _mm512_slli_epi16(high, 1), 0xca);
    _mm512_store_si512(exponents[pair], both);
    top = _mm512_max_epu8(top, both);
  }
  top = _mm512_max_epu8(top, _mm512_rol_epi32(top, 16));

  __m512i one[bins / 2], count[bins];  // one[k]: 1 of exponent 2 k, 16 of 2 k + 1
  PITH_UNROLL for (int k = 0; k < bins; ++k) count[k] = _mm512_setzero_si512();
  PITH_UNROLL for (int k = 0; k < bins / 2; ++k) one[k] = _mm512_maskz_set1_epi16(0x01010101u << k, 0x1001);
  for (int first = 0; first < Pairs; first += 15) {
    __m512i two[bins / 2];
    PITH_UNROLL for (int k = 0; k < bins / 2; ++k) two[k] = _mm512_setzero_si512();
    for (int pair = first; pair < std::min(first + 15, Pairs); ++pair) {
      __m512i const below = _mm512_min_epu8(_mm512_sub_epi8(top, _mm512_load_si512(exponents[pair])), nibble);
      PITH_UNROLL for (int k = 0; k < bins / 2; ++k) two[k] = _mm512_add_epi8(two[k], _mm512_shuffle_epi8(one[k], below));
    }
    PITH_UNROLL for (int k = 0; k < bins / 2; ++k) {
      count[2 * k] = _mm512_add_epi8(count[2 * k], _mm512_and_si512(two[k], nibble));
      count[2 * k + 1] = _mm512_add_epi8(count[2 * k + 1], _mm512_and_si512(_mm512_srli_epi16(two[k], 4), nibble));
    }
  }
  PITH_UNROLL for (int k = 0; k < bins; ++k) count[k] = _mm512_add_epi8(count[k], _mm512_rol_epi32(count[k], 16));

  __m512i sum = _mm512_setzero_si512(), highest = sum, below = _mm512_set1_epi8(bins - 1);
  PITH_UNROLL for (int k = bins - Span; k < bins; ++k) sum = _mm512_add_epi8(sum, count[k]);
  PITH_UNROLL for (int k = 0; k <= bins - Span; ++k) highest = _mm512_add_epi8(highest, count[k]);
  __m512i most = sum;
  PITH_UNROLL for (int first = bins - 2; first >= Span - 1; --first) {
    sum = _mm512_sub_epi8(_mm512_add_epi8(sum, count[first - Span + 1]), count[first + 1]);
    __mmask64 const more = _mm512_cmpgt_epu8_mask(sum, most);
    most = _mm512_max_epu8(most, sum);
    below = _mm512_mask_mov_epi8(below, more, _mm512_set1_epi8(static_cast<char>(first)));
  }
  __m512i const certain =
      _mm512_movm_epi8(_mm512_cmpgt_epu8_mask(most, _mm512_sub_epi8(_mm512_set1_epi8(static_cast<char>(2 * Pairs)), highest)));
  alignas(64) static constexpr auto rows = [] {
    std::array<std::uint8_t, 64> from{};
    for (std::size_t row = 0; row < 32; ++row) from[row] = static_cast<std::uint8_t>(4 * (row % 16) + row / 16);
    return from;
  }();
  __m512i const order = _mm512_load_si512(rows.data());
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(start),
                      _mm512_castsi512_si256(_mm512_permutexvar_epi8(order, _mm512_subs_epu8(top, below))));
  return static_cast<std::uint32_t>(_mm512_movepi8_mask(_mm512_permutexvar_epi8(order, certain)));
}

// Bit i: from[i] is not `common`, i < left. Those go to `others`, 64 bytes are written.
PITH_INLINE std::uint64_t pack_others(std::uint8_t const* from, int left, std::uint8_t common, std::uint8_t* others) {
  std::uint64_t const here = left < 64 ? (std::uint64_t{1} << left) - 1 : ~std::uint64_t{0};
  __m512i const next = _mm512_loadu_si512(from);
  std::uint64_t const other = _mm512_mask_cmpneq_epi8_mask(here, next, _mm512_set1_epi8(static_cast<char>(common)));
  _mm512_storeu_si512(others, _mm512_maskz_compress_epi8(other, next));
  return other;
}

// Codes of 2 bits, table[from[i]] for i < left and 0 for the rest of 64, as 16 bytes; where the code is 3.
PITH_INLINE std::uint64_t pack_codes(std::uint8_t const* from, int left, std::uint8_t const (&table)[128], std::byte* to) {
  std::uint64_t const here = left < 64 ? (std::uint64_t{1} << left) - 1 : ~std::uint64_t{0};
  __m512i const codes =
      _mm512_maskz_permutex2var_epi8(here, _mm512_loadu_si512(table), _mm512_loadu_si512(from), _mm512_loadu_si512(table + 64));
  __m512i const two = _mm512_maddubs_epi16(codes, _mm512_set1_epi16(0x0401)), four = _mm512_madd_epi16(two, _mm512_set1_epi32(0x00100001));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8(four));
  return _mm512_cmpeq_epi8_mask(codes, _mm512_set1_epi8(3));
}
#else  // what follows is named in code that is not compiled then
void split_bytes(u32v const (&)[group_words], bytes64&, bytes64&);
u32v sub16(u32v, u32v);
int window_planes(bytes64, std::byte*, std::uint8_t*);
template <int Span>
int first_largest_sum(std::uint8_t const*);
template <int Span, int Pairs>
std::uint32_t likely_starts(std::uint32_t const*, std::int64_t, std::uint8_t*);
std::uint64_t pack_others(std::uint8_t const*, int, std::uint8_t, std::uint8_t*);
std::uint64_t pack_codes(std::uint8_t const*, int, std::uint8_t const (&)[128], std::byte*);
#endif

}  // namespace simd
}  // namespace PITH_ISA
}  // namespace pith
