// SPDX-License-Identifier: Apache-2.0
// Chunks of a compressed KV stream: the keys and values of a run of tokens of one layer as bytes that can be decoded alone. Layers of the
// same tokens are chunks of their own, so that the first can be used while the others are on their way; each may have another level.
//
//   0    "PKVS"
//   4    1: version 1;  5: level;  6: coding, 0 symbols, 1 numbers as they are (f32, lossless bf16);  7: 0
//   8    2 tokens;  10: 2 zero;  12: 4 layer;  16: 4, 4 channels of keys, of values
//   24   8 position of the first token
//   32   8 identity of the stream_model
//   40   8 bytes of the chunk
//   48   8 check: of all bytes but its own, as words of 8 bytes (the last with zeros behind), FNV-1a of words instead of bytes
//   56   lossless: 5 lower bits of each number, [channel][token], ceil(5 tokens / 8) bytes a channel
//        8 rANS states of 4 bytes, then words: for each channel the anchors and the others (lossless: all tokens)
//
// Little-endian. docs/formats/stream.md says it with pictures.
//
// bytes   at most 56 and the numbers as they are: 4 each, lossless 2
// errors  of encode  shape_mismatch, out_of_range (layer, level, more than 256 tokens), unsupported (lossless, but not bf16),
// capacity_exceeded
//         of decode  truncated, bad_format (at: the byte), wrong_format (another stream_model), shape_mismatch (rows of other extents);
//                    with a right check over wrong contents, rows may have been written before an error is found
// nan     any number passes: what has no symbol is stored as it was
// cost    no allocation; 40 KiB of stack
// from    Liu et al., CacheGen, 2024; differs: see stream_fit.hpp; one chunk is one layer; statistics are never in the chunk
#pragma once

#include "pith/cache/stream_block.hpp"
#include "pith/codec/symbol_coder.hpp"

namespace pith {

struct stream_chunk {
  int layer = 0, level = 0, tokens = 0;
  std::int64_t first_token = 0, bytes = 0;
  bool as_is = false;
};

class kv_stream {
 public:
  static constexpr char magic[5] = "PKVS";
  static constexpr std::int64_t header_bytes = 56;

  explicit kv_stream(stream_model const& model) : model_(&model) {}

  // What encode needs room for; a chunk is at most header_bytes and the numbers long.
  static std::int64_t bound_bytes(stream_shape const& shape, int level, int tokens) {
    return header_bytes + number_bytes(level) * tokens * shape.channels() + symbol_states_bytes + 16;
  }

