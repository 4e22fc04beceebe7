// SPDX-License-Identifier: Apache-2.0
#include "pith/codec/exponent_planes.hpp"
#include "pith/codec/exponent_rans.hpp"
#include "pith/codec/huffman.hpp"

// expect 1: rans_exponents: a tile has 1024 to 65536 numbers, a multiple of 1024. Fix: 32 rows of 256.
// expect 2: huffman: a tile has 1024 to 32768 numbers, a multiple of 1024. Fix: 32 rows of 256.
// expect 3: exponent_planes: a tile has 512 to 32768 numbers, a multiple of 512. Fix: 32 rows of 256.
template <class Coder, int Count>
bool readable(std::byte const* tail, std::int64_t bytes) {
  return Coder::template bind<Count>::check(nullptr, tail, bytes);
}

bool use(std::byte const* tail) {
#if PITH_WRONG == 1
  return readable<pith::rans_exponents, 1000>(tail, 9);
#elif PITH_WRONG == 2
  return readable<pith::huffman, 65536>(tail, 9);
#elif PITH_WRONG == 3
  return pith::exponent_planes::bind<65536>::check(tail, 128, tail, 9);
#else
  return readable<pith::rans_exponents, 65536>(tail, 9) && readable<pith::huffman, 32768>(tail, 9);
#endif
}
