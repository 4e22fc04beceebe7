// SPDX-License-Identifier: Apache-2.0
// Matrices of pruned weights: in and out, the products of raw weights, bytes that nobody wrote.
#include <memory>
#include <new>

#include "linear/linear_oracle.hpp"

namespace {

using namespace pith_test;
using pith::bf16, pith::errc, pith::matrix_view;
using pruned = pith::packed_matrix<pith::bitmap_sparse<bf16>>;
using plain = pith::packed_matrix<pith::raw<bf16>>;

// Gaussians, three of five zero, of either sign.
std::vector<bf16> weights(std::int64_t count, std::uint64_t seed) {
  std::vector<bf16> w;
  for (float const x : gaussians(count, seed)) w.push_back(pith::from_float<bf16>(std::fabs(x) > 0.84f ? x : 0.0f * x));
  return w;
}

template <class Matrix>
void check_round_trip(std::int64_t rows, std::int64_t columns) {
  auto w = weights(rows * columns, 3);
  w[0].bits = 0x7f81;  // a NaN that signals
  auto const m = Matrix::pack(matrix_view<bf16 const>(w.data(), {rows, columns})).value();
  CHECK(static_cast<std::int64_t>(m.bytes().size()) <= Matrix::bound_bytes(rows, columns));
  std::vector<bf16> back(w.size(), bf16{0xdead});
  REQUIRE(m.unpack(matrix_view<bf16>(back.data(), {rows, columns})));
  for (bf16& x : w) x.bits = x.bits == 0x8000 ? 0 : x.bits;
  CHECK((back == w));
  auto const threads = Matrix::pack(matrix_view<bf16 const>(w.data(), {rows, columns}), pith::nan_policy::saturate, two_threads{}).value();
  CHECK(std::ranges::equal(threads.bytes(), m.bytes()));
  auto const opened = Matrix::open(m.bytes(), rows, columns);
  REQUIRE(opened);
  CHECK(opened.value().bytes().size() == m.bytes().size());
}

void check_products(std::int64_t rows, std::int64_t columns, std::int64_t batch) {
  auto const w = weights(rows * columns, 5);
  auto const x = gaussians(batch * columns, 6);
  auto const a = pruned::pack(matrix_view<bf16 const>(w.data(), {rows, columns})).value();
  auto const b = plain::pack(matrix_view<bf16 const>(w.data(), {rows, columns})).value();
  using accuracy = pith::integer_accuracy;
  std::vector<float> y(static_cast<std::size_t>(batch * rows)), right(y.size());
  std::vector<std::byte> scratch(static_cast<std::size_t>(a.scratch_bytes<accuracy>(batch)));
  matrix_view<float const> const in(x.data(), {batch, columns});
  REQUIRE(a.multiply<accuracy>(in, matrix_view<float>(y.data(), {batch, rows}), scratch, {}, two_threads{}));
  REQUIRE(b.multiply<accuracy>(in, matrix_view<float>(right.data(), {batch, rows}), scratch));
  CHECK((y == right));
}

}  // namespace

TEST_CASE("pruned weights: pack and unpack are inverse for every bit but a zero's sign, whatever the executor", "[linear][bitmap_sparse]") {
  check_round_trip<pruned>(70, 600);
  check_round_trip<pruned>(1, 1);
  check_round_trip<pith::packed_matrix<pith::bitmap_sparse<bf16>, pith::use::mix, 64>>(40, 100);
}

TEST_CASE("pruned weights: products are those of raw weights, bit for bit", "[linear][bitmap_sparse]") {
  check_products(70, 600, 1);
  check_products(32, 256, 21);  // tiles are expanded once for all kernels
}

TEST_CASE("pruned weights: bytes that nobody wrote are refused or multiplied", "[linear][bitmap_sparse][fuzz]") {
  std::int64_t const rows = 64, columns = 300;
  auto const w = weights(rows * columns, 11);
  auto const m = pruned::pack(matrix_view<bf16 const>(w.data(), {rows, columns})).value();
  auto const bytes = static_cast<std::int64_t>(m.bytes().size());
  struct aligned {
    void operator()(std::byte* p) const { ::operator delete[](p, std::align_val_t{64}); }
  };
  std::unique_ptr<std::byte[], aligned> const memory(new (std::align_val_t{64})
                                                         std::byte[static_cast<std::size_t>(bytes)]);  // not one byte more
  std::span<std::byte> const all(memory.get(), static_cast<std::size_t>(bytes));
  std::ranges::copy(m.bytes(), all.data());
  CHECK(pruned::open(all.first(100), rows, columns).error().code == errc::truncated);
  CHECK(pruned::open(all.first(all.size() - 1), rows, columns).error().code == errc::bad_format);

  random_bits random(13);
  std::vector<float> y(static_cast<std::size_t>(rows));
  auto const x = gaussians(columns, 14);
  std::vector<std::byte> scratch(static_cast<std::size_t>(m.scratch_bytes<pith::integer_accuracy>(1)));
  int refused = 0, read = 0;
  for (int round = 0; round < 400; ++round) {
    std::ranges::copy(m.bytes(), all.data());
    std::byte* const tile = all.data() + static_cast<std::int64_t>(random() % 4) * pruned::tile::bytes;
    std::byte* const bitmap = tile + pruned::tile::bitmap_at + random() % (pruned::tile::count / 8 - 1);
    switch (random() % 4) {
      case 0: tile[random() % 12] = static_cast<std::byte>(random()); break;  // the tail's place
      case 1: *bitmap ^= std::byte{1}; break;                                 // a number more or less
      case 2: std::swap(bitmap[0], bitmap[1]); break;                         // as many, elsewhere
      case 3: all[random() % all.size()] = static_cast<std::byte>(random()); break;
    }
    auto const opened = pruned::open(all, rows, columns);
    if (!opened) {
      CHECK(opened.error().code == errc::bad_format);
      CHECK(opened.error().at % pruned::tile::bytes == 0);
      ++refused;
      continue;
    }
    ++read;
    REQUIRE(opened.value().multiply<pith::integer_accuracy>(matrix_view<float const>(x.data(), {1, columns}),
                                                            matrix_view<float>(y.data(), {1, rows}), scratch));
  }
  CHECK(refused > 50);
  CHECK(read > 50);
}
