// SPDX-License-Identifier: Apache-2.0
// 8 NT queries in shared memory, in the order in which dot_block multiplies them.
//
//   | fragments | sums over channel groups | starts | factors |        score = factor * what dot_block gives
//
// A row is divided by a power of two, so that its largest number lies in [1, 2), and is then Terms 16-bit floats: the nearest, and the
// nearest of what that leaves. Where scales belong to channels the numbers stay f32, the largest in [1/2, 1), and dot_block multiplies and
// rounds them for each block.
// With one term codes are not centred (code_pairs.hpp): a group's sum starts at minus what codes equal to the middle would give.
#pragma once

#include "pith/cuda/dot_operand.hpp"
#include "pith/page/attention_engine.hpp"

namespace pith::device {

// How many numbers of 16 bits stand for a query or weight: two for exact accuracy, one for integer.
template <class Accuracy>
inline constexpr int terms_of = std::is_same_v<Accuracy, exact_accuracy> ? 2 : 1;

template <class Storage, int NT, int Terms>
struct query_block {
  using operand = dot_operand<Storage>;
  static constexpr int rows = 8 * NT;
  static constexpr int channels = Storage::channels;
  static constexpr int steps = operand::pairs / 2;
  static constexpr bool folded = [] {
    if constexpr (operand::is_integer)
      return Storage::along_tokens;
    else
      return false;
  }();
  static constexpr bool has_sums = [] {
    if constexpr (operand::is_integer)
      return !Storage::along_tokens && Storage::zero_kind != zero::none;
    else
      return false;
  }();
  static constexpr bool centred = [] {
    if constexpr (operand::is_integer)
      return folded || Terms > 1;
    else
      return true;
  }();
  static constexpr int groups = [] {
    if constexpr (has_sums || !centred)
      return Storage::groups;
    else
      return 0;
  }();

  PITH_HD static constexpr int fragment_at(int n, int term, int unit, int k, int lane) noexcept {
    return 8 * (warp_lanes * (((n * Terms + term) * operand::units + unit) * steps + k) + lane);
  }
  PITH_HD static constexpr int folded_at(int n, int unit, int k, int lane) noexcept {
    return 16 * (warp_lanes * ((n * operand::units + unit) * steps + k) + lane);
  }
  static constexpr int sums_at = folded ? folded_at(NT, 0, 0, 0) : fragment_at(NT, 0, 0, 0, 0);
  PITH_HD static constexpr int sum_at(int n, int group, int column) noexcept { return sums_at + 4 * ((n * groups + group) * 8 + column); }
  static constexpr int starts_at = has_sums ? sum_at(NT, 0, 0) : sums_at;
  PITH_HD static constexpr int start_at(int n, int group, int column) noexcept { return starts_at + 4 * ((n * groups + group) * 8 + column); }
  static constexpr int factors_at = centred ? starts_at : start_at(NT, 0, 0);
  PITH_HD static constexpr int factor_at(int row) noexcept { return factors_at + 4 * row; }
  static constexpr int bytes = static_cast<int>(round_up(factor_at(rows), 128));

  // One warp lays down one row. `from` [channels] is in shared memory, transformed already; a row that is not there is all zeros.
  template <class Thread>
  PITH_HD static void write(Thread& t, std::byte* block, int row, float const* from, float scale) {
    float most = 0;
    for (int c = t.lane(); c < channels; c += warp_lanes) {
      float const size = from[c] < 0 ? -from[c] : from[c];
      most = larger(most, size);
    }
    float const below = power_below(largest_over_lanes(t, most)), power = folded && below < 0x1p126f ? 2 * below : below, inverse = inverse_power(power);
    for (int at = t.lane(); at < operand::units * steps * 4; at += warp_lanes) {
      int const quad = at % 4, k = at / 4 % steps, unit = at / 4 / steps, lane = 4 * (row % 8) + quad;
      float x[2][2];
      PITH_UNROLL for (int i = 0; i < 2; ++i)
        PITH_UNROLL for (int half = 0; half < 2; ++half) {
          int const c = operand::channel(unit, quad, 2 * k + i, half);
          x[i][half] = c < channels ? from[c] * inverse : 0.0f;
          if constexpr (!centred) x[i][half] *= 1.0f / static_cast<float>(1 << operand::codes::place_of(2 * k + i));
        }
      if constexpr (folded) {
        store_word(block + folded_at(row / 8, unit, k, lane),
                   word4{{float_bits(x[0][0]), float_bits(x[0][1]), float_bits(x[1][0]), float_bits(x[1][1])}});
      } else {
        using element = typename operand::element;
        PITH_UNROLL for (int term = 0; term < Terms; ++term) {
          word2 const both{{two_of<element>(x[0][0], x[0][1]), two_of<element>(x[1][0], x[1][1])}};
          store_word(block + fragment_at(row / 8, term, unit, k, lane), both);
          PITH_UNROLL for (int i = 0; i < 2; ++i) x[i][0] -= low_of<element>(both.at[i]), x[i][1] -= high_of<element>(both.at[i]);
        }
      }
    }
    if constexpr (has_sums) {
      for (int group = 0; group < groups; ++group) {
        float sum = 0;
        for (int c = t.lane(); c < Storage::group; c += warp_lanes) sum += from[group * Storage::group + c] * inverse;
        sum = sum_over_lanes(t, sum);
        if (t.lane() == 0) store_word(block + sum_at(row / 8, group, row % 8), sum);
      }
    }
    if constexpr (!centred) {
      for (int group = 0; group < groups; ++group) {
        float sum = 0;
        for (int c = t.lane(); c < Storage::group; c += warp_lanes) {
          int const channel = group * Storage::group + c, pair = channel % operand::codes::per_word % operand::pairs;
          float const place = static_cast<float>(1 << operand::codes::place_of(pair));
          std::uint32_t const rounded = two_f16(from[channel] * inverse * (1.0f / place), 0.0f);
          sum += low_of<f16>(rounded) * operand::codes::middle_of(pair);
        }
        sum = sum_over_lanes(t, sum);
        if (t.lane() == 0) store_word(block + start_at(row / 8, group, row % 8), -sum);
      }
    }
    if (t.lane() == 0) store_word(block + factor_at(row), power * scale);
  }
};

}  // namespace pith::device
