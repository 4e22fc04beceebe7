// SPDX-License-Identifier: Apache-2.0
// The way of a warp over the 32-token blocks of one part of a sequence (attention_plan.hpp), for one KV head and 8 NT of its query rows:
// words are copied into shared memory in the background, and scores come out in registers. What is done with them is the caller's:
// attention_kernel.hpp, statistics_kernel.hpp. No decoded page is ever in memory.
//
// Warps along tokens (decoding): each takes every fourth block for the same rows. Warps along rows (prefill): each has 8 NT rows of its own
// and they walk the same blocks together. A ring in shared memory has room for `stages` blocks; stages - 1 of them are on their way while
// one is multiplied, and the table's entry for the next one is read before that.
//
// A Source is a trivially copyable view of the sequences of one call:
//   packed_blocks(i), raw_blocks(i)      32-token blocks of sequence i whose values are packed, or raw
//   queries(i)                           {first, count} of the call's query tokens
//   limits(i, token, window, lower, upper)   slots that query token sees
//   at(i, head) -> Head:  first_tokens(), sealed_keys(), sealed_values(), stored(), chunk_tokens()      as page/attention_engine.hpp
//                         page(t, index)            packed page or null      staging_keys(slot) ... chunk_values(token)   raw tiles
//                         hides(), visible(slot), has_biases(), bias(slot)
//                         index_of(slot)            its place in a row of biases or statistics
//                         key_state(), value_state()
//   has_raw, has_visibility, has_bias, keys_differ    (static)    keys_differ: values and keys may be sealed up to different slots
//   first_tile                                        tokens of a raw tile of the first tokens
// and rows are what the caller counts as rows of the KV head: attention_blocks.hpp.
#pragma once

#include "pith/codec/pipe.hpp"
#include "pith/core/view.hpp"
#include "pith/cuda/attention_blocks.hpp"
#include "pith/cuda/attention_plan.hpp"
#include "pith/cuda/dot_block.hpp"
#include "pith/cuda/mix_operand.hpp"
#include "pith/cuda/row_state.hpp"
#include "pith/cuda/transform.hpp"

namespace pith::device {

enum class warps_along : std::uint8_t { tokens, rows };

// Everything about a call but its types.
template <class Source, class Q>
struct attention_call {
  Source source;
  attention_part const* parts;
  std::int32_t const* part_count;
  tensor_view<Q const, 3, space::device> q;
  float* partial;
  float* limits;       // [part][kv_head][row][2]: m, l
  std::int32_t group;  // query heads of a KV head
  std::int32_t kv_heads;
  std::int32_t rows_at;  // rows of a part and head in the partial results
  float scale;           // of the scores, times log2 e
  float soft_cap;
  std::int64_t window;
};

// Values: whether they are copied too.
template <class Page, class Source, class Q, int NT, int Terms, warps_along Along, bool Values>
struct attention_walk : attention_call<Source, Q> {
  static constexpr int dk = Page::key_channels, dv = Page::value_channels;
  using packed_keys = typename Page::key_tile::storage;
  using packed_values = typename Page::value_tile::storage;
  using raw_keys = raw_tile<bf16, dk, use::dot>;
  using raw_values = raw_tile<bf16, dv, use::mix>;
  static constexpr bool needs_raw_keys = Source::has_raw;
  PITH_HD static constexpr int most_of(int a, int b) { return a > b ? a : b; }

  using packed_query = query_block<packed_keys, NT, Terms>;
  using raw_query = query_block<raw_keys, NT, Terms>;
  static constexpr int raw_query_at = packed_query::bytes;
  static constexpr int queries_bytes = raw_query_at + (needs_raw_keys ? raw_query::bytes : 0);
  static constexpr int row_bytes = static_cast<int>(round_up(4 * most_of(dk, dv), 128));
  static constexpr bool shares_rows = Along == warps_along::tokens;

