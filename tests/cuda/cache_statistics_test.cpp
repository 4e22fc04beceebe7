// SPDX-License-Identifier: Apache-2.0
// Statistics of attention over a device's cache, and scores of slots, against those of the host's cache of the same composition.
#include "cuda/cache_support.hpp"
#include "pith/cpu/statistics_engine.hpp"

using namespace pith_test;

namespace {

using pith::group_reduction;
using pith::space;
using pith::statistic;

template <class Keys, class Values, class... Slots>
using slots = pith::kv_cache<pith::head_dim<64>, pith::keys<Keys>, pith::values<Values>, Slots...>;
using four = pith::int4<pith::per_token<32>>;
using kivi = pith::int4<pith::per_channel<32>>;

struct plain : slots<four, four, pith::raw<pith::first<4>, pith::last<32>>, pith::on<pith::cuda>> {};
struct plain_host : slots<four, four, pith::raw<pith::first<4>, pith::last<32>>> {};
// Values stay raw longer than keys, so that tiles have packed keys and raw values; slots are hidden and have biases; no slot is aligned.
struct sided
    : slots<kivi, four, pith::raw<pith::first<5>, pith::last<8, 70>>, pith::side<pith::liveness, pith::bias>, pith::on<pith::cuda>> {};
struct sided_host : slots<kivi, four, pith::raw<pith::first<5>, pith::last<8, 70>>, pith::side<pith::liveness, pith::bias>> {};

// Numbers of many sequences, [sequence][row][slot], that nothing else may touch.
struct numbers {
  std::int64_t rows, room;
  std::vector<float> of;
  numbers(std::size_t sequences, std::int64_t rows_of, std::int64_t room_of, float before)
      : rows(rows_of), room(room_of), of(sequences * static_cast<std::size_t>(rows_of * room_of), before) {}
  pith::tensor_view<float, 2, space::device> first() { return {of.data(), {rows, room}}; }
  pith::tensor_view<float, 2> sequence(std::size_t i) { return {of.data() + static_cast<std::int64_t>(i) * rows * room, {rows, room}}; }
  std::int64_t stride() const { return rows * room; }
};

// Differences between the device's numbers and the host's, in both the same queries of the newest counts[i] tokens of open sequence at[i].
template <class Host, class Device>
struct statistics_twins : twins<Host, Device, float> {
  using base = twins<Host, Device, float>;
  static constexpr int channels = 64;
  std::vector<std::size_t> at;
  std::vector<std::int64_t> counts;
  std::int64_t all = 0, heads = 6, room = 0;
  std::vector<float> q, out, lse, host_lse, weights, thresholds;
  std::vector<pith::sequence> which;

  explicit statistics_twins(pith::cache_shape const& shape) : base(shape, 21, {}) {
    for (auto* rows : {&this->k, &this->v})
      for (float& x : *rows)
        if (!(x > -50 && x < 50)) x = 0.25f;
  }
  // Attention of both, for lse.
  void ask(std::vector<std::size_t> of, std::vector<std::int64_t> queries, std::int64_t window) {
    at = std::move(of), counts = std::move(queries), all = 0, room = 0, which.clear();
    for (std::size_t i = 0; i < at.size(); ++i) {
      all += counts[i];
      which.push_back(this->open[at[i]].second);
      room = std::max(room, this->host.slots(this->open[at[i]].first, 1));
    }
    random_bits random(17);
    q.resize(static_cast<std::size_t>(all * heads * channels)), out.resize(q.size());
    lse.assign(static_cast<std::size_t>(all * heads), 0), host_lse = lse;
    weights.clear(), thresholds.clear();
    for (float& x : q) x = random.uniform() * 2.0f;
    for (std::int64_t i = 0; i < all; ++i)
      weights.push_back(random.uniform()), thresholds.push_back(i % 3 == 0 ? 0.0f : 2.0f);  // counts what is visible
    REQUIRE(this->device.attend(this->env, which, 1, rows<space::device>(q), rows<space::device>(out), counts, device_options(window)) ==
            pith::status{});
    std::int64_t row = 0;
    for (std::size_t i = 0; i < at.size(); row += counts[i++])
      if (counts[i] > 0)
        REQUIRE(this->host.attend(this->open[at[i]].first, 1, part(q, row, counts[i]), part(out, row, counts[i]),
                                  host_options(i, row, window)) == pith::status{});
  }
  template <space Space>
  pith::tensor_view<float, 3, Space> rows(std::vector<float>& of) {
    return {of.data(), {all, heads, channels}};
  }
  pith::tensor_view<float, 3> part(std::vector<float>& of, std::int64_t from, std::int64_t count) {
    return rows<space::host>(of).part(from, count);
  }
  pith::device_attention_options device_options(std::int64_t window) { return {.window = window, .lse = {lse.data(), {all, heads}}}; }
  pith::attention_options host_options(std::size_t i, std::int64_t row, std::int64_t window) {
    return {.window = window, .lse = {host_lse.data() + row * heads, {counts[i], heads}}};
  }

