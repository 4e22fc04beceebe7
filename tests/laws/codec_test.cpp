// SPDX-License-Identifier: Apache-2.0
// Rules C1 to C5 and C8 of codec/concept.hpp for every codec of the list, both uses. C6 is tests/cpu, C7 tests/identity and
// tests/codec/checksum_test.cpp.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "laws/all_codecs.hpp"
#include "laws/inputs.hpp"
#include "support/catch.hpp"

namespace {

using pith_test::random_bits;

// Marks the numbers that a change of the marked ones may change.
template <class Same>
void spread(std::vector<bool>& marked, Same same_group) {
  std::vector<bool> const before = marked;
  for (std::size_t j = 0; j < before.size(); ++j)
    if (before[j])
      for (std::size_t i = 0; i < before.size(); ++i) marked[i] = marked[i] || same_group(static_cast<int>(i), static_cast<int>(j));
}
template <class Tile>
struct reach {
  static void mark(std::vector<bool>& marked) {
    constexpr int channels = Tile::channels;
    if constexpr (requires { Tile::parameter_index(0, 0); })  // a group shares its scale
      spread(marked, [](int i, int j) { return Tile::parameter_index(i / channels, i % channels) == Tile::parameter_index(j / channels, j % channels); });
    if constexpr (requires { Tile::vectors; })  // a vector shares its places
      spread(marked, [](int i, int j) {
        auto const vector = [](int n) {
          int const t = n / channels, c = n % channels;
          return Tile::along_tokens ? t / Tile::length * Tile::lanes + c : c / Tile::length * Tile::lanes + t;
        };
        return vector(i) == vector(j);
      });
    if constexpr (requires { Tile::rank; })  // a tile shares its factors
      if (std::find(marked.begin(), marked.end(), true) != marked.end()) marked.assign(marked.size(), true);
  }
};
template <class Transform, class Inner>
struct reach<pith::transformed_tile<Transform, Inner>> {
  static void mark(std::vector<bool>& marked) {
    spread(marked, [](int i, int j) { return i / Inner::channels == j / Inner::channels; });
    reach<Inner>::mark(marked);
    spread(marked, [](int i, int j) { return i / Inner::channels == j / Inner::channels; });
  }
};
template <class... Stages>
struct reach<pith::sum_tile<Stages...>> {
  static void mark(std::vector<bool>& marked) { (mark_stage<Stages>(marked), ...); }
  template <class Stage>
  static void mark_stage(std::vector<bool>& marked) {
    constexpr std::size_t numbers = static_cast<std::size_t>(Stage::tokens * Stage::channels);
    for (std::size_t first = 0; first < marked.size(); first += numbers) {
      std::vector<bool> part(marked.begin() + static_cast<std::ptrdiff_t>(first), marked.begin() + static_cast<std::ptrdiff_t>(first + numbers));
      reach<Stage>::mark(part);
      std::copy(part.begin(), part.end(), marked.begin() + static_cast<std::ptrdiff_t>(first));
    }
  }
};

// A tile as a value, so that the laws are compiled once.
struct any_tile {
  std::string name;
  int tokens, channels;
  std::int64_t bytes, used;
  void (*encode)(float const*, std::byte*) noexcept;
  void (*decode)(std::byte const*, float*) noexcept;
  void (*error_bound)(float const*, float*) noexcept;
  pith::nan_policy nan;
  bool transformed, grouped, each_alone;  // each_alone: a number's code depends on that number only
  bool along_tokens;
  int group;
  void (*transform_row)(float*);  // T x, where the query gets T^-t q
  void (*transform_query)(float*);
  void (*restore_output)(float*);
  void (*mark_reach)(std::vector<bool>&);