  // A place for one block's keys and values.
  template <bool Packed>
  struct place_of {
    static constexpr bool takes_packed_keys = Packed || Source::keys_differ,
                          takes_raw_keys = Source::has_raw && (!Packed || Source::keys_differ);
    static constexpr int key_bytes =
        most_of(takes_packed_keys ? tile_stage<packed_keys>::bytes : 0, takes_raw_keys ? tile_stage<raw_keys>::bytes : 0);
    static constexpr int value_bytes = !Values ? 0 : Packed ? tile_stage<packed_values>::bytes : tile_stage<raw_values>::bytes;
    static constexpr int bytes = key_bytes + value_bytes;
  };
  // A ring of places: of a warp if the warps take different blocks, else of the block.
  static constexpr int stages = place_of<true>::bytes <= 8192 ? 3 : 2;
  static constexpr int ring_bytes = stages * place_of<true>::bytes;

  //   warps along tokens   | queries, for all | row, ring | row, ring | ...
  //   warps along rows     | queries, row | queries, row | ... | ring, for all |
  static constexpr int own_bytes = row_bytes + (shares_rows ? ring_bytes : queries_bytes);
  static constexpr int common_bytes = shares_rows ? queries_bytes : ring_bytes;
  static constexpr int warps = common_bytes + 4 * own_bytes <= most_shared_bytes   ? 4
                               : common_bytes + 2 * own_bytes <= most_shared_bytes ? 2
                                                                                   : 1;
  static constexpr int threads = warps * warp_lanes;
  static constexpr int rows = 8 * NT * (shares_rows ? 1 : warps);  // of a block
  // Raw blocks are few and large: they take one place at a time, of as many warps as there is room for.
  static constexpr int raw_bytes = Source::has_raw ? place_of<false>::bytes : 0;
  static constexpr int packed_bytes = common_bytes + warps * own_bytes;
  static constexpr int raw_base = shares_rows ? queries_bytes + warps * row_bytes : warps * own_bytes;
  static constexpr int merge_bytes = shares_rows && Values ? 8 * NT * (4 * dv + 8) : 0;
  static constexpr int shared_bytes = most_of(most_of(packed_bytes, raw_base + raw_bytes), merge_bytes);
  static constexpr int raw_warps = !Source::has_raw || !shares_rows                ? warps
                                   : (shared_bytes - raw_base) / raw_bytes < warps ? (shared_bytes - raw_base) / raw_bytes
                                                                                   : warps;
  static_assert(shared_bytes <= most_shared_bytes);

  template <class Thread>
  PITH_HD static std::byte* queries_of(Thread& t) {
    return t.shared() + (shares_rows ? 0 : t.warp() * own_bytes);
  }
  template <class Thread>
  PITH_HD static float* row_of(Thread& t) {
    return reinterpret_cast<float*>(t.shared() + queries_bytes + t.warp() * (shares_rows ? row_bytes : own_bytes));
  }
  template <bool Packed, class Thread>
  PITH_HD static std::byte* ring_of(Thread& t) {
    return t.shared() + raw_base + (shares_rows ? t.warp() * (Packed ? ring_bytes : raw_bytes) : 0);
  }

  struct visible_range {
    int all_from, all_to;  // every row of the warp sees these slots
    int to;                // no row that walks along sees this one or a later one
  };
  // The 8 NT rows of this warp from first_row on: what they see goes to `state`, and their queries to shared memory. `behind` is the end of
  // the rows of all warps that walk the same blocks.
  template <class Thread, class Head, class Rows>
  PITH_HD visible_range begin(Thread& t, Head const& head, attention_part const& part, std::int64_t first_row, std::int64_t behind,
                              Rows const& rows, row_state<NT>& state) const {
    int least_upper = 0x7fffffff, most_lower = 0;  // of the rows that are there
    PITH_UNROLL for (int n = 0; n < NT; ++n) PITH_UNROLL for (int i = 0; i < 2; ++i) {
      std::int64_t const row = first_row + 8 * n + 2 * (t.lane() % 4) + i;
      std::int64_t lower = 0, upper = 0;
      bool const there = row < rows.count;
      if (there) this->source.limits(part.sequence, rows.token(row), this->window, &lower, &upper);
      state.lower[n][i] = static_cast<int>(lower), state.upper[n][i] = static_cast<int>(upper);
      if (!there) continue;
      least_upper = least_upper < state.upper[n][i] ? least_upper : state.upper[n][i];
      most_lower = most_of(most_lower, state.lower[n][i]);
    }
    PITH_UNROLL for (int mask = 1; mask < 4; mask *= 2) {
      int const least = t.shuffle_xor(least_upper, mask);
      least_upper = least_upper < least ? least_upper : least;
      most_lower = most_of(most_lower, t.shuffle_xor(most_lower, mask));
    }
    // Limits rise with the row: the last row of those that walk along sees most.
    std::int64_t const last = (behind < rows.count ? behind : rows.count) - 1;
    std::int64_t lower = 0, upper = 0;
    this->source.limits(part.sequence, rows.token(last), this->window, &lower, &upper);
    lay_down_queries(t, head, part, first_row, rows);
    return {most_lower, least_upper, static_cast<int>(upper)};
  }

