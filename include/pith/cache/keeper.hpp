// SPDX-License-Identifier: Apache-2.0
// A policy carried out on a cache: statistics into scores, scores into survivors, survivors into pages that come back. A base of
// cache<Recipe> where the recipe has keep<...>; cache/keep.hpp calls it at the right moments.
//
//   cache.observe(s, layer, q, lse);                 // these queries' attention into the scores
//   cache.observe_scores(s, layer, scores);          // or the caller's own numbers: given_scores
//   keep_report const done = cache.apply(s).value(); // decide now, whatever the trigger says, and carry it out
//
// Rule K1  Rows are survivors, in order: what was dropped is never ranked again, and budgets count living slots of each (layer, KV head).
// Rule K2  A row that fits is left alone, bit for bit.
// Rule K3  What leaves a row is masked, merged or spread; then the row is compacted if that gives back `least_pages`. A row whose pages a
//         fork shares is copied; where there are no pages for that, it stays masked, is reported, and is compacted by a later decision.
// Rule K4  A compensating row keeps one more slot than its capacity: the newest of its losers, which stands for all of them.
//
// errors  those of observe() and decide() of the policy, and of compact() where rows are merged. Decisions go layer by layer (all layers at
//         once where they share a budget) and are carried out row by row: what is before an error is done, the row that it names is not
//         touched, and each row's scores are of its survivors. capacity_exceeded: a merge into pages that a fork shares found no others
// cost    decide()'s, and compact()'s for rows that something left. No allocation
#pragma once

#include <mutex>

#include "pith/cache/keep_observer.hpp"

namespace pith {

// What a decision did, in slots of KV heads.
struct keep_report {
  std::int64_t rows = 0;  // (layer, KV head)s that were decided on; 0: the policy was not due
  std::int64_t kept = 0, dropped = 0, merged = 0;
  std::int64_t raised = 0, clipped = 0;  // protected slots above the capacity: it was raised by so many, or so many were given up
  std::int64_t masked_rows = 0;          // rows that could not be compacted for want of pages (Rule K3)
  std::int64_t bytes = 0;                // given back to the arena
};

namespace keep_detail {

// A policy whose losers are dropped: routes are laid row by row, so that one row's keys are enough.
template <class Policy>
struct dropping {
  Policy const& policy;
  template <stage Kind>
  using stage_type = std::conditional_t<Kind == stage::dispose, drop, typename Policy::template stage_type<Kind>>;
  template <stage Kind>
  decltype(auto) at() const {
    if constexpr (Kind == stage::dispose)
      return drop{};
    else
      return policy.template at<Kind>();
  }
};

}  // namespace keep_detail

template <class Recipe>
class cache_keeper : public cache_observer<Recipe> {
  using observer = cache_observer<Recipe>;

 public:
  using typename observer::policy_type;
  std::int64_t least_pages = 1;  // of a row, to compact it: with codecs that encode rows together a row can be moved once, so wait for more

  // What the policy's stages ask for beside scores: masks, statistics of layers, tables. Until the next call; a fork has the same.
  status set_input(sequence of, keep_input const& given) {
    if (status const ok = check(of); !ok) return ok;
    keep_.state(of.index).given = given;
    return {};
  }

  // Decides for all layers, or for one where layers do not share a budget, and carries it out.
  // errors  stale_handle, out_of_range; shape_mismatch (`at` is a row, layer * kv_heads + head, with slots that were never observed)
  result<keep_report> apply(sequence of) {
    if (status const ok = check(of); !ok) return ok;
    return decide_layers(of, 0, shape_.layers, -1);
  }
  result<keep_report> apply(sequence of, int layer) requires(!keep_traits<typename Recipe::policy>::whole_model) {
    if (status const ok = check(of, layer); !ok) return ok;
    return decide_layers(of, layer, 1, -1);
  }

 protected:
  using observer::check;
  using observer::keep_;
  using observer::policy_;
  using observer::row_of;
  using observer::shape_;
  using typename observer::base;
  using typename observer::needs;

  own_mutex deciding_;  // one decision at a time: they share their scratch

  explicit cache_keeper(base&& made) : observer(std::move(made)) {}
  cache_keeper(cache_keeper&&) noexcept = default;

  // total >= 0: of all rows together, for a cascade.
  result<keep_report> decide_layers(sequence of, int first, int layers, std::int64_t total) {
    keep_report report;
    if (status const ok = this->is_observed(of, first, layers); !ok) return ok;
    if constexpr (needs::window_rows > 0)
      for (int l = first; l < first + layers; ++l)
        if (base::length(of, l) > 0)
          if (status const ok = this->observe_window(of, l); !ok) return ok;
    std::int64_t const before = base::resident_bytes();
    std::lock_guard const alone(deciding_);
    for (int l = first; l < first + layers; l += needs::whole_model ? layers : 1)
      if (status const ok = decide_rows(of, l, needs::whole_model ? layers : 1, total, report); !ok) return ok;
    report.bytes = before - base::resident_bytes();
    return report;
  }

