// SPDX-License-Identifier: Apache-2.0
// The few numbers of a vector that stand out, each with its place; the rest decodes to zero. A stage of a sum: the next one then sees a
// narrow range.
//
//   sum<outliers<both_ends<1>, per_channel<64>>, int2<per_channel<32>>>
//
//   per_token<G>, per_channel<G>   what a vector is: G channels of a token, or G tokens of a channel; 16 to 256, or whole
//   both_ends<N>                   its N largest and N smallest numbers (GEAR)
//   magnitudes<N>                  its N largest magnitudes (SpQR's use: the format of outliers beside a dense one)
//
// Delta form: stored is d = Value(x - b), to be added to the next stage, never to replace it. b is what is left in the place (and d's
// rounding with it), a number of the vector without its outliers, so that no hole widens the range again:
//   leave::mean   their mean (GEAR's fit); on real keys and values as good as their median
//   leave::end    their nearest end: best where the next stage's groups are these very vectors, since it stores the ends nearly exactly
//   leave::zero   zero: d is the number itself
// Equal numbers are taken in the order of their places. The mean is computed in integers: the same bytes everywhere.
//
// bytes   values [entry][vector] (f16, bf16 or float), then places [entry][vector] (u8), padded to 64; vectors are ordered as an integer
//         tile's scales. entries * (16 + 8) / G bits per value. An entry that is not needed has value 0; a place behind the vector is none
// error   alone: |x| where nothing is stored, |x - d| elsewhere. In a sum: that of the stage after it
// nan     saturate: what is not finite counts as zero and is never stored; numbers beyond 2^125 are cut to it, deltas to Value's largest
// cost    encode: one pass over the vector for each entry and two more
// from    Kang et al., GEAR, 2024, section 3 (both_ends, the mean); Dettmers et al., SpQR, 2023 (outliers beside low bits)
#pragma once

#include "pith/codec/concept.hpp"
#include "pith/codec/groups.hpp"
#include "pith/core/bits.hpp"
#include "pith/core/rounding.hpp"

namespace pith {

template <int N>
struct both_ends {
  static constexpr int largest = N, smallest = N;
};
template <int N>
struct magnitudes {
  static constexpr int largest = 0, smallest = 0;
};

template <class T>
inline constexpr int outlier_entries = 0;  // 0: not a choice of outliers
template <int N>
inline constexpr int outlier_entries<both_ends<N>> = 2 * N;
template <int N>
inline constexpr int outlier_entries<magnitudes<N>> = N;

enum class leave : std::uint8_t { zero, mean, end };

template <class Which, class Group, leave Leave, storage_scalar Value, int Channels, int PageTokens>
struct outlier_tile {
  using storage = outlier_tile;
  using value_type = Value;
  static constexpr nan_policy nan = nan_policy::saturate;
  static constexpr bool along_tokens = Group::along_tokens;
  static constexpr int channels = Channels;
  static constexpr int length = Group::group != whole ? Group::group : along_tokens ? PageTokens : Channels;  // of a vector
  static constexpr int tokens = along_tokens && length > block_tokens ? length : block_tokens;
  static constexpr int entries = outlier_entries<Which>;
  static constexpr int lanes = along_tokens ? Channels : tokens;  // vectors side by side
  static constexpr int vectors = tokens * Channels / length;

  static constexpr std::int64_t place_at = static_cast<std::int64_t>(sizeof(Value)) * entries * vectors;
  static constexpr std::int64_t bytes = round_up(place_at + static_cast<std::int64_t>(entries) * vectors, 64);

  // Number `place` of a vector.
  PITH_HD static constexpr int token_of(int vector, int place) noexcept {
    return along_tokens ? vector / lanes * length + place : vector % lanes;
  }
  PITH_HD static constexpr int channel_of(int vector, int place) noexcept {
    return along_tokens ? vector % lanes : vector / lanes * length + place;
  }

  PITH_HD static constexpr void encode(float const* rows, std::byte* out) noexcept {
    for (std::int64_t i = 0; i < bytes; ++i) out[i] = std::byte{0};
    for (int vector = 0; vector < vectors; ++vector) {
      float x[length];
      bool rest[length];
      for (int i = 0; i < length; ++i) {
        float const number = rows[token_of(vector, i) * Channels + channel_of(vector, i)];
        rest[i] = is_finite(number);
        x[i] = rest[i] ? clamp(number, -huge, huge) : 0.0f;
      }
      int place[entries];
      for (int e = 0; e < entries; ++e) {
        place[e] = extreme(x, rest, e < Which::largest ? 1 : e < Which::largest + Which::smallest ? -1 : 0);
        if (place[e] < 0) break;  // no finite number is left: this entry and those behind it stay empty
        rest[place[e]] = false;
      }
      remainder const base = look_at(x, rest);
      for (int e = 0; e < entries && place[e] >= 0; ++e) {
        int const at = e * vectors + vector;
        float const number = x[place[e]];
        float const kept = Leave == leave::zero ? 0.0f : Leave == leave::mean ? base.mean : clamp(number, base.smallest, base.largest);
        store_scalar<Value>(out + at * static_cast<std::int64_t>(sizeof(Value)), from_float_saturated<Value>(number - kept));
        out[place_at + at] = static_cast<std::byte>(place[e]);
      }
    }
  }

  PITH_HD static constexpr void decode(std::byte const* in, float* rows) noexcept {
    for (int i = 0; i < tokens * Channels; ++i) rows[i] = 0;
    for (int at = 0; at < entries * vectors; ++at) {
      int const place = static_cast<int>(in[place_at + at]), vector = at % vectors;
      if (place < length)
        rows[token_of(vector, place) * Channels + channel_of(vector, place)] +=
            load_scalar<Value>(in + at * static_cast<std::int64_t>(sizeof(Value)));
    }
  }

