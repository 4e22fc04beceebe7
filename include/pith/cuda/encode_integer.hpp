// SPDX-License-Identifier: Apache-2.0
// The block that encodes one integer or scaled float8 tile: ranges of all groups, their parameters, then whole words of codes.
//
//   u = rne(clamp((x - low) * inverse, least - shift, top - shift)) + shift
//
// is the codec's own code of a finite x, since rounding keeps order: the sum that rounds leaves it in its low bits under a constant, and a
// word adds up its shifted fields. Numbers that are not finite, or beyond 2^125, show in a group's range: then the ranges are taken again
// without them, and they are cut to these in shared memory before the codes.
//
// shared  rows of f32, Channels + 4 apart, so that four numbers of eight neighbouring tokens lie in different banks; the groups' parameters
//         and ranges. At most 48 KiB: tiles of more than 8192 numbers are read twice, 32 tokens at a time
// cost    instructions a number on sm_80, bf16 rows of 128 channels, numbers of usual size: 4 bit, zero::real, per_token<64> 17,
//         per_channel<32> 19; hadamard<128> before it, 13 more
#pragma once

#include "pith/codec/float8.hpp"
#include "pith/codec/integer.hpp"
#include "pith/cuda/rounded.hpp"
#include "pith/cuda/thread.hpp"

namespace pith::device {

inline constexpr int tile_threads = 128;  // of a block that encodes or decodes a tile

template <class Thread>
PITH_HD inline int tile_thread(Thread& t) {
  return static_cast<int>(static_cast<unsigned>(thread_of(t)) % tile_threads);  // so that it is seen not to be negative
}

// Distance of rows of a tile in shared memory, in floats.
template <int Channels>
inline constexpr int shared_pitch = Channels + 4;
// Tokens that are in shared memory at a time.
template <class Leaf>
inline constexpr int chunk_tokens = Leaf::tokens * Leaf::channels <= 8192 ? Leaf::tokens : block_tokens;

// What is stored of a finite scale or zero that has been rounded to T.
template <scale_scalar T>
PITH_HD inline void write_scalar(std::byte* to, float x) noexcept {
  if constexpr (sizeof(T) == 1)
    *to = static_cast<std::byte>(from_float<T>(x).bits);
  else if constexpr (sizeof(T) == 2)
    store_word(to, static_cast<std::uint16_t>(two_of<T>(x, 0.0f)));
  else
    store_word(to, x);
}

// The code of a number, in the low bits of a word under `above`. `low` is zero::real's m or zero::integer's z.
template <class Leaf>
struct group_code;

template <int Bits, class Group, zero Zero, class Scale, int Channels, int PageTokens, use Use>
struct group_code<integer_tile<Bits, Group, Zero, Scale, Channels, PageTokens, Use>> {
  using tile = integer_tile<Bits, Group, Zero, Scale, Channels, PageTokens, Use>;
  using parameters = typename tile::parameters;
  static constexpr bool symmetric = Zero == zero::none;  // only max|x| of a group matters
  static constexpr bool has_low = !symmetric;
  static constexpr std::uint32_t above = 0x4b400000u;    // 1.5 * 2^23, whose unit is 1
  static constexpr float huge = tile::huge;

  PITH_HD static std::uint32_t of(float x, float inverse, float low) {
    if constexpr (Zero == zero::none) {  // 2^(Bits - 1) is even: it may join the sum that rounds
      constexpr float most = tile::middle - 1, sum = 12582912.0f + tile::middle;
      return float_bits(add_rn(between(mul_rn(x, inverse), -most, most), sum));
    } else if constexpr (Zero == zero::real) {
      return float_bits(add_rn(between(mul_rn(sub_rn(x, low), inverse), 0.0f, static_cast<float>(tile::top)), 12582912.0f));
    } else {
      float const cut = between(mul_rn(x, inverse), -low, static_cast<float>(tile::top) - low);
      return float_bits(add_rn(cut, 12582912.0f)) + static_cast<std::uint32_t>(static_cast<int>(low));
    }
  }
  PITH_HD static float low_of(parameters const& p) { return Zero == zero::integer ? static_cast<float>(p.shift) : p.low; }
  PITH_HD static void write(std::byte* out, std::int64_t index, parameters const& p) {
    constexpr auto step = static_cast<std::int64_t>(sizeof(Scale));
    write_scalar<Scale>(out + tile::scale_at + index * step, p.scale);
    if constexpr (Zero == zero::real) write_scalar<Scale>(out + tile::zero_at + index * step, p.low);
    if constexpr (Zero == zero::integer) out[tile::zero_at + index] = static_cast<std::byte>(p.shift);
  }
};

template <class T, class Group, class Scale, int Channels, int PageTokens, use Use>
  requires(!std::is_same_v<Group, ungrouped>)
struct group_code<float8_tile<T, Group, Scale, Channels, PageTokens, Use>> {
  using tile = float8_tile<T, Group, Scale, Channels, PageTokens, Use>;
  using parameters = typename tile::parameters;
  static constexpr bool symmetric = true, has_low = false;
  static constexpr std::uint32_t above = 0;
  static constexpr float huge = tile::huge;

