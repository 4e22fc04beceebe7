// SPDX-License-Identifier: Apache-2.0
// Runs the device cases (device_case.hpp), one line each, and ends in `N passed, N failed`.
//
//   pith_device [TEXT...]     the cases whose names hold one of the texts; all without
//   pith_device --list
//
// Exit status 0: all passed. 1: some failed. 77: there is no device. A case that ruins the device (an illegal access lasts as long as the
// process) fails, and the program starts itself again behind it.
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "tests/cuda/device/device_case.hpp"

using pith_test::device_case;
using pith_test::device_test;

int main(int argc, char** argv) {
  std::vector<device_case*> cases;
  for (device_case* c = device_case::first(); c != nullptr; c = c->next) cases.push_back(c);
  std::sort(cases.begin(), cases.end(), [](device_case* a, device_case* b) { return std::strcmp(a->name, b->name) < 0; });

  std::size_t from = 0;
  int passed = 0, failed = 0, not_run = 0, arguments = 1;
  if (argc > 5 && std::strcmp(argv[1], "--from") == 0) {  // started by itself
    from = static_cast<std::size_t>(std::atoll(argv[2]));
    passed = std::atoi(argv[3]), failed = std::atoi(argv[4]), not_run = std::atoi(argv[5]);
    arguments = 6;
  }
  if (argc == 2 && std::strcmp(argv[1], "--list") == 0) {
    for (device_case* c : cases) std::printf("%s\n", c->name);
    return 0;
  }
  auto const wanted = [&](char const* name) {
    if (arguments == argc) return true;
    return std::any_of(argv + arguments, argv + argc, [&](char const* text) { return std::strstr(name, text) != nullptr; });
  };

  int devices = 0;
  cudaError_t const found = cudaGetDeviceCount(&devices);
  if (found != cudaSuccess || devices == 0) {
    std::printf("NOT RUN: device cases (%s)\n", found != cudaSuccess ? cudaGetErrorString(found) : "no device");
    return 77;
  }
  if (from == 0) {
    cudaDeviceProp properties{};
    int driver = 0, runtime = 0;
    static_cast<void>(cudaGetDeviceProperties(&properties, 0));
    static_cast<void>(cudaDriverGetVersion(&driver));
    static_cast<void>(cudaRuntimeGetVersion(&runtime));
    std::printf("%s, sm_%d%d, %d SMs, driver %d, runtime %d\n", properties.name, properties.major, properties.minor,
                properties.multiProcessorCount, driver, runtime);
  }

  for (std::size_t i = from; i < cases.size(); ++i) {
    if (!wanted(cases[i]->name)) continue;
    device_test test;
    auto const start = std::chrono::steady_clock::now();
    cases[i]->run(test);
    cudaError_t const after = cudaDeviceSynchronize();
    cudaError_t const left = cudaGetLastError();
    test.need(after, "the device afterwards");
    if (after == cudaSuccess) test.need(left, "an error that nobody took");
    double const ms = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
    if (test.failures() != 0) {
      ++failed;
      std::printf("FAILED   %s (%d times; first: %s)\n", cases[i]->name, test.failures(), test.first_failure());
    } else if (test.reason_not_run() != nullptr) {
      ++not_run;
      std::printf("NOT RUN: %s (%s)\n", cases[i]->name, test.reason_not_run());
    } else {
      ++passed;
      std::printf("passed   %s (%.1f ms)\n", cases[i]->name, ms);
    }
    std::fflush(stdout);
    if (after != cudaSuccess && cudaFree(nullptr) != cudaSuccess) {
      std::vector<std::string> texts{
          argv[0], "--from", std::to_string(i + 1), std::to_string(passed), std::to_string(failed), std::to_string(not_run)};
      texts.insert(texts.end(), argv + arguments, argv + argc);
      std::vector<char*> pointers;
      for (std::string& text : texts) pointers.push_back(text.data());
      pointers.push_back(nullptr);
      execv("/proc/self/exe", pointers.data());
      std::printf("FAILED   the device is unusable, and the program could not start itself again\n");
      ++failed;
      break;
    }
  }
  if (not_run != 0) std::printf("%d not run\n", not_run);
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed != 0 || passed == 0;
}
