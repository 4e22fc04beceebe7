// SPDX-License-Identifier: Apache-2.0
// Integer tiles on the device: every width, zero, scale and group, both uses, 16 to 256 channels and 32 to 256 tokens.
#include "pith/codec/block_float.hpp"
#include "tests/cuda/encode_support.hpp"

#define PITH_INTEGER_TILES(X)                                           \
  X(bf16, 128, 64, dot, int4<per_channel<32>>)                          \
  X(bf16, 128, 64, mix, int4<per_token<64>>)                            \
  X(f16, 64, 64, dot, int4<per_token<16>, zero::none, bf16>)            \
  X(float, 80, 64, mix, int4<per_channel<16>, zero::integer, f16>)      \
  X(bf16, 16, 64, dot, int4<per_token<>, zero::real, float>)            \
  X(bf16, 256, 256, mix, int4<per_channel<>, zero::none>)               \
  X(float, 128, 128, dot, int4<per_channel<128>, zero::integer>)        \
  X(bf16, 64, 64, mix, int2<per_token<32>>)                             \
  X(float, 80, 64, dot, int2<per_channel<32>, zero::integer, bf16>)     \
  X(f16, 256, 64, mix, int2<per_channel<64>, zero::real, float>)        \
  X(bf16, 96, 64, dot, int3<per_token<32>, zero::none>)                 \
  X(float, 48, 64, mix, int3<per_channel<64>>)                          \
  X(bf16, 48, 64, dot, int5<per_channel<32>, zero::integer>)            \
  X(f16, 64, 64, mix, int5<per_token<64>>)                              \
  X(float, 80, 64, dot, int6<per_channel<16>, zero::none, bf16>)        \
  X(bf16, 128, 64, mix, int6<per_token<128>, zero::integer, float>)     \
  X(float, 80, 64, dot, int7<per_token<>, zero::integer>)               \
  X(bf16, 16, 64, mix, int7<per_channel<32>>)                           \
  X(bf16, 128, 64, dot, int8<per_token<>, zero::none, float>)           \
  X(float, 64, 64, mix, int8<per_channel<64>, zero::real, bf16>)        \
  X(bf16, 192, 64, mix, int8<per_token<16>, zero::integer, bf16>)       \
  X(bf16, 64, 64, dot, block_float<4, per_token<32>>)                   \
  X(float, 80, 64, mix, block_float<6, per_channel<16>>)

TEST_CASE("encode_tiles on a device: integer tiles have the bytes of the scalar codec", "[cuda][identity]") {
  using namespace pith;
  PITH_INTEGER_TILES(PITH_CHECK_ENCODE)
}

TEST_CASE("decode_tiles on a device: integer tiles give the numbers of the scalar codec, whatever the bytes", "[cuda][identity]") {
  using namespace pith;
  PITH_INTEGER_TILES(PITH_CHECK_DECODE)
}