  PITH_HD static std::uint32_t of(float x, float inverse, float) { return float8_code<T>(mul_rn(x, inverse)); }
  PITH_HD static float low_of(parameters const&) { return 0; }
  PITH_HD static void write(std::byte* out, std::int64_t index, parameters const& p) {
    write_scalar<Scale>(out + tile::scale_at + index * static_cast<std::int64_t>(sizeof(Scale)), p.scale);
  }
};

template <class Leaf>
struct grouped_encoder {
  using layout = typename Leaf::layout;
  using code = group_code<Leaf>;
  static constexpr int channels = Leaf::channels, pitch = shared_pitch<channels>, threads = tile_threads;
  static constexpr int tokens = chunk_tokens<Leaf>, chunks = Leaf::tokens / tokens;
  static constexpr int group = Leaf::group, parameters = Leaf::groups * Leaf::group_lanes;
  static constexpr int quads = channels / 4;
  static_assert(channels % 16 == 0, "[pith] encode on a device: channels are a multiple of 16. Fix: pad the rows.");

  // A group's numbers are divided among `parts` threads where there are threads to spare.
  static constexpr int span = Leaf::along_tokens && group > tokens ? tokens : group;  // numbers of a group in a chunk
  static constexpr int items = Leaf::along_tokens ? quads * (tokens / span) : Leaf::groups * block_tokens;
  static constexpr int parts = 4 * items <= threads ? 4 : 2 * items <= threads ? 2 : 1;

  static constexpr int inverse_at = tokens * pitch, low_at = inverse_at + parameters, least_at = low_at + (code::has_low ? parameters : 0),
                       most_at = least_at + parts * parameters, flag_at = most_at + parts * parameters;
  static constexpr std::int64_t shared_bytes = 4ll * (flag_at + 4);

  static_assert(shared_bytes <= 48 << 10);  // more would have to be asked for

  // load(first) leaves the chunk's rows in shared memory, behind a barrier.
  template <class Thread, class Load>
  PITH_HD static void run(Thread& t, int thread, float* shared, Load const& load, std::byte* out) {
    auto* const flag = reinterpret_cast<std::uint32_t*>(shared + flag_at);
    if (thread == 0) *flag = 0;
    for (int chunk = 0; chunk < chunks; ++chunk) {
      if (chunk > 0) t.sync();
      load(chunk * tokens);
      ranges(thread, shared, chunk);
    }
    t.sync();
    bool const unusual = *flag != 0;
    if (unusual) {
      for (int chunk = 0; chunk < chunks; ++chunk) {
        if (chunks > 1) {
          t.sync();
          load(chunk * tokens);
        }
        finite_ranges(thread, shared, chunk);
      }
      t.sync();
    }
    fit(thread, shared, out);
    t.sync();
    for (int chunk = 0; chunk < chunks; ++chunk) {
      if (chunks > 1) {
        t.sync();
        load(chunk * tokens);
      }
      if (unusual) {
        cut(thread, shared, chunk);
        t.sync();
      }
      codes(thread, shared, chunk, out);
    }
    for (std::int64_t i = Leaf::used + thread; i < Leaf::bytes; i += threads) out[i] = std::byte{0};
  }

 private:
  // The range of the numbers seen so far; NaN if one of them is. Where only magnitudes matter, `most` is the largest of them.
  struct range {
    float least, most;
    PITH_HD explicit range(float first) : least(first), most(code::symmetric ? 0.0f : first) {}
    PITH_HD void add(float x) {
      if constexpr (code::symmetric) {
        most = max_or_nan(most, magnitude(x));
      } else {
        least = min_or_nan(least, x);
        most = max_or_nan(most, x);
      }
    }
  };
  PITH_HD static void put(range r, float* shared, int part, int index, bool goes_on) {
    if constexpr (code::symmetric) r.least = -r.most;
    if (!(magnitude(r.least) <= code::huge && magnitude(r.most) <= code::huge)) *reinterpret_cast<std::uint32_t*>(shared + flag_at) = 1;
    keep(shared + part * parameters + index, r.least, r.most, goes_on);
  }
  PITH_HD static void keep(float* at, float low, float high, bool goes_on) {
    float& least = at[least_at];
    float& most = at[most_at];
    least = goes_on && least < low ? least : low;
    most = goes_on && most > high ? most : high;
  }

