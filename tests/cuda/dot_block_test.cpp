// SPDX-License-Identifier: Apache-2.0
// dot on emulated tensor cores against sums of decoded numbers in f64.
#include <cmath>
#include <vector>

#include "pith/cuda/dot_block.hpp"
#include "tests/cuda/block_support.hpp"
#include "tests/cuda/emulated_environment.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/digest.hpp"

namespace {

using namespace pith;

// One warp: stages block `block` of a tile, lays down the queries and multiplies.
template <class Storage, int NT, int Terms>
struct dot_kernel_of_one {
  static constexpr int threads = 32;
  using dot = device::dot_block<Storage, NT, Terms>;
  std::byte const* tile;
  int block;
  float const* queries;  // [8 NT][channels]
  float* scores;         // [8 NT][32]

  static constexpr int query_at = dot::operand::stage::bytes, row_at = query_at + dot::query::bytes;
  static constexpr int shared_bytes = row_at + 4 * Storage::channels;

  template <device::device_like Thread>
  void operator()(Thread& t) const {
    dot::operand::stage::template start<32>(t, t.lane(), t.shared(), tile, block);
    t.commit();
    auto* const row = reinterpret_cast<float*>(t.shared() + row_at);
    for (int r = 0; r < 8 * NT; ++r) {
      for (int c = t.lane(); c < Storage::channels; c += 32) row[c] = queries[r * Storage::channels + c];
      t.sync_warp();
      dot::query::write(t, t.shared() + query_at, r, row, 1.0f);
      t.sync_warp();
    }
    t.template wait<0>();
    t.sync_warp();
    float s[2][NT][4] = {};
    dot::run(t, t.shared(), t.shared() + query_at, s);
    for (int h = 0; h < 2; ++h)
      for (int n = 0; n < NT; ++n)
        for (int r = 0; r < 4; ++r) {
          int const q = 8 * n + 2 * (t.lane() % 4) + r % 2;
          float const factor = *reinterpret_cast<float const*>(t.shared() + query_at + dot::query::factor_at(q));
          scores[q * 32 + 4 * (t.lane() / 4) + 2 * h + r / 2] = factor * s[h][n][r];
        }
  }
};

template <class Codec, int Channels, int NT, int Terms, int PageTokens = 64>
void check(char const* name) {
  using tile = typename Codec::template bind<Channels, PageTokens, use::dot>;
  using kernel = dot_kernel_of_one<tile, NT, Terms>;
  INFO(name << " channels " << Channels << " NT " << NT << " terms " << Terms);
  pith_test::random_bits random(11);
  std::vector<float> rows(static_cast<std::size_t>(tile::tokens * Channels)), queries(static_cast<std::size_t>(8 * NT * Channels));
  for (std::size_t i = 0; i < rows.size(); ++i) rows[i] = random.uniform() * (i % static_cast<std::size_t>(Channels) == 3 ? 30.0f : 2.0f) + (i % 7 == 0 ? 1.5f : 0.0f);
  for (std::size_t i = 0; i < queries.size(); ++i)
    queries[i] = random.uniform() * std::exp2(static_cast<float>(static_cast<int>(i / static_cast<std::size_t>(Channels) % 5) * 9 - 18)) * (i % 41 == 5 ? 20.0f : 1.0f);
  pith_test::some_tiles<tile> const packed(rows, 1);
  std::vector<float> scores(static_cast<std::size_t>(8 * NT * 32));
  constexpr double relative = pith_test::relative_error<typename device::dot_operand<tile>::element>(Terms);
  pith_test::emulated_environment env;
  for (int block = 0; block < tile::tokens / 32; ++block) {
    REQUIRE(env.launch(kernel{packed.data, block, queries.data(), scores.data()}, {.shared_bytes = kernel::shared_bytes}));
    double worst = 0;
    for (int q = 0; q < 8 * NT; ++q) {
      double most = 0;
      for (int c = 0; c < Channels; ++c) most = std::max(most, std::fabs(static_cast<double>(queries[q * Channels + c])));
      for (int t = 0; t < 32; ++t) {
        double sum = 0, size = 0, sizes = 0;
        for (int c = 0; c < Channels; ++c) {
          double const x = packed.decoded[static_cast<std::size_t>((block * 32 + t) * Channels + c)], y = queries[q * Channels + c];
          double const spread = packed.spread(block * 32 + t, c);
          sum += x * y;
          size += spread * std::fabs(y);
          sizes += spread;
        }
        double const error = std::fabs(sum - scores[q * 32 + t]), bound = relative * size + 0x1p-24 * most * sizes + 1e-30;
        worst = std::max(worst, error / bound);
      }
    }
    CHECK(worst <= 1.0);
    CHECK(worst > 1e-4);
  }
}

}  // namespace

TEST_CASE("dot blocks multiply integers with scales of tokens") {
  check<int4<per_token<64>>, 128, 1, 2>("int4 per_token<64>");
  check<int4<per_token<64>>, 128, 1, 1>("int4 per_token<64>");
  check<int4<per_token<16>>, 80, 1, 2>("int4 per_token<16>");
  check<int4<per_token<>, zero::none>, 80, 2, 2>("int4 whole, none");
  check<int8<per_token<32>, zero::integer>, 64, 1, 2>("int8, integer zero");
  check<int8<per_token<>, zero::none, float>, 80, 1, 2>("int8 f32 scale");
  check<int2<per_token<32>>, 128, 1, 2>("int2 per_token<32>");
  check<int2<per_token<16>, zero::real, bf16>, 80, 1, 2>("int2 per_token<16> bf16");
  check<int3<per_token<32>>, 64, 1, 2>("int3");
  check<int3<per_token<>>, 80, 1, 2>("int3 whole");
  check<int5<per_token<32>>, 64, 1, 2>("int5");
  check<int6<per_token<16>>, 80, 1, 2>("int6");
  check<int7<per_token<64>>, 64, 2, 2>("int7");
  check<block_float<4, per_token<32>>, 128, 1, 2>("bfp4");
  check<block_float<8, per_token<16>>, 80, 1, 2>("bfp8");
}

TEST_CASE("dot blocks multiply integers with scales of channels") {
  check<int4<per_channel<32>>, 128, 1, 2>("int4 per_channel<32>");
  check<int4<per_channel<32>>, 80, 1, 1>("int4 per_channel<32>");
  check<int2<per_channel<32>>, 64, 2, 2>("int2 per_channel<32>");
  check<int8<per_channel<64>, zero::integer>, 64, 1, 2>("int8 per_channel<64>");
  check<int4<per_channel<16>>, 64, 1, 2>("int4 per_channel<16>");
  check<int3<per_channel<>, zero::none, float>, 64, 1, 2, 96>("int3 per_channel whole");
  check<int6<per_channel<16>, zero::real, bf16>, 64, 1, 2>("int6 per_channel<16>");
  check<block_float<5, per_channel<32>>, 64, 1, 2>("bfp5 per_channel<32>");
}

TEST_CASE("dot blocks multiply raw numbers") {
  check<raw<bf16>, 128, 1, 2>("bf16");
  check<raw<bf16>, 80, 1, 1>("bf16");
  check<raw<f16>, 64, 2, 2>("f16");
}
