// SPDX-License-Identifier: Apache-2.0
// Statistics of attention over the caller's own pages (page/attention_statistics.hpp says which, and how they are defined).
//
//   statistics_view<group_reduction::sum, statistic::sum> out{.sum = {scores, {kv_heads, slots}}};
//   attention_statistics(cpu{}, pages, q_indptr, q, lse, out, {.newest = 64}, options);
//
// q, q_indptr and options as for paged_attention, lse [query token][query head] as it wrote it. Slots count as biases do:
//   slot `i` of page `p` of the table is p * Page::tokens + i; slots behind a sequence's last token are not written
//
// errors  as paged_attention; shape_mismatch also for lse, weights, thresholds and a missing view; nothing is written then
// cost    one task of the executor for a (sequence, KV head, 2048 slots)
#pragma once

#include "pith/cpu/paged_attention.hpp"
#include "pith/cpu/statistics_engine.hpp"

namespace pith {
inline namespace PITH_ISA {

template <class Accuracy = exact_accuracy, class Page, storage_scalar Q, group_reduction Reduction, statistic... Wanted,
          executor Executor = serial>
status attention_statistics(cpu, paged_view<Page> const& pages, std::span<std::int64_t const> q_indptr, tensor_view<Q const, 3> q,
                            std::type_identity_t<tensor_view<float const, 2>> lse, statistics_view<Reduction, Wanted...> const& out,
                            statistics_rows const& chosen = {}, attention_options const& options = {}, Executor&& run = {}) {
  using engine = cpu_statistics<Page, Accuracy>;
  using call_type = statistics_call<statistics_view<Reduction, Wanted...>, Q>;
  if (status const ok = pages.check(); !ok) return ok;
  std::int64_t const slots = static_cast<std::int64_t>(pages.indices.size()) * Page::tokens;
  if (status const ok = call_type::check(q, lse, out, chosen, options, pages.kv_heads, Page::key_channels, slots); !ok) return ok;
  if (status const ok = check_queries_of_sequences(pages, q_indptr, q.extent[0]); !ok) return ok;
  std::int64_t most = 1;
  for (std::int64_t s = 0; s < pages.sequences(); ++s) most = std::max(most, pages.tokens(s));
  std::int64_t const pieces = call_type::has_row_entropy ? 1 : divide_up(most, engine::range_slots);
  run.for_each(pages.sequences() * pages.kv_heads * pieces, [&](std::int64_t item) {
    std::int64_t const sequence = item / pieces / pages.kv_heads, first = q_indptr[sequence], queries = q_indptr[sequence + 1] - first;
    int const head = static_cast<int>(item / pieces % pages.kv_heads);
    slots_of_queries const seen{pages.tokens(sequence), queries, options.window};
    call_type const call{.q = q.part(first, queries),
                         .lse = lse.part(first, queries),
                         .out = out.of_sequence(pages.indptr[sequence] * Page::tokens, first, queries),
                         .chosen = chosen.of_sequence(first),
                         .options = options,
                         .group = static_cast<int>(q.extent[1] / pages.kv_heads),
                         .scale = base2_scale(options, Page::key_channels),
                         .slots = &seen,
                         .slot_range = slots_of_queries::range};
    call.template run<engine>(paged_source<Page>{pages, sequence, head}, head, item % pieces);
  });
  return {};
}

// The same for queries in a buffer that the caller may write.
template <class Accuracy = exact_accuracy, class Page, storage_scalar Q, class View, executor Executor = serial>
status attention_statistics(cpu on, paged_view<Page> const& pages, std::span<std::int64_t const> q_indptr, tensor_view<Q, 3> q,
                            std::type_identity_t<tensor_view<float const, 2>> lse, View const& out, statistics_rows const& chosen = {},
                            attention_options const& options = {}, Executor&& run = {}) {
  return attention_statistics<Accuracy>(on, pages, q_indptr, tensor_view<Q const, 3>(q), lse, out, chosen, options, run);
}

}  // namespace PITH_ISA
}  // namespace pith
