// SPDX-License-Identifier: Apache-2.0
// Runs a kernel of include/pith/cuda on the host: every thread of a block is a fibre, and collective calls are where the lanes of a warp meet.
//
// What it checks beyond the result: lanes that meet in different calls, threads that wait for ever, reads of shared memory before the copy or
// the barrier that fills it (shared memory starts as 0xff bytes, copies are done when they are waited for, and lanes run one after the other,
// in an order that the seed chooses), and accesses of shared memory that are not aligned. What it cannot: timing, and the order in which a
// tensor core adds (it adds in f64 here).
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#include "pith/cuda/thread.hpp"

namespace pith_test {

// Where a fibre stands. switch_to(from, to) leaves one and goes on with the other.
#if defined(__x86_64__)
struct fibre_state {
  void* stack_pointer = nullptr;
};
extern "C" void pith_test_switch(void** from, void* to);
asm(".text\n.weak pith_test_switch\n.type pith_test_switch, @function\npith_test_switch:\n"
    "  push %rbp\n  push %rbx\n  push %r12\n  push %r13\n  push %r14\n  push %r15\n"
    "  mov %rsp, (%rdi)\n  mov %rsi, %rsp\n"
    "  pop %r15\n  pop %r14\n  pop %r13\n  pop %r12\n  pop %rbx\n  pop %rbp\n  ret\n");
inline void switch_to(fibre_state& from, fibre_state& to) { pith_test_switch(&from.stack_pointer, to.stack_pointer); }
inline void prepare_fibre(fibre_state& fibre, std::byte* stack, std::size_t bytes, void (*entry)()) {
  auto top = reinterpret_cast<std::uintptr_t>(stack + bytes) / 16 * 16 - 8;  // as behind a call
  auto* const slots = reinterpret_cast<void**>(top) - 7;
  std::memset(static_cast<void*>(slots), 0, 7 * sizeof(void*));
  slots[6] = reinterpret_cast<void*>(entry);
  fibre.stack_pointer = slots;
}
#else
struct fibre_state {
  ucontext_t context;
};
inline void switch_to(fibre_state& from, fibre_state& to) { swapcontext(&from.context, &to.context); }
inline void prepare_fibre(fibre_state& fibre, std::byte* stack, std::size_t bytes, void (*entry)()) {
  getcontext(&fibre.context);
  fibre.context.uc_stack.ss_sp = stack;
  fibre.context.uc_stack.ss_size = bytes;
  fibre.context.uc_link = nullptr;
  makecontext(&fibre.context, entry, 0);
}
#endif

enum class meeting : std::uint8_t { none, barrier, shuffle, shuffle_xor, any, ballot, transpose, multiply_f16, multiply_bf16 };

class emulated_block;

// thread.hpp on the host.
class emulated_thread {
 public:
  // PITH_HD: thread.hpp's own functions call these, and nvcc compiles those for both sides where a .cu emulates too.
  PITH_HD int lane() const { return lane_; }
  PITH_HD int warp() const { return warp_; }
  std::int64_t block_x() const;
  std::int64_t block_y() const;
  std::int64_t block_z() const;
  std::byte* shared() const;
  void sync();
  void sync_warp() { meet(meeting::barrier, nullptr, 0); }

