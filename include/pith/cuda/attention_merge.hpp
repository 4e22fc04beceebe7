// SPDX-License-Identifier: Apache-2.0
// Brings the parts of a row together, in the order of the list: the same parts give the same bits.
//
//   out = sum over parts of 2^(m - M) o / L,   L = sum of 2^(m - M) l + 2^(sink - M),   lse = ln L + M ln 2
//
// Packed parts come first, in the basis that their values are stored in; raw parts follow after that has been undone. One warp a row.
#pragma once

#include "pith/cuda/attention_kernel.hpp"

namespace pith::device {

template <class Page, class Source, class O>
struct attention_merge_kernel {
  static constexpr int warps = 4, threads = warps * warp_lanes;
  static constexpr int dv = Page::value_channels, held = (dv + warp_lanes - 1) / warp_lanes;
  static constexpr int shared_bytes = warps * static_cast<int>(round_up(4 * dv, 128));

  Source source;
  attention_part const* parts;
  std::int32_t const* first_part;  // [sequences + 1]
  float const* partial;
  float const* limits;
  tensor_view<O, 3, space::device> out;
  float* lse;  // [query token][query head] with this stride, or null
  std::int64_t lse_stride;
  float const* sink_logits;  // [query head] or null
  std::int32_t group, kv_heads, rows_at;

  // Grid: x rows of a sequence and head in fours, y KV heads, z sequences.
  template <device_like Thread>
  PITH_HD void operator()(Thread& t) const {
    int const sequence = static_cast<int>(t.block_z()), head = static_cast<int>(t.block_y()), lane = t.lane();
    auto const queries = source.queries(sequence);
    std::int64_t const row = t.block_x() * warps + t.warp();
    if (row >= queries.count * group) return;
    std::int64_t const token = queries.first + row / group, query_head = head * group + row % group;
    auto const at = [&](int part) { return (static_cast<std::int64_t>(part) * kv_heads + head) * rows_at + row; };
    int const begin = first_part[sequence], end = first_part[sequence + 1];

    float most = no_score;
    for (int part = begin; part < end; ++part) most = most > limits[2 * at(part)] ? most : limits[2 * at(part)];
    float const sink = sink_logits != nullptr ? sink_logits[query_head] * log2_e : no_score;
    most = most > sink ? most : sink;
    float total = sink_logits != nullptr ? exp2_fast(sink - most) : 0.0f;
    float sum[held] = {};
    int part = begin;
    for (; part < end && parts[part].raw == 0; ++part) add(partial, limits, at(part), lane, most, sum, total);
    if constexpr (is_transformed<typename Page::value_tile>) {
      auto* const values = reinterpret_cast<float*>(t.shared() + t.warp() * (shared_bytes / warps));
      for_each_of_lane<dv>(lane, [&](int k, int c) { values[c] = sum[k]; });
      t.sync_warp();
      auto const whole = source.at(sequence, head);
      restore_output<typename Page::value_tile>(t, values, whole.value_state());
      for_each_of_lane<dv>(lane, [&](int k, int c) { sum[k] = values[c]; });
    }
    for (; part < end; ++part) add(partial, limits, at(part), lane, most, sum, total);

    bool const empty = !(total > 0) && !is_nan(total);
    float const inverse = empty ? 0.0f : divide_fast(1.0f, total);
    for_each_of_lane<dv>(lane, [&](int k, int c) { out.data[out.offset(token, query_head, c)] = from_float<O>(sum[k] * inverse); });
    if (lse != nullptr && lane == 0)
      lse[token * lse_stride + query_head] = empty ? bits_float(0xff800000u) : (most + log2_fast(total)) * ln_2;
  }

 private:
  PITH_HD static void add(float const* partial, float const* limits, std::int64_t at, int lane, float most, float (&sum)[held], float& total) {
    float const factor = exp2_fast(limits[2 * at] - most);
    total += factor * limits[2 * at + 1];
    for_each_of_lane<dv>(lane, [&](int k, int c) { sum[k] += factor * partial[at * dv + c]; });
  }
};

}  // namespace pith::device
