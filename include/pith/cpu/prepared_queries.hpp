// SPDX-License-Identifier: Apache-2.0
// M query rows in every form that the segments of a context are multiplied in, and the slots that they see.
#pragma once

#include "pith/codec/kv_page.hpp"
#include "pith/codec/pipe.hpp"
#include "pith/cpu/dot_integer.hpp"
#include "pith/cpu/float8_kernels.hpp"
#include "pith/cpu/raw_pairs.hpp"
#include "pith/cpu/score_rows.hpp"
#include "pith/cpu/sum_kernels.hpp"

namespace pith {
inline namespace PITH_ISA {

template <class Page, class Accuracy, int M>
struct prepared_queries {
  using key_tile = typename Page::key_tile;
  static constexpr int dk = Page::key_channels;
  template <class A>
  using dot = dot_kernel<typename key_tile::storage, A, M>;
  template <int Tokens>
  using raw_dot = dot_kernel<raw_tile<bf16, dk, use::dot, Tokens>, exact_accuracy, M>;

  typename dot<Accuracy>::query packed;
  typename dot<exact_accuracy>::query exact;  // for steps with a large bias, and for keys before raw values
  typename raw_dot<block_tokens>::query raw;
  std::int64_t row[M];
  int rows = 0;  // the rest repeats the last row

  // Only the forms that some segment needs are made.
  void prepare(head_rows const& all, std::int64_t first, int count, state_of<key_tile> const& calibration, bool has_raw, bool needs_exact,
               score_rows<M>& scores) {
    alignas(64) float q[M][dk];
    rows = count;
    for (int m = 0; m < M; ++m) {
      row[m] = first + (m < count ? m : count - 1);
      all.load(all.context, row[m], q[m]);
      all.limits(all.context, row[m], &scores.lower[m], &scores.upper[m]);
    }
    query_scale const scale{all.scale};
    if (has_raw) raw_dot<block_tokens>::prepare(q[0], raw, scale);
    if constexpr (!is_transformed<key_tile> && requires { dot<Accuracy>::prepare(q[0], packed, scale); }) {
      dot<Accuracy>::prepare(q[0], packed, scale);
      if (needs_exact) dot<exact_accuracy>::prepare(q[0], exact, scale);
      return;
    }
    for (int m = 0; m < M; ++m)
      for (float& x : q[m]) x *= all.scale;
    if constexpr (is_transformed<key_tile>)
      for (int m = 0; m < M; ++m) key_tile::transform_query(q[m], calibration);
    prepare_within<dot<Accuracy>>(score_tolerance, q[0], packed);
    if (needs_exact) dot<exact_accuracy>::prepare(q[0], exact);
  }
};

}  // namespace PITH_ISA
}  // namespace pith
