// SPDX-License-Identifier: Apache-2.0
// The symbols of rans_exponents (codec/exponent_rans.hpp) by a warp: a lane holds one of the 32 states, and where lanes want another byte
// of the one stream their ranks come from a ballot.
//
// errors  any bytes: a table whose frequencies do not sum to 256 is refused before the first symbol; bytes behind the stream's count as
// zeros cost    a step of 32 symbols is two reads that wait for each other, of the table and of the stream
#pragma once

#include "pith/codec/exponent_rans.hpp"
#include "pith/cuda/decode_floats.hpp"

namespace pith::device {

template <class Tile>
struct coder_symbols<Tile, rans_exponents> {
  using coder = typename Tile::coder;
  static constexpr int threads = warp_lanes, part = Tile::count < 2048 ? Tile::count : 2048;
  static constexpr int table_bytes = 256 * 4, shared_bytes = table_bytes + part;

  template <class Thread>
  PITH_HD bool open(Thread& t, int lane, std::byte const*, std::byte const* tail, std::int64_t tail_bytes, std::byte* shared) {
    tail_ = tail;
    int const bytes = t.shuffle(static_cast<int>(tail_bytes), 0);
    kind_ = t.shuffle(bytes < 2 ? 255 : static_cast<int>(tail[0]), 0);
    if (kind_ < 2) return bytes == (kind_ == 0 ? 1 + Tile::count : 2);
    if (kind_ > 2 + coder::most_tail_steps || bytes < 4) return false;
    symbol_set const set = load_symbols(tail + 4, bytes - 4);
    int const escapes = load_le_bytes(tail + 2), entries = set.number + (escapes > 0);
    bool const fits = set.number > 0 && entries >= 2 && bytes >= 4 + set.bytes + entries + 2 * coder::lanes + escapes;
    int own = 0;
    if (fits)
      for (int e = lane; e < entries; e += warp_lanes) own += static_cast<int>(tail[4 + set.bytes + e]) + 1;
    if (sum_before(t, own).total != 256) return false;
    auto* const slots = reinterpret_cast<std::uint32_t*>(shared);
    if (lane == 0) load_rans_slots(tail, slots);
    t.sync_warp();
    at_ = 4 + set.bytes + entries;
    state_ = static_cast<std::uint32_t>(load_le_bytes(tail + at_ + 2 * lane));
    at_ = t.shuffle(at_ + 2 * coder::lanes, 0);
    end_ = bytes - escapes;
    escape_ = end_, last_ = bytes;
    replaced_ = escapes > 0 ? static_cast<int>(tail[1]) : -1;
    return true;
  }

  template <class Thread>
  PITH_HD void read(Thread& t, int lane, std::byte const*, int number, std::byte* shared) {
    std::byte* const symbols = shared + table_bytes;
    if (kind_ < 2) {
      for (int i = lane; i < part && number + i < Tile::count; i += warp_lanes) symbols[i] = kind_ == 0 ? tail_[1 + number + i] : tail_[1];
      return;
    }
    auto const* const slots = reinterpret_cast<std::uint32_t const*>(shared);
    int const counted = coder::steps - (kind_ - 2), first = number / warp_lanes, steps = least(part / warp_lanes, coder::steps - first);
    for (int step = 0; step < steps; ++step) {
      std::uint32_t const slot = slots[state_ & 255u];
      bool const more = rans_take(state_, slot);
      if (first + step < counted) {
        std::uint32_t const wanted = t.ballot(more);
        int const from = at_ + rank_in(t, wanted);
        if (more) state_ = state_ << 8 | (from < end_ ? static_cast<std::uint32_t>(tail_[from]) : 0u);
        at_ += count_bits(wanted);
      }
      std::uint32_t symbol = slot & 255u;
      std::uint32_t const escaped = t.ballot(static_cast<int>(symbol) == replaced_);
      if (escaped != 0) {
        int const from = escape_ + rank_in(t, escaped);
        if ((escaped >> lane & 1u) != 0 && from < last_) symbol = static_cast<std::uint32_t>(tail_[from]);
        escape_ += count_bits(escaped);
      }
      symbols[step * warp_lanes + lane] = static_cast<std::byte>(symbol);
    }
  }
  PITH_HD static std::uint32_t at(std::byte const* shared, int i) { return static_cast<std::uint32_t>(shared[table_bytes + i]); }
  PITH_HD bool finished() const { return true; }  // all that check asks for was asked in open

 private:
  PITH_HD static int load_le_bytes(std::byte const* at) { return static_cast<int>(at[0]) | static_cast<int>(at[1]) << 8; }
  PITH_HD static int least(int a, int b) { return a < b ? a : b; }

  std::byte const* tail_ = nullptr;
  std::uint32_t state_ = 0;
  int kind_ = 0, at_ = 0, end_ = 0, escape_ = 0, last_ = 0, replaced_ = -1;
};

}  // namespace pith::device
