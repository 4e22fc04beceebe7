// SPDX-License-Identifier: Apache-2.0
#include "pith/page/extents.hpp"

#include <atomic>
#include <cstring>
#include <map>
#include <random>
#include <thread>
#include <vector>

#include "support/catch.hpp"

using pith::errc;
using pith::extent_heap;
using side = extent_heap::end;

namespace {

struct heap_memory {
  std::vector<std::byte> bytes;
  std::byte* first;
  explicit heap_memory(std::int64_t size) : bytes(static_cast<std::size_t>(size) + 64) {
    auto const past = reinterpret_cast<std::uintptr_t>(bytes.data()) % 64;
    first = bytes.data() + (64 - past) % 64;
  }
};

extent_heap make_heap(heap_memory& in, std::int64_t bytes, std::int64_t largest) {
  auto made = extent_heap::make(in.first, bytes, largest);
  REQUIRE(made);
  return std::move(made).value();
}

}  // namespace

TEST_CASE("extent_heap: large pieces lie at the front, small ones at the back", "[page][extents]") {
  heap_memory memory(6400);
  extent_heap heap = make_heap(memory, 6400, 1000);
  CHECK(heap.allocate(1000, side::front).value() == memory.first);
  CHECK(heap.allocate(100, side::back).value() == memory.first + 6400 - 128);
  CHECK(heap.allocate(1000, side::front).value() == memory.first + 1024);
  CHECK(heap.allocate(1, side::back).value() == memory.first + 6400 - 192);
  CHECK(heap.used_bytes() == 2 * 1024 + 128 + 64);
}

TEST_CASE("extent_heap: the smallest free extent that is large enough is cut", "[page][extents]") {
  heap_memory memory(6400);
  extent_heap heap = make_heap(memory, 6400, 640);
  std::vector<std::byte*> at;
  for (int i = 0; i < 10; ++i) at.push_back(heap.allocate(640, side::front).value());
  CHECK(heap.allocate(64, side::back).error() == pith::status{errc::capacity_exceeded, 64});
  REQUIRE(heap.release(at[2], 640));
  std::byte* const kept = heap.allocate(256, side::front).value();  // six granules stay free there
  CHECK(kept == at[2]);
  REQUIRE(heap.release(at[7], 640));
  CHECK(heap.allocate(300, side::back).value() == at[2] + 640 - 320);
  CHECK(heap.allocate(640, side::back).value() == at[7]);
  CHECK(heap.allocate(65, side::back).error() == pith::status{errc::capacity_exceeded, 65});
  CHECK(heap.allocate(64, side::back).value() == at[2] + 256);
  CHECK(heap.used_bytes() == heap.bytes());
}

TEST_CASE("extent_heap: trading a full heap's extent for a smaller one cannot fail", "[page][extents]") {
  heap_memory memory(640);
  extent_heap heap = make_heap(memory, 640, 640);
  std::byte* const whole = heap.allocate(640, side::back).value();
  CHECK(heap.trade(whole, 640, 100, side::back) == memory.first + 512);
  CHECK(heap.used_bytes() == 128);
  CHECK(heap.allocate(512, side::back).value() == memory.first);
}

TEST_CASE("extent_heap: what is free, foreign or askew is refused and changes nothing", "[page][extents][edge]") {
  heap_memory memory(1280);
  extent_heap heap = make_heap(memory, 1280 + 63, 256);  // what is no granule is left out
  CHECK(heap.bytes() == 1280);
  CHECK(heap.allocate(0, side::back).error() == pith::status{errc::out_of_range, 0});
  CHECK(heap.allocate(257, side::back).error() == pith::status{errc::out_of_range, 257});
  std::byte* const at = heap.allocate(200, side::front).value();
  CHECK(heap.release(at + 64, 256) == pith::status{errc::out_of_range, 256});  // its end is free
  CHECK(heap.release(at + 1, 64) == pith::status{errc::out_of_range, 64});
  CHECK(heap.release(at - 64, 64) == pith::status{errc::out_of_range, 64});
  CHECK(heap.release(at + 1280, 64) == pith::status{errc::out_of_range, 64});
  CHECK(heap.release(at, 0) == pith::status{errc::out_of_range, 0});
  CHECK(heap.used_bytes() == 256);
  CHECK(heap.release(at, 200));
  CHECK(heap.release(at, 200) == pith::status{errc::out_of_range, 200});

  CHECK(extent_heap::make(memory.first + 8, 640, 64).error() == pith::status{errc::misaligned, 8});
  CHECK(extent_heap::make(memory.first, -1, 64).error() == pith::status{errc::out_of_range, -1});
  std::int64_t const too_many = (extent_heap::max_granules + 1) * extent_heap::granule;
  CHECK(extent_heap::make(memory.first, too_many, 64).error() == pith::status{errc::out_of_range, too_many});
  CHECK(extent_heap::make(memory.first, 640, 0).error() == pith::status{errc::out_of_range, 0});
  auto none = extent_heap::make(nullptr, 0, 64);
  REQUIRE(none);
  CHECK(none.value().allocate(1, side::back).error() == pith::status{errc::capacity_exceeded, 1});
}

