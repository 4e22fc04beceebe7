// SPDX-License-Identifier: Apache-2.0
// Sixteen channels of a chunk: rows to symbols and back, all tokens of them, channels side by side. Both directions take the same steps, so
// that the decoder's predictions are the encoder's, bit for bit.
#pragma once

#include "pith/cache/stream_model.hpp"

// A loop over lanes is to become vector code; g++ would first write sixteen steps out one by one.
#if defined(__GNUC__) && !defined(__clang__)
#define PITH_LANES _Pragma("GCC unroll 1")
#else
#define PITH_LANES
#endif

namespace pith {

struct stream_block {
  // Tokens in the order of their symbols: anchors first, then the others, each in the order of time.
  float x[stream_tokens][stream_lanes];              // by token
  std::uint8_t symbol[stream_tokens][stream_lanes];  // by place
  float exact[stream_tokens][stream_lanes];          // by place: what stands behind an escape

  // A whole row of lanes, from and to numbers that lie side by side.
  template <class T>
  void load(int t, T const* from) {
    PITH_LANES
    for (int i = 0; i < stream_lanes; ++i) x[t][i] = to_float(from[i]);
  }
  template <class T>
  void store(int t, T* to) const {
    PITH_LANES
    for (int i = 0; i < stream_lanes; ++i) to[i] = from_float<T>(x[t][i]);
  }

  static constexpr int anchors(int tokens, int group) { return (tokens + group - 1) / group; }

  // x to symbols. x becomes what a decoder will have.
  void quantize(stream_model::terms const& with, int tokens, int group, stream_reference reference) {
    walk(
        tokens, group, reference,
        [&](int t, int place, float const* p, stream_model::terms::bins const& bins) {
          float from[stream_lanes], to[stream_lanes];  // locals, so that compilers see that nothing overlaps
          std::int32_t code[stream_lanes];
          std::memcpy(from, x[t], sizeof from);
          PITH_LANES
          for (int i = 0; i < stream_lanes; ++i) {
            std::uint32_t const scaled = float_bits((from[i] - p[i]) * bins.inverse[i]);
            // On bits: a NaN or an infinity is beyond, under every compiler flag; and no product is merged into the sum that rounds.
            std::uint32_t const within = -static_cast<std::uint32_t>((scaled & 0x7fffffffu) < float_bits(stream_model::middle + 0.5f));
            std::int32_t const u = round_even(bits_float(scaled & within));
            std::uint32_t const decoded = float_bits(p[i] + static_cast<float>(u) * bins.width[i]);  // the product is exact
            std::uint32_t const coded =
                within & -static_cast<std::uint32_t>(u >= bins.low[i]) & -static_cast<std::uint32_t>(u <= bins.high[i]);
            code[i] =
                static_cast<std::int32_t>((static_cast<std::uint32_t>(u + stream_model::middle) & coded) | (symbol_model::escape & ~coded));
            to[i] = bits_float((decoded & coded) | (float_bits(from[i]) & ~coded));
          }
          PITH_LANES
          for (int i = 0; i < stream_lanes; ++i) symbol[place][i] = static_cast<std::uint8_t>(code[i]);
          std::memcpy(exact[place], from, sizeof from);
          std::memcpy(x[t], to, sizeof to);
        },
        with);
  }
  // Symbols to x.
  void restore(stream_model::terms const& with, int tokens, int group, stream_reference reference) {
    walk(
        tokens, group, reference,
        [&](int t, int place, float const* p, stream_model::terms::bins const& bins) {
          float to[stream_lanes], as_it_was[stream_lanes];
          std::int32_t code[stream_lanes];
          PITH_LANES
          for (int i = 0; i < stream_lanes; ++i) code[i] = symbol[place][i];
          std::memcpy(as_it_was, exact[place], sizeof to);
          PITH_LANES
          for (int i = 0; i < stream_lanes; ++i) {
            float const decoded = p[i] + static_cast<float>(code[i] - stream_model::middle) * bins.width[i];
            std::uint32_t const escaped = -static_cast<std::uint32_t>(code[i] == symbol_model::escape);
            to[i] = bits_float((float_bits(decoded) & ~escaped) | (float_bits(as_it_was[i]) & escaped));
          }
          std::memcpy(x[t], to, sizeof to);
        },
        with);
  }

 private:
  template <class Step>
  void walk(int tokens, int group, stream_reference reference, Step&& step, stream_model::terms const& with) {
    int anchor = 0, other = anchors(tokens, group);
    for (int first = 0; first < tokens; first += group) {
      int const end = first + group < tokens ? first + group : tokens;
      step(first, anchor++, with.mean, with.anchor);
      for (int t = first + 1; t < end; ++t) {
        float p[stream_lanes], y[stream_lanes];
        std::memcpy(y, x[reference == stream_reference::anchor ? first : t - 1], sizeof y);
        PITH_LANES
        for (int i = 0; i < stream_lanes; ++i) {
          // 16 significant bits times the weight's 8 are exact; what is huge or no number predicts nothing.
          std::uint32_t const bits = float_bits(y[i]), usable = -static_cast<std::uint32_t>((bits & 0x7fffffffu) <= float_bits(0x1p100f));
          p[i] = with.offset[i] + with.weight[i] * bits_float(bits & 0xffffff00u & usable);
        }
        settle(p);  // rounded before it is used: no flag may merge the sums
        step(t, other++, p, with.other);
      }
    }
  }
};

// bf16 without loss: a symbol for sign, exponent and the two upper bits of the mantissa, and the five lower bits as they are.
//
//   m = 4 (exponent - top + 30) + mantissa / 32, in [0, 124);  symbol = m, negative: 247 - m;  otherwise the escape and the upper 11 bits
struct lossless_symbol {
  static constexpr int plain_bits = 5, upper_bits = 11, window = 31;

  static constexpr int of(std::uint16_t bits, int top) noexcept {
    int const m = (bits >> plain_bits & 0x3ff) - 4 * (top - window + 1);
    return m < 0 || m >= 4 * window ? symbol_model::escape : bits >> 15 ? 8 * window - 1 - m : m;
  }
  // The upper 11 bits.
  static constexpr std::uint16_t upper(int symbol, int top) noexcept {
    bool const negative = symbol >= 4 * window;
    int const m = negative ? 8 * window - 1 - symbol : symbol;
    return static_cast<std::uint16_t>(((m + 4 * (top - window + 1)) & 0x3ff) | negative << 10);
  }
};

}  // namespace pith

#undef PITH_LANES
