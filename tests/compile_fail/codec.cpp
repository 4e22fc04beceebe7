// SPDX-License-Identifier: Apache-2.0
#include "pith/codec/bitmap_sparse.hpp"
#include "pith/codec/block_float.hpp"
#include "pith/codec/float8.hpp"
#include "pith/codec/hadamard.hpp"
#include "pith/codec/integer.hpp"
#include "pith/codec/pipe.hpp"
#include "pith/codec/raw.hpp"

// expect 1: integer<Bits, ...>: Bits is 2 to 8. Fix: int4<...>.
// expect 2: integer<Bits, Group>: Group says who shares a scale. Fix: per_token<64> or per_channel<32>.
// expect 3: per_token<G>, per_channel<G>: G is 16, 32, 64, 128 or 256.
// expect 4: integer<Bits, Group, Zero, Scale>: Scale is f16, bf16 or float. Fix: f16.
// expect 5: per_token<G>: the channels must be a multiple of the group G.
// expect 6: per_channel<G>: a group spans G tokens of a page.
// expect 7: hadamard<N>: N is a power of two up to 1024. Fix: hadamard<64>.
// expect 8: hadamard<N>: the channels must be a multiple of N. Fix: an N that divides head_dim.
// expect 9: per_channel<>: a group spans a page of at most 256 tokens. Fix: per_channel<256>.
// expect 10: block_float<Bits, Group>: Bits is 4 to 8, sign included. Fix: block_float<4, per_token<32>>.
// expect 11: block_float<Bits, Group>: a block is 16, 32, 64 or 128 numbers. Fix: per_token<32>.
// expect 12: block_float<Bits, Group>: Group says who shares an exponent. Fix: per_token<32> or per_channel<32>.
// expect 13: per_token<G>: the channels must be a multiple of the group G.
// expect 14: integer<Bits, Group, Zero, Scale>: Scale is f16, bf16 or float. Fix: f16.
// expect 15: float8<T, Group, Scale>: T is e4m3 or e5m2. Fix: float8<e4m3>.
// expect 16: float8<T, Group>: Group says who shares a scale. Fix: per_token<64>, or float8<T> for no scale.
// expect 17: float8<T, Group, Scale>: Scale is bf16, f16, float or e8m0. Fix: bf16.
// expect 18: per_channel<G>: a group spans G tokens of a page.
// expect 19: bitmap_sparse<T>: T is bf16 or f16. Fix: bf16.
template <class Codec, int Channels = 64, int PageTokens = 64>
void round_trip(float* rows, std::byte* bytes) {
  using tile = typename Codec::template bind<Channels, PageTokens, pith::use::dot>;
  tile::encode(rows, bytes);
  tile::decode(bytes, rows);
}

void use(float* rows, std::byte* bytes) {
#if PITH_WRONG == 1
  round_trip<pith::integer<9, pith::per_token<32>>>(rows, bytes);
#elif PITH_WRONG == 2
  round_trip<pith::integer<4, int>>(rows, bytes);
#elif PITH_WRONG == 3
  round_trip<pith::int4<pith::per_token<24>>>(rows, bytes);
#elif PITH_WRONG == 4
  round_trip<pith::int4<pith::per_token<32>, pith::zero::real, double>>(rows, bytes);
#elif PITH_WRONG == 5
  round_trip<pith::int4<pith::per_token<64>>, 80>(rows, bytes);
#elif PITH_WRONG == 6
  round_trip<pith::int4<pith::per_channel<128>>>(rows, bytes);
#elif PITH_WRONG == 7
  round_trip<pith::pipe<pith::hadamard<48>, pith::int4<pith::per_token<16>>>, 96>(rows, bytes);
#elif PITH_WRONG == 8
  round_trip<pith::pipe<pith::hadamard<64>, pith::int4<pith::per_token<16>>>, 80>(rows, bytes);
#elif PITH_WRONG == 9
  round_trip<pith::int4<pith::per_channel<>>, 64, 512>(rows, bytes);
#elif PITH_WRONG == 10
  round_trip<pith::block_float<3, pith::per_token<32>>>(rows, bytes);
#elif PITH_WRONG == 11
  round_trip<pith::block_float<4, pith::per_token<>>>(rows, bytes);
#elif PITH_WRONG == 12
  round_trip<pith::block_float<4, pith::f16>>(rows, bytes);
#elif PITH_WRONG == 13
  round_trip<pith::block_float<4, pith::per_token<64>>, 80>(rows, bytes);
#elif PITH_WRONG == 14
  round_trip<pith::int4<pith::per_token<32>, pith::zero::none, pith::e8m0>>(rows, bytes);
#elif PITH_WRONG == 15
  round_trip<pith::float8<pith::f16>>(rows, bytes);
#elif PITH_WRONG == 16
  round_trip<pith::float8<pith::e4m3, pith::bf16>>(rows, bytes);
#elif PITH_WRONG == 17
  round_trip<pith::float8<pith::e5m2, pith::per_token<32>, pith::e4m3>>(rows, bytes);
#elif PITH_WRONG == 18
  round_trip<pith::float8<pith::e4m3, pith::per_channel<128>>>(rows, bytes);
#elif PITH_WRONG == 19
  round_trip<pith::bitmap_sparse<float>>(rows, bytes);
#else
  round_trip<pith::pipe<pith::hadamard<64>, pith::int4<pith::per_token<64>>>>(rows, bytes);
  round_trip<pith::int2<pith::per_channel<128>>, 80, 128>(rows, bytes);
  round_trip<pith::int4<pith::per_channel<>>, 64, 256>(rows, bytes);
  round_trip<pith::block_float<5, pith::per_channel<64>>, 80>(rows, bytes);
  round_trip<pith::mxfp8<pith::e5m2>>(rows, bytes);
  round_trip<pith::float8<pith::e4m3>, 80>(rows, bytes);
  round_trip<pith::int7<pith::per_token<16>>, 80>(rows, bytes);
#endif
}
