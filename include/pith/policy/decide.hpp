// SPDX-License-Identifier: Apache-2.0
// The second half of a policy's run: scores in, a plan out. Normalise, smooth, protect, budget, select, dispose, position.
//
//   observe(policy, rows, statistics, state, scratch)      each step that has statistics
//   decide(policy, rows, input, state, plan, scratch)      when the policy is due; changes nothing but the plan
//   carry(policy, rows, plan, state)                       once the plan has been carried out: the state moves with the survivors
//
// Rule D1  kept is strictly increasing in every row, and depends on scores, marks and numbers given, on nothing else.
// Rule D2  A row that fits into its capacity is kept as it is: kept = 0, 1, ... length - 1.
// Rule D3  Protected slots are kept unless the plan reports them clipped.
//
// errors  those of the stages, budget.hpp and select_*.hpp; not_finite, and out_of_range of a slot: `at` is its place in the arrays. The
//         plan is of no use then
// cost    O(slots) on average, plus what the stages say; no allocation
#pragma once

#include <numeric>

#include "pith/policy/budget.hpp"

namespace pith {

// What is known of the slots besides their scores. Arrays lie at the rows' offsets; empty where no stage asks for them.
struct policy_input {
  std::span<std::uint8_t const> mask{}, pins{};  // [row][slot]: masked_slots, pinned_slots
  budget_input budget{};
  std::int64_t statistic_rows = all_rows;     // query rows behind the scores: per_query
  std::span<std::int64_t const> births{};     // [row][slot]: chance, spread; empty: slots
  std::span<std::int64_t const> positions{};  // [row][slot], ascending: position fixes, nearest_kept; empty: slots
  std::span<float const> keys{};              // [row][slot][channels]: most_similar, own_run, by_distance, best_runs
  std::int64_t channels = 0;
  std::span<float const> bias{};           // [row][slot]; empty: zeros
  std::uint64_t seed = 0;                  // chance, spread
  std::span<float const> value_weights{};  // [row][slot]: best_twice
  std::span<std::int64_t const> groups{};  // [row][slot], each in 0 ... length - 1: best_groups
};

// The caller's arrays, at the rows' offsets. target, weight and bias are for merge, compensate and spread only; position may be empty.
struct policy_plan {
  std::span<std::int64_t> kept{};        // [row][new slot]: the old slot
  std::span<std::int64_t> kept_count{};  // [row]
  std::span<std::int64_t> position{};    // [row][new slot]
  std::span<std::int64_t> target{};      // [row][old slot]: the new slot, or no_target
  std::span<float> weight{};             // [row][old slot]
  std::span<float> bias{};               // [row][new slot]; compensate's slot: compensation_bias
  std::span<float> compensation_bias{};  // [row]; -infinity if nothing left the row
  fate losers = fate::dropped;
  budget_report budget{};
  std::int64_t cursor = 0;
};

constexpr std::int64_t decide_scratch_bytes(std::int64_t rows, std::int64_t slots) {
  return lent_memory::bytes<slot_mark>(slots) + 2 * lent_memory::bytes<float>(slots + 1) + lent_memory::bytes<std::int64_t>(rows) +
         lent_memory::bytes<std::int64_t>(slots) + lent_memory::bytes<std::int64_t>(rows) + budget_scratch_bytes(rows) +
         choose_scratch_bytes(slots) + merge_scratch_bytes(slots + 1);
}

namespace decide_detail {

// A part of an optional array.
template <class T>
std::span<T> row_of(policy_rows const& at, std::span<T> all, std::int64_t row, std::int64_t width = 1) {
  return all.empty() ? all : at.view(all).wide_row(row, width);
}

template <class Policy>
class decision {
  template <stage Kind>
  using type = typename Policy::template stage_type<Kind>;
  static constexpr bool compensates = type<stage::dispose>::losers == fate::compensated;
  static constexpr bool spreads = type<stage::dispose>::losers == fate::spread;
  static constexpr bool routes = type<stage::dispose>::losers == fate::merged || compensates || spreads;
  static constexpr bool ranks = type<stage::select>::by == chooses::by_score || type<stage::select>::by == chooses::over_all_rows;
  static constexpr bool weighs = requires { type<stage::select>::weighs; };

