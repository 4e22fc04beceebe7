// SPDX-License-Identifier: Apache-2.0
// Which resident part of a model goes first when another needs its room (stream_reader.hpp): an order is a number for each part.
//
//   last_use                 the tick of its last use: least recently used first. Parts that are read in turns, more than fit: none is hit
//   uses_by_distance{l, n}   (1 + uses) / layers until its layer is next: what is rarely used or not needed soon goes first
//
// from     EdgeMoE (Yi et al., 2023): activation statistic and distance to the next use
// differs  the paper names both and no formula that we could check; the quotient is ours
#pragma once

#include <concepts>
#include <cstdint>

namespace pith::container {

// What a reader knows of a part.
struct part_use {
  std::int64_t part = 0, layer = 0, bytes = 0;
  std::int64_t uses = 0;      // how often it was asked for, resident or not, since the reader was made
  std::int64_t last_use = 0;  // a tick: every use and every load has another
};

// Rule R1  the smallest number goes first; of equal ones the smallest part. Numbers are not NaN.
// Rule R2  it is a function of the part's use and the order's own members: a reader calls it under its lock, from any thread.
template <class O>
concept replacement_order = std::copyable<O> && requires(O const& o, part_use const& u) {
  { o(u) } -> std::convertible_to<double>;
};

struct last_use {
  double operator()(part_use const& u) const noexcept { return static_cast<double>(u.last_use); }
};
static_assert(replacement_order<last_use>);

// `layer` is the one that runs now, of `layers`; tell the reader of each change with set_order.
struct uses_by_distance {
  std::int64_t layer = 0, layers = 1;

  double operator()(part_use const& u) const noexcept {
    std::int64_t const ahead = u.layer - layer;
    return static_cast<double>(1 + u.uses) / static_cast<double>(ahead > 0 ? ahead : ahead + layers);
  }
};
static_assert(replacement_order<uses_by_distance>);

}  // namespace pith::container
