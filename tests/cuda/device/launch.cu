// SPDX-License-Identifier: Apache-2.0
// cuda_environment: launches, their errors, the status word, copies, memory from the caller's allocator.
#include "pith/cuda/environment.cuh"

#include "tests/cuda/device/device_case.hpp"

namespace {

using pith::errc;
using pith::status;
using pith::device::device_like;

struct add_one {
  static constexpr int threads = 64, min_blocks = 4;
  int* numbers;
  std::int64_t count;

  template <device_like Thread>
  PITH_HD void operator()(Thread& t) const {
    std::int64_t const i = t.block_x() * threads + 32 * t.warp() + t.lane();
    if (i < count) ++numbers[i];
  }
};
// Writes the last byte of its shared memory and reads it back.
struct touch_shared {
  static constexpr int threads = 32;
  int* out;
  std::int64_t shared_bytes;

  template <device_like Thread>
  PITH_HD void operator()(Thread& t) const {
    if (t.lane() == 31) t.shared()[shared_bytes - 1] = std::byte{42};
    t.sync();
    if (t.lane() == 0) out[t.block_x()] = static_cast<int>(t.shared()[shared_bytes - 1]);
  }
};
struct complain {
  static constexpr int threads = 128;
  std::uint64_t* word;

  template <device_like Thread>
  PITH_HD void operator()(Thread& t) const {
    if (t.block_x() >= 5) t.store_once(word, pith::device::pack_status({errc::not_finite, t.block_x()}));
  }
};

struct counting_pool {
  int taken = 0, given = 0;
  std::size_t bytes = 0;
  bool empty = false;
};

}  // namespace

DEVICE_CASE("launch: grids that cannot be are refused before the device sees them") {
  auto made = pith::cuda_environment::make(nullptr, pith::plain_device_memory());
  if (!test.need(made.error(), "environment")) return;
  pith::cuda_environment const& env = made.value();
  add_one const kernel{nullptr, 0};
  auto const refused = [&](pith::device::grid const& grid, std::int64_t at) {
    test.check(env.launch(kernel, grid) == status{errc::out_of_range, at}, "grid %lld %lld %lld, shared %lld",
               static_cast<long long>(grid.x), static_cast<long long>(grid.y), static_cast<long long>(grid.z),
               static_cast<long long>(grid.shared_bytes));
  };
  refused({0}, 0);
  refused({.x = -1}, -1);
  refused({.x = std::int64_t{1} << 31}, std::int64_t{1} << 31);
  refused({.y = 65536}, 65536);
  refused({.z = 65536}, 65536);
  refused({.z = 0}, 0);
  refused({.shared_bytes = 1 << 20}, 1 << 20);
  refused({.shared_bytes = -1}, -1);
  test.need(env.launch(kernel, {.x = 1, .y = 65535, .z = 2}), "the largest y");
  test.check(env.copy(nullptr, nullptr, -1) == status{errc::out_of_range, -1}, "copy of -1 bytes");
  test.need(env.copy(nullptr, nullptr, 0), "copy of nothing");
  test.need(pith::read_status(env), "status");
}

DEVICE_CASE("launch: kernels and copies run in the order of the stream") {
  cudaStream_t stream = nullptr;
  if (!test.need(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "stream")) return;
  {
    auto made = pith::cuda_environment::make(stream, pith::plain_device_memory());
    if (!test.need(made.error(), "environment")) return;
    pith::cuda_environment const& env = made.value();
    std::int64_t const count = 100003;
    pith_test::on_device<int> const from(std::vector<int>(count, 7)), to(static_cast<std::size_t>(count));
    for (int i = 0; i < 10; ++i) test.need(env.launch(add_one{from.data(), count}, {(count + 63) / 64}), "launch");
    test.need(env.copy(reinterpret_cast<std::byte*>(to.data()), reinterpret_cast<std::byte const*>(from.data()), 4 * (count - 1)), "copy");
    test.need(env.launch(add_one{from.data(), count}, {(count + 63) / 64}), "launch");
    test.need(pith::read_status(env), "status");
    std::vector<int> const a = from.values(test), b = to.values(test);
    for (std::size_t i = 0; i < a.size(); ++i)
      test.check(a[i] == 18 && b[i] == (i + 1 < b.size() ? 17 : 0), "number %d", static_cast<int>(i));
    test.check(env.multiprocessors() > 0, "multiprocessors");
    test.check(env.scratch().size() == static_cast<std::size_t>(pith::cuda_environment::default_scratch_bytes) &&
                   pith::is_device_pointer(env.scratch().data()) && !pith::is_device_pointer(a.data()),
               "scratch");
  }
  test.need(cudaStreamDestroy(stream), "destroy");
}

DEVICE_CASE("launch: a kernel may have all of the shared memory that the device grants") {
  auto made = pith::cuda_environment::make(nullptr, pith::plain_device_memory());
  if (!test.need(made.error(), "environment")) return;
  int most = 0;
  test.need(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0), "attribute");
  pith_test::on_device<int> const out(std::size_t{4});
  std::int64_t const sizes[] = {1, 48 << 10, (48 << 10) + 1, most};
  for (std::int64_t const bytes : sizes) {
    test.need(made.value().launch(touch_shared{out.data(), bytes}, {.x = 4, .shared_bytes = bytes}), "launch");
    std::vector<int> const got = out.values(test);
    for (int const x : got) test.check(x == 42, "%lld bytes", static_cast<long long>(bytes));
  }
  test.check(made.value().launch(touch_shared{out.data(), most + 1}, {.shared_bytes = most + 1}) == status{errc::out_of_range, most + 1},
             "more");
}

