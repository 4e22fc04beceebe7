// SPDX-License-Identifier: Apache-2.0
// The first half of a policy in a cache: attention, or the caller's numbers, into the scores of survivors. A base of cache<Recipe> where
// the recipe has keep<...>.
//
//   one query     the kernel adds up its own probabilities (slot_scores): logits are written and read once
//   a chunk       a second pass over the keys (attention_statistics), once lse is known
//   a window      the newest queries are kept, in f32 with their lse, and the second pass comes with the decision
//
// Rule O1  Statistics are by slot, scores by place: the list of survivors lies between them.
// Rule O2  What a policy needs of a group's query heads is reduced in the kernel if that is a sum, mean or maximum of the same statistic;
//          else each query head has a list of its own.
//
// errors  those of attention_statistics() and of the policy's observe(). Nothing is changed on an error
// cost    no allocation
#pragma once

#include "pith/cache/keep_memory.hpp"
#include "pith/cache/kv_cache.hpp"

namespace pith {

// The cache underneath: the side arrays of the recipe, and nothing chosen.
template <class Recipe>
struct unkept : Recipe {
  static constexpr bool keeps = false;
};

template <class Recipe>
class cache_observer : protected cache<unkept<Recipe>> {
  static_assert(check_keep<Recipe>() || true);  // it speaks for itself

 public:
  using policy_type = typename Recipe::policy;

  policy_type& policy() { return policy_; }  // its options; set them before the first token
  policy_type const& policy() const { return policy_; }

  // Counts the attention of the newest q.extent[0] tokens, lse as attend() wrote it: for callers who drive the policy themselves.
  // errors  as attention_statistics(); not_finite (a query: `at` is the token)
  template <class Q, executor Executor = serial>
  status observe(sequence of, int layer, tensor_view<Q, 3> q, std::type_identity_t<tensor_view<float const, 2>> lse,
                 attention_options const& options = {}, Executor&& run = {}) requires(keep_traits<typename Recipe::policy>::attends) {
    if (status const ok = check(of, layer); !ok) return ok;
    if (status const ok = check_finite(q); !ok) return ok;
    if (lse.data == nullptr || lse.extent[0] < q.extent[0] || lse.extent[1] != shape_.query_heads || q.extent[1] != shape_.query_heads ||
        q.extent[2] != Recipe::key_channels)
      return {errc::shape_mismatch, lse.extent[1]};
    if (q.extent[0] > base::length(of, layer)) return {errc::out_of_range, q.extent[0]};
    return count_rows(of, layer, q, lse, q.extent[0], options, run);
  }

  // The caller's scores of the newest tokens of a layer, [kv_head][token]. Scorers but at_birth want those of all tokens; what has left is
  // not read. errors  stale_handle, out_of_range, shape_mismatch (heads; `at` is the tokens that are needed), not_finite (NaN: its place in
  // `scores`)
  status observe_scores(sequence of, int layer, tensor_view<float const, 2> scores) requires(keep_traits<typename Recipe::policy>::given) {
    if (status const ok = check(of, layer); !ok) return ok;
    std::int64_t const tokens = base::length(of, layer), newest = scores.extent[1], before = tokens - newest;
    keep_layer& state = keep_.layer(of.index, layer);
    if (scores.extent[0] != shape_.kv_heads) return {errc::shape_mismatch, scores.extent[0]};
    std::int64_t const wanted = std::is_same_v<typename needs::scorer, at_birth> ? tokens - state.seen : tokens;
    if (newest < wanted || newest > tokens) return {errc::shape_mismatch, wanted};
    for (std::int64_t h = 0; h < shape_.kv_heads; ++h)
      for (std::int64_t t = 0; t < newest; ++t)
        if (is_nan(scores(h, t))) return {errc::not_finite, h * newest + t};
    float* const to = sums(of);
    for (int h = 0; h < shape_.kv_heads; ++h) {
      auto const rows = survivors_of(of, layer, h);
      for (std::size_t i = 0; i < rows.size(); ++i)
        to[h * shape_.max_tokens + static_cast<std::int64_t>(i)] = rows[i].token < before ? 0.0f : scores(h, rows[i].token - before);
    }
    std::span<float const> const given{to, static_cast<std::size_t>(shape_.kv_heads * shape_.max_tokens)};
    if (status const ok = update(of, layer, {.given = given, .rows = 1}); !ok) return ok;
    state.seen = tokens;
    return {};
  }

