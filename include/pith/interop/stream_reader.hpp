// SPDX-License-Identifier: Apache-2.0
// Reads a model that does not fit in memory, part by part, ahead of need: layers, experts or blocks of neurons of a container file.
//
//   auto reader = stream_reader<Source>::make(from, file, table, parts, budget).value();   table: any_matrix.hpp
//   reader->want(part)                      will be needed: put at the end of a queue
//   reader->poll()                          loads the first of the queue; true if it did. On any thread of the caller's, on several at once
//   auto const held = reader->get(part);    resident, and checked; loaded here and now if it is not. Stays as long as `held` does
//   held.value().matrix().multiply(x, out, scratch)
//
// part     a packed tensor, or a run of its row blocks if its rate is fixed. One part is one read: its bytes, out to whole blocks of
//          checksums on both sides. `sections` cuts it into runs of rows, each a matrix (bundle.hpp)
// threads  none of its own: what is loaded ahead is loaded by who calls poll, or by an executor in load_wanted. All calls may be made at
//          the same time; reads and checks are done outside the lock. get of a part that another thread is loading waits for it
//
// Rule L1  what is resident or being loaded never takes more than `budget` bytes of parts; nothing pinned is discarded.
// Rule L2  get fails for want of room only if pinned parts leave none: it discards others by the order, those that are wanted last.
// Rule L3  poll discards only what is not wanted, and no part overtakes another: it gives false while there is no room for the first.
//          A part is wanted from want to the next get or unwant.
// Rule L4  every byte of a part has passed its checksum, and every matrix is open, before anyone sees it.
//
// errors   make  out_of_range       no such packed tensor; `at` is the part's number, as in the next two
//                unsupported        its packing is none of the table's, or a run or sections of a tensor of variable rate
//                shape_mismatch     rows that are not whole tiles (the last run may end with the tensor), or not `sections` equal runs
//                bad_format         as check_packing
//                capacity_exceeded  a part alone takes more than the budget; `at` is the bytes it takes
//          get   out_of_range       no such part
//                capacity_exceeded  L2; `at` is the bytes wanted
//                damaged, bad_format, with the byte of the file; out_of_memory; what the source says. The part is then as if it had not
//                been asked for. name(part) and file.owner(at) name the tensor. A load ahead that failed is told to the next get, once
// cost     a discard looks at every part; memory is allocated for each load, unless a part of the same size was discarded for it
// from     LLM in a flash (Alizadeh et al., 2023), FlexInfer (Du et al., 2025), EdgeMoE (Yi et al., 2023): load what comes next, keep what
//          was used. A window of layers is want(layer + 1 .. layer + 3); locked parts are those whose `held` is kept
#pragma once

#include <condition_variable>
#include <deque>
#include <mutex>

#include "pith/core/executor.hpp"
#include "pith/interop/any_matrix.hpp"
#include "pith/interop/container_reader.hpp"
#include "pith/interop/stream_order.hpp"

namespace pith::container {

struct stream_part {
  std::string tensor;
  std::int64_t first_row = 0, rows = 0;  // rows 0: up to the last
  std::int64_t sections = 1, layer = 0;
};

struct stream_statistics {
  std::int64_t hits = 0, late = 0, misses = 0;  // gets: resident; being loaded by another thread; loaded by get, or failed
  std::int64_t loads = 0, failures = 0;
  std::int64_t bytes_read = 0;                               // asked of the source
  std::int64_t bytes_discarded = 0;                          // from memory
  std::int64_t bytes_unused = 0;                             // of these, of parts that no one got since they were loaded
  std::int64_t resident_bytes = 0, most_resident_bytes = 0;  // with what is being loaded
};

template <byte_source Source, replacement_order Order = last_use>
class stream_reader {
  struct slot;

