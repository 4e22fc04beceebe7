// SPDX-License-Identifier: Apache-2.0
// encode_tiles and decode_tiles: bytes read and written per second, beside a copy of as many bytes on the same device.
#include <cstdio>
#include <vector>

#include "pith/codec/hadamard.hpp"
#include "pith/cuda/encode.hpp"
#include "pith/cuda/environment.cuh"

namespace {

using pith::bf16;
using pith::space;
using pith::use;

constexpr std::int64_t rows_bytes = std::int64_t{1} << 30;  // many times the second-level cache

// Median milliseconds of a call, behind two that warm up.
template <class Call>
float median_ms(Call const& call) {
  constexpr int repetitions = 11;
  cudaEvent_t begin, end;
  cudaEventCreate(&begin);
  cudaEventCreate(&end);
  float ms[repetitions] = {};
  for (int i = -2; i < repetitions; ++i) {
    cudaEventRecord(begin);
    call();
    cudaEventRecord(end);
    cudaEventSynchronize(end);
    if (i >= 0) cudaEventElapsedTime(&ms[i], begin, end);
  }
  for (int i = 1; i < repetitions; ++i)
    for (int j = i; j > 0 && ms[j] < ms[j - 1]; --j) {
      float const moved = ms[j];
      ms[j] = ms[j - 1];
      ms[j - 1] = moved;
    }
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  return ms[repetitions / 2];
}

double copy_rate = 0;  // bytes read and written per second

template <class Codec, int Channels, int PageTokens, use Use>
bool measure(char const* name, pith::cuda_environment const& env, std::byte* rows, std::byte* packed) {
  using tile = typename Codec::template bind<Channels, PageTokens, Use>;
  std::int64_t const tiles = rows_bytes / (2 * tile::tokens * tile::channels), moved = tiles * (2 * tile::tokens * tile::channels + tile::bytes);
  pith::matrix_view<bf16, space::device> const view(reinterpret_cast<bf16*>(rows), {tiles * tile::tokens, tile::channels});
  pith::status ok;
  float const encode = median_ms([&] { ok = ok ? pith::encode_tiles<tile>(env, view, packed, tile::bytes) : ok; });
  float const decode = median_ms([&] { ok = ok ? pith::decode_tiles<tile>(env, packed, tile::bytes, view) : ok; });
  if (!ok || cudaGetLastError() != cudaSuccess) {
    std::printf("%-48s failed: %s\n", name, pith::message(ok.code));
    return false;
  }
  double const encoded = static_cast<double>(moved) / encode * 1e3, decoded = static_cast<double>(moved) / decode * 1e3;
  std::printf("%-48s encode %7.0f GB/s, %3.0f %% of a copy   decode %7.0f GB/s, %3.0f %%\n", name, encoded * 1e-9, 100 * encoded / copy_rate,
              decoded * 1e-9, 100 * decoded / copy_rate);
  return true;
}

// bf16 numbers between 1/8 and 2, of both signs.
__global__ void fill(std::uint32_t* words, std::int64_t count) {
  for (std::int64_t i = blockIdx.x * std::int64_t{blockDim.x} + threadIdx.x; i < count; i += std::int64_t{gridDim.x} * blockDim.x) {
    std::uint32_t x = static_cast<std::uint32_t>(i) * 2654435761u;
    x ^= x >> 15, x *= 2246822519u, x ^= x >> 13;
    words[i] = (x & 0x81ff81ffu) | 0x3e003e00u;
  }
}

}  // namespace

#define PITH_MEASURE(Channels, PageTokens, Use, ...) \
  all = measure<__VA_ARGS__, Channels, PageTokens, use::Use>(#__VA_ARGS__ " " #Channels " " #Use, env, rows, packed) && all;

int main() {
  std::byte *rows = nullptr, *packed = nullptr;
  if (cudaMalloc(&rows, rows_bytes) != cudaSuccess || cudaMalloc(&packed, rows_bytes + rows_bytes / 8) != cudaSuccess) {
    std::printf("no memory on a device\n");
    return 1;
  }
  auto made = pith::cuda_environment::make(nullptr, pith::plain_device_memory());
  if (!made) return 1;
  pith::cuda_environment const& env = made.value();
  copy_rate = 2.0 * rows_bytes / median_ms([&] { cudaMemcpyAsync(packed, rows, rows_bytes, cudaMemcpyDeviceToDevice); }) * 1e3;
  std::printf("copy %.0f GB/s, read and written\n", copy_rate * 1e-9);
  fill<<<4096, 256>>>(reinterpret_cast<std::uint32_t*>(rows), rows_bytes / 4);

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
  cudaFree(rows);
  cudaFree(packed);
  return all ? 0 : 1;
}
