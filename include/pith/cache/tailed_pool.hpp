// SPDX-License-Identifier: Apache-2.0
// A pool of pages whose tiles have tails, codecs of variable rate: pages and tails are extents of one heap, so that nothing divides the
// memory between them beforehand.
//
//   | page | page | ...                    free                    ... | tail | tail | tail |
//
// A page owns the extents that its tiles' places name, whatever stands there: the tail of a sealed tile, `bytes` long; or room for any
// tail, Tile::tail_bound, that was reserved for a tile to be sealed. Releasing the page releases them. A place of no bytes names none. So a
// tail is shared when its page is, and is copied with it; distances differ between copies, and nothing else does.
//
// Rule T1  seal cannot fail: room for the longest tail was reserved, and is traded for the bytes that were written.
// Rule T2  a tail begins a line of 64 bytes; up to tail_padding bytes behind it may be read, and are never used.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstring>

#include "pith/codec/kv_page.hpp"
#include "pith/page/extents.hpp"

namespace pith {

// Thread-safe for different pages, except for moving.
template <class Page>
  requires(Page::has_tails)
class tailed_pool {
 public:
  using token_range = typename Page::token_range;

  // errors  misaligned, out_of_range, out_of_memory: see extent_heap::make
  static result<tailed_pool> make(std::byte* memory, std::int64_t bytes) noexcept {
    auto heap = extent_heap::make(memory, bytes, std::max(Page::bytes, longest_tail));
    if (!heap) return heap.error();
    return tailed_pool(memory, std::move(heap).value());
  }

  tailed_pool(tailed_pool&& other) noexcept : memory_(other.memory_), heap_(std::move(other.heap_)), pages_(other.used_blocks()) {}

  // A page whose tiles have no tails. The hint of other pools is not needed: pages are cut from the front of free memory.
  // errors  capacity_exceeded  `at` is a page's bytes
  result<block_id> allocate(block_id = no_block) noexcept {
    auto const at = heap_.allocate(Page::bytes, extent_heap::end::front);
    if (!at) return at.error();
    Page::for_each_tailed_tile(at.value(), all, all, []<class Tile>(std::byte* tile) { forget(tile); });
    pages_.fetch_add(1, std::memory_order_relaxed);
    return block_id{static_cast<std::uint32_t>((at.value() - memory_) / extent_heap::granule)};
  }

  // Gives a page back, and what its tiles own.
  // errors  out_of_range  it is free already, or not of this pool; nothing was changed
  status release(block_id id) noexcept {
    if (!heap_.holds(address(id), Page::bytes)) return {errc::out_of_range, id.value};
    drop_tails(address(id), all, all);
    pages_.fetch_sub(1, std::memory_order_relaxed);
    return heap_.release(address(id), Page::bytes);
  }

  std::byte* address(block_id id) const noexcept { return memory_ + std::int64_t{id.value} * extent_heap::granule; }
  std::int64_t used_blocks() const noexcept { return pages_.load(std::memory_order_relaxed); }
  std::int64_t used_bytes() const noexcept { return heap_.used_bytes(); }  // of pages and tails

  // Gives back what tiles own that begin with these tokens.
  void drop_tails(std::byte* page, token_range keys, token_range values) noexcept {
    Page::for_each_tailed_tile(page, keys, values, [&]<class Tile>(std::byte* tile) { drop_tail(tile); });
  }

  // A page's copy, in a page that was just allocated: `keys` and `values` tokens of it are sealed. From no page: tiles of zeros.
  // errors  capacity_exceeded  no room for the tails; the page holds what was copied and may be released
  status copy(block_id to, block_id from, int keys, int values) noexcept {
    std::byte* const page = address(to);
    std::byte const* const source = from == no_block ? nullptr : address(from);
    if (source != nullptr)
      copy_fixed(to, source);
    else
      std::memset(page, 0, Page::bytes);
    status done;
    Page::for_each_tailed_tile(page, {0, keys}, {0, values}, [&]<class Tile>(std::byte* tile) {
      if (!done) return;
      if (source == nullptr) {
        bf16 const zeros[Tile::tokens * Tile::channels] = {};
        std::byte tail[Tile::tail_bound + tail_padding];
        std::int64_t const bytes = Tile::encode(zeros, tile, tail);
        done = add_tail(tile, tail, bytes);
      } else {
        std::byte const* const its_source = source + (tile - page);
        done = add_tail(tile, tail_place::tail(its_source), tail_place::of(its_source).bytes);
      }
    });
    return done;
  }