 protected:
  using base = cache<unkept<Recipe>>;
  using needs = keep_traits<typename Recipe::policy>;

  keep_memory<unkept<Recipe>> keep_;
  cache_shape shape_{};
  policy_type policy_{};
  std::optional<heap_arena> owned_;

  explicit cache_observer(base&& made) : base(std::move(made)) {}
  cache_observer(cache_observer&&) noexcept = default;

  status check(sequence of, int layer = 0) { return base::reserve_tokens(of, layer, 0); }
  template <class Q>
  static status check_finite(tensor_view<Q, 3> q) {
    for (std::int64_t t = 0; t < q.extent[0]; ++t)
      for (std::int64_t h = 0; h < q.extent[1]; ++h)
        for (std::int64_t c = 0; c < q.extent[2]; ++c)
          if (!is_finite(to_float(q(t, h, c)))) return {errc::not_finite, t};
    return {};
  }

  float* sums(sequence of) const { return keep_.template own<float>(of.index, keep_.of_sequence().sums); }
  std::span<survivor> survivors_of(sequence of, int layer, int head) const {
    std::span<survivor> const all{keep_.template own<survivor>(of.index, keep_.of_sequence().rows),
                                  static_cast<std::size_t>(shape_.max_tokens)};
    return all.first(static_cast<std::size_t>(base::survivors(of, layer, head, all).value()));
  }
  std::int64_t row_of(int layer, int head = 0) const { return static_cast<std::int64_t>(layer) * shape_.kv_heads + head; }

  // Statistics of one call into the scores of a layer; arrays [kv_head][list][place].
  status update(sequence of, int layer, policy_statistics in) {
    std::int64_t const first = row_of(layer), heads = shape_.kv_heads;
    auto const longest = std::max_element(&keep_.living(of.index, first), &keep_.living(of.index, first) + heads);
    policy_rows const at{.layers = 1,
                         .kv_heads = heads,
                         .offset = keep_.template work<std::int64_t const>(keep_.of_all().offset, heads),
                         .length = {&keep_.living(of.index, first), static_cast<std::size_t>(heads)}};
    in.visible = *longest;
    policy_state state = keep_.scores(of.index, first, heads);
    state.step = keep_.layer(of.index, layer).observed;
    std::span<std::byte> const scratch{keep_.template own<std::byte>(of.index, keep_.of_sequence().observing),
                                       static_cast<std::size_t>(observe_scratch_bytes(shape_.max_tokens))};
    if (status const ok = pith::observe(policy_, at, in, state, scratch); !ok) return ok;
    keep_.layer(of.index, layer).observed = state.step;
    return {};
  }
  // Statistics that an engine wrote, [kv_head or query_head][slot], times `factor`.
  status take_statistics(sequence of, int layer, std::int64_t rows, float factor = 1) {
    std::int64_t const lists = keep_.lists(), room = shape_.max_tokens;
    float* const all[] = {sums(of), keep_.template own<float>(of.index, keep_.of_sequence().second)};
    for (int h = 0; h < shape_.kv_heads; ++h) {
      std::int64_t const living = keep_.living(of.index, row_of(layer, h));
      for (int i = 0; i <= needs::squares; ++i)
        for (std::int64_t list = 0; list < lists; ++list) {  // in place: no slot comes before its place
          float const* const from = all[i] + (h * lists + list) * room;
          float* to = all[i] + h * lists * room + list * living;
          static_cast<void>(base::for_each_survivor(of, layer, h, [&](std::int64_t slot) { *to++ = factor * from[slot]; }));
        }
    }
    auto const part = [&](bool wanted, float* from) {
      return wanted ? std::span<float const>{from, static_cast<std::size_t>(shape_.kv_heads * lists * room)} : std::span<float const>{};
    };
    return update(of, layer,
                  {.sum = part(!needs::maximum, all[0]),
                   .square_sum = part(needs::squares, all[1]),
                   .maximum = part(needs::maximum, all[0]),
                   .lists = lists,
                   .rows = rows});
  }
  // The second pass over the keys for the newest rows of q.
  template <class Q, class Executor>
  status second_pass(sequence of, int layer, tensor_view<Q, 3> q, tensor_view<float const, 2> lse, std::int64_t newest,
                     attention_options options, Executor&& run) {
    std::int64_t const rows = shape_.kv_heads * keep_.lists();
    tensor_view<float, 2> const first(sums(of), {rows, shape_.max_tokens});
    typename needs::view out;
    if constexpr (needs::maximum)
      out.maximum = first;
    else
      out.sum = first;
    if constexpr (needs::squares)
      out.square_sum = {keep_.template own<float>(of.index, keep_.of_sequence().second), {rows, shape_.max_tokens}};
    options.scores = {};
    options.lse = {};
    if (status const ok = base::attention_statistics(of, layer, q, lse, out, {.newest = newest}, options, run); !ok) return ok;
    return take_statistics(of, layer, newest);
  }
  // The newest `fresh` rows of q: into the scores, or kept for the window.
  template <class Q, class Executor>
  status count_rows(sequence of, int layer, tensor_view<Q, 3> q, tensor_view<float const, 2> lse, std::int64_t fresh,
                    attention_options const& options, Executor&& run) {
    if constexpr (needs::window_rows > 0) {
      keep_queries(of, layer, q, lse, fresh, options);
      return {};
    } else {
      if (status const ok = second_pass(of, layer, q, lse, std::min(fresh, needs::call_rows), options, run); !ok) return ok;
      keep_.layer(of.index, layer).seen = base::length(of, layer);
      return {};
    }
  }

