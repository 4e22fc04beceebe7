// SPDX-License-Identifier: Apache-2.0
// Sends the keys and values of a text as a compressed stream instead of computing them again: fits the stream's statistics on one text,
// streams the KV of others at every level, and continues each text from what was decoded.
//
//   07_stream_kv_cache                                                  a look, seconds
//   07_stream_kv_cache --windows 16 --continued 1024 --calibration 16   a measurement
//
// Passes if the lossless stream is exact, and if some level is smaller than INT8 pages by 1.8 times or more at a perplexity at most 1 %
// above theirs.
#include <algorithm>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "evaluate.hpp"
#include "exact_cache.hpp"
#include "pith/cache/kv_stream.hpp"
#include "pith/cache/stream_fit.hpp"
#include "pith/codec/integer.hpp"

#ifndef PITH_SOURCE_DIR
#define PITH_SOURCE_DIR "."
#endif

namespace {

using namespace example;

// Keys and values of a text, [layer][token][head][channel].
struct kv_rows {
  std::vector<std::vector<float>> keys, values;
};

// What the layers make of a text, with exact attention; logits are not needed.
pith::status record(llama const& model, std::string_view text, kv_rows& rows) {
  exact_cache exact(model.config, model.config.context);
  rows.keys.resize(static_cast<std::size_t>(model.config.layers));
  rows.values.resize(static_cast<std::size_t>(model.config.layers));
  std::vector<float> logits;
  llama_scratch scratch;
  auto const recording = [&](int layer, rows_view q, rows_view k, rows_view v, rows_out out) {
    auto& keys = rows.keys[static_cast<std::size_t>(layer)];
    auto& values = rows.values[static_cast<std::size_t>(layer)];
    keys.insert(keys.end(), k.data, k.data + k.elements());
    values.insert(values.end(), v.data, v.data + v.elements());
    return exact(layer, q, k, v, out);
  };
  return forward(model, text, 0, recording, logits, scratch);
}

// Bits per byte of what follows the first half of a window, decoded with exact attention over the given rows of the first half and its own.
double continue_from(llama const& model, kv_rows const& rows, std::string_view window, int context, int continued) {
  llama_config const& c = model.config;
  exact_cache cache(c, c.context);
  for (int layer = 0; layer < c.layers; ++layer) {
    auto const view = [&](auto const& of) {
      return rows_view(of[static_cast<std::size_t>(layer)].data(), {context, c.kv_heads, c.head_dim});
    };
    static_cast<void>(cache.append(layer, view(rows.keys), view(rows.values)));
  }
  std::vector<float> logits;
  llama_scratch scratch;
  double bits = 0;
  std::size_t const vocab = static_cast<std::size_t>(c.vocab);
  int const chunk = 128, end = std::min(context + continued, static_cast<int>(window.size()) - 1);
  for (int at = context; at < end; at += chunk) {
    std::string_view const part = window.substr(static_cast<std::size_t>(at), static_cast<std::size_t>(std::min(chunk, end - at)));
    static_cast<void>(forward(model, part, at, cache, logits, scratch));
    for (std::size_t t = 0; t < part.size(); ++t)
      bits += surprise_bits(std::span<float const>(logits).subspan(t * vocab, vocab), window[static_cast<std::size_t>(at) + t + 1]);
  }
  return bits / (end - context);
}

// Rows through pages of a codec: what a cache of it gives back, but for its first and last tokens, which most keep raw.
template <class Codec>
double through_pages(llama_config const& c, kv_rows const& rows, kv_rows& decoded) {
  constexpr int width = 64;
  using keys = typename Codec::template bind<width, 64, pith::use::dot>;
  using values = typename Codec::template bind<width, 64, pith::use::mix>;
  auto const pass = [&]<class Tile>(Tile*, std::vector<float> const& from, std::vector<float>& to) {
    alignas(64) std::byte bytes[Tile::bytes];
    float tile[Tile::tokens * width];
    for (std::size_t t = 0; t < from.size(); t += static_cast<std::size_t>(Tile::tokens * c.kv_heads * width))
      for (int head = 0; head < c.kv_heads; ++head) {
        auto const each = [&](auto&& visit) {
          for (int i = 0; i < Tile::tokens; ++i)
            for (int k = 0; k < width; ++k) visit(tile[i * width + k], t + static_cast<std::size_t>((i * c.kv_heads + head) * width + k));
        };
        each([&](float& x, std::size_t at) { x = from[at]; });
        Tile::encode(tile, bytes);
        Tile::decode(bytes, tile);
        each([&](float& x, std::size_t at) { to[at] = x; });
      }
  };
  decoded = rows;
  for (std::size_t l = 0; l < rows.keys.size(); ++l) {
    pass(static_cast<keys*>(nullptr), rows.keys[l], decoded.keys[l]);
    pass(static_cast<values*>(nullptr), rows.values[l], decoded.values[l]);
  }
  return 4.0 * keys::bytes / (keys::tokens * width) + 4.0 * values::bytes / (values::tokens * width);
}

// Rows through a stream, in chunks of `chunk` tokens of a layer: what a receiver has, and the bytes that it got.
template <class T>
pith::result<std::int64_t> through(pith::stream_model const& model, int level, kv_rows const& rows, int chunk, kv_rows& decoded) {
  pith::kv_stream const stream(model);
  pith::stream_shape const& shape = model.shape();
  std::vector<std::byte> buffer(static_cast<std::size_t>(pith::kv_stream::bound_bytes(shape, level, chunk)));
  std::int64_t bytes = 0;
  decoded = rows;
  for (int layer = 0; layer < shape.layers; ++layer) {
    auto const convert = [](std::vector<float> const& from) {
      std::vector<T> to;
      for (float const x : from) to.push_back(pith::from_float<T>(x));
      return to;
    };
    std::vector<T> keys = convert(rows.keys[static_cast<std::size_t>(layer)]),
                   values = convert(rows.values[static_cast<std::size_t>(layer)]);
    std::int64_t const tokens = static_cast<std::int64_t>(keys.size()) / shape.key_channels;
    for (std::int64_t first = 0; first < tokens; first += chunk) {
      std::int64_t const count = std::min<std::int64_t>(chunk, tokens - first);
      pith::matrix_view<T> const k(keys.data() + first * shape.key_channels, {count, shape.key_channels});
      pith::matrix_view<T> const v(values.data() + first * shape.value_channels, {count, shape.value_channels});
      auto const sent = stream.encode<T>(level, layer, first, k, v, buffer);
      if (!sent) return sent.error();
      bytes += sent.value();
      auto const got = stream.decode<T>(std::span(buffer).first(static_cast<std::size_t>(sent.value())), k, v);
      if (!got) return got.error();
    }
    for (std::size_t i = 0; i < keys.size(); ++i) decoded.keys[static_cast<std::size_t>(layer)][i] = pith::to_float(keys[i]);
    for (std::size_t i = 0; i < values.size(); ++i) decoded.values[static_cast<std::size_t>(layer)][i] = pith::to_float(values[i]);
  }
  return bytes;
}

bool read_file(std::string const& path, std::string& content) {
  std::ifstream file(path, std::ios::binary);
  content.assign(std::istreambuf_iterator<char>(file), {});
  return static_cast<bool>(file);
}

struct outcome {
  std::string name;
  double bits_per_value = 0;
  std::vector<double> bits;  // per byte, of each window
};

}  // namespace