  // Encodes the tokens first_token, first_token + 1, ... of a layer: their bytes. T is float, bf16 or f16.
  template <storage_scalar T>
  result<std::int64_t> encode(int level, int layer, std::int64_t first_token, matrix_view<T const> keys, matrix_view<T const> values,
                              std::span<std::byte> out) const {
    stream_shape const& shape = model_->shape();
    if (level < 0 || level > model_->levels()) return status{errc::out_of_range, level};
    if (layer < 0 || layer >= shape.layers) return status{errc::out_of_range, layer};
    if (keys.extent[0] > stream_tokens) return status{errc::out_of_range, keys.extent[0]};
    if (keys.extent[1] != shape.key_channels) return status{errc::shape_mismatch, keys.extent[1]};
    if (values.extent[1] != shape.value_channels) return status{errc::shape_mismatch, values.extent[1]};
    if (values.extent[0] != keys.extent[0]) return status{errc::shape_mismatch, values.extent[0]};
    if (level == lossless_level && !std::is_same_v<T, bf16>) return status{errc::unsupported, level};
    int const tokens = static_cast<int>(keys.extent[0]);
    std::int64_t const bound = bound_bytes(shape, level, tokens), numbers = number_bytes(level) * tokens * shape.channels();
    if (static_cast<std::int64_t>(out.size()) < bound) return status{errc::capacity_exceeded, bound};

    // The symbols are written from the end of `out` downwards and moved where they belong.
    std::byte* const body = out.data() + header_bytes;
    std::byte* const plain_end = body + (level == lossless_level ? plain_bytes(tokens) * shape.channels() : 0);
    symbol_writer writer(plain_end, out.data() + bound);
    for (int part = 1; part >= 0 && tokens > 0; --part) {
      if (level == lossless_level) {
        if constexpr (std::is_same_v<T, bf16>) write_lossless(layer, part, part == 0 ? keys : values, body, writer);
      } else {
        write_part(level, layer, part, part == 0 ? keys : values, writer);
      }
    }
    std::byte* const coded = writer.finish();
    std::int64_t const coded_bytes = plain_end - body + (out.data() + bound - coded);
    bool const as_is = writer.full() || coded_bytes >= numbers;
    if (as_is) {
      std::byte* at = body;
      for (auto const* rows : {&keys, &values})
        for (int t = 0; t < tokens; ++t)
          for (std::int64_t c = 0; c < rows->extent[1]; ++c, at += number_bytes(level)) {
            if constexpr (std::is_same_v<T, bf16>)
              if (level == lossless_level) {
                store_scalar<bf16>(at, (*rows)(t, c));
                continue;
              }
            store_scalar<float>(at, to_float((*rows)(t, c)));
          }
    } else {
      std::memmove(plain_end, coded, static_cast<std::size_t>(out.data() + bound - coded));
    }
    stream_chunk const chunk{layer, level, tokens, first_token, header_bytes + (as_is ? numbers : coded_bytes), as_is};
    write_header(chunk, out.data());
    store_le(out.data() + check_at, check_of(out.data(), chunk.bytes));
    return chunk.bytes;
  }

  // The header of the chunk that `from` begins with; more may follow it, the next at chunk.bytes.
  result<stream_chunk> peek(std::span<std::byte const> from) const {
    auto const size = static_cast<std::int64_t>(from.size());
    if (size < header_bytes) return status{errc::truncated, size};
    stream_shape const& shape = model_->shape();
    std::byte const* const at = from.data();
    if (std::memcmp(at, magic, 4) != 0) return status{errc::bad_format, 0};
    if (at[4] != std::byte{1}) return status{errc::bad_format, 4};
    if (load_le<std::uint64_t>(at + 32) != model_->identity()) return status{errc::wrong_format, 32};
    int const level = static_cast<int>(at[5]), tokens = load_le<std::uint16_t>(at + 8);
    std::uint32_t const layer = load_le<std::uint32_t>(at + 12);
    if (level > model_->levels()) return status{errc::bad_format, 5};
    if (at[6] > std::byte{1}) return status{errc::bad_format, 6};
    if (at[7] != std::byte{0}) return status{errc::bad_format, 7};
    if (tokens > stream_tokens) return status{errc::bad_format, 8};
    if (load_le<std::uint16_t>(at + 10) != 0) return status{errc::bad_format, 10};
    if (layer >= static_cast<std::uint32_t>(shape.layers)) return status{errc::bad_format, 12};
    if (load_le<std::uint32_t>(at + 16) != static_cast<std::uint32_t>(shape.key_channels)) return status{errc::bad_format, 16};
    if (load_le<std::uint32_t>(at + 20) != static_cast<std::uint32_t>(shape.value_channels)) return status{errc::bad_format, 20};
    if (at[31] > std::byte{0x7f}) return status{errc::bad_format, 24};
    bool const as_is = at[6] == std::byte{1};
    std::uint64_t const bytes = load_le<std::uint64_t>(at + 40);
    std::int64_t const most = header_bytes + number_bytes(level) * tokens * shape.channels();
    std::int64_t const least = header_bytes + symbol_states_bytes + (level == lossless_level ? plain_bytes(tokens) * shape.channels() : 0);
    if (as_is ? bytes != static_cast<std::uint64_t>(most)
              : bytes < static_cast<std::uint64_t>(least) || bytes >= static_cast<std::uint64_t>(most))
      return status{errc::bad_format, 40};
    if (bytes > from.size()) return status{errc::truncated, size};
    return stream_chunk{static_cast<int>(layer),          level, tokens, static_cast<std::int64_t>(load_le<std::uint64_t>(at + 24)),
                        static_cast<std::int64_t>(bytes), as_is};
  }

