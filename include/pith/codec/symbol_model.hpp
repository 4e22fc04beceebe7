// SPDX-License-Identifier: Apache-2.0
// Static statistics of symbols, fitted once and shared by everything that is coded after: for each of many contexts one of a few tables of
// frequencies. They travel once, not with what they code.
//
//   context  what a symbol's statistics depend on, such as a channel of a layer: 0 .. contexts() - 1
//   table    256 rANS frequencies with the sum 2^12; many contexts share one
//   escape   symbol 255: stands for whatever has frequency 0 in its table. What it was follows in bits of the caller's
//
// bytes   16, for each table 4 and 2 a frequency between its smallest and largest symbol, 1 a context, 8; in memory 5 KiB a table
// errors  of fit   shape_mismatch  counts are not 256 for each context; out_of_range  no context, no table, too many, or nothing counted
//         of read  truncated, bad_format; `at` is the byte
// cost    fit: rounds of contexts x tables x symbols that occur; code: two lookups a symbol
// from    Liu et al., CacheGen, 2024 (one table for each channel of each layer, measured offline); differs: channels share tables, chosen
// by
//         k-means under the length of the code; for the 3072 contexts of the example model 32 of them code within 0.05 bits of 256
#pragma once

#include <algorithm>
#include <cstring>
#include <span>
#include <vector>

#include "pith/codec/rans.hpp"
#include "pith/core/fingerprint.hpp"

namespace pith {

class symbol_model {
 public:
  static constexpr int frequency_bits = 12, slots = 1 << frequency_bits, symbols = 256, escape = 255;
  static constexpr int most_tables = 256, rounds = 12;
  static constexpr char magic[9] = "PITHSY01";

  struct table {
    rans_symbol of[symbols];  // frequency 0: escape
    std::uint8_t symbol_at[slots];
    std::uint8_t lowest, highest;  // symbols below the escape with frequencies; none between them has 0
  };

  symbol_model() = default;

  // counts: how often each symbol occurs in each context, [context][256]. The same tables on every machine.
  static result<symbol_model> fit(std::span<std::uint32_t const> counts, std::int64_t contexts, int tables) {
    if (contexts < 1 || contexts > limit || tables < 1 || tables > most_tables)
      return status{errc::out_of_range, contexts < 1 || contexts > limit ? contexts : tables};
    if (static_cast<std::int64_t>(counts.size()) != contexts * symbols)
      return status{errc::shape_mismatch, static_cast<std::int64_t>(counts.size())};
    std::vector<occurrence> list;
    std::vector<std::int64_t> first(static_cast<std::size_t>(contexts) + 1);
    std::vector<std::int64_t> by_spread;  // contexts that occur
    std::vector<std::uint64_t> spread(static_cast<std::size_t>(contexts));
    for (std::int64_t c = 0; c < contexts; ++c) {
      std::uint32_t const* const of = counts.data() + c * symbols;
      std::uint64_t total = 0, cost = 0;
      for (int s = 0; s < symbols; ++s)
        if (of[s] > 0) {
          list.push_back({static_cast<std::uint32_t>(s), of[s]});
          total += of[s];
        }
      first[static_cast<std::size_t>(c) + 1] = static_cast<std::int64_t>(list.size());
      if (total == 0) continue;
      for (std::int64_t i = first[static_cast<std::size_t>(c)]; i < first[static_cast<std::size_t>(c) + 1]; ++i) {
        std::uint64_t const part = std::max<std::uint64_t>(1, list[static_cast<std::size_t>(i)].count * std::uint64_t{slots} / total);
        cost += list[static_cast<std::size_t>(i)].count * std::uint64_t{length(static_cast<std::uint32_t>(part))};
      }
      spread[static_cast<std::size_t>(c)] = cost / total;  // the context's own entropy
      by_spread.push_back(c);
    }
    if (by_spread.empty()) return status{errc::out_of_range, 0};
    std::stable_sort(by_spread.begin(), by_spread.end(), [&](std::int64_t a, std::int64_t b) {
      return spread[static_cast<std::size_t>(a)] < spread[static_cast<std::size_t>(b)];
    });

    // Equal parts by entropy to begin with; then every context goes to the table that codes it shortest, and tables follow their contexts.
    int const used = static_cast<int>(std::min<std::int64_t>(tables, static_cast<std::int64_t>(by_spread.size())));
    symbol_model out;
    out.table_of_.assign(static_cast<std::size_t>(contexts), 0);
    for (std::size_t i = 0; i < by_spread.size(); ++i)
      out.table_of_[static_cast<std::size_t>(by_spread[i])] =
          static_cast<std::uint8_t>(i * static_cast<std::size_t>(used) / by_spread.size());
    out.tables_.resize(static_cast<std::size_t>(used));
    std::vector<std::uint32_t> lengths(static_cast<std::size_t>(used) * symbols);
    for (int round = 0; round < rounds; ++round) {
      out.refit(list, first, lengths);
      bool moved = false;
      for (std::int64_t const c : by_spread) {
        std::uint64_t least = ~std::uint64_t{0};
        std::uint8_t best = 0;
        for (int t = 0; t < used; ++t) {
          std::uint64_t cost = 0;
          for (std::int64_t i = first[static_cast<std::size_t>(c)]; i < first[static_cast<std::size_t>(c) + 1]; ++i) {
            occurrence const o = list[static_cast<std::size_t>(i)];
            cost += std::uint64_t{o.count} * lengths[static_cast<std::size_t>(t) * symbols + o.symbol];
          }
          if (cost < least) least = cost, best = static_cast<std::uint8_t>(t);
        }
        moved = moved || out.table_of_[static_cast<std::size_t>(c)] != best;
        out.table_of_[static_cast<std::size_t>(c)] = best;
      }
      if (!moved) break;
    }
    out.refit(list, first, lengths);
    out.finish();
    return out;
  }

