// SPDX-License-Identifier: Apache-2.0
// Selection over many rows at once, the heads of a layer or all rows of a model: one ranking, so that heads which need more get more.
//
//   first the `floor` best of each row, then the best of what is left, `count` in all
//
// Ties over rows: higher score, then newer slot, then lower row. Marks are changed only on success.
//
// errors  shape_mismatch, out_of_range (views that leave their arrays; the floors exceed the count: -1), not_finite (`at` is the slot's
//         place in the arrays)
// cost    O(n) for n slots in all; no allocation
// from    Feng et al., Ada-KV, 2024 (over the heads of a layer); Kim et al., KVzip, 2025 (over everything)
#pragma once

#include "pith/policy/ragged.hpp"
#include "pith/policy/select.hpp"

namespace pith {

// Slots of all rows together.
inline std::int64_t all_slots(std::span<std::int64_t const> lengths) {
  std::int64_t sum = 0;
  for (std::int64_t const n : lengths) sum += n;
  return sum;
}

inline status check_pool(ragged_view<float const> scores, ragged_view<slot_mark> marks) {
  if (status const ok = scores.check(); !ok) return ok;
  if (status const ok = marks.check(); !ok) return ok;
  if (scores.rows() != marks.rows()) return {errc::shape_mismatch, scores.rows()};
  for (std::int64_t r = 0; r < marks.rows(); ++r)
    if (status const ok = check_scores(scores.row(r), marks.row(r)); !ok)
      return {ok.code, ok.code == errc::not_finite ? scores.offset[static_cast<std::size_t>(r)] + ok.at : ok.at};
  return {};
}

inline status select_pooled(ragged_view<float const> scores, ragged_view<slot_mark> marks, std::int64_t count, std::int64_t floor) {
  if (status const ok = check_pool(scores, marks); !ok) return ok;
  std::int64_t sure = 0, all = 0;
  for (std::int64_t r = 0; r < marks.rows(); ++r) {
    std::int64_t const free = free_slots(marks.row(r));
    sure += std::min(std::max<std::int64_t>(floor, 0), free);
    all += free;
  }
  if (sure > std::max<std::int64_t>(count, 0)) return {errc::out_of_range, -1};
  for (std::int64_t r = 0; r < marks.rows(); ++r) static_cast<void>(select_top(scores.row(r), marks.row(r), count >= all ? all : floor));
  if (count >= all || count == sure) return {};
  rank_bound bound = bound_of_best(
      [&](auto f) {
        for (std::int64_t r = 0; r < marks.rows(); ++r) for_each_free(scores.row(r), marks.row(r), f);
      },
      count - sure);
  for (std::int64_t r = 0; r < marks.rows(); ++r)
    for_each_free(scores.row(r), marks.row(r), [&](std::uint32_t score, std::uint32_t slot) {
      if (bound.takes(score, slot)) marks.row(r)[slot] = chosen_slot;
    });
  return {};
}

}  // namespace pith