 public:
  // A part that stays resident until this is destroyed. It must not outlive the reader.
  class held {
   public:
    held(held&& other) noexcept : of_(other.of_), slot_(std::exchange(other.slot_, nullptr)) {}
    held& operator=(held&& other) noexcept {
      std::swap(of_, other.of_);
      std::swap(slot_, other.slot_);
      return *this;
    }
    ~held() {
      if (slot_ != nullptr) of_->unpin(*slot_);
    }

    any_matrix const& matrix(std::int64_t section = 0) const noexcept { return slot_->matrices[static_cast<std::size_t>(section)]; }
    // As stored, from a multiple of 64 on; for packed_matrix::open. Sections are of equal bytes.
    std::span<std::byte const> bytes() const noexcept { return slot_->wanted(); }

   private:
    friend stream_reader;
    held(stream_reader& of, slot& s) noexcept : of_(&of), slot_(&s) {}
    stream_reader* of_;
    slot* slot_;
  };

  // `from`, `file` and `table` must outlive the reader.
  static result<std::unique_ptr<stream_reader>> make(Source const& from, index const& file, std::span<matrix_codec const> table,
                                                     std::span<stream_part const> parts, std::int64_t budget_bytes, Order order = {}) {
    std::unique_ptr<stream_reader> out(new stream_reader(from, file, budget_bytes, std::move(order)));
    for (std::int64_t i = 0; i < std::ssize(parts); ++i)
      if (status const ok = out->add(table, parts[static_cast<std::size_t>(i)], i); !ok) return ok;
    return out;
  }

  std::int64_t parts() const noexcept { return std::ssize(slots_); }
  std::string_view name(std::int64_t part) const noexcept { return at(part).tensor->name; }
  // What a part takes of the budget.
  std::int64_t bytes(std::int64_t part) const noexcept { return at(part).load_bytes; }

  status want(std::int64_t part) {
    if (part < 0 || part >= parts()) return {errc::out_of_range, part};
    std::lock_guard const lock(mutex_);
    slot& s = at(part);
    if (!s.wanted_next && s.is == state::absent) queue_.push_back(part);
    s.wanted_next = true;
    return {};
  }
  // It will not be needed after all: out of the queue, or to be discarded like any other. A load that failed is forgotten.
  status unwant(std::int64_t part) {
    if (part < 0 || part >= parts()) return {errc::out_of_range, part};
    std::lock_guard const lock(mutex_);
    slot& s = at(part);
    unqueue(s);
    if (s.is == state::failed) s.is = state::absent;
    return {};
  }

  bool poll() {
    std::unique_lock lock(mutex_);
    if (queue_.empty()) return false;
    slot& s = at(queue_.front());
    heap_arena spare = heap_arena::make(0).value();
    if (!make_room(s.load_bytes, false, spare)) return false;
    queue_.pop_front();
    if (status const ok = load(lock, s, std::move(spare)); !ok) s.is = state::failed, s.error = ok;
    return true;
  }
  // Everything that is wanted and has room.
  template <executor Executor>
  void load_wanted(Executor&& run) {
    std::unique_lock lock(mutex_);
    std::int64_t const count = std::ssize(queue_);
    lock.unlock();
    run.for_each(count, [this](std::int64_t) { static_cast<void>(poll()); });
  }

  result<held> get(std::int64_t part) {
    if (part < 0 || part >= parts()) return status{errc::out_of_range, part};
    std::unique_lock lock(mutex_);
    slot& s = at(part);
    ++(s.is == state::resident ? statistics_.hits : s.is == state::loading ? statistics_.late : statistics_.misses);
    ++s.use.uses;
    for (;;) {
      if (s.is == state::loading) {
        changed_.wait(lock);
        continue;
      }
      bool const told = s.is == state::failed, absent = s.is == state::absent;
      unqueue(s);
      if (told) {
        s.is = state::absent;
        return s.error;
      }
      if (absent) {
        heap_arena spare = heap_arena::make(0).value();
        if (!make_room(s.load_bytes, true, spare)) {
          if (loading_ == 0) return status{errc::capacity_exceeded, s.load_bytes};
          changed_.wait(lock);  // what is being loaded can be discarded then
          continue;
        }
        if (status const ok = load(lock, s, std::move(spare)); !ok) return ok;
      }
      ++s.pins;
      s.used = true;
      s.use.last_use = ++tick_;
      return held(*this, s);
    }
  }