  // Decodes the chunk that `from` begins with; the rows have its tokens and the model's channels.
  template <storage_scalar T>
  result<stream_chunk> decode(std::span<std::byte const> from, matrix_view<T> keys, matrix_view<T> values) const {
    result<stream_chunk> const read = peek(from);
    if (!read) return read;
    stream_chunk const chunk = read.value();
    stream_shape const& shape = model_->shape();
    for (auto const* rows : {&keys, &values}) {
      if (rows->extent[0] != chunk.tokens) return status{errc::shape_mismatch, rows->extent[0]};
      if (rows->extent[1] != (rows == &keys ? shape.key_channels : shape.value_channels))
        return status{errc::shape_mismatch, rows->extent[1]};
    }
    if (load_le<std::uint64_t>(from.data() + check_at) != check_of(from.data(), chunk.bytes)) return status{errc::bad_format, check_at};
    std::byte const *at = from.data() + header_bytes, *const end = from.data() + chunk.bytes;
    if (chunk.as_is) {
      for (auto const* rows : {&keys, &values})
        for (int t = 0; t < chunk.tokens; ++t)
          for (std::int64_t c = 0; c < rows->extent[1]; ++c, at += number_bytes(chunk.level))
            (*rows)(t, c) = chunk.level == lossless_level ? as<T>(bf16{load_le<std::uint16_t>(at)}) : from_float<T>(load_scalar<float>(at));
      return chunk;
    }
    std::byte const* const plain = at;
    if (chunk.level == lossless_level) at += plain_bytes(chunk.tokens) * shape.channels();
    symbol_reader reader;
    if (!reader.start(at, end)) return status{errc::bad_format, at - from.data()};
    for (int part = 0; part < 2; ++part)
      if (chunk.level == lossless_level)
        read_lossless(chunk.layer, part, part == 0 ? keys : values, plain, reader);
      else
        read_part(chunk.level, chunk.layer, part, part == 0 ? keys : values, reader);
    if (!reader.finished()) return status{errc::bad_format, chunk.bytes};
    return chunk;
  }

 private:
  static constexpr int exact_bits = 32;
  static constexpr std::int64_t check_at = 48;
  static std::uint64_t check_of(std::byte const* chunk, std::int64_t bytes) {
    std::uint64_t value = 0xcbf29ce484222325ull;
    auto const add = [&](std::uint64_t word) { value = (value ^ word) * 0x100000001b3ull; };
    for (std::int64_t at = 0; at < check_at; at += 8) add(load_le<std::uint64_t>(chunk + at));
    std::int64_t at = header_bytes;
    for (; at + 8 <= bytes; at += 8) add(load_le<std::uint64_t>(chunk + at));
    std::uint64_t last = 0;
    for (int i = 0; at < bytes; ++at, ++i) last |= static_cast<std::uint64_t>(chunk[at]) << (8 * i);
    add(last);
    return value;
  }
  static constexpr std::int64_t number_bytes(int level) { return level == lossless_level ? 2 : 4; }
  static constexpr std::int64_t plain_bytes(int tokens) { return (lossless_symbol::plain_bits * tokens + 7) / 8; }  // of a channel

  template <class T>
  static T as(bf16 x) {
    if constexpr (std::is_same_v<T, bf16>)
      return x;  // every bit
    else
      return from_float<T>(to_float(x));
  }

