// SPDX-License-Identifier: Apache-2.0
#include "pith/page/pool.hpp"

#include <algorithm>
#include <atomic>
#include <limits>
#include <memory>
#include <random>
#include <set>
#include <thread>
#include <vector>

#include "support/catch.hpp"

using pith::block_id;
using pith::errc;
using pith::no_block;

namespace {

// The pool never touches its memory, so an address that nobody owns will do.
std::byte* fake_memory() { return reinterpret_cast<std::byte*>(std::uintptr_t{1} << 40); }

pith::block_pool make_pool(std::int64_t blocks) {
  auto made = pith::block_pool::make(fake_memory(), 64, blocks);
  REQUIRE(made);
  return std::move(made).value();
}

}  // namespace

TEST_CASE("block_pool: a table that hints at its last block gets an ascending run", "[page][pool]") {
  pith::block_pool pool = make_pool(1024);
  block_id last[4];
  for (block_id& id : last) id = pool.allocate().value();
  for (int page = 1; page < 64; ++page)
    for (block_id& id : last) {  // four tables grow in turns
      block_id const next = pool.allocate(id).value();
      REQUIRE(next.value == id.value + 1);
      id = next;
    }
}

TEST_CASE("block_pool: a new run begins in 64 free blocks while there are such", "[page][pool]") {
  pith::block_pool pool = make_pool(64 * 3 + 7);
  std::set<std::uint32_t> words;
  for (int i = 0; i < 3; ++i) {
    block_id const id = pool.allocate().value();
    CHECK(id.value % 64 == 0);
    words.insert(id.value / 64);
  }
  CHECK(words.size() == 3);
  CHECK(pool.allocate().value().value % 64 != 0);  // no such word is left, but blocks are
  for (std::uint32_t block = 64; block < 128; ++block) static_cast<void>(pool.release({block}));
  CHECK(pool.allocate().value().value == 64);
}

TEST_CASE("block_pool: a hint that is taken, last or foreign is no error", "[page][pool][edge]") {
  pith::block_pool pool = make_pool(3);
  CHECK(pool.allocate({0xfffffffe}).value() == block_id{0});
  CHECK(pool.allocate({1}).value() == block_id{2});
  CHECK(pool.allocate({2}).value() == block_id{1});
}

TEST_CASE("block_pool: exhaustion is a status and changes nothing", "[page][pool]") {
  pith::block_pool pool = make_pool(70);
  for (int i = 0; i < 68; ++i) REQUIRE(pool.allocate());
  block_id ids[3] = {{7}, {8}, {9}};
  CHECK(pool.allocate_many(ids) == pith::status{errc::capacity_exceeded, 3});
  CHECK(ids[0] == block_id{7});
  CHECK(pool.used_blocks() == 68);
  CHECK(pool.allocate_many(std::span(ids).first(2)));
  CHECK(pool.allocate().error() == pith::status{errc::capacity_exceeded, 1});
  CHECK(pool.allocate_many(std::span(ids).first(0)));
  CHECK(pool.used_blocks() == 70);
  CHECK(pool.used_bytes() == 70 * 64);
}

TEST_CASE("block_pool: allocate_many gives one ascending run where it can", "[page][pool]") {
  pith::block_pool pool = make_pool(256);
  std::vector<block_id> ids(100);
  REQUIRE(pool.allocate_many(ids, {9}));
  for (std::size_t i = 0; i < ids.size(); ++i) CHECK(ids[i].value == 10 + i);
}

TEST_CASE("block_pool: releasing a free or foreign block is a status and changes nothing", "[page][pool]") {
  pith::block_pool pool = make_pool(10);
  block_id const id = pool.allocate().value();
  REQUIRE(pool.allocate());
  CHECK(pool.release(id));
  CHECK(pool.release(id) == pith::status{errc::out_of_range, id.value});
  CHECK(pool.release({9}) == pith::status{errc::out_of_range, 9});
  CHECK(pool.release({10}) == pith::status{errc::out_of_range, 10});
  CHECK(pool.release(no_block) == pith::status{errc::out_of_range, 0xffffffff});
  CHECK(pool.used_blocks() == 1);
}