  void set_order(Order order) {
    std::lock_guard const lock(mutex_);
    order_ = std::move(order);
  }
  stream_statistics statistics() const {
    std::lock_guard const lock(mutex_);
    return statistics_;
  }

 private:
  enum class state : std::uint8_t { absent, loading, resident, failed };

  struct slot {
    entry const* tensor = nullptr;
    matrix_codec const* codec = nullptr;
    std::int64_t section_rows = 0, sections = 1;
    std::int64_t first_block = 0, load_at = 0, load_bytes = 0;  // whole blocks of checksums, in the tensor
    std::int64_t wanted_at = 0, wanted_bytes = 0;               // of them, the part; its place is within the load
    state is = state::absent;
    bool wanted_next = false, used = false;  // used: since it was loaded
    std::int64_t pins = 0;
    part_use use;
    status error;
    heap_arena memory = heap_arena::make(0).value();
    std::vector<any_matrix> matrices;

    std::span<std::byte const> wanted() const noexcept { return {memory.data() + wanted_at, static_cast<std::size_t>(wanted_bytes)}; }
  };

  stream_reader(Source const& from, index const& file, std::int64_t budget_bytes, Order order)
      : from_(&from), file_(&file), budget_(budget_bytes), order_(std::move(order)) {}

  slot& at(std::int64_t part) noexcept { return slots_[static_cast<std::size_t>(part)]; }
  slot const& at(std::int64_t part) const noexcept { return slots_[static_cast<std::size_t>(part)]; }

  status add(std::span<matrix_codec const> table, stream_part const& p, std::int64_t number) {
    slot s;
    s.tensor = file_->find(p.tensor);
    if (s.tensor == nullptr || !s.tensor->packed) return {errc::out_of_range, number};
    packing const& packed = *s.tensor->packed;
    s.codec = find_codec(table, packed);
    if (s.codec == nullptr) return {errc::unsupported, number};
    tile_layout const& layout = s.codec->layout;
    if (status const ok = check_packing(*s.tensor, layout); !ok) return ok;
    bool const inside = p.first_row >= 0 && p.first_row < packed.rows && p.rows >= 0 && p.rows <= packed.rows - p.first_row;
    std::int64_t const rows = p.rows > 0 ? p.rows : packed.rows - p.first_row, end = p.first_row + rows;
    bool const fits = inside && p.sections > 0 && rows % p.sections == 0 && p.first_row % layout.tokens == 0 &&
                      (end == packed.rows || end % layout.tokens == 0) && (p.sections == 1 || rows / p.sections % layout.tokens == 0);
    if (!fits) return {errc::shape_mismatch, number};
    if (layout.has_tails && (rows != packed.rows || p.sections > 1)) return {errc::unsupported, number};
    s.sections = p.sections;
    s.section_rows = rows / p.sections;
    std::int64_t const begin = layout.fixed_bytes(p.first_row, packed.columns), block = file_->block_bytes;
    s.wanted_bytes = layout.has_tails ? packed.bytes : layout.fixed_bytes(rows, packed.columns);
    s.first_block = begin / block;
    s.load_at = s.first_block * block;
    s.load_bytes = std::min(s.tensor->bytes, round_up(begin + s.wanted_bytes, block)) - s.load_at;
    s.wanted_at = begin - s.load_at;
    if (s.load_bytes > budget_) return {errc::capacity_exceeded, s.load_bytes};
    s.use = {number, p.layer, s.load_bytes, 0, 0};
    slots_.push_back(std::move(s));
    return {};
  }

  void unqueue(slot& s) {
    if (s.wanted_next && s.is == state::absent) std::erase(queue_, s.use.part);
    s.wanted_next = false;
  }
  void unpin(slot& s) {
    std::lock_guard const lock(mutex_);
    --s.pins;
  }

