// SPDX-License-Identifier: Apache-2.0
// Shares a total out by weight, in whole tokens, within bounds: the one rounding rule of all budgets.
//
//   x_i = clamp(level w_i, least_i, most_i), the level such that sum x_i = total
//   out_i = floor(x_i), and the largest fractions get one more
//
// Rule A1  sum out = total if sum least <= total <= sum most; out = most if the total is larger.
// Rule A2  least_i <= out_i <= most_i.
// Rule A3  |out_i - level w_i| < 1 where no bound holds.
// Rule A4  Equal fractions: the lower index gets more. Otherwise an order of the rows changes nothing but the order of the shares.
// Rule A5  What rows with a weight have no room for goes to the others in equal shares (all weights zero: equal shares).
//
// errors  shape_mismatch (extents), out_of_range (a weight that is no finite number >= 0, bounds that are not 0 <= least <= most: `at` is
//         the row; a total that is negative or above 2^53: -1), capacity_exceeded (sum least > total: `at` is that sum; too little
//         scratch: `at` is the bytes it needs). Nothing is written then
// cost    64 passes to find the level and a sort: O(n log n) for n rows; no allocation
// from    the method of largest remainders (Hamilton); differs: bounds. Published budgets round each share alone and miss their total.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <numeric>

#include "pith/core/status.hpp"
#include "pith/policy/scratch.hpp"

namespace pith {

namespace apportion_detail {

struct share {
  double fraction;
  std::int64_t index;
};

inline constexpr std::int64_t largest_total = std::int64_t{1} << 53;

// Sums that stop at the largest number, so that bounds may be "as much as there is".
inline std::int64_t sum_of(std::span<std::int64_t const> numbers) {
  std::int64_t sum = 0;
  for (std::int64_t const n : numbers)
    sum = n > std::numeric_limits<std::int64_t>::max() - sum ? std::numeric_limits<std::int64_t>::max() : sum + n;
  return sum;
}

inline double clamped(double x, std::int64_t least, std::int64_t most) {
  return std::min(std::max(x, static_cast<double>(least)), static_cast<double>(most));
}

// The highest level at which the shares do not exceed the total. Positive doubles are ordered as their bits are, and a sum in one order
// never falls when the level rises.
template <class Weight>
double level_of(Weight weight, std::span<std::int64_t const> least, std::span<std::int64_t const> most, std::int64_t total) {
  std::uint64_t low = 0, high = std::bit_cast<std::uint64_t>(std::numeric_limits<double>::infinity());
  while (high - low > 1) {
    std::uint64_t const middle = low + (high - low) / 2;
    double const level = std::bit_cast<double>(middle);
    double sum = 0;
    for (std::size_t i = 0; i < least.size(); ++i) sum += clamped(level * weight(i), least[i], std::min(most[i], total));
    (sum <= static_cast<double>(total) ? low : high) = middle;
  }
  return std::bit_cast<double>(low);
}

}  // namespace apportion_detail

constexpr std::int64_t apportion_scratch_bytes(std::int64_t rows) { return lent_memory::bytes<apportion_detail::share>(rows); }

inline status apportion(std::span<double const> weights, std::span<std::int64_t const> least, std::span<std::int64_t const> most,
                        std::int64_t total, std::span<std::int64_t> out, std::span<std::byte> scratch) {
  using namespace apportion_detail;
  std::size_t const rows = out.size();
  for (std::size_t const extent : {weights.size(), least.size(), most.size()})
    if (extent != rows) return {errc::shape_mismatch, static_cast<std::int64_t>(extent)};
  for (std::size_t i = 0; i < rows; ++i) {
    bool const good = weights[i] >= 0 && weights[i] <= std::numeric_limits<double>::max() && least[i] >= 0 && least[i] <= most[i];
    if (!good) return {errc::out_of_range, static_cast<std::int64_t>(i)};
  }
  if (total < 0) return {errc::out_of_range, -1};
  if (sum_of(least) > total) return {errc::capacity_exceeded, sum_of(least)};
  if (sum_of(most) <= total) {
    std::copy(most.begin(), most.end(), out.begin());
    return {};
  }
  if (total > largest_total) return {errc::out_of_range, -1};
  std::span<share> shares;
  if (!lent_memory(scratch).take(static_cast<std::int64_t>(rows), shares))
    return {errc::capacity_exceeded, apportion_scratch_bytes(static_cast<std::int64_t>(rows))};

  std::copy(least.begin(), least.end(), out.begin());
  auto const fill = [&](auto weight) {
    double const level = level_of(weight, out, most, total);
    for (std::size_t i = 0; i < rows; ++i) {
      double const x = clamped(level * weight(i), out[i], std::min(most[i], total)), whole = std::floor(x);
      shares[i] = {x - whole, static_cast<std::int64_t>(i)};
      out[i] = static_cast<std::int64_t>(whole);
    }
    return level < std::numeric_limits<double>::max();
  };
  if (!fill([&](std::size_t i) { return weights[i]; })) static_cast<void>(fill([](std::size_t) { return 1.0; }));

  // One token each, largest fractions first. Rounding of the sum apart, one round suffices, and nothing is ever taken back.
  std::int64_t rest = total - sum_of(out);
  std::sort(shares.begin(), shares.end(),
            [](share a, share b) { return a.fraction != b.fraction ? a.fraction > b.fraction : a.index < b.index; });
  while (rest > 0)
    for (share const& s : shares)
      if (auto const i = static_cast<std::size_t>(s.index); rest > 0 && out[i] < most[i]) ++out[i], --rest;
  while (rest < 0)
    for (std::size_t k = rows; k-- > 0 && rest < 0;)
      if (auto const i = static_cast<std::size_t>(shares[k].index); out[i] > least[i]) --out[i], ++rest;
  return {};
}

}  // namespace pith
