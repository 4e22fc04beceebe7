// SPDX-License-Identifier: Apache-2.0
// Layers of pages as the attention benchmarks read them: 8 KV heads, head_dim 128, [layer][head][page], streamed from memory.
#pragma once

#include <cstring>
#include <numeric>
#include <random>

#include "machine.hpp"
#include "pith/pith.hpp"

namespace bench {

inline constexpr int head_dim = 128, query_heads = 32, kv_heads = 8, group = query_heads / kv_heads;
inline constexpr std::int64_t streamed = 256 << 20;  // bytes of layers that are visited in turn: more than any cache

// Gaussian numbers; keys have one channel eight times larger than the others.
inline std::vector<float> numbers(std::int64_t count, unsigned seed, bool keys = false) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> x(static_cast<std::size_t>(count));
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = normal(random) * (keys && i % head_dim == 17 ? 8.0f : 1.0f);
  return x;
}

template <class Page>
void encode_page(float const* k, float const* v, std::byte* page) {
  using key_tile = typename Page::key_tile;
  using value_tile = typename Page::value_tile;
  for (int t = 0; t < Page::tokens; t += key_tile::tokens) key_tile::encode(k + t * head_dim, page + Page::key_tile_at(t));
  for (int t = 0; t < Page::tokens; t += value_tile::tokens) value_tile::encode(v + t * head_dim, page + Page::value_tile_at(t));
}

// `tokens` tokens of one head, encoded one page after the other.
template <class Page>
void encode_tokens(std::vector<float> const& k, std::vector<float> const& v, int tokens, std::byte* pages) {
  for (int t = 0; t < tokens; t += Page::tokens)
    encode_page<Page>(&k[static_cast<std::size_t>(t) * head_dim], &v[static_cast<std::size_t>(t) * head_dim],
                      pages + t / Page::tokens * Page::bytes);
}

// One arena for all compositions: its pages are touched once, not by every benchmark. Null where it is too small.
inline constexpr std::int64_t arena_bytes = 3 * streamed / 2;
inline std::byte* arena(std::int64_t bytes, bool on_huge_pages) {
  if (bytes > arena_bytes) return nullptr;
  static std::byte* const large = huge(arena_bytes);
  if (on_huge_pages) return large;
  static std::byte* const normal = small(arena_bytes);
  return normal;
}

struct page_order {
  std::int64_t tokens = 32768;
  bool random = false;              // order of the pages of a head
  bool on_huge_pages = true;        // of the operating system
  std::int64_t visited = streamed;  // bytes of layers, at least; 0: one layer
};

// What a paged_view of one sequence points to.
template <class Page>
struct pages_of_layers {
  std::int64_t pages, layers, layer_bytes;
  std::byte* memory;
  std::vector<std::uint32_t> order;
  std::vector<std::int64_t> indptr;
  std::vector<std::int32_t> last;

  explicit pages_of_layers(page_order const& as) : pages(as.tokens / Page::tokens) {
    layer_bytes = pages * kv_heads * Page::bytes;
    layers = std::max<std::int64_t>(1, (as.visited + layer_bytes - 1) / layer_bytes);
    memory = arena(layers * layer_bytes, as.on_huge_pages);
    order.resize(static_cast<std::size_t>(pages));
    std::iota(order.begin(), order.end(), 0u);
    if (as.random) std::shuffle(order.begin(), order.end(), std::mt19937(3));
    indptr = {0, pages};
    last = {Page::tokens};
    if (memory == nullptr) return;
    constexpr int different = 1024;  // tokens
    static std::vector<std::byte> const sample = [] {
      std::vector<std::byte> made(different / Page::tokens * Page::bytes);
      encode_tokens<Page>(numbers(different * head_dim, 1, true), numbers(different * head_dim, 2), different, made.data());
      return made;
    }();
    for (std::int64_t at = 0; at < layers * layer_bytes; at += static_cast<std::int64_t>(sample.size()))
      std::memcpy(memory + at, sample.data(), std::min(sample.size(), static_cast<std::size_t>(layers * layer_bytes - at)));
  }
  pith::paged_view<Page> layer(std::int64_t i) const {
    return {.base = memory + i * layer_bytes,
            .block_stride = Page::bytes,
            .head_stride = pages * Page::bytes,
            .blocks = pages,
            .kv_heads = kv_heads,
            .indptr = indptr,
            .indices = order,
            .last_page_len = last};
  }
};

}  // namespace bench
