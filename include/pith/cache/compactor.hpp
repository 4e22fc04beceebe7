// SPDX-License-Identifier: Apache-2.0
// What a policy that evicts needs of a cache beside evict(): who is left, their rows as numbers, and their pages back. A base of
// cache<Recipe>.
//
//   auto const n = cache.survivors(s, layer, head, slots).value();       // [n] slots and tokens, ascending: place i is survivor i
//   cache.read_rows(s, layer, head, slots.first(n), keys, values);       // what a scorer or a route by content looks at
//   cache.compact(s, layer, head);                                       // evicted rows between living ones: pages come back
//   cache.compact(s, layer, head, {into, weights}, scratch);             // losers are merged into survivors, then the same
//
// A merge makes survivor j  sum_i w_i row_i  over itself and all i with into[i] = j, in f32, in slot order; with side<bias> its bias
// becomes ln sum_i e^bias_i. So m equal rows leave attention as it was, and a slot that stands for all losers of a head is any one of them
// into which the others go. Without side<bias> a merged row counts as one.
//
// With `next` a loser's value goes to several survivors, its key and bias to none:  value_j += w_i value_i  for the next `next` that stay,
// from into[i] on. Rows that something goes into are written anew as merged ones are, their keys with them.
//
// Rule E1  What is sealed and kept is encoded anew at most once in its life: raw, float8 and per_token rows never are, they move as
//          they are stored. Merged rows are new numbers, and are encoded once more each time.
// Rule E2  first and staging do not move: they are raw, of this sequence alone, and small. Losers there are masked; a row there that others
//          are merged into is overwritten, rounded to bf16 once.
// Rule E3  Nothing is done for less than `least_pages`: where rows are encoded together, that is their only time.
// Rule E4  Compaction cannot be undone: the sequence can be cut to no tokens, or to those behind the slots that have moved, not between.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <utility>

#include "pith/cache/head_packer.hpp"
#include "pith/cache/writer.hpp"

namespace pith {

struct survivor {
  std::int64_t slot;   // until the next compact() of this head
  std::int64_t token;  // its number in the sequence
};

// Arrays over survivors.
struct merge_plan {
  static constexpr std::int64_t dropped = -1;

  std::span<std::int64_t const> into;      // i: stays; j: goes into survivor j, which stays; or dropped
  std::span<float const> weights;          // finite; of a survivor into which nothing goes it does not matter
  std::span<float const> value_weights{};  // empty: the same
  std::int64_t next = 0;                   // above 0: the weights are of losers' values, and what stays keeps all of itself

  std::span<float const> of_values() const { return value_weights.empty() ? weights : value_weights; }
};

template <class Recipe>
class cache_compactor : public cache_writer<Recipe> {
  using base = cache_writer<Recipe>;

 protected:
  using base::store_;
  using typename base::backend;
  using typename base::page;
  using typename base::segments;
  using packer = head_packer<Recipe, backend>;
  using reader = row_reader<Recipe, backend>;

 public:
  // Living slots of one KV head.
  // errors  stale_handle, out_of_range
  result<std::int64_t> living(sequence of, int layer, int head) const {
    if (status const ok = this->check_head(of, layer, head); !ok) return ok;
    std::int64_t count = 0;
    for_each_living(of.index, layer, head, [&](std::int64_t) { ++count; });
    return count;
  }
  // Calls f(slot) for each of them, ascending. errors  as living
  template <class F>
  status for_each_survivor(sequence of, int layer, int head, F&& f) const {
    if (status const ok = this->check_head(of, layer, head); !ok) return ok;
    for_each_living(of.index, layer, head, f);
    return {};
  }
  // Their slots and tokens; returns how many.
  // errors  as living; capacity_exceeded (`at` is how many): out holds the first ones
  result<std::int64_t> survivors(sequence of, int layer, int head, std::span<survivor> out) const {
    if (status const ok = this->check_head(of, layer, head); !ok) return ok;
    head_slots const slots = store_.slots_of(of.index, layer, head);
    std::size_t count = 0;
    for_each_living(of.index, layer, head, [&](std::int64_t slot) {
      if (count < out.size()) out[count] = {slot, slots.token_of(slot)};
      ++count;
    });
    if (count > out.size()) return status{errc::capacity_exceeded, static_cast<std::int64_t>(count)};
    return static_cast<std::int64_t>(count);
  }

