// SPDX-License-Identifier: Apache-2.0
// A calibrated rotation of the channels by any orthogonal matrix: learned, random, or the principal axes of calibration rows.
//
//   y = R x,  R R' = 1;   the query is rotated too, outputs are rotated back:  x = R' y
//
// Sums run over channels in ascending order in double, where a product of two f32 is exact: the same bytes whether or not a compiler fuses
// multiplication and addition.
//
// error   the rows' rounding makes R R' differ from 1: Channels * 2^-20 |x| at most, beside the inner codec's
// state   rotation<Channels>: Channels^2 f32
// cost    Channels^2 multiplications per query, per output and per row that is encoded; nothing per cached token
// from    Liu et al., SpinQuant, 2024; Ashkboos et al., SliceGPT, 2024 (principal axes)
#pragma once

#include <cstdint>
#include <span>

#include "pith/core/fingerprint.hpp"
#include "pith/core/rounding.hpp"
#include "pith/core/status.hpp"

namespace pith {

template <int Channels>
class rotation {
 public:
  static constexpr double tolerance = 0x1p-20;  // of each element of R R' - 1: matrices rounded to f32 pass, those rounded to 16 bits do not

  // `matrix` [row][column], row i gives y[i].
  // errors  shape_mismatch   not Channels * Channels numbers
  //         bad_calibration  not orthogonal; `at` is the first row that is not a unit vector or not at right angles to one before it
  static result<rotation> from(std::span<float const> matrix) noexcept {
    if (matrix.size() != static_cast<std::size_t>(Channels) * Channels) return status{errc::shape_mismatch, static_cast<std::int64_t>(matrix.size())};
    rotation r;
    for (int i = 0; i < Channels; ++i)
      for (int c = 0; c < Channels; ++c) r.column[c][i] = matrix[static_cast<std::size_t>(i * Channels + c)];
    if (status const ok = r.check(); !ok) return ok;
    return r;
  }

  PITH_HD constexpr status check() const noexcept {
    for (int i = 0; i < Channels; ++i)
      for (int j = 0; j <= i; ++j) {
        double product = i == j ? -1.0 : 0.0;
        for (int c = 0; c < Channels; ++c) {
          if (!is_finite(column[c][i])) return {errc::bad_calibration, i};
          product += static_cast<double>(column[c][i]) * column[c][j];
        }
        if (!(product <= tolerance && product >= -tolerance)) return {errc::bad_calibration, i};
      }
    return {};
  }
  constexpr void digest(fingerprint& into) const noexcept {
    for (auto const& numbers : column)
      for (float const x : numbers) into.add(x);
  }

  float column[Channels][Channels];  // column[c][i] = R[i][c]: neighbours are added to neighbouring outputs

 private:
  constexpr rotation() noexcept = default;
};

struct rotate {
  template <int Channels>
  using state = rotation<Channels>;
  template <int Channels>
  static constexpr double rounding = Channels * rotation<Channels>::tolerance;

  template <int Channels>
  PITH_HD static void apply(float* row, rotation<Channels> const& r) noexcept {
    double sum[Channels] = {};
    for (int c = 0; c < Channels; ++c) {
      for (int i = 0; i < Channels; ++i) sum[i] += static_cast<double>(r.column[c][i]) * row[c];
      settle(sum);  // no compiler may regroup the additions
    }
    for (int i = 0; i < Channels; ++i) row[i] = static_cast<float>(sum[i]);
  }
  template <int Channels>
  PITH_HD static void undo(float* row, rotation<Channels> const& r) noexcept {
    double sum[Channels] = {};
    for (int i = 0; i < Channels; ++i) {
      for (int c = 0; c < Channels; ++c) sum[c] += static_cast<double>(r.column[c][i]) * row[i];
      settle(sum);
    }
    for (int c = 0; c < Channels; ++c) row[c] = static_cast<float>(sum[c]);
  }
};

}  // namespace pith
