// SPDX-License-Identifier: Apache-2.0
#include "pith/codec/float8.hpp"
#include "pith/codec/hadamard.hpp"
#include "pith/codec/outliers.hpp"
#include "pith/codec/sum.hpp"
#include "pith/cuda/encode.hpp"

// expect 1: encode_tiles, decode_tiles: this codec has no device form. Fix: raw, int2 to int8, block_float or float8
// expect 2: encode_tiles, decode_tiles: this codec has no device form. Fix: raw, int2 to int8, block_float or float8
// expect 3: encode_tiles, decode_tiles: this codec has no device form. Fix: raw, int2 to int8, block_float or float8
// expect 4: integer<Bits, ...>: Bits is 2 to 8. Fix: int4<...>.
namespace {

using namespace pith;

struct no_device {
  template <class Kernel>
  status launch(Kernel const&, device::grid const&) const noexcept {
    return {errc::unsupported};
  }
  status copy(std::byte*, std::byte const*, std::int64_t) const { return {errc::unsupported}; }
  std::span<std::byte> scratch() const { return {}; }
  std::uint64_t* status_word() const { return nullptr; }
  int multiprocessors() const { return 0; }
};

template <class Codec>
status encode(matrix_view<bf16, space::device> rows, std::byte* out) {
  using tile = typename Codec::template bind<64, 64, use::dot>;
  return encode_tiles<tile>(no_device{}, rows, out, tile::bytes);
}
template <class Codec>
[[maybe_unused]] status decode(std::byte const* in, matrix_view<bf16, space::device> rows) {
  using tile = typename Codec::template bind<64, 64, use::dot>;
  return decode_tiles<tile>(no_device{}, in, tile::bytes, rows);
}

}  // namespace

status use_it(matrix_view<bf16, space::device> rows, std::byte* bytes) {
  using pith::pipe;
#if PITH_WRONG == 1
  return encode<outliers<both_ends<1>, per_channel<>>>(rows, bytes);
#elif PITH_WRONG == 2
  return encode<pipe<hadamard<64>, sum<int4<per_token<64>>, outliers<magnitudes<2>, per_token<>>>>>(rows, bytes);
#elif PITH_WRONG == 3
  return decode<outliers<both_ends<1>, per_channel<>>>(bytes, rows);
#elif PITH_WRONG == 4
  return encode<integer<9, per_token<64>>>(rows, bytes);
#else
  if (status const ok = encode<pipe<hadamard<64>, int4<per_token<64>>>>(rows, bytes); !ok) return ok;
  return decode<mxfp8<e4m3>>(bytes, rows);
#endif
}