  // The rows of these slots, decoded: keys [i][key channel], values [i][value channel]; either may be left out by an empty span.
  // errors  stale_handle, shape_mismatch, out_of_range (a slot that is not living; `at` is its place). Nothing is written on an error
  // cost    every tile is decoded once, if the slots are in order
  status read_rows(sequence of, int layer, int head, std::span<survivor const> rows, std::span<float> keys, std::span<float> values) const {
    if (status const ok = this->check_head(of, layer, head); !ok) return ok;
    if (!keys.empty() && keys.size() != rows.size() * Recipe::key_channels)
      return {errc::shape_mismatch, static_cast<std::int64_t>(keys.size())};
    if (!values.empty() && values.size() != rows.size() * Recipe::value_channels)
      return {errc::shape_mismatch, static_cast<std::int64_t>(values.size())};
    for (std::size_t i = 0; i < rows.size(); ++i)
      if (!is_living(of.index, layer, head, rows[i].slot)) return {errc::out_of_range, static_cast<std::int64_t>(i)};
    reader all({store_, of.index, layer, head});
    for (std::size_t i = 0; i < rows.size() && !keys.empty(); ++i)
      std::copy_n(all.key(rows[i].slot), Recipe::key_channels, keys.data() + i * Recipe::key_channels);
    for (std::size_t i = 0; i < rows.size() && !values.empty(); ++i)
      std::copy_n(all.value(rows[i].slot), Recipe::value_channels, values.data() + i * Recipe::value_channels);
    return {};
  }

  // Gives back the pages that the evicted rows of one KV head take up (head_packer.hpp), if those are at least `least_pages`.
  // errors  stale_handle, out_of_range; capacity_exceeded: a fork shares pages and there are none for a copy. Nothing was changed
  // cost    a copy of the rows that move; where rows are encoded together, a decode and an encode of them
  result<compaction> compact(sequence of, int layer, int head,
                             std::int64_t least_pages = 1) requires(Recipe::has_liveness&& Recipe::has_births) {
    check_rate();
    if (status const ok = this->check_head(of, layer, head); !ok) return ok;
    packer rows(store_, of.index, layer, head, {});
    if (rows.gain() < std::max<std::int64_t>(1, least_pages)) return compaction{};
    if (status const ok = rows.own_pages(); !ok) return ok;
    return rows.pack();
  }

  // Bytes that a merge of so many survivors needs, into at most `targets` of them.
  static constexpr std::int64_t merge_scratch_bytes(std::int64_t survivors, std::int64_t targets) {
    return alignof(merged_row) + survivors * static_cast<std::int64_t>(sizeof(place)) +
           targets * static_cast<std::int64_t>(sizeof(merged_row) + sizeof(replaced_row) +
                                               sizeof(float) * (Recipe::key_channels + Recipe::value_channels));
  }

  // Merges and drops, then compacts.
  // errors  stale_handle, out_of_range (layer, head; into: `at` is the survivor), shape_mismatch (not one for each survivor), not_finite (a
  //         weight), capacity_exceeded (scratch: `at` is its bytes; or as compact), unsupported (`at` is the survivor: others would go into
  //         a row that was encoded its one time, or whose key is sealed and value is not, or the other way round). Nothing was changed
  result<compaction> compact(sequence of, int layer, int head, merge_plan const& plan,
                             std::span<std::byte> scratch) requires(Recipe::has_liveness&& Recipe::has_births) {
    check_rate();
    if (status const ok = this->check_head(of, layer, head); !ok) return ok;
    merge_state all;
    if (status const ok = lay_out(of.index, layer, head, plan, scratch, all); !ok) return ok;
    accumulate(of.index, layer, head, plan, all);

    // Losers are masked first, and unmasked if the pages cannot be had.
    std::uint64_t* const live = store_.live_of(of.index, layer, head);
    auto const mask = [&](bool lives) {
      for (std::size_t i = 0; i < plan.into.size(); ++i)
        if (std::int64_t const slot = all.places[i].slot; plan.into[i] != static_cast<std::int64_t>(i)) {
          std::uint64_t const bit = std::uint64_t{1} << (slot % 64);
          live[slot / 64] = lives ? live[slot / 64] | bit : live[slot / 64] & ~bit;
        }
    };
    mask(false);
    packer rows(store_, of.index, layer, head, all.sealed);
    bool const packs = !all.sealed.empty() || rows.gain() > 0;
    if (packs)
      if (status const ok = rows.own_pages(); !ok) {
        mask(true);
        return ok;
      }
    for (merged_row const& row : all.rows) {
      if constexpr (Recipe::has_bias) store_.biases_of(of.index, layer, head)[row.slot] = static_cast<float>(row.mass);
      if (!is_sealed(of.index, layer, row.slot)) overwrite(of.index, layer, head, row);
    }
    compaction done;
    if (packs) done = rows.pack();
    done.merged = static_cast<std::int64_t>(all.rows.size());
    return done;
  }

 private:
  struct place {
    std::int64_t slot;
    std::int64_t row;  // of merged rows, or -1
  };
  struct merged_row {
    std::int64_t slot;
    double mass;  // ln sum e^bias
    float *key, *value;
    bool any, any_value;
  };
  struct merge_state {
    std::span<place> places;
    std::span<merged_row> rows;
    std::span<replaced_row> sealed;  // those of them that are
  };

