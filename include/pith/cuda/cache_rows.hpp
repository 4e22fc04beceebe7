// SPDX-License-Identifier: Apache-2.0
// Kernels that write a cache's raw segments and side arrays: new rows, a chunk, what a cut leaves behind.
//
// One block writes one raw tile, each word of it by one thread (layout: codec/word_layout.hpp with 16 bits):
//
//   keys    a word holds two channels of a token         values  two tokens of a channel: what is not written is kept, or zero in a new tile
#pragma once

#include "pith/core/view.hpp"
#include "pith/cuda/cache_memory.hpp"
#include "pith/cuda/patch.hpp"

namespace pith::device {

template <class T>
using device_rows = tensor_view<T const, 3, space::device>;  // [token][kv_head][channel]

// What an append brings to one sequence, its tokens' rows from `row` on, and where the sequence stood before.
struct append_entry {
  std::uint32_t sequence;
  std::int32_t tokens;
  std::int64_t row, slots, sealed_keys, sealed_values;
  std::int32_t key_tiles_end, value_tiles_end;  // tiles that entries up to this one seal
};
struct append_batch {
  static constexpr int most = 64;
  int layer = 0, count = 0;
  int key_parts = 0, value_parts = 0, first_parts = 0;  // most raw tiles that an entry's rows go to: of the two rings, and of `first`
  append_entry entries[most] = {};
};

// The next multiple of a tile below `end` slots less the last `last` of them, or what is sealed already.
template <class Recipe>
PITH_HD constexpr std::int64_t sealed_slots(std::int64_t sealed, std::int64_t end, int last) {
  std::int64_t const whole = (end - last) / Recipe::page::tile_tokens * Recipe::page::tile_tokens;
  return sealed > whole ? sealed : whole;
}

// Raw tiles that staged slots [staged, end) go to, less what is sealed.
constexpr int raw_parts(std::int64_t staged, std::int64_t sealed, std::int64_t end) {
  std::int64_t const first = staged > sealed ? staged : sealed;
  return end <= first ? 0 : static_cast<int>((end - 1) / block_tokens - first / block_tokens + 1);
}

// Tokens [from, to) of a raw tile; number(token, channel) gives them as bf16. A fresh tile's other tokens become zero.
template <class Tile, class Number>
PITH_HD void write_raw_rows(int thread, int threads, std::byte* tile, int from, int to, bool fresh, Number const& number) {
  constexpr int lanes = Tile::layout::lanes;
  for (int i = thread; i < static_cast<int>(Tile::bytes / 4); i += threads) {
    std::byte* const at = tile + 4 * i;
    if constexpr (Tile::used_for == use::dot) {
      int const token = i % lanes, c = i / lanes * 2;
      if (token >= from && token < to)
        store_word<std::uint32_t>(at, number(token, c).bits | static_cast<std::uint32_t>(number(token, c + 1).bits) << 16);
      else if (fresh)
        store_word<std::uint32_t>(at, 0u);
    } else {
      int const c = i % lanes, token = i / lanes * 2;
      bool const low = token >= from && token < to, high = token + 1 >= from && token + 1 < to;
      if (!low && !high && !fresh) continue;
      std::uint32_t const old = fresh || (low && high) ? 0u : load_word<std::uint32_t>(at);
      std::uint32_t const a = low ? number(token, c).bits : old & 0xffffu;
      std::uint32_t const b = high ? number(token + 1, c).bits : old >> 16;
      store_word<std::uint32_t>(at, a | b << 16);
    }
  }
}

// Rows of the caller, one head of them, as the cache stores them raw. Under nan_policy::reject the first number that is not finite is told.
template <class Recipe, class Thread, storage_scalar T>
struct new_rows {
  Thread& thread;
  T const* first;  // of row 0, this head
  std::int64_t row_stride, channel_stride, row;  // the row of token 0
  std::uint64_t* status_word;

  PITH_HD bf16 operator()(std::int64_t token, int channel) const {
    T const x = first[(row + token) * row_stride + channel * channel_stride];
    if constexpr (Recipe::nan == nan_policy::reject)
      if (!is_finite(to_float(x))) thread.store_once(status_word, pack_status({errc::not_finite, row + token}));
    return raw_bf16<Recipe::nan>(x);
  }
};
template <class Recipe, class Thread, storage_scalar T>
PITH_HD new_rows<Recipe, Thread, T> rows_from(Thread& t, device_rows<T> const& x, std::int64_t row, int head, std::uint64_t* status_word) {
  return {t, x.data + head * x.stride[1], x.stride[0], x.stride[2], row, status_word};
}

// New tokens that stay raw, behind the kernels that seal (cache_seal.hpp), and the layer's state.
template <class Recipe, storage_scalar K, storage_scalar V>
struct append_rows_kernel {
  using segments = raw_segments<Recipe>;
  static constexpr int threads = 128;
  static_assert(Recipe::first_tokens == 0 || segments::keys_at == segments::first_key_tile::bytes + segments::first_value_tile::bytes);
  cache_memory<Recipe> memory;
  device_rows<K> k;
  device_rows<V> v;
  std::uint64_t* status_word;
  append_batch batch;