  PITH_HD static void ranges(int thread, float* shared, int chunk) {
    if constexpr (Leaf::along_tokens) {
      constexpr int run = span / parts;
      for_each_item<items * parts, threads>(thread, [&](int i) {
        int const c = i % quads * 4, part = i / quads % parts, g = i / quads / parts;
        float const* const first = shared + (g * span + part * run) * pitch + c;
        quad x = load_quad(first);
        range r[4] = {range(x.at[0]), range(x.at[1]), range(x.at[2]), range(x.at[3])};
        for (int k = 0; k < run; ++k) {
          x = load_quad(first + k * pitch);
          PITH_UNROLL for (int j = 0; j < 4; ++j) r[j].add(x.at[j]);
        }
        PITH_UNROLL for (int j = 0; j < 4; ++j) put(r[j], shared, part, g * channels + c + j, chunk > 0);
      });
    } else {
      constexpr int run = group / parts;
      for_each_item<items * parts, threads>(thread, [&](int i) {
        int const token = i % block_tokens, part = i / block_tokens % parts, g = i / block_tokens / parts;
        float const* const first = shared + token * pitch + g * group + part * run;
        range r(*first);
        for (int k = 0; k < run; k += 4) {
          quad const x = load_quad(first + k);
          PITH_UNROLL for (int j = 0; j < 4; ++j) r.add(x.at[j]);
        }
        put(r, shared, part, g * block_tokens + token, false);
      });
    }
  }

  // The ranges of what is finite, in every part's place; least > most if nothing is.
  PITH_HD static void finite_ranges(int thread, float* shared, int chunk) {
    PITH_ROLLED for (int i = thread; i < parameters; i += threads) {
      int const g = i / Leaf::group_lanes, lane = i % Leaf::group_lanes;
      float const* const first = shared + (Leaf::along_tokens ? g * span * pitch + lane : lane * pitch + g * group);
      float least = bits_float(0x7f800000u), most = bits_float(0xff800000u);
      PITH_ROLLED for (int k = 0; k < span; ++k) {
        float const x = first[k * (Leaf::along_tokens ? pitch : 1)];
        if (!is_finite(x)) continue;
        least = x < least ? x : least;
        most = x > most ? x : most;
      }
      PITH_ROLLED for (int part = 0; part < parts; ++part) keep(shared + part * parameters + i, least, most, chunk > 0);
    }
  }

  // Leaves the finite range of each group, cut to what the codec keeps, in the first part's place.
  PITH_HD static void fit(int thread, float* shared, std::byte* out) {
    for_each_item<parameters, threads>(thread, [&](int i) {
      float least = shared[least_at + i], most = shared[most_at + i];
      PITH_UNROLL for (int part = 1; part < parts; ++part) {
        float const l = shared[least_at + part * parameters + i], m = shared[most_at + part * parameters + i];
        least = l < least ? l : least;
        most = m > most ? m : most;
      }
      if (least > most) least = most = 0;
      typename code::parameters const p = Leaf::fit_range(least, most);
      shared[inverse_at + i] = p.inverse;
      if constexpr (code::has_low) shared[low_at + i] = code::low_of(p);
      shared[least_at + i] = p.smallest;
      shared[most_at + i] = p.largest;
      code::write(out, i, p);
    });
  }

  PITH_HD static void cut(int thread, float* shared, int chunk) {
    PITH_ROLLED for (int i = thread; i < tokens * channels; i += threads) {
      int const token = i / channels, c = i % channels;
      auto const index = Leaf::parameter_index(chunk * tokens + token, c);
      float& x = shared[token * pitch + c];
      x = clamp(is_nan(x) ? 0.0f : x, shared[least_at + index], shared[most_at + index]);
    }
  }

  // Codes that share a word of every plane: the least common multiple of the words' lengths.
  static constexpr int unit_codes = layout::planes == 1 ? layout::per_word : 32 / layout::bits_of(layout::planes - 1);
  static constexpr int unit_words = unit_codes / layout::per_word;
  static constexpr int units = (layout::packed + unit_codes - 1) / unit_codes;
  static constexpr int lanes_at_once =
      Leaf::used_for == use::mix && layout::planes == 1 && quads * units * (tokens / block_tokens) >= threads ? 4 : 1;

  PITH_HD static void codes(int thread, float const* shared, int chunk, std::byte* out) {
    constexpr int lane_items = layout::lanes / lanes_at_once;
    for_each_item<lane_items * units * (tokens / block_tokens), threads>(thread, [&](int i) {
      int const lane = i % lane_items * lanes_at_once, unit = i / lane_items % units, block = i / lane_items / units;
      encode_unit(shared, chunk * (tokens / block_tokens) + block, block * block_tokens, unit, lane,
                  out + (chunk * (tokens / block_tokens) + block) * layout::bytes);
    });
  }

