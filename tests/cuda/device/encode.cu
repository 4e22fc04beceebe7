// SPDX-License-Identifier: Apache-2.0
// The codecs' own encode and decode in kernels, one tile a thread: the device stores the same bytes and reads back the same numbers.
#include <cstdint>
#include <cstring>

#include "pith/codec/block_float.hpp"
#include "pith/codec/float8.hpp"
#include "pith/codec/hadamard.hpp"
#include "pith/codec/integer.hpp"
#include "pith/codec/pipe.hpp"
#include "pith/codec/raw.hpp"
#include "tests/cuda/device/device_case.hpp"
#include "tests/support/digest.hpp"

namespace {

template <class Tile>
__global__ void round_trip(float const* rows, std::byte* packed, float* back, std::int64_t tiles) {
  std::int64_t const tile = blockIdx.x * static_cast<std::int64_t>(blockDim.x) + threadIdx.x;
  if (tile >= tiles) return;
  std::int64_t const numbers = static_cast<std::int64_t>(Tile::tokens) * Tile::channels;
  Tile::encode(rows + tile * numbers, packed + tile * Tile::bytes);
  Tile::decode(packed + tile * Tile::bytes, back + tile * numbers);
}

template <class Codec, pith::use Use>
void compare(pith_test::device_test& test) {
  using tile = typename Codec::template bind<64, 64, Use>;
  constexpr std::int64_t tiles = 500, numbers = static_cast<std::int64_t>(tile::tokens) * tile::channels;
  std::vector<float> rows(static_cast<std::size_t>(tiles * numbers));
  pith_test::random_bits random(7);
  for (std::size_t i = 0; i < rows.size(); ++i)
    rows[i] = i % 5 ? random.uniform() * static_cast<float>(1 + i % 64) : pith::bits_float(static_cast<std::uint32_t>(random()));

  pith_test::on_device<float> const in(rows), out(rows.size());
  pith_test::on_device<std::byte> const bytes(static_cast<std::size_t>(tiles * tile::bytes));
  round_trip<tile><<<(tiles + 63) / 64, 64>>>(in.data(), bytes.data(), out.data(), tiles);
  if (!test.need(cudaGetLastError(), "launch")) return;
  std::vector<std::byte> const packed = bytes.values(test);
  std::vector<float> const back = out.values(test);

  std::vector<std::byte> expected(static_cast<std::size_t>(tile::bytes));
  std::vector<float> expected_back(static_cast<std::size_t>(numbers));
  for (std::int64_t i = 0; i < tiles; ++i) {
    tile::encode(rows.data() + i * numbers, expected.data());
    tile::decode(expected.data(), expected_back.data());
    test.check(std::memcmp(packed.data() + i * tile::bytes, expected.data(), expected.size()) == 0, "tile %d has other bytes",
               static_cast<int>(i));
    test.check(std::memcmp(back.data() + i * numbers, expected_back.data(), expected_back.size() * sizeof(float)) == 0,
               "tile %d decodes to other numbers", static_cast<int>(i));
  }
}

}  // namespace

DEVICE_CASE("encode: raw<bf16>, keys") { compare<pith::raw<pith::bf16>, pith::use::dot>(test); }
DEVICE_CASE("encode: raw<f16>, values") { compare<pith::raw<pith::f16>, pith::use::mix>(test); }
DEVICE_CASE("encode: int2<per_channel<32>>, keys") { compare<pith::int2<pith::per_channel<32>>, pith::use::dot>(test); }
DEVICE_CASE("encode: int3<per_token<32>>, values") { compare<pith::int3<pith::per_token<32>>, pith::use::mix>(test); }
DEVICE_CASE("encode: int4<per_channel<64>>, keys") { compare<pith::int4<pith::per_channel<64>>, pith::use::dot>(test); }
DEVICE_CASE("encode: int4<per_token<>, none>, values") { compare<pith::int4<pith::per_token<>, pith::zero::none>, pith::use::mix>(test); }
DEVICE_CASE("encode: int6<per_channel<32>>, keys") { compare<pith::int6<pith::per_channel<32>>, pith::use::dot>(test); }
DEVICE_CASE("encode: int7<per_token<64>>, values") { compare<pith::int7<pith::per_token<64>>, pith::use::mix>(test); }
DEVICE_CASE("encode: int8<per_token<32>, integer>, values") {
  compare<pith::int8<pith::per_token<32>, pith::zero::integer>, pith::use::mix>(test);
}
DEVICE_CASE("encode: block_float<4, per_token<32>>, keys") { compare<pith::block_float<4, pith::per_token<32>>, pith::use::dot>(test); }
DEVICE_CASE("encode: float8<e4m3>, values") { compare<pith::float8<pith::e4m3>, pith::use::mix>(test); }
DEVICE_CASE("encode: float8<e5m2, per_channel<32>>, keys") {
  compare<pith::float8<pith::e5m2, pith::per_channel<32>>, pith::use::dot>(test);
}
DEVICE_CASE("encode: mxfp8<e4m3>, keys") { compare<pith::mxfp8<pith::e4m3>, pith::use::dot>(test); }
DEVICE_CASE("encode: hadamard<64>, int4<per_channel<32>>, keys") {
  compare<pith::pipe<pith::hadamard<64>, pith::int4<pith::per_channel<32>>>, pith::use::dot>(test);
}
