// SPDX-License-Identifier: Apache-2.0
// Encode and decode on the device by lists of jobs and from staged rows, and what is refused.
#include "pith/codec/hadamard.hpp"
#include "tests/cuda/encode_support.hpp"

namespace {

using pith::bf16;
using pith::errc;
using pith::space;
using pith::use;
using tile_codec = pith::int4<pith::per_channel<32>>;
using tile = tile_codec::bind<64, 64, use::dot>;

pith::matrix_view<bf16 const, space::device> view_of(bf16 const* rows, std::int64_t tokens, std::int64_t channels, std::int64_t stride) {
  return {rows, {tokens, channels}, {stride, 1}};
}

}  // namespace

TEST_CASE("encode_tiles on a device: a list of jobs, in any order, with gaps", "[cuda]") {
  using balanced = pith::pipe<pith::balance, pith::int4<pith::per_token<16>>>::bind<64, 64, use::mix>;
  constexpr int tokens = balanced::tokens, channels = balanced::channels, count = 5;
  pith_test::random_bits random(3);
  pith_test::fenced<bf16> rows(count * tokens * channels);
  std::vector<float> exact(static_cast<std::size_t>(count * tokens * channels));
  for (std::size_t i = 0; i < exact.size(); ++i) {
    rows.data()[i] = pith::from_float<bf16>(pith_test::gaussian(random));
    exact[i] = pith::to_float(rows.data()[i]);
  }
  pith_test::fenced<std::byte> made(count * balanced::bytes), expected(count * balanced::bytes);
  pith_test::fenced<bf16> back(count * tokens * channels);
  auto const* const state = &pith_test::sample_state<balanced>();
  std::vector<pith::device::encode_job<balanced, bf16>> jobs;
  std::vector<pith::device::decode_job<balanced, bf16>> undone;
  for (int i : {3, 0, -1, 4, 1}) {
    if (i < 0) {
      jobs.push_back({nullptr, 0, nullptr, {nullptr}});
      undone.push_back({nullptr, 0, nullptr, {nullptr}});
      continue;
    }
    jobs.push_back({rows.data() + i * tokens * channels, channels, made.data() + i * balanced::bytes, {state}});
    undone.push_back({back.data() + i * tokens * channels, channels, made.data() + i * balanced::bytes, {state}});
    pith::encode_tile<balanced>(exact.data() + i * tokens * channels, expected.data() + i * balanced::bytes, *state);
  }
  pith_test::emulated_environment const env;
  REQUIRE(pith::encode_tiles<balanced>(env, pith::device::encode_jobs<balanced, bf16>{jobs.data()}, count));
  CHECK(std::memcmp(made.data(), expected.data(), made.bytes()) == 0);
  REQUIRE(pith::decode_tiles<balanced>(env, pith::device::decode_jobs<balanced, bf16>{undone.data()}, count));
  std::vector<float> decoded(static_cast<std::size_t>(tokens * channels));
  for (int i = 0; i < count; ++i) {
    if (i != 2) pith::decode_tile<balanced>(expected.data() + i * balanced::bytes, decoded.data(), *state);
    int wrong = 0;
    for (int k = 0; k < tokens * channels; ++k)
      wrong += !(back.data()[i * tokens * channels + k] ==
                 (i == 2 ? bf16{0xa5a5} : pith::from_float<bf16>(decoded[static_cast<std::size_t>(k)])));
    CHECK(wrong == 0);
  }
  CHECK((made.intact() && back.intact()));
}

