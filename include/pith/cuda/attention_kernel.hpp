// SPDX-License-Identifier: Apache-2.0
// Attention over packed pages on tensor cores: one block computes one part of a sequence (attention_plan.hpp) for one KV head and some of its
// query rows. No decoded page is ever in memory: words are copied into shared memory in the background and come apart in registers.
//
//   partial[part][kv_head][row][channel], and m, l of each row: out = sum over parts of 2^m o / sum of 2^m l      (attention_merge.hpp)
//
// Warps along tokens (decoding): each takes every fourth 32-token block for the same 8 NT rows, and they meet at the end. Warps along rows
// (prefill): each has 8 NT rows of its own and walks the blocks that those see.
// Each warp has a ring of Stages blocks in shared memory; Stages - 1 of them are on their way while one is multiplied.
//
// A Source is a trivially copyable view of the sequences of one call:
//   packed_blocks(i), raw_blocks(i)      32-token blocks of sequence i whose values are packed, or raw
//   queries(i)                           {first, count} of the call's query tokens
//   limits(i, token, window, lower, upper)   slots that query token sees
//   at(i, head) -> Head:  first_tokens(), sealed_keys(), sealed_values(), stored(), chunk_tokens()      as page/attention_engine.hpp
//                         page(t, index)            packed page or null      staging_keys(slot) ... chunk_values(token)   raw tiles
//                         visible(slot), bias(slot)
//                         key_state(), value_state()
//   has_raw, has_visibility, has_bias, keys_differ    (static)    whether the values and keys may be sealed up to different slots
//   first_tile                                        tokens of a raw tile of the first tokens
#pragma once

#include "pith/codec/pipe.hpp"
#include "pith/core/view.hpp"
#include "pith/cuda/attention_plan.hpp"
#include "pith/cuda/dot_block.hpp"
#include "pith/cuda/mix_block.hpp"
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
  float* limits;  // [part][kv_head][row][2]: m, l
  std::int32_t group;  // query heads of a KV head
  std::int32_t kv_heads;
  std::int32_t rows_at;  // rows of a part and head in the partial results
  float scale;           // of the scores, times log2 e
  float soft_cap;
  std::int64_t window;
};

template <class Page, class Source, class Q, int NT, int Terms, warps_along Along>
struct attention_kernel : attention_call<Source, Q> {
  static constexpr int dk = Page::key_channels, dv = Page::value_channels;
  using packed_keys = typename Page::key_tile::storage;
  using packed_values = typename Page::value_tile::storage;
  using raw_keys = raw_tile<bf16, dk, use::dot>;
  using raw_values = raw_tile<bf16, dv, use::mix>;
  static constexpr bool needs_raw_keys = Source::has_raw;
  static constexpr int larger(int a, int b) { return a > b ? a : b; }

  static constexpr int key_bytes = larger(tile_stage<packed_keys>::bytes, needs_raw_keys ? tile_stage<raw_keys>::bytes : 0);
  static constexpr int value_bytes = larger(tile_stage<packed_values>::bytes, Source::has_raw ? tile_stage<raw_values>::bytes : 0);
  static constexpr int stage_bytes = key_bytes + value_bytes;
  static constexpr int stages = stage_bytes <= 8192 ? 3 : 2;
  using packed_query = query_block<packed_keys, NT, Terms>;
  using raw_query = query_block<raw_keys, NT, Terms>;
  static constexpr int raw_query_at = packed_query::bytes;
  static constexpr int queries_bytes = raw_query_at + (needs_raw_keys ? raw_query::bytes : 0);
  static constexpr int row_bytes = static_cast<int>(round_up(4 * larger(dk, dv), 128));
  // A warp's own part of the shared memory; queries lie in front of all of them if the warps share them.
  static constexpr bool shares_rows = Along == warps_along::tokens;
  static constexpr int own_bytes = stages * stage_bytes + row_bytes + (shares_rows ? 0 : queries_bytes);
  static constexpr int common_bytes = shares_rows ? queries_bytes : 0;
  static constexpr int most_shared = 160 << 10;  // every device of sm_80 and later can give a block as much
  static constexpr int warps = common_bytes + 4 * own_bytes <= most_shared ? 4 : common_bytes + 2 * own_bytes <= most_shared ? 2 : 1;
  static constexpr int threads = warps * warp_lanes;
  static constexpr int rows = 8 * NT * (shares_rows ? 1 : warps);  // of a block
  static constexpr int merge_bytes = shares_rows ? 8 * NT * (4 * dv + 8) : 0;
  static constexpr int shared_bytes = larger(common_bytes + warps * own_bytes, common_bytes + merge_bytes);
  static_assert(shared_bytes <= most_shared);