  PITH_HD static void error_bound(float const* rows, float* bound) noexcept {
    std::byte encoded[bytes];
    encode(rows, encoded);
    decode(encoded, bound);
    for (int i = 0; i < tokens * Channels; ++i) {
      float const cut = clamp(rows[i], -huge, huge), error = cut - bound[i], beyond = rows[i] - cut;
      bound[i] = (1 + 0x1p-22f) * ((error < 0 ? -error : error) + (beyond < 0 ? -beyond : beyond)) + 0x1p-149f;
    }
  }

 private:
  static constexpr float huge = 0x1p125f, tiny = 0x1p-100f;

  // The largest, smallest (sign 1, -1) or farthest from zero (0) of the rest, the first of equals; -1 if the rest is empty.
  PITH_HD static constexpr int extreme(float const* x, bool const* rest, int sign) noexcept {
    int found = -1;
    float most = 0;
    for (int i = 0; i < length; ++i) {
      float const size = sign > 0 ? x[i] : sign < 0 ? -x[i] : x[i] < 0 ? -x[i] : x[i];
      if (!rest[i] || (found >= 0 && !(size > most))) continue;
      found = i;
      most = size;
    }
    return found;
  }

  struct remainder {
    float smallest = 0, largest = 0, mean = 0;
  };

  // The mean in steps of 2^-20 of the largest magnitude's power of two; zero for a vector of hardly anything.
  PITH_HD static constexpr remainder look_at(float const* x, bool const* rest) noexcept {
    remainder r;
    int count = 0;
    for (int i = 0; i < length; ++i) {
      if (!rest[i]) continue;
      r.smallest = count == 0 || x[i] < r.smallest ? x[i] : r.smallest;
      r.largest = count == 0 || x[i] > r.largest ? x[i] : r.largest;
      ++count;
    }
    float const size = r.largest > -r.smallest ? r.largest : -r.smallest;
    if (Leave != leave::mean || !(size > tiny)) return r;
    std::uint32_t const exponent = float_bits(size) >> 23;  // biased, 27 to 252
    float const to_steps = bits_float((274u - exponent) << 23), step = bits_float((exponent - 20u) << 23);
    std::int64_t sum = 0;
    for (int i = 0; i < length; ++i)
      if (rest[i]) sum += round_even(clamp(x[i] * to_steps, -0x1p21f, 0x1p21f));
    r.mean = static_cast<float>(sum / count) * step;
    return r;
  }
};

// The first broken rule speaks alone; true if there is none.
template <class Which, class Group, class Value, int Channels, int PageTokens>
consteval bool check_outliers() {
  if constexpr (outlier_entries<Which> <= 0) {
    static_assert(outlier_entries<Which> > 0,
                  "[pith] outliers<Which, Group>: Which says what stands out. Fix: both_ends<1> or magnitudes<2>.");
    return false;
  } else if constexpr (!is_grouping<Group>) {
    static_assert(is_grouping<Group>, "[pith] outliers<Which, Group>: Group says what a vector is. Fix: per_token<64> or per_channel<64>.");
    return false;
  } else if constexpr (!is_storage_scalar<Value>) {
    static_assert(is_storage_scalar<Value>, "[pith] outliers<Which, Group, Leave, Value>: Value is f16, bf16 or float. Fix: f16.");
    return false;
  } else {
    constexpr int group = Group::group, axis = Group::along_tokens ? PageTokens : Channels, length = group != whole ? group : axis;
    if constexpr (group != whole && (group < 16 || (group & (group - 1)) != 0)) {
      static_assert(Channels < 0,
                    "[pith] outliers<Which, Group>: a vector has 16, 32, 64, 128 or 256 numbers. Fix: per_token<64>, or per_token<> for "
                    "the whole row.");
      return false;
    } else if constexpr (length > 256) {
      static_assert(length <= 256,
                    "[pith] outliers<Which, Group>: a vector has at most 256 numbers; its places are bytes. Fix: per_token<128>.");
      return false;
    } else if constexpr (axis % length != 0 || (Group::along_tokens && PageTokens % block_tokens != 0)) {
      static_assert(
          axis < 0,
          "[pith] outliers<Which, Group>: vectors must fill the row or the page. Fix: a G that divides it, or per_token<>, per_channel<>.");
      return false;
    } else if constexpr (outlier_entries<Which> > length / 2) {
      static_assert(outlier_entries<Which> <= length / 2,
                    "[pith] outliers<Which, Group>: at most half of a vector stands out. Fix: both_ends<1>.");
      return false;
    } else {
      return true;
    }
  }
}
template <bool Right, class Which, class Group, leave Leave, class Value, int Channels, int PageTokens>
struct outlier_binding {
  using type = no_tile<Channels>;
};
template <class Which, class Group, leave Leave, class Value, int Channels, int PageTokens>
struct outlier_binding<true, Which, Group, Leave, Value, Channels, PageTokens> {
  using type = outlier_tile<Which, Group, Leave, Value, Channels, PageTokens>;
};

// The tile is the same for dot and mix: kernels walk the entries.
template <class Which, class Group, leave Leave = leave::mean, class Value = f16>
struct outliers {
  template <int Channels, int PageTokens, use Use>
  using bind = typename outlier_binding<check_outliers<Which, Group, Value, Channels, PageTokens>(), Which, Group, Leave, Value, Channels,
                                        PageTokens>::type;
};

static_assert(codec<outliers<both_ends<1>, per_token<>>> && codec<outliers<magnitudes<2>, per_channel<>, leave::zero, bf16>>);

}  // namespace pith
