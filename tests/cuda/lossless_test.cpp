// SPDX-License-Identifier: Apache-2.0
// Products with lossless weights on the emulated device: the operand of the tensor core is the weight, bit for bit; so products are those
// of raw weights.
#include "cuda/lossless_support.hpp"

namespace {

using namespace pith;
using namespace pith_test;
using lossless = dynamic_float<bf16>;
using in_view = matrix_view<float const, space::device>;
using out_view = matrix_view<float, space::device>;

std::span<std::byte const> bytes_of(std::vector<float> const& x) { return std::as_bytes(std::span(x)); }

template <class Accuracy, class Matrix>
std::vector<float> product(Matrix const& m, std::vector<float> const& x, std::int64_t batch, status expected = {}) {
  std::int64_t const rows = m.rows(), columns = m.columns();
  emulated_environment const env(m.template scratch_bytes<Accuracy>(emulated_environment(0, 1), batch), 1);
  std::vector<float> y(static_cast<std::size_t>(batch * rows), -77.0f);
  REQUIRE(m.template multiply<Accuracy>(env, in_view(x.data(), {batch, columns}), out_view(y.data(), {batch, rows})) == status{});
  CHECK(env.status() == expected);
  return y;
}

// One row group, and runs that end where a tile does: then sums of both are the same, in the same order.
template <class Accuracy>
void check_bits(weights_kind kind, std::int64_t rows, std::int64_t columns, std::int64_t batch) {
  INFO(static_cast<int>(kind) << ": " << rows << " x " << columns << ", batch " << batch);
  auto const w = some_weights(kind, rows, columns, 3);
  auto const x = gaussians(batch * columns, 4);
  matrix_view<bf16 const> const view(w.data(), {rows, columns});
  auto const packed = packed_matrix<lossless>::pack(view).value();
  auto const plain = packed_matrix<raw<bf16>>::pack(view).value();
  auto const y = product<Accuracy>(device_weights<lossless>::open(packed.bytes(), rows, columns).value(), x, batch);
  auto const right = product<Accuracy>(device_weights<raw<bf16>>::open(plain.bytes(), rows, columns).value(), x, batch);
  CHECK(std::ranges::equal(bytes_of(y), bytes_of(right)));
}

}  // namespace

TEST_CASE("device product: lossless weights give the bits of raw ones", "[cuda][dynamic_float]") {
  for (auto const kind : {weights_kind::trained, weights_kind::scaled_rows, weights_kind::rare})
    check_bits<integer_accuracy>(kind, 33, 512, 1);
  check_bits<exact_accuracy>(weights_kind::trained, 60, 512, 3);
  check_bits<integer_accuracy>(weights_kind::trained, 20, 200, 33);
}

TEST_CASE("device product: lossless weights of any shape, batch and length of tails", "[cuda][dynamic_float]") {
  random_bits random(5);
  for (std::int64_t const batch : {1, 12, 70}) {
    std::int64_t const rows = 1 + static_cast<std::int64_t>(random() % 400), columns = 1 + static_cast<std::int64_t>(random() % 700);
    INFO(rows << " x " << columns << ", batch " << batch);
    auto w = some_weights(weights_kind::trained, rows, columns, random());
    // Row blocks in turn: as they are; with many escapes, too many to be copied ahead; without structure, so that the tail is raw.
    for (std::size_t i = 0; i < w.size(); ++i) {
      auto const block = static_cast<std::int64_t>(i) / columns / 32 % 3;
      if (block == 1 && i % 5 == 0) w[i] = from_float<bf16>(std::ldexp(to_float(w[i]), static_cast<int>(i / 5 % 40) - 30));
      if (block == 2) w[i] = from_float<bf16>(std::ldexp(to_float(w[i]), static_cast<int>(random() % 60) - 60));
    }
    auto const packed = packed_matrix<lossless>::pack(matrix_view<bf16 const>(w.data(), {rows, columns})).value();
    auto const x = gaussians(batch * columns, 6);
    auto const y = product<exact_accuracy>(device_weights<lossless>::open(packed.bytes(), rows, columns).value(), x, batch);
    double most = 0;
    for (std::int64_t i = 0; i < batch; ++i)
      for (std::int64_t r = 0; r < rows; ++r) {
        double sum = 0, size = 1e-30;
        for (std::int64_t c = 0; c < columns; ++c) {
          double const product =
              static_cast<double>(to_float(w[static_cast<std::size_t>(r * columns + c)])) * x[static_cast<std::size_t>(i * columns + c)];
          sum += product;
          size += std::fabs(product);
        }
        most = std::max(most, std::fabs(y[static_cast<std::size_t>(i * rows + r)] - sum) /
                                  (size * (0x1p-16 + (static_cast<double>(columns) + 16) * 0x1p-24)));
      }
    CHECK(most <= 1);
    CHECK(most > 1e-4);
  }
}

TEST_CASE("device product: a tile that cannot be read is reported, and no other row is wrong", "[cuda][dynamic_float]") {
  constexpr std::int64_t rows = 96, columns = 512;
  using tile = device_weights<lossless>::tile;
  auto const w = some_weights(weights_kind::trained, rows, columns, 7);
  auto const packed = packed_matrix<lossless>::pack(matrix_view<bf16 const>(w.data(), {rows, columns})).value();
  auto const x = gaussians(columns, 8);
  auto const right = product<integer_accuracy>(device_weights<lossless>::open(packed.bytes(), rows, columns).value(), x, 1);
  heap_arena arena = heap_arena::make(std::ssize(packed.bytes())).value();
  std::span const bytes(arena.data(), packed.bytes().size());
  constexpr std::int64_t at = 3 * tile::bytes;  // of rows 32 to 63
  for (int which = 0; which < 4; ++which) {
    INFO(which);
    std::ranges::copy(packed.bytes(), bytes.begin());
    if (which == 0) tail_place::set_distance(bytes.data() + at, -64);
    if (which == 1) tail_place::set_distance(bytes.data() + at, std::ssize(bytes) - at - 70);
    if (which == 2) store_le(bytes.data() + at + 8, std::uint32_t{5});
    if (which == 3) bytes[static_cast<std::size_t>(at + tile::planes_at + 8)] ^= std::byte{0xff};
    auto const y =
        product<integer_accuracy>(device_weights<lossless>::open(bytes, rows, columns).value(), x, 1, status{errc::bad_format, at});
    CHECK(std::ranges::equal(bytes_of(y).first(128), bytes_of(right).first(128)));
    CHECK(std::ranges::equal(bytes_of(y).last(128), bytes_of(right).last(128)));
  }
}
