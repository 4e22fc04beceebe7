// SPDX-License-Identifier: Apache-2.0
#include <vector>

#include "pith/codec/dynamic_float.hpp"
#include "pith/codec/hadamard.hpp"
#include "pith/codec/integer.hpp"
#include "pith/codec/pipe.hpp"
#if PITH_WRONG != 5
#include "pith/cpu/linear.hpp"
#endif
#include "pith/linear/packed_matrix.hpp"

// expect 1: packed_matrix<C>: C is not a codec. Fix: raw<bf16>,
// expect 2: packed_matrix<Codec, Use, Panel>: Panel is a multiple of 32 up to 1024. Fix: leave it out.
// expect 3: multiply<A>: A is exact_accuracy or integer_accuracy. Fix: multiply<integer_accuracy>(...).
// expect 4: hadamard<N>: the channels must be a multiple of N.
// expect 5: packed_matrix<...>: no backend is included. Fix: #include "pith/cpu/linear.hpp".
// expect 6: pipe<T, C>: C has a variable rate. Fix: C alone,
using codec = pith::int4<pith::per_token<64>, pith::zero::none>;
#if PITH_WRONG == 1
using weights = pith::packed_matrix<float>;
#elif PITH_WRONG == 2
using weights = pith::packed_matrix<codec, pith::use::dot, 100>;
#elif PITH_WRONG == 4
using weights = pith::packed_matrix<pith::pipe<pith::hadamard<512>, codec>>;
#elif PITH_WRONG == 6
using weights = pith::packed_matrix<pith::pipe<pith::hadamard<64>, pith::dynamic_float<pith::bf16>>>;
#else
using weights = pith::packed_matrix<codec>;
#endif
#if PITH_WRONG == 3
using accuracy = float;
#else
using accuracy = pith::integer_accuracy;
#endif

pith::status use(std::vector<float>& x, std::vector<float>& y, std::vector<std::byte>& scratch) {
  auto const w = weights::pack(pith::matrix_view<float>(x.data(), {4, 4}));
#if PITH_WRONG == 1 || PITH_WRONG == 2 || PITH_WRONG == 4 || PITH_WRONG == 6
  return w ? pith::status{} : w.error();
#else
  if (!w) return w.error();
  return w.value().multiply<accuracy>(pith::matrix_view<float>(x.data(), {1, 4}), pith::matrix_view<float>(y.data(), {1, 4}), scratch);
#endif
}
