// SPDX-License-Identifier: Apache-2.0
// A calibrated order of the channels: channels of like size share a block, so that an outlier spoils few others.
//
//   y[i] = x[order[i]]
//
// A permutation is orthogonal: the query is reordered the same way, outputs are put back. After RoPE pairs need no care: keys and queries are
// both reordered behind it.
//
// state   permutation<Channels>: 16-bit indices, one per channel
// cost    one gather of a row per query or output; nothing per cached token
// from    Trukhanov and Soloveychik, Accurate Block Quantization in LLMs with Outliers, 2024 (K-sort)
#pragma once

#include <cstdint>
#include <span>

#include "pith/core/fingerprint.hpp"
#include "pith/core/status.hpp"

namespace pith {

template <int Channels>
class permutation {
 public:
  static_assert(Channels > 0 && Channels <= 65536, "[pith] permutation<N>: N is 1 to 65536 channels.");

  static constexpr permutation identity() noexcept {
    permutation p;
    for (int i = 0; i < Channels; ++i) p.order[i] = static_cast<std::uint16_t>(i);
    return p;
  }
  // order[i] is the channel that comes to place i.
  // errors  shape_mismatch   not Channels indices
  //         bad_calibration  an index twice or out of range; `at` is its place
  static constexpr result<permutation> from(std::span<std::uint16_t const> order) noexcept {
    if (order.size() != static_cast<std::size_t>(Channels)) return status{errc::shape_mismatch, static_cast<std::int64_t>(order.size())};
    permutation p;
    for (int i = 0; i < Channels; ++i) p.order[i] = order[static_cast<std::size_t>(i)];
    if (status const ok = p.check(); !ok) return ok;
    return p;
  }
  // Largest channel first, ties in their old order. `sizes` [channel]: the channel's norm over calibration rows, say.
  // errors  shape_mismatch; bad_calibration: a size that is not a number
  static constexpr result<permutation> descending(std::span<float const> sizes) noexcept {
    if (sizes.size() != static_cast<std::size_t>(Channels)) return status{errc::shape_mismatch, static_cast<std::int64_t>(sizes.size())};
    for (std::size_t i = 0; i < sizes.size(); ++i)
      if (is_nan(sizes[i])) return status{errc::bad_calibration, static_cast<std::int64_t>(i)};
    permutation p = identity();
    for (int i = 1; i < Channels; ++i)
      for (int j = i; j > 0 && sizes[p.order[j - 1]] < sizes[p.order[j]]; --j) {
        std::uint16_t const moved = p.order[j];
        p.order[j] = p.order[j - 1];
        p.order[j - 1] = moved;
      }
    return p;
  }

  PITH_HD constexpr status check() const noexcept {
    bool seen[Channels] = {};
    for (int i = 0; i < Channels; ++i) {
      if (order[i] >= Channels || seen[order[i]]) return {errc::bad_calibration, i};
      seen[order[i]] = true;
    }
    return {};
  }
  constexpr void digest(fingerprint& into) const noexcept {
    for (std::uint16_t const index : order) {
      into.add_byte(static_cast<std::uint8_t>(index & 0xff));
      into.add_byte(static_cast<std::uint8_t>(index >> 8));
    }
  }

  std::uint16_t order[Channels];

 private:
  constexpr permutation() noexcept = default;
};

struct permute {
  template <int Channels>
  using state = permutation<Channels>;

  template <int Channels>
  PITH_HD static constexpr void apply(float* row, permutation<Channels> const& p) noexcept {
    float from[Channels];
    for (int i = 0; i < Channels; ++i) from[i] = row[i];
    for (int i = 0; i < Channels; ++i) row[i] = from[p.order[i]];
  }
  template <int Channels>
  PITH_HD static constexpr void undo(float* row, permutation<Channels> const& p) noexcept {
    float from[Channels];
    for (int i = 0; i < Channels; ++i) from[i] = row[i];
    for (int i = 0; i < Channels; ++i) row[p.order[i]] = from[i];
  }
  template <int Channels>
  PITH_HD static constexpr void bound(float* bound, float const*, permutation<Channels> const& p) noexcept {
    undo<Channels>(bound, p);
  }
};

}  // namespace pith
