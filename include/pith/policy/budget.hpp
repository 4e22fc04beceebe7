// SPDX-License-Identifier: Apache-2.0
// How many free slots each row selects: total, layer split and head split put together, after protection.
//
//   free budget of a scope = total - protected slots;   scope: a row, a layer's rows, or all rows (see policy.hpp)
//
// Rule B1  protected + selected of a scope <= max(total, protected), and = total if the scope has as many slots.
// Rule B2  If the protected slots of a scope exceed its total, the total is raised to them, or they are clipped: rows give up what is
//          above an equal share, each its lowest class's oldest slots first (protect.hpp). The numbers are reported.
//
// errors  those of the splits; out_of_range: a total below 0
#pragma once

#include "pith/policy/observe.hpp"

namespace pith {

// What a split may ask for besides scores.
struct budget_input {
  layer_statistics layers{};             // [layer]
  std::span<double const> head_table{};  // [row]
  std::int64_t step = 0;                 // tokens decoded so far
  std::int64_t total = -1;               // >= 0: of all rows, in place of the total stage's: a cascade's total is the whole model's
};

struct budget_report {
  std::int64_t raised = 0, clipped = 0;  // slots by which totals were raised; protected slots that were given up
};

constexpr std::int64_t budget_scratch_bytes(std::int64_t rows) {
  return lent_memory::bytes<std::int64_t>(rows) * 6 + lent_memory::bytes<double>(rows) * 2 + apportion_scratch_bytes(rows) +
         head_split_scratch_bytes(rows);
}

// scores and marks [row][slot], at the same places. Sets share [row]; clipping frees marks.
template <class Policy>
class budget {
 public:
  budget(Policy const& policy, policy_rows const& at, budget_input const& in, ragged_view<float const> scores, ragged_view<slot_mark> marks)
      : policy_(policy), at_(at), in_(in), scores_(scores), marks_(marks) {}

  status shares(std::span<std::int64_t> share, budget_report& report, std::span<std::byte> scratch) {
    using layer_split = typename Policy::template stage_type<stage::layer_split>;
    using head_split = typename Policy::template stage_type<stage::head_split>;
    using select = typename Policy::template stage_type<stage::select>;
    lent_memory memory(scratch);
    bool const room = memory.take(at_.rows(), held_) && memory.take(at_.rows(), free_) && memory.take(at_.rows(), least_) &&
                      memory.take(at_.rows(), layer_share_) && memory.take(at_.rows(), left_) && memory.take(at_.rows(), even_) &&
                      memory.take(at_.rows(), weight_);
    if (!room) return {errc::capacity_exceeded, budget_scratch_bytes(at_.rows())};
    rest_ = memory.rest();
    for (std::int64_t r = 0; r < at_.rows(); ++r) {
      auto const i = static_cast<std::size_t>(r);
      held_[i] = protected_slots(marks_.row(r));
      free_[i] = at_.length[i] - held_[i];
      least_[i] = 0;
      even_[i] = 1;
    }
    if constexpr (select::by == chooses::over_all_rows) {
      auto const all = settle(0, at_.rows(), report);
      if (!all) return all.error();
      std::fill(share.begin(), share.end(), all.value());  // the same for every row: they are ranked together
      return {};
    } else if constexpr (std::is_same_v<layer_split, no_layer_split> && std::is_same_v<head_split, no_head_split>) {
      for (std::int64_t r = 0; r < at_.rows(); ++r) {
        auto const own = settle(r, 1, report);
        if (!own) return own.error();
        share[static_cast<std::size_t>(r)] = std::min(own.value(), free_[static_cast<std::size_t>(r)]);
      }
      return {};
    } else {
      if (status const ok = split_layers(report); !ok) return ok;
      for (std::int64_t l = 0; l < at_.layers; ++l)
        if (status const ok = split_heads(l, share); !ok) return ok;
      return {};
    }
  }

 private:
  template <class T>
  static std::span<T> part(std::span<T> of, std::int64_t first, std::int64_t count) {
    return of.subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(count));
  }

