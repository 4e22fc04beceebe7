// SPDX-License-Identifier: Apache-2.0
// A saved sequence comes back as it was, and nothing else comes back at all.
#include <cstring>

#include "cache/support.hpp"
#include "laws/sample_state.hpp"
#include "pith/cache/recipes.hpp"
#include "support/seal.hpp"

using namespace pith_test;
using pith::errc;
using pith::status;

namespace {

// Tiles of two lengths, both raw windows, every side array.
struct everything : pith::kv_cache<pith::head_dim<64>, pith::keys<pith::int4<pith::per_channel<64>>>, pith::values<pith::int8<pith::per_token<32>>>,
                                   pith::raw<pith::first<4>, pith::last<32, 40>>, pith::side<pith::positions, pith::liveness, pith::bias>> {};
struct other_first : pith::kv_cache<pith::head_dim<64>, pith::keys<pith::int4<pith::per_channel<64>>>, pith::values<pith::int8<pith::per_token<32>>>,
                                    pith::raw<pith::first<5>, pith::last<32, 40>>, pith::side<pith::positions, pith::liveness, pith::bias>> {};

pith::cache_shape const shape{.layers = 2, .kv_heads = 2, .query_heads = 4, .bytes = 8 << 20, .max_sequences = 3, .max_tokens = 1024};

template <class Recipe>
pith::cache<Recipe> make_cache(pith::cache_shape const& of = shape) {
  auto made = pith::make<Recipe>(of);
  REQUIRE(made);
  return std::move(made).value();
}

tokens_of_heads const k = model_keys(31, 600, 2), v = gaussian(32, 600, 2), q = model_queries(33, 1, 4);

template <class Recipe>
std::vector<std::byte> saved(pith::cache<Recipe> const& cache, pith::sequence of) {
  std::vector<std::byte> bytes(static_cast<std::size_t>(cache.saved_bytes(of)) + 16, std::byte{0xa5});
  REQUIRE(cache.save(of, bytes));
  for (std::size_t i = bytes.size() - 16; i < bytes.size(); ++i) REQUIRE(bytes[i] == std::byte{0xa5});
  bytes.resize(bytes.size() - 16);
  return bytes;
}

// A sequence with holes, dead slots, a page that was given back, biases, and something raw.
pith::sequence eventful(pith::cache<everything>& cache) {
  auto const of = cache.open().value();
  for (int l = 0; l < 2; ++l) REQUIRE(cache.append(of, l, k.part(0, 500), v.part(0, 500)));
  REQUIRE(cache.truncate(of, 290));
  for (int l = 0; l < 2; ++l) REQUIRE(cache.append(of, l, k.part(290, 90 + 17 * l), v.part(290, 90 + 17 * l)));
  std::vector<int64_t> dead;
  for (int64_t t = 60; t < 140; ++t) dead.push_back(t);
  REQUIRE(cache.evict(of, 1, 0, dead));
  REQUIRE(cache.set_bias(of, 0, 1, 33, -1.5f));
  return of;
}

}  // namespace

TEST_CASE("a loaded sequence is the saved one, and goes on like it", "[cache][snapshot]") {
  auto cache = make_cache<everything>(), second = make_cache<everything>();
  auto const of = eventful(cache);
  auto const bytes = saved(cache, of);
  auto const filler = second.open().value();  // other blocks than in the first cache
  REQUIRE(second.append(filler, 0, v.all(), k.all()));
  auto const loaded = second.load(bytes);
  REQUIRE(loaded);
  CHECK(image(second, loaded.value()) == image(cache, of));
  CHECK(saved(second, loaded.value()) == bytes);
  for (int l = 0; l < 2; ++l) {
    CHECK(attend(cache, of, l, q).out.data == attend(second, loaded.value(), l, q).out.data);
    REQUIRE(cache.append(of, l, k.part(400, 150), v.part(400, 150)));
    REQUIRE(second.append(loaded.value(), l, k.part(400, 150), v.part(400, 150)));
    CHECK(attend(cache, of, l, q).out.data == attend(second, loaded.value(), l, q).out.data);
  }
  CHECK(image(second, loaded.value()) == image(cache, of));
}

TEST_CASE("an empty sequence can be saved", "[cache][snapshot]") {
  auto cache = make_cache<everything>();
  auto const bytes = saved(cache, cache.open().value());
  auto const loaded = cache.load(bytes);
  REQUIRE(loaded);
  CHECK(cache.length(loaded.value(), 0) == 0);
}

TEST_CASE("nothing of another sequence is saved", "[cache][snapshot]") {
  auto used = make_cache<everything>(), fresh = make_cache<everything>();
  for (int round = 0; round < 2; ++round) {  // leave numbers everywhere
    auto const gone = used.open().value();
    for (int l = 0; l < 2; ++l) REQUIRE(used.append(gone, l, v.all(), k.all()));
    REQUIRE(used.close(gone));
  }
  auto const a = used.open().value(), b = fresh.open().value();
  for (int l = 0; l < 2; ++l) {
    REQUIRE(used.append(a, l, k.part(0, 201), v.part(0, 201)));
    REQUIRE(fresh.append(b, l, k.part(0, 201), v.part(0, 201)));
  }
  CHECK(saved(used, a) == saved(fresh, b));
}

