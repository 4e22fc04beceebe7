// SPDX-License-Identifier: Apache-2.0
// Packing and unpacking, types and strides, what is refused, what empty and non-finite inputs give.
#include "linear/linear_oracle.hpp"

namespace {

using namespace pith_test;
using pith::errc;
using pith::matrix_view;
using pith::status;
using four_bits = pith::packed_matrix<pith::int4<pith::per_token<64>, pith::zero::none>>;
using plain = pith::packed_matrix<pith::raw<pith::bf16>>;

float const not_a_number = pith::bits_float(0x7fc00000u), infinity = pith::bits_float(0x7f800000u);

struct aligned_bytes {
  explicit aligned_bytes(std::int64_t bytes) : storage(static_cast<std::size_t>(bytes) + 64) {}
  std::byte* data() { return storage.data() + (64 - reinterpret_cast<std::uintptr_t>(storage.data()) % 64) % 64; }
  std::span<std::byte> span(std::int64_t bytes) { return {data(), static_cast<std::size_t>(bytes)}; }
  std::vector<std::byte> storage;
};

template <class Codec>
void check_round_trip(std::int64_t rows, std::int64_t columns) {
  using matrix = pith::packed_matrix<Codec>;
  using tile = typename matrix::tile;
  auto const x = gaussians(rows * columns, 5);
  auto const w = matrix::pack(matrix_view<float const>(x.data(), {rows, columns})).value();
  CHECK(static_cast<std::int64_t>(w.bytes().size()) == matrix::bound_bytes(rows, columns));
  std::vector<float> back(x.size(), -77.0f);
  REQUIRE(w.unpack(matrix_view<float>(back.data(), {rows, columns})));
  std::int64_t const panels = pith::divide_up(columns, tile::channels);
  std::vector<float> padded(static_cast<std::size_t>(tile::tokens * tile::channels)), bound(padded.size());
  int wrong = 0;
  for (std::int64_t block = 0; block < pith::divide_up(rows, tile::tokens); ++block)
    for (std::int64_t panel = 0; panel < panels; ++panel) {
      auto const inside = [&](std::int64_t i, std::int64_t r, std::int64_t c) { return r < rows && c < columns && i >= 0; };
      for (std::int64_t i = 0; i < tile::tokens * tile::channels; ++i) {
        std::int64_t const r = block * tile::tokens + i / tile::channels, c = panel * tile::channels + i % tile::channels;
        padded[static_cast<std::size_t>(i)] = inside(i, r, c) ? x[static_cast<std::size_t>(r * columns + c)] : 0.0f;
      }
      tile::error_bound(padded.data(), bound.data());
      for (std::int64_t i = 0; i < tile::tokens * tile::channels; ++i) {
        std::int64_t const r = block * tile::tokens + i / tile::channels, c = panel * tile::channels + i % tile::channels;
        if (inside(i, r, c)) {
          std::size_t const at = static_cast<std::size_t>(r * columns + c);
          wrong += !(std::fabs(back[at] - x[at]) <= bound[static_cast<std::size_t>(i)]);
        }
      }
    }
  CHECK(wrong == 0);
}

}  // namespace

TEST_CASE("packed_matrix: unpack gives every weight within the codec's bound", "[linear][law]") {
  using namespace pith;
  check_round_trip<int4<per_token<64>, zero::none>>(70, 600);
  check_round_trip<int8<per_channel<64>>>(65, 257);
  check_round_trip<raw<bf16>>(1, 1);
  check_round_trip<pith::pipe<hadamard<64>, int3<per_token<64>>>>(33, 300);
}

