// SPDX-License-Identifier: Apache-2.0
// Stage "smooth": a slot's neighbours count too, so that what is kept comes in runs.
//
//   no_smoothing
//   average_pool<K>   out[i] = sum of in[i - K/2 ... i + K/2] / K      at borders what lies outside counts as 0 (border::zeros, published),
//                                                                      or the sum is divided by the slots inside (border::inside)
//   max_pool<K>       out[i] = max of in[i - K/2 ... i + K/2]          at borders what lies outside does not count
//
// K is odd, the step is 1. Sums are f64, oldest slot first, so that the result does not depend on tiles or threads. Means over whole chunks
// and windows are scores of units (select_units.hpp).
//
// cost    O(n K); in and out do not overlap; no allocation
// from    Li et al., SnapKV, 2024, average of 5 or 7; Ada-KV, max of 7. `border::zeros` biases both ends down, as the sources do.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>

#include "pith/core/scalar.hpp"
#include "pith/policy/stage.hpp"

namespace pith {

enum class border : std::uint8_t { zeros, inside };

struct no_smoothing {
  static constexpr stage kind = stage::smooth;
  void apply(std::span<float const> in, std::span<float> out) const { std::copy(in.begin(), in.end(), out.begin()); }
};

namespace smooth_detail {

// f(out, first, last) for every slot: the neighbours are in[first, last).
template <class F>
void for_each_window(std::span<float const> in, std::span<float> out, std::int64_t width, F f) {
  auto const slots = static_cast<std::int64_t>(in.size());
  for (std::int64_t i = 0; i < slots; ++i)
    f(out[static_cast<std::size_t>(i)], in.data() + std::max<std::int64_t>(i - width / 2, 0),
      in.data() + std::min(i + width / 2 + 1, slots));
}

}  // namespace smooth_detail

template <std::int64_t Width = 5>
struct average_pool {
  static constexpr stage kind = stage::smooth;
  static constexpr bool valid = Width > 0 && Width % 2 == 1;
  border at_border = border::zeros;
  void apply(std::span<float const> in, std::span<float> out) const {
    smooth_detail::for_each_window(in, out, Width, [&](float& to, float const* first, float const* last) {
      double sum = 0;
      for (float const* x = first; x != last; ++x) sum += static_cast<double>(*x);
      to = static_cast<float>(sum / static_cast<double>(at_border == border::zeros ? Width : last - first));
    });
  }
};

template <std::int64_t Width = 7>
struct max_pool {
  static constexpr stage kind = stage::smooth;
  static constexpr bool valid = Width > 0 && Width % 2 == 1;
  void apply(std::span<float const> in, std::span<float> out) const {
    smooth_detail::for_each_window(in, out, Width, [&](float& to, float const* first, float const* last) {
      to = *first;
      for (float const* x = first; x != last; ++x) to = *x > to || is_nan(*x) ? *x : to;  // a NaN stays one, for the selection to refuse
    });
  }
};

}  // namespace pith