TEST_CASE("contract rule 13: a snapshot of another format or calibration is refused", "[contract][cache][snapshot]") {
  auto cache = make_cache<everything>();
  auto const of = eventful(cache);
  auto const bytes = saved(cache, of);
  CHECK(make_cache<other_first>().load(bytes).error().code == errc::wrong_format);
  CHECK(make_cache<pith::recipes::int8_cache<64>>().load(bytes).error().code == errc::wrong_format);
  auto longer = shape;
  longer.layers = 3;
  CHECK(make_cache<everything>(longer).load(bytes).error() == status{errc::shape_mismatch, 3});
  auto fewer = shape;
  fewer.kv_heads = 1;
  CHECK(make_cache<everything>(fewer).load(bytes).error() == status{errc::shape_mismatch, 1});

  using recipe = pith::kv_cache<pith::head_dim<64>, pith::keys<pith::pipe<pith::permute, pith::int8<pith::per_token<32>>>>,
                                pith::values<pith::int8<pith::per_token<64>>>>;
  std::vector<pith::permutation<64>> states(4, pith::permutation<64>::identity());
  auto const made = [&] {
    auto result = pith::make<recipe>(shape, {{states}, {}});
    REQUIRE(result);
    return std::move(result).value();
  };
  auto first = made();
  auto const sequence = first.open().value();
  for (int l = 0; l < 2; ++l) REQUIRE(first.append(sequence, l, k.all(), v.all()));
  auto const calibrated = saved(first, sequence);
  auto same = made();
  CHECK(same.load(calibrated));
  std::swap(states[3].order[62], states[3].order[63]);
  auto different = made();
  CHECK(different.load(calibrated).error().code == errc::wrong_format);
}

TEST_CASE("broken snapshots are refused and leave nothing behind", "[cache][snapshot][fuzz]") {
  auto cache = make_cache<everything>();
  auto const of = eventful(cache);
  auto const bytes = saved(cache, of);
  std::int64_t const before = cache.resident_bytes();
  int accepted = 0, leaked = 0;
  auto const attempt = [&](std::vector<std::byte> const& broken) {
    auto const loaded = cache.load(broken);
    accepted += static_cast<bool>(loaded);
    if (loaded) REQUIRE(cache.close(loaded.value()));
    leaked += cache.resident_bytes() != before;
  };
  for (std::size_t length = 0; length < bytes.size(); length += length < 400 ? 1 : bytes.size() / 40) attempt({bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(length)});
  auto longer = bytes;
  longer.insert(longer.end() - 8, std::byte{0});
  seal_fingerprint(longer);
  attempt(longer);
  random_bits random(7);
  for (int i = 0; i < 60; ++i) {
    auto broken = bytes;
    broken[random() % broken.size()] ^= static_cast<std::byte>(1u << random() % 8);
    attempt(broken);
  }
  CHECK(accepted == 0);
  // With a right fingerprint: counts that no cache could have are refused.
  auto const with_count = [&](std::size_t place, std::uint64_t value) {  // of the first layer: tokens, slots, sealed keys, sealed values, holes
    auto broken = bytes;
    pith::store_le<std::uint64_t>(broken.data() + 24 + 8 * place, value);
    seal_fingerprint(broken);
    auto const loaded = cache.load(broken);
    leaked += cache.resident_bytes() != before;
    return loaded.error().code;
  };
  std::uint64_t const tokens = pith::load_le<std::uint64_t>(bytes.data() + 24), sealed = pith::load_le<std::uint64_t>(bytes.data() + 40);
  CHECK(with_count(0, tokens + 1) == errc::bad_format);
  CHECK(with_count(0, ~std::uint64_t{0}) == errc::bad_format);
  CHECK(with_count(1, std::uint64_t{1} << 62) == errc::bad_format);
  CHECK(with_count(2, sealed + 32) == errc::bad_format);
  CHECK(with_count(2, 0) == errc::bad_format);
  CHECK(with_count(3, sealed + 64 * 1000) == errc::bad_format);
  CHECK(with_count(4, 17) == errc::bad_format);
  CHECK(with_count(4, ~std::uint64_t{0}) == errc::bad_format);
  for (int i = 0; i < 30; ++i) {
    auto broken = bytes;
    for (int j = 0; j < 20; ++j) broken[24 + random() % (broken.size() - 32)] = static_cast<std::byte>(random());
    seal_fingerprint(broken);
    auto const loaded = cache.load(broken);
    if (loaded) {  // whatever it holds, it can be read and appended to
      CHECK(attend(cache, loaded.value(), 1, q).status);
      CHECK(cache.append(loaded.value(), 1, k.part(0, 40), v.part(0, 40), std::vector<int64_t>{}));
      REQUIRE(cache.close(loaded.value()));
    }
    leaked += cache.resident_bytes() != before;
  }
  CHECK(leaked == 0);
}

TEST_CASE("a snapshot that does not fit is refused", "[cache][snapshot]") {
  auto cache = make_cache<everything>();
  auto const of = eventful(cache);
  auto const bytes = saved(cache, of);
  std::vector<std::byte> small(bytes.size() - 1);
  CHECK(cache.save(of, small) == status{errc::capacity_exceeded, static_cast<int64_t>(bytes.size())});
  auto narrow = shape;
  narrow.max_tokens = 256;
  CHECK(make_cache<everything>(narrow).load(bytes).error().code == errc::capacity_exceeded);
  auto tight = shape;
  tight.bytes = 1'000'000;
  auto little = make_cache<everything>(tight);
  std::int64_t const before = little.resident_bytes();
  for (int i = 0; i < 5; ++i) {
    auto const loaded = little.load(bytes);
    if (!loaded) CHECK(loaded.error().code == errc::capacity_exceeded);
  }
  CHECK(little.resident_bytes() >= before);
  REQUIRE(cache.close(of));
  CHECK(cache.saved_bytes(of) == 0);
  CHECK(cache.save(of, small).code == errc::stale_handle);
}
