// SPDX-License-Identifier: Apache-2.0
// Calibrated numbers: what their makers refuse, and that a page's identity changes with the format and with every number.
#include "pith/codec/calibration.hpp"

#include <cmath>
#include <cstring>
#include <set>

#include "laws/sample_state.hpp"
#include "pith/codec/hadamard.hpp"
#include "pith/codec/integer.hpp"
#include "pith/codec/kv_page.hpp"
#include "pith/codec/raw.hpp"
#include "support/catch.hpp"
#include "support/digest.hpp"

using pith::errc;
using pith::status;

TEST_CASE("a permutation holds every channel once", "[codec][calibration]") {
  std::vector<std::uint16_t> order(64);
  for (int i = 0; i < 64; ++i) order[static_cast<std::size_t>(i)] = static_cast<std::uint16_t>(63 - i);
  REQUIRE(pith::permutation<64>::from(order));
  CHECK(pith::permutation<80>::from(order).error() == status{errc::shape_mismatch, 64});
  order[40] = 64;
  CHECK(pith::permutation<64>::from(order).error() == status{errc::bad_calibration, 40});
  order[40] = 63;
  CHECK(pith::permutation<64>::from(order).error() == status{errc::bad_calibration, 40});
}

TEST_CASE("the descending permutation sorts by size and keeps the order of ties", "[codec][calibration]") {
  std::vector<float> sizes(16, 1.0f);
  sizes[3] = 5, sizes[9] = 7, sizes[12] = 0.5f;
  auto const p = pith::permutation<16>::descending(sizes);
  REQUIRE(p);
  std::vector<int> const wanted{9, 3, 0, 1, 2, 4, 5, 6, 7, 8, 10, 11, 13, 14, 15, 12};
  for (int i = 0; i < 16; ++i) CHECK(p.value().order[i] == wanted[static_cast<std::size_t>(i)]);
  sizes[7] = std::nanf("");
  CHECK(pith::permutation<16>::descending(sizes).error() == status{errc::bad_calibration, 7});
  CHECK(pith::permutation<32>::descending(sizes).error() == status{errc::shape_mismatch, 16});
}

TEST_CASE("channel scales are finite, positive and neither tiny nor huge", "[codec][calibration]") {
  std::vector<float> scales(64, 2.0f);
  REQUIRE(pith::channel_scales<64>::from(scales));
  for (float const wrong : {0.0f, -1.0f, 1e-30f, 1e30f, std::nanf(""), pith::bits_float(0x7f800000u)}) {
    scales[17] = wrong;
    CHECK(pith::channel_scales<64>::from(scales).error() == status{errc::bad_calibration, 17});
  }
  CHECK(pith::channel_scales<96>::from(scales).error() == status{errc::shape_mismatch, 64});
}

TEST_CASE("a rotation is orthogonal", "[codec][calibration]") {
  std::vector<float> matrix(64 * 64);
  for (int i = 0; i < 64; ++i) matrix[static_cast<std::size_t>(i * 64 + (i + 5) % 64)] = i % 3 == 0 ? -1.0f : 1.0f;
  // A turn by an angle in the plane of two axes, rounded to f32.
  for (int i = 0; i < 64; ++i) {
    float const a = matrix[static_cast<std::size_t>(3 * 64 + i)], b = matrix[static_cast<std::size_t>(50 * 64 + i)];
    matrix[static_cast<std::size_t>(3 * 64 + i)] = static_cast<float>(std::cos(0.7) * a - std::sin(0.7) * b);
    matrix[static_cast<std::size_t>(50 * 64 + i)] = static_cast<float>(std::sin(0.7) * a + std::cos(0.7) * b);
  }
  REQUIRE(pith::rotation<64>::from(matrix));
  CHECK(pith::rotation<32>::from(matrix).error() == status{errc::shape_mismatch, 64 * 64});
  auto scaled = matrix;
  for (int i = 0; i < 64; ++i) scaled[static_cast<std::size_t>(9 * 64 + i)] *= 1.00001f;
  CHECK(pith::rotation<64>::from(scaled).error() == status{errc::bad_calibration, 9});
  auto skewed = matrix;
  for (int i = 0; i < 64; ++i) skewed[static_cast<std::size_t>(60 * 64 + i)] = matrix[static_cast<std::size_t>(4 * 64 + i)];
  CHECK(pith::rotation<64>::from(skewed).error() == status{errc::bad_calibration, 60});
  auto broken = matrix;
  broken[5 * 64 + 7] = std::nanf("");
  CHECK(pith::rotation<64>::from(broken).error() == status{errc::bad_calibration, 5});
}

