// SPDX-License-Identifier: Apache-2.0
// Matrices of lossless weights: bit for bit in and out, the products of raw weights, their bytes wherever they lie, and bytes that nobody wrote.
#include "linear/linear_oracle.hpp"
#include "pith/codec/exponent_planes.hpp"
#include "pith/codec/huffman.hpp"

namespace {

using namespace pith_test;
using pith::bf16, pith::errc, pith::matrix_view;
using lossless = pith::packed_matrix<pith::dynamic_float<bf16>>;
using plain = pith::packed_matrix<pith::raw<bf16>>;

std::vector<bf16> weights(std::int64_t count, std::uint64_t seed) {
  std::vector<bf16> w;
  for (float const x : gaussians(count, seed)) w.push_back(pith::from_float<bf16>(0.02f * x));
  return w;
}

template <class Matrix>
void check_round_trip(std::int64_t rows, std::int64_t columns) {
  auto w = weights(rows * columns, 3);
  w[0].bits = 0x7f81;  // a NaN that signals
  w[w.size() / 2].bits = 0x8000;
  auto const m = Matrix::pack(matrix_view<bf16 const>(w.data(), {rows, columns})).value();
  CHECK(static_cast<std::int64_t>(m.bytes().size()) <= Matrix::bound_bytes(rows, columns));
  std::vector<bf16> back(w.size(), bf16{0xdead});
  REQUIRE(m.unpack(matrix_view<bf16>(back.data(), {rows, columns})));
  CHECK(back == w);
  auto const threads = Matrix::pack(matrix_view<bf16 const>(w.data(), {rows, columns}), pith::nan_policy::saturate, two_threads{}).value();
  CHECK(std::ranges::equal(threads.bytes(), m.bytes()));
  auto const opened = Matrix::open(m.bytes(), rows, columns);
  REQUIRE(opened);
  CHECK(opened.value().bytes().size() == m.bytes().size());
}

template <class Accuracy>
void check_products(std::int64_t rows, std::int64_t columns, std::int64_t batch) {
  auto const w = weights(rows * columns, 5);
  auto const x = gaussians(batch * columns, 6);
  matrix_view<bf16 const> const view(w.data(), {rows, columns});
  auto const a = lossless::pack(view).value();
  auto const b = plain::pack(view).value();
  std::vector<float> y(static_cast<std::size_t>(batch * rows)), right(y.size());
  std::vector<std::byte> scratch(static_cast<std::size_t>(a.template scratch_bytes<Accuracy>(batch)));
  CHECK(a.template scratch_bytes<Accuracy>(batch) == b.template scratch_bytes<Accuracy>(batch));
  matrix_view<float const> const in(x.data(), {batch, columns});
  REQUIRE(a.template multiply<Accuracy>(in, matrix_view<float>(y.data(), {batch, rows}), scratch, {}, two_threads{}));
  REQUIRE(b.template multiply<Accuracy>(in, matrix_view<float>(right.data(), {batch, rows}), scratch));
  CHECK(y == right);
}

}  // namespace

TEST_CASE("lossless weights: pack and unpack are inverse for every bit, whatever the executor", "[linear][dynamic_float]") {
  check_round_trip<lossless>(70, 600);
  check_round_trip<lossless>(1, 1);
  check_round_trip<lossless>(64, 512);
  check_round_trip<pith::packed_matrix<pith::dynamic_float<bf16, pith::huffman>, pith::use::dot, 64>>(33, 100);
  check_round_trip<pith::packed_matrix<pith::dynamic_float<bf16, pith::exponent_planes>, pith::use::dot, 352>>(33, 704);
  check_round_trip<pith::packed_matrix<pith::dynamic_float<bf16>, pith::use::mix>>(40, 300);
}

TEST_CASE("lossless weights: products are those of raw weights, bit for bit", "[linear][dynamic_float]") {
  check_products<pith::integer_accuracy>(70, 600, 1);
  check_products<pith::integer_accuracy>(32, 256, 21);
  check_products<pith::exact_accuracy>(70, 300, 5);
  std::int64_t const rows = 70, columns = 300;
  auto const w = weights(rows * columns, 7);
  auto const x = gaussians(2 * rows, 8);
  using mixed = pith::packed_matrix<pith::dynamic_float<bf16>, pith::use::mix>;
  using mixed_plain = pith::packed_matrix<pith::raw<bf16>, pith::use::mix>;
  auto const a = mixed::pack(matrix_view<bf16 const>(w.data(), {rows, columns})).value();
  auto const b = mixed_plain::pack(matrix_view<bf16 const>(w.data(), {rows, columns})).value();
  std::vector<float> y(static_cast<std::size_t>(2 * columns)), right(y.size());
  std::vector<std::byte> scratch(static_cast<std::size_t>(a.transposed_scratch_bytes(2)));
  matrix_view<float const> const in(x.data(), {2, rows});
  REQUIRE(a.multiply_transposed(in, matrix_view<float>(y.data(), {2, columns}), scratch));
  REQUIRE(b.multiply_transposed(in, matrix_view<float>(right.data(), {2, columns}), scratch));
  CHECK(y == right);
}