DEVICE_CASE("launch: the first complaint stays until it is cleared") {
  auto made = pith::cuda_environment::make(nullptr, pith::plain_device_memory());
  if (!test.need(made.error(), "environment")) return;
  pith::cuda_environment const& env = made.value();
  test.need(env.launch(complain{env.status_word()}, {5}), "launch");
  test.check(pith::read_status(env) == status{}, "nothing to complain about");
  test.need(env.launch(complain{env.status_word()}, {6}), "launch");
  test.need(env.launch(complain{env.status_word()}, {9}), "launch");
  test.check(pith::read_status(env) == status{errc::not_finite, 5}, "the first");
  test.check(pith::read_status(env) == status{errc::not_finite, 5}, "reading does not clear");
  test.need(pith::clear_status(env), "clear");
  test.check(pith::read_status(env) == status{}, "cleared");
}

DEVICE_CASE("launch: memory comes from the caller's allocator and goes back to it") {
  counting_pool pool;
  pith::device_memory_resource const resource{&pool,
                                              +[](void* context, void** to, std::size_t bytes, cudaStream_t) {
                                                auto& p = *static_cast<counting_pool*>(context);
                                                if (p.empty) return cudaErrorMemoryAllocation;
                                                ++p.taken, p.bytes += bytes;
                                                return cudaMalloc(to, bytes);
                                              },
                                              +[](void* context, void* memory, std::size_t bytes, cudaStream_t) {
                                                auto& p = *static_cast<counting_pool*>(context);
                                                ++p.given, p.bytes -= bytes;
                                                static_cast<void>(cudaFree(memory));
                                              }};
  {
    auto made = pith::cuda_environment::make(nullptr, resource, 1000);
    if (!test.need(made.error(), "environment")) return;
    pith::cuda_environment const moved = std::move(made).value();
    test.check(pool.taken == 1 && pool.bytes >= 1000 && moved.scratch().size() == 1000, "one allocation");
    test.need(pith::read_status(moved), "status");
  }
  test.check(pool.taken == 1 && pool.given == 1 && pool.bytes == 0, "given back once");
  pool.empty = true;
  test.check(pith::cuda_environment::make(nullptr, resource, 1000).error().code == errc::out_of_memory, "an empty pool");
  test.check(pith::cuda_environment::make(nullptr, resource, -1).error() == status{errc::out_of_range, -1}, "negative scratch");
  test.check(pith::cuda_environment::make(nullptr, pith::plain_device_memory(), std::int64_t{1} << 50).error().code == errc::out_of_memory,
             "a pebibyte");
  test.need(cudaGetLastError(), "the refused allocation leaves no error behind");
}

DEVICE_CASE("launch: the runtime's own pool serves an environment") {
  int pools = 0;
  test.need(cudaDeviceGetAttribute(&pools, cudaDevAttrMemoryPoolsSupported, 0), "attribute");
  if (pools == 0) return test.not_run("the device has no memory pools");
  pith_test::on_device<int> const out(std::size_t{64});
  for (int i = 0; i < 3; ++i) {  // destroyed while its work runs
    auto made = pith::cuda_environment::make(nullptr);
    if (!test.need(made.error(), "environment")) return;
    test.need(made.value().launch(add_one{out.data(), 64}, {1}), "launch");
  }
  test.check(out.values(test)[63] == 3, "three launches");
}

DEVICE_CASE("launch: a recorded graph replays launches and copies") {
  cudaStream_t stream = nullptr;
  if (!test.need(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "stream")) return;
  {
    auto made = pith::cuda_environment::make(stream, pith::plain_device_memory());
    if (!test.need(made.error(), "environment")) return;
    pith::cuda_environment const& env = made.value();
    pith_test::on_device<int> const from(std::size_t{64}), to(std::size_t{64});
    test.need(cudaStreamSynchronize(stream), "set-up");
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t replay = nullptr;
    test.need(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal), "begin");
    test.need(env.launch(add_one{from.data(), 64}, {1}), "launch");
    test.need(env.copy(reinterpret_cast<std::byte*>(to.data()), reinterpret_cast<std::byte const*>(from.data()), 256), "copy");
    test.need(env.launch(touch_shared{to.data(), 60000}, {.x = 1, .shared_bytes = 60000}), "launch with much shared memory");
    test.need(pith::clear_status(env), "clear");
    test.need(cudaStreamEndCapture(stream, &graph), "end");
    test.need(cudaGraphInstantiate(&replay, graph, 0), "instantiate");
    for (int i = 0; i < 5; ++i) test.need(cudaGraphLaunch(replay, stream), "replay");
    test.need(cudaStreamSynchronize(stream), "replays");
    std::vector<int> const got = to.values(test);
    test.check(got[0] == 42 && got[1] == 5 && got[63] == 5, "%d %d %d", got[0], got[1], got[63]);
    static_cast<void>(cudaGraphExecDestroy(replay));
    static_cast<void>(cudaGraphDestroy(graph));
  }
  test.need(cudaStreamDestroy(stream), "destroy");
}
