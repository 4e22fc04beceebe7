// SPDX-License-Identifier: Apache-2.0
// Which codec each expert of a model is stored in: the least important ones get the fewest bits.
//
//   choices     0, 1, 2, ... : ever fewer bytes, ever more loss. bytes[expert * choices + choice], loss likewise
//   rounds      everyone starts with choice 0. Round c moves experts from c to c + 1, least important first (of equal ones the lower
//               index), until the limit is met; then the next round begins
//
//   choose_codecs(importance, bytes, choices, most_bytes, out)               the first moves that make sum bytes <= most_bytes
//   choose_codecs_within(importance, loss, choices, most_loss, out)          as many as keep sum importance x (loss - loss of choice 0)
//                                                                            <= most_loss; the first that does not is the end
//
// Rule X1  the result is a function of the arguments alone. Rule X2  a less important expert never has a better choice than another.
//
// errors  shape_mismatch     an extent that does not fit; `at` is the extent
//         out_of_range       an importance or loss that is no finite number >= 0, bytes that are negative or grow with the choice, a loss
//                            that falls; `at` is the place. A limit that is negative or NaN: -1
//         capacity_exceeded  most_bytes is less than the last choice for all takes; `at` is that. Nothing is written then
// cost    a sort, and experts x choices steps; allocates the order
// from    EdgeMoE (Yi et al., 2023): bit widths by expert, lowered for the least important first, within a loss of accuracy
// differs importance and loss are the caller's numbers, added up; the paper measures the accuracy of the model
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <numeric>
#include <span>
#include <vector>

#include "pith/core/status.hpp"

namespace pith::container {

namespace detail {

inline bool finite_positive(double x) noexcept { return x >= 0 && x <= std::numeric_limits<double>::max(); }

// What both check, and the order of the moves.
template <class T>
status order_experts(std::span<double const> importance, std::span<T const> table, std::int64_t choices, std::int64_t out,
                     std::vector<std::int64_t>& order) {
  std::int64_t const experts = std::ssize(importance);
  if (out != experts) return {errc::shape_mismatch, out};
  if (choices <= 0 || std::ssize(table) / choices != experts || std::ssize(table) % choices != 0)
    return {errc::shape_mismatch, choices <= 0 ? choices : std::ssize(table)};
  for (std::int64_t e = 0; e < experts; ++e)
    if (!finite_positive(importance[static_cast<std::size_t>(e)])) return {errc::out_of_range, e};
  order.resize(static_cast<std::size_t>(experts));
  std::iota(order.begin(), order.end(), std::int64_t{0});
  std::ranges::stable_sort(order, {}, [&](std::int64_t e) { return importance[static_cast<std::size_t>(e)]; });
  return {};
}

}  // namespace detail

inline status choose_codecs(std::span<double const> importance, std::span<std::int64_t const> bytes, std::int64_t choices,
                            std::int64_t most_bytes, std::span<std::int64_t> out) {
  std::vector<std::int64_t> order;
  if (status const ok = detail::order_experts(importance, bytes, choices, std::ssize(out), order); !ok) return ok;
  auto of = [&](std::int64_t e, std::int64_t choice) { return bytes[static_cast<std::size_t>(e * choices + choice)]; };
  std::int64_t total = 0, least = 0;
  for (std::int64_t e = 0; e < std::ssize(importance); ++e) {
    for (std::int64_t c = 0; c < choices; ++c)
      if (of(e, c) < 0 || (c > 0 && of(e, c) > of(e, c - 1))) return {errc::out_of_range, e * choices + c};
    if (__builtin_add_overflow(total, of(e, 0), &total)) return {errc::out_of_range, e * choices};
    least += of(e, choices - 1);
  }
  if (most_bytes < 0) return {errc::out_of_range, -1};
  if (least > most_bytes) return {errc::capacity_exceeded, least};
  std::ranges::fill(out, 0);
  for (std::int64_t c = 0; c + 1 < choices; ++c)
    for (std::int64_t const e : order) {
      if (total <= most_bytes) return {};
      total -= of(e, c) - of(e, c + 1);
      out[static_cast<std::size_t>(e)] = c + 1;
    }
  return {};
}

inline status choose_codecs_within(std::span<double const> importance, std::span<double const> loss, std::int64_t choices, double most_loss,
                                   std::span<std::int64_t> out) {
  std::vector<std::int64_t> order;
  if (status const ok = detail::order_experts(importance, loss, choices, std::ssize(out), order); !ok) return ok;
  auto of = [&](std::int64_t e, std::int64_t choice) { return loss[static_cast<std::size_t>(e * choices + choice)]; };
  for (std::int64_t e = 0; e < std::ssize(importance); ++e)
    for (std::int64_t c = 0; c < choices; ++c)
      if (!detail::finite_positive(of(e, c)) || (c > 0 && of(e, c) < of(e, c - 1))) return {errc::out_of_range, e * choices + c};
  if (!(most_loss >= 0)) return {errc::out_of_range, -1};
  std::ranges::fill(out, 0);
  double total = 0;
  for (std::int64_t c = 0; c + 1 < choices; ++c)
    for (std::int64_t const e : order) {
      total += importance[static_cast<std::size_t>(e)] * (of(e, c + 1) - of(e, c));
      if (!(total <= most_loss)) return {};
      out[static_cast<std::size_t>(e)] = c + 1;
    }
  return {};
}

}  // namespace pith::container
