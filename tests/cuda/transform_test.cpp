// SPDX-License-Identifier: Apache-2.0
// A warp, or a block, transforms rows in shared memory to the very numbers of the transforms' own functions.
#include <cstring>
#include <vector>

#include "laws/inputs.hpp"
#include "laws/sample_state.hpp"
#include "pith/codec/hadamard.hpp"
#include "pith/codec/integer.hpp"
#include "pith/codec/raw.hpp"
#include "pith/cuda/transform_rows.hpp"
#include "support/catch.hpp"
#include "tests/cuda/emulated_environment.hpp"

namespace {

using pith::use;

// A transform that the device has no form of its own for.
struct reverse {
  template <int Channels>
  static void apply(float* row) {
    for (int i = 0; i < Channels / 2; ++i) {
      float const x = row[i];
      row[i] = row[Channels - 1 - i];
      row[Channels - 1 - i] = x;
    }
  }
  template <int Channels>
  static void undo(float* row) {
    apply<Channels>(row);
  }
};

enum class what { row, restored, query, output, rows, rows_restored };

constexpr int rows_at_once = 5;

template <class Tile>
struct transform_kernel {
  static constexpr int threads = 64;
  static constexpr int pitch = Tile::channels + 4;
  what kind;
  float* rows;
  pith::state_of<Tile> const* state;

  template <pith::device::device_like Thread>
  void operator()(Thread& t) const {
    float* const shared = reinterpret_cast<float*>(t.shared());
    for (int i = t.warp() * 32 + t.lane(); i < rows_at_once * Tile::channels; i += threads)
      shared[i / Tile::channels * pitch + i % Tile::channels] = rows[i];
    t.sync();
    namespace d = pith::device;
    if (kind == what::rows) d::transform_rows<Tile, rows_at_once, threads>(t, t.warp() * 32 + t.lane(), shared, pitch, *state);
    if (kind == what::rows_restored) d::restore_rows<Tile, rows_at_once, threads>(t, t.warp() * 32 + t.lane(), shared, pitch, *state);
    for (int r = t.warp(); r < rows_at_once; r += threads / 32) {
      if (kind == what::row) d::transform_row<Tile>(t, shared + r * pitch, *state);
      if (kind == what::restored) d::restore_row<Tile>(t, shared + r * pitch, *state);
      if (kind == what::query) d::transform_query<Tile>(t, shared + r * pitch, *state);
      if (kind == what::output) d::restore_output<Tile>(t, shared + r * pitch, *state);
    }
    t.sync();
    for (int i = t.warp() * 32 + t.lane(); i < rows_at_once * Tile::channels; i += threads)
      rows[i] = shared[i / Tile::channels * pitch + i % Tile::channels];
  }
};

template <class Tile>
void expect(what kind, float* row, pith::state_of<Tile> const& state) {
  if constexpr (pith::is_transformed<Tile>) {
    auto const inner = [&]() -> decltype(auto) {
      if constexpr (pith::is_calibrated<typename Tile::inner>)
        return Tile::inner_of(state);
      else
        return pith::no_state{};
    };
    if (kind == what::row || kind == what::rows) {
      for (int c = 0; c < Tile::channels; ++c) row[c] = Tile::admitted(row[c]);
      Tile::transform_row(row, state);
      expect<typename Tile::inner>(kind, row, inner());
    } else if (kind == what::restored || kind == what::rows_restored) {
      expect<typename Tile::inner>(kind, row, inner());
      Tile::restore_row(row, state);
    } else if (kind == what::query) {
      Tile::transform_query(row, state);
    } else {
      Tile::restore_output(row, state);
    }
  }
}

template <class Tile>
void check(char const* name) {
  INFO(name);
  auto const& state = pith_test::sample_state<Tile>();
  for (auto const& x : pith_test::hard_inputs(rows_at_once, Tile::channels, 7))
    for (what kind : {what::row, what::restored, what::query, what::output, what::rows, what::rows_restored}) {
      INFO(x.name << ", " << static_cast<int>(kind));
      bool const saturates = kind == what::row || kind == what::rows;
      if (!saturates && x.name == "largest floats") continue;  // infinities, whose differences are NaN
      std::vector<float> rows = x.rows, expected = x.rows;
      if (saturates) rows[3] = expected[3] = pith::bits_float(0x7f800000u), rows[9] = expected[9] = pith::bits_float(0x7fc00000u);
      for (int r = 0; r < rows_at_once; ++r) expect<Tile>(kind, expected.data() + r * Tile::channels, state);
      pith_test::emulated_environment const env;
      transform_kernel<Tile> const kernel{kind, rows.data(), &state};
      REQUIRE(env.launch(kernel, pith::device::grid{1, 1, 1, 4 * rows_at_once * transform_kernel<Tile>::pitch}));
      CHECK(std::memcmp(rows.data(), expected.data(), rows.size() * sizeof(float)) == 0);
    }
}

#define PITH_CHECK(Channels, ...) check<typename __VA_ARGS__::template bind<Channels, 64, use::dot>>(#__VA_ARGS__)

}  // namespace

TEST_CASE("transform_row, restore_row, transform_query, restore_output: the numbers of the transform's own functions", "[cuda][identity]") {
  using namespace pith;
  using pith::pipe;
  PITH_CHECK(64, int4<per_token<32>>);
  PITH_CHECK(16, pipe<hadamard<2>, int4<per_token<>>>);
  PITH_CHECK(80, pipe<hadamard<16>, int4<per_token<>>>);
  PITH_CHECK(96, pipe<hadamard<32>, int4<per_token<>>>);
  PITH_CHECK(64, pipe<hadamard<64>, int4<per_token<>>>);
  PITH_CHECK(192, pipe<hadamard<64>, int4<per_token<>>>);
  PITH_CHECK(128, pipe<hadamard<128>, int4<per_token<>>>);
  PITH_CHECK(256, pipe<hadamard<256>, int4<per_token<>>>);
  PITH_CHECK(80, pipe<permute, int4<per_token<>>>);
  PITH_CHECK(80, pipe<balance, int4<per_token<>>>);
  PITH_CHECK(80, pipe<rotate, int4<per_token<>>>);
  PITH_CHECK(48, pipe<reverse, int4<per_token<>>>);
  PITH_CHECK(128, pipe<balance, pipe<hadamard<64>, pipe<permute, int4<per_token<>>>>>);
}
