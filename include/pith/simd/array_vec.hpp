// SPDX-License-Identifier: Apache-2.0
// A vector of four lanes in a plain array: the reference that works everywhere.
#pragma once

#include <cstdint>
#include <cstring>

#include "pith/core/config.hpp"

namespace pith {
inline namespace PITH_ISA {
namespace simd {

template <class T>
struct array_vec {
  static constexpr int lanes = 4;
  T lane[lanes];

  array_vec() = default;
  explicit array_vec(T x) {
    for (T& l : lane) l = x;
  }
  static array_vec load_unaligned(T const* from) {
    array_vec x;
    std::memcpy(x.lane, from, sizeof x.lane);
    return x;
  }
  void store_unaligned(T* to) const { std::memcpy(to, lane, sizeof lane); }

  template <class F>
  static array_vec each(F f) {
    array_vec x;
    for (int i = 0; i < lanes; ++i) x.lane[i] = f(i);
    return x;
  }
  friend array_vec operator+(array_vec a, array_vec b) { return each([&](int i) { return a.lane[i] + b.lane[i]; }); }
  friend array_vec operator-(array_vec a, array_vec b) { return each([&](int i) { return a.lane[i] - b.lane[i]; }); }
  friend array_vec operator*(array_vec a, array_vec b) { return each([&](int i) { return a.lane[i] * b.lane[i]; }); }
  friend array_vec operator/(array_vec a, array_vec b) { return each([&](int i) { return a.lane[i] / b.lane[i]; }); }
  friend array_vec operator&(array_vec a, array_vec b) { return each([&](int i) { return a.lane[i] & b.lane[i]; }); }
  friend array_vec operator|(array_vec a, array_vec b) { return each([&](int i) { return a.lane[i] | b.lane[i]; }); }
  friend array_vec operator^(array_vec a, array_vec b) { return each([&](int i) { return a.lane[i] ^ b.lane[i]; }); }
  friend array_vec operator>>(array_vec a, int n) { return each([&](int i) { return a.lane[i] >> n; }); }
  friend array_vec operator<<(array_vec a, int n) { return each([&](int i) { return a.lane[i] << n; }); }
};

template <class T>
array_vec<T> array_min(array_vec<T> a, array_vec<T> b) {
  return array_vec<T>::each([&](int i) { return b.lane[i] < a.lane[i] ? b.lane[i] : a.lane[i]; });
}
template <class T>
array_vec<T> array_max(array_vec<T> a, array_vec<T> b) {
  return array_vec<T>::each([&](int i) { return a.lane[i] < b.lane[i] ? b.lane[i] : a.lane[i]; });
}
template <class To, class From>
array_vec<To> array_cast(array_vec<From> x) {
  return array_vec<To>::each([&](int i) { return static_cast<To>(x.lane[i]); });
}
template <class To, class From>
array_vec<To> array_bits(array_vec<From> x) {
  array_vec<To> y;
  std::memcpy(y.lane, x.lane, sizeof y.lane);
  return y;
}
inline float array_sum(array_vec<float> x) { return (x.lane[0] + x.lane[1]) + (x.lane[2] + x.lane[3]); }
inline float array_largest(array_vec<float> x) {
  float most = x.lane[0];
  for (float l : x.lane) most = l > most ? l : most;
  return most;
}

}  // namespace simd
}  // namespace PITH_ISA
}  // namespace pith