  template <device_like Thread>
  PITH_HD void operator()(Thread& t) const {
    if (t.block_x() >= *this->part_count) return;
    attention_part const part = this->parts[t.block_x()];
    auto const queries = this->source.queries(part.sequence);
    std::int64_t const all_rows = queries.count * this->group;
    std::int64_t const first_row = t.block_z() * rows + (shares_rows ? 0 : 8 * NT * t.warp());
    if (t.block_z() * rows >= all_rows) return;
    auto const head = this->source.at(part.sequence, static_cast<int>(t.block_y()));
    std::byte* const own = t.shared() + common_bytes + t.warp() * own_bytes;
    std::byte* const query = shares_rows ? t.shared() : own + stages * stage_bytes + row_bytes;

    row_state<NT> state;
    state.clear();
    int least_upper = 0x7fffffff, most_lower = 0, most_upper = 0;  // of the rows that are there
    PITH_UNROLL for (int n = 0; n < NT; ++n)
      PITH_UNROLL for (int i = 0; i < 2; ++i) {
        std::int64_t const row = first_row + 8 * n + 2 * (t.lane() % 4) + i;
        std::int64_t lower = 0, upper = 0;
        bool const there = row < all_rows;
        if (there) this->source.limits(part.sequence, row / this->group, this->window, &lower, &upper);
        state.lower[n][i] = static_cast<int>(lower), state.upper[n][i] = static_cast<int>(upper);
        if (!there) continue;
        least_upper = least_upper < state.upper[n][i] ? least_upper : state.upper[n][i];
        most_lower = larger_of(most_lower, state.lower[n][i]), most_upper = larger_of(most_upper, state.upper[n][i]);
      }
    PITH_UNROLL for (int mask = 1; mask < 4; mask *= 2) {
      int const least = t.shuffle_xor(least_upper, mask);
      least_upper = least_upper < least ? least_upper : least;
      most_lower = larger_of(most_lower, t.shuffle_xor(most_lower, mask));
      most_upper = larger_of(most_upper, t.shuffle_xor(most_upper, mask));
    }

    lay_down_queries(t, head, part, queries.first, all_rows, first_row, query, reinterpret_cast<float*>(own + stages * stage_bytes));
    visible_range const seen{most_lower, least_upper, most_upper};
    if (part.raw != 0) {
      if constexpr (Source::has_raw) run<false>(t, head, part, state, seen, query, own, first_row, all_rows);
    } else {
      run<true>(t, head, part, state, seen, query, own, first_row, all_rows);
    }
  }

 private:
  struct visible_range {
    int all_from, all_to;  // every row sees these slots
    int to;                // no row sees this one or a later one
  };
  // A 32-token block: where its keys and values lie, and the slot of its first token.
  struct located {
    std::byte const* keys = nullptr;  // null: there is no such block
    std::byte const* values = nullptr;
    int slot = 0;
    int slots = 0;  // behind its last token, or behind the whole sequence
    int stored = 0;  // the slot counted from the end of the first tokens, as pages count
    int first_block = -1;  // of the raw first tokens
    bool packed_keys_here = false;
  };

  PITH_HD static int larger_of(int a, int b) { return a > b ? a : b; }