  template <group_reduction Reduction, statistic... Wanted>
  void compare_statistics(std::int64_t newest, std::int64_t stride, std::int64_t window) {
    std::int64_t const of_row = Reduction == group_reduction::none ? heads : kv_heads;
    std::vector<numbers> got(sizeof...(Wanted), numbers(at.size(), of_row, room + 3, -77.0f)), right = got;
    pith::device_statistics_view<Reduction, Wanted...> views;
    pith::tensor_view<float, 2, space::device>* const to[] = {&views.sum,   &views.square_sum,   &views.maximum,
                                                              &views.below, &views.weighted_sum, &views.entropy};
    std::size_t n = 0;
    ((*to[static_cast<int>(Wanted)] = got[n++].first()), ...);
    views.sequence_stride = got[0].stride();
    REQUIRE(
        this->device.attention_statistics(this->env, which, 1, rows<space::device>(q), {lse.data(), {all, heads}}, counts, views,
                                          {.newest = newest, .stride = stride, .weights = weights.data(), .thresholds = thresholds.data()},
                                          {.window = window}) == pith::status{});
    REQUIRE(this->env.status() == pith::status{});
    std::int64_t row = 0;
    for (std::size_t i = 0; i < at.size(); row += counts[i++]) {
      pith::statistics_view<Reduction, Wanted...> host_views;
      pith::tensor_view<float, 2>* const host_to[] = {&host_views.sum,   &host_views.square_sum,   &host_views.maximum,
                                                      &host_views.below, &host_views.weighted_sum, &host_views.entropy};
      n = 0;
      ((*host_to[static_cast<int>(Wanted)] = right[n++].sequence(i)), ...);
      auto const from = static_cast<std::size_t>(row), count = static_cast<std::size_t>(counts[i]);
      REQUIRE(this->host.attention_statistics(this->open[at[i]].first, 1, part(q, row, counts[i]),
                                              pith::tensor_view<float const, 2>(host_lse.data() + row * heads, {counts[i], heads}),
                                              host_views,
                                              {.newest = newest,
                                               .stride = stride,
                                               .weights = std::span(weights).subspan(from, count),
                                               .thresholds = std::span(thresholds).subspan(from, count)},
                                              {.window = window}) == pith::status{});
    }
    n = 0;
    for (statistic const one : {Wanted...}) {
      INFO("statistic " << static_cast<int>(one) << ", reduction " << static_cast<int>(Reduction) << ", newest " << newest << ", window "
                        << window);
      CHECK(far(got[n].of, right[n].of) == 0);
      ++n;
    }
  }
  static std::int64_t far(std::vector<float> const& got, std::vector<float> const& right) {
    std::int64_t count = 0;
    double whole = 0;
    for (std::size_t i = 0; i < got.size(); ++i) {
      count += !(std::fabs(got[i] - right[i]) <= 3e-4f * (0.1f + std::fabs(right[i]))) || (right[i] == -77.0f) != (got[i] == -77.0f);
      whole += right[i] == -77.0f ? 0 : std::fabs(static_cast<double>(right[i]));
    }
    return whole > 0 ? count : -1;  // nothing compared is no agreement
  }

