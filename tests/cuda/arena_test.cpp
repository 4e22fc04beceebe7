// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cstdint>
#include <limits>
#include <map>
#include <random>
#include <set>
#include <vector>

#include "pith/cuda/reserved_arena.hpp"
#include "pith/page/pool.hpp"
#include "support/catch.hpp"

using pith::errc;
using pith::status;

namespace {

// A device's virtual memory as a model: what is reserved, created, mapped and accessible, and whether a call was one that a real driver
// would refuse. The addresses are no memory of this process.
struct machine {
  static constexpr std::int64_t granularity = std::int64_t{2} << 20;
  struct mapping {
    std::int64_t bytes;
    int handle;
    bool accessible;
  };

  std::int64_t calls = 0;
  std::int64_t fail_at = -1;  // this call fails
  unsigned fail_one_in = 0;   // or each with this chance
  std::mt19937 random{7};
  std::int64_t faults = 0;  // wrong use
  std::int64_t create_limit = std::numeric_limits<std::int64_t>::max();

  std::map<std::uintptr_t, std::int64_t> reserved;
  std::map<std::uintptr_t, mapping> mapped;
  std::map<int, int> handles, released;  // handle -> its mappings
  std::map<int, std::int64_t> sizes;
  std::int64_t memory = 0, accesses = 0;
  int next_handle = 1;
  std::uintptr_t next_address = std::uintptr_t{1} << 44;

  bool fails() {
    ++calls;
    return calls - 1 == fail_at || (fail_one_in != 0 && random() % fail_one_in == 0);
  }
  void expect(bool condition) { faults += !condition; }
  bool is_reserved(std::uintptr_t at, std::int64_t bytes) const {
    auto const next = reserved.upper_bound(at);
    if (next == reserved.begin()) return false;
    auto const& [begin, size] = *std::prev(next);
    return at + static_cast<std::uintptr_t>(bytes) <= begin + static_cast<std::uintptr_t>(size);
  }
  void drop_if_unused(int handle) {
    if (auto const it = released.find(handle); it != released.end() && it->second == 0) {
      released.erase(it);
      memory -= sizes[handle];
    }
  }
};

struct mock_driver {
  using handle = int;
  machine* on;

  static std::uintptr_t number(std::byte* at) { return reinterpret_cast<std::uintptr_t>(at); }
  status refused() const { return {errc::device_error, 1}; }

  pith::result<std::int64_t> granularity() noexcept {
    if (on->fails()) return refused();
    return machine::granularity;
  }
  pith::result<std::byte*> reserve(std::int64_t bytes) noexcept {
    if (on->fails()) return refused();
    on->expect(bytes > 0 && bytes % machine::granularity == 0);
    std::uintptr_t const at = on->next_address;
    on->next_address += static_cast<std::uintptr_t>(bytes + machine::granularity);
    on->reserved[at] = bytes;
    return reinterpret_cast<std::byte*>(at);
  }
  pith::result<int> create(std::int64_t bytes) noexcept {
    if (on->fails()) return refused();
    on->expect(bytes > 0 && bytes % machine::granularity == 0);
    if (on->memory + bytes > on->create_limit) return status{errc::out_of_memory, bytes};
    on->memory += bytes;
    on->sizes[on->next_handle] = bytes;
    on->handles[on->next_handle] = 0;
    return on->next_handle++;
  }
  status map(std::byte* at, std::int64_t bytes, int memory) noexcept {
    if (on->fails()) return refused();
    on->expect(on->handles.count(memory) == 1 && on->sizes[memory] == bytes && on->is_reserved(number(at), bytes));
    for (auto const& [begin, m] : on->mapped)
      on->expect(number(at) + static_cast<std::uintptr_t>(bytes) <= begin || begin + static_cast<std::uintptr_t>(m.bytes) <= number(at));
    on->mapped[number(at)] = {bytes, memory, false};
    ++on->handles[memory];
    return {};
  }
  status set_access(std::byte* at, std::int64_t bytes) noexcept {
    ++on->accesses;
    if (on->fails()) return refused();
    std::uintptr_t next = number(at);
    std::uintptr_t const end = next + static_cast<std::uintptr_t>(bytes);
    while (next < end) {  // covers whole mappings, without a gap
      auto const it = on->mapped.find(next);
      on->expect(it != on->mapped.end());
      if (it == on->mapped.end()) return refused();
      it->second.accessible = true;
      next += static_cast<std::uintptr_t>(it->second.bytes);
    }
    on->expect(next == end);
    return {};
  }
  status unmap(std::byte* at, std::int64_t bytes) noexcept {
    if (on->fails()) return refused();
    auto const it = on->mapped.find(number(at));
    on->expect(it != on->mapped.end() && it->second.bytes == bytes);
    if (it == on->mapped.end()) return refused();
    int const handle = it->second.handle;
    on->mapped.erase(it);
    if (on->handles.count(handle) == 1) --on->handles[handle];
    if (on->released.count(handle) == 1) --on->released[handle], on->drop_if_unused(handle);
    return {};
  }
  status release(int memory) noexcept {
    if (on->fails()) return refused();
    auto const it = on->handles.find(memory);
    on->expect(it != on->handles.end());
    if (it == on->handles.end()) return refused();
    on->released[memory] = it->second;
    on->handles.erase(it);
    on->drop_if_unused(memory);
    return {};
  }
  status free_address(std::byte* at, std::int64_t bytes) noexcept {
    if (on->fails()) return refused();
    auto const it = on->reserved.find(number(at));
    on->expect(it != on->reserved.end() && it->second == bytes);
    for (auto const& [begin, m] : on->mapped)
      on->expect(begin + static_cast<std::uintptr_t>(m.bytes) <= number(at) || begin >= number(at) + static_cast<std::uintptr_t>(bytes));
    if (it != on->reserved.end()) on->reserved.erase(it);
    return {};
  }
};

using arena = pith::basic_reserved_arena<mock_driver>;
static_assert(pith::arena<arena> && !std::is_copy_constructible_v<arena>);

constexpr std::int64_t mebibyte = std::int64_t{1} << 20, step = 4 * mebibyte;

// Every byte below bytes() is mapped and accessible.
bool usable(machine const& m, arena const& a) {
  std::int64_t at = 0;
  while (at < a.bytes()) {
    auto const it = m.mapped.find(reinterpret_cast<std::uintptr_t>(a.data()) + static_cast<std::uintptr_t>(at));
    if (it == m.mapped.end() || !it->second.accessible) return false;
    at += it->second.bytes;
  }
  return at == a.bytes();
}
bool nothing_left(machine const& m) { return m.reserved.empty() && m.mapped.empty() && m.handles.empty() && m.memory == 0; }

arena make_arena(machine& m, std::int64_t most = 64 * mebibyte) {
  auto made = arena::make(mock_driver{&m}, most, step);
  REQUIRE(made);
  return std::move(made).value();
}

}  // namespace

