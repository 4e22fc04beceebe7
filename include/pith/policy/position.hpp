// SPDX-License-Identifier: Apache-2.0
// Stage "position": at which positions the kept keys stand from now on, and the rotation that takes them there.
//
//   keep_original      as they were; gaps stay                                         default
//   reindexed          0, 1, ... n - 1: positions inside the cache                     StreamingLLM, LaCache, Finch, SirLLM
//   clamped_distance   max(old, newest - limit): none is farther back than that        LM-Infinite
//   edit_shift         positions >= `from` move by `by`                                PIE: an edit replaced some tokens by others
//
// rope rotates pairs of channels by position x frequency. Rotations add up, R(b - a) R(a) k = R(b) k, so that a stored rotated key is moved
// by its difference of positions alone. Keys that were stored before RoPE need no rotation.
//
//   frequency_i = base^(-2 i / rotary)   unless the caller gives frequencies (YaRN, NTK); channels from `rotary` on are left alone
//   pair i: channels i and i + rotary / 2 (halves, Llama and NeoX), or 2 i and 2 i + 1 (neighbours, GPT-J)
//
// errors  shape_mismatch; out_of_range: positions of an edit that would pass each other or fall below 0 (`at` is the slot), a limit below 0
//         (`at` is the limit), rotary that is odd or wider than the row
// cost    rotate: rotary / 2 powers, sines and cosines a row, f64, results rounded to f32 once; no allocation
// from    Su et al., RoFormer, 2021; Xiao et al., StreamingLLM, 2023; Han et al., LM-Infinite, 2023; He et al., PIE, 2024
// differs LM-Infinite clamps distances while attending, from each query; here keys move whenever it is decided, so that queries until the
//         next decision see them farther back by as many positions
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <span>

#include "pith/core/status.hpp"
#include "pith/policy/stage.hpp"

namespace pith {

// `old` and `out`: [kept slot], ascending.
struct keep_original {
  static constexpr stage kind = stage::position;
  status fix(std::span<std::int64_t const> old, std::span<std::int64_t> out) const {
    for (std::size_t i = 0; i < out.size(); ++i) out[i] = old[i];
    return {};
  }
};

struct reindexed {
  static constexpr stage kind = stage::position;
  status fix(std::span<std::int64_t const>, std::span<std::int64_t> out) const {
    for (std::size_t i = 0; i < out.size(); ++i) out[i] = static_cast<std::int64_t>(i);
    return {};
  }
};

// A query at the newest position sees each key at distance min(true, limit). Clamped keys may share a position. Clamping again later gives
// what clamping the first positions would have given.
template <std::int64_t Limit = 4096>
struct clamped_distance {
  static constexpr stage kind = stage::position;
  static constexpr bool valid = Limit >= 0;
  std::int64_t limit = Limit;
  status fix(std::span<std::int64_t const> old, std::span<std::int64_t> out) const {
    if (limit < 0) return {errc::out_of_range, limit};
    for (std::size_t i = 0; i < out.size(); ++i) out[i] = std::max(old[i], old.back() - limit);
    return {};
  }
};

struct edit_shift {
  static constexpr stage kind = stage::position;
  std::int64_t from = 0, by = 0;
  status fix(std::span<std::int64_t const> old, std::span<std::int64_t> out) const {
    for (std::size_t i = 0; i < out.size(); ++i) {
      std::int64_t const at = old[i] >= from ? old[i] + by : old[i];
      if (at < 0 || (i > 0 && old[i] > old[i - 1] && at <= (old[i - 1] >= from ? old[i - 1] + by : old[i - 1])))
        return {errc::out_of_range, static_cast<std::int64_t>(i)};
    }
    for (std::size_t i = 0; i < out.size(); ++i) out[i] = old[i] >= from ? old[i] + by : old[i];
    return {};
  }
};

enum class rope_pairs : std::uint8_t { halves, neighbours };

struct rope {
  std::int64_t rotary = 128;  // channels that are rotated, from the first on
  double base = 10000;
  rope_pairs pairs = rope_pairs::halves;
  std::span<double const> frequencies{};  // [rotary / 2]; empty: from the base

  double frequency(std::int64_t pair) const {
    return frequencies.empty() ? std::pow(base, -2.0 * static_cast<double>(pair) / static_cast<double>(rotary))
                               : frequencies[static_cast<std::size_t>(pair)];
  }

  // row [channels] := R(by) row
  status rotate(std::span<float> row, std::int64_t by) const {
    if (rotary < 0 || rotary % 2 != 0 || rotary > static_cast<std::int64_t>(row.size())) return {errc::out_of_range, rotary};
    if (!frequencies.empty() && static_cast<std::int64_t>(frequencies.size()) != rotary / 2)
      return {errc::shape_mismatch, static_cast<std::int64_t>(frequencies.size())};
    if (by == 0) return {};
    for (std::int64_t pair = 0; pair < rotary / 2; ++pair) {
      double const angle = static_cast<double>(by) * frequency(pair), cosine = std::cos(angle), sine = std::sin(angle);
      float& x = row[static_cast<std::size_t>(pairs == rope_pairs::halves ? pair : 2 * pair)];
      float& y = row[static_cast<std::size_t>(pairs == rope_pairs::halves ? pair + rotary / 2 : 2 * pair + 1)];
      double const a = x, b = y;
      x = static_cast<float>(a * cosine - b * sine);
      y = static_cast<float>(a * sine + b * cosine);
    }
    return {};
  }

  // keys [slot][channels], from old to new positions.
  status move(std::span<float> keys, std::int64_t channels, std::span<std::int64_t const> old, std::span<std::int64_t const> now) const {
    if (channels < 1 || old.size() != now.size() || keys.size() != old.size() * static_cast<std::size_t>(channels))
      return {errc::shape_mismatch, channels};
    for (std::size_t slot = 0; slot < old.size(); ++slot) {
      auto const row = keys.subspan(slot * static_cast<std::size_t>(channels), static_cast<std::size_t>(channels));
      if (status const ok = rotate(row, now[slot] - old[slot]); !ok) return ok;
    }
    return {};
  }
};

}  // namespace pith
