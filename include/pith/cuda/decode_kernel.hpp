// SPDX-License-Identifier: Apache-2.0
// The kernel that decodes tiles, one block of threads each: the numbers of Tile::decode, rounded to T.
//
//   words -> f32 in shared memory -> the tile's transforms undone, a warp for each row -> rows
//
// A value of type Jobs says what is decoded: for tile i
//   jobs.from(i)     its bytes, a multiple of 16
//   jobs.to(i)       rows (rows.hpp)
//   jobs.state(i)    the tile's calibrated numbers in device memory, or a no_state
//
// error  none beside the codec's; any bytes are accepted
// cost   4 bit, bf16 rows of 128 channels: about 15 instructions a number on sm_80, of which 11 unpack
#pragma once

#include "pith/cuda/encode_kernel.hpp"

namespace pith::device {

// Of an integer below 2^23, exactly.
PITH_HD inline float small_number(std::uint32_t u) noexcept { return bits_float(u | 0x4b000000u) - 8388608.0f; }

// One stored number: from what a word holds and the group's scale and zero.
template <class Leaf>
struct decoded_number;

template <int Bits, class Group, zero Zero, class Scale, int Channels, int PageTokens, use Use>
struct decoded_number<integer_tile<Bits, Group, Zero, Scale, Channels, PageTokens, Use>> {
  using tile = integer_tile<Bits, Group, Zero, Scale, Channels, PageTokens, Use>;
  static constexpr bool has_scale = true, has_low = Zero != zero::none;
  static constexpr int bits = Bits;

  PITH_HD static float scale(std::byte const* in, std::int64_t index) {
    return stored_scalar<Scale>(in + tile::scale_at + index * static_cast<std::int64_t>(sizeof(Scale)));
  }
  PITH_HD static float low(std::byte const* in, std::int64_t index) {
    if constexpr (Zero == zero::integer)
      return static_cast<float>(static_cast<int>(in[tile::zero_at + index]));
    else
      return stored_scalar<Scale>(in + tile::zero_at + index * static_cast<std::int64_t>(sizeof(Scale)));
  }
  PITH_HD static float of(std::uint32_t u, float scale, float low) {
    if constexpr (Zero == zero::none)
      return mul_rn(small_number(u) - static_cast<float>(tile::middle), scale);
    else if constexpr (Zero == zero::integer)
      return mul_rn(small_number(u) - low, scale);
    else if constexpr (std::is_same_v<Scale, f16>)
      return small_number(u) * scale + low;  // one rounding, fused or not: see times_plus()
    else
      return tile::times_plus(static_cast<int>(u), scale, low);
  }

  template <class S>
  PITH_HD static float stored_scalar(std::byte const* at) {
    if constexpr (sizeof(S) == 1)
      return to_float(S{static_cast<std::uint8_t>(*at)});
    else if constexpr (sizeof(S) == 2)
      return number_of<S>(load_word<std::uint16_t>(at));
    else
      return load_word<float>(at);
  }
};

template <class T, class Group, class Scale, int Channels, int PageTokens, use Use>
struct decoded_number<float8_tile<T, Group, Scale, Channels, PageTokens, Use>> {
  using tile = float8_tile<T, Group, Scale, Channels, PageTokens, Use>;
  static constexpr bool has_scale = tile::scaled, has_low = false;
  static constexpr int bits = 8;
  PITH_HD static float scale(std::byte const* in, std::int64_t index) {
    return decoded_number<integer_tile<8, per_token<>, zero::none, f16, Channels, 32, Use>>::template stored_scalar<Scale>(
        in + tile::scale_at + index * static_cast<std::int64_t>(sizeof(Scale)));
  }
  PITH_HD static float of(std::uint32_t u, float scale, float) {
    float const x = to_float(T{static_cast<std::uint8_t>(u)});
    return has_scale ? mul_rn(x, scale) : x;
  }
};

template <class T, int Channels, use Use, int Tokens>
struct decoded_number<raw_tile<T, Channels, Use, Tokens>> {
  static constexpr bool has_scale = false, has_low = false;
  static constexpr int bits = 8 * static_cast<int>(sizeof(T));
  PITH_HD static float of(std::uint32_t u, float, float) { return number_of<T>(u); }
};

// The rows of a chunk from the bytes of a tile of this leaf.
template <class Leaf>
struct leaf_decoder {
  using layout = typename Leaf::layout;
  using number = decoded_number<Leaf>;
  static constexpr int channels = Leaf::channels, pitch = shared_pitch<channels>, threads = tile_threads, tokens = chunk_tokens<Leaf>;
  static constexpr int block = layout::tokens, blocks = tokens / block;
  static_assert(channels % 16 == 0, "[pith] decode on a device: channels are a multiple of 16. Fix: pad the rows.");

  PITH_HD static constexpr int parameter_count() {
    if constexpr (number::has_scale)
      return Leaf::groups * Leaf::group_lanes;
    else
      return 0;
  }
  static constexpr int parameters = parameter_count();
  static constexpr int scale_at = tokens * pitch, low_at = scale_at + parameters;
  static constexpr std::int64_t shared_bytes = 4ll * (low_at + (number::has_low ? parameters : 0));

