// SPDX-License-Identifier: Apache-2.0
// How the codes, scales and offsets of integer tiles come out of their words into vectors: shared by dot and mix.
#pragma once

#include "pith/codec/integer.hpp"
#include "pith/cpu/kernel.hpp"
#include "pith/simd/vec.hpp"

namespace pith {
inline namespace PITH_ISA {

// Scales of `width` neighbouring parameter indices of an integer tile, and the offsets o = b - middle s, so that x = u s + o.
template <class Storage>
PITH_INLINE simd::f32v scale_of(std::byte const* tile, std::int64_t index) {
  using scale_type = typename Storage::scale_type;
  return simd::load_scalars<scale_type>(tile + Storage::scale_at + index * static_cast<std::int64_t>(sizeof(scale_type)));
}
template <class Storage>
PITH_INLINE simd::f32v offset_of(std::byte const* tile, std::int64_t index, simd::f32v scale) {
  using scale_type = typename Storage::scale_type;
  if constexpr (Storage::zero_kind == zero::real) {
    return simd::load_scalars<scale_type>(tile + Storage::zero_at + index * static_cast<std::int64_t>(sizeof(scale_type)));
  } else if constexpr (Storage::zero_kind == zero::none) {
    return simd::all(-static_cast<float>(Storage::middle)) * scale;
  } else {
    float codes[simd::width];
    for (int i = 0; i < simd::width; ++i) codes[i] = -static_cast<float>(static_cast<int>(tile[Storage::zero_at + index + i]));
    return simd::load(codes) * scale;
  }
}

// Scales lie behind the codes but are needed with the first of them, which no stream of reads foretells.
template <class Storage, class Ask>
PITH_INLINE void ask_for_parameters(std::byte const* tile, Ask ask) {
  for (std::int64_t at = Storage::scale_at / 64 * 64; at < Storage::bytes; at += 64) ask(tile + at);
}

// Words of the higher planes that belong to 16 neighbouring codes, shifted to the first of them; nothing where codes are one plane.
template <class Layout>
struct high_words {
  simd::u32v plane[Layout::planes > 1 ? Layout::planes - 1 : 1];
};

// Of the codes [first, first + 16) of `width` lanes; first is a multiple of 16.
template <class Layout, class Ask = ask_nothing>
PITH_INLINE high_words<Layout> load_high(std::byte const* block, int first, int lane, Ask ask = {}) {
  high_words<Layout> high{};
  PITH_UNROLL for (int i = 1; i < Layout::planes; ++i) {
    int const word = Layout::words_before(i) + first / (32 / Layout::bits_of(i));
    std::byte const* const at = block + 4ll * (word * Layout::lanes + lane);
    simd::u32v const x = simd::load_words(at);
    ask(at);
    high.plane[i - 1] = Layout::bits_of(i) == 1 ? x >> (4 * (first / 16 % 2)) : x;
  }
  return high;
}

// x >> n, to the left for n < 0.
PITH_INLINE simd::u32v moved(simd::u32v x, int n) { return n > 0 ? x >> n : n < 0 ? x << -n : x; }

// The bytes of step `step` of a first-plane word, the `nth` of its 16 codes: four codes for dot4.
template <class Layout>
PITH_INLINE simd::u32v codes_of_step(simd::u32v words, high_words<Layout> const& high, int nth, int step) {
  constexpr std::uint32_t bytes = 0x01010101u;
  if constexpr (Layout::bits == 8) {
    return words;
  } else {
    simd::u32v codes = moved(words, step * Layout::plane_bits) & simd::u32v(((1u << Layout::plane_bits) - 1u) * bytes);
    PITH_UNROLL for (int i = 1; i < Layout::planes; ++i) {
      int const bits = Layout::bits_of(i), place = Layout::place_of(i);
      simd::u32v const mask((((1u << bits) - 1u) << place) * bytes);
      codes = codes | (moved(high.plane[i - 1], bits * (nth * Layout::per_byte + step) - place) & mask);
    }
    return codes;
  }
}

// The codes of field `i` of a first-plane word, the `nth` of its 16 codes, as f32 lanes.
template <class Layout>
PITH_INLINE simd::f32v codes_of_field(simd::u32v words, high_words<Layout> const& high, int nth, int i) {
  simd::u32v codes = simd::field<Layout::plane_bits>(words, i);
  PITH_UNROLL for (int plane = 1; plane < Layout::planes; ++plane) {
    int const bits = Layout::bits_of(plane), place = Layout::place_of(plane);
    int const at = 8 * (i / Layout::per_byte) + bits * (nth * Layout::per_byte + i % Layout::per_byte);
    codes = codes | (moved(high.plane[plane - 1], at - place) & simd::u32v(((1u << bits) - 1u) << place));
  }
  return simd::to_float(simd::as_int(codes));
}

}  // namespace PITH_ISA
}  // namespace pith
