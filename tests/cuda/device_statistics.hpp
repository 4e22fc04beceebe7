// SPDX-License-Identifier: Apache-2.0
// attention_statistics on the emulated device, called as tests/cpu/statistics_case.hpp calls the CPU's.
#pragma once

#include "cpu/statistics_case.hpp"
#include "cuda/device_attention.hpp"
#include "pith/cuda/attention_statistics.hpp"

namespace pith_test {

inline pith::device_statistics_rows as_device(pith::statistics_rows const& rows) {
  return {rows.newest, rows.stride, rows.weights.data(), rows.thresholds.data()};
}

// The views of `out`, each into its own rows [row][slot].
template <pith::group_reduction Reduction, pith::statistic... Wanted>
pith::device_statistics_view<Reduction, Wanted...> device_views(std::vector<std::vector<float>>& out, std::int64_t rows,
                                                                std::int64_t slots) {
  pith::device_statistics_view<Reduction, Wanted...> made;
  pith::tensor_view<float, 2, pith::space::device>* const views[] = {&made.sum,   &made.square_sum,   &made.maximum,
                                                                     &made.below, &made.weighted_sum, &made.entropy};
  std::size_t i = 0;
  ((*views[static_cast<int>(Wanted)] = {out[i++].data(), {rows, slots}}), ...);
  return made;
}

// One statistic after another, [row][slot]; slots that are not written keep `before`.
template <class Accuracy, class Page, pith::group_reduction Reduction, pith::statistic... Wanted>
std::vector<std::vector<float>> device_statistics(statistics_case<Page> const& of, pith::statistics_view<Reduction, Wanted...>,
                                                  float before = 0, int multiprocessors = 2) {
  std::int64_t const rows = Reduction == pith::group_reduction::none ? of.heads : of.pages.kv_heads;
  std::vector<std::vector<float>> made(sizeof...(Wanted), std::vector<float>(static_cast<std::size_t>(rows * of.slots), before));
  auto const views = device_views<Reduction, Wanted...>(made, rows, of.slots);
  std::int64_t most = 0;
  for (std::int64_t const n : of.counts) most = std::max(most, n);
  emulated_environment const env(8 << 20, multiprocessors);
  REQUIRE(pith::attention_statistics<Accuracy>(pith::cuda{}, env, as_device(of.pages.view()), of.q_indptr.data(), most,
                                               as_device(of.queries()),
                                               as_device(pith::tensor_view<float const, 2>(of.lse.data(), {of.tokens, of.heads})), views,
                                               as_device(of.chosen), as_device(of.options)) == pith::status{});
  REQUIRE(env.status() == pith::status{});
  return made;
}

}  // namespace pith_test
