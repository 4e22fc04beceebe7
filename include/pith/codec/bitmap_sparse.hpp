// SPDX-License-Identifier: Apache-2.0
// Pruned matrices: a bit says of each number whether it is stored, and those that are lie packed, 16 bits each.
//
//   bitmap_sparse<bf16>, <f16>      1.06 + 16 d bits a number, where a share d of them is not zero: 9.06 of half-pruned weights
//
// layout  the raw tile of the same numbers with the zeros squeezed out: number k is the k-th 16-bit half of word_layout<16>, whose words
//         come in groups of 32 lanes, 64 numbers. dot: lane = token, a group is 2 channels. mix: lane = channel of 32, a group is 2 tokens
// bytes   | tail_place, 12 | 52 zero | bit k % 8 of byte k / 8: number k is stored, 4 bytes a channel |
//         and a tail: the stored numbers in their order, 2 bytes each
// zeros   both are left out, and come back as +0: weights multiplied by a mask are full of -0. Every other bit pattern comes back
// error   none if x is a T; else that of rounding to T
// nan     propagate
// from    Joo et al., Endor: Hardware-Friendly Sparse Format for Offloaded LLM Inference, 2024
// differs a bitmap and its numbers for each tile, in the order in which kernels read them
#pragma once

#include <bit>

#include "pith/codec/raw.hpp"
#include "pith/codec/variable_rate.hpp"
#include "pith/core/float_fields.hpp"

namespace pith {

template <storage_scalar T, int Channels, use Use>
struct bitmap_sparse_tile {
  using storage = bitmap_sparse_tile;
  using scalar = T;
  static constexpr int tokens = block_tokens, channels = Channels, count = tokens * Channels, groups = count / 64;
  static constexpr use used_for = Use;
  static constexpr nan_policy nan = nan_policy::propagate;
  static constexpr std::int64_t bitmap_at = 64, bytes = bitmap_at + count / 8, tail_bound = 2 * count;

  // rows [token][channel], of T or of another scalar
  template <class S>
  static std::int64_t encode(S const* rows, std::byte* out, std::byte* tail) noexcept {
    for (std::int64_t i = 0; i < bytes; ++i) out[i] = std::byte{0};
    std::byte* next = tail;
    for (int k = 0; k < count; ++k) {
      std::uint16_t const bits = as_scalar<T>(rows[row_major(k)]).bits;
      if ((bits & 0x7fffu) == 0) continue;
      out[bitmap_at + k / 8] |= static_cast<std::byte>(1u << k % 8);
      store_le(next, bits);
      next += 2;
    }
    store_le(out + 8, static_cast<std::uint32_t>(next - tail));
    return next - tail;
  }

  template <class S>
  static void decode(std::byte const* in, S* rows) noexcept {
    std::byte const* next = tail_place::tail(in);
    for (int k = 0; k < count; ++k) {
      T x{0};
      if (is_stored(in, k)) {
        x = T{load_le<std::uint16_t>(next)};
        next += 2;
      }
      rows[row_major(k)] = as_scalar<S>(x);
    }
  }

  // The tail is as long as the bitmap says; any bitmap, and any numbers, can be read.
  static bool check(std::byte const* in, std::byte const*) noexcept {
    std::int64_t stored = 0;
    for (int g = 0; g < groups; ++g) stored += std::popcount(load_le<std::uint64_t>(in + bitmap_at + 8 * g));
    return tail_place::of(in).bytes == 2 * stored;
  }

  // The distance itself.
  static void error_bound(float const* rows, float* bound) noexcept {
    for (int i = 0; i < count; ++i) {
      float const near = to_float(as_scalar<T>(rows[i])), off = near - rows[i];
      bound[i] = !is_finite(near) ? bits_float(0x7f800000u) : off < 0 ? -off : off;
    }
  }

  PITH_HD static constexpr bool is_stored(std::byte const* in, int k) noexcept {
    return (static_cast<std::uint32_t>(in[bitmap_at + k / 8]) >> k % 8 & 1u) != 0;
  }
  // token * Channels + channel of number k.
  PITH_HD static constexpr int row_major(int k) noexcept {
    constexpr int lanes = Use == use::dot ? tokens : Channels;
    int const lane = k / 2 % lanes, packed = k / 2 / lanes * 2 + k % 2;
    return Use == use::dot ? lane * Channels + packed : packed * Channels + lane;
  }
};

template <storage_scalar T>
struct bitmap_sparse {
  static_assert(sizeof(T) == 2, "[pith] bitmap_sparse<T>: T is bf16 or f16. Fix: bf16.");
  template <int Channels, int PageTokens, use Use>
  requires(Channels % 32 == 0 && Channels <= 1024) using bind = bitmap_sparse_tile<T, Channels, Use>;
};

static_assert(variable_tile<bitmap_sparse<bf16>::bind<64, 64, use::dot>>);

}  // namespace pith