  void write_header(stream_chunk const& chunk, std::byte* to) const {
    std::memset(to, 0, header_bytes);
    std::memcpy(to, magic, 4);
    to[4] = std::byte{1};
    to[5] = static_cast<std::byte>(chunk.level);
    to[6] = static_cast<std::byte>(chunk.as_is);
    store_le(to + 8, static_cast<std::uint16_t>(chunk.tokens));
    store_le(to + 12, static_cast<std::uint32_t>(chunk.layer));
    store_le(to + 16, static_cast<std::uint32_t>(model_->shape().key_channels));
    store_le(to + 20, static_cast<std::uint32_t>(model_->shape().value_channels));
    store_le(to + 24, static_cast<std::uint64_t>(chunk.first_token));
    store_le(to + 32, model_->identity());
    store_le(to + 40, static_cast<std::uint64_t>(chunk.bytes));
  }

  // first channel of a part, counted with keys before values
  int first_of(int part) const { return part == 0 ? 0 : model_->shape().key_channels; }

  template <class T>
  void write_part(int level, int layer, int part, matrix_view<T const> rows, symbol_writer& writer) const {
    stream_block block;
    int const tokens = static_cast<int>(rows.extent[0]), channels = static_cast<int>(rows.extent[1]),
              anchors = stream_block::anchors(tokens, model_->group());
    for (int c = (channels - 1) / stream_lanes * stream_lanes; c >= 0 && !writer.full(); c -= stream_lanes) {
      int const lanes = std::min(stream_lanes, channels - c);
      for (int t = 0; t < tokens; ++t) {
        T const* const from = &rows(t, c);
        if (lanes == stream_lanes && rows.stride[1] == 1)
          block.load(t, from);
        else
          for (int i = 0; i < stream_lanes; ++i) block.x[t][i] = i < lanes ? to_float(from[i * rows.stride[1]]) : 0.0f;
      }
      block.quantize(model_->terms_of(level, layer, first_of(part) + c, lanes), tokens, model_->group(), model_->reference());
      for (int i = lanes - 1; i >= 0; --i)
        for (bool const other : {true, false}) {
          int const first = other ? anchors : 0, count = other ? tokens - anchors : anchors;
          writer.run<exact_bits>(
              model_->table(level, layer, other, first_of(part) + c + i), count, [&](int n) { return block.symbol[first + n][i]; },
              [&](int n) { return float_bits(block.exact[first + n][i]); });
        }
    }
  }
  template <class T>
  void read_part(int level, int layer, int part, matrix_view<T> rows, symbol_reader& reader) const {
    stream_block block;
    int const tokens = static_cast<int>(rows.extent[0]), channels = static_cast<int>(rows.extent[1]),
              anchors = stream_block::anchors(tokens, model_->group());
    for (int c = 0; c < channels; c += stream_lanes) {
      int const lanes = std::min(stream_lanes, channels - c);
      for (int i = 0; i < lanes; ++i)
        for (bool const other : {false, true}) {
          int const first = other ? anchors : 0, count = other ? tokens - anchors : anchors;
          reader.run<exact_bits>(
              model_->table(level, layer, other, first_of(part) + c + i), count,
              [&](int n, std::uint8_t s) { block.symbol[first + n][i] = s; },
              [&](int n, std::uint32_t bits) { block.exact[first + n][i] = bits_float(bits); });
        }
      for (int i = lanes; i < stream_lanes; ++i)
        for (int t = 0; t < tokens; ++t) block.symbol[t][i] = stream_model::middle;
      block.restore(model_->terms_of(level, layer, first_of(part) + c, lanes), tokens, model_->group(), model_->reference());
      for (int t = 0; t < tokens; ++t) {
        T* const to = &rows(t, c);
        if (lanes == stream_lanes && rows.stride[1] == 1)
          block.store(t, to);
        else
          for (int i = 0; i < lanes; ++i) to[i * rows.stride[1]] = from_float<T>(block.x[t][i]);
      }
    }
  }

