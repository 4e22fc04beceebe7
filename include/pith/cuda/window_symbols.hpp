// SPDX-License-Identifier: Apache-2.0
// The symbols of exponent_window (codec/exponent_window.hpp) by a warp: a lane expands the planes of one group of 64 numbers, and what is
// not in them comes from the tail, group after group.
//
//   planes     sign, low and high bit of a code are three bits of a nibble; a byte permutation looks up four of them. Code 3 becomes the
//              tail's common[0], which two of three escapes of trained weights are
//   escapes    ranks by prefix sums over lanes; a group's bits of the first stage go to the places of its escapes
//   further    those that are not common[0] are listed in order; then a lane takes one, reads its 2 bits, or its byte, and stores it
//
// Symbols go to shared memory: | 64 bytes for each group | the list |. In a group, each 8 numbers lie as 0 1 4 5 2 3 6 7, so that
// a byte permutation of them and the rests gives two numbers (window_feed.hpp); granules of 16 bytes are moved so that neither the lanes
// of this header nor the operand's have a bank conflict.
//
// errors  any bytes: reads stay inside the tail and its padding, and finished() says whether it was the list that the planes want
// cost    about 7 instructions a trained weight, of which 4.7 are for escapes (docs/cuda.md)
#pragma once

#include "pith/codec/dynamic_float.hpp"
#include "pith/cuda/thread.hpp"

namespace pith::device {

class window_symbols {
 public:
  static constexpr int groups = warp_lanes;  // that expand() takes at once
  static constexpr int listed = 64;          // numbers at once; a piece of trained weights has about 35
  static constexpr int bytes = groups * 64 + 2 * (listed + warp_lanes);  // of shared memory, 16-byte aligned

  // Where number j of a group lies.
  PITH_HD static constexpr unsigned place(unsigned group, unsigned j) noexcept {
    return 64 * group + 16 * (j / 16 ^ group / 2 % 4) + (j & 9) + (j & 2) * 2 + (j & 4) / 2;
  }

  // A tail of so many bytes, of a tile of `count` numbers. Before the first group of a tile.
  template <class Thread>
  PITH_HD void open(Thread& t, std::byte const* tail, std::int64_t tail_bytes, int count) {
    auto const past = static_cast<unsigned>(reinterpret_cast<std::uintptr_t>(tail) % 4);
    words_ = tail - past;
    first_bit_ = 8 * past;
    bytes_ = t.shuffle(static_cast<int>(tail_bytes), 0);  // now known to be the same in all lanes
    raw_ = bytes_ == count;
    escapes_ = second_ = taken_ = further_ = raws_ = 0;
    good_ = bytes_ >= static_cast<int>(byte_escapes::first_at);
    if (raw_ || !good_) return;
    std::uint64_t const head = bits_at(0);
    common_ = static_cast<std::uint32_t>(head);
    escapes_ = t.shuffle(static_cast<int>(head >> 32 & 0xffffu), 0);
    second_ = static_cast<int>(byte_escapes::first_at) + (escapes_ + 7) / 8;
    good_ = second_ <= bytes_;
  }
  // Whether all of a tile's groups found what they wanted, and nothing is left.
  PITH_HD bool finished() const { return raw_ || (good_ && taken_ == escapes_ && second_ + (further_ + 3) / 4 + raws_ == bytes_); }

  // The next groups of a tile, the first of which is its number `group`: `planes` are those of this lane's, null if there is none. Behind a
  // barrier of the warp the symbols may be read.
  template <class Thread>
  PITH_HD void expand(Thread& t, std::byte const* planes, int group, std::byte* symbols) {
    std::byte* const own = symbols + 64 * t.lane();
    int const key = t.lane() / 2 % 4;
    if (raw_) {
      if (planes != nullptr) copy_raw(static_cast<unsigned>(64 * (group + t.lane())), own, key);
      return;
    }
    word2 sign{}, low{}, high{};
    if (planes != nullptr) {
      sign = load_word<word2>(planes), low = load_word<word2>(planes + 8), high = load_word<word2>(planes + 16);
      std::uint32_t const table = 0x00020100u | (common_ & 0x7fu) << 24;
      PITH_UNROLL for (int half = 0; half < 2; ++half) {
        word4 out[2];
        look_up(sign.at[half], low.at[half], high.at[half], table, out);
        PITH_UNROLL for (int i = 0; i < 2; ++i) store_word(own + 16 * ((2 * half + i) ^ key), out[i]);
      }
    }
    std::uint32_t const escape[2] = {low.at[0] & high.at[0], low.at[1] & high.at[1]};
    int const in_low = count_bits(escape[0]), number = in_low + count_bits(escape[1]);
    lane_sum const escapes = sum_before(t, number);
    good_ = good_ && taken_ + escapes.total <= escapes_;
    // Votes: only then does the compiler know that the warp stays together.
    if (t.any(!good_ || escapes.total == 0)) return;

    // In stream order: bit i of `bits` is whether escape i of this lane is a further one.
    std::uint64_t const bits = bits_at(8 * static_cast<unsigned>(byte_escapes::first_at) + static_cast<unsigned>(taken_ + escapes.before));
    taken_ += escapes.total;
    std::uint32_t const which[2] = {static_cast<std::uint32_t>(bits) & low_bits(in_low),
                                    static_cast<std::uint32_t>(bits >> in_low) & low_bits(number - in_low)};
    lane_sum const further = sum_before(t, count_bits(which[0]) + count_bits(which[1]));
    good_ = further_ + further.total <= 4 * (bytes_ - second_);
    if (t.any(!good_)) return;
    auto* const list = reinterpret_cast<std::uint16_t*>(symbols + groups * 64);
    for (int first = 0; t.any(first < further.total); first += listed) {
      int slot = further.before - first;
      PITH_UNROLL for (int half = 0; half < 2; ++half) {
        std::uint32_t left = escape[half];
        for (std::uint32_t bits_left = which[half]; bits_left != 0; bits_left >>= 1, left &= left - 1u) {
          bool const goes_in = (bits_left & 1u) != 0 && static_cast<unsigned>(slot) < listed;  // others go behind the list
          list[goes_in ? slot : listed + t.lane()] = static_cast<std::uint16_t>(64 * t.lane() + 32 * half + lowest_bit(left));
          slot += static_cast<int>(bits_left & 1u);
        }
      }
      t.sync_warp();
      for (int i = first; t.any(i < first + listed && i < further.total); i += warp_lanes)
        patch(t, i, further.total, list + (i - first), symbols);
      t.sync_warp();
      if (t.any(!good_)) return;
    }
    further_ += further.total;
  }

