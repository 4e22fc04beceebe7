// SPDX-License-Identifier: Apache-2.0
// How long a list of slots that was chosen for one step is read by the steps after it: until the policy's trigger is due again.
//
//   every_step                     a list for each step                                                  Quest
//   every<N>                       the step that chose it and N - 1 more                                 LServe, 4
//   on_drift, since_choice         while cos(q, q of the choice) >= theta                                TokenSelect, 0.9
//   on_drift, since_step, by head  while the mean over heads of cos(q, q of the step before) >= theta    LouisKV, 0.7
//
// Rule R1  A list is chosen at the first step, and again whenever the epoch is another: the caller counts it up when slots moved or left.
// Rule R2  Slots that came after the choice are read by every step that reuses the list (with_newer).
// Rule R3  The trigger sees moment::step, the steps that have read the list, and the similarity.
//
// errors  shape_mismatch, not_finite (the query: `at` is the number); capacity_exceeded (no room in the list: `at` is what it needs).
//         Nothing is changed on an error
// cost    O(heads x channels); no allocation
// from    Yang et al., LServe, 2025; Wu et al., TokenSelect, 2024; Wu et al., LouisKV, 2025
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <span>

#include "pith/core/scalar.hpp"
#include "pith/core/status.hpp"
#include "pith/policy/trigger.hpp"

namespace pith {

enum class drift_from : std::uint8_t { last_choice, last_step };

struct reuse_rule {
  drift_from from = drift_from::last_choice;
  bool by_head = false;  // the mean of the heads' cosines, and not one over all numbers
};

// The caller's: of one layer of one sequence.
struct reuse_state {
  std::span<float> query{};  // [head][channel], of the step that the next one is compared with
  std::int64_t steps = 0;    // that have read the list
  std::uint64_t epoch = 0;   // of the list
  bool chosen = false;       // there is a list
  void forget() { chosen = false; }
};

// Mean over `heads` of the cosines of two queries [head][channel]. Of two zeros the cosine is 1, of one it is 0.
inline double query_similarity(std::span<float const> a, std::span<float const> b, std::int64_t heads) {
  std::size_t const width = a.size() / static_cast<std::size_t>(heads);
  double mean = 0;
  for (std::size_t first = 0; first < a.size(); first += width) {
    double dot = 0, size_a = 0, size_b = 0;
    for (std::size_t c = first; c < first + width; ++c) {
      double const x = static_cast<double>(a[c]), y = static_cast<double>(b[c]);
      dot += x * y, size_a += x * x, size_b += y * y;
    }
    double const sizes = std::sqrt(size_a) * std::sqrt(size_b);
    mean += (sizes > 0 ? dot / sizes : size_a == size_b ? 1.0 : 0.0) / static_cast<double>(heads);
  }
  return mean;
}

// Whether this step needs a new list; the state is then that of the new one, so a choice that fails is to be followed by forget().
// `trigger` is a policy or a trigger stage; query [head][channel].
template <class Trigger>
result<bool> chooses_again(Trigger const& trigger, reuse_rule const& rule, std::span<float const> query, std::int64_t heads,
                           std::uint64_t epoch, reuse_state& state) {
  auto const numbers = static_cast<std::int64_t>(query.size());
  if (heads < 1 || numbers == 0 || numbers % heads != 0 || state.query.size() != query.size()) return status{errc::shape_mismatch, numbers};
  for (std::size_t i = 0; i < query.size(); ++i)
    if (!is_finite(query[i])) return status{errc::not_finite, static_cast<std::int64_t>(i)};
  bool again = !state.chosen || state.epoch != epoch;
  if (!again) {
    double const similarity = query_similarity(state.query, query, rule.by_head ? heads : 1);
    again = trigger.due(trigger_input{.step = state.steps, .query_similarity = similarity});
  }
  if (again || rule.from == drift_from::last_step) std::copy(query.begin(), query.end(), state.query.begin());
  state.steps = again ? 1 : state.steps + 1;
  state.epoch = epoch;
  state.chosen = true;
  return again;
}

// `count` slots of a list that was chosen among `listed` slots; those up to `slots` follow. How many there are then.
inline result<std::int64_t> with_newer(std::span<std::int64_t> list, std::int64_t count, std::int64_t listed, std::int64_t slots) {
  if (count < 0 || listed < 0 || slots < listed) return status{errc::shape_mismatch, slots};
  std::int64_t const more = slots - listed;
  if (count + more > static_cast<std::int64_t>(list.size())) return status{errc::capacity_exceeded, count + more};
  for (std::int64_t i = 0; i < more; ++i) list[static_cast<std::size_t>(count + i)] = listed + i;
  return count + more;
}

}  // namespace pith