  // Columns of bf16 numbers are taken sixteen at a time: a column of rows alone would read a line of memory for each number.
  void write_lossless(int layer, int part, matrix_view<bf16 const> rows, std::byte* plain, symbol_writer& writer) const {
    std::uint16_t x[stream_lanes][stream_tokens];
    int const tokens = static_cast<int>(rows.extent[0]), channels = static_cast<int>(rows.extent[1]),
              top = model_->top_exponent(layer, part);
    for (int first = (channels - 1) / stream_lanes * stream_lanes; first >= 0 && !writer.full(); first -= stream_lanes) {
      int const lanes = std::min(stream_lanes, channels - first);
      for (int t = 0; t < tokens; ++t)
        for (int i = 0; i < lanes; ++i) x[i][t] = rows(t, first + i).bits;
      for (int i = lanes - 1; i >= 0; --i) {
        int const c = first_of(part) + first + i;
        std::byte* const to = plain + plain_bytes(tokens) * c;
        for (int t = 0; t < tokens; t += 8) {
          std::uint64_t packed = 0;
          for (int n = 0; n < 8 && t + n < tokens; ++n) packed |= std::uint64_t{x[i][t + n] & 31u} << (5 * n);
          for (std::int64_t n = 0, at = 5ll * (t / 8); n < 5 && at + n < plain_bytes(tokens); ++n)
            to[at + n] = static_cast<std::byte>(packed >> (8 * n) & 0xff);
        }
        writer.run<lossless_symbol::upper_bits>(
            model_->table(lossless_level, layer, true, c), tokens, [&](int t) { return lossless_symbol::of(x[i][t], top); },
            [&](int t) { return static_cast<std::uint32_t>(x[i][t] >> lossless_symbol::plain_bits); });
      }
    }
  }
  template <class T>
  void read_lossless(int layer, int part, matrix_view<T> rows, std::byte const* plain, symbol_reader& reader) const {
    std::uint16_t x[stream_lanes][stream_tokens], upper[symbol_model::symbols];
    int const tokens = static_cast<int>(rows.extent[0]), channels = static_cast<int>(rows.extent[1]),
              top = model_->top_exponent(layer, part);
    for (int s = 0; s < symbol_model::symbols; ++s)
      upper[s] = static_cast<std::uint16_t>(lossless_symbol::upper(s, top) << lossless_symbol::plain_bits);
    for (int first = 0; first < channels; first += stream_lanes) {
      int const lanes = std::min(stream_lanes, channels - first);
      for (int i = 0; i < lanes; ++i) {
        int const c = first_of(part) + first + i;
        std::byte const* const from = plain + plain_bytes(tokens) * c;
        std::uint32_t escaped = 0;
        reader.run<lossless_symbol::upper_bits>(
            model_->table(lossless_level, layer, true, c), tokens,
            [&](int t, std::uint8_t s) { x[i][t] = static_cast<std::uint16_t>(s == symbol_model::escape ? escaped : upper[s]); },
            [&](int, std::uint32_t bits) { escaped = bits << lossless_symbol::plain_bits; });
        for (int t = 0; t < tokens; t += 8) {
          std::uint64_t packed = 0;
          for (std::int64_t n = 0, at = 5ll * (t / 8); n < 5 && at + n < plain_bytes(tokens); ++n)
            packed |= static_cast<std::uint64_t>(from[at + n]) << (8 * n);
          for (int n = 0; n < 8 && t + n < tokens; ++n) x[i][t + n] = static_cast<std::uint16_t>(x[i][t + n] | (packed >> (5 * n) & 31u));
        }
      }
      for (int t = 0; t < tokens; ++t)
        for (int i = 0; i < lanes; ++i) rows(t, first + i) = as<T>(bf16{x[i][t]});
    }
  }

  stream_model const* model_;
};

}  // namespace pith
