// SPDX-License-Identifier: Apache-2.0
// Lossless bf16 weights (dynamic_float<bf16>) for a product: fixed parts by the ring, tails beside it, numbers in registers as they are
// multiplied.
//
//   piece     4 sections of a tile, 64 columns: 2816 bytes, and of these the symbols expand in shared memory (window_symbols.hpp)
//   tail      a tile's header and tail are copied with its first piece, up to 512 bytes of the tail; what is longer is read where it lies.
//   Where
//             the next tile's tail is was loaded a step before
//   operand   one word of two bf16 from rests and symbols by a byte permutation, and the row's start added to both halves
//
// The operand of the tensor core is the weight, bit for bit: NaN payloads, infinities and subnormals included.
//
// errors  a tile that no reader understands sets the status word to bad_format, `at` its first byte; its rows get wrong numbers
#pragma once

#include "pith/cuda/decode_floats.hpp"
#include "pith/cuda/linear_feed.hpp"

namespace pith::device {

template <int Channels>
using window_tile = dynamic_float_tile<bf16, exponent_window, 7, Channels, use::dot>;

template <class Tile>
inline constexpr bool is_window_tile = false;
template <int Channels>
inline constexpr bool is_window_tile<window_tile<Channels>> = true;

template <int Channels>
struct linear_piece<window_tile<Channels>> {
  using storage = window_tile<Channels % 64 == 0 ? 64 : 32>;
};

// What an operand reads: rests and symbols in shared memory, and this lane's four rows' starts.
struct window_view {
  std::byte const *rests, *symbols;
  std::uint32_t start[4];  // << 7, in both halves
};

// Where the four rows of lanes 4 g .. 4 g + 3 begin: eight neighbouring numbers of a group are two of each.
PITH_HD constexpr int window_row(int g) noexcept { return 16 * (g % 2) + 4 * (g / 2); }

template <int Channels>
struct dot_operand<window_tile<Channels>> {
  using tile = window_tile<Channels>;
  using element = bf16;
  static constexpr bool is_integer = false;
  static constexpr int units = Channels / 16, pairs = 2, unit_channels = 16;  // a unit is a section

  PITH_HD static constexpr int channel(int unit, int t, int pair, int half) noexcept { return 2 * (8 * unit + 4 * pair + t) + half; }
  PITH_HD static constexpr int first_row(int g) noexcept { return window_row(g); }

  PITH_HD void load(window_view const& from, int unit, int lane) {
    int const g = lane / 4, t = lane % 4;
    PITH_UNROLL for (int p = 0; p < 2; ++p) {
      word2 const rest = load_word<word2>(from.rests + unit * tile::section_bytes + 256 * p + 64 * t + 8 * g);
      word2 const symbol = load_word<word2>(from.symbols + 512 * unit + 256 * p + 64 * t + 16 * (g / 2 ^ (2 * p + t / 2)) + g % 2 * 8);
      row_[p].at[0] = with_start(pick_bytes(rest.at[0], symbol.at[0], 0x5140), from.start[0]);
      row_[p].at[1] = with_start(pick_bytes(rest.at[0], symbol.at[1], 0x5342), from.start[1]);
      row_[p].at[2] = with_start(pick_bytes(rest.at[1], symbol.at[0], 0x7160), from.start[2]);
      row_[p].at[3] = with_start(pick_bytes(rest.at[1], symbol.at[1], 0x7362), from.start[3]);
    }
  }
  template <bool>
  PITH_HD std::uint32_t get(int e, int pair) const {
    return row_[pair].at[e];
  }

 private:
  // The sum of both halves modulo 2^16: an escape below its row's start carries out of the sign.
  PITH_HD static std::uint32_t with_start(std::uint32_t two, std::uint32_t start) noexcept {
    return ((two & 0x7fff7fffu) + start) ^ (two & 0x80008000u);
  }

  word4 row_[2];
};

template <int Channels>
struct linear_feed<window_tile<Channels>> {
  using tile = window_tile<Channels>;
  using storage = typename linear_piece<tile>::storage;
  static constexpr int pieces = Channels / storage::channels, blocks = 1;
  static constexpr int sections = storage::channels / 16;  // of a piece
  static constexpr std::int64_t piece_bytes = sections * tile::section_bytes;
  static constexpr int most_tail = 512;  // bytes that are copied, from a multiple of 16 on
  static constexpr int head_bytes = 64 + most_tail;
  static constexpr int ring_bytes = static_cast<int>(piece_bytes);
  static constexpr int heads = 1 + (3 + pieces - 1) / pieces;  // this tile's and those that three pieces ahead belong to
  static constexpr int own_bytes = heads * head_bytes + window_symbols::bytes;
  static constexpr int least_run = pieces;