 private:
  // 64 bits of the tail from one on. Reads up to 12 bytes from the word that holds it on.
  PITH_HD std::uint64_t bits_at(unsigned bit) const {
    bit += first_bit_;
    std::byte const* const from = words_ + bit / 32 * 4;
    std::uint32_t const a = load_word<std::uint32_t>(from), b = load_word<std::uint32_t>(from + 4), c = load_word<std::uint32_t>(from + 8);
    return static_cast<std::uint64_t>(bits_from(b, c, bit)) << 32 | bits_from(a, b, bit);
  }

  // Symbols of 32 numbers, `table` those of the codes of a positive one. Four numbers that are four apart are nibbles of the same word.
  PITH_HD static void look_up(std::uint32_t sign, std::uint32_t low, std::uint32_t high, std::uint32_t table, word4 (&out)[2]) {
    constexpr std::uint32_t alternate = 0x55555555u, code = 0x33333333u, negative = 0x44444444u;
    std::uint32_t const even = (low & alternate) | (high << 1 & ~alternate), odd = (low >> 1 & alternate) | (high & ~alternate);
    std::uint32_t const nibbles[4] = {(even & code) | (sign << 2 & negative), (odd & code) | (sign << 1 & negative),
                                      (even >> 2 & code) | (sign & negative), (odd >> 2 & code) | (sign >> 1 & negative)};
    PITH_UNROLL for (int i = 0; i < 2; ++i) {
      std::uint32_t n[4];  // n[r]: numbers r, 4 + r, 8 + r, 12 + r
      PITH_UNROLL for (int r = 0; r < 4; ++r) n[r] = pick_bytes(table, table | 0x80808080u, nibbles[r] >> (16 * i));
      out[i] = {
          {pick_bytes(n[0], n[1], 0x5140), pick_bytes(n[2], n[3], 0x5140), pick_bytes(n[0], n[1], 0x7362), pick_bytes(n[2], n[3], 0x7362)}};
    }
  }

  // A lane takes one of the listed numbers and stores its symbol, whose sign is there.
  template <class Thread>
  PITH_HD void patch(Thread& t, int first, int total, std::uint16_t const* list, std::byte* symbols) {
    bool const mine = first + t.lane() < total;
    auto const number = static_cast<unsigned>(further_ + first + t.lane());
    std::uint32_t const two = mine ? byte_at(static_cast<unsigned>(second_) + number / 4) >> (number % 4 * 2) & 3u : 0u;
    std::uint32_t const from_bytes = t.ballot(two == 3);
    auto const raw = static_cast<unsigned>(bytes_ - 1 - raws_ - rank_in(t, from_bytes));
    raws_ += count_bits(from_bytes);
    good_ = good_ && second_ + raws_ <= bytes_;
    if (!good_ || !mine) return;
    unsigned const at = list[t.lane()];
    std::byte* const symbol = symbols + place(at / 64, at % 64);
    std::uint32_t const h = two == 3 ? byte_at(raw) : common_ >> (8 * two + 8);
    *symbol = static_cast<std::byte>((static_cast<std::uint32_t>(*symbol) & 0x80u) | (h & 0x7fu));
  }
  PITH_HD std::uint32_t byte_at(unsigned i) const { return static_cast<std::uint32_t>(words_[first_bit_ / 8 + i]); }

  PITH_HD void copy_raw(unsigned first, std::byte* own, int key) const {
    PITH_UNROLL for (int i = 0; i < 4; ++i) {
      std::uint64_t const a = bits_at(8 * (first + 16 * i)), b = bits_at(8 * (first + 16 * i + 8));
      auto const in_order = [](std::uint64_t n, int which) {
        return pick_bytes(static_cast<std::uint32_t>(n), static_cast<std::uint32_t>(n >> 32), which == 0 ? 0x5410 : 0x7632);
      };
      store_word(own + 16 * (i ^ key), word4{{in_order(a, 0), in_order(a, 1), in_order(b, 0), in_order(b, 1)}});
    }
  }

  std::byte const* words_ = nullptr;  // the tail, from a multiple of 4 on
  unsigned first_bit_ = 0;
  std::uint32_t common_ = 0;
  int bytes_ = 0, escapes_ = 0, second_ = 0;
  int taken_ = 0, further_ = 0, raws_ = 0;  // by groups so far
  bool raw_ = false, good_ = false;
};

}  // namespace pith::device
