// SPDX-License-Identifier: Apache-2.0
// Which block holds which page of one (sequence, layer, KV head), with a fork that costs one increment.
//
// Blocks are listed in runs of up to run_blocks. A run points to the one before it and says how many of its entries it continues from;
// a table is a tail run, the number of its entries that belong to the table, and the number of pages:
//
//   pages 0..31          32..51            52..53
//   [run 4: 32 entries] <- [run 7: 20] <- [run 9: 2] <- table a {tail 9, used 2, pages 54}
//                               ^---------------------- table b {tail 7, used 20, pages 52}
//
// References are counted on runs: one from each table whose tail a run is, one from each run that continues it. A run with one
// reference, reached from a table over such runs only, is that table's alone; any other is never written. With its last reference a
// run releases its blocks. An entry is no_block after drop().
//
// A table may use fewer entries than its tail holds, when it was truncated while a fork used the rest. The rest is released with the
// run, or by the next append or truncate that finds the run unshared: blocks may be held a while longer than a table shows them, but
// once every table is cleared no run and no block is used.
#pragma once

#include <atomic>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <new>
#include <span>
#include <type_traits>
#include <utility>

#include "pith/core/status.hpp"
#include "pool.hpp"

namespace pith {

inline constexpr std::uint32_t no_run = 0xffffffffu;

// A value that holds one reference: copy it with run_store::fork, give it up with run_store::clear. {} is the table of no pages.
struct table {
  std::uint32_t tail = no_run;  // no_run exactly if pages == 0
  std::int32_t used = 0;        // 1..run_blocks otherwise
  std::int64_t pages = 0;
};
static_assert(std::is_trivially_copyable_v<table> && sizeof(table) == 16);

// Where blocks go back to: a block_pool, or one whose blocks own more than their bytes.
template <class P>
concept block_source = requires(P& pool, block_id id) {
  { pool.release(id) } noexcept -> std::same_as<status>;
};

// The runs of any number of tables, all of whose blocks come from one pool: every call takes the same one.
// Threads: different tables may be used at the same time, forks of each other included; one table has one writer.
class run_store {
 public:
  static constexpr std::int32_t run_blocks = 32;

  // A table of n pages that was never forked takes divide_up(n, run_blocks) runs; an append to a shared tail takes one more.
  //
  // errors  out_of_range   runs < 0 or runs >= no_run; `at` is runs
  //         out_of_memory  `at` is the bytes of all runs
  // cost    one allocation; the only one
  static result<run_store> make(std::int64_t runs) noexcept {
    if (runs < 0 || runs >= no_run) return status{errc::out_of_range, runs};
    std::unique_ptr<run[]> memory(new (std::nothrow) run[static_cast<std::size_t>(runs)]);
    if (memory == nullptr) return status{errc::out_of_memory, runs * run_bytes};
    return run_store(std::move(memory), runs);
  }

  run_store(run_store&&) noexcept;

  // Adds a page that lives in `block`, which the table owns from then on.
  //
  // errors  capacity_exceeded  a new run is needed and none is free; `at` is 1, nothing was changed and the block stays the caller's
  template <block_source Pool>
  status append(table& to, Pool& pool, block_id block) noexcept {
    if (to.tail == no_run || to.used == run_blocks || is_shared(to.tail)) {
      std::uint32_t const fresh = obtain();
      if (fresh == no_run) return {errc::capacity_exceeded, 1};
      run& next = at(fresh);
      next.references.store(1, std::memory_order_relaxed);
      next.previous = to.tail;  // the reference that the table held
      next.previous_used = to.used;
      next.count = 0;
      next.first_page = to.pages;
      to.tail = fresh;
      to.used = 0;
    }
    trim(to.tail, to.used, pool);
    run& tail = at(to.tail);
    tail.ids[tail.count++] = block;
    to.used = tail.count;
    ++to.pages;
    return {};
  }

  // A second table of the same pages. Cost: one increment, however many pages.
  [[nodiscard]] table fork(table const& from) noexcept {
    if (from.tail != no_run) retain(from.tail);
    return from;
  }

  // Keeps the first `pages` pages; a table that has no more is left as it is.
  // cost  the runs given up, and their blocks where no fork holds them
  template <block_source Pool>
  void truncate(table& from, Pool& pool, std::int64_t pages) noexcept {
    PITH_EXPECTS(pages >= 0);
    if (pages >= from.pages) return;
    if (pages <= 0) return clear(from, pool);
    std::uint32_t const kept = run_of(from, pages - 1);
    retain(kept);  // before the tail goes: nobody else may hold what lies behind it
    release(from.tail, pool);
    from = {kept, static_cast<std::int32_t>(pages - at(kept).first_page), pages};
    if (!is_shared(kept)) trim(kept, from.used, pool);
  }

  // Gives up every page: the table is {} afterwards.
  template <block_source Pool>
  void clear(table& from, Pool& pool) noexcept {
    if (from.tail != no_run) release(from.tail, pool);
    from = {};
  }

  // Releases the block of one page and leaves no_block in its place; the page stays counted. Dropping it again does nothing.
  //
  // errors  out_of_range  page is not in [0, pages); `at` is page
  //         unsupported   a fork shares the page's run or one after it; `at` is page and nothing was changed
  // cost    the runs after the page
  template <block_source Pool>
  status drop(table& from, Pool& pool, std::int64_t page) noexcept {
    if (page < 0 || page >= from.pages) return {errc::out_of_range, page};
    std::uint32_t id = from.tail;
    while (!is_shared(id) && at(id).first_page > page) id = at(id).previous;
    if (is_shared(id)) return {errc::unsupported, page};
    give_back(std::exchange(at(id).ids[page - at(id).first_page], no_block), pool);
    return {};
  }

