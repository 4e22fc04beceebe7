// SPDX-License-Identifier: Apache-2.0
// Reads and writes the tensors of DFloat11: bf16 weights whose exponents are Huffman codes, one code for all weights of a module.
//
//   luts              u8 [k + 1][256]: tables 0 to k - 1 and last the length of each exponent's code. A code is looked up 8 bits at a time,
//   in
//                     table 0 first: an entry below 240 is the exponent, another one says that table 256 - entry goes on. k <= 17
//   encoded_exponent  u8: the codes one behind the other, from the highest bit of a byte on
//   sign_mantissa     u8, one a number: bit 7 the sign, bits 0 to 6 the mantissa
//   gaps              5 bits for each 8 bytes of codes, from the highest bit on: the bit of them at which the first code that begins there
//                     does. For each 4096 bytes begun 320 bytes, the rest zero
//   output_positions  u32: for each 4096 bytes of codes the number whose code is the first to begin there; last, how many numbers there are
//   split_positions   i64: where the weights of the module's second, third ... part begin, ascending; may be absent
//
// Every number of several bytes is little-endian. The spans are the tensors' bytes, as pith::safetensors::read gives them.
//
// bytes   8 + H + 0.22 bits a number, where the codes take H bits: gaps 5/64 of H, positions 1/1024 of it
// errors  of decode: shape_mismatch  a buffer's length does not fit the others; `at` is the bytes that it should have
//                    out_of_range    a table that does not exist, or a code length that is no length of its table; `at` is the byte of luts
//                    truncated       the codes end too early; `at` is the number whose code it is
//                    bad_format      a gap, an output position or a split position that disagrees; `at` is the number it is about
//         of encode: unsupported     an exponent of 240 or more (|x| >= 2^113, infinity, NaN): entries from 240 on are tables. `at` is the
//                                    first such number; or more than 2^31 - 1 numbers, `at` is how many
//                    bad_format      split positions that do not ascend or are behind the numbers; `at` is the first such one's place
// cost    decode: one code after the other; encode: some tables of 8 bits and a pass
// from    https://github.com/LeanModels/DFloat11, dfloat11_utils.py and decode.cu of release 0.5.0; Zhang et al., DFloat11, 2025
// differs encode: canonical codes of at most 16 bits, shorter ones where more than 17 tables would be needed, and no code for an end.
// Entries
//         that no code reaches are ignored, as the other decoders do
#pragma once

#include <cstring>
#include <span>
#include <vector>

#include "pith/codec/huffman.hpp"
#include "pith/core/bits.hpp"
#include "pith/core/status.hpp"

namespace pith::dfloat11 {

inline constexpr std::int64_t chunk_bits = 64, block_chunks = 512, gap_bits = 5;
inline constexpr int first_pointer = 240, most_tables = 17, longest_code = 32;

struct view {
  std::span<std::byte const> luts, encoded_exponent, sign_mantissa, gaps, output_positions, split_positions;

  std::int64_t numbers() const noexcept { return static_cast<std::int64_t>(sign_mantissa.size()); }
};

struct buffers {
  std::vector<std::byte> luts, encoded_exponent, sign_mantissa, gaps, output_positions, split_positions;

