// SPDX-License-Identifier: Apache-2.0
#include "pith/interop/gguf.hpp"

#include <cstring>
#include <fstream>
#include <iterator>
#include <string>

#include "support/catch.hpp"
#include "support/digest.hpp"

namespace gguf = pith::gguf;
using gguf::value_type;
using pith::errc, pith::status;

namespace {

std::vector<std::byte> golden() {
  std::ifstream in(PITH_SOURCE_DIR "/tests/golden/weights.gguf", std::ios::binary);
  REQUIRE(in);
  std::string const text((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
  std::vector<std::byte> out(text.size());
  std::memcpy(out.data(), text.data(), text.size());
  return out;
}

// Writes a file field by field.
struct writer {
  std::vector<std::byte> bytes;

  writer(std::uint64_t tensors, std::uint64_t entries, std::uint32_t version = 3) {
    put(std::uint32_t{0x46554747});
    put(version);
    put(tensors);
    put(entries);
  }
  std::int64_t at() const { return static_cast<std::int64_t>(bytes.size()); }
  template <class Word>
  void put(Word w) {
    bytes.resize(bytes.size() + sizeof(Word));
    pith::store_le(bytes.data() + bytes.size() - sizeof(Word), w);
  }
  void put(std::string const& text) {
    put(std::uint64_t{text.size()});
    for (char c : text) bytes.push_back(static_cast<std::byte>(c));
  }
  void key(std::string const& name, value_type t) {
    put(name);
    put(static_cast<std::uint32_t>(t));
  }
  void array(value_type t, std::uint64_t length) {
    put(static_cast<std::uint32_t>(t));
    put(length);
  }
  void tensor(std::string const& name, std::vector<std::uint64_t> const& extents, gguf::type t, std::uint64_t offset) {
    put(name);
    put(static_cast<std::uint32_t>(extents.size()));
    for (std::uint64_t e : extents) put(e);
    put(static_cast<std::uint32_t>(t));
    put(offset);
  }
  void data(std::size_t count, std::size_t alignment = 32) {
    bytes.resize(static_cast<std::size_t>(pith::round_up(at(), static_cast<std::int64_t>(alignment))) + count);
  }
  // Of a copy of exactly the size, so that a sanitizer sees any read past it.
  status verdict() const { return gguf::read(std::vector<std::byte>(bytes)).error(); }
};

// The verdict on one tensor "t" and `bytes` of data.
status one(std::vector<std::uint64_t> const& extents, gguf::type t, std::uint64_t offset, std::size_t bytes) {
  writer w(1, 0);
  w.tensor("t", extents, t, offset);
  w.data(bytes);
  return w.verdict();
}
constexpr std::int64_t axes_at = 24 + 8 + 1, extents_at = axes_at + 4;

}  // namespace

TEST_CASE("gguf: metadata and tensors of a file that another implementation wrote", "[interop][gguf][golden]") {
  std::vector<std::byte> const bytes = golden();
  auto const made = gguf::read(bytes);
  REQUIRE(made);
  gguf::file const& file = made.value();
  CHECK(file.version == 3);
  CHECK(file.alignment == 64);
  auto const value = [&](char const* key) {
    REQUIRE(file.find_metadata(key) != nullptr);
    return *file.find_metadata(key);
  };
  CHECK(value("test.u8").as_unsigned() == 200u);
  CHECK(value("test.u8").as_signed() == 200);
  CHECK(value("test.i8").as_signed() == -7);
  CHECK(!value("test.i8").as_unsigned());
  CHECK(value("test.u16").as_unsigned() == 60000u);
  CHECK(value("test.i16").as_signed() == -30000);
  CHECK(value("test.u32").as_signed() == 4000000000);
  CHECK(value("test.i32").as_signed() == -2000000000);
  CHECK(value("test.u64").as_unsigned() == (std::uint64_t{1} << 63) + 1);
  CHECK(!value("test.u64").as_signed());
  CHECK(value("test.i64").as_signed() == std::numeric_limits<std::int64_t>::min());
  CHECK(value("test.f32").as_float() == static_cast<double>(0.1f));
  CHECK(value("test.f64").as_float() == 0.1);
  CHECK(!value("test.f64").as_signed());
  CHECK(value("test.true").as_unsigned() == 1u);
  CHECK(value("test.text").as_text() == "caf\xc3\xa9");
  CHECK(!value("test.true").as_text());
  CHECK(value("general.architecture").as_text() == "test");
  CHECK(file.find_metadata("test.none") == nullptr);
  std::vector<std::int64_t> numbers;
  value("test.numbers").for_each([&](gguf::value v) { numbers.push_back(v.as_signed().value()); });
  CHECK(numbers == std::vector<std::int64_t>{3, 1, 2});
  std::vector<std::string> words;
  value("test.words").for_each([&](gguf::value v) { words.emplace_back(v.as_text().value()); });
  CHECK(words == std::vector<std::string>{"one", "", "three"});

  REQUIRE(file.tensors.size() == 11);
  gguf::tensor const* const t = file.find("q4_k.weight");
  REQUIRE(t != nullptr);
  CHECK(t->type == gguf::type::q4_k);
  CHECK(t->shape == std::vector<std::int64_t>{2, 512});
  CHECK(t->rows() == 2);
  CHECK(t->columns() == 512);
  CHECK(t->elements() == 1024);
  CHECK(t->bytes.size() == 4 * 144);
  CHECK((t->bytes.data() - bytes.data()) % 64 == 0);
  CHECK(t->part(1, 1).bytes.data() == t->bytes.data() + 2 * 144);
  CHECK(t->part(1, 1).elements() == 512);
  CHECK(file.find("q4_k") == nullptr);
}

TEST_CASE("gguf: arrays of arrays, empty arrays, version 2, no tensors", "[interop][gguf][edge]") {
  writer w(0, 2, 2);
  w.key("a", value_type::array);
  w.array(value_type::array, 3);
  w.array(value_type::u16, 2);
  w.put(std::uint16_t{7});
  w.put(std::uint16_t{8});
  w.array(value_type::string, 1);
  w.put(std::string("x"));
  w.array(value_type::array, 0);
  w.key("b", value_type::boolean);
  w.put(std::uint8_t{0});
  auto const made = gguf::read(w.bytes);
  REQUIRE(made);
  CHECK(made.value().version == 2);
  CHECK(made.value().tensors.empty());
  std::vector<std::int64_t> lengths;
  made.value().find_metadata("a")->for_each([&](gguf::value v) { lengths.push_back(v.length()); });
  CHECK(lengths == std::vector<std::int64_t>{2, 1, 0});
  CHECK(made.value().find_metadata("b")->as_unsigned() == 0u);

  for (int depth : {8, 9}) {
    writer deep(0, 1);
    deep.key("a", value_type::array);
    for (int i = 1; i < depth; ++i) deep.array(value_type::array, 1);
    std::int64_t const last = deep.at();
    deep.array(value_type::u8, 0);
    CHECK(deep.verdict() == (depth == 8 ? status{} : status{errc::unsupported, last}));
  }
}

TEST_CASE("gguf: a file cut at any byte of its header or data is refused", "[interop][gguf][edge]") {
  std::vector<std::byte> const bytes = golden();
  auto const whole = gguf::read(bytes);
  REQUIRE(whole);
  std::size_t end = 0;  // padding behind the last tensor may be missing
  for (auto const& t : whole.value().tensors) end = std::max(end, static_cast<std::size_t>(t.bytes.data() + t.bytes.size() - bytes.data()));
  for (std::size_t length = 0; length < end; ++length) {
    std::vector<std::byte> const cut(bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(length));
    status const s = gguf::read(cut).error();
    bool const right = s.code == errc::truncated && s.at >= 0 && s.at <= static_cast<std::int64_t>(length);
    if (!right) FAIL(length << ": " << pith::message(s.code) << " at " << s.at);
  }
  CHECK(gguf::read(std::span(bytes).first(end)));
}

TEST_CASE("gguf: another magic, version or byte order is refused", "[interop][gguf][edge]") {
  writer w(0, 0);
  CHECK(w.verdict());
  w.bytes[3] = std::byte{'X'};
  CHECK(w.verdict() == status{errc::bad_format, 0});
  for (std::uint32_t version : {0u, 1u, 4u, 3u << 24}) CHECK(writer(0, 0, version).verdict() == status{errc::unsupported, 4});
}

TEST_CASE("gguf: counts and lengths that no file could hold are refused where they stand, without memory for them",
          "[interop][gguf][edge]") {
  for (std::uint64_t const lie : {std::uint64_t{1} << 32, std::uint64_t{1} << 62, ~std::uint64_t{0}}) {
    CHECK(writer(lie, 0).verdict() == status{errc::truncated, 24});
    CHECK(writer(0, lie).verdict() == status{errc::truncated, 24});
    writer name(0, 1);
    name.put(lie);
    CHECK(name.verdict() == status{errc::truncated, 24});
    for (auto t : {value_type::u8, value_type::f64, value_type::string, value_type::array}) {
      writer list(0, 1);
      list.key("k", value_type::array);
      list.array(t, lie);
      CHECK(list.verdict() == status{errc::truncated, list.at() - 8});
    }
  }
}

TEST_CASE("gguf: keys are neither empty, longer than 65535 bytes nor given twice", "[interop][gguf][edge]") {
  auto const file = [](std::string const& a, std::string const& b) {
    writer w(0, 2);
    for (auto const& key : {a, b}) {
      w.key(key, value_type::u8);
      w.put(std::uint8_t{1});
    }
    return w.verdict();
  };
  CHECK(file("a", "b"));
  CHECK(file("a", "a") == status{errc::bad_format, 24 + 8 + 1 + 4 + 1});
  CHECK(file("", "a") == status{errc::bad_format, 24});
  CHECK(file(std::string(65535, 'a'), "a"));
  CHECK(file(std::string(65536, 'a'), "a") == status{errc::bad_format, 24});
}

TEST_CASE("gguf: value types above 12, and booleans other than 0 and 1, are refused", "[interop][gguf][edge]") {
  writer type(0, 1);
  type.key("k", static_cast<value_type>(13));
  CHECK(type.verdict() == status{errc::unsupported, type.at() - 4});
  writer element(0, 1);
  element.key("k", value_type::array);
  element.array(static_cast<value_type>(99), 0);
  CHECK(element.verdict() == status{errc::unsupported, element.at() - 12});
  writer flag(0, 1);
  flag.key("k", value_type::array);
  flag.array(value_type::boolean, 3);
  for (std::uint8_t b : {1, 0, 2}) flag.put(b);
  CHECK(flag.verdict() == status{errc::bad_format, flag.at() - 1});
}

TEST_CASE("gguf: the alignment is a u32 and a power of two, and data begins and tensors lie by it", "[interop][gguf][edge]") {
  auto const file = [](value_type t, std::uint32_t alignment, std::uint64_t offset) {
    writer w(1, 1);
    w.key("general.alignment", t);
    w.put(alignment);
    w.tensor("t", {4}, gguf::type::i8, offset);
    w.data(static_cast<std::size_t>(offset) + 4, alignment == 0 ? 1 : alignment);
    return w.verdict();
  };
  std::int64_t const value_at = 24 + 8 + 17 + 4, offset_at = value_at + 4 + 8 + 1 + 4 + 8 + 4;
  CHECK(file(value_type::u32, 8, 8));
  CHECK(file(value_type::u32, 4096, 4096));
  CHECK(file(value_type::u32, 1, 3));
  CHECK(file(value_type::u32, 16, 8) == status{errc::misaligned, offset_at});
  CHECK(file(value_type::u32, 0, 0) == status{errc::bad_format, value_at});
  CHECK(file(value_type::u32, 24, 0) == status{errc::bad_format, value_at});
  CHECK(file(value_type::i32, 32, 0) == status{errc::bad_format, value_at - 4});
  writer far(1, 1);
  far.key("general.alignment", value_type::u32);
  far.put(std::uint32_t{1} << 31);
  far.tensor("t", {4}, gguf::type::i8, 0);
  CHECK(far.verdict() == status{errc::truncated, offset_at});
}

TEST_CASE("gguf: extents, types and offsets of tensors", "[interop][gguf][edge]") {
  using gguf::type;
  CHECK(one({}, type::f32, 0, 4));
  CHECK(one({4}, type::i8, 0, 4));
  CHECK(one({64, 2, 3, 1}, type::q8_0, 0, 12 * 34));
  CHECK(one({64, 2, 3, 1, 1}, type::q8_0, 0, 12 * 34) == status{errc::unsupported, axes_at});
  CHECK(one({4, 0}, type::f32, 0, 0));
  CHECK(one({0, std::uint64_t{1} << 62}, type::f32, 0, 0));
  CHECK(one({48}, type::q8_0, 0, 51) == status{errc::shape_mismatch, 24});
  CHECK(one({}, type::q4_0, 0, 18) == status{errc::shape_mismatch, 24});
  for (std::uint32_t t : {4u, 5u, 31u, 36u, 42u, ~0u})
    CHECK(one({256}, static_cast<type>(t), 0, 4096) == status{errc::unsupported, extents_at + 8});
  CHECK(one({std::uint64_t{1} << 63}, type::i8, 0, 4) == status{errc::out_of_range, extents_at});
  CHECK(one({std::uint64_t{1} << 32, std::uint64_t{1} << 31}, type::i8, 0, 4) == status{errc::out_of_range, extents_at + 8});
  CHECK(one({std::uint64_t{1} << 61}, type::f32, 0, 4) == status{errc::out_of_range, 24});
  CHECK(one({std::uint64_t{1} << 60}, type::f32, 0, 4) == status{errc::truncated, extents_at + 12});
  CHECK(one({4}, type::i8, 32, 36));
  CHECK(one({4}, type::i8, 32, 35) == status{errc::truncated, extents_at + 12});
  CHECK(one({4}, type::i8, 64, 36) == status{errc::truncated, extents_at + 12});
  CHECK(one({4}, type::i8, ~std::uint64_t{31}, 36) == status{errc::truncated, extents_at + 12});
  CHECK(one({4}, type::i8, 31, 36) == status{errc::misaligned, extents_at + 12});
}

TEST_CASE("gguf: tensors do not overlap and no name comes twice; order and gaps are free", "[interop][gguf][edge]") {
  auto const pair = [](std::string const& a, std::uint64_t at_a, std::string const& b, std::uint64_t at_b) {
    writer w(2, 0);
    w.tensor(a, {40}, gguf::type::i8, at_a);
    w.tensor(b, {40}, gguf::type::i8, at_b);
    w.data(256);
    return w.verdict();
  };
  std::int64_t const second = 24 + 8 + 1 + 4 + 8 + 4 + 8, second_offset = second + 8 + 1 + 4 + 8 + 4;
  CHECK(pair("a", 0, "b", 64));
  CHECK(pair("a", 64, "b", 0));
  CHECK(pair("a", 192, "b", 32));
  CHECK(pair("a", 0, "b", 32) == status{errc::bad_format, second_offset});
  CHECK(pair("a", 32, "b", 32) == status{errc::bad_format, second_offset});
  CHECK(pair("a", 32, "b", 0) == status{errc::bad_format, second - 8});
  CHECK(pair("a", 0, "a", 64) == status{errc::bad_format, second});
}

TEST_CASE("gguf: files with any byte changed, and random ones, are read or refused; what is read lies inside", "[interop][gguf][fuzz]") {
  std::vector<std::byte> const seed = golden();
  pith_test::random_bits random(5);
  int accepted = 0, refused = 0;
  auto const check = [&](std::vector<std::byte> const& bytes) {
    auto const made = gguf::read(bytes);
    if (!made) {
      ++refused;
      bool const inside = made.error().at >= 0 && made.error().at <= static_cast<std::int64_t>(bytes.size());
      if (!inside) FAIL("position " << made.error().at << " of " << bytes.size());
      return;
    }
    ++accepted;
    auto const inside = [&](auto const& part) {
      auto const* const first = reinterpret_cast<std::byte const*>(part.data());
      if (!part.empty() && (first < bytes.data() || first + part.size() > bytes.data() + bytes.size())) FAIL("outside");
    };
    for (auto const& t : made.value().tensors) inside(t.name), inside(t.bytes);
    for (auto const& [key, v] : made.value().metadata) {
      inside(key), inside(v.bytes);
      std::int64_t elements = 0;
      v.for_each([&](gguf::value e) { inside(e.bytes), ++elements; });
      if (elements != v.length()) FAIL("elements");
    }
  };
  auto const header = static_cast<std::size_t>(gguf::read(seed).value().find("q6_k.weight")->bytes.data() - seed.data());
  for (std::size_t at = 0; at < header; ++at)
    for (int flip : {0x01, 0x80, 0xff}) {
      std::vector<std::byte> bytes = seed;
      bytes[at] ^= static_cast<std::byte>(flip);
      check(bytes);
    }
  for (int round = 0; round < 3000; ++round) {
    std::vector<std::byte> bytes = seed;
    for (auto edits = 1 + random() % 3; edits > 0; --edits) {
      std::size_t const at = random() % header;
      switch (random() % 3) {
        case 0: bytes[at] = static_cast<std::byte>(random()); break;
        case 1: bytes.erase(bytes.begin() + static_cast<std::ptrdiff_t>(at)); break;
        case 2: bytes.insert(bytes.begin() + static_cast<std::ptrdiff_t>(at), static_cast<std::byte>(random() % 16)); break;
      }
    }
    check(bytes);
    bytes.resize(24 + random() % 400);
    for (std::size_t i = 24; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(random() % 8 ? random() % 4 : random());
    for (std::size_t i = 8; i < 24; ++i) bytes[i] = static_cast<std::byte>(i % 8 ? 0 : random() % 4);
    check(bytes);
  }
  CHECK(accepted > 0);
  CHECK(refused > 0);
}