int main(int argc, char** argv) {
  std::string folder = PITH_SOURCE_DIR "/examples/model";
  int windows = 1, calibration = 4, continued = 256, chunk = 128, group = 0, tables = 0, lossless_tables = 0;
  struct {
    char const *name, *what;
    int* to;
  } const options[] = {{"--windows", "texts to measure, each of the model's context", &windows},
                       {"--calibration", "texts of half a context that the statistics are fitted on", &calibration},
                       {"--continued", "bytes that each text is continued by, up to half a context", &continued},
                       {"--chunk", "tokens of a chunk, at most 256", &chunk},
                       {"--group", "tokens from one anchor to the next in the fitted stream", &group},
                       {"--tables", "tables of frequencies of a level", &tables},
                       {"--lossless-tables", "tables of frequencies of the lossless level", &lossless_tables}};
  for (int i = 1; i < argc; i += 2) {
    auto const* const found =
        std::find_if(std::begin(options), std::end(options), [&](auto const& o) { return argv[i] == std::string_view(o.name); });
    bool const names_model = argv[i] == std::string_view("--model");
    if (i + 1 == argc || (!names_model && (found == std::end(options) || std::atoi(argv[i + 1]) < 1))) {
      for (auto const& o : options) std::fprintf(stderr, "%-18s %s (a number, 1 or more)\n", o.name, o.what);
      std::fprintf(stderr, "%-18s folder of pith-kjv.safetensors and held_out.txt\n", "--model");
      return 2;
    }
    if (names_model)
      folder = argv[i + 1];
    else
      *found->to = std::atoi(argv[i + 1]);
  }

  std::string weights, text;
  if (!read_file(folder + "/pith-kjv.safetensors", weights) || !read_file(folder + "/held_out.txt", text)) {
    std::fprintf(stderr, "cannot read the model in %s; --model names its folder\n", folder.c_str());
    return 1;
  }
  auto loaded = load_llama(std::as_bytes(std::span(weights)));
  if (!loaded) return std::fprintf(stderr, "pith-kjv.safetensors: %s\n", pith::message(loaded.error().code)), 1;
  llama const& model = loaded.value();
  llama_config const& c = model.config;
  if (c.head_dim != 64) return std::fprintf(stderr, "the pages of this program have 64 channels\n"), 1;
  int const context = c.context / 2, width = c.kv_heads * c.head_dim;
  std::size_t const for_calibration = text.size() * 3 / 10;

  kv_rows seen;
  for (std::string_view const window : held_out_windows(std::string_view(text).substr(0, for_calibration), context, calibration))
    if (pith::status const s = record(model, window.substr(0, static_cast<std::size_t>(context)), seen); !s) return 1;
  std::vector<pith::stream_fit::rows> layers;
  for (int l = 0; l < c.layers; ++l) {
    auto& keys = seen.keys[static_cast<std::size_t>(l)];
    std::int64_t const tokens = static_cast<std::int64_t>(keys.size()) / width;
    layers.push_back({{keys.data(), {tokens, width}}, {seen.values[static_cast<std::size_t>(l)].data(), {tokens, width}}});
  }
  pith::stream_options fitted, published = pith::cachegen;
  fitted.chunk = published.chunk = chunk;
  if (group > 0) fitted.group = group;
  for (pith::stream_options* o : {&fitted, &published}) {
    if (tables > 0) o->tables = tables;
    if (lossless_tables > 0) o->lossless_tables = lossless_tables;
  }
  struct {
    char const* name;
    pith::result<pith::stream_model> model;
  } const streams[] = {{"fitted", pith::stream_fit::fit(layers, fitted)}, {"published", pith::stream_fit::fit(layers, published)}};
  for (auto const& s : streams) {
    if (!s.model)
      return std::fprintf(stderr, "fit: %s at %lld\n", pith::message(s.model.error().code), static_cast<long long>(s.model.error().at)), 1;
    std::printf("model %-10s %lld bytes stored, shared by all chunks\n", s.name, static_cast<long long>(s.model.value().stored_bytes()));
  }

  std::vector<outcome> outcomes;
  auto const row = [&](std::string const& name, double bits_per_value, double bits) {
    auto at = std::find_if(outcomes.begin(), outcomes.end(), [&](outcome const& o) { return o.name == name; });
    if (at == outcomes.end()) at = outcomes.insert(outcomes.end(), outcome{name, 0, {}});
    at->bits_per_value += bits_per_value / windows;
    at->bits.push_back(bits);
  };
  double const values = 2.0 * c.layers * width * context;
  bool exact = true;
  for (std::string_view const window : held_out_windows(std::string_view(text).substr(for_calibration), c.context, windows)) {
    kv_rows rows, decoded;
    if (pith::status const s = record(model, window.substr(0, static_cast<std::size_t>(context)), rows); !s) return 1;
    row("as it was, f32", 32, continue_from(model, rows, window, context, continued));
    double const int8_bits = through_pages<pith::int8<pith::per_token<64>>>(c, rows, decoded);
    row("INT8 pages", int8_bits, continue_from(model, decoded, window, context, continued));
    double const int4_bits = through_pages<pith::int4<pith::per_token<64>>>(c, rows, decoded);
    row("INT4 pages", int4_bits, continue_from(model, decoded, window, context, continued));
    for (auto const& s : streams) {
      pith::stream_model const& shared = s.model.value();
      for (int level = 0; level <= shared.levels(); ++level) {
        bool const lossless = level == pith::lossless_level;
        if (lossless && &s != &streams[0]) continue;  // the same
        auto const bytes =
            lossless ? through<pith::bf16>(shared, level, rows, chunk, decoded) : through<float>(shared, level, rows, chunk, decoded);
        if (!bytes)
          return std::fprintf(stderr, "stream: %s at %lld\n", pith::message(bytes.error().code), static_cast<long long>(bytes.error().at)),
                 1;
        if (lossless)
          for (std::size_t l = 0; l < rows.keys.size(); ++l)
            for (std::size_t i = 0; i < rows.keys[l].size(); ++i)
              exact = exact && decoded.keys[l][i] == pith::to_float(pith::from_float<pith::bf16>(rows.keys[l][i])) &&
                      decoded.values[l][i] == pith::to_float(pith::from_float<pith::bf16>(rows.values[l][i]));
        char name[64];
        std::snprintf(name, sizeof name, lossless ? "lossless" : "%s %.2f", s.name,
                      lossless ? 0.0 : static_cast<double>(shared.factor(level)));
        row(name, 8.0 * static_cast<double>(bytes.value()) / values, continue_from(model, decoded, window, context, continued));
      }
    }
  }

  auto const mean = [](std::vector<double> const& of) {
    double sum = 0;
    for (double const x : of) sum += x / static_cast<double>(of.size());
    return sum;
  };
  double const reference = mean(outcomes[0].bits), int8 = outcomes[1].bits_per_value;
  double const limit = mean(outcomes[1].bits) + std::log2(1.01);
  std::printf("%d windows, %d tokens streamed and %d continued, chunks of %d tokens\n\n", windows, context,
              std::min(continued, c.context - context), chunk);
  std::printf("%-16s %14s %8s %8s %14s %22s\n", "stream", "bits per value", "to bf16", "to INT8", "bits per byte", "perplexity change, %");
  bool reached = false;
  for (outcome const& o : outcomes) {
    double const change = mean(o.bits) - reference;
    double square = 0;
    for (std::size_t i = 0; i < o.bits.size(); ++i) square += std::pow(o.bits[i] - outcomes[0].bits[i] - change, 2);
    double const count = static_cast<double>(o.bits.size()), error = count > 1 ? std::sqrt(square / count / (count - 1)) : 0;
    std::printf("%-16s %14.3f %8.2f %8.2f %14.4f %14.2f +- %.2f\n", o.name.c_str(), o.bits_per_value, 16 / o.bits_per_value,
                int8 / o.bits_per_value, mean(o.bits), 100 * (std::exp2(change) - 1), 100 * error * std::log(2.0));
    reached = reached || (int8 / o.bits_per_value >= 1.8 && mean(o.bits) <= limit);
  }
  if (!exact) std::printf("the lossless stream is not exact\n");
  return exact && reached ? 0 : 1;
}
