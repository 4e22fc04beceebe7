// SPDX-License-Identifier: Apache-2.0
// Reads a safetensors file that the caller has read or mapped: checks every claim of the header, copies no tensor.
//
//   bytes 0..7        n, the header's length, unsigned, little-endian, at most 100,000,000
//   bytes 8..8+n      JSON: {"name": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [begin, end]}, ...,
//                     "__metadata__": {"key": "text"}}
//   bytes 8+n..       data; a tensor's bytes are [begin, end) counted from here; tensors fill it exactly: no overlap, no hole
//
// errors  truncated        the file ends before the length, the header or the last tensor does
//         bad_format       not JSON, a wrong type or key, a name or key twice, overlap, hole, bytes after the last tensor
//         shape_mismatch   shape x dtype is not end - begin
//         out_of_range     begin > end, a negative or not integral number, or a product that does not fit 63 bits
//         unsupported      a header over 100 MB, an unknown dtype, more than 8 axes
//         `at` is a byte of the file: where the wrong item ends, or where the entry ends whose figures disagree
// cost    O(header), n log n in tensors; memory is bounded by a small multiple of the header
// files   larger than memory: read_index takes the header and the file's length alone, and gives where each tensor lies
// from    https://github.com/huggingface/safetensors, "Format"
// differs keys other than the three named are refused
//
// Optional: the only part of the library, with its siblings in interop/, that includes <nlohmann/json.hpp>.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <limits>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "pith/core/bits.hpp"
#include "pith/core/scalar.hpp"
#include "pith/core/status.hpp"

namespace pith::safetensors {

enum class dtype : std::uint8_t { boolean, u8, i8, f8_e4m3, f8_e5m2, u16, i16, f16, bf16, u32, i32, f32, u64, i64, f64 };

constexpr std::int64_t bytes_of(dtype type) noexcept {
  return type <= dtype::f8_e5m2 ? 1 : type <= dtype::bf16 ? 2 : type <= dtype::f32 ? 4 : 8;
}

struct tensor {
  std::string name;
  dtype type = dtype::u8;
  std::vector<std::int64_t> shape;
  std::span<std::byte const> bytes;  // inside the caller's memory; any alignment

  std::int64_t elements() const noexcept { return static_cast<std::int64_t>(bytes.size()) / bytes_of(type); }
};

struct file {
  std::vector<tensor> tensors;                                // by name
  std::vector<std::pair<std::string, std::string>> metadata;  // as written

  tensor const* find(std::string_view name) const noexcept {
    auto const it = std::lower_bound(tensors.begin(), tensors.end(), name,
                                     [](tensor const& t, std::string_view wanted) { return std::string_view(t.name) < wanted; });
    return it != tensors.end() && it->name == name ? &*it : nullptr;
  }
  std::string const* find_metadata(std::string_view key) const noexcept {
    for (auto const& [name, text] : metadata)
      if (name == key) return &text;
    return nullptr;
  }
};

inline constexpr std::int64_t longest_header = 100'000'000;

// Where a tensor's bytes are, as the header says.
struct place {
  std::string name, type;  // type as it is written; of one that this reader does not know, bytes and shape have not been compared
  std::vector<std::int64_t> shape;
  std::int64_t begin = 0, end = 0;  // bytes of the file
};

struct index {
  std::vector<place> tensors;                                 // by name
  std::vector<std::pair<std::string, std::string>> metadata;  // as written
  std::int64_t data_at = 0, end = 0;                          // bytes of the file where tensors begin, 8 + n, and end
};
inline constexpr std::int64_t any_length = std::numeric_limits<std::int64_t>::max();

inline bool parse_dtype(std::string_view text, dtype& type) noexcept {
  constexpr std::pair<std::string_view, dtype> names[] = {
      {"BOOL", dtype::boolean}, {"U8", dtype::u8},   {"I8", dtype::i8},   {"F8_E4M3", dtype::f8_e4m3}, {"F8_E5M2", dtype::f8_e5m2},
      {"U16", dtype::u16},      {"I16", dtype::i16}, {"F16", dtype::f16}, {"BF16", dtype::bf16},       {"U32", dtype::u32},
      {"I32", dtype::i32},      {"F32", dtype::f32}, {"U64", dtype::u64}, {"I64", dtype::i64},         {"F64", dtype::f64}};
  for (auto const& [name, value] : names)
    if (name == text) return type = value, true;
  return false;
}

namespace detail {

inline constexpr std::size_t most_axes = 8;

// A pointer that tells how far the parser has read, because the parser's events do not.
struct cursor {
  using iterator_category = std::input_iterator_tag;
  using value_type = char;
  using difference_type = std::ptrdiff_t;
  using pointer = char const*;
  using reference = char const&;

