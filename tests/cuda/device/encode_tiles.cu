// SPDX-License-Identifier: Apache-2.0
// encode_tiles and decode_tiles on the device: the bytes of Tile::encode and the numbers of Tile::decode.
#include <cstring>

#include "pith/codec/block_float.hpp"
#include "pith/codec/hadamard.hpp"
#include "pith/cuda/encode.hpp"
#include "pith/cuda/environment.cuh"
#include "tests/cuda/device/device_case.hpp"
#include "tests/laws/sample_state.hpp"
#include "tests/support/digest.hpp"

namespace {

using pith::bf16;
using pith::f16;
using pith::space;
using pith::use;

// Mostly small, some of any size, some not finite; a tile in eight has none of these.
template <class T>
std::vector<T> hard_rows(std::int64_t tiles, std::int64_t numbers) {
  pith_test::random_bits random(9);
  std::vector<T> rows;
  rows.reserve(static_cast<std::size_t>(tiles * numbers));
  for (std::int64_t i = 0; i < tiles; ++i)
    for (std::int64_t k = 0; k < numbers; ++k) {
      std::uint64_t const r = random();
      float x = random.uniform() * static_cast<float>(1 + k % 64);
      if (i % 8 != 0 && r % 512 < static_cast<unsigned>(i % 8)) x = pith::bits_float(static_cast<std::uint32_t>(r >> 32));
      if (i % 8 == 7 && r % 1024 == 1000) x = pith::bits_float(r & 1024 ? 0x7f800000u : 0xffc00000u);
      rows.push_back(pith::from_float<T>(x));
    }
  return rows;
}

template <class T>
bool same(T a, T b) {
  return std::memcmp(&a, &b, sizeof a) == 0 || (pith::is_nan(pith::to_float(a)) && pith::is_nan(pith::to_float(b)));
}

template <class Codec, int Channels, int PageTokens, use Use, class T>
void compare(pith_test::device_test& test) {
  using tile = typename Codec::template bind<Channels, PageTokens, Use>;
  constexpr std::int64_t tiles = 333, numbers = static_cast<std::int64_t>(tile::tokens) * tile::channels;
  auto made = pith::cuda_environment::make(nullptr, pith::plain_device_memory());
  if (!test.need(made.error(), "environment")) return;
  std::vector<T> const rows = hard_rows<T>(tiles, numbers);
  pith_test::on_device<T> const in(rows), out(rows.size());
  pith_test::on_device<std::byte> const bytes(static_cast<std::size_t>(tiles * tile::bytes));
  pith_test::on_device<pith::state_of<tile>> const state(std::vector<pith::state_of<tile>>(1, pith_test::sample_state<tile>()));
  pith::matrix_view<T const, space::device> const from(in.data(), {tiles * tile::tokens, tile::channels});
  pith::matrix_view<T, space::device> const to(out.data(), {tiles * tile::tokens, tile::channels});
  if (!test.need(pith::encode_tiles<tile>(made.value(), from, bytes.data(), tile::bytes, state.data()), "encode")) return;
  if (!test.need(pith::decode_tiles<tile>(made.value(), bytes.data(), tile::bytes, to, state.data()), "decode")) return;
  std::vector<std::byte> const packed = bytes.values(test);
  std::vector<T> const back = out.values(test);

  std::vector<float> exact(static_cast<std::size_t>(numbers));
  std::vector<std::byte> expected(static_cast<std::size_t>(tile::bytes));
  for (std::int64_t i = 0; i < tiles; ++i) {
    auto const first = static_cast<std::size_t>(i * numbers);
    for (std::size_t k = 0; k < exact.size(); ++k) exact[k] = pith::to_float(rows[first + k]);
    pith::encode_tile<tile>(exact.data(), expected.data(), pith_test::sample_state<tile>());
    test.check(std::memcmp(packed.data() + i * tile::bytes, expected.data(), expected.size()) == 0, "tile %d has other bytes",
               static_cast<int>(i));
    pith::decode_tile<tile>(expected.data(), exact.data(), pith_test::sample_state<tile>());
    for (std::size_t k = 0; k < exact.size(); ++k)
      test.check(same(back[first + k], pith::from_float<T>(exact[k])), "number %d of tile %d is another", static_cast<int>(k),
                 static_cast<int>(i));
  }
}

}  // namespace

#define PITH_COMPARE(T, Channels, PageTokens, Use, ...)                                   \
  DEVICE_CASE("encode_tiles: " #__VA_ARGS__ ", " #Channels " channels, " #Use ", " #T) { \
    using namespace pith;                                                                 \
    using pith::pipe;                                                                     \
    compare<__VA_ARGS__, Channels, PageTokens, use::Use, T>(test);                        \
  }

PITH_COMPARE(bf16, 128, 64, dot, pith::int4<per_channel<32>>)
PITH_COMPARE(bf16, 128, 64, mix, pith::int4<per_token<64>>)
PITH_COMPARE(f16, 80, 64, dot, pith::int4<per_token<>, zero::integer>)
PITH_COMPARE(bf16, 64, 64, mix, pith::int2<per_token<32>>)
PITH_COMPARE(float, 256, 256, mix, pith::int2<per_channel<>, zero::real, bf16>)
PITH_COMPARE(float, 96, 64, dot, pith::int3<per_token<32>, zero::none>)
PITH_COMPARE(bf16, 48, 64, mix, int5<per_channel<16>>)
PITH_COMPARE(bf16, 64, 64, dot, int6<per_token<64>, zero::integer, float>)
PITH_COMPARE(bf16, 80, 64, mix, int7<per_token<>>)
PITH_COMPARE(bf16, 128, 64, dot, int8<per_token<>, zero::none, float>)
PITH_COMPARE(bf16, 64, 64, mix, block_float<4, per_channel<32>>)
PITH_COMPARE(bf16, 64, 64, dot, mxfp8<e4m3>)
PITH_COMPARE(f16, 64, 64, mix, float8<e5m2>)
PITH_COMPARE(f16, 64, 64, dot, raw<f16>)
PITH_COMPARE(float, 80, 16, mix, raw<bf16>)
PITH_COMPARE(bf16, 128, 64, dot, pipe<hadamard<128>, pith::int4<per_token<64>>>)
PITH_COMPARE(bf16, 256, 256, mix, pipe<hadamard<256>, pith::int4<per_channel<>>>)
PITH_COMPARE(float, 64, 64, dot, pipe<rotate, int8<per_token<64>>>)
PITH_COMPARE(bf16, 80, 64, dot, pipe<balance, pith::int4<per_token<16>>>)
PITH_COMPARE(bf16, 128, 64, mix, pipe<balance, pipe<hadamard<64>, pipe<permute, pith::int2<per_channel<32>>>>>)
