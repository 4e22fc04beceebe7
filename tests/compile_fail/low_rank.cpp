// SPDX-License-Identifier: Apache-2.0
#include "pith/codec/low_rank.hpp"
#include "pith/codec/integer.hpp"
#include "pith/codec/sum.hpp"

// expect 1: low_rank<Rank>: Rank is 1 to 16. Fix: low_rank<2>.
// expect 2: low_rank<Rank, Scalar>: Scalar is f16 or bf16. Fix: f16.
// expect 3: low_rank<Rank, Scalar, Tokens>: a tile has whole blocks of 32 tokens, at most 256, and pages hold whole tiles.
// expect 4: low_rank<Rank, Scalar, Tokens>: a tile has whole blocks of 32 tokens, at most 256, and pages hold whole tiles.
template <class Codec, int Channels = 64, int PageTokens = 64>
void round_trip(float* rows, std::byte* bytes) {
  using tile = typename Codec::template bind<Channels, PageTokens, pith::use::dot>;
  tile::encode(rows, bytes);
  tile::decode(bytes, rows);
}

void use(float* rows, std::byte* bytes) {
#if PITH_WRONG == 1
  round_trip<pith::low_rank<0>>(rows, bytes);
#elif PITH_WRONG == 2
  round_trip<pith::low_rank<2, float>>(rows, bytes);
#elif PITH_WRONG == 3
  round_trip<pith::sum<pith::int4<pith::per_token<64>>, pith::low_rank<2>>, 64, 512>(rows, bytes);
#elif PITH_WRONG == 4
  round_trip<pith::low_rank<2, pith::f16, 128>>(rows, bytes);
#else
  round_trip<pith::sum<pith::int4<pith::per_token<16>>, pith::low_rank<2>>, 80, 96>(rows, bytes);
  round_trip<pith::low_rank<16, pith::bf16, 32>, 256, 256>(rows, bytes);
#endif
}
