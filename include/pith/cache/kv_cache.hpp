// SPDX-License-Identifier: Apache-2.0
// The key-value cache of a model: compressed pages, raw first and newest tokens, many sequences.
//
//   struct my_cache : kv_cache<head_dim<64>, keys<int4<per_channel<32>>>, values<int4<per_token<64>>>, raw<first<4>, last<32>>> {};
//   auto cache = make<my_cache>({.layers = 6, .kv_heads = 2, .query_heads = 4, .bytes = 64 << 20}).value();
//
// Per (sequence, layer, KV head) there are three segments: `first` (raw), sealed tiles in pages, staging (raw). When staging holds last<n>
// tokens and a whole tile, its oldest tile is sealed; tiles are counted from the end of `first`, so the bytes depend on the slots alone.
//
// Threads: different sequences may be used at the same time; one sequence has one writer; open, fork and close come one at a time.
// No call allocates after make().
// Errors come back as statuses and leave the cache as it was. Keys are stored after RoPE.
#pragma once

#include <algorithm>
#include <type_traits>

#include "pith/cache/chosen_source.hpp"
#include "pith/cache/compactor.hpp"
#include "pith/cache/snapshot.hpp"
#include "pith/core/executor.hpp"
#include "pith/page/attention_statistics.hpp"

namespace pith {

template <class Recipe>
class cache : cache_compactor<Recipe> {
  using base = cache_compactor<Recipe>;
  using base::store_;

 public:
  using typename base::page;
  using typename base::segments;
  using typename base::storage;
  using typename base::backend;
  using engine = attention_engine<backend, page, typename Recipe::accuracy>;

  using base::open;            // a new, empty sequence; capacity_exceeded: max_sequences are open
  using base::close;           // gives back everything that the sequence holds; its handle is stale from then on
  using base::length;          // tokens of a layer; 0 for a stale handle
  using base::resident_bytes;  // see cache/ledger.hpp for each
  using base::stored_values;
  using base::check_truncate;
  using base::living;          // see cache/compactor.hpp for these
  using base::survivors, base::for_each_survivor, base::read_rows, base::compact, base::merge_scratch_bytes;
  using base::identity;
  using base::shape;
  using base::memory;

  // A second sequence with the same contents: raw segments are copied, sealed pages shared.
  // cost    the raw bytes; one increment for each (layer, KV head), however long the sequence
  // errors  capacity_exceeded
  result<sequence> fork(sequence from) {
    auto made = this->fork_books(from);
    if (!made) return made;
    std::int64_t const to = made.value().index, source = from.index;
    for (int l = 0; l < store_.shape.layers; ++l)
      for (int h = 0; h < store_.shape.kv_heads; ++h) {
        std::memcpy(store_.raw_block(to, l, h), store_.raw_block(source, l, h), static_cast<std::size_t>(segments::bytes));
        std::int64_t const slots = store_.layer(source, l).slots;
        if constexpr (Recipe::has_liveness) std::copy_n(store_.live_of(source, l, h), divide_up(slots, 64), store_.live_of(to, l, h));
        if constexpr (Recipe::has_bias) std::copy_n(store_.biases_of(source, l, h), slots, store_.biases_of(to, l, h));
        if constexpr (Recipe::has_births) std::copy_n(store_.births_of(source, l, h), store_.head(source, l, h).moved, store_.births_of(to, l, h));
        if constexpr (Recipe::has_positions) std::copy_n(store_.positions_of(source, l), slots, store_.positions_of(to, l));
      }
    return made;
  }

