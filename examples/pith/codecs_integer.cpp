// SPDX-License-Identifier: Apache-2.0
#include "packed_codec.hpp"
#include "pith/codec/integer.hpp"

std::vector<tool::codec> tool::integer_codecs() {
  using int8 = pith::int8<pith::per_token<64>, pith::zero::none>;
  using int4 = pith::int4<pith::per_token<64>, pith::zero::none>;
  return {packed_codec<float, int8, 128>::line("int8<per_token<64>,none>", "F32", true),
          packed_codec<float, int4, 256>::line("int4<per_token<64>,none>", "F32", true)};
}
