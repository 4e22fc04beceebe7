// SPDX-License-Identifier: Apache-2.0
// How much attention each slot got in a decode step, added up by the kernels that compute it: core/attention_options.hpp's slot_scores on a
// device.
//
//   sum[kv_head][slot] = decay sum[kv_head][slot] + sum over rows of e^(s - lse);   0 is added to a slot that no row sees
//
// The attention kernel leaves a row's scores beside its sums, where the keys have been read anyway (keep_logits); once lse is known a last
// kernel makes probabilities of them and adds up the rows in ascending order (slot_scores_kernel). A slot is written by one lane.
//
// cost     8 bytes written and read, and one exponential, for each (row, slot); 4 bytes for the slot, 8 if it decays; a fourth launch; two
//          stores of 16 bytes a lane for 32 slots in the attention kernel. A second pass (attention_statistics) would read, unpack and
//          multiply the keys again: for 128 channels of 4 bits 72 bytes a slot with their scales, beside 36 for a group of 4 heads
// differs  up to 16 rows of a KV head: more are refused, not computed in turns
#pragma once

#include "pith/core/attention_options.hpp"
#include "pith/cuda/attention_walk.hpp"

namespace pith {

struct device_slot_scores {
  tensor_view<float, 2, space::device> sum{};     // [kv_head][slot], slots are neighbours in memory
  tensor_view<float, 3, space::device> logits{};  // scratch [kv_head][row][slot]: most query tokens of a sequence * group rows, at most 16
  float decay = 1;
  // Over a cache: numbers between the first slot of a sequence of the call and that of the next one.
  std::int64_t sum_stride = 0, logits_stride = 0;

  // slots: of the longest sequence, or 0 where only the device knows; sequences of a cache lie apart
  // errors  shape_mismatch; out_of_range: more than 16 rows, `at` is how many, or a decay that is no number
  status check(std::int64_t kv_heads, std::int64_t rows, std::int64_t slots, std::int64_t sequences) const {
    if (rows > slot_scores::most_rows) return {errc::out_of_range, rows};
    if (!(decay - decay == 0)) return {errc::out_of_range, 0};
    if (sum.data == nullptr || sum.extent[0] != kv_heads || sum.extent[1] < slots || sum.stride[1] != 1)
      return {errc::shape_mismatch, sum.extent[1]};
    if (logits.data == nullptr || logits.extent[0] != kv_heads || logits.extent[1] < rows || logits.extent[2] < slots ||
        logits.stride[2] != 1)
      return {errc::shape_mismatch, logits.extent[2]};
    if (sequences > 1 && (sum_stride < slots || logits_stride < slots))
      return {errc::shape_mismatch, sum_stride < slots ? sum_stride : logits_stride};
    return {};
  }
  // On to the sequences behind the first `sequences`.
  void step(std::int64_t sequences) { sum.data += sequences * sum_stride, logits.data += sequences * logits_stride; }
};

namespace device {

// What attention_kernel does with scores: rows to memory.
struct keep_logits {
  float* logits = nullptr;
  std::int64_t head_stride = 0, row_stride = 0, sequence_stride = 0;

  template <class Head>
  PITH_HD float* row(Head const& head, std::int64_t sequence, std::int64_t kv_head, std::int64_t row, int slot) const {
    return logits + sequence * sequence_stride + kv_head * head_stride + row * row_stride + head.index_of(slot);
  }

