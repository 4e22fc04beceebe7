// SPDX-License-Identifier: Apache-2.0
// Integer quantization: a group of numbers shares a scale and, if asymmetric, a zero.
//
//   zero::none      s = max|x| / (2^(B-1) - 1),    u = clamp(rne(x/s), +-(2^(B-1) - 1)) + 2^(B-1),   x' = (u - 2^(B-1)) s
//   zero::real      m = min x,  s = (max x - m) / (2^B - 1),   u = clamp(rne((x - m)/s), 0, 2^B - 1),   x' = u s + m
//   zero::integer   range widened to hold 0, s as above, z = rne(-min x / s),  u = clamp(rne(x/s) + z, 0, 2^B - 1),  x' = (u - z) s
//
// s and m are rounded to Scale first and the codes come from the rounded values. x/s is x * (1/s). A group of equal numbers has s = 0
// and decodes to m exactly. In every case x' = (u - 2^(B-1)) s + b with b = bias(...): what the kernels use.
//
// bytes   codes of 32-token blocks (word_layout), then scales, then zeros (Scale, or u8 for zero::integer), padded to 64 bytes;
//         parameters of per_token lie [channel group][token], of per_channel [token group][channel]
// error   s/2 inside the group's range, else the distance to its end (rounding of s or m, saturation of Scale, numbers beyond 2^125)
// nan     saturate: infinities become the group's largest finite numbers, NaN becomes 0 (or the nearest end); neither widens the range
// from    Liu et al., KIVI, 2024 (zero::real, f16); differs: reciprocal of the stored scale, constant groups are exact
#pragma once

#include "pith/codec/groups.hpp"
#include "pith/codec/word_layout.hpp"
#include "pith/core/rounding.hpp"

namespace pith {

enum class zero : std::uint8_t { none, real, integer };

template <int Bits, class Group, zero Zero, scale_scalar Scale, int Channels, int PageTokens, use Use>
struct integer_tile {
  using scale_type = Scale;
  using storage = integer_tile;
  using layout = word_layout<Bits, Channels, block_tokens, Use>;
  static constexpr int bits = Bits;
  static constexpr bool along_tokens = Group::along_tokens;
  static constexpr zero zero_kind = Zero;
  static constexpr use used_for = Use;
  static constexpr nan_policy nan = nan_policy::saturate;
  static constexpr int channels = Channels;
  static constexpr int group = Group::group != whole ? Group::group : along_tokens ? PageTokens : Channels;
  static constexpr int tokens = along_tokens && group > block_tokens ? group : block_tokens;
  static constexpr int blocks = tokens / block_tokens;
  static constexpr int groups = along_tokens ? tokens / group : Channels / group;  // on the grouped axis
  static constexpr int group_lanes = along_tokens ? Channels : tokens;             // parameters of one group index
  static constexpr int middle = 1 << (Bits - 1);
  static constexpr int top = (1 << Bits) - 1;

  static constexpr std::int64_t scale_at = blocks * layout::bytes;
  static constexpr std::int64_t zero_at = scale_at + static_cast<std::int64_t>(sizeof(Scale)) * groups * group_lanes;
  static constexpr std::int64_t zero_bytes = Zero == zero::real ? sizeof(Scale) : Zero == zero::integer ? 1 : 0;
  static constexpr std::int64_t used = zero_at + zero_bytes * groups * group_lanes;
  static constexpr std::int64_t bytes = round_up(used, 64);

  struct parameters {
    float scale, bias;   // x' = (u - middle) * scale + bias
    float inverse, low;  // u = rne((x - low) * inverse) + shift
    int shift;
    float smallest, largest;  // finite range of the group
  };

  PITH_HD static constexpr std::int64_t parameter_index(int token, int channel) noexcept {
    return along_tokens ? static_cast<std::int64_t>(token / group) * group_lanes + channel
                        : static_cast<std::int64_t>(channel / group) * group_lanes + token;
  }

