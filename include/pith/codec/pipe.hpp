// SPDX-License-Identifier: Apache-2.0
// A linear map of the channels before a codec. The map is applied to a query or to an output once, never to a cached token while it is
// read: <T x, T' q> = <x, q>.
//
//   pipe<hadamard<64>, int4<per_token<64>>>     rows are rotated, then quantized
//
// A transform has apply<Channels>(row) and undo<Channels>(row); for an orthogonal one apply is also what the query needs.
#pragma once

#include "pith/codec/concept.hpp"
#include "pith/core/rounding.hpp"

namespace pith {

template <class Transform, tile Inner>
struct transformed_tile {
  using storage = typename Inner::storage;  // the leaf that the kernels read
  static constexpr int tokens = Inner::tokens;
  static constexpr int channels = Inner::channels;
  static constexpr std::int64_t bytes = Inner::bytes;
  static constexpr nan_policy nan = Inner::nan;

  PITH_HD static void encode(float const* rows, std::byte* out) noexcept {
    float buffer[tokens * channels];
    for (int i = 0; i < tokens * channels; ++i) buffer[i] = admitted(rows[i]);
    for (int token = 0; token < tokens; ++token) Transform::template apply<channels>(buffer + token * channels);
    settle(buffer);
    Inner::encode(buffer, out);
  }
  PITH_HD static void decode(std::byte const* in, float* rows) noexcept {
    Inner::decode(in, rows);
    for (int token = 0; token < tokens; ++token) Transform::template undo<channels>(rows + token * channels);
  }
  // An orthogonal map keeps the length of the error vector, so the row's length bounds each of its elements.
  PITH_HD static void error_bound(float const* rows, float* bound) noexcept {
    float buffer[tokens * channels];
    for (int i = 0; i < tokens * channels; ++i) buffer[i] = admitted(rows[i]);
    for (int token = 0; token < tokens; ++token) Transform::template apply<channels>(buffer + token * channels);
    Inner::error_bound(buffer, bound);
    for (int token = 0; token < tokens; ++token) {
      double squares = 0, size = 0;
      for (int c = 0; c < channels; ++c) {
        double const b = bound[token * channels + c], x = admitted(rows[token * channels + c]);
        squares += b * b;
        size += x * x;
      }
      float const shared = static_cast<float>(__builtin_sqrt(squares) + 0x1p-20 * __builtin_sqrt(size));
      for (int c = 0; c < channels; ++c) {
        float const x = rows[token * channels + c], cut = x - admitted(x);
        bound[token * channels + c] = is_finite(shared) ? shared + (cut < 0 ? -cut : cut) : bits_float(0x7f800000u);
      }
    }
  }

  // Under saturation: a number that is not finite would spread over its whole row and counts as zero; large ones are cut to 2^115, so that
  // no sum of a transform overflows.
  PITH_HD static constexpr float admitted(float x) noexcept {
    if (nan == nan_policy::propagate) return x;
    return is_finite(x) ? clamp(x, -0x1p115f, 0x1p115f) : 0.0f;
  }

  PITH_HD static void transform_query(float* query) noexcept {
    Transform::template apply<channels>(query);
    if constexpr (requires { Inner::transform_query(query); }) Inner::transform_query(query);
  }
  PITH_HD static void restore_output(float* output) noexcept {
    if constexpr (requires { Inner::restore_output(output); }) Inner::restore_output(output);
    Transform::template undo<channels>(output);
  }
};

// A transform that has rules of its own says them in check<Channels>().
template <class Transform, int Channels>
consteval bool check_transform() {
  if constexpr (requires { Transform::template check<Channels>(); })
    return Transform::template check<Channels>();
  else
    return true;
}
template <bool Right, class Transform, class Codec, int Channels, int PageTokens, use Use>
struct pipe_binding {
  using type = no_tile<Channels>;
};
template <class Transform, class Codec, int Channels, int PageTokens, use Use>
struct pipe_binding<true, Transform, Codec, Channels, PageTokens, Use> {
  using type = transformed_tile<Transform, typename Codec::template bind<Channels, PageTokens, Use>>;
};

template <class Transform, class Codec>
struct pipe {
  template <int Channels, int PageTokens, use Use>
  using bind = typename pipe_binding<check_transform<Transform, Channels>(), Transform, Codec, Channels, PageTokens, Use>::type;
};

// True if a tile's rows are stored in another basis.
template <class Tile>
inline constexpr bool is_transformed = requires(float* row) {
  Tile::transform_query(row);
};

}  // namespace pith