  template <class Q>
  void keep_queries(sequence of, int layer, tensor_view<Q, 3> q, tensor_view<float const, 2> lse, std::int64_t fresh,
                    attention_options const& options) {
    keep_layer& state = keep_.layer(of.index, layer);
    std::int64_t const tokens = base::length(of, layer), heads = shape_.query_heads, width = heads * Recipe::key_channels;
    if (state.window_end != tokens - fresh) state.window_rows = 0;  // rows between them were never seen
    float *const queries = keep_.window(of.index, layer), *const norms = keep_.window_lse(of.index, layer);
    for (std::int64_t t = q.extent[0] - std::min(fresh, needs::window_rows); t < q.extent[0]; ++t) {
      if (state.window_rows == needs::window_room) {
        state.window_rows = needs::window_rows - 1;
        std::copy_n(queries + (needs::window_room - state.window_rows) * width, state.window_rows * width, queries);
        std::copy_n(norms + (needs::window_room - state.window_rows) * heads, state.window_rows * heads, norms);
      }
      for (std::int64_t h = 0; h < heads; ++h) {
        for (std::int64_t c = 0; c < Recipe::key_channels; ++c)
          queries[state.window_rows * width + h * Recipe::key_channels + c] = to_float(q(t, h, c));
        norms[state.window_rows * heads + h] = lse(t, h);
      }
      ++state.window_rows;
    }
    state.window_end = state.seen = tokens;
    state.scale = options.scale, state.soft_cap = options.soft_cap, state.window = options.window;
  }
  status observe_window(sequence of, int layer) {
    keep_layer const& state = keep_.layer(of.index, layer);
    std::int64_t const heads = shape_.query_heads, rows = std::min(state.window_rows, needs::window_rows), first = state.window_rows - rows;
    tensor_view<float const, 3> const q(keep_.window(of.index, layer) + first * heads * Recipe::key_channels,
                                        {rows, heads, Recipe::key_channels});
    tensor_view<float const, 2> const lse(keep_.window_lse(of.index, layer) + first * heads, {rows, heads});
    return second_pass(of, layer, q, lse, rows, {.scale = state.scale, .soft_cap = state.soft_cap, .window = state.window}, serial{});
  }

  // Whether each slot of these layers has a score, or will have one; `at` of the status is the first row that has not.
  status is_observed(sequence of, int first, int layers) const {
    for (int l = first; needs::ranks && l < first + layers; ++l) {
      keep_layer const& state = keep_.layer(of.index, l);
      std::int64_t const tokens = base::length(of, l);
      for (int h = 0; h < shape_.kv_heads; ++h)
        if (needs::window_rows > 0 ? tokens > 0 && (state.window_end != tokens || state.window_rows == 0)
                                   : keep_.known(of.index, row_of(l, h)) != keep_.living(of.index, row_of(l, h)))
          return {errc::shape_mismatch, row_of(l, h)};
    }
    return {};
  }
};

}  // namespace pith