TEST_CASE("block_pool: block 5000 of 1 MiB is addressed in 64 bits", "[page][pool][overflow]") {
  std::int64_t const mebibyte = std::int64_t{1} << 20;
  auto const made = pith::block_pool::make(fake_memory(), mebibyte, 6000);
  REQUIRE(made);
  pith::block_pool const& pool = made.value();
  CHECK(reinterpret_cast<std::uintptr_t>(pool.address({5000})) - reinterpret_cast<std::uintptr_t>(fake_memory()) == 5'242'880'000u);
  CHECK(pool.address({0}) == fake_memory());
}

TEST_CASE("block_pool: sizes, counts and addresses that cannot be are refused", "[page][pool][edge]") {
  using pith::block_pool;
  CHECK(block_pool::make(fake_memory(), 0, 4).error() == pith::status{errc::misaligned, 0});
  CHECK(block_pool::make(fake_memory(), -64, 4).error() == pith::status{errc::misaligned, -64});
  CHECK(block_pool::make(fake_memory(), 96, 4).error() == pith::status{errc::misaligned, 96});
  CHECK(block_pool::make(fake_memory() + 16, 64, 4).error() == pith::status{errc::misaligned, 16});
  CHECK(block_pool::make(fake_memory(), 64, -1).error() == pith::status{errc::out_of_range, -1});
  std::int64_t const too_many = block_pool::max_blocks + 1;
  CHECK(block_pool::make(fake_memory(), 64, too_many).error() == pith::status{errc::out_of_range, too_many});
  std::int64_t const most = std::numeric_limits<std::int64_t>::max() / 64 * 64;
  CHECK(block_pool::make(fake_memory(), most, 2).error() == pith::status{errc::out_of_range, 2});
}

TEST_CASE("block_pool: no blocks at all are legal", "[page][pool][edge]") {
  auto made = pith::block_pool::make(nullptr, 64, 0);
  REQUIRE(made);
  auto const pool = std::make_unique<pith::block_pool>(std::move(made).value());
  CHECK(pool->allocate().error() == pith::status{errc::capacity_exceeded, 1});
  CHECK(pool->used_bytes() == 0);
}

TEST_CASE("block_pool: any order of calls agrees with a set of block numbers", "[page][pool][model]") {
  unsigned const seed = 20240611;
  INFO("seed " << seed);
  std::mt19937 random(seed);
  std::int64_t const blocks = 200;
  pith::block_pool pool = make_pool(blocks);
  std::set<std::uint32_t> used;
  for (int step = 0; step < 100'000; ++step) {
    block_id const any{static_cast<std::uint32_t>(random() % (blocks + 20))};
    bool agrees = true;
    if (step % 5000 == 0) {
      for (std::uint32_t const block : used) REQUIRE(pool.release({block}));
      used.clear();
    }
    bool const filling = step / 1000 % 2 == 0;
    if (unsigned const what = random() % 8; what < (filling ? 4u : 1u)) {
      auto const got = pool.allocate(any);
      agrees = static_cast<bool>(got) == (static_cast<std::int64_t>(used.size()) < blocks);
      if (got) agrees = agrees && got.value().value < blocks && used.insert(got.value().value).second;
    } else if (filling && what == 4) {
      std::vector<block_id> ids(random() % 9);
      bool const fits = static_cast<std::int64_t>(used.size() + ids.size()) <= blocks;
      agrees = static_cast<bool>(pool.allocate_many(ids, any)) == fits;
      if (fits) agrees = agrees && std::all_of(ids.begin(), ids.end(), [&](block_id id) { return used.insert(id.value).second; });
    } else {
      agrees = static_cast<bool>(pool.release(any)) == (used.erase(any.value) == 1);
    }
    if (!agrees || pool.used_blocks() != static_cast<std::int64_t>(used.size())) FAIL("step " << step);
  }
  for (std::uint32_t const block : used) REQUIRE(pool.release({block}));
  CHECK(pool.used_blocks() == 0);
  for (int i = 0; i < 3; ++i) CHECK(pool.allocate().value().value % 64 == 0);  // whole words are counted rightly to the end
}

TEST_CASE("block_pool: four threads never hold the same block", "[page][pool][threads]") {
  std::int64_t const blocks = 300;
  pith::block_pool pool = make_pool(blocks);
  std::vector<std::atomic<int>> holders(blocks);
  std::atomic<int> faults = 0;
  auto const work = [&](unsigned seed) {
    std::mt19937 random(seed);
    std::vector<block_id> mine;
    for (int step = 0; step < 20'000; ++step) {
      if (mine.empty() || random() % 2 == 0) {
        auto const got = pool.allocate(mine.empty() ? no_block : mine.back());
        if (!got) continue;
        faults += holders[got.value().value].exchange(1) != 0;
        mine.push_back(got.value());
      } else {
        std::swap(mine[random() % mine.size()], mine.back());
        holders[mine.back().value] = 0;
        faults += !pool.release(mine.back());
        mine.pop_back();
      }
    }
    for (block_id const id : mine) {
      holders[id.value] = 0;
      faults += !pool.release(id);
    }
  };
  std::vector<std::thread> threads;
  for (unsigned seed = 1; seed <= 4; ++seed) threads.emplace_back(work, seed);
  for (std::thread& thread : threads) thread.join();
  CHECK(faults == 0);
  CHECK(pool.used_blocks() == 0);
}
