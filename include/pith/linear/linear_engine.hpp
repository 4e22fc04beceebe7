// SPDX-License-Identifier: Apache-2.0
// Where a backend plugs into packed_matrix: it specialises linear_engine for its tag. Everything has been checked when it is called.
//
//   template <class Tile, class Accuracy> struct linear_engine<cpu, Tile, Accuracy>
//     scratch_bytes(tiles, batch), transposed_scratch_bytes(tiles, batch)
//     multiply(tiles, x, out, bias, scratch, run)               out[i][r] = sum_c W[r][c] x[i][c] + bias[r]
//     multiply_transposed(tiles, x, out, bias, scratch, run)    out[i][c] = sum_r W[r][c] x[i][r] + bias[c]
//
// A device's engine takes its environment where these take scratch and an executor (cuda/linear_launch.hpp).
//
// Tiles lie row block by row block, the panels of a row block one after the other, without gaps: one product reads memory once, forwards.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>

#include "pith/codec/variable_rate.hpp"
#include "pith/core/status.hpp"
#include "pith/page/attention_engine.hpp"

namespace pith {

template <class Backend, class Tile, class Accuracy>
struct linear_engine;

template <class Codec, int Panel, use Use>
concept packs_weights = requires {
  typename Codec::template bind<Panel, 256, Use>::storage;
};

// Columns of a tile where none are named: 256, or 128 if scales would lie more than 6 KiB behind the first code. Measured: with 256, 8-bit
// codes took 1.2 to 1.4 times as long for batches of 4 to 16, 4-bit codes with 512 twice as long for one row (docs/benchmarks.md).
template <class Codec, use Use>
constexpr int default_panel() {
  if constexpr (packs_weights<Codec, 256, Use>) {
    using storage = typename Codec::template bind<256, 256, Use>::storage;
    if constexpr (requires { storage::scale_at; })
      return storage::bytes > 6144 && (storage::along_tokens || storage::group <= 128) ? 128 : 256;
  }
  return 256;
}

// The first broken rule speaks alone; true if there is none.
template <class Codec, int Panel, use Use>
consteval bool check_weights() {
  constexpr bool panel_fits = Panel >= 32 && Panel <= 1024 && Panel % 32 == 0;
  if constexpr (!panel_fits) {
    static_assert(panel_fits, "[pith] packed_matrix<Codec, Use, Panel>: Panel is a multiple of 32 up to 1024. Fix: leave it out.");
    return false;
  } else if constexpr (!packs_weights<Codec, Panel, Use>) {
    static_assert(Panel < 0,
                  "[pith] packed_matrix<C>: C is not a codec. Fix: raw<bf16>, int4<per_token<64>, zero::none>, pipe<hadamard<64>, C>.");
    return false;
  } else if constexpr (is_calibrated<typename Codec::template bind<Panel, 256, Use>>) {
    static_assert(Panel < 0,
                  "[pith] packed_matrix<Codec>: Codec has calibrated state. Fix: apply it to the columns before packing and to x before multiplying.");
    return false;
  } else {
    return true;
  }
}
template <bool Right, class Codec, int Panel, use Use>
struct weights_binding {
  using type = no_tile<32>;
};
template <class Codec, int Panel, use Use>
struct weights_binding<true, Codec, Panel, Use> {
  using type = typename Codec::template bind<Panel, 256, Use>;
};

template <class T>
concept weight_tile = tile<T> || variable_tile<T>;

// The tiles of one matrix: rows are output features, columns input features. Of a variable rate these are the fixed parts; tails follow.
template <weight_tile Tile>
struct packed_tiles {
  static constexpr bool has_tails = variable_tile<Tile>;
  static constexpr std::int64_t most_bytes = [] {  // of a tile
    if constexpr (has_tails)
      return Tile::bytes + Tile::tail_bound;
    else
      return std::int64_t{Tile::bytes};
  }();
  static constexpr std::int64_t padding = has_tails ? tail_padding : 0;

  std::byte const* data = nullptr;
  std::int64_t rows = 0, columns = 0;
  std::int64_t size = 0;  // bytes from data on, where a reader of tails wants to know

  std::int64_t row_blocks() const { return divide_up(rows, Tile::tokens); }
  std::int64_t panels() const { return divide_up(columns, Tile::channels); }
  std::byte const* at(std::int64_t row_block, std::int64_t panel) const { return data + (row_block * panels() + panel) * Tile::bytes; }

  static constexpr std::int64_t alignment = 64;

  std::int64_t fixed_bytes() const { return row_blocks() * panels() * Tile::bytes; }

  // Bytes of a packed matrix at most, everything included; the largest int64 if that does not fit, 0 for an extent that is not positive.
  static constexpr std::int64_t bound_bytes(std::int64_t rows, std::int64_t columns) noexcept {
    if (rows <= 0 || columns <= 0) return 0;
    std::int64_t const row_blocks = (rows - 1) / Tile::tokens + 1, panels = (columns - 1) / Tile::channels + 1;
    std::int64_t count = 0, bytes = 0;
    bool const over = __builtin_mul_overflow(row_blocks, panels, &count) || __builtin_mul_overflow(count, most_bytes, &bytes) ||
                      __builtin_add_overflow(bytes, padding, &bytes);
    return over ? std::numeric_limits<std::int64_t>::max() : bytes;
  }

  // errors  misaligned  `at` is what the address exceeds a multiple of 64 by
  //         too_small   `at` is the bytes wanted
  static status check_memory(std::span<std::byte const> memory, std::int64_t wanted, errc too_small) noexcept {
    auto const past = static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(memory.data()) % alignment);
    if (past != 0) return {errc::misaligned, past};
    if (static_cast<std::int64_t>(memory.size()) < wanted) return {too_small, wanted};
    return {};
  }
};

// Extents of a product; a bias of 0 is none.
inline status check_extents(std::int64_t const (&x)[2], std::int64_t const (&out)[2], std::int64_t in_features, std::int64_t out_features,
                            std::int64_t bias) noexcept {
  if (x[0] < 0) return {errc::shape_mismatch, x[0]};
  if (x[1] != in_features) return {errc::shape_mismatch, x[1]};
  if (out[0] != x[0]) return {errc::shape_mismatch, out[0]};
  if (out[1] != out_features) return {errc::shape_mismatch, out[1]};
  if (bias != 0 && bias != out_features) return {errc::shape_mismatch, bias};
  return {};
}

// Whose product a call of multiply<Accuracy> is.
template <class Accuracy>
consteval bool check_accuracy() {
  constexpr bool known = std::is_same_v<Accuracy, exact_accuracy> || std::is_same_v<Accuracy, integer_accuracy>;
  static_assert(known, "[pith] multiply<A>: A is exact_accuracy or integer_accuracy. Fix: multiply<integer_accuracy>(...).");
  return known;
}

}  // namespace pith
