// SPDX-License-Identifier: Apache-2.0
// Saved sequences: a cache that takes one can attend to it, append to it and give everything back.
#include "fuzz/target.hpp"
#include "pith/cache/kv_cache.hpp"
#include "pith/codec/integer.hpp"
#include "pith/cpu/attention.hpp"
#include "support/digest.hpp"
#include "support/seal.hpp"

namespace {

struct small : pith::kv_cache<pith::head_dim<16>, pith::keys<pith::int4<pith::per_channel<32>>>,
                              pith::values<pith::int8<pith::per_token<16>>>, pith::raw<pith::first<2>, pith::last<8>>,
                              pith::pages<pith::paged<32>>, pith::side<pith::positions, pith::liveness, pith::bias>> {};

pith::cache<small>& cache() {
  static pith::cache<small> made =
      pith::make<small>({.layers = 2, .kv_heads = 1, .query_heads = 2, .bytes = 1 << 20, .max_sequences = 2, .max_tokens = 512}).value();
  return made;
}

std::vector<float> const& numbers() {
  static std::vector<float> const made = [] {
    std::vector<float> out(200 * 16);
    pith_test::random_bits random(5);
    for (float& x : out) x = random.uniform();
    return out;
  }();
  return made;
}
pith::tensor_view<float const, 3> rows(std::int64_t count, std::int64_t heads = 1) { return {numbers().data(), {count, heads, 16}}; }

void expect(bool so) {
  if (!so) std::abort();
}

}  // namespace

void pith_test::fuzz_one(std::span<std::byte const> input) {
  marked_input const marked(input);
  exact_copy const saved(marked.rest);
  if (marked.repair) seal_fingerprint(saved.get());
  std::int64_t const before = cache().resident_bytes();
  auto const loaded = cache().load(saved.get());
  if (loaded) {
    std::vector<float> out(32);
    for (int layer = 0; layer < 2; ++layer) {
      static_cast<void>(cache().attend(loaded.value(), layer, rows(1, 2), pith::tensor_view<float, 3>(out.data(), {1, 2, 16})));
      static_cast<void>(cache().append(loaded.value(), layer, rows(40), rows(40)));
    }
    expect(static_cast<bool>(cache().close(loaded.value())));
  }
  expect(cache().resident_bytes() == before);
}

std::vector<pith_test::bytes> pith_test::fuzz_seeds() {
  std::vector<bytes> seeds;
  for (std::int64_t const tokens : {0, 5, 170}) {
    auto const of = cache().open().value();
    for (int layer = 0; layer < 2; ++layer) expect(static_cast<bool>(cache().append(of, layer, rows(tokens), rows(tokens))));
    if (tokens == 170) {
      std::vector<std::int64_t> dead;
      for (std::int64_t t = 2; t < 40; ++t) dead.push_back(t);
      expect(static_cast<bool>(cache().truncate(of, 130)) && cache().evict(of, 1, 0, dead) && cache().set_bias(of, 0, 0, 60, -1.5f));
    }
    bytes saved(static_cast<std::size_t>(cache().saved_bytes(of)));
    expect(static_cast<bool>(cache().save(of, saved)) && cache().close(of));
    for (bool const repair : {false, true}) seeds.push_back(marked(repair, saved));
  }
  return seeds;
}
