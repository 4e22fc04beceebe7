// SPDX-License-Identifier: Apache-2.0
// 64 bf16 numbers of codec/dynamic_float.hpp as bytes, back into the words of a raw tile, and the bits that stand for their high bytes.
//
//   join_bytes       rest = low byte, symbol = high byte
//   join_exponents   low byte = symbol's bit 7, rest's bits 6..0; high byte = rest's bit 7, symbol's bits 6..0
//
// expands_bytes: bytes go to the places of a mask, and bits turn into bytes (AVX-512 VBMI2, GFNI).
#pragma once

#include <array>
#include <bit>

#include "pith/simd/vec.hpp"

namespace pith {
inline namespace PITH_ISA {
namespace simd {

inline constexpr int group_words = 32 / width;  // vectors of a group's 32 words

// 16-bit halves, modulo 2^16.
PITH_INLINE u32v add16(u32v a, u32v b) {
#if defined(__AVX512BW__) && !defined(PITH_NO_SIMD)
  return u32v(_mm512_add_epi16(a, b));
#elif defined(__AVX2__) && !defined(PITH_NO_SIMD)
  return u32v(_mm256_add_epi16(a, b));
#else
  u32v const low(0x7fff7fffu), top(0x80008000u);
  return ((a & low) + (b & low)) ^ ((a ^ b) & top);
#endif
}

#if defined(__AVX512BW__) && !defined(PITH_NO_SIMD)
struct bytes64 {
  __m512i bytes;
};
PITH_INLINE bytes64 load_bytes64(void const* from) { return {_mm512_loadu_si512(from)}; }

PITH_INLINE void join_bytes(bytes64 rest, bytes64 symbol, u32v (&words)[group_words]) {
  words[0] = u32v(_mm512_unpacklo_epi8(rest.bytes, symbol.bytes));
  words[1] = u32v(_mm512_unpackhi_epi8(rest.bytes, symbol.bytes));
}
PITH_INLINE void join_exponents(bytes64 rest, bytes64 symbol, u32v (&words)[group_words]) {
  __m512i const top = _mm512_set1_epi8(static_cast<char>(0x80));
  join_bytes({_mm512_ternarylogic_epi64(top, symbol.bytes, rest.bytes, 0xca)}, {_mm512_ternarylogic_epi64(top, rest.bytes, symbol.bytes, 0xca)},
             words);
}
PITH_INLINE void store_bytes64(void* to, bytes64 x) { _mm512_storeu_si512(to, x.bytes); }
// 0x80, 1 and 2 where planes 0, 1 and 2 have a bit.
PITH_INLINE bytes64 plane_bytes(std::uint64_t const (&plane)[3]) {
  __m512i const signs = _mm512_maskz_mov_epi8(plane[0], _mm512_set1_epi8(static_cast<char>(0x80)));
  __m512i const low = _mm512_mask_add_epi8(signs, plane[1], signs, _mm512_set1_epi8(1));
  return {_mm512_mask_add_epi8(low, plane[2], low, _mm512_set1_epi8(2))};
}
// The same from 24 bytes of planes, and where plane 1 and 2 both have a bit, `three` below 0x80.
PITH_INLINE bytes64 code_bytes(std::byte const* planes, std::uint8_t three) {
  std::uint64_t const plane[3]{load_le<std::uint64_t>(planes), load_le<std::uint64_t>(planes + 8), load_le<std::uint64_t>(planes + 16)};
  __m512i const bytes = plane_bytes(plane).bytes;
  return {_mm512_mask_add_epi8(bytes, plane[1] & plane[2], bytes, _mm512_set1_epi8(static_cast<char>(three - 3)))};
}
#elif defined(__AVX2__) && !defined(PITH_NO_SIMD)
struct bytes64 {
  __m256i first, second;  // no array: g++ 12 tuned for AVX2 in general would copy it in halves
};
PITH_INLINE bytes64 load_bytes64(void const* from) {
  auto const* const at = static_cast<__m256i const*>(from);
  return {_mm256_loadu_si256(at), _mm256_loadu_si256(at + 1)};
}
PITH_INLINE void store_bytes64(void* to, bytes64 x) {
  _mm256_storeu_si256(static_cast<__m256i*>(to), x.first);
  _mm256_storeu_si256(static_cast<__m256i*>(to) + 1, x.second);
}
PITH_INLINE void join_bytes(bytes64 rest, bytes64 symbol, u32v (&words)[group_words]) {
  words[0] = u32v(_mm256_unpacklo_epi8(rest.first, symbol.first));
  words[1] = u32v(_mm256_unpacklo_epi8(rest.second, symbol.second));
  words[2] = u32v(_mm256_unpackhi_epi8(rest.first, symbol.first));
  words[3] = u32v(_mm256_unpackhi_epi8(rest.second, symbol.second));
}
// Where mask has bits a's, elsewhere b's.
PITH_INLINE __m256i bits_of_either(__m256i mask, __m256i a, __m256i b) {
  return _mm256_or_si256(_mm256_and_si256(mask, a), _mm256_andnot_si256(mask, b));
}
PITH_INLINE void join_exponents(bytes64 rest, bytes64 symbol, u32v (&words)[group_words]) {
  __m256i const top = _mm256_set1_epi8(static_cast<char>(0x80));
  join_bytes({bits_of_either(top, symbol.first, rest.first), bits_of_either(top, symbol.second, rest.second)},
             {bits_of_either(top, rest.first, symbol.first), bits_of_either(top, rest.second, symbol.second)}, words);
}
// Byte i is 0xff where bit i is set.
PITH_INLINE __m256i bit_bytes(std::uint32_t bits) {
  __m256i const place = _mm256_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3);
  __m256i const bit = _mm256_set1_epi64x(static_cast<long long>(0x8040201008040201u));
  __m256i const bytes = _mm256_shuffle_epi8(_mm256_set1_epi32(static_cast<int>(bits)), place);
  return _mm256_cmpeq_epi8(_mm256_and_si256(bytes, bit), bit);
}
// Numbers 32 Half to 32 Half + 31: planes 0 and 1 are in the halves of a, 1 and 2 in those of b; 128 bits twice.
template <int Half>
PITH_INLINE __m256i code_bytes32(__m256i a, __m256i b, __m256i h) {
  __m256i const eight = _mm256_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3);
  __m256i const at = _mm256_add_epi8(eight, _mm256_set1_epi8(4 * Half)), behind = _mm256_add_epi8(at, _mm256_set1_epi8(8));
  __m256i const bit = _mm256_set1_epi64x(static_cast<long long>(0x8040201008040201u));
  __m256i const sign = _mm256_and_si256(_mm256_cmpeq_epi8(_mm256_and_si256(_mm256_shuffle_epi8(a, at), bit), bit), _mm256_set1_epi8(static_cast<char>(0x80)));
  __m256i const low = _mm256_min_epu8(_mm256_and_si256(_mm256_shuffle_epi8(a, behind), bit), _mm256_set1_epi8(1));
  __m256i const high = _mm256_and_si256(_mm256_cmpeq_epi8(_mm256_and_si256(_mm256_shuffle_epi8(b, behind), bit), bit), _mm256_set1_epi8(2));
  return _mm256_or_si256(sign, _mm256_shuffle_epi8(h, _mm256_or_si256(low, high)));
}
// 0x80, 1 and 2 where planes 0, 1 and 2 of 24 bytes have a bit; where 1 and 2 both have one, `three` in place of 3.
PITH_INLINE bytes64 code_bytes(std::byte const* planes, std::uint8_t three) {
  __m256i const a = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<__m128i const*>(planes)));
  __m256i const b = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<__m128i const*>(planes + 8)));
  __m256i const h = _mm256_set1_epi32(static_cast<int>(0x20100u | static_cast<std::uint32_t>(three) << 24));
  return {code_bytes32<0>(a, b, h), code_bytes32<1>(a, b, h)};
}
#else
struct bytes64 {
  std::uint8_t byte[64];
};
PITH_INLINE bytes64 load_bytes64(void const* from) {
  bytes64 x;
  std::memcpy(x.byte, from, 64);
  return x;
}
PITH_INLINE void store_bytes64(void* to, bytes64 const& x) { std::memcpy(to, x.byte, 64); }
PITH_INLINE void join_bytes(bytes64 const& rest, bytes64 const& symbol, u32v (&words)[group_words]) {
  std::uint32_t lanes[32];
  for (int lane = 0; lane < 32; ++lane) {
    int const j = lane % 16 / 4 * 16 + lane / 16 * 8 + lane % 4 * 2;
    lanes[lane] = static_cast<std::uint32_t>(rest.byte[j] | symbol.byte[j] << 8) | static_cast<std::uint32_t>(rest.byte[j + 1] | symbol.byte[j + 1] << 8) << 16;
  }
  for (int v = 0; v < group_words; ++v) words[v] = u32v::load_unaligned(lanes + v * width);
}
PITH_INLINE void join_exponents(bytes64 rest, bytes64 symbol, u32v (&words)[group_words]) {
  for (int j = 0; j < 64; ++j) {
    std::uint8_t const off = (rest.byte[j] ^ symbol.byte[j]) & 0x80u;
    rest.byte[j] ^= off;
    symbol.byte[j] ^= off;
  }
  join_bytes(rest, symbol, words);
}
#endif

