// SPDX-License-Identifier: Apache-2.0
// Several codecs whose decoded numbers add up: each stage encodes what the stages before it left.
//
//   r[0] = x,   r[i+1] = r[i] - decode_i(encode_i(r[i])),   x' = sum_i decode_i(encode_i(r[i]))
//
//   sum<outliers<both_ends<1>, per_channel<>>, int2<per_channel<32>>, low_rank<2>>     GEAR's keys
//   pipe<hadamard<64>, sum<A, B>>                                                      a transform goes outside, over all stages
//
// A residual is taken from the decoded numbers of the stages before it, so an early stage's rounding is corrected by the next one: the
// error of a sum is that of its last stage. dot and mix are linear and simply add.
//
// bytes   the stages' tiles one after the other, each stage's part padded to 64 bytes; a tile has the tokens of the longest stage
// error   the last stage's bound for what was left to it, and the rounding of the residuals and of the sum in f32
// nan     saturate: a number that is not finite follows the rules of the first stage; to the later ones it is zero. Numbers beyond 2^125
//         are cut to it
// same    a stage's decode must not depend on flags, because the next stage encodes what it left: one rounding, fused or not, or none
// from    GEAR (Kang et al., 2024) for dense + sparse + low rank
#pragma once

#include "pith/codec/concept.hpp"
#include "pith/core/bits.hpp"
#include "pith/core/rounding.hpp"

namespace pith {

template <class... Tiles>
consteval int most_tokens() {
  int most = 0;
  ((most = Tiles::tokens > most ? Tiles::tokens : most), ...);
  return most;
}

template <tile First, tile... Rest>
struct sum_tile {
  using storage = sum_tile;
  static constexpr int stages = 1 + sizeof...(Rest);
  static constexpr int channels = First::channels;
  static constexpr nan_policy nan = nan_policy::saturate;
  static constexpr int tokens = most_tokens<First, Rest...>();

  // All tiles of one stage.
  template <class Stage>
  static constexpr std::int64_t part_bytes = round_up(tokens / Stage::tokens * Stage::bytes, 64);

  // Where stage I starts.
  PITH_HD static constexpr std::int64_t part_at(int stage) {
    std::int64_t const sizes[] = {part_bytes<First>, part_bytes<Rest>...};
    std::int64_t at = 0;
    for (int i = 0; i < stage; ++i) at += sizes[i];
    return at;
  }
  static constexpr std::int64_t bytes = part_at(stages);

  PITH_HD static void encode(float const* rows, std::byte* out) noexcept {
    float left[numbers];
    for (int i = 0; i < numbers; ++i) left[i] = rows[i];
    encode_stages<First, Rest...>(left, out);
  }

  PITH_HD static void decode(std::byte const* in, float* rows) noexcept {
    for (int i = 0; i < numbers; ++i) rows[i] = 0;
    add_stages<First, Rest...>(in, rows);
  }

  PITH_HD static void error_bound(float const* rows, float* bound) noexcept {
    float left[numbers];
    for (int i = 0; i < numbers; ++i) left[i] = rows[i], bound[i] = 0;
    bound_stages<First, Rest...>(left, bound);
    for (int i = 0; i < numbers; ++i) {
      float const cut = rows[i] - admitted(rows[i]);
      bound[i] += cut < 0 ? -cut : cut;
    }
  }

 private:
  static constexpr int numbers = tokens * channels;

  PITH_HD static constexpr float admitted(float x) noexcept { return is_finite(x) ? clamp(x, -0x1p125f, 0x1p125f) : 0.0f; }

  // What a stage leaves of the numbers of one of its tiles. Settled, so that no product of decode is fused into the difference.
  template <class Stage>
  PITH_HD static void leave(std::byte const* in, float* left) noexcept {
    float decoded[Stage::tokens * channels];
    Stage::decode(in, decoded);
    settle(decoded);
    for (int i = 0; i < Stage::tokens * channels; ++i) left[i] = is_finite(left[i]) ? admitted(left[i]) - decoded[i] : 0.0f;
    settle(left);
  }

  template <class Stage, class... After>
  PITH_HD static void encode_stages(float* left, std::byte* out) noexcept {
    for (std::int64_t i = tokens / Stage::tokens * Stage::bytes; i < part_bytes<Stage>; ++i) out[i] = std::byte{0};
    for (int i = 0; i < tokens / Stage::tokens; ++i) {
      Stage::encode(left + i * Stage::tokens * channels, out + i * Stage::bytes);
      if constexpr (sizeof...(After) > 0) leave<Stage>(out + i * Stage::bytes, left + i * Stage::tokens * channels);
    }
    if constexpr (sizeof...(After) > 0) encode_stages<After...>(left, out + part_bytes<Stage>);
  }