  status decide_rows(sequence of, int first, int layers, std::int64_t total, keep_report& report) {
    auto const at = keep_.of_all();
    std::int64_t const rows = static_cast<std::int64_t>(layers) * shape_.kv_heads, slots = rows * shape_.max_tokens, row0 = row_of(first);
    auto const length = keep_.template work<std::int64_t>(at.length, rows), offset = keep_.template work<std::int64_t>(at.offset, rows);
    std::copy_n(&keep_.living(of.index, row0), rows, length.begin());
    policy_rows const where{.layers = layers, .kv_heads = shape_.kv_heads, .offset = offset, .length = length};
    policy_input const in = gather_input(of, first, layers, total);
    policy_state const state = keep_.scores(of.index, row0, rows);
    policy_plan plan{.kept = keep_.template work<std::int64_t>(at.kept, slots),
                     .kept_count = keep_.template work<std::int64_t>(at.counts, rows)};
    keep_detail::dropping<policy_type> const policy{policy_};
    if (status const ok =
            decide(policy, where, in, state, plan, keep_.template work<std::byte>(at.deciding, decide_scratch_bytes(rows, slots)));
        !ok)
      return ok;
    keep_.state(of.index).cursor = plan.cursor;
    report.rows += rows, report.raised += plan.budget.raised, report.clipped += plan.budget.clipped;
    for (std::int64_t r = 0; r < rows; ++r) {
      int const layer = first + static_cast<int>(r / shape_.kv_heads), head = static_cast<int>(r % shape_.kv_heads);
      auto const kept = plan.kept.subspan(static_cast<std::size_t>(offset[static_cast<std::size_t>(r)]),
                                          static_cast<std::size_t>(length[static_cast<std::size_t>(r)]));
      if (status const ok = carry_out(of, layer, head, kept, plan.kept_count[static_cast<std::size_t>(r)], report); !ok) return ok;
    }
    return {};
  }

  // What the policy's stages ask for beside scores, by places.
  policy_input gather_input(sequence of, int first, int layers, std::int64_t total) const {
    policy_input in;
    keep_sequence const& state = keep_.state(of.index);
    auto const at = keep_.of_all();
    std::int64_t const rows = static_cast<std::int64_t>(layers) * shape_.kv_heads, slots = rows * shape_.max_tokens;
    auto const part = [](auto all, std::int64_t from, std::int64_t count) {
      return static_cast<std::int64_t>(all.size()) < from + count
                 ? all
                 : all.subspan(static_cast<std::size_t>(from), static_cast<std::size_t>(count));
    };
    layer_statistics const& given = state.given.layers;
    in.budget = {.layers = {part(given.entropy, first, layers), part(given.variance, first, layers), part(given.uncertainty, first, layers),
                            part(given.table, first, layers)},
                 .head_table = part(state.given.head_table, row_of(first), rows),
                 .step = base::length(of, first) - state.prompt,
                 .total = total};
    in.seed = state.given.seed;
    if (needs::window_rows > 0) in.statistic_rows = std::min(needs::window_rows, keep_.layer(of.index, first).window_rows);
    if constexpr (needs::names_slots || needs::by_chance) {
      auto const mask = keep_.template work<std::uint8_t>(at.mask, needs::names_slots ? slots : 0),
                 pins = keep_.template work<std::uint8_t>(at.pins, needs::names_slots ? slots : 0);
      auto const births = keep_.template work<std::int64_t>(at.births, needs::by_chance ? slots : 0);
      auto const named = [](std::span<std::uint8_t const> tokens, std::int64_t token) {
        return token < static_cast<std::int64_t>(tokens.size()) ? tokens[static_cast<std::size_t>(token)] : std::uint8_t{0};
      };
      for (std::int64_t r = 0; r < rows; ++r) {
        auto const living = shared_survivors(of, first + static_cast<int>(r / shape_.kv_heads), static_cast<int>(r % shape_.kv_heads));
        for (std::size_t i = 0; i < living.size(); ++i) {
          auto const place = static_cast<std::size_t>(r * shape_.max_tokens) + i;
          if constexpr (needs::names_slots)
            mask[place] = named(state.given.mask, living[i].token), pins[place] = named(state.given.pins, living[i].token);
          if constexpr (needs::by_chance) births[place] = living[i].token;
        }
      }
      in.mask = mask, in.pins = pins, in.births = births;
    }
    return in;
  }
  std::span<survivor> shared_survivors(sequence of, int layer, int head) const {
    auto const all = keep_.template work<survivor>(keep_.of_all().rows, shape_.max_tokens);
    return all.first(static_cast<std::size_t>(base::survivors(of, layer, head, all).value()));
  }

