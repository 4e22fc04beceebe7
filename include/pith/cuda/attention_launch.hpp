// SPDX-License-Identifier: Apache-2.0
// The three launches of one attention call over any Source: plan, parts, merge; and a fourth that adds up scores of slots. Everything lies
// in the environment's scratch but the scores' logits.
#pragma once

#include <span>

#include "pith/core/status.hpp"
#include "pith/cuda/attention_merge.hpp"
#include "pith/cuda/environment.hpp"
#include "pith/cuda/slot_scores.hpp"

namespace pith {

// What one call of attention on a device may ask for; core/attention_options.hpp with everything in device memory.
struct device_attention_options {
  float scale = 0;                             // 0: 1 / sqrt(channels of a key)
  float soft_cap = 0;                          // 0: none
  std::int64_t window = 0;                     // 0: all
  float const* sink_logits = nullptr;          // [query_head], device memory
  tensor_view<float, 2, space::device> lse{};  // [query token][query_head], written if data is set

  // errors  shape_mismatch: lse is not for so many rows; out_of_range: a negative number, or one that is none
  status check(tensor_view<float const, 2, space::device> its_lse, std::int64_t tokens, std::int64_t heads) const {
    if (its_lse.data != nullptr && (its_lse.extent[0] < tokens || its_lse.extent[1] != heads || its_lse.stride[1] != 1))
      return {errc::shape_mismatch, its_lse.extent[1]};
    if (!(soft_cap >= 0) || !(scale >= 0) || window < 0) return {errc::out_of_range, window};
    return {};
  }
};

namespace device {

// The first broken rule speaks alone.
template <class Page>
consteval bool check_device_page() {
  constexpr bool keys_fit = has_product_form<typename Page::key_tile>, values_fit = has_product_form<typename Page::value_tile>;
  if constexpr (!keys_fit) {
    static_assert(keys_fit,
                  "[pith] keys<C> on cuda: C has no device form. Fix: integer codes (int2 to int8), block_float, raw<bf16> or raw<f16>, "
                  "and pipes over them.");
    return false;
  } else if constexpr (!values_fit) {
    static_assert(values_fit,
                  "[pith] values<C> on cuda: C has no device form. Fix: integer codes (int2 to int8), block_float, raw<bf16> or raw<f16>, "
                  "and pipes over them.");
    return false;
  } else {
    return true;
  }
}

// Sizes of a call that the host knows without asking the device.
struct attention_extent {
  std::int64_t sequences = 0;
  std::int64_t most_queries = 0;  // query tokens of a sequence
  int kv_heads = 0;
};

template <class Page>
float base2_scale_of(device_attention_options const& options) {
  return (options.scale > 0 ? options.scale : 1.0f / __builtin_sqrtf(static_cast<float>(Page::key_channels))) * log2_e;
}

template <class Page, class Accuracy, class Source, class Q, class O, environment Environment>
struct attention_launch {
  static constexpr int shortest = 8;  // blocks of a part: 256 tokens
  using decode_kernel = attention_kernel<Page, Source, Q, 1, terms_of<Accuracy>, warps_along::tokens>;
  static constexpr int prefill_tiles =
      Page::value_channels > 128 ? 1 : 2;  // of 8 rows, a warp: with two, 256 channels would not fit in registers
  using prefill_kernel = attention_kernel<Page, Source, Q, prefill_tiles, terms_of<Accuracy>, warps_along::rows>;

  // Scratch of a call: the plan, and what every part leaves.
  static std::int64_t scratch_bytes(Environment const& env, attention_extent const& extent, int group) {
    return sizes_of(env, extent, group).bytes;
  }

  // errors  capacity_exceeded  the scratch is too small; `at` is scratch_bytes. Else what launching gives
  static status run(Environment const& env, Source const& source, attention_extent const& extent, tensor_view<Q const, 3, space::device> q,
                    tensor_view<O, 3, space::device> out, device_attention_options const& options) {
    if (extent.sequences == 0 || extent.most_queries == 0) return {};
    auto const begun = begin(env, source, extent, q, options, 0);
    if (!begun) return begun.error();
    prepared const& made = begun.value();
    status const ok = made.size.prefill ? env.launch(prefill_kernel{{made.call}}, made.size.parts_grid)
                                        : env.launch(decode_kernel{{made.call}}, made.size.parts_grid);
    if (!ok) return ok;
    return merge(env, made.call, extent, out, options, options.lse);
  }

  // The same, and what the rows give each slot, for up to slot_scores::most_rows rows of a KV head.
  static status run(Environment const& env, Source const& source, attention_extent const& extent, tensor_view<Q const, 3, space::device> q,
                    tensor_view<O, 3, space::device> out, device_attention_options const& options, device_slot_scores const& scores) {
    if (extent.sequences == 0 || extent.most_queries == 0) return {};
    auto const begun = begin(env, source, extent, q, options, 4 * q.extent[0] * q.extent[1]);
    if (!begun) return begun.error();
    auto const& [call, size, lse_scratch] = begun.value();
    using kernel = attention_kernel<Page, Source, Q, 1, terms_of<Accuracy>, warps_along::tokens, keep_logits>;
    keep_logits const kept{scores.logits.data, scores.logits.stride[0], scores.logits.stride[1], scores.logits_stride};
    if (status const ok = env.launch(kernel{{call}, kept}, size.parts_grid); !ok) return ok;
    tensor_view<float, 2, space::device> lse = options.lse;
    if (lse.data == nullptr) lse = {lse_scratch, {q.extent[0], q.extent[1]}};
    if (status const ok = merge(env, call, extent, out, options, lse); !ok) return ok;
    return env.launch(slot_scores_kernel<Page, Source>{.source = source,
                                                       .parts = call.parts,
                                                       .part_count = call.part_count,
                                                       .kept = kept,
                                                       .sum = scores.sum.data,
                                                       .sum_head_stride = scores.sum.stride[0],
                                                       .sum_sequence_stride = scores.sum_stride,
                                                       .lse = lse.data,
                                                       .lse_stride = lse.stride[0],
                                                       .window = options.window,
                                                       .group = call.group,
                                                       .decay = scores.decay},
                      {.x = size.parts_grid.x, .y = extent.kv_heads});
  }