  operator view() const noexcept { return {luts, encoded_exponent, sign_mantissa, gaps, output_positions, split_positions}; }
};

namespace detail {

inline std::int64_t size(std::span<std::byte const> bytes) noexcept { return static_cast<std::int64_t>(bytes.size()); }

inline int gap(std::byte const* gaps, std::int64_t chunk) noexcept {
  std::int64_t const bit = chunk * gap_bits;
  int const low = bit % 8 > 3 ? static_cast<int>(gaps[bit / 8 + 1]) : 0;
  return (static_cast<int>(gaps[bit / 8]) << 8 | low) >> (11 - bit % 8) & 31;
}
inline void set_gap(std::byte* gaps, std::int64_t chunk, std::int64_t value) noexcept {
  std::int64_t const bit = chunk * gap_bits;
  std::uint32_t const bits = static_cast<std::uint32_t>(value) << (11 - bit % 8);
  gaps[bit / 8] |= static_cast<std::byte>(bits >> 8);
  if (bit % 8 > 3) gaps[bit / 8 + 1] |= static_cast<std::byte>(bits & 255u);
}

// 64 bits from a bit on, zeros behind the end.
inline std::uint64_t load_bits(std::span<std::byte const> bytes, std::int64_t bit) noexcept {
  std::byte const* const from = bytes.data() + bit / 8;
  std::int64_t const left = size(bytes) - bit / 8;
  if (left >= 8) return pith::load_bits(from, static_cast<std::uint32_t>(bit % 8));
  std::byte last[8]{};
  if (left > 0) memcpy(last, from, static_cast<std::size_t>(left));
  return pith::load_bits(last, static_cast<std::uint32_t>(bit % 8));
}

struct found {
  int exponent, length;
  status verdict;
};

// The code that `word` begins with.
inline found look_up(std::span<std::byte const> luts, std::uint64_t word) noexcept {
  std::int64_t const tables = size(luts) / 256 - 1;
  std::int64_t at = static_cast<std::int64_t>(word >> 56);
  for (int level = 1;; ++level) {
    int const entry = static_cast<int>(luts[static_cast<std::size_t>(at)]);
    if (entry < first_pointer) {
      std::int64_t const length_at = 256 * tables + entry;
      int const length = static_cast<int>(luts[static_cast<std::size_t>(length_at)]);
      if (length <= 8 * (level - 1) || length > 8 * level) return {0, 0, {errc::out_of_range, length_at}};
      return {entry, length, {}};
    }
    if (256 - entry >= tables || level == longest_code / 8) return {0, 0, {errc::out_of_range, at}};
    at = 256 * (256 - entry) + static_cast<std::int64_t>(word >> (56 - 8 * level) & 255u);
  }
}

// The lengths of a buffer each, and the split positions. at: the bytes that it should have.
inline status check_sizes(view const& from) noexcept {
  std::int64_t const luts = size(from.luts), codes = size(from.encoded_exponent), n = from.numbers();
  if (luts % 256 != 0 || luts < 512 || luts > 256 * (most_tables + 1))
    return {errc::shape_mismatch, round_up(luts < 257 ? 257 : luts, 256)};
  std::int64_t const blocks = divide_up(8 * codes, chunk_bits * block_chunks), positions = size(from.output_positions);
  if (size(from.gaps) != divide_up(blocks * block_chunks * gap_bits, 8))
    return {errc::shape_mismatch, divide_up(blocks * block_chunks * gap_bits, 8)};
  // One position is missing where the last code of all ends behind a block's end, on a byte: the published encoder does so.
  if (positions != 4 * (blocks + 1) && (positions != 4 * blocks || blocks < 2)) return {errc::shape_mismatch, 4 * (blocks + 1)};
  if (n > 8 * codes) return {errc::truncated, 8 * codes};
  if (size(from.split_positions) % 8 != 0) return {errc::shape_mismatch, round_up(size(from.split_positions), 8)};
  for (std::int64_t at = 0, last = 0; at < size(from.split_positions); at += 8) {
    std::int64_t const split = load_le<std::int64_t>(from.split_positions.data() + at);
    if (split < last || split > n) return {errc::bad_format, split};
    last = split;
  }
  return {};
}

}  // namespace detail

// The numbers, every bit of them, or what is wrong with the buffers: then some of `out` may have been written.
//
// out     as many as from.numbers(); shape_mismatch otherwise, `at` is how many
inline status decode(view const& from, std::span<bf16> out) noexcept {
  std::int64_t const n = from.numbers(), bits = 8 * detail::size(from.encoded_exponent);
  if (static_cast<std::int64_t>(out.size()) != n) return {errc::shape_mismatch, n};
  if (status const s = detail::check_sizes(from); !s) return s;
  // Table 0 with the lengths: the codes of at most 8 bits, and 0 for all others.
  std::uint16_t short_codes[256];
  for (std::uint64_t i = 0; i < 256; ++i) {
    bool const leaf = static_cast<int>(from.luts[i]) < first_pointer;
    detail::found const f = leaf ? detail::look_up(from.luts, i << 56) : detail::found{};
    short_codes[i] = static_cast<std::uint16_t>(f.length << 8 | f.exponent);
  }
  std::int64_t bit = 0, chunk = 0, block = 0;
  std::uint64_t word = 0;
  int left = 0;  // bits of the codes in `word`
  auto position = [&](std::int64_t i) { return std::int64_t{load_le<std::uint32_t>(from.output_positions.data() + 4 * i)}; };
  for (std::int64_t i = 0; i < n; ++i) {
    if (bit >= chunk * chunk_bits) {
      if (bit >= bits) return {errc::truncated, i};
      if (detail::gap(from.gaps.data(), chunk) != bit - chunk * chunk_bits) return {errc::bad_format, i};
      if (chunk % block_chunks == 0 && position(block++) != i) return {errc::bad_format, i};
      ++chunk;
    }
    if (left < longest_code) {
      word = detail::load_bits(from.encoded_exponent, bit);
      left = 57;
    }
    int exponent = short_codes[word >> 56] & 255, length = short_codes[word >> 56] >> 8;
    if (length == 0) {
      detail::found const f = detail::look_up(from.luts, word);
      if (!f.verdict) return f.verdict;
      exponent = f.exponent;
      length = f.length;
    }
    word <<= length;
    left -= length;
    bit += length;
    std::uint32_t const rest = static_cast<std::uint32_t>(from.sign_mantissa[static_cast<std::size_t>(i)]);
    out[static_cast<std::size_t>(i)] =
        bf16{static_cast<std::uint16_t>((rest & 0x80u) << 8 | static_cast<std::uint32_t>(exponent) << 7 | (rest & 0x7fu))};
  }
  if (bit > bits) return {errc::truncated, n - 1};
  if (bits - bit >= 8) return {errc::shape_mismatch, divide_up(bit, 8)};
  // Blocks in which no number's code begins, and the end.
  std::int64_t const last = detail::size(from.output_positions) / 4;
  if (block == last) return {errc::bad_format, n};
  for (; block < last; ++block)
    if (position(block) != n) return {errc::bad_format, n};
  return {};
}

// The buffers of numbers, of which the parts of the module begin at `splits`.
inline result<buffers> encode(std::span<bf16 const> numbers, std::span<std::int64_t const> splits = {}) {
  std::int64_t const n = static_cast<std::int64_t>(numbers.size());
  if (n > 0x7fffffff) return status{errc::unsupported, n};
  std::uint32_t counts[256]{}, entry_counts[256]{};
  for (std::int64_t i = 0; i < n; ++i) {
    int const exponent = numbers[static_cast<std::size_t>(i)].bits >> 7 & 255;
    if (exponent >= first_pointer) return status{errc::unsupported, i};
    ++counts[exponent];
  }
  buffers out;
  for (std::size_t i = 0; i < splits.size(); ++i) {
    if (splits[i] < (i == 0 ? 0 : splits[i - 1]) || splits[i] > n) return status{errc::bad_format, static_cast<std::int64_t>(i)};
    out.split_positions.resize(8 * i + 8);
    store_le(out.split_positions.data() + 8 * i, splits[i]);
  }

  // The codes, shorter ones until the tables fit: with 8 bits, which hold 240 exponents, there is one.
  std::uint8_t exponents[256], lengths[256]{1};
  int entries = 0, tables = 1;
  for (int e = 0; e < first_pointer; ++e)
    if (counts[e] > 0) entry_counts[entries] = counts[e], exponents[entries++] = static_cast<std::uint8_t>(e);
  if (entries == 0) exponents[entries++] = 0;
  auto count_tables = [&] {
    int whole = 256;  // of table 0: what codes of 8 bits leave
    for (int i = 0; i < entries; ++i) whole -= lengths[i] <= 8 ? 1 << (8 - lengths[i]) : 0;
    return 1 + whole;
  };
  if (entries > 1) {
    huffman_lengths<16>(entry_counts, entries, lengths);
    if (count_tables() > most_tables) huffman_lengths<12>(entry_counts, entries, lengths);
    if (count_tables() > most_tables) huffman_lengths<10>(entry_counts, entries, lengths);
    if (count_tables() > most_tables) huffman_lengths<8>(entry_counts, entries, lengths);
    tables = count_tables();
  }

  // Canonical codes: by length, then by exponent. The longer ones are the last, so that the tables behind table 0 are in their order.
  std::uint32_t code[256]{}, next = 0;
  out.luts.resize(static_cast<std::size_t>(256 * (tables + 1)));
  for (int e = 0; e < 256 && entries == 1; ++e) out.luts[static_cast<std::size_t>(e)] = std::byte{exponents[0]};
  for (int length = 1; length <= 16; ++length)
    for (int i = 0; i < entries; ++i) {
      if (lengths[i] != length) continue;
      std::uint32_t const first = next, after = next + (1u << (16 - length));
      int const e = exponents[i];
      code[e] = first;
      next = after;
      out.luts[static_cast<std::size_t>(256 * tables + e)] = static_cast<std::byte>(length);
      std::uint32_t const below = 256u - static_cast<std::uint32_t>(tables - 1);  // entries of table 0 from here on are tables
      if (length <= 8)
        for (std::uint32_t k = first >> 8; k < after >> 8; ++k) out.luts[k] = static_cast<std::byte>(e);
      else
        for (std::uint32_t k = first; k < after; ++k) {
          std::uint32_t const table = 1 + (k >> 8) - below;
          out.luts[k >> 8] = static_cast<std::byte>(256 - table);
          out.luts[256 * table + (k & 255u)] = static_cast<std::byte>(e);
        }
    }

  std::int64_t total = 0, bit = 0, chunk = 0;
  for (int i = 0; i < entries; ++i) total += std::int64_t{entry_counts[i]} * lengths[i];
  std::int64_t const blocks = divide_up(divide_up(total, 8) * 8, chunk_bits * block_chunks);
  out.encoded_exponent.resize(static_cast<std::size_t>(divide_up(total, 8)) + 4);  // 4: stores of 32 bits
  out.gaps.resize(static_cast<std::size_t>(divide_up(blocks * block_chunks * gap_bits, 8)));
  out.output_positions.resize(static_cast<std::size_t>(4 * (blocks + 1)));
  out.sign_mantissa.resize(numbers.size());
  for (std::int64_t b = 0; b <= blocks; ++b) store_le(out.output_positions.data() + 4 * b, static_cast<std::uint32_t>(n));
  for (std::int64_t i = 0; i < n; ++i) {
    std::uint32_t const bits = numbers[static_cast<std::size_t>(i)].bits, e = bits >> 7 & 255u;
    if (bit >= chunk * chunk_bits) {
      detail::set_gap(out.gaps.data(), chunk, bit - chunk * chunk_bits);
      if (chunk % block_chunks == 0) store_le(out.output_positions.data() + 4 * (chunk / block_chunks), static_cast<std::uint32_t>(i));
      ++chunk;
    }
    // At most 16 bits from bit 0 to 7 of a byte: 24 bits.
    std::uint32_t const moved = code[e] << (8 - bit % 8);
    std::byte* const to = out.encoded_exponent.data() + bit / 8;
    to[0] |= static_cast<std::byte>(moved >> 16);
    to[1] |= static_cast<std::byte>(moved >> 8 & 255u);
    to[2] |= static_cast<std::byte>(moved & 255u);
    bit += static_cast<std::int64_t>(out.luts[256 * static_cast<std::size_t>(tables) + e]);
    out.sign_mantissa[static_cast<std::size_t>(i)] = static_cast<std::byte>((bits >> 8 & 0x80u) | (bits & 0x7fu));
  }
  out.encoded_exponent.resize(static_cast<std::size_t>(divide_up(total, 8)));
  return out;
}

}  // namespace pith::dfloat11
