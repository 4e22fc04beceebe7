// SPDX-License-Identifier: Apache-2.0
// 8-bit floats, by themselves or with a scale for each group of numbers.
//
//   float8<T>                  x' = T(x)                       the plain FP8 cache
//   float8<T, Group, Scale>    s = max|x| / largest of T,      x' = T(x/s) s          Scale bf16, f16 or float
//   float8<T, Group, e8m0>     s = 2^(floor(log2 max|x|) - floor(log2 largest of T)): microscaling; mxfp8<T> is per_token<32>
//
// T is e4m3 or e5m2 (core/small_float.hpp), rounded to nearest, ties to even, cut to its largest. s is rounded to Scale first and the codes
// come from the rounded value; x/s is x * (1/s). bf16 is the default scale: f16 would be subnormal for max|x| below 448 * 2^-14.
//
// bytes   8-bit codes of 32-token blocks (word_layout: bits 7..0 of a field are sign, exponent, mantissa), then scales in the order of
//         codec/integer.hpp, padded to 64 bytes. A zero has no sign. An e8m0 scale of 0 is a group of zeros, else OCP's byte
// error   half a unit of T at x/s, times s: 2^-4 |x| (e4m3) or 2^-3 |x| (e5m2) for normal numbers of T; above the largest of T times s
//         (without a scale, and with e8m0 up to an eighth of the maximum) the distance to it. s below 2^-100 counts as zero, numbers
//         beyond 2^125 are cut to it
// nan     saturate: infinities become the group's largest finite numbers (without a scale the largest of T), NaN becomes 0 (or the group's
//         nearest end)
// from    Micikevicius et al., FP8 Formats for Deep Learning, 2022; Rouhani et al., Microscaling Data Formats, 2023 (MXFP8)
#pragma once

#include "pith/codec/integer.hpp"
#include "pith/core/small_float.hpp"

namespace pith {

// In place of a grouping: no scale.
struct ungrouped {};

// Saturated; a zero without its sign, which compilers may lose.
template <small_float T>
PITH_HD constexpr std::uint32_t float8_code(float x) noexcept {
  std::uint32_t const bits = from_float_saturated<T>(x).bits;
  return bits == 0x80u ? 0u : bits;
}

template <small_float T, class Group, scale_scalar Scale, int Channels, int PageTokens, use Use>
struct float8_tile {
  using scalar = T;
  using scale_type = Scale;
  using storage = float8_tile;
  using layout = word_layout<8, Channels, block_tokens, Use>;
  static constexpr bool scaled = true;
  static constexpr bool along_tokens = Group::along_tokens;
  static constexpr use used_for = Use;
  static constexpr nan_policy nan = nan_policy::saturate;
  static constexpr int channels = Channels;
  static constexpr int group = Group::group != whole ? Group::group : along_tokens ? PageTokens : Channels;
  static constexpr int tokens = along_tokens && group > block_tokens ? group : block_tokens;
  static constexpr int groups = along_tokens ? tokens / group : Channels / group;  // on the grouped axis
  static constexpr int group_lanes = along_tokens ? Channels : tokens;             // scales of one group index

  static constexpr std::int64_t scale_at = tokens / block_tokens * layout::bytes;
  static constexpr std::int64_t used = scale_at + static_cast<std::int64_t>(sizeof(Scale)) * groups * group_lanes;
  static constexpr std::int64_t bytes = round_up(used, 64);

  struct parameters {
    float scale, inverse;
    float smallest, largest;  // finite range of the group
  };

  PITH_HD static constexpr std::int64_t parameter_index(int token, int channel) noexcept {
    return along_tokens ? static_cast<std::int64_t>(token / group) * group_lanes + channel
                        : static_cast<std::int64_t>(channel / group) * group_lanes + token;
  }