  // The free budget of a scope of rows; raises or clips.
  result<std::int64_t> settle(std::int64_t first, std::int64_t count, budget_report& report) {
    std::int64_t const total = in_.total >= 0 && count == at_.rows()
                                   ? in_.total
                                   : policy_.template at<stage::total>().total({part(at_.length, first, count), in_.step});
    if (total < 0) return status{errc::out_of_range, total};
    std::span<std::int64_t> const held = part(held_, first, count);
    std::int64_t const sum = all_slots(held);
    if (total == no_limit || sum <= total) return total == no_limit ? total : total - sum;
    if (policy_.template at<stage::protect>().when_full == overflow::raise) {
      report.raised += sum - total;
      return std::int64_t{0};
    }
    std::span<std::int64_t> const left = part(left_, first, count);
    status const ok = apportion(part(even_, first, count), part(least_, first, count), held, total, left, rest_);
    if (!ok) return ok;
    for (std::int64_t i = 0; i < count; ++i) {
      auto const k = static_cast<std::size_t>(i);
      report.clipped += clip_protected(marks_.row(first + i), left[k]);
      free_[static_cast<std::size_t>(first + i)] += held[k] - left[k];
      held[k] = left[k];
    }
    return std::int64_t{0};
  }

  status split_layers(budget_report& report) {
    using split = typename Policy::template stage_type<stage::layer_split>;
    std::span<std::int64_t> const share = part(layer_share_, 0, at_.layers);
    if constexpr (std::is_same_v<split, no_layer_split>) {
      for (std::int64_t l = 0; l < at_.layers; ++l) {
        auto const own = settle(l * at_.kv_heads, at_.kv_heads, report);
        if (!own) return own.error();
        share[static_cast<std::size_t>(l)] = own.value();
      }
      return {};
    } else {
      auto const all = settle(0, at_.rows(), report);
      if (!all) return all.error();
      std::span<double> const weights = part(weight_, 0, at_.layers);
      if (status const ok = policy_.template at<stage::layer_split>().weights(in_.layers, weights); !ok) return ok;
      std::span<std::int64_t> most;
      lent_memory memory(rest_);
      if (!memory.take(at_.layers, most)) return {errc::capacity_exceeded, budget_scratch_bytes(at_.rows())};
      for (std::int64_t l = 0; l < at_.layers; ++l)
        most[static_cast<std::size_t>(l)] = all_slots(part(free_, l * at_.kv_heads, at_.kv_heads));
      return apportion(weights, part(least_, 0, at_.layers), most, all.value(), share, memory.rest());
    }
  }

  status split_heads(std::int64_t layer, std::span<std::int64_t> share) {
    using named = typename Policy::template stage_type<stage::head_split>;
    std::int64_t const first = layer * at_.kv_heads, heads = at_.kv_heads;
    if (!in_.head_table.empty() && static_cast<std::int64_t>(in_.head_table.size()) != at_.rows())
      return {errc::shape_mismatch, static_cast<std::int64_t>(in_.head_table.size())};
    ragged_view<slot_mark const> const marks{marks_.data, marks_.offset, marks_.length};
    head_split_input const in{scores_.part(first, heads), marks.part(first, heads), part(free_, first, heads),
                              in_.head_table.empty() ? in_.head_table : part(in_.head_table, first, heads),
                              layer_share_[static_cast<std::size_t>(layer)]};
    auto const out = part(share, first, heads);
    if constexpr (std::is_same_v<named, no_head_split>)
      return uniform_heads{}.split(in, out, rest_);
    else
      return policy_.template at<stage::head_split>().split(in, out, rest_);
  }

  Policy const& policy_;
  policy_rows const& at_;
  budget_input const& in_;
  ragged_view<float const> scores_;
  ragged_view<slot_mark> marks_;
  std::span<std::int64_t> held_, free_, least_, layer_share_, left_;
  std::span<double> even_, weight_;
  std::span<std::byte> rest_;
};

}  // namespace pith
