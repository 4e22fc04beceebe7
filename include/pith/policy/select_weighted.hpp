// SPDX-License-Identifier: Apache-2.0
// Selection of one row in two stages: a part of the room by score, the rest by score times a weight.
//
//   floor(first x room) slots    the best scores
//   the others                   the best of (score + epsilon) x weight among what is left
//
// With weight = |W_O v|_1, the size of what a value adds to the layer's output, the second stage bounds the error of that output. epsilon
// lets a slot with a great value in that attention has hardly looked at; it is on the scale of the scores.
//
// Rule W1  first 1 is select_top; first 0 ranks by products alone. With equal weights above 0 both stages are select_top together.
// Rule W2  An infinite score is what it is, whatever its weight. Slots that are protected or chosen already have no weight.
//
// errors  shape_mismatch; not_finite (a score that is NaN, a weight that is NaN or infinite: `at` is the slot), out_of_range (a weight
//         below 0: `at` is the slot; first outside [0, 1], epsilon that is negative or no number: -1), capacity_exceeded (scratch). Marks
//         are changed only on success
// cost    O(n), products in f64 and rounded to f32 once; no allocation
// from    Feng et al., CriticalKV (Identify Critical KV Cache in LLM Inference from an Output Perturbation Perspective), 2025
// differs ties of products go to the newer slot
#pragma once

#include <limits>

#include "pith/policy/select.hpp"

namespace pith {

constexpr std::int64_t select_twice_scratch_bytes(std::int64_t slots) { return lent_memory::bytes<float>(slots); }

inline status select_twice(std::span<float const> scores, std::span<float const> weights, std::span<slot_mark> marks, std::int64_t room,
                           double first, double epsilon, std::span<std::byte> scratch) {
  if (status const ok = check_scores(scores, marks); !ok) return ok;
  if (weights.size() != marks.size()) return {errc::shape_mismatch, static_cast<std::int64_t>(weights.size())};
  if (!(first >= 0 && first <= 1) || !(epsilon >= 0 && epsilon <= std::numeric_limits<double>::max())) return {errc::out_of_range, -1};
  for (std::size_t slot = 0; slot < weights.size(); ++slot) {
    if (marks[slot] != free_slot) continue;
    if (!is_finite(weights[slot])) return {errc::not_finite, static_cast<std::int64_t>(slot)};
    if (weights[slot] < 0) return {errc::out_of_range, static_cast<std::int64_t>(slot)};
  }
  std::span<float> product;
  auto const slots = static_cast<std::int64_t>(marks.size());
  if (!lent_memory(scratch).take(slots, product)) return {errc::capacity_exceeded, select_twice_scratch_bytes(slots)};
  std::int64_t const all = std::clamp<std::int64_t>(room, 0, free_slots(marks));
  auto const by_score = static_cast<std::int64_t>(first * static_cast<double>(all));
  for (std::size_t slot = 0; slot < marks.size(); ++slot)
    product[slot] = is_finite(scores[slot])
                        ? static_cast<float>((static_cast<double>(scores[slot]) + epsilon) * static_cast<double>(weights[slot]))
                        : scores[slot];
  if (status const ok = select_top(scores, marks, by_score); !ok) return ok;
  return select_top(product, marks, all - by_score);
}

}  // namespace pith
