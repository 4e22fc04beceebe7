// SPDX-License-Identifier: Apache-2.0
#include "pith/interop/gguf_weights.hpp"

#include <cstring>
#include <fstream>
#include <iterator>
#include <string>

#include "linear/linear_oracle.hpp"
#include "support/catch.hpp"

namespace gguf = pith::gguf;
using gguf::type;
using pith::errc, pith::status;

namespace {

std::vector<std::byte> golden(std::string const& name) {
  std::ifstream in(PITH_SOURCE_DIR "/tests/golden/" + name, std::ios::binary);
  REQUIRE(in);
  std::string const text((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
  std::vector<std::byte> out(text.size());
  std::memcpy(out.data(), text.data(), text.size());
  return out;
}

struct aligned_bytes {
  pith::heap_arena memory;
  std::span<std::byte> bytes;
  explicit aligned_bytes(std::int64_t count)
      : memory(pith::heap_arena::make(count).value()), bytes(memory.data(), static_cast<std::size_t>(count)) {
    std::fill(bytes.begin(), bytes.end(), std::byte{0xcd});
  }
};

// A tensor of random blocks; the f16 of each lie at `f16_at` and are between 2^-5 and 2 in size.
struct random_tensor {
  std::vector<std::byte> bytes;
  gguf::tensor tensor;

  random_tensor(type t, std::int64_t rows, std::int64_t columns, std::vector<std::size_t> const& f16_at, std::uint64_t seed) {
    pith_test::random_bits random(seed);
    auto const shape = gguf::shape_of(t);
    auto const block = static_cast<std::size_t>(shape.bytes);
    bytes.resize(static_cast<std::size_t>(rows * columns / shape.elements) * block);
    for (auto& b : bytes) b = static_cast<std::byte>(random());
    for (std::size_t first = 0; first < bytes.size(); first += block)
      for (std::size_t at : f16_at)
        pith::store_le(&bytes[first + at], static_cast<std::uint16_t>((random() & 0x83ff) | (10 + random() % 6) << 10));
    tensor = {"t", t, {rows, columns}, bytes};
  }
};

// The packed matrix decodes to the very bits that `decode` gives; behind the last row are zeros.
template <type Type, pith::use Use>
void check_same_numbers(gguf::tensor const& t, std::span<float const> expected) {
  using matrix = gguf::matrix_of<Type, Use>;
  aligned_bytes memory(matrix::bound_bytes(t.rows(), t.columns()));
  auto const made = gguf::pack_into<Type, Use>(t, memory.bytes, pith_test::two_threads{});
  REQUIRE(made);
  std::vector<float> back(expected.size());
  REQUIRE(made.value().unpack(pith::matrix_view<float>(back.data(), {t.rows(), t.columns()})));
  CHECK(std::memcmp(back.data(), expected.data(), back.size() * sizeof(float)) == 0);

  using tile = typename matrix::tile;
  std::vector<float> last(static_cast<std::size_t>(tile::tokens * tile::channels));
  tile::decode(memory.bytes.data() + memory.bytes.size() - tile::bytes, last.data());
  for (std::int64_t i = t.rows() % tile::tokens * tile::channels; i < std::ssize(last); ++i)
    if (last[static_cast<std::size_t>(i)] != 0.0f) FAIL("behind the last row");
}

template <type Type>
void check_golden(gguf::file const& file, std::string const& name, std::vector<std::byte> const& values, std::size_t& at) {
  INFO(name);
  gguf::tensor const* const t = file.find(name + ".weight");
  REQUIRE(t != nullptr);
  REQUIRE(t->type == Type);
  std::vector<float> expected(static_cast<std::size_t>(t->elements())), decoded(expected.size());
  REQUIRE(values.size() >= at + expected.size() * sizeof(float));
  for (float& x : expected) x = pith::load_scalar<float>(values.data() + at), at += sizeof(float);
  REQUIRE(gguf::decode(*t, decoded));
  CHECK(std::memcmp(decoded.data(), expected.data(), decoded.size() * sizeof(float)) == 0);
  check_same_numbers<Type, pith::use::dot>(*t, expected);
}

template <type Type, class Accuracy>
void check_product(std::vector<std::size_t> const& f16_at) {
  using matrix = gguf::matrix_of<Type>;
  std::int64_t const rows = 40, columns = 512, batch = 2;
  random_tensor const from(Type, rows, columns, f16_at, 3);
  aligned_bytes memory(matrix::bound_bytes(rows, columns));
  auto const w = gguf::pack_into<Type>(from.tensor, memory.bytes);
  REQUIRE(w);
  auto const x = pith_test::gaussians(batch * columns, 4);
  std::vector<float> out(static_cast<std::size_t>(batch * rows));
  std::vector<std::byte> scratch(static_cast<std::size_t>(w.value().template scratch_bytes<Accuracy>(batch)));
  REQUIRE(w.value().template multiply<Accuracy>(pith::matrix_view<float const>(x.data(), {batch, columns}),
                                                pith::matrix_view<float>(out.data(), {batch, rows}), scratch));
  pith_test::stored_matrix<typename matrix::tile> const stored(w.value());
  for (std::int64_t i = 0; i < batch; ++i) {
    std::vector<double> expected, bound;
    pith_test::expect_product<typename matrix::tile, Accuracy>(stored, {x.begin() + i * columns, x.begin() + (i + 1) * columns}, expected,
                                                               bound);
    for (std::int64_t r = 0; r < rows; ++r) {
      auto const at = static_cast<std::size_t>(r);
      double const error = std::fabs(static_cast<double>(out[static_cast<std::size_t>(i * rows + r)]) - expected[at]);
      if (!(error <= bound[at])) FAIL("row " << r << ": off by " << error << ", bound " << bound[at]);
    }
  }
}

}  // namespace

TEST_CASE("gguf weights: every type decodes, and fills a packed matrix, to the bits of another implementation", "[interop][gguf][golden]") {
  std::vector<std::byte> const bytes = golden("weights.gguf"), values = golden("gguf_values.f32");
  auto const made = gguf::read(bytes);
  REQUIRE(made);
  std::size_t at = 0;
  check_golden<type::q6_k>(made.value(), "q6_k", values, at);
  check_golden<type::f32>(made.value(), "f32", values, at);
  check_golden<type::f16>(made.value(), "f16", values, at);
  check_golden<type::bf16>(made.value(), "bf16", values, at);
  check_golden<type::q8_0>(made.value(), "q8_0", values, at);
  check_golden<type::q4_0>(made.value(), "q4_0", values, at);
  check_golden<type::q4_1>(made.value(), "q4_1", values, at);
  check_golden<type::q5_0>(made.value(), "q5_0", values, at);
  check_golden<type::q5_1>(made.value(), "q5_1", values, at);
  check_golden<type::q4_k>(made.value(), "q4_k", values, at);
  check_golden<type::q5_k>(made.value(), "q5_k", values, at);
  CHECK(at == values.size());
}

TEST_CASE("gguf weights: many rows and panels, and tiles for the transposed product, hold the same numbers", "[interop][gguf]") {
  auto const check = [](auto constant, std::vector<std::size_t> const& f16_at) {
    constexpr type t = decltype(constant)::value;
    random_tensor const from(t, 70, 768, f16_at, 9);
    std::vector<float> expected(70 * 768);
    REQUIRE(gguf::decode(from.tensor, expected));
    check_same_numbers<t, pith::use::dot>(from.tensor, expected);
    check_same_numbers<t, pith::use::mix>(from.tensor, expected);
  };
  check(std::integral_constant<type, type::q4_k>{}, {0, 2});
  check(std::integral_constant<type, type::q8_0>{}, {0});
}

TEST_CASE("gguf weights: products with negative scales and the lowest codes are within the bound of their codec", "[interop][gguf]") {
  check_product<type::q8_0, pith::integer_accuracy>({0});
  check_product<type::q4_k, pith::exact_accuracy>({0, 2});
}

TEST_CASE("gguf weights: what does not fit is refused", "[interop][gguf][edge]") {
  random_tensor const from(type::q4_0, 3, 64, {0}, 1);
  std::vector<float> out(3 * 64);
  CHECK(gguf::decode(from.tensor, out));
  CHECK(gguf::decode(from.tensor, std::span(out).first(191)) == status{errc::shape_mismatch, 192});
  CHECK(gguf::decode(random_tensor(type::q2_k, 1, 256, {}, 1).tensor, std::span(out).first(0)).code == errc::shape_mismatch);
  std::vector<float> more(256);
  CHECK(gguf::decode(random_tensor(type::q2_k, 1, 256, {}, 1).tensor, more) == status{errc::unsupported, 10});
  gguf::tensor cut = from.tensor;
  cut.bytes = cut.bytes.first(cut.bytes.size() - 1);
  CHECK(gguf::decode(cut, out) == status{errc::shape_mismatch, 6 * 18});

  using matrix = gguf::matrix_of<type::q4_0>;
  std::int64_t const wanted = matrix::bound_bytes(3, 64);
  aligned_bytes memory(wanted + 64);
  CHECK(gguf::pack_into<type::q4_0>(from.tensor, memory.bytes));
  CHECK(gguf::pack_into<type::q4_0>(cut, memory.bytes).error() == status{errc::shape_mismatch, 6 * 18});
  CHECK(gguf::pack_into<type::q8_0>(from.tensor, memory.bytes).error() == status{errc::unsupported, 2});
  CHECK(gguf::pack_into<type::q4_0>(from.tensor.part(1, 0), memory.bytes).error() == status{errc::shape_mismatch, 0});
  CHECK(gguf::pack_into<type::q4_0>(from.tensor, memory.bytes.subspan(8)).error() == status{errc::misaligned, 8});
  CHECK(gguf::pack_into<type::q4_0>(from.tensor, memory.bytes.first(static_cast<std::size_t>(wanted) - 1)).error() ==
        status{errc::capacity_exceeded, wanted});
}
