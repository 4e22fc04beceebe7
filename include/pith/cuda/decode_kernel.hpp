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
// cost   about 10 instructions for a number, of which 6 to 8 round to 16 bits
#pragma once

#include "pith/cuda/encode_kernel.hpp"

namespace pith::device {

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
      return mul_rn(static_cast<float>(static_cast<int>(u) - tile::middle), scale);
    else if constexpr (Zero == zero::real)
      return tile::times_plus(static_cast<int>(u), scale, low);
    else
      return mul_rn(static_cast<float>(static_cast<int>(u)) - low, scale);  // small integers: exact
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
  static constexpr std::int64_t shared_bytes = 4ll * tokens * pitch;
  static_assert(channels % 16 == 0, "[pith] decode on a device: channels are a multiple of 16. Fix: pad the rows.");

  static constexpr int run = layout::per_word < 4 ? layout::per_word : 4;  // packed numbers taken at once
  static constexpr int runs = layout::packed / run;

  PITH_HD static void rows(int thread, std::byte const* in, int chunk, float* shared) {
    for_each_item<layout::lanes * runs * blocks, threads>(thread, [&](int i) {
      int const lane = i % layout::lanes, packed = i / layout::lanes % runs * run, b = i / layout::lanes / runs;
      std::byte const* const words = in + (chunk * blocks + b) * layout::bytes;
      std::uint32_t const word = load_word<std::uint32_t>(words + 4ll * (packed / layout::per_word * layout::lanes + lane));
      std::uint32_t high[2] = {};
      PITH_UNROLL for (int plane = 1; plane < layout::planes; ++plane)
        high[plane - 1] = load_word<std::uint32_t>(
            words + 4ll * ((layout::words_before(plane) + packed / (32 / layout::bits_of(plane))) * layout::lanes + lane));
      PITH_UNROLL for (int k = 0; k < run; ++k) {
        int const p = packed + k;
        std::uint32_t u = word;
        if constexpr (number::bits < 32) u = field<layout::plane_bits>(word, p % layout::per_word);
        PITH_UNROLL for (int plane = 1; plane < layout::planes; ++plane)
          u |= (high[plane - 1] >> layout::high_bit(p, plane) & ((1u << layout::bits_of(plane)) - 1u)) << layout::place_of(plane);
        int const token = b * block + (Leaf::used_for == use::dot ? lane : p), channel = Leaf::used_for == use::dot ? p : lane;
        float scale = 0, low = 0;
        if constexpr (number::has_scale) {
          auto const index = Leaf::parameter_index(chunk * tokens + token, channel);
          scale = number::scale(in, index);
          if constexpr (number::has_low) low = number::low(in, index);
        }
        shared[token * pitch + channel] = number::of(u, scale, low);
      }
    });
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
    for (int chunk = 0; chunk < Tile::tokens / tokens; ++chunk) {
      if (chunk > 0) t.sync();
      decoder::rows(thread, in, chunk, shared);
      t.sync();
      if constexpr (is_transformed<Tile>) {
        restore_rows<Tile, tokens, threads>(t, thread, shared, pitch, jobs.state(tile));
        t.sync();
      }
      to.template write<Tile::channels, tokens, threads>(thread, chunk * tokens, [&](int token, int c) { return load_quad(shared + token * pitch + c); });
    }
  }
};

}  // namespace pith::device
