// SPDX-License-Identifier: Apache-2.0
#include "pith/interop/dfloat11.hpp"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <memory>
#include <string>

#include "support/catch.hpp"
#include "support/digest.hpp"

namespace df = pith::dfloat11;
using pith::bf16, pith::errc, pith::status;
using pith_test::random_bits;

namespace {

std::vector<std::byte> read_file(std::string const& name) {
  std::ifstream in(PITH_SOURCE_DIR "/" + name, std::ios::binary);
  REQUIRE(in);
  std::string const text((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
  std::vector<std::byte> out(text.size());
  std::memcpy(out.data(), text.data(), text.size());
  return out;
}

// A tensor's bytes, found by its name in the text of a safetensors header: the JSON parser would take longer to compile than all else here.
std::span<std::byte const> tensor(std::vector<std::byte> const& file, std::string const& name) {
  std::size_t const length = pith::load_le<std::uint64_t>(file.data());
  std::string const header(reinterpret_cast<char const*>(file.data()) + 8, length);
  std::size_t const entry = header.find('"' + name + '"'), offsets = header.find("data_offsets", entry);
  REQUIRE(offsets != std::string::npos);
  char* end = nullptr;
  std::size_t const first = std::strtoull(header.c_str() + header.find('[', offsets) + 1, &end, 10);
  std::size_t const last = std::strtoull(end + 1, nullptr, 10);
  return std::span(file).subspan(8 + length + first, last - first);
}

// Exponents about 120, geometric to both sides; any sign and mantissa.
std::vector<bf16> weights(std::size_t count, std::uint64_t seed) {
  random_bits random(seed);
  std::vector<bf16> out(count);
  for (auto& x : out) {
    int e = 120;
    for (std::uint64_t r = random(); r % 2 && e > 0; r >>= 1) --e;
    e += random() % 16 == 0;
    x = bf16{static_cast<std::uint16_t>((random() & 0x807fu) | static_cast<std::uint64_t>(e) << 7)};
  }
  return out;
}

// Decodes from copies of exactly the buffers' sizes, so that the sanitizers see every slip.
status decode(df::view const& from, std::vector<bf16>& out) {
  std::vector<std::unique_ptr<std::byte[]>> kept;
  auto copy = [&](std::span<std::byte const> bytes) {
    kept.push_back(std::make_unique<std::byte[]>(bytes.size()));
    if (!bytes.empty()) std::memcpy(kept.back().get(), bytes.data(), bytes.size());
    return std::span<std::byte const>(kept.back().get(), bytes.size());
  };
  df::view const exact{copy(from.luts), copy(from.encoded_exponent), copy(from.sign_mantissa),
                       copy(from.gaps), copy(from.output_positions), copy(from.split_positions)};
  out.assign(from.sign_mantissa.size(), bf16{0});
  return df::decode(exact, out);
}

void check_round_trip(std::vector<bf16> const& numbers) {
  auto const made = df::encode(numbers);
  REQUIRE(made);
  std::vector<bf16> back;
  CHECK(decode(made.value(), back) == status{});
  CHECK((back == numbers));
}

status verdict(df::buffers const& b) {
  std::vector<bf16> out;
  return decode(b, out);
}

}  // namespace

TEST_CASE("dfloat11: a file of the published algorithm gives the weights that it was made from", "[interop][dfloat11][golden]") {
  auto const bytes = read_file("tests/golden/dfloat11.safetensors"), model = read_file("examples/model/pith-kjv.safetensors");
  df::view const view{tensor(bytes, "luts"), tensor(bytes, "encoded_exponent"), tensor(bytes, "sign_mantissa"),
                      tensor(bytes, "gaps"), tensor(bytes, "output_positions"), tensor(bytes, "split_positions")};
  std::vector<bf16> numbers, expected;
  REQUIRE(decode(view, numbers) == status{});
  auto const split = pith::load_le<std::int64_t>(view.split_positions.data());
  REQUIRE(split == 9000);
  auto add = [&](char const* name, std::int64_t count) {
    auto const from = tensor(model, name);
    for (std::int64_t i = 0; i < count; ++i) expected.push_back(bf16{pith::load_le<std::uint16_t>(from.data() + 2 * i)});
  };
  add("model.layers.0.self_attn.q_proj.weight", split);
  add("model.layers.1.mlp.up_proj.weight", view.numbers() - split);
  CHECK((numbers == expected));

  // The same weights written here: within a thousandth of the bytes, and they come back.
  std::int64_t const splits[] = {split};
  auto const made = df::encode(expected, splits);
  REQUIRE(made);
  CHECK(made.value().encoded_exponent.size() * 1000 <= view.encoded_exponent.size() * 1001);
  CHECK(made.value().gaps.size() == view.gaps.size());
  CHECK(made.value().output_positions.size() == view.output_positions.size());
  CHECK(std::ranges::equal(made.value().split_positions, view.split_positions));
  CHECK(std::ranges::equal(made.value().sign_mantissa, view.sign_mantissa));
  REQUIRE(decode(made.value(), numbers) == status{});
  CHECK((numbers == expected));
}

TEST_CASE("dfloat11: every bf16 whose exponent is below 240 comes back", "[interop][dfloat11]") {
  std::vector<bf16> all;
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits)
    if ((bits >> 7 & 255) < 240) all.push_back(bf16{static_cast<std::uint16_t>(bits)});
  REQUIRE(all.size() == 2 * 240 * 128);
  check_round_trip(all);
}

TEST_CASE("dfloat11: weights of any number, over ends of chunks and blocks", "[interop][dfloat11][edge]") {
  for (std::size_t const count : {0, 1, 2, 7, 31, 64, 1000, 40000}) check_round_trip(weights(count, count + 1));
  for (std::size_t count = 16300; count < 16440; ++count) {
    INFO(count);
    std::vector<bf16> const numbers(count, bf16{0x3f80});  // one exponent, 1 bit each
    check_round_trip(numbers);
  }
  std::vector<bf16> mixed(32768 * 2, bf16{0x3f80});
  for (std::size_t i = 0; i < mixed.size(); i += 5) mixed[i] = bf16{static_cast<std::uint16_t>(i % 10 ? 0x4000 : 0xbf01)};
  check_round_trip(mixed);
}

TEST_CASE("dfloat11: a last code that ends on a byte of a block of its own: with a position for that block or without",
          "[interop][dfloat11][edge]") {
  std::vector<bf16> numbers;
  for (std::size_t k = 0; k < 9; ++k) numbers.insert(numbers.end(), std::size_t{1} << k, bf16{static_cast<std::uint16_t>((100 + k) << 7)});
  std::size_t rest = 10;  // of the codes of 10 to 2 bits that these have, and of another of 10
  for (std::size_t k = 0; k < 9; ++k) rest += (10 - k) << k;
  numbers.insert(numbers.end(), 32768 + 8 - rest, bf16{0x3f80});
  numbers.push_back(bf16{99 << 7});
  df::buffers made = df::encode(numbers).value();
  REQUIRE(made.encoded_exponent.size() == 4097);
  REQUIRE(made.output_positions.size() == 12);
  std::vector<bf16> back;
  CHECK(decode(made, back) == status{});
  made.output_positions.resize(8);
  CHECK(decode(made, back) == status{});
  CHECK((back == numbers));
  made.output_positions[4] ^= std::byte{1};
  CHECK(decode(made, back).code == errc::bad_format);
}

TEST_CASE("dfloat11: codes that ask for more than 17 tables become shorter", "[interop][dfloat11][edge]") {
  // One exponent and 239 rare ones: as free codes of 9 bits and more they would need about 120 tables.
  std::vector<bf16> numbers(200000, bf16{0x3f80});
  for (std::size_t i = 0; i < 239 * 40; ++i) numbers[i * 20] = bf16{static_cast<std::uint16_t>(i % 239 << 7)};
  auto const made = df::encode(numbers);
  REQUIRE(made);
  CHECK(made.value().luts.size() <= 18 * 256);
  check_round_trip(numbers);
  // Counts that double: codes of 16 bits, in several tables.
  std::vector<bf16> steep;
  for (std::size_t e = 0; e < 18; ++e) steep.insert(steep.end(), std::size_t{1} << e, bf16{static_cast<std::uint16_t>((100 + e) << 7)});
  check_round_trip(steep);
  CHECK(df::encode(steep).value().luts.size() > 2 * 256);
}

TEST_CASE("dfloat11: what the format cannot say is refused", "[interop][dfloat11]") {
  auto numbers = weights(100, 3);
  for (std::uint32_t const bits : {0x7800u, 0x7f80u, 0xff80u, 0x7fc0u, 0xffffu}) {
    numbers[57] = bf16{static_cast<std::uint16_t>(bits)};
    CHECK(df::encode(numbers).error() == status{errc::unsupported, 57});
  }
  numbers[57] = bf16{0x77ff};
  CHECK(df::encode(numbers));
  std::int64_t const good[] = {0, 50, 50, 100}, falling[] = {50, 49}, outside[] = {101}, negative[] = {-1};
  CHECK(df::encode(numbers, good));
  CHECK(df::encode(numbers, falling).error() == status{errc::bad_format, 1});
  CHECK(df::encode(numbers, outside).error() == status{errc::bad_format, 0});
  CHECK(df::encode(numbers, negative).error() == status{errc::bad_format, 0});
}

TEST_CASE("dfloat11: buffers that disagree have a code and a position", "[interop][dfloat11]") {
  std::int64_t const splits[] = {1000};
  auto const numbers = weights(30000, 5);
  df::buffers const good = df::encode(numbers, splits).value();
  REQUIRE(verdict(good) == status{});
  REQUIRE(good.output_positions.size() == 12);
  auto changed = [&](auto change) {
    df::buffers b = good;
    change(b);
    return verdict(b);
  };
  std::int64_t const codes = static_cast<std::int64_t>(good.encoded_exponent.size()),
                     tables = static_cast<std::int64_t>(good.luts.size()) / 256 - 1;
  CHECK(changed([](auto& b) { b.luts.clear(); }) == status{errc::shape_mismatch, 512});
  CHECK(changed([](auto& b) { b.luts.resize(256 * 19); }) == status{errc::shape_mismatch, 256 * 19});
  CHECK(changed([](auto& b) { b.gaps.pop_back(); }) == status{errc::shape_mismatch, 640});
  CHECK(changed([](auto& b) { b.output_positions.push_back({}); }) == status{errc::shape_mismatch, 12});
  CHECK(changed([](auto& b) { b.split_positions.pop_back(); }) == status{errc::shape_mismatch, 8});
  CHECK(changed([](auto& b) { b.encoded_exponent.push_back({}); }) == status{errc::shape_mismatch, codes});
  CHECK(changed([](auto& b) { b.encoded_exponent.pop_back(); }).code == errc::truncated);
  CHECK(changed([](auto& b) { b.encoded_exponent.clear(), b.gaps.clear(), b.output_positions.resize(4); }) == status{errc::truncated, 0});
  CHECK(changed([](auto& b) { b.sign_mantissa.pop_back(); }).code == errc::bad_format);  // the last position says one more
  CHECK(changed([](auto& b) { b.gaps[0] = std::byte{0x80}; }) == status{errc::bad_format, 0});
  std::uint32_t const second = pith::load_le<std::uint32_t>(good.output_positions.data() + 4);
  CHECK(changed([](auto& b) { b.output_positions[4] ^= std::byte{1}; }) == status{errc::bad_format, second});
  CHECK(changed([](auto& b) { b.output_positions[8] ^= std::byte{1}; }) == status{errc::bad_format, 30000});
  CHECK(changed([](auto& b) { b.output_positions.resize(8); }).code == errc::bad_format);
  CHECK(changed([](auto& b) { b.split_positions[7] = std::byte{0x80}; }).code == errc::bad_format);
  std::size_t const length_of_120 = static_cast<std::size_t>(256 * tables + 120);
  for (int const length : {0, 9, 255})
    CHECK(changed([&](auto& b) { b.luts[length_of_120] = static_cast<std::byte>(length); }) ==
          status{errc::out_of_range, static_cast<std::int64_t>(length_of_120)});
  std::size_t const first = static_cast<std::size_t>(good.encoded_exponent[0]);
  CHECK(changed([&](auto& b) { b.luts[first] = static_cast<std::byte>(256 - tables); }) ==
        status{errc::out_of_range, static_cast<std::int64_t>(first)});
  std::vector<bf16> out(29999);
  CHECK(df::decode(good, out) == status{errc::shape_mismatch, 30000});
}

TEST_CASE("dfloat11: any bytes are safe", "[interop][dfloat11][hostile]") {
  random_bits random(7);
  df::buffers const good = df::encode(weights(13000, 9)).value();
  std::vector<bf16> out;
  for (int round = 0; round < 300; ++round) {
    df::buffers b = good;
    std::vector<std::byte>* const parts[] = {&b.luts, &b.encoded_exponent, &b.gaps, &b.output_positions};
    for (std::uint64_t changes = 1 + random() % 4; changes-- > 0;) {
      auto& part = *parts[random() % 4];
      if (part.empty()) continue;
      if (random() % 8 == 0) part.resize(random() % (part.size() + 300));
      if (!part.empty()) part[random() % part.size()] = static_cast<std::byte>(random());
    }
    if (round % 4 == 0)
      for (auto& x : b.luts) x = static_cast<std::byte>(random() % 4 ? 240 + random() % 16 : random());  // tables that lead in circles
    (void)decode(b, out);
  }
}
