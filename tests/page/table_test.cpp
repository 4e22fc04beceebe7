// SPDX-License-Identifier: Apache-2.0
#include "pith/page/table.hpp"

#include <algorithm>
#include <atomic>
#include <map>
#include <random>
#include <thread>
#include <vector>

#include "support/catch.hpp"

using pith::block_id;
using pith::errc;
using pith::no_block;
using pith::status;
using pith::table;

namespace {

// A pool and a store; the pool never touches its memory, so an address that nobody owns will do.
struct setting {
  pith::block_pool pool;
  pith::run_store store;

  setting(std::int64_t blocks, std::int64_t runs)
      : pool(pith::block_pool::make(reinterpret_cast<std::byte*>(std::uintptr_t{1} << 40), 64, blocks).value()),
        store(pith::run_store::make(runs).value()) {}

  void grow(table& to, int pages) {
    for (int i = 0; i < pages; ++i) REQUIRE(store.append(to, pool, pool.allocate().value()));
  }

  std::vector<block_id> blocks(table const& of) const {
    std::vector<block_id> all;
    for (std::int64_t page = 0; page < of.pages; ++page) all.push_back(store.block(of, page));
    return all;
  }
};

std::vector<block_id> first(std::vector<block_id> blocks, std::size_t count) {
  blocks.resize(count);
  return blocks;
}

}  // namespace

TEST_CASE("table: pages come back in order, run by run, newest first", "[page][table]") {
  setting s(100, 4);
  table t;
  std::vector<block_id> expected;
  for (int page = 0; page < 70; ++page) {
    expected.push_back(s.pool.allocate(expected.empty() ? no_block : expected.back()).value());
    REQUIRE(s.store.append(t, s.pool, expected.back()));
  }
  CHECK(t.pages == 70);
  CHECK(s.blocks(t) == expected);
  std::vector<std::pair<std::int64_t, std::size_t>> runs;
  s.store.for_each_run(t, [&](std::int64_t page, std::span<block_id const> blocks) {
    runs.emplace_back(page, blocks.size());
    CHECK(std::equal(blocks.begin(), blocks.end(), expected.begin() + page));
  });
  CHECK(runs == std::vector<std::pair<std::int64_t, std::size_t>>{{64, 6}, {32, 32}, {0, 32}});
  CHECK(s.store.used_runs() == 3);
}

TEST_CASE("table: no pages need no run", "[page][table][edge]") {
  setting s(0, 0);
  table t;
  s.store.for_each_run(t, [](std::int64_t, std::span<block_id const>) { FAIL("called"); });
  CHECK(s.store.fork(t).pages == 0);
  s.store.truncate(t, s.pool, 0);
  s.store.clear(t, s.pool);
  CHECK(s.store.drop(t, s.pool, 0) == status{errc::out_of_range, 0});
  CHECK(s.store.append(t, s.pool, no_block) == status{errc::capacity_exceeded, 1});
  CHECK(s.store.used_bytes() == 0);
}

TEST_CASE("table: a fork takes neither run nor block, and both sides then grow apart", "[page][table][fork]") {
  setting s(200, 8);
  table a;
  s.grow(a, 50);
  table b = s.store.fork(a);
  CHECK(s.store.used_runs() == 2);
  CHECK(s.pool.used_blocks() == 50);
  CHECK(s.blocks(a) == s.blocks(b));
  s.grow(a, 3);
  s.grow(b, 5);
  CHECK(s.store.used_runs() == 4);
  CHECK(s.pool.used_blocks() == 58);
  CHECK(first(s.blocks(a), 50) == first(s.blocks(b), 50));
  CHECK(s.store.block(a, 50) != s.store.block(b, 50));
  std::vector<block_id> const left = s.blocks(b);
  s.store.clear(a, s.pool);
  CHECK(s.pool.used_blocks() == 55);
  CHECK(s.blocks(b) == left);
  s.store.clear(b, s.pool);
  CHECK(s.pool.used_blocks() == 0);
  CHECK(s.store.used_runs() == 0);
}

TEST_CASE("table: truncate releases what no fork holds", "[page][table][truncate]") {
  setting s(200, 8);
  table a;
  s.grow(a, 70);
  std::vector<block_id> const all = s.blocks(a);
  s.store.truncate(a, s.pool, 70);
  s.store.truncate(a, s.pool, 1000);
  CHECK(s.pool.used_blocks() == 70);
  table b = s.store.fork(a);
  s.store.truncate(a, s.pool, 40);  // b still holds everything
  CHECK(s.pool.used_blocks() == 70);
  CHECK(s.blocks(a) == first(all, 40));
  CHECK(s.blocks(b) == all);
  s.store.truncate(b, s.pool, 40);  // nobody uses pages 64..69, but each side alone cannot know about 40..63
  CHECK(s.pool.used_blocks() == 64);
  CHECK(s.store.used_runs() == 2);
  s.store.clear(b, s.pool);
  s.store.truncate(a, s.pool, 32);
  CHECK(s.pool.used_blocks() == 32);
  CHECK(s.store.used_runs() == 1);
  CHECK(s.blocks(a) == first(all, 32));
  s.store.truncate(a, s.pool, 0);
  CHECK(s.pool.used_blocks() == 0);
  CHECK(s.store.used_runs() == 0);
}

