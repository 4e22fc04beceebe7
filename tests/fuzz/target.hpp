// SPDX-License-Identifier: Apache-2.0
// A fuzz target is one file of this folder: any bytes go in, nothing may be touched outside, and the call comes back. The same file is
// linked with libFuzzer (where clang has it) and with replay.cpp, which every test run has.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <span>
#include <vector>

namespace pith_test {

using bytes = std::vector<std::byte>;

void fuzz_one(std::span<std::byte const> input);
std::vector<bytes> fuzz_seeds();  // inputs that reach far, for mutations to begin with

// A copy of exactly these bytes on a multiple of 64, so that a sanitizer sees each step beyond them.
class exact_copy {
 public:
  explicit exact_copy(std::span<std::byte const> from)
      : data_(static_cast<std::byte*>(::operator new (from.size(), std::align_val_t{64}))), size_(from.size()) {
    if (!from.empty()) std::memcpy(data_, from.data(), size_);
  }
  exact_copy(exact_copy const&) = delete;
  exact_copy& operator=(exact_copy const&) = delete;
  ~exact_copy() { ::operator delete (data_, std::align_val_t{64}); }
  std::span<std::byte> get() const { return {data_, size_}; }

 private:
  std::byte* data_;
  std::size_t size_;
};

// Formats with a checksum stop nearly every mutation; an input whose first byte is odd gets a right one, so that what lies behind is
// reached.
struct marked_input {
  bool repair;
  std::span<std::byte const> rest;
  explicit marked_input(std::span<std::byte const> input)
      : repair(!input.empty() && (input[0] & std::byte{1}) != std::byte{0}), rest(input.empty() ? input : input.subspan(1)) {}
};
inline bytes marked(bool repair, std::span<std::byte const> rest) {
  bytes out{static_cast<std::byte>(repair)};
  out.insert(out.end(), rest.begin(), rest.end());
  return out;
}

}  // namespace pith_test
