// SPDX-License-Identifier: Apache-2.0
// Compaction of one KV head: the living rows of its sealed slots move, in order, to the end of them, and the pages in front are given back.
//
//   before   | a . . b . c . . | d . . . . . . e | f . g . . . . . | h i j k |        . dead, | pages; the last one is filled partly
//   after      given back        . . . . . a b c   d e f g h i j k               ...or, with a dead row among h..k, one row further
//
// A unit is page::tile_tokens rows, what is sealed at once. Numbers of slots count behind `first`.
//
// Rule P1  The newest units stay if nothing in them has died: what is compacted ends at the newest unit that has a dead row.
// Rule P2  Rows that move alone (row_codes.hpp) are copied as they are stored. Others are decoded and encoded in their new unit; what is
// behind
//          that, and all in front of `spent`, moves by whole units, bytes and dead rows included, and never is encoded again.
// Rule P3  A unit's rows come from units not behind it, so blocks are filled in place from the end; no other table holds them (own_pages).
// Rule P4  A page that was given back between others is closed first, by moving the blocks in front of it up the table.
// Rule P5  A dead slot in front of an encoded row repeats that row, so that it widens no group. Units without a row are zero bytes.
#pragma once

#include <algorithm>
#include <optional>

#include "pith/cache/row_codes.hpp"
#include "pith/cache/row_reader.hpp"

namespace pith {

// What compact() did.
struct compaction {
  std::int64_t pages = 0;    // given back, of the head; a fork may hold them still
  std::int64_t moved = 0;    // rows that have another slot
  std::int64_t encoded = 0;  // rows encoded once more: of codecs that encode several rows together, and merged ones
  std::int64_t merged = 0;   // rows that others were merged into
};

// A row that takes the place of what a slot of the sequence holds.
struct replaced_row {
  std::int64_t slot;
  float const *key, *value;
};

template <class Recipe, class Backend>
class head_packer {
 public:
  using storage = cache_storage<Recipe>;
  using page = typename Recipe::page;
  using key_tile = typename page::key_tile;
  using value_tile = typename page::value_tile;
  static constexpr std::int64_t first = Recipe::first_tokens, unit = page::tile_tokens, page_tokens = page::tokens;
  static constexpr bool all_move = rows_move<key_tile> && rows_move<value_tile>;

  // `replaced` ascends by slots. Its rows are sealed, keys and values, and not spent.
  head_packer(storage& store, std::int64_t index, int layer, int head, std::span<replaced_row> replaced)
      : store_(store),
        of_{store, index, layer, head},
        table_(store.table_of(index, layer, head)),
        state_(store.head(index, layer, head)),
        replaced_(replaced) {
    if constexpr (Recipe::has_bias) bias_ = store.biases_of(index, layer, head) + first;
    births_ = store.births_of(index, layer, head);
    live_ = store.live_of(index, layer, head);
    layer_state const& counts = store.layer(index, layer);
    sealed_ = std::min(counts.sealed_keys, counts.sealed_values);
    if (sealed_ % page_tokens != 0 && block(sealed_ / page_tokens) == no_block) sealed_ -= sealed_ % page_tokens;
    held_ = held();
  }

  // Pages that pack() would give back.
  std::int64_t gain() const {
    std::int64_t const pages = divide_up(sealed_, page_tokens);
    std::int64_t units = 0, rows = 0;
    bool stays = true;
    for (std::int64_t p = pages - 1; p >= 0; --p) {
      if (block(p) == no_block) continue;
      for (std::int64_t u = std::min((p + 1) * page_tokens, sealed_) - unit; u >= p * page_tokens; u -= unit) {
        std::int64_t const kept = kept_in(u, unit);
        stays = stays && unit_stays(u, kept);
        if (stays || (is_spent(u) && kept > 0))
          ++units;
        else if (!is_spent(u))
          rows += kept;
      }
    }
    units += divide_up(rows, unit);
    return held_ - (pages - (sealed_ - units * unit) / page_tokens);
  }

