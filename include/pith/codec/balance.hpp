// SPDX-License-Identifier: Apache-2.0
// A calibrated scale for each channel: large channels are divided, and the query is multiplied by the same number.
//
//   y[c] = x[c] / s[c]    (as x[c] * (1/s[c]));    q'[c] = q[c] s[c];    <y, q'> = <x, q>
//
// With groups along the channels (per_token) an outlier channel would widen every group that it is in; balanced it does not, and the
// scale is paid once per query. Scales lie between 2^-12 and 2^12.
//
// state   channel_scales<Channels>: s and 1/s, f32
// error   s[c] times the inner codec's, and two roundings: 2^-22 |x|
// from    Xiao et al., SmoothQuant, 2023 (the balance of two factors of a product), on keys and values
#pragma once

#include <cstdint>
#include <span>

#include "pith/core/fingerprint.hpp"
#include "pith/core/rounding.hpp"
#include "pith/core/status.hpp"

namespace pith {

template <int Channels>
class channel_scales {
 public:
  static constexpr float smallest = 0x1p-12f, largest = 0x1p12f;

  // errors  shape_mismatch   not Channels scales
  //         bad_calibration  a scale that is not between 2^-12 and 2^12; `at` is its channel
  static constexpr result<channel_scales> from(std::span<float const> scales) noexcept {
    if (scales.size() != static_cast<std::size_t>(Channels)) return status{errc::shape_mismatch, static_cast<std::int64_t>(scales.size())};
    channel_scales s;
    for (int c = 0; c < Channels; ++c) {
      float const scale = scales[static_cast<std::size_t>(c)];
      if (is_nan(scale) || !(scale >= smallest && scale <= largest)) return status{errc::bad_calibration, c};
      s.scale[c] = scale;
      s.inverse[c] = div_rn(1.0f, scale);
    }
    return s;
  }

  PITH_HD constexpr status check() const noexcept {
    for (int c = 0; c < Channels; ++c)
      if (is_nan(scale[c]) || !(scale[c] >= smallest && scale[c] <= largest) || inverse[c] != div_rn(1.0f, scale[c])) return {errc::bad_calibration, c};
    return {};
  }
  constexpr void digest(fingerprint& into) const noexcept {
    for (float const s : scale) into.add(s);
  }

  float scale[Channels];
  float inverse[Channels];

 private:
  constexpr channel_scales() noexcept = default;
};

struct balance {
  template <int Channels>
  using state = channel_scales<Channels>;

  template <int Channels>
  PITH_HD static constexpr void apply(float* row, channel_scales<Channels> const& s) noexcept {
    for (int c = 0; c < Channels; ++c) row[c] *= s.inverse[c];
  }
  // Numbers beyond the range of f32 after the product are cut: what is decoded stays finite.
  template <int Channels>
  PITH_HD static constexpr void undo(float* row, channel_scales<Channels> const& s) noexcept {
    for (int c = 0; c < Channels; ++c) {
      float const limit = s.scale[c] > 1 ? 0x1p127f * s.inverse[c] : 0x1.fp127f;
      row[c] = (is_finite(row[c]) ? clamp(row[c], -limit, limit) : row[c]) * s.scale[c];
    }
  }
  template <int Channels>
  PITH_HD static constexpr void for_query(float* query, channel_scales<Channels> const& s) noexcept {
    for (int c = 0; c < Channels; ++c) query[c] *= s.scale[c];
  }
  template <int Channels>
  PITH_HD static constexpr void bound(float* bound, float const* row, channel_scales<Channels> const& s) noexcept {
    for (int c = 0; c < Channels; ++c) {
      float const size = !is_finite(row[c]) ? 0.0f : row[c] < 0 ? -row[c] : row[c];
      bound[c] = bound[c] * s.scale[c] + 0x1p-22f * size + 0x1p-100f;
    }
  }
};

}  // namespace pith