  // What the fields of a word hold above their codes.
  static constexpr std::uint32_t ones = layout::per_word == 4 ? 0x01010101u : layout::per_word == 8 ? 0x11111111u : 0x55555555u;
  static constexpr std::uint32_t above_word = code::above * ones;

  // Parameters either belong to a lane or differ along the packed axis.
  static constexpr bool by_lane = Leaf::along_tokens == (Leaf::used_for == use::mix);

  // The unit's words of lanes lane .. lane + lanes_at_once of a block, whose rows begin at `first` in shared memory.
  PITH_HD static void encode_unit(float const* shared, int block, int first, int unit, int lane, std::byte* out) {
    constexpr int width = lanes_at_once, plane_bits = layout::plane_bits;
    std::uint32_t high[2][2][width] = {};
    float inverse[4], low[4] = {};
    PITH_UNROLL for (int w = 0; w < unit_words; ++w) {
      int const word = unit * unit_words + w;
      if (layout::packed % unit_codes != 0 && word >= layout::words) continue;
      std::uint32_t sum[width];
      PITH_UNROLL for (int j = 0; j < width; ++j) sum[j] = layout::planes == 1 ? 0u - above_word : 0u;
      PITH_UNROLL for (int f = 0; f < layout::per_word; f += 4) {
        int const local = w * layout::per_word + f, packed = unit * unit_codes + local;
        int const token = Leaf::used_for == use::dot ? lane : packed, channel = Leaf::used_for == use::dot ? packed : lane;
        if (!by_lane || local % 16 == 0) {  // groups hold whole 16s
          auto const index = Leaf::parameter_index(block * block_tokens + token, channel);
          fetch(shared + inverse_at + index, inverse);
          if constexpr (code::has_low) fetch(shared + low_at + index, low);
        }
        float x[4][width];
        numbers(shared + (first + token) * pitch + channel, x);
        PITH_UNROLL for (int k = 0; k < 4; ++k)
          PITH_UNROLL for (int j = 0; j < width; ++j) {
            int const p = by_lane ? j : k;
            std::uint32_t const u = code::of(x[k][j], inverse[p], low[p]);
            if constexpr (layout::planes == 1) {
              sum[j] += u << (plane_bits * (f + k));
            } else {
              sum[j] |= (u & ((1u << plane_bits) - 1u)) << (plane_bits * (f + k));
              PITH_UNROLL for (int plane = 1; plane < layout::planes; ++plane) {
                int const bits = layout::bits_of(plane);
                high[plane - 1][(local + k) / (32 / bits)][j] |= (u >> layout::place_of(plane) & ((1u << bits) - 1u))
                                                                 << layout::high_bit(local + k, plane);
              }
            }
          }
      }
      store(out + 4ll * (word * layout::lanes + lane), sum);
    }
    PITH_UNROLL for (int plane = 1; plane < layout::planes; ++plane) {
      int const length = 32 / layout::bits_of(plane);  // codes in a word of this plane
      PITH_UNROLL for (int w = 0; w < unit_codes / length; ++w)
        if (layout::packed % unit_codes == 0 || unit * unit_codes + w * length < layout::packed)
          store(out + 4ll * ((layout::words_before(plane) + unit * (unit_codes / length) + w) * layout::lanes + lane), high[plane - 1][w]);
    }
  }
  PITH_HD static void fetch(float const* from, float (&to)[4]) {
    if constexpr (by_lane && lanes_at_once == 1) {
      to[0] = *from;
    } else {
      quad const x = load_quad(from);
      PITH_UNROLL for (int i = 0; i < 4; ++i) to[i] = x.at[i];
    }
  }
  template <int Width>
  PITH_HD static void numbers(float const* from, float (&x)[4][Width]) {
    if constexpr (Leaf::used_for == use::dot) {
      quad const four = load_quad(from);
      PITH_UNROLL for (int k = 0; k < 4; ++k) x[k][0] = four.at[k];
    } else if constexpr (Width == 4) {
      PITH_UNROLL for (int k = 0; k < 4; ++k) {
        quad const four = load_quad(from + k * pitch);
        PITH_UNROLL for (int j = 0; j < Width; ++j) x[k][j] = four.at[j];
      }
    } else {
      PITH_UNROLL for (int k = 0; k < 4; ++k) x[k][0] = from[k * pitch];
    }
  }
  template <int Width>
  PITH_HD static void store(std::byte* to, std::uint32_t const (&words)[Width]) {
    if constexpr (Width == 4)
      store_word(to, word4{{words[0], words[1], words[2], words[3]}});
    else
      store_word(to, words[0]);
  }
};

}  // namespace pith::device