  // One row: `kept` [length] begins with `count` places that stay.
  status carry_out(sequence of, int layer, int head, std::span<std::int64_t> kept, std::int64_t count, keep_report& report) {
    auto const length = static_cast<std::int64_t>(kept.size());
    if (count == length) {
      report.kept += length;
      return {};
    }
    auto const living = shared_survivors(of, layer, head);
    auto const marks = keep_.template work<slot_mark>(keep_.of_all().marks, length);
    std::fill(marks.begin(), marks.end(), free_slot);
    for (std::int64_t i = 0; i < count; ++i) marks[static_cast<std::size_t>(kept[static_cast<std::size_t>(i)])] = chosen_slot;
    if constexpr (needs::merges) {
      if (status const ok = merge_losers(of, layer, head, living, marks, kept, count, report); !ok) return ok;
    } else {
      auto const tokens = keep_.template work<std::int64_t>(keep_.of_all().tokens, length - count);
      std::size_t losers = 0;
      for (std::size_t i = 0; i < living.size(); ++i)
        if (marks[i] == free_slot) tokens[losers++] = living[i].token;
      if (status const ok = base::evict(of, layer, head, tokens); !ok) return ok;
      report.dropped += length - count;
      if (!base::compact(of, layer, head, least_pages)) ++report.masked_rows;
    }
    std::int64_t const none = 0, row = row_of(layer, head);
    policy_state state = keep_.scores(of.index, row, 1);
    policy_plan const plan{.kept = kept, .kept_count = {&count, 1}, .cursor = state.cursor};
    if constexpr (needs::ranks) carry(policy_, {.offset = {&none, 1}, .length = {&length, 1}}, plan, state);
    keep_.living(of.index, row) = count;
    keep_.state(of.index).least = std::max(keep_.state(of.index).least, base::length(of, layer));
    report.kept += count;
    return {};
  }

  status merge_losers(sequence of, int layer, int head, std::span<survivor const> living, std::span<slot_mark const> marks,
                      std::span<std::int64_t> kept, std::int64_t& count, keep_report& report) {
    auto const at = keep_.of_all();
    auto const length = static_cast<std::int64_t>(living.size());
    auto const tokens = keep_.template work<std::int64_t>(at.tokens, length), target = keep_.template work<std::int64_t>(at.target, length),
               into = keep_.template work<std::int64_t>(at.into, length);
    auto const weight = keep_.template work<float>(at.weight, length), bias = keep_.template work<float>(at.bias, length);
    auto const keys = keep_.template work<float>(at.keys, needs::by_keys ? length * Recipe::key_channels : 0);
    for (std::size_t i = 0; i < living.size(); ++i) tokens[i] = living[i].token;
    if constexpr (needs::biased)
      for (std::size_t i = 0; i < living.size(); ++i) bias[i] = base::memory().biases_of(of.index, layer, head)[living[i].slot];
    if constexpr (needs::by_keys)
      if (status const ok = base::read_rows(of, layer, head, living, keys, {}); !ok) return ok;
    auto const scratch = keep_.template work<std::byte>(
        at.merging, pith::cache_compactor<unkept<Recipe>>::merge_scratch_bytes(shape_.max_tokens, shape_.max_tokens) +
                        pith::merge_scratch_bytes(shape_.max_tokens + 1));
    dispose_input in{marks, keys, Recipe::key_channels, tokens, needs::biased ? bias : std::span<float>{}};
    if constexpr (needs::ranks) in.scores = keep_.scores(of.index, row_of(layer, head), 1).score.first(living.size());
    in.seed = keep_.state(of.index).given.seed, in.row = row_of(layer, head), in.births = tokens;
    if (status const ok = policy_.template at<stage::dispose>().route(in, target, weight, scratch); !ok) return ok;
    std::int64_t host = -1;
    if constexpr (needs::compensates) host = std::find(marks.rbegin(), marks.rend(), free_slot).base() - marks.begin() - 1;
    merge_plan plan{into, weight};
    if constexpr (needs::spreads) plan.next = policy_.template at<stage::dispose>().next;
    std::int64_t merged = 0, dropped = 0;
    for (std::size_t i = 0; i < into.size(); ++i) {
      into[i] = target[i] == no_target || (needs::spreads && weight[i] == 0) ? merge_plan::dropped
                : target[i] == count                                         ? host
                                                                             : kept[static_cast<std::size_t>(target[i])];
      merged += into[i] >= 0 && into[i] != static_cast<std::int64_t>(i), dropped += into[i] < 0;
    }
    if (status const ok = base::compact(of, layer, head, plan, scratch).error(); !ok) return ok;
    report.merged += merged, report.dropped += dropped;
    if constexpr (needs::compensates) {
      auto const behind = std::upper_bound(kept.begin(), kept.begin() + count, host);
      std::copy_backward(behind, kept.begin() + count, kept.begin() + count + 1);
      *behind = host;
      ++count;
    }
    return {};
  }
};

}  // namespace pith