  // Calls f(scores, values, slots, block) for every block of the part that some row sees: masked scores in base 2, and the staged values.
  template <bool Packed, class Thread, class Head, class F>
  PITH_HD void walk(Thread& t, Head const& head, attention_part const& part, row_state<NT> const& state, visible_range const& seen,
                    F const& f) const {
    constexpr int depth = Packed ? stages : 1, step = !shares_rows ? 1 : Packed ? warps : raw_warps;
    constexpr int bytes = place_of<Packed>::bytes, places_before = depth > 1 ? depth - 1 : 1;
    if (shares_rows && !Packed && t.warp() >= raw_warps) return;
    std::byte* const ring = ring_of<Packed>(t);
    int const begin = part.begin + (shares_rows ? t.warp() : 0);
    located coming[places_before];
    located ahead = locate<Packed>(t, head, begin, part.end, seen);
    if constexpr (depth > 1) {
      PITH_UNROLL for (int i = 0; i < depth - 1; ++i) {
        coming[i] = ahead;
        start<Packed>(t, ring + i * bytes, ahead);
        t.commit();
        ahead = locate<Packed>(t, head, begin + (i + 1) * step, part.end, seen);
      }
    }
    int place = 0;  // of the block that is multiplied
    for (int block = begin; block < part.end; block += step) {
      located now;
      if constexpr (depth > 1) {
        t.template wait<depth - 2>();
        meet(t);  // everyone's copies are here, and everyone is done with the block before
        int const next = place == 0 ? depth - 1 : place - 1;
        now = coming[0];
        PITH_UNROLL for (int i = 0; i + 1 < depth - 1; ++i) coming[i] = coming[i + 1];
        coming[depth - 2] = ahead;
        start<Packed>(t, ring + next * bytes, ahead);
        t.commit();
        ahead = locate<Packed>(t, head, block + depth * step, part.end, seen);
      } else {
        meet(t);
        now = ahead;
        start<Packed>(t, ring, now);
        t.commit();
        ahead = locate<Packed>(t, head, block + step, part.end, seen);
        t.template wait<0>();
        meet(t);
      }
      if (now.keys != nullptr) {
        float s[2][NT][4] = {};
        std::byte const* const stage = ring + place * bytes;
        score<Packed>(t, head, state, seen, queries_of(t), stage, now, s);
        f(s, stage + place_of<Packed>::key_bytes, slots_of_block{now.slot, now.slots}, block);
      }
      place = place + 1 == depth ? 0 : place + 1;
    }
    t.template wait<0>();
  }

  // Warps that walk blocks of their own, the first of them.
  template <bool Packed>
  static constexpr int walking = Packed ? warps : raw_warps;

 private:
  // A 32-token block: where its keys and values lie, and the slot of its first token.
  struct located {
    std::byte const* keys = nullptr;  // null: there is no such block
    std::byte const* values = nullptr;
    int slot = 0;
    int slots = 0;         // behind its last token, or behind the whole segment
    int stored = 0;        // the slot counted from the end of the first tokens, as pages count
    int first_block = -1;  // of the raw first tokens
    bool packed_keys_here = false;
  };

