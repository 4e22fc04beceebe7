// SPDX-License-Identifier: Apache-2.0
// What statistics of attention on a device are asked for: page/attention_statistics.hpp with everything in device memory.
//
//   device_statistics_view<group_reduction::sum, statistic::sum> out{.sum = {scores, {kv_heads, slots}}};
//
// The type says which, and nothing else is computed; `statistics_view` says what they are and how heads are reduced.
//
// errors   shape_mismatch (a missing view, its rows, its slots; lse; weights or thresholds that a statistic needs), out_of_range
// differs  row_entropy is refused: its slots are of many blocks. entropy, added up over the slots, is the sum of the rows' entropies
#pragma once

#include "pith/page/attention_statistics.hpp"

namespace pith {

// Views of others are not looked at.
//   [kv_head][slot], with group_reduction::none [query_head][slot]; slots are neighbours in memory
template <group_reduction Reduction, statistic... Wanted>
struct device_statistics_view {
  using host = statistics_view<Reduction, Wanted...>;
  using view = tensor_view<float, 2, space::device>;

  view sum{}, square_sum{}, maximum{}, below{}, weighted_sum{}, entropy{};
  std::int64_t sequence_stride = 0;  // over a cache: numbers between the first slot of a sequence of the call and that of the next one

  template <statistic Which>
  view const& of() const {
    if constexpr (Which == statistic::sum) return sum;
    if constexpr (Which == statistic::square_sum) return square_sum;
    if constexpr (Which == statistic::maximum) return maximum;
    if constexpr (Which == statistic::below) return below;
    if constexpr (Which == statistic::weighted_sum) return weighted_sum;
    if constexpr (Which == statistic::entropy) return entropy;
  }
  // On to the sequences behind the first `sequences`.
  void step(std::int64_t sequences) {
    for (view* one : {&sum, &square_sum, &maximum, &below, &weighted_sum, &entropy})
      if (one->data != nullptr) one->data += sequences * sequence_stride;
  }
  // f.operator()<statistic>(its view).
  template <class F>
  void for_each(F f) const {
    (f.template operator()<Wanted>(of<Wanted>()), ...);
  }
};

// Which query rows count, as statistics_rows.
struct device_statistics_rows {
  std::int64_t newest = std::numeric_limits<std::int64_t>::max();
  std::int64_t stride = 1;
  float const* weights = nullptr;     // [query token of the call], for weighted_sum
  float const* thresholds = nullptr;  // the same, for below
};

namespace device {

// The first broken rule speaks alone.
template <class View>
consteval bool check_device_statistics() {
  if constexpr (View::host::has(statistic::row_entropy)) {
    static_assert(
        !View::host::has(statistic::row_entropy),
        "[pith] attention_statistics(cuda{}, ...): statistic::row_entropy is not computed on a device. Fix: statistic::entropy; its "
        "sum over the slots is that of the rows' entropies.");
    return false;
  } else if constexpr (View::host::of_slots == 0) {
    static_assert(
        View::host::of_slots > 0,
        "[pith] attention_statistics(cuda{}, ...): the view names no statistic. Fix: device_statistics_view<group_reduction::sum, "
        "statistic::sum>.");
    return false;
  } else {
    return true;
  }
}

// What the host can see. slots: of the longest sequence, or 0 where only the device knows.
template <class View>
status check_statistics(View const& out, device_statistics_rows const& chosen, std::int64_t kv_heads, std::int64_t query_heads,
                        std::int64_t slots) {
  if (chosen.newest < 0 || chosen.stride < 1) return {errc::out_of_range, chosen.newest < 0 ? chosen.newest : chosen.stride};
  if ((View::host::has(statistic::weighted_sum) && chosen.weights == nullptr) ||
      (View::host::has(statistic::below) && chosen.thresholds == nullptr))
    return {errc::shape_mismatch, 0};
  std::int64_t const rows = View::host::reduction == group_reduction::none ? query_heads : kv_heads;
  status worst;
  out.for_each([&]<statistic>(typename View::view const& to) {
    if (to.data == nullptr || to.extent[0] != rows || to.extent[1] < slots || to.stride[1] != 1)
      worst = {errc::shape_mismatch, to.extent[1]};
  });
  return worst;
}

}  // namespace device
}  // namespace pith
