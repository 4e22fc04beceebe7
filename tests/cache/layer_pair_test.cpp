// SPDX-License-Identifier: Apache-2.0
// Two layers that share directions: what comes back of each, which rows are retained, and what it takes.
#include "pith/cache/layer_pair.hpp"

#include "cache/support.hpp"

using namespace pith_test;
using pith::errc;
using pith::status;

namespace {

int constexpr heads = 2, channels = 16;

template <class Codec>
struct recipe : pith::kv_cache<pith::head_dim<channels>, pith::keys<Codec>, pith::values<Codec>, pith::raw<pith::last<32>>,
                               pith::pages<pith::paged<32>>> {};
using plain = pith::layer_pair<recipe<pith::raw<pith::bf16>>>;
using coded = pith::layer_pair<recipe<pith::int4<pith::per_token<16>>>>;

pith::layer_pair_shape shape(int64_t max_tokens = 400) { return {.kv_heads = heads, .bytes = 4 << 20, .max_tokens = max_tokens}; }

// Rows of the second layer are those of the first, turned a little, and longer.
struct rows {
  tokens_of_heads k1, v1, k2, v2;
  explicit rows(std::uint64_t seed, int64_t tokens, float turn = 0.5f)
      : k1(gaussian(seed, tokens, heads, channels)), v1(gaussian(seed + 1, tokens, heads, channels)), k2(k1), v2(v1) {
    random_bits bits(seed + 2);
    for (auto* of : {&k2, &v2})
      for (float& x : of->data) x = 1.5f * x + turn * normal(bits);
  }
  template <class Pair>
  status append(Pair& to, int64_t from, int64_t count) const {
    return to.append(k1.part(from, count), v1.part(from, count), k2.part(from, count), v2.part(from, count));
  }
};

struct in_double {
  double length[2], distance;
  std::vector<double> direction;
};
in_double slerp_of(float const* a, float const* b, double t) {
  double aa = 0, bb = 0, ab = 0;
  for (int c = 0; c < channels; ++c) {
    double const x = a[c], y = b[c];
    aa += x * x, bb += y * y, ab += x * y;
  }
  in_double out{{std::sqrt(aa), std::sqrt(bb)}, 0, {}};
  double const w = std::acos(std::min(1.0, std::max(-1.0, ab / std::sqrt(aa * bb))));
  out.distance = w / std::acos(-1.0);
  for (int c = 0; c < channels; ++c)
    out.direction.push_back(
        (std::sin((1 - t) * w) * static_cast<double>(a[c]) / out.length[0] + std::sin(t * w) * static_cast<double>(b[c]) / out.length[1]) /
        std::sin(w));
  return out;
}

template <class Pair>
std::vector<float> restored(Pair const& pair, int which, int head, bool keys) {
  std::vector<float> out(static_cast<std::size_t>(pair.length()) * channels);
  status const done = keys ? pair.restore(which, head, 0, pair.length(), out, {}) : pair.restore(which, head, 0, pair.length(), {}, out);
  REQUIRE(done);
  return out;
}

// The worst error of what comes back, in units of a row's length, of merged rows; retained rows must be exact. Counts them.
template <class Pair>
double check(Pair const& pair, rows const& of, double t, double gamma, std::vector<int64_t> const& chunks, int64_t& retained) {
  double worst = 0;
  int wrong = 0;
  for (bool const keys : {true, false})
    for (int h = 0; h < heads; ++h) {
      std::vector<float> const back[] = {restored(pair, 0, h, keys), restored(pair, 1, h, keys)};
      double least = 1, most = 0;
      int64_t at = 0;
      for (int64_t const count : chunks) {
        auto const& a = keys ? of.k1 : of.v1;
        auto const& b = keys ? of.k2 : of.v2;
        for (int64_t i = at; i < at + count; ++i) {
          double const d = slerp_of(a.row(i, h), b.row(i, h), t).distance;
          least = std::min(least, d), most = std::max(most, d);
        }
        for (int64_t i = at; i < at + count; ++i) {
          in_double const one = slerp_of(a.row(i, h), b.row(i, h), t);
          double const bound = most - gamma * (most - least);
          bool const exact = one.distance > bound + 1e-6, near = std::fabs(one.distance - bound) <= 1e-6;
          float const* const raw[] = {a.row(i, h), b.row(i, h)};
          int same = 0;
          double error = 0;
          for (int l = 0; l < 2; ++l)
            for (int c = 0; c < channels; ++c) {
              float const x = back[l][static_cast<std::size_t>(i * channels + c)];
              same += x == rounded_to_bf16(raw[l][c]);
              error = std::max(
                  error, std::fabs(static_cast<double>(x) - one.length[l] * one.direction[static_cast<std::size_t>(c)]) / one.length[l]);
            }
          bool const verbatim = same == 2 * channels;
          retained += verbatim;
          wrong += !near && verbatim != exact;
          if (!verbatim) worst = std::max(worst, error);
        }
        at += count;
      }
    }
  CHECK(wrong == 0);
  return worst;
}

}  // namespace

