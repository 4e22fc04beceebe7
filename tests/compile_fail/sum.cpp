// SPDX-License-Identifier: Apache-2.0
#include "pith/codec/sum.hpp"
#include "pith/codec/hadamard.hpp"
#include "pith/codec/integer.hpp"
#include "pith/codec/outliers.hpp"
#include "pith/codec/pipe.hpp"
#include "pith/codec/raw.hpp"

// expect 1: sum<A, B, ...>: there is no stage.
// expect 2: sum<A, B, ...>: every stage is a codec.
// expect 3: sum<A, B, ...>: a transform goes outside, over all stages. Fix: pipe<T, sum<A, B>>.
// expect 4: sum<A, B, ...>: a stage saturates; raw<T> would hand on what is not finite.
// expect 5: sum<A, B, ...>: the longest stage's tile must hold whole tiles of the others.
// expect 6: outliers<Which, Group>: Which says what stands out. Fix: both_ends<1> or magnitudes<2>.
// expect 7: outliers<Which, Group>: Group says what a vector is. Fix: per_token<64> or per_channel<64>.
// expect 8: outliers<Which, Group, Leave, Value>: Value is f16, bf16 or float. Fix: f16.
// expect 9: outliers<Which, Group>: a vector has 16, 32, 64, 128 or 256 numbers.
// expect 10: outliers<Which, Group>: a vector has at most 256 numbers; its places are bytes. Fix: per_token<128>.
// expect 11: outliers<Which, Group>: vectors must fill the row or the page.
// expect 12: outliers<Which, Group>: at most half of a vector stands out. Fix: both_ends<1>.
// expect 13: outliers<Which, Group>: Which says what stands out. Fix: both_ends<1> or magnitudes<2>.
// expect 14: integer<Bits, ...>: Bits is 2 to 8. Fix: int4<...>.
namespace {

using namespace pith;

template <class Codec, int Channels = 64, int PageTokens = 64>
void round_trip(float* rows, std::byte* bytes) {
  using tile = typename Codec::template bind<Channels, PageTokens, use::dot>;
  tile::encode(rows, bytes);
  tile::decode(bytes, rows);
}

// A codec of 48 tokens.
struct forty_eight {
  template <int Channels, int PageTokens, use Use>
  struct bind : no_tile<Channels> {
    static constexpr int tokens = 48;
  };
};

}  // namespace

void try_it(float* rows, std::byte* bytes) {
#if PITH_WRONG == 1
  round_trip<sum<>>(rows, bytes);
#elif PITH_WRONG == 2
  round_trip<sum<int4<per_token<64>>, per_token<64>>>(rows, bytes);
#elif PITH_WRONG == 3
  round_trip<sum<outliers<both_ends<1>, per_token<>>, pith::pipe<hadamard<64>, int4<per_token<64>>>>>(rows, bytes);
#elif PITH_WRONG == 4
  round_trip<sum<int4<per_token<64>>, pith::raw<f16>>>(rows, bytes);
#elif PITH_WRONG == 5
  round_trip<sum<int4<per_channel<64>>, forty_eight>>(rows, bytes);
#elif PITH_WRONG == 6
  round_trip<sum<outliers<per_token<>, per_token<>>, int4<per_token<64>>>>(rows, bytes);
#elif PITH_WRONG == 7
  round_trip<outliers<both_ends<1>, int>>(rows, bytes);
#elif PITH_WRONG == 8
  round_trip<outliers<both_ends<1>, per_token<>, leave::mean, double>>(rows, bytes);
#elif PITH_WRONG == 9
  round_trip<outliers<both_ends<1>, per_token<24>>>(rows, bytes);
#elif PITH_WRONG == 10
  round_trip<outliers<both_ends<1>, per_token<>>, 512>(rows, bytes);
#elif PITH_WRONG == 11
  round_trip<outliers<both_ends<1>, per_channel<128>>>(rows, bytes);
#elif PITH_WRONG == 12
  round_trip<outliers<both_ends<5>, per_token<16>>>(rows, bytes);
#elif PITH_WRONG == 13
  round_trip<outliers<magnitudes<0>, per_token<16>>>(rows, bytes);
#elif PITH_WRONG == 14
  round_trip<sum<outliers<both_ends<1>, per_token<>>, integer<9, per_token<64>>>>(rows, bytes);
#else
  round_trip<sum<outliers<both_ends<1>, per_token<>>, int4<per_token<64>>>>(rows, bytes);
  round_trip<pith::pipe<hadamard<64>, sum<outliers<both_ends<1>, per_channel<>>, int2<per_channel<32>>, int2<per_token<32>>>>>(rows, bytes);
  round_trip<outliers<magnitudes<2>, per_token<128>, leave::end, bf16>, 512>(rows, bytes);
#endif
}
