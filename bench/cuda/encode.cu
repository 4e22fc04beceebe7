// SPDX-License-Identifier: Apache-2.0
// encode_tiles and decode_tiles: bytes read and written per second, beside a copy of as many bytes on the same device.
#include <cstdio>

#include "bench/cuda/timing.cuh"
#include "pith/codec/hadamard.hpp"
#include "pith/cuda/encode.hpp"
#include "pith/cuda/environment.cuh"

namespace {

using pith::bf16;
using pith::space;
using pith::use;

constexpr std::int64_t rows_bytes = std::int64_t{1} << 30;  // many times the second-level cache

double rate_of_copy = 0;

template <class Codec, int Channels, int PageTokens, use Use>
bool measure(char const* name, pith::cuda_environment const& env, bench::buffer const& rows, bench::buffer const& packed, bench::buffer const& flush) {
  using tile = typename Codec::template bind<Channels, PageTokens, Use>;
  std::int64_t const tiles = rows_bytes / (2 * tile::tokens * tile::channels), moved = tiles * (2 * tile::tokens * tile::channels + tile::bytes);
  pith::matrix_view<bf16, space::device> const view(rows.as<bf16>(), {tiles * tile::tokens, tile::channels});
  pith::status ok;
  float const encode = bench::median_ms(flush, [&] { ok = ok ? pith::encode_tiles<tile>(env, view, packed.data(), tile::bytes) : ok; });
  float const decode = bench::median_ms(flush, [&] { ok = ok ? pith::decode_tiles<tile>(env, packed.data(), tile::bytes, view) : ok; });
  if (!ok || cudaGetLastError() != cudaSuccess) {
    std::printf("%-48s failed: %s\n", name, pith::message(ok.code));
    return false;
  }
  double const encoded = static_cast<double>(moved) / encode * 1e3, decoded = static_cast<double>(moved) / decode * 1e3;
  std::printf("%-48s encode %7.0f GB/s, %3.0f %% of a copy   decode %7.0f GB/s, %3.0f %%\n", name, encoded * 1e-9, 100 * encoded / rate_of_copy,
              decoded * 1e-9, 100 * decoded / rate_of_copy);
  return true;
}

}  // namespace

#define PITH_MEASURE(Channels, PageTokens, Use, ...) \
  all = measure<__VA_ARGS__, Channels, PageTokens, use::Use>(#__VA_ARGS__ " " #Channels " " #Use, env, rows, packed, flush) && all;

int main() {
  bench::buffer const rows(rows_bytes), packed(rows_bytes + rows_bytes / 8), flush(std::size_t{256} << 20);
  auto made = pith::cuda_environment::make(nullptr, pith::plain_device_memory());
  if (!made || rows.data() == nullptr || packed.data() == nullptr || flush.data() == nullptr) {
    std::printf("no memory on a device\n");
    return 1;
  }
  pith::cuda_environment const& env = made.value();
  bench::fill_with_numbers(rows);
  rate_of_copy = bench::copy_rate(rows, flush);

  using namespace pith;
  bool all = true;
  PITH_MEASURE(128, 64, dot, raw<bf16>)
  PITH_MEASURE(128, 64, dot, int8<per_token<>, zero::none>)
  PITH_MEASURE(128, 64, dot, pith::int4<per_channel<32>>)
  PITH_MEASURE(128, 64, mix, pith::int4<per_token<64>>)
  PITH_MEASURE(80, 64, dot, pith::int4<per_channel<32>>)
  PITH_MEASURE(128, 64, dot, pith::int2<per_channel<32>>)
  PITH_MEASURE(128, 64, mix, pith::int3<per_token<32>, zero::none>)
  PITH_MEASURE(256, 256, dot, pith::int4<per_channel<256>>)
  PITH_MEASURE(128, 64, dot, mxfp8<e4m3>)
  PITH_MEASURE(128, 64, dot, pith::pipe<hadamard<128>, pith::int4<per_token<64>>>)
  return all ? 0 : 1;
}