  // The scales and zeros of all groups, as f32; a barrier follows.
  PITH_HD static void load_parameters(int thread, std::byte const* in, float* shared) {
    if constexpr (number::has_scale)
      for_each_item<parameters, threads>(thread, [&](int i) {
        shared[scale_at + i] = number::scale(in, i);
        if constexpr (number::has_low) shared[low_at + i] = number::low(in, i);
      });
  }

  PITH_HD static void rows(int thread, std::byte const* in, int chunk, float* shared) {
    for_each_item<layout::lanes * layout::words * blocks, threads>(thread, [&](int i) {
      int const lane = i % layout::lanes, word = i / layout::lanes % layout::words, b = i / layout::lanes / layout::words;
      decode_word(in + (chunk * blocks + b) * layout::bytes, chunk * tokens + b * block, b * block, word, lane, shared);
    });
  }

 private:
  static constexpr int run = layout::per_word < 4 ? layout::per_word : 4;  // numbers that are fetched and stored at once

  // Parameters either belong to a lane or differ along the packed axis.
  PITH_HD static constexpr bool by_lane() {
    if constexpr (number::has_scale)
      return Leaf::along_tokens == (Leaf::used_for == use::mix);
    else
      return true;
  }

  // The numbers of a word of the first plane, of a block whose rows begin at `first` in shared memory and at `first_token` in the tile.
  PITH_HD static void decode_word(std::byte const* words, int first_token, int first, int word, int lane, float* shared) {
    std::uint32_t const low_bits = load_word<std::uint32_t>(words + 4ll * (word * layout::lanes + lane));
    int const begin = word * layout::per_word;
    std::uint32_t high[2] = {};
    PITH_UNROLL for (int plane = 1; plane < layout::planes; ++plane) {
      std::uint32_t const all = load_word<std::uint32_t>(
          words + 4ll * ((layout::words_before(plane) + begin / (32 / layout::bits_of(plane))) * layout::lanes + lane));
      high[plane - 1] = all >> layout::high_bit(begin, plane);  // the word's codes are at the places of word 0 from here
    }
    float scale[4] = {}, low[4] = {};
    PITH_UNROLL for (int f = 0; f < layout::per_word; f += run) {
      int const token = Leaf::used_for == use::dot ? lane : begin + f, channel = Leaf::used_for == use::dot ? begin + f : lane;
      if constexpr (number::has_scale)
        if (!by_lane() || f == 0) {  // a group holds whole words
          auto const index = Leaf::parameter_index(first_token + token, channel);
          fetch(shared + scale_at + index, scale);
          if constexpr (number::has_low) fetch(shared + low_at + index, low);
        }
      quad x = {};
      PITH_UNROLL for (int k = 0; k < run; ++k) {
        std::uint32_t u = low_bits;
        if constexpr (number::bits < 32) u = low_bits >> (layout::plane_bits * (f + k)) & ((1u << layout::plane_bits) - 1u);
        PITH_UNROLL for (int plane = 1; plane < layout::planes; ++plane)
          u |= (high[plane - 1] >> layout::high_bit(f + k, plane) & ((1u << layout::bits_of(plane)) - 1u)) << layout::place_of(plane);
        int const p = by_lane() ? 0 : k;
        x.at[k] = number::of(u, scale[p], low[p]);
      }
      float* const to = shared + (first + token) * pitch + channel;
      if constexpr (Leaf::used_for == use::dot && run == 4)
        store_quad(to, x);
      else
        PITH_UNROLL for (int k = 0; k < run; ++k) to[Leaf::used_for == use::dot ? k : k * pitch] = x.at[k];
    }
  }
  PITH_HD static void fetch(float const* from, float (&to)[4]) {
    if constexpr (by_lane()) {
      to[0] = *from;
    } else {
      quad const x = load_quad(from);
      PITH_UNROLL for (int i = 0; i < 4; ++i) to[i] = x.at[i];
    }
  }
};

template <class Tile, class Jobs>
struct decode_kernel {
  using leaf = leaf_of<Tile>;
  using decoder = leaf_decoder<leaf>;
  static constexpr int threads = tile_threads;
  static constexpr std::int64_t shared_bytes = decoder::shared_bytes;

  Jobs jobs;

  template <device_like Thread>
  PITH_HD void operator()(Thread& t) const {
    std::int64_t const tile = t.block_x();
    std::byte const* const in = jobs.from(tile);
    if (in == nullptr) return;
    auto const to = jobs.to(tile);
    int const thread = tile_thread(t);
    float* const shared = reinterpret_cast<float*>(t.shared());
    constexpr int tokens = decoder::tokens, pitch = decoder::pitch;
    decoder::load_parameters(thread, in, shared);
    for (int chunk = 0; chunk < Tile::tokens / tokens; ++chunk) {
      t.sync();
      decoder::rows(thread, in, chunk, shared);
      t.sync();
      if constexpr (is_transformed<Tile>) {
        restore_rows<Tile, tokens, threads>(t, thread, shared, pitch, jobs.state(tile));
        t.sync();
      }
      to.template write<Tile::channels, tokens, threads>(thread, chunk * tokens,
                                                         [&](int token, int c) { return load_quad(shared + token * pitch + c); });
    }
  }
};

}  // namespace pith::device
