// SPDX-License-Identifier: Apache-2.0
// A cache on the device and the same cache on the emulated one: random calls leave the same memory, every byte of it.
#include <cstring>

#include "pith/codec/hadamard.hpp"
#include "pith/cuda/environment.cuh"
#include "tests/cuda/device/device_case.hpp"
#include "tests/cuda/device/emulated.hpp"
#include "tests/cuda/cache_steps.hpp"
#include "tests/laws/sample_state.hpp"

namespace {

using pith::bf16;

struct kivi : pith::kv_cache<pith::head_dim<128>, pith::keys<pith::int4<pith::per_channel<32>>>, pith::values<pith::int4<pith::per_token<64>>>,
                             pith::raw<pith::first<4>, pith::last<32>>, pith::on<pith::cuda>> {};
struct sided : pith::kv_cache<pith::head_dim<64, 80>, pith::keys<pith::pipe<pith::permute, pith::int8<pith::per_token<64>>>>,
                              pith::values<pith::int4<pith::per_token<16>>>, pith::raw<pith::last<8, 100>>, pith::side<pith::liveness, pith::bias>,
                              pith::non_finite<pith::nan_policy::propagate>, pith::on<pith::cuda>> {};
struct rotated : pith::kv_cache<pith::head_dim<128>, pith::keys<pith::pipe<pith::hadamard<128>, pith::int4<pith::per_channel<64>>>>,
                                pith::values<pith::pipe<pith::hadamard<128>, pith::int4<pith::per_token<64>>>>, pith::raw<pith::first<20>, pith::last<64, 32>>,
                                pith::pages<pith::paged<128>>, pith::on<pith::cuda>> {};

template <class Recipe, class T>
void compare(pith_test::device_test& test) {
  using host_steps = pith_test::cache_steps<Recipe, pith_test::emulated_environment, T>;
  using device_steps = pith_test::cache_steps<Recipe, pith::cuda_environment, T>;
  constexpr auto shape = device_steps::shape;
  auto made = pith::cuda_environment::make(nullptr, pith::plain_device_memory());
  if (!test.need(made.error(), "environment")) return;
  pith_test::emulated_environment const emulated;

  auto const bytes = static_cast<std::size_t>(device_steps::memory_bytes());
  std::vector<std::byte> memory(bytes + 64, std::byte{0xa5});
  std::size_t const past = reinterpret_cast<std::uintptr_t>(memory.data()) % 64;
  std::span<std::byte> const host_memory(memory.data() + (past == 0 ? 0 : 64 - past), bytes);
  pith_test::on_device<std::byte> const device_memory(std::vector<std::byte>(bytes, std::byte{0xa5}));
  std::vector<T> const k = pith_test::cache_text<T>(1, device_steps::text_tokens * shape.kv_heads * Recipe::key_channels);
  std::vector<T> const v = pith_test::cache_text<T>(2, device_steps::text_tokens * shape.kv_heads * Recipe::value_channels);
  pith_test::on_device<T> const device_k(k), device_v(v);

  using page = typename Recipe::page;
  std::vector<pith::state_of<typename page::key_tile>> const keys(6, pith_test::sample_state<typename page::key_tile>());
  std::vector<pith::state_of<typename page::value_tile>> const values(6, pith_test::sample_state<typename page::value_tile>());
  pith::calibration<page> const calibrated{{keys}, {values}};
  auto host = pith::make<Recipe>(emulated, shape, host_memory, calibrated);
  auto device = pith::make<Recipe>(made.value(), shape, std::span(device_memory.data(), bytes), calibrated);
  if (!test.need(host.error(), "the emulated cache") || !test.need(device.error(), "the device's cache")) return;

  host_steps host_run(emulated, host.value(), k.data(), v.data(), 5);
  device_steps device_run(made.value(), device.value(), device_k.data(), device_v.data(), 5);
  for (int round = 0; round < 12; ++round) {
    for (int i = 0; i < 10; ++i) {
      host_run.step();
      device_run.step();
    }
    test.check(host_run.said() == device_run.said(), "other statuses in round %d", round);
    std::vector<std::byte> const got = device_memory.values(test);
    std::size_t at = 0;
    while (at < bytes && got[at] == host_memory[at]) ++at;
    if (!test.check(at == bytes, "byte %zu of %zu is another in round %d", at, bytes, round)) return;
  }
  test.check(device_run.well() > 60, "only %d calls went well", static_cast<int>(device_run.well()));
}

}  // namespace

DEVICE_CASE("cache: INT4 per channel and per token, bf16 rows") { compare<kivi, bf16>(test); }
DEVICE_CASE("cache: permuted INT8 keys, INT4 values, side arrays, f16 rows") { compare<sided, pith::f16>(test); }
DEVICE_CASE("cache: rotated INT4, f32 rows") { compare<rotated, float>(test); }