  // Pages that no other table holds: copies of those with a living row, if there is another.
  // errors  capacity_exceeded (`at` is a page): nothing was changed
  status own_pages() {
    if (table_.pages == 0 || store_.runs->is_exclusive(table_, 0)) return {};
    table own{};
    block_id hint = no_block;
    for (std::int64_t p = 0; p < table_.pages; ++p) {
      block_id const from = block(p);
      bool const kept = from != no_block && ((p + 1) * page_tokens > sealed_ || kept_in(p * page_tokens, page_tokens) > 0);
      status ok;
      block_id to = no_block;
      if (kept) {
        auto const made = store_.page_pool->allocate(hint);
        ok = made ? status{} : made.error();
        if (made) {
          hint = to = made.value();
          std::memcpy(store_.page_pool->address(to), store_.page_pool->address(from), static_cast<std::size_t>(page::bytes));
        }
      }
      if (ok) ok = store_.runs->append(own, *store_.page_pool, to);
      if (ok) continue;
      if (to != no_block) static_cast<void>(store_.page_pool->release(to));
      store_.runs->clear(own, *store_.page_pool);
      return {errc::capacity_exceeded, p};
    }
    store_.runs->clear(table_, *store_.page_pool);
    table_ = own;
    return {};
  }

  // After own_pages(): cannot fail.
  compaction pack() {
    compaction done;
    close_gaps(done);
    std::int64_t bottom = 0;
    while (bottom < sealed_ && block(bottom / page_tokens) == no_block) bottom += page_tokens;
    std::int64_t end = sealed_;
    while (end - unit >= bottom && unit_stays(end - unit, kept_in(end - unit, unit))) end -= unit;
    explain_births(end);
    std::int64_t const floor = all_move ? bottom : std::clamp(state_.spent, bottom, end);
    std::int64_t write = end, read = end;
    while (read > floor) {
      std::int64_t source[unit];
      std::fill_n(source, unit, none);
      std::int64_t count = 0;
      while (count < unit && read > floor)
        if (is_kept(--read)) source[unit - ++count] = read;
      if (count == 0) break;
      write -= unit;
      fill_unit(write, source, done);
    }
    for (std::int64_t u = floor - unit; u >= bottom; u -= unit)  // spent
      if (kept_in(u, unit) > 0) move_unit(u, write -= unit, done);
    if constexpr (!all_move) state_.spent = std::max(state_.spent, end);
    for (std::int64_t p = bottom / page_tokens; p < write / page_tokens; ++p)
      static_cast<void>(store_.runs->drop(table_, *store_.page_pool, p));
    for (std::int64_t u = write / page_tokens * page_tokens; u < write; u += unit) {
      std::memset(key_bytes(u), 0, static_cast<std::size_t>(unit / key_tile::tokens * key_tile::bytes));
      std::memset(value_bytes(u), 0, static_cast<std::size_t>(unit / value_tile::tokens * value_tile::bytes));
    }
    for (std::int64_t slot = 0; slot < write; ++slot) kill(slot);
    settle_births();
    done.pages = held_ - held();
    return done;
  }

 private:
  static constexpr std::int64_t none = -1;

  block_id block(std::int64_t p) const { return store_.runs->block(table_, p); }
  std::int64_t held() const {
    std::int64_t count = 0;
    for (std::int64_t p = 0; p < divide_up(sealed_, page_tokens); ++p) count += block(p) != no_block;
    return count;
  }
  bool is_spent(std::int64_t at) const { return !all_move && at < state_.spent; }
  bool is_kept(std::int64_t slot) const {
    std::int64_t const at = first + slot;
    return (live_[at / 64] >> (at % 64) & 1u) != 0 &&
           (slot < state_.moved || !store_.slots_of(of_.sequence, of_.layer, of_.head).is_dead(at));
  }
  std::int64_t kept_in(std::int64_t from, std::int64_t count) const {
    std::int64_t kept = 0;
    for (std::int64_t slot = from; slot < from + count; ++slot) kept += is_kept(slot);
    return kept;
  }
  // Rule P1, for a unit behind which all others stay.
  bool unit_stays(std::int64_t at, std::int64_t kept) const {
    if (is_spent(at)) return kept > 0;
    auto const row = std::lower_bound(replaced_.begin(), replaced_.end(), first + at,
                                      [](replaced_row const& r, std::int64_t slot) { return r.slot < slot; });
    return kept == unit && (row == replaced_.end() || row->slot >= first + at + unit);
  }
  replaced_row const* replaced(std::int64_t slot) const {
    auto const row = std::lower_bound(replaced_.begin(), replaced_.end(), first + slot,
                                      [](replaced_row const& r, std::int64_t at) { return r.slot < at; });
    return row != replaced_.end() && row->slot == first + slot ? &*row : nullptr;
  }
  std::byte* key_bytes(std::int64_t slot) const { return of_.page_bytes(slot) + page::key_tile_at(static_cast<int>(slot % page_tokens)); }
  std::byte* value_bytes(std::int64_t slot) const {
    return of_.page_bytes(slot) + page::value_tile_at(static_cast<int>(slot % page_tokens));
  }

