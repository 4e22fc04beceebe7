// SPDX-License-Identifier: Apache-2.0
// A file of packed tensors: a safetensors file that says in its metadata how tensors are packed, and ends with checksums of every byte.
//
//   header             __metadata__: "pith.format": "1"; "pith.tensor.NAME": how NAME is packed; "pith.original": the header that these
//                      tensors had before, if they are to come back as the same file; and what else was there
//   packed tensors     U8, one axis, from a multiple of 64 on: a packed_matrix's bytes, zeros to a multiple of 64. They keep their names
//   other tensors      as they are
//   "pith.checksums"   U8, words of 64 bits: | "PITHSUMS" | block bytes B | header bytes | sum of the header | count | sums of all blocks |
//                      table bytes | file bytes | sum of the table up to here | "PITHEND1" |. A tensor's blocks are B bytes each, from its
//                      first byte on; the last one is shorter
//
// docs/formats/container.md has every rule. Reading: container_reader.hpp; writing: container_writer.hpp.
//
// errors  truncated, unsupported, shape_mismatch, out_of_range   as safetensors.hpp
//         wrong_format  not such a file
//         unsupported   another version of the format
//         damaged       a checksum is another; `at` is 0 (header), or the place of the table's sum
//         bad_format    what the format forbids; `at` is a byte: where the tensor begins, of the table's field, 8 for metadata
// cost    O(header + table)
#pragma once

#include <charconv>
#include <cstring>
#include <optional>

#include "pith/interop/block_sums.hpp"
#include "pith/interop/safetensors.hpp"

namespace pith::container {

inline constexpr std::string_view table_name = "pith.checksums", own_prefix = "pith.", format_key = "pith.format",
                                  original_key = "pith.original", tensor_key = "pith.tensor.";
inline constexpr std::string_view format_version = "1";
inline constexpr std::int64_t alignment = 64, default_block_bytes = 64 << 10, least_block_bytes = 4 << 10, most_block_bytes = 1 << 30;
inline constexpr std::int64_t most_elements = std::int64_t{1} << 59;  // so that bytes of elements can be computed with

// How a tensor is packed: the text behind "pith.tensor.NAME", in this order, one space between.
//
//   codec=dynamic_float<bf16,window> version=1 use=dot panel=256 rows=4096 columns=14336 dtype=BF16 shape=4096,14336 bytes=81269760
struct packing {
  std::string codec;
  std::int64_t version = 1;  // of the codec's format
  std::string use = "dot";
  std::int64_t panel = 256, rows = 0, columns = 0;
  std::string type;                 // the tensor's before, and its shape: rows x columns numbers
  std::vector<std::int64_t> shape;  // empty: one number
  std::int64_t bytes = 0;           // of the packed matrix; the stored tensor is that, rounded up to 64

  friend bool operator==(packing const&, packing const&) = default;
};

inline constexpr std::int64_t stored_bytes(packing const& p) noexcept { return round_up(p.bytes, alignment); }

inline std::string print(packing const& p) {
  std::string out = "codec=" + p.codec + " version=" + std::to_string(p.version) + " use=" + p.use + " panel=" + std::to_string(p.panel) +
                    " rows=" + std::to_string(p.rows) + " columns=" + std::to_string(p.columns) + " dtype=" + p.type + " shape=";
  for (std::size_t i = 0; i < p.shape.size(); ++i) out += (i > 0 ? "," : "") + std::to_string(p.shape[i]);
  return out + " bytes=" + std::to_string(p.bytes);
}

namespace detail {

// A number as print writes it, and nothing else.
inline bool parse(std::string_view text, std::int64_t& value) noexcept {
  auto const [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc{} && end == text.data() + text.size() && value >= 0 && (text.size() == 1 || text[0] != '0') && text[0] != '-';
}

}  // namespace detail

inline std::optional<packing> parse_packing(std::string_view text) {
  packing p;
  std::string_view shape;
  auto field = [&](std::string_view key) -> std::optional<std::string_view> {
    if (!text.starts_with(key) || text.substr(key.size(), 1) != "=") return std::nullopt;
    text.remove_prefix(key.size() + 1);
    std::string_view const value = text.substr(0, text.find(' '));
    text.remove_prefix(std::min(text.size(), value.size() + 1));
    return value;
  };
  auto words = [&](std::string_view key, auto& to) {
    auto const value = field(key);
    if (value) to = *value;
    return value && (!value->empty() || key == "shape");
  };
  auto number = [&](std::string_view key, std::int64_t& to) {
    auto const value = field(key);
    return value && detail::parse(*value, to);
  };
  bool const read = words("codec", p.codec) && number("version", p.version) && words("use", p.use) && number("panel", p.panel) &&
                    number("rows", p.rows) && number("columns", p.columns) && words("dtype", p.type) && words("shape", shape) &&
                    number("bytes", p.bytes) && text.empty();
  if (!read) return std::nullopt;
  std::int64_t elements = 1, wanted = 0;
  while (!shape.empty()) {
    std::string_view const one = shape.substr(0, shape.find(','));
    if (!detail::parse(one, p.shape.emplace_back()) || __builtin_mul_overflow(elements, p.shape.back(), &elements)) return std::nullopt;
    shape.remove_prefix(std::min(shape.size(), one.size() + 1));
  }
  bool const whole = p.rows > 0 && p.columns > 0 && !__builtin_mul_overflow(p.rows, p.columns, &wanted) && wanted == elements;
  if (!whole || elements > most_elements) return std::nullopt;
  return p;
}

// A stored tensor.
struct entry {
  std::string name, type;  // type and shape are those from before packing
  std::vector<std::int64_t> shape;
  std::int64_t at = 0, bytes = 0;  // in the file
  std::int64_t first_block = 0;    // of its sums
  std::optional<packing> packed;   // none: stored as it is

