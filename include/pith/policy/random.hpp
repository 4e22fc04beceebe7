// SPDX-License-Identifier: Apache-2.0
// Random numbers without a state: a hash of a seed and two keys (a row and a token's birth, say), so that a decision is the same on every
// machine, in any order and after a replay.
//
// from  Steele, Lea and Flood, Fast splittable pseudorandom number generators, 2014 (the mixing function of SplitMix64)
#pragma once

#include <cstdint>

namespace pith {

constexpr std::uint64_t mixed_bits(std::uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

// Uniform in [0, 1), 53 bits.
constexpr double random_unit(std::uint64_t seed, std::uint64_t row, std::uint64_t key) {
  return static_cast<double>(mixed_bits(mixed_bits(mixed_bits(seed) ^ row) ^ key) >> 11) * 0x1p-53;
}

}  // namespace pith