  struct matrix {
    std::byte const* data;
    std::int64_t fixed, size;  // bytes
    std::uint64_t* status;
  };
  std::byte const* from = nullptr;

  template <class Thread>
  PITH_HD void seek(Thread&, matrix const& m, std::int64_t piece) {
    at_ = piece / pieces * tile::bytes;
    from = m.data + at_;
    piece_ = 0;
    place_ = place_of(from);
  }

  template <class Thread>
  PITH_HD void start(Thread& t, matrix const& m, std::byte* to, std::byte* own, int) {
    if (piece_ == 0) {
      std::byte* const head = own + head_ * head_bytes;
      if (t.lane() < 4) t.copy16(head + 16 * t.lane(), from + 16 * t.lane());
      if (std::byte const* const tail = find_tail<tile>(m.data, at_, m.fixed, m.size, place_); tail != nullptr) {
        auto const past = past_of(tail);
        if (16 * t.lane() < past + place_.bytes) t.copy16(head + 64 + 16 * t.lane(), tail - past + 16 * t.lane());
      }
      from += tile::rest_at;
      head_ = head_ + 1 == heads ? 0 : head_ + 1;
    }
    constexpr int granules = static_cast<int>(piece_bytes / 16);
    PITH_UNROLL for (int first = 0; first < granules; first += warp_lanes) if (granules % warp_lanes == 0 || first + t.lane() < granules)
        t.copy16(to + 16 * (first + t.lane()), from + 16 * (first + t.lane()));
    from += piece_bytes;
    if (++piece_ == pieces) {
      piece_ = 0;
      at_ += tile::bytes;
      if (at_ < m.fixed) place_ = place_of(from);  // there may be no next one; then it is not started
    }
  }

  // Of the same pieces, in the same order.
  class reader {
   public:
    template <class Thread>
    PITH_HD window_view view(Thread& t, matrix const& m, std::byte const* stage, std::byte* own, std::int64_t piece) {
      std::byte* const symbols = own + heads * head_bytes;
      if (piece_ == 0) open(t, m, own + head_ * head_bytes, piece / pieces * tile::bytes);
      int const group = piece_ * sections * 8;
      bool const here = t.lane() < sections * 8;
      symbols_.expand(t,
                      here ? stage + (tile::planes_at - tile::rest_at) + tile::coder::plane_at(t.lane(), 0, tile::section_bytes) : nullptr,
                      group, symbols);
      t.sync_warp();
      if (++piece_ == pieces) {
        piece_ = 0;
        head_ = head_ + 1 == heads ? 0 : head_ + 1;
        if (!symbols_.finished()) t.store_once(m.status, bad_tile(piece / pieces * tile::bytes));
      }
      return {stage, symbols, {start_[0], start_[1], start_[2], start_[3]}};
    }

   private:
    template <class Thread>
    PITH_HD void open(Thread& t, matrix const& m, std::byte const* head, std::int64_t at) {
      std::uint32_t const four = load_word<std::uint32_t>(head + tile::starts_at + window_row(t.lane() / 4));
      PITH_UNROLL for (int e = 0; e < 4; ++e) start_[e] = (four >> (8 * e) & 0xffu) * 0x00800080u;
      tail_place const place = place_of(head);
      std::byte const* tail = find_tail<tile>(m.data, at, m.fixed, m.size, place);
      if (tail != nullptr && past_of(tail) + place.bytes <= most_tail) tail = head + 64 + past_of(tail);
      symbols_.open(t, tail, tail == nullptr ? 0 : place.bytes, tile::count);
    }

    window_symbols symbols_;
    std::uint32_t start_[4];
    int piece_ = 0, head_ = 0;
  };

 private:
  PITH_HD static tail_place place_of(std::byte const* head) {
    return {static_cast<std::int64_t>(load_word<std::uint64_t>(head)), load_word<std::uint32_t>(head + 8)};
  }
  PITH_HD static std::int64_t past_of(std::byte const* tail) {
    return static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(tail) % 16);
  }

  tail_place place_{};   // of the next tile to start
  std::int64_t at_ = 0;  // its first byte
  int piece_ = 0, head_ = 0;
};

}  // namespace pith::device
