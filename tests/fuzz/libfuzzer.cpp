// SPDX-License-Identifier: Apache-2.0
#include "fuzz/target.hpp"

extern "C" int LLVMFuzzerTestOneInput(std::uint8_t const* data, std::size_t size) {
  pith_test::fuzz_one({reinterpret_cast<std::byte const*>(data), size});
  return 0;
}
