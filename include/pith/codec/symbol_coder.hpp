// SPDX-License-Identifier: Apache-2.0
// Runs of symbols through eight interleaved rANS states that share one stream of bytes.
//
//   stream   the 8 states, 4 bytes each, then words of 2 bytes in the order in which decoding needs them
//   run      symbols of one context; symbol i of a run goes through state i mod 8, so that eight chains of dependent steps overlap
//   escape   followed in the same state by the plain bits of what has no symbol, in pieces of 12 and the rest
//
// The writer goes from the last symbol of the last run to the first of the first, downwards in memory; the reader forwards.
//
// errors  writer: `full` once fewer than 8 bytes are left, and nothing is written from then on
//         reader: reads nothing behind its end, what is missing counts as zeros; finished() notices most damage, not all of it
// cost    a division a symbol to write, about 4 ns; to read see docs/formats/stream.md
// from    Giesen, Interleaved entropy coders, 2014
#pragma once

#include "pith/codec/symbol_model.hpp"

namespace pith {

inline constexpr int symbol_lanes = 8;
inline constexpr std::int64_t symbol_states_bytes = 4 * symbol_lanes;

class symbol_writer {
 public:
  // Between begin and end; the stream will end at `end`.
  symbol_writer(std::byte* begin, std::byte* end) : begin_(begin), at_(end) {
    for (std::uint32_t& x : state_) x = rans_start;
  }

  // symbol(i) gives the symbols 0 .. count-1 of the run, from the last to the first; after an escape, plain(i) the bits of what it was.
  template <int PlainBits, class Symbol, class Plain>
  void run(symbol_model::table const& with, int count, Symbol&& symbol, Plain&& plain) {
    // In locals: bytes that are written might be this object's, for all a compiler knows.
    std::byte* at = at_;
    std::uint32_t state[symbol_lanes];
    for (int lane = 0; lane < symbol_lanes; ++lane) state[lane] = state_[lane];
    for (int i = count - 1; i >= 0; --i) {
      if (at - begin_ < most_bytes + symbol_states_bytes) {
        full_ = true;
        break;
      }
      std::uint32_t x = state[i % symbol_lanes];
      int s = symbol(i);
      if (with.of[s].frequency == 0) s = symbol_model::escape;
      if (s == symbol_model::escape) [[unlikely]]
        put_plain<PlainBits>(x, plain(i), at);
      // rans_put without its branch, which cannot be foreseen: the word is written in any case, below what counts, where there is room.
      rans_symbol const to = with.of[s];
      std::uint32_t const full = x >> (32 - symbol_model::frequency_bits) >= to.frequency;
      store_le(at - 2, static_cast<std::uint16_t>(x));
      at -= 2 * full;
      x >>= 16 * full;
      state[i % symbol_lanes] = (x / to.frequency << symbol_model::frequency_bits) + x % to.frequency + to.start;
    }
    for (int lane = 0; lane < symbol_lanes; ++lane) state_[lane] = state[lane];
    at_ = at;
  }

  bool full() const { return full_; }
  // The first byte of the finished stream.
  std::byte* finish() {
    for (int lane = symbol_lanes - 1; lane >= 0 && !full_; --lane) rans_put_state(state_[lane], at_);
    return at_;
  }

 private:
  static constexpr std::int64_t most_bytes = 8;  // of one symbol: a word each for it and for three pieces

  template <int Bits>
  static void put_plain(std::uint32_t& x, std::uint32_t value, std::byte*& to) {
    constexpr int rest = Bits % 12;
    for (int at = Bits - rest; at > 0; at -= 12) rans_put<12>(x, {1, static_cast<std::uint16_t>(value >> (at - 12 + rest) & 0xfffu)}, to);
    if constexpr (rest > 0) rans_put<rest>(x, {1, static_cast<std::uint16_t>(value & ((1u << rest) - 1u))}, to);
  }

  std::byte *begin_, *at_;
  std::uint32_t state_[symbol_lanes];
  bool full_ = false;
};

class symbol_reader {
 public:
  // False if there is no stream.
  bool start(std::byte const* from, std::byte const* end) {
    at_ = from, end_ = end;
    for (std::uint32_t& x : state_)
      if (!rans_get_state(x, at_, end_)) return false;
    return true;
  }

  // to(i, symbol) takes the symbols of the run; escaped(i, bits) what stood behind an escape, before to(i, escape).
  template <int PlainBits, class To, class Escaped>
  void run(symbol_model::table const& with, int count, To&& to, Escaped&& escaped) {
    std::byte const* at = at_;
    std::uint32_t state[symbol_lanes];
    for (int lane = 0; lane < symbol_lanes; ++lane) state[lane] = state_[lane];
    int i = 0;
    for (; i + symbol_lanes <= count && end_ - at >= symbol_lanes * most_bytes; i += symbol_lanes) PITH_UNROLL
    for (int lane = 0; lane < symbol_lanes; ++lane) {
      std::uint32_t const slot = rans_slot<symbol_model::frequency_bits>(state[lane]);
      std::uint8_t const s = with.symbol_at[slot];
      std::uint32_t const x = with.of[s].frequency * (state[lane] >> symbol_model::frequency_bits) + slot - with.of[s].start;
      std::uint32_t const word = load_le<std::uint16_t>(at);  // there are bytes enough for all of this round
      std::uint32_t const low = x < rans_start;               // no branch: which state needs bytes cannot be foreseen
      state[lane] = x << (16 * low) | (word & (0 - low));
      at += 2 * low;
      if (s == symbol_model::escape) [[unlikely]] {
        std::uint32_t copy = state[lane];  // so that the states and the place can stay in registers
        std::byte const* place = at;
        escaped(i + lane, get_plain<PlainBits>(copy, place));
        state[lane] = copy, at = place;
      }
      to(i + lane, s);
    }
    for (; i < count; ++i) {
      std::uint32_t& x = state[i % symbol_lanes];
      std::uint8_t const s = with.symbol_at[rans_slot<symbol_model::frequency_bits>(x)];
      rans_get<symbol_model::frequency_bits>(x, with.of[s], at, end_);
      if (s == symbol_model::escape) escaped(i, get_plain<PlainBits>(x, at));
      to(i, s);
    }
    for (int lane = 0; lane < symbol_lanes; ++lane) state_[lane] = state[lane];
    at_ = at;
  }

  // Whether exactly the stream was read.
  bool finished() const {
    for (std::uint32_t const x : state_)
      if (x != rans_start) return false;
    return at_ == end_;
  }

 private:
  static constexpr std::int64_t most_bytes = 8;

  template <int Bits>
  [[gnu::noinline]] std::uint32_t get_plain(std::uint32_t& x, std::byte const*& at) const {
    constexpr int rest = Bits % 12;
    std::uint32_t value = 0;
    if constexpr (rest > 0) value = get_piece<rest>(x, at);
    for (int shift = rest; shift < Bits; shift += 12) value |= get_piece<12>(x, at) << shift;
    return value;
  }
  template <int Bits>
  std::uint32_t get_piece(std::uint32_t& x, std::byte const*& at) const {
    std::uint32_t const piece = rans_slot<Bits>(x);
    rans_get<Bits>(x, {1, static_cast<std::uint16_t>(piece)}, at, end_);
    return piece;
  }

  std::byte const *at_ = nullptr, *end_ = nullptr;
  std::uint32_t state_[symbol_lanes] = {};
};

}  // namespace pith