  // Side arrays.
  void kill(std::int64_t slot) {
    live_[(first + slot) / 64] &= ~(std::uint64_t{1} << ((first + slot) % 64));
    if constexpr (Recipe::has_bias) bias_[slot] = 0;
  }
  void move_slot(std::int64_t from, std::int64_t to) {
    bool const lives = is_kept(from);
    births_[to] = births_[from];
    if constexpr (Recipe::has_bias) bias_[to] = bias_[from];
    std::uint64_t const bit = std::uint64_t{1} << ((first + to) % 64);
    std::uint64_t& word = live_[(first + to) / 64];
    word = lives ? word | bit : word & ~bit;
  }
  // From now on the slots before `end` say themselves whom they hold and whether it lives.
  void explain_births(std::int64_t end) {
    head_slots const slots = store_.slots_of(of_.sequence, of_.layer, of_.head);
    for (std::int64_t slot = state_.moved; slot < end; ++slot) {
      births_[slot] = static_cast<std::int32_t>(slots.state.token_of(first + slot));
      if (slots.is_dead(first + slot)) kill(slot);
    }
    state_.moved = std::max(state_.moved, end);
  }
  // A dead slot has the next living one's birth.
  void settle_births() {
    auto next = static_cast<std::int32_t>(store_.layer(of_.sequence, of_.layer).token_of(first + state_.moved));
    for (std::int64_t slot = state_.moved - 1; slot >= 0; --slot)
      if (is_kept(slot))
        next = births_[slot];
      else
        births_[slot] = next;
  }

  void close_gaps(compaction& done) {
    std::int64_t const whole = sealed_ / page_tokens;
    std::int64_t spent = state_.spent > whole * page_tokens ? state_.spent : none, from = whole - 1;
    for (std::int64_t to = whole - 1; to >= 0; --to, --from) {
      for (; from >= 0 && block(from) == no_block; --from)
        for (std::int64_t i = 0; i < page_tokens; ++i) kill(from * page_tokens + i);
      if (from < 0) break;
      std::int64_t const shift = (to - from) * page_tokens;
      if (spent == none && state_.spent > from * page_tokens) spent = shift + std::min(state_.spent, (from + 1) * page_tokens);
      if (shift == 0) continue;
      explain_births((to + 1) * page_tokens);
      static_cast<void>(store_.runs->exchange(table_, to, store_.runs->exchange(table_, from, no_block)));
      for (std::int64_t slot = (from + 1) * page_tokens - 1; slot >= from * page_tokens; --slot) {
        done.moved += is_kept(slot);
        move_slot(slot, slot + shift);
        kill(slot);
      }
      for (replaced_row& row : replaced_)
        if ((row.slot - first) / page_tokens == from) row.slot += shift;
    }
    state_.spent = std::max<std::int64_t>(spent, 0);
  }

  // Rule P2: a unit as it is.
  void move_unit(std::int64_t from, std::int64_t to, compaction& done) {
    if (from == to) return;
    std::memcpy(key_bytes(to), key_bytes(from), static_cast<std::size_t>(unit / key_tile::tokens * key_tile::bytes));
    std::memcpy(value_bytes(to), value_bytes(from), static_cast<std::size_t>(unit / value_tile::tokens * value_tile::bytes));
    done.moved += kept_in(from, unit);
    for (std::int64_t i = unit; i-- > 0;) move_slot(from + i, to + i);
  }