  std::int64_t packed_bytes() const noexcept { return packed ? packed->bytes : bytes; }
};

struct index {
  std::vector<entry> tensors;                                 // by name, without the table
  std::vector<std::pair<std::string, std::string>> metadata;  // as written, without this format's
  std::optional<std::string> original;                        // the text of a safetensors header
  std::int64_t header_bytes = 0, table_at = 0, file_bytes = 0, block_bytes = 0;
  std::vector<std::uint64_t> sums;

  entry const* find(std::string_view name) const noexcept {
    auto const it = std::ranges::lower_bound(tensors, name, {}, [](entry const& e) { return std::string_view(e.name); });
    return it != tensors.end() && it->name == name ? &*it : nullptr;
  }
  // What a byte of the file belongs to: a tensor's name, "the header" or "the checksums".
  std::string_view owner(std::int64_t byte) const noexcept {
    for (entry const& e : tensors)
      if (byte >= e.at && byte < e.at + e.bytes) return e.name;
    return byte < header_bytes ? "the header" : "the checksums";
  }
};

// The last words of a file: what it takes to read the rest.
struct ending {
  static constexpr std::int64_t bytes = 32, words_before = 40;
  static constexpr std::string_view begin_magic = "PITHSUMS", end_magic = "PITHEND1";
  std::int64_t table_bytes = 0;

