// SPDX-License-Identifier: Apache-2.0
// packed_matrix on the emulated device: shapes, batches, kinds of numbers, what it refuses. Codecs: linear_codecs_test.cpp.
#include "cuda/linear_support.hpp"
#include "pith/codec/integer.hpp"

namespace {

using namespace pith;
using namespace pith_test;

using four_bits = int4<per_token<64>, zero::none>;
using view = matrix_view<float const, space::device>;
using out_view = matrix_view<float, space::device>;

}  // namespace

TEST_CASE("device product: ragged rows and columns, batches of one pass and of several", "[cuda]") {
  double most = 0;
  for (std::int64_t const rows : {1, 33, 300})
    for (std::int64_t const columns : {1, 80, 256, 700}) {
      INFO(rows << " x " << columns);
      device_product<four_bits> const w(rows, columns, static_cast<std::uint64_t>(rows + columns));
      for (std::int64_t const batch : {1, 3, 8, 9, 20, 64, 70}) {
        if (rows == 300 && batch > 20 && columns != 700) continue;
        INFO("batch " << batch);
        double const exact = w.worst<exact_accuracy>(batch, 3), integer = w.worst<integer_accuracy>(batch, 4, batch % 2 == 0);
        CHECK(exact <= 1);
        CHECK(integer <= 1);
        most = std::max({most, exact, integer});
      }
    }
  CHECK(most > 0.01);
}

TEST_CASE("device product: any number of multiprocessors, more than there are steps and fewer", "[cuda]") {
  device_product<four_bits> const w(600, 1300, 5);
  for (int const multiprocessors : {1, 3, 7, 132}) CHECK(w.worst<integer_accuracy>(5, 6, true, multiprocessors) <= 1);
}

TEST_CASE("device product: bf16 and f16 in and out", "[cuda]") {
  device_product<four_bits> const w(70, 300, 8);
  CHECK(w.worst<exact_accuracy, bf16, bf16>(3, 9) <= 1);
  CHECK(w.worst<exact_accuracy, f16, f16>(3, 9) <= 1);
  CHECK(w.worst<exact_accuracy, bf16, float>(11, 9) <= 1);
}

TEST_CASE("device product: weights packed on the device have the CPU's bytes, whatever their strides", "[cuda]") {
  auto const check = [&]<class Codec>(Codec, std::int64_t rows, std::int64_t columns) {
    using matrix = weights_on_device<Codec>;
    INFO(rows << " x " << columns);
    auto x = gaussians(rows * columns, 6);
    x[x.size() / 3] = std::numeric_limits<float>::quiet_NaN();
    std::vector<bf16> across(x.size());
    for (std::int64_t r = 0; r < rows; ++r)
      for (std::int64_t c = 0; c < columns; ++c)
        across[static_cast<std::size_t>(c * rows + r)] = from_float<bf16>(x[static_cast<std::size_t>(r * columns + c)]);
    auto const packed = packed_matrix<Codec>::pack(matrix_view<bf16 const>(across.data(), {rows, columns}, {1, rows})).value();
    std::vector<std::byte> storage(packed.bytes().size() + 64, std::byte{0x5a});
    std::size_t const past = (64 - reinterpret_cast<std::uintptr_t>(storage.data()) % 64) % 64;
    auto const memory = std::span(storage).subspan(past, packed.bytes().size());
    emulated_environment const env;
    auto const made = matrix::pack_into(env, memory, matrix_view<bf16, space::device>(across.data(), {rows, columns}, {1, rows}));
    REQUIRE(made);
    CHECK(std::memcmp(memory.data(), packed.bytes().data(), memory.size()) == 0);
    CHECK(matrix::pack_into(env, memory.first(memory.size() - 1), matrix_view<bf16, space::device>(across.data(), {rows, columns})).error() ==
          status{errc::capacity_exceeded, std::ssize(memory)});
    CHECK(matrix::pack_into(env, memory, matrix_view<bf16, space::device>(across.data(), {0, columns})).error() == status{errc::shape_mismatch, 0});
  };
  check(four_bits{}, 1, 1);
  check(four_bits{}, 70, 300);
  check(int4<per_channel<64>>{}, 70, 300);
  check(raw<bf16>{}, 33, 257);
}

TEST_CASE("device product: the same call gives the same bits, whatever scratch holds and however blocks are ordered", "[cuda]") {
  std::int64_t const rows = 300, columns = 700, batch = 20;
  device_product<four_bits> const w(rows, columns, 8);
  auto const x = gaussians(batch * columns, 10);
  std::vector<float> first(static_cast<std::size_t>(batch * rows)), second(first.size());
  emulated_environment const env(w.on_device().scratch_bytes<integer_accuracy>(emulated_environment{}, batch));
  for (auto* out : {&first, &second})
    REQUIRE(w.on_device().multiply<integer_accuracy>(env, view(x.data(), {batch, columns}), out_view(out->data(), {batch, rows})));
  CHECK(std::memcmp(first.data(), second.data(), first.size() * sizeof(float)) == 0);
}