TEST_CASE("extent_heap: any order of calls agrees with a map of extents", "[page][extents][model]") {
  std::int64_t const bytes = 64 * 400;
  for (unsigned const seed : {1u, 2u, 3u}) {
    std::mt19937 random(seed);
    std::int64_t const largest = seed == 1 ? 640 : seed == 2 ? 64 * 100 : bytes;
    heap_memory memory(bytes);
    extent_heap heap = make_heap(memory, bytes, largest);
    struct extent {
      std::int64_t bytes;
      std::byte fill;
    };
    std::map<std::byte*, extent> used;
    std::int64_t used_bytes = 0, refused = 0;
    auto const is_intact = [](std::byte* at, extent const& e) {
      for (std::int64_t i = 0; i < e.bytes; ++i)
        if (at[i] != e.fill) return false;
      return true;
    };
    auto const add = [&](std::byte* at, std::int64_t wanted) {  // it touches nobody's
      auto const after = used.lower_bound(at);
      bool fits = at >= memory.first && at + pith::round_up(wanted, 64) <= memory.first + bytes;
      if (after != used.end()) fits = fits && at + pith::round_up(wanted, 64) <= after->first;
      if (after != used.begin()) fits = fits && std::prev(after)->first + pith::round_up(std::prev(after)->second.bytes, 64) <= at;
      used[at] = {wanted, static_cast<std::byte>(random())};
      if (fits) std::memset(at, static_cast<int>(used[at].fill), static_cast<std::size_t>(wanted));
      used_bytes += pith::round_up(wanted, 64);
      return fits;
    };
    auto const largest_hole = [&] {
      std::int64_t most = 0;
      std::byte* from = memory.first;
      for (auto const& [at, e] : used) {
        most = std::max<std::int64_t>(most, at - from);
        from = at + pith::round_up(e.bytes, 64);
      }
      return std::max<std::int64_t>(most, memory.first + bytes - from);
    };
    for (int step = 0; step < 30'000; ++step) {
      bool agrees = true;
      unsigned const what = random() % 8;
      auto const some = static_cast<std::int64_t>(random());
      std::int64_t const wanted = 1 + some % (what % 2 == 0 ? std::min<std::int64_t>(largest, 500) : largest);
      side const from = random() % 2 == 0 ? side::front : side::back;
      bool const filling = step / 500 % 2 == 0;
      if (what < (filling ? 5u : 2u)) {
        auto const got = heap.allocate(wanted, from);
        bool const fits = largest_hole() >= pith::round_up(wanted, 64);
        agrees = static_cast<bool>(got) == fits;
        if (got) agrees = agrees && add(got.value(), wanted);
        refused += !fits;
      } else if (!used.empty()) {
        auto const which = std::next(used.begin(), static_cast<std::ptrdiff_t>(random() % used.size()));
        auto const [at, e] = *which;
        agrees = is_intact(at, e);
        used.erase(which);
        used_bytes -= pith::round_up(e.bytes, 64);
        if (what == 7) {
          std::int64_t const less = 1 + some % e.bytes;
          agrees = agrees && add(heap.trade(at, e.bytes, less, from), less);
        } else {
          agrees = agrees && heap.release(at, e.bytes);
        }
      }
      if (!agrees || heap.used_bytes() != used_bytes) FAIL("seed " << seed << ", step " << step);
    }
    CHECK(refused > 100);
    for (auto const& [at, e] : used) {
      REQUIRE(is_intact(at, e));
      REQUIRE(heap.release(at, e.bytes));
    }
    CHECK(heap.used_bytes() == 0);
    for (std::int64_t left = bytes; left >= largest; left -= pith::round_up(largest, 64)) CHECK(heap.allocate(largest, side::front));
  }
}

TEST_CASE("extent_heap: four threads never hold the same bytes", "[page][extents][threads]") {
  heap_memory memory(64 * 300);
  extent_heap heap = make_heap(memory, 64 * 300, 640);
  std::atomic<int> faults = 0;
  auto const work = [&](unsigned seed) {
    std::mt19937 random(seed);
    struct extent {
      std::byte* at;
      std::int64_t bytes;
    };
    std::vector<extent> mine;
    auto const is_mine = [&](extent const& e) {
      for (std::int64_t i = 0; i < e.bytes; ++i)
        if (e.at[i] != static_cast<std::byte>(seed)) return false;
      return true;
    };
    for (int step = 0; step < 10'000; ++step) {
      if (mine.empty() || random() % 2 == 0) {
        std::int64_t const bytes = 1 + random() % 640;
        auto const got = heap.allocate(bytes, random() % 2 == 0 ? side::front : side::back);
        if (!got) continue;
        std::memset(got.value(), static_cast<int>(seed), static_cast<std::size_t>(bytes));
        mine.push_back({got.value(), bytes});
      } else {
        std::swap(mine[random() % mine.size()], mine.back());
        faults += !is_mine(mine.back());
        faults += !heap.release(mine.back().at, mine.back().bytes);
        mine.pop_back();
      }
    }
    for (extent const& e : mine) faults += !is_mine(e) || !heap.release(e.at, e.bytes);
  };
  std::vector<std::thread> threads;
  for (unsigned seed = 1; seed <= 4; ++seed) threads.emplace_back(work, seed);
  for (std::thread& thread : threads) thread.join();
  CHECK(faults == 0);
  CHECK(heap.used_bytes() == 0);
}