TEST_CASE("layer_pair: merged rows are a length times a common direction, retained rows are as they were", "[cache][layer_pair]") {
  rows const of(1, 300);
  std::vector<int64_t> const chunks{120, 1, 1, 40, 1, 100, 37};
  auto const fill = [&](auto& pair) {
    int64_t at = 0;
    for (int64_t const n : chunks) {
      REQUIRE(of.append(pair, at, n));
      at += n;
    }
    CHECK(pair.length() == 300);
  };
  for (double const t : {0.6, 0.0, 1.0})
    for (double const gamma : {0.05, 0.5}) {
      auto wanted = shape();
      wanted.t = t, wanted.gamma = gamma;
      auto exact = plain::make(wanted).value();
      fill(exact);
      int64_t retained = 0;
      CHECK(check(exact, of, t, gamma, chunks, retained) < 0x1p-8);  // bf16 directions
      CHECK(retained == exact.retained());
      CHECK(retained > 0);
      CHECK(retained < 4 * 300);
      auto four = coded::make(wanted).value();
      fill(four);
      int64_t again = 0;
      CHECK(check(four, of, t, gamma, chunks, again) < 2.0 / 15 / 2 * 1.05);  // half a step of numbers in [-1, 1]
      CHECK(again == retained);
    }
}

TEST_CASE("layer_pair: rows of equal direction come back, opposite and empty rows are retained", "[cache][layer_pair]") {
  rows of(4, 40, 0.0f);
  for (int h = 0; h < heads; ++h)
    for (int c = 0; c < channels; ++c) {
      of.k2.row(7, h)[c] = -2 * of.k1.row(7, h)[c];
      of.v1.row(9, h)[c] = 0;
    }
  auto pair = plain::make(shape()).value();
  REQUIRE(of.append(pair, 0, 40));
  for (int which : {0, 1})
    for (int h = 0; h < heads; ++h) {
      auto const k = restored(pair, which, h, true), v = restored(pair, which, h, false);
      for (int64_t i = 0; i < 40; ++i)
        for (int c = 0; c < channels; ++c) {
          float const key = (which == 0 ? of.k1 : of.k2).row(i, h)[c], value = (which == 0 ? of.v1 : of.v2).row(i, h)[c];
          auto const at = static_cast<std::size_t>(i * channels + c);
          CHECK(std::fabs(k[at] - key) <= 0.02f * std::fabs(key) + 1e-3f);
          CHECK(std::fabs(v[at] - value) <= 0.02f * std::fabs(value) + 1e-3f);
          if (i == 7) CHECK(k[at] == rounded_to_bf16(key));
          if (i == 9) CHECK(v[at] == rounded_to_bf16(value));
        }
    }
}

