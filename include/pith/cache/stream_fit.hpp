// SPDX-License-Identifier: Apache-2.0
// Fits a stream_model to keys and values that a model made on text of the kind that will be streamed. Once, offline; in double precision,
// in the order of the rows.
//
//   m   the channel's mean                        r   1, or fitted: sum (x - m)(y - m) / sum (y - m)^2 over the tokens that are no anchors
//   w   unit * depth of the layer's third         unit: root mean square over the layer of x - m, or of x - y
//   a   mean over anchors of max |x - m| / 127    or w, if anchors have the level's bins
#pragma once

#include <array>
#include <cmath>
#include <memory>

#include "pith/cache/stream_block.hpp"

namespace pith {

struct stream_options {
  int group = stream_tokens;  // tokens from an anchor to the next; stream_tokens: one anchor a chunk
  stream_reference reference = stream_reference::previous;
  bool fitted_weights = true;        // false: 1, the difference itself
  bool unit_of_differences = false;  // false: the unit is the spread of the numbers
  bool anchors_of_8_bits = false;
  std::array<float, 3> depth = {1, 1, 1};  // bins of the first, second and last third of the layers
  std::array<float, 5> levels = {0.25f, 0.5f, 0.75f, 1.0f, 1.5f};
  int tables = 32, lossless_tables = 64;  // of frequencies, for each level
  int chunk = 128;                        // tokens: anchors are counted from each multiple of it
};
// As published: anchors in 8 bits every ten tokens, the others as differences to them, bins that grow with depth. The paper gives 0.5, 1
// and 1.5 without a unit; with the root mean square of the differences its figures come out. Its anchors have a scale for each token, these
// one for each layer.
inline constexpr stream_options cachegen{.group = 10,
                                         .reference = stream_reference::anchor,
                                         .fitted_weights = false,
                                         .unit_of_differences = true,
                                         .anchors_of_8_bits = true,
                                         .depth = {0.5f, 1, 1.5f}};

class stream_fit {
 public:
  struct rows {
    matrix_view<float const> keys, values;  // [token][channel] of one layer
  };

  // errors  shape_mismatch  layers of different sizes, or no tokens (at: the layer); out_of_range  an option; not_finite  (at: the layer)
  static result<stream_model> fit(std::span<rows const> layers, stream_options const& options = {}) {
    if (layers.empty()) return status{errc::shape_mismatch, 0};
    if (options.group < 1 || options.group > stream_tokens) return status{errc::out_of_range, options.group};
    if (options.chunk < 1 || options.chunk > stream_tokens) return status{errc::out_of_range, options.chunk};
    for (std::size_t l = 0; l < layers.size(); ++l) {
      bool const good = layers[l].keys.extent[0] > 0 && layers[l].keys.extent[0] == layers[l].values.extent[0] &&
                        layers[l].keys.extent[1] == layers[0].keys.extent[1] && layers[l].values.extent[1] == layers[0].values.extent[1] &&
                        layers[l].keys.extent[1] > 0 && layers[l].values.extent[1] > 0;
      if (!good) return status{errc::shape_mismatch, static_cast<std::int64_t>(l)};
    }
    stream_model out;
    out.shape_ = {static_cast<int>(layers.size()), static_cast<int>(layers[0].keys.extent[1]),
                  static_cast<int>(layers[0].values.extent[1])};
    out.group_ = options.group;
    out.reference_ = options.reference;
    out.anchor_follows_ = !options.anchors_of_8_bits;
    for (float const level : options.levels) {
      bf16 const factor = from_float<bf16>(level);
      bool const coarser = out.factors_.empty() || level > to_float(out.factors_.back());
      if (!is_finite(level) || !coarser || level < 0x1p-10f || level > 0x1p10f)
        return status{errc::out_of_range, static_cast<std::int64_t>(out.factors_.size())};
      out.factors_.push_back(factor);
    }
    for (int l = 0; l < out.shape_.layers; ++l) {
      float const depth = options.depth[static_cast<std::size_t>(l * 3 / out.shape_.layers)];
      for (int part = 0; part < 2; ++part)
        if (status const ok = measure(
                out, l, part == 0 ? layers[static_cast<std::size_t>(l)].keys : layers[static_cast<std::size_t>(l)].values, depth, options);
            !ok)
          return ok;
    }
    for (int level = 0; level <= out.levels(); ++level) {
      std::int64_t const contexts = (level == lossless_level ? 1ll : 2ll) * out.shape_.layers * out.shape_.channels();
      std::vector<std::uint32_t> counts(static_cast<std::size_t>(contexts) * symbol_model::symbols);
      for (int l = 0; l < out.shape_.layers; ++l)
        for (int part = 0; part < 2; ++part)
          count(out, level, l, part, part == 0 ? layers[static_cast<std::size_t>(l)].keys : layers[static_cast<std::size_t>(l)].values,
                options.chunk, counts);
      result<symbol_model> symbols =
          symbol_model::fit(counts, contexts, level == lossless_level ? options.lossless_tables : options.tables);
      if (!symbols) return symbols.error();
      out.symbols_.push_back(std::move(symbols).value());
    }
    out.finish();
    return out;
  }

