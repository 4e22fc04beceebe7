// SPDX-License-Identifier: Apache-2.0
// A device's cache does not depend on the order in which blocks and threads run: two devices with other orders end with the same memory.
#include "tests/cuda/cache_steps.hpp"

#include "pith/codec/hadamard.hpp"
#include "pith/codec/integer.hpp"
#include "support/catch.hpp"
#include "tests/cuda/emulated_environment.hpp"

using namespace pith_test;

namespace {

struct sided : pith::kv_cache<pith::head_dim<32, 16>, pith::keys<pith::pipe<pith::hadamard<32>, pith::int4<pith::per_channel<32>>>>,
                              pith::values<pith::int4<pith::per_token<16>>>, pith::raw<pith::first<4>, pith::last<8, 100>>,
                              pith::side<pith::liveness, pith::bias>, pith::non_finite<pith::nan_policy::propagate>, pith::on<pith::cuda>> {};

struct nothing {
  static constexpr int threads = 32;
  template <pith::device::device_like Thread>
  void operator()(Thread&) const {}
};

}  // namespace

TEST_CASE("the order of blocks does not matter to a device's cache", "[cuda][cache][random]") {
  using steps = cache_steps<sided, emulated_environment, pith::bf16>;
  auto const bytes = static_cast<std::size_t>(steps::memory_bytes());
  std::vector<pith::bf16> const k = cache_text<pith::bf16>(1, steps::text_tokens * 3 * 32), v = cache_text<pith::bf16>(2, steps::text_tokens * 3 * 16);
  std::vector<std::byte> memory[2];
  std::span<std::byte> arena[2];
  std::uint64_t said[2] = {};
  for (int other : {0, 1}) {
    memory[other].assign(bytes + 64, std::byte{0xa5});
    std::size_t const past = reinterpret_cast<std::uintptr_t>(memory[other].data()) % 64;
    arena[other] = {memory[other].data() + (past == 0 ? 0 : 64 - past), bytes};
    emulated_environment const env;
    if (other == 1) REQUIRE(env.launch(nothing{}, {}));  // turns round the order of every launch behind it
    auto cache = pith::make<sided>(env, steps::shape, arena[other]).value();
    steps run(env, cache, k.data(), v.data(), 5);
    for (int i = 0; i < 150; ++i) run.step();
    said[other] = run.said();
    CHECK(run.well() > 80);
    CHECK(run.well() < 150);
  }
  CHECK(said[0] == said[1]);
  CHECK(std::equal(arena[0].begin(), arena[0].end(), arena[1].begin()));
}
