// SPDX-License-Identifier: Apache-2.0
// arena.cuh on the real driver; reserved_arena.hpp's logic is proved in arena_test.cpp.
#include "pith/cuda/arena.cuh"

#include "pith/page/pool.hpp"
#include "tests/cuda/device/device_case.hpp"

namespace {

__global__ void fill(std::uint32_t* words, std::int64_t from, std::int64_t to) {
  std::int64_t const step = static_cast<std::int64_t>(gridDim.x) * blockDim.x;
  for (std::int64_t i = from + blockIdx.x * static_cast<std::int64_t>(blockDim.x) + threadIdx.x; i < to; i += step)
    words[i] = static_cast<std::uint32_t>(i * 2654435761u);
}
__global__ void count_wrong(std::uint32_t const* words, std::int64_t count, unsigned long long* wrong) {
  std::int64_t const step = static_cast<std::int64_t>(gridDim.x) * blockDim.x;
  for (std::int64_t i = blockIdx.x * static_cast<std::int64_t>(blockDim.x) + threadIdx.x; i < count; i += step)
    if (words[i] != static_cast<std::uint32_t>(i * 2654435761u)) atomicAdd(wrong, 1ull);
}

unsigned long long wrong_words(pith_test::device_test& test, std::byte const* data, std::int64_t bytes) {
  pith_test::on_device<unsigned long long> const wrong(std::size_t{1});
  count_wrong<<<256, 256>>>(reinterpret_cast<std::uint32_t const*>(data), bytes / 4, wrong.data());
  test.need(cudaGetLastError(), "launch");
  return wrong.values(test)[0];
}
void fill_bytes(pith_test::device_test& test, std::byte* data, std::int64_t from, std::int64_t to) {
  fill<<<256, 256>>>(reinterpret_cast<std::uint32_t*>(data), from / 4, to / 4);
  test.need(cudaGetLastError(), "launch");
}

}  // namespace

DEVICE_CASE("arena: device_arena holds what is written, to its last byte") {
  auto made = pith::device_arena::make(1'000'004);
  if (!test.need(made.error(), "make")) return;
  pith::device_arena const arena = std::move(made).value();
  test.check(arena.bytes() == 1'000'004 && pith::is_device_pointer(arena.data()), "memory");
  fill_bytes(test, arena.data(), 0, arena.bytes());
  test.check(wrong_words(test, arena.data(), arena.bytes()) == 0, "contents");
  test.check(pith::device_arena::make(-1).error() == pith::status{pith::errc::out_of_range, -1}, "negative");
  std::int64_t const huge = std::int64_t{1} << 50;
  test.check(pith::device_arena::make(huge).error() == pith::status{pith::errc::out_of_memory, huge}, "a pebibyte");
  test.check(static_cast<bool>(pith::device_arena::make(0)), "nothing");
}

DEVICE_CASE("arena: reserved_arena grows and shrinks where it is, and keeps its contents") {
  std::int64_t const step = std::int64_t{8} << 20, most = std::int64_t{1} << 40;  // more than any device has
  auto made = pith::make_reserved_arena(most, step);
  if (!made && made.error().code == pith::errc::unsupported) return test.not_run("no virtual memory calls");
  if (!test.need(made.error(), "make")) return;
  pith::reserved_arena arena = std::move(made).value();
  std::byte* const data = arena.data();
  test.check(arena.bytes() == 0 && arena.reserved_bytes() >= most && arena.step_bytes() % (2 << 20) == 0, "reserved");
  std::size_t free_before = 0, free_after = 0, total = 0;
  test.need(cudaMemGetInfo(&free_before, &total), "memory");
  std::int64_t filled = 0;
  std::int64_t const sizes[] = {1, step, 3 * step + 5, 20 * step};
  for (std::int64_t const bytes : sizes) {
    if (!test.need(arena.grow(bytes), "grow")) return;
    test.check(arena.data() == data && arena.bytes() >= bytes && arena.bytes() % arena.step_bytes() == 0, "grown to %lld",
               static_cast<long long>(arena.bytes()));
    fill_bytes(test, data, filled, arena.bytes());
    filled = arena.bytes();
    test.check(wrong_words(test, data, filled) == 0, "contents at %lld", static_cast<long long>(filled));
  }
  test.need(arena.shrink(2 * step), "shrink");
  test.check(arena.bytes() == 2 * step && wrong_words(test, data, 2 * step) == 0, "contents after shrinking");
  test.need(arena.grow(4 * step), "grow again");
  fill_bytes(test, data, 2 * step, 4 * step);
  test.check(wrong_words(test, data, 4 * step) == 0, "contents after growing again");
  test.need(arena.shrink(0), "empty");
  test.need(cudaMemGetInfo(&free_after, &total), "memory");
  test.check(free_after + (64 << 20) > free_before, "%lld bytes are gone",
             static_cast<long long>(free_before) - static_cast<long long>(free_after));
}

DEVICE_CASE("arena: reserved_arena says where memory runs out, and gives back what it took on the way") {
  std::size_t free = 0, total = 0;
  test.need(cudaMemGetInfo(&free, &total), "memory");
  std::int64_t const step = static_cast<std::int64_t>(total / 5 * 2);  // the third does not fit, whatever is free
  auto made = pith::make_reserved_arena(4 * step, step);
  if (!made && made.error().code == pith::errc::unsupported) return test.not_run("no virtual memory calls");
  if (!test.need(made.error(), "make")) return;
  pith::status const refused = made.value().grow(3 * step);
  test.check(refused.code == pith::errc::out_of_memory && made.value().bytes() == 0, "%s", pith::message(refused.code));
  std::size_t after = 0;
  test.need(cudaMemGetInfo(&after, &total), "memory");
  test.check(after + (64 << 20) > free, "%lld bytes are gone", static_cast<long long>(free) - static_cast<long long>(after));
}

DEVICE_CASE("arena: block_pool hands out blocks of a reserved range") {
  auto made = pith::make_reserved_arena(std::int64_t{64} << 20);
  if (!made && made.error().code == pith::errc::unsupported) return test.not_run("no virtual memory calls");
  if (!test.need(made.error(), "make") || !test.need(made.value().grow(std::int64_t{32} << 20), "grow")) return;
  pith::reserved_arena const& arena = made.value();
  auto pool = pith::block_pool::make(arena.data(), 4608, arena.bytes() / 4608);
  if (!test.need(pool.error(), "pool")) return;
  fill_bytes(test, arena.data(), 0, arena.bytes());
  std::byte* const last = pool.value().address({static_cast<std::uint32_t>(pool.value().blocks() - 1)});
  test.need(cudaMemset(last, 0, 4608), "the last block");
  test.check(wrong_words(test, arena.data(), last - arena.data()) == 0, "the blocks before it");
}
