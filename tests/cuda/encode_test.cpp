// SPDX-License-Identifier: Apache-2.0
// Raw and float8 tiles on the device.
#include "pith/codec/float8.hpp"
#include "tests/cuda/encode_support.hpp"

#define PITH_PLAIN_TILES(X)                                                             \
  X(bf16, 64, 64, dot, raw<bf16>)                                                       \
  X(float, 80, 16, mix, raw<bf16>)                                                      \
  X(f16, 16, 16, dot, raw<f16>)                                                         \
  X(f16, 128, 64, mix, raw<float>)                                                      \
  X(bf16, 80, 64, dot, float8<e4m3>)                                                    \
  X(bf16, 64, 64, mix, float8<e5m2, per_token<32>>)                                     \
  X(float, 128, 128, dot, float8<e4m3, per_channel<64>, f16>)                           \
  X(bf16, 64, 64, dot, mxfp8<e4m3>)

TEST_CASE("encode_tiles on a device: raw and float8 tiles have the bytes of the scalar codec", "[cuda][identity]") {
  using namespace pith;
  PITH_PLAIN_TILES(PITH_CHECK_ENCODE)
}

TEST_CASE("decode_tiles on a device: raw and float8 tiles give the numbers of the scalar codec, whatever the bytes", "[cuda][identity]") {
  using namespace pith;
  PITH_PLAIN_TILES(PITH_CHECK_DECODE)
}