// deposits_bits: the i-th set bit of a mask takes bit i of other bits (BMI2; fast from Haswell and Zen 3 on).
#if defined(__AVX2__) && defined(__BMI2__) && defined(__x86_64__) && !defined(PITH_NO_SIMD)
inline constexpr bool deposits_bits = true;
PITH_INLINE std::uint64_t deposit(std::uint64_t bits, std::uint64_t mask) { return _pdep_u64(bits, mask); }
// g++ 12 gives std::countr_zero a branch for none.
PITH_INLINE unsigned lowest_bit(std::uint64_t bits) { return static_cast<unsigned>(_tzcnt_u64(bits)); }
#else  // what follows is named in code that is not compiled then
inline constexpr bool deposits_bits = false;
std::uint64_t deposit(std::uint64_t, std::uint64_t);
unsigned lowest_bit(std::uint64_t);
bytes64 code_bytes(std::byte const*, std::uint8_t);
#endif

#if defined(__AVX512VBMI__) && defined(__AVX512VBMI2__) && defined(__GFNI__) && !defined(PITH_NO_SIMD)
inline constexpr bool expands_bytes = true;

// The symbols of a group: bits 7, 0 and 1 from the planes of 64 bits, and where the last two have one, the next of `escapes` added.
PITH_INLINE bytes64 window_symbols(std::byte const* planes, std::uint64_t escaped, std::uint8_t const* escapes) {
  // Eight matrices of 8 x 8 bits, transposed by a product with the identity. Row 0 gives bit 7, rows 6 and 7 bits 1 and 0.
  alignas(64) static constexpr auto rows = [] {
    std::array<std::uint8_t, 64> from{};
    for (std::size_t i = 0; i < 8; ++i) {
      from[8 * i] = static_cast<std::uint8_t>(i);
      from[8 * i + 6] = static_cast<std::uint8_t>(16 + i);
      from[8 * i + 7] = static_cast<std::uint8_t>(8 + i);
    }
    return from;
  }();
  __m512i const three = _mm512_castsi256_si512(_mm256_loadu_si256(reinterpret_cast<__m256i const*>(planes)));
  __m512i const matrix = _mm512_maskz_permutexvar_epi8(0xc1c1c1c1c1c1c1c1u, _mm512_load_si512(rows.data()), three);
  __m512i const codes = _mm512_gf2p8affine_epi64_epi8(_mm512_set1_epi64(static_cast<long long>(0x8040201008040201u)), matrix, 0);
  __m512i next = _mm512_loadu_si512(escapes);
  asm("" : "+v"(next));  // expanding from memory waits for it: 2.7 times as long when it is not in the cache
  return {_mm512_add_epi8(codes, _mm512_maskz_expand_epi8(escaped, next))};
}

