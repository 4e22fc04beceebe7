// SPDX-License-Identifier: Apache-2.0
// A linear map of the channels before a codec. The map is applied to a query or to an output once, never to a cached token while it is
// read: <T x, T^-t q> = <x, q>.
//
//   pipe<hadamard<64>, int4<per_token<64>>>                  rows are rotated, then quantized
//   pipe<permute, block_float<4, per_token<32>>>             channels are reordered by calibration, then quantized
//
// A transform has, for rows of Channels numbers in place:
//   apply<Channels>(row)          y = T x                    before encoding
//   undo<Channels>(row)           x = T^-1 y                 after decoding, and of sums of rows
//   for_query<Channels>(row)      T^-t q                     only if T is not orthogonal; else apply is used
//   bound<Channels>(bound, row)   |T^-1| times the inner codec's error bound, only if T moves each channel alone; else T is orthogonal
//   rounding<Channels>            of T^-1 T x, relative to |x|; 2^-20 if T does not say
//   state<Channels>               calibrated numbers, if it has any: then each function takes them as its last argument
#pragma once

#include "pith/codec/variable_rate.hpp"
#include "pith/core/rounding.hpp"

namespace pith {

// The states of a transform and of what it stands before, where both have one.
template <class Outer, class Inner>
struct chained_state {
  Outer outer;
  Inner inner;
  PITH_HD constexpr status check() const noexcept {
    status const ok = outer.check();
    return ok ? inner.check() : ok;
  }
  constexpr void digest(fingerprint& into) const noexcept {
    outer.digest(into);
    inner.digest(into);
  }
};

template <class Transform, int Channels>
struct transform_state {
  using type = no_state;
};
template <class Transform, int Channels>
  requires requires { typename Transform::template state<Channels>; }
struct transform_state<Transform, Channels> {
  using type = typename Transform::template state<Channels>;
};

template <class Transform, tile Inner>
struct transformed_tile {
  using transform = Transform;
  using inner = Inner;
  using storage = typename Inner::storage;  // the leaf that the kernels read
  static constexpr int tokens = Inner::tokens;
  static constexpr int channels = Inner::channels;
  static constexpr std::int64_t bytes = Inner::bytes;
  static constexpr nan_policy nan = Inner::nan;

  using outer_state = typename transform_state<Transform, channels>::type;
  using inner_state = state_of<Inner>;
  static constexpr bool has_outer = !std::is_same_v<outer_state, no_state>;
  using state = std::conditional_t<!has_outer, inner_state, std::conditional_t<!is_calibrated<Inner>, outer_state, chained_state<outer_state, inner_state>>>;
  static constexpr bool calibrated = !std::is_same_v<state, no_state>;

  PITH_HD static constexpr auto const& outer_of(state const& s) noexcept {
    if constexpr (has_outer && is_calibrated<Inner>)
      return s.outer;
    else
      return s;
  }
  PITH_HD static constexpr decltype(auto) inner_of([[maybe_unused]] state const& s) noexcept {
    if constexpr (has_outer && is_calibrated<Inner>)
      return (s.inner);
    else if constexpr (has_outer)
      return no_state{};
    else
      return (s);
  }

  PITH_HD static void transform_row(float* row, [[maybe_unused]] state const& s) noexcept {
    if constexpr (has_outer)
      Transform::template apply<channels>(row, outer_of(s));
    else
      Transform::template apply<channels>(row);
  }
  PITH_HD static void restore_row(float* row, [[maybe_unused]] state const& s) noexcept {
    if constexpr (has_outer)
      Transform::template undo<channels>(row, outer_of(s));
    else
      Transform::template undo<channels>(row);
  }
  PITH_HD static void encode(float const* rows, std::byte* out, state const& s) noexcept {
    float buffer[tokens * channels];
    transform_rows(rows, buffer, s);
    settle(buffer);
    encode_tile<Inner>(buffer, out, inner_of(s));
  }
  PITH_HD static void decode(std::byte const* in, float* rows, state const& s) noexcept {
    decode_tile<Inner>(in, rows, inner_of(s));
    for (int token = 0; token < tokens; ++token) restore_row(rows + token * channels, s);
  }
  PITH_HD static void error_bound(float const* rows, float* bound, state const& s) noexcept {
    float buffer[tokens * channels];
    transform_rows(rows, buffer, s);
    tile_error_bound<Inner>(buffer, bound, inner_of(s));
    for (int token = 0; token < tokens; ++token) bound_of_row(rows + token * channels, bound + token * channels, s);
  }

