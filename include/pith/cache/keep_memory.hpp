// SPDX-License-Identifier: Apache-2.0
// The memory that a policy takes in a cache, carved once from the front of its arena: what lives with a sequence, and what calls work in.
//
//   of a sequence    score, history [layer][head][place], known, living [layer][head], the newest queries of each layer and their lse;
//                    for its calls of attention: statistics, logits, lse, survivors
//   of the cache     for one decision: the plan, routes, keys; decisions come one at a time
//
// A place is a survivor's number in its head, ascending by slot: compaction moves slots, never places, and a cut takes the last ones.
// Parts that the policy does not ask for have no bytes.
#pragma once

#include <new>

#include "pith/cache/compactor.hpp"
#include "pith/cache/keep_check.hpp"

namespace pith {

// What a caller tells a policy of a sequence; the spans must outlive their use.
struct keep_input {
  std::span<std::uint8_t const> mask{}, pins{};  // [token], shorter ones are zero behind: masked_slots, pinned_slots
  layer_statistics layers{};                     // for splits that ask for them
  std::span<double const> head_table{};          // [layer * kv_heads + head]
  std::uint64_t seed = 0;                        // chance, spread
};

struct keep_layer {
  std::int64_t seen = 0;                         // tokens whose queries have been counted
  std::int64_t window_end = 0, window_rows = 0;  // the newest queries: of tokens before window_end
  std::int64_t observed = 0;                     // calls of observe()
  float scale = 0, soft_cap = 0;                 // of the newest queries
  std::int64_t window = 0;
};

struct keep_sequence {
  std::int64_t prompt = 0;   // tokens when the last prompt ended
  std::int64_t settled = 0;  // tokens at the last event
  std::int64_t least = 0;    // tokens when something left: no cut goes further back
  std::int64_t cursor = 0;   // of a ladder
  bool in_prompt = false, had_prompt = false;
  keep_input given{};
};

template <class Recipe>
struct keep_memory {
  using needs = keep_traits<typename Recipe::policy>;
  using scorer = typename needs::scorer;

  cache_shape shape{};
  std::byte *sequences = nullptr, *shared = nullptr;

  std::int64_t kv() const { return shape.kv_heads; }
  std::int64_t room() const { return shape.max_tokens; }
  std::int64_t all_rows() const { return static_cast<std::int64_t>(shape.layers) * kv(); }
  std::int64_t rows_at_once() const { return needs::whole_model ? all_rows() : kv(); }
  std::int64_t lists() const { return needs::one_list ? 1 : shape.query_heads / kv(); }

  struct sequence_parts {
    std::int64_t state, layers, known, living, score, history, window, window_lse, rows, sums, second, logits, lse, observing, bytes;
  };
  sequence_parts of_sequence() const {
    std::int64_t at = 0;
    auto const take = [&](std::int64_t bytes) { return std::exchange(at, round_up(at + bytes, 64)); };
    bool const calls = needs::attends;
    sequence_parts made{};
    made.state = take(sizeof(keep_sequence));
    made.layers = take(shape.layers * static_cast<std::int64_t>(sizeof(keep_layer)));
    made.known = take(8 * all_rows());
    made.living = take(8 * all_rows());
    made.score = take(needs::ranks ? 4 * all_rows() * room() : 0);
    made.history = take(8 * needs::history_words * all_rows() * room());
    made.window = take(4 * needs::window_room * shape.layers * shape.query_heads * Recipe::key_channels);
    made.window_lse = take(4 * needs::window_room * shape.layers * shape.query_heads);
    made.rows = take(needs::ranks ? room() * static_cast<std::int64_t>(sizeof(survivor)) : 0);
    made.sums = take(needs::ranks ? 4 * kv() * lists() * room() : 0);
    made.second = take(calls && needs::squares ? 4 * shape.query_heads * room() : 0);
    made.logits = take(calls && needs::adds && needs::window_rows == 0 ? 4 * shape.query_heads * room() : 0);
    made.lse = take(calls ? 4 * std::max(shape.max_chunk, 1) * shape.query_heads : 0);
    made.observing = take(needs::ranks ? observe_scratch_bytes(room()) : 0);
    made.bytes = at;
    return made;
  }

