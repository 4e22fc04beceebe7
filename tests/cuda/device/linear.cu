// SPDX-License-Identifier: Apache-2.0
// Products with packed weights on the device, against sums of decoded weights in f64; packing, against the CPU's bytes.
#include <cmath>
#include <cstring>

#include "pith/codec/block_float.hpp"
#include "pith/codec/hadamard.hpp"
#include "pith/cuda/environment.cuh"
#include "pith/cuda/packed_matrix.hpp"
#include "tests/cuda/device/device_case.hpp"
#include "tests/support/digest.hpp"

namespace {

using pith::bf16;
using pith::space;
using pith::use;

template <class T>
std::vector<T> numbers(std::int64_t count, std::uint64_t seed) {
  pith_test::random_bits random(seed);
  std::vector<T> out;
  for (std::int64_t i = 0; i < count; ++i) out.push_back(pith::from_float<T>(random.uniform() * (i % 41 == 5 ? 8.0f : 1.0f)));
  return out;
}

// A number of x is off by 2^-20 of itself and of the largest beside it, or 2^-10; bf16 operands 2^-15 and 2^-7. Codes are as large as their
// range, wherever a weight lies in it. The tensor core may cut what it adds to 24 bits.
template <class Codec, class Accuracy>
void compare(pith_test::device_test& test, std::int64_t rows, std::int64_t columns) {
  using host = pith::packed_matrix<Codec>;
  using matrix = pith::packed_matrix<Codec, use::dot, pith::default_panel<Codec, use::dot>(), pith::cuda>;
  constexpr bool exact = std::is_same_v<Accuracy, pith::exact_accuracy>;
  auto made = pith::cuda_environment::make(nullptr, pith::plain_device_memory(), 64 << 20);
  if (!test.need(made.error(), "environment")) return;
  auto const weights = numbers<bf16>(rows * columns, 3);
  auto const packed = host::pack(pith::matrix_view<bf16 const>(weights.data(), {rows, columns})).value();
  std::vector<float> decoded(weights.size());
  test.need(packed.unpack(pith::matrix_view<float>(decoded.data(), {rows, columns})), "unpack");

  pith_test::on_device<bf16> const from(weights);
  pith_test::on_device<std::byte> const memory(packed.bytes().size());
  pith::matrix_view<bf16 const, space::device> const w_view(from.data(), {rows, columns});
  auto const w = matrix::pack_into(made.value(), std::span(memory.data(), memory.count()), w_view);
  if (!test.need(w.error(), "pack_into")) return;
  auto const bytes = memory.values(test);
  test.check(std::memcmp(bytes.data(), packed.bytes().data(), bytes.size()) == 0, "other bytes than the CPU's");

  for (std::int64_t const batch : {1, 5, 8, 13, 30, 64, 70}) {
    auto const x = numbers<bf16>(batch * columns, 5);
    auto const bias = numbers<float>(rows, 6);
    pith_test::on_device<bf16> const in(x);
    pith_test::on_device<float> const added(bias), out(static_cast<std::size_t>(batch * rows)), again(out.count());
    pith::matrix_view<bf16 const, space::device> const x_view(in.data(), {batch, columns});
    for (auto const* to : {&out, &again})
      if (!test.need(w.value().template multiply<Accuracy>(made.value(), x_view, pith::matrix_view<float, space::device>(to->data(), {batch, rows}),
                                                           pith::tensor_view<float const, 1, space::device>(added.data(), {rows})),
                     "multiply"))
        return;
    auto const y = out.values(test), y2 = again.values(test);
    test.check(std::memcmp(y.data(), y2.data(), y.size() * sizeof(float)) == 0, "batch %d: other bits the second time", static_cast<int>(batch));
    test.need(pith::read_status(made.value()), "status");
    double const rounding = std::is_same_v<Codec, pith::raw<bf16>> ? (exact ? 0x1p-15 : 0x1p-7) : exact ? 0x1p-19 : 0x1p-9;
    for (std::int64_t i = 0; i < batch; ++i)
      for (std::int64_t r = 0; r < rows; ++r) {
        double sum = bias[static_cast<std::size_t>(r)], size = 0;
        for (std::int64_t c = 0; c < columns; ++c) {
          double const a = decoded[static_cast<std::size_t>(r * columns + c)], b = pith::to_float(x[static_cast<std::size_t>(i * columns + c)]);
          sum += a * b;
          size += (std::fabs(a) + 8) * (std::fabs(b) + 8 * 0x1p-4);
        }
        double const got = y[static_cast<std::size_t>(i * rows + r)], allowed = (rounding + static_cast<double>(columns) * 0x1p-24) * size;
        test.check(std::fabs(got - sum) <= allowed, "batch %d, row %d: %g, not %g", static_cast<int>(batch), static_cast<int>(r), got, sum);
      }
  }
}

}  // namespace

#define PITH_COMPARE(ACCURACY, ROWS, COLUMNS, ...)                                          \
  DEVICE_CASE("packed_matrix: " #__VA_ARGS__ ", " #ROWS " x " #COLUMNS ", " #ACCURACY) {    \
    using namespace pith;                                                                  \
    using pith::pipe;                                                                      \
    compare<__VA_ARGS__, ACCURACY##_accuracy>(test, ROWS, COLUMNS);                        \
  }

PITH_COMPARE(integer, 1, 1, pith::int4<per_token<64>, zero::none>)
PITH_COMPARE(integer, 1000, 1100, pith::int4<per_token<64>, zero::none>)
PITH_COMPARE(exact, 1000, 1100, pith::int4<per_token<64>, zero::none>)
PITH_COMPARE(exact, 300, 700, pith::int4<per_channel<32>>)
PITH_COMPARE(integer, 300, 700, pith::int3<per_token<128>>)
PITH_COMPARE(integer, 300, 700, int8<per_token<64>, zero::none>)
PITH_COMPARE(integer, 300, 700, raw<bf16>)
PITH_COMPARE(exact, 300, 700, raw<f16>)
PITH_COMPARE(exact, 300, 700, block_float<4, per_token<32>>)
PITH_COMPARE(integer, 300, 700, pipe<hadamard<128>, pith::int4<per_token<64>, zero::none>>)

DEVICE_CASE("sanitize: packed_matrix, ragged") { compare<pith::int4<pith::per_token<64>>, pith::integer_accuracy>(test, 33, 300); }