 private:
  // The numbers of a layer's channels.
  static status measure(stream_model& out, int layer, matrix_view<float const> rows, float depth, stream_options const& options) {
    std::int64_t const tokens = rows.extent[0], channels = rows.extent[1];
    std::vector<double> means(static_cast<std::size_t>(channels));
    std::vector<float> weights(static_cast<std::size_t>(channels), 1.0f);
    double spread = 0, differences = 0;
    std::int64_t others = 0;
    int top = 0;
    for (std::int64_t c = 0; c < channels; ++c) {
      double sum = 0, square = 0, product = 0, reference_square = 0;
      for (std::int64_t t = 0; t < tokens; ++t) {
        if (!is_finite(rows(t, c))) return {errc::not_finite, layer};
        sum += static_cast<double>(rows(t, c));
        top = std::max(top, from_float<bf16>(rows(t, c)).bits >> 7 & 0xff);
      }
      double const mean = static_cast<double>(to_float(from_float<bf16>(static_cast<float>(sum / static_cast<double>(tokens)))));
      for (std::int64_t t = 0; t < tokens; ++t) {
        double const x = static_cast<double>(rows(t, c)) - mean;
        square += x * x;
        std::int64_t const place = t % options.chunk % options.group;
        if (place == 0) continue;
        double const y = static_cast<double>(rows(options.reference == stream_reference::anchor ? t - place : t - 1, c)) - mean;
        product += x * y;
        reference_square += y * y;
        differences += (x - y) * (x - y);
        ++others;
      }
      means[static_cast<std::size_t>(c)] = mean;
      spread += square;
      if (options.fitted_weights)
        weights[static_cast<std::size_t>(c)] =
            reference_square > 0 ? clamp(static_cast<float>(product / reference_square), -1.0f, 1.0f) : 0.0f;
    }
    double anchor_range = 0;
    std::int64_t anchors = 0;
    for (std::int64_t t = 0; t < tokens; ++t) {
      if (t % options.chunk % options.group != 0) continue;
      double most = 0;
      for (std::int64_t c = 0; c < channels; ++c)
        most = std::max(most, std::abs(static_cast<double>(rows(t, c)) - means[static_cast<std::size_t>(c)]));
      anchor_range += most;
      ++anchors;
    }
    double const square = options.unit_of_differences && others > 0 ? differences / static_cast<double>(others)
                                                                    : spread / static_cast<double>(tokens * channels);
    auto const stored = [](double width) {
      return from_float<bf16>(clamp(static_cast<float>(width), stream_model::smallest, stream_model::largest_width));
    };
    bf16 const width = stored(depth * std::sqrt(square));
    bf16 const anchor_width = options.anchors_of_8_bits ? stored(anchor_range / static_cast<double>(anchors) / 127) : width;
    for (std::int64_t c = 0; c < channels; ++c) {
      float const mean =
          clamp(static_cast<float>(means[static_cast<std::size_t>(c)]), -stream_model::largest_mean, stream_model::largest_mean);
      out.channels_.push_back({from_float<bf16>(mean), from_float<bf16>(weights[static_cast<std::size_t>(c)]), width, anchor_width});
    }
    out.tops_.push_back(static_cast<std::uint8_t>(std::max(top, lossless_symbol::window - 1)));
    return {};
  }

  // How often each symbol occurs, by context.
  static void count(stream_model const& model, int level, int layer, int part, matrix_view<float const> rows, int chunk,
                    std::vector<std::uint32_t>& counts) {
    auto const add = [&](bool other, std::int64_t c, int symbol) {
      int const at = static_cast<int>(c) + (part == 0 ? 0 : model.shape_.key_channels);
      ++counts[static_cast<std::size_t>(model.context(level, layer, other, at) * symbol_model::symbols + symbol)];
    };
    if (level == lossless_level) {
      for (std::int64_t t = 0; t < rows.extent[0]; ++t)
        for (std::int64_t c = 0; c < rows.extent[1]; ++c)
          add(true, c, lossless_symbol::of(from_float<bf16>(rows(t, c)).bits, model.top_exponent(layer, part)));
      return;
    }
    auto const block = std::make_unique<stream_block>();
    for (std::int64_t c = 0; c < rows.extent[1]; c += stream_lanes) {
      int const lanes = static_cast<int>(std::min<std::int64_t>(stream_lanes, rows.extent[1] - c));
      auto const terms = model.terms_of(level, layer, static_cast<int>(c) + (part == 0 ? 0 : model.shape_.key_channels), lanes, false);
      for (std::int64_t first = 0; first < rows.extent[0]; first += chunk) {
        int const tokens = static_cast<int>(std::min<std::int64_t>(chunk, rows.extent[0] - first));
        for (int t = 0; t < tokens; ++t)
          for (int i = 0; i < stream_lanes; ++i) block->x[t][i] = i < lanes ? rows(first + t, c + i) : 0.0f;
        block->quantize(terms, tokens, model.group(), model.reference());
        int const anchors = stream_block::anchors(tokens, model.group());
        for (int place = 0; place < tokens; ++place)
          for (int i = 0; i < lanes; ++i) add(place >= anchors, c + i, block->symbol[place][i]);
      }
    }
  }
};

}  // namespace pith