  int numbers() const { return tokens * channels; }
  bool same_group(int i, int j) const {
    int const t = i / channels, c = i % channels, u = j / channels, d = j % channels;
    return along_tokens ? c == d && t / group == u / group : t == u && c / group == d / group;
  }
};

// Every transform of a pipe in turn, as encode applies them.
template <class Tile>
void transform_all(float* row, pith::state_of<Tile> const& state) {
  Tile::transform_row(row, state);
  if constexpr (pith::is_transformed<typename Tile::inner>) transform_all<typename Tile::inner>(row, Tile::inner_of(state));
}

std::vector<any_tile> const& all_tiles() {
  static std::vector<any_tile> const tiles = [] {
    std::vector<any_tile> list;
    pith_test::for_each_tile([&]<class Tile>(char const* name) {
      any_tile next{};
      next.name = name;
      next.tokens = Tile::tokens;
      next.channels = Tile::channels;
      next.bytes = next.used = Tile::bytes;
      next.encode = [](float const* rows, std::byte* out) noexcept { pith::encode_tile<Tile>(rows, out, pith_test::sample_state<Tile>()); };
      next.decode = [](std::byte const* in, float* rows) noexcept { pith::decode_tile<Tile>(in, rows, pith_test::sample_state<Tile>()); };
      next.error_bound = [](float const* rows, float* bound) noexcept { pith::tile_error_bound<Tile>(rows, bound, pith_test::sample_state<Tile>()); };
      next.nan = Tile::nan;
      next.transformed = pith::is_transformed<Tile>;
      next.each_alone = requires { typename Tile::scalar; } && !requires { Tile::storage::group; } && !requires { Tile::rank; };
      next.group = 1;
      next.mark_reach = [](std::vector<bool>& marked) { reach<Tile>::mark(marked); };
      if constexpr (requires { Tile::storage::group; }) {
        next.grouped = true;
        next.used = Tile::storage::used;
        next.along_tokens = Tile::storage::along_tokens;
        next.group = Tile::storage::group;
      }
      if constexpr (pith::is_transformed<Tile>) {
        next.transform_row = [](float* row) { transform_all<Tile>(row, pith_test::sample_state<Tile>()); };
        next.transform_query = [](float* row) { Tile::transform_query(row, pith_test::sample_state<Tile>()); };
        next.restore_output = [](float* row) { Tile::restore_output(row, pith_test::sample_state<Tile>()); };
      }
      list.push_back(next);
    });
    return list;
  }();
  return tiles;
}

std::vector<std::byte> encoded(any_tile const& tile, std::vector<float> const& rows) {
  std::vector<std::byte> out(static_cast<std::size_t>(tile.bytes));
  tile.encode(rows.data(), out.data());
  return out;
}

std::vector<float> decoded(any_tile const& tile, std::vector<std::byte> const& bytes) {
  std::vector<float> rows(static_cast<std::size_t>(tile.numbers()));
  tile.decode(bytes.data(), rows.data());
  return rows;
}

// Heavy checks count and report one line; a check for each number would take seconds.
template <class Law>
void for_each_hard_input(Law law) {
  for (any_tile const& tile : all_tiles())
    for (pith_test::input const& x : pith_test::hard_inputs(tile.tokens, tile.channels)) {
      INFO(tile.name << ", " << tile.channels << " channels, " << x.name);
      law(tile, x);
    }
}

float const infinity = pith::bits_float(0x7f800000u), quiet_nan = pith::bits_float(0x7fc00000u);

}  // namespace

TEST_CASE("codec rule C1: decode(encode(x)) is within error_bound(x), element by element", "[law][codec]") {
  for_each_hard_input([](any_tile const& tile, pith_test::input const& x) {
    auto const back = decoded(tile, encoded(tile, x.rows));
    std::vector<float> bound(x.rows.size());
    tile.error_bound(x.rows.data(), bound.data());
    int beyond = 0;
    for (std::size_t i = 0; i < bound.size(); ++i)
      if (bound[i] != infinity && !(std::fabs(static_cast<double>(back[i]) - x.rows[i]) <= bound[i])) {  // infinite: the format overflows
        if (++beyond == 1) UNSCOPED_INFO("element " << i << ": " << x.rows[i] << " became " << back[i] << ", bound " << bound[i]);
      }
    CHECK(beyond == 0);
  });
}

