// SPDX-License-Identifier: Apache-2.0
// Block floating point: a block of numbers shares one 8-bit exponent; each keeps a signed mantissa of Bits bits, sign included.
//
//   e = floor(log2 max|x|),   s = 2^(e - (Bits - 2)),   c = clamp(rne(x/s), +-(2^(Bits-1) - 1)),   x' = c s
//
// It is the integer tile of zero::none whose scale is a power of two, so every kernel for integers reads it. Rounding that would carry
// into the next power of two is clamped (7.6 steps of 4 bits become 7); the exponent is not bumped.
//
// bytes   codes c + 2^(Bits-1) of 32-token blocks (word_layout), then one byte for each block: the biased exponent of s,
//         e - (Bits - 2) + 127 (e8m0); 0 is a block of zeros. Order and padding as in codec/integer.hpp. 8 + Bits * N bits for a block of N
//         numbers. Bits = 8 over 32 channels is MXINT8's arithmetic; OCP stores e + 127 there
// error   s/2, and up to s at the ends of the range, where a number above (2^(Bits-1) - 1) s is cut to it; s <= 2^(2 - Bits) max|x|
//         s below 2^-100 counts as zero, numbers beyond 2^125 are cut to it: bytes that encode writes are 0 or 28 .. 250, and finite
// nan     saturate: infinities become the block's largest finite numbers, NaN becomes 0 (or the nearest end); neither widens the range
// from    Soloveychik et al., Block Format Error Bounds, 2022; Trukhanov and Soloveychik, Accurate Block Quantization, 2024 (BFP12 is
//         Bits = 4, BFP16 Bits = 8)
#pragma once

#include "pith/codec/integer.hpp"

namespace pith {

// The first broken rule speaks alone; true if there is none.
template <int Bits, class Group, int Channels, int PageTokens>
consteval bool check_block_float() {
  constexpr bool bits_fit = Bits >= 4 && Bits <= 8;
  if constexpr (!bits_fit) {
    static_assert(bits_fit, "[pith] block_float<Bits, Group>: Bits is 4 to 8, sign included. Fix: block_float<4, per_token<32>>.");
    return false;
  } else if constexpr (!is_grouping<Group>) {
    static_assert(is_grouping<Group>,
                  "[pith] block_float<Bits, Group>: Group says who shares an exponent. Fix: per_token<32> or per_channel<32>.");
    return false;
  } else if constexpr (Group::group != 16 && Group::group != 32 && Group::group != 64 && Group::group != 128) {
    static_assert(Group::group == 32, "[pith] block_float<Bits, Group>: a block is 16, 32, 64 or 128 numbers. Fix: per_token<32>.");
    return false;
  } else {
    return check_integer_tile<Bits, Group, f16, Channels, PageTokens>();
  }
}

// Bits 4 to 8; Group per_token<G> or per_channel<G> with G = 16, 32, 64 or 128.
template <int Bits, class Group>
struct block_float {
  template <int Channels, int PageTokens, use Use>
  using bind = typename integer_binding<check_block_float<Bits, Group, Channels, PageTokens>(), Bits, Group, zero::none, e8m0, Channels,
                                        PageTokens, Use>::type;
};

static_assert(codec<block_float<4, per_token<32>>> && codec<block_float<8, per_channel<64>>>);

}  // namespace pith
