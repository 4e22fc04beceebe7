// SPDX-License-Identifier: Apache-2.0
#include <vector>

#include "pith/codec/huffman.hpp"
#include "pith/codec/integer.hpp"
#include "pith/codec/raw.hpp"
#include "pith/cuda/packed_matrix.hpp"

// expect 1: packed_matrix<C, ..., cuda>: C has no product on a device. Fix: integer codes (int2 to int8), block_float,
// expect 2: packed_matrix<C, use::mix, ..., cuda>: multiply reads weights that are laid out for dot. Fix: use::dot.
// expect 3: multiply<A>: A is exact_accuracy or integer_accuracy. Fix: multiply<integer_accuracy>(...).
// expect 4: packed_matrix<C, Use, Panel, cuda>: two panels are more than a block's shared memory. Fix: a smaller Panel, 256.
// expect 5: packed_matrix<C>: C is not a codec. Fix: raw<bf16>,
// expect 6: packed_matrix<..., cuda>: there is no product with W^T on a device. Fix: pack the transposed matrix and multiply.
// expect 7: packed_matrix<dynamic_float<...>, ..., cuda>: this coder has no product on a device. Fix: dynamic_float<bf16>, laid out for
// expect 8: unpack(env, w): only dynamic_float with exponent_window, huffman or rans_exponents is unpacked on a device. Fix: decode_tiles
using codec = pith::int4<pith::per_token<64>, pith::zero::none>;
using pith::use;
#if PITH_WRONG == 1
using weights = pith::packed_matrix<pith::raw<float>, use::dot, 256, pith::cuda>;
#elif PITH_WRONG == 2
using weights = pith::packed_matrix<codec, use::mix, 256, pith::cuda>;
#elif PITH_WRONG == 4
using weights = pith::packed_matrix<pith::int8<pith::per_channel<16>, pith::zero::real, float>, use::dot, 1024, pith::cuda>;
#elif PITH_WRONG == 5
using weights = pith::packed_matrix<float, use::dot, 256, pith::cuda>;
#elif PITH_WRONG == 7
using weights = pith::packed_matrix<pith::dynamic_float<pith::bf16, pith::huffman>, use::dot, 256, pith::cuda>;
#elif !defined(PITH_WRONG)
using weights = pith::packed_matrix<pith::dynamic_float<pith::bf16>, use::dot, 256, pith::cuda>;
#else
using weights = pith::packed_matrix<codec, use::dot, 256, pith::cuda>;
#endif
#if PITH_WRONG == 3
using accuracy = float;
#else
using accuracy = pith::integer_accuracy;
#endif

struct no_device {
  template <class Kernel>
  pith::status launch(Kernel const&, pith::device::grid const&) const {
    return {pith::errc::unsupported};
  }
  pith::status copy(std::byte*, std::byte const*, std::int64_t) const { return {pith::errc::unsupported}; }
  std::span<std::byte> scratch() const { return {}; }
  std::uint64_t* status_word() const { return nullptr; }
  int multiprocessors() const { return 1; }
};

pith::status use_it(std::vector<std::byte>& bytes, float* x, float* y) {
  auto const w = weights::open(bytes, 4, 4);
  if (!w) return w.error();
#if PITH_WRONG == 5
  return {};
#else
  using view = pith::matrix_view<float, pith::space::device>;
#if PITH_WRONG == 6
  return w.value().multiply_transposed<accuracy>(no_device{}, view(x, {1, 4}), view(y, {1, 4}));
#elif PITH_WRONG == 8
  if (pith::status const ok = w.value().unpack(no_device{}, view(y, {4, 4})); !ok) return ok;
#endif
  return w.value().multiply<accuracy>(no_device{}, view(x, {1, 4}), view(y, {1, 4}));
#endif
}
