// SPDX-License-Identifier: Apache-2.0
// Statistics of attention: what eviction policies rank slots by. A second pass over the keys, once lse is known, for chosen query rows.
//
//   p[i][t] = e^(s[i][t] - lse[i]);   exactly 0 where the slot is masked or the row's lse is -infinity
//
//   sum           sum_i p               H2O, SnapKV and kin         below          number of visible i with p < threshold[i]   Scissorhands
//   square_sum    sum_i p^2             CAKE's variance             weighted_sum   sum_i weight[i] p
//   maximum       max_i p               KVzip                       entropy        sum_i p (lse[i] - s), natural units
//   row_entropy   of a query row i: sum_t p (lse[i] - s), its entropy over the stored slots     CAKE, ZigZagKV
//
// Rule S1  A statistic is that of one query head, then reduced over the group of heads that share a KV head. Variances of single heads need
//          group_reduction::none.
// Rule S2  Scores are those of the attention call: scale, soft cap, bias, window, causality, liveness. A sink logit is in lse already.
// Rule S3  Every slot of a sequence is written, whatever stood there. Sums are f32, rows in ascending order: no bit depends on threads.
// Rule S4  lse belongs to the same queries and the same stored keys. If tokens were sealed in between, the probabilities of a row no longer
//          sum to 1 exactly, but to within what the codec changed; p is at most 1 whatever lse is.
//
// differs the device has no row_entropy, and adds rows in another order, a fixed one too (cuda/statistics_kernel.hpp)
// cost    2 |rows| tokens channels operations a query head and one read of the keys for each 16 rows (from cache but for the first);
//         nothing that was not asked for is computed; no allocation
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <span>
#include <type_traits>

#include "pith/page/query_rows.hpp"

namespace pith {

enum class statistic : std::uint8_t { sum, square_sum, maximum, below, weighted_sum, entropy, row_entropy };
enum class group_reduction : std::uint8_t { none, sum, mean, maximum };

// Where the wanted statistics go; views of others are not looked at.
//   [kv_head][slot], with group_reduction::none [query_head][slot]; slots are neighbours in memory
//   row_entropy [query token][query_head], rows that are not chosen stay as they are
template <group_reduction Reduction, statistic... Wanted>
struct statistics_view {
  static constexpr group_reduction reduction = Reduction;
  PITH_HD static constexpr bool has(statistic one) { return ((one == Wanted) || ...); }
  static constexpr int of_slots = ((Wanted != statistic::row_entropy) + ... + 0);
  // Which of those of slots it is.
  PITH_HD static constexpr int place(statistic one) {
    int before = 0;
    bool found = false;
    ((found = found || Wanted == one, before += !found && Wanted != statistic::row_entropy), ...);
    return before;
  }

  tensor_view<float, 2> sum{}, square_sum{}, maximum{}, below{}, weighted_sum{}, entropy{}, row_entropy{};

  // The part of one sequence: its slots from `slot` on, its query tokens.
  statistics_view of_sequence(std::int64_t slot, std::int64_t first_query, std::int64_t queries) const {
    statistics_view cut = *this;
    for (tensor_view<float, 2>* view : {&cut.sum, &cut.square_sum, &cut.maximum, &cut.below, &cut.weighted_sum, &cut.entropy})
      if (view->data != nullptr) view->data += slot;
    if (has(statistic::row_entropy)) cut.row_entropy = row_entropy.part(first_query, queries);
    return cut;
  }
  // Whether the heads' rows may be added up together, as one.
  static constexpr bool heads_together = Reduction == group_reduction::sum || Reduction == group_reduction::mean
                                             ? !has(statistic::maximum)
                                             : Reduction == group_reduction::maximum && ((Wanted == statistic::maximum) && ...);
  // f.operator()<statistic>(its view) for those of slots.
  template <class F>
  void for_each_of_slots(F f) const {
    auto const one = [&]<statistic Which>() {
      if constexpr (Which != statistic::row_entropy) f.template operator()<Which>(of<Which>());
    };
    (one.template operator()<Wanted>(), ...);
  }
  template <statistic Which>
  tensor_view<float, 2> const& of() const {
    if constexpr (Which == statistic::sum) return sum;
    if constexpr (Which == statistic::square_sum) return square_sum;
    if constexpr (Which == statistic::maximum) return maximum;
    if constexpr (Which == statistic::below) return below;
    if constexpr (Which == statistic::weighted_sum) return weighted_sum;
    if constexpr (Which == statistic::entropy) return entropy;
    if constexpr (Which == statistic::row_entropy) return row_entropy;
  }
};

// Which query rows count: of a sequence's queries the newest `newest`, of those every `stride`-th, the newest among them.
struct statistics_rows {
  std::int64_t newest = std::numeric_limits<std::int64_t>::max();
  std::int64_t stride = 1;
  std::span<float const> weights{};     // one a query token of the call, for weighted_sum
  std::span<float const> thresholds{};  // the same, for below

  statistics_rows of_sequence(std::int64_t first_query) const {
    auto const from = [&](std::span<float const> of) { return of.empty() ? of : of.subspan(static_cast<std::size_t>(first_query)); };
    return {newest, stride, from(weights), from(thresholds)};
  }
};

// Chosen rows as an engine reads them: row r is chosen token r / group, head r % group.
struct weighed_rows {
  head_rows rows;
  int group = 1;
  tensor_view<float const, 2> lse{};    // [chosen token][head]
  tensor_view<float, 2> row_entropy{};  // the same
  float const *weights = nullptr, *thresholds = nullptr;
  std::int64_t stride = 1;  // of both

