// SPDX-License-Identifier: Apache-2.0
// The numbers of a GGUF tensor: as f32, and as a packed_matrix that says the same numbers without another rounding.
//
//   decode(tensor, out)                     every number, bit for bit what ggml's dequantization gives
//   pack_into<type::q4_k>(tensor, memory)   codes move into tiles, scales go with them: packed_matrix<codec_of<type::q4_k>>
//
//   type        block              number                    codec_of                                     bits there, here
//   f32 f16 bf16                   x                         raw<float>, raw<f16>, raw<bf16>              the same
//   q8_0        d, 32 codes        (u - 128) d               int8<per_token<32>, zero::none>              8.5      8.5
//   q4_0 q5_0   d, 32 codes        (u - 2^(B-1)) d           int4, int5<per_token<32>, zero::none>        4.5 5.5  4.5 5.5
//   q4_1 q5_1   d, m, 32 codes     u d + m                   int4, int5<per_token<32>>                    5 6      5 6
//   q4_k q5_k   d, dmin, 8 groups  u (d sc) - dmin mc        int4, int5<per_token<32>, zero::real, float> 4.5 5.5  6 7
//   q6_k        d, 16 groups       (u - 32) (d sc)           int6<per_token<16>, zero::none, float>       6.5625   8
//
// u is an unsigned code, d, m and dmin are f16, sc and mc integers of 6 bits (q6_k: of 8, signed). d sc and dmin mc have at most 18 bits
// and products with codes at most 23, so all are exact in f32 and a number is rounded once, fused or not, in ggml as here. They have too
// many bits for f16, so the K types take f32 parameters and more bytes than they had; no codec here has two levels of scales. Decoding a
// tile gives those numbers bit for bit; a product is off by what packed_matrix states for its codec.
//
// errors  unsupported     no listed type, or another one than pack_into's; `at` is the tensor's type
//         shape_mismatch  `out`, or the tensor's bytes, are not as many as its shape says; `at` is how many they should be
//         pack_into also: those of packed_matrix::pack_into
// cost    pack_into: one scalar pass over the codes, 4 to 9 ns a number on a core; row blocks go to the executor
// from    https://github.com/ggml-org/ggml, ggml-common.h and ggml-quants.c
#pragma once

#include "pith/codec/integer.hpp"
#include "pith/codec/raw.hpp"
#include "pith/interop/gguf.hpp"
#include "pith/linear/packed_matrix.hpp"

