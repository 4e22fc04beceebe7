// SPDX-License-Identifier: Apache-2.0
// The words of a staged block as dot's left operand (dot_block.hpp), and the scales and biases that go with them.
#pragma once

#include "pith/cuda/code_pairs.hpp"
#include "pith/cuda/tile_stage.hpp"

namespace pith::device {

// N scales or zeros that lie next to each other, as f32; `from` is aligned to all of them or to 16 bytes.
template <class Scale, int N>
PITH_HD inline void load_scales(std::byte const* from, float (&out)[N]) {
  constexpr int bytes = N * static_cast<int>(sizeof(Scale));
  if constexpr (bytes % 4 != 0) {
    PITH_UNROLL for (int i = 0; i < N; ++i) out[i] = scale_at<Scale>(from + i * static_cast<int>(sizeof(Scale)));
  } else {
    constexpr int words = bytes / 4;
    std::uint32_t word[words];
    if constexpr (words % 4 == 0) {
      PITH_UNROLL for (int i = 0; i < words; i += 4) {
        word4 const four = load_word<word4>(from + 4 * i);
        PITH_UNROLL for (int j = 0; j < 4; ++j) word[i + j] = four.at[j];
      }
    } else if constexpr (words == 2) {
      word2 const two = load_word<word2>(from);
      word[0] = two.at[0], word[1] = two.at[1];
    } else {
      PITH_UNROLL for (int i = 0; i < words; ++i) word[i] = load_word<std::uint32_t>(from + 4 * i);
    }
    PITH_UNROLL for (int i = 0; i < N; ++i) {
      if constexpr (sizeof(Scale) == 4)
        out[i] = bits_float(word[i]);
      else if constexpr (sizeof(Scale) == 2)
        out[i] = i % 2 == 0 ? low_of<Scale>(word[i / 2]) : high_of<Scale>(word[i / 2]);
      else
        out[i] = bits_float((word[i / 4] >> (8 * (i % 4)) & 0xffu) << 23);  // e8m0
    }
  }
}

// Scale and bias of N neighbouring entries `first` .. of parameter row `row`: x = (u - middle) scale + bias.
template <class Storage, int N>
PITH_HD inline void load_parameters(std::byte const* parameters, int row, int first, float (&scale)[N], float (&bias)[N]) {
  using scalar = typename Storage::scale_type;
  int const at = row * Storage::group_lanes + first;
  load_scales<scalar>(parameters + at * static_cast<int>(sizeof(scalar)), scale);
  std::byte const* const zeros = parameters + tile_stage<Storage>::zero_at;
  if constexpr (Storage::zero_kind == zero::real) {
    load_scales<scalar>(zeros + at * static_cast<int>(sizeof(scalar)), bias);
    PITH_UNROLL for (int i = 0; i < N; ++i) bias[i] = Storage::bias(scale[i], bias[i], 0);
  } else if constexpr (Storage::zero_kind == zero::integer) {
    PITH_UNROLL for (int i = 0; i < N; ++i)
      bias[i] = Storage::bias(scale[i], 0, static_cast<int>(load_word<std::uint8_t>(zeros + at + i)));
  } else {
    PITH_UNROLL for (int i = 0; i < N; ++i) bias[i] = 0;
  }
}

template <class Storage>
struct dot_operand;

template <class Storage>
  requires is_integer_tile<Storage>
struct dot_operand<Storage> {
  using stage = tile_stage<Storage>;
  using element = f16;
  using codes = code_pairs<Storage::bits>;
  static constexpr bool is_integer = true;
  static constexpr int word_rows = stage::layout::words;
  static constexpr int units = static_cast<int>(divide_up(word_rows, 4));
  static constexpr int pairs = codes::pairs;
  static constexpr int unit_channels = 4 * codes::per_word;

  // The word row that the lanes t of a unit read. There may be none behind the last: they read row 0, and their queries are 0.
  PITH_HD static constexpr int word_of(int unit, int t) noexcept {
    return word_rows % 4 == 0 || 4 * unit + t < word_rows ? 4 * unit + t : 0;
  }
  // Channel of a pair's lower or upper half; not below Storage::channels where there is none.
  PITH_HD static constexpr int channel(int unit, int t, int pair, int half) noexcept {
    return (4 * unit + t) * codes::per_word + pair + half * pairs;
  }
  // The first of the four rows that lanes 4 g to 4 g + 3 read.
  PITH_HD static constexpr int first_row(int g) noexcept { return 4 * g; }

  PITH_HD void load(std::byte const* from, int unit, int lane) {
    int const g = lane / 4, row = word_of(unit, lane % 4);
    plane_[0] = load_word<word4>(from + (word_rows % 4 == 0 ? stage::place(lane % 4, g) + 4 * unit * stage::pitch : stage::place(row, g)));
    PITH_UNROLL for (int p = 1; p < codes::planes; ++p) {
      plane_[p] = load_word<word4>(from + stage::place(stage::layout::words_before(p) + codes::row_of(p, row), g));
      PITH_UNROLL for (int e = 0; e < 4; ++e) plane_[p].at[e] >>= codes::shift_of(p, row);
    }
  }
  // Two channels of row 4g + e.
  template <bool Centred>
  PITH_HD std::uint32_t get(int e, int pair) const {
    std::uint32_t word[codes::planes];
    PITH_UNROLL for (int p = 0; p < codes::planes; ++p) word[p] = plane_[p].at[e];
    return codes::template get<Centred>(word, pair);
  }

  // A power of two that brings the largest scale of a parameter row, whose entries are channels, below 2; 1 for f16, whose product with a
  // query below 1 is an f16.
  template <class Thread>
  PITH_HD static float largest_scale(Thread& t, std::byte const* parameters, int row) {
    using scalar = typename Storage::scale_type;
    if constexpr (__is_same(scalar, f16)) {
      return 1.0f;
    } else {
      float most = 0;
      for (int c = t.lane(); c < Storage::channels; c += warp_lanes) {
        float const scale = scale_at<scalar>(parameters + (row * Storage::group_lanes + c) * static_cast<int>(sizeof(scalar)));
        most = larger(most, scale);
      }
      return power_below(largest_over_lanes(t, most));
    }
  }

 private:
  word4 plane_[codes::planes];
};

template <storage_scalar T, int Channels, use Use, int Tokens>
struct dot_operand<raw_tile<T, Channels, Use, Tokens>> {
  using stage = tile_stage<raw_tile<T, Channels, Use, Tokens>>;
  using element = T;
  static constexpr bool is_integer = false;
  static constexpr int units = Channels / 16;
  static constexpr int pairs = 2;
  static constexpr int unit_channels = 16;

  PITH_HD static constexpr int channel(int unit, int t, int pair, int half) noexcept { return 2 * (8 * unit + 4 * pair + t) + half; }
  PITH_HD static constexpr int first_row(int g) noexcept { return 4 * g; }

  PITH_HD void load(std::byte const* from, int unit, int lane) {
    PITH_UNROLL for (int p = 0; p < 2; ++p) row_[p] =
        load_word<word4>(from + stage::place(lane % 4, lane / 4) + (8 * unit + 4 * p) * stage::pitch);
  }
  template <bool>
  PITH_HD std::uint32_t get(int e, int pair) const {
    return row_[pair].at[e];
  }

 private:
  word4 row_[2];
};

}  // namespace pith::device
