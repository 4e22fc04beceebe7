// SPDX-License-Identifier: Apache-2.0
// rans_exponents: codes the symbol bytes of a tile by range asymmetric numeral systems, 32 states in turn over one stream, as the lanes of
// a warp read it.
//
//   step t, lane i: symbol 32 t + i.   x: the lane's state;   e: the entry of the table whose slots x mod 256 is among
//   x -> e.frequency (x / 256) + x mod 256 - e.first;   if x < 256: x -> 256 x + the stream's next byte, lane after lane
//
// States have 16 bits and stay in [2^8, 2^16); frequencies sum to 2^8. A lane that needs a byte takes the one behind those of the lanes
// before it: on a device its rank is the popcount of the ballot's bits below the lane, and the stream goes on by the ballot's popcount. In
// the last `tail steps` steps no lane takes a byte, and an encoder starts from a small state there, not from 2^8: that saves most of its
// cost.
//
// bytes   of the tail; nothing is fixed
//         0        kind: 0 raw, 1 one symbol, 2 + k coded with k tail steps, 0 to 6
//         raw      the symbols as they are: Count bytes
//         one      the symbol: 1 byte
//         coded    1: the escape's symbol;   2, 3: escapes, unsigned;   4: the set of symbols that have an entry (codec/symbol_set.hpp);
//                  then their frequencies - 1, and with escapes that of the escape, whose slots are the last;
//                  then 32 states of 16 bits, the stream, and the escaped symbols as they are, in order
//         Symbols that occur in fewer than 1 of 1024 numbers have no entry if there are two or more such; the least of those is the escape.
// cost    Count = 8192, 12 entries: head and table 0.02 bit a number, states 0.06 bit, more than half of which is information of the
// symbols errors  any bytes that check passes decode to some symbols: nothing is read more than 32 bytes behind the tail from    Duda,
// Asymmetric numeral systems, 2013; Giesen, Interleaved entropy coders, 2014; DietGPU (Johnson et al.), 2022, for one stream
//         of a warp; Hao et al., NeuZip, 2024, for exponents
// differs DietGPU: states of 32 bits that move 16 at a time, 4 bytes a lane; tables of 2^9 to 2^11 slots
#pragma once

#include <cstring>

#include "pith/codec/rans.hpp"
#include "pith/codec/symbol_set.hpp"

namespace pith {

// The decoder's table: slot -> symbol, slot less the entry's first << 8, frequency << 16. `tail` has passed check and is coded. Returns the
// bytes before the states.
PITH_HD constexpr std::int64_t load_rans_slots(std::byte const* tail, std::uint32_t* slots) noexcept {
  symbol_set const set = load_symbols(tail + 4, 257);
  std::byte const* const frequencies = tail + 4 + set.bytes;
  int slot = 0;
  auto add = [&](int entry, std::uint32_t symbol) {
    std::uint32_t const frequency = static_cast<std::uint32_t>(frequencies[entry]) + 1;
    for (std::uint32_t above = 0; above < frequency; ++above) slots[slot++] = symbol | above << 8 | frequency << 16;
  };
  each_symbol(tail + 4, add);
  bool const escapes = load_le<std::uint16_t>(tail + 2) > 0;
  if (escapes) add(set.number, static_cast<std::uint32_t>(tail[1]));
  return 4 + set.bytes + set.number + escapes;
}

// Takes the symbol of slots[x % 256] from a state of 16 bits; true if the stream's next byte has to follow.
PITH_HD constexpr bool rans_take(std::uint32_t& x, std::uint32_t slot) noexcept {
  x = (slot >> 16) * (x >> 8) + (slot >> 8 & 255u);
  return x < 256;
}

template <int Count>
struct rans_exponents_tile {
  static_assert(Count >= 1024 && Count <= 65536 && Count % 1024 == 0,
                "[pith] rans_exponents: a tile has 1024 to 65536 numbers, a multiple of 1024. Fix: 32 rows of 256.");

  static constexpr int lanes = 32, steps = Count / lanes, most_tail_steps = 6;
  static constexpr std::int64_t fixed_bytes = 0;
  static constexpr std::int64_t tail_bound = Count + 1;

