// SPDX-License-Identifier: Apache-2.0
// Transformed tiles on the device.
#include "pith/codec/hadamard.hpp"
#include "tests/cuda/encode_support.hpp"

#define PITH_TRANSFORMED_TILES(X)                                                        \
  X(bf16, 128, 64, dot, pipe<hadamard<128>, int4<per_channel<32>>>)                     \
  X(float, 96, 64, mix, pipe<hadamard<32>, int4<per_token<32>, zero::none>>)            \
  X(bf16, 256, 256, dot, pipe<hadamard<256>, int2<per_channel<>>>)                      \
  X(f16, 80, 64, mix, pipe<hadamard<16>, raw<bf16>>)                                    \
  X(bf16, 64, 64, dot, pipe<permute, int4<per_token<32>>>)                              \
  X(bf16, 80, 64, mix, pipe<balance, int4<per_token<16>>>)                              \
  X(float, 64, 64, dot, pipe<rotate, int8<per_token<64>>>)                              \
  X(bf16, 128, 64, mix, pipe<balance, pipe<hadamard<64>, pipe<permute, int2<per_channel<32>>>>>)

TEST_CASE("encode_tiles on a device: transformed tiles have the bytes of the scalar codec", "[cuda][identity]") {
  using namespace pith;
  using pith::pipe;  // not the system call
  PITH_TRANSFORMED_TILES(PITH_CHECK_ENCODE)
}

TEST_CASE("decode_tiles on a device: transformed tiles give the numbers of the scalar codec, whatever the bytes", "[cuda][identity]") {
  using namespace pith;
  using pith::pipe;
  PITH_TRANSFORMED_TILES(PITH_CHECK_DECODE)
}
