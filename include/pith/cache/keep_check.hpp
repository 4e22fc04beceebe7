// SPDX-License-Identifier: Apache-2.0
// What a policy asks of a cache, and what is wrong with a policy in a cache, in one sentence: the first broken rule speaks alone.
//
//   signal                                  who makes it
//   no_signal                               nobody: places alone
//   given_scores                            the caller, by observe_scores()
//   all_, last_, maximum_attention          every call of attention, of the rows that are new in it
//   window_attention, window_mean_variance  a second pass when it is decided, from the newest queries, which the sequence keeps
#pragma once

#include "pith/cache/row_codes.hpp"
#include "pith/cache/slots.hpp"
#include "pith/page/attention_statistics.hpp"
#include "pith/policy/decide.hpp"

namespace pith {

namespace keep_detail {

template <class Map>
struct map_of;
template <head_reduction Reduction, head_scope Scope>
struct map_of<head_map<Reduction, Scope>> {
  static constexpr head_reduction reduction = Reduction;
};

template <std::int64_t Layers, class Map>
struct map_of<first_of_layers<Layers, Map>> : map_of<Map> {};

template <class Map>
inline constexpr bool shares_layers = false;
template <std::int64_t Layers, class Map>
inline constexpr bool shares_layers<first_of_layers<Layers, Map>> = Layers > 1;

template <class Dispose>
inline constexpr bool by_keys = false;
template <class Route, class Weight>
inline constexpr bool by_keys<merge<Route, Weight>> = std::is_same_v<Route, most_similar> || std::is_same_v<Weight, by_distance>;

template <class Dispose>
inline constexpr bool by_runs = false;
template <class Weight>
inline constexpr bool by_runs<merge<own_run, Weight>> = true;

template <class Protect>
inline constexpr bool names_slots = false;
template <class... Classes>
inline constexpr bool names_slots<protect<Classes...>> =
    ((std::is_same_v<Classes, masked_slots> || std::is_same_v<Classes, pinned_slots>) || ...);

}  // namespace keep_detail

template <class Policy>
struct keep_traits {
  template <stage Kind>
  using type = typename Policy::template stage_type<Kind>;
  using signal = type<stage::signal>;
  using trigger = type<stage::trigger>;
  using select = type<stage::select>;
  using scorer = type<stage::scorer>;
  static constexpr fate losers = type<stage::dispose>::losers;

  static constexpr bool ranks = select::by == chooses::by_score || select::by == chooses::over_all_rows;
  static constexpr bool given = ranks && std::is_same_v<signal, given_scores>;
  static constexpr bool attends = ranks && signal::query_rows > 0;
  static constexpr std::int64_t window_rows = attends && signal::unscored > 0 ? signal::query_rows : 0;
  static constexpr std::int64_t window_room = 2 * window_rows;  // rows are moved to the front once in so many
  static constexpr std::int64_t call_rows = attends && window_rows == 0 ? signal::query_rows : 0;
  static constexpr std::int64_t history_words = ranks ? scorer::history_words : 0;
  // What a step's attention gives is of no use once the prompt has been decided on.
  static constexpr bool prompt_alone = std::is_same_v<trigger, on_prefill_end> && std::is_same_v<scorer, fresh>;

  // Statistics: which, and how the query heads of a KV head come together.
  static constexpr bool maximum = std::is_same_v<signal, maximum_attention>, squares = requires(signal s) { s.gamma; };
  static constexpr head_reduction map = keep_detail::map_of<type<stage::head_map>>::reduction;
  static constexpr group_reduction reduction = squares   ? group_reduction::none
                                               : maximum ? map == head_reduction::max ? group_reduction::maximum : group_reduction::none
                                               : map == head_reduction::mean ? group_reduction::mean
                                               : map == head_reduction::sum  ? group_reduction::sum
                                                                             : group_reduction::none;
  static constexpr bool one_list = reduction != group_reduction::none;
  static constexpr bool adds = one_list && !maximum;  // one query's attention is what the kernel can add up itself
  template <bool Squares, bool Maximum>
  struct view_of {
    using type = statistics_view<reduction, statistic::sum>;
  };
  template <bool Maximum>
  struct view_of<true, Maximum> {
    using type = statistics_view<reduction, statistic::sum, statistic::square_sum>;
  };
  template <bool Squares>
  struct view_of<Squares, true> {
    using type = statistics_view<reduction, statistic::maximum>;
  };
  using view = typename view_of<squares, maximum>::type;

