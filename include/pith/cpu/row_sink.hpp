// SPDX-License-Identifier: Apache-2.0
// Rows of numbers written along the lanes of a layout: put(packed, lane, a, b) sets `width` neighbouring lanes of the packed indices
// `packed` (even) and packed + 1.
//
//   use::mix   lanes run over channels: straight into the rows
//   use::dot   lanes run over tokens: into words of one f32 or two 16-bit numbers, which finish() transposes
#pragma once

#include "pith/codec/concept.hpp"
#include "pith/simd/numbers.hpp"
#include "pith/simd/transpose.hpp"

namespace pith {
inline namespace PITH_ISA {

// One block of Tokens rows.
template <storage_scalar T, int Channels, int Tokens, use Use>
struct row_sink;

template <storage_scalar T, int Channels, int Tokens>
struct row_sink<T, Channels, Tokens, use::mix> {
  T* rows;
  std::int64_t stride;

  row_sink(T* first, std::int64_t row_stride) : rows(first), stride(row_stride) {}
  PITH_INLINE void put(int token, int channel, simd::f32v a, simd::f32v b) {
    simd::store_numbers<T>(rows + token * stride + channel, a);
    simd::store_numbers<T>(rows + (token + 1) * stride + channel, b);
  }
  void finish() {}
};

template <storage_scalar T, int Channels, int Tokens>
struct row_sink<T, Channels, Tokens, use::dot> {
  static constexpr int per_word = 4 / static_cast<int>(sizeof(T));
  static constexpr int words = Channels / per_word;
  T* rows;
  std::int64_t stride;
  alignas(64) std::uint32_t word[words][Tokens];

  row_sink(T* first, std::int64_t row_stride) : rows(first), stride(row_stride) {}
  PITH_INLINE void put(int channel, int token, simd::f32v a, simd::f32v b) {
    if constexpr (per_word == 1) {
      simd::as_words(a).store_unaligned(&word[channel][token]);
      simd::as_words(b).store_unaligned(&word[channel + 1][token]);
    } else {
      constexpr bool big = std::endian::native == std::endian::big;  // the first number is the low half, or the high one
      simd::u32v const low = simd::bits_of<T>(big ? b : a), high = simd::bits_of<T>(big ? a : b);
      (low | (high << 16)).store_unaligned(&word[channel / 2][token]);
    }
  }
  void finish() {
    simd::transpose<words, Tokens>(reinterpret_cast<std::byte const*>(word), 4 * Tokens, reinterpret_cast<std::byte*>(rows),
                                   stride * static_cast<std::int64_t>(sizeof(T)));
  }
};

}  // namespace PITH_ISA
}  // namespace pith