 public:
  decision(Policy const& policy, policy_rows const& at, policy_input const& in, policy_state const& state, policy_plan& plan)
      : policy_(policy), at_(at), in_(in), state_(state), plan_(plan) {}

  status run(std::span<std::byte> scratch) {
    if (status const ok = check(); !ok) return ok;
    std::int64_t const slots = all_slots(at_.length), rows = at_.rows();
    lent_memory memory(scratch);
    std::span<slot_mark> marks;
    std::span<float> scores;
    std::span<std::int64_t> share;
    bool const room = memory.take(slots, marks) && memory.take(slots, scores) && memory.take(slots + 1, row_) &&
                      memory.take(rows, packed_) && memory.take(rows, share) && memory.take(slots, old_);
    if (!room) return {errc::capacity_exceeded, decide_scratch_bytes(rows, slots)};
    rest_ = memory.rest();
    std::exclusive_scan(at_.length.begin(), at_.length.end(), packed_.begin(), std::int64_t{0});
    marks_ = {marks, packed_, at_.length};
    scores_ = {scores, packed_, at_.length};

    for (std::int64_t r = 0; r < rows; ++r)
      if (status const ok = prepare(r); !ok) return ok;
    plan_.budget = {};
    plan_.losers = type<stage::dispose>::losers;
    plan_.cursor = state_.cursor;
    if (status const ok = select(share); !ok) return ok;
    for (std::int64_t r = 0; r < rows; ++r)
      if (status const ok = finish(r); !ok) return ok;
    return {};
  }

 private:
  ragged_view<float const> const_scores() const { return {scores_.data, scores_.offset, scores_.length}; }
  std::span<float const> keys_of(std::int64_t r) const { return row_of(at_, in_.keys, r, std::max<std::int64_t>(in_.channels, 1)); }
  status check() const {
    if (status const ok = at_.check(); !ok) return ok;
    auto const fits = [&](auto all, std::int64_t width, bool wanted) {
      return all.empty() && !wanted ? status{} : at_.view(all).check(width);
    };
    for (status const ok :
         {fits(plan_.kept, 1, true), fits(plan_.position, 1, false), fits(plan_.target, 1, routes), fits(plan_.weight, 1, routes),
          fits(plan_.bias, 1, routes), fits(in_.mask, 1, false), fits(in_.pins, 1, false), fits(in_.births, 1, false),
          fits(in_.positions, 1, false), fits(in_.bias, 1, false), fits(in_.value_weights, 1, weighs), fits(in_.groups, 1, false),
          fits(state_.score, 1, ranks)})
      if (!ok) return ok;
    if (!in_.keys.empty() && in_.channels < 1) return {errc::shape_mismatch, in_.channels};
    if (status const ok = fits(in_.keys, std::max<std::int64_t>(in_.channels, 1), false); !ok) return ok;
    if (static_cast<std::int64_t>(plan_.kept_count.size()) != at_.rows())
      return {errc::shape_mismatch, static_cast<std::int64_t>(plan_.kept_count.size())};
    if (compensates && static_cast<std::int64_t>(plan_.compensation_bias.size()) != at_.rows())
      return {errc::shape_mismatch, static_cast<std::int64_t>(plan_.compensation_bias.size())};
    for (std::int64_t r = 0; ranks && r < at_.rows(); ++r)  // every slot has been observed
      if (state_.known.size() != plan_.kept_count.size() ||
          state_.known[static_cast<std::size_t>(r)] != at_.length[static_cast<std::size_t>(r)])
        return {errc::shape_mismatch, r};
    return {};
  }

