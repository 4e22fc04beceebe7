// SPDX-License-Identifier: Apache-2.0
// Queries over ragged sequences in packed pages, attention's answer to them, its statistics on the CPU, and everything in double.
#pragma once

#include "cpu/attention_oracle.hpp"
#include "pith/cpu/attention_statistics.hpp"
#include "support/statistics_oracle.hpp"

namespace pith_test {

struct either_way {
  bool backwards;
  void for_each(std::int64_t count, auto&& f) const {
    for (std::int64_t i = 0; i < count; ++i) f(backwards ? count - 1 - i : i);
  }
};

// Queries of a call, attention's answer to them, and everything in double.
template <class Page>
struct statistics_case {
  paged_case<Page> const& pages;
  std::vector<std::int64_t> counts, q_indptr{0};
  int group, heads;
  double precision = 0x1p-24;  // of a sum in a score
  pith::attention_options options;
  pith::statistics_rows chosen;
  std::int64_t tokens, slots;
  std::vector<float> q, out, lse, weights, thresholds;

  statistics_case(paged_case<Page> const& of, std::vector<std::int64_t> query_counts, int group_of, pith::attention_options how = {},
                  pith::statistics_rows rows = {})
      : pages(of), counts(std::move(query_counts)), group(group_of), heads(of.kv_heads * group_of), options(how), chosen(rows) {
    for (std::int64_t const n : counts) q_indptr.push_back(q_indptr.back() + n);
    tokens = q_indptr.back(), slots = static_cast<std::int64_t>(pages.indices.size()) * Page::tokens;
    random_bits random(99);
    auto const numbers = [&](std::int64_t count, float scale) {
      std::vector<float> made(static_cast<std::size_t>(count));
      for (float& x : made) x = scale * gaussian(random);
      return made;
    };
    q = numbers(tokens * heads * Page::key_channels, 1.5f), weights = numbers(tokens, 1);
    out.resize(static_cast<std::size_t>(tokens * heads * Page::value_channels)), lse.resize(static_cast<std::size_t>(tokens * heads));
    for (std::int64_t i = 0; i < tokens; ++i) thresholds.push_back(0.5f / static_cast<float>(1 + i % 40));
    chosen.weights = weights, chosen.thresholds = thresholds;
  }
  pith::tensor_view<float const, 3> queries() const { return {q.data(), {tokens, heads, Page::key_channels}}; }
  template <class Accuracy>
  void attend() {
    options.lse = {lse.data(), {tokens, heads}};
    REQUIRE(pith::paged_attention<Accuracy, Page, float, float>(pith::cpu{}, pages.view(), q_indptr, queries(),
                                                                {out.data(), {tokens, heads, Page::value_channels}},
                                                                options) == pith::status{});
  }
  statistics_oracle expected() const {
    std::vector<statistics_oracle::row> rows;
    return expected(rows);
  }
  // One pith::statistic after another, [row][slot]; slots that are not written keep `before`.
  template <class Accuracy, pith::group_reduction Reduction, pith::statistic... Wanted>
  std::vector<std::vector<float>> statistics(pith::statistics_view<Reduction, Wanted...>, float before = 0, bool backwards = false) const {
    std::int64_t const rows = Reduction == pith::group_reduction::none ? heads : pages.kv_heads;
    std::vector<std::vector<float>> made;
    for (pith::statistic const which : {Wanted...})
      made.emplace_back(static_cast<std::size_t>(which == pith::statistic::row_entropy ? tokens * heads : rows * slots), before);
    pith::statistics_view<Reduction, Wanted...> view;
    pith::tensor_view<float, 2>* const views[] = {&view.sum,          &view.square_sum, &view.maximum,    &view.below,
                                                  &view.weighted_sum, &view.entropy,    &view.row_entropy};
    std::size_t i = 0;
    for (pith::statistic const which : {Wanted...}) {
      if (which == pith::statistic::row_entropy)
        *views[static_cast<int>(which)] = {made[i++].data(), {tokens, heads}};
      else
        *views[static_cast<int>(which)] = {made[i++].data(), {rows, slots}};
    }
    REQUIRE(pith::attention_statistics<Accuracy>(pith::cpu{}, pages.view(), q_indptr, queries(),
                                                 pith::tensor_view<float const, 2>(lse.data(), {tokens, heads}), view, chosen, options,
                                                 either_way{backwards}) == pith::status{});
    return made;
  }
  // Slots count in the table; rows [query token][head], entropy {-1, -1} for those that are not chosen.
  statistics_oracle expected(std::vector<statistics_oracle::row>& rows) const {
    statistics_oracle made(heads, slots);
    rows.assign(static_cast<std::size_t>(tokens * heads), {unseen, {-1, -1}});
    constexpr int dk = Page::key_channels;
    double const scale = options.scale > 0 ? options.scale : 1 / std::sqrt(static_cast<double>(dk));
    for (std::size_t s = 0; s < pages.lengths.size(); ++s)
      for (std::int64_t i = 0; i < counts[s]; ++i) {
        std::int64_t const back = counts[s] - 1 - i;
        if (back >= chosen.newest || back % chosen.stride != 0) continue;
        for (int h = 0; h < heads; ++h) {
          auto const& k = pages.keys[s * static_cast<std::size_t>(pages.kv_heads) + static_cast<std::size_t>(h / group)];
          std::int64_t const row = q_indptr[s] + i, upper = pages.lengths[s] - back,
                             lower = options.window > 0 ? std::max<std::int64_t>(0, upper - options.window) : 0;
          float const* const query = q.data() + (row * heads + h) * dk;
          std::vector<double> scores(static_cast<std::size_t>(slots), unseen);
          double square = 0, k_most = 0, s_most = 0;
          for (int c = 0; c < dk; ++c) square += static_cast<double>(query[c]) * query[c];
          for (std::int64_t t = lower; t < upper; ++t) {
            double sum = 0;
            for (int c = 0; c < dk; ++c) {
              double const x = k[static_cast<std::size_t>(t * dk + c)];
              sum += query[c] * x, k_most = std::max(k_most, std::fabs(x));
            }
            sum *= scale;
            s_most = std::max(s_most, std::fabs(sum));
            if (options.soft_cap > 0) sum = options.soft_cap * std::tanh(sum / options.soft_cap);
            float const bias = pages.bias_of(s, h / group, t);
            if (bias != minus_infinity)
              scores[static_cast<std::size_t>(pages.indptr[s] * Page::tokens + t)] = sum + bias,
                                                                               s_most = std::max(s_most, std::fabs(sum + bias));
          }
          double const sink = options.sink_logits.empty() ? unseen : static_cast<double>(options.sink_logits[static_cast<std::size_t>(h)]);
          // As in attention_oracle.hpp: sixteen roundings of the largest partial sums of a score.
          double const error = 16 * precision * std::sqrt(square) * 5 * k_most * scale + 8e-7 * precision * 0x1p24 * (1 + s_most);
          rows[static_cast<std::size_t>(row * heads + h)] =
              made.add(h, scores, sink, error, weights[static_cast<std::size_t>(row)], thresholds[static_cast<std::size_t>(row)]);
        }
      }
    return made;
  }
};

}  // namespace pith_test