namespace {

// Tile i of what a ring of raw tiles holds, from its tile `first` on.
template <class Tile, class Raw>
struct ring_jobs {
  std::byte const* ring;
  std::int64_t first, tiles;
  std::byte* out;
  auto from(std::int64_t i) const { return pith::device::raw_ring<Raw>{ring, first + i * (Tile::tokens / 32), tiles}; }
  std::byte* to(std::int64_t i) const { return out + i * Tile::bytes; }
  pith::no_state state(std::int64_t) const { return {}; }
};

template <class Tile, class Raw>
void check_ring() {
  constexpr std::int64_t ring_tiles = 5, row = Raw::channels;
  pith_test::random_bits random(4);
  pith_test::fenced<std::byte> ring(ring_tiles * Raw::bytes);
  std::vector<float> rows(static_cast<std::size_t>(ring_tiles * 32 * row));
  for (float& x : rows) x = pith::to_float(pith::from_float<bf16>(pith_test::log_normal(random)));
  rows[7] = pith::bits_float(0x7f800000u);
  for (std::int64_t i = 0; i < ring_tiles; ++i) Raw::encode(rows.data() + i * 32 * row, ring.data() + i * Raw::bytes);
  constexpr std::int64_t count = ring_tiles * 32 / Tile::tokens, per_tile = Tile::tokens / 32;
  pith_test::fenced<std::byte> made(count * Tile::bytes), expected(count * Tile::bytes);
  std::vector<float> turned(static_cast<std::size_t>(Tile::tokens * row));
  for (std::int64_t i = 0; i < count; ++i) {
    for (std::int64_t b = 0; b < per_tile; ++b)
      std::memcpy(turned.data() + b * 32 * row, rows.data() + (3 + i * per_tile + b) % ring_tiles * 32 * row,
                  static_cast<std::size_t>(32 * row) * 4);
    Tile::encode(turned.data(), expected.data() + i * Tile::bytes);
  }
  pith_test::emulated_environment const env;
  REQUIRE(pith::encode_tiles<Tile>(env, ring_jobs<Tile, Raw>{ring.data(), 3, ring_tiles, made.data()}, count));
  CHECK(std::memcmp(made.data(), expected.data(), made.bytes()) == 0);
  CHECK((made.intact() && ring.intact()));
}

}  // namespace

TEST_CASE("encode_tiles on a device: staged rows, round the end of their ring", "[cuda]") {
  check_ring<tile, pith::raw_tile<bf16, 64, use::dot>>();
  check_ring<pith::int4<pith::per_channel<64>>::bind<80, 64, use::dot>, pith::raw_tile<bf16, 80, use::dot>>();
  check_ring<pith::int2<pith::per_token<32>>::bind<64, 64, use::mix>, pith::raw_tile<bf16, 64, use::mix>>();
  check_ring<pith::pipe<pith::hadamard<128>, pith::int4<pith::per_channel<128>>>::bind<128, 128, use::mix>,
             pith::raw_tile<bf16, 128, use::mix>>();
}

TEST_CASE("encode_tiles on a device: what does not fit is refused, and nothing is started", "[cuda][status]") {
  pith_test::fenced<bf16> rows(64 * 80);
  pith_test::fenced<std::byte> out(4 * tile::bytes);
  pith_test::emulated_environment const env;
  auto const encode = [&](auto view, std::byte* to, std::int64_t stride) { return pith::encode_tiles<tile>(env, view, to, stride); };
  bf16 const* const data = rows.data();
  CHECK(encode(view_of(data, 64, 80, 80), out.data(), tile::bytes) == pith::status{errc::shape_mismatch, 80});
  CHECK(encode(view_of(data, 40, 64, 64), out.data(), tile::bytes) == pith::status{errc::shape_mismatch, 40});
  CHECK(encode(pith::matrix_view<bf16 const, space::device>(data, {64, 64}, {64, 2}), out.data(), tile::bytes) ==
        pith::status{errc::shape_mismatch, 2});
  CHECK(encode(view_of(data, 64, 64, 64), out.data(), tile::bytes - 16) == pith::status{errc::out_of_range, tile::bytes - 16});
  CHECK(encode(view_of(data + 1, 64, 64, 64), out.data(), tile::bytes) == pith::status{errc::misaligned, 2});
  CHECK(encode(view_of(data, 64, 64, 68), out.data(), tile::bytes) == pith::status{errc::misaligned, 8});
  CHECK(encode(view_of(data, 64, 64, 64), out.data() + 4, tile::bytes) == pith::status{errc::misaligned, 4});
  CHECK(encode(view_of(data, 64, 64, 64), out.data(), tile::bytes + 12) == pith::status{errc::misaligned, 12});
  CHECK(encode(view_of(data, 0, 64, 64), out.data(), tile::bytes));
  for (std::size_t i = 0; i < out.bytes(); ++i) REQUIRE(out.data()[i] == std::byte{0xa5});

  pith::matrix_view<bf16, space::device> const back(rows.data(), {64, 64}, {64, 1});
  CHECK(pith::decode_tiles<tile>(env, out.data() + 8, tile::bytes, back) == pith::status{errc::misaligned, 8});
  using permuted = pith::pipe<pith::permute, tile_codec>::bind<64, 64, use::dot>;
  CHECK(pith::encode_tiles<permuted>(env, view_of(data, 64, 64, 64), out.data(), permuted::bytes).code == errc::bad_calibration);
  for (std::int64_t i = 0; i < 64 * 80; ++i) REQUIRE(rows.data()[i] == bf16{0xa5a5});
}
