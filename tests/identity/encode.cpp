// SPDX-License-Identifier: Apache-2.0
// Rule C7 for the CPU's own encoders: the bytes of the scalar codecs under every set of flags. Sparse and calibrated tiles have none of their
// own; they are encoded by the scalar codecs, whose bytes codec.cpp digests.
#include <cstdio>
#include <cstring>

#include "laws/all_codecs.hpp"
#include "laws/inputs.hpp"
#include "pith/cpu/tile_engine.hpp"

namespace {

int differences = 0;

template <class Tile, class T>
void encode(pith_test::input const& x, pith_test::digest& bytes) {
  std::vector<T> rows(x.rows.size());
  std::vector<float> exact(x.rows.size());
  for (std::size_t i = 0; i < rows.size(); ++i) {
    rows[i] = pith::from_float<T>(x.rows[i]);
    exact[i] = pith::to_float(rows[i]);
  }
  std::vector<std::byte> made(static_cast<std::size_t>(Tile::bytes)), expected(made);
  pith::tile_engine<pith::cpu, Tile>::encode(rows.data(), Tile::channels, made.data());
  Tile::encode(exact.data(), expected.data());
  differences += std::memcmp(made.data(), expected.data(), made.size()) != 0;
  bytes.add(made.data(), made.size());
}

template <class Tile>
constexpr bool has_own_encoder() {
  if constexpr (requires { Tile::storage::used_for; })
    return !pith::is_calibrated<Tile>;
  else
    return false;
}

template <class Tile>
void digest_tile(char const* name) {
  if constexpr (has_own_encoder<Tile>()) {
    using rows = std::conditional_t<Tile::storage::used_for == pith::use::dot, float, pith::bf16>;  // each once: it compiles six times
    pith_test::digest bytes;
    auto inputs = pith_test::hard_inputs(Tile::tokens, Tile::channels, 7);
    pith_test::random_bits random(5);
    pith_test::input zeros{"both zeros", std::vector<float>(static_cast<std::size_t>(Tile::tokens * Tile::channels))};
    for (float& one : zeros.rows) one = random() % 4 == 0 ? 1.0f : pith::bits_float(static_cast<std::uint32_t>(random()) & 0x80000000u);
    inputs.push_back(zeros);
    // Sums of infinities would be NaNs of either sign: transformed rows that are not saturated keep to finite numbers.
    bool const keeps_infinity = Tile::nan == pith::nan_policy::propagate && pith::is_transformed<Tile>;
    for (auto& x : inputs) {
      if (keeps_infinity && x.name == "largest floats") continue;
      for (int round = 0; round < (keeps_infinity ? 1 : 2); ++round) {
        encode<Tile, rows>(x, bytes);
        x.rows[17] = pith::bits_float(0x7fc00000u), x.rows[18] = pith::bits_float(0x7f800000u), x.rows[91] = pith::bits_float(0xff800000u);
      }
    }
    std::printf("%s, %d channels: %016llx\n", name, Tile::channels, static_cast<unsigned long long>(bytes.value()));
  }
}

}  // namespace

int main() {
  pith_test::for_each_tile([]<class Tile>(char const* name) { digest_tile<Tile>(name); });
  std::printf("%d differences from the scalar codecs\n", differences);
  return differences != 0;
}
