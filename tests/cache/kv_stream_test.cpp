// SPDX-License-Identifier: Apache-2.0
// Chunks of a KV stream: within the stated error at every level, exact where they say so, each alone, and safe with any bytes.
#include <cmath>
#include <fstream>
#include <iterator>
#include <string>

#include "pith/cache/kv_stream.hpp"
#include "pith/cache/stream_fit.hpp"
#include "support/catch.hpp"
#include "support/digest.hpp"
#include "support/seal.hpp"

using pith::bf16;
using pith::errc;
using pith::kv_stream;
using pith::stream_model;

namespace {

constexpr pith::stream_shape shape{3, 24, 40};

// Channels with means and sizes of their own whose neighbours in time are alike: x = mean + size (0.8 before + noise).
std::vector<float> walk(std::uint64_t seed, int tokens, int channels) {
  pith_test::random_bits random(seed), same(17);  // means and sizes are those of the layer, not of the text
  std::vector<float> mean, size, state(static_cast<std::size_t>(channels)), out;
  for (int c = 0; c < channels; ++c) mean.push_back(3 * same.uniform()), size.push_back(0.2f + std::abs(same.uniform()) * 2);
  for (int t = 0; t < tokens; ++t)
    for (std::size_t c = 0; c < state.size(); ++c) {
      state[c] = 0.8f * state[c] + random.uniform() + random.uniform();
      out.push_back(mean[c] + size[c] * state[c]);
    }
  return out;
}

struct text {
  std::vector<float> keys[3], values[3];
  int tokens;
  text(std::uint64_t seed, int count) : tokens(count) {
    for (std::uint64_t l = 0; l < 3; ++l)
      keys[l] = walk(seed + 2 * l, count, shape.key_channels), values[l] = walk(seed + 2 * l + 1, count, shape.value_channels);
  }
  std::vector<pith::stream_fit::rows> layers() const {
    std::vector<pith::stream_fit::rows> out;
    for (int l = 0; l < 3; ++l)
      out.push_back({{keys[l].data(), {tokens, shape.key_channels}}, {values[l].data(), {tokens, shape.value_channels}}});
    return out;
  }
};

stream_model const& fitted() {
  static stream_model const model = pith::stream_fit::fit(text(1, 1024).layers()).value();
  return model;
}
stream_model const& published() {
  static stream_model const model = pith::stream_fit::fit(text(1, 1024).layers(), pith::cachegen).value();
  return model;
}

template <class T>
struct rows_of {
  std::vector<T> keys, values;
  int tokens;
  explicit rows_of(int count, T with = T{})
      : keys(static_cast<std::size_t>(count * shape.key_channels), with),
        values(static_cast<std::size_t>(count * shape.value_channels), with),
        tokens(count) {}
  rows_of(text const& from, int layer, int count) : rows_of(count) {
    for (std::size_t i = 0; i < keys.size(); ++i) keys[i] = pith::from_float<T>(from.keys[layer][i]);
    for (std::size_t i = 0; i < values.size(); ++i) values[i] = pith::from_float<T>(from.values[layer][i]);
  }
  pith::matrix_view<T> k() { return {keys.data(), {tokens, shape.key_channels}}; }
  pith::matrix_view<T> v() { return {values.data(), {tokens, shape.value_channels}}; }
};

template <class T>
std::vector<std::byte> encoded(stream_model const& m, int level, int layer, rows_of<T>& rows) {
  std::size_t const bound = static_cast<std::size_t>(kv_stream::bound_bytes(shape, level, rows.tokens));
  std::vector<std::byte> out(bound + 16, std::byte{0xa5});
  auto const size = kv_stream(m).encode<T>(level, layer, 77, rows.k(), rows.v(), std::span(out).first(bound));
  REQUIRE(size);
  for (std::size_t i = bound; i < out.size(); ++i) REQUIRE(out[i] == std::byte{0xa5});
  REQUIRE(size.value() <= kv_stream::header_bytes + (level == 0 ? 2 : 4) * rows.tokens * shape.channels());
  out.resize(static_cast<std::size_t>(size.value()));
  return out;
}

template <class T>
rows_of<T> decoded(stream_model const& m, std::span<std::byte const> from, int tokens) {
  rows_of<T> rows(tokens);
  auto const chunk = kv_stream(m).decode<T>(from, rows.k(), rows.v());
  REQUIRE(chunk);
  REQUIRE(chunk.value().bytes == static_cast<std::int64_t>(from.size()));
  REQUIRE(chunk.value().first_token == 77);
  return rows;
}

std::vector<std::byte> stored(stream_model const& m) {
  std::vector<std::byte> bytes(static_cast<std::size_t>(m.stored_bytes()));
  m.write(bytes.data());
  return bytes;
}

}  // namespace