  // Puts a block, or none, in the place of another, which is the caller's from then on: pages change places, or hands. The page is_exclusive.
  block_id exchange(table& in, std::int64_t page, block_id block) noexcept {
    PITH_EXPECTS(is_exclusive(in, page));
    run& holder = at(run_of(in, page));
    return std::exchange(holder.ids[page - holder.first_page], block);
  }

  // The block of a page in [0, pages), or no_block if it was dropped. Cost: the runs after the page.
  block_id block(table const& in, std::int64_t page) const noexcept {
    PITH_EXPECTS(page >= 0 && page < in.pages);
    run const& holder = at(run_of(in, page));
    return holder.ids[page - holder.first_page];
  }

  // Whether the block of a page in [0, pages) belongs to this table alone, so that it may be written.
  bool is_exclusive(table const& in, std::int64_t page) const noexcept {
    PITH_EXPECTS(page >= 0 && page < in.pages);
    std::uint32_t id = in.tail;
    while (!is_shared(id) && at(id).first_page > page) id = at(id).previous;
    return !is_shared(id);
  }

  // Calls f(first_page, blocks) for each run of the table, newest first: blocks[i] holds page first_page + i.
  // The spans of one call follow each other downwards without gap, and end with page 0.
  template <class Function>
  void for_each_run(table const& in, Function&& f) const {
    std::int32_t used = in.used;
    for (std::uint32_t id = in.tail; id != no_run; used = at(id).previous_used, id = at(id).previous)
      f(at(id).first_page, std::span<block_id const>(at(id).ids, static_cast<std::size_t>(used)));
  }

  std::int64_t runs() const noexcept { return runs_; }
  std::int64_t used_runs() const noexcept {
    std::lock_guard const lock(mutex_);
    return used_;
  }
  std::int64_t used_bytes() const noexcept { return used_runs() * run_bytes; }

 private:
  struct run {
    std::atomic<std::int32_t> references = 0;
    std::uint32_t previous = no_run;  // the next free run, while this one is free
    std::int32_t previous_used = 0;   // entries of the previous run that belong to this chain
    std::int32_t count = 0;           // entries here, each of which owns its block
    std::int64_t first_page = 0;      // the page of ids[0]
    block_id ids[run_blocks];
  };
  static constexpr std::int64_t run_bytes = sizeof(run);

  run_store(std::unique_ptr<run[]> memory, std::int64_t runs) noexcept : memory_(std::move(memory)), runs_(runs) {
    for (std::int64_t id = runs; id-- > 0;) at(id).previous = std::exchange(free_, static_cast<std::uint32_t>(id));
  }

  run& at(std::int64_t id) noexcept { return memory_.get()[id]; }
  run const& at(std::int64_t id) const noexcept { return memory_.get()[id]; }

  // A free run, or no_run.
  std::uint32_t obtain() noexcept {
    std::lock_guard const lock(mutex_);
    std::uint32_t const id = free_;
    if (id == no_run) return no_run;
    free_ = at(id).previous;
    ++used_;
    return id;
  }

  // Acquires what other holders did before they let go (see release), so that an unshared run may be written.
  bool is_shared(std::uint32_t id) const noexcept { return at(id).references.load(std::memory_order_acquire) > 1; }

  void retain(std::uint32_t id) noexcept { at(id).references.fetch_add(1, std::memory_order_relaxed); }

  // Gives up one reference, and with the last one the run's blocks and its reference to the run before it, and so on.
  template <block_source Pool>
  void release(std::uint32_t id, Pool& pool) noexcept {
    while (id != no_run && at(id).references.fetch_sub(1, std::memory_order_acq_rel) == 1) {
      trim(id, 0, pool);
      std::lock_guard const lock(mutex_);
      std::uint32_t const previous = at(id).previous;
      at(id).previous = std::exchange(free_, id);
      --used_;
      id = previous;
    }
  }

  // Releases the blocks of an unshared run from entry `used` on.
  template <block_source Pool>
  void trim(std::uint32_t id, std::int32_t used, Pool& pool) noexcept {
    run& r = at(id);
    while (r.count > used) give_back(r.ids[--r.count], pool);
  }

  template <block_source Pool>
  static void give_back(block_id block, Pool& pool) noexcept {
    if (block == no_block) return;
    [[maybe_unused]] status const released = pool.release(block);
    PITH_EXPECTS(released.code == errc::ok);  // else another pool's block, or one that the caller released
  }

  // The run that holds a page of the table.
  std::uint32_t run_of(table const& in, std::int64_t page) const noexcept {
    std::uint32_t id = in.tail;
    while (at(id).first_page > page) id = at(id).previous;
    return id;
  }

  std::unique_ptr<run[]> memory_;
  std::int64_t runs_;
  std::int64_t used_ = 0;
  std::uint32_t free_ = no_run;
  mutable own_mutex mutex_;
};

// Defaulted outside the class, which makes it a host function to nvcc.
inline run_store::run_store(run_store&&) noexcept = default;
static_assert(std::is_nothrow_move_constructible_v<run_store> && !std::is_copy_constructible_v<run_store>);

}  // namespace pith