  // A sequence as bytes, and a new sequence from them, in this cache or another of the same composition, calibration and heads; the format
  // stands in cache/snapshot.hpp.
  // errors  save: stale_handle, capacity_exceeded (`at` is saved_bytes). load: truncated, bad_format, wrong_format (another composition or
  //         calibration), shape_mismatch, capacity_exceeded; no sequence is made
  // cost    one copy of what is stored, and a byte-wise fingerprint of it
  std::int64_t saved_bytes(sequence of) const { return this->check(of) ? snapshot<Recipe>::bytes(store_, of.index) : 0; }
  status save(sequence of, std::span<std::byte> out) const {
    if (status const ok = this->check(of); !ok) return ok;
    std::int64_t const bytes = saved_bytes(of);
    if (static_cast<std::int64_t>(out.size()) < bytes) return {errc::capacity_exceeded, bytes};
    snapshot<Recipe>::write(store_, of.index, out.data());
    return {};
  }
  result<sequence> load(std::span<std::byte const> from) {
    auto made = open();
    if (!made) return made;
    status const ok = snapshot<Recipe>::read(store_, made.value().index, from, [&](table& to) { return this->add_page(to); });
    if (ok) return made;
    static_cast<void>(close(made.value()));
    return ok;
  }

  // Adds tokens to one layer. k [token][kv_head][key channel], v [token][kv_head][value channel]; any strides; bf16, f16 or f32.
  // With side<positions>, `at` gives each token's position, ascending; without it positions are token numbers and `at` is empty.
  //
  // errors  stale_handle, out_of_range (layer, positions), shape_mismatch, not_finite (nan_policy::reject; `at` is the token),
  //         capacity_exceeded (pages, their tails, or max_tokens; nothing was added)
  template <class K, class V>
  status append(sequence of, int layer, tensor_view<K, 3> k, tensor_view<V, 3> v, std::span<std::int64_t const> at = {}) {
    if (status const ok = check_append(of, layer, k, v, at); !ok) return ok;
    if (status const ok = this->reserve(of.index, layer, k.extent[0]); !ok) return ok;
    this->write(of.index, layer, k, v, at);
    return {};
  }
  // What append would say of these rows, but for want of pages; nothing is changed.
  template <class K, class V>
  status check_append(sequence of, int layer, tensor_view<K, 3> k, tensor_view<V, 3> v, std::span<std::int64_t const> at = {}) const {
    return this->check_chunk(of, layer, k, v, at);
  }
  // Takes the pages that `tokens` more tokens of a layer will need, and for codecs of variable rate room for the longest tails: appending
  // that many then cannot fail for want of them.
  //
  // errors  stale_handle, out_of_range, capacity_exceeded (nothing was taken)
  status reserve_tokens(sequence of, int layer, std::int64_t tokens) {
    if (status const ok = this->check_reserve(of, layer, tokens); !ok) return ok;
    return this->reserve(of.index, layer, tokens);
  }

  // Slots of a layer, dead ones included, and the slot of a token: what statistics and scores count in. The two are the same number until a
  // truncation has cut a sealed tile. Heads that were compacted have other tokens in these slots: survivors() lists them.
  std::int64_t slots(sequence of, int layer) const { return this->check_layer(of, layer) ? store_.layer(of.index, layer).slots : 0; }
  std::int64_t slot_of(sequence of, int layer, std::int64_t token) const {
    PITH_EXPECTS(token >= 0 && token < length(of, layer));
    return store_.layer(of.index, layer).slot_of(token);
  }

  // Attention of the newest q.extent[0] tokens of the sequence, causal. q [token][query_head][key channel], out [token][query_head][value
  // channel]. A sequence without tokens gives out = 0, lse = -infinity.
  //
  // errors  stale_handle, out_of_range (layer, more queries than tokens, options), shape_mismatch
  template <class Q, storage_scalar O, executor Executor = serial>
  status attend(sequence of, int layer, tensor_view<Q, 3> q, tensor_view<O, 3> out, attention_options const& options = {},
                Executor&& run = {}) const {
    if (status const ok = check_queries(of, layer, q, out, options); !ok) return ok;
    std::int64_t const tokens = store_.layer(of.index, layer).tokens;
    if (tokens > 0 && q.extent[0] > tokens) return {errc::out_of_range, q.extent[0]};
    attend_heads<std::remove_const_t<Q>>(of.index, layer, 0, {}, q, out, options, run, false);
    return {};
  }

