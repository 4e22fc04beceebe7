// SPDX-License-Identifier: Apache-2.0
// What is computed over a device's cache: attention of many sequences at once, its statistics, and scores of slots. A base of device_cache.
//
// A kernel takes up to cache_source::most sequences by value; more are several rounds of launches.
#pragma once

#include "pith/cuda/attention_launch.hpp"
#include "pith/cuda/cache_append.hpp"
#include "pith/cuda/cache_source.hpp"
#include "pith/cuda/statistics_launch.hpp"

namespace pith::device {

template <class Recipe, environment Environment>
class cache_attend : public cache_bytes<Recipe, Environment> {
 protected:
  using bytes = cache_bytes<Recipe, Environment>;
  using bytes::device_;
  using bytes::length;
  using bytes::store_;
  using typename bytes::page;
  template <class T>
  using rows = tensor_view<T, 3, space::device>;  // [token][head][channel]

 public:
  // Attention of the newest queries[i] tokens of sequence which[i], causal, for all of them at once. q [token][query_head][key channel] and
  // out [token][query_head][value channel] hold the tokens of the first sequence, then those of the second, and so on. A sequence without
  // tokens gives out = 0, lse = -infinity.
  //
  // errors  stale_handle, out_of_range (layer, a count below 0 or above the sequence's tokens, options), shape_mismatch,
  //         capacity_exceeded: the environment's scratch is too small; `at` is the bytes wanted
  // cost    three launches for each 128 sequences; every page is read once for 8 query rows (more than 16: for 64)
  template <class Q, storage_scalar O>
  status attend(Environment const& env, std::span<sequence const> which, int layer, rows<Q> q, rows<O> out,
                std::span<std::int64_t const> queries, device_attention_options const& options = {}) const {
    if (status const ok = check_attend(which, layer, q, out, queries, options); !ok) return ok;
    if (status const ok = check_newest(which, layer, queries); !ok) return ok;
    return attend_all(env, which, layer, rows<std::remove_const_t<Q> const>(q), out, queries, {}, options);
  }

  // The same, and scores of slots (cuda/slot_scores.hpp); those of a sequence without queries stay as they are.
  // errors  as attend, and device_slot_scores::check
  // cost    four launches for each 128 sequences
  template <class Q, storage_scalar O>
  status attend(Environment const& env, std::span<sequence const> which, int layer, rows<Q> q, rows<O> out,
                std::span<std::int64_t const> queries, device_attention_options const& options, device_slot_scores const& scores) const {
    if (status const ok = check_attend(which, layer, q, out, queries, options); !ok) return ok;
    if (status const ok = check_newest(which, layer, queries); !ok) return ok;
    std::int64_t most = 0;
    for (std::int64_t const n : queries) most = std::max(most, n);
    int const heads = store_.shape.kv_heads;
    if (status const ok = scores.check(heads, most * (store_.shape.query_heads / heads), most_slots(which, layer),
                                       static_cast<std::int64_t>(which.size()));
        !ok)
      return ok;
    return attend_all(env, which, layer, rows<std::remove_const_t<Q> const>(q), out, queries, {}, options, scores);
  }

  // Statistics of the attention of the newest queries[i] tokens of sequence which[i] to what is stored now, by slot, for all of them at
  // once; lse as attend() wrote it for the same queries and options. Slots of the call's i-th sequence begin i out.sequence_stride numbers
  // behind a view's first: of [sequence][kv_head][slot] that is kv_heads * slots.
  //
  // errors  as attend; those of device_statistics_view; shape_mismatch also if sequences do not lie apart. Nothing is written then
  // cost    two launches for each 128 sequences; every key is read once for 32 query rows (cuda/attention_statistics.hpp)
  template <class Q, group_reduction Reduction, statistic... Wanted>
  status attention_statistics(Environment const& env, std::span<sequence const> which, int layer, rows<Q> q,
                              std::type_identity_t<tensor_view<float const, 2, space::device>> lse, std::span<std::int64_t const> queries,
                              device_statistics_view<Reduction, Wanted...> const& out, device_statistics_rows const& chosen = {},
                              device_attention_options const& options = {}) const {
    using view = device_statistics_view<Reduction, Wanted...>;
    if constexpr (check_device_statistics<view>() && check_device_page<page>()) {
      if (status const ok = check_rows(which, layer, q, queries, lse, options); !ok) return ok;
      if (lse.data == nullptr) return {errc::shape_mismatch, 0};
      if (status const ok = check_newest(which, layer, queries); !ok) return ok;
      if (status const ok = check_statistics(out, chosen, store_.shape.kv_heads, q.extent[1], most_slots(which, layer)); !ok) return ok;
      if (which.size() > 1 && out.sequence_stride < most_slots(which, layer)) return {errc::shape_mismatch, out.sequence_stride};
      view to = out;
      device_statistics_rows some_rows = chosen;
      return for_some(which, queries,
                      [&](std::span<sequence const> some, std::span<std::int64_t const> counts, std::int64_t first, std::int64_t all,
                          std::int64_t most) {
                        using source_type = cache_source<Recipe>;
                        using launch =
                            statistics_launch<page, typename Recipe::accuracy, source_type, std::remove_const_t<Q>, view, Environment>;
                        status const ok = launch::run(
                            env, source(some, layer, counts), {static_cast<std::int64_t>(some.size()), most, store_.shape.kv_heads},
                            rows<std::remove_const_t<Q> const>(q).part(first, all), lse.part(first, all), to, some_rows, options);
                        to.step(static_cast<std::int64_t>(some.size()));
                        if (some_rows.weights != nullptr) some_rows.weights += all;
                        if (some_rows.thresholds != nullptr) some_rows.thresholds += all;
                        return ok;
                      });
    } else {
      return {errc::unsupported, 0};
    }
  }