TEST_CASE("reserved_arena: memory comes and goes in steps, addresses stay", "[cuda][arena]") {
  machine m;
  {
    arena a = make_arena(m, 62 * mebibyte);
    std::byte* const data = a.data();
    CHECK(a.reserved_bytes() == 64 * mebibyte);
    CHECK(a.bytes() == 0);
    CHECK(m.memory == 0);
    CHECK(a.grow(1));
    CHECK(a.bytes() == step);
    CHECK(a.grow(step));
    CHECK(m.memory == step);
    CHECK(a.grow(3 * step + 1));
    CHECK(a.bytes() == 4 * step);
    CHECK(m.accesses == 2);  // one for each call that commits, not for each step
    CHECK(a.grow(step));     // never takes away
    CHECK(a.bytes() == 4 * step);
    CHECK(usable(m, a));
    CHECK(a.shrink(step + 1));
    CHECK(a.bytes() == 2 * step);
    CHECK(m.memory == 2 * step);
    CHECK(a.shrink(3 * step));
    CHECK(a.bytes() == 2 * step);
    arena moved = std::move(a);
    CHECK(moved.data() == data);
    CHECK(moved.grow(64 * mebibyte));
    CHECK(moved.bytes() == moved.reserved_bytes());
    CHECK(moved.shrink(0));
    CHECK(m.memory == 0);
    CHECK(moved.data() == data);
    CHECK(m.handles.empty());  // released as soon as mapped
  }
  CHECK(nothing_left(m));
  CHECK(m.faults == 0);
}

TEST_CASE("reserved_arena: sizes without meaning and more than is reserved are a status", "[cuda][arena][edge]") {
  machine m;
  CHECK(arena::make(mock_driver{&m}, -1, step).error() == status{errc::out_of_range, -1});
  CHECK(arena::make(mock_driver{&m}, 1, -5).error() == status{errc::out_of_range, -5});
  std::int64_t const most = std::numeric_limits<std::int64_t>::max();
  CHECK(arena::make(mock_driver{&m}, most, step).error() == status{errc::out_of_range, most});
  {
    arena empty = make_arena(m, 0);
    CHECK(empty.bytes() == 0);
    CHECK(empty.grow(0));
    CHECK(empty.grow(1) == status{errc::capacity_exceeded, 1});
    arena a = arena::make(mock_driver{&m}, 1, 1).value();  // the step is at least what the driver can do
    CHECK(a.step_bytes() == machine::granularity);
    CHECK(a.grow(-1) == status{errc::out_of_range, -1});
    CHECK(a.shrink(-1) == status{errc::out_of_range, -1});
    CHECK(a.grow(machine::granularity + 1) == status{errc::capacity_exceeded, machine::granularity + 1});
    CHECK(a.bytes() == 0);
  }
  CHECK(nothing_left(m));
  CHECK(m.faults == 0);
}

