// SPDX-License-Identifier: Apache-2.0
// Rows of different lengths in one array: what a cache holds for each (layer, KV head) once budgets differ by head.
//
//   row r is data[offset[r]] ... data[offset[r] + length[r] - 1];   row = layer * kv_heads + head
//
// Offsets are free, so that CSR arrays (offset = indptr) and rows with room to grow (offset = row * capacity) are both views. Views own
// nothing. A view of bytes, floats or slots of the same cache shares offset and length with the others.
#pragma once

#include <cstdint>
#include <span>

#include "pith/core/status.hpp"

namespace pith {

template <class T>
struct ragged_view {
  std::span<T> data{};
  std::span<std::int64_t const> offset{}, length{};  // [row]

  std::int64_t rows() const { return static_cast<std::int64_t>(length.size()); }
  std::int64_t slots(std::int64_t row) const { return length[static_cast<std::size_t>(row)]; }
  // `lists` > 1: so many numbers for each slot, list by list: [row][list][slot].
  std::span<T> row(std::int64_t r, std::int64_t lists = 1, std::int64_t list = 0) const {
    auto const at = static_cast<std::size_t>(r);
    return data.subspan(static_cast<std::size_t>(lists * offset[at] + list * length[at]), static_cast<std::size_t>(length[at]));
  }
  // `width` numbers a slot: [row][slot][width].
  std::span<T> wide_row(std::int64_t r, std::int64_t width) const {
    auto const at = static_cast<std::size_t>(r);
    return data.subspan(static_cast<std::size_t>(width * offset[at]), static_cast<std::size_t>(width * length[at]));
  }
  ragged_view part(std::int64_t first, std::int64_t count) const {
    return {data, offset.subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(count)),
            length.subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(count))};
  }

  // errors  shape_mismatch (as many offsets as lengths), out_of_range (a row that leaves the array; `at` is the row)
  status check(std::int64_t width = 1) const {
    if (offset.size() != length.size()) return {errc::shape_mismatch, static_cast<std::int64_t>(offset.size())};
    auto const held = static_cast<std::int64_t>(data.size()) / width;
    for (std::int64_t r = 0; r < rows(); ++r) {
      std::int64_t const from = offset[static_cast<std::size_t>(r)], count = slots(r);
      if (from < 0 || count < 0 || count > held || from > held - count) return {errc::out_of_range, r};
    }
    return {};
  }
};

}  // namespace pith