  static result<symbol_model> read(std::span<std::byte const> from) {
    auto const size = static_cast<std::int64_t>(from.size());
    if (size < 24) return status{errc::truncated, size};
    if (std::memcmp(from.data(), magic, 8) != 0) return status{errc::bad_format, 0};
    std::int64_t const contexts = load_le<std::uint32_t>(from.data() + 8), tables = load_le<std::uint32_t>(from.data() + 12);
    if (contexts < 1 || contexts > limit) return status{errc::bad_format, 8};
    if (tables < 1 || tables > most_tables) return status{errc::bad_format, 12};
    std::int64_t at = 16;
    if (size < at + 4 * tables + contexts + 8) return status{errc::truncated, size};  // before memory is taken for them
    symbol_model out;
    out.tables_.resize(static_cast<std::size_t>(tables));
    for (table& t : out.tables_) {
      if (size < at + 4) return status{errc::truncated, size};
      int const low = static_cast<int>(from[static_cast<std::size_t>(at)]), high = static_cast<int>(from[static_cast<std::size_t>(at) + 1]);
      std::int64_t const start = at;
      if (low > high) return status{errc::bad_format, at};
      t.of[escape].frequency = load_le<std::uint16_t>(from.data() + at + 2);
      at += 4;
      if (size < at + 2 * (high - low + 1)) return status{errc::truncated, size};
      if (high == escape) return status{errc::bad_format, start + 1};
      t.lowest = static_cast<std::uint8_t>(low), t.highest = static_cast<std::uint8_t>(high);
      std::int64_t sum = t.of[escape].frequency;
      for (int s = low; s <= high; ++s, at += 2) {
        sum += t.of[s].frequency = load_le<std::uint16_t>(from.data() + at);
        if (t.of[s].frequency == 0) return status{errc::bad_format, at};
      }
      if (sum != slots || t.of[escape].frequency == 0) return status{errc::bad_format, start};
    }
    if (size < at + contexts + 8) return status{errc::truncated, size};
    if (size > at + contexts + 8) return status{errc::bad_format, at + contexts + 8};
    out.table_of_.reserve(static_cast<std::size_t>(contexts));
    for (std::int64_t c = 0; c < contexts; ++c, ++at) {
      auto const t = static_cast<std::uint8_t>(from[static_cast<std::size_t>(at)]);
      if (t >= tables) return status{errc::bad_format, at};
      out.table_of_.push_back(t);
    }
    fingerprint all;
    all.add_bytes(from.data(), at);
    if (load_le<std::uint64_t>(from.data() + at) != all.value()) return status{errc::bad_format, at};
    out.finish();
    return out;
  }

  std::int64_t contexts() const { return static_cast<std::int64_t>(table_of_.size()); }
  int tables() const { return static_cast<int>(tables_.size()); }
  int table_of(std::int64_t context) const { return table_of_[static_cast<std::size_t>(context)]; }
  table const& of(std::int64_t context) const { return tables_[table_of_[static_cast<std::size_t>(context)]]; }
  std::uint64_t identity() const { return identity_; }  // fingerprint of the stored bytes