TEST_CASE("reserved_arena: where memory runs out half-way nothing has changed", "[cuda][arena]") {
  machine m;
  m.create_limit = 5 * step;
  arena a = make_arena(m);
  REQUIRE(a.grow(2 * step));
  CHECK(a.grow(7 * step) == status{errc::out_of_memory, step});
  CHECK(a.bytes() == 2 * step);
  CHECK(m.memory == 2 * step);
  CHECK(usable(m, a));
  CHECK(a.grow(5 * step));
  CHECK(usable(m, a));
  CHECK(m.faults == 0);
}

TEST_CASE("reserved_arena: whichever call of the driver fails, it is said, undone and can be tried again", "[cuda][arena][model]") {
  std::int64_t tried = 0;
  for (std::int64_t fail_at = 0;; ++fail_at) {
    INFO("call " << fail_at);
    machine m;
    m.fail_at = fail_at;
    bool in_destructor = false;
    {
      auto made = arena::make(mock_driver{&m}, 64 * mebibyte, step);
      bool failed = !made;
      if (failed) {
        CHECK(made.error() == status{errc::device_error, 1});
        CHECK(nothing_left(m));
        ++tried;
        continue;
      }
      arena a = std::move(made).value();
      auto const attempt = [&](auto&& call) {
        std::int64_t const before = a.bytes();
        status s = call();
        if (s) return;
        failed = true;
        CHECK(s == status{errc::device_error, 1});
        CHECK(a.bytes() <= before);
        CHECK(usable(m, a));
        CHECK(m.memory == a.bytes());  // nothing half done is left
        CHECK(call());
      };
      attempt([&] { return a.grow(2 * step); });
      CHECK(a.bytes() == 2 * step);
      attempt([&] { return a.grow(5 * step); });
      CHECK(a.bytes() == 5 * step);
      attempt([&] { return a.shrink(3 * step); });
      CHECK(a.bytes() == 3 * step);
      attempt([&] { return a.grow(4 * step); });
      CHECK(a.bytes() == 4 * step);
      CHECK(usable(m, a));
      CHECK(m.memory == 4 * step);
      in_destructor = !failed && m.calls <= fail_at;
      tried += failed;
    }
    CHECK(m.faults == 0);
    if (!in_destructor) CHECK(nothing_left(m));
    if (m.calls <= fail_at) break;  // there is no such call any more
  }
  CHECK(tried == 2 + 7 + 10 + 2 + 4);  // granularity and reserve; create, map, release of each step and one set_access; two unmaps; ...
}

TEST_CASE("reserved_arena: random calls with random failures agree with a model", "[cuda][arena][model]") {
  for (unsigned seed = 1; seed <= 50; ++seed) {
    INFO("seed " << seed);
    std::mt19937 random(seed);
    machine m;
    m.random.seed(seed * 31);
    {
      arena a = make_arena(m);
      std::byte* const data = a.data();
      std::int64_t bytes = 0;  // the model
      for (int i = 0; i < 400; ++i) {
        m.fail_one_in = i % 3 == 0 ? 4 + seed % 40 : 0;
        std::int64_t const wanted = static_cast<std::int64_t>(random() % (70u << 20));
        std::int64_t const rounded = (wanted + step - 1) / step * step;
        bool const growing = random() % 2 == 0;
        status const s = growing ? a.grow(wanted) : a.shrink(wanted);
        bool agrees = a.data() == data && a.bytes() % step == 0 && usable(m, a);
        if (s) {
          bytes = growing ? std::max(bytes, rounded) : std::min(bytes, rounded);
          agrees = agrees && a.bytes() == bytes;
        } else if (growing) {
          agrees = agrees && a.bytes() == bytes &&
                   (s.code == errc::device_error || (s.code == errc::capacity_exceeded && wanted > 64 * mebibyte));
        } else {
          agrees = agrees && a.bytes() <= bytes && a.bytes() >= std::min(bytes, rounded) && s.code == errc::device_error;
          bytes = a.bytes();
        }
        if (!agrees) FAIL("step " << i);
      }
      m.fail_one_in = 0;
      REQUIRE(a.shrink(0));
      CHECK(a.bytes() == 0);
    }
    CHECK(m.mapped.empty());
    CHECK(m.reserved.empty());
    CHECK(m.faults == 0);
  }
}

TEST_CASE("block_pool: serves device memory, which it never touches", "[cuda][page]") {
  machine m;
  arena a = make_arena(m);
  REQUIRE(a.grow(10 * step));
  std::int64_t const block_bytes = 4608;
  std::int64_t const blocks = a.bytes() / block_bytes;
  auto made = pith::block_pool::make(a.data(), block_bytes, blocks);
  REQUIRE(made);
  pith::block_pool& pool = made.value();
  std::set<std::byte*> seen;
  for (std::int64_t i = 0; i < blocks; ++i) {
    std::byte* const at = pool.address(pool.allocate().value());
    if (at < a.data() || at + block_bytes > a.data() + a.bytes() || !seen.insert(at).second) FAIL("block " << i);
  }
  CHECK(pool.allocate().error() == status{errc::capacity_exceeded, 1});
  for (std::int64_t i = 0; i < blocks; ++i) REQUIRE(pool.release({static_cast<std::uint32_t>(i)}));
  CHECK(pool.used_bytes() == 0);
}