  void compare_scores(float decay, std::int64_t window) {
    std::int64_t most = 0;
    for (std::int64_t const n : counts) most = std::max(most, n);
    std::int64_t const of_row = most * heads / kv_heads;
    numbers got(at.size(), kv_heads, room + 3, 0.75f), right = got, scratch(at.size(), kv_heads * of_row, room + 3, std::nanf(""));
    std::vector<float> with(out.size()), without(out.size());
    auto const options = device_options(window);
    REQUIRE(this->device.attend(this->env, which, 1, rows<space::device>(q), rows<space::device>(without), counts, options) ==
            pith::status{});
    REQUIRE(this->device.attend(this->env, which, 1, rows<space::device>(q), rows<space::device>(with), counts, options,
                                {.sum = got.first(),
                                 .logits = {scratch.of.data(), {kv_heads, of_row, room + 3}},
                                 .decay = decay,
                                 .sum_stride = got.stride(),
                                 .logits_stride = scratch.stride()}) == pith::status{});
    REQUIRE(this->env.status() == pith::status{});
    CHECK(with == without);
    std::int64_t row = 0;
    for (std::size_t i = 0; i < at.size(); row += counts[i++]) {
      if (counts[i] == 0) continue;
      pith::attention_options own = host_options(i, row, window);
      own.scores = {.sum = right.sequence(i), .logits = {scratch.of.data(), {kv_heads, of_row, room + 3}}, .decay = decay};
      REQUIRE(this->host.attend(this->open[at[i]].first, 1, part(q, row, counts[i]), part(without, row, counts[i]), own) == pith::status{});
    }
    CHECK(far(got.of, right.of) == 0);
  }
};

template <class Host, class Device>
void check(bool with_sides) {
  statistics_twins<Host, Device> both(
      {.layers = layers, .kv_heads = kv_heads, .query_heads = 6, .bytes = 3 << 20, .max_sequences = 6, .max_tokens = 500, .max_chunk = 70});
  for (int i = 0; i < 5; ++i) both.open_one();
  REQUIRE(both.append_many({0, 1, 2, 3}, 1, {2, 60, 200, 400}));
  if (with_sides) {
    both.evict_one(2, 1, 1, {0, 5, 77, 149});
    std::vector<std::int64_t> page;
    for (std::int64_t t = 85; t < 149; ++t) page.push_back(t);  // a whole page goes
    both.evict_one(3, 1, 0, page);
    page.clear();
    for (std::int64_t t = 325; t < 389; ++t) page.push_back(t);  // one whose values are raw
    both.evict_one(3, 1, 1, page);
    both.bias_one(1, 1, 0, 59, 1.5f);
    both.bias_one(3, 1, 1, 100, 3.5f);
  }
  both.truncate_one(2, 150);
  for (std::int64_t const window : {0, 40}) {
    both.ask({0, 1, 2, 3, 4}, {1, 1, 1, 1, 1}, window);
    both.compare_scores(1, window);
    both.compare_scores(0, window);
    both.template compare_statistics<group_reduction::sum, statistic::sum>(1, 1, window);
    both.ask({3, 1, 2}, {2, 0, 5}, window);
    both.compare_scores(0.5f, window);
    both.template compare_statistics<group_reduction::none, statistic::sum, statistic::square_sum, statistic::maximum, statistic::below,
                                     statistic::weighted_sum, statistic::entropy>(4, 2, window);
    both.ask({3, 1, 2}, {40, 3, 20}, window);
    both.template compare_statistics<group_reduction::mean, statistic::sum, statistic::square_sum, statistic::entropy>(1000, 1, window);
    both.template compare_statistics<group_reduction::maximum, statistic::maximum>(32, 3, window);
    both.template compare_statistics<group_reduction::maximum, statistic::weighted_sum, statistic::sum>(64, 1, window);
  }
}

}  // namespace

TEST_CASE("statistics over a device's cache are the host's: first and newest tokens raw", "[cuda][cache][statistics]") {
  check<plain_host, plain>(false);
}
TEST_CASE("statistics over a device's cache are the host's: hidden slots, biases, pages that are gone, values longer raw",
          "[cuda][cache][statistics]") {
  check<sided_host, sided>(true);
}

