// SPDX-License-Identifier: Apache-2.0
// A policy: stages in any order, each kind at most once, defaults for the rest.
//
//   struct snapkv : policy<window_attention<32>, average_pool<5>, protect<window<32>>, capacity<2048>, best> {};
//   using heavy = policy<top<1024, accumulated_attention>, protect<recent<512>>, every_step>;
//   snapkv p;  p.at<stage::total>().tokens = 4096;
//
//   trigger      over<0>              normalise    as_is               total        capacity<1024>       select    best
//   signal       no_signal            head_map     mean_over_group     layer_split  (none)               dispose   drop
//   scorer       fresh                smooth       no_smoothing        head_split   (none)               position  keep_original
//   protect      protect<>
//
// Without a split every row has a total of its own. With a head split alone every layer has one, of its rows together. With a layer split
// the rows of all layers have one, and a head split that is not named is uniform_heads.
//
// Bundles: top<N, Scorer> is capacity<N>, best and the scorer's stages; accumulated_attention is all_attention, accumulate.
// keep<...> names a policy, or the stages of one, where a cache's slots are listed.
#pragma once

#include <type_traits>

#include "pith/policy/policy_check.hpp"

namespace pith {

template <class... Stages>
struct policy : policy_detail::right_stages<check_policy<Stages...>(), Stages...>::held {
  using stages = typename policy_detail::flat<stage_list<Stages...>>::type;
  using is_policy = policy;
  template <stage Kind>
  using stage_type = typename policy_detail::right_stages<check_policy<Stages...>(), Stages...>::template type<Kind>;

  template <stage Kind>
  constexpr stage_type<Kind>& at() {
    return static_cast<policy_detail::held_stage<stage_type<Kind>>&>(*this).value;
  }
  template <stage Kind>
  constexpr stage_type<Kind> const& at() const {
    return static_cast<policy_detail::held_stage<stage_type<Kind>> const&>(*this).value;
  }
  bool due(trigger_input const& in) const { return at<stage::trigger>().due(in); }
};

struct accumulated_attention {
  using stages = stage_list<all_attention, accumulate>;
};

template <std::int64_t Tokens, class... Scorer>
struct top {
  using stages = stage_list<capacity<Tokens>, best, Scorer...>;
};

namespace policy_detail {

template <class... Stages>
struct named {
  using type = policy<Stages...>;
};
template <class Policy>
requires requires { typename Policy::is_policy; }
struct named<Policy> {
  using type = Policy;
};

}  // namespace policy_detail

template <class... Stages>
struct keep {
  using type = typename policy_detail::named<Stages...>::type;
};

}  // namespace pith