  char const* at = nullptr;
  char const** reached = nullptr;

  reference operator*() const noexcept { return *at; }
  cursor& operator++() noexcept { return *reached = ++at, *this; }
  cursor operator++(int) noexcept {
    cursor const before = *this;
    ++*this;
    return before;
  }
  friend bool operator==(cursor const& a, cursor const& b) noexcept { return a.at == b.at; }
  friend bool operator!=(cursor const& a, cursor const& b) noexcept { return a.at != b.at; }
};

// One entry of the header, before its figures are compared with each other and with the file.
struct entry {
  std::string name;
  std::string type;
  std::vector<std::uint64_t> shape, offsets;
  std::int64_t at = 0;
  bool has_type = false, has_shape = false, has_offsets = false;
};

// Receives the parser's events; the header is at most {key: {key: [number]}}, so a depth and the last key are its whole state.
// An event that returns false ends the parse; nothing deeper than the third level is ever entered.
class header_events {
 public:
  using number_integer_t = nlohmann::json::number_integer_t;
  using number_unsigned_t = nlohmann::json::number_unsigned_t;
  using number_float_t = nlohmann::json::number_float_t;
  using string_t = nlohmann::json::string_t;
  using binary_t = nlohmann::json::binary_t;

  header_events(char const* first, char const* const* reached) noexcept : first_(first), reached_(reached) {}

  std::vector<entry> entries;
  std::vector<std::pair<std::string, std::string>> metadata;
  std::vector<std::int64_t> metadata_at;
  status failure;

  std::int64_t position() const noexcept { return 8 + (*reached_ - first_); }
  bool fail(errc code) noexcept {
    if (failure) failure = {code, position()};
    return false;
  }