  // Rows in shared memory, then as dot_block reads them.
  template <class Thread, class Head>
  PITH_HD void lay_down_queries(Thread& t, Head const& head, attention_part const& part, std::int64_t first_token, std::int64_t all_rows,
                                std::int64_t first_row, std::byte* query, float* row) const {
    bool const packed = part.raw == 0 || Source::keys_differ, raw = needs_raw_keys && (part.raw != 0 || Source::keys_differ);
    for (int r = shares_rows ? t.warp() : 0; r < 8 * NT; r += shares_rows ? warps : 1) {
      std::int64_t const at = first_row + r;
      for (int c = t.lane(); c < dk; c += warp_lanes) {
        float x = 0;
        if (at < all_rows)
          x = to_float(this->q.data[this->q.offset(first_token + at / this->group, t.block_y() * this->group + at % this->group, c)]);
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
    if (shares_rows)
      t.sync();
    else
      t.sync_warp();
  }

  template <bool Packed, class Thread, class Head>
  PITH_HD void run(Thread& t, Head const& head, attention_part const& part, row_state<NT>& state, visible_range const& seen,
                   std::byte const* query, std::byte* own, std::int64_t first_row, std::int64_t all_rows) const {
    using values = typename std::conditional_t<Packed, std::type_identity<packed_values>, std::type_identity<raw_values>>::type;
    mix_block<values, NT, Terms> sums;
    sums.clear();
    constexpr int step = shares_rows ? warps : 1;
    int const begin = part.begin + (shares_rows ? t.warp() : 0);
    located ring[stages];
    located ahead = locate<Packed>(t, head, begin, part.end, seen);
    PITH_UNROLL for (int i = 0; i < stages - 1; ++i) {
      ring[i] = ahead;
      start<Packed>(t, head, own + i * stage_bytes, ahead);
      t.commit();
      ahead = locate<Packed>(t, head, begin + (i + 1) * step, part.end, seen);
    }
    int place = 0;  // of the block that is multiplied
    for (int block = begin; block < part.end; block += step) {
      t.template wait<stages - 2>();
      t.sync_warp();  // everyone's copies are here, and everyone is done with the block before
      int const next = place == 0 ? stages - 1 : place - 1;
      located const now = ring[0];
      PITH_UNROLL for (int i = 0; i + 1 < stages - 1; ++i) ring[i] = ring[i + 1];
      ring[stages - 2] = ahead;
      start<Packed>(t, head, own + next * stage_bytes, ahead);
      t.commit();
      ahead = locate<Packed>(t, head, block + stages * step, part.end, seen);
      if (now.keys != nullptr) add<Packed>(t, head, state, sums, seen, query, own + place * stage_bytes, now);
      place = place + 1 == stages ? 0 : place + 1;
    }
    t.template wait<0>();
    state.finish(t);
    sums.finish(t);
    save(t, state, sums, first_row, all_rows);
  }

  template <bool Packed, class Thread, class Head>
  PITH_HD located locate(Thread& t, Head const& head, int block, int end, visible_range const& seen) const {
    located at;
    if (block >= end) return at;
    int const skip = static_cast<int>(head.first_tokens());
    if constexpr (Packed) {
      int const slot = block_tokens * block;
      at.slot = skip + slot, at.slots = skip + static_cast<int>(head.stored()), at.stored = slot;
      if (at.slot >= seen.to) return at;
      std::byte const* const page = head.page(t, slot / Page::tokens);
      if (page == nullptr) return at;
      at.packed_keys_here = !Source::keys_differ || slot < head.sealed_keys();
      at.keys = at.packed_keys_here ? page + Page::key_tile_at(slot % Page::tokens) : head.staging_keys(slot);
      at.values = page + Page::value_tile_at(slot % Page::tokens);
    } else {
      int const first_blocks = (skip + block_tokens - 1) / block_tokens;
      int const from = static_cast<int>(head.sealed_values()), staged = (static_cast<int>(head.stored()) - from + block_tokens - 1) / block_tokens;
      if (block < first_blocks) {
        at.first_block = block;
        at.slot = block_tokens * block, at.slots = skip;
        at.keys = head.first_keys(), at.values = head.first_values();
      } else if (block < first_blocks + staged) {
        int const slot = from + block_tokens * (block - first_blocks);
        at.slot = skip + slot, at.slots = skip + static_cast<int>(head.stored()), at.stored = slot;
        at.packed_keys_here = Source::keys_differ && slot < head.sealed_keys();
        at.values = head.staging_values(slot);
        if (!at.packed_keys_here) {
          at.keys = head.staging_keys(slot);
        } else {
          std::byte const* const page = head.page(t, slot / Page::tokens);
          at.keys = page == nullptr ? nullptr : page + Page::key_tile_at(slot % Page::tokens);
        }
      } else {
        int const token = block_tokens * (block - first_blocks - staged);
        at.slot = skip + static_cast<int>(head.stored()) + token, at.slots = skip + static_cast<int>(head.stored() + head.chunk_tokens());
        at.keys = head.chunk_keys(token), at.values = head.chunk_values(token);
      }
      if (at.slot >= seen.to) at.keys = nullptr;
    }
    return at;
  }

  // The copies of one block, in the open group.
  template <bool Packed, class Thread, class Head>
  PITH_HD void start(Thread& t, Head const&, std::byte* stage, located const& at) const {
    if (at.keys == nullptr) return;
    if constexpr (Packed || Source::keys_differ) {
      if (at.packed_keys_here) tile_stage<packed_keys>::start(t, stage, at.keys, block_in_tile<packed_keys>(at));
    }
    if constexpr (needs_raw_keys) {
      if (!Packed && at.first_block >= 0)
        tile_stage<raw_keys>::start_part(t, stage, at.keys, at.first_block, Source::first_tile);
      else if (!at.packed_keys_here)
        tile_stage<raw_keys>::start(t, stage, at.keys, 0);
    }
    if constexpr (Packed) {
      tile_stage<packed_values>::start(t, stage + key_bytes, at.values, block_in_tile<packed_values>(at));
    } else {
      if (at.first_block >= 0)
        tile_stage<raw_values>::start_part(t, stage + key_bytes, at.values, at.first_block, Source::first_tile);
      else
        tile_stage<raw_values>::start(t, stage + key_bytes, at.values, 0);
    }
  }
  // Where a block lies in its tile, which may hold several.
  template <class Storage>
  PITH_HD static int block_in_tile(located const& at) {
    return at.stored % Storage::tokens / block_tokens;
  }

  template <bool Packed, class Thread, class Head, class Sums>
  PITH_HD void add(Thread& t, Head const& head, row_state<NT>& state, Sums& sums, visible_range const& seen, std::byte const* query,
                   std::byte const* stage, located const& at) const {
    float s[2][NT][4] = {};
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
    PITH_UNROLL for (int h = 0; h < 2; ++h)
      PITH_UNROLL for (int n = 0; n < NT; ++n)
        PITH_UNROLL for (int r = 0; r < 4; ++r) s[h][n][r] *= factor[n][r % 2];
    if (this->soft_cap > 0) row_state<NT>::soften(s, this->soft_cap);
    int const first = at.slot + 4 * (t.lane() / 4);
    if constexpr (Source::has_bias) {
      PITH_UNROLL for (int e = 0; e < 4; ++e) {
        float const b = first + e < at.slots ? head.bias(first + e) * log2_e : 0.0f;
        PITH_UNROLL for (int n = 0; n < NT; ++n)
          PITH_UNROLL for (int i = 0; i < 2; ++i) s[e / 2][n][2 * (e % 2) + i] += b;
      }
    }
    if (at.slot < seen.all_from || at.slot + block_tokens > seen.all_to) state.mask(s, first);
    if (at.slot + block_tokens > at.slots || Source::has_visibility || Source::has_bias) {
      PITH_UNROLL for (int e = 0; e < 4; ++e) {
        bool shown = first + e < at.slots;
        if constexpr (Source::has_visibility) shown = shown && head.visible(first + e);
        PITH_UNROLL for (int n = 0; n < NT; ++n)
          PITH_UNROLL for (int i = 0; i < 2; ++i) {
            float& x = s[e / 2][n][2 * (e % 2) + i];
            if (!shown || x < no_score) x = no_score;  // a bias of -infinity hides a slot too
          }
      }
    }
    state.weigh(t, s, sums);
    sums.add(t, stage + key_bytes, s);
  }

  template <class Query, class Thread>
  PITH_HD static void factors(Thread& t, std::byte const* query, float (&factor)[NT][2]) {
    PITH_UNROLL for (int n = 0; n < NT; ++n)
      PITH_UNROLL for (int i = 0; i < 2; ++i) factor[n][i] = load_word<float>(query + Query::factor_at(8 * n + 2 * (t.lane() % 4) + i));
  }

  // One warp's rows to memory; warps that share rows come together in shared memory first, one after the other.
  template <class Thread, class Sums>
  PITH_HD void save(Thread& t, row_state<NT> const& state, Sums const& sums, std::int64_t first_row, std::int64_t all_rows) const {
    std::int64_t const base = (t.block_x() * this->kv_heads + t.block_y()) * this->rows_at;
    int const g = t.lane() / 4, quad = t.lane() % 4;
    if constexpr (!shares_rows) {
      PITH_UNROLL for (int n = 0; n < NT; ++n)
        PITH_UNROLL for (int i = 0; i < 2; ++i) {
          std::int64_t const row = first_row + 8 * n + 2 * quad + i;
          if (row >= all_rows) continue;
          float* const out = this->partial + (base + row) * dv;
          for_channels(sums, n, i, g, [&](int channel, auto const& some) { store_word(reinterpret_cast<std::byte*>(out + channel), some); });
          if (g == 0) store_word(reinterpret_cast<std::byte*>(this->limits + 2 * (base + row)), two_floats(state.maximum[n][i], state.total[n][i]));
        }
    } else {
      // [8 NT][dv] sums, [8 NT][2] m and l
      std::byte* const merged = t.shared() + common_bytes;
      std::byte* const merged_limits = merged + 8 * NT * 4 * dv;
      t.sync();  // the stages are done with
      for (int w = 0; w < warps; ++w) {
        if (w == t.warp()) {
          PITH_UNROLL for (int n = 0; n < NT; ++n)
            PITH_UNROLL for (int i = 0; i < 2; ++i) {
              int const row = 8 * n + 2 * quad + i;
              std::byte* const at = merged_limits + 8 * row;
              float m = no_score, l = 0;
              if (w > 0) m = load_word<float>(at), l = load_word<float>(at + 4);
              float const most = m > state.maximum[n][i] ? m : state.maximum[n][i];
              float const theirs = exp2_fast(m - most), mine = exp2_fast(state.maximum[n][i] - most);
              for_channels(sums, n, i, g, [&](int channel, auto some) {
                std::byte* const to = merged + 4 * (row * dv + channel);
                constexpr int count = static_cast<int>(sizeof(some.at) / 4);
                PITH_UNROLL for (int j = 0; j < count; ++j) {
                  float x = mine * bits_float(some.at[j]);
                  if (w > 0) x += theirs * load_word<float>(to + 4 * j);
                  some.at[j] = float_bits(x);
                }
                store_word(to, some);
              });
              t.sync_warp();  // all lanes of the row have read m
              if (g == 0) store_word(at, two_floats(most, theirs * l + mine * state.total[n][i]));
            }
        }
        t.sync();
      }
      std::int64_t const left = all_rows - first_row;
      int const there = static_cast<int>(left < 8 * NT ? left : 8 * NT);
      int const thread = t.warp() * warp_lanes + t.lane();
      for (int at = 4 * thread; at < there * dv; at += 4 * threads)
        store_word(reinterpret_cast<std::byte*>(this->partial + (base + first_row) * dv + at), load_word<word4>(merged + 4 * at));
      for (int at = thread; at < there; at += threads)
        store_word(reinterpret_cast<std::byte*>(this->limits + 2 * (base + first_row + at)), load_word<word2>(merged_limits + 8 * at));
    }
  }
  PITH_HD static word2 two_floats(float a, float b) { return {{float_bits(a), float_bits(b)}}; }

  // f(channel, words) for the neighbouring channels of row 2t + i that this lane holds.
  template <class Sums, class F>
  PITH_HD static void for_channels(Sums const& sums, int n, int i, int g, F f) {
    if constexpr (Sums::width == 4) {
      PITH_UNROLL for (int m = 0; m < Sums::tiles; m += 2)
        f(Sums::channel_of(m, g, 0), word4{{float_bits(sums.o[m][n][i]), float_bits(sums.o[m][n][2 + i]), float_bits(sums.o[m + 1][n][i]),
                                            float_bits(sums.o[m + 1][n][2 + i])}});
    } else {
      PITH_UNROLL for (int m = 0; m < Sums::tiles; ++m)
        f(Sums::channel_of(m, g, 0), word2{{float_bits(sums.o[m][n][i]), float_bits(sums.o[m][n][2 + i])}});
    }
  }
};

}  // namespace pith::device
