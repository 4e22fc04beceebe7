// SPDX-License-Identifier: Apache-2.0
// Tests that run on a device, in a program that needs nvcc alone. A file next to this one adds cases:
//
//   DEVICE_CASE("subject: fact") {
//     test.check(x == y, "x is %d, not %d", x, y);       the first failure is printed, all are counted
//     if (!test.need(some_status, "make")) return;       and goes on only where it holds
//   }
#pragma once

#include <cuda_runtime.h>

#include <cstdio>
#include <span>
#include <vector>

#include "pith/core/status.hpp"

namespace pith_test {

class device_test {
 public:
  template <class... Values>
  bool check(bool condition, char const* format, Values... values) {
    if (!condition && failures_++ == 0) {
      if constexpr (sizeof...(Values) == 0)
        std::snprintf(first_, sizeof first_, "%s", format);
      else
        std::snprintf(first_, sizeof first_, format, values...);
    }
    return condition;
  }
  bool need(pith::status const& s, char const* what) {
    return check(static_cast<bool>(s), "%s: %s at %lld", what, pith::message(s.code), static_cast<long long>(s.at));
  }
  bool need(cudaError_t error, char const* what) { return check(error == cudaSuccess, "%s: %s", what, cudaGetErrorString(error)); }
  // The machine cannot do what the case is about.
  void not_run(char const* why) { not_run_ = why; }

  int failures() const { return failures_; }
  char const* first_failure() const { return first_; }
  char const* reason_not_run() const { return not_run_; }

 private:
  int failures_ = 0;
  char first_[300] = "";
  char const* not_run_ = nullptr;
};

// In the order of their names, so that the number of a case does not depend on how the files were linked.
struct device_case {
  char const* name;
  void (*run)(device_test&);
  device_case* next;

  device_case(char const* name_, void (*run_)(device_test&)) : name(name_), run(run_), next(first()) { first() = this; }
  static device_case*& first() {
    static device_case* head = nullptr;
    return head;
  }
};

#define DEVICE_CASE_JOIN_(a, b) a##b
#define DEVICE_CASE_NAME_(a, b) DEVICE_CASE_JOIN_(a, b)
#define DEVICE_CASE(name)                                                                                                        \
  static void DEVICE_CASE_NAME_(device_case_run_, __LINE__)(pith_test::device_test & test);                                      \
  static pith_test::device_case DEVICE_CASE_NAME_(device_case_, __LINE__)(name, &DEVICE_CASE_NAME_(device_case_run_, __LINE__)); \
  static void DEVICE_CASE_NAME_(device_case_run_, __LINE__)([[maybe_unused]] pith_test::device_test & test)

// A copy of host values on the device, and back. Its memory ends where the values do, so that a checker sees what is read behind them.
template <class T>
class on_device {
 public:
  explicit on_device(std::vector<T> const& values) : count_(values.size()) {
    error_ = cudaMalloc(reinterpret_cast<void**>(&data_), count_ * sizeof(T) + (count_ == 0));
    if (error_ == cudaSuccess) error_ = cudaMemcpy(data_, values.data(), count_ * sizeof(T), cudaMemcpyHostToDevice);
    if (error_ == cudaSuccess) error_ = cudaDeviceSynchronize();  // cudaMemcpy returns before the last bytes are there, other streams start
  }
  explicit on_device(std::size_t count) : on_device(std::vector<T>(count)) {}
  on_device(on_device const&) = delete;
  on_device& operator=(on_device const&) = delete;
  ~on_device() { static_cast<void>(cudaFree(data_)); }

  T* data() const { return data_; }
  std::size_t count() const { return count_; }
  cudaError_t error() const { return error_; }
  // Waits for what was started.
  std::vector<T> values(device_test& test) const {
    std::vector<T> out(count_);
    test.need(error_, "memory");
    test.need(cudaDeviceSynchronize(), "kernel");
    test.need(cudaMemcpy(out.data(), data_, count_ * sizeof(T), cudaMemcpyDeviceToHost), "copy");
    return out;
  }

 private:
  T* data_ = nullptr;
  std::size_t count_;
  cudaError_t error_;
};

}  // namespace pith_test