TEST_CASE("packed_matrix: the same bytes for any executor, source stride and owner of the memory", "[linear]") {
  std::int64_t const rows = 70, columns = 300;
  auto const x = gaussians(rows * columns, 6);
  std::vector<float> across(x.size());
  for (std::int64_t r = 0; r < rows; ++r)
    for (std::int64_t c = 0; c < columns; ++c)
      across[static_cast<std::size_t>(c * rows + r)] = x[static_cast<std::size_t>(r * columns + c)];
  auto const w = four_bits::pack(matrix_view<float const>(x.data(), {rows, columns})).value();
  auto const threaded =
      four_bits::pack(matrix_view<float const>(across.data(), {rows, columns}, {1, rows}), pith::nan_policy::saturate, two_threads{})
          .value();
  std::int64_t const bytes = four_bits::bound_bytes(rows, columns);
  aligned_bytes memory(bytes);
  auto const borrowed = four_bits::pack_into(memory.span(bytes), matrix_view<float const>(x.data(), {rows, columns})).value();
  auto const opened = four_bits::open(memory.span(bytes), rows, columns).value();
  REQUIRE(static_cast<std::int64_t>(w.bytes().size()) == bytes);
  CHECK(std::memcmp(w.bytes().data(), threaded.bytes().data(), static_cast<std::size_t>(bytes)) == 0);
  CHECK(std::memcmp(w.bytes().data(), borrowed.bytes().data(), static_cast<std::size_t>(bytes)) == 0);
  CHECK(borrowed.bytes().data() == memory.data());
  CHECK(opened.bytes().data() == memory.data());
  CHECK(reinterpret_cast<std::uintptr_t>(w.bytes().data()) % 64 == 0);
}

TEST_CASE("packed_matrix: tiles lie row block by row block, panels inside it", "[linear]") {
  std::int64_t const rows = 64, columns = 512;
  std::vector<float> x(static_cast<std::size_t>(rows * columns));
  x[static_cast<std::size_t>(33 * columns + 260)] = 1.0f;  // row block 1, panel 1
  auto const w = plain::pack(matrix_view<float const>(x.data(), {rows, columns})).value();
  std::int64_t const tile = plain::tile::bytes;
  CHECK(static_cast<std::int64_t>(w.bytes().size()) == 4 * tile);
  for (std::int64_t i = 0; i < 4; ++i) {
    bool any = false;
    for (std::byte const b : w.bytes().subspan(static_cast<std::size_t>(i * tile), static_cast<std::size_t>(tile)))
      any = any || b != std::byte{0};
    CHECK(any == (i == 3));
  }
}

TEST_CASE("packed_matrix: bf16 and f16 weights, queries and outputs", "[linear]") {
  std::int64_t const rows = 40, columns = 300, batch = 3;
  std::vector<pith::bf16> weights, x;
  for (float const one : gaussians(rows * columns, 7)) weights.push_back(pith::from_float<pith::bf16>(one));
  for (float const one : gaussians(batch * columns, 8)) x.push_back(pith::from_float<pith::bf16>(one));
  std::vector<pith::f16> half;
  std::vector<float> wide, wide_x, out(static_cast<std::size_t>(batch * rows));
  for (auto const one : weights) wide.push_back(pith::to_float(one)), half.push_back(pith::from_float<pith::f16>(pith::to_float(one)));
  for (auto const one : x) wide_x.push_back(pith::to_float(one));
  auto const w = plain::pack(matrix_view<pith::bf16 const>(weights.data(), {rows, columns})).value();
  auto const from_wide = plain::pack(matrix_view<float>(wide.data(), {rows, columns})).value();
  CHECK(std::memcmp(w.bytes().data(), from_wide.bytes().data(), w.bytes().size()) == 0);
  CHECK(plain::pack(matrix_view<pith::f16>(half.data(), {rows, columns})));

  std::vector<std::byte> scratch(static_cast<std::size_t>(w.scratch_bytes(batch)));
  std::vector<pith::bf16> out_bf16(out.size());
  std::vector<pith::f16> out_f16(out.size());
  REQUIRE(w.multiply(matrix_view<float>(wide_x.data(), {batch, columns}), matrix_view<float>(out.data(), {batch, rows}), scratch));
  REQUIRE(
      w.multiply(matrix_view<pith::bf16>(x.data(), {batch, columns}), matrix_view<pith::bf16>(out_bf16.data(), {batch, rows}), scratch));
  REQUIRE(w.multiply(matrix_view<pith::bf16 const>(x.data(), {batch, columns}), matrix_view<pith::f16>(out_f16.data(), {batch, rows}),
                     scratch));
  for (std::size_t i = 0; i < out.size(); ++i) {
    CHECK(out_bf16[i] == pith::from_float<pith::bf16>(out[i]));
    CHECK(out_f16[i] == pith::from_float<pith::f16>(out[i]));
  }
}

