// SPDX-License-Identifier: Apache-2.0
// The first half of a policy's run: statistics of a step in, scores out. Signal, head map and scorer.
//
//   signal of each query head's slots -> one list a row (head map) -> the row's state (scorer)
//
// The state is the caller's: a score a slot, the scorer's history, and how many slots of each row have a state. Rows may have grown since;
// what was dropped has been carried over (carry(), decide.hpp).
//
// errors  shape_mismatch (arrays or statistics that do not fit; rows of a wide head map that differ in length: `at` is the row),
//         out_of_range (a row leaves an array: the row), not_finite (NaN: the slot's place in the state's arrays), capacity_exceeded
//         (scratch). Nothing is changed on an error
// cost    O(slots x query heads of a KV head), twice, because all numbers are looked at before any is kept; no allocation
#pragma once

#include <algorithm>

#include "pith/policy/policy.hpp"

namespace pith {

// Where the rows of a cache lie. row = layer * kv_heads + head.
struct policy_rows {
  std::int64_t layers = 1, kv_heads = 1;
  std::span<std::int64_t const> offset{}, length{};  // [row], in slots

  std::int64_t rows() const { return layers * kv_heads; }
  template <class T>
  ragged_view<T> view(std::span<T> data) const {
    return {data, offset, length};
  }
  status check() const {
    if (layers < 0 || kv_heads < 0 || static_cast<std::int64_t>(length.size()) != rows() || offset.size() != length.size())
      return {errc::shape_mismatch, static_cast<std::int64_t>(length.size())};
    for (std::int64_t const n : length)
      if (n < 0 || n > 0xffffffffll) return {errc::out_of_range, n};
    return {};
  }
};

struct policy_state {
  std::span<float> score{};            // [row][slot], at the rows' offsets
  std::span<std::uint64_t> history{};  // [row][slot][history_words of the scorer]
  std::span<std::int64_t> known{};     // [row]: slots that have a state; 0 at first
  std::int64_t step = 0;               // calls of observe
  std::int64_t cursor = 0;             // of a ladder
};

// Statistics of one call. Each array [row][list][slot]: row r begins at lists * offset[r], a list at lists * offset[r] + list * length[r].
// `lists`: the query heads of a KV head, or 1 if the engine has mapped them already.
struct policy_statistics {
  std::span<float const> sum{}, square_sum{}, maximum{}, given{};
  std::int64_t lists = 1;
  std::int64_t rows = 0;     // query rows that sum and square_sum are over
  std::int64_t visible = 0;  // tokens that the newest query saw
  std::span<float const> weighted_sum{}, window_sum{};
};

constexpr std::int64_t observe_scratch_bytes(std::int64_t longest_row) { return 2 * lent_memory::bytes<float>(longest_row); }

namespace observe_detail {

inline slot_statistics of(policy_statistics const& in, policy_rows const& at, std::int64_t row, std::int64_t list) {
  auto const part = [&](std::span<float const> all) { return all.empty() ? all : at.view(all).row(row, in.lists, list); };
  return {part(in.sum), part(in.square_sum), part(in.maximum), part(in.given), in.rows, part(in.weighted_sum), part(in.window_sum)};
}

inline status check(policy_rows const& at, policy_statistics const& in, policy_state const& state, std::int64_t history_words) {
  if (status const ok = at.check(); !ok) return ok;
  if (in.lists < 1) return {errc::shape_mismatch, in.lists};
  if (static_cast<std::int64_t>(state.known.size()) != at.rows())
    return {errc::shape_mismatch, static_cast<std::int64_t>(state.known.size())};
  if (status const ok = at.view(state.score).check(); !ok) return ok;
  if (history_words > 0)
    if (status const ok = at.view(state.history).check(history_words); !ok) return ok;
  for (std::span<float const> const all : {in.sum, in.square_sum, in.maximum, in.given, in.weighted_sum, in.window_sum})
    if (!all.empty())
      if (status const ok = at.view(all).check(in.lists); !ok) return ok;
  for (std::int64_t r = 0; r < at.rows(); ++r)
    if (std::int64_t const known = state.known[static_cast<std::size_t>(r)]; known < 0 || known > at.view(state.score).slots(r))
      return {errc::shape_mismatch, r};
  return {};
}

}  // namespace observe_detail

template <class Policy>
status observe(Policy const& policy, policy_rows const& at, policy_statistics const& in, policy_state& state,
               std::span<std::byte> scratch) {
  using map = typename Policy::template stage_type<stage::head_map>;
  using scorer = typename Policy::template stage_type<stage::scorer>;
  if (status const ok = observe_detail::check(at, in, state, scorer::history_words); !ok) return ok;
  std::int64_t longest = 0;
  for (std::int64_t const n : at.length) longest = std::max(longest, n);
  std::span<float> own, mapped;
  lent_memory memory(scratch);
  if (!memory.take(longest, own) || !memory.take(longest, mapped)) return {errc::capacity_exceeded, observe_scratch_bytes(longest)};

  std::int64_t const speaking = map::scope == head_scope::group ? 1 : map::scope == head_scope::layer ? at.kv_heads : at.rows();
  std::int64_t block = speaking;  // rows that get what `speaking` of them say
  if constexpr (requires { map::layers; }) block *= std::min(map::layers, std::max<std::int64_t>(at.layers, 1));
  for (bool const keep : {false, true}) {
    for (std::int64_t first = 0; first < at.rows(); first += block) {
      auto const slots = static_cast<std::size_t>(at.length[static_cast<std::size_t>(first)]);
      std::int64_t lists = 0;
      std::int64_t const last = std::min(first + block, at.rows());
      for (std::int64_t r = first; r < last; ++r) {
        if (static_cast<std::size_t>(at.length[static_cast<std::size_t>(r)]) != slots) return {errc::shape_mismatch, r};
        for (std::int64_t list = 0; r < first + speaking && list < in.lists; ++list) {
          status const ok = policy.template at<stage::signal>().value(observe_detail::of(in, at, r, list), own.first(slots));
          if (!ok) return {ok.code, r};
          map::take(own.first(slots), mapped.first(slots), lists++);
        }
      }
      map::finish(mapped.first(slots), lists);
      if (!keep) {
        unsigned wrong = 0;
        for (std::size_t slot = 0; slot < slots; ++slot) wrong |= static_cast<unsigned>(is_nan(mapped[slot]));
        for (std::size_t slot = 0; wrong != 0 && slot < slots; ++slot)
          if (is_nan(mapped[slot])) return {errc::not_finite, at.offset[static_cast<std::size_t>(first)] + static_cast<std::int64_t>(slot)};
        continue;
      }
      for (std::int64_t r = first; r < last; ++r) {
        std::int64_t& known = state.known[static_cast<std::size_t>(r)];
        auto const history =
            scorer::history_words > 0 ? at.view(state.history).wide_row(r, scorer::history_words) : std::span<std::uint64_t>{};
        policy.template at<stage::scorer>().update(mapped.first(slots), at.view(state.score).row(r), history,
                                                   {known, in.visible, state.step});
        known = static_cast<std::int64_t>(slots);
      }
    }
  }
  ++state.step;
  return {};
}

}  // namespace pith