  template <class T>
  T shuffle(T x, int lane) {
    static_assert(sizeof(T) == 4);
    return get<T>(meet(meeting::shuffle, &x, sizeof(T)), lane & 31);
  }
  template <class T>
  T shuffle_xor(T x, int mask) {
    static_assert(sizeof(T) == 4);
    return get<T>(meet(meeting::shuffle_xor, &x, sizeof(T)), (lane_ ^ mask) & 31);
  }
  bool any(bool condition) {
    std::uint32_t const own = condition;
    auto const& slots = meet(meeting::any, &own, 4);
    for (int i = 0; i < 32; ++i)
      if (get<std::uint32_t>(slots, i) != 0) return true;
    return false;
  }
  std::uint32_t ballot(bool condition) {
    std::uint32_t const own = condition;
    auto const& slots = meet(meeting::ballot, &own, 4);
    std::uint32_t all = 0;
    for (int i = 0; i < 32; ++i) all |= get<std::uint32_t>(slots, i) << i;
    return all;
  }
  std::uint32_t transpose(std::uint32_t word) {
    auto const& slots = meet(meeting::transpose, &word, 4);
    int const g = lane_ / 4, t = lane_ % 4;
    auto const element = [&](int row, int column) {
      return get<std::uint32_t>(slots, 4 * row + column / 2) >> (16 * (column % 2)) & 0xffffu;
    };
    return element(2 * t, g) | element(2 * t + 1, g) << 16;
  }
  template <class T>
  void multiply(float (&c)[4], std::uint32_t const (&a)[4], std::uint32_t const (&b)[2]) {
    std::uint32_t own[6] = {a[0], a[1], a[2], a[3], b[0], b[1]};
    auto const& slots = meet(std::is_same_v<T, pith::bf16> ? meeting::multiply_bf16 : meeting::multiply_f16, own, sizeof(own));
    int const g = lane_ / 4, t = lane_ % 4;
    for (int i = 0; i < 4; ++i) {
      int const row = g + 8 * (i / 2), column = 2 * t + i % 2;
      double sum = 0;
      for (int k = 0; k < 16; ++k) {
        int const at = k % 8 / 2, half = k % 2;
        std::uint32_t const left = get<std::uint32_t>(slots, 4 * (row % 8) + at, row / 8 + 2 * (k / 8));
        std::uint32_t const right = get<std::uint32_t>(slots, 4 * column + at, 4 + k / 8);
        sum += static_cast<double>(half ? pith::device::high_of<T>(left) : pith::device::low_of<T>(left)) *
               static_cast<double>(half ? pith::device::high_of<T>(right) : pith::device::low_of<T>(right));
      }
      c[i] = static_cast<float>(c[i] + sum);
    }
  }

  void copy16(std::byte* to, std::byte const* from) {
    check_aligned(to), check_aligned(from);
    open_.push_back({to, from});
  }
  void clear16(std::byte* to) {
    check_aligned(to);
    std::memset(to, 0, 16);
  }
  void commit() {
    groups_.push_back(std::move(open_));
    open_.clear();
  }
  template <int Groups>
  void wait() {
    while (groups_.size() > Groups) {
      for (copy const& c : groups_.front()) std::memcpy(c.to, c.from, 16);
      groups_.erase(groups_.begin());
    }
  }
  void store_once(std::uint64_t* word, std::uint64_t value) {
    if (*word == 0) *word = value;
  }

 private:
  friend class emulated_block;
  struct copy {
    std::byte* to;
    std::byte const* from;
  };
  struct slot {
    std::uint32_t word[6];
  };

  template <class T>
  static T get(slot const (&slots)[32], int lane, int word = 0) {
    T x;
    std::memcpy(&x, &slots[lane].word[word], sizeof(T));
    return x;
  }
  static void check_aligned(void const* at) {
    if (reinterpret_cast<std::uintptr_t>(at) % 16 != 0) std::abort();
  }
  slot const (&meet(meeting kind, void const* own, std::size_t bytes))[32];

  emulated_block* block_ = nullptr;
  int lane_ = 0, warp_ = 0;
  fibre_state state_;
  bool done_ = false;
  std::vector<copy> open_;
  std::vector<std::vector<copy>> groups_;
};
static_assert(pith::device::device_like<emulated_thread>);

class emulated_block {
 public:
  static constexpr std::size_t stack_bytes = 256 << 10;

  emulated_block(int threads, std::int64_t shared_bytes)
      : threads_(static_cast<std::size_t>(threads)), warps_(static_cast<std::size_t>(threads / 32)),
        stacks_(new std::byte[stack_bytes * static_cast<std::size_t>(threads)]),
        shared_bytes_(shared_bytes), shared_storage_(static_cast<std::size_t>(shared_bytes + 128 + 64)) {}

