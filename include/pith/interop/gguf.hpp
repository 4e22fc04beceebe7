// SPDX-License-Identifier: Apache-2.0
// Reads a GGUF file, version 2 or 3, that the caller has read or mapped: checks every claim of its header, copies no tensor and no text.
//
//   magic "GGUF", u32 version, u64 tensors, u64 metadata entries
//   each entry    string key, u32 value_type, value
//   each tensor   string name, u32 axes, u64 extents, the fastest axis first, u32 type, u64 offset
//   string        u64 length, its bytes                 array   u32 value_type, u64 length, elements
//   data          from the next multiple of u32 "general.alignment" (32 if absent) on; offsets count from here
//
// errors  truncated       what is stated does not fit the file; `at` is the length, count or offset that says so, or the field that is cut
//         bad_format      another magic, an empty or too long key, a boolean that is neither 0 nor 1, a key or name twice, overlap,
//                         an alignment that is no u32 or no power of two
//         misaligned      an offset that is no multiple of the alignment
//         shape_mismatch  a row that is no whole number of blocks
//         out_of_range    an extent, or the product of all, that does not fit 63 bits
//         unsupported     another version (files of the other byte order have one), a value type or tensor type that is not listed,
//                         more than 4 axes, arrays more than 8 deep
//         `at` is the byte of the file where the wrong field or tensor entry begins
// cost    O(header), n log n in tensors and entries; memory is a small multiple of the header's bytes, whatever the counts say
// from    https://github.com/ggml-org/ggml, docs/gguf.md
// differs from ggml: tensors may lie in any order, with gaps; names may be long; arrays may hold arrays, as the text above says.
//         Text is not checked to be UTF-8, padding not to be zero
#pragma once

#include <algorithm>
#include <cstring>
#include <limits>
#include <optional>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "pith/core/bits.hpp"
#include "pith/core/status.hpp"