  static std::int64_t encode(std::uint8_t const* symbols, std::byte*, std::byte* tail) noexcept {
    std::uint32_t counts[256];
    count_symbols(symbols, Count, counts);
    if (counts[symbols[0]] == Count) return tail[0] = std::byte{1}, tail[1] = std::byte{symbols[0]}, 2;

    int rare = 0, escape = 0, escapes = 0;
    for (int s = 255; s >= 0; --s)
      if (counts[s] > 0 && counts[s] * 1024 < Count) ++rare, escape = s;
    bool escaped[256];
    for (int s = 0; s < 256; ++s) escaped[s] = rare > 1 && counts[s] * 1024 < Count;
    symbol_set const set = store_symbols([&](int s) { return counts[s] > 0 && !escaped[s]; }, tail + 4);
    std::uint32_t entry_counts[257];
    each_symbol(tail + 4, [&](int e, std::uint8_t s) { entry_counts[e] = counts[s]; });
    for (int s = 0; s < 256; ++s) escapes += escaped[s] ? static_cast<int>(counts[s]) : 0;
    entry_counts[set.number] = static_cast<std::uint32_t>(escapes);
    std::size_t const entries = static_cast<std::size_t>(set.number + (escapes > 0));
    std::uint16_t frequencies[257];
    (void)rans_frequencies<8>({entry_counts, entries}, {frequencies, entries});

    std::int64_t const table = 4 + set.bytes, head = table + static_cast<std::int64_t>(entries) + 2 * lanes;
    if (head + escapes >= Count) return encode_raw(symbols, tail);
    code entry[257]{}, codes[256];
    std::uint32_t first = 0;
    for (std::size_t e = 0; e < entries; ++e) {
      std::uint32_t const f = frequencies[e];
      entry[e] = {((std::uint64_t{1} << 32) + f - 1) / f, f << 8, static_cast<std::uint16_t>(256 - f), static_cast<std::uint16_t>(first)};
      first += f;
      tail[table + static_cast<std::int64_t>(e)] = static_cast<std::byte>(f - 1);
    }
    for (code& c : codes) c = entry[set.number];  // all that have no entry
    each_symbol(tail + 4, [&](int e, std::uint8_t s) { codes[s] = entry[e]; });

    std::uint32_t states[lanes];
    int const tail_steps = start(symbols, codes, states);
    std::byte* const end = tail + tail_bound;
    std::byte* to = end;
    for (int i = escapes > 0 ? Count : 0; i-- > 0; to -= escaped[symbols[i]]) to[-1] = std::byte{symbols[i]};
    for (int t = steps - tail_steps; t-- > 0;) {
      if (to - (tail + head) <= lanes) return encode_raw(symbols, tail);
      for (int lane = lanes; lane-- > 0;) {
        code const& c = codes[symbols[t * lanes + lane]];
        std::uint32_t const x = states[lane];
        bool const over = x >= c.over;
        to[-1] = static_cast<std::byte>(x & 255u);
        to -= over;
        states[lane] = put(x >> (8 * over), c);
      }
    }
    tail[0] = static_cast<std::byte>(2 + tail_steps);
    tail[1] = static_cast<std::byte>(escape);
    store_le(tail + 2, static_cast<std::uint16_t>(escapes));
    for (int lane = 0; lane < lanes; ++lane) store_le(tail + head + 2 * (lane - lanes), static_cast<std::uint16_t>(states[lane]));
    memmove(tail + head, to, static_cast<std::size_t>(end - to));
    return head + (end - to);
  }