  static constexpr bool layer_split = !std::is_same_v<type<stage::layer_split>, no_layer_split>;
  static constexpr bool whole_model = layer_split || select::by == chooses::over_all_rows || select::by == chooses::by_ladder;
  static constexpr bool compensates = losers == fate::compensated, spreads = losers == fate::spread;
  static constexpr bool biased = losers == fate::merged || compensates, merges = biased || spreads;
  static constexpr bool by_keys = keep_detail::by_keys<type<stage::dispose>>;
  static constexpr bool names_slots = keep_detail::names_slots<type<stage::protect>>;
  static constexpr bool weighs_rows = requires { signal::weighs_rows; };
  static constexpr bool weighs_values = requires { select::weighs; };
  static constexpr bool shares_layers = keep_detail::shares_layers<type<stage::head_map>>;
  static constexpr bool has_two_sums = requires { signal::has_two_sums; };
  static constexpr bool by_runs = keep_detail::by_runs<type<stage::dispose>> || std::is_same_v<select, best_runs>;
  static constexpr bool by_chance = std::is_same_v<select, chance>;
};

template <class... Stages>
struct keep_needs<keep<Stages...>> {
  static constexpr bool keeps = true;
  using policy = typename keep<Stages...>::type;
  static constexpr bool biases = keep_traits<policy>::biased;
};

// True if nothing is wrong.
template <class Recipe>
consteval bool check_keep() {
  using needs = keep_traits<typename Recipe::policy>;
  using page = typename Recipe::page;
  constexpr bool stays = std::is_same_v<typename needs::template type<stage::position>, keep_original>;
  constexpr bool possible = needs::losers == fate::dropped || needs::merges;
  constexpr bool rows_alone = rows_move<typename page::key_tile> && rows_move<typename page::value_tile>;
  if constexpr (!stays) {
    static_assert(stays,
                  "[pith] keep<...>: the cache's keys are rotated for their positions already. Fix: leave reindexed, clamped_distance and "
                  "edit_shift out.");
    return false;
  } else if constexpr (!possible) {
    static_assert(possible,
                  "[pith] keep<...>: a cache drops, merges, spreads or compensates. Fix: drop; to retrieve, decide() beside the cache and "
                  "attend_among() "
                  "the slots that it keeps.");
    return false;
  } else if constexpr (needs::weighs_rows) {
    static_assert(!needs::weighs_rows,
                  "[pith] keep<...>: weighted_attention weighs query rows by keys seen, of which heads may hold different numbers. Fix: "
                  "window_attention<32>, or observe() and decide() beside the cache.");
    return false;
  } else if constexpr (needs::weighs_values) {
    static_assert(!needs::weighs_values,
                  "[pith] keep<...>: best_twice weighs slots by the model's output projection, which the cache does not know. Fix: best, "
                  "or decide() beside the cache.");
    return false;
  } else if constexpr (needs::shares_layers) {
    static_assert(
        !needs::shares_layers,
        "[pith] keep<...>: scores come layer by layer, and first_of_layers gives one layer's to the next. Fix: sum_over_layer, or "
        "first_of_layers<1>.");
    return false;
  } else if constexpr (needs::has_two_sums) {
    static_assert(
        !needs::has_two_sums,
        "[pith] keep<...>: global_and_window_attention is two sums, and the cache makes one. Fix: all_attention, window_attention<32>, "
        "or observe() and decide() beside the cache.");
    return false;
  } else if constexpr (needs::by_runs) {
    static_assert(
        !needs::by_runs,
        "[pith] keep<...>: best_runs and own_run ask for all keys when it is decided, and the cache reads those of rows that lose. "
        "Fix: merge<most_similar>, or decide() beside the cache.");
    return false;
  } else if constexpr (std::is_same_v<typename needs::trigger, on_drift>) {
    static_assert(!std::is_same_v<typename needs::trigger, on_drift>,
                  "[pith] keep<...>: on_drift compares queries that the cache does not keep. Fix: every<16>.");
    return false;
  } else if constexpr (std::is_same_v<typename needs::select, best_groups>) {
    static_assert(!std::is_same_v<typename needs::select, best_groups>,
                  "[pith] keep<...>: the cache does not know which slots are a group. Fix: best_units<16>.");
    return false;
  } else if constexpr (needs::template type<stage::head_map>::scope == head_scope::model) {
    static_assert(needs::template type<stage::head_map>::scope != head_scope::model,
                  "[pith] keep<...>: scores come layer by layer, and a map over the model needs all at once. Fix: mean_over_layer.");
    return false;
  } else if constexpr (Recipe::nan == nan_policy::propagate) {
    static_assert(Recipe::nan != nan_policy::propagate, "[pith] keep<...>: NaN cannot be ranked. Fix: non_finite<nan_policy::saturate>.");
    return false;
  } else if constexpr (page::has_tails) {
    static_assert(!page::has_tails, "[pith] keep<...>: rows of a codec of variable rate are not compacted. Fix: int8<per_token<64>>.");
    return false;
  } else if constexpr (needs::merges && !rows_alone) {
    static_assert(rows_alone,
                  "[pith] keep<...>: rows that others are merged into are encoded again, one by one. Fix: int8<per_token<64>>, or drop.");
    return false;
  } else if constexpr (needs::merges && Recipe::last_keys != Recipe::last_values) {
    static_assert(Recipe::last_keys == Recipe::last_values,
                  "[pith] keep<...>: a merged row's key and value are sealed together. Fix: last<32>, the same for both.");
    return false;
  } else {
    return true;
  }
}

}  // namespace pith