  template <class Thread, class Head, int NT>
  PITH_HD void take(Thread& t, Head const& head, int sequence, float const (&s)[2][NT][4], slots_of_block const& slots,
                    std::int64_t first_row, std::int64_t rows) const {
    int const slot = slots.first + 4 * (t.lane() / 4);
    PITH_UNROLL for (int n = 0; n < NT; ++n) PITH_UNROLL for (int i = 0; i < 2; ++i) {
      std::int64_t const which = first_row + 8 * n + 2 * (t.lane() % 4) + i;
      if (which >= rows || slot >= slots.behind) continue;
      float* const to = row(head, sequence, t.block_y(), which, slot);
      if (slot + 4 <= slots.behind && reinterpret_cast<std::uintptr_t>(to) % 16 == 0) {
        store_word(reinterpret_cast<std::byte*>(to),
                   word4{{float_bits(s[0][n][i]), float_bits(s[0][n][2 + i]), float_bits(s[1][n][i]), float_bits(s[1][n][2 + i])}});
      } else {
        PITH_UNROLL for (int e = 0; e < 4; ++e) if (slot + e < slots.behind) to[e] = s[e / 2][n][2 * (e % 2) + i];
      }
    }
  }
};

template <class Page, class Source>
struct slot_scores_kernel {
  static constexpr int warps = 4, threads = warps * warp_lanes;

  Source source;
  attention_part const* parts;
  std::int32_t const* part_count;
  keep_logits kept;
  float* sum;  // [kv_head][slot]
  std::int64_t sum_head_stride, sum_sequence_stride;
  float const* lse;  // [query token][query head], natural
  std::int64_t lse_stride;
  std::int64_t window;
  std::int32_t group;
  float decay;

  // Grid: x parts, y KV heads.
  template <device_like Thread>
  PITH_HD void operator()(Thread& t) const {
    if (t.block_x() >= *part_count) return;
    attention_part const part = uniform_part(t, parts + t.block_x());
    if (part.raw == 0) {
      run<true>(t, part);
    } else {
      if constexpr (Source::has_raw) run<false>(t, part);
    }
  }

 private:
  template <bool Packed, class Thread>
  PITH_HD void run(Thread& t, attention_part const& part) const {
    auto const head = source.at(part.sequence, static_cast<int>(t.block_y()));
    auto const queries = source.queries(part.sequence);
    int const rows = t.shuffle(static_cast<int>(queries.count) * group, 0);
    if (rows == 0) return;
    // Lane r knows row r.
    float base = -no_score;
    int lower = 0, upper = 0;
    if (t.lane() < rows) {
      std::int64_t from = 0, to = 0;
      source.limits(part.sequence, t.lane() / group, window, &from, &to);
      lower = static_cast<int>(from), upper = static_cast<int>(to);
      float const known = lse[(queries.first + t.lane() / group) * lse_stride + t.block_y() * group + t.lane() % group] * log2_e;
      if (known > no_score && known < -no_score) base = known;
    }
    for (int block = part.begin + t.warp(); block < part.end; block += warps) {
      slots_of_block const slots = slots_of<Packed>(head, block);
      int const slot = slots.first + t.lane();
      bool const there = slot < slots.behind, known = there && was_read<Packed>(t, head, block);
      float added = 0;
      float const* at = kept.row(head, part.sequence, t.block_y(), 0, slot);
      for (int row = 0; row < rows; ++row, at += kept.row_stride) {
        float const its_base = t.shuffle(base, row);
        int const its_lower = t.shuffle(lower, row), its_upper = t.shuffle(upper, row);
        if (!known || slot < its_lower || slot >= its_upper) continue;
        float const over = *at - its_base;
        added += exp2_fast(over < 0 ? over : 0.0f);
      }
      if (!there) continue;
      float* const to = sum + part.sequence * sum_sequence_stride + t.block_y() * sum_head_stride + head.index_of(slot);
      *to = decay != 0 ? decay * *to + added : added;
    }
  }

  // Whether a block that some row sees has keys: their page may be gone.
  template <bool Packed, class Thread, class Head>
  PITH_HD static bool was_read(Thread& t, Head const& head, int block) {
    if constexpr (Packed) {
      return head.page(t, block_tokens * block / Page::tokens) != nullptr;
    } else if constexpr (Source::keys_differ) {
      raw_block_counts const raw(head);
      int const slot = raw.from + block_tokens * (block - raw.first);
      bool const packed = block >= raw.first && block < raw.first + raw.staged && slot < head.sealed_keys();
      return !packed || head.page(t, slot / Page::tokens) != nullptr;
    } else {
      return true;
    }
  }
};

}  // namespace device
}  // namespace pith
