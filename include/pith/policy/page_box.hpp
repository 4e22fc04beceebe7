// SPDX-License-Identifier: Apache-2.0
// Boxes around the keys of pages: how much a page's best key may score, without reading the page.
//
//   low_c = min k_tc,   high_c = max k_tc over the slots t of a box;   bound(q) = sum_c max(q_c low_c, q_c high_c) >= q . k_t
//
// A page has one box, or several of equally many consecutive slots: its bound is then the largest of theirs, and tighter.
//
// Rule X1  Only slots that are filled enter a box; the last page may be partly filled.
// Rule X2  A bound is never below q . k_t where both are summed in f64 with channels ascending: products are exact, and sums and the
//          rounding to f32 never change the order of two numbers.
// Rule X3  Keys are those that attention reads: of a quantised cache the decoded ones.
// Rule X4  What leaves a page leaves a valid bound behind, rebuild() makes it tight again. A row that was written anew (a merge, a codec of
//          fewer bits) needs rebuild(); rows that moved (compaction) need shorten(0) and append().
//
// errors  shape_mismatch (arrays, channels, slots of a page and boxes that do not fit), capacity_exceeded (no box for the next slot; `at`
//         is the numbers that low and high need), out_of_range (a page or a length that is not there), not_finite (NaN or infinity: `at` is
//         the number's place in the keys or queries). Nothing is changed on an error
// cost    O(channels) a slot and a box; 8 bytes a channel and box; no allocation
// from    Tang et al., Quest, 2024 (one box a page of 16); Yang et al., LServe, 2025 (4 boxes of 16 slots in a page of 64)
// differs Quest ranks pages for each query head; here the heads that read one KV head share its largest bound, so that they read one list
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>

#include "pith/core/scalar.hpp"
#include "pith/core/status.hpp"

namespace pith {

namespace box_detail {

inline status check_finite(std::span<float const> numbers) {
  for (std::size_t i = 0; i < numbers.size(); ++i)
    if (!is_finite(numbers[i])) return {errc::not_finite, static_cast<std::int64_t>(i)};
  return {};
}

}  // namespace box_detail

// The boxes of one row (KV head). The arrays are the caller's.
struct page_boxes {
  std::int64_t channels = 0, slots_of_page = 16, boxes_of_page = 1;
  std::span<float> low{}, high{};  // [box][channel]
  std::int64_t slots = 0;          // filled

  std::int64_t slots_of_box() const { return slots_of_page / boxes_of_page; }
  std::int64_t pages() const { return (slots + slots_of_page - 1) / slots_of_page; }
  std::int64_t boxes() const { return (slots + slots_of_box() - 1) / slots_of_box(); }
  // Numbers that low, and high, have for so many slots.
  std::int64_t numbers(std::int64_t for_slots) const { return (for_slots + slots_of_box() - 1) / slots_of_box() * channels; }

  status check() const {
    if (channels < 1) return {errc::shape_mismatch, channels};
    if (slots_of_page < 1 || boxes_of_page < 1 || slots_of_page % boxes_of_page != 0) return {errc::shape_mismatch, boxes_of_page};
    if (slots < 0 || low.size() != high.size() || static_cast<std::int64_t>(low.size()) < numbers(slots))
      return {errc::shape_mismatch, static_cast<std::int64_t>(low.size())};
    return {};
  }

  // Takes up the keys [slot][channel] of the next slots.
  status append(std::span<float const> keys) {
    if (status const ok = check(); !ok) return ok;
    auto const given = static_cast<std::int64_t>(keys.size());
    if (given % channels != 0) return {errc::shape_mismatch, given};
    std::int64_t const more = given / channels;
    if (numbers(slots + more) > static_cast<std::int64_t>(low.size())) return {errc::capacity_exceeded, numbers(slots + more)};
    if (status const ok = box_detail::check_finite(keys); !ok) return ok;
    for (std::int64_t i = 0; i < more; ++i, ++slots) widen(slots, keys.data() + i * channels);
    return {};
  }

