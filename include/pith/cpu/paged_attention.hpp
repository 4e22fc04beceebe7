// SPDX-License-Identifier: Apache-2.0
// Attention as free functions over the caller's own pages: an engine keeps its allocator and scheduler and takes only this.
//
//   out[i] = attention of query token i over the pages of its sequence; the queries of a sequence are its newest tokens, causal
//
// q       [query token][query head][key channel]     T = bf16, f16 or f32, any strides
// out     [query token][query head][value channel]
// q_indptr  [sequences + 1]: sequence s has query tokens q_indptr[s] .. q_indptr[s+1] - 1; it may have none, or no pages
// Query head h reads KV head h / (query_heads / kv_heads).
//
// errors  shape_mismatch, out_of_range, misaligned before anything is written
// cost    every page is read once for 16 query rows; one task of the executor for a (sequence, KV head)
#pragma once

#include <algorithm>

#include "pith/core/executor.hpp"
#include "pith/cpu/attention.hpp"
#include "pith/page/paged_view.hpp"
#include "pith/page/query_rows.hpp"

namespace pith {

// One KV head of one sequence of a paged_view, as a Source: everything is sealed.
template <class Page>
struct paged_source {
  static constexpr int first_tile = block_tokens;
  paged_view<Page> const& pages;
  std::int64_t sequence;
  int head;

  std::int64_t first_tokens() const { return 0; }
  std::byte const* first_keys() const { return nullptr; }
  std::byte const* first_values() const { return nullptr; }
  std::int64_t stored() const { return pages.tokens(sequence); }
  std::int64_t sealed_keys() const { return stored(); }
  std::int64_t sealed_values() const { return stored(); }
  std::byte const* staging_keys(std::int64_t) const { return nullptr; }
  std::byte const* staging_values(std::int64_t) const { return nullptr; }
  std::int64_t chunk_tokens() const { return 0; }
  std::byte const* chunk_keys(std::int64_t) const { return nullptr; }
  std::byte const* chunk_values(std::int64_t) const { return nullptr; }
  auto const& key_state() const { return pages.states.keys.of(head); }
  auto const& value_state() const { return pages.states.values.of(head); }
  std::span<slot_range const> dead() const { return {}; }
  std::uint64_t const* live() const { return nullptr; }
  float const* bias() const { return pages.bias.data == nullptr ? nullptr : &pages.bias(head, pages.indptr[sequence] * Page::tokens); }

  template <class F>
  void for_each_page(F f) const {
    std::int64_t const first = pages.indptr[sequence];
    for (std::int64_t i = first; i < pages.indptr[sequence + 1]; ++i) f((i - first) * Page::tokens, pages.address(i, head));
  }
};

// Which slots the queries of a sequence see: they are its newest tokens.
struct slots_of_queries {
  std::int64_t tokens, queries, window;

  static void range(void const* context, std::int64_t query, std::int64_t* lower, std::int64_t* upper) {
    auto const& self = *static_cast<slots_of_queries const*>(context);
    *upper = std::max<std::int64_t>(0, self.tokens - self.queries + query + 1);
    *lower = self.window > 0 ? std::max<std::int64_t>(0, *upper - self.window) : 0;
  }
};

// errors  shape_mismatch, out_of_range; `at` is the sequence
template <class Page>
status check_queries_of_sequences(paged_view<Page> const& pages, std::span<std::int64_t const> q_indptr, std::int64_t queries) {
  if (static_cast<std::int64_t>(q_indptr.size()) != pages.sequences() + 1 || q_indptr[0] != 0) return {errc::shape_mismatch, 0};
  for (std::int64_t s = 0; s < pages.sequences(); ++s) {
    std::int64_t const own = q_indptr[s + 1] - q_indptr[s];
    if (own < 0 || q_indptr[s + 1] > queries) return {errc::shape_mismatch, s};
    if (pages.tokens(s) > 0 && own > pages.tokens(s)) return {errc::out_of_range, s};
  }
  return {};
}

inline namespace PITH_ISA {

template <class Accuracy = exact_accuracy, class Page, storage_scalar Q, storage_scalar O, executor Executor = serial>
status paged_attention(cpu, paged_view<Page> const& pages, std::span<std::int64_t const> q_indptr, tensor_view<Q const, 3> q,
                       tensor_view<O, 3> out, attention_options const& options = {}, Executor&& run = {}) {
  if (status const ok = pages.check(); !ok) return ok;
  std::int64_t const slots_of_table = static_cast<std::int64_t>(pages.indices.size()) * Page::tokens;
  if (status const ok = query_rows<Q, O>::check(q, out, options, pages.kv_heads, Page::key_channels, Page::value_channels, slots_of_table); !ok)
    return ok;
  if (status const ok = check_queries_of_sequences(pages, q_indptr, q.extent[0]); !ok) return ok;
  int const group = static_cast<int>(q.extent[1] / pages.kv_heads);
  run.for_each(pages.sequences() * pages.kv_heads, [&](std::int64_t item) {
    std::int64_t const sequence = item / pages.kv_heads;
    slots_of_queries const slots{pages.tokens(sequence), q_indptr[sequence + 1] - q_indptr[sequence], options.window};
    query_rows<Q, O> rows{.q = q,
                          .out = out,
                          .options = &options,
                          .first_token = q_indptr[sequence],
                          .tokens = slots.queries,
                          .head = static_cast<int>(item % pages.kv_heads),
                          .group = group,
                          .scale = base2_scale(options, Page::key_channels),
                          .first_slot = pages.indptr[sequence] * Page::tokens,
                          .slots = &slots,
                          .slot_range = slots_of_queries::range};
    cpu_attention<Page, Accuracy>::attend(paged_source<Page>{pages, sequence, rows.head}, rows.rows());
  });
  return {};
}

// The same for queries in a buffer that the caller may write.
template <class Accuracy = exact_accuracy, class Page, storage_scalar Q, storage_scalar O, executor Executor = serial>
status paged_attention(cpu on, paged_view<Page> const& pages, std::span<std::int64_t const> q_indptr, tensor_view<Q, 3> q, tensor_view<O, 3> out,
                       attention_options const& options = {}, Executor&& run = {}) {
  return paged_attention<Accuracy, Page, Q, O>(on, pages, q_indptr, tensor_view<Q const, 3>(q), out, options, run);
}

}  // namespace PITH_ISA
}  // namespace pith