  // Rows in shared memory, then as dot_block reads them.
  template <class Thread, class Head, class Rows>
  PITH_HD void lay_down_queries(Thread& t, Head const& head, attention_part const& part, std::int64_t first_row, Rows const& rows) const {
    std::int64_t const first_token = this->source.queries(part.sequence).first;
    std::byte* const query = queries_of(t);
    float* const row = row_of(t);
    bool const packed = part.raw == 0 || Source::keys_differ, raw = needs_raw_keys && (part.raw != 0 || Source::keys_differ);
    for (int r = shares_rows ? t.warp() : 0; r < 8 * NT; r += shares_rows ? warps : 1) {
      std::int64_t const at = first_row + r;
      for (int c = t.lane(); c < dk; c += warp_lanes) {
        float x = 0;
        if (at < rows.count)
          x = to_float(this->q.data[this->q.offset(first_token + rows.token(at), t.block_y() * this->group + rows.head(at), c)]);
        row[c] = x;
      }
      t.sync_warp();
      if constexpr (needs_raw_keys) {
        if (raw) raw_query::write(t, query + raw_query_at, r, row, this->scale);
      }
      t.sync_warp();
      if (packed) {
        if constexpr (is_transformed<typename Page::key_tile>) {
          transform_query<typename Page::key_tile>(t, row, head.key_state());
          t.sync_warp();
        }
        packed_query::write(t, query, r, row, this->scale);
        t.sync_warp();
      }
    }
    meet_all(t);
  }

  // Those who share a ring.
  template <class Thread>
  PITH_HD static void meet(Thread& t) {
    shares_rows ? t.sync_warp() : t.sync();
  }
  // Those who share queries.
  template <class Thread>
  PITH_HD static void meet_all(Thread& t) {
    shares_rows ? t.sync() : t.sync_warp();
  }

  template <bool Packed, class Thread, class Head>
  PITH_HD located locate(Thread& t, Head const& head, int block, int end, visible_range const& seen) const {
    located at;
    if (block >= end) return at;
    slots_of_block const place = slots_of<Packed>(head, block);
    at.slot = place.first, at.slots = place.behind;
    if constexpr (Packed) {
      int const slot = block_tokens * block;
      at.stored = slot;
      if (at.slot >= seen.to) return at;
      std::byte const* const page = head.page(t, slot / Page::tokens);
      if (page == nullptr) return at;
      at.packed_keys_here = !Source::keys_differ || slot < head.sealed_keys();
      at.keys = at.packed_keys_here ? page + Page::key_tile_at(slot % Page::tokens) : head.staging_keys(slot);
      at.values = page + Page::value_tile_at(slot % Page::tokens);
    } else {
      raw_block_counts const raw(head);
      if (block < raw.first) {
        at.first_block = block;
        at.keys = head.first_keys(), at.values = head.first_values();
      } else if (block < raw.first + raw.staged) {
        int const slot = raw.from + block_tokens * (block - raw.first);
        at.stored = slot;
        at.packed_keys_here = Source::keys_differ && slot < head.sealed_keys();
        at.values = head.staging_values(slot);
        if (!at.packed_keys_here) {
          at.keys = head.staging_keys(slot);
        } else {
          std::byte const* const page = head.page(t, slot / Page::tokens);
          at.keys = page == nullptr ? nullptr : page + Page::key_tile_at(slot % Page::tokens);
        }
      } else {
        int const token = block_tokens * (block - raw.first - raw.staged);
        at.keys = head.chunk_keys(token), at.values = head.chunk_values(token);
      }
      if (at.slot >= seen.to) at.keys = nullptr;
    }
    return at;
  }