  template <class Kernel>
  void run(Kernel const& kernel, std::int64_t x, std::int64_t y, std::int64_t z, std::uint64_t seed) {
    x_ = x, y_ = y, z_ = z;
    auto const first = reinterpret_cast<std::uintptr_t>(shared_storage_.data());
    shared_ = reinterpret_cast<std::byte*>((first + 127) / 128 * 128);
    std::memset(shared_, 0xff, static_cast<std::size_t>(shared_bytes_));
    std::memset(shared_ + shared_bytes_, 0x5a, 64);  // behind it: must stay
    for (auto& w : warps_) w = {};
    for (auto& b : barrier_) b = 0;
    barriers_passed_ = 0;
    call_ = [](void const* k, emulated_thread& t) { (*static_cast<Kernel const*>(k))(t); };
    kernel_ = &kernel;
    int const count = static_cast<int>(threads_.size());
    for (int i = 0; i < count; ++i) {
      emulated_thread& t = threads_[static_cast<std::size_t>(i)];
      t.block_ = this;
      t.lane_ = i % 32, t.warp_ = i / 32;
      t.done_ = false;
      t.open_.clear(), t.groups_.clear();
      prepare_fibre(t.state_, stacks_.get() + stack_bytes * static_cast<std::size_t>(i), stack_bytes, &enter);
    }
    // Round after round, each thread runs until it has to wait.
    int const step = (seed & 1) != 0 ? 1 : -1, begin = static_cast<int>(seed / 2 % static_cast<std::uint64_t>(count));
    for (bool all_done = false; !all_done;) {
      all_done = true;
      std::int64_t const before = progress_;
      for (int i = 0; i < count; ++i) {
        emulated_thread& t = threads_[static_cast<std::size_t>((begin + step * i + count) % count)];
        if (t.done_) continue;
        all_done = false;
        current() = &t;
        switch_to(main_, t.state_);
      }
      if (!all_done && progress_ == before) fail("threads wait for others that never come");
    }
    for (int i = 0; i < 64; ++i)
      if (shared_[shared_bytes_ + i] != std::byte{0x5a}) fail("wrote behind the shared memory");
  }

 private:
  friend class emulated_thread;
  struct warp_state {
    emulated_thread::slot slots[2][32];
    meeting kind = meeting::none;
    int arrived = 0;
    std::int64_t passed = 0;
  };

  static emulated_thread*& current() {
    static emulated_thread* thread = nullptr;
    return thread;
  }
  static void enter() {
    emulated_thread* const t = current();
    t->block_->call_(t->block_->kernel_, *t);
    t->done_ = true;
    ++t->block_->progress_;
    t->block_->leave(*t);
    std::abort();
  }
  void leave(emulated_thread& t) { switch_to(t.state_, main_); }
  [[noreturn]] static void fail(char const* what) {
    std::fprintf(stderr, "emulated kernel: %s\n", what);
    std::abort();
  }

  std::vector<emulated_thread> threads_;
  std::vector<warp_state> warps_;
  std::unique_ptr<std::byte[]> stacks_;
  std::int64_t shared_bytes_;
  std::vector<std::byte> shared_storage_;
  std::byte* shared_ = nullptr;
  fibre_state main_;
  std::int64_t x_ = 0, y_ = 0, z_ = 0, progress_ = 0, barriers_passed_ = 0;
  int barrier_[1] = {};
  void const* kernel_ = nullptr;
  void (*call_)(void const*, emulated_thread&) = nullptr;
};

inline std::int64_t emulated_thread::block_x() const { return block_->x_; }
inline std::int64_t emulated_thread::block_y() const { return block_->y_; }
inline std::int64_t emulated_thread::block_z() const { return block_->z_; }
inline std::byte* emulated_thread::shared() const { return block_->shared_; }

inline emulated_thread::slot const (&emulated_thread::meet(meeting kind, void const* own, std::size_t bytes))[32] {
  emulated_block::warp_state& w = block_->warps_[static_cast<std::size_t>(warp_)];
  std::int64_t const mine = w.passed;
  auto& slots = w.slots[mine % 2];
  if (own != nullptr) std::memcpy(slots[lane_].word, own, bytes);
  if (w.arrived == 0) w.kind = kind;
  if (w.kind != kind) emulated_block::fail("lanes of a warp meet in different calls");
  ++block_->progress_;
  if (++w.arrived == 32) {
    w.arrived = 0;
    ++w.passed;
  } else {
    while (w.passed == mine) block_->leave(*this);
  }
  return slots;
}

inline void emulated_thread::sync() {
  std::int64_t const mine = block_->barriers_passed_;
  ++block_->progress_;
  if (++block_->barrier_[0] == static_cast<int>(block_->threads_.size())) {
    block_->barrier_[0] = 0;
    ++block_->barriers_passed_;
  } else {
    while (block_->barriers_passed_ == mine) block_->leave(*this);
  }
}

}  // namespace pith_test
