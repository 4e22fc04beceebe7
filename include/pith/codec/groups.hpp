// SPDX-License-Identifier: Apache-2.0
// Which numbers share one scale.
//
//   per_token<G>     one scale for each token and G consecutive channels (KIVI's values)
//   per_channel<G>   one scale for each channel and G consecutive tokens (KIVI's keys)
//
// Without a number the group is whole: a token's whole row, or a channel's whole page.
#pragma once

namespace pith {

inline constexpr int whole = 0;

template <int G = whole>
struct per_token {
  static constexpr int group = G;
  static constexpr bool along_tokens = false;
};

template <int G = whole>
struct per_channel {
  static constexpr int group = G;
  static constexpr bool along_tokens = true;
};

template <class T>
inline constexpr bool is_grouping = false;
template <int G>
inline constexpr bool is_grouping<per_token<G>> = true;
template <int G>
inline constexpr bool is_grouping<per_channel<G>> = true;

}  // namespace pith
