// SPDX-License-Identifier: Apache-2.0
// Safetensors files: every tensor that is read lies inside the file.
#include <cstdlib>
#include <string>

#include "fuzz/target.hpp"
#include "pith/interop/safetensors.hpp"

void pith_test::fuzz_one(std::span<std::byte const> input) {
  exact_copy const file(input);
  auto const read = pith::safetensors::read(file.get());
  if (!read) return;
  for (auto const& tensor : read.value().tensors) {
    if (!tensor.bytes.empty() && (&tensor.bytes.front() < file.get().data() || &tensor.bytes.back() > &file.get().back())) std::abort();
    std::vector<float> numbers(static_cast<std::size_t>(tensor.elements()));
    static_cast<void>(pith::safetensors::decode(tensor, numbers));
    if (read.value().find(tensor.name) == nullptr) std::abort();
  }
}

std::vector<pith_test::bytes> pith_test::fuzz_seeds() {
  std::vector<bytes> seeds;
  for (std::string const header :
       {R"({"a":{"dtype":"BF16","shape":[2,3],"data_offsets":[0,12]},"b":{"dtype":"F32","shape":[],"data_offsets":[12,16]}})",
        R"({"__metadata__":{"format":"pt","k":"é\n"},"x":{"dtype":"U8","shape":[4,0,2],"data_offsets":[0,0]}})", R"({})",
        R"({"t":{"data_offsets":[0,8],"shape":[1,1,1,1,1,1,1,1],"dtype":"I64"}}   )"}) {
    bytes file(8 + header.size() + (header.find("BF16") != header.npos ? 16 : header.find("I64") != header.npos ? 8 : 0));
    pith::store_le<std::uint64_t>(file.data(), header.size());
    std::memcpy(file.data() + 8, header.data(), header.size());
    seeds.push_back(file);
  }
  return seeds;
}
