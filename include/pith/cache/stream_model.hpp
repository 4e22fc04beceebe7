// SPDX-License-Identifier: Apache-2.0
// What the two ends of a stream of keys and values share: how each channel is predicted, its bins, and the statistics of its symbols.
//
//   anchor       the first token of every `group`: u = rne((x - m) / a), x' = m + u a
//   other token  p = m (1 - r) + r y,  y: the decoded anchor of its group or the decoded token before;  u = rne((x - p) / w), x' = p + u w
//   level 0      lossless, of bf16 numbers; levels 1, 2, ...: w = width * factor of the level, coarser and coarser
//
// Per channel of keys and of values of each layer: the mean m, the weight r, the width, and the anchor's width a (times the level's factor,
// too, if anchor_follows). The numbers are bf16 so that u w and r y, with y cut to 16 significant bits, have no rounding: both ends predict
// alike whatever a compiler contracts. What |u| > 127 or a table does not cover is stored as it was, in f32.
//
// state   8 bytes a channel; per level a symbol_model with contexts [layer][anchor, other][keys, values], lossless [layer][keys, values]
// error   |x - x'| <= w (1/2 + 2^-16) + 2^-23 (|x| + |p|), exactly 0 for what was stored as it was, NaN and infinities included
// from    Liu et al., CacheGen, 2024, sections 5.2 and 5.3
#pragma once

#include "pith/codec/symbol_model.hpp"
#include "pith/core/rounding.hpp"
#include "pith/core/view.hpp"

namespace pith {

struct stream_shape {
  int layers = 0, key_channels = 0, value_channels = 0;  // channels of all heads of a layer
  constexpr int channels() const { return key_channels + value_channels; }
  friend constexpr bool operator==(stream_shape const&, stream_shape const&) = default;
};

enum class stream_reference : std::uint8_t { anchor, previous };

inline constexpr int stream_tokens = 256;  // most tokens of a chunk, and of a group
inline constexpr int stream_lanes = 16;    // channels that are predicted together
inline constexpr int lossless_level = 0;

class stream_model {
 public:
  static constexpr char magic[9] = "PITHSM01";
  static constexpr int most_levels = 15;  // besides the lossless one
  static constexpr std::int64_t head_bytes = 32;

  struct channel {
    bf16 mean, weight, width, anchor_width;
  };
  struct terms {  // of stream_lanes channels at one level
    float mean[stream_lanes], offset[stream_lanes], weight[stream_lanes];
    struct bins {
      float width[stream_lanes], inverse[stream_lanes];
      std::int32_t low[stream_lanes], high[stream_lanes];  // u that have a symbol
    } anchor, other;
  };