  static consteval void check_rate() {
    static_assert(!page::has_tails,
                  "[pith] compact(): rows of a codec of variable rate are not compacted. Fix: a codec of fixed size, int8<per_token<64>>.");
  }

  // Calls f(slot) for the living ones of slots [from, to): 64 slots at a time, holes and pages that are gone masked out of the liveness
  // bits.
  template <class F>
  void for_each_living(std::int64_t index, int layer, int head, std::int64_t from, std::int64_t to, F&& f) const {
    segment_source<Recipe> const source{store_, index, layer, head};
    std::span<slot_range const> const dead = store_.slots_of(index, layer, head).dead();
    std::int64_t const pages_end = Recipe::first_tokens + std::max(source.sealed_keys(), source.sealed_values());
    std::int64_t seen = -1;  // page
    bool held = true;
    auto const below = [](std::int64_t bits) {
      return bits >= 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << std::max<std::int64_t>(bits, 0)) - 1;
    };
    for (std::int64_t base = from / 64 * 64; base < to; base += 64) {
      std::uint64_t lives = below(to - base) & ~below(from - base);
      if constexpr (Recipe::has_liveness) lives &= source.live()[base / 64];
      if (lives == 0) continue;  // what was compacted long ago
      for (slot_range const& hole : dead) lives &= ~(below(hole.end - base) & ~below(hole.begin - base));
      for (std::int64_t slot = std::max<std::int64_t>(base, Recipe::first_tokens), end = std::min(base + 64, pages_end); slot < end;) {
        std::int64_t const at = (slot - Recipe::first_tokens) / page::tokens, next = Recipe::first_tokens + (at + 1) * page::tokens;
        if (at != seen) seen = at, held = source.page_bytes(at * page::tokens) != nullptr;
        if (!held) lives &= ~(below(next - base) & ~below(slot - base));
        slot = next;
      }
      for (; lives != 0; lives &= lives - 1) f(base + std::countr_zero(lives));
    }
  }
  template <class F>
  void for_each_living(std::int64_t index, int layer, int head, F&& f) const {
    for_each_living(index, layer, head, 0, store_.layer(index, layer).slots, f);
  }
  bool is_living(std::int64_t index, int layer, int head, std::int64_t slot) const {
    bool lives = false;
    if (slot >= 0 && slot < store_.layer(index, layer).slots)
      for_each_living(index, layer, head, slot, slot + 1, [&](std::int64_t) { lives = true; });
    return lives;
  }
  bool is_sealed(std::int64_t index, int layer, std::int64_t slot) const {
    layer_state const& state = store_.layer(index, layer);
    return slot >= Recipe::first_tokens && slot - Recipe::first_tokens < std::min(state.sealed_keys, state.sealed_values);
  }
  // Whether others can be merged into what a slot holds.
  bool can_take(std::int64_t index, int layer, int head, std::int64_t slot) const {
    layer_state const& state = store_.layer(index, layer);
    std::int64_t const staged = slot - Recipe::first_tokens;
    if (is_sealed(index, layer, slot)) return packer::all_move || staged >= store_.head(index, layer, head).spent;
    return staged < 0 || staged >= std::max(state.sealed_keys, state.sealed_values);
  }

