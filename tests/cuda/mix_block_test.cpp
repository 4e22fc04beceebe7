// SPDX-License-Identifier: Apache-2.0
// mix on emulated tensor cores against sums of decoded numbers in f64.
#include <algorithm>
#include <cmath>
#include <vector>

#include "pith/cuda/mix_block.hpp"
#include "tests/cuda/block_support.hpp"
#include "tests/cuda/emulated_environment.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/digest.hpp"

namespace {

using namespace pith;

// One warp adds every block of some tiles, and halves what is there behind each tile.
template <class Storage, int NT, int Terms>
struct mix_kernel_of_one {
  static constexpr int threads = 32;
  using mix = device::mix_block<Storage, NT, Terms>;
  std::byte const* tiles;
  int count;
  float const* weights;  // [8 NT][count * tokens]
  float* sums;           // [8 NT][channels]

  template <device::device_like Thread>
  void operator()(Thread& t) const {
    mix state;
    state.clear();
    int const tokens = count * Storage::tokens, g = t.lane() / 4, quad = t.lane() % 4;
    for (int i = 0; i < count; ++i) {
      for (int block = 0; block < Storage::tokens / 32; ++block) {
        mix::stage_of::template start<32>(t, t.lane(), t.shared(), tiles + i * Storage::bytes, block);
        t.commit();
        t.template wait<0>();
        t.sync_warp();
        float p[2][NT][4];
        for (int h = 0; h < 2; ++h)
          for (int n = 0; n < NT; ++n)
            for (int r = 0; r < 4; ++r)
              p[h][n][r] = weights[(8 * n + 2 * quad + r % 2) * tokens + i * Storage::tokens + 32 * block + 4 * g + 2 * h + r / 2];
        state.add(t, t.shared(), p);
        t.sync_warp();
      }
      for (int n = 0; n < NT; ++n) state.scale(n, 0.5f, 0.25f);
    }
    state.finish(t);
    for (int m = 0; m < mix::tiles; ++m)
      for (int n = 0; n < NT; ++n)
        for (int r = 0; r < 4; ++r) sums[(8 * n + 2 * quad + r % 2) * Storage::channels + mix::channel_of(m, g, r)] = state.o[m][n][r];
  }
};

template <class Codec, int Channels, int NT, int Terms, int PageTokens = 64>
void check(char const* name) {
  using tile = typename Codec::template bind<Channels, PageTokens, use::mix>;
  using kernel = mix_kernel_of_one<tile, NT, Terms>;
  INFO(name << " channels " << Channels << " NT " << NT << " terms " << Terms);
  pith_test::random_bits random(5);
  constexpr int count = 3, tokens = count * tile::tokens;
  std::vector<float> rows(static_cast<std::size_t>(tokens * Channels)), weights(static_cast<std::size_t>(8 * NT * tokens));
  for (int i = 0; i < tokens; ++i)  // later tiles are far larger than the first: the unit has to move
    for (int c = 0; c < Channels; ++c)
      rows[static_cast<std::size_t>(i * Channels + c)] = (random.uniform() * (c == 3 ? 30.0f : 2.0f) + 1.0f) * (i / tile::tokens == 1 ? 3000.0f : 0.01f);
  for (float& w : weights) w = std::exp2(random.uniform() * 12.0f - 6.0f);
  pith_test::some_tiles<tile> const packed(rows, count);
  std::vector<float> sums(static_cast<std::size_t>(8 * NT * Channels));
  pith_test::emulated_environment env;
  REQUIRE(env.launch(kernel{packed.data, count, weights.data(), sums.data()}, {.shared_bytes = kernel::mix::stage_of::bytes}));
  constexpr double relative = pith_test::relative_error<typename kernel::mix::element>(Terms);
  double worst = 0;
  for (int q = 0; q < 8 * NT; ++q)
    for (int c = 0; c < Channels; ++c) {
      double sum = 0, size = 0, most = 0;
      for (int t = 0; t < tokens; ++t) {
        double const w = weights[static_cast<std::size_t>(q * tokens + t)] * std::pow(q % 2 == 0 ? 0.5 : 0.25, count - t / tile::tokens);
        double const x = packed.decoded[static_cast<std::size_t>(t * Channels + c)], spread = packed.spread(t, c);
        sum += w * x;
        size += w * spread;
        most = std::max(most, w * spread);
      }
      double const error = std::fabs(sum - static_cast<double>(sums[static_cast<std::size_t>(q * Channels + c)])), bound = relative * size + 0x1p-22 * most;
      worst = std::max(worst, error / bound);
    }
  CHECK(worst <= 1.0);
  CHECK(worst > 1e-4);
}

}  // namespace

TEST_CASE("mix blocks add integers with scales of tokens") {
  check<int4<per_token<64>>, 128, 1, 2>("int4 per_token<64>");
  check<int4<per_token<64>>, 128, 2, 1>("int4 per_token<64>");
  check<int4<per_token<16>>, 80, 1, 2>("int4 per_token<16>");
  check<int4<per_token<>, zero::none>, 80, 2, 2>("int4 whole, none");
  check<int8<per_token<32>, zero::integer>, 64, 1, 2>("int8, integer zero");
  check<int8<per_token<>, zero::none, float>, 80, 1, 2>("int8 f32 scale");
  check<int2<per_token<32>>, 128, 1, 2>("int2 per_token<32>");
  check<int2<per_token<16>, zero::real, bf16>, 80, 1, 2>("int2 per_token<16> bf16");
  check<int3<per_token<32>>, 64, 1, 2>("int3");
  check<int5<per_token<32>>, 64, 1, 2>("int5");
  check<int6<per_token<16>>, 80, 1, 2>("int6");
  check<int7<per_token<64>>, 64, 2, 2>("int7");
  check<block_float<4, per_token<32>>, 128, 1, 2>("bfp4");
}

TEST_CASE("mix blocks add integers with scales of channels") {
  check<int4<per_channel<32>>, 128, 1, 2>("int4 per_channel<32>");
  check<int4<per_channel<32>>, 80, 1, 1>("int4 per_channel<32>");
  check<int2<per_channel<32>>, 64, 2, 2>("int2 per_channel<32>");
  check<int8<per_channel<64>, zero::integer>, 64, 1, 2>("int8 per_channel<64>");
  check<int4<per_channel<16>>, 64, 1, 2>("int4 per_channel<16>");
  check<int3<per_channel<>, zero::none, float>, 64, 1, 2, 96>("int3 per_channel whole");
  check<block_float<5, per_channel<32>>, 64, 1, 2>("bfp5 per_channel<32>");
}

TEST_CASE("mix blocks add raw numbers") {
  check<raw<bf16>, 128, 1, 2>("bf16");
  check<raw<bf16>, 80, 1, 1>("bf16");
  check<raw<f16>, 64, 2, 2>("f16");
}