  PITH_HD static constexpr void encode(float const* rows, std::byte* out) noexcept {
    for (std::int64_t i = 0; i < bytes; ++i) out[i] = std::byte{0};
    for (int g = 0; g < groups; ++g)
      for (int lane = 0; lane < group_lanes; ++lane) {
        float const* const first = rows + group_at(g, lane);
        parameters const p = fit(first);
        std::int64_t const index = static_cast<std::int64_t>(g) * group_lanes + lane;
        store_scalar<Scale>(out + scale_at + index * static_cast<std::int64_t>(sizeof(Scale)), from_float<Scale>(p.scale));
        for (int i = 0; i < group; ++i) {
          int const token = along_tokens ? g * group + i : lane, channel = along_tokens ? lane : g * group + i;
          layout::set(out + token / block_tokens * layout::bytes, token % block_tokens, channel,
                      float8_code<T>(scaled_down(first[i * step], p)));
        }
      }
  }

  PITH_HD static constexpr void decode(std::byte const* in, float* rows) noexcept {
    for (int token = 0; token < tokens; ++token)
      for (int channel = 0; channel < Channels; ++channel) {
        std::int64_t const index = parameter_index(token, channel);
        float const scale = load_scalar<Scale>(in + scale_at + index * static_cast<std::int64_t>(sizeof(Scale)));
        std::uint32_t const bits = layout::get(in + token / block_tokens * layout::bytes, token % block_tokens, channel);
        rows[token * Channels + channel] = to_float(T{static_cast<std::uint8_t>(bits)}) * scale;
      }
  }

  PITH_HD static constexpr void error_bound(float const* rows, float* bound) noexcept {
    for (int g = 0; g < groups; ++g)
      for (int lane = 0; lane < group_lanes; ++lane) {
        parameters const p = fit(rows + group_at(g, lane));
        float const most = clamp(T::largest * p.scale, 0.0f, huge);
        for (int i = 0; i < group; ++i) {
          std::int64_t const at = group_at(g, lane) + i * step;
          float const size = rows[at] < 0 ? -rows[at] : rows[at];
          bound[at] = half_unit<T>(scaled_down(rows[at], p)) * p.scale + (size > most ? size - most : 0.0f) + 0x1p-20f * size + tiny;
        }
      }
  }

  static constexpr float tiny = 0x1p-100f, huge = 0x1p125f;  // as in integer_tile

  // Of a group whose finite numbers lie between these two; 0 and 0 if it has none.
  PITH_HD static constexpr parameters fit_range(float smallest, float largest_seen) noexcept {
    parameters p{};
    p.smallest = clamp(smallest, -huge, huge);
    p.largest = clamp(largest_seen, -huge, huge);
    float const size = p.largest > -p.smallest ? p.largest : -p.smallest;
    if (!(size > tiny)) return p;
    float scale = 0;
    if constexpr (std::is_same_v<Scale, e8m0>)
      scale = to_float(from_float<e8m0>(size)) * (1.0f / to_float(from_float<e8m0>(T::largest)));  // powers of two, exact
    else
      scale = to_float(from_float_saturated<Scale>(div_rn(size, T::largest)));
    if (!(scale > tiny)) return p;
    p.scale = scale;
    p.inverse = div_rn(1.0f, scale);
    return p;
  }

 private:
  static constexpr int step = along_tokens ? Channels : 1;  // elements between neighbours of a group

  PITH_HD static constexpr std::int64_t group_at(int g, int lane) noexcept {
    return along_tokens ? static_cast<std::int64_t>(g) * group * Channels + lane : static_cast<std::int64_t>(lane) * Channels + g * group;
  }

  PITH_HD static constexpr parameters fit(float const* first) noexcept {
    parameters p{};
    bool any = false;
    for (int i = 0; i < group; ++i) {
      float const x = first[i * step];
      if (!is_finite(x)) continue;
      p.smallest = !any || x < p.smallest ? x : p.smallest;
      p.largest = !any || x > p.largest ? x : p.largest;
      any = true;
    }
    return fit_range(p.smallest, p.largest);
  }