  // Discards until `bytes` more fit, or nothing at all; a discarded part of just that size leaves its memory. Under the lock.
  bool make_room(std::int64_t bytes, bool wanted_too, heap_arena& spare) {
    auto may_go = [&](slot const& s) { return s.is == state::resident && s.pins == 0 && (wanted_too || !s.wanted_next); };
    std::int64_t most = budget_ - statistics_.resident_bytes;
    for (slot const& s : slots_) most += may_go(s) ? s.load_bytes : 0;
    if (most < bytes) return false;
    while (budget_ - statistics_.resident_bytes < bytes) {
      slot* first = nullptr;
      std::pair<bool, double> first_key;
      for (slot& s : slots_) {
        if (!may_go(s)) continue;
        std::pair const key(s.wanted_next, static_cast<double>(order_(s.use)));
        if (first == nullptr || key < first_key) first = &s, first_key = key;
      }
      discard(*first);
      if (first->load_bytes == bytes) spare = std::move(first->memory);
      first->memory = heap_arena::make(0).value();
    }
    return true;
  }
  void discard(slot& s) {
    s.is = state::absent;
    s.wanted_next = false;
    s.matrices.clear();
    statistics_.resident_bytes -= s.load_bytes;
    statistics_.bytes_discarded += s.load_bytes;
    if (!s.used) statistics_.bytes_unused += s.load_bytes;
  }

  // There is room. The lock is open while bytes are read.
  status load(std::unique_lock<std::mutex>& lock, slot& s, heap_arena memory) {
    s.is = state::loading;
    s.used = false;
    ++loading_;
    ++statistics_.loads;
    statistics_.resident_bytes += s.load_bytes;
    statistics_.most_resident_bytes = std::max(statistics_.most_resident_bytes, statistics_.resident_bytes);
    lock.unlock();
    s.memory = std::move(memory);  // no one else looks at a slot that is being loaded
    status const ok = read(s);
    if (!ok) s.matrices.clear(), s.memory = heap_arena::make(0).value();
    lock.lock();
    --loading_;
    s.is = ok ? state::resident : state::absent;
    s.use.last_use = ++tick_;
    if (ok || ok.code != errc::out_of_memory) statistics_.bytes_read += s.load_bytes;
    if (!ok) ++statistics_.failures, statistics_.resident_bytes -= s.load_bytes, s.wanted_next = false;
    changed_.notify_all();
    return ok;
  }
  status read(slot& s) const {
    entry const& e = *s.tensor;
    if (s.memory.bytes() != s.load_bytes) {
      auto made = heap_arena::make(s.load_bytes);
      if (!made) return made.error();
      s.memory = std::move(made).value();
    }
    std::span const memory(s.memory.data(), static_cast<std::size_t>(s.load_bytes));
    if (status const ok = from_->read(e.at + s.load_at, memory); !ok) return ok;
    if (status const ok = check_blocks(*file_, e, s.first_block, memory); !ok) return ok;
    std::int64_t const section_bytes = s.wanted_bytes / s.sections;
    for (std::int64_t i = 0; i < s.sections; ++i) {
      auto const bytes = s.wanted().subspan(static_cast<std::size_t>(i * section_bytes), static_cast<std::size_t>(section_bytes));
      auto opened = s.codec->open(bytes, s.section_rows, e.packed->columns);
      if (!opened) {
        status const error = opened.error();
        bool const placed = error.code == errc::bad_format;
        return {error.code, placed ? e.at + s.load_at + s.wanted_at + i * section_bytes + error.at : error.at};
      }
      s.matrices.push_back(std::move(opened).value());
    }
    return {};
  }

  Source const* from_;
  index const* file_;
  std::int64_t const budget_;
  Order order_;
  std::vector<slot> slots_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::int64_t> queue_;  // wanted and absent
  std::int64_t loading_ = 0, tick_ = 0;
  stream_statistics statistics_;
};

}  // namespace pith::container