 private:
  static status merge(Environment const& env, attention_call<Source, Q> const& call, attention_extent const& extent,
                      tensor_view<O, 3, space::device> out, device_attention_options const& options,
                      tensor_view<float, 2, space::device> lse) {
    using kernel = attention_merge_kernel<Page, Source, O>;
    kernel const last{.source = call.source,
                      .parts = call.parts,
                      .first_part = call.part_count - extent.sequences,
                      .partial = call.partial,
                      .limits = call.limits,
                      .out = out,
                      .lse = lse.data,
                      .lse_stride = lse.stride[0],
                      .sink_logits = options.sink_logits,
                      .group = call.group,
                      .kv_heads = extent.kv_heads,
                      .rows_at = call.rows_at};
    return env.launch(last, {.x = divide_up(extent.most_queries * call.group, kernel::warps),
                             .y = extent.kv_heads,
                             .z = extent.sequences,
                             .shared_bytes = kernel::shared_bytes});
  }

  struct sizes {
    bool prefill;
    std::int32_t wanted;
    std::int64_t rows_at, first_part_at, limits_at, partial_at, lse_at, bytes;
    grid parts_grid;
  };
  struct prepared {
    attention_call<Source, Q> call;
    sizes size;
    float* lse;  // [query token][query head], if room for it was asked for
  };
  // Starts the plan.
  static result<prepared> begin(Environment const& env, Source const& source, attention_extent const& extent,
                                tensor_view<Q const, 3, space::device> q, device_attention_options const& options, std::int64_t lse_bytes) {
    int const group = static_cast<int>(q.extent[1] / extent.kv_heads);
    sizes const s = sizes_of(env, extent, group, lse_bytes);
    std::span<std::byte> const scratch = env.scratch();
    if (static_cast<std::int64_t>(scratch.size()) < s.bytes) return status{errc::capacity_exceeded, s.bytes};
    auto* const parts = reinterpret_cast<attention_part*>(scratch.data());
    auto* const first_part = reinterpret_cast<std::int32_t*>(scratch.data() + s.first_part_at);
    auto* const partial = reinterpret_cast<float*>(scratch.data() + s.partial_at);
    auto* const limits = reinterpret_cast<float*>(scratch.data() + s.limits_at);

    attention_plan_kernel<Source> const plan{source, parts, first_part, static_cast<std::int32_t>(extent.sequences), s.wanted, shortest};
    if (status const ok = env.launch(plan, {}); !ok) return ok;
    return prepared{{.source = source,
                     .parts = parts,
                     .part_count = first_part + extent.sequences,
                     .q = q,
                     .partial = partial,
                     .limits = limits,
                     .group = group,
                     .kv_heads = extent.kv_heads,
                     .rows_at = static_cast<std::int32_t>(s.rows_at),
                     .scale = base2_scale_of<Page>(options),
                     .soft_cap = options.soft_cap,
                     .window = options.window},
                    s,
                    reinterpret_cast<float*>(scratch.data() + s.lse_at)};
  }

  // Parts are wanted until every multiprocessor has its blocks. More rows than two tiles of 8 pay for warps of their own.
  static sizes sizes_of(Environment const& env, attention_extent const& extent, int group, std::int64_t lse_bytes = 0) {
    sizes s{};
    std::int64_t const rows = extent.most_queries * group;
    s.prefill = rows > 16;
    std::int64_t const tile = s.prefill ? prefill_kernel::rows : decode_kernel::rows, tiles = divide_up(rows, tile);
    std::int64_t const resident = std::int64_t{env.multiprocessors()} * blocks_on_one;
    std::int64_t const wanted = resident / (extent.kv_heads * tiles);
    s.wanted = static_cast<std::int32_t>(wanted < extent.sequences ? extent.sequences : wanted);
    std::int64_t const most_parts = s.wanted + 2 * extent.sequences;
    s.rows_at = tiles * tile;
    auto const place = [&](std::int64_t bytes) {
      std::int64_t const at = s.bytes;
      s.bytes = round_up(at + bytes, 128);
      return at;
    };
    place(most_parts * static_cast<std::int64_t>(sizeof(attention_part)));
    s.first_part_at = place(4 * (extent.sequences + 1));
    s.limits_at = place(most_parts * extent.kv_heads * s.rows_at * 8);
    s.partial_at = place(most_parts * extent.kv_heads * s.rows_at * Page::value_channels * 4);
    s.lse_at = place(lse_bytes);
    s.parts_grid = {.x = most_parts,
                    .y = extent.kv_heads,
                    .z = tiles,
                    .shared_bytes = s.prefill ? prefill_kernel::shared_bytes : decode_kernel::shared_bytes};
    return s;
  }
  static constexpr int blocks_on_one =
      8;  // parts for each multiprocessor: two to three times what it holds, so that the last ones end together
};

}  // namespace device
}  // namespace pith
