// SPDX-License-Identifier: Apache-2.0
// Lossless weights on the device: decoded bit for bit, multiplied as raw weights are, refused where a tile cannot be read.
#include <cmath>
#include <cstring>

#include "pith/cuda/environment.cuh"
#include "pith/cuda/packed_matrix.hpp"
#include "tests/cuda/device/device_case.hpp"
#include "tests/support/digest.hpp"

namespace {

using pith::bf16;
using pith::space;
using pith::use;

template <class Codec>
using on_cuda = pith::packed_matrix<Codec, use::dot, pith::default_panel<Codec, use::dot>(), pith::cuda>;
using lossless = pith::dynamic_float<bf16>;

// Sums of uniform numbers, row by row of another scale; one number in `odd` is any pattern.
std::vector<bf16> weights(std::int64_t rows, std::int64_t columns, unsigned odd) {
  pith_test::random_bits random(7);
  std::vector<bf16> w;
  for (std::int64_t i = 0; i < rows * columns; ++i) {
    float const x = random.uniform() + random.uniform() + random.uniform();
    bf16 one = pith::from_float<bf16>(std::ldexp(x, static_cast<int>(i / columns % 9) - 6));
    if (auto const bits = static_cast<unsigned>(random()); odd != 0 && bits % odd == 0) one.bits = static_cast<std::uint16_t>(bits >> 9);
    w.push_back(one);
  }
  return w;
}

struct packed_weights {
  pith_test::on_device<std::byte> memory;
  std::size_t bytes;

  explicit packed_weights(std::vector<std::byte> const& from) : memory(from), bytes(from.size()) {}
  std::span<std::byte const> span() const { return {memory.data(), bytes}; }
};

template <class Codec>
std::vector<std::byte> pack(std::vector<bf16> const& w, std::int64_t rows, std::int64_t columns) {
  auto const packed = pith::packed_matrix<Codec>::pack(pith::matrix_view<bf16 const>(w.data(), {rows, columns})).value();
  return {packed.bytes().begin(), packed.bytes().end()};
}

template <class Codec>
void decode(pith_test::device_test& test, std::int64_t rows, std::int64_t columns, unsigned odd) {
  auto made = pith::cuda_environment::make(nullptr, pith::plain_device_memory());
  if (!test.need(made.error(), "environment")) return;
  auto const w = weights(rows, columns, odd);
  packed_weights const packed(pack<Codec>(w, rows, columns));
  pith_test::on_device<bf16> const out(w.size());
  auto const m = on_cuda<Codec>::open(packed.span(), rows, columns);
  if (!test.need(m.error(), "open")) return;
  if (!test.need(m.value().unpack(made.value(), pith::matrix_view<bf16, space::device>(out.data(), {rows, columns})), "unpack")) return;
  test.need(m.value().check(made.value()), "check");
  test.need(pith::read_status(made.value()), "status");
  auto const back = out.values(test);
  test.check(std::memcmp(back.data(), w.data(), w.size() * sizeof(bf16)) == 0, "other numbers than were packed");
}

void multiply(pith_test::device_test& test, std::int64_t rows, std::int64_t columns, unsigned odd) {
  auto made = pith::cuda_environment::make(nullptr, pith::plain_device_memory(), 64 << 20);
  if (!test.need(made.error(), "environment")) return;
  auto w = weights(rows, columns, odd);
  for (bf16& one : w)
    if (!(std::fabs(pith::to_float(one)) < 1e4f)) one.bits = 0x8000;  // sums are compared
  packed_weights const packed(pack<lossless>(w, rows, columns));
  auto const m = on_cuda<lossless>::open(packed.span(), rows, columns);
  if (!test.need(m.error(), "open")) return;
  pith_test::random_bits random(8);
  for (std::int64_t const batch : {1, 8, 13, 64, 70}) {
    std::vector<bf16> x;
    for (std::int64_t i = 0; i < batch * columns; ++i) x.push_back(pith::from_float<bf16>(random.uniform()));
    pith_test::on_device<bf16> const in(x);
    pith_test::on_device<float> const out(static_cast<std::size_t>(batch * rows));
    if (!test.need(m.value().multiply(made.value(), pith::matrix_view<bf16 const, space::device>(in.data(), {batch, columns}),
                                      pith::matrix_view<float, space::device>(out.data(), {batch, rows})),
                   "multiply"))
      return;
    test.need(pith::read_status(made.value()), "status");
    auto const y = out.values(test);
    for (std::int64_t i = 0; i < batch; ++i)
      for (std::int64_t r = 0; r < rows; ++r) {
        double sum = 0, size = 0;
        for (std::int64_t c = 0; c < columns; ++c) {
          double const product = static_cast<double>(pith::to_float(w[static_cast<std::size_t>(r * columns + c)])) *
                                 pith::to_float(x[static_cast<std::size_t>(i * columns + c)]);
          sum += product;
          size += std::fabs(product);
        }
        double const got = y[static_cast<std::size_t>(i * rows + r)];
        test.check(std::fabs(got - sum) <= 1e-4 * size + 1e-30, "batch %d, row %d: %g, not %g", static_cast<int>(batch),
                   static_cast<int>(r), got, sum);
      }
  }
}

void refuse(pith_test::device_test& test) {
  constexpr std::int64_t rows = 96, columns = 512, at = 3 * on_cuda<lossless>::tile::bytes;
  auto made = pith::cuda_environment::make(nullptr, pith::plain_device_memory());
  if (!test.need(made.error(), "environment")) return;
  auto const right = pack<lossless>(weights(rows, columns, 0), rows, columns);
  for (int which = 0; which < 3; ++which) {
    auto bytes = right;
    if (which == 0) pith::tail_place::set_distance(bytes.data() + at, std::int64_t{1} << 40);
    if (which == 1) pith::store_le(bytes.data() + at + 8, std::uint32_t{5});
    if (which == 2) bytes[static_cast<std::size_t>(at + on_cuda<lossless>::tile::planes_at + 8)] ^= std::byte{0xff};
    packed_weights const packed(bytes);
    auto const m = on_cuda<lossless>::open(packed.span(), rows, columns);
    if (!test.need(m.error(), "open")) return;
    test.need(pith::clear_status(made.value()), "clear");
    test.need(m.value().check(made.value()), "check");
    pith::status const said = pith::read_status(made.value());
    test.check(said.code == pith::errc::bad_format && said.at == at, "case %d: not refused", which);
  }
}

}  // namespace

DEVICE_CASE("lossless: exponent_window decoded, 1000 x 1100") { decode<lossless>(test, 1000, 1100, 0); }
DEVICE_CASE("lossless: exponent_window decoded, any numbers among them") { decode<lossless>(test, 300, 700, 40); }
DEVICE_CASE("lossless: exponent_window decoded, raw tails") { decode<lossless>(test, 33, 300, 1); }
DEVICE_CASE("lossless: huffman decoded") { decode<pith::dynamic_float<bf16, pith::huffman>>(test, 300, 700, 40); }
DEVICE_CASE("lossless: rans_exponents decoded") { decode<pith::dynamic_float<bf16, pith::rans_exponents>>(test, 300, 700, 40); }
DEVICE_CASE("lossless: multiplied, 1000 x 1100") { multiply(test, 1000, 1100, 0); }
DEVICE_CASE("lossless: multiplied, long tails") { multiply(test, 300, 700, 12); }
DEVICE_CASE("lossless: a tile that cannot be read is refused") { refuse(test); }
DEVICE_CASE("sanitize: lossless, ragged") {
  decode<lossless>(test, 33, 300, 40);
  multiply(test, 33, 300, 40);
}
