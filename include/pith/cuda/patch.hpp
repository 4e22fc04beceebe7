// SPDX-License-Identifier: Apache-2.0
// Small changes of device memory whose contents the host knows: they travel in a kernel's arguments, so nothing is waited for and no host
// memory has to outlive the call.
//
//   ascending_kernel   32-bit words: at[i] = first + i; how a page table grows, whose blocks tend to follow each other
//   word_kernel        64-bit words, one each
//   copy_kernel        ranges of device memory, or zeros
//   upload(env, ...)   any number of bytes of the host
//
// A queue collects entries and launches a kernel when its arguments are full; flush() launches the rest. Entries of one launch are applied
// in no order: they must not overlap.
#pragma once

#include <algorithm>
#include <cstring>
#include <span>
#include <type_traits>

#include "pith/core/bits.hpp"
#include "pith/cuda/environment.hpp"
#include "pith/cuda/thread.hpp"

namespace pith::device {

inline constexpr std::int64_t argument_bytes = 4096;  // of one launch, on every device
template <class Entry>
inline constexpr int entries_of = static_cast<int>((argument_bytes - 64) / static_cast<std::int64_t>(sizeof(Entry)));

struct ascending_kernel {
  struct entry {
    std::uint32_t* at;
    std::uint32_t first, count;
  };
  static constexpr int threads = 128, most = entries_of<entry>;
  int count = 0;
  entry entries[most];

  pith::device::grid grid() const { return {.x = count}; }
  template <device_like Thread>
  PITH_HD void operator()(Thread& t) const {
    entry const& e = entries[t.block_x()];
    for (std::uint32_t i = static_cast<std::uint32_t>(thread_of(t)); i < e.count; i += threads) e.at[i] = e.first + i;
  }
};

struct word_kernel {
  struct entry {
    std::uint64_t* at;
    std::uint64_t value;
  };
  static constexpr int threads = 128, most = entries_of<entry>;
  int count = 0;
  entry entries[most];

  pith::device::grid grid() const { return {.x = 1}; }
  template <device_like Thread>
  PITH_HD void operator()(Thread& t) const {
    for (int i = thread_of(t); i < count; i += threads) *entries[i].at = entries[i].value;
  }
};

// Bytes and addresses are multiples of 4; of 16 they are copied faster.
struct copy_kernel {
  struct entry {
    std::byte* to;
    std::byte const* from;  // or null: zeros
    std::int64_t bytes;
  };
  static constexpr int threads = 128, most = entries_of<entry>, slices = 8;
  int count = 0;
  entry entries[most];

  pith::device::grid grid() const { return {.x = slices, .y = count}; }
  template <device_like Thread>
  PITH_HD void operator()(Thread& t) const {
    entry const& e = entries[t.block_y()];
    std::int64_t const first = t.block_x() * threads + thread_of(t);
    auto const bits = reinterpret_cast<std::uintptr_t>(e.to) | reinterpret_cast<std::uintptr_t>(e.from) | static_cast<std::uintptr_t>(e.bytes);
    if (bits % 16 == 0)
      move<word4>(e, first);
    else
      move<std::uint32_t>(e, first);
  }

 private:
  template <class Word>
  PITH_HD static void move(entry const& e, std::int64_t first) {
    constexpr std::int64_t size = sizeof(Word);
    for (std::int64_t i = first * size; i < e.bytes; i += size * threads * slices)
      store_word<Word>(e.to + i, e.from == nullptr ? Word{} : load_word<Word>(e.from + i));
  }
};

struct upload_kernel {
  static constexpr int threads = 128, most = static_cast<int>((argument_bytes - 64) / 4);
  std::byte* to;
  int count;
  std::uint32_t words[most];

  template <device_like Thread>
  PITH_HD void operator()(Thread& t) const {
    for (int i = thread_of(t); i < count; i += threads) store_word<std::uint32_t>(to + 4 * i, words[i]);
  }
};

// The first error stays: what follows it is not launched.
template <class Kernel, class Environment>
class queue {
 public:
  explicit queue(Environment const& env, Kernel const& kernel = {}) : env_(env), kernel_(kernel) {}

  void add(typename Kernel::entry const& e) {
    if (kernel_.count == Kernel::most) static_cast<void>(flush());
    kernel_.entries[kernel_.count++] = e;
  }
  status flush() {
    if (failed_ && kernel_.count > 0) failed_ = env_.launch(kernel_, kernel_.grid());
    kernel_.count = 0;
    return failed_;
  }
  std::span<typename Kernel::entry const> waiting() const { return {kernel_.entries, static_cast<std::size_t>(kernel_.count)}; }

 private:
  Environment const& env_;
  Kernel kernel_;
  status failed_{};
};

// Bytes of the host, a multiple of 4 of them, to device memory.
// cost    a launch for each 4 KB: for set-up
template <class Environment>
status upload(Environment const& env, std::byte* to, std::byte const* from, std::int64_t bytes) {
  for (std::int64_t done = 0; done < bytes;) {
    upload_kernel part;
    std::int64_t const size = std::min<std::int64_t>(bytes - done, 4 * upload_kernel::most);
    part.to = to + done;
    part.count = static_cast<int>(size / 4);
    std::memcpy(part.words, from + done, static_cast<std::size_t>(size));
    if (status const ok = env.launch(part, grid{.x = 1}); !ok) return ok;
    done += size;
  }
  return {};
}

static_assert(sizeof(ascending_kernel) <= argument_bytes && sizeof(word_kernel) <= argument_bytes && sizeof(copy_kernel) <= argument_bytes &&
              sizeof(upload_kernel) <= argument_bytes);

}  // namespace pith::device
