// SPDX-License-Identifier: Apache-2.0
#include "pith/interop/safetensors.hpp"

#include <array>
#include <cstring>
#include <random>
#include <string>

#include "support/catch.hpp"

namespace st = pith::safetensors;
using pith::errc;

namespace {

std::vector<std::byte> make_file(std::string const& header, std::size_t data_bytes) {
  std::vector<std::byte> out(8 + header.size() + data_bytes);
  pith::store_le<std::uint64_t>(out.data(), header.size());
  std::memcpy(out.data() + 8, header.data(), header.size());
  for (std::size_t i = 0; i < data_bytes; ++i) out[8 + header.size() + i] = static_cast<std::byte>(i);
  return out;
}

// What reading says of a header with `data_bytes` of data behind it.
pith::status verdict(std::string const& header, std::size_t data_bytes) { return st::read(make_file(header, data_bytes)).error(); }

std::string const good = R"({"__metadata__": {"kind": "test", "a\"b": "\u00e9"},)"
                         R"("b": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [8, 20]},)"
                         R"("a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},)"
                         R"("empty": {"dtype": "I64", "shape": [4, 0, 9223372036854775807], "data_offsets": [20, 20]},)"
                         R"("one": {"dtype": "U8", "shape": [], "data_offsets": [20, 21]}}   )";

// A header of one F32 tensor "t" with the given text after its dtype.
std::string one(std::string const& rest) { return R"({"t": {"dtype": "F32", )" + rest + "}}"; }

}  // namespace

TEST_CASE("safetensors: tensors, shapes, offsets and metadata of a good file", "[interop][safetensors]") {
  std::vector<std::byte> const bytes = make_file(good, 21);
  auto const made = st::read(bytes);
  REQUIRE(made);
  st::file const& file = made.value();
  REQUIRE(file.tensors.size() == 4);
  REQUIRE(file.find("a") != nullptr);
  CHECK(file.find("a")->type == st::dtype::f32);
  CHECK(file.find("a")->shape == std::vector<std::int64_t>{2});
  CHECK(file.find("b")->shape == std::vector<std::int64_t>{2, 3});
  CHECK(file.find("b")->bytes.data() == bytes.data() + 8 + good.size() + 8);
  CHECK(file.find("b")->elements() == 6);
  CHECK(file.find("empty")->elements() == 0);
  CHECK(file.find("one")->elements() == 1);
  CHECK(file.find("c") == nullptr);
  REQUIRE(file.find_metadata("kind") != nullptr);
  CHECK(*file.find_metadata("kind") == "test");
  CHECK(*file.find_metadata("a\"b") == "\xc3\xa9");
  CHECK(file.find_metadata("b") == nullptr);
}

TEST_CASE("safetensors: a file without tensors is legal", "[interop][safetensors][edge]") {
  CHECK(verdict("{}", 0));
  CHECK(verdict(R"({"__metadata__": {}})", 0));
}

TEST_CASE("safetensors: decode gives the exact values of F32, F16 and BF16 at any alignment", "[interop][safetensors]") {
  std::string const header = R"({"x": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},)"
                             R"("f": {"dtype": "F32", "shape": [1], "data_offsets": [1, 5]},)"
                             R"("h": {"dtype": "F16", "shape": [1], "data_offsets": [5, 7]},)"
                             R"("b": {"dtype": "BF16", "shape": [1], "data_offsets": [7, 9]}})";
  std::vector<std::byte> bytes = make_file(header, 9);
  std::byte* const data = bytes.data() + 8 + header.size();
  pith::store_le<std::uint32_t>(data + 1, pith::float_bits(-1.5f));
  pith::store_le<std::uint16_t>(data + 5, 0x3e00);
  pith::store_le<std::uint16_t>(data + 7, 0x3fc0);
  auto const made = st::read(bytes);
  REQUIRE(made);
  std::array<float, 1> value{};
  REQUIRE(st::decode(*made.value().find("f"), value));
  CHECK(value[0] == -1.5f);
  REQUIRE(st::decode(*made.value().find("h"), value));
  CHECK(value[0] == 1.5f);
  REQUIRE(st::decode(*made.value().find("b"), value));
  CHECK(value[0] == 1.5f);
  CHECK(st::decode(*made.value().find("x"), value).code == errc::unsupported);
  std::array<float, 2> two{};
  CHECK(st::decode(*made.value().find("f"), two).code == errc::shape_mismatch);
}

