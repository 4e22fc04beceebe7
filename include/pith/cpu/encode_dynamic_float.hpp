// SPDX-License-Identifier: Apache-2.0
// Lossless bf16 tiles from rows, where bytes can be compressed (AVX-512 VBMI2): the bytes of the codec's own encoder.
//
// cost    rows are transposed once; 64 numbers are 2 subtractions, 8 instructions into bytes, 9 into planes and escapes. Choosing starts takes
//         half a count a number and a sum over 256 counts a row
#pragma once

#include "pith/cpu/dynamic_float_kernels.hpp"
#include "pith/cpu/row_source.hpp"
#include "pith/page/tile_engine.hpp"

namespace pith {
inline namespace PITH_ISA {

template <class Tile>
inline constexpr bool encodes_windows =
    has_windows<Tile> && simd::expands_bytes && Tile::used_for == use::dot && (Tile::packed / Tile::sample_step) * 2 < 256;

template <class Tile>
  requires encodes_windows<Tile>
struct window_encoder {
  using source = row_source<bf16, Tile::channels, Tile::tokens, use::dot>;

  static std::int64_t run(bf16 const* rows, std::int64_t row_stride, std::byte* out, std::byte* tail) {
    source const from(rows, row_stride);
    std::memset(out, 0, Tile::rest_at);
    alignas(64) std::uint32_t start[32];
    choose_starts(from, reinterpret_cast<std::uint8_t*>(out + Tile::starts_at));
    for (int row = 0; row < 32; ++row) start[row] = (Tile::start_of(out, row) << 7) * 0x10001u;

    std::uint8_t escapes[Tile::count + 64];
    int count = 0;
    for (int group = 0; group < Tile::groups; ++group) {
      std::byte* const section = out + group / 8 * Tile::section_bytes;
      simd::u32v words[simd::group_words];
      for (int v = 0; v < simd::group_words; ++v)
        words[v] = simd::sub16(from.words_at(group, v * simd::width), simd::u32v::load_unaligned(start + v * simd::width));
      simd::bytes64 rest, symbols;
      simd::split_bytes(words, rest, symbols);
      simd::store_bytes64(section + Tile::rest_at + 64 * (group % 8), rest);
      count += simd::window_planes(symbols, section + Tile::planes_at + 24 * (group % 8), escapes + count);
    }
    std::int64_t bytes = Tile::coder::encode_escapes(escapes, count, tail);
    if (bytes < 0) return scalar(rows, row_stride, out, tail);
    store_le(out + 8, static_cast<std::uint32_t>(bytes));
    return bytes;
  }

 private:
  static void choose_starts(source const& from, std::uint8_t* start) {
    alignas(64) std::uint8_t counts[32][256 + 64]{};
    for (int pair = 0; pair < Tile::packed; pair += Tile::sample_step)
      for (int row = 0; row < 32; ++row) {  // another row every time: a count is not waited for
        std::uint32_t const word = from.word[pair][row];
        ++counts[row][word >> 7 & 255u];
        ++counts[row][word >> 23 & 255u];
      }
    for (int row = 0; row < 32; ++row) start[row] = static_cast<std::uint8_t>(simd::first_largest_sum<Tile::span>(counts[row]));
  }

  // Raw tiles, which are rare.
  static std::int64_t scalar(bf16 const* rows, std::int64_t row_stride, std::byte* out, std::byte* tail) {
    return scalar_tile_engine<Tile>::encode(rows, row_stride, out, tail);
  }
};

}  // namespace PITH_ISA
}  // namespace pith
