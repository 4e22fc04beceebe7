// SPDX-License-Identifier: Apache-2.0
// Working memory that the caller lends to a call. Any address will do; each function says beside it how many bytes it takes at most.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace pith {

class lent_memory {
 public:
  explicit lent_memory(std::span<std::byte> memory) : rest_(memory) {}

  // Bytes that take<T>(count) may need.
  template <class T>
  static constexpr std::int64_t bytes(std::int64_t count) {
    return count * static_cast<std::int64_t>(sizeof(T)) + static_cast<std::int64_t>(alignof(T)) - 1;
  }

  // False, and an untouched `out`, if the memory does not suffice.
  template <class T>
  bool take(std::int64_t count, std::span<T>& out) {
    auto const past = reinterpret_cast<std::uintptr_t>(rest_.data()) % alignof(T);
    std::size_t const gap = past == 0 ? 0 : alignof(T) - past, need = static_cast<std::size_t>(count) * sizeof(T);
    if (gap > rest_.size() || need > rest_.size() - gap) return false;
    out = {reinterpret_cast<T*>(rest_.data() + gap), static_cast<std::size_t>(count)};
    rest_ = rest_.subspan(gap + need);
    return true;
  }

  std::span<std::byte> rest() const { return rest_; }

 private:
  std::span<std::byte> rest_;
};

}  // namespace pith