  // Attention of queries that are newer than every token of the sequence and see them all: a part of a whole that the caller merges with
  // others (page/merge.hpp).
  // errors  as attend; unsupported: a window
  template <class Q, storage_scalar O, executor Executor = serial>
  status attend_past(sequence of, int layer, tensor_view<Q, 3> q, tensor_view<O, 3> out, attention_options const& options = {},
                     Executor&& run = {}) const {
    if (status const ok = check_queries(of, layer, q, out, options); !ok) return ok;
    if (options.window != 0) return {errc::unsupported, options.window};
    attend_heads<std::remove_const_t<Q>>(of.index, layer, 0, {}, q, out, options, run, true);
    return {};
  }

  // Attention to some slots alone, as attend(): what a policy that retrieves has kept for this step (decide() beside the cache). `chosen` has
  // slots()/64 words, rounded up, for each KV head, a bit for each slot; bits of slots that do not live are cleared.
  // errors  as attend; shape_mismatch also for `chosen`
  // cost    pages without a chosen slot are not read
  template <class Q, storage_scalar O, executor Executor = serial>
  status attend_among(sequence of, int layer, tensor_view<std::uint64_t, 2> chosen, tensor_view<Q, 3> q, tensor_view<O, 3> out,
                      attention_options const& options = {}, Executor&& run = {}) const requires(Recipe::has_liveness) {
    if (status const ok = check_queries(of, layer, q, out, options); !ok) return ok;
    layer_state const& state = store_.layer(of.index, layer);
    std::int64_t const words = divide_up(state.slots, 64);
    if (chosen.extent[0] != store_.shape.kv_heads || chosen.extent[1] < words || chosen.stride[1] != 1)
      return {errc::shape_mismatch, chosen.extent[1]};
    if (state.tokens > 0 && q.extent[0] > state.tokens) return {errc::out_of_range, q.extent[0]};
    for (int h = 0; h < store_.shape.kv_heads; ++h)
      for (std::int64_t w = 0; w < words; ++w) chosen(h, w) &= store_.live_of(of.index, layer, h)[w];
    attend_from<std::remove_const_t<Q>>(of.index, layer, 0, {}, q, out, options, run, false, [&](int head) {
      return chosen_source<Recipe>{{store_, of.index, layer, head}, &chosen(head, 0)};
    });
    return {};
  }

  // Attention of a chunk of new tokens to the sequence and, causally, to the chunk itself, raw; then appends the chunk.
  // errors  as attend and append; capacity_exceeded also if the chunk is longer than max_chunk. Nothing is written on an error.
  template <class Q, class K, class V, storage_scalar O, executor Executor = serial>
  status prefill(sequence of, int layer, tensor_view<Q, 3> q, tensor_view<K, 3> k, tensor_view<V, 3> v, tensor_view<O, 3> out,
                 attention_options const& options = {}, Executor&& run = {}, std::span<std::int64_t const> at = {}) {
    if (status const ok = check_chunk_queries(of, layer, q, k, v, out, options, at); !ok) return ok;
    if (status const ok = this->reserve(of.index, layer, k.extent[0]); !ok) return ok;
    this->load_chunk(of.index, k, v);
    attend_heads<std::remove_const_t<Q>>(of.index, layer, k.extent[0], at, q, out, options, run, false);
    this->write(of.index, layer, k, v, at);
    return {};
  }
  // The same without appending the chunk.
  template <class Q, class K, class V, storage_scalar O, executor Executor = serial>
  status attend_with_chunk(sequence of, int layer, tensor_view<Q, 3> q, tensor_view<K, 3> k, tensor_view<V, 3> v, tensor_view<O, 3> out,
                           attention_options const& options = {}, Executor&& run = {}, std::span<std::int64_t const> at = {}) {
    if (status const ok = check_chunk_queries(of, layer, q, k, v, out, options, at); !ok) return ok;
    this->load_chunk(of.index, k, v);
    attend_heads<std::remove_const_t<Q>>(of.index, layer, k.extent[0], at, q, out, options, run, false);
    return {};
  }

