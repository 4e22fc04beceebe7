// SPDX-License-Identifier: Apache-2.0
// GGUF files: every tensor lies inside the file, and its numbers decode.
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <string>

#include "fuzz/target.hpp"
#include "pith/interop/gguf_weights.hpp"

void pith_test::fuzz_one(std::span<std::byte const> input) {
  exact_copy const file(input);
  auto const read = pith::gguf::read(file.get());
  if (!read) return;
  for (auto const& tensor : read.value().tensors) {
    if (!tensor.bytes.empty() && (&tensor.bytes.front() < file.get().data() || &tensor.bytes.back() > &file.get().back())) std::abort();
    if (read.value().find(tensor.name) == nullptr) std::abort();
    std::vector<float> numbers(static_cast<std::size_t>(tensor.elements()));
    static_cast<void>(pith::gguf::decode(tensor, numbers));
  }
}

std::vector<pith_test::bytes> pith_test::fuzz_seeds() {
  std::ifstream in(PITH_SOURCE_DIR "/tests/golden/weights.gguf", std::ios::binary);
  std::string const text{std::istreambuf_iterator<char>(in), {}};
  auto const* const first = reinterpret_cast<std::byte const*>(text.data());
  return {bytes(first, first + text.size())};
}