TEST_CASE("layer_pair: it takes little more than one layer, and its parts are counted", "[cache][layer_pair]") {
  rows const of(7, 320);
  auto pair = plain::make(shape()).value();
  int64_t const empty = pair.resident_bytes();
  REQUIRE(of.append(pair, 0, 320));
  int64_t const grown = pair.resident_bytes() - empty;
  int64_t const one_layer = 320 * heads * 2 * channels * 2, lengths = 320 * heads * 24, kept = pair.retained() * 2 * channels * 2;
  CHECK(grown <= one_layer + lengths + kept + 1024);
  CHECK(grown >= (320 - 64) * heads * 2 * channels * 2 + lengths + kept);
  CHECK(grown < 2 * one_layer);
  auto four = coded::make(shape()).value();
  int64_t const four_empty = four.resident_bytes();
  REQUIRE(of.append(four, 0, 320));
  CHECK(four.resident_bytes() - four_empty < grown);
  REQUIRE(pair.clear());
  CHECK(pair.length() == 0);
  CHECK(pair.retained() == 0);
  CHECK(pair.resident_bytes() == empty);
  REQUIRE(of.append(pair, 0, 320));  // and it fills again, to the same
  CHECK(pair.resident_bytes() - empty == grown);
}

TEST_CASE("layer_pair: wrong rows are refused and nothing is added", "[cache][layer_pair][errors]") {
  CHECK(plain::make(shape(0)).error().code == errc::shape_mismatch);
  auto wrong = shape();
  wrong.t = 1.5;
  CHECK(plain::make(wrong).error().code == errc::out_of_range);
  rows of(11, 100);
  auto few = shape(50);
  few.max_retained = 3;
  auto pair = plain::make(few).value();
  auto const k = of.k1.part(0, 20), v = of.v1.part(0, 20);
  CHECK(pair.append(k, v, of.k2.part(0, 19), v) == status{errc::shape_mismatch, 19});
  CHECK(pair.append(k, of.v1.part(0, 21), k, v) == status{errc::shape_mismatch, 21});
  auto const narrow = zeros(20, heads, channels - 1);
  CHECK(pair.append(k, narrow.all(), k, v) == status{errc::shape_mismatch, channels - 1});
  CHECK(pair.append(of.k1.part(0, 60), of.v1.part(0, 60), of.k2.part(0, 60), of.v2.part(0, 60)) == status{errc::capacity_exceeded, 50});
  of.v2.row(5, 1)[3] = NAN;
  CHECK(of.append(pair, 0, 20) == status{errc::not_finite, 5});
  CHECK(pair.length() == 0);
  REQUIRE(of.append(pair, 10, 8));
  std::vector<float> rows_of(8 * channels);
  // Opposite rows have no arc: there is room for three.
  rows opposite(12, 10);
  for (float& x : opposite.k2.data) x = -x;
  for (std::size_t i = 0; i < opposite.k1.data.size(); ++i) opposite.k2.data[i] = -opposite.k1.data[i];
  int64_t const before = pair.retained(), bytes = pair.resident_bytes();
  CHECK(opposite.append(pair, 0, 10) == status{errc::capacity_exceeded, 3});
  CHECK(pair.length() == 8);
  CHECK(pair.retained() == before);
  CHECK(pair.resident_bytes() == bytes);
  CHECK(pair.restore(2, 0, 0, 8, rows_of, {}) == status{errc::out_of_range, 2});
  CHECK(pair.restore(0, heads, 0, 8, rows_of, {}) == status{errc::out_of_range, heads});
  CHECK(pair.restore(0, 0, 1, 8, rows_of, {}) == status{errc::out_of_range, 1});
  CHECK(pair.restore(0, 0, 0, 7, rows_of, {}).code == errc::shape_mismatch);
  CHECK(pair.restore(1, 1, 0, 8, rows_of, {}));
}

TEST_CASE("layer_pair: the recipe of MiniCache", "[cache][layer_pair]") {
  auto made = pith::recipes::minicache<64>::make({.kv_heads = 1, .bytes = 1 << 20, .max_tokens = 64});
  REQUIRE(made);
  auto const k = gaussian(21, 10, 1), v = gaussian(22, 10, 1);
  REQUIRE(made.value().append(k.all(), v.all(), k.all(), v.all()));
  CHECK(made.value().length() == 10);
}