TEST_CASE("safetensors: a file cut at any byte is refused", "[interop][safetensors][edge]") {
  std::vector<std::byte> const bytes = make_file(good, 21);
  for (std::size_t length = 0; length < bytes.size(); ++length) {
    pith::status const s = st::read(std::span(bytes).first(length)).error();
    INFO(length);
    CHECK(s.code == errc::truncated);
    CHECK(s.at >= 0);
    CHECK(s.at <= static_cast<std::int64_t>(bytes.size()));
  }
}

TEST_CASE("safetensors: a header length past the file or past 100 MB is refused", "[interop][safetensors][edge]") {
  std::vector<std::byte> bytes = make_file(good, 21);
  for (std::uint64_t const lie : {std::uint64_t{bytes.size() - 7}, std::uint64_t{99'999'999}}) {
    pith::store_le<std::uint64_t>(bytes.data(), lie);
    CHECK(st::read(bytes).error().code == errc::truncated);
  }
  for (std::uint64_t const lie : {std::uint64_t{100'000'001}, std::uint64_t{1} << 63, ~std::uint64_t{0}}) {
    pith::store_le<std::uint64_t>(bytes.data(), lie);
    CHECK(st::read(bytes).error() == pith::status{errc::unsupported, 0});
  }
  pith::store_le<std::uint64_t>(bytes.data(), 0);
  CHECK(st::read(bytes).error() == pith::status{errc::bad_format, 8});
}

TEST_CASE("safetensors: what is not a JSON object of the stated form is refused, with the byte where it goes wrong",
          "[interop][safetensors][edge]") {
  for (std::string const header :
       {"[]", "null", "7", "{", "{}}", "{\"a\"}", "{\"a\": 1}", "{\"a\": null}", "{\"a\": []}", "{\"a\": {}}", "{\"a\": \"F32\"}", "{\"a\": {\"b\": {}}}",
        " {}", "\xef\xbb\xbf{}", "{\"\xff\": {}}", "{\"__metadata__\": 3}", "{\"__metadata__\": {\"k\": 3}}", "{\"__metadata__\": {\"k\": {}}}",
        "{\"__metadata__\": {\"k\": [\"v\"]}}", "{\"__metadata__\": {\"k\": null}}"}) {
    pith::status const s = verdict(header, 0);
    INFO(header);
    CHECK(s.code == errc::bad_format);
    CHECK(s.at >= 8);
    CHECK(s.at <= static_cast<std::int64_t>(8 + header.size()));
  }
  CHECK(verdict(R"({"a": 1})", 0).at == 8 + 8);  // the parser has read one byte past the number
}

TEST_CASE("safetensors: a tensor entry lacks nothing, repeats nothing and adds nothing", "[interop][safetensors][edge]") {
  CHECK(verdict(one(R"("shape": [1], "data_offsets": [0, 4])"), 4));
  CHECK(verdict(one(R"("shape": [1])"), 4).code == errc::bad_format);
  CHECK(verdict(one(R"("data_offsets": [0, 4])"), 4).code == errc::bad_format);
  CHECK(verdict(R"({"t": {"shape": [1], "data_offsets": [0, 4]}})", 4).code == errc::bad_format);
  CHECK(verdict(one(R"("dtype": "F32", "shape": [1], "data_offsets": [0, 4])"), 4).code == errc::bad_format);
  CHECK(verdict(one(R"("shape": [1], "shape": [1], "data_offsets": [0, 4])"), 4).code == errc::bad_format);
  CHECK(verdict(one(R"("shape": [1], "data_offsets": [0, 4], "extra": 1)"), 4).code == errc::bad_format);
  CHECK(verdict(one(R"("shape": [1], "data_offsets": [0])"), 4).code == errc::bad_format);
  CHECK(verdict(one(R"("shape": [1], "data_offsets": [0, 4, 4])"), 4).code == errc::bad_format);
  CHECK(verdict(one(R"("shape": 1, "data_offsets": [0, 4])"), 4).code == errc::bad_format);
  CHECK(verdict(one(R"("shape": [[1]], "data_offsets": [0, 4])"), 4).code == errc::bad_format);
  CHECK(verdict(one(R"("shape": ["1"], "data_offsets": [0, 4])"), 4).code == errc::bad_format);
  CHECK(verdict(R"({"t": {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]}})", 4).code == errc::bad_format);
}