TEMPLATE_TEST_CASE("device product: a NaN or an infinity in x spoils its own row of out and no other", "[cuda][edge]", exact_accuracy,
                   integer_accuracy) {
  std::int64_t const rows = 40, columns = 300, batch = 12;
  auto const check = [&]<class Codec>(device_product<Codec> const& w) {
    auto const clean = gaussians(batch * columns, 10);
    auto x = clean;
    x[static_cast<std::size_t>(1 * columns + 7)] = std::numeric_limits<float>::quiet_NaN();
    x[static_cast<std::size_t>(3 * columns + 299)] = std::numeric_limits<float>::infinity();
    x[static_cast<std::size_t>(9 * columns + 40)] = -std::numeric_limits<float>::infinity();
    std::vector<float> out(static_cast<std::size_t>(batch * rows)), right(out.size());
    emulated_environment const env;
    REQUIRE(w.on_device().template multiply<TestType>(env, view(x.data(), {batch, columns}), out_view(out.data(), {batch, rows})));
    REQUIRE(w.on_device().template multiply<TestType>(env, view(clean.data(), {batch, columns}), out_view(right.data(), {batch, rows})));
    for (std::size_t i = 0; i < out.size(); ++i) {
      std::size_t const row = i / static_cast<std::size_t>(rows);
      bool const spoilt = row == 1 || row == 3 || row == 9;
      CHECK(is_finite(out[i]) == !spoilt);
      if (!spoilt) CHECK(out[i] == right[i]);
    }
  };
  check(device_product<four_bits>(rows, columns, 9));
  check(device_product<int4<per_channel<32>>>(rows, columns, 9));
  check(device_product<raw<bf16>>(rows, columns, 9));
}

TEST_CASE("device product: an empty batch is legal, and so is a row of zeros or of huge numbers", "[cuda][edge]") {
  std::int64_t const rows = 40, columns = 300;
  device_product<four_bits> const w(rows, columns, 9);
  emulated_environment const env;
  CHECK(w.on_device().scratch_bytes(env, 0) == 0);
  CHECK(w.on_device().multiply(env, view(nullptr, {0, columns}), out_view(nullptr, {0, rows})) == status{});
  std::vector<float> x(static_cast<std::size_t>(3 * columns)), out(static_cast<std::size_t>(3 * rows), -77.0f);
  for (std::int64_t c = 0; c < columns; ++c)
    x[static_cast<std::size_t>(columns + c)] = 1e30f, x[static_cast<std::size_t>(2 * columns + c)] = 1e-36f;
  REQUIRE(w.on_device().multiply(env, view(x.data(), {3, columns}), out_view(out.data(), {3, rows})));
  for (std::int64_t r = 0; r < rows; ++r) {
    CHECK(out[static_cast<std::size_t>(r)] == 0.0f);
    double const large = out[static_cast<std::size_t>(rows + r)] / 1e30, small = out[static_cast<std::size_t>(2 * rows + r)] / 1e-36;
    CHECK(std::fabs(large - small) <= 1e-4);
  }
}

TEST_CASE("device product: what the host can see is refused, and nothing is written", "[cuda][edge]") {
  using matrix = weights_on_device<four_bits>;
  std::int64_t const rows = 40, columns = 300;
  device_product<four_bits> const w(rows, columns, 9);
  auto const bytes = w.packed.bytes();
  CHECK(matrix::bound_bytes(rows, columns) == packed_matrix<four_bits>::bound_bytes(rows, columns));
  CHECK(matrix::open(bytes, 0, columns).error() == status{errc::shape_mismatch, 0});
  CHECK(matrix::open(bytes, rows, -5).error() == status{errc::shape_mismatch, -5});
  CHECK(matrix::open(bytes.subspan(4), rows, columns).error() == status{errc::misaligned, 4});
  CHECK(matrix::open(bytes.first(bytes.size() - 1), rows, columns).error() == status{errc::truncated, std::ssize(bytes)});
  std::vector<float> x(2 * 400, 1.0f), out(2 * 400, -77.0f);
  matrix const on = w.on_device();
  emulated_environment const env;
  auto const go = [&](std::int64_t const (&in)[2], std::int64_t const (&to)[2], std::int64_t bias = 0) {
    tensor_view<float const, 1, space::device> const added(bias == 0 ? nullptr : x.data(), {bias});
    return on.multiply(env, view(x.data(), in), out_view(out.data(), to), added);
  };
  CHECK(go({2, 299}, {2, 40}) == status{errc::shape_mismatch, 299});
  CHECK(go({2, 300}, {2, 41}) == status{errc::shape_mismatch, 41});
  CHECK(go({2, 300}, {1, 40}) == status{errc::shape_mismatch, 1});
  CHECK(go({-2, 300}, {-2, 40}) == status{errc::shape_mismatch, -2});
  CHECK(go({2, 300}, {2, 40}, 39) == status{errc::shape_mismatch, 39});
  std::int64_t const wanted = on.scratch_bytes(env, 2);
  emulated_environment const small(wanted - 128);
  CHECK(on.multiply(small, view(x.data(), {2, 300}), out_view(out.data(), {2, 40})) == status{errc::capacity_exceeded, wanted});
  for (float const one : out) CHECK(one == -77.0f);
  CHECK(go({2, 300}, {2, 40}, 40) == status{});
}
