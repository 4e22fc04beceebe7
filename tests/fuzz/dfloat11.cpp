// SPDX-License-Identifier: Apache-2.0
// DFloat11's tensors: six buffers of any lengths, cut from the input by the lengths in its first 12 bytes.
#include "pith/interop/dfloat11.hpp"
#include "fuzz/target.hpp"
#include "support/digest.hpp"

void pith_test::fuzz_one(std::span<std::byte const> input) {
  if (input.size() < 12) return;
  std::size_t at = 12;
  auto const cut = [&](int part) {
    std::size_t const wanted = pith::load_le<std::uint16_t>(input.data() + 2 * part), there = input.size() - at;
    auto const piece = input.subspan(at, wanted < there ? wanted : there);
    at += piece.size();
    return piece;
  };
  exact_copy const luts(cut(0)), codes(cut(1)), rest(cut(2)), positions(cut(3)), gaps(cut(4)), splits(cut(5));
  pith::dfloat11::view const view{.luts = luts.get(),
                                  .encoded_exponent = codes.get(),
                                  .sign_mantissa = rest.get(),
                                  .gaps = gaps.get(),
                                  .output_positions = positions.get(),
                                  .split_positions = splits.get()};
  std::vector<pith::bf16> out(rest.get().size());
  static_cast<void>(pith::dfloat11::decode(view, out));
}

std::vector<pith_test::bytes> pith_test::fuzz_seeds() {
  std::vector<bytes> seeds;
  random_bits random(7);
  for (int const count : {1, 300, 9000}) {
    std::vector<pith::bf16> numbers(static_cast<std::size_t>(count));
    for (auto& x : numbers) x = pith::from_float<pith::bf16>(random.uniform() * random.uniform() + (random() % 50 == 0 ? 100.0f : 0.0f));
    std::int64_t const split[] = {count / 2};
    auto const made = pith::dfloat11::encode(numbers, split).value();
    pith::dfloat11::view const view = made;
    bytes seed(12);
    int part = 0;
    for (auto const piece :
         {view.luts, view.encoded_exponent, view.sign_mantissa, view.output_positions, view.gaps, view.split_positions}) {
      pith::store_le(seed.data() + 2 * part++, static_cast<std::uint16_t>(piece.size()));
      seed.insert(seed.end(), piece.begin(), piece.end());
    }
    seeds.push_back(seed);
  }
  return seeds;
}
