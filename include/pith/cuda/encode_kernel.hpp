// SPDX-License-Identifier: Apache-2.0
// The kernel that encodes tiles, one block of threads each: the bytes of Tile::encode.
//
//   rows -> f32 in shared memory -> the tile's transforms, a warp for each row -> ranges, parameters, words (encode_integer.hpp)
//
// A value of type Jobs says what is encoded: for tile i
//   jobs.from(i)     rows (rows.hpp)
//   jobs.to(i)       where the bytes go, a multiple of 16; null: there is no such tile
//   jobs.state(i)    the tile's calibrated numbers in device memory, or a no_state
//
// bytes   as on the CPU, for any number of blocks and any order of them
// errors  none: numbers are never refused
#pragma once

#include "pith/codec/pipe.hpp"
#include "pith/codec/raw.hpp"
#include "pith/cuda/encode_integer.hpp"
#include "pith/cuda/rows.hpp"
#include "pith/cuda/transform_rows.hpp"

namespace pith::device {

// How the bytes of a leaf come from rows in shared memory.
template <class Leaf>
struct leaf_encoder {
  static constexpr bool exists = false;
};

template <class Leaf>
struct existing_grouped_encoder : grouped_encoder<Leaf> {
  static constexpr bool exists = true;
};
template <int Bits, class Group, zero Zero, class Scale, int Channels, int PageTokens, use Use>
struct leaf_encoder<integer_tile<Bits, Group, Zero, Scale, Channels, PageTokens, Use>>
    : existing_grouped_encoder<integer_tile<Bits, Group, Zero, Scale, Channels, PageTokens, Use>> {};
template <class T, class Group, class Scale, int Channels, int PageTokens, use Use>
struct leaf_encoder<float8_tile<T, Group, Scale, Channels, PageTokens, Use>>
    : existing_grouped_encoder<float8_tile<T, Group, Scale, Channels, PageTokens, Use>> {};

// Words of numbers that are rounded by themselves: bits(x) in 8, 16 or 32 bits.
template <class Leaf, int Bits, class Number>
struct plain_encoder {
  static constexpr bool exists = true;
  using layout = typename Leaf::layout;
  static constexpr int channels = Leaf::channels, tokens = Leaf::tokens, pitch = shared_pitch<channels>, threads = tile_threads;
  static constexpr std::int64_t shared_bytes = 4ll * tokens * pitch;
  static_assert(channels % 16 == 0, "[pith] encode on a device: channels are a multiple of 16. Fix: pad the rows.");

  template <class Thread, class Load>
  PITH_HD static void run(Thread&, int thread, float* shared, Load const& load, std::byte* out) {
    load(0);
    constexpr int per_word = 32 / Bits, words = 4 / per_word;  // of four packed numbers
    if constexpr (Leaf::used_for == use::dot) {
      for_each_item<tokens * channels / 4, threads>(thread, [&](int i) {
        int const token = i % tokens, c = i / tokens * 4;
        quad const x = load_quad(shared + token * pitch + c);
        std::uint32_t word[words] = {};
        PITH_UNROLL for (int k = 0; k < 4; ++k) word[k / per_word] |= Number::bits(x.at[k]) << (Bits * (k % per_word) % 32);
        PITH_UNROLL for (int w = 0; w < words; ++w) store_word(out + 4ll * ((c / per_word + w) * tokens + token), word[w]);
      });
    } else {
      for_each_item<tokens / per_word * (channels / 4), threads>(thread, [&](int i) {
        int const c = i % (channels / 4) * 4, row = i / (channels / 4);
        word4 word = {};
        PITH_UNROLL for (int k = 0; k < per_word; ++k) {
          quad const x = load_quad(shared + (row * per_word + k) * pitch + c);
          PITH_UNROLL for (int j = 0; j < 4; ++j) word.at[j] |= Number::bits(x.at[j]) << (Bits * k % 32);
        }
        store_word(out + 4ll * (row * channels + c), word);
      });
    }
    for (std::int64_t i = layout::bytes + thread; i < Leaf::bytes; i += threads) out[i] = std::byte{0};
  }
};
template <class T>
struct raw_number {
  PITH_HD static std::uint32_t bits(float x) { return stored_bits<T>(x); }
};
template <class T>
struct float8_number {
  PITH_HD static std::uint32_t bits(float x) { return float8_code<T>(x); }
};
template <class T, int Channels, use Use, int Tokens>
struct leaf_encoder<raw_tile<T, Channels, Use, Tokens>>
    : plain_encoder<raw_tile<T, Channels, Use, Tokens>, 8 * static_cast<int>(sizeof(T)), raw_number<T>> {};
template <class T, class Scale, int Channels, int PageTokens, use Use>
struct leaf_encoder<float8_tile<T, ungrouped, Scale, Channels, PageTokens, Use>>
    : plain_encoder<float8_tile<T, ungrouped, Scale, Channels, PageTokens, Use>, 8, float8_number<T>> {};

// The leaf behind a tile's transforms.
template <class Tile>
struct leaf_behind {
  using type = Tile;
};
template <class Transform, class Inner>
struct leaf_behind<transformed_tile<Transform, Inner>> : leaf_behind<Inner> {};
template <class Tile>
using leaf_of = typename leaf_behind<Tile>::type;

template <class Tile>
inline constexpr bool has_device_form = leaf_encoder<leaf_of<Tile>>::exists;

// What a wrong codec binds to: its own check has spoken.
template <class Leaf>
inline constexpr bool is_stand_in = false;
template <int Channels>
inline constexpr bool is_stand_in<no_tile<Channels>> = true;

template <class Tile>
consteval bool check_device_form() {
  static_assert(
      has_device_form<Tile> || is_stand_in<leaf_of<Tile>>,
      "[pith] encode_tiles, decode_tiles: this codec has no device form. Fix: raw, int2 to int8, block_float or float8, behind any "
      "transforms; or encode on the CPU and copy the bytes.");
  return has_device_form<Tile>;
}

template <class Tile, class Jobs>
struct encode_kernel {
  using leaf = leaf_of<Tile>;
  using encoder = leaf_encoder<leaf>;
  static constexpr int threads = tile_threads;
  static constexpr std::int64_t shared_bytes = encoder::shared_bytes;

  Jobs jobs;

  template <device_like Thread>
  PITH_HD void operator()(Thread& t) const {
    std::int64_t const tile = t.block_x();
    std::byte* const out = jobs.to(tile);
    if (out == nullptr) return;
    auto const from = jobs.from(tile);
    int const thread = tile_thread(t);
    float* const shared = reinterpret_cast<float*>(t.shared());
    constexpr int tokens = chunk_tokens<leaf>, pitch = shared_pitch<Tile::channels>;
    auto const load = [&](int first) {
      from.template read<Tile::channels, tokens, threads>(
          thread, first, [&](int token, int c, quad const& x) { store_quad(shared + token * pitch + c, x); });
      t.sync();
      if constexpr (is_transformed<Tile>) {
        transform_rows<Tile, tokens, threads>(t, thread, shared, pitch, jobs.state(tile));
        t.sync();
      }
    };
    encoder::run(t, thread, shared, load, out);
  }
};

}  // namespace pith::device