TEST_CASE("statistics over a device's cache: more sequences than a kernel takes", "[cuda][cache][statistics]") {
  statistics_twins<plain_host, plain> both(
      {.layers = layers, .kv_heads = kv_heads, .query_heads = 6, .bytes = 32 << 20, .max_sequences = 131, .max_tokens = 64});
  std::vector<std::size_t> at;
  std::vector<std::int64_t> lengths, counts;
  for (std::size_t i = 0; i < 131; ++i) {
    both.open_one();
    at.push_back(i), lengths.push_back(1 + static_cast<std::int64_t>(i % 5)), counts.push_back(i % 2 == 1 && i % 5 > 0 ? 2 : 1);
  }
  REQUIRE(both.append_many(at, 1, lengths));
  both.ask(at, counts, 0);
  both.compare_scores(0.5f, 0);
  both.compare_statistics<group_reduction::sum, statistic::sum, statistic::weighted_sum, statistic::below>(1000, 1, 0);
}

TEST_CASE("statistics over a device's cache are refused where the host can see it", "[cuda][cache][statistics][error]") {
  statistics_twins<plain_host, plain> both(
      {.layers = layers, .kv_heads = kv_heads, .query_heads = 6, .bytes = 3 << 20, .max_sequences = 3, .max_tokens = 500});
  for (int i = 0; i < 2; ++i) both.open_one();
  REQUIRE(both.append_many({0, 1}, 1, {40, 60}));
  both.ask({0, 1}, {1, 1}, 0);
  std::vector<float> all(4096, -77.0f), q(42 * 6 * 64), lse(42 * 6);
  using view = pith::tensor_view<float, 2, space::device>;
  using sums = pith::device_statistics_view<group_reduction::sum, statistic::sum>;
  auto const rank = [&](sums const& out, std::vector<std::int64_t> const& counts, std::int64_t rows, int layer = 1) {
    pith::status const got =
        both.device.attention_statistics(both.env, both.which, layer, pith::tensor_view<float, 3, space::device>(q.data(), {rows, 6, 64}),
                                         {lse.data(), {rows, 6}}, counts, out);
    for (float const x : all) CHECK(x == -77.0f);
    return got.code;
  };
  view const right(all.data(), {2, 60});
  CHECK(rank({.sum = right, .sequence_stride = 120}, {1, 1}, 2, 2) == errc::out_of_range);
  CHECK(rank({.sum = right, .sequence_stride = 120}, {1, 1}, 1) == errc::shape_mismatch);
  CHECK(rank({.sum = right, .sequence_stride = 120}, {41, 1}, 42) == errc::out_of_range);
  CHECK(rank({.sum = right, .sequence_stride = 59}, {1, 1}, 2) == errc::shape_mismatch);
  CHECK(rank({.sum = view(all.data(), {2, 59}), .sequence_stride = 120}, {1, 1}, 2) == errc::shape_mismatch);
  CHECK(rank({.sum = view(all.data(), {6, 60}), .sequence_stride = 360}, {1, 1}, 2) == errc::shape_mismatch);
  CHECK(rank({}, {1, 1}, 2) == errc::shape_mismatch);
  auto const score = [&](pith::device_slot_scores const& scores, std::vector<std::int64_t> const& counts, std::int64_t rows) {
    pith::tensor_view<float, 3, space::device> const rows_of(q.data(), {rows, 6, 64});
    pith::status const got = both.device.attend(both.env, both.which, 1, rows_of, rows_of, counts, {}, scores);
    for (float const x : all) CHECK(x == -77.0f);
    return got.code;
  };
  pith::tensor_view<float, 3, space::device> const logits(all.data(), {2, 3, 60});
  CHECK(score({.sum = right, .logits = logits, .sum_stride = 59, .logits_stride = 360}, {1, 1}, 2) == errc::shape_mismatch);
  CHECK(score({.sum = right, .logits = logits, .sum_stride = 120, .logits_stride = 59}, {1, 1}, 2) == errc::shape_mismatch);
  CHECK(score({.sum = right, .logits = {all.data(), {2, 3, 59}}, .sum_stride = 120, .logits_stride = 360}, {1, 1}, 2) ==
        errc::shape_mismatch);
  CHECK(score({.sum = right, .logits = {all.data(), {2, 18, 60}}, .sum_stride = 120, .logits_stride = 2160}, {6, 1}, 7) ==
        errc::out_of_range);
}