  // Statistics of the attention of the newest q.extent[0] tokens to what is stored now, by slot (page/attention_statistics.hpp); lse as
  // attend() wrote it for the same queries and options.
  // errors  as attend; shape_mismatch also for lse, weights, thresholds and a missing view; nothing is written then
  template <class Q, group_reduction Reduction, statistic... Wanted, executor Executor = serial>
  status attention_statistics(sequence of, int layer, tensor_view<Q, 3> q, std::type_identity_t<tensor_view<float const, 2>> lse,
                              statistics_view<Reduction, Wanted...> const& out, statistics_rows const& chosen = {},
                              attention_options const& options = {}, Executor&& run = {}) const {
    using second_pass = statistics_engine<backend, page, typename Recipe::accuracy>;
    using call_type = statistics_call<statistics_view<Reduction, Wanted...>, std::remove_const_t<Q>>;
    if (status const ok = this->check_layer(of, layer); !ok) return ok;
    layer_state const& state = store_.layer(of.index, layer);
    if (q.extent[1] != store_.shape.query_heads) return {errc::shape_mismatch, q.extent[1]};
    if (status const ok = call_type::check(q, lse, out, chosen, options, store_.shape.kv_heads, Recipe::key_channels, state.slots); !ok) return ok;
    if (state.tokens > 0 && q.extent[0] > state.tokens) return {errc::out_of_range, q.extent[0]};
    std::int64_t const pieces = call_type::has_row_entropy ? 1 : divide_up(std::max<std::int64_t>(state.slots, 1), second_pass::range_slots);
    run.for_each(store_.shape.kv_heads * pieces, [&](std::int64_t item) {
      int const head = static_cast<int>(item / pieces);
      visible_slots const seen{store_, state, of.index, layer, q.extent[0], 0, options.window, {}, false, head};
      call_type const call{.q = q,
                           .lse = lse,
                           .out = out,
                           .chosen = chosen,
                           .options = options,
                           .group = store_.shape.query_heads / store_.shape.kv_heads,
                           .scale = base2_scale(options, Recipe::key_channels),
                           .slots = &seen,
                           .slot_range = visible_slots::range};
      call.template run<second_pass>(segment_source<Recipe>{store_, of.index, layer, head}, head, item % pieces);
    });
    return {};
  }

  // Forgets all but the first `tokens` tokens of every layer. Exact in staging; deeper, the tile that is cut keeps its slots as dead ones
  // and new tokens start a new tile (the result says so).
  // errors  stale_handle, out_of_range (negative), capacity_exceeded (more than 16 cut tiles in one layer), unsupported (what compaction has
  //         moved would be cut: `at` is the fewest tokens that can be kept, beside none); nothing was changed
  result<truncation> truncate(sequence of, std::int64_t tokens) {
    if (status const ok = check_truncate(of, tokens); !ok) return ok;
    return this->truncate_books(of.index, tokens, [&](int l, layer_state const& before, std::int64_t kept) {
      std::int64_t const slots = store_.layer(of.index, l).slots;
      for (std::int64_t slot = kept; slot < slots; ++slot) this->repeat_position(of.index, l, slot, kept - 1);
      for (int h = 0; h < store_.shape.kv_heads; ++h) {
        this->drop_cut_tails(of.index, l, h);
        if constexpr (Recipe::nan == nan_policy::propagate) this->clear_rows(of.index, l, h, kept, before.slots);
        for (std::int64_t slot = kept; slot < slots; ++slot) this->repeat_row(of.index, l, h, slot, kept - 1);
        for (std::int64_t slot = kept; slot < slots; ++slot) this->reset_side(of.index, l, h, slot);
      }
    });
  }