TEST_CASE("kv_stream: every number comes back within half a bin, and coarser levels are smaller", "[cache][stream]") {
  text const other(100, 256);
  for (stream_model const* m : {&fitted(), &published()})
    for (int layer : {0, 2})
      for (int tokens : {1, 7, 128, 256}) {
        std::size_t before = ~std::size_t{0};
        double error_before = 0;
        for (int level = 1; level <= m->levels(); ++level) {
          rows_of<float> rows(other, layer, tokens);
          auto const bytes = encoded(*m, level, layer, rows);
          auto const back = decoded<float>(*m, bytes, tokens);
          double error = 0;
          for (int part = 0; part < 2; ++part) {
            auto const& x = part == 0 ? rows.keys : rows.values;
            auto const& y = part == 0 ? back.keys : back.values;
            int const channels = part == 0 ? shape.key_channels : shape.value_channels;
            for (std::size_t i = 0; i < x.size(); ++i) {
              int const c = static_cast<int>(i) % channels, t = static_cast<int>(i) / channels;
              auto const terms = m->terms_of(level, layer, c + (part == 0 ? 0 : shape.key_channels), 1);
              float const width = (t % m->group() == 0 ? terms.anchor : terms.other).width[0];
              REQUIRE(std::abs(x[i] - y[i]) <= width * (0.5f + 0x1p-16f) + 0x1p-22f * (std::abs(x[i]) + 20));
              error += static_cast<double>((x[i] - y[i]) * (x[i] - y[i]));
            }
          }
          CHECK(error > 0);
          if (tokens >= 128) {
            CHECK(bytes.size() < before);
            CHECK(error > error_before);
          }
          before = bytes.size(), error_before = error;
        }
      }
}

TEST_CASE("kv_stream: a fitted stream needs the bits of its numbers' information", "[cache][stream]") {
  // The text is x = m + s (0.8 before + two uniform numbers): with bins of a quarter of the spread close to log2 of its noise over the bin.
  text const other(100, 256);
  rows_of<float> rows(other, 1, 256);
  auto const bytes = encoded(fitted(), 1, 1, rows);
  double const bits = 8.0 * static_cast<double>(bytes.size()) / (256 * shape.channels());
  CHECK(bits < 4.1);
  rows_of<float> again(other, 1, 256);
  CHECK(static_cast<double>(encoded(published(), 1, 1, again).size()) > static_cast<double>(bytes.size()));
}

TEST_CASE("kv_stream: the lossless level gives every bf16 bit back", "[cache][stream][exhaustive]") {
  rows_of<bf16> ordinary(text(200, 256), 1, 256);
  auto const bytes = encoded(fitted(), 0, 1, ordinary);
  auto const back = decoded<bf16>(fitted(), bytes, 256);
  CHECK(back.keys == ordinary.keys);
  CHECK(back.values == ordinary.values);
  CHECK(bytes.size() < 2 * 256 * static_cast<std::size_t>(shape.channels()) * 3 / 4);

  // All 65536 patterns, one number among ordinary ones at a time of each chunk's channels, so that the symbols' path is taken; and as
  // noise.
  for (int mode = 0; mode < 2; ++mode) {
    int coded = 0;
    for (std::uint32_t next = 0; next < 65536;) {
      rows_of<bf16> rows(text(300, 128), 0, 128);
      for (std::size_t i = 0; i < rows.keys.size() && next < 65536; i += mode == 0 ? 5 : 1)
        rows.keys[i] = bf16{static_cast<std::uint16_t>(next++)};
      for (std::size_t i = 0; i < rows.values.size() && next < 65536; i += mode == 0 ? 5 : 1)
        rows.values[i] = bf16{static_cast<std::uint16_t>(next++ * 40503u)};
      auto const chunk = encoded(fitted(), 0, 0, rows);
      auto const same = decoded<bf16>(fitted(), chunk, 128);
      REQUIRE(same.keys == rows.keys);
      REQUIRE(same.values == rows.values);
      coded += !kv_stream(fitted()).peek(chunk).value().as_is;
    }
    CHECK((mode == 0 ? coded > 30 : coded < 10));
  }
}

