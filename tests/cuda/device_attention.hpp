// SPDX-License-Identifier: Apache-2.0
// paged_attention on the emulated device, called as tests/cpu/attention_oracle.hpp calls the CPU's.
#pragma once

#include <algorithm>

#include "cpu/attention_oracle.hpp"
#include "cuda/emulated_environment.hpp"
#include "pith/cuda/paged_attention.hpp"

namespace pith_test {

template <class T, int Rank>
auto as_device(pith::tensor_view<T, Rank> view) {
  return pith::tensor_view<T, Rank, pith::space::device>(view.data, view.extent, view.stride);
}

template <class Page>
pith::device_pages<Page> as_device(pith::paged_view<Page> const& view) {
  return {.base = view.base,
          .block_stride = view.block_stride,
          .head_stride = view.head_stride,
          .blocks = view.blocks,
          .kv_heads = view.kv_heads,
          .sequences = view.sequences(),
          .indptr = view.indptr.data(),
          .indices = view.indices.data(),
          .last_page_len = view.last_page_len.data(),
          .bias = as_device(view.bias),
          .key_states = view.states.keys.all.data(),
          .value_states = view.states.values.all.data()};
}

inline pith::device_attention_options as_device(pith::attention_options const& options) {
  return {.scale = options.scale,
          .soft_cap = options.soft_cap,
          .window = options.window,
          .sink_logits = options.sink_logits.empty() ? nullptr : options.sink_logits.data(),
          .lse = as_device(options.lse)};
}

template <class Accuracy, class Q, class O, class Page>
attention_error run_on_device(paged_case<Page> const& pages, std::vector<std::int64_t> const& query_counts, int group,
                              pith::attention_options options = {}, int channel_step = 1) {
  emulated_environment const env;
  return compare_attention<Q, O>(pages, query_counts, group, options, channel_step,
                                 [&](auto const& view, std::vector<std::int64_t> const& q_indptr, auto const& q, auto const& out, auto const& asked) {
                                   std::int64_t most = 0;
                                   for (std::size_t s = 0; s + 1 < q_indptr.size(); ++s) most = std::max(most, q_indptr[s + 1] - q_indptr[s]);
                                   pith::status const made = pith::paged_attention<Accuracy>(pith::cuda{}, env, as_device(view), q_indptr.data(), most,
                                                                                             as_device(q), as_device(out), as_device(asked));
                                   return made ? env.status() : made;
                                 });
}

}  // namespace pith_test
