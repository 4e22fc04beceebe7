// SPDX-License-Identifier: Apache-2.0
// dot, mix, encode and decode of pruned tiles: 64 bits of the bitmap and the numbers that they name make a group of a raw tile.
//
//   dot   where halves expand (AVX-512 VBMI2), in registers up to the products
//
// cost    64 numbers: AVX-512 two expansions (2 shuffles each), two moves to masks, two counts; AVX2 eight shuffles, loads and counts
#pragma once

#include "pith/codec/bitmap_sparse.hpp"
#include "pith/cpu/decode.hpp"
#include "pith/cpu/group_kernels.hpp"
#include "pith/cpu/row_source.hpp"
#include "pith/page/tile_engine.hpp"
#include "pith/simd/expand.hpp"

namespace pith {
inline namespace PITH_ISA {

template <class Tile>
inline constexpr bool has_bitmap = false;
template <class T, int Channels, use Use>
inline constexpr bool has_bitmap<bitmap_sparse_tile<T, Channels, Use>> = true;
template <class T, int Channels, use Use>
inline constexpr bool in_groups<bitmap_sparse_tile<T, Channels, Use>> = true;

// Both streams are asked for, far ahead: numbers alone 4096 bytes ahead made a product from memory 1.6 times as fast (1024 ahead: 1.25),
// and the bitmap another 5 %.
struct bitmap_source {
  std::byte const *bits, *next;

  PITH_INLINE void operator()(int, simd::u32v (&words)[simd::group_words]) {
    simd::prefetch(next + 4096);
    simd::prefetch(bits + 1024);
    next = simd::expand_halves(load_le<std::uint64_t>(bits), next, words);
    bits += 8;
  }
};

template <class Tile, class Use, class Ask = ask_nothing>
requires has_bitmap<Tile> PITH_INLINE void with_groups(std::byte const* tile, Use use_source, Ask = {}) {
  use_source(bitmap_source{tile + Tile::bitmap_at, tail_place::tail(tile)});
}

template <class Tile, class Ask = ask_nothing>
requires has_bitmap<Tile> PITH_INLINE void expand_tile(std::byte const* tile, std::byte* raw, Ask = {}) {
  write_groups<Tile::groups>(bitmap_source{tile + Tile::bitmap_at, tail_place::tail(tile)}, raw);
}

// The codec's own bytes, from rows of its type.
template <class Tile>
requires(has_bitmap<Tile>&& simd::expands_halves) inline std::int64_t
    encode_bitmap(typename Tile::scalar const* rows, std::int64_t row_stride, std::byte* out, std::byte* tail) {
  constexpr int blocks = Tile::used_for == use::dot ? 1 : Tile::channels / 32;
  row_source<typename Tile::scalar, Tile::channels, Tile::tokens, Tile::used_for> const from(rows, row_stride);
  std::memset(out, 0, Tile::bitmap_at);
  std::byte* next = tail;
  for (int group = 0; group < Tile::groups; ++group) {
    simd::u32v words[simd::group_words];
    PITH_UNROLL for (int v = 0; v < simd::group_words; ++v) words[v] = from.words_at(group / blocks, group % blocks * 32 + v * simd::width);
    store_le(out + Tile::bitmap_at + 8 * group, simd::compress_halves(words, next));
  }
  store_le(out + 8, static_cast<std::uint32_t>(next - tail));
  return next - tail;
}

template <class T, int Channels, class Accuracy, int M>
struct dot_kernel<bitmap_sparse_tile<T, Channels, use::dot>, Accuracy, M>
    : dot_by_groups<bitmap_sparse_tile<T, Channels, use::dot>, Accuracy, M, simd::expands_halves> {};

template <class T, int Channels, class Accuracy, int M>
struct mix_kernel<bitmap_sparse_tile<T, Channels, use::mix>, Accuracy, M>
    : mix_by_groups<bitmap_sparse_tile<T, Channels, use::mix>, Accuracy, M> {};

}  // namespace PITH_ISA
}  // namespace pith
