// SPDX-License-Identifier: Apache-2.0
// Lossless bf16 weights: decoding to bf16, and products beside those of raw bf16 weights, as time and bytes per second; a copy on the same
// device is the ceiling. Products are recorded in one graph, over copies of the matrix that together are larger than the second-level
// cache.
#include <cmath>
#include <cstdio>
#include <vector>

#include "bench/cuda/timing.cuh"
#include "pith/cuda/environment.cuh"
#include "pith/cuda/packed_matrix.hpp"

namespace {

using pith::bf16;
using pith::space;
using pith::use;

constexpr std::int64_t rows = 4096, columns = 4096, most_batch = 64;
constexpr std::size_t beyond_cache = std::size_t{512} << 20;

double rate_of_copy = 0;  // bytes read and written per second

// Sums of twelve uniform numbers, as trained weights are spread.
std::vector<bf16> weights() {
  std::vector<bf16> w(static_cast<std::size_t>(rows * columns));
  std::uint64_t state = 1;
  for (bf16& one : w) {
    float sum = 0;
    for (int i = 0; i < 12; ++i) {
      state = state * 6364136223846793005u + 1442695040888963407u;
      sum += static_cast<float>(state >> 40) * 0x1p-24f - 0.5f;
    }
    one = pith::from_float<bf16>(0.02f * sum);
  }
  return w;
}

template <class Call>
bool timed(cudaStream_t stream, int calls, float& ms, Call const& call) {
  cudaGraph_t graph;
  cudaGraphExec_t runnable;
  if (cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal) != cudaSuccess) return false;
  bool good = true;
  for (int i = 0; i < calls; ++i) good = static_cast<bool>(call(i)) && good;
  if (cudaStreamEndCapture(stream, &graph) != cudaSuccess || !good) return false;
  if (cudaGraphInstantiate(&runnable, graph, 0) != cudaSuccess) return false;
  ms = bench::median_ms(
           stream, [] {}, [&] { cudaGraphLaunch(runnable, stream); }) /
       static_cast<float>(calls);
  cudaGraphExecDestroy(runnable);
  cudaGraphDestroy(graph);
  return cudaGetLastError() == cudaSuccess;
}

// The packed bytes as often as exceeds the cache, each copy 64-byte aligned.
template <class Codec>
struct copies {
  using matrix = pith::packed_matrix<Codec, use::dot, 256, pith::cuda>;
  bench::buffer memory;
  std::int64_t bytes;
  std::vector<matrix> w;

  explicit copies(pith::packed_matrix<Codec> const& packed)
      : memory((beyond_cache / packed.bytes().size() + 1) * pith::round_up(std::ssize(packed.bytes()), 64)),
        bytes(std::ssize(packed.bytes())) {
    for (std::size_t i = 0; i <= beyond_cache / packed.bytes().size() && memory.data() != nullptr; ++i) {
      std::byte* const to = memory.data() + static_cast<std::int64_t>(i) * pith::round_up(bytes, 64);
      cudaMemcpy(to, packed.bytes().data(), packed.bytes().size(), cudaMemcpyHostToDevice);
      if (auto const opened = matrix::open({to, packed.bytes().size()}, rows, columns)) w.push_back(opened.value());
    }
  }
  matrix const& operator[](int i) const { return w[static_cast<std::size_t>(i) % w.size()]; }
};

template <class Codec>
bool measure_decode(char const* name, pith::cuda_environment const& env, std::vector<bf16> const& numbers) {
  auto const packed = pith::packed_matrix<Codec>::pack(pith::matrix_view<bf16 const>(numbers.data(), {rows, columns})).value();
  copies<Codec> const from(packed);
  bench::buffer const out(2 * numbers.size());
  float ms = 0;
  if (from.w.empty() || out.data() == nullptr || !timed(env.stream(), static_cast<int>(from.w.size()), ms, [&](int i) {
        return from[i].unpack(env, pith::matrix_view<bf16, space::device>(out.as<bf16>(), {rows, columns}));
      })) {
    std::printf("%-44s failed\n", name);
    return false;
  }
  std::vector<bf16> back(numbers.size());
  cudaMemcpy(back.data(), out.data(), out.bytes(), cudaMemcpyDeviceToHost);
  double const made = 2.0 * static_cast<double>(numbers.size()) / ms * 1e3, moved = made + static_cast<double>(from.bytes) / ms * 1e3;
  std::printf("%-44s decode %9.2f us %6.0f GB/s of bf16, %5.2f bits a weight, read and written %3.0f %% of a copy%s\n", name, ms * 1e3,
              made * 1e-9, 8.0 * static_cast<double>(from.bytes) / static_cast<double>(numbers.size()), 100 * moved / rate_of_copy,
              back == numbers ? "" : ", WRONG");
  return back == numbers && pith::read_status(env);
}

template <class Codec>
bool measure_products(char const* name, pith::cuda_environment const& env, std::vector<bf16> const& numbers) {
  copies<Codec> const w(pith::packed_matrix<Codec>::pack(pith::matrix_view<bf16 const>(numbers.data(), {rows, columns})).value());
  bench::buffer const x(2 * most_batch * columns), y(2 * most_batch * rows);
  bench::fill_with_numbers(x, env.stream());
  bool all = !w.w.empty();
  for (std::int64_t const batch : {1, 8, 16, 64}) {
    float ms = 0;
    all = all && timed(env.stream(), static_cast<int>(w.w.size()), ms, [&](int i) {
            return w[i].template multiply<pith::integer_accuracy>(
                env, pith::matrix_view<bf16 const, space::device>(x.as<bf16>(), {batch, columns}),
                pith::matrix_view<bf16, space::device>(y.as<bf16>(), {batch, rows}));
          });
    if (!all) break;
    double const rate = static_cast<double>(w.bytes) / ms * 1e3, as_bf16 = 2.0 * static_cast<double>(numbers.size()) / ms * 1e3;
    std::printf("%-44s batch %2d %9.2f us %6.0f GB/s of weights, %3.0f %% of a copy; as much as bf16 at %6.0f GB/s\n", name,
                static_cast<int>(batch), ms * 1e3, rate * 1e-9, 100 * rate / rate_of_copy, as_bf16 * 1e-9);
  }
  if (!all) std::printf("%-44s failed\n", name);
  return all && pith::read_status(env);
}

}  // namespace

int main() {
  cudaStream_t stream;
  if (cudaStreamCreate(&stream) != cudaSuccess) {
    std::printf("no device\n");
    return 1;
  }
  auto made = pith::cuda_environment::make(stream, pith::plain_device_memory(), std::int64_t{64} << 20);
  if (!made) return 1;
  {
    bench::buffer const over(std::size_t{2} << 30), flush(beyond_cache);
    if (over.data() == nullptr || flush.data() == nullptr) return 1;
    rate_of_copy = bench::copy_rate(over, flush);
  }
  std::printf("%d x %d weights\n", static_cast<int>(rows), static_cast<int>(columns));
  auto const numbers = weights();
  using namespace pith;
  bool all = measure_decode<dynamic_float<bf16>>("exponent_window", made.value(), numbers);
  all = measure_decode<dynamic_float<bf16, huffman>>("huffman", made.value(), numbers) && all;
  all = measure_decode<dynamic_float<bf16, rans_exponents>>("rans_exponents", made.value(), numbers) && all;
  all = measure_products<raw<bf16>>("raw<bf16>", made.value(), numbers) && all;
  all = measure_products<dynamic_float<bf16>>("dynamic_float<bf16>", made.value(), numbers) && all;
  return all ? 0 : 1;
}
