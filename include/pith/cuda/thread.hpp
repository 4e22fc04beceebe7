// SPDX-License-Identifier: Apache-2.0
// What a kernel asks of the thread that runs it. Kernels are function objects of trivially copyable arguments,
//
//   struct kernel { static constexpr int threads = 128; ...;  template <device_like Thread> PITH_HD void operator()(Thread& t) const; };
//
// so that the same body runs on the device (device_thread.cuh) and, thread by thread, in the tests' emulator on the host.
//
//   t.lane()  t.warp()                   0..31, and the warp's number in the block, the same for all of its lanes
//   t.block_x()  block_y()  block_z()    of the grid
//   t.shared()                           the block's shared memory, 128-byte aligned; unspecified contents
//   t.sync()  t.sync_warp()              barriers of the block and of the warp; what was written before is seen behind it
//   t.shuffle(x, lane)  shuffle_xor(x, mask)   x of another lane (4 bytes)
//   t.any(condition)                     whether it holds in any lane
//   t.ballot(condition)                  in which lanes it holds: bit i for lane i
//   t.transpose(word)                    8 x 8 numbers of 16 bits: lane 4g+t holds row g, columns 2t (low) and 2t+1; the transpose comes back
//   t.multiply<T>(c, a, b)               c += A B in f32, T = f16 or bf16: A 16 x 16, B 16 x 8, in the lanes' registers:
//                                          a[0] row g, k 2t and 2t+1;  a[1] row g+8;  a[2], a[3] the same rows, k 2t+8 and 2t+9
//                                          b[0] column g, k 2t and 2t+1;  b[1] k 2t+8 and 2t+9
//                                          c[0], c[1] row g, columns 2t and 2t+1;  c[2], c[3] row g+8
//   t.copy16(to, from)                   16 bytes from global to shared memory, in the background, in this thread's open group
//   t.clear16(to)                        16 zero bytes there
//   t.commit()  t.wait<N>()              closes the group; waits until at most N of this thread's groups are under way. Others see the bytes
//                                        behind a barrier that follows
//   t.store_once(word, value)            sets a device word that is 0, and leaves one that is not: the first error stays
//
// Collective calls (shuffle, any, ballot, transpose, multiply, sync_warp) are made by all 32 lanes together, sync by the whole block.
#pragma once

#include <concepts>
#include <cstdint>

#include "pith/cuda/words.hpp"

namespace pith::device {

inline constexpr int warp_lanes = 32;

template <class T>
concept device_like = requires(T& t, std::byte* to, std::byte const* from, float x, float (&c)[4], std::uint32_t const (&a)[4],
                               std::uint32_t const (&b)[2], std::uint64_t* word) {
  { t.lane() } -> std::same_as<int>;
  { t.warp() } -> std::same_as<int>;
  { t.block_x() } -> std::same_as<std::int64_t>;
  { t.shared() } -> std::same_as<std::byte*>;
  { t.shuffle_xor(x, 1) } -> std::same_as<float>;
  { t.any(true) } -> std::same_as<bool>;
  { t.ballot(true) } -> std::same_as<std::uint32_t>;
  { t.transpose(0u) } -> std::same_as<std::uint32_t>;
  t.template multiply<f16>(c, a, b);
  t.copy16(to, from);
  t.store_once(word, std::uint64_t{});
};

inline constexpr int most_shared_bytes = 99 << 10;  // what a block can have on every device from sm_80 on

// Its number in the block.
template <class Thread>
PITH_HD inline int thread_of(Thread const& t) {
  return t.warp() * warp_lanes + t.lane();
}

// x summed over lanes, or the largest, in a fixed order: over lanes whose numbers differ in the bits from First up to Behind. <1, 4> is a quad,
// <4, 32> the lanes that have the same place in theirs.
template <int First = 1, int Behind = warp_lanes, class T, class Thread>
PITH_HD inline T sum_over_lanes(Thread& t, T x) {
  PITH_UNROLL for (int mask = First; mask < Behind; mask *= 2) x += t.shuffle_xor(x, mask);
  return x;
}
template <int First = 1, int Behind = warp_lanes, class Thread>
PITH_HD inline float largest_over_lanes(Thread& t, float x) {
  PITH_UNROLL for (int mask = First; mask < Behind; mask *= 2) x = larger(x, t.shuffle_xor(x, mask));
  return x;
}


struct lane_sum {
  int before, total;  // of the lanes below; of all, known to be the same in each
};
// Collective.
template <class Thread>
PITH_HD inline lane_sum sum_before(Thread& t, int x) {
  int sum = x;
  PITH_UNROLL for (int apart = 1; apart < warp_lanes; apart *= 2) {
    int const other = t.shuffle(sum, t.lane() - apart);
    if (t.lane() >= apart) sum += other;
  }
  return {sum - x, t.shuffle(sum, warp_lanes - 1)};
}
// Lanes of a ballot below this one.
template <class Thread>
PITH_HD inline int rank_in(Thread const& t, std::uint32_t ballot) {
  return count_bits(ballot & ((1u << t.lane()) - 1u));
}

}  // namespace pith::device