  // The copies of one block, in the open group.
  template <bool Packed, class Thread>
  PITH_HD static void start(Thread& t, std::byte* stage, located const& at) {
    if (at.keys == nullptr) return;
    constexpr int many = shares_rows ? warp_lanes : threads;
    int const self = shares_rows ? t.lane() : thread_of(t);
    constexpr int key_bytes = place_of<Packed>::key_bytes;
    if constexpr (Packed || Source::keys_differ) {
      if (at.packed_keys_here) tile_stage<packed_keys>::template start<many>(t, self, stage, at.keys, block_in_tile<packed_keys>(at));
    }
    if constexpr (needs_raw_keys) {
      if (!Packed && at.first_block >= 0)
        tile_stage<raw_keys>::template start_part<many>(t, self, stage, at.keys, at.first_block, Source::first_tile);
      else if (!at.packed_keys_here)
        tile_stage<raw_keys>::template start<many>(t, self, stage, at.keys, 0);
    }
    if constexpr (!Values) {
      return;
    } else if constexpr (Packed) {
      tile_stage<packed_values>::template start<many>(t, self, stage + key_bytes, at.values, block_in_tile<packed_values>(at));
    } else {
      if (at.first_block >= 0)
        tile_stage<raw_values>::template start_part<many>(t, self, stage + key_bytes, at.values, at.first_block, Source::first_tile);
      else
        tile_stage<raw_values>::template start<many>(t, self, stage + key_bytes, at.values, 0);
    }
  }
  // Where a block lies in its tile, which may hold several.
  template <class Storage>
  PITH_HD static int block_in_tile(located const& at) {
    return at.stored % Storage::tokens / block_tokens;
  }

  template <bool Packed, class Thread, class Head>
  PITH_HD void score(Thread& t, Head const& head, row_state<NT> const& state, visible_range const& seen, std::byte const* query,
                     std::byte const* stage, located const& at, float (&s)[2][NT][4]) const {
    float factor[NT][2];
    if (needs_raw_keys && !at.packed_keys_here) {
      if constexpr (needs_raw_keys) {
        dot_block<raw_keys, NT, Terms>::run(t, stage, query + raw_query_at, s);
        factors<raw_query>(t, query + raw_query_at, factor);
      }
    } else if constexpr (Packed || Source::keys_differ) {
      dot_block<packed_keys, NT, Terms>::run(t, stage, query, s);
      factors<packed_query>(t, query, factor);
    }
    PITH_UNROLL for (int h = 0; h < 2; ++h) PITH_UNROLL for (int n = 0; n < NT; ++n) PITH_UNROLL for (int r = 0; r < 4; ++r) s[h][n][r] *=
        factor[n][r % 2];
    if (this->soft_cap > 0) row_state<NT>::soften(s, this->soft_cap);
    int const first = at.slot + 4 * (t.lane() / 4);
    if constexpr (Source::has_bias) {
      if (head.has_biases()) PITH_UNROLL for (int e = 0; e < 4; ++e) {
          float const b = first + e < at.slots ? head.bias(first + e) * log2_e : 0.0f;
          PITH_UNROLL for (int n = 0; n < NT; ++n) PITH_UNROLL for (int i = 0; i < 2; ++i) {
            float& x = s[e / 2][n][2 * (e % 2) + i];
            x = x + b < no_score ? no_score : x + b;  // -infinity hides a slot
          }
        }
    }
    if (at.slot < seen.all_from || at.slot + block_tokens > seen.all_to) state.mask(s, first);
    bool hides = false;
    if constexpr (Source::has_visibility) hides = head.hides();
    if (at.slot + block_tokens > at.slots || hides) {
      PITH_UNROLL for (int e = 0; e < 4; ++e) {
        bool shown = first + e < at.slots;
        if constexpr (Source::has_visibility) shown = shown && (!hides || head.visible(first + e));
        PITH_UNROLL for (int n = 0; n < NT; ++n) PITH_UNROLL for (int i = 0; i < 2; ++i) {
          float& x = s[e / 2][n][2 * (e % 2) + i];
          if (!shown) x = no_score;
        }
      }
    }
  }

  template <class Query, class Thread>
  PITH_HD static void factors(Thread& t, std::byte const* query, float (&factor)[NT][2]) {
    PITH_UNROLL for (int n = 0; n < NT; ++n) PITH_UNROLL for (int i = 0; i < 2; ++i) factor[n][i] =
        load_word<float>(query + Query::factor_at(8 * n + 2 * (t.lane() % 4) + i));
  }
};

}  // namespace pith::device