  static result<stream_model> read(std::span<std::byte const> from) {
    auto const size = static_cast<std::int64_t>(from.size());
    if (size < head_bytes + 8) return status{errc::truncated, size};
    if (std::memcmp(from.data(), magic, 8) != 0) return status{errc::bad_format, 0};
    stream_model out;
    std::int64_t const sizes[] = {load_le<std::uint32_t>(from.data() + 8), load_le<std::uint32_t>(from.data() + 12),
                                  load_le<std::uint32_t>(from.data() + 16)};
    for (int i = 0; i < 3; ++i)
      if (sizes[i] < 1 || sizes[i] > 1 << 16) return status{errc::bad_format, 8 + 4 * i};
    out.shape_ = {static_cast<int>(sizes[0]), static_cast<int>(sizes[1]), static_cast<int>(sizes[2])};
    out.group_ = load_le<std::uint16_t>(from.data() + 20);
    if (out.group_ < 1 || out.group_ > stream_tokens) return status{errc::bad_format, 20};
    auto const byte = [&](std::int64_t at) { return static_cast<int>(from[static_cast<std::size_t>(at)]); };
    if (byte(22) > 1) return status{errc::bad_format, 22};
    if (byte(23) > 1) return status{errc::bad_format, 23};
    out.reference_ = static_cast<stream_reference>(byte(22));
    out.anchor_follows_ = byte(23) == 1;
    if (byte(24) > most_levels) return status{errc::bad_format, 24};
    for (std::int64_t i = 25; i < head_bytes; ++i)
      if (byte(i) != 0) return status{errc::bad_format, i};
    std::int64_t at = head_bytes;
    std::int64_t const levels = byte(24), channels = sizes[0] * out.shape_.channels();
    if (size < at + 2 * levels + sizes[0] * 2 + 8 * channels + 8) return status{errc::truncated, size};  // before memory is taken for them
    auto const number = [&](float low, float high, bf16& to) {
      to = bf16{load_le<std::uint16_t>(from.data() + at)};
      at += 2;
      float const x = to_float(to);
      return is_finite(x) && x >= low && x <= high;
    };
    for (int i = 0; i < levels; ++i)
      if (bf16 factor; number(i == 0 ? smallest : out.factor(i), largest_width, factor))
        out.factors_.push_back(factor);
      else
        return status{errc::bad_format, at - 2};
    for (int i = 0; i < 2 * out.shape_.layers; ++i) out.tops_.push_back(static_cast<std::uint8_t>(byte(at++)));
    out.channels_.resize(static_cast<std::size_t>(channels));
    for (channel& c : out.channels_) {
      bool const good = number(-largest_mean, largest_mean, c.mean) && number(-1, 1, c.weight) &&
                        number(smallest, largest_width, c.width) && number(smallest, largest_width, c.anchor_width);
      if (!good) return status{errc::bad_format, at - 2};
    }
    for (int level = 0; level <= levels; ++level) {
      if (size < at + 8 + 8) return status{errc::truncated, size};
      std::uint64_t const bytes = load_le<std::uint64_t>(from.data() + at);
      at += 8;
      if (bytes > static_cast<std::uint64_t>(size - at - 8)) return status{errc::truncated, size};
      result<symbol_model> symbols = symbol_model::read(from.subspan(static_cast<std::size_t>(at), static_cast<std::size_t>(bytes)));
      if (!symbols) return status{symbols.error().code, at + symbols.error().at};
      if (symbols.value().contexts() != (level == lossless_level ? 1 : 2) * channels) return status{errc::bad_format, at + 8};
      out.symbols_.push_back(std::move(symbols).value());
      at += static_cast<std::int64_t>(bytes);
    }
    if (size != at + 8) return status{errc::bad_format, at};
    fingerprint all;
    all.add_bytes(from.data(), at);
    out.identity_ = all.value();
    if (load_le<std::uint64_t>(from.data() + at) != out.identity_) return status{errc::bad_format, at};
    return out;
  }

  std::int64_t stored_bytes() const {
    std::int64_t bytes =
        head_bytes + 2 * levels() + static_cast<std::int64_t>(tops_.size()) + 8 * static_cast<std::int64_t>(channels_.size()) + 8;
    for (symbol_model const& s : symbols_) bytes += 8 + s.stored_bytes();
    return bytes;
  }
  // to has stored_bytes() bytes.
  void write(std::byte* to) const {
    std::memcpy(to, magic, 8);
    store_le(to + 8, static_cast<std::uint32_t>(shape_.layers));
    store_le(to + 12, static_cast<std::uint32_t>(shape_.key_channels));
    store_le(to + 16, static_cast<std::uint32_t>(shape_.value_channels));
    store_le(to + 20, static_cast<std::uint16_t>(group_));
    to[22] = static_cast<std::byte>(reference_);
    to[23] = static_cast<std::byte>(anchor_follows_);
    to[24] = static_cast<std::byte>(levels());
    std::memset(to + 25, 0, 7);
    std::byte* at = to + head_bytes;
    auto const put = [&](bf16 x) { store_le(at, x.bits), at += 2; };
    for (bf16 const f : factors_) put(f);
    for (std::uint8_t const top : tops_) *at++ = static_cast<std::byte>(top);
    for (channel const& c : channels_) put(c.mean), put(c.weight), put(c.width), put(c.anchor_width);
    for (symbol_model const& s : symbols_) {
      store_le(at, static_cast<std::uint64_t>(s.stored_bytes()));
      s.write(at + 8);
      at += 8 + s.stored_bytes();
    }
    fingerprint all;
    all.add_bytes(to, at - to);
    store_le(at, all.value());
  }