TEST_CASE("table: a run that is unshared again gives back the entries beyond its table", "[page][table][fork]") {
  setting s(100, 8);
  table a;
  s.grow(a, 20);
  std::vector<block_id> const all = s.blocks(a);
  table b = s.store.fork(a);
  s.store.truncate(b, s.pool, 5);
  s.store.clear(a, s.pool);
  CHECK(s.pool.used_blocks() == 20);  // the run's, until b writes

  SECTION("at the next append, in place") {
    s.grow(b, 1);
    CHECK(s.pool.used_blocks() == 6);
    CHECK(s.store.used_runs() == 1);
    CHECK(first(s.blocks(b), 5) == first(all, 5));
  }
  SECTION("at the next truncate") {
    s.store.truncate(b, s.pool, 4);
    CHECK(s.pool.used_blocks() == 4);
  }
  SECTION("with the run") {}
  s.store.clear(b, s.pool);
  CHECK(s.pool.used_blocks() == 0);
  CHECK(s.store.used_runs() == 0);
}

TEST_CASE("table: entries hidden behind a later run are released with theirs", "[page][table][fork]") {
  setting s(100, 8);
  table a;
  s.grow(a, 20);
  table b = s.store.fork(a);
  s.store.truncate(b, s.pool, 5);
  s.grow(b, 2);  // a new run after 5 of 20 entries
  s.store.clear(a, s.pool);
  CHECK(s.blocks(b).size() == 7);
  CHECK(s.pool.used_blocks() == 22);
  s.store.truncate(b, s.pool, 5);
  CHECK(s.pool.used_blocks() == 5);
  s.store.clear(b, s.pool);
  CHECK(s.pool.used_blocks() == 0);
}

TEST_CASE("table: drop releases one block, and is refused while a fork shares the way to it", "[page][table][drop]") {
  setting s(100, 8);
  table a;
  s.grow(a, 40);
  CHECK(s.store.drop(a, s.pool, 3));
  CHECK(s.store.drop(a, s.pool, 3));
  CHECK(s.store.block(a, 3) == no_block);
  CHECK(a.pages == 40);
  CHECK(s.pool.used_blocks() == 39);
  CHECK(s.store.drop(a, s.pool, 40) == status{errc::out_of_range, 40});
  CHECK(s.store.drop(a, s.pool, -1) == status{errc::out_of_range, -1});

  table b = s.store.fork(a);
  std::vector<block_id> const all = s.blocks(a);
  CHECK(s.store.drop(a, s.pool, 39) == status{errc::unsupported, 39});
  CHECK(s.store.drop(b, s.pool, 0) == status{errc::unsupported, 0});  // counted once, by a run that is shared
  s.grow(b, 1);
  CHECK(s.store.drop(b, s.pool, 40));
  CHECK(s.store.drop(b, s.pool, 39) == status{errc::unsupported, 39});
  CHECK(s.blocks(a) == all);
  CHECK(first(s.blocks(b), 40) == all);
  s.store.clear(b, s.pool);
  CHECK(s.store.drop(a, s.pool, 0));
  s.store.clear(a, s.pool);
  CHECK(s.pool.used_blocks() == 0);
}

TEST_CASE("table: a full store is a status, and the block stays the caller's", "[page][table]") {
  setting s(100, 2);
  table a;
  s.grow(a, 40);
  table b = s.store.fork(a);
  std::vector<block_id> const all = s.blocks(a);
  block_id const block = s.pool.allocate().value();
  CHECK(s.store.append(b, s.pool, block) == status{errc::capacity_exceeded, 1});
  CHECK(s.blocks(b) == all);
  CHECK(s.blocks(a) == all);
  s.store.clear(a, s.pool);
  CHECK(s.store.append(b, s.pool, block));
  s.store.clear(b, s.pool);
  CHECK(s.pool.used_blocks() == 0);
}

TEST_CASE("run_store: counts that cannot be are refused", "[page][table][edge]") {
  CHECK(pith::run_store::make(-1).error() == status{errc::out_of_range, -1});
  CHECK(pith::run_store::make(pith::no_run).error() == status{errc::out_of_range, 0xffffffff});
}

