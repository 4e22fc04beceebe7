// SPDX-License-Identifier: Apache-2.0
// Every codec that the laws, the checksums and the flag sets are tried on: one list. A new codec gets a line here.
#pragma once

#include "laws/sample_state.hpp"
#include "pith/codec/block_float.hpp"
#include "pith/codec/float8.hpp"
#include "pith/codec/hadamard.hpp"
#include "pith/codec/integer.hpp"
#include "pith/codec/outliers.hpp"
#include "pith/codec/pipe.hpp"
#include "pith/codec/raw.hpp"
#include "pith/codec/sum.hpp"

// Codecs that need Eigen are tried where it is found.
#if __has_include(<Eigen/Core>)
#include "pith/codec/low_rank.hpp"
#define PITH_CODECS_WITH_EIGEN(X)                                                               \
  X(64, 64, low_rank<2>)                                                                        \
  X(80, 64, low_rank<3, bf16, 32>)                                                              \
  X(64, 64, sum<low_rank<1>, int4<per_token<64>>>)                                              \
  X(64, 64, sum<outliers<both_ends<1>, per_channel<>>, int2<per_channel<32>>, low_rank<2>>)
#else
#define PITH_CODECS_WITH_EIGEN(X)
#endif

// X(channels, page tokens, codec)
#define PITH_ALL_CODECS(X)                                                                      \
  X(64, 64, raw<bf16>)                                                                          \
  X(80, 16, raw<bf16>)                                                                          \
  X(80, 64, raw<f16>)                                                                           \
  X(64, 64, raw<float>)                                                                         \
  X(64, 64, int2<per_token<32>>)                                                                \
  X(64, 64, int2<per_channel<32>>)                                                              \
  X(80, 64, int2<per_token<16>, zero::integer, bf16>)                                           \
  X(128, 128, int2<per_channel<64>, zero::none, bf16>)                                          \
  X(64, 64, int3<per_token<64>>)                                                                \
  X(80, 64, int3<per_channel<16>, zero::real, float>)                                           \
  X(96, 64, int3<per_token<32>, zero::none>)                                                    \
  X(64, 64, int3<per_channel<>, zero::integer>)                                                 \
  X(64, 64, int4<per_token<64>>)                                                                \
  X(128, 64, int4<per_channel<32>>)                                                             \
  X(80, 64, int4<per_token<>, zero::none, bf16>)                                                \
  X(80, 64, int4<per_channel<16>, zero::integer, f16>)                                          \
  X(128, 64, int4<per_token<16>, zero::integer, float>)                                         \
  X(64, 64, int4<per_channel<>, zero::none, float>)                                             \
  X(64, 64, int5<per_token<32>>)                                                                \
  X(80, 64, int6<per_channel<16>, zero::none, bf16>)                                            \
  X(80, 64, int7<per_token<>, zero::integer>)                                                   \
  X(64, 64, int8<per_token<32>>)                                                                \
  X(80, 64, int8<per_channel<32>, zero::none>)                                                  \
  X(128, 64, int8<per_token<>, zero::none, float>)                                              \
  X(64, 64, int8<per_channel<64>, zero::real, bf16>)                                            \
  X(64, 64, int8<per_token<16>, zero::integer, bf16>)                                           \
  X(64, 64, block_float<4, per_token<32>>)                                                      \
  X(80, 64, block_float<6, per_channel<16>>)                                                    \
  X(128, 128, block_float<8, per_channel<64>>)                                                  \
  X(80, 64, float8<e4m3>)                                                                       \
  X(64, 64, float8<e5m2, per_token<32>>)                                                        \
  X(128, 128, float8<e4m3, per_channel<64>, f16>)                                               \
  X(64, 64, mxfp8<e4m3>)                                                                        \
  X(64, 64, pipe<hadamard<64>, int4<per_token<64>>>)                                            \
  X(128, 64, pipe<hadamard<64>, int4<per_channel<32>, zero::none>>)                             \
  X(64, 64, pipe<hadamard<32>, raw<bf16>>)                                                      \
  X(64, 64, pipe<permute, int4<per_token<32>>>)                                                 \
  X(80, 64, pipe<balance, int4<per_token<16>>>)                                                 \
  X(64, 64, pipe<rotate, int8<per_token<64>>>)                                                  \
  X(128, 64, pipe<balance, pipe<hadamard<64>, pipe<permute, int2<per_channel<32>>>>>)           \
  X(64, 64, outliers<both_ends<1>, per_channel<>>)                                              \
  X(80, 64, outliers<magnitudes<3>, per_token<16>, leave::zero, bf16>)                          \
  X(64, 64, outliers<both_ends<2>, per_token<>, leave::end, float>)                             \
  X(64, 64, sum<outliers<both_ends<1>, per_channel<>>, int2<per_channel<32>>>)                  \
  X(128, 64, sum<outliers<both_ends<1>, per_token<>>, int2<per_token<32>>>)                     \
  X(80, 64, sum<outliers<magnitudes<2>, per_token<16>, leave::end>, int3<per_token<16>>>)       \
  X(64, 64, sum<int2<per_channel<>, zero::real, float>, int3<per_token<32>, zero::none>>)       \
  X(64, 64, pipe<hadamard<64>, sum<int4<per_token<64>>, outliers<magnitudes<2>, per_token<>>>>) \
  PITH_CODECS_WITH_EIGEN(X)

namespace pith_test {

// f.template operator()<tile>(name) for both uses of every codec.
template <class F>
void for_each_tile(F f) {
  using namespace pith;
  using pith::pipe;  // not the system call
#define PITH_BOTH_USES(Channels, PageTokens, ...)                                                                  \
  f.template operator()<typename __VA_ARGS__::template bind<Channels, PageTokens, use::dot>>(#__VA_ARGS__ " dot"); \
  f.template operator()<typename __VA_ARGS__::template bind<Channels, PageTokens, use::mix>>(#__VA_ARGS__ " mix");
  PITH_ALL_CODECS(PITH_BOTH_USES)
#undef PITH_BOTH_USES
}

}  // namespace pith_test
