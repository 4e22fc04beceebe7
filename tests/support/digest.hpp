// SPDX-License-Identifier: Apache-2.0
// A digest of bytes (FNV-1a, 64 bits) and numbers to digest, the same under every compiler flag.
#pragma once

#include <cstddef>
#include <cstdint>

namespace pith_test {

class digest {
 public:
  void add(void const* data, std::size_t bytes) {
    for (std::size_t i = 0; i < bytes; ++i) state_ = (state_ ^ static_cast<unsigned char const*>(data)[i]) * 0x100000001b3u;
  }
  template <class T>
  void add(T const& value) {
    add(&value, sizeof value);
  }
  std::uint64_t value() const { return state_; }

 private:
  std::uint64_t state_ = 0xcbf29ce484222325u;
};

// splitmix64.
class random_bits {
 public:
  explicit random_bits(std::uint64_t seed) : state_(seed) {}
  std::uint64_t operator()() {
    std::uint64_t z = state_ += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  // Uniform in [-1, 1), exact: 24 random bits.
  float uniform() { return static_cast<float>(static_cast<std::int32_t>((*this)() >> 40) - (1 << 23)) * 0x1p-23f; }

 private:
  std::uint64_t state_;
};

}  // namespace pith_test
