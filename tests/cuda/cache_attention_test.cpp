// SPDX-License-Identifier: Apache-2.0
// Attention over a device's cache against the host's cache of the same composition, exactly computed, over the same calls.
#include "cuda/cache_support.hpp"

using namespace pith_test;

namespace {

template <class Keys, class Values, class... Slots>
using slots = pith::kv_cache<pith::head_dim<64>, pith::keys<Keys>, pith::values<Values>, Slots...>;
using four = pith::int4<pith::per_token<32>>;
using kivi = pith::int4<pith::per_channel<32>>;

struct plain : slots<four, four, pith::raw<pith::first<4>, pith::last<32>>, pith::on<pith::cuda>> {};
struct plain_host : slots<four, four, pith::raw<pith::first<4>, pith::last<32>>> {};
// Values stay raw longer than keys; slots are hidden and have biases.
struct sided : slots<kivi, four, pith::raw<pith::first<20>, pith::last<8, 70>>, pith::side<pith::liveness, pith::bias>, pith::on<pith::cuda>> {};
struct sided_host : slots<kivi, four, pith::raw<pith::first<20>, pith::last<8, 70>>, pith::side<pith::liveness, pith::bias>> {};
// Keys stay raw longer than values; values are rotated.
struct rotated : slots<pith::int8<pith::per_channel<64>>, pith::pipe<pith::hadamard<64>, four>, pith::raw<pith::last<70, 1>>, pith::pages<pith::paged<128>>, pith::on<pith::cuda>> {};
struct rotated_host : slots<pith::int8<pith::per_channel<64>>, pith::pipe<pith::hadamard<64>, four>, pith::raw<pith::last<70, 1>>, pith::pages<pith::paged<128>>> {};

struct difference {
  double squares = 0, energy = 0, lse = 0;
  int broken = 0;
};

// Calls both with the same queries, and finishes what the rows give. `chunk`: prefill instead of attention.
template <class Twins>
difference compare(Twins& both, std::vector<std::size_t> const& at, int layer, std::vector<std::int64_t> const& counts, bool chunk, pith::attention_options options) {
  constexpr int channels = 64;
  std::int64_t const heads = both.shape.query_heads;
  std::int64_t all = 0, row = 0;
  for (std::int64_t const n : counts) all += n;
  auto const numbers = static_cast<std::size_t>(all * heads * channels);
  std::vector<float> q(numbers), out(numbers, -77.0f), expected(numbers, -77.0f), lse(static_cast<std::size_t>(all * heads)), expected_lse(lse.size());
  random_bits random(17);
  for (float& x : q) x = random.uniform() * 2.0f;
  std::vector<pith::sequence> which;
  for (std::size_t const i : at) which.push_back(both.open[i].second);
  auto const rows_of = [&](std::vector<float>& of) { return pith::tensor_view<float, 3, pith::space::device>(of.data(), {all, heads, channels}); };
  pith::device_attention_options const asked{.soft_cap = options.soft_cap,
                                             .window = options.window,
                                             .sink_logits = options.sink_logits.empty() ? nullptr : options.sink_logits.data(),
                                             .lse = pith::tensor_view<float, 2, pith::space::device>(lse.data(), {all, heads})};
  auto const [keys, values] = both.template text<pith::space::device>(3, all);
  auto const [host_keys, host_values] = both.template text<pith::space::host>(3, all);
  if (chunk)
    REQUIRE(both.device.prefill(both.env, which, layer, rows_of(q), keys, values, rows_of(out), counts, asked) == pith::status{});
  else
    REQUIRE(both.device.attend(both.env, which, layer, rows_of(q), rows_of(out), counts, asked) == pith::status{});
  REQUIRE(both.env.status() == pith::status{});
  for (std::size_t i = 0; i < at.size(); ++i) {
    auto const part = [&](std::vector<float>& of) { return pith::tensor_view<float, 3>(of.data() + row * heads * channels, {counts[i], heads, channels}); };
    pith::attention_options own = options;
    own.lse = pith::tensor_view<float, 2>(expected_lse.data() + row * heads, {counts[i], heads});
    if (counts[i] == 0) continue;
    if (chunk)
      REQUIRE(both.host.prefill(both.open[at[i]].first, layer, part(q), host_keys.part(row, counts[i]), host_values.part(row, counts[i]), part(expected), own) == pith::status{});
    else
      REQUIRE(both.host.attend(both.open[at[i]].first, layer, part(q), part(expected), own) == pith::status{});
    row += counts[i];
  }
  difference found;
  for (std::size_t i = 0; i < numbers; ++i) {
    double const d = static_cast<double>(out[i]) - static_cast<double>(expected[i]);
    found.broken += !(std::fabs(d) < 1e30);
    found.squares += d * d, found.energy += static_cast<double>(expected[i]) * expected[i];
  }
  for (std::size_t i = 0; i < lse.size(); ++i) {
    if (pith::is_finite(expected_lse[i]))
      found.lse = std::max(found.lse, std::fabs(static_cast<double>(lse[i]) - static_cast<double>(expected_lse[i])));
    else
      found.broken += lse[i] != expected_lse[i];
  }
  both.compare();
  return found;
}

template <class Host, class Device>
void check(bool with_sides) {
  pith::cache_shape const shape{.layers = layers, .kv_heads = kv_heads, .query_heads = 6, .bytes = 3 << 20, .max_sequences = 6, .max_tokens = 500, .max_chunk = 70};
  twins<Host, Device, float> both(shape, 21, {});
  for (auto* rows : {&both.k, &both.v})
    for (float& x : *rows)
      if (!(x > -50 && x < 50)) x = 0.25f;  // no infinities: outputs are compared
  for (int i = 0; i < 5; ++i) both.open_one();
  REQUIRE(both.append_many({0, 1, 2, 3}, 1, {2, 60, 200, 400}));
  if (with_sides) {
    both.evict_one(2, 1, 1, {0, 5, 77, 149});
    std::vector<std::int64_t> page;
    for (std::int64_t t = 84; t < 148; ++t) page.push_back(t);  // a whole page goes
    both.evict_one(3, 1, 0, page);
    both.bias_one(1, 1, 0, 59, 1.5f);
    both.bias_one(3, 1, 1, 100, 3.5f);
  }
  both.truncate_one(2, 150);
  std::vector<float> const sinks{0.5f, -2.0f, 3.0f, 1.0f, -30.0f, 0.0f};
  auto const right = [](difference const& d) {
    CHECK(d.broken == 0);
    CHECK(d.squares <= 4e-10 * d.energy);  // raw segments multiply 16 bits of a query and of a weight
    CHECK(d.lse <= 2e-4);
  };
  right(compare(both, {0, 1, 2, 3, 4}, 1, {1, 1, 1, 1, 1}, false, {}));
  right(compare(both, {3, 1, 2}, 1, {2, 0, 5}, false, {.window = 40}));
  right(compare(both, {3, 4, 2}, 1, {30, 3, 1}, true, {}));
  right(compare(both, {3, 1, 4}, 1, {1, 64, 50}, true, {.soft_cap = 3.0f, .window = 45, .sink_logits = sinks}));
  right(compare(both, {0, 1, 2, 3, 4}, 1, {1, 1, 1, 1, 1}, false, {.sink_logits = sinks}));
}

}  // namespace

