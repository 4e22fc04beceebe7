// SPDX-License-Identifier: Apache-2.0
// The named slots of kv_cache<...>, in any order, and what they come to.
//
//   head_dim<K, V>            channels of a key and of a value head; V = K if left out             required
//   keys<Codec>               how keys are stored                                                  required
//   values<Codec>             how values are stored                                                required
//   raw<first<A>, last<B>>    the first A tokens and at least the last B stay as bf16              first<0>, last<32>
//   pages<paged<N>>           tokens of a page                                                     paged<64>
//   accuracy<A>               exact_accuracy or integer_accuracy                                   exact_accuracy
//   side<...>                 per-slot side arrays: positions, liveness, bias, births              none
//   non_finite<P>             nan_policy of appended numbers                                       saturate
//   on<Backend>               where it runs                                                        cpu
//   keep<...>                 which tokens stay: a policy or its stages; cache/keep.hpp            all
#pragma once

#include <type_traits>

#include "pith/codec/kv_page.hpp"
#include "pith/codec/pipe.hpp"
#include "pith/codec/raw.hpp"
#include "pith/page/attention_engine.hpp"

namespace pith {

template <int Keys, int Values = Keys>
struct head_dim {};
template <class Codec>
struct keys {};
template <class Codec>
struct values {};
template <int Tokens>
struct first {};
template <int KeyTokens, int ValueTokens = KeyTokens>
struct last {};
template <int Tokens>
struct paged {};
template <class Layout>
struct pages {};
template <class Accuracy>
struct accuracy {};
template <nan_policy Policy>
struct non_finite {};
template <class Backend>
struct on {};

template <class... Stages>
struct keep;  // policy/policy.hpp
// What keep<...> asks of a cache; that of a policy is in cache/keep.hpp.
template <class Keep>
struct keep_needs;
template <>
struct keep_needs<keep<>> {
  static constexpr bool keeps = false, biases = false;
  using policy = void;
};

struct cuda;  // the backend of cuda/cache.hpp; the others stand with their kernels

struct positions {};  // an original position for each slot; windows are then counted in positions
struct liveness {};   // a bit for each slot and KV head: evict()
struct bias {};       // an f32 added to a slot's score, for each KV head: set_bias()
struct births {};     // the token that a slot holds, for each KV head: with liveness, compact()
template <class... Arrays>
struct side {};

// The slot of the same name as the codec: raw<first<A>, last<B>>.
template <int F>
struct raw<first<F>> {};
template <int K, int V>
struct raw<last<K, V>> {};
template <int F, int K, int V>
struct raw<first<F>, last<K, V>> {};
template <int F, int K, int V>
struct raw<last<K, V>, first<F>> {};

namespace slot_detail {

enum class kind { none, head_dim, keys, values, raw, pages, accuracy, side, non_finite, on, keep };

template <class T>
struct slot {
  static constexpr kind which = kind::none;
};
template <int K, int V>
struct slot<head_dim<K, V>> {
  static constexpr kind which = kind::head_dim;
  static constexpr int key_channels = K, value_channels = V;
};
template <class C>
struct slot<keys<C>> {
  static constexpr kind which = kind::keys;
  using type = C;
};
template <class C>
struct slot<values<C>> {
  static constexpr kind which = kind::values;
  using type = C;
};
template <int F, int K, int V>
struct raw_slot {
  static constexpr kind which = kind::raw;
  static constexpr int first_tokens = F, last_keys = K, last_values = V;
};
template <int F>
struct slot<raw<first<F>>> : raw_slot<F, 32, 32> {};
template <int K, int V>
struct slot<raw<last<K, V>>> : raw_slot<0, K, V> {};
template <int F, int K, int V>
struct slot<raw<first<F>, last<K, V>>> : raw_slot<F, K, V> {};
template <int F, int K, int V>
struct slot<raw<last<K, V>, first<F>>> : raw_slot<F, K, V> {};
template <int N>
struct slot<pages<paged<N>>> {
  static constexpr kind which = kind::pages;
  static constexpr int tokens = N;
};
template <class A>
struct slot<accuracy<A>> {
  static constexpr kind which = kind::accuracy;
  using type = A;
};
template <class... A>
struct slot<side<A...>> {
  static constexpr kind which = kind::side;
  template <class Array>
  static constexpr bool has = (std::is_same_v<Array, A> || ...);
  static constexpr bool known =
      ((std::is_same_v<A, positions> || std::is_same_v<A, liveness> || std::is_same_v<A, bias> || std::is_same_v<A, births>)&&...);
};
template <nan_policy P>
struct slot<non_finite<P>> {
  static constexpr kind which = kind::non_finite;
  static constexpr nan_policy policy = P;
};
template <class B>
struct slot<on<B>> {
  static constexpr kind which = kind::on;
  using type = B;
};
template <class... S>
struct slot<keep<S...>> {
  static constexpr kind which = kind::keep;
  using type = keep<S...>;
};

template <class Keep>
concept known_keep = requires { sizeof(keep_needs<Keep>); };

template <kind Which, class... Slots>
inline constexpr int count = ((slot<Slots>::which == Which ? 1 : 0) + ... + 0);

// The slot of a kind, or the default.
template <kind Which, class Default, class... Slots>
struct pick {
  using type = slot<Default>;
};
template <kind Which, class Default, class First, class... Rest>
struct pick<Which, Default, First, Rest...> {
  using type =
      typename std::conditional_t<slot<First>::which == Which, std::type_identity<slot<First>>, pick<Which, Default, Rest...>>::type;
};

}  // namespace slot_detail

// Says in one sentence what is wrong with a list of slots: the first broken rule speaks alone. True if there is none.
template <class... Slots>
consteval bool check_slots() {
  using namespace slot_detail;
  constexpr bool once = count<kind::raw, Slots...> <= 1 && count<kind::pages, Slots...> <= 1 && count<kind::accuracy, Slots...> <= 1 &&
                        count<kind::side, Slots...> <= 1 && count<kind::non_finite, Slots...> <= 1 && count<kind::on, Slots...> <= 1 &&
                        count<kind::keep, Slots...> <= 1;
  using raw_tokens = typename pick<kind::raw, raw<first<0>, last<32>>, Slots...>::type;
  using computed = typename pick<kind::accuracy, accuracy<exact_accuracy>, Slots...>::type::type;
  if constexpr (count<kind::none, Slots...> != 0) {
    static_assert(
        count<kind::none, Slots...> == 0,
        "[pith] kv_cache<...>: every argument is a slot. Fix: wrap it: head_dim<64>, keys<C>, values<C>, raw<first<4>, last<32>>, "
        "pages<paged<64>>, accuracy<A>, side<...>, non_finite<P>, on<cpu> or keep<...>.");
    return false;
  } else if constexpr (count<kind::head_dim, Slots...> != 1) {
    static_assert(count<kind::head_dim, Slots...> == 1, "[pith] kv_cache<...>: exactly one head_dim is needed. Fix: head_dim<64>.");
    return false;
  } else if constexpr (count<kind::keys, Slots...> != 1) {
    static_assert(count<kind::keys, Slots...> == 1,
                  "[pith] kv_cache<...>: exactly one keys<Codec> is needed. Fix: keys<int4<per_token<64>>>.");
    return false;
  } else if constexpr (count<kind::values, Slots...> != 1) {
    static_assert(count<kind::values, Slots...> == 1,
                  "[pith] kv_cache<...>: exactly one values<Codec> is needed. Fix: values<int4<per_token<64>>>.");
    return false;
  } else if constexpr (!once) {
    static_assert(once, "[pith] kv_cache<...>: a slot is given twice. Fix: keep one of each kind.");
    return false;
  } else if constexpr (!pick<kind::side, side<>, Slots...>::type::known) {
    static_assert(pick<kind::side, side<>, Slots...>::type::known,
                  "[pith] side<...>: the side arrays are positions, liveness, bias and births. Fix: side<liveness>.");
    return false;
  } else if constexpr (!known_keep<typename pick<kind::keep, keep<>, Slots...>::type::type>) {
    static_assert(known_keep<typename pick<kind::keep, keep<>, Slots...>::type::type>,
                  "[pith] keep<...>: caches that choose what stays are in a header of their own. Fix: #include \"pith/cache/keep.hpp\".");
    return false;
  } else if constexpr (raw_tokens::first_tokens < 0 || raw_tokens::first_tokens > 256) {
    static_assert(raw_tokens::first_tokens == 0, "[pith] first<N>: N is 0 to 256. Fix: first<4>.");
    return false;
  } else if constexpr (raw_tokens::last_keys < 1 || raw_tokens::last_values < 1) {
    static_assert(raw_tokens::last_keys > 0 && raw_tokens::last_values > 0,
                  "[pith] last<N>: a query sees its own token raw, so N is at least 1. Fix: last<32>.");
    return false;
  } else if constexpr (!std::is_same_v<computed, exact_accuracy> && !std::is_same_v<computed, integer_accuracy>) {
    static_assert(std::is_same_v<computed, exact_accuracy>,
                  "[pith] accuracy<A>: A is exact_accuracy or integer_accuracy. Fix: accuracy<integer_accuracy>.");
    return false;
  } else {
    using dims = typename pick<kind::head_dim, head_dim<64>, Slots...>::type;
    return check_page<typename pick<kind::keys, keys<raw<bf16>>, Slots...>::type::type,
                      typename pick<kind::values, values<raw<bf16>>, Slots...>::type::type, dims::key_channels, dims::value_channels,
                      pick<kind::pages, pages<paged<64>>, Slots...>::type::tokens>();
  }
}

namespace slot_detail {

// The page of a right composition, or a plain one where check_slots has spoken.
template <bool Right, class... Slots>
struct page_of {
  using type = kv_page<raw<bf16>, raw<bf16>, 64, 64, 64>;
};
template <class... Slots>
struct page_of<true, Slots...> {
  using dims = typename pick<kind::head_dim, head_dim<64>, Slots...>::type;
  using type = kv_page<typename pick<kind::keys, keys<raw<bf16>>, Slots...>::type::type,
                       typename pick<kind::values, values<raw<bf16>>, Slots...>::type::type, dims::key_channels, dims::value_channels,
                       pick<kind::pages, pages<paged<64>>, Slots...>::type::tokens>;
};

template <bool Right, class... Slots>
struct needs_of : keep_needs<keep<>> {};
template <class... Slots>
struct needs_of<true, Slots...> : keep_needs<typename pick<kind::keep, keep<>, Slots...>::type::type> {};

}  // namespace slot_detail

// A composition: derive a struct from it to name it, then make<that struct>(shape).
template <class... Slots>
struct kv_cache {
 private:
  template <slot_detail::kind Which, class Default>
  using pick = typename slot_detail::pick<Which, Default, Slots...>::type;
  using raw_tokens = pick<slot_detail::kind::raw, raw<first<0>, last<32>>>;
  using arrays = pick<slot_detail::kind::side, side<>>;
  using needs = slot_detail::needs_of<check_slots<Slots...>(), Slots...>;

 public:
  using page = typename slot_detail::page_of<check_slots<Slots...>(), Slots...>::type;
  static constexpr int key_channels = page::key_channels;
  static constexpr int value_channels = page::value_channels;
  static constexpr int first_tokens = raw_tokens::first_tokens;
  static constexpr int last_keys = raw_tokens::last_keys;
  static constexpr int last_values = raw_tokens::last_values;
  static constexpr bool has_positions = arrays::template has<positions>;
  static constexpr bool keeps = needs::keeps;
  using policy = typename needs::policy;  // void: everything stays
  static constexpr bool has_liveness = arrays::template has<liveness> || keeps;
  static constexpr bool has_bias = arrays::template has<bias> || needs::biases;
  static constexpr bool has_births = arrays::template has<births> || keeps;
  static constexpr nan_policy nan = pick<slot_detail::kind::non_finite, non_finite<nan_policy::saturate>>::policy;
  using accuracy = typename pick<slot_detail::kind::accuracy, pith::accuracy<exact_accuracy>>::type;
  using backend = typename pick<slot_detail::kind::on, on<void>>::type;  // void: the only backend that is included
};

}  // namespace pith