  struct shared_parts {
    std::int64_t offset, length, kept, counts, mask, pins, births, deciding, rows, marks, tokens, target, into, weight, bias, keys, merging,
        bytes;
  };
  shared_parts of_all() const {
    std::int64_t at = 0;
    auto const take = [&](std::int64_t bytes) { return std::exchange(at, round_up(at + bytes, 64)); };
    std::int64_t const rows = rows_at_once(), slots = rows * room(), merged = needs::merges ? room() : 0;
    shared_parts made{};
    made.offset = take(8 * rows);
    made.length = take(8 * rows);
    made.kept = take(8 * slots);
    made.counts = take(8 * rows);
    made.mask = take(needs::names_slots ? slots : 0);
    made.pins = take(needs::names_slots ? slots : 0);
    made.births = take(needs::by_chance ? 8 * slots : 0);
    made.deciding = take(decide_scratch_bytes(rows, slots));
    made.rows = take(room() * static_cast<std::int64_t>(sizeof(survivor)));
    made.marks = take(room());
    made.tokens = take(8 * room());
    made.target = take(8 * merged);
    made.into = take(8 * merged);
    made.weight = take(4 * merged);
    made.bias = take(4 * merged);
    made.keys = take(needs::by_keys ? 4 * room() * Recipe::key_channels : 0);
    made.merging = take(needs::merges ? cache_compactor<Recipe>::merge_scratch_bytes(room(), room()) + merge_scratch_bytes(room() + 1) : 0);
    made.bytes = at;
    return made;
  }
  std::int64_t bytes() const { return of_sequence().bytes * shape.max_sequences + of_all().bytes; }
  std::int64_t resident_bytes(std::int64_t open) const { return of_sequence().bytes * open + of_all().bytes; }

  // Part `at` of a sequence, of the cache.
  template <class T>
  T* own(std::int64_t sequence, std::int64_t at) const {
    return reinterpret_cast<T*>(sequences + sequence * of_sequence().bytes + at);
  }
  template <class T>
  std::span<T> work(std::int64_t at, std::int64_t count) const {
    return {reinterpret_cast<T*>(shared + at), static_cast<std::size_t>(count)};
  }

  keep_sequence& state(std::int64_t sequence) const { return *own<keep_sequence>(sequence, of_sequence().state); }
  keep_layer& layer(std::int64_t sequence, int at) const { return own<keep_layer>(sequence, of_sequence().layers)[at]; }
  std::int64_t& known(std::int64_t sequence, std::int64_t row) const { return own<std::int64_t>(sequence, of_sequence().known)[row]; }
  std::int64_t& living(std::int64_t sequence, std::int64_t row) const { return own<std::int64_t>(sequence, of_sequence().living)[row]; }
  // The state of `rows` rows from `row` on, as the policy's functions take it.
  policy_state scores(std::int64_t sequence, std::int64_t row, std::int64_t rows) const {
    sequence_parts const at = of_sequence();
    policy_state made;
    auto const first = static_cast<std::size_t>(row * room()), count = static_cast<std::size_t>(rows * room());
    made.known = {own<std::int64_t>(sequence, at.known) + row, static_cast<std::size_t>(rows)};
    if (needs::ranks) made.score = {own<float>(sequence, at.score) + first, count};
    constexpr auto words = static_cast<std::size_t>(needs::history_words);
    if (words > 0) made.history = {own<std::uint64_t>(sequence, at.history) + words * first, words * count};
    made.cursor = state(sequence).cursor;
    return made;
  }
  float* window(std::int64_t sequence, int layer) const {
    return own<float>(sequence, of_sequence().window) + layer * needs::window_room * shape.query_heads * Recipe::key_channels;
  }
  float* window_lse(std::int64_t sequence, int layer) const {
    return own<float>(sequence, of_sequence().window_lse) + layer * needs::window_room * shape.query_heads;
  }

  void begin(std::int64_t sequence) const {
    new (&state(sequence)) keep_sequence{};
    for (int l = 0; l < shape.layers; ++l) new (&layer(sequence, l)) keep_layer{};
    for (std::int64_t r = 0; r < all_rows(); ++r) known(sequence, r) = living(sequence, r) = 0;
  }
  void copy(std::int64_t from, std::int64_t to) const {
    sequence_parts const at = of_sequence();
    std::memcpy(own<std::byte>(to, at.known), own<std::byte>(from, at.known), static_cast<std::size_t>(at.score - at.known));
    state(to) = state(from);
    std::copy_n(&layer(from, 0), shape.layers, &layer(to, 0));
    std::int64_t const inputs = needs::window_room * shape.query_heads;
    for (int l = 0; l < shape.layers; ++l) {
      std::copy_n(window(from, l), layer(from, l).window_rows * (inputs > 0 ? shape.query_heads * Recipe::key_channels : 0), window(to, l));
      std::copy_n(window_lse(from, l), layer(from, l).window_rows * (inputs > 0 ? shape.query_heads : 0), window_lse(to, l));
    }
    for (std::int64_t r = 0; r < all_rows(); ++r) {
      policy_state const source = scores(from, r, 1), target = scores(to, r, 1);
      auto const count = static_cast<std::size_t>(known(from, r));
      if (needs::ranks) std::copy_n(source.score.begin(), count, target.score.begin());
      constexpr auto words = static_cast<std::size_t>(needs::history_words);
      if (words > 0) std::copy_n(source.history.begin(), words * count, target.history.begin());
    }
  }
};

}  // namespace pith