  // (u - middle) scale + bias, from what is stored.
  PITH_HD static constexpr float bias(float scale, float zero_real, int zero_code) noexcept {
    if constexpr (Zero == zero::none)
      return 0.0f;
    else if constexpr (Zero == zero::real)
      return zero_real + static_cast<float>(middle) * scale;  // a power of two times scale: the product is exact
    else
      return static_cast<float>(middle - zero_code) * scale;
  }

  // u s + m with one rounding, fused or not: the product of a code and an f16 is exact in f32; with other scales, whose products may be longer
  // or overflow, it is exact in f64. What a sum's later stages encode depends on it.
  PITH_HD static constexpr float times_plus(int u, float scale, float zero_real) noexcept {
    if constexpr (std::is_same_v<Scale, f16>)
      return static_cast<float>(u) * scale + zero_real;
    else
      return static_cast<float>(static_cast<double>(u) * static_cast<double>(scale) + static_cast<double>(zero_real));
  }

  PITH_HD static constexpr void encode(float const* rows, std::byte* out) noexcept {
    for (std::int64_t i = 0; i < bytes; ++i) out[i] = std::byte{0};
    for (int g = 0; g < groups; ++g)
      for (int lane = 0; lane < group_lanes; ++lane) {
        float const* const first = along_tokens ? rows + g * group * Channels + lane : rows + lane * Channels + g * group;
        parameters const p = fit(first);
        std::int64_t const index = static_cast<std::int64_t>(g) * group_lanes + lane;
        store_parameters(out, index, p);
        for (int i = 0; i < group; ++i) {
          int const token = along_tokens ? g * group + i : lane, channel = along_tokens ? lane : g * group + i;
          layout::set(out + token / block_tokens * layout::bytes, token % block_tokens, channel, code(first[i * step], p));
        }
      }
  }

  PITH_HD static constexpr void decode(std::byte const* in, float* rows) noexcept {
    for (int token = 0; token < tokens; ++token)
      for (int channel = 0; channel < Channels; ++channel) {
        std::int64_t const index = parameter_index(token, channel);
        float const scale = load_scalar<Scale>(in + scale_at + index * static_cast<std::int64_t>(sizeof(Scale)));
        int const u = static_cast<int>(layout::get(in + token / block_tokens * layout::bytes, token % block_tokens, channel));
        float& x = rows[token * Channels + channel];
        if constexpr (Zero == zero::none)
          x = static_cast<float>(u - middle) * scale;
        else if constexpr (Zero == zero::real)
          x = times_plus(u, scale, load_scalar<Scale>(in + zero_at + index * static_cast<std::int64_t>(sizeof(Scale))));
        else
          x = static_cast<float>(u - static_cast<int>(in[zero_at + index])) * scale;
      }
  }

  // Half a step inside the range that the stored parameters span, the distance to it outside; 2^-20 |x| covers f32 rounding.
  PITH_HD static constexpr void error_bound(float const* rows, float* bound) noexcept {
    for (int g = 0; g < groups; ++g)
      for (int lane = 0; lane < group_lanes; ++lane) {
        std::int64_t const first =
            along_tokens ? static_cast<std::int64_t>(g) * group * Channels + lane : static_cast<std::int64_t>(lane) * Channels + g * group;
        parameters const p = fit(rows + first);
        float const lowest = Zero == zero::none ? (1.0f - middle) * p.scale : p.bias - middle * p.scale;
        float const highest = p.bias + (top - middle) * p.scale;
        for (int i = 0; i < group; ++i) {
          float const x = rows[first + i * step];
          float const outside = x < lowest ? lowest - x : x > highest ? x - highest : 0.0f;
          float const size = (x < 0 ? -x : x) + (p.low < 0 ? -p.low : p.low) + top * p.scale;
          bound[first + i * step] = 0.5f * p.scale + outside + 0x1p-20f * size + tiny;
        }
      }
  }

  static constexpr int step = along_tokens ? Channels : 1;  // elements between neighbours of a group
  static constexpr float tiny = 0x1p-100f;                  // ranges below are zero: 1/s stays finite and no subnormal matters
  static constexpr float huge = 0x1p125f;                   // numbers beyond are cut to it: what is decoded stays finite

