// SPDX-License-Identifier: Apache-2.0
// The last launch of a product: adds up what runs of steps left for each row group (linear_kernel.hpp), in the order of the steps.
//
//   out[i][r] = sum over the runs that cross r's row group of partial[run + group][i][r] + bias[r]
//
// One thread for each output; the same shapes and the same device give the same bits.
#pragma once

#include "pith/core/view.hpp"
#include "pith/cuda/thread.hpp"

namespace pith::device {

template <class O>
struct linear_merge_kernel {
  static constexpr int threads = 256;

  float const* partial;
  tensor_view<O, 2, space::device> out;
  tensor_view<float const, 1, space::device> bias;  // or none
  std::int64_t steps_of_group, run;
  std::int32_t group_rows, batch;

  // Grid: x rows of W, y rows of x.
  template <device_like Thread>
  PITH_HD void operator()(Thread& t) const {
    std::int64_t const row = t.block_x() * threads + thread_of(t), group = row / group_rows, i = t.block_y();
    if (row >= out.extent[1]) return;
    std::int64_t const first = group * steps_of_group / run, last = ((group + 1) * steps_of_group - 1) / run;
    std::int64_t const apart = static_cast<std::int64_t>(batch) * group_rows;
    float const* from = partial + ((first + group) * batch + i) * group_rows + (row - group * group_rows);
    float sum = *from;
    for (std::int64_t b = first; b < last; ++b) sum += *(from += apart);
    if (bias.data != nullptr) sum += bias.data[row * bias.stride[0]];
    out.data[i * out.stride[0] + row * out.stride[1]] = from_float<O>(sum);
  }
};

}  // namespace pith::device