  static void decode(std::byte const*, std::byte const* tail, std::int64_t tail_bytes, std::uint8_t* symbols) noexcept {
    int const kind = static_cast<int>(tail[0]), counted = steps - (kind - 2);
    if (kind == 0) return void(memcpy(symbols, tail + 1, Count));
    if (kind == 1) return void(memset(symbols, static_cast<int>(tail[1]), Count));
    // Apart and by eights: compilers gather neighbours into vectors, whose loads wait for stores, and spill the stream of all 32.
    struct {
      std::uint32_t x, apart;
    } states[lanes];
    std::uint32_t slots[256];
    std::byte const *at = tail + load_rans_slots(tail, slots), *const escapes = tail + tail_bytes - load_le<std::uint16_t>(tail + 2);
    for (int lane = 0; lane < lanes; ++lane, at += 2) states[lane].x = load_le<std::uint16_t>(at);
    std::uint8_t* out = symbols;
    for (int t = 0; t < counted; ++t) {
      at = at < escapes ? at : escapes;
      for (int first = 0; first < lanes; first += 8) {
        PITH_UNROLL
        for (int k = 0; k < 8; ++k) {
          std::uint32_t x = states[first + k].x;
          std::uint32_t const slot = slots[x & 255u];
          *out++ = static_cast<std::uint8_t>(slot);
          // Arithmetic: as a condition it would be a branch, taken one time in three.
          std::uint64_t const more = std::uint64_t{0} - rans_take(x, slot);
          states[first + k].x = x << (more & 8) | (static_cast<std::uint32_t>(*at) & static_cast<std::uint32_t>(more));
          at -= static_cast<std::int64_t>(more);
        }
      }
    }
    for (int t = counted; t < steps; ++t)
      for (auto& state : states) {
        std::uint32_t const slot = slots[state.x & 255u];
        *out++ = static_cast<std::uint8_t>(slot);
        (void)rans_take(state.x, slot);
      }
    std::uint8_t* const end = symbols + Count;
    std::byte const* escape = escapes;
    for (out = symbols; escape < tail + tail_bytes; ++out) {
      out = static_cast<std::uint8_t*>(memchr(out, static_cast<int>(tail[1]), static_cast<std::size_t>(end - out)));
      if (out == nullptr) break;
      *out = static_cast<std::uint8_t>(*escape++);
    }
  }

  static bool check(std::byte const*, std::byte const* tail, std::int64_t tail_bytes) noexcept {
    if (tail_bytes < 2 || tail_bytes > tail_bound) return false;
    int const kind = static_cast<int>(tail[0]);
    if (kind < 2) return tail_bytes == (kind == 0 ? 1 + Count : 2);
    if (kind > 2 + most_tail_steps || tail_bytes < 4) return false;
    symbol_set const set = load_symbols(tail + 4, tail_bytes - 4);
    int const escapes = load_le<std::uint16_t>(tail + 2), entries = set.number + (escapes > 0);
    if (set.number == 0 || entries < 2 || tail_bytes < 4 + set.bytes + entries + 2 * lanes + escapes) return false;
    int sum = 0;
    for (int e = 0; e < entries; ++e) sum += static_cast<int>(tail[4 + set.bytes + e]) + 1;
    return sum == 256;
  }

 private:
  struct code {
    std::uint64_t reciprocal;  // x / frequency is x reciprocal / 2^32: exact, because x frequency < 2^32
    std::uint32_t over;        // states from here on give a byte away first
    std::uint16_t others, first;
  };

  // (x / frequency) 256 + x mod frequency + first
  static std::uint32_t put(std::uint32_t x, code const& c) noexcept {
    return static_cast<std::uint32_t>(x * c.reciprocal >> 32) * c.others + x + c.first;
  }

  // Codes the tail steps, as many as leave every lane's state in range; each lane from the least power of two with which it gets there.
  static int start(std::uint8_t const* symbols, code const* codes, std::uint32_t* states) noexcept {
    int tail_steps = most_tail_steps;
    for (int lane = 0; lane < lanes; ++lane) {
      std::uint32_t x = 0;
      for (std::uint32_t least = 1; x < 256; least *= 2) {
        x = least;
        for (int t = steps; t-- > steps - tail_steps && x < 65536;) x = put(x, codes[symbols[t * lanes + lane]]);
      }
      states[lane] = x;
      if (x >= 65536) --tail_steps, lane = -1;
    }
    return tail_steps;
  }

  static std::int64_t encode_raw(std::uint8_t const* symbols, std::byte* tail) noexcept {
    tail[0] = std::byte{0};
    memcpy(tail + 1, symbols, Count);
    return 1 + Count;
  }
};

// The coder of dynamic_float that comes closest to the entropy.
struct rans_exponents {
  template <int Count>
  using bind = rans_exponents_tile<Count>;
};

}  // namespace pith
