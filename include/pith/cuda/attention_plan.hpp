// SPDX-License-Identifier: Apache-2.0
// How the tokens of many ragged sequences are divided among blocks: planned on the device, from lengths that only it may know, so that one
// launch, and one captured graph, serves every length.
//
//   a part is a run of 32-token blocks of one sequence: packed blocks, or the raw ones, which are one part
//   run   = max(shortest, ceil(packed blocks of all sequences / wanted parts)); a sequence's own parts are as even as can be
//   parts of a sequence follow each other in the list; there are at most wanted + 2 sequences of them
#pragma once

#include "pith/cuda/thread.hpp"

namespace pith::device {

struct attention_part {
  std::int32_t sequence = -1;
  std::int32_t raw = 0;  // 1: raw blocks
  std::int32_t begin = 0, end = 0;
};

// A part as all lanes know it to be the same: loops whose ends come from memory would gather the lanes before every collective call.
template <class Thread>
PITH_HD inline attention_part uniform_part(Thread& t, attention_part const* from) {
  attention_part const part = *from;
  return {t.shuffle(part.sequence, 0), t.shuffle(part.raw, 0), t.shuffle(part.begin, 0), t.shuffle(part.end, 0)};
}

// parts [most_parts], first_part [sequences + 1]
template <class Source>
struct attention_plan_kernel {
  static constexpr int threads = warp_lanes;
  Source source;
  attention_part* parts;
  std::int32_t* first_part;
  std::int32_t sequences;
  std::int32_t wanted;
  std::int32_t shortest;

  template <device_like Thread>
  PITH_HD void operator()(Thread& t) const {
    std::int32_t all = 0;
    for (std::int32_t s = t.lane(); s < sequences; s += warp_lanes) all += source.packed_blocks(s);
    all = sum_over_lanes(t, all);
    std::int32_t const even = (all + wanted - 1) / wanted, run = even > shortest ? even : shortest;
    std::int32_t before = 0;
    for (std::int32_t base = 0; base < sequences; base += warp_lanes) {
      std::int32_t const s = base + t.lane();
      std::int32_t const packed = s < sequences ? source.packed_blocks(s) : 0, raw = s < sequences ? source.raw_blocks(s) : 0;
      std::int32_t const shares = (packed + run - 1) / run, count = shares + (raw > 0);
      std::int32_t upto = count;  // of this lane and those before it
      for (int step = 1; step < warp_lanes; step *= 2) {
        std::int32_t const other = t.shuffle(upto, t.lane() - step);
        if (t.lane() >= step) upto += other;
      }
      std::int32_t const whole = t.shuffle(upto, warp_lanes - 1);
      if (s < sequences) {
        std::int32_t at = before + upto - count;
        first_part[s] = at;
        std::int32_t const share = shares > 0 ? (packed + shares - 1) / shares : 0;
        for (std::int32_t part = 0; part < shares; ++part) {
          std::int32_t const begin = part * share, end = begin + share;
          parts[at++] = {s, 0, begin < packed ? begin : packed, end < packed ? end : packed};
        }
        if (raw > 0) parts[at++] = {s, 1, 0, raw};
      }
      before += whole;
    }
    if (t.lane() == 0) first_part[sequences] = before;
  }
};

}  // namespace pith::device