namespace pith::gguf {

enum class value_type : std::uint32_t { u8, i8, u16, i16, u32, i32, f32, boolean, string, array, u64, i64, f64 };

// clang-format off
enum class type : std::uint32_t {
  f32 = 0, f16 = 1, q4_0 = 2, q4_1 = 3, q5_0 = 6, q5_1 = 7, q8_0 = 8, q8_1 = 9, q2_k = 10, q3_k = 11, q4_k = 12, q5_k = 13, q6_k = 14, q8_k = 15,
  iq2_xxs = 16, iq2_xs = 17, iq3_xxs = 18, iq1_s = 19, iq4_nl = 20, iq3_s = 21, iq2_s = 22, iq4_xs = 23, i8 = 24, i16 = 25, i32 = 26, i64 = 27,
  f64 = 28, iq1_m = 29, bf16 = 30, tq1_0 = 34, tq2_0 = 35, mxfp4 = 39, nvfp4 = 40, q1_0 = 41,
};
// clang-format on

// What a row is stored in: blocks of `elements` numbers. 0 and 0 of a type that is not listed.
struct block_shape {
  std::int64_t elements = 0, bytes = 0;
};
constexpr block_shape shape_of(type t) noexcept {
  constexpr std::pair<int, int> shapes[] = {
      {1, 4},     {1, 2},     {32, 18},   {32, 20},   {0, 0},     {0, 0},    {32, 22},  {32, 24},  {32, 34},  {32, 40}, {256, 84},
      {256, 110}, {256, 144}, {256, 176}, {256, 210}, {256, 292}, {256, 66}, {256, 74}, {256, 98}, {256, 50}, {32, 18}, {256, 110},
      {256, 82},  {256, 136}, {1, 1},     {1, 2},     {1, 4},     {1, 8},    {1, 8},    {256, 56}, {1, 2},    {0, 0},   {0, 0},
      {0, 0},     {256, 54},  {256, 66},  {0, 0},     {0, 0},     {0, 0},    {32, 17},  {64, 36},  {128, 18}};
  auto const i = static_cast<std::size_t>(t);
  return i < std::size(shapes) ? block_shape{shapes[i].first, shapes[i].second} : block_shape{};
}

// Bytes of a value, 0 of a string or an array, whose length decides.
constexpr std::int64_t bytes_of(value_type t) noexcept {
  constexpr int bytes[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
  return bytes[static_cast<std::size_t>(t)];
}

// A value of the metadata that `read` has checked; it lies in the file.
struct value {
  value_type type = value_type::u8;
  std::span<std::byte const> bytes;  // a string with its length; an array with its type and length

  // What it is, if it is that: an integer or boolean that fits, a floating-point number, a string.
  std::optional<std::int64_t> as_signed() const noexcept {
    std::byte const* const at = bytes.data();
    switch (type) {
      case value_type::u8:
      case value_type::boolean: return load_le<std::uint8_t>(at);
      case value_type::i8: return static_cast<std::int8_t>(load_le<std::uint8_t>(at));
      case value_type::u16: return load_le<std::uint16_t>(at);
      case value_type::i16: return static_cast<std::int16_t>(load_le<std::uint16_t>(at));
      case value_type::u32: return load_le<std::uint32_t>(at);
      case value_type::i32: return static_cast<std::int32_t>(load_le<std::uint32_t>(at));
      case value_type::i64:
      case value_type::u64: {
        auto const x = static_cast<std::int64_t>(load_le<std::uint64_t>(at));
        return type == value_type::u64 && x < 0 ? std::nullopt : std::optional(x);
      }
      default: return std::nullopt;
    }
  }
  std::optional<std::uint64_t> as_unsigned() const noexcept {
    if (type == value_type::u64) return load_le<std::uint64_t>(bytes.data());
    auto const x = as_signed();
    return x && *x >= 0 ? std::optional(static_cast<std::uint64_t>(*x)) : std::nullopt;
  }
  std::optional<double> as_float() const noexcept {
    if (type == value_type::f32) return load_scalar<float>(bytes.data());
    if (type == value_type::f64) return __builtin_bit_cast(double, load_le<std::uint64_t>(bytes.data()));
    return std::nullopt;
  }
  std::optional<std::string_view> as_text() const noexcept {
    if (type != value_type::string) return std::nullopt;
    return std::string_view(reinterpret_cast<char const*>(bytes.data()) + 8, bytes.size() - 8);
  }
  // Elements of an array, 0 of what is none; f(value) for each of them.
  std::int64_t length() const noexcept {
    return type == value_type::array ? static_cast<std::int64_t>(load_le<std::uint64_t>(bytes.data() + 4)) : 0;
  }
  template <class Function>
  void for_each(Function&& f) const;
};

struct tensor {
  std::string_view name;
  gguf::type type = gguf::type::f32;
  std::vector<std::int64_t> shape;   // slowest axis first: the file's in reverse
  std::span<std::byte const> bytes;  // inside the caller's memory, row after row

  std::int64_t columns() const noexcept { return shape.empty() ? 1 : shape.back(); }
  std::int64_t rows() const noexcept {  // of all axes but the fastest
    std::int64_t product = 1;
    for (std::size_t i = 0; i + 1 < shape.size(); ++i) product *= shape[i];
    return product;
  }
  std::int64_t elements() const noexcept {
    return bytes.empty() ? 0 : static_cast<std::int64_t>(bytes.size()) / shape_of(type).bytes * shape_of(type).elements;
  }
  // Some of its rows, as a matrix: an expert of many, or what one thread converts.
  tensor part(std::int64_t first, std::int64_t count) const {
    PITH_EXPECTS(first >= 0 && count >= 0 && first <= rows() - count);
    std::int64_t const row = rows() > 0 ? static_cast<std::int64_t>(bytes.size()) / rows() : 0;
    return {name, type, {count, columns()}, bytes.subspan(static_cast<std::size_t>(first * row), static_cast<std::size_t>(count * row))};
  }
};

struct file {
  std::uint32_t version = 0;
  std::int64_t alignment = 32;
  std::vector<std::pair<std::string_view, value>> metadata;  // as written
  std::vector<tensor> tensors;                               // by name

  tensor const* find(std::string_view name) const noexcept {
    auto const it =
        std::lower_bound(tensors.begin(), tensors.end(), name, [](tensor const& t, std::string_view wanted) { return t.name < wanted; });
    return it != tensors.end() && it->name == name ? &*it : nullptr;
  }
  value const* find_metadata(std::string_view key) const noexcept {
    for (auto const& [name, what] : metadata)
      if (name == key) return &what;
    return nullptr;
  }
};

namespace detail {

inline constexpr std::int64_t most_axes = 4, most_depth = 8, longest_key = 65535;

// Where the file is read, and the first thing wrong with it; what follows that is not read.
class cursor {
 public:
  explicit cursor(std::span<std::byte const> bytes, std::size_t at = 0) noexcept : bytes_(bytes), at_(at) {}

  status failure;

  std::int64_t position() const noexcept { return static_cast<std::int64_t>(at_); }
  std::span<std::byte const> since(std::int64_t first) const noexcept {
    return bytes_.subspan(static_cast<std::size_t>(first), at_ - static_cast<std::size_t>(first));
  }
  bool fail(errc code, std::int64_t at) noexcept {
    if (failure) failure = {code, at};
    return false;
  }
  template <class Word>
  bool take(Word& out) noexcept {
    if (bytes_.size() - at_ < sizeof(Word)) return fail(errc::truncated, position());
    out = load_le<Word>(bytes_.data() + at_);
    at_ += sizeof(Word);
    return true;
  }
  // `count` items of `size` bytes, which a field at `stated` said.
  bool skip(std::uint64_t count, std::uint64_t size, std::int64_t stated) noexcept {
    if (count > (bytes_.size() - at_) / size) return fail(errc::truncated, stated);
    at_ += count * size;
    return true;
  }
  bool take(std::string_view& out) noexcept {
    std::int64_t const first = position();
    std::uint64_t length = 0;
    if (!take(length) || !skip(length, 1, first)) return false;
    out = {reinterpret_cast<char const*>(bytes_.data()) + first + 8, length};
    return true;
  }
  bool take(value_type& out) noexcept {
    std::int64_t const first = position();
    std::uint32_t code = 0;
    if (!take(code)) return false;
    if (code > static_cast<std::uint32_t>(value_type::f64)) return fail(errc::unsupported, first);
    out = static_cast<value_type>(code);
    return true;
  }
  bool skip_value(value_type t, std::int64_t depth = 0) noexcept {
    if (t == value_type::array) return skip_array(depth);
    std::string_view text;
    return t == value_type::string ? take(text) : skip_numbers(t, 1, position());
  }

 private:
  bool skip_numbers(value_type t, std::uint64_t count, std::int64_t stated) noexcept {
    std::size_t const first = at_;
    if (!skip(count, static_cast<std::uint64_t>(bytes_of(t)), stated)) return false;
    if (t == value_type::boolean)
      for (std::size_t i = first; i < at_; ++i)
        if (bytes_[i] > std::byte{1}) return fail(errc::bad_format, static_cast<std::int64_t>(i));
    return true;
  }
  // Every element takes a byte at least, so a lie about the length ends with the file.
  bool skip_array(std::int64_t depth) noexcept {
    std::int64_t const first = position();
    value_type t{};
    std::uint64_t length = 0;
    if (depth == most_depth) return fail(errc::unsupported, first);
    if (!take(t) || !take(length)) return false;
    if (bytes_of(t) > 0) return skip_numbers(t, length, first + 4);
    if (length > bytes_.size() - at_) return fail(errc::truncated, first + 4);
    for (std::uint64_t i = 0; i < length; ++i)
      if (!skip_value(t, depth + 1)) return false;
    return true;
  }

  std::span<std::byte const> bytes_;
  std::size_t at_;
};

struct tensor_entry {
  tensor what;
  std::uint64_t offset = 0, bytes = 0;
  std::int64_t at = 0, offset_at = 0;
};

inline bool take_entry(cursor& in, tensor_entry& out) {
  constexpr std::uint64_t largest = static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max());
  std::uint32_t axes = 0, code = 0;
  out.at = in.position();
  if (!in.take(out.what.name)) return false;
  std::int64_t const axes_at = in.position();
  if (!in.take(axes)) return false;
  if (axes > most_axes) return in.fail(errc::unsupported, axes_at);
  std::uint64_t product = 1;  // of the extents that are not 0, so that shapes multiply in any order
  bool empty = false;
  out.what.shape.resize(axes);
  for (std::uint32_t i = 0; i < axes; ++i) {
    std::int64_t const at = in.position();
    std::uint64_t extent = 0;
    if (!in.take(extent)) return false;
    if (extent > largest || (extent > 0 && product > largest / extent)) return in.fail(errc::out_of_range, at);
    product *= extent > 0 ? extent : 1;
    empty |= extent == 0;
    out.what.shape[axes - 1 - i] = static_cast<std::int64_t>(extent);
  }
  std::int64_t const type_at = in.position();
  if (!in.take(code)) return false;
  out.what.type = static_cast<type>(code);
  block_shape const block = shape_of(out.what.type);
  if (block.bytes == 0) return in.fail(errc::unsupported, type_at);
  if (out.what.columns() % block.elements != 0) return in.fail(errc::shape_mismatch, out.at);
  std::uint64_t const blocks = empty ? 0 : product / static_cast<std::uint64_t>(block.elements);
  if (blocks > largest / static_cast<std::uint64_t>(block.bytes)) return in.fail(errc::out_of_range, out.at);
  out.bytes = blocks * static_cast<std::uint64_t>(block.bytes);
  out.offset_at = in.position();
  return in.take(out.offset);
}

inline status take_metadata(cursor& in, std::uint64_t count, file& out) {
  std::vector<std::pair<std::string_view, std::int64_t>> keys;
  for (std::uint64_t i = 0; i < count; ++i) {
    std::int64_t const at = in.position();
    std::string_view key;
    value v;
    if (!in.take(key)) return in.failure;
    if (key.empty() || key.size() > longest_key) return {errc::bad_format, at};
    std::int64_t const type_at = in.position();
    if (!in.take(v.type)) return in.failure;
    std::int64_t const first = in.position();
    if (!in.skip_value(v.type)) return in.failure;
    v.bytes = in.since(first);
    if (key == "general.alignment") {
      if (v.type != value_type::u32) return {errc::bad_format, type_at};
      out.alignment = load_le<std::uint32_t>(v.bytes.data());
      if (out.alignment == 0 || (out.alignment & (out.alignment - 1)) != 0) return {errc::bad_format, first};
    }
    keys.emplace_back(key, at);
    out.metadata.emplace_back(key, v);
  }
  std::sort(keys.begin(), keys.end());
  for (std::size_t i = 1; i < keys.size(); ++i)
    if (keys[i].first == keys[i - 1].first) return {errc::bad_format, keys[i].second};
  return {};
}

}  // namespace detail

template <class Function>
void value::for_each(Function&& f) const {
  if (type != value_type::array) return;
  detail::cursor in(bytes, 12);
  auto const t = static_cast<value_type>(load_le<std::uint32_t>(bytes.data()));
  for (std::int64_t i = 0; i < length(); ++i) {
    std::int64_t const first = in.position();
    if (!in.skip_value(t)) return;
    f(value{t, in.since(first)});
  }
}

// The file's tensors and metadata, as views of `bytes`, or what is wrong with it.
inline result<file> read(std::span<std::byte const> bytes) {
  file out;
  detail::cursor in(bytes);
  std::uint32_t magic = 0;
  std::uint64_t tensors = 0, entries = 0;
  if (!in.take(magic)) return in.failure;
  if (magic != 0x46554747) return status{errc::bad_format, 0};
  if (!in.take(out.version)) return in.failure;
  if (out.version != 2 && out.version != 3) return status{errc::unsupported, 4};
  if (!in.take(tensors) || !in.take(entries)) return in.failure;
  if (status const ok = detail::take_metadata(in, entries, out); !ok) return ok;

  std::vector<detail::tensor_entry> list;
  for (std::uint64_t i = 0; i < tensors; ++i)
    if (!detail::take_entry(in, list.emplace_back())) return in.failure;

  auto const begin = static_cast<std::size_t>(round_up(in.position(), out.alignment));
  std::span<std::byte const> const data = begin < bytes.size() ? bytes.subspan(begin) : std::span<std::byte const>();
  for (detail::tensor_entry& e : list) {
    if (e.offset % static_cast<std::uint64_t>(out.alignment) != 0) return status{errc::misaligned, e.offset_at};
    if (e.bytes == 0) continue;
    if (e.offset > data.size() || e.bytes > data.size() - e.offset) return status{errc::truncated, e.offset_at};
    e.what.bytes = data.subspan(e.offset, e.bytes);
  }
  std::sort(list.begin(), list.end(), [](auto const& a, auto const& b) { return std::pair(a.offset, a.at) < std::pair(b.offset, b.at); });
  std::uint64_t filled = 0;
  for (detail::tensor_entry const& e : list) {
    if (e.bytes > 0 && e.offset < filled) return status{errc::bad_format, e.offset_at};
    if (e.bytes > 0) filled = e.offset + e.bytes;
  }
  std::sort(list.begin(), list.end(),
            [](auto const& a, auto const& b) { return std::pair(a.what.name, a.at) < std::pair(b.what.name, b.at); });
  for (std::size_t i = 1; i < list.size(); ++i)
    if (list[i].what.name == list[i - 1].what.name) return status{errc::bad_format, list[i].at};
  for (detail::tensor_entry& e : list) out.tensors.push_back(std::move(e.what));
  return out;
}

}  // namespace pith::gguf
