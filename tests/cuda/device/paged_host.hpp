// SPDX-License-Identifier: Apache-2.0
// Pages of ragged sequences in host memory, to be copied to a device, and what they decode to.
#pragma once

#include <cstdint>
#include <numeric>
#include <utility>
#include <vector>

#include "pith/codec/kv_page.hpp"
#include "tests/support/digest.hpp"

namespace pith_test {

// Ragged sequences in pages in random order.
template <class Page>
struct paged_host {
  std::vector<std::int64_t> lengths, indptr{0};
  std::vector<std::uint32_t> indices;
  std::vector<std::int32_t> last_page_len;
  std::vector<std::byte> bytes;
  std::vector<std::vector<float>> keys, values;  // [sequence * heads + head][token][channel], decoded
  int heads;
  std::int64_t head_stride = Page::bytes, block_stride, blocks = 0;

  paged_host(std::vector<std::int64_t> tokens, int kv_heads, random_bits& random)
      : lengths(std::move(tokens)), heads(kv_heads), block_stride(head_stride * kv_heads) {
    for (std::int64_t const n : lengths) blocks += pith::divide_up(n, Page::tokens);
    blocks += 2;
    bytes.assign(static_cast<std::size_t>(blocks * block_stride), std::byte{0xff});
    std::vector<std::uint32_t> order(static_cast<std::size_t>(blocks));
    std::iota(order.begin(), order.end(), 0u);
    for (std::size_t i = order.size() - 1; i > 0; --i) std::swap(order[i], order[random() % (i + 1)]);
    for (std::int64_t const n : lengths) {
      std::int64_t const pages = pith::divide_up(n, Page::tokens);
      last_page_len.push_back(static_cast<std::int32_t>(pages == 0 ? 0 : n - (pages - 1) * Page::tokens));
      for (std::int64_t i = 0; i < pages; ++i) indices.push_back(order[indices.size()]);
      indptr.push_back(indptr.back() + pages);
      for (int h = 0; h < heads; ++h) {
        keys.emplace_back(), values.emplace_back();
        for (std::int64_t i = indptr[indptr.size() - 2]; i < indptr.back(); ++i) {
          std::byte* const page = bytes.data() + indices[static_cast<std::size_t>(i)] * block_stride + h * head_stride;
          fill<typename Page::key_tile>(page, keys.back(), random);
          fill<typename Page::value_tile>(page + Page::values_at, values.back(), random);
        }
      }
    }
  }

 private:
  template <class Tile>
  static void fill(std::byte* at, std::vector<float>& decoded, random_bits& random) {
    std::vector<float> rows(static_cast<std::size_t>(Tile::tokens) * Tile::channels), back(rows.size());
    for (int t = 0; t < Page::tokens; t += Tile::tokens, at += Tile::bytes) {
      for (std::size_t i = 0; i < rows.size(); ++i) rows[i] = 2 * random.uniform() + (i % Tile::channels == 5 ? 4.0f : 0.0f);
      Tile::encode(rows.data(), at);
      Tile::decode(at, back.data());
      decoded.insert(decoded.end(), back.begin(), back.end());
    }
  }
};

}  // namespace pith_test
