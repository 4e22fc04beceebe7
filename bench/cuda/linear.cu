// SPDX-License-Identifier: Apache-2.0
// packed_matrix on a device: W x for 1 to 64 rows of x, packed bytes per second beside a copy on the same device, and operations.
#include <cstdio>

#include "bench/cuda/timing.cuh"
#include "pith/cuda/environment.cuh"
#include "pith/cuda/packed_matrix.hpp"

namespace {

using pith::bf16;
using pith::per_token;
using pith::space;

double rate_of_copy = 0;

template <class Codec, class Accuracy>
bool measure(char const* name, pith::cuda_environment const& env, bench::buffer const& memory, bench::buffer const& x, bench::buffer const& out, bench::buffer const& flush,
             std::int64_t rows, std::int64_t columns, std::int64_t batch) {
  using weights = pith::packed_matrix<Codec, pith::use::dot, pith::default_panel<Codec, pith::use::dot>(), pith::cuda>;
  std::int64_t const bytes = weights::bound_bytes(rows, columns);
  auto const made = weights::open({memory.data(), static_cast<std::size_t>(bytes)}, rows, columns);
  if (!made) return false;
  pith::matrix_view<bf16 const, space::device> const in(x.as<bf16 const>(), {batch, columns});
  pith::matrix_view<bf16, space::device> const to(out.as<bf16>(), {batch, rows});
  pith::status ok;
  float const ms = bench::median_ms(flush, [&] {
    pith::status const one = made.value().template multiply<Accuracy>(env, in, to);
    if (!one) ok = one;
  });
  cudaError_t const error = cudaDeviceSynchronize();
  if (!ok || error != cudaSuccess) {
    std::printf("%-16s failed: %s, %s\n", name, pith::message(ok.code), cudaGetErrorString(error));
    return false;
  }
  double const rate = static_cast<double>(bytes) / ms * 1e3, operations = 2.0 * static_cast<double>(rows * columns * batch) / ms * 1e-9;
  std::printf("%-16s %5lld x %5lld batch %2lld  %8.1f us  %6.0f GB/s packed, %3.0f %% of reading as fast as a copy  %7.1f TFLOP/s\n", name, static_cast<long long>(rows),
              static_cast<long long>(columns), static_cast<long long>(batch), 1e3 * ms, rate * 1e-9, 100 * rate / rate_of_copy, operations);
  return true;
}

}  // namespace

int main() {
  bench::buffer const memory(std::size_t{1} << 30), x(64 * 8192 * 2), out(64 * 28672 * 2), flush(std::size_t{256} << 20);
  auto made = pith::cuda_environment::make(nullptr, pith::plain_device_memory(), std::int64_t{256} << 20);
  if (!made || memory.data() == nullptr || flush.data() == nullptr) {
    std::printf("no memory on a device\n");
    return 1;
  }
  bench::fill_with_numbers(memory);
  bench::fill_with_numbers(x);
  rate_of_copy = bench::copy_rate(memory, flush);
  std::int64_t const shapes[][2] = {{4096, 4096}, {14336, 4096}, {28672, 8192}};
  bool all = true;
  for (auto const& [rows, columns] : shapes)
    for (std::int64_t const batch : {1, 8, 16, 64}) {
      auto const go = [&]<class Codec, class Accuracy>(char const* name, Codec*, Accuracy) {
        all = measure<Codec, Accuracy>(name, made.value(), memory, x, out, flush, rows, columns, batch) && all;
      };
      go("bf16", static_cast<pith::raw<bf16>*>(nullptr), pith::integer_accuracy{});
      go("int8", static_cast<pith::int8<per_token<64>>*>(nullptr), pith::integer_accuracy{});
      go("int4", static_cast<pith::int4<per_token<128>, pith::zero::none>*>(nullptr), pith::integer_accuracy{});
      go("int4, two terms", static_cast<pith::int4<per_token<128>, pith::zero::none>*>(nullptr), pith::exact_accuracy{});
      go("int3", static_cast<pith::int3<per_token<64>>*>(nullptr), pith::integer_accuracy{});
    }
  return all ? 0 : 1;
}
