// SPDX-License-Identifier: Apache-2.0
// Lossless bf16 tiles from rows, where bytes can be compressed (AVX-512 VBMI2): the bytes of the codec's own encoder.
//
// cost    rows are transposed once; 64 numbers are 2 subtractions, 8 instructions into bytes, 9 into planes and escapes. Choosing starts
// takes
//         20 instructions for every 64 numbers of the sample
#pragma once

#include "pith/cpu/dynamic_float_kernels.hpp"
#include "pith/cpu/row_source.hpp"
#include "pith/page/tile_engine.hpp"
#include "pith/simd/float_windows.hpp"

namespace pith {
inline namespace PITH_ISA {

template <class Tile>
inline constexpr bool encodes_windows = [] {
  if constexpr (has_windows<Tile> && simd::expands_bytes && Tile::used_for == use::dot)
    return divide_up(Tile::packed, Tile::sample_step) * 2 < 256;
  else
    return false;
}();

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
    std::int64_t const bytes = encode_escapes(escapes, count, tail);
    if (bytes < 0) return scalar(rows, row_stride, out, tail);
    store_le(out + 8, static_cast<std::uint32_t>(bytes));
    return bytes;
  }

 private:
  static constexpr int sampled = divide_up(Tile::packed, Tile::sample_step);

  static void choose_starts(source const& from, std::uint8_t* start) {
    std::uint32_t const certain = simd::likely_starts<Tile::span, sampled>(from.word[0], 32 * Tile::sample_step, start);
    for (std::uint32_t left = ~certain; left != 0; left &= left - 1) {
      int const row = std::countr_zero(left);
      alignas(64) std::uint8_t counts[256 + 64]{};
      for (int pair = 0; pair < Tile::packed; pair += Tile::sample_step) {
        ++counts[from.word[pair][row] >> 7 & 255u];
        ++counts[from.word[pair][row] >> 23 & 255u];
      }
      start[row] = static_cast<std::uint8_t>(simd::first_largest_sum<Tile::span>(counts));
    }
  }

  // The codec's encode_escapes; reads 64 bytes behind the escapes.
  static std::int64_t encode_escapes(std::uint8_t const* escapes, int count, std::byte* tail) {
    auto rank = Tile::coder::ranking::of(escapes, count, tail);
    std::int64_t const bytes = rank.bytes(count);
    if (bytes >= Tile::tail_bound) return -1;
    store_le(tail + 4, static_cast<std::uint16_t>(count));

    std::uint8_t further[Tile::count + 64];
    std::uint8_t* next = further;
    std::byte first[Tile::count / 8 + 8];
    for (int i = 0; i < count; i += 64) {
      std::uint64_t const others = simd::pack_others(escapes + i, count - i, static_cast<std::uint8_t>(tail[0]), next);
      store_le(first + i / 8, others);
      next += std::popcount(others);
    }
    std::byte* const second_at = std::copy_n(first, divide_up(count, 8), tail + byte_escapes::first_at);

    for (std::uint8_t& which : rank.which) --which;  // common[0] is not among the others
    std::byte second[Tile::count / 4 + 16];
    std::byte* raw = tail + bytes;
    for (int i = 0; i < rank.further; i += 64)
      for (std::uint64_t raws = simd::pack_codes(further + i, rank.further - i, rank.which, second + i / 4); raws != 0; raws &= raws - 1)
        *--raw = static_cast<std::byte>(further[i + std::countr_zero(raws)]);
    std::copy_n(second, divide_up(rank.further, 4), second_at);
    return bytes;
  }

  // Raw tiles, which are rare.
  static std::int64_t scalar(bf16 const* rows, std::int64_t row_stride, std::byte* out, std::byte* tail) {
    return scalar_tile_engine<Tile>::encode(rows, row_stride, out, tail);
  }
};

}  // namespace PITH_ISA
}  // namespace pith