  // Scores to rank by, and protection.
  status prepare(std::int64_t r) {
    auto const marks = marks_.row(r);
    auto const scores = scores_.row(r);
    std::fill(marks.begin(), marks.end(), free_slot);
    status const ok = policy_.template at<stage::protect>().mark(marks, {row_of(at_, in_.mask, r), row_of(at_, in_.pins, r)});
    if (!ok) return ok;
    if (!ranks) {
      std::fill(scores.begin(), scores.end(), 0.0f);
      return {};
    }
    auto const state = at_.view(state_.score).row(r);
    auto const own = row_.first(state.size());
    std::copy(state.begin(), state.end(), own.begin());
    std::copy(state.begin(), state.end(), scores.begin());
    // Slots of the statistics' own window are neither scored nor neighbours.
    std::size_t const scored = own.size() - std::min(own.size(), static_cast<std::size_t>(type<stage::signal>::unscored));
    policy_.template at<stage::normalise>().apply(own, in_.statistic_rows);
    policy_.template at<stage::smooth>().apply(own.first(scored), scores.first(scored));
    status const finite = check_scores(scores, marks);
    return finite ? finite : status{finite.code, at_.offset[static_cast<std::size_t>(r)] + finite.at};
  }

  status select(std::span<std::int64_t> share) {
    auto const& how = policy_.template at<stage::select>();
    if constexpr (type<stage::select>::by == chooses::by_ladder) {
      return lay_ladders(how);
    } else {
      status const ok = budget(policy_, at_, in_.budget, const_scores(), marks_).shares(share, plan_.budget, rest_);
      if (!ok) return ok;
      if constexpr (type<stage::select>::by == chooses::over_all_rows) {
        std::int64_t const all = share.empty() ? 0 : share[0], rows = std::max<std::int64_t>(at_.rows(), 1);
        return select_pooled(const_scores(), marks_, all, std::min(how.floor, all / rows));
      } else {
        for (std::int64_t r = 0; r < at_.rows(); ++r) {
          choose_input const in{const_scores().row(r),      share[static_cast<std::size_t>(r)], in_.seed,   r,
                                row_of(at_, in_.births, r), row_of(at_, in_.value_weights, r),  keys_of(r), in_.channels,
                                row_of(at_, in_.groups, r)};
          status const chosen = how.choose(in, marks_.row(r), rest_);
          bool const of_slot = chosen.code == errc::not_finite || (chosen.code == errc::out_of_range && chosen.at >= 0);
          if (!chosen) return of_slot ? status{chosen.code, at_.offset[static_cast<std::size_t>(r)] + chosen.at} : chosen;
        }
        return {};
      }
    }
  }

  // The rows of a layer keep the same slots, and all rows are as long as each other.
  template <class Steps>
  status lay_ladders(Steps const& how) {
    for (std::int64_t r = 0; r < at_.rows(); ++r) {
      auto const i = static_cast<std::size_t>(r);
      if (at_.length[i] != at_.length[0]) return {errc::shape_mismatch, r};
      std::int64_t const room = policy_.template at<stage::total>().total({at_.length.subspan(i, 1), in_.budget.step});
      auto const by = ladder::make({at_.layers, how.span, how.overlap, how.sinks, std::min(room, std::int64_t{1} << 40)});
      if (!by) return by.error();
      auto const list = old_.first(static_cast<std::size_t>(at_.length[i]));
      std::iota(list.begin(), list.end(), std::int64_t{0});
      std::int64_t cursor = state_.cursor;
      std::int64_t const kept = by.value().shorten(list, r / at_.kv_heads, cursor);
      for (std::int64_t k = 0; k < kept; ++k) marks_.row(r)[static_cast<std::size_t>(list[static_cast<std::size_t>(k)])] = chosen_slot;
      plan_.cursor = cursor;
    }
    return {};
  }