TEST_CASE("table: a chain of 200000 runs is cleared without recursion", "[page][table]") {
  int const pages = 200'000;
  setting s(pages, pages);
  table t;
  for (int page = 0; page < pages; ++page) {  // each append meets a shared tail
    table next = s.store.fork(t);
    s.grow(next, 1);
    s.store.clear(t, s.pool);
    t = next;
  }
  CHECK(s.store.used_runs() == pages);
  s.store.clear(t, s.pool);
  CHECK(s.store.used_runs() == 0);
  CHECK(s.pool.used_blocks() == 0);
}

namespace {

// Random calls on a few tables, next to a map from page to block for each, and how many tables see each block.
class trial {
 public:
  trial(unsigned seed, bool forks, std::int64_t blocks, std::int64_t runs) : s_(blocks, runs), random_(seed), forks_(forks) {}

  int full_pool = 0, full_store = 0, refused_drops = 0, accepted_drops = 0;

  // One call; says what disagreed with the model, or "".
  char const* step() {
    unsigned const what = roll(100);
    if (members_.empty() || (what < 4 && members_.size() < 8)) {
      members_.push_back({{}, {}, next_family_++});
      return compare();
    }
    std::size_t const i = roll(static_cast<unsigned>(members_.size()));
    char const* const fault = what < 74   ? append(members_[i])
                              : what < 80 ? fork(i)
                              : what < 88 ? truncate(members_[i])
                              : what < 98 ? drop(members_[i])
                                          : close(i);
    return *fault ? fault : compare();
  }

  char const* close_all() {
    while (!members_.empty()) close(members_.size() - 1);
    if (s_.pool.used_blocks() != 0) return "blocks leaked";
    return s_.store.used_runs() != 0 ? "runs leaked" : "";
  }

 private:
  struct member {
    table real;
    std::map<std::int64_t, block_id> pages;
    int family;  // forks of forks of one opened table
  };

  unsigned roll(unsigned sides) { return static_cast<unsigned>(random_() % sides); }

  void forget(block_id block) {
    if (block != no_block && --owners_[block.value] == 0) owners_.erase(block.value);
  }

  char const* append(member& to) {
    std::int64_t const blocks = s_.pool.used_blocks(), runs = s_.store.used_runs();
    auto const got = s_.pool.allocate(to.pages.empty() ? no_block : to.pages.rbegin()->second);
    if (!got) {
      ++full_pool;
      return blocks == s_.pool.blocks() && s_.pool.used_blocks() == blocks ? "" : "the pool was not full";
    }
    if (owners_.contains(got.value().value)) return "a block that a table shows was given out again";
    if (status const s = s_.store.append(to.real, s_.pool, got.value()); !s) {
      ++full_store;
      if (!s_.pool.release(got.value())) return "a refused append kept the block";
      return s == status{errc::capacity_exceeded, 1} && runs == s_.store.runs() && s_.pool.used_blocks() == blocks ? "" : "append refused";
    }
    to.pages.emplace(static_cast<std::int64_t>(to.pages.size()), got.value());
    owners_[got.value().value] = 1;
    return "";
  }

  char const* fork(std::size_t i) {
    if (!forks_ || members_.size() >= 8) return "";
    member copy = members_[i];
    copy.real = s_.store.fork(members_[i].real);
    for (auto const& [page, block] : copy.pages)
      if (block != no_block) ++owners_[block.value];
    members_.push_back(copy);
    return "";
  }

  char const* truncate(member& from) {
    auto const now = static_cast<unsigned>(from.pages.size());
    std::int64_t const pages = roll(4) == 0 ? roll(now + 2) : now - roll(std::min(now, 6u) + 1);  // anywhere, or a few pages back
    s_.store.truncate(from.real, s_.pool, pages);
    while (static_cast<std::int64_t>(from.pages.size()) > pages) {
      forget(from.pages.rbegin()->second);
      from.pages.erase(std::prev(from.pages.end()));
    }
    return "";
  }

  char const* drop(member& from) {
    std::int64_t const page = roll(static_cast<unsigned>(from.pages.size()) + 1);
    status const s = s_.store.drop(from.real, s_.pool, page);
    auto const found = from.pages.find(page);
    if (found == from.pages.end()) return s == status{errc::out_of_range, page} ? "" : "a page past the end was dropped";
    if (!s) {
      ++refused_drops;
      auto const relatives = std::count_if(members_.begin(), members_.end(), [&](member const& m) { return m.family == from.family; });
      return s == status{errc::unsupported, page} && relatives > 1 ? "" : "drop refused without a fork";
    }
    ++accepted_drops;
    if (found->second != no_block && owners_[found->second.value] != 1) return "a page that a fork shows was dropped";
    forget(std::exchange(found->second, no_block));
    return "";
  }