TEST_CASE("kv_stream: what has no symbol is stored as it was", "[cache][stream][edge]") {
  for (stream_model const* m : {&fitted(), &published()}) {
    rows_of<float> rows(text(400, 64), 0, 64);
    float const odd[] = {
        pith::bits_float(0x7fc01234u), pith::bits_float(0xff800000u), pith::bits_float(0x7f800000u), 3e38f, -3e38f, 1e-42f, 65504.0f, 1e6f};
    for (std::size_t i = 0; i < 8; ++i)
      rows.keys[i * 91] = odd[i], rows.values[i * 97] = odd[i];  // in anchors and others, what follows refers to them
    for (int level = 1; level <= m->levels(); ++level) {
      auto const back = decoded<float>(*m, encoded(*m, level, 0, rows), 64);
      for (std::size_t i = 0; i < 8; ++i)
        if (i != 5) {
          CHECK(pith::float_bits(back.keys[i * 91]) == pith::float_bits(odd[i]));
          CHECK(pith::float_bits(back.values[i * 97]) == pith::float_bits(odd[i]));
        }
      for (float const x : back.values)
        CHECK((!pith::is_finite(x) || std::abs(x) < 70 || x == 1e6f || x == 65504.0f || std::abs(x) == 3e38f));
    }
    // Nothing like what was fitted: the chunk is the numbers themselves, and exact.
    rows_of<float> noise(64);
    pith_test::random_bits random(5);
    for (auto* part : {&noise.keys, &noise.values})
      for (float& x : *part)
        x = pith::bits_float(static_cast<std::uint32_t>(random()) | 0x46000000u);  // 8192 and more, infinities and NaNs
    auto const bytes = encoded(*m, 2, 0, noise);
    CHECK(bytes.size() == 56 + 4 * 64 * static_cast<std::size_t>(shape.channels()));
    auto const back = decoded<float>(*m, bytes, 64);
    CHECK(std::memcmp(back.keys.data(), noise.keys.data(), 4 * noise.keys.size()) == 0);
    CHECK(std::memcmp(back.values.data(), noise.values.data(), 4 * noise.values.size()) == 0);
  }
}

TEST_CASE("kv_stream: chunks are independent, follow one another, and may differ in level, layer, length and type", "[cache][stream]") {
  text const other(500, 256);
  std::vector<std::byte> all;
  std::vector<std::size_t> starts;
  struct {
    int level, layer, tokens;
  } const parts[] = {{1, 0, 128}, {3, 1, 64}, {5, 2, 256}, {2, 0, 0}, {4, 1, 1}};
  for (auto const& p : parts) {
    rows_of<float> rows(other, p.layer, p.tokens);
    auto const bytes = encoded(fitted(), p.level, p.layer, rows);
    starts.push_back(all.size());
    all.insert(all.end(), bytes.begin(), bytes.end());
  }
  for (int i = 4; i >= 0; --i) {  // in any order
    auto const from = std::span<std::byte const>(all).subspan(starts[static_cast<std::size_t>(i)]);
    auto const chunk = kv_stream(fitted()).peek(from).value();
    CHECK(chunk.layer == parts[i].layer);
    CHECK(chunk.level == parts[i].level);
    REQUIRE(chunk.tokens == parts[i].tokens);
    rows_of<float> rows(other, parts[i].layer, parts[i].tokens);
    auto const alone = decoded<float>(fitted(), encoded(fitted(), parts[i].level, parts[i].layer, rows), parts[i].tokens);
    rows_of<float> together(parts[i].tokens);
    REQUIRE(kv_stream(fitted()).decode<float>(from, together.k(), together.v()));
    CHECK(together.keys == alone.keys);
    CHECK(together.values == alone.values);
  }
  rows_of<bf16> narrow(other, 1, 100);
  rows_of<float> wide(100);
  for (std::size_t i = 0; i < wide.keys.size(); ++i) wide.keys[i] = pith::to_float(narrow.keys[i]);
  for (std::size_t i = 0; i < wide.values.size(); ++i) wide.values[i] = pith::to_float(narrow.values[i]);
  CHECK(encoded(fitted(), 3, 1, narrow) == encoded(fitted(), 3, 1, wide));
}