  PITH_HD static constexpr parameters fit(float const* first) noexcept {
    float smallest = 0, largest_seen = 0;
    bool any = false;
    for (int i = 0; i < group; ++i) {
      float const x = first[i * step];
      if (!is_finite(x)) continue;
      smallest = !any || x < smallest ? x : smallest;
      largest_seen = !any || x > largest_seen ? x : largest_seen;
      any = true;
    }
    return fit_range(smallest, largest_seen);
  }

  // Of a group whose finite numbers lie between these two; 0 and 0 if it has none.
  PITH_HD static constexpr parameters fit_range(float smallest, float largest_seen) noexcept {
    smallest = clamp(smallest, -huge, huge);
    largest_seen = clamp(largest_seen, -huge, huge);
    if ((float_bits(smallest) << 1) == 0) smallest = 0;  // -0 and +0 compare equal, and no flag may choose between them
    parameters p{};
    p.smallest = smallest;
    p.largest = largest_seen;
    if constexpr (Zero == zero::none) {
      float const size = largest_seen > -smallest ? largest_seen : -smallest;
      p.scale = stored_scale(size, middle - 1);
      p.shift = middle;
    } else if constexpr (Zero == zero::real) {
      p.low = to_float(from_float_saturated<Scale>(smallest));
      p.scale = stored_scale(largest_seen - p.low, top);
    } else {
      float const low = smallest < 0 ? smallest : 0, high = largest_seen > 0 ? largest_seen : 0;
      p.scale = stored_scale(high - low, top);
      float const inverse = p.scale > 0 ? div_rn(1.0f, p.scale) : 0.0f;
      p.shift = round_even(clamp(-low * inverse, 0.0f, static_cast<float>(top)));
    }
    p.inverse = p.scale > 0 ? div_rn(1.0f, p.scale) : 0.0f;
    p.bias = bias(p.scale, p.low, p.shift);
    return p;
  }

  PITH_HD static constexpr std::uint32_t code(float x, parameters const& p) noexcept {
    if (is_nan(x)) x = 0;
    x = clamp(x, p.smallest, p.largest);
    std::int32_t const rounded = round_even(clamp((x - p.low) * p.inverse, -512.0f, 512.0f)) + p.shift;
    return static_cast<std::uint32_t>(clamp(rounded, Zero == zero::none ? 1 : 0, top));
  }

 private:
  PITH_HD static constexpr float stored_scale(float range, int steps) noexcept {
    if (!(range > tiny)) return 0.0f;
    float scale = 0;
    if constexpr (std::is_same_v<Scale, e8m0>)
      scale = to_float(from_float<e8m0>(range)) * (2.0f / static_cast<float>(middle));  // block_float: powers of two, exact
    else
      scale = to_float(from_float_saturated<Scale>(div_rn(range, static_cast<float>(steps))));
    return scale > tiny ? scale : 0.0f;
  }

