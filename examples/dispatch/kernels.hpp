// SPDX-License-Identifier: Apache-2.0
// What the engine calls, whatever the instruction set: plain pointers and sizes only. No type or template of Pith or of the standard
// library crosses this border, because each variant has a copy of its own of those.
#pragma once

#include <cstdint>

namespace dispatch {

inline constexpr int head_dim = 64, kv_heads = 2, query_heads = 8, page_tokens = 64;

struct kernels {
  char const* instruction_set;
  std::int64_t page_bytes;  // of one KV head; the same bytes in every variant
  // rows [page_tokens][head_dim] -> page (64-byte aligned)
  void (*encode)(float const* keys, float const* values, unsigned char* page);
  // One query token over `tokens` tokens, whose pages lie one after another, [page][kv_head]; q and out [query_head][head_dim].
  // False if a size does not fit.
  bool (*attend)(unsigned char const* pages, std::int64_t tokens, float const* q, float* out);
};

}  // namespace dispatch

// One of kernels.cpp for each set of flags, named by CMake. These are the only names that the variants show to the linker.
extern "C" {
extern dispatch::kernels const pith_kernels_v2;
extern dispatch::kernels const pith_kernels_v3;
extern dispatch::kernels const pith_kernels_avx512;
}