TEST_CASE("lossless weights: other types, generic products", "[linear][dynamic_float]") {
  using halves = pith::packed_matrix<pith::dynamic_float<pith::f16>, pith::use::dot, 64>;
  std::int64_t const rows = 40, columns = 100;
  auto const numbers = gaussians(rows * columns, 9);
  std::vector<pith::f16> w;
  for (float const one : numbers) w.push_back(pith::from_float<pith::f16>(one));
  auto const m = halves::pack(matrix_view<pith::f16 const>(w.data(), {rows, columns})).value();
  std::vector<pith::f16> back(w.size());
  REQUIRE(m.unpack(matrix_view<pith::f16>(back.data(), {rows, columns})));
  CHECK(back == w);
  auto const x = gaussians(columns, 10);
  std::vector<float> y(static_cast<std::size_t>(rows));
  std::vector<std::byte> scratch(static_cast<std::size_t>(m.scratch_bytes(1)));
  REQUIRE(m.multiply(matrix_view<float const>(x.data(), {1, columns}), matrix_view<float>(y.data(), {1, rows}), scratch));
  for (std::int64_t r = 0; r < rows; ++r) {
    double sum = 0, size = 0;
    for (std::int64_t c = 0; c < columns; ++c) {
      double const product = static_cast<double>(pith::to_float(w[static_cast<std::size_t>(r * columns + c)])) * x[static_cast<std::size_t>(c)];
      sum += product;
      size += std::fabs(product);
    }
    CHECK(std::fabs(y[static_cast<std::size_t>(r)] - sum) <= size * (static_cast<double>(columns) + 20) * 0x1p-24);
  }
  using eights = pith::packed_matrix<pith::dynamic_float<pith::e4m3>, pith::use::dot, 64>;
  std::vector<pith::e4m3> bytes(static_cast<std::size_t>(rows * columns)), bytes_back(bytes.size());
  for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i].bits = static_cast<std::uint8_t>(i * 37);
  auto const e = eights::pack(matrix_view<pith::e4m3 const>(bytes.data(), {rows, columns})).value();
  REQUIRE(e.unpack(matrix_view<pith::e4m3>(bytes_back.data(), {rows, columns})));
  CHECK(bytes_back == bytes);
}

TEST_CASE("lossless weights: a first row block says little about the others", "[linear][dynamic_float]") {
  std::int64_t const rows = 96, columns = 512;
  random_bits random(15);
  std::vector<bf16> w(static_cast<std::size_t>(rows * columns), bf16{0}), back(w.size());
  for (std::size_t i = static_cast<std::size_t>(32 * columns); i < w.size(); ++i) w[i].bits = static_cast<std::uint16_t>(random());
  auto const m = lossless::pack(matrix_view<bf16 const>(w.data(), {rows, columns})).value();
  REQUIRE(m.unpack(matrix_view<bf16>(back.data(), {rows, columns})));
  CHECK(back == w);
  auto const opened = lossless::open(m.bytes(), rows, columns);
  REQUIRE(opened);
  CHECK(opened.value().bytes().size() == m.bytes().size());
}

TEST_CASE("lossless weights: memory of the caller, and bytes that nobody wrote", "[linear][dynamic_float][fuzz]") {
  std::int64_t const rows = 64, columns = 300;
  auto const w = weights(rows * columns, 11);
  matrix_view<bf16 const> const view(w.data(), {rows, columns});
  auto const m = lossless::pack(view).value();
  auto const bytes = static_cast<std::int64_t>(m.bytes().size());
  std::vector<std::byte> memory(static_cast<std::size_t>(bytes) + 64);
  std::byte* const at = memory.data() + (64 - reinterpret_cast<std::uintptr_t>(memory.data()) % 64) % 64;
  CHECK(lossless::pack_into({at, static_cast<std::size_t>(bytes - 1)}, view).error() == pith::status{errc::capacity_exceeded, bytes});
  CHECK(lossless::pack_into({at + 1, static_cast<std::size_t>(bytes)}, view).error().code == errc::misaligned);
  auto const placed = lossless::pack_into({at, static_cast<std::size_t>(bytes)}, view);
  REQUIRE(placed);
  CHECK(std::ranges::equal(placed.value().bytes(), m.bytes()));
  CHECK(lossless::open({at, 100}, rows, columns).error().code == errc::truncated);
  CHECK(lossless::open({at, static_cast<std::size_t>(bytes - 1)}, rows, columns).error().code == errc::bad_format);
  CHECK(lossless::open({at, static_cast<std::size_t>(bytes)}, rows + 32, columns).error().code != errc::ok);

  random_bits random(13);
  std::vector<float> y(static_cast<std::size_t>(rows));
  auto const x = gaussians(columns, 14);
  std::vector<std::byte> scratch(static_cast<std::size_t>(m.scratch_bytes<pith::integer_accuracy>(1)));
  int refused = 0, read = 0;
  for (int round = 0; round < 600; ++round) {
    std::copy_n(m.bytes().data(), bytes, at);
    for (int hit = static_cast<int>(random() % 3); hit >= 0; --hit) {
      auto const tile = static_cast<std::int64_t>(random() % 4) * lossless::tile::bytes;
      at[random() % 2 == 0 ? tile + static_cast<std::int64_t>(random() % 64) : static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(bytes))] =
          static_cast<std::byte>(random());
    }
    auto const opened = lossless::open({at, static_cast<std::size_t>(bytes)}, rows, columns);
    if (!opened) {
      CHECK(opened.error().code == errc::bad_format);
      CHECK(opened.error().at % lossless::tile::bytes == 0);
      ++refused;
      continue;
    }
    ++read;
    REQUIRE(opened.value().multiply<pith::integer_accuracy>(matrix_view<float const>(x.data(), {1, columns}), matrix_view<float>(y.data(), {1, rows}), scratch));
  }
  CHECK(refused > 50);
  CHECK(read > 50);
}