TEST_CASE("packed_matrix: what cannot be packed is refused, with a position", "[linear][edge]") {
  std::vector<float> x(40 * 300, 1.0f);
  CHECK(four_bits::pack(matrix_view<float>(x.data(), {0, 300})).error() == status{errc::shape_mismatch, 0});
  CHECK(four_bits::pack(matrix_view<float>(x.data(), {40, -3})).error() == status{errc::shape_mismatch, -3});
  CHECK(four_bits::pack(matrix_view<float>(x.data(), {-1, -1})).error() == status{errc::shape_mismatch, -1});
  x[301] = infinity;
  x[900] = not_a_number;
  CHECK(four_bits::pack(matrix_view<float>(x.data(), {40, 300}), pith::nan_policy::reject).error() == status{errc::not_finite, 301});
  CHECK(four_bits::pack(matrix_view<float>(x.data(), {40, 300})));
  CHECK(four_bits::bound_bytes(0, 5) == 0);
  std::int64_t const most = std::numeric_limits<std::int64_t>::max();
  CHECK(four_bits::bound_bytes(most, most) == most);
  CHECK(four_bits::pack(matrix_view<float>(x.data(), {most, most}, {0, 0})).error() == status{errc::out_of_memory, most});

  std::int64_t const bytes = four_bits::bound_bytes(40, 300);
  aligned_bytes memory(bytes);
  auto const view = matrix_view<float>(x.data(), {40, 300});
  CHECK(four_bits::pack_into(memory.span(bytes - 1), view).error() == status{errc::capacity_exceeded, bytes});
  CHECK(four_bits::pack_into({memory.data() + 8, static_cast<std::size_t>(bytes)}, view).error() == status{errc::misaligned, 8});
  CHECK(four_bits::open(memory.span(bytes - 1), 40, 300).error() == status{errc::truncated, bytes});
  CHECK(four_bits::open(memory.span(bytes), 40, 0).error() == status{errc::shape_mismatch, 0});
  CHECK(four_bits::open({memory.data() + 4, static_cast<std::size_t>(bytes)}, 40, 300).error() == status{errc::misaligned, 4});
}

TEST_CASE("packed_matrix: what cannot be multiplied is refused and nothing is written", "[linear][edge]") {
  std::int64_t const rows = 40, columns = 300;
  auto const weights = gaussians(rows * columns, 9);
  auto const w = four_bits::pack(matrix_view<float const>(weights.data(), {rows, columns})).value();
  std::vector<float> x(2 * 400, 1.0f), out(2 * 400, -77.0f), bias(static_cast<std::size_t>(rows - 1));
  auto const wanted = w.scratch_bytes(2), transposed = w.transposed_scratch_bytes(2);
  std::vector<std::byte> scratch(static_cast<std::size_t>(std::max(wanted, transposed)));
  auto const in = [&](std::int64_t a, std::int64_t b) { return matrix_view<float>(x.data(), {a, b}); };
  auto const to = [&](std::int64_t a, std::int64_t b) { return matrix_view<float>(out.data(), {a, b}); };
  CHECK(w.multiply(in(2, 299), to(2, 40), scratch) == status{errc::shape_mismatch, 299});
  CHECK(w.multiply(in(2, 300), to(2, 41), scratch) == status{errc::shape_mismatch, 41});
  CHECK(w.multiply(in(2, 300), to(1, 40), scratch) == status{errc::shape_mismatch, 1});
  CHECK(w.multiply(in(-2, 300), to(-2, 40), scratch) == status{errc::shape_mismatch, -2});
  CHECK(w.multiply(in(2, 300), to(2, 40), scratch, bias) == status{errc::shape_mismatch, 39});
  CHECK(w.multiply(in(2, 300), to(2, 40), std::span(scratch).first(static_cast<std::size_t>(wanted - 1))) ==
        status{errc::capacity_exceeded, wanted});
  CHECK(w.multiply_transposed(in(2, 300), to(2, 40), scratch) == status{errc::shape_mismatch, 300});
  CHECK(w.multiply_transposed(in(2, 40), to(2, 300), std::span(scratch).first(static_cast<std::size_t>(transposed - 1))) ==
        status{errc::capacity_exceeded, transposed});
  CHECK(w.unpack(to(40, 299)) == status{errc::shape_mismatch, 299});
  CHECK(w.unpack(to(39, 300)) == status{errc::shape_mismatch, 39});
  for (float const one : out) CHECK(one == -77.0f);
}

