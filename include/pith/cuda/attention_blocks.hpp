// SPDX-License-Identifier: Apache-2.0
// Which query rows a pass over the keys of a KV head has, and which slots the 32-token blocks of a part are.
//
//   rows      .count of them; row r is query token .token(r) of the sequence, head .head(r) of the group; tokens ascend with r
//   packed    block b is the slots from 32 b on, counted behind the first tokens
//   raw       blocks of the first tokens, then of tokens whose values are staged, then of the call's chunk
#pragma once

#include "pith/codec/concept.hpp"
#include "pith/cuda/thread.hpp"

namespace pith::device {

// Every query token of a sequence, for all heads of the group.
struct rows_of_group {
  std::int64_t count;
  std::int32_t group;
  PITH_HD std::int64_t token(std::int64_t row) const { return row / group; }
  PITH_HD std::int64_t head(std::int64_t row) const { return row % group; }
};

// The slot of a block's first token, and behind its last, or behind its whole segment.
struct slots_of_block {
  int first, behind;
};

struct raw_block_counts {
  int first, from, staged;  // of the first tokens; the slot that is staged first, and blocks of those

  template <class Head>
  PITH_HD explicit raw_block_counts(Head const& head)
      : first((static_cast<int>(head.first_tokens()) + block_tokens - 1) / block_tokens),
        from(static_cast<int>(head.sealed_values())),
        staged((static_cast<int>(head.stored()) - from + block_tokens - 1) / block_tokens) {}
};

template <bool Packed, class Head>
PITH_HD inline slots_of_block slots_of(Head const& head, int block) {
  int const skip = static_cast<int>(head.first_tokens()), stored = skip + static_cast<int>(head.stored());
  if constexpr (Packed) {
    return {skip + block_tokens * block, stored};
  } else {
    raw_block_counts const raw(head);
    if (block < raw.first) return {block_tokens * block, skip};
    if (block < raw.first + raw.staged) return {skip + raw.from + block_tokens * (block - raw.first), stored};
    return {stored + block_tokens * (block - raw.first - raw.staged), stored + static_cast<int>(head.chunk_tokens())};
  }
}

}  // namespace pith::device