  // errors  bad_format: no such ending, or figures that contradict the file's length
  static result<ending> of(std::span<std::byte const> last, std::int64_t file_bytes) noexcept {
    if (std::ssize(last) < bytes || std::memcmp(last.data() + last.size() - 8, end_magic.data(), 8) != 0)
      return status{errc::bad_format, file_bytes - 8};
    std::byte const* const words = last.data() + last.size() - bytes;
    auto const table = load_le<std::uint64_t>(words), file = load_le<std::uint64_t>(words + 8);
    auto const total = static_cast<std::uint64_t>(file_bytes);
    // Blocks have at least 4096 bytes, but for the last of each tensor, whose entry takes more than 40 bytes of a header of at most 100 MB.
    std::uint64_t const most = words_before + bytes + 8 * (total / least_block_bytes + safetensors::longest_header / 40);
    if (table > total || table > most || table < words_before + bytes || table % 8 != 0)
      return status{errc::bad_format, file_bytes - bytes};
    if (file != total) return status{errc::bad_format, file_bytes - bytes + 8};
    return ending{static_cast<std::int64_t>(table)};
  }
};

namespace detail {

// -1 for what does not fit, which nothing is.
inline std::int64_t word(std::span<std::byte const> table, std::int64_t at) noexcept {
  return std::max<std::int64_t>(-1, static_cast<std::int64_t>(load_le<std::uint64_t>(table.data() + at)));
}

// The table's own claims; then the header may be trusted as far as its sum goes.
inline status check_table(std::span<std::byte const> table, std::int64_t table_at) noexcept {
  std::int64_t const size = std::ssize(table), block = word(table, 8);
  if (load_le<std::uint64_t>(table.data() + size - 16) != checksum(table.first(table.size() - 16)))
    return {errc::damaged, table_at + size - 16};
  if (std::memcmp(table.data(), ending::begin_magic.data(), 8) != 0) return {errc::bad_format, table_at};
  if (block < least_block_bytes || block > most_block_bytes || (block & (block - 1)) != 0) return {errc::bad_format, table_at + 8};
  if (word(table, 32) != (size - ending::words_before - ending::bytes) / 8) return {errc::bad_format, table_at + 32};
  return {};
}

inline bool own(std::string_view key) noexcept { return key.starts_with(own_prefix); }

// Puts the metadata where it belongs: packings to their tensors, which are by name.
inline status take_metadata(std::vector<std::pair<std::string, std::string>>& from, index& out) {
  bool versioned = false;
  for (auto& [key, text] : from)
    if (key == format_key) {
      if (text != format_version) return {errc::unsupported, 8};
      versioned = true;
    }
  if (!versioned) return {errc::wrong_format, 8};
  for (auto& [key, text] : from) {
    if (key.starts_with(tensor_key)) {
      auto const* const found = out.find(std::string_view(key).substr(tensor_key.size()));
      if (found == nullptr) return {errc::bad_format, 8};
      entry& e = out.tensors[static_cast<std::size_t>(found - out.tensors.data())];
      e.packed = parse_packing(text);
      bool const fits = e.packed && print(*e.packed) == text && e.type == "U8" && e.shape.size() == 1 && e.at % alignment == 0 &&
                        e.bytes % alignment == 0 && e.packed->bytes <= e.bytes && e.bytes - e.packed->bytes < alignment;
      if (!fits) return {errc::bad_format, e.at};
      e.type = e.packed->type;
      e.shape = e.packed->shape;
    } else if (key == original_key) {
      out.original = std::move(text);
    } else if (!own(key)) {
      out.metadata.emplace_back(std::move(key), std::move(text));
    } else if (key != format_key) {
      return {errc::bad_format, 8};
    }
  }
  return {};
}

}  // namespace detail

// Of the original header's text: each tensor's name and place in the file that it was of.
inline result<safetensors::index> original_index(std::string const& text) {
  std::vector<std::byte> head(8 + text.size());
  store_le(head.data(), static_cast<std::uint64_t>(text.size()));
  std::memcpy(head.data() + 8, text.data(), text.size());
  return safetensors::read_index(head, safetensors::any_length, true);
}

// The index of a file of `file_bytes` bytes that begins with `head` (its header, in whole) and ends with `table`.
inline result<index> parse(std::span<std::byte const> head, std::span<std::byte const> table, std::int64_t file_bytes) {
  index out;
  out.file_bytes = file_bytes;
  out.table_at = file_bytes - std::ssize(table);
  if (status const ok = detail::check_table(table, out.table_at); !ok) return ok;
  out.block_bytes = detail::word(table, 8);
  out.header_bytes = detail::word(table, 16);
  if (out.header_bytes != std::ssize(head)) return status{errc::bad_format, out.table_at + 16};
  if (load_le<std::uint64_t>(table.data() + 24) != checksum(head)) return status{errc::damaged, 0};

  auto read = safetensors::read_index(head, file_bytes, true);
  if (!read) return read.error();
  safetensors::index& header = read.value();
  if (header.data_at != out.header_bytes || out.header_bytes % alignment != 0) return status{errc::bad_format, 0};
  std::int64_t tables = 0;
  for (safetensors::place& p : header.tensors) {
    if (p.name == table_name) {
      if (p.type != "U8" || p.shape.size() != 1 || p.begin != out.table_at) return status{errc::bad_format, p.begin};
      ++tables;
    } else {
      out.tensors.push_back({std::move(p.name), std::move(p.type), std::move(p.shape), p.begin, p.end - p.begin, 0, std::nullopt});
    }
  }
  if (tables != 1) return status{errc::bad_format, out.table_at};
  if (status const ok = detail::take_metadata(header.metadata, out); !ok) return ok;

  std::vector<entry*> order;
  for (entry& e : out.tensors) order.push_back(&e);
  std::ranges::sort(order, {}, [](entry const* e) { return std::pair(e->at, e->bytes); });
  std::int64_t blocks = 0;
  for (entry* const e : order) {
    e->first_block = blocks;
    blocks += divide_up(e->bytes, out.block_bytes);
  }
  if (blocks != detail::word(table, 32)) return status{errc::bad_format, out.table_at + 32};
  for (std::int64_t i = 0; i < blocks; ++i) out.sums.push_back(load_le<std::uint64_t>(table.data() + ending::words_before + 8 * i));

  if (out.original) {
    auto const before = original_index(*out.original);
    if (!before || before.value().tensors.size() != out.tensors.size()) return status{errc::bad_format, 8};
    for (std::size_t i = 0; i < out.tensors.size(); ++i) {
      safetensors::place const& was = before.value().tensors[i];
      entry const& is = out.tensors[i];
      bool const same =
          was.name == is.name && was.type == is.type && was.shape == is.shape && (is.packed || was.end - was.begin == is.bytes);
      if (!same) return status{errc::bad_format, is.at};
    }
  }
  return out;
}

}  // namespace pith::container