// to[i] = common[1 + code i], 64 codes of 2 bits; where the code is 3.
PITH_INLINE std::uint64_t look_up_codes(std::byte const* from, std::uint8_t const (&common)[4], std::uint8_t* to) {
  __m512i const four = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<__m128i const*>(from)));
  __m512i const two = _mm512_or_si512(four, _mm512_slli_epi32(four, 12));  // bits 3..0 at 0 and, 7..4, at 16
  __m512i const codes = _mm512_and_si512(_mm512_or_si512(two, _mm512_slli_epi32(two, 6)), _mm512_set1_epi8(3));
  std::uint32_t entries;
  std::memcpy(&entries, common, 4);
  _mm512_storeu_si512(to, _mm512_shuffle_epi8(_mm512_set1_epi32(static_cast<int>(entries >> 8)), codes));
  return _mm512_cmpeq_epi8_mask(codes, _mm512_set1_epi8(3));
}

// to[i] = the next of `from` where bit i is set, `otherwise` elsewhere.
PITH_INLINE void spread_bytes(std::uint64_t bits, std::uint8_t const* from, std::uint8_t otherwise, std::uint8_t* to) {
  __m512i next = _mm512_loadu_si512(from);
  asm("" : "+v"(next));
  _mm512_storeu_si512(to, _mm512_mask_expand_epi8(_mm512_set1_epi8(static_cast<char>(otherwise)), bits, next));
}

#else
inline constexpr bool expands_bytes = false;  // what follows is named in code that is not compiled then
bytes64 window_symbols(std::byte const*, std::uint64_t, std::uint8_t const*);
std::uint64_t look_up_codes(std::byte const*, std::uint8_t const (&)[4], std::uint8_t*);
void spread_bytes(std::uint64_t, std::uint8_t const*, std::uint8_t, std::uint8_t*);
#endif

}  // namespace simd
}  // namespace PITH_ISA
}  // namespace pith