  stream_shape const& shape() const { return shape_; }
  int levels() const { return static_cast<int>(factors_.size()); }  // lossy ones: 1 .. levels()
  float factor(int level) const { return to_float(factors_[static_cast<std::size_t>(level - 1)]); }
  int group() const { return group_; }
  stream_reference reference() const { return reference_; }
  std::uint64_t identity() const { return identity_; }
  symbol_model const& symbols(int level) const { return symbols_[static_cast<std::size_t>(level)]; }
  // The exponent field above which a bf16 number of a layer's keys (0) or values (1) has no lossless symbol.
  int top_exponent(int layer, int part) const { return tops_[static_cast<std::size_t>(2 * layer + part)]; }

  // c counts channels of keys, then of values.
  std::int64_t context(int level, int layer, bool other, int c) const {
    std::int64_t const row = level == lossless_level ? layer : 2ll * layer + other;
    return row * shape_.channels() + c;
  }
  symbol_model::table const& table(int level, int layer, bool other, int c) const {
    return symbols(level).of(context(level, layer, other, c));
  }

  // Of the channels c .. c + count - 1; lanes behind them repeat the last.
  terms terms_of(int level, int layer, int c, int count, bool with_symbols = true) const {
    terms t;
    float const by = factor(level);
    for (int i = 0; i < stream_lanes; ++i) {
      int const at = c + (i < count ? i : count - 1);
      channel const& from = channels_[static_cast<std::size_t>(layer * static_cast<std::int64_t>(shape_.channels()) + at)];
      t.mean[i] = to_float(from.mean);
      t.weight[i] = to_float(from.weight);
      double const pulled = static_cast<double>(t.weight[i]) * t.mean[i];  // exact
      t.offset[i] = static_cast<float>(t.mean[i] - pulled);
      if ((float_bits(t.offset[i]) & 0x7fffffffu) < float_bits(0x1p-80f)) t.offset[i] = 0;
      for (bool const other : {false, true}) {
        terms::bins& bins = other ? t.other : t.anchor;
        float const width = to_float(other ? from.width : from.anchor_width);
        bins.width[i] = other || anchor_follows_ ? to_float(from_float<bf16>(width * by)) : width;
        bins.inverse[i] = div_rn(1.0f, bins.width[i]);
        bins.low[i] = -middle, bins.high[i] = middle;
        if (with_symbols) {
          symbol_model::table const& with = table(level, layer, other, at);
          bins.low[i] = with.lowest - middle, bins.high[i] = with.highest - middle;
        }
      }
    }
    return t;
  }

  static constexpr int middle = 127;  // symbol of u = 0
  static constexpr float smallest = 0x1p-40f, largest_width = 0x1p40f, largest_mean = 0x1p60f;

 private:
  friend class stream_fit;

  void finish() {
    std::vector<std::byte> stored(static_cast<std::size_t>(stored_bytes()));
    write(stored.data());
    identity_ = load_le<std::uint64_t>(stored.data() + stored.size() - 8);
  }

  stream_shape shape_;
  int group_ = stream_tokens;
  stream_reference reference_ = stream_reference::previous;
  bool anchor_follows_ = true;
  std::vector<bf16> factors_;
  std::vector<std::uint8_t> tops_;
  std::vector<channel> channels_;
  std::vector<symbol_model> symbols_;
  std::uint64_t identity_ = 0;
};

}  // namespace pith