  bool start_object(std::size_t) {
    if (depth_ == 0) return depth_ = 1, true;
    if (depth_ != 1) return fail(errc::bad_format);
    depth_ = 2;
    if (!in_metadata_) entries.emplace_back().name = name_;
    return true;
  }
  bool end_object() {
    if (depth_ == 2 && !in_metadata_) {
      entry& e = entries.back();
      e.at = position();
      if (!e.has_type || !e.has_shape || !e.has_offsets) return fail(errc::bad_format);
    }
    --depth_;
    return true;
  }
  bool key(string_t& text) {
    if (depth_ == 1) {
      bool const metadata_again = text == "__metadata__" && had_metadata_;
      if (metadata_again) return fail(errc::bad_format);
      in_metadata_ = text == "__metadata__";
      had_metadata_ |= in_metadata_;
      name_ = std::move(text);
      return true;
    }
    if (in_metadata_) {
      metadata.emplace_back(std::move(text), std::string());
      metadata_at.push_back(position());
      return true;
    }
    entry& e = entries.back();
    field_ = text == "dtype" ? field::type : text == "shape" ? field::shape : text == "data_offsets" ? field::offsets : field::none;
    if (field_ == field::none) return fail(errc::bad_format);
    bool& seen = field_ == field::type ? e.has_type : field_ == field::shape ? e.has_shape : e.has_offsets;
    if (seen) return fail(errc::bad_format);
    return seen = true;
  }
  bool start_array(std::size_t) {
    if (depth_ != 2 || in_metadata_ || field_ == field::type) return fail(errc::bad_format);
    depth_ = 3;
    return true;
  }
  bool end_array() {
    depth_ = 2;
    if (field_ == field::offsets && entries.back().offsets.size() != 2) return fail(errc::bad_format);
    return true;
  }
  bool string(string_t& text) {
    if (depth_ != 2) return fail(errc::bad_format);
    if (in_metadata_) return metadata.back().second = std::move(text), true;
    if (field_ != field::type) return fail(errc::bad_format);
    entries.back().type = std::move(text);
    return true;
  }
  bool number_unsigned(number_unsigned_t value) {
    if (depth_ != 3) return fail(errc::bad_format);
    if (value > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max())) return fail(errc::out_of_range);
    std::vector<std::uint64_t>& list = field_ == field::shape ? entries.back().shape : entries.back().offsets;
    if (list.size() == (field_ == field::shape ? most_axes : 2)) return fail(field_ == field::shape ? errc::unsupported : errc::bad_format);
    list.push_back(value);
    return true;
  }
  bool number_integer(number_integer_t) { return fail(depth_ == 3 ? errc::out_of_range : errc::bad_format); }
  bool number_float(number_float_t, string_t const&) { return fail(depth_ == 3 ? errc::out_of_range : errc::bad_format); }
  bool null() { return fail(errc::bad_format); }
  bool boolean(bool) { return fail(errc::bad_format); }
  bool binary(binary_t&) { return fail(errc::bad_format); }
  template <class Error>
  bool parse_error(std::size_t, std::string const&, Error const&) {
    return fail(errc::bad_format);
  }

 private:
  enum class field : std::uint8_t { none, type, shape, offsets };
  char const* first_;
  char const* const* reached_;
  int depth_ = 0;
  bool in_metadata_ = false, had_metadata_ = false;
  field field_ = field::none;
  std::string name_;
};

// bytes = dtype x shape, or false where that does not fit 63 bits. An axis of 0 makes an empty tensor whatever the others are.
inline bool bytes_of(dtype type, std::vector<std::uint64_t> const& shape, std::uint64_t& bytes) noexcept {
  bytes = static_cast<std::uint64_t>(safetensors::bytes_of(type));
  for (std::uint64_t const extent : shape)
    if (extent == 0) return bytes = 0, true;
  for (std::uint64_t const extent : shape) {
    if (bytes > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max()) / extent) return false;
    bytes *= extent;
  }
  return true;
}

}  // namespace detail

