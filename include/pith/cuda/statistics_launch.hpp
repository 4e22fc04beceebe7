// SPDX-License-Identifier: Apache-2.0
// The two launches of attention's statistics over any Source: plan, second pass. The plan lies in the environment's scratch.
#pragma once

#include "pith/cuda/attention_launch.hpp"
#include "pith/cuda/statistics_kernel.hpp"

namespace pith::device {

template <class Page, class Accuracy, class Source, class Q, class View, environment Environment>
struct statistics_launch {
  using of = typename View::host;
  template <int NT>
  using kernel = attention_statistics_kernel<Page, Source, Q, NT, terms_of<Accuracy>, of>;
  static constexpr int many_tiles = Page::key_channels > 128 ? 2 : 4;  // of 8 rows: one unpacking of the keys for all of them
  static constexpr int shortest = 8, parts_on_one = 8;                 // as attention_launch

  // errors  capacity_exceeded  the scratch is too small for the plan; `at` is the bytes wanted. Else what launching gives
  static status run(Environment const& env, Source const& source, attention_extent const& extent, tensor_view<Q const, 3, space::device> q,
                    tensor_view<float const, 2, space::device> lse, View const& out, device_statistics_rows const& chosen,
                    device_attention_options const& options) {
    if (extent.sequences == 0) return {};
    int const group = static_cast<int>(q.extent[1] / extent.kv_heads);
    std::int64_t const spread = std::int64_t{env.multiprocessors()} * parts_on_one / extent.kv_heads;
    std::int64_t const wanted = spread < extent.sequences ? extent.sequences : spread, most_parts = wanted + 2 * extent.sequences;
    std::int64_t const first_part_at = round_up(most_parts * static_cast<std::int64_t>(sizeof(attention_part)), 128);
    std::int64_t const bytes = first_part_at + round_up(4 * (extent.sequences + 1), 128);
    std::span<std::byte> const scratch = env.scratch();
    if (static_cast<std::int64_t>(scratch.size()) < bytes) return {errc::capacity_exceeded, bytes};
    auto* const parts = reinterpret_cast<attention_part*>(scratch.data());
    auto* const first_part = reinterpret_cast<std::int32_t*>(scratch.data() + first_part_at);
    attention_plan_kernel<Source> const plan{
        source, parts, first_part, static_cast<std::int32_t>(extent.sequences), static_cast<std::int32_t>(wanted), shortest};
    if (status const ok = env.launch(plan, {}); !ok) return ok;

    attention_call<Source, Q> const walked{.source = source,
                                           .parts = parts,
                                           .part_count = first_part + extent.sequences,
                                           .q = q,
                                           .partial = nullptr,
                                           .limits = nullptr,
                                           .group = group,
                                           .kv_heads = extent.kv_heads,
                                           .rows_at = 0,
                                           .scale = base2_scale_of<Page>(options),
                                           .soft_cap = options.soft_cap,
                                           .window = options.window};
    statistics_call_of<of::of_slots> call{.lse = lse.data,
                                          .lse_stride = lse.stride[0],
                                          .out = {},
                                          .out_stride = {},
                                          .sequence_stride = out.sequence_stride,
                                          .chosen = chosen};
    out.for_each([&]<statistic Which>(typename View::view const& to) {
      call.out[of::place(Which)] = to.data, call.out_stride[of::place(Which)] = to.stride[0];
    });
    std::int64_t const newest = chosen.newest < extent.most_queries ? chosen.newest : extent.most_queries;
    bool const few = divide_up(newest, chosen.stride) * (of::heads_together ? group : 1) <= kernel<1>::rows;
    auto const start = [&]<int NT>() {
      return env.launch(kernel<NT>{{walked}, call},
                        {.x = most_parts, .y = extent.kv_heads, .z = 1, .shared_bytes = kernel<NT>::shared_bytes});
    };
    return few ? start.template operator()<1>() : start.template operator()<many_tiles>();
  }
};

}  // namespace pith::device