  PITH_HD static constexpr float scaled_down(float x, parameters const& p) noexcept {
    return clamp(is_nan(x) ? 0.0f : x, p.smallest, p.largest) * p.inverse;
  }
};

template <small_float T, scale_scalar Scale, int Channels, int PageTokens, use Use>
struct float8_tile<T, ungrouped, Scale, Channels, PageTokens, Use> {
  using scalar = T;
  using storage = float8_tile;
  using layout = word_layout<8, Channels, block_tokens, Use>;
  static constexpr bool scaled = false;
  static constexpr use used_for = Use;
  static constexpr nan_policy nan = nan_policy::saturate;
  static constexpr int channels = Channels;
  static constexpr int tokens = block_tokens;
  static constexpr std::int64_t bytes = round_up(layout::bytes, 64);

  PITH_HD static constexpr void encode(float const* rows, std::byte* out) noexcept {
    for (std::int64_t i = 0; i < bytes; ++i) out[i] = std::byte{0};
    for (int token = 0; token < tokens; ++token)
      for (int channel = 0; channel < Channels; ++channel)
        layout::set(out, token, channel, float8_code<T>(rows[token * Channels + channel]));
  }
  PITH_HD static constexpr void decode(std::byte const* in, float* rows) noexcept {
    for (int token = 0; token < tokens; ++token)
      for (int channel = 0; channel < Channels; ++channel)
        rows[token * Channels + channel] = to_float(T{static_cast<std::uint8_t>(layout::get(in, token, channel))});
  }
  PITH_HD static constexpr void error_bound(float const* rows, float* bound) noexcept {
    for (int i = 0; i < tokens * Channels; ++i) {
      float const size = rows[i] < 0 ? -rows[i] : rows[i];
      bound[i] = size > T::largest ? size - T::largest : half_unit<T>(size);
    }
  }
};

// The first broken rule speaks alone; true if there is none.
template <class T, class Group, class Scale, int Channels, int PageTokens>
consteval bool check_float8() {
  if constexpr (!small_float<T>) {
    static_assert(small_float<T>, "[pith] float8<T, Group, Scale>: T is e4m3 or e5m2. Fix: float8<e4m3>.");
    return false;
  } else if constexpr (std::is_same_v<Group, ungrouped>) {
    return true;
  } else if constexpr (!is_grouping<Group>) {
    static_assert(is_grouping<Group>,
                  "[pith] float8<T, Group>: Group says who shares a scale. Fix: per_token<64>, or float8<T> for no scale.");
    return false;
  } else if constexpr (!scale_scalar<Scale>) {
    static_assert(scale_scalar<Scale>, "[pith] float8<T, Group, Scale>: Scale is bf16, f16, float or e8m0. Fix: bf16.");
    return false;
  } else {
    return check_integer_tile<8, Group, f16, Channels, PageTokens>();
  }
}
template <bool Right, class T, class Group, class Scale, int Channels, int PageTokens, use Use>
struct float8_binding {
  using type = no_tile<Channels>;
};
template <class T, class Group, class Scale, int Channels, int PageTokens, use Use>
struct float8_binding<true, T, Group, Scale, Channels, PageTokens, Use> {
  using type = float8_tile<T, Group, Scale, Channels, PageTokens, Use>;
};

// T e4m3 or e5m2; Group ungrouped, or per_token<G> or per_channel<G> with G from 16 to 256 or whole; Scale bf16, f16, float or e8m0.
template <class T, class Group = ungrouped, class Scale = bf16>
struct float8 {
  template <int Channels, int PageTokens, use Use>
  using bind =
      typename float8_binding<check_float8<T, Group, Scale, Channels, PageTokens>(), T, Group, Scale, Channels, PageTokens, Use>::type;
};

// OCP's MXFP8: a power of two for every 32 channels.
template <class T>
using mxfp8 = float8<T, per_token<32>, e8m0>;

static_assert(codec<float8<e4m3>> && codec<float8<e5m2, per_channel<32>>> && codec<mxfp8<e4m3>>);

}  // namespace pith