TEST_CASE("kv_stream: calls that make no sense are refused", "[cache][stream]") {
  rows_of<float> rows(16);
  std::vector<std::byte> out(1 << 16);
  kv_stream const stream(fitted());
  CHECK(stream.encode<float>(0, 0, 0, rows.k(), rows.v(), out).error() == pith::status{errc::unsupported, 0});
  CHECK(stream.encode<float>(6, 0, 0, rows.k(), rows.v(), out).error() == pith::status{errc::out_of_range, 6});
  CHECK(stream.encode<float>(1, 3, 0, rows.k(), rows.v(), out).error() == pith::status{errc::out_of_range, 3});
  CHECK(stream.encode<float>(1, 0, 0, rows.v(), rows.k(), out).error() == pith::status{errc::shape_mismatch, shape.value_channels});
  CHECK(stream.encode<float>(1, 0, 0, rows.k(), rows.v().part(0, 15), out).error() == pith::status{errc::shape_mismatch, 15});
  std::int64_t const bound = kv_stream::bound_bytes(shape, 1, 16);
  CHECK(stream.encode<float>(1, 0, 0, rows.k(), rows.v(), std::span(out).first(static_cast<std::size_t>(bound - 1))).error() ==
        pith::status{errc::capacity_exceeded, bound});
  auto const bytes = encoded(fitted(), 1, 0, rows);
  rows_of<float> shorter(15);
  CHECK(stream.decode<float>(bytes, shorter.k(), shorter.v()).error() == pith::status{errc::shape_mismatch, 15});
  rows_of<float> room(16);
  CHECK(kv_stream(published()).decode<float>(bytes, room.k(), room.v()).error() == pith::status{errc::wrong_format, 32});

  auto layers = text(1, 64).layers();
  CHECK(pith::stream_fit::fit({}, {}).error().code == errc::shape_mismatch);
  CHECK(pith::stream_fit::fit(layers, {.group = 0}).error() == pith::status{errc::out_of_range, 0});
  CHECK(pith::stream_fit::fit(layers, {.levels = {1, 2, 2, 3, 4}}).error() == pith::status{errc::out_of_range, 2});
}

TEST_CASE("kv_stream: broken chunks give a status or numbers, never more", "[cache][stream][fuzz]") {
  pith_test::random_bits random(11);
  text const other(600, 40);
  int noticed_late = 0, unnoticed = 0;
  for (int i = 0; i < 6000; ++i) {
    stream_model const& m = i % 2 == 0 ? fitted() : published();
    int const level = i % 6;
    static std::vector<std::byte> good[2][6];
    auto& bytes = good[i % 2][level];
    if (bytes.empty()) {
      rows_of<bf16> rows(other, 0, 40);
      bytes = encoded(m, level, 0, rows);
    }
    std::vector<std::byte> broken = bytes;
    int const kind = static_cast<int>(random() % 4);
    if (kind == 0) broken.resize(random() % broken.size());
    if (kind == 1) broken[random() % 56] ^= static_cast<std::byte>(1 + random() % 255);
    if (kind == 2) broken[56 + random() % (broken.size() - 56)] ^= static_cast<std::byte>(1 + random() % 255);
    if (kind == 3)
      for (std::size_t at = 56; at < broken.size(); ++at) broken[at] = static_cast<std::byte>(random());
    rows_of<float> rows(40);
    auto const chunk = kv_stream(m).decode<float>(broken, rows.k(), rows.v());
    REQUIRE(!chunk);
    CHECK(chunk.error().at >= 0);
    CHECK(chunk.error().at <= static_cast<std::int64_t>(bytes.size()));
    if (kind == 0) continue;
    pith_test::seal_chunk(broken);  // a right check over wrong contents
    auto const again = kv_stream(m).decode<float>(broken, rows.k(), rows.v());
    if (!again) ++noticed_late;
    if (again) ++unnoticed;
  }
  CHECK(noticed_late > 1000);
  CHECK(unnoticed > 0);  // other numbers, within the rows
}

