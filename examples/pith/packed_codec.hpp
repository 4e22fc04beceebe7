// SPDX-License-Identifier: Apache-2.0
// A composition as a line of the table of codecs.
#pragma once

#include <bit>

#include "codecs.hpp"
#include "pith/cpu/tile_engine.hpp"

namespace tool {

static_assert(std::endian::native == std::endian::little, "numbers of files are used as they are");

template <class T, class Codec, int Panel>
struct packed_codec {
  using matrix = pith::packed_matrix<Codec, pith::use::dot, Panel>;
  using tile = typename matrix::tile;
  using engine = pith::tile_engine<pith::cpu, tile>;
  static constexpr pith::tile_layout layout = pith::layout_of<matrix>();

  static pith::result<std::int64_t> pack(std::byte const* numbers, std::int64_t rows, std::int64_t columns, scratch& to) {
    pith::matrix_view<T const> const w(reinterpret_cast<T const*>(numbers), {rows, columns});
    if constexpr (pith::variable_tile<tile>) {
      pith::tail_packing<tile, engine, T const> packing(w);
      std::byte* data = to.of(packing.fixed_bytes());
      auto const bytes = packing.encode(data, pith::serial{});
      if (!bytes) return bytes;
      data = to.of(bytes.value(), packing.fixed_bytes());
      packing.write_tails(data, bytes.value(), pith::serial{});
      return bytes;
    } else {
      std::int64_t const bytes = matrix::bound_bytes(rows, columns);
      std::byte* data = to.of(bytes);
      T buffer[tile::tokens * Panel];
      for (std::int64_t row = 0; row < rows; row += tile::tokens)
        for (std::int64_t column = 0; column < columns; column += Panel, data += tile::bytes) {
          std::int64_t const height = std::min<std::int64_t>(tile::tokens, rows - row),
                             width = std::min<std::int64_t>(Panel, columns - column);
          if (height < tile::tokens || width < Panel) std::fill(std::begin(buffer), std::end(buffer), T{});
          for (std::int64_t i = 0; i < height; ++i) std::copy_n(&w(row + i, column), width, buffer + i * Panel);
          engine::encode(static_cast<T const*>(buffer), std::int64_t{Panel}, data);
        }
      return bytes;
    }
  }

  static pith::status unpack(std::span<std::byte const> packed, std::int64_t rows, std::int64_t columns, std::byte* numbers) {
    auto const opened = matrix::open(packed, rows, columns);
    if (!opened) return opened.error();
    T* const out = reinterpret_cast<T*>(numbers);
    std::byte const* data = packed.data();
    T buffer[tile::tokens * Panel];
    for (std::int64_t row = 0; row < rows; row += tile::tokens)
      for (std::int64_t column = 0; column < columns; column += Panel, data += tile::bytes) {
        std::int64_t const height = std::min<std::int64_t>(tile::tokens, rows - row),
                           width = std::min<std::int64_t>(Panel, columns - column);
        T* const to = out + row * columns + column;
        if (height == tile::tokens && width == Panel) {
          engine::decode(data, to, columns);
        } else {
          engine::decode(data, static_cast<T*>(buffer), std::int64_t{Panel});
          for (std::int64_t i = 0; i < height; ++i) std::copy_n(buffer + i * Panel, width, to + i * columns);
        }
      }
    return {};
  }

  static codec line(std::string name, std::string_view type, bool rounds) {
    return {std::move(name), type, rounds, Panel, layout, &pack, &unpack};
  }
};

// dynamic_float<T, Coder> with each of the panels.
template <class T, class Coder, int... Panels>
void add_lossless(std::vector<codec>& to, std::string const& scalar, std::string_view type, std::string const& coder) {
  std::string const name = "dynamic_float<" + scalar + "," + coder + ">";
  (to.push_back(packed_codec<T, pith::dynamic_float<T, Coder>, Panels>::line(name, type, false)), ...);
}

// A coder with every type. Panels narrower than 256 columns are for the types that weights are shipped in: padding is stored like weights,
// and the next multiple of 256 may be a third more columns than a matrix has.
template <class Coder, int... Narrow>
std::vector<codec> lossless_codecs(std::string const& coder) {
  std::vector<codec> all;
  add_lossless<pith::bf16, Coder, 256, Narrow...>(all, "bf16", "BF16", coder);
  add_lossless<pith::f16, Coder, 256, Narrow...>(all, "f16", "F16", coder);
  add_lossless<float, Coder, 256, Narrow...>(all, "f32", "F32", coder);
  add_lossless<pith::e4m3, Coder, 256>(all, "e4m3", "F8_E4M3", coder);
  add_lossless<pith::e5m2, Coder, 256>(all, "e5m2", "F8_E5M2", coder);
  return all;
}

}  // namespace tool