TEST_CASE("codec rule C1: the bound says something: the error of gaussian numbers comes near it", "[law][codec]") {
  for (any_tile const& tile : all_tiles()) {
    INFO(tile.name);
    auto const x = pith_test::hard_inputs(tile.tokens, tile.channels)[0].rows;
    auto const back = decoded(tile, encoded(tile, x));
    std::vector<float> bound(x.size());
    tile.error_bound(x.data(), bound.data());
    double errors = 0, bounds = 0;
    for (std::size_t i = 0; i < x.size(); ++i) errors += std::fabs(static_cast<double>(back[i]) - x[i]), bounds += bound[i];
    CHECK(errors >= (tile.transformed ? 0.02 : 0.25) * bounds);
  }
}

TEST_CASE("codec rule C2: encode writes its bytes, all of them and no others, whatever was there", "[law][codec]") {
  for_each_hard_input([](any_tile const& tile, pith_test::input const& x) {
    constexpr std::size_t fence = 64;
    std::size_t const bytes = static_cast<std::size_t>(tile.bytes);
    std::vector<std::byte> first(bytes + 2 * fence, std::byte{0xa5}), second(bytes + 2 * fence, std::byte{0x5a});
    tile.encode(x.rows.data(), first.data() + fence);
    tile.encode(x.rows.data(), second.data() + fence);
    CHECK(std::memcmp(first.data() + fence, second.data() + fence, bytes) == 0);
    int touched = 0, padding = 0;
    for (std::size_t i = 0; i < fence; ++i)
      touched += first[i] != std::byte{0xa5} || first[fence + bytes + i] != std::byte{0xa5} || second[i] != std::byte{0x5a} ||
                 second[fence + bytes + i] != std::byte{0x5a};
    CHECK(touched == 0);
    for (std::size_t i = static_cast<std::size_t>(tile.used); i < bytes; ++i) padding += first[fence + i] != std::byte{0};
    CHECK(padding == 0);
  });
}

TEST_CASE("codec rule C3: a tile of zeros decodes to zeros", "[law][codec]") {
  for (any_tile const& tile : all_tiles()) {
    INFO(tile.name);
    int wrong = 0;
    for (float x : decoded(tile, encoded(tile, std::vector<float>(static_cast<std::size_t>(tile.numbers()))))) wrong += x != 0;
    CHECK(wrong == 0);
  }
}