namespace {

template <class Keys, class Values = pith::int8<pith::per_token<64>>, int Tokens = 64>
using page = pith::kv_page<Keys, Values, 64, 64, Tokens>;
template <class Page>
std::uint64_t identity(typename pith::calibration<Page>::key_state const& keys) {
  return pith::page_identity<Page>(keys, {});
}

}  // namespace

TEST_CASE("contract rule 13: a page's identity tells formats apart", "[contract][codec]") {
  using namespace pith;
  std::set<std::uint64_t> const all{
      identity<page<int4<per_token<64>>>>({}),
      identity<page<int4<per_token<32>>>>({}),
      identity<page<int4<per_channel<32>>>>({}),
      identity<page<int4<per_token<64>, zero::none>>>({}),
      identity<page<int4<per_token<64>, zero::real, bf16>>>({}),
      identity<page<int8<per_token<64>>>>({}),
      identity<page<raw<bf16>>>({}),
      identity<page<raw<f16>>>({}),
      identity<page<pith::pipe<hadamard<64>, int4<per_token<64>>>>>({}),
      identity<page<pith::pipe<hadamard<32>, int4<per_token<64>>>>>({}),
      identity<page<int4<per_token<64>>, int4<per_token<64>>>>({}),
      identity<page<int4<per_token<64>>, int8<per_token<64>>, 128>>({}),
  };
  CHECK(all.size() == 12);
  CHECK(identity<page<int4<per_token<64>>>>({}) == identity<page<int4<per_token<64>>>>({}));
}

TEST_CASE("contract rule 13: a page's identity changes with every calibrated number", "[contract][codec]") {
  using balanced = page<pith::pipe<pith::balance, pith::int4<pith::per_token<64>>>>;
  std::set<std::uint64_t> all;
  std::vector<float> scales(64, 1.0f);
  all.insert(identity<balanced>(pith::channel_scales<64>::from(scales).value()));
  for (std::size_t c = 0; c < 64; ++c) {
    scales[c] = std::nextafter(1.0f, 2.0f);  // too little to change any code
    all.insert(identity<balanced>(pith::channel_scales<64>::from(scales).value()));
    scales[c] = 1.0f;
  }
  CHECK(all.size() == 65);
  using ordered = page<pith::pipe<pith::permute, pith::raw<pith::bf16>>>;
  auto const sample = pith_test::sample_state<ordered::key_tile>();
  CHECK(identity<ordered>(sample) != identity<ordered>(pith::permutation<64>::identity()));
}

TEST_CASE("balanced channels: an outlier channel spoils nothing", "[codec][calibration]") {
  using plain = pith::int4<pith::per_token<64>>::bind<64, 64, pith::use::dot>;
  using balanced = pith::pipe<pith::balance, pith::int4<pith::per_token<64>>>::bind<64, 64, pith::use::dot>;
  std::vector<float> rows(plain::tokens * plain::channels), scales(64, 1.0f);
  pith_test::random_bits random(3);
  for (std::size_t i = 0; i < rows.size(); ++i) rows[i] = random.uniform() * (i % 64 == 20 ? 30.0f : 1.0f);
  scales[20] = 30.0f;
  auto const error = [&]<class Tile>(Tile, pith::state_of<Tile> const& state) {
    std::vector<std::byte> bytes(Tile::bytes);
    std::vector<float> back(rows.size());
    pith::encode_tile<Tile>(rows.data(), bytes.data(), state);
    pith::decode_tile<Tile>(bytes.data(), back.data(), state);
    double sum = 0;
    for (std::size_t i = 0; i < rows.size(); ++i)
      if (i % 64 != 20) sum += std::fabs(static_cast<double>(back[i]) - rows[i]);
    return sum;
  };
  // A row's range is 2 when balanced; otherwise 1 + |outlier|, 16 in the mean.
  CHECK(error(balanced{}, pith::channel_scales<64>::from(scales).value()) < 0.15 * error(plain{}, {}));
}
