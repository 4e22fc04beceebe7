// SPDX-License-Identifier: Apache-2.0
// Compiled once for each set of flags; KERNELS is the name of this variant's table.
//
// No object with a constructor at namespace scope, and nothing that brings one along (<iostream> does): it would run at start in every
// variant, those that the processor cannot run included.
#include "kernels.hpp"

#include <pith/pith.hpp>

#include <cstddef>
#include <vector>

namespace {

using page = pith::kv_page<pith::int4<pith::per_token<64>>, pith::int4<pith::per_token<64>>, dispatch::head_dim, dispatch::head_dim,
                           dispatch::page_tokens>;

#define TEXT_OF(x) #x
#define TEXT(x) TEXT_OF(x)

void encode(float const* keys, float const* values, unsigned char* to) {
  std::byte* const out = reinterpret_cast<std::byte*>(to);
  for (int t = 0; t < page::tokens; t += page::key_tile::tokens)
    page::key_tile::encode(keys + t * dispatch::head_dim, out + page::key_tile_at(t));
  for (int t = 0; t < page::tokens; t += page::value_tile::tokens)
    page::value_tile::encode(values + t * dispatch::head_dim, out + page::value_tile_at(t));
}

bool attend(unsigned char const* pages, std::int64_t tokens, float const* q, float* out) {
  if (tokens <= 0) return false;
  std::int64_t const blocks = pith::divide_up(tokens, page::tokens);
  std::vector<std::uint32_t> indices;  // an engine has them already; here its templates show that std's are apart too
  for (std::int64_t i = 0; i < blocks; ++i) indices.push_back(static_cast<std::uint32_t>(i));
  std::int64_t const indptr[] = {0, blocks}, q_indptr[] = {0, 1};
  std::int32_t const last_page_len[] = {static_cast<std::int32_t>((tokens - 1) % page::tokens + 1)};
  pith::paged_view<page> const view{.base = reinterpret_cast<std::byte const*>(pages), .block_stride = dispatch::kv_heads * page::bytes,
                                    .head_stride = page::bytes, .blocks = blocks, .kv_heads = dispatch::kv_heads, .indptr = indptr,
                                    .indices = indices, .last_page_len = last_page_len};
  return static_cast<bool>(pith::paged_attention<pith::integer_accuracy>(
      pith::cpu{}, view, q_indptr, pith::tensor_view<float const, 3>(q, {1, dispatch::query_heads, dispatch::head_dim}),
      pith::tensor_view<float, 3>(out, {1, dispatch::query_heads, dispatch::head_dim})));
}

}  // namespace

extern "C" constexpr dispatch::kernels KERNELS{TEXT(PITH_ISA), page::bytes, &encode, &attend};
