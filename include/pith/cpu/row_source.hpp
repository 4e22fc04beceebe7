// SPDX-License-Identifier: Apache-2.0
// Rows of numbers seen along the lanes of a layout: at(packed, lane) is `width` neighbouring lanes of one packed index.
//
//   use::mix   lanes run over channels: a row is read as it lies
//   use::dot   lanes run over tokens: blocks of rows are transposed once, as words of one f32 or two 16-bit numbers
#pragma once

#include "pith/codec/concept.hpp"
#include "pith/simd/numbers.hpp"
#include "pith/simd/transpose.hpp"

namespace pith {
inline namespace PITH_ISA {

// One block of Tokens rows.
template <storage_scalar T, int Channels, int Tokens, use Use>
struct row_source;

template <storage_scalar T, int Channels, int Tokens>
struct row_source<T, Channels, Tokens, use::mix> {
  T const* rows;
  std::int64_t stride;

  row_source(T const* first, std::int64_t row_stride) : rows(first), stride(row_stride) {}
  PITH_INLINE simd::f32v at(int token, int channel) const { return simd::load_numbers<T>(rows + token * stride + channel); }
  // 16-bit numbers: the bits of at(2 * word, ...) below those of at(2 * word + 1, ...).
  PITH_INLINE simd::u32v words_at(int word, int channel) const {
    T const* const at = rows + 2 * word * stride + channel;
    return simd::load_bits(at) | (simd::load_bits(at + stride) << 16);
  }
};

template <storage_scalar T, int Channels, int Tokens>
struct row_source<T, Channels, Tokens, use::dot> {
  static constexpr int per_word = 4 / static_cast<int>(sizeof(T));
  static constexpr int words = Channels / per_word;
  alignas(64) std::uint32_t word[words][Tokens];

  row_source(T const* rows, std::int64_t row_stride) {
    simd::transpose<Tokens, words>(reinterpret_cast<std::byte const*>(rows), row_stride * static_cast<std::int64_t>(sizeof(T)),
                                   reinterpret_cast<std::byte*>(word), 4 * Tokens);
  }
  PITH_INLINE simd::f32v at(int channel, int token) const {
    constexpr int flip = std::endian::native == std::endian::big ? per_word - 1 : 0;
    return simd::half_to_float<T>(simd::u32v::load_unaligned(&word[channel / per_word][token]), channel % per_word ^ flip);
  }
  PITH_INLINE simd::u32v words_at(int at, int token) const { return simd::u32v::load_unaligned(&word[at][token]); }
};

}  // namespace PITH_ISA
}  // namespace pith