  PITH_HD static constexpr void store_parameters(std::byte* out, std::int64_t index, parameters const& p) noexcept {
    store_scalar<Scale>(out + scale_at + index * static_cast<std::int64_t>(sizeof(Scale)), from_float<Scale>(p.scale));
    if constexpr (Zero == zero::real)
      store_scalar<Scale>(out + zero_at + index * static_cast<std::int64_t>(sizeof(Scale)), from_float<Scale>(p.low));
    if constexpr (Zero == zero::integer) out[zero_at + index] = static_cast<std::byte>(p.shift);
  }
};

// The first broken rule speaks alone; true if there is none.
template <int Bits, class Group, class Scale>
consteval bool check_integer() {
  constexpr bool bits_fit = Bits >= 2 && Bits <= 8;
  if constexpr (!bits_fit) {
    static_assert(bits_fit, "[pith] integer<Bits, ...>: Bits is 2 to 8. Fix: int4<...>.");
    return false;
  } else if constexpr (!is_grouping<Group>) {
    static_assert(is_grouping<Group>, "[pith] integer<Bits, Group>: Group says who shares a scale. Fix: per_token<64> or per_channel<32>.");
    return false;
  } else if constexpr (Group::group != whole && (Group::group < 16 || Group::group > 256 || (Group::group & (Group::group - 1)) != 0)) {
    static_assert(
        Group::group == whole,
        "[pith] per_token<G>, per_channel<G>: G is 16, 32, 64, 128 or 256. Fix: per_token<64>, or per_token<> for the whole row.");
    return false;
  } else if constexpr (!is_storage_scalar<Scale>) {
    static_assert(is_storage_scalar<Scale>, "[pith] integer<Bits, Group, Zero, Scale>: Scale is f16, bf16 or float. Fix: f16.");
    return false;
  } else {
    return true;
  }
}
template <int Bits, class Group, class Scale, int Channels, int PageTokens>
consteval bool check_integer_tile() {
  if constexpr (!check_integer<Bits, Group, Scale>()) {
    return false;
  } else if constexpr (!Group::along_tokens && Group::group != whole && Channels % Group::group != 0) {
    static_assert(Group::along_tokens,
                  "[pith] per_token<G>: the channels must be a multiple of the group G. Fix: a G that divides head_dim, or per_token<>.");
    return false;
  } else if constexpr (Group::along_tokens &&
                       (PageTokens % block_tokens != 0 || (Group::group != whole && PageTokens % Group::group != 0))) {
    static_assert(!Group::along_tokens,
                  "[pith] per_channel<G>: a group spans G tokens of a page. Fix: pages<paged<N>> with N a multiple of G and of 32.");
    return false;
  } else if constexpr (Group::along_tokens && Group::group == whole && PageTokens > 256) {
    static_assert(PageTokens <= 256, "[pith] per_channel<>: a group spans a page of at most 256 tokens. Fix: per_channel<256>.");
    return false;
  } else {
    return true;
  }
}
template <bool Right, int Bits, class Group, zero Zero, class Scale, int Channels, int PageTokens, use Use>
struct integer_binding {
  using type = no_tile<Channels>;
};
template <int Bits, class Group, zero Zero, class Scale, int Channels, int PageTokens, use Use>
struct integer_binding<true, Bits, Group, Zero, Scale, Channels, PageTokens, Use> {
  using type = integer_tile<Bits, Group, Zero, Scale, Channels, PageTokens, Use>;
};

// Bits 2 to 8; Group per_token<G> or per_channel<G> with G from 16 to 256 or whole; Scale f16, bf16 or float.
template <int Bits, class Group, zero Zero = zero::real, class Scale = f16>
struct integer {
  template <int Channels, int PageTokens, use Use>
  using bind = typename integer_binding<check_integer_tile<Bits, Group, Scale, Channels, PageTokens>(), Bits, Group, Zero, Scale, Channels,
                                        PageTokens, Use>::type;
};

template <class Group, zero Zero = zero::real, class Scale = f16>
using int2 = integer<2, Group, Zero, Scale>;
template <class Group, zero Zero = zero::real, class Scale = f16>
using int3 = integer<3, Group, Zero, Scale>;
template <class Group, zero Zero = zero::real, class Scale = f16>
using int4 = integer<4, Group, Zero, Scale>;
template <class Group, zero Zero = zero::real, class Scale = f16>
using int5 = integer<5, Group, Zero, Scale>;
template <class Group, zero Zero = zero::real, class Scale = f16>
using int6 = integer<6, Group, Zero, Scale>;
template <class Group, zero Zero = zero::real, class Scale = f16>
using int7 = integer<7, Group, Zero, Scale>;
template <class Group, zero Zero = zero::real, class Scale = f16>
using int8 = integer<8, Group, Zero, Scale>;

static_assert(codec<int4<per_token<64>>> && codec<int2<per_channel<32>>> && codec<int8<per_token<>, zero::none, float>>);

}  // namespace pith