  // Makes the boxes of one page from its filled slots' keys [slot][channel].
  status rebuild(std::int64_t page, std::span<float const> keys) {
    if (status const ok = check(); !ok) return ok;
    if (page < 0 || page >= pages()) return {errc::out_of_range, page};
    std::int64_t const first = page * slots_of_page, filled = std::min(slots_of_page, slots - first);
    if (static_cast<std::int64_t>(keys.size()) != filled * channels) return {errc::shape_mismatch, static_cast<std::int64_t>(keys.size())};
    if (status const ok = box_detail::check_finite(keys); !ok) return ok;
    for (std::int64_t i = 0; i < filled; ++i) widen(first + i, keys.data() + i * channels);
    return {};
  }

  // The newest slots are gone; the box that was cut stays as wide as it was.
  status shorten(std::int64_t to) {
    if (to < 0 || to > slots) return {errc::out_of_range, to};
    slots = to;
    return {};
  }

  // One page and one query [channel], which are there.
  float bound(std::int64_t page, float const* query) const {
    std::int64_t const first = page * boxes_of_page, last = std::min(first + boxes_of_page, boxes());
    double most = 0;
    for (std::int64_t box = first; box < last; ++box) {
      float const *const lows = low.data() + box * channels, *const highs = high.data() + box * channels;
      double sum = 0;
      for (std::int64_t c = 0; c < channels; ++c) {
        double const x = static_cast<double>(query[c]);
        sum += std::max(x * static_cast<double>(lows[c]), x * static_cast<double>(highs[c]));
      }
      most = box == first ? sum : std::max(most, sum);
    }
    return static_cast<float>(most);
  }

 private:
  // The first slot of a box begins it.
  void widen(std::int64_t slot, float const* key) {
    std::int64_t const at = slot / slots_of_box() * channels;
    bool const begins = slot % slots_of_box() == 0;
    for (std::int64_t c = 0; c < channels; ++c) {
      float &least = low[static_cast<std::size_t>(at + c)], &most = high[static_cast<std::size_t>(at + c)];
      least = begins ? key[c] : std::min(least, key[c]);
      most = begins ? key[c] : std::max(most, key[c]);
    }
  }
};

namespace box_detail {

// f(page, bound) for every page, the largest bound over the queries [query][channel].
template <class F>
status for_each_bound(page_boxes const& boxes, std::span<float const> queries, F f) {
  if (status const ok = boxes.check(); !ok) return ok;
  if (queries.empty() || static_cast<std::int64_t>(queries.size()) % boxes.channels != 0)
    return {errc::shape_mismatch, static_cast<std::int64_t>(queries.size())};
  if (status const ok = check_finite(queries); !ok) return ok;
  for (std::int64_t page = 0; page < boxes.pages(); ++page) {
    float most = boxes.bound(page, queries.data());
    for (std::size_t q = static_cast<std::size_t>(boxes.channels); q < queries.size(); q += static_cast<std::size_t>(boxes.channels))
      most = std::max(most, boxes.bound(page, queries.data() + q));
    f(page, most);
  }
  return {};
}

}  // namespace box_detail

// The bound of every page for queries [query][channel], those of a KV head's group together: the largest.
inline status page_bounds(page_boxes const& boxes, std::span<float const> queries, std::span<float> out) {
  if (static_cast<std::int64_t>(out.size()) != boxes.pages()) return {errc::shape_mismatch, static_cast<std::int64_t>(out.size())};
  return box_detail::for_each_bound(boxes, queries, [&](std::int64_t page, float bound) { out[static_cast<std::size_t>(page)] = bound; });
}

// The same for every slot, which has its page's bound: what given_scores takes, and best_units<slots_of_page> selects by.
inline status slot_bounds(page_boxes const& boxes, std::span<float const> queries, std::span<float> out) {
  if (static_cast<std::int64_t>(out.size()) != boxes.slots) return {errc::shape_mismatch, static_cast<std::int64_t>(out.size())};
  return box_detail::for_each_bound(boxes, queries, [&](std::int64_t page, float bound) {
    std::int64_t const first = page * boxes.slots_of_page, last = std::min(first + boxes.slots_of_page, boxes.slots);
    std::fill(out.begin() + first, out.begin() + last, bound);
  });
}

}  // namespace pith