TEST_CASE("packed_matrix: an empty batch is legal and needs no scratch", "[linear][edge]") {
  auto const weights = gaussians(40 * 300, 9);
  auto const w = four_bits::pack(matrix_view<float const>(weights.data(), {40, 300})).value();
  CHECK(w.scratch_bytes(0) == 0);
  CHECK(w.transposed_scratch_bytes(0) == 0);
  CHECK(w.multiply(matrix_view<float>(nullptr, {0, 300}), matrix_view<float>(nullptr, {0, 40}), {}));
  CHECK(w.multiply_transposed(matrix_view<float>(nullptr, {0, 40}), matrix_view<float>(nullptr, {0, 300}), {}));
}

TEST_CASE("packed_matrix: scratch may lie anywhere and hold anything, and needs to be no larger than promised", "[linear][edge]") {
  std::int64_t const rows = 40, columns = 300, batch = 21;
  auto const weights = gaussians(rows * columns, 9), x = gaussians(batch * columns, 10);
  auto const w = four_bits::pack(matrix_view<float const>(weights.data(), {rows, columns})).value();
  auto const bytes = static_cast<std::size_t>(w.scratch_bytes<pith::integer_accuracy>(batch));
  std::vector<float> first;
  for (std::size_t shift : {0, 1, 63}) {
    std::vector<std::byte> scratch(bytes + 64 + 8, std::byte{0xa5});
    std::vector<float> out(static_cast<std::size_t>(batch * rows));
    REQUIRE(w.multiply<pith::integer_accuracy>(matrix_view<float const>(x.data(), {batch, columns}),
                                               matrix_view<float>(out.data(), {batch, rows}), std::span(scratch).subspan(shift, bytes)));
    for (std::size_t i = shift + bytes; i < scratch.size(); ++i) CHECK(scratch[i] == std::byte{0xa5});
    for (std::size_t i = 0; i < shift; ++i) CHECK(scratch[i] == std::byte{0xa5});
    if (first.empty()) first = out;
    CHECK(std::memcmp(first.data(), out.data(), out.size() * sizeof(float)) == 0);
  }
}

TEMPLATE_TEST_CASE("packed_matrix: a NaN or an infinity in x spoils its own row of out and no other", "[linear][edge]",
                   pith::exact_accuracy, pith::integer_accuracy) {
  std::int64_t const rows = 40, columns = 300, batch = 5;
  auto const weights = gaussians(rows * columns, 9);
  auto check = [&](auto const& w) {
    auto const clean = gaussians(batch * columns, 10);
    auto x = clean;
    x[static_cast<std::size_t>(1 * columns + 7)] = not_a_number;
    x[static_cast<std::size_t>(3 * columns + 299)] = infinity;
    std::vector<std::byte> scratch(static_cast<std::size_t>(w.template scratch_bytes<TestType>(batch)));
    std::vector<float> out(static_cast<std::size_t>(batch * rows)), right(out.size());
    REQUIRE(w.template multiply<TestType>(matrix_view<float const>(x.data(), {batch, columns}),
                                          matrix_view<float>(out.data(), {batch, rows}), scratch));
    REQUIRE(w.template multiply<TestType>(matrix_view<float const>(clean.data(), {batch, columns}),
                                          matrix_view<float>(right.data(), {batch, rows}), scratch));
    for (std::size_t i = 0; i < out.size(); ++i) {
      std::size_t const row = i / static_cast<std::size_t>(rows);
      CHECK(pith::is_finite(out[i]) == (row != 1 && row != 3));
      if (row != 1 && row != 3) CHECK(std::fabs(out[i] - right[i]) <= 1e-4f);
    }
  };
  check(four_bits::pack(matrix_view<float const>(weights.data(), {rows, columns})).value());
  check(plain::pack(matrix_view<float const>(weights.data(), {rows, columns})).value());
}

TEST_CASE("packed_matrix: weights that a codec decodes to infinity stay in their rows", "[linear][edge]") {
  std::int64_t const rows = 3, columns = 10;
  std::vector<float> weights(static_cast<std::size_t>(rows * columns), 1.0f), x(static_cast<std::size_t>(columns), 1.0f),
      out(static_cast<std::size_t>(rows));
  weights[static_cast<std::size_t>(columns + 4)] = infinity;
  auto const w = plain::pack(matrix_view<float>(weights.data(), {rows, columns})).value();
  std::vector<std::byte> scratch(static_cast<std::size_t>(w.scratch_bytes(1)));
  REQUIRE(w.multiply(matrix_view<float>(x.data(), {1, columns}), matrix_view<float>(out.data(), {1, rows}), scratch));
  CHECK(out[0] == 10.0f);
  CHECK(out[1] == infinity);
  CHECK(out[2] == 10.0f);
}