  // Kept slots, positions and what becomes of the others.
  status finish(std::int64_t r) {
    auto const i = static_cast<std::size_t>(r);
    auto const marks = marks_.row(r);
    auto const kept = at_.view(plan_.kept).row(r);
    std::int64_t const count = kept_slots(marks, kept);
    plan_.kept_count[i] = count;
    auto const n = static_cast<std::size_t>(count);
    if (!plan_.position.empty()) {
      auto const before = row_of(at_, in_.positions, r);
      for (std::size_t k = 0; k < n; ++k) old_[k] = before.empty() ? kept[k] : before[static_cast<std::size_t>(kept[k])];
      status const ok = policy_.template at<stage::position>().fix(old_.first(n), at_.view(plan_.position).row(r).first(n));
      if (!ok) return ok;
    }
    if constexpr (routes) {
      std::span<float const> const scores = state_.score;
      dispose_input in{marks, keys_of(r), in_.channels, row_of(at_, in_.positions, r), row_of(at_, in_.bias, r)};
      in.scores = row_of(at_, scores, r), in.births = row_of(at_, in_.births, r);
      in.seed = in_.seed, in.row = r;
      auto const target = at_.view(plan_.target).row(r);
      status ok = policy_.template at<stage::dispose>().route(in, target, at_.view(plan_.weight).row(r), rest_);
      if (!ok) return ok;
      auto const bias = row_.first(n + compensates);
      if constexpr (spreads) {
        for (std::size_t k = 0; k < n; ++k) bias[k] = in.bias.empty() ? 0.0f : in.bias[static_cast<std::size_t>(kept[k])];
      } else {
        if (ok = merge_bias(target, in.bias, bias, rest_); !ok) return ok;
      }
      std::copy_n(bias.begin(), n, at_.view(plan_.bias).row(r).begin());
      if constexpr (compensates) plan_.compensation_bias[i] = bias[n];
    }
    return {};
  }

  Policy const& policy_;
  policy_rows const& at_;
  policy_input const& in_;
  policy_state const& state_;
  policy_plan& plan_;
  ragged_view<slot_mark> marks_;
  ragged_view<float> scores_;
  std::span<float> row_;
  std::span<std::int64_t> packed_, old_;
  std::span<std::byte> rest_;
};

}  // namespace decide_detail

template <class Policy>
status decide(Policy const& policy, policy_rows const& at, policy_input const& in, policy_state const& state, policy_plan& plan,
              std::span<std::byte> scratch) {
  return decide_detail::decision<Policy>(policy, at, in, state, plan).run(scratch);
}

// Moves the state of kept slots to their new places. A merged slot keeps its own score. Nothing moves if the policy retrieves or offloads:
// then every slot is still there, or comes back. What was folded or demoted is ranked no more.
template <class Policy>
void carry(Policy const&, policy_rows const& at, policy_plan const& plan, policy_state& state) {
  constexpr std::int64_t words = Policy::template stage_type<stage::scorer>::history_words;
  state.cursor = plan.cursor;
  if (plan.losers == fate::offloaded || plan.losers == fate::still_there) return;
  for (std::int64_t r = 0; r < at.rows(); ++r) {
    auto const i = static_cast<std::size_t>(r);
    for (std::int64_t k = 0; k < plan.kept_count[i]; ++k) {
      std::int64_t const to = at.offset[i] + k, from = at.offset[i] + plan.kept[static_cast<std::size_t>(to)];
      if (!state.score.empty()) state.score[static_cast<std::size_t>(to)] = state.score[static_cast<std::size_t>(from)];
      for (std::int64_t w = 0; w < words; ++w)
        state.history[static_cast<std::size_t>(to * words + w)] = state.history[static_cast<std::size_t>(from * words + w)];
    }
    if (!state.known.empty()) state.known[i] = plan.kept_count[i];
  }
}

}  // namespace pith
