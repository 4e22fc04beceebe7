// SPDX-License-Identifier: Apache-2.0
// The `count` best of many slots without sorting: the place of the last one in the order of ranking.hpp.
//
//   a histogram of 11, 11 and 10 bits finds the score of the last one; if not all slots of that score are among the best, a second one
//   finds the slot number among them, and rows are taken in ascending order
//
// cost    three passes over the slots, six if the last score is tied; 16 KiB of stack. O(n), whatever the scores are
// from    radix selection
#pragma once

#include <cstdint>

#include "pith/policy/ranking.hpp"

namespace pith {

struct rank_bound {
  std::uint32_t score = 0, slot = 0;
  std::int64_t rows_left = 0;  // of those with just this score and slot

  // Is this one of the best? Asked once for each, rows ascending.
  bool takes(std::uint32_t its_score, std::uint32_t its_slot) {
    if (its_score != score) return its_score > score;
    if (its_slot != slot) return its_slot > slot;
    return rows_left-- > 0;
  }
};

namespace rank_detail {

struct kth {
  std::uint32_t key;
  std::int64_t of_equals, equals;  // how many of its equals are among the best, and how many there are
};

// The count-th largest key; `each(f)` calls f(key) for every key, of which there are `count` or more, and count > 0.
template <class Each>
kth kth_largest(Each each, std::int64_t count) {
  std::uint32_t key = 0, known = 0;
  std::int64_t equals = 0;
  for (int const shift : {21, 10, 0}) {
    std::uint32_t const bins = shift == 0 ? 1024 : 2048;
    std::int64_t sizes[2048] = {};
    each([&](std::uint32_t x) {
      if ((x & known) == key) ++sizes[(x >> shift) & (bins - 1)];
    });
    std::uint32_t bin = bins - 1;
    while (sizes[bin] < count) count -= sizes[bin--];
    equals = sizes[bin];
    key |= bin << shift;
    known |= (bins - 1) << shift;
  }
  return {key, count, equals};
}

}  // namespace rank_detail

// `each(f)` calls f(ordered score, slot) for every slot to be ranked, of which there are `count` or more, and count > 0.
template <class Each>
rank_bound bound_of_best(Each each, std::int64_t count) {
  auto const last = rank_detail::kth_largest([&](auto f) { each([&](std::uint32_t score, std::uint32_t) { f(score); }); }, count);
  if (last.of_equals == last.equals) return {last.key, 0, last.equals};  // slot 0 of any row, too
  auto const tied = [&](auto f) {
    each([&](std::uint32_t score, std::uint32_t slot) {
      if (score == last.key) f(slot);
    });
  };
  auto const place = rank_detail::kth_largest(tied, last.of_equals);
  return {last.key, place.key, place.of_equals};
}

}  // namespace pith