  // Removes tokens from one KV head: they are never seen again, and a page without a living slot is given back (unless a fork shares it).
  // compact() gives back the pages between them. Tokens that are gone already may be named.
  // errors  stale_handle, out_of_range (layer, head, token; nothing was removed)
  status evict(sequence of, int layer, int head, std::span<std::int64_t const> tokens) requires(Recipe::has_liveness) {
    if (status const ok = this->check_tokens(of, layer, head, tokens); !ok) return ok;
    head_slots const slots = store_.slots_of(of.index, layer, head);
    std::uint64_t* const live = store_.live_of(of.index, layer, head);
    for (std::int64_t const token : tokens) {
      std::int64_t const slot = slots.slot_of(token);
      if (slot < 0) continue;
      live[slot / 64] &= ~(std::uint64_t{1} << (slot % 64));
      this->drop_if_dead(of.index, layer, head, (slot - Recipe::first_tokens) / page::tokens, live);
    }
    return {};
  }

  // Sets what is added to a token's score in one KV head, natural units; nothing if the token is gone. Steps that hold one above 2.8 are
  // computed exactly.
  // errors  stale_handle, out_of_range, not_finite (NaN or +infinity)
  status set_bias(sequence of, int layer, int head, std::int64_t token, float value) requires(Recipe::has_bias) {
    if (status const ok = this->check_tokens(of, layer, head, {&token, 1}); !ok) return ok;
    if (status const ok = this->check_bias(token, value); !ok) return ok;
    if (std::int64_t const slot = store_.slots_of(of.index, layer, head).slot_of(token); slot >= 0)
      store_.biases_of(of.index, layer, head)[slot] = value;
    return {};
  }

  double bits_per_value() const {
    return stored_values() == 0 ? 0.0 : 8.0 * static_cast<double>(resident_bytes()) / static_cast<double>(stored_values());
  }

  // See make().
  static result<cache> with_memory(cache_shape const& shape, std::span<std::byte> memory, calibration<page> const& calibrated) {
    cache made;
    if (status const ok = made.store_.set_up(shape, memory, calibrated); !ok) return ok;
    return made;
  }

  cache(cache&&) noexcept = default;

 private:
  template <class>
  friend class cache;  // of a recipe with keep<...>: cache/keep.hpp

  cache() = default;

  template <class Q, class O>
  status check_queries(sequence of, int layer, tensor_view<Q, 3> q, tensor_view<O, 3> out, attention_options const& options,
                       std::int64_t chunk = 0) const {
    if (status const ok = this->check_layer(of, layer); !ok) return ok;
    if (q.extent[1] != store_.shape.query_heads) return {errc::shape_mismatch, q.extent[1]};
    return query_rows<std::remove_const_t<Q>, O>::check(q, out, options, store_.shape.kv_heads, Recipe::key_channels,
                                                        Recipe::value_channels, slots(of, layer) + chunk);
  }

  template <class Q, class K, class V, class O>
  status check_chunk_queries(sequence of, int layer, tensor_view<Q, 3> q, tensor_view<K, 3> k, tensor_view<V, 3> v, tensor_view<O, 3> out,
                             attention_options const& options, std::span<std::int64_t const> at) const {
    if (status const ok = check_queries(of, layer, q, out, options, k.extent[0]); !ok) return ok;
    if (status const ok = this->check_chunk(of, layer, k, v, at); !ok) return ok;
    if (q.extent[0] != k.extent[0]) return {errc::shape_mismatch, q.extent[0]};
    if (k.extent[0] > store_.shape.max_chunk) return {errc::capacity_exceeded, store_.shape.max_chunk};
    return {};
  }

  // Which slots query token i of a call sees.
  struct visible_slots {
    storage const& store;
    layer_state const& state;
    std::int64_t sequence;
    int layer;
    std::int64_t queries, chunk, window;
    std::span<std::int64_t const> chunk_positions;
    bool everything;  // whatever i is
    int head = 0;