  float lse_of(std::int64_t row) const { return lse(row / group, row % group); }
  float weight(std::int64_t row) const { return weights[row / group * stride]; }
  float threshold(std::int64_t row) const { return thresholds[row / group * stride]; }
};

// The second pass on a backend, for slots of one KV head of one sequence:
//
//   static constexpr std::int64_t range_slots                              slots of a piece
//   static void run(Source, piece, kv_head, group, rows_of_pass, view)     rows_of_pass(i) -> weighed_rows: those of head i of the
//                                                                          group, or of all heads where View::heads_together
template <class Backend, class Page, class Accuracy>
struct statistics_engine {
  static_assert(!std::is_same_v<Page, Page>,
                "[pith] attention_statistics(): no second pass is included. Fix: #include \"pith/cpu/statistics_engine.hpp\".");
  static constexpr std::int64_t range_slots = 1;  // the sentence speaks alone
};

// One call for one sequence.
template <class View, storage_scalar Q>
struct statistics_call {
  tensor_view<Q const, 3> q;        // of the sequence alone
  tensor_view<float const, 2> lse;  // the same
  View out;                         // slots from the sequence's first on; row_entropy of the sequence alone
  statistics_rows chosen;           // spans of the sequence alone
  attention_options options;
  int group;
  float scale;        // base 2
  void const* slots;  // see query_rows
  void (*slot_range)(void const* slots, std::int64_t token, std::int64_t* lower, std::int64_t* upper);

  // Row entropies need the slots in order: all of a KV head are one piece then.
  static constexpr bool has_row_entropy = View::has(statistic::row_entropy);

  // errors  shape_mismatch, out_of_range
  static status check(tensor_view<Q const, 3> q, tensor_view<float const, 2> lse, View const& out, statistics_rows const& chosen,
                      attention_options options, int kv_heads, int key_channels, std::int64_t slots) {
    options = {.scale = options.scale, .soft_cap = options.soft_cap, .window = options.window};
    tensor_view<float, 3> const unused(nullptr, {q.extent[0], q.extent[1], 0});
    if (status const ok = query_rows<Q, float>::check(q, unused, options, kv_heads, key_channels, 0); !ok) return ok;
    if (lse.data == nullptr || lse.extent[0] < q.extent[0] || lse.extent[1] != q.extent[1]) return {errc::shape_mismatch, lse.extent[1]};
    if (chosen.newest < 0 || chosen.stride < 1) return {errc::out_of_range, chosen.newest < 0 ? chosen.newest : chosen.stride};
    auto const missing = [&](statistic one, std::span<float const> numbers) {
      return View::has(one) && static_cast<std::int64_t>(numbers.size()) < q.extent[0];
    };
    if (missing(statistic::weighted_sum, chosen.weights)) return {errc::shape_mismatch, static_cast<std::int64_t>(chosen.weights.size())};
    if (missing(statistic::below, chosen.thresholds)) return {errc::shape_mismatch, static_cast<std::int64_t>(chosen.thresholds.size())};
    if constexpr (has_row_entropy)
      if (out.row_entropy.data == nullptr || out.row_entropy.extent[0] < q.extent[0] || out.row_entropy.extent[1] != q.extent[1])
        return {errc::shape_mismatch, out.row_entropy.extent[1]};
    std::int64_t const rows = View::reduction == group_reduction::none ? q.extent[1] : kv_heads;
    status worst;
    out.for_each_of_slots([&]<statistic>(tensor_view<float, 2> const& to) {
      if ((to.data == nullptr && slots > 0) || to.extent[0] != rows || to.extent[1] < slots || to.stride[1] != 1)
        worst = {errc::shape_mismatch, to.extent[1]};
    });
    return worst;
  }

  // Piece `piece` of the slots of one KV head.
  template <class Engine, class Source>
  void run(Source const& source, int kv_head, std::int64_t piece) const {
    std::int64_t const tokens = q.extent[0], wanted = std::min(chosen.newest, tokens),
                       stride = std::clamp<std::int64_t>(tokens, 1, chosen.stride);
    std::int64_t const count = wanted == 0 ? 0 : (wanted - 1) / stride + 1, first = tokens - 1 - (count - 1) * stride;
    struct range {
      statistics_call const* call;
      std::int64_t first, stride;
    } const limits{this, first, stride};
    auto const strided = [&](auto view) {
      if (count > 0) view.data += first * view.stride[0];
      view.extent[0] = count, view.stride[0] *= stride;
      return view;
    };
    constexpr bool together = View::heads_together;
    attention_options const asked{.soft_cap = options.soft_cap};  // scale and window are in what stands below
    query_rows<Q, float> heads{.q = strided(q),
                               .options = &asked,
                               .tokens = count,
                               .group = together ? group : 1,
                               .scale = scale,
                               .slots = &limits,
                               .slot_range = [](void const* context, std::int64_t token, std::int64_t* lower, std::int64_t* upper) {
                                 auto const& self = *static_cast<range const*>(context);
                                 self.call->slot_range(self.call->slots, self.first + token * self.stride, lower, upper);
                               }};
    auto const rows_of_pass = [&](int pass) {
      heads.head = together ? kv_head : kv_head * group + pass;
      std::int64_t const head = static_cast<std::int64_t>(heads.head) * heads.group;
      weighed_rows made{
          .rows = heads.rows(), .group = heads.group, .lse = strided(lse).template part<1>(head, heads.group), .stride = stride};
      if constexpr (has_row_entropy) made.row_entropy = strided(out.row_entropy).template part<1>(head, heads.group);
      if (count > 0 && View::has(statistic::weighted_sum)) made.weights = chosen.weights.data() + first;
      if (count > 0 && View::has(statistic::below)) made.thresholds = chosen.thresholds.data() + first;
      return made;
    };
    Engine::run(source, piece, kv_head, group, rows_of_pass, out);
  }
};

}  // namespace pith