  PITH_HD int parts() const { return batch.key_parts + batch.value_parts + batch.first_parts; }
  pith::device::grid grid() const { return {.x = static_cast<std::int64_t>(batch.count) * parts(), .y = memory.kv_heads}; }

  template <device_like Thread>
  PITH_HD void operator()(Thread& t) const {
    append_entry const& e = batch.entries[t.block_x() / parts()];
    int const part = static_cast<int>(t.block_x() % parts());
    int const head = static_cast<int>(t.block_y()), thread = thread_of(t);
    std::byte* const raw = memory.raw_block(e.sequence, batch.layer, head);
    std::int64_t const staged = e.slots - Recipe::first_tokens, end = staged + e.tokens;  // below zero: in `first`
    std::int64_t const keys = sealed_slots<Recipe>(e.sealed_keys, end, Recipe::last_keys),
                       values = sealed_slots<Recipe>(e.sealed_values, end, Recipe::last_values);
    auto const key_rows = rows_from<Recipe>(t, k, e.row - e.slots, head, status_word);
    auto const value_rows = rows_from<Recipe>(t, v, e.row - e.slots, head, status_word);
    if (part < batch.key_parts) {
      ring_tile<typename segments::key_tile, &segments::key_tile_of>(thread, raw, staged, keys, end, part, key_rows);
    } else if (part < batch.key_parts + batch.value_parts) {
      ring_tile<typename segments::value_tile, &segments::value_tile_of>(thread, raw, staged, values, end, part - batch.key_parts, value_rows);
    } else if (staged < 0) {
      int const from = static_cast<int>(e.slots), to = static_cast<int>(end < 0 ? e.slots + e.tokens : Recipe::first_tokens);
      bool const fresh = from == 0;
      write_raw_rows<typename segments::first_key_tile>(thread, threads, raw, from, to, fresh, key_rows);
      write_raw_rows<typename segments::first_value_tile>(thread, threads, raw + segments::first_values_at, from, to, fresh, value_rows);
    }
    if (part == 0 && head == 0 && thread == 0) {
      layer_state& state = memory.state_of_layer(e.sequence, batch.layer);
      state.tokens += e.tokens;
      state.slots = e.slots + e.tokens;
      state.sealed_keys = keys;
      state.sealed_values = values;
    }
  }

 private:
  // The part-th tile, counted from the first that a new staged token goes to (raw_parts).
  template <class Tile, auto TileOf, class Rows>
  PITH_HD static void ring_tile(int thread, std::byte* raw, std::int64_t staged, std::int64_t sealed, std::int64_t end, std::int64_t part,
                                Rows const& rows) {
    std::int64_t const first = staged > sealed ? staged : sealed, begin = (first / block_tokens + part) * block_tokens;
    if (begin >= end) return;
    std::int64_t const from = first > begin ? first - begin : 0, to = end - begin < block_tokens ? end - begin : block_tokens;
    write_raw_rows<Tile>(thread, threads, TileOf(raw, begin), static_cast<int>(from), static_cast<int>(to), from == 0,
                         [&](int token, int channel) { return rows(Recipe::first_tokens + begin + token, channel); });
  }
};

// A chunk's rows into the raw tiles that its own queries read.
struct chunk_entry {
  std::uint32_t sequence;
  std::int32_t tokens;
  std::int64_t row;
};
template <class Recipe, storage_scalar K, storage_scalar V>
struct load_chunk_kernel {
  using segments = raw_segments<Recipe>;
  using entry = chunk_entry;
  static constexpr int threads = 128, most = 128;
  cache_memory<Recipe> memory;
  device_rows<K> k;
  device_rows<V> v;
  std::uint64_t* status_word;
  int count = 0;
  entry entries[most] = {};

  pith::device::grid grid() const { return {.x = memory.chunk_tiles, .y = memory.kv_heads, .z = count}; }

  template <device_like Thread>
  PITH_HD void operator()(Thread& t) const {
    entry const& e = entries[t.block_z()];
    std::int64_t const begin = t.block_x() * block_tokens, left = e.tokens - begin;
    if (left <= 0) return;
    int const head = static_cast<int>(t.block_y()), to = left < block_tokens ? static_cast<int>(left) : block_tokens;
    write_raw_rows<typename segments::key_tile>(thread_of(t), threads,
                                                memory.chunk_keys(e.sequence, head) + t.block_x() * segments::key_tile::bytes, 0, to, true,
                                                rows_from<Recipe>(t, k, e.row + begin, head, status_word));
    write_raw_rows<typename segments::value_tile>(thread_of(t), threads,
                                                  memory.chunk_values(e.sequence, head) + t.block_x() * segments::value_tile::bytes, 0, to,
                                                  true, rows_from<Recipe>(t, v, e.row + begin, head, status_word));
  }
};

}  // namespace pith::device
