// SPDX-License-Identifier: Apache-2.0
// Statistics of attention in double, from scores in double, each with what f32 arithmetic may change.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "pith/page/attention_statistics.hpp"

namespace pith_test {

inline constexpr double unseen = -std::numeric_limits<double>::infinity();  // the score of a masked slot

// A number and the interval in which f32 arithmetic may end.
struct bounded {
  double low = 0, high = 0;
};

class statistics_oracle {
 public:
  statistics_oracle(int heads, std::int64_t slots) : slots_(slots), heads_(heads) {
    for (auto& one : of_) one.resize(static_cast<std::size_t>(heads * slots));
  }

  struct row {
    double lse = unseen;
    bounded entropy;  // over the slots
  };

  // A query row of a head: its scores by slot; `score_error` bounds that of a score and of lse.
  row add(int head, std::vector<double> const& scores, double sink, double score_error, double weight, double threshold) {
    double peak = sink, total = 0;
    for (double const s : scores) peak = std::max(peak, s);
    row made;
    if (peak == unseen) return made;
    for (double const s : scores) total += std::exp(s - peak);
    double const lse = made.lse = peak + std::log(total + std::exp(sink - peak)), off = std::expm1(2 * score_error) + 4e-7;
    for (std::size_t t = 0; t < scores.size(); ++t) {
      if (scores[t] == unseen) continue;
      double const p = std::exp(scores[t] - lse), least = std::max(0.0, p * (1 - off) - 1e-37), most = p * (1 + off) + 1e-37;
      double const log_p = lse - scores[t], h = p * log_p, h_off = off * h + p * 2 * score_error + 1e-35;
      note(pith::statistic::sum, head, t, least, most);
      note(pith::statistic::square_sum, head, t, least * least, most * most);
      note(pith::statistic::weighted_sum, head, t, std::min(weight * least, weight * most), std::max(weight * least, weight * most));
      note(pith::statistic::below, head, t, most < threshold ? 1 : 0, least < threshold ? 1 : 0);
      note(pith::statistic::entropy, head, t, h - h_off, h + h_off);
      bounded& max = at(pith::statistic::maximum, head, t);
      max = {std::max(max.low, least), std::max(max.high, most)};
      made.entropy.low += h - h_off, made.entropy.high += h + h_off;
    }
    return made;
  }
  bounded& at(pith::statistic which, int head, std::size_t slot) {
    return of_[static_cast<std::size_t>(which)][static_cast<std::size_t>(head * slots_) + slot];
  }

  // How many numbers of [row][slot] are outside of their intervals, the heads reduced; rounding of sums of `additions` numbers is allowed.
  std::int64_t wrong(pith::statistic which, pith::group_reduction how, int group, std::vector<float> const& got, std::int64_t additions) {
    std::int64_t count = 0;
    int const rows = how == pith::group_reduction::none ? heads_ : heads_ / group, heads = heads_ / rows;
    for (int row = 0; row < rows; ++row)
      for (std::int64_t slot = 0; slot < slots_; ++slot) {
        bounded all;
        for (int h = 0; h < heads; ++h) {
          bounded const one = at(which, row * heads + h, static_cast<std::size_t>(slot));
          if (h == 0 || how != pith::group_reduction::maximum)
            all.low += one.low, all.high += one.high;
          else
            all = {std::max(all.low, one.low), std::max(all.high, one.high)};
        }
        if (how == pith::group_reduction::mean) all.low /= group, all.high /= group;
        double const rounding = 0x1p-24 * static_cast<double>(additions + 2) * std::max(std::fabs(all.low), std::fabs(all.high));
        double const x = got[static_cast<std::size_t>(row * slots_ + slot)];
        bool const right = all.low == 0 && all.high == 0 ? x == 0 : x >= all.low - rounding && x <= all.high + rounding;
        count += !right;
      }
    return count;
  }

 private:
  std::int64_t slots_;
  int heads_;
  std::vector<bounded> of_[6];

  void note(pith::statistic which, int head, std::size_t slot, double low, double high) {
    bounded& one = at(which, head, slot);
    one.low += low, one.high += high;
  }
};

}  // namespace pith_test
