// SPDX-License-Identifier: Apache-2.0
// dot and mix over tiles of 16-bit numbers that come back a group of 64 at a time, as the words of the raw tile of the same numbers.
//
//   with_groups<Tile>(tile, use, ask)     a codec's: use(source), and source(group, words) gives the groups in their order
//   expand_tile<Tile>(tile, raw, ask)     a codec's: the whole raw tile
//
// Fused: words go from the source to the products in registers, no decoded copy exists. Else a tile is expanded into a raw one in the
// first-level cache. Sums are those of the raw kernels, bit for bit.
#pragma once

#include "pith/cpu/raw_pairs.hpp"
#include "pith/simd/float_parts.hpp"

namespace pith {
inline namespace PITH_ISA {

template <class Tile>
inline constexpr bool in_groups = false;  // whether there are these two

template <class Tile>
using raw_form = raw_tile<typename Tile::scalar, Tile::channels, Tile::used_for>;

// What a source of groups gives, one after the other, into a raw tile.
template <int Groups, class Source>
PITH_INLINE void write_groups(Source source, std::byte* raw) {
  for (int group = 0; group < Groups; ++group) {
    simd::u32v words[simd::group_words];
    source(group, words);
    PITH_UNROLL for (int v = 0; v < simd::group_words; ++v) simd::store_words(raw + 128ll * group + 4ll * v * simd::width, words[v]);
  }
}

template <class Tile, class Accuracy, int M, bool Fused>
struct dot_by_groups {
  using storage = Tile;
  using over_raw = dot_kernel<raw_form<storage>, Accuracy, M>;
  using query = typename over_raw::query;

  template <class... Scale>
    requires(requires(float const* q, query& out, Scale... scale) { over_raw::prepare(q, out, scale...); })
  static void prepare(float const* q, query& out, Scale... scale) {
    over_raw::prepare(q, out, scale...);
  }

  template <class Ask = ask_nothing>
  static void run(std::byte const* tile, query const& q, float* scores, int stride, [[maybe_unused]] Ask ask = {}) {
    if constexpr (Fused) {
      auto const multiply = [&](auto source) {
        over_raw::run_words([source](int word, int, simd::u32v(&x)[simd::group_words]) mutable { source(word, x); }, q, scores, stride);
      };
      with_groups<storage>(tile, multiply, ask);
    } else {
      alignas(64) std::byte raw[raw_form<storage>::bytes];
      expand_tile<storage>(tile, raw, ask_nothing{});
      over_raw::run(raw, q, scores, stride);
    }
  }
};

template <class Tile, class Accuracy, int M>
struct mix_by_groups {
  using storage = Tile;

  template <class Ask = ask_nothing>
  static void run(std::byte const* tile, float const* weights, int stride, float* sums, Ask ask = {}) {
    alignas(64) std::byte raw[raw_form<storage>::bytes];
    expand_tile<storage>(tile, raw, ask);
    mix_kernel<raw_form<storage>, Accuracy, M>::run(raw, weights, stride, sums);
  }
};

}  // namespace PITH_ISA
}  // namespace pith
