// SPDX-License-Identifier: Apache-2.0
// Transposes a matrix of 32-bit words in memory.
//
//   to[c][r] = from[r][c],   r < Rows, c < Columns;   strides in bytes
//
// cost    AVX-512: 64 shuffles for 16 x 16 words
#pragma once

#include "pith/simd/vec.hpp"

namespace pith {
inline namespace PITH_ISA {
namespace simd {

#if defined(__AVX512F__) && !defined(PITH_NO_SIMD)
// At most 16 rows of at most 16 words; what is beyond is neither read nor written.
template <int Rows, int Columns>
PITH_INLINE void transpose_block(std::byte const* from, std::int64_t from_stride, std::byte* to, std::int64_t to_stride) {
  constexpr auto row_mask = static_cast<__mmask16>((1u << Rows) - 1), column_mask = static_cast<__mmask16>((1u << Columns) - 1);
  __m512i a[16], b[16];
  PITH_UNROLL for (int r = 0; r < 16; ++r)
    a[r] = r < Rows ? _mm512_maskz_loadu_epi32(column_mask, from + r * from_stride) : _mm512_setzero_si512();
  PITH_UNROLL for (int r = 0; r < 16; r += 2) {
    b[r] = _mm512_unpacklo_epi32(a[r], a[r + 1]);
    b[r + 1] = _mm512_unpackhi_epi32(a[r], a[r + 1]);
  }
  PITH_UNROLL for (int r = 0; r < 16; r += 4) {  // a[r + i]: column 4j + i of rows r .. r+3 in 128-bit part j
    a[r] = _mm512_unpacklo_epi64(b[r], b[r + 2]);
    a[r + 1] = _mm512_unpackhi_epi64(b[r], b[r + 2]);
    a[r + 2] = _mm512_unpacklo_epi64(b[r + 1], b[r + 3]);
    a[r + 3] = _mm512_unpackhi_epi64(b[r + 1], b[r + 3]);
  }
  PITH_UNROLL for (int i = 0; i < 4; ++i) {
    __m512i const even_low = _mm512_shuffle_i32x4(a[i], a[4 + i], 0x88), odd_low = _mm512_shuffle_i32x4(a[i], a[4 + i], 0xdd);
    __m512i const even_high = _mm512_shuffle_i32x4(a[8 + i], a[12 + i], 0x88), odd_high = _mm512_shuffle_i32x4(a[8 + i], a[12 + i], 0xdd);
    b[i] = _mm512_shuffle_i32x4(even_low, even_high, 0x88);
    b[4 + i] = _mm512_shuffle_i32x4(odd_low, odd_high, 0x88);
    b[8 + i] = _mm512_shuffle_i32x4(even_low, even_high, 0xdd);
    b[12 + i] = _mm512_shuffle_i32x4(odd_low, odd_high, 0xdd);
  }
  PITH_UNROLL for (int c = 0; c < Columns; ++c) _mm512_mask_storeu_epi32(to + c * to_stride, row_mask, b[c]);
}
#endif

#if defined(__AVX512F__) && !defined(PITH_NO_SIMD)
// At most 16 rows of any number of columns.
template <int Rows, int Columns>
PITH_INLINE void transpose_rows(std::byte const* from, std::int64_t from_stride, std::byte* to, std::int64_t to_stride) {
  constexpr int left = Columns % 16, whole_blocks = Columns - left;
  for (int c = 0; c < whole_blocks; c += 16) transpose_block<Rows, 16>(from + 4 * c, from_stride, to + c * to_stride, to_stride);
  if constexpr (left != 0) transpose_block<Rows, left>(from + 4 * whole_blocks, from_stride, to + whole_blocks * to_stride, to_stride);
}
#endif

template <int Rows, int Columns>
inline void transpose(std::byte const* from, std::int64_t from_stride, std::byte* to, std::int64_t to_stride) {
#if defined(__AVX512F__) && !defined(PITH_NO_SIMD)
  constexpr int left = Rows % 16, whole_blocks = Rows - left;
  for (int r = 0; r < whole_blocks; r += 16) transpose_rows<16, Columns>(from + r * from_stride, from_stride, to + 4 * r, to_stride);
  if constexpr (left != 0) transpose_rows<left, Columns>(from + whole_blocks * from_stride, from_stride, to + 4 * whole_blocks, to_stride);
#else
  for (int c = 0; c < Columns; ++c)
    for (int r = 0; r < Rows; ++r) std::memcpy(to + c * to_stride + 4 * r, from + r * from_stride + 4 * c, 4);
#endif
}

}  // namespace simd
}  // namespace PITH_ISA
}  // namespace pith