TEST_CASE("codec rule C4: a number that is not finite follows the policy and disturbs only its own group", "[law][codec]") {
  std::ptrdiff_t out_of_reach = 0;
  for (any_tile const& tile : all_tiles()) {
    INFO(tile.name);
    auto const clean = pith_test::hard_inputs(tile.tokens, tile.channels)[0].rows;
    auto dirty = clean;
    std::vector<int> const places{0, 37, 38, 5 * tile.channels + 3, tile.numbers() - 1};
    float const values[] = {quiet_nan, infinity, -infinity, -infinity, quiet_nan};
    for (std::size_t i = 0; i < places.size(); ++i) dirty[static_cast<std::size_t>(places[i])] = values[i];
    auto const before = decoded(tile, encoded(tile, clean)), after = decoded(tile, encoded(tile, dirty));
    std::vector<bool> near(clean.size());
    for (int place : places) near[static_cast<std::size_t>(place)] = true;
    tile.mark_reach(near);
    int not_finite = 0, disturbed = 0;
    for (std::size_t i = 0; i < clean.size(); ++i) {
      not_finite += !pith::is_finite(after[i]);
      disturbed += !near[i] && pith::float_bits(after[i]) != pith::float_bits(before[i]);
    }
    out_of_reach += std::count(near.begin(), near.end(), false);
    CHECK(disturbed == 0);
    if (tile.nan == pith::nan_policy::saturate) {
      CHECK(not_finite == 0);
      if (tile.transformed) {  // such a number counts as zero
        for (int place : places) dirty[static_cast<std::size_t>(place)] = 0;
        CHECK(before.size() == after.size());
        CHECK(decoded(tile, encoded(tile, dirty)) == after);
      }
    } else if (!tile.transformed) {
      CHECK(not_finite == static_cast<int>(places.size()));
      for (std::size_t i = 0; i < places.size(); ++i) {
        float const x = after[static_cast<std::size_t>(places[i])];
        CHECK((pith::is_nan(values[i]) ? pith::is_nan(x) : x == values[i]));
      }
    }
  }
  CHECK(out_of_reach > 50'000);  // else little was tested
}

TEST_CASE("codec rule C4: an infinity becomes the largest finite number of its group", "[law][codec]") {
  for (any_tile const& tile : all_tiles()) {
    if (!tile.grouped || tile.transformed) continue;
    INFO(tile.name);
    auto rows = pith_test::hard_inputs(tile.tokens, tile.channels)[0].rows;
    int const high = 1 * tile.channels + 1, low = 3 * tile.channels + 5;
    rows[static_cast<std::size_t>(high)] = infinity, rows[static_cast<std::size_t>(low)] = -infinity;
    auto const back = decoded(tile, encoded(tile, rows));
    float most = -1e30f, least = 1e30f;
    for (int i = 0; i < tile.numbers(); ++i) {
      if (tile.same_group(i, high)) most = std::max(most, back[static_cast<std::size_t>(i)]);
      if (tile.same_group(i, low)) least = std::min(least, back[static_cast<std::size_t>(i)]);
    }
    CHECK(back[static_cast<std::size_t>(high)] == most);
    CHECK(back[static_cast<std::size_t>(low)] == least);
    int others = 0;  // neither widens the range: the largest finite number was there
    for (int i = 0; i < tile.numbers(); ++i) others += i != high && tile.same_group(i, high) && back[static_cast<std::size_t>(i)] == most;
    CHECK(others >= 1);
  }
}

TEST_CASE("codec rule C4: a NaN is stored as zero, or as the end of the range that is nearest to it", "[law][codec]") {
  for (any_tile const& tile : all_tiles()) {
    if (!tile.grouped || tile.transformed) continue;
    INFO(tile.name);
    auto rows = pith_test::hard_inputs(tile.tokens, tile.channels)[0].rows, zeros = rows;
    for (int place : {3 * tile.channels + 5, 9 * tile.channels + 40, 31 * tile.channels}) {
      rows[static_cast<std::size_t>(place)] = quiet_nan;
      zeros[static_cast<std::size_t>(place)] = 0;
    }
    CHECK(encoded(tile, rows) == encoded(tile, zeros));
    for (float& x : rows) x = pith::is_nan(x) ? x : x * x + 1;  // positive: the nearest end is the smallest
    auto const back = decoded(tile, encoded(tile, rows));
    float least = 1e30f;
    int const place = 9 * tile.channels + 40;
    for (int i = 0; i < tile.numbers(); ++i)
      if (tile.same_group(i, place)) least = std::min(least, back[static_cast<std::size_t>(i)]);
    CHECK(back[static_cast<std::size_t>(place)] == least);
  }
}

TEST_CASE("codec rule C4: finite numbers decode to finite numbers under saturation", "[law][codec]") {
  for_each_hard_input([](any_tile const& tile, pith_test::input const& x) {
    if (tile.nan != pith::nan_policy::saturate) return;
    int not_finite = 0;
    for (float y : decoded(tile, encoded(tile, x.rows))) not_finite += !pith::is_finite(y);
    CHECK(not_finite == 0);
  });
}

TEST_CASE("codec rule C4: without groups an infinity becomes the largest number of the format, and a NaN zero", "[law][codec]") {
  int checked = 0;
  for (any_tile const& tile : all_tiles()) {
    if (tile.nan != pith::nan_policy::saturate || !tile.each_alone) continue;
    ++checked;
    INFO(tile.name);
    std::vector<float> rows(static_cast<std::size_t>(tile.numbers()), 1e30f), other = rows;
    rows[3] = infinity, rows[70] = -infinity, rows[100] = quiet_nan;
    other[70] = -1e30f, other[100] = 0;
    CHECK(encoded(tile, rows) == encoded(tile, other));
  }
  CHECK(checked > 0);
}

TEST_CASE("codec rule C4: a group without a finite number decodes to zeros", "[law][codec]") {
  for (any_tile const& tile : all_tiles()) {
    if (tile.nan != pith::nan_policy::saturate || tile.each_alone) continue;
    INFO(tile.name);
    for (float filler : {quiet_nan, infinity, -infinity}) {
      int wrong = 0;
      for (float x : decoded(tile, encoded(tile, std::vector<float>(static_cast<std::size_t>(tile.numbers()), filler)))) wrong += x != 0;
      CHECK(wrong == 0);
    }
  }
}

TEST_CASE("codec rule C5: decode accepts any bytes and reads no others", "[law][codec]") {
  random_bits random(5);
  for (any_tile const& tile : all_tiles()) {
    std::size_t const bytes = static_cast<std::size_t>(tile.bytes), numbers = static_cast<std::size_t>(tile.numbers());
    for (int round = 0; round < 6; ++round) {
      // Exactly as long as promised, on the heap: a sanitizer sees a step outside.
      auto const in = std::make_unique<std::byte[]>(bytes);
      auto const rows = std::make_unique<float[]>(numbers);
      for (std::size_t i = 0; i < bytes; ++i)
        in[i] = round == 0 ? std::byte{0} : round == 1 ? std::byte{0xff} : static_cast<std::byte>(random());
      for (std::size_t i = 0; i < numbers; ++i) rows[i] = 12345.678f;
      tile.decode(in.get(), rows.get());
      std::size_t unwritten = 0;
      for (std::size_t i = 0; i < numbers; ++i) unwritten += rows[i] == 12345.678f;
      INFO(tile.name);
      CHECK(unwritten == 0);
    }
  }
}

TEST_CASE("codec rule C8: a transform keeps inner products and is undone", "[law][codec]") {
  random_bits random(8);
  int transformed = 0;
  for (any_tile const& tile : all_tiles()) {
    if (!tile.transformed) continue;
    ++transformed;
    INFO(tile.name);
    std::size_t const n = static_cast<std::size_t>(tile.channels);
    std::vector<float> x(n), q(n);
    for (std::size_t i = 0; i < n; ++i) x[i] = pith_test::gaussian(random), q[i] = pith_test::cauchy(random);
    auto tx = x, tq = q;
    tile.transform_row(tx.data());
    tile.transform_query(tq.data());
    double plain = 0, rotated = 0, sizes = 0, xx = 0, qq = 0;
    for (std::size_t i = 0; i < n; ++i)
      plain += double(x[i]) * q[i], rotated += double(tx[i]) * tq[i], xx += double(x[i]) * x[i], qq += double(q[i]) * q[i];
    sizes = std::sqrt(xx * qq);
    CHECK(std::fabs(plain - rotated) <= 0x1p-20 * sizes);

    tile.restore_output(tx.data());
    double off = 0;
    for (std::size_t i = 0; i < n; ++i) off = std::max(off, std::fabs(double(tx[i]) - x[i]));
    CHECK(off <= 0x1p-20 * std::sqrt(xx));

    // linear: T(2x - 3q) = 2 Tx - 3 Tq
    std::vector<float> both(n);
    for (std::size_t i = 0; i < n; ++i) both[i] = 2 * x[i] - 3 * q[i];
    tile.transform_row(both.data());
    tx = x, tq = q;
    tile.transform_row(tx.data());
    tile.transform_row(tq.data());
    off = 0;
    for (std::size_t i = 0; i < n; ++i) off = std::max(off, std::fabs(double(both[i]) - (2.0 * tx[i] - 3.0 * tq[i])));
    CHECK(off <= 0x1p-20 * (2 * std::sqrt(xx) + 3 * std::sqrt(qq)));
  }
  CHECK(transformed > 0);
}
