// SPDX-License-Identifier: Apache-2.0
// The codec that stores numbers as they are, in 16 or 32 bits.
//
//   x -> T(x), round to nearest, ties to even;   T = bf16, f16 or f32
//
// layout  word_layout<16 or 32>: a 32-bit word holds two channels of one token (keys) or two tokens of one channel (values)
// error   bf16 2^-8 |x| (at least 2^-134), f16 2^-11 |x| (at least 2^-25), f32 none; infinite where x rounds to infinity (f16: from 65520)
// nan     propagate
#pragma once

#include "pith/codec/word_layout.hpp"
#include "pith/core/rounding.hpp"

namespace pith {

template <class... Spec>
struct raw;

// Tokens is 32, or 16 for a short segment.
template <storage_scalar T, int Channels, use Use, int Tokens = block_tokens>
struct raw_tile {
  using scalar = T;
  using storage = raw_tile;
  using layout = word_layout<8 * static_cast<int>(sizeof(T)), Channels, Tokens, Use>;
  static constexpr int tokens = Tokens;
  static constexpr int channels = Channels;
  static constexpr use used_for = Use;
  static constexpr std::int64_t bytes = layout::bytes;
  static constexpr nan_policy nan = nan_policy::propagate;

  PITH_HD static constexpr void set(std::byte* tile, int token, int channel, T x) noexcept {
    if constexpr (sizeof(T) == 4)
      layout::set(tile, token, channel, float_bits(x));
    else
      layout::set(tile, token, channel, x.bits);
  }
  PITH_HD static constexpr float get(std::byte const* tile, int token, int channel) noexcept {
    std::uint32_t const code = layout::get(tile, token, channel);
    if constexpr (sizeof(T) == 4)
      return bits_float(code);
    else
      return to_float(T{static_cast<std::uint16_t>(code)});
  }

  PITH_HD static constexpr void encode(float const* rows, std::byte* out) noexcept {
    if constexpr (Channels * Tokens * static_cast<int>(sizeof(T)) < bytes)  // an odd packed axis leaves padding
      for (std::int64_t i = 0; i < bytes; ++i) out[i] = std::byte{0};
    for (int token = 0; token < Tokens; ++token)
      for (int channel = 0; channel < Channels; ++channel) set(out, token, channel, from_float<T>(rows[token * Channels + channel]));
  }
  PITH_HD static constexpr void decode(std::byte const* in, float* rows) noexcept {
    for (int token = 0; token < Tokens; ++token)
      for (int channel = 0; channel < Channels; ++channel) rows[token * Channels + channel] = get(in, token, channel);
  }
  PITH_HD static constexpr void error_bound(float const* rows, float* bound) noexcept {
    for (int i = 0; i < Tokens * Channels; ++i) {
      float const size = rows[i] < 0 ? -rows[i] : rows[i];
      if (!is_finite(to_float(from_float<T>(rows[i]))))
        bound[i] = bits_float(0x7f800000u);
      else if constexpr (std::is_same_v<T, bf16>)
        bound[i] = size * 0x1p-8f + 0x1p-134f;
      else if constexpr (std::is_same_v<T, f16>)
        bound[i] = size * 0x1p-11f + 0x1p-25f;
      else
        bound[i] = 0;
    }
  }
};

template <storage_scalar T>
struct raw<T> {
  template <int Channels, int PageTokens, use Use>
  using bind = raw_tile<T, Channels, Use, PageTokens % block_tokens == 0 ? block_tokens : 16>;
};

static_assert(codec<raw<bf16>> && codec<raw<f16>> && codec<raw<float>>);

}  // namespace pith