// Of a file of `total` bytes (any_length: as many as the header says) that begins with `head`: at least its header, in whole.
//
// unknown_types  whether tensors of an unknown dtype are let through, or are errc::unsupported
inline result<index> read_index(std::span<std::byte const> head, std::int64_t total, bool unknown_types = false) {
  if (total < 8) return status{errc::truncated, total};
  std::uint64_t const stated = load_le<std::uint64_t>(head.data());
  if (stated > static_cast<std::uint64_t>(longest_header)) return status{errc::unsupported, 0};
  if (stated > static_cast<std::uint64_t>(total - 8)) return status{errc::truncated, total};
  PITH_EXPECTS(head.size() >= 8 + stated);

  char const* const first = reinterpret_cast<char const*>(head.data()) + 8;
  char const* reached = first;
  if (stated == 0 || *first != '{') return status{errc::bad_format, 8};
  detail::header_events events(first, &reached);
  bool const parsed = nlohmann::json::sax_parse(detail::cursor{first, &reached}, detail::cursor{first + stated, &reached}, &events,
                                                nlohmann::json::input_format_t::json, /*strict=*/true);
  if (!parsed || !events.failure) return events.failure ? status{errc::bad_format, events.position()} : events.failure;

  index out;
  out.data_at = 8 + static_cast<std::int64_t>(stated);
  std::uint64_t const data_bytes = static_cast<std::uint64_t>(total - out.data_at);
  std::vector<detail::entry>& entries = events.entries;
  std::sort(entries.begin(), entries.end(),
            [](detail::entry const& a, detail::entry const& b) { return a.name != b.name ? a.name < b.name : a.at < b.at; });
  for (std::size_t i = 0; i < entries.size(); ++i) {
    detail::entry const& e = entries[i];
    dtype type = dtype::u8;
    std::uint64_t wanted = 0;
    if (i > 0 && e.name == entries[i - 1].name) return status{errc::bad_format, e.at};
    bool const known = parse_dtype(e.type, type);
    if (!known && !unknown_types) return status{errc::unsupported, e.at};
    if (!detail::bytes_of(type, e.shape, wanted) || e.offsets[0] > e.offsets[1]) return status{errc::out_of_range, e.at};
    if (e.offsets[1] > data_bytes) return status{errc::truncated, e.at};
    if (known && wanted != e.offsets[1] - e.offsets[0]) return status{errc::shape_mismatch, e.at};
    out.tensors.push_back({e.name,
                           e.type,
                           {e.shape.begin(), e.shape.end()},
                           out.data_at + static_cast<std::int64_t>(e.offsets[0]),
                           out.data_at + static_cast<std::int64_t>(e.offsets[1])});
  }

  std::sort(entries.begin(), entries.end(), [](detail::entry const& a, detail::entry const& b) { return a.offsets < b.offsets; });
  std::uint64_t filled = 0;
  for (detail::entry const& e : entries) {
    if (e.offsets[0] != filled) return status{errc::bad_format, e.at};  // below: overlap; above: a hole
    filled = e.offsets[1];
  }
  out.end = out.data_at + static_cast<std::int64_t>(filled);
  if (total != any_length && out.end != total) return status{errc::bad_format, out.end};

  std::vector<std::size_t> order(events.metadata.size());
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return events.metadata[a].first < events.metadata[b].first; });
  for (std::size_t i = 1; i < order.size(); ++i)
    if (events.metadata[order[i]].first == events.metadata[order[i - 1]].first)
      return status{errc::bad_format, events.metadata_at[order[i]]};
  out.metadata = std::move(events.metadata);
  return out;
}

// The file's tensors, as views of `bytes`, or what is wrong with it.
inline result<file> read(std::span<std::byte const> bytes) {
  auto described = read_index(bytes, static_cast<std::int64_t>(bytes.size()));
  if (!described) return described.error();
  file out;
  for (place& p : described.value().tensors) {
    tensor& t = out.tensors.emplace_back();
    parse_dtype(p.type, t.type);
    t.name = std::move(p.name);
    t.shape = std::move(p.shape);
    t.bytes = bytes.subspan(static_cast<std::size_t>(p.begin), static_cast<std::size_t>(p.end - p.begin));
  }
  out.metadata = std::move(described.value().metadata);
  return out;
}

// The values of an F32, F16 or BF16 tensor as f32, exactly.
//
// out     as many floats as the tensor has elements
// errors  unsupported: another dtype; shape_mismatch: `out` has another length (at = the elements wanted)
inline status decode(tensor const& from, std::span<float> out) noexcept {
  if (from.elements() != static_cast<std::int64_t>(out.size())) return {errc::shape_mismatch, from.elements()};
  std::byte const* const bytes = from.bytes.data();
  switch (from.type) {
    case dtype::f32:
      for (std::size_t i = 0; i < out.size(); ++i) out[i] = load_scalar<f32>(bytes + 4 * i);
      return {};
    case dtype::f16:
      for (std::size_t i = 0; i < out.size(); ++i) out[i] = load_scalar<f16>(bytes + 2 * i);
      return {};
    case dtype::bf16:
      for (std::size_t i = 0; i < out.size(); ++i) out[i] = load_scalar<bf16>(bytes + 2 * i);
      return {};
    default: return {errc::unsupported, 0};
  }
}

}  // namespace pith::safetensors
