// SPDX-License-Identifier: Apache-2.0
// Which tiles an append seals, where their rows are and where their bytes go: the jobs of encode_kernel.hpp.
//
// All tiles of an append are sealed at once, before its rows are written: a tile's older tokens are still in the ring, the others are read
// from the caller's rows. So an append of any length takes one launch for keys and one for values, and no row goes through the ring that
// does not stay there.
#pragma once

#include "pith/cuda/cache_rows.hpp"
#include "pith/cuda/encode.hpp"

namespace pith::device {

// Rows of staged slots slot, slot + 1, ...: those below `held` from a ring of raw tiles, the others from the caller, as they are stored raw.
template <class Recipe, class Raw, storage_scalar X>
struct staged_rows {
  std::byte const* ring;
  std::int64_t tiles, slot, held;
  X const* x;  // of row 0, this head
  std::int64_t row_stride, channel_stride, row;  // the row of staged slot 0
  bool whole_quads;                              // four channels of a row are one aligned load

  // See rows.hpp.
  template <int Channels, int Count, int Threads, class Put>
  PITH_HD void read(int thread, int first, Put const& put) const {
    if (Count % block_tokens == 0 && first % block_tokens == 0 && slot + first + Count <= held) {
      raw_ring<Raw>{ring, slot / block_tokens, tiles}.template read<Channels, Count, Threads>(thread, first, put);
    } else if (whole_quads && slot + first >= held) {
      plain_rows<X const>{x + (row + slot) * row_stride, row_stride}.template read<Channels, Count, Threads>(
          thread, first, [&](int token, int c, quad four) {
            PITH_UNROLL for (int k = 0; k < 4; ++k) four.at[k] = to_float(raw_bf16<Recipe::nan>(four.at[k]));
            put(token, c, four);
          });
    } else {
      for_each_item<Count * Channels / 4, Threads>(thread, [&](int i) {
        int const token = i / (Channels / 4), c = i % (Channels / 4) * 4;
        quad four;
        PITH_UNROLL for (int k = 0; k < 4; ++k) four.at[k] = number(slot + first + token, c + k);
        put(token, c, four);
      });
    }
  }

 private:
  PITH_HD float number(std::int64_t at, int c) const {
    if (at < held) return Raw::get(ring + at / block_tokens % tiles * Raw::bytes, static_cast<int>(at % block_tokens), c);
    return to_float(raw_bf16<Recipe::nan>(x[(row + at) * row_stride + c * channel_stride]));
  }
};

enum class part : std::uint8_t { keys, values };

// The tiles of keys or of values of one batch: tile i of them is tile i / kv_heads of the batch, of head i % kv_heads.
template <class Recipe, part Part, storage_scalar X>
struct sealed_tiles {
  using page = typename Recipe::page;
  using segments = raw_segments<Recipe>;
  static constexpr bool keys = Part == part::keys;
  using tile = std::conditional_t<keys, typename page::key_tile, typename page::value_tile>;
  using raw = std::conditional_t<keys, typename segments::key_tile, typename segments::value_tile>;
  cache_memory<Recipe> memory;
  device_rows<X> x;
  bool whole_quads;
  append_batch batch;

  static std::int64_t count(cache_memory<Recipe> const& memory, append_batch const& batch) {
    return tiles_end(batch.entries[batch.count - 1]) * static_cast<std::int64_t>(memory.kv_heads);
  }
  static bool has_whole_quads(device_rows<X> const& x) {
    auto const bits = reinterpret_cast<std::uintptr_t>(x.data) | static_cast<std::uintptr_t>(x.stride[0] | x.stride[1]) * sizeof(X);
    return x.stride[2] == 1 && bits % (4 * sizeof(X)) == 0;
  }

  PITH_HD staged_rows<Recipe, raw, X> from(std::int64_t i) const {
    place const at = place_of(i);
    append_entry const& e = batch.entries[at.entry];
    std::int64_t const held = e.slots - Recipe::first_tokens;
    return {memory.raw_block(e.sequence, batch.layer, at.head) + (keys ? segments::keys_at : segments::values_at),
            keys ? segments::key_ring : segments::value_ring,
            at.slot,
            held,
            x.data + at.head * x.stride[1],
            x.stride[0],
            x.stride[2],
            e.row - held,
            whole_quads};
  }
  PITH_HD std::byte* to(std::int64_t i) const {
    place const at = place_of(i);
    std::uint32_t const block = memory.table_of(batch.entries[at.entry].sequence, batch.layer, at.head)[at.slot / page::tokens];
    int const token = static_cast<int>(at.slot % page::tokens);
    return memory.page_at(block) + (keys ? page::key_tile_at(token) : page::value_tile_at(token));
  }
  PITH_HD decltype(auto) state(std::int64_t i) const {
    std::int64_t const head = static_cast<std::int64_t>(batch.layer) * memory.kv_heads + i % memory.kv_heads;
    if constexpr (!is_calibrated<tile>)
      return no_state{};
    else if constexpr (keys)
      return (memory.key_states[head]);
    else
      return (memory.value_states[head]);
  }

 private:
  struct place {
    int entry, head;
    std::int64_t slot;  // staged, of the tile's first token
  };
  PITH_HD static std::int32_t tiles_end(append_entry const& e) { return keys ? e.key_tiles_end : e.value_tiles_end; }
  PITH_HD place place_of(std::int64_t i) const {
    std::int64_t const at = i / memory.kv_heads;
    int entry = 0;
    while (tiles_end(batch.entries[entry]) <= at) ++entry;
    append_entry const& e = batch.entries[entry];
    std::int64_t const before = entry == 0 ? 0 : tiles_end(batch.entries[entry - 1]);
    return {entry, static_cast<int>(i % memory.kv_heads), (keys ? e.sealed_keys : e.sealed_values) + (at - before) * tile::tokens};
  }
};

}  // namespace pith::device