TEST_CASE("safetensors: shape times dtype is the stated number of bytes", "[interop][safetensors][edge]") {
  CHECK(verdict(one(R"("shape": [2], "data_offsets": [0, 4])"), 4).code == errc::shape_mismatch);
  CHECK(verdict(one(R"("shape": [], "data_offsets": [0, 0])"), 0).code == errc::shape_mismatch);
  CHECK(verdict(one(R"("shape": [0], "data_offsets": [0, 4])"), 4).code == errc::shape_mismatch);
  CHECK(verdict(R"({"t": {"dtype": "F64", "shape": [1], "data_offsets": [0, 4]}})", 4).code == errc::shape_mismatch);
  CHECK(verdict(R"({"t": {"dtype": "Q4", "shape": [1], "data_offsets": [0, 4]}})", 4).code == errc::unsupported);
  CHECK(verdict(one(R"("shape": [1,1,1,1,1,1,1,1], "data_offsets": [0, 4])"), 4));
  CHECK(verdict(one(R"("shape": [1,1,1,1,1,1,1,1,1], "data_offsets": [0, 4])"), 4).code == errc::unsupported);
}

TEST_CASE("safetensors: products that overflow, negative and fractional numbers are refused", "[interop][safetensors][edge]") {
  CHECK(verdict(one(R"("shape": [4294967296, 4294967297], "data_offsets": [0, 4])"), 4).code == errc::out_of_range);
  CHECK(verdict(one(R"("shape": [4611686018427387904], "data_offsets": [0, 4])"), 4).code == errc::out_of_range);
  CHECK(verdict(one(R"("shape": [9223372036854775808], "data_offsets": [0, 4])"), 4).code == errc::out_of_range);
  CHECK(verdict(one(R"("shape": [18446744073709551617], "data_offsets": [0, 4])"), 4).code == errc::out_of_range);
  CHECK(verdict(one(R"("shape": [-1], "data_offsets": [0, 4])"), 4).code == errc::out_of_range);
  CHECK(verdict(one(R"("shape": [1.0], "data_offsets": [0, 4])"), 4).code == errc::out_of_range);
  CHECK(verdict(one(R"("shape": [1e999], "data_offsets": [0, 4])"), 4).code == errc::bad_format);
  CHECK(verdict(one(R"("shape": [1], "data_offsets": [-4, 0])"), 4).code == errc::out_of_range);
  CHECK(verdict(one(R"("shape": [1], "data_offsets": [4, 0])"), 4).code == errc::out_of_range);
  CHECK(verdict(one(R"("shape": [1], "data_offsets": [0, 18446744073709551615])"), 4).code == errc::out_of_range);
  CHECK(verdict(one(R"("shape": [1], "data_offsets": [9223372036854775803, 9223372036854775807])"), 4).code == errc::truncated);
  CHECK(verdict(one(R"("shape": [1], "data_offsets": [4, 8])"), 4).code == errc::truncated);
}

