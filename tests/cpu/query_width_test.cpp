// SPDX-License-Identifier: Apache-2.0
// How wide integer accuracy makes a query: 8 bits, or 15 where an outlier channel of magnitude 30 would make 8 the larger error. The
// width is read off the scores: their distance from the decoded keys' scores, over what the rounding to 8 bits would cause,
//
//   ratio = rms(score - sum_c q[c] x[t][c]) / rms(step8 / sqrt(12) * sqrt(sum_c ((u - middle) s)^2)),   step8 = max|q| / 127
//
// which is near 1 for 8 bits and near 1/128 for 15. Where keys are per channel, q is the query times the channel scales, and s is 1.
#include "cpu/kernel_oracle.hpp"

namespace {

using namespace pith_test;
using pith::use;

struct row_error {
  double ratio = 0;     // as above, over all tokens
  double worst8 = 0;    // largest error over its bound for 8 bits, step/2 sum |u - middle| s
  double worst15 = 0;   // the same for 15 bits, step = max|q| / 16256
  double rounding = 0;  // root mean square of the error
  double own = 0;       // that of the codec: decoded keys against the keys
};

// Four queries at once over one tile of keys.
template <class Tile>
std::vector<row_error> row_errors(std::vector<float> const& keys, std::vector<float> const& q) {
  constexpr int rows = 4, channels = Tile::channels;
  using kernel = pith::dot_kernel<Tile, pith::integer_accuracy, rows>;
  auto const bytes = encode_tile<Tile>(keys);
  auto const x = stored_numbers<Tile>(bytes);
  auto query = std::make_unique<typename kernel::query>();
  std::vector<float> scores(static_cast<std::size_t>(rows * Tile::tokens));
  kernel::prepare(q.data(), *query, pith::score_tolerance);
  kernel::run(bytes.data(), *query, scores.data(), Tile::tokens);

  std::vector<row_error> all(rows);
  for (int m = 0; m < rows; ++m) {
    row_error& e = all[static_cast<std::size_t>(m)];
    double expected_squares = 0;
    for (int t = 0; t < Tile::tokens; ++t) {
      double score = 0, from_keys = 0, size = 0, most = 0, sum = 0, squares = 0;
      for (int c = 0; c < channels; ++c) {
        stored_number const& n = x[static_cast<std::size_t>(t * channels + c)];
        double const one = q[static_cast<std::size_t>(m * channels + c)];
        double const reach = Tile::along_tokens ? n.centred : n.centred * n.scale;
        score += one * n.value, from_keys += one * keys[static_cast<std::size_t>(t * channels + c)], size += std::fabs(one) * n.size;
        most = std::max(most, std::fabs(Tile::along_tokens ? one * n.scale : one));
        sum += reach, squares += reach * reach;
      }
      double const error = std::fabs(scores[static_cast<std::size_t>(m * Tile::tokens + t)] - score), step = most / 127;
      double const sums = (channels + 16) * 0x1p-24 * size;  // f32, whatever is rounded
      double const step15 = step / 128 * (1 + 0x1p-8);       // a 15-bit number times 1/step is itself off by up to 2^-9 of a step
      e.worst8 = std::max(e.worst8, error / (0.5 * step * sum + sums));
      e.worst15 = std::max(e.worst15, error / (0.5 * step15 * sum + sums));
      e.rounding += error * error / Tile::tokens, e.own += (score - from_keys) * (score - from_keys) / Tile::tokens;
      expected_squares += step * step / 12 * squares / Tile::tokens;
    }
    e.ratio = std::sqrt(e.rounding / expected_squares), e.rounding = std::sqrt(e.rounding), e.own = std::sqrt(e.own);
  }
  return all;
}

constexpr double wide_below = 0.1, narrow_above = 0.4;

enum class outlier { in_queries, in_keys };

// As attention prepares a query: scores in units of log 2.
template <class Tile>
void scale_as_attention(std::vector<float>& q) {
  for (float& one : q) one *= 1.442695f / std::sqrt(static_cast<float>(Tile::channels));
}

// Gaussian keys and queries. Queries 0 and 2 (or all keys) have an outlier channel of magnitude 30.
template <class Tile>
std::vector<row_error> outlier_errors(outlier where, random_bits& random) {
  std::vector<float> keys(static_cast<std::size_t>(Tile::tokens) * Tile::channels), q(4 * static_cast<std::size_t>(Tile::channels));
  for (float& one : keys) one = gaussian(random);
  for (float& one : q) one = gaussian(random);
  constexpr int place = 11;
  if (where == outlier::in_keys)
    for (int t = 0; t < Tile::tokens; ++t) keys[static_cast<std::size_t>(t * Tile::channels + place)] *= 30;
  for (int m = 0; m < 4; ++m)
    if (where == outlier::in_keys)
      q[static_cast<std::size_t>(m * Tile::channels + place)] = m % 2 == 0 ? 1.5f : -1.0f;
    else if (m % 2 == 0)
      q[static_cast<std::size_t>(m * Tile::channels + place)] = m == 0 ? 30.0f : -30.0f;
  scale_as_attention<Tile>(q);
  return row_errors<Tile>(keys, q);
}

constexpr int rounds = 25;

template <class Codec, int Channels>
using tile_of = typename Codec::template bind<Channels, 64, use::dot>;

// An outlier makes exactly the rows that have it wide; both widths stay within their bounds, side by side in one call.
template <class Codec, int Channels>
void check_wide(char const* name, outlier where) {
  INFO(name << ", " << Channels << " channels");
  random_bits random(23);
  int plain_rows = 0, plain_narrow = 0;
  for (int round = 0; round < rounds; ++round) {
    auto const errors = outlier_errors<tile_of<Codec, Channels>>(where, random);
    for (std::size_t m = 0; m < errors.size(); ++m) {
      row_error const& e = errors[m];
      INFO("round " << round << ", row " << m << ": ratio " << e.ratio << ", rounding " << e.rounding << ", codec " << e.own);
      CHECK(e.worst8 <= 1);
      if (where == outlier::in_keys || m % 2 == 0) {
        CHECK(e.ratio < wide_below);
        CHECK(e.worst15 <= 1);
        CHECK(e.rounding < 0.5 * e.own);
      } else {
        ++plain_rows, plain_narrow += e.ratio > narrow_above;
        CHECK((e.ratio < wide_below || e.ratio > narrow_above));
      }
    }
  }
  CHECK(plain_narrow >= 0.8 * plain_rows);  // all, if there are none
}

// Gaussian keys and queries: 8 bits for most, within their bound, which 15 bits' bound could not hold.
template <class Codec, int Channels>
void check_narrow(char const* name) {
  INFO(name << ", " << Channels << " channels");
  using tile = tile_of<Codec, Channels>;
  random_bits random(29);
  int narrow = 0, above15 = 0;
  for (int round = 0; round < rounds; ++round) {
    std::vector<float> keys(static_cast<std::size_t>(tile::tokens) * Channels), q(4 * Channels);
    for (float& one : keys) one = gaussian(random);
    for (float& one : q) one = gaussian(random);
    scale_as_attention<tile>(q);
    for (row_error const& e : row_errors<tile>(keys, q)) {
      narrow += e.ratio > narrow_above, above15 += e.worst15 > 1;
      CHECK(e.worst8 <= 1);
    }
  }
  INFO(narrow << " of " << 4 * rounds << " rows have 8 bits");
  CHECK(narrow >= 0.8 * 4 * rounds);
  CHECK(above15 >= narrow);
}

// Where codes are coarse, 8 bits cost less than the codec itself even with an outlier.
template <class Codec, int Channels>
void check_below_codec(char const* name, outlier where) {
  INFO(name << ", " << Channels << " channels");
  random_bits random(31);
  for (int round = 0; round < rounds; ++round)
    for (row_error const& e : outlier_errors<tile_of<Codec, Channels>>(where, random)) {
      INFO("ratio " << e.ratio << ", rounding " << e.rounding << ", codec " << e.own);
      CHECK(e.worst8 <= 1);
      CHECK(e.rounding < 0.5 * e.own);
    }
}

}  // namespace