    std::int64_t position(std::int64_t token) const {
      if (token < state.tokens) return store.positions_of(sequence, layer)[state.slot_of(token)];
      std::int64_t const in_chunk = token - state.tokens;
      if (!chunk_positions.empty()) return chunk_positions[static_cast<std::size_t>(in_chunk)];
      return (state.slots > 0 ? store.positions_of(sequence, layer)[state.slots - 1] : -1) + 1 + in_chunk;
    }
    std::int64_t begin_of(std::int64_t token) const {
      return token < state.tokens ? store.slots_of(sequence, layer, head).begin_of(token) : state.slots + (token - state.tokens);
    }
    std::int64_t end_of(std::int64_t token) const {
      return token < state.tokens ? store.slots_of(sequence, layer, head).end_of(token) : state.slots + (token - state.tokens) + 1;
    }

    static void range(void const* context, std::int64_t query, std::int64_t* lower, std::int64_t* upper) {
      static_cast<visible_slots const*>(context)->of_query(query, lower, upper);
    }
    void of_query(std::int64_t i, std::int64_t* lower, std::int64_t* upper) const {
      std::int64_t const token = state.tokens - 1 + (everything ? 0 : chunk - queries + i + 1);
      *lower = 0;
      *upper = token < 0 ? 0 : end_of(token);
      if (window == 0 || token < 0) return;
      if constexpr (Recipe::has_positions) {
        std::int64_t const oldest = position(token) - window;  // seen are positions above it
        std::int64_t low = 0, high = token + 1;
        while (low < high) {
          std::int64_t const middle = (low + high) / 2;
          (position(middle) > oldest ? high : low) = position(middle) > oldest ? middle : middle + 1;
        }
        *lower = begin_of(low);
      } else {
        *lower = token - window + 1 <= 0 ? 0 : begin_of(token - window + 1);
      }
    }
  };

  template <class Q, class O, class Executor>
  void attend_heads(std::int64_t index, int layer, std::int64_t chunk, std::span<std::int64_t const> at, tensor_view<Q const, 3> q,
                    tensor_view<O, 3> out, attention_options const& options, Executor&& run, bool everything) const {
    attend_from(index, layer, chunk, at, q, out, options, run, everything, [&](int head) {
      return segment_source<Recipe>{store_, index, layer, head, chunk};
    });
  }
  template <class Q, class O, class Executor, class SourceOf>
  void attend_from(std::int64_t index, int layer, std::int64_t chunk, std::span<std::int64_t const> at, tensor_view<Q const, 3> q,
                   tensor_view<O, 3> out, attention_options const& options, Executor&& run, bool everything, SourceOf source_of) const {
    visible_slots const slots{store_, store_.layer(index, layer), index, layer, q.extent[0], chunk, options.window, at, everything};
    run.for_each(store_.shape.kv_heads, [&](std::int64_t head) {
      visible_slots seen = slots;
      seen.head = static_cast<int>(head);
      query_rows<Q, O> const rows{.q = q,
                                  .out = out,
                                  .options = &options,
                                  .tokens = q.extent[0],
                                  .head = static_cast<int>(head),
                                  .group = store_.shape.query_heads / store_.shape.kv_heads,
                                  .scale = base2_scale(options, Recipe::key_channels),
                                  .slots = &seen,
                                  .slot_range = visible_slots::range};
      engine::attend(source_of(static_cast<int>(head)), rows.rows());
    });
  }
};

// A cache with an arena of its own of shape.bytes, or in the caller's memory (64-byte aligned), which must outlive it.
// errors  see cache_storage::set_up
template <class Recipe>
result<cache<Recipe>> make(cache_shape const& shape, std::span<std::byte> memory = {}) {
  static_assert(!calibration<typename Recipe::page>::is_needed,
                "[pith] make<Recipe>(shape): a codec of this composition has calibrated state. Fix: make<Recipe>(shape, calibration).");
  return cache<Recipe>::with_memory(shape, memory, {});
}

// The same with calibrated numbers for each (layer, KV head), [layer * kv_heads + head]. They are copied, and never change.
template <class Recipe>
result<cache<Recipe>> make(cache_shape const& shape, calibration<typename Recipe::page> const& calibrated, std::span<std::byte> memory = {}) {
  return cache<Recipe>::with_memory(shape, memory, calibrated);
}

}  // namespace pith
