// SPDX-License-Identifier: Apache-2.0
// What dot_kernel and mix_kernel must give, in double, and how far f32 may be from it.
#pragma once

#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <type_traits>
#include <vector>

#include "laws/inputs.hpp"
#include "pith/codec/block_float.hpp"
#include "pith/cpu/float8_kernels.hpp"
#include "pith/cpu/mix_integer.hpp"
#include "pith/cpu/raw_kernels.hpp"
#include "support/catch.hpp"

namespace pith_test {

// A stored number x = u s + o as the kernels see it: `size` bounds every partial product of it. `middle` is the number that the middle of the
// codes stands for.
struct stored_number {
  double value, scale, centred, size, middle;  // centred = |u - middle code|
};

template <class Tile>
std::vector<stored_number> stored_numbers(std::vector<std::byte> const& bytes) {
  std::vector<float> rows(static_cast<std::size_t>(Tile::tokens) * Tile::channels);
  Tile::decode(bytes.data(), rows.data());
  std::vector<stored_number> all;
  for (int t = 0; t < Tile::tokens; ++t)
    for (int c = 0; c < Tile::channels; ++c) {
      double const x = rows[static_cast<std::size_t>(t * Tile::channels + c)];
      if constexpr (requires { Tile::middle; }) {
        using scale_type = typename Tile::scale_type;
        std::int64_t const index = Tile::parameter_index(t, c);
        double const s = pith::load_scalar<scale_type>(bytes.data() + Tile::scale_at + index * static_cast<int>(sizeof(scale_type)));
        int const u = static_cast<int>(Tile::layout::get(bytes.data() + t / 32 * Tile::layout::bytes, t % 32, c));
        double offset = -Tile::middle * s;
        if constexpr (Tile::zero_kind == pith::zero::real)
          offset = pith::load_scalar<scale_type>(bytes.data() + Tile::zero_at + index * static_cast<int>(sizeof(scale_type)));
        if constexpr (Tile::zero_kind == pith::zero::integer)
          offset = -static_cast<int>(bytes[static_cast<std::size_t>(Tile::zero_at + index)]) * s;
        double const middle = Tile::bits == 8 || Tile::zero_kind == pith::zero::none ? Tile::middle : 0.5 * Tile::top;
        all.push_back({u * s + offset, s, std::fabs(u - Tile::middle), 2 * Tile::top * std::fabs(s) + std::fabs(offset), middle * s + offset});
      } else {
        all.push_back({x, 0, 0, std::fabs(x), 0});
      }
    }
  return all;
}

template <class Tile>
std::vector<std::byte> encode_tile(std::vector<float> const& rows) {
  std::vector<std::byte> bytes(static_cast<std::size_t>(Tile::bytes));
  Tile::encode(rows.data(), bytes.data());
  return bytes;
}

// Gaussian rows with an outlier channel, a constant token and a constant channel.
template <class Tile>
std::vector<float> kernel_rows(std::uint64_t seed) {
  auto all = hard_inputs(Tile::tokens, Tile::channels, seed);
  std::vector<float> rows = all[3].rows;
  for (int c = 0; c < Tile::channels; ++c) rows[static_cast<std::size_t>(4 * Tile::channels + c)] = 0.75f;
  for (int t = 0; t < Tile::tokens; ++t) rows[static_cast<std::size_t>(t * Tile::channels + 9)] = -1.5f;
  return rows;
}

// Numbers as halves in any order: no kernel knows it, so the generic one is used.
struct unknown_tile {
  static constexpr int tokens = 32, channels = 24;
  static constexpr std::int64_t bytes = 4 * tokens * channels;
  static constexpr pith::nan_policy nan = pith::nan_policy::propagate;
  static void encode(float const* rows, std::byte* out) noexcept {
    for (int i = 0; i < tokens * channels; ++i) pith::store_scalar<float>(out + 4 * (tokens * channels - 1 - i), 0.5f * rows[i]);
  }
  static void decode(std::byte const* in, float* rows) noexcept {
    for (int i = 0; i < tokens * channels; ++i) rows[i] = 2 * pith::load_scalar<float>(in + 4 * (tokens * channels - 1 - i));
  }
};

}  // namespace pith_test