#define CHECK_WIDE(Where, Channels, ...) check_wide<__VA_ARGS__, Channels>(#__VA_ARGS__, outlier::Where)
#define CHECK_NARROW(Channels, ...) check_narrow<__VA_ARGS__, Channels>(#__VA_ARGS__)
#define CHECK_BELOW_CODEC(Where, Channels, ...) check_below_codec<__VA_ARGS__, Channels>(#__VA_ARGS__, outlier::Where)

TEST_CASE("query width: an outlier channel of a query over keys per token makes that row 15 bits wide, and no other", "[cpu]") {
  using namespace pith;
  CHECK_WIDE(in_queries, 64, int8<per_token<64>>);
  CHECK_WIDE(in_queries, 128, int8<per_token<32>, zero::none>);
  CHECK_WIDE(in_queries, 128, int7<per_token<64>>);
}

TEST_CASE("query width: an outlier channel of keys per channel makes the folded query 15 bits wide", "[cpu]") {
  using namespace pith;
  CHECK_WIDE(in_keys, 64, int8<per_channel<32>>);
  CHECK_WIDE(in_keys, 128, int8<per_channel<64>, zero::none>);
  CHECK_WIDE(in_keys, 128, int7<per_channel<32>>);
}

TEST_CASE("query width: gaussian queries stay at 8 bits in most cases", "[cpu]") {
  using namespace pith;
  CHECK_NARROW(64, int8<per_token<64>>);
  CHECK_NARROW(128, int8<per_channel<32>>);
  CHECK_NARROW(128, int4<per_token<64>>);
  CHECK_NARROW(64, int4<per_channel<32>>);
}

TEST_CASE("query width: coarse codes lose more than an outlier's rounding, whatever its width", "[cpu]") {
  using namespace pith;
  CHECK_BELOW_CODEC(in_queries, 64, int4<per_token<64>>);
  CHECK_BELOW_CODEC(in_keys, 64, int4<per_channel<32>>);
  CHECK_BELOW_CODEC(in_keys, 128, int2<per_channel<32>>);
}
