// SPDX-License-Identifier: Apache-2.0
// Products with packed weights: microseconds and bytes of weights read per second, beside a copy on the same device. A product is three
// launches; many are recorded in one graph, over copies of the matrix that together are larger than the second-level cache.
#include <cstdio>
#include <vector>

#include "bench/cuda/timing.cuh"
#include "pith/codec/integer.hpp"
#include "pith/codec/raw.hpp"
#include "pith/cuda/environment.cuh"
#include "pith/cuda/packed_matrix.hpp"

namespace {

using pith::bf16;
using pith::space;
using pith::use;

constexpr std::int64_t most_weights = std::int64_t{8192} * 28672, most_batch = 64, most_columns = 28672;
constexpr std::int64_t packed_bytes = std::int64_t{1} << 30, beyond_cache = std::int64_t{256} << 20;

double rate_of_copy = 0;  // bytes read and written per second

struct buffers {
  bench::buffer const &weights, &x, &out, &packed;
};

template <class Call>
bool timed(cudaStream_t stream, int calls, float& ms, Call const& call) {
  cudaGraph_t graph;
  cudaGraphExec_t runnable;
  if (cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal) != cudaSuccess) return false;
  bool good = true;
  for (int i = 0; i < calls; ++i) good = static_cast<bool>(call(i)) && good;
  if (cudaStreamEndCapture(stream, &graph) != cudaSuccess || !good) return false;
  if (cudaGraphInstantiate(&runnable, graph, 0) != cudaSuccess) return false;
  ms = bench::median_ms(stream, [] {}, [&] { cudaGraphLaunch(runnable, stream); }) / static_cast<float>(calls);
  cudaGraphExecDestroy(runnable);
  cudaGraphDestroy(graph);
  return cudaGetLastError() == cudaSuccess;
}

template <class Codec, class Accuracy>
bool measure(char const* name, pith::cuda_environment const& env, buffers const& b) {
  using matrix = pith::packed_matrix<Codec, use::dot, pith::default_panel<Codec, use::dot>(), pith::cuda>;
  bool all = true;
  std::int64_t const shapes[][2] = {{4096, 4096}, {14336, 4096}, {4096, 14336}, {8192, 28672}};  // outputs, inputs
  for (auto const& [rows, columns] : shapes) {
    std::int64_t const bytes = matrix::bound_bytes(rows, columns);
    auto const copies = static_cast<int>(bytes >= beyond_cache ? 1 : beyond_cache / bytes + 1);
    std::vector<matrix> w;
    for (int i = 0; i < copies; ++i) {
      auto made = matrix::pack_into(env, std::span(b.packed.data() + i * bytes, static_cast<std::size_t>(bytes)),
                                    pith::matrix_view<bf16 const, space::device>(b.weights.as<bf16>(), {rows, columns}));
      if (!made) return false;
      w.push_back(made.value());
    }
    for (std::int64_t const batch : {1, 4, 8, 16, 32, 64}) {
      float ms = 0;
      bool const good = timed(env.stream(), copies < 8 ? 8 : copies, ms, [&, columns = columns, rows = rows](int i) {
        return w[static_cast<std::size_t>(i % copies)].template multiply<Accuracy>(
            env, pith::matrix_view<bf16 const, space::device>(b.x.as<bf16>(), {batch, columns}), pith::matrix_view<bf16, space::device>(b.out.as<bf16>(), {batch, rows}));
      });
      if (!good) {
        std::printf("%-44s %5d x %5d batch %2d failed\n", name, static_cast<int>(rows), static_cast<int>(columns), static_cast<int>(batch));
        all = false;
        continue;
      }
      double const rate = static_cast<double>(bytes) / ms * 1e3;
      std::printf("%-44s %5d x %5d batch %2d %9.2f us %6.0f GB/s of weights, %3.0f %% of a copy\n", name, static_cast<int>(rows),
                  static_cast<int>(columns), static_cast<int>(batch), ms * 1e3, rate * 1e-9, 100 * rate / rate_of_copy);
    }
  }
  return all;
}

}  // namespace

#define PITH_MEASURE(ACCURACY, ...) all = measure<__VA_ARGS__, ACCURACY##_accuracy>(#__VA_ARGS__ ", " #ACCURACY, env, b) && all;

int main() {
  cudaStream_t stream;
  if (cudaStreamCreate(&stream) != cudaSuccess) {
    std::printf("no device\n");
    return 1;
  }
  bench::buffer const weights(2 * most_weights), x(2 * most_batch * most_columns), out(2 * most_batch * most_columns), packed(packed_bytes);
  auto made = pith::cuda_environment::make(stream, pith::plain_device_memory(), std::int64_t{256} << 20);
  if (!made || weights.data() == nullptr || x.data() == nullptr || out.data() == nullptr || packed.data() == nullptr) {
    std::printf("no memory on a device\n");
    return 1;
  }
  buffers const b{weights, x, out, packed};
  pith::cuda_environment const& env = made.value();
  bench::fill_with_numbers(weights, stream);
  bench::fill_with_numbers(x, stream);
  float ms = 0;
  if (!timed(stream, 4, ms, [&](int) { return cudaMemcpyAsync(packed.data(), weights.data(), weights.bytes(), cudaMemcpyDeviceToDevice, stream) == cudaSuccess; })) return 1;
  rate_of_copy = 2.0 * static_cast<double>(weights.bytes()) / ms * 1e3;
  std::printf("copy %.0f GB/s, read and written\n", rate_of_copy * 1e-9);

  using namespace pith;
  bool all = true;
  PITH_MEASURE(integer, pith::int4<per_token<64>, zero::none>)
  PITH_MEASURE(exact, pith::int4<per_token<64>, zero::none>)
  PITH_MEASURE(integer, pith::int4<per_token<128>>)
  PITH_MEASURE(integer, int8<per_token<>, zero::none>)
  PITH_MEASURE(integer, pith::int3<per_token<128>, zero::none>)
  PITH_MEASURE(integer, raw<bf16>)
  return all ? 0 : 1;
}