TEST_CASE("attention over a device's cache is the host's: int4, first and newest tokens raw", "[cuda][cache][attention]") { check<plain_host, plain>(false); }
TEST_CASE("attention over a device's cache is the host's: hidden slots, biases, values longer raw", "[cuda][cache][attention]") { check<sided_host, sided>(true); }
TEST_CASE("attention over a device's cache is the host's: keys longer raw, rotated values, long tiles", "[cuda][cache][attention]") { check<rotated_host, rotated>(false); }

TEST_CASE("attention over a device's cache refuses what the host can see", "[cuda][cache][attention][error]") {
  pith::cache_shape const shape{.layers = 1, .kv_heads = 2, .query_heads = 6, .bytes = 3 << 20, .max_sequences = 2, .max_tokens = 500, .max_chunk = 8};
  twins<plain_host, plain, float> both(shape, 1, {});
  both.open_one();
  REQUIRE(both.append_many({0}, 0, {40}));
  std::vector<float> q(9 * 6 * 64), out(q.size(), -77.0f);
  using rows = pith::tensor_view<float, 3, pith::space::device>;
  auto const attend = [&](pith::sequence of, int layer, rows from, rows to, std::int64_t count, pith::device_attention_options options = {}) {
    std::vector<pith::sequence> const which{of};
    std::vector<std::int64_t> const counts{count};
    pith::status const got = both.device.attend(both.env, which, layer, from, to, counts, options);
    for (float x : out) CHECK(x == -77.0f);
    return got.code;
  };
  pith::sequence const right = both.open[0].second;
  pith::sequence stale = right;
  ++stale.generation;
  rows const from(q.data(), {1, 6, 64}), to(out.data(), {1, 6, 64});
  CHECK(attend(stale, 0, from, to, 1) == errc::stale_handle);
  CHECK(attend(right, 1, from, to, 1) == errc::out_of_range);
  CHECK(attend(right, 0, from, to, 2) == errc::shape_mismatch);
  CHECK(attend(right, 0, from, to, -1) == errc::out_of_range);
  CHECK(attend(right, 0, rows(q.data(), {1, 5, 64}), to, 1) == errc::shape_mismatch);
  CHECK(attend(right, 0, from, rows(out.data(), {1, 6, 32}), 1) == errc::shape_mismatch);
  CHECK(attend(right, 0, from, to, 1, {.window = -1}) == errc::out_of_range);
  auto const [keys, values] = both.device_rows(0, 9);
  std::vector<pith::sequence> const which{right};
  std::vector<std::int64_t> const counts{9};
  CHECK(both.device.prefill(both.env, which, 0, rows(q.data(), {9, 6, 64}), keys, values, rows(out.data(), {9, 6, 64}), counts) == pith::status{errc::capacity_exceeded, 8});
  for (float x : out) CHECK(x == -77.0f);
  both.compare();
}