TEST_CASE("safetensors: tensors neither overlap nor leave holes", "[interop][safetensors][edge]") {
  auto const pair = [](std::string const& a, std::string const& b) {
    return R"({"a": {"dtype": "U8", "shape": [4], "data_offsets": )" + a + R"(}, "b": {"dtype": "U8", "shape": [4], "data_offsets": )" + b + "}}";
  };
  CHECK(verdict(pair("[0, 4]", "[4, 8]"), 8));
  CHECK(verdict(pair("[4, 8]", "[0, 4]"), 8));
  CHECK(verdict(pair("[0, 4]", "[0, 4]"), 8).code == errc::bad_format);
  CHECK(verdict(pair("[0, 4]", "[3, 7]"), 8).code == errc::bad_format);
  CHECK(verdict(pair("[0, 4]", "[5, 9]"), 9).code == errc::bad_format);
  CHECK(verdict(pair("[1, 5]", "[5, 9]"), 9).code == errc::bad_format);
  std::string const whole = pair("[0, 4]", "[4, 8]");
  CHECK(verdict(whole, 9) == pith::status{errc::bad_format, static_cast<std::int64_t>(8 + whole.size() + 8)});
}

TEST_CASE("safetensors: a name or metadata key given twice is refused", "[interop][safetensors][edge]") {
  std::string const entry = R"({"dtype": "U8", "shape": [0], "data_offsets": [0, 0]})";
  CHECK(verdict("{\"a\": " + entry + ", \"b\": " + entry + "}", 0));
  CHECK(verdict("{\"a\": " + entry + ", \"\\u0061\": " + entry + "}", 0).code == errc::bad_format);
  CHECK(verdict(R"({"__metadata__": {}, "__metadata__": {}})", 0).code == errc::bad_format);
  CHECK(verdict(R"({"__metadata__": {"k": "1", "k": "2"}})", 0).code == errc::bad_format);
}

TEST_CASE("safetensors: a million brackets end at the third", "[interop][safetensors][edge]") {
  std::string header = R"({"a": {"shape": )";
  std::int64_t const opened = static_cast<std::int64_t>(8 + header.size());
  header += std::string(1'000'000, '[');
  pith::status const s = verdict(header, 0);
  CHECK(s.code == errc::bad_format);
  CHECK(s.at <= opened + 3);
  std::string objects = "{";
  for (int i = 0; i < 100'000; ++i) objects += "\"a\":{";
  CHECK(verdict(objects, 0).code == errc::bad_format);
}

TEST_CASE("safetensors: 20000 mutated files are read or refused, and what is read lies inside the file", "[interop][safetensors][fuzz]") {
  std::mt19937 random(7);
  std::vector<std::byte> const seed = make_file(good, 21);
  std::string const tokens = "{}[]\":,-.eE0123456789 \\\xff";
  int accepted = 0;
  for (int round = 0; round < 20'000; ++round) {
    std::vector<std::byte> bytes = seed;
    for (auto edits = 1 + random() % 3; edits > 0; --edits) {
      std::size_t const at = random() % bytes.size();
      switch (random() % 5) {
        case 0: bytes[at] = static_cast<std::byte>(random()); break;
        case 1: bytes[at] = static_cast<std::byte>(tokens[random() % tokens.size()]); break;
        case 2: bytes.erase(bytes.begin() + static_cast<std::ptrdiff_t>(at)); break;
        case 3: bytes.insert(bytes.begin() + static_cast<std::ptrdiff_t>(at), static_cast<std::byte>(tokens[random() % tokens.size()])); break;
        case 4: bytes.resize(at + 1); break;
      }
    }
    if (random() % 2 && bytes.size() >= 8)  // a right length lets more of the header be reached
      pith::store_le<std::uint64_t>(bytes.data(), std::min<std::size_t>(good.size(), bytes.size() - 8));
    // A copy of the exact size, so that a sanitizer sees any read past it.
    std::vector<std::byte> const exact(bytes.begin(), bytes.end());
    auto const made = st::read(exact);
    if (!made) {
      bool const inside = made.error().at >= 0 && made.error().at <= static_cast<std::int64_t>(exact.size());
      if (!inside) FAIL("position " << made.error().at << " of " << exact.size());
      continue;
    }
    ++accepted;
    for (st::tensor const& t : made.value().tensors)
      if (!t.bytes.empty() && (t.bytes.data() < exact.data() || t.bytes.data() + t.bytes.size() > exact.data() + exact.size())) FAIL(t.name);
  }
  CHECK(accepted > 0);
  CHECK(accepted < 20'000);
}
