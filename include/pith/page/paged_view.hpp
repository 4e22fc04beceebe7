// SPDX-License-Identifier: Apache-2.0
// Many ragged sequences in the caller's own pages, in the usual CSR form.
//
//   pages of sequence s      indices[indptr[s]] ... indices[indptr[s+1] - 1], oldest first
//   its tokens               (pages - 1) * Page::tokens + last_page_len[s];   no pages: no tokens, last_page_len is 0
//   page i of KV head h      base + indices[i] * block_stride + h * head_stride      (bytes, 64-bit, multiples of 64)
//
// Slots behind a sequence's last token, up to the end of their tile, are multiplied by a weight of 0: they must decode to finite numbers,
// as zeros do and as every tile of a saturating codec does that was encoded whole.
//
// Of a codec of variable rate a page holds the tiles' fixed parts. A tile's tail lies where its tail_place says, relative to the tile, in
// any memory of the caller's, with tail_padding readable bytes behind it; whoever moves a page sets the distances again. Tiles are not
// checked here: those that others made must have passed Tile::check.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "pith/core/status.hpp"
#include "pith/core/view.hpp"

namespace pith {

// Where pages of `bytes` bytes may lie: a block's heads side by side in it, or all blocks of a head before those of the next.
// errors  misaligned (base or strides), shape_mismatch: pages would overlap
inline status check_page_strides(std::byte const* base, std::int64_t bytes, std::int64_t block_stride, std::int64_t head_stride,
                                 std::int64_t blocks, int kv_heads) {
  if (reinterpret_cast<std::uintptr_t>(base) % 64 != 0 || block_stride % 64 != 0 || head_stride % 64 != 0)
    return {errc::misaligned, block_stride};
  bool const heads_inside = block_stride >= head_stride * (kv_heads - 1) + bytes && (kv_heads == 1 || head_stride >= bytes);
  bool const heads_outside = block_stride >= bytes && head_stride >= block_stride * (blocks - 1) + bytes;
  return heads_inside || heads_outside ? status{} : status{errc::shape_mismatch, block_stride};
}

template <class Page, space Space = space::host>
struct paged_view {
  using page = Page;
  static constexpr pith::space memory = Space;

  std::byte const* base = nullptr;
  std::int64_t block_stride = 0;
  std::int64_t head_stride = 0;
  std::int64_t blocks = 0;  // indices are below it
  int kv_heads = 0;
  std::span<std::int64_t const> indptr{};         // [sequences + 1]
  std::span<std::uint32_t const> indices{};       // [pages]
  std::span<std::int32_t const> last_page_len{};  // [sequences]
  // Added to the scores of (KV head, page, slot), natural units, [kv_head][pages * Page::tokens]; -infinity removes a slot. Optional.
  tensor_view<float const, 2> bias{};
  typename Page::calibration states{};  // [kv_head], if a codec has calibrated numbers; read when the pages are, not copied

  std::int64_t sequences() const { return static_cast<std::int64_t>(last_page_len.size()); }
  std::int64_t tokens(std::int64_t sequence) const {
    std::int64_t const pages = indptr[sequence + 1] - indptr[sequence];
    return pages == 0 ? 0 : (pages - 1) * Page::tokens + last_page_len[sequence];
  }
  std::byte const* address(std::int64_t i, int head) const {
    return base + static_cast<std::int64_t>(indices[i]) * block_stride + head * head_stride;
  }

  // errors  shape_mismatch (indptr, spans), out_of_range (an index; `at` is its place), misaligned (base or strides)
  status check() const {
    if (kv_heads <= 0) return {errc::shape_mismatch, kv_heads};
    if (indptr.size() != last_page_len.size() + 1 || indptr[0] < 0) return {errc::shape_mismatch, static_cast<std::int64_t>(indptr.size())};
    if (status const ok = check_page_strides(base, Page::bytes, block_stride, head_stride, blocks, kv_heads); !ok) return ok;
    for (std::int64_t s = 0; s < sequences(); ++s) {
      std::int64_t const pages = indptr[s + 1] - indptr[s];
      if (pages < 0 || indptr[s + 1] > static_cast<std::int64_t>(indices.size())) return {errc::shape_mismatch, s};
      if (pages == 0 ? last_page_len[s] != 0 : last_page_len[s] < 1 || last_page_len[s] > Page::tokens) return {errc::out_of_range, s};
      for (std::int64_t i = indptr[s]; i < indptr[s + 1]; ++i)
        if (indices[i] >= blocks) return {errc::out_of_range, i};
    }
    if (bias.data != nullptr && (bias.extent[0] != kv_heads || bias.extent[1] < static_cast<std::int64_t>(indices.size()) * Page::tokens || bias.stride[1] != 1))
      return {errc::shape_mismatch, bias.extent[1]};
    return states.check_count(kv_heads);
  }
};

}  // namespace pith