  std::int64_t stored_bytes() const {
    std::int64_t bytes = 24 + contexts();
    for (table const& t : tables_) bytes += 4 + 2 * (t.highest - t.lowest + 1);
    return bytes;
  }
  // to has stored_bytes() bytes.
  void write(std::byte* to) const {
    std::byte* at = to;
    std::memcpy(at, magic, 8);
    store_le(at + 8, static_cast<std::uint32_t>(contexts()));
    store_le(at + 12, static_cast<std::uint32_t>(tables()));
    at += 16;
    for (table const& t : tables_) {
      *at++ = static_cast<std::byte>(t.lowest);
      *at++ = static_cast<std::byte>(t.highest);
      store_le(at, t.of[escape].frequency);
      at += 2;
      for (int s = t.lowest; s <= t.highest; ++s, at += 2) store_le(at, t.of[s].frequency);
    }
    for (std::uint8_t const t : table_of_) *at++ = static_cast<std::byte>(t);
    fingerprint all;
    all.add_bytes(to, at - to);
    store_le(at, all.value());
  }

  // log2(2^12 / frequency) in 2^-16 bits, rounded down: 1 <= frequency <= 2^12. In whole numbers, so that every machine fits the same
  // tables.
  static constexpr std::uint32_t length(std::uint32_t frequency) noexcept {
    int const whole = static_cast<int>(std::bit_width(frequency)) - 1;
    std::uint64_t x = std::uint64_t{frequency} << (31 - whole);  // [2^31, 2^32)
    std::uint32_t log = static_cast<std::uint32_t>(whole) << 16;
    for (int i = 15; i >= 0; --i) {
      x = x * x >> 31;
      if (x >> 32) log |= 1u << i, x >>= 1;
    }
    return (static_cast<std::uint32_t>(frequency_bits) << 16) - log;
  }

 private:
  static constexpr std::int64_t limit = 1ll << 28;
  struct occurrence {
    std::uint32_t symbol, count;
  };

  // Frequencies of every table from the sum over its contexts. Symbols near those that occur can be coded too, a quarter of their range
  // further.
  void refit(std::vector<occurrence> const& list, std::vector<std::int64_t> const& first, std::vector<std::uint32_t>& lengths) {
    std::vector<std::uint64_t> sums(tables_.size() * symbols);
    for (std::size_t c = 0; c < table_of_.size(); ++c)
      for (std::int64_t i = first[c]; i < first[c + 1]; ++i)
        sums[table_of_[c] * std::size_t{symbols} + list[static_cast<std::size_t>(i)].symbol] += list[static_cast<std::size_t>(i)].count;
    for (std::size_t t = 0; t < tables_.size(); ++t) {
      std::uint64_t const* const sum = sums.data() + t * symbols;
      int low = escape, high = -1;
      std::uint64_t total = sum[escape];
      for (int s = 0; s < escape; ++s)
        if (sum[s] > 0) {
          low = std::min(low, s), high = s;
          total += sum[s];
        }
      int const more = high < low ? 0 : (high - low) / 4 + 1;
      if (high < low) low = high = 0;
      low = std::max(0, low - more), high = std::min(escape - 1, high + more);
      int shift = 0;  // rans_frequencies takes 32 bits
      while (total >> shift >> 24) ++shift;
      tables_[t].lowest = static_cast<std::uint8_t>(low), tables_[t].highest = static_cast<std::uint8_t>(high);
      std::uint32_t counts[symbols] = {};
      std::uint16_t frequencies[symbols];
      for (int s = low; s <= high; ++s) counts[s] = static_cast<std::uint32_t>(sum[s] >> shift) + 1;
      counts[escape] = static_cast<std::uint32_t>(sum[escape] >> shift) + 1;
      static_cast<void>(rans_frequencies<frequency_bits>(counts, frequencies));  // 1 to 256 symbols occur: it cannot fail
      for (int s = 0; s < symbols; ++s) tables_[t].of[s].frequency = frequencies[s];
      std::uint32_t const out = length(frequencies[escape]) + (32u << 16);  // an escape costs what follows it, too
      for (int s = 0; s < symbols; ++s)
        lengths[t * symbols + static_cast<std::size_t>(s)] = s == escape || frequencies[s] == 0 ? out : length(frequencies[s]);
    }
  }

  void finish() {
    for (table& t : tables_) {
      int at = 0;
      for (int s = 0; s < symbols; ++s) {
        t.of[s].start = static_cast<std::uint16_t>(at);
        for (int i = 0; i < t.of[s].frequency; ++i) t.symbol_at[at++] = static_cast<std::uint8_t>(s);
      }
    }
    std::vector<std::byte> stored(static_cast<std::size_t>(stored_bytes()));
    write(stored.data());
    identity_ = load_le<std::uint64_t>(stored.data() + stored.size() - 8);
  }

  std::vector<table> tables_;
  std::vector<std::uint8_t> table_of_;
  std::uint64_t identity_ = 0;
};

}  // namespace pith
