// SPDX-License-Identifier: Apache-2.0
// Packed lossless weights: what open accepts can be unpacked and multiplied. Byte 0 names the coder.
#include "fuzz/target.hpp"
#include "pith/codec/exponent_planes.hpp"
#include "pith/codec/exponent_rans.hpp"
#include "pith/codec/huffman.hpp"
#include "pith/cpu/linear.hpp"
#include "pith/linear/packed_matrix.hpp"
#include "support/digest.hpp"

namespace {

using pith::bf16;
constexpr std::int64_t rows = 33, columns = 100;

template <class Coder>
using weights = pith::packed_matrix<pith::dynamic_float<bf16, Coder>, pith::use::dot, 64>;

template <class Coder>
void read(std::span<std::byte const> packed) {
  auto const opened = weights<Coder>::open(packed, rows, columns);
  if (!opened) return;
  std::vector<bf16> w(static_cast<std::size_t>(rows * columns));
  if (!opened.value().unpack(pith::matrix_view<bf16>(w.data(), {rows, columns}))) std::abort();
  std::vector<float> x(static_cast<std::size_t>(columns), 1.0f), y(static_cast<std::size_t>(rows));
  std::vector<std::byte> scratch(static_cast<std::size_t>(opened.value().scratch_bytes(1)));
  if (!opened.value().multiply(pith::matrix_view<float const>(x.data(), {1, columns}), pith::matrix_view<float>(y.data(), {1, rows}),
                               scratch))
    std::abort();
}

template <class Coder>
void add_seed(std::vector<pith_test::bytes>& seeds, std::vector<bf16> const& w) {
  auto const packed = weights<Coder>::pack(pith::matrix_view<bf16 const>(w.data(), {rows, columns})).value();
  seeds.push_back({static_cast<std::byte>(seeds.size() % 4)});
  seeds.back().insert(seeds.back().end(), packed.bytes().begin(), packed.bytes().end());
}

}  // namespace

void pith_test::fuzz_one(std::span<std::byte const> input) {
  if (input.empty()) return;
  exact_copy const packed(input.subspan(1));
  switch (static_cast<unsigned>(input[0]) % 4) {
    case 0: return read<pith::exponent_window>(packed.get());
    case 1: return read<pith::exponent_planes>(packed.get());
    case 2: return read<pith::huffman>(packed.get());
    default: return read<pith::rans_exponents>(packed.get());
  }
}

std::vector<pith_test::bytes> pith_test::fuzz_seeds() {
  std::vector<bytes> seeds;
  random_bits random(3);
  for (int kind = 0; kind < 3; ++kind) {
    std::vector<bf16> w(static_cast<std::size_t>(rows * columns));
    for (bf16& x : w) {
      float const usual = random.uniform() * random.uniform();
      x = kind == 0 ? pith::from_float<bf16>(usual) : kind == 1 ? bf16{static_cast<std::uint16_t>(random())} : bf16{0x3f80};
    }
    add_seed<pith::exponent_window>(seeds, w);
    add_seed<pith::exponent_planes>(seeds, w);
    add_seed<pith::huffman>(seeds, w);
    add_seed<pith::rans_exponents>(seeds, w);
  }
  return seeds;
}