  char const* close(std::size_t i) {
    s_.store.clear(members_[i].real, s_.pool);
    for (auto const& [page, block] : members_[i].pages) forget(block);
    members_.erase(members_.begin() + static_cast<std::ptrdiff_t>(i));
    return "";
  }

  char const* compare() {
    std::int64_t runs = 0;
    for (member const& m : members_) {
      auto const pages = static_cast<std::int64_t>(m.pages.size());
      auto expected = m.pages.rbegin();
      bool same = m.real.pages == pages;
      s_.store.for_each_run(m.real, [&](std::int64_t first_page, std::span<block_id const> blocks) {
        for (std::size_t i = blocks.size(); i-- > 0; ++expected)
          if (expected == m.pages.rend() || expected->first != first_page + static_cast<std::int64_t>(i) || expected->second != blocks[i]) {
            same = false;
            return;
          }
      });
      if (!same || expected != m.pages.rend()) return "a table differs from its model";
      if (std::int64_t const any = roll(1000); any < pages && s_.store.block(m.real, any) != m.pages.at(any)) return "block() differs";
      runs += pith::divide_up(pages, pith::run_store::run_blocks);
    }
    auto const shown = static_cast<std::int64_t>(owners_.size());
    if (s_.pool.used_blocks() < shown) return "a block that a table shows is free";
    if (!forks_ && s_.pool.used_blocks() != shown) return "a block that no table shows is used";
    if (!forks_ && s_.store.used_runs() != runs) return "more runs than pages need";
    return "";
  }

  setting s_;
  std::mt19937 random_;
  bool forks_;
  std::vector<member> members_;
  std::map<std::uint32_t, int> owners_;  // how many tables show a block
  int next_family_ = 0;
};

}  // namespace

TEST_CASE("table: any order of calls agrees with a map from page to block", "[page][table][model]") {
  for (bool const forks : {false, true})
    for (bool const few_runs : {false, true})
      for (unsigned const seed : {1u, 77u, 4242u}) {
        INFO("seed " << seed << ", forks " << forks << ", few runs " << few_runs);
        trial t(seed, forks, few_runs ? 200 : 96, few_runs ? 7 : 200);
        for (int step = 0; step < 40'000; ++step) {
          if (char const* const fault = t.step(); *fault) FAIL("step " << step << ": " << fault);
          if (step % 4000 == 3999)
            if (char const* const fault = t.close_all(); *fault) FAIL("step " << step << ": " << fault);
        }
        CHECK((few_runs ? t.full_store : t.full_pool) > 1000);
        CHECK(t.accepted_drops > 100);
        CHECK((t.refused_drops > 100) == forks);
      }
}

TEST_CASE("table: four threads fork one table, write their own and leave nothing behind", "[page][table][threads]") {
  setting s(400, 64);
  table base;
  s.grow(base, 45);
  std::vector<block_id> const expected = s.blocks(base);
  std::atomic<int> faults = 0, appended = 0;
  auto const work = [&](unsigned seed) {
    std::mt19937 random(seed);
    table mine[3];
    for (int step = 0; step < 20'000; ++step) {
      table& t = mine[random() % 3];
      switch (random() % 8) {
        case 0:
          s.store.clear(t, s.pool);
          t = s.store.fork(base);
          break;
        case 1:
          if (table& other = mine[random() % 3]; &other != &t) {
            s.store.clear(t, s.pool);
            t = s.store.fork(other);
          }
          break;
        case 2: s.store.truncate(t, s.pool, static_cast<std::int64_t>(random() % 64)); break;
        case 3: static_cast<void>(s.store.drop(t, s.pool, t.pages - 1)); break;
        default:
          if (auto const got = s.pool.allocate(); got) {
            if (s.store.append(t, s.pool, got.value())) {
              ++appended;
              faults += s.store.block(t, t.pages - 1) != got.value();
            } else {
              faults += !s.pool.release(got.value());
            }
          }
      }
      s.store.for_each_run(t, [&](std::int64_t, std::span<block_id const> blocks) {
        for (block_id const id : blocks) faults += id != no_block && id.value >= 400;
      });
    }
    for (table& t : mine) s.store.clear(t, s.pool);
  };
  std::vector<std::thread> threads;
  for (unsigned seed = 1; seed <= 4; ++seed) threads.emplace_back(work, seed);
  for (std::thread& thread : threads) thread.join();
  CHECK(faults == 0);
  CHECK(appended > 1000);
  CHECK(s.blocks(base) == expected);
  CHECK(s.pool.used_blocks() == 45);
  s.store.clear(base, s.pool);
  CHECK(s.pool.used_blocks() == 0);
  CHECK(s.store.used_runs() == 0);
}