TEST_CASE("stream_model: a stored model is the same one, a broken one is refused or codes", "[cache][stream][fuzz]") {
  auto const bytes = stored(fitted());
  auto const again = stream_model::read(bytes);
  REQUIRE(again);
  CHECK(again.value().identity() == fitted().identity());
  CHECK(stored(again.value()) == bytes);
  rows_of<float> rows(text(700, 64), 2, 64);
  CHECK(encoded(again.value(), 2, 2, rows) == encoded(fitted(), 2, 2, rows));
  pith_test::random_bits random(13);
  int accepted = 0;
  for (int i = 0; i < 1500; ++i) {
    auto broken = bytes;
    if (i % 3 == 0) {
      broken.resize(random() % broken.size());
      REQUIRE(!stream_model::read(broken));
      continue;
    }
    broken[random() % (i % 3 == 1 ? 64 : 32 + 8 * 3 * static_cast<std::size_t>(shape.channels()))] ^=
        static_cast<std::byte>(1 + random() % 255);
    REQUIRE(!stream_model::read(broken));
    pith_test::seal_fingerprint(broken);
    auto const read = stream_model::read(broken);
    if (!read || read.value().shape() != shape || read.value().levels() < 1) continue;
    ++accepted;  // another mean or weight: coarse, but within its bins
    auto const back = decoded<float>(read.value(), encoded(read.value(), 1, 1, rows), 64);
    for (std::size_t k = 0; k < rows.keys.size(); ++k) REQUIRE(pith::is_finite(back.keys[k]));
  }
  CHECK(accepted > 100);
}

TEST_CASE("kv_stream: the stored streams decode as their description says, and are encoded again to the same bytes",
          "[cache][stream][golden]") {
  // tests/golden/decode_stream.py wrote the numbers from docs/formats/stream.md alone.
  auto const read = [](std::string const& name) {
    std::ifstream file(PITH_SOURCE_DIR "/tests/golden/stream_" + name, std::ios::binary);
    REQUIRE(file);
    std::string const text{std::istreambuf_iterator<char>(file), {}};
    auto const bytes = std::as_bytes(std::span(text));
    return std::vector<std::byte>(bytes.begin(), bytes.end());
  };
  constexpr int tokens = 40, key_channels = 5, value_channels = 19;
  std::vector<std::byte> const rows = read("rows.f32");
  REQUIRE(rows.size() == 4 * tokens * (key_channels + value_channels));
  for (std::string const name : {"fitted", "published"}) {
    auto const model = stream_model::read(read(name + "_model.bin"));
    REQUIRE(model);
    for (int const level : {0, 2, 4}) {
      auto const stored_name = name + "_level" + std::to_string(level);
      auto const chunk = read(stored_name + ".bin"), expected = read(stored_name + ".f32");
      std::vector<float> numbers(tokens * (key_channels + value_channels));
      pith::matrix_view<float> const k(numbers.data(), {tokens, key_channels}),
          v(numbers.data() + tokens * key_channels, {tokens, value_channels});
      auto const decoded = kv_stream(model.value()).decode<float>(chunk, k, v);
      REQUIRE(decoded);
      CHECK(decoded.value().layer == 1);
      CHECK(decoded.value().first_token == 123456);
      for (std::size_t i = 0; i < numbers.size(); ++i)
        REQUIRE(pith::float_bits(numbers[i]) == pith::load_le<std::uint32_t>(expected.data() + 4 * i));

      std::vector<bf16> input;
      for (std::size_t i = 0; i < numbers.size(); ++i) input.push_back(bf16{pith::load_le<std::uint16_t>(rows.data() + 4 * i + 2)});
      std::vector<std::byte> out(static_cast<std::size_t>(kv_stream::bound_bytes(model.value().shape(), level, tokens)));
      pith::matrix_view<bf16 const> const keys(input.data(), {tokens, key_channels}),
          values(input.data() + tokens * key_channels, {tokens, value_channels});
      auto const size = kv_stream(model.value()).encode<bf16>(level, 1, 123456, keys, values, out);
      REQUIRE(size);
      out.resize(static_cast<std::size_t>(size.value()));
      CHECK(out == chunk);
    }
  }
}
