// SPDX-License-Identifier: Apache-2.0
// The words of a staged block as mix's left operand (mix_block.hpp): for each channel four pairs of tokens, pair e being tokens 8t+e and 8t+4+e of
// lane (g, t), whatever the width of the codes.
//
//   4 to 7 bits   octet t is one word: its fields e and e + 4
//   2, 3 bits     half a word: bytes 2(t%2) and the next are moved 16 bits apart
//   8, 16 bits    two or four words: bytes e of two words, halves of two words
#pragma once

#include "pith/cuda/code_pairs.hpp"
#include "pith/cuda/dot_operand.hpp"
#include "pith/cuda/tile_stage.hpp"

namespace pith::device {

// Channels that a lane reads at once, Wide neighbours of them: 4, or 2 where 32 channels would not have one scale, or are not there.
template <class Storage>
inline constexpr int mix_width = [] {
  bool wide = Storage::channels % 32 == 0;
  if constexpr (is_integer_tile<Storage>) wide = wide && (Storage::along_tokens || Storage::group % 32 == 0);
  return wide ? 4 : 2;
}();

template <int Width>
struct channel_words {
  std::uint32_t at[Width];

  // The words of channels first .. of a staged row; first is a multiple of Width.
  template <class Stage>
  PITH_HD static channel_words load(std::byte const* stage, int row, int first) {
    std::byte const* const from = stage + Stage::place(row, first / 4);
    channel_words out;
    if constexpr (Width == 4) {
      word4 const four = load_word<word4>(from);
      PITH_UNROLL for (int i = 0; i < 4; ++i) out.at[i] = four.at[i];
    } else {
      word2 const two = load_word<word2>(from + 4 * (first % 4));
      out.at[0] = two.at[0], out.at[1] = two.at[1];
    }
    return out;
  }
};

template <class Storage>
struct mix_operand;

template <class Storage>
  requires is_integer_tile<Storage>
struct mix_operand<Storage> {
  using stage = tile_stage<Storage>;
  using element = f16;
  using codes = code_pairs<Storage::bits>;
  static constexpr int width = mix_width<Storage>;

  // Channels first .. first + width - 1.
  PITH_HD void load(std::byte const* from, int first, int t) {
    if constexpr (codes::bits_in_octet == 64) {
      words_[0] = words::template load<stage>(from, 2 * t, first);
      words_[1] = words::template load<stage>(from, 2 * t + 1, first);
    } else {
      int const word = codes::per_word == 8 ? t : t / 2;
      words_[0] = words::template load<stage>(from, word, first);
      PITH_UNROLL for (int p = 1; p < codes::planes; ++p)
        words_[p] = words::template load<stage>(from, stage::layout::words_before(p) + codes::row_of(p, word), first);
      PITH_UNROLL for (int p = 0; p < codes::planes; ++p)
        PITH_UNROLL for (int i = 0; i < width; ++i) {
          std::uint32_t& w = words_[p].at[i];
          if constexpr (codes::per_word == 16) w = pick_bytes(w, 0, t % 2 == 0 ? 0x4140 : 0x4342);
          if (p > 0) w >>= codes::shift_of(p, word);
        }
    }
  }
  PITH_HD std::uint32_t get(int channel, int e) const {
    if constexpr (codes::bits_in_octet == 64) {
      std::uint32_t const bytes = pick_bytes(words_[0].at[channel], words_[1].at[channel], e < 2 ? 0x5140 : 0x7362);
      return codes::get_bytes(bytes, e % 2 != 0);
    } else {
      std::uint32_t word[codes::planes];
      PITH_UNROLL for (int p = 0; p < codes::planes; ++p) word[p] = words_[p].at[channel];
      return codes::get(word, e);
    }
  }

 private:
  using words = channel_words<width>;
  words words_[codes::bits_in_octet == 64 ? 2 : codes::planes];
};

template <storage_scalar T, int Channels, use Use, int Tokens>
struct mix_operand<raw_tile<T, Channels, Use, Tokens>> {
  using stage = tile_stage<raw_tile<T, Channels, Use, Tokens>>;
  using element = T;
  static constexpr int width = mix_width<raw_tile<T, Channels, Use, Tokens>>;

  PITH_HD void load(std::byte const* from, int first, int t) {
    PITH_UNROLL for (int i = 0; i < 4; ++i) words_[i] = channel_words<width>::template load<stage>(from, 4 * t + i, first);
  }
  PITH_HD std::uint32_t get(int channel, int e) const {
    return pick_bytes(words_[e / 2].at[channel], words_[e / 2 + 2].at[channel], e % 2 == 0 ? 0x5410 : 0x7632);
  }

 private:
  channel_words<width> words_[4];
};

}  // namespace pith::device
