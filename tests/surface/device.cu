// SPDX-License-Identifier: Apache-2.0
// Every device-visible header in one .cu, and the codecs' encode and decode in kernels. Compiling it needs nvcc only. Where there is a
// GPU the program encodes the same tiles on both sides: exit status 0 if bytes and decoded numbers are identical.
#include "device_headers.hpp"

#include <cstdio>
#include <cstring>
#include <vector>

#include "support/digest.hpp"

template <class Tile>
__global__ void round_trip(float const* rows, std::byte* packed, float* back, std::int64_t tiles) {
  std::int64_t const tile = blockIdx.x * static_cast<std::int64_t>(blockDim.x) + threadIdx.x;
  if (tile >= tiles) return;
  std::int64_t const numbers = static_cast<std::int64_t>(Tile::tokens) * Tile::channels;
  Tile::encode(rows + tile * numbers, packed + tile * Tile::bytes);
  Tile::decode(packed + tile * Tile::bytes, back + tile * numbers);
}

__global__ void use_core(pith::tensor_view<float const, 2, pith::space::device> in, std::uint16_t* out, pith::status* status) {
  std::int64_t const token = blockIdx.x;
  if (token >= in.extent[0]) {
    *status = pith::status{pith::errc::out_of_range, token};
    return;
  }
  float const x = in.data[in.offset(token, threadIdx.x)];
  pith::result<int> const code = pith::round_even(pith::clamp(pith::div_rn(x, 3.0f), -7.0f, 7.0f));
  if (!code) *status = code.error();
  out[token] = static_cast<std::uint16_t>(pith::from_float<pith::bf16>(x).bits ^ pith::from_float_saturated<pith::f16>(x).bits ^ code.value());
}

// 0: identical. 1: not. 2: the device could not be used.
template <class Codec, pith::use Use>
int compare(char const* name) {
  using tile = typename Codec::template bind<64, 64, Use>;
  constexpr std::int64_t tiles = 500;
  std::int64_t const numbers = tiles * tile::tokens * tile::channels;
  std::vector<float> rows(static_cast<std::size_t>(numbers)), back(rows.size()), device_back(rows.size());
  std::vector<std::byte> packed(static_cast<std::size_t>(tiles * tile::bytes)), device_packed(packed.size());
  pith_test::random_bits random(7);
  for (std::size_t i = 0; i < rows.size(); ++i)
    rows[i] = i % 5 ? random.uniform() * static_cast<float>(1 + i % 64) : pith::bits_float(static_cast<std::uint32_t>(random()));

  float *in = nullptr, *out = nullptr;
  std::byte* bytes = nullptr;
  if (cudaMalloc(&in, rows.size() * sizeof(float)) || cudaMalloc(&out, rows.size() * sizeof(float)) || cudaMalloc(&bytes, packed.size())) return 2;
  if (cudaMemcpy(in, rows.data(), rows.size() * sizeof(float), cudaMemcpyHostToDevice)) return 2;
  round_trip<tile><<<(tiles + 63) / 64, 64>>>(in, bytes, out, tiles);
  if (cudaMemcpy(device_packed.data(), bytes, packed.size(), cudaMemcpyDeviceToHost)) return 2;
  if (cudaMemcpy(device_back.data(), out, rows.size() * sizeof(float), cudaMemcpyDeviceToHost)) return 2;
  cudaFree(in), cudaFree(out), cudaFree(bytes);

  for (std::int64_t i = 0; i < tiles; ++i) {
    tile::encode(rows.data() + i * tile::tokens * tile::channels, packed.data() + i * tile::bytes);
    tile::decode(packed.data() + i * tile::bytes, back.data() + i * tile::tokens * tile::channels);
  }
  bool const same_bytes = std::memcmp(packed.data(), device_packed.data(), packed.size()) == 0;
  bool const same_numbers = std::memcmp(back.data(), device_back.data(), back.size() * sizeof(float)) == 0;
  std::printf("%-40s bytes %s, decoded %s\n", name, same_bytes ? "identical" : "DIFFER", same_numbers ? "identical" : "DIFFER");
  return same_bytes && same_numbers ? 0 : 1;
}

int main() {
  using pith::use;
  int worst = 0;
  auto const note = [&](int code) { worst = code > worst ? code : worst; };
  note(compare<pith::raw<pith::bf16>, use::dot>("raw<bf16>, keys"));
  note(compare<pith::raw<pith::f16>, use::mix>("raw<f16>, values"));
  note(compare<pith::int2<pith::per_channel<32>>, use::dot>("int2<per_channel<32>>, keys"));
  note(compare<pith::int3<pith::per_token<32>>, use::mix>("int3<per_token<32>>, values"));
  note(compare<pith::int4<pith::per_channel<64>>, use::dot>("int4<per_channel<64>>, keys"));
  note(compare<pith::int4<pith::per_token<>, pith::zero::none>, use::mix>("int4<per_token<>, none>, values"));
  note(compare<pith::int8<pith::per_token<32>, pith::zero::integer>, use::mix>("int8<per_token<32>, integer>, values"));
  note(compare<pith::int6<pith::per_channel<32>>, use::dot>("int6<per_channel<32>>, keys"));
  note(compare<pith::int7<pith::per_token<64>>, use::mix>("int7<per_token<64>>, values"));
  note(compare<pith::block_float<4, pith::per_token<32>>, use::dot>("block_float<4, per_token<32>>, keys"));
  note(compare<pith::float8<pith::e4m3>, use::mix>("float8<e4m3>, values"));
  note(compare<pith::float8<pith::e5m2, pith::per_channel<32>>, use::dot>("float8<e5m2, per_channel<32>>, keys"));
  note(compare<pith::mxfp8<pith::e4m3>, use::dot>("mxfp8<e4m3>, keys"));
  note(compare<pith::pipe<pith::hadamard<64>, pith::int4<pith::per_channel<32>>>, use::dot>("hadamard<64>, int4<per_channel<32>>, keys"));
  std::printf("%s\n", worst == 0 ? "the device stores the same bytes" : worst == 1 ? "the device stores other bytes" : "no usable device");
  return worst;
}
