// SPDX-License-Identifier: Apache-2.0
// What a list of stages comes to, and what is wrong with it in one sentence: the first broken rule speaks alone.
#pragma once

#include <type_traits>

#include "pith/policy/capacity.hpp"
#include "pith/policy/choose.hpp"
#include "pith/policy/dispose.hpp"
#include "pith/policy/head_map.hpp"
#include "pith/policy/head_split.hpp"
#include "pith/policy/layer_split.hpp"
#include "pith/policy/normalise.hpp"
#include "pith/policy/position.hpp"
#include "pith/policy/protect.hpp"
#include "pith/policy/scorer.hpp"
#include "pith/policy/signal.hpp"
#include "pith/policy/smooth.hpp"
#include "pith/policy/trigger.hpp"

namespace pith {

// The stages of a policy that names no split.
struct no_layer_split {
  static constexpr stage kind = stage::layer_split;
};
struct no_head_split {
  static constexpr stage kind = stage::head_split;
};

namespace policy_detail {

template <class... Lists>
struct joined {
  using type = stage_list<>;
};
template <class... A>
struct joined<stage_list<A...>> {
  using type = stage_list<A...>;
};
template <class... A, class... B, class... Rest>
struct joined<stage_list<A...>, stage_list<B...>, Rest...> : joined<stage_list<A..., B...>, Rest...> {};

// Bundles opened, in order.
template <class T>
struct flat {
  using type = stage_list<T>;
};
template <class T>
requires requires { typename T::stages; }
struct flat<T> : flat<typename T::stages> {};
template <class... T>
struct flat<stage_list<T...>> : joined<typename flat<T>::type...> {};

template <class T>
constexpr bool is_stage = false;
template <class T>
requires requires { T::kind; }
constexpr bool is_stage<T> = std::is_same_v<decltype(T::kind), stage const>;

template <stage Kind, class T>
constexpr bool is_a() {
  if constexpr (is_stage<T>) return T::kind == Kind;
  return false;
}

template <class List>
struct all;
template <class... T>
struct all<stage_list<T...>> {
  static constexpr bool stages = (is_stage<T> && ...);
  template <stage Kind>
  static constexpr int count = ((is_a<Kind, T>() ? 1 : 0) + ... + 0);
  static constexpr bool once = count<stage::trigger> <= 1 && count<stage::signal> <= 1 && count<stage::scorer> <= 1 &&
                               count<stage::normalise> <= 1 && count<stage::head_map> <= 1 && count<stage::smooth> <= 1 &&
                               count<stage::protect> <= 1 && count<stage::total> <= 1 && count<stage::layer_split> <= 1 &&
                               count<stage::head_split> <= 1 && count<stage::select> <= 1 && count<stage::dispose> <= 1 &&
                               count<stage::position> <= 1;
};

// The stage of a kind, or the default.
template <stage Kind, class Default, class List>
struct pick {
  using type = Default;
};
template <stage Kind, class Default, class First, class... Rest>
struct pick<Kind, Default, stage_list<First, Rest...>> {
  using type = typename std::conditional_t<is_a<Kind, First>(), std::type_identity<First>, pick<Kind, Default, stage_list<Rest...>>>::type;
};

template <stage Kind>
struct defaults;
template <>
struct defaults<stage::trigger> : std::type_identity<over<0>> {};
template <>
struct defaults<stage::signal> : std::type_identity<no_signal> {};
template <>
struct defaults<stage::scorer> : std::type_identity<fresh> {};
template <>
struct defaults<stage::normalise> : std::type_identity<as_is> {};
template <>
struct defaults<stage::head_map> : std::type_identity<mean_over_group> {};
template <>
struct defaults<stage::smooth> : std::type_identity<no_smoothing> {};
template <>
struct defaults<stage::protect> : std::type_identity<protect<>> {};
template <>
struct defaults<stage::total> : std::type_identity<capacity<1024>> {};
template <>
struct defaults<stage::layer_split> : std::type_identity<no_layer_split> {};
template <>
struct defaults<stage::head_split> : std::type_identity<no_head_split> {};
template <>
struct defaults<stage::select> : std::type_identity<best> {};
template <>
struct defaults<stage::dispose> : std::type_identity<drop> {};
template <>
struct defaults<stage::position> : std::type_identity<keep_original> {};

template <stage Kind, class List>
using stage_of = typename pick<Kind, typename defaults<Kind>::type, List>::type;

// Stages without template arguments are always valid.
template <class T>
constexpr bool valid() {
  if constexpr (requires { T::valid; }) return T::valid;
  return true;
}

template <class Dispose>
constexpr bool needs_scores() {
  if constexpr (requires { Dispose::needs_scores; }) return Dispose::needs_scores;
  return false;
}

template <std::int64_t Rows, class Protect>
constexpr bool protects_window = Rows == 0;
template <std::int64_t Rows, class... Classes>
constexpr bool protects_window<Rows, protect<Classes...>> = Rows == 0 || ((newest_of<Classes> >= Rows) || ...);

}  // namespace policy_detail

// True if nothing is wrong.
template <class... Stages>
consteval bool check_policy() {
  using namespace policy_detail;
  using list = typename flat<stage_list<Stages...>>::type;
  constexpr bool stages = all<list>::stages;
  if constexpr (!stages) {
    static_assert(
        stages,
        "[pith] policy<...>: every argument is a stage, or a bundle of stages. Fix: capacity<1024>, best, all_attention, accumulate, "
        "protect<sinks<4>>, ... (policy/policy.hpp).");
    return false;
  } else if constexpr (!all<list>::once) {
    static_assert(
        all<list>::once,
        "[pith] policy<...>: two stages of one kind. Fix: keep one of each; classes of slots go into one protect<sinks<4>, recent<64>>; "
        "top<N, ...> has capacity<N> and best in it.");
    return false;
  } else {
    using signal = stage_of<stage::signal, list>;
    using select = stage_of<stage::select, list>;
    using smooth = stage_of<stage::smooth, list>;
    using total = stage_of<stage::total, list>;
    using guard = stage_of<stage::protect, list>;
    using map = stage_of<stage::head_map, list>;
    using dispose = stage_of<stage::dispose, list>;
    constexpr bool ranks = select::by == chooses::by_score || select::by == chooses::over_all_rows;
    constexpr bool has_signal = all<list>::template count<stage::signal> == 1;
    constexpr bool layer_split = all<list>::template count<stage::layer_split> == 1;
    constexpr bool head_split = all<list>::template count<stage::head_split> == 1;
    if constexpr (!guard::all_classes) {
      static_assert(
          guard::all_classes,
          "[pith] protect<...>: every argument is a class of slots. Fix: sinks<4>, recent<64>, window<32>, last_page<16>, masked_slots "
          "or pinned_slots.");
      return false;
    } else if constexpr (!valid<guard>()) {
      static_assert(valid<guard>(), "[pith] protect<...>: a class has N >= 0 slots, last_page<N> at least 1. Fix: sinks<4>.");
      return false;
    } else if constexpr (!valid<signal>()) {
      static_assert(valid<signal>(),
                    "[pith] window_attention<Rows>, weighted_attention<Rows>: at least 1 row, window_mean_variance<Rows>: 2. Fix: "
                    "window_attention<32>.");
      return false;
    } else if constexpr (!valid<map>()) {
      static_assert(valid<map>(),
                    "[pith] first_of_layers<N, Map>: N > 0 layers, and a map over a layer. Fix: first_of_layers<8, sum_over_layer>.");
      return false;
    } else if constexpr (!valid<smooth>()) {
      static_assert(valid<smooth>(), "[pith] average_pool<K>, max_pool<K>: K is odd and positive. Fix: average_pool<5>.");
      return false;
    } else if constexpr (!valid<total>()) {
      static_assert(valid<total>(),
                    "[pith] capacity<N>, growing_capacity<N, Every>: N >= 0 and Every > 0. Fix: capacity<1024>. "
                    "byte_capacity<Bytes, TokenBits>: Bytes >= 0 and TokenBits > 0. Fix: byte_capacity<65536, 2048>.");
      return false;
    } else if constexpr (!valid<stage_of<stage::trigger, list>>()) {
      static_assert(valid<stage_of<stage::trigger, list>>(),
                    "[pith] every<N>, on_page_full<N>: N > 0; over<Slack>: Slack >= 0. Fix: every<16>.");
      return false;
    } else if constexpr (!valid<stage_of<stage::position, list>>()) {
      static_assert(valid<stage_of<stage::position, list>>(), "[pith] clamped_distance<Limit>: Limit >= 0. Fix: clamped_distance<4096>.");
      return false;
    } else if constexpr (!valid<stage_of<stage::scorer, list>>()) {
      static_assert(valid<stage_of<stage::scorer, list>>(), "[pith] ignored_count<Steps>: Steps is 1 to 2^20. Fix: ignored_count<400>.");
      return false;
    } else if constexpr (!valid<select>()) {
      static_assert(valid<select>(), "[pith] best_units<N>: N > 0; ladder_steps<Span, Overlap>: 0 <= Overlap < Span. Fix: best_units<16>.");
      return false;
    } else if constexpr (!valid<stage_of<stage::head_split, list>>()) {
      static_assert(valid<stage_of<stage::head_split, list>>(),
                    "[pith] full_or_stream_heads<Stream>: Stream >= 0. Fix: full_or_stream_heads<4000>.");
      return false;
    } else if constexpr (!valid<dispose>()) {
      static_assert(
          valid<dispose>(),
          "[pith] merge<Route, by_similarity>: only most_similar knows the similarity; demote<Bits>: 1 to 16 bits; spread<Next>: Next > "
          "0. Fix: merge<most_similar, by_similarity>.");
      return false;
    } else if constexpr (needs_scores<dispose>() && !(ranks && has_signal)) {
      static_assert(
          ranks && has_signal,
          "[pith] spread<Next>, by_score: they ask for scores, which newest and ladder_steps do not make. Fix: select best and name "
          "a signal, or merge<most_similar>.");
      return false;
    } else if constexpr (ranks && !has_signal) {
      static_assert(
          has_signal,
          "[pith] policy<...>: best needs something to rank by. Fix: name a signal, say accumulated_attention; or select newest.");
      return false;
    } else if constexpr (!ranks && has_signal) {
      static_assert(!has_signal,
                    "[pith] policy<...>: newest and ladder_steps look at no score. Fix: leave the signal out, or select best.");
      return false;
    } else if constexpr (!protects_window<signal::unscored, guard>) {
      static_assert(protects_window<signal::unscored, guard>,
                    "[pith] window_attention<Rows>: the window's own slots have no score, so they are to be protected. Fix: "
                    "protect<window<Rows>>.");
      return false;
    } else if constexpr (select::by == chooses::over_all_rows && (layer_split || head_split)) {
      static_assert(
          !layer_split && !head_split,
          "[pith] best_of_all: all rows are ranked together, so there is nothing to split. Fix: leave the layer and head splits out.");
      return false;
    } else if constexpr (select::by == chooses::by_ladder && (layer_split || head_split || !std::is_same_v<guard, protect<>>)) {
      static_assert(
          select::by != chooses::by_ladder,
          "[pith] ladder_steps<...>: it keeps its own sinks, and equally many slots everywhere. Fix: leave protect and splits out.");
      return false;
    } else if constexpr (head_split && map::scope != head_scope::group) {
      static_assert(
          map::scope == head_scope::group,
          "[pith] policy<...>: a map over the layer or the model gives all heads the same slots, a head split different ones. Fix: "
          "mean_over_group, or no head split.");
      return false;
    } else if constexpr (dispose::losers == fate::folded && !std::is_same_v<stage_of<stage::position, list>, keep_original>) {
      static_assert(dispose::losers != fate::folded,
                    "[pith] fold: rows that were folded cannot be turned to new positions. Fix: leave reindexed and edit_shift out.");
      return false;
    } else {
      return true;
    }
  }
}

namespace policy_detail {

template <class Stage>
struct held_stage {
  [[no_unique_address]] Stage value{};
};

template <class List>
struct held_stages : held_stage<stage_of<stage::trigger, List>>,
                     held_stage<stage_of<stage::signal, List>>,
                     held_stage<stage_of<stage::scorer, List>>,
                     held_stage<stage_of<stage::normalise, List>>,
                     held_stage<stage_of<stage::head_map, List>>,
                     held_stage<stage_of<stage::smooth, List>>,
                     held_stage<stage_of<stage::protect, List>>,
                     held_stage<stage_of<stage::total, List>>,
                     held_stage<stage_of<stage::layer_split, List>>,
                     held_stage<stage_of<stage::head_split, List>>,
                     held_stage<stage_of<stage::select, List>>,
                     held_stage<stage_of<stage::dispose, List>>,
                     held_stage<stage_of<stage::position, List>> {};

// The stages of a right list; the defaults where check_policy has spoken.
template <bool Right, class... Stages>
struct right_stages {
  using list = typename flat<stage_list<Stages...>>::type;
  using held = held_stages<list>;
  template <stage Kind>
  using type = stage_of<Kind, list>;
};
template <class... Stages>
struct right_stages<false, Stages...> : right_stages<true> {};

}  // namespace policy_detail

}  // namespace pith