  template <class Stage, class... After>
  PITH_HD static void add_stages(std::byte const* in, float* rows) noexcept {
    float decoded[Stage::tokens * channels];
    for (int i = 0; i < tokens / Stage::tokens; ++i) {
      Stage::decode(in + i * Stage::bytes, decoded);
      settle(decoded);
      float* const to = rows + i * Stage::tokens * channels;
      for (int j = 0; j < Stage::tokens * channels; ++j) to[j] += decoded[j];
    }
    if constexpr (sizeof...(After) > 0) add_stages<After...>(in + part_bytes<Stage>, rows);
  }

  // bound gathers the f32 rounding of every stage; the last one sets what it cannot represent.
  template <class Stage, class... After>
  PITH_HD static void bound_stages(float* left, float* bound) noexcept {
    if constexpr (sizeof...(After) > 0) {
      std::byte encoded[Stage::bytes];
      for (int i = 0; i < tokens / Stage::tokens; ++i) {
        float* const rows = left + i * Stage::tokens * channels;
        Stage::encode(rows, encoded);
        float before[Stage::tokens * channels];
        for (int j = 0; j < Stage::tokens * channels; ++j) before[j] = admitted(rows[j]);
        leave<Stage>(encoded, rows);
        for (int j = 0; j < Stage::tokens * channels; ++j)
          bound[i * Stage::tokens * channels + j] += 0x1p-22f * (size(before[j]) + size(rows[j]));
      }
      bound_stages<After...>(left, bound);
    } else {
      float last[Stage::tokens * channels];
      for (int i = 0; i < tokens / Stage::tokens; ++i) {
        float const* const rows = left + i * Stage::tokens * channels;
        Stage::error_bound(rows, last);
        for (int j = 0; j < Stage::tokens * channels; ++j)
          bound[i * Stage::tokens * channels + j] += last[j] + 0x1p-22f * (size(rows[j]) + last[j]);
      }
    }
  }
  PITH_HD static constexpr float size(float x) noexcept { return x < 0 ? -x : x; }
};

// The first broken rule speaks alone; true if there is none.
template <class... Tiles>
consteval bool check_sum_tiles() {
  constexpr bool transformed = (requires(float* row) { Tiles::transform_query(row); } || ...);
  constexpr bool saturates = ((Tiles::nan == nan_policy::saturate) && ...);
  if constexpr (transformed) {
    static_assert(!transformed, "[pith] sum<A, B, ...>: a transform goes outside, over all stages. Fix: pipe<T, sum<A, B>>.");
    return false;
  } else if constexpr (!saturates) {
    static_assert(saturates,
                  "[pith] sum<A, B, ...>: a stage saturates; raw<T> would hand on what is not finite. Fix: integer<...>, outliers<...> or "
                  "low_rank<...>.");
    return false;
  } else {
    constexpr int longest = most_tokens<Tiles...>();
    static_assert(
        ((longest % Tiles::tokens == 0) && ...),
        "[pith] sum<A, B, ...>: the longest stage's tile must hold whole tiles of the others. Fix: groups of 32, 64, 128 or 256 tokens.");
    return ((longest % Tiles::tokens == 0) && ...);
  }
}
template <int Channels, int PageTokens, use Use, class... Stages>
consteval bool check_sum() {
  if constexpr (sizeof...(Stages) == 0) {
    static_assert(Channels < 0,
                  "[pith] sum<A, B, ...>: there is no stage. Fix: sum<outliers<both_ends<1>, per_token<>>, int2<per_token<32>>>.");
    return false;
  } else if constexpr (!(bindable<Stages, Channels, PageTokens, Use> && ...)) {
    static_assert(Channels < 0,
                  "[pith] sum<A, B, ...>: every stage is a codec. Fix: sum<outliers<both_ends<1>, per_token<>>, int2<per_token<32>>>.");
    return false;
  } else {
    return check_sum_tiles<typename Stages::template bind<Channels, PageTokens, Use>...>();
  }
}

template <bool Right, int Channels, int PageTokens, use Use, class... Stages>
struct sum_binding {
  using type = no_tile<Channels>;
};
template <int Channels, int PageTokens, use Use, class... Stages>
struct sum_binding<true, Channels, PageTokens, Use, Stages...> {
  using type = sum_tile<typename Stages::template bind<Channels, PageTokens, Use>...>;
};

template <class... Stages>
struct sum {
  template <int Channels, int PageTokens, use Use>
  using bind = typename sum_binding<check_sum<Channels, PageTokens, Use, Stages...>(), Channels, PageTokens, Use, Stages...>::type;
};

}  // namespace pith