  // Without calibrated numbers.
  PITH_HD static void encode(float const* rows, std::byte* out) noexcept requires(!calibrated) { encode(rows, out, {}); }
  PITH_HD static void decode(std::byte const* in, float* rows) noexcept requires(!calibrated) { decode(in, rows, {}); }
  PITH_HD static void error_bound(float const* rows, float* bound) noexcept requires(!calibrated) { error_bound(rows, bound, {}); }
  PITH_HD static void transform_query(float* query) noexcept requires(!calibrated) { transform_query(query, {}); }
  PITH_HD static void restore_output(float* output) noexcept requires(!calibrated) { restore_output(output, {}); }

  // Under saturation: a number that is not finite would spread over its whole row and counts as zero; large ones are cut to 2^115, so that
  // no sum of a transform overflows.
  PITH_HD static constexpr float admitted(float x) noexcept {
    if (nan == nan_policy::propagate) return x;
    return is_finite(x) ? clamp(x, -0x1p115f, 0x1p115f) : 0.0f;
  }

  PITH_HD static void transform_query(float* query, [[maybe_unused]] state const& s) noexcept {
    if constexpr (requires { Transform::template for_query<channels>(query, outer_of(s)); })
      Transform::template for_query<channels>(query, outer_of(s));
    else
      transform_row(query, s);
    if constexpr (requires { Inner::transform_query(query, inner_of(s)); }) Inner::transform_query(query, inner_of(s));
  }
  PITH_HD static void restore_output(float* output, [[maybe_unused]] state const& s) noexcept {
    if constexpr (requires { Inner::restore_output(output, inner_of(s)); }) Inner::restore_output(output, inner_of(s));
    restore_row(output, s);
  }

 private:
  PITH_HD static void transform_rows(float const* rows, float* to, state const& s) noexcept {
    for (int i = 0; i < tokens * channels; ++i) to[i] = admitted(rows[i]);
    for (int token = 0; token < tokens; ++token) transform_row(to + token * channels, s);
  }
  // An orthogonal map keeps the length of the error vector, so the row's length bounds each of its elements.
  PITH_HD static void bound_of_row(float const* row, float* bound, [[maybe_unused]] state const& s) noexcept {
    if constexpr (requires { Transform::template bound<channels>(bound, row, outer_of(s)); }) {
      Transform::template bound<channels>(bound, row, outer_of(s));
    } else {
      double squares = 0, size = 0;
      for (int c = 0; c < channels; ++c) {
        double const b = bound[c], x = admitted(row[c]);
        squares += b * b;
        size += x * x;
      }
      double rounding = 0x1p-20;
      if constexpr (requires { Transform::template rounding<channels>; }) rounding = Transform::template rounding<channels>;
      float const shared = static_cast<float>(__builtin_sqrt(squares) + rounding * __builtin_sqrt(size));
      for (int c = 0; c < channels; ++c) bound[c] = is_finite(shared) ? shared : bits_float(0x7f800000u);
    }
    for (int c = 0; c < channels; ++c) {
      float const cut = row[c] - admitted(row[c]);
      bound[c] += cut < 0 ? -cut : cut;
    }
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

// A transformed number is rounded anew, which leaves a lossless codec nothing to be exact about.
template <class Codec, int Channels, int PageTokens, use Use>
consteval bool check_inner() {
  constexpr bool fixed = !has_variable_rate<Codec, Channels, PageTokens, Use>;
  static_assert(fixed, "[pith] pipe<T, C>: C has a variable rate. Fix: C alone, or a C of fixed size, int8<per_token<64>>.");
  return fixed;
}

template <class Transform, class Codec>
struct pipe {
  template <int Channels, int PageTokens, use Use>
  using bind = typename pipe_binding<check_transform<Transform, Channels>() && check_inner<Codec, Channels, PageTokens, Use>(), Transform,
                                     Codec, Channels, PageTokens, Use>::type;
};

// True if a tile's rows are stored in another basis.
template <class Tile>
inline constexpr bool is_transformed = requires(float* row, state_of<Tile> const& s) {
  Tile::transform_query(row, s);
};

}  // namespace pith
