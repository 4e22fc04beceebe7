// SPDX-License-Identifier: Apache-2.0
// Statistics of attention on a device over the caller's own pages: what eviction policies rank slots by, in a second pass over the keys
// (page/attention_statistics.hpp says which there are, and how they are defined).
//
//   device_statistics_view<group_reduction::sum, statistic::sum> out{.sum = {scores, {kv_heads, slots}}};
//   attention_statistics(cuda{}, env, pages, q_indptr, most_queries, q, lse, out, {.newest = 64}, options);
//
// q, q_indptr and options as for paged_attention, lse [query token][query head] as it wrote it. Slots count as biases do:
//   slot `i` of page `p` of the table is p * Page::tokens + i; slots behind a sequence's last token are not written
//
// errors  as paged_attention; those of device_statistics_view, but that only the device knows how many slots there are
// cost    every key is read once for 32 query rows (channels above 128: 16; up to 8 rows: 8), after the first time from the second-level
//         cache; two launches; no allocation, no synchronisation
#pragma once

#include "pith/cuda/paged_attention.hpp"
#include "pith/cuda/statistics_launch.hpp"

namespace pith {

template <class Accuracy = exact_accuracy, class Page, storage_scalar Q, group_reduction Reduction, statistic... Wanted,
          device::environment Environment>
status attention_statistics(cuda, Environment const& env, device_pages<Page> const& pages, std::int64_t const* q_indptr,
                            std::int64_t most_queries, tensor_view<Q const, 3, space::device> q,
                            std::type_identity_t<tensor_view<float const, 2, space::device>> lse,
                            device_statistics_view<Reduction, Wanted...> const& out, device_statistics_rows const& chosen = {},
                            device_attention_options const& options = {}) {
  using view = device_statistics_view<Reduction, Wanted...>;
  if constexpr (device::check_device_statistics<view>() && device::check_device_page<Page>()) {
    if (status const ok = device::check_queries(pages, q_indptr, most_queries, q, lse, options); !ok) return ok;
    if (lse.data == nullptr) return {errc::shape_mismatch, 0};
    if (status const ok = device::check_statistics(out, chosen, pages.kv_heads, q.extent[1], 0); !ok) return ok;
    using source = device::page_source<Page>;
    return device::statistics_launch<Page, Accuracy, source, Q, view, Environment>::run(
        env, source{pages, q_indptr, env.status_word()}, {pages.sequences, most_queries, pages.kv_heads}, q, lse, out, chosen, options);
  } else {
    return {errc::unsupported, 0};
  }
}

// The same for queries in a buffer that the caller may write.
template <class Accuracy = exact_accuracy, class Page, storage_scalar Q, class View, device::environment Environment>
status attention_statistics(cuda on, Environment const& env, device_pages<Page> const& pages, std::int64_t const* q_indptr,
                            std::int64_t most_queries, tensor_view<Q, 3, space::device> q,
                            std::type_identity_t<tensor_view<float const, 2, space::device>> lse, View const& out,
                            device_statistics_rows const& chosen = {}, device_attention_options const& options = {}) {
  return attention_statistics<Accuracy>(on, env, pages, q_indptr, most_queries, tensor_view<Q const, 3, space::device>(q), lse, out, chosen,
                                        options);
}

}  // namespace pith
