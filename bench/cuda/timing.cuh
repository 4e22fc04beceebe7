// SPDX-License-Identifier: Apache-2.0
// What the GPU benchmarks share: medians of event times, numbers to multiply, the rate of a copy.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <vector>

namespace bench {

// Device memory for as long as it lives.
class buffer {
 public:
  explicit buffer(std::size_t bytes) : bytes_(bytes) {
    if (cudaMalloc(reinterpret_cast<void**>(&data_), bytes) != cudaSuccess) data_ = nullptr;
  }
  buffer(buffer const&) = delete;
  buffer& operator=(buffer const&) = delete;
  ~buffer() { cudaFree(data_); }
  std::byte* data() const { return data_; }
  std::size_t bytes() const { return bytes_; }
  template <class T>
  T* as() const {
    return reinterpret_cast<T*>(data_);
  }

 private:
  std::byte* data_ = nullptr;
  std::size_t bytes_;
};

template <class T>
void fill(buffer const& to, std::vector<T> const& from) {
  cudaMemcpy(to.data(), from.data(), from.size() * sizeof(T), cudaMemcpyHostToDevice);
}

// bf16 and f16 numbers of both signs between 2^-14 and 4, which are codes of all kinds and finite scales too.
static __global__ void fill_words(std::uint32_t* words, std::int64_t count) {
  for (std::int64_t i = blockIdx.x * std::int64_t{blockDim.x} + threadIdx.x; i < count; i += std::int64_t{gridDim.x} * blockDim.x) {
    std::uint32_t x = static_cast<std::uint32_t>(i) * 2654435761u;
    x ^= x >> 15, x *= 2246822519u, x ^= x >> 13;
    words[i] = (x & 0x87ff87ffu) | 0x38003800u;
  }
}
inline void fill_with_numbers(buffer const& to, cudaStream_t stream = nullptr) {
  fill_words<<<4096, 256, 0, stream>>>(to.as<std::uint32_t>(), static_cast<std::int64_t>(to.bytes() / 4));
}

// Median milliseconds of a call on a stream, behind two that warm up; before() is not counted.
template <class Before, class Call>
float median_ms(cudaStream_t stream, Before const& before, Call const& call) {
  constexpr int repetitions = 11;
  cudaEvent_t begin, end;
  cudaEventCreate(&begin);
  cudaEventCreate(&end);
  std::vector<float> ms;
  for (int i = -2; i < repetitions; ++i) {
    before();
    cudaEventRecord(begin, stream);
    call();
    cudaEventRecord(end, stream);
    cudaEventSynchronize(end);
    float one = 0;
    cudaEventElapsedTime(&one, begin, end);
    if (i >= 0) ms.push_back(one);
  }
  std::sort(ms.begin(), ms.end());
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  return ms[ms.size() / 2];
}
// The same on the default stream; `flush`, larger than the second-level cache, is overwritten before each call.
template <class Call>
float median_ms(buffer const& flush, Call const& call) {
  return median_ms(nullptr, [&] { cudaMemsetAsync(flush.data(), 0, flush.bytes()); }, call);
}

// Bytes read and written per second by a copy of `bytes` bytes, from one half of `over` to the other.
inline double copy_rate(buffer const& over, buffer const& flush) {
  std::size_t const bytes = std::min<std::size_t>(over.bytes() / 2, std::size_t{4} << 30) / 256 * 256;
  double const rate = 2.0 * static_cast<double>(bytes) / median_ms(flush, [&] { cudaMemcpyAsync(over.data() + bytes, over.data(), bytes, cudaMemcpyDeviceToDevice); }) * 1e3;
  std::printf("copy %.0f GB/s, read and written\n", rate * 1e-9);
  return rate;
}

}  // namespace bench