  // A page's bytes into one that was just allocated, without any tails.
  void copy_fixed(block_id to, std::byte const* from) noexcept {
    std::memcpy(address(to), from, Page::bytes);
    Page::for_each_tailed_tile(address(to), all, all, []<class Tile>(std::byte* tile) { forget(tile); });
  }

  // Gives a tile without a tail a copy of this one.
  // errors  capacity_exceeded  the tile has none as before
  status add_tail(std::byte* tile, std::byte const* tail, std::int64_t bytes) noexcept {
    forget(tile);
    if (bytes == 0) return {};
    auto const at = heap_.allocate(bytes, extent_heap::end::back);
    if (!at) return at.error();
    std::memcpy(at.value(), tail, static_cast<std::size_t>(bytes));
    place(tile, at.value(), bytes);
    return {};
  }

  // Room for tails that is nobody's yet, linked through its own bytes: first in, first out.
  class rooms {
   public:
    explicit rooms(tailed_pool& in) noexcept : pool_(in) {}
    ~rooms() {
      for (room next; first_ != nullptr; first_ = next.behind) {
        std::memcpy(&next, first_, sizeof next);
        static_cast<void>(pool_.heap_.release(first_, next.bytes));
      }
    }
    rooms(rooms const&) = delete;
    rooms& operator=(rooms const&) = delete;

    status add(std::int64_t bytes) noexcept {
      auto const at = pool_.heap_.allocate(bytes, extent_heap::end::back);
      if (!at) return at.error();
      set(at.value(), {nullptr, bytes});
      if (first_ == nullptr)
        first_ = at.value();
      else
        set(last_, {at.value(), last_bytes_});
      last_ = at.value();
      last_bytes_ = bytes;
      return {};
    }
    // The oldest one becomes the tile's.
    void give(std::byte* tile) noexcept {
      room next;
      std::memcpy(&next, first_, sizeof next);
      place(tile, std::exchange(first_, next.behind), next.bytes);
    }

   private:
    struct room {
      std::byte* behind;
      std::int64_t bytes;
    };
    static void set(std::byte* at, room to) noexcept { std::memcpy(at, &to, sizeof to); }

    tailed_pool& pool_;
    std::byte *first_ = nullptr, *last_ = nullptr;
    std::int64_t last_bytes_ = 0;
  };

  // Whether a tile has room for any tail. One that has a shorter one, of a tile that was cut, loses it.
  template <class Tile>
  bool has_room(std::byte* tile) noexcept {
    if (tail_place::of(tile).bytes == Tile::tail_bound) return true;
    drop_tail(tile);
    return false;
  }

  // encode(fixed part, tail) writes a tile that has room, and returns the tail's bytes. The room is traded for an extent of so many.
  template <class Tile, class Encode>
  void seal(std::byte* tile, Encode&& encode) noexcept {
    std::byte* const room = tile + tail_place::of(tile).distance;
    PITH_EXPECTS(tail_place::of(tile).bytes == Tile::tail_bound);
    std::byte tail[Tile::tail_bound + tail_padding];
    std::int64_t const bytes = encode(tile, tail);
    if (bytes == 0) {
      static_cast<void>(heap_.release(room, Tile::tail_bound));
      return forget(tile);
    }
    std::byte* const at = heap_.trade(room, Tile::tail_bound, bytes, extent_heap::end::back);
    std::memcpy(at, tail, static_cast<std::size_t>(bytes));
    place(tile, at, bytes);
  }

 private:
  static constexpr token_range all{0, Page::tokens};
  static constexpr std::int64_t longest_tail =
      std::max(line_tail_bound<typename Page::key_tile>, line_tail_bound<typename Page::value_tile>);

  tailed_pool(std::byte* memory, extent_heap heap) noexcept : memory_(memory), heap_(std::move(heap)) {}

  static void place(std::byte* tile, std::byte const* tail, std::int64_t bytes) noexcept {
    tail_place::set_distance(tile, tail - tile);
    store_le(tile + 8, static_cast<std::uint32_t>(bytes));
  }
  static void forget(std::byte* tile) noexcept { place(tile, tile, 0); }
  void drop_tail(std::byte* tile) noexcept {
    if (tail_place const its = tail_place::of(tile); its.bytes > 0) {
      [[maybe_unused]] status const released = heap_.release(tile + its.distance, its.bytes);
      PITH_EXPECTS(released.code == errc::ok);
    }
    forget(tile);
  }

  std::byte* memory_;
  extent_heap heap_;
  std::atomic<std::int64_t> pages_ = 0;  // in use
};

}  // namespace pith
