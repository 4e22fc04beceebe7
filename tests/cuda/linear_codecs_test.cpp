// SPDX-License-Identifier: Apache-2.0
// Products on the emulated device, for every kind of codec.
#include "cuda/linear_support.hpp"
#include "pith/codec/block_float.hpp"
#include "pith/codec/hadamard.hpp"
#include "pith/codec/pipe.hpp"

namespace {

using namespace pith;
using namespace pith_test;

template <class Codec, class Accuracy>
void check(char const* name) {
  INFO(name);
  double most = 0;
  random_bits random(7);
  for (std::int64_t const batch : {2, 12, 19, 40}) {
    std::int64_t const rows = 1 + static_cast<std::int64_t>(random() % 200), columns = 1 + static_cast<std::int64_t>(random() % 600);
    INFO(rows << " x " << columns << ", batch " << batch);
    device_product<Codec> const w(rows, columns, random());
    double const error = w.template worst<Accuracy>(batch, random());
    CHECK(error <= 1);
    most = std::max(most, error);
  }
  CHECK(most > 1e-3);
}

#define CHECK_CODEC(ACCURACY, ...) check<__VA_ARGS__, ACCURACY##_accuracy>(#__VA_ARGS__ ", " #ACCURACY)

}  // namespace

TEST_CASE("device product: integers with scales of rows", "[cuda]") {
  CHECK_CODEC(exact, int4<per_token<64>>);
  CHECK_CODEC(integer, int2<per_token<32>>);
  CHECK_CODEC(exact, int3<per_token<128>, zero::integer, float>);
  CHECK_CODEC(integer, int8<per_token<>, zero::none, bf16>);
  CHECK_CODEC(integer, int6<per_token<16>>);
}

TEST_CASE("device product: integers with scales of columns", "[cuda]") {
  CHECK_CODEC(exact, int4<per_channel<32>>);
  CHECK_CODEC(integer, int4<per_channel<64>, zero::none>);
  CHECK_CODEC(integer, int5<per_channel<16>, zero::real, bf16>);
  CHECK_CODEC(exact, int2<per_channel<>>);
}

TEST_CASE("device product: block floats, raw numbers, rotated rows", "[cuda]") {
  CHECK_CODEC(integer, block_float<4, per_token<32>>);
  CHECK_CODEC(exact, raw<bf16>);
  CHECK_CODEC(integer, raw<f16>);
  CHECK_CODEC(exact, pith::pipe<hadamard<128>, int4<per_token<64>, zero::none>>);
  CHECK_CODEC(integer, pith::pipe<hadamard<64>, raw<bf16>>);
}