  // Checks the plan, and cuts the scratch memory into the places of survivors and the rows that are merged into, ascending.
  status lay_out(std::int64_t index, int layer, int head, merge_plan const& plan, std::span<std::byte> scratch, merge_state& all) const {
    std::size_t const count = plan.into.size();
    std::int64_t living = 0;
    for_each_living(index, layer, head, [&](std::int64_t) { ++living; });
    if (static_cast<std::int64_t>(count) != living || plan.weights.size() != count || plan.of_values().size() != count)
      return {errc::shape_mismatch, living};
    if (plan.next < 0) return {errc::out_of_range, -1};
    for (std::size_t i = 0; i < count; ++i) {
      std::int64_t const to = plan.into[i];
      if (to < merge_plan::dropped || to >= living || (to >= 0 && plan.into[static_cast<std::size_t>(to)] != to))
        return {errc::out_of_range, static_cast<std::int64_t>(i)};
      if (!is_finite(plan.weights[i]) || !is_finite(plan.of_values()[i])) return {errc::not_finite, static_cast<std::int64_t>(i)};
    }
    std::size_t const past = reinterpret_cast<std::uintptr_t>(scratch.data()) % alignof(merged_row);
    std::byte* at = scratch.data() + (past == 0 ? 0 : alignof(merged_row) - past);
    if (static_cast<std::int64_t>(scratch.size()) < merge_scratch_bytes(living, 0))
      return {errc::capacity_exceeded, merge_scratch_bytes(living, 0)};
    auto const carve = [&]<class T>(std::span<T>& to, std::size_t of) {
      to = {reinterpret_cast<T*>(at), of};
      at += of * sizeof(T);
    };
    carve(all.places, count);
    std::size_t i = 0;
    for_each_living(index, layer, head, [&](std::int64_t slot) { all.places[i++] = {slot, -1}; });
    for (i = 0; i < count; ++i)
      if (plan.into[i] >= 0 && plan.into[i] != static_cast<std::int64_t>(i))
        for_each_taker(plan, i, [&](std::size_t j) { all.places[j].row = 0; });
    std::int64_t targets = 0;
    for (i = 0; i < count; ++i)
      if (all.places[i].row == 0) {
        if (!can_take(index, layer, head, all.places[i].slot)) return {errc::unsupported, static_cast<std::int64_t>(i)};
        all.places[i].row = targets++;
      }
    if (std::int64_t const bytes = merge_scratch_bytes(living, targets); static_cast<std::int64_t>(scratch.size()) < bytes)
      return {errc::capacity_exceeded, bytes};
    carve(all.rows, static_cast<std::size_t>(targets));
    carve(all.sealed, static_cast<std::size_t>(targets));
    auto* numbers = reinterpret_cast<float*>(at);
    std::size_t sealed = 0;
    for (i = 0; i < count; ++i) {
      if (all.places[i].row < 0) continue;
      merged_row& row = all.rows[static_cast<std::size_t>(all.places[i].row)];
      row = {all.places[i].slot, 0, numbers, numbers + Recipe::key_channels, false, false};
      numbers += Recipe::key_channels + Recipe::value_channels;
      if (is_sealed(index, layer, row.slot)) all.sealed[sealed++] = {row.slot, row.key, row.value};
    }
    all.sealed = all.sealed.first(sealed);
    return {};
  }

  // f(survivor) for those that loser i goes into.
  template <class F>
  static void for_each_taker(merge_plan const& plan, std::size_t i, F&& f) {
    auto to = static_cast<std::size_t>(plan.into[i]);
    if (plan.next == 0) return f(to);
    if (plan.of_values()[i] == 0) return;
    for (std::int64_t left = plan.next; left > 0 && to < plan.into.size(); ++to)
      if (plan.into[to] == static_cast<std::int64_t>(to)) f(to), --left;
  }

  void accumulate(std::int64_t index, int layer, int head, merge_plan const& plan, merge_state const& all) const {
    reader rows({store_, index, layer, head});
    auto const add = [](float* to, float weight, float const* row, int channels, bool any) {
      for (int c = 0; c < channels; ++c) to[c] = any ? to[c] + weight * row[c] : weight * row[c];
    };
    for (std::size_t i = 0; i < plan.into.size(); ++i) {
      if (plan.into[i] < 0) continue;
      std::int64_t const slot = all.places[i].slot;
      bool const stays = plan.into[i] == static_cast<std::int64_t>(i);
      if (plan.next > 0 && !stays) {
        for_each_taker(plan, i, [&](std::size_t j) {
          merged_row& to = all.rows[static_cast<std::size_t>(all.places[j].row)];
          add(to.value, plan.of_values()[i], rows.value(slot), Recipe::value_channels, std::exchange(to.any_value, true));
        });
        continue;
      }
      std::int64_t const at = all.places[static_cast<std::size_t>(plan.into[i])].row;
      if (at < 0) continue;
      merged_row& to = all.rows[static_cast<std::size_t>(at)];
      bool const whole = plan.next > 0;
      add(to.key, whole ? 1.0f : plan.weights[i], rows.key(slot), Recipe::key_channels, to.any);
      add(to.value, whole ? 1.0f : plan.of_values()[i], rows.value(slot), Recipe::value_channels, std::exchange(to.any_value, true));
      if constexpr (Recipe::has_bias) {
        double const bias = static_cast<double>(store_.biases_of(index, layer, head)[slot]);
        double const most = std::max(to.mass, bias), least = std::min(to.mass, bias);
        to.mass = !to.any ? bias : std::isinf(least) ? most : most + std::log1p(std::exp(least - most));
      }
      to.any = true;
    }
  }

  void overwrite(std::int64_t index, int layer, int head, merged_row const& row) {
    bf16 key[Recipe::key_channels], value[Recipe::value_channels];
    for (int c = 0; c < Recipe::key_channels; ++c) key[c] = raw_bf16<Recipe::nan>(row.key[c]);
    for (int c = 0; c < Recipe::value_channels; ++c) value[c] = raw_bf16<Recipe::nan>(row.value[c]);
    segments::replace(store_.raw_block(index, layer, head), row.slot, key, value);
  }
};

}  // namespace pith