  // source[i]: the row that becomes row i of the unit, or none; these are in front.
  void fill_unit(std::int64_t at, std::int64_t const (&source)[unit], compaction& done) {
    bool same = true;
    for (std::int64_t i = 0; i < unit; ++i) {
      same = same && source[i] == at + i && replaced(source[i]) == nullptr;
      if (source[i] == none) continue;
      done.moved += source[i] != at + i;
      done.encoded += !all_move || replaced(source[i]) != nullptr;
    }
    if (same) {
      done.encoded -= all_move ? 0 : unit;
      return;
    }
    for (std::int64_t i = unit; (i -= key_tile::tokens) >= 0;)
      fill_tile<key_tile>(
          key_bytes(at + i), source + i, of_.key_state(), [&](std::int64_t slot) { return key_bytes(slot); },
          [&](std::int64_t slot) { return replaced(slot) != nullptr ? replaced(slot)->key : reader().key(first + slot); });
    for (std::int64_t i = unit; (i -= value_tile::tokens) >= 0;)
      fill_tile<value_tile>(
          value_bytes(at + i), source + i, of_.value_state(), [&](std::int64_t slot) { return value_bytes(slot); },
          [&](std::int64_t slot) { return replaced(slot) != nullptr ? replaced(slot)->value : reader().value(first + slot); });
    for (std::int64_t i = unit; i-- > 0;)
      if (source[i] != none)
        move_slot(source[i], at + i);
      else
        kill(at + i);
  }

  template <class Tile, class BytesOf, class RowOf>
  void fill_tile(std::byte* out, std::int64_t const* source, state_of<Tile> const& calibrated, BytesOf&& bytes_of, RowOf&& row_of) {
    constexpr int tokens = Tile::tokens, channels = Tile::channels;
    alignas(64) float rows[tokens * channels];
    if constexpr (!rows_move<Tile>) {
      std::int64_t oldest = 0;  // a tile without any row repeats the unit's oldest
      while (source[oldest] == none) ++oldest;
      for (int i = tokens; i-- > 0;) std::copy_n(row_of(source[i] != none ? source[i] : source[oldest]), channels, rows + i * channels);
      encode<Tile>(rows, out, calibrated);
    } else {
      alignas(64) std::byte made[Tile::bytes] = {};
      bool any = false;
      for (int i = 0; i < tokens; ++i)
        if (source[i] != none) any = any || replaced(source[i]) != nullptr;
      if (any) {
        std::fill_n(rows, tokens * channels, 0.0f);
        for (int i = 0; i < tokens; ++i)
          if (source[i] != none && replaced(source[i]) != nullptr) std::copy_n(row_of(source[i]), channels, rows + i * channels);
        encode<Tile>(rows, made, calibrated);
      }
      for (int i = 0; i < tokens; ++i)
        if (source[i] != none && replaced(source[i]) == nullptr)
          move_row<Tile>(bytes_of(source[i]), static_cast<int>(source[i] % tokens), made, i);
      std::memcpy(out, made, Tile::bytes);
    }
  }
  template <class Tile>
  static void encode(float const* rows, std::byte* out, [[maybe_unused]] state_of<Tile> const& calibrated) {
    if constexpr (is_calibrated<Tile>)
      tile_engine<Backend, Tile>::encode(rows, Tile::channels, out, calibrated);
    else
      tile_engine<Backend, Tile>::encode(rows, Tile::channels, out);
  }
  row_reader<Recipe, Backend>& reader() {
    if (!reader_) reader_.emplace(of_);
    return *reader_;
  }

  storage& store_;
  segment_source<Recipe> of_;
  table& table_;
  head_state& state_;
  std::span<replaced_row> replaced_;
  std::int32_t* births_;
  std::uint64_t* live_;
  float* bias_ = nullptr;
  std::int64_t sealed_;  // slots, keys and values
  std::int64_t held_;    // pages, at first
  std::optional<row_reader<Recipe, Backend>> reader_;
};

}  // namespace pith