namespace pith::gguf {

namespace detail {

constexpr f16 f16_at(std::byte const* from) noexcept { return f16{load_le<std::uint16_t>(from)}; }

constexpr std::uint32_t bits_at(std::byte const* from, int shift, std::uint32_t mask) noexcept {
  return static_cast<std::uint32_t>(*from) >> shift & mask;
}

// The code of 4 bits of number i of 32: the first 16 are low halves of bytes.
constexpr std::uint32_t half_of_32(std::byte const* from, int i) noexcept { return bits_at(from + i % 16, i / 16 * 4, 15); }

// The 6-bit scale and minimum of group g of 8 in 12 bytes: four scales and four minima whole, of the other four their low 4 bits, whose
// high 2 are above those of the first.
constexpr std::uint32_t k_scale(std::byte const* from, int g) noexcept {
  return g < 4 ? bits_at(from + g, 0, 63) : bits_at(from + 4 + g, 0, 15) | bits_at(from + g - 4, 6, 3) << 4;
}
constexpr std::uint32_t k_minimum(std::byte const* from, int g) noexcept {
  return g < 4 ? bits_at(from + 4 + g, 0, 63) : bits_at(from + 4 + g, 4, 15) | bits_at(from + g, 6, 3) << 4;
}

// How a type says its numbers: code(block, i), and of each group scale(block, g) and, if it has one, minimum(block, g).
template <type Type>
struct block;

template <int Bits, int Group, zero Zero, class Scale>
struct coded {
  static constexpr int group = Group;
  static constexpr zero zero_kind = Zero;
  using scale_type = Scale;
  using codec = integer<Bits, per_token<Group>, Zero, Scale>;
};

template <>
struct block<type::q8_0> : coded<8, 32, zero::none, f16> {
  static constexpr std::uint32_t code(std::byte const* b, int i) noexcept { return static_cast<std::uint32_t>(b[2 + i]) ^ 128; }
  static constexpr f16 scale(std::byte const* b, int) noexcept { return f16_at(b); }
};
template <>
struct block<type::q4_0> : coded<4, 32, zero::none, f16> {
  static constexpr std::uint32_t code(std::byte const* b, int i) noexcept { return half_of_32(b + 2, i); }
  static constexpr f16 scale(std::byte const* b, int) noexcept { return f16_at(b); }
};
template <>
struct block<type::q4_1> : coded<4, 32, zero::real, f16> {
  static constexpr std::uint32_t code(std::byte const* b, int i) noexcept { return half_of_32(b + 4, i); }
  static constexpr f16 scale(std::byte const* b, int) noexcept { return f16_at(b); }
  static constexpr f16 minimum(std::byte const* b, int) noexcept { return f16_at(b + 2); }
};
template <>
struct block<type::q5_0> : coded<5, 32, zero::none, f16> {
  static constexpr std::uint32_t code(std::byte const* b, int i) noexcept {
    return half_of_32(b + 6, i) | bits_at(b + 2 + i / 8, i % 8, 1) << 4;
  }
  static constexpr f16 scale(std::byte const* b, int) noexcept { return f16_at(b); }
};
template <>
struct block<type::q5_1> : coded<5, 32, zero::real, f16> {
  static constexpr std::uint32_t code(std::byte const* b, int i) noexcept {
    return half_of_32(b + 8, i) | bits_at(b + 4 + i / 8, i % 8, 1) << 4;
  }
  static constexpr f16 scale(std::byte const* b, int) noexcept { return f16_at(b); }
  static constexpr f16 minimum(std::byte const* b, int) noexcept { return f16_at(b + 2); }
};

struct k_scales {
  static constexpr float scale(std::byte const* b, int g) noexcept { return to_float(f16_at(b)) * static_cast<float>(k_scale(b + 4, g)); }
  static constexpr float minimum(std::byte const* b, int g) noexcept {
    return -(to_float(f16_at(b + 2)) * static_cast<float>(k_minimum(b + 4, g)));
  }
};
template <>
struct block<type::q4_k> : coded<4, 32, zero::real, float>, k_scales {
  static constexpr std::uint32_t code(std::byte const* b, int i) noexcept {
    return bits_at(b + 16 + i / 64 * 32 + i % 32, i / 32 % 2 * 4, 15);
  }
};
template <>
struct block<type::q5_k> : coded<5, 32, zero::real, float>, k_scales {
  static constexpr std::uint32_t code(std::byte const* b, int i) noexcept {
    return bits_at(b + 48 + i / 64 * 32 + i % 32, i / 32 % 2 * 4, 15) | bits_at(b + 16 + i % 32, i / 32, 1) << 4;
  }
};
template <>
struct block<type::q6_k> : coded<6, 16, zero::none, float> {
  static constexpr std::uint32_t code(std::byte const* b, int i) noexcept {
    int const half = i / 128, r = i % 128;
    return bits_at(b + half * 64 + r % 64, r / 64 * 4, 15) | bits_at(b + 128 + half * 32 + r % 32, r / 32 * 2, 3) << 4;
  }
  static constexpr float scale(std::byte const* b, int g) noexcept {
    return to_float(f16_at(b + 208)) * static_cast<float>(static_cast<std::int8_t>(b[192 + g]));
  }
};

template <class T>
struct plain {
  using scalar = T;
  using codec = raw<T>;
};
template <>
struct block<type::f32> : plain<float> {};
template <>
struct block<type::f16> : plain<f16> {};
template <>
struct block<type::bf16> : plain<bf16> {};

template <class Block>
inline constexpr bool is_plain = requires {
  typename Block::scalar;
};

template <class T>
constexpr T scalar_at(std::byte const* from) noexcept {
  if constexpr (sizeof(T) == 4)
    return bits_float(load_le<std::uint32_t>(from));
  else
    return T{load_le<std::uint16_t>(from)};
}

inline status check(tensor const& t) noexcept {
  block_shape const b = shape_of(t.type);
  std::int64_t const wanted = b.bytes == 0 ? 0 : t.rows() * (t.columns() / b.elements) * b.bytes;
  if (b.bytes == 0 || t.columns() % b.elements != 0) return {errc::shape_mismatch, wanted};
  return static_cast<std::int64_t>(t.bytes.size()) == wanted ? status{} : status{errc::shape_mismatch, wanted};
}

template <type Type>
void decode_blocks(std::byte const* from, std::span<float> out) noexcept {
  using block = detail::block<Type>;
  constexpr block_shape shape = shape_of(Type);
  float* to = out.data();
  for (float* const end = to + out.size(); to != end; from += shape.bytes) {
    if constexpr (is_plain<block>) {
      *to++ = to_float(scalar_at<typename block::scalar>(from));
    } else {
      using tile = typename block::codec::template bind<block::group, block_tokens, use::dot>;
      for (int i = 0; i < shape.elements; i += block::group) {
        float const scale = to_float(block::scale(from, i / block::group));
        float minimum = 0;
        if constexpr (block::zero_kind == zero::real) minimum = to_float(block::minimum(from, i / block::group));
        for (int k = 0; k < block::group; ++k) {
          int const u = static_cast<int>(block::code(from, i + k));
          if constexpr (block::zero_kind == zero::real)
            *to++ = tile::times_plus(u, scale, minimum);
          else
            *to++ = static_cast<float>(u - tile::middle) * scale;
        }
      }
    }
  }
}

// A group, from number i of a block on, becomes that of a tile from (token, channel) on.
template <class Block, class Tile>
constexpr void set_group(std::byte const* from, int i, int token, int channel, std::byte* out) noexcept {
  using scale = typename Block::scale_type;
  for (int k = 0; k < Block::group; ++k) Tile::layout::set(out, token, channel + k, Block::code(from, i + k));
  std::int64_t const at = Tile::parameter_index(token, channel) * static_cast<std::int64_t>(sizeof(scale));
  store_scalar<scale>(out + Tile::scale_at + at, Block::scale(from, i / Block::group));
  if constexpr (Block::zero_kind == zero::real) store_scalar<scale>(out + Tile::zero_at + at, Block::minimum(from, i / Block::group));
}

}  // namespace detail

// The codec whose numbers are those of a type, bit for bit.
template <type Type>
using codec_of = typename detail::block<Type>::codec;

template <type Type, use Use = use::dot>
using matrix_of = packed_matrix<codec_of<Type>, Use>;

// Every number of a tensor of a type that is listed above.
inline status decode(tensor const& from, std::span<float> out) noexcept {
  if (status const ok = detail::check(from); !ok) return ok;
  if (from.elements() != static_cast<std::int64_t>(out.size())) return {errc::shape_mismatch, from.elements()};
  std::byte const* const bytes = from.bytes.data();
  switch (from.type) {
    case type::f32: return detail::decode_blocks<type::f32>(bytes, out), status{};
    case type::f16: return detail::decode_blocks<type::f16>(bytes, out), status{};
    case type::bf16: return detail::decode_blocks<type::bf16>(bytes, out), status{};
    case type::q8_0: return detail::decode_blocks<type::q8_0>(bytes, out), status{};
    case type::q4_0: return detail::decode_blocks<type::q4_0>(bytes, out), status{};
    case type::q4_1: return detail::decode_blocks<type::q4_1>(bytes, out), status{};
    case type::q5_0: return detail::decode_blocks<type::q5_0>(bytes, out), status{};
    case type::q5_1: return detail::decode_blocks<type::q5_1>(bytes, out), status{};
    case type::q4_k: return detail::decode_blocks<type::q4_k>(bytes, out), status{};
    case type::q5_k: return detail::decode_blocks<type::q5_k>(bytes, out), status{};
    case type::q6_k: return detail::decode_blocks<type::q6_k>(bytes, out), status{};
    default: return {errc::unsupported, static_cast<std::int64_t>(from.type)};
  }
}

// The tensor as a matrix [rows()][columns()] over `memory`, which matrix_of<Type, Use>::bound_bytes(rows, columns) bytes of are written.
template <type Type, use Use = use::dot, executor Executor = serial>
result<matrix_of<Type, Use>> pack_into(tensor const& from, std::span<std::byte> memory, Executor&& run = {}) noexcept {
  using matrix = matrix_of<Type, Use>;
  using tile = typename matrix::tile;
  using block = detail::block<Type>;
  constexpr block_shape shape = shape_of(Type);
  constexpr std::int64_t step = [] {
    if constexpr (detail::is_plain<block>)
      return 1;
    else
      return block::group;
  }();
  static_assert(tile::tokens == block_tokens && tile::channels % step == 0);
  if (from.type != Type) return status{errc::unsupported, static_cast<std::int64_t>(from.type)};
  if (status const ok = detail::check(from); !ok) return ok;
  std::int64_t const rows = from.rows(), columns = from.columns(), row_bytes = columns / shape.elements * shape.bytes;
  auto const opened = matrix::open(memory, rows, columns);
  if (!opened) return opened.error().code == errc::truncated ? status{errc::capacity_exceeded, opened.error().at} : opened.error();

  std::int64_t const panels = divide_up(columns, tile::channels);
  std::byte empty[tile::bytes];  // what lies behind the last row and column is as packing fills it up
  {
    float const zeros[tile::tokens * tile::channels] = {};
    tile::encode(zeros, empty);
  }
  run.for_each(divide_up(rows, tile::tokens), [&](std::int64_t row_block) {
    for (std::int64_t panel = 0; panel < panels; ++panel) {
      std::byte* const out = memory.data() + (row_block * panels + panel) * tile::bytes;
      std::copy_n(empty, tile::bytes, out);
      for (std::int64_t r = row_block * tile::tokens; r < rows && r < (row_block + 1) * tile::tokens; ++r)
        for (std::int64_t c = panel * tile::channels; c < columns && c < (panel + 1) * tile::channels; c += step) {
          std::byte const* const b = from.bytes.data() + r * row_bytes + c / shape.elements * shape.bytes;
          int const token = static_cast<int>(r - row_block * tile::tokens), channel = static_cast<int>(c - panel * tile::channels);
          if constexpr (detail::is_plain<block>)
            tile::set(out, token, channel, detail::scalar_at<typename block::scalar>(b));
          else
            detail::set_group<block, tile>(b, static_cast<int>(c % shape.elements), token, channel, out);
        }
    }
  });
  return matrix::open(memory, rows, columns);
}

}  // namespace pith::gguf