  // What an attention kernel reads of up to cache_source::most checked sequences: queries[i] query tokens, chunk[i] tokens loaded by
  // load_chunk (or none: an empty span).
  cache_source<Recipe> source(std::span<sequence const> which, int layer, std::span<std::int64_t const> queries,
                              std::span<std::int64_t const> chunk = {}) const {
    using made_type = cache_source<Recipe>;
    PITH_EXPECTS(which.size() <= made_type::most);
    PITH_EXPECTS(queries.size() == which.size());
    made_type made{.memory = device_, .layer = layer, .sequences = static_cast<std::int32_t>(which.size())};
    for (std::size_t i = 0; i < which.size(); ++i) {
      made.sequence[i] = which[i].index;
      made.first_query[i + 1] = made.first_query[i] + static_cast<std::int32_t>(queries[i]);
      made.chunk[i] = chunk.empty() ? 0 : static_cast<std::int32_t>(chunk[i]);
    }
    return made;
  }

 protected:
  // Sequences, their query tokens, and what goes along with those. errors  as attend
  template <class Q>
  status check_rows(std::span<sequence const> which, int layer, rows<Q> q, std::span<std::int64_t const> queries,
                    tensor_view<float const, 2, space::device> lse, device_attention_options const& options) const {
    if (queries.size() != which.size()) return {errc::shape_mismatch, static_cast<std::int64_t>(queries.size())};
    std::int64_t all = 0;
    for (std::size_t i = 0; i < which.size(); ++i) {
      if (status const ok = this->check_layer(which[i], layer); !ok) return ok;
      if (queries[i] < 0) return {errc::out_of_range, queries[i]};
      all += queries[i];
    }
    if (q.extent[0] != all || q.extent[1] != store_.shape.query_heads || q.extent[2] != Recipe::key_channels)
      return {errc::shape_mismatch, q.extent[0]};
    return options.check(lse, all, q.extent[1]);
  }
  status check_newest(std::span<sequence const> which, int layer, std::span<std::int64_t const> queries) const {
    for (std::size_t i = 0; i < which.size(); ++i)
      if (std::int64_t const tokens = length(which[i], layer); tokens > 0 && queries[i] > tokens) return {errc::out_of_range, queries[i]};
    return {};
  }
  template <class Q, class O>
  status check_attend(std::span<sequence const> which, int layer, rows<Q> q, rows<O> out, std::span<std::int64_t const> queries,
                      device_attention_options const& options) const {
    if (status const ok = check_rows(which, layer, q, queries, options.lse, options); !ok) return ok;
    if (out.extent[0] != q.extent[0] || out.extent[1] != q.extent[1] || out.extent[2] != Recipe::value_channels)
      return {errc::shape_mismatch, out.extent[0]};
    return {};
  }
  std::int64_t most_slots(std::span<sequence const> which, int layer) const {
    std::int64_t most = 0;
    for (sequence const& of : which) most = std::max(most, store_.layer(of.index, layer).slots);
    return most;
  }

  // f(sequences, their queries, first query token, query tokens, most of one sequence) for as many sequences as a kernel takes.
  template <class F>
  static status for_some(std::span<sequence const> which, std::span<std::int64_t const> queries, F const& f) {
    std::int64_t first_query = 0;
    for (std::size_t first = 0; first < which.size(); first += cache_source<Recipe>::most) {
      std::size_t const count = std::min<std::size_t>(cache_source<Recipe>::most, which.size() - first);
      std::int64_t most = 0, all = 0;
      for (std::int64_t const n : queries.subspan(first, count)) most = std::max(most, n), all += n;
      if (status const ok = f(which.subspan(first, count), queries.subspan(first, count), first_query, all, most); !ok) return ok;
      first_query += all;
    }
    return {};
  }

  // scores: none, or a device_slot_scores.
  template <class Q, class O, class... Scores>
  status attend_all(Environment const& env, std::span<sequence const> which, int layer, rows<Q const> q, rows<O> out,
                    std::span<std::int64_t const> queries, std::span<std::int64_t const> chunk, device_attention_options options,
                    Scores... scores) const {
    if constexpr (check_device_page<page>()) {
      using launch = attention_launch<page, typename Recipe::accuracy, cache_source<Recipe>, Q, O, Environment>;
      return for_some(which, queries,
                      [&](std::span<sequence const> some, std::span<std::int64_t const> counts, std::int64_t first, std::int64_t all,
                          std::int64_t most) {
                        status const ok = launch::run(env, source(some, layer, counts, chunk.empty() ? chunk : counts),
                                                      {static_cast<std::int64_t>(some.size()), most, store_.shape.kv_heads},
                                                      q.part(first, all), out.part(first, all), options, scores...);
                        (scores.step(static_cast<std::int64_t>(some.size())), ...);
                        if (options.lse.data != nullptr) options.lse = options.lse.part(all, options.lse.extent[0] - all);
                        return ok;
                      });
    } else {
      return {errc::unsupported, 0};
    }
  }
};

}  // namespace pith::device
