// SPDX-License-Identifier: Apache-2.0
// Protection as a partition, intervals and ladders.
#include "pith/policy/protect.hpp"

#include <numeric>
#include <set>

#include "oracle.hpp"
#include "pith/policy/select_positional.hpp"
#include "support/catch.hpp"

using oracle::kept;
using pith::chosen_slot;
using pith::errc;
using pith::free_slot;
using pith::slot_mark;
using pith::status;

namespace {

using list = std::vector<std::int64_t>;
using marks = std::vector<slot_mark>;

template <class Protect>
marks protect(Protect const& by, std::size_t slots, pith::protect_input const& in = {}) {
  marks of(slots, free_slot);
  REQUIRE(by.mark(of, in));
  return of;
}

}  // namespace

TEST_CASE("protect: a slot belongs to the first class that names it", "[policy][protect]") {
  CHECK(protect(pith::protect<pith::sinks<2>, pith::recent<3>>{}, 7) == marks{1, 1, 0, 0, 2, 2, 2});
  CHECK(protect(pith::protect<pith::recent<3>, pith::sinks<2>>{}, 4) == marks{2, 1, 1, 1});
  CHECK(protect(pith::protect<pith::sinks<2>, pith::window<3>>{}, 1) == marks{1});
  CHECK(protect(pith::protect<pith::sinks<2>, pith::recent<3>>{}, 0).empty());
  CHECK(protect(pith::protect<>{}, 3) == marks{0, 0, 0});
  CHECK(protect(pith::protect<pith::last_page<4>>{}, 6) == marks{0, 0, 0, 0, 1, 1});
  CHECK(protect(pith::protect<pith::last_page<4>>{}, 8) == marks{0, 0, 0, 0, 1, 1, 1, 1});
  CHECK(protect(pith::protect<pith::last_page<4>>{}, 0).empty());
  std::vector<std::uint8_t> const mask{0, 1, 0, 0}, pins{0, 1, 0, 9};
  CHECK(protect(pith::protect<pith::pinned_slots, pith::masked_slots, pith::sinks<1>>{}, 4, {mask, pins}) == marks{3, 1, 0, 1});
  CHECK(protect(pith::protect<pith::pinned_slots, pith::masked_slots>{}, 4) == marks{0, 0, 0, 0});
  marks of(3);
  CHECK(pith::protect<pith::masked_slots>{}.mark(of, {mask, {}}) == status{errc::shape_mismatch, 4});
  pith::protect<pith::sinks<2>, pith::recent<3>> larger;
  larger.at<pith::recent<3>>().slots = 5;
  CHECK(protect(larger, 9) == marks{1, 1, 0, 0, 2, 2, 2, 2, 2});
}

TEST_CASE("clip_protected: the lowest class first, its oldest first", "[policy][protect]") {
  marks of{1, 1, 0, chosen_slot, 2, 2, 2};
  CHECK(pith::protected_slots(of) == 5);
  CHECK(pith::clip_protected(of, 6) == 0);
  CHECK(pith::clip_protected(of, 3) == 2);
  CHECK(of == marks{1, 1, 0, chosen_slot, 0, 0, 2});
  CHECK(pith::clip_protected(of, 1) == 2);
  CHECK(of == marks{0, 1, 0, chosen_slot, 0, 0, 0});
  CHECK(pith::clip_protected(of, -5) == 1);
  CHECK(pith::protected_slots(of) == 0);
}

TEST_CASE("select_interval: sinks and the newest", "[policy][select]") {
  for (std::int64_t const slots : {0, 1, 5, 9, 10, 11, 40}) {
    marks of(static_cast<std::size_t>(slots), free_slot);
    REQUIRE(pith::select_interval(of, 4, 10));
    list expected;
    for (std::int64_t s = 0; s < slots; ++s)
      if (s < 4 || s >= slots - 6) expected.push_back(s);
    CHECK(kept(of) == expected);
  }
  marks of(9, free_slot);
  CHECK(pith::select_interval(of, 4, 3) == status{errc::out_of_range, 4});
  CHECK(pith::select_interval(of, 0, -3));
  CHECK(kept(of).empty());
}

TEST_CASE("ladder: equal counts in all layers, sinks and newest stay, the layers cover more than each holds", "[policy][select]") {
  for (pith::ladder_options const& options :
       {pith::ladder_options{32, 16, 0, 4, 512}, pith::ladder_options{32, 8, 0, 4, 256}, pith::ladder_options{32, 8, 4, 4, 256},
        pith::ladder_options{80, 20, 0, 4, 512}, pith::ladder_options{6, 2, 1, 0, 12}}) {
    pith::ladder const by = pith::ladder::make(options).value();
    std::int64_t const dropped = by.slots_of_ladder() - by.kept_of_ladder();
    std::vector<list> layers(static_cast<std::size_t>(options.layers));
    std::int64_t cursor = 0, next = 0;
    std::mt19937 random(20);
    bool full = false;
    double widest = 0;
    for (int step = 0; step < 1500; ++step) {
      std::int64_t const incoming = step % 50 == 0 ? 1 + random() % (2 * options.capacity) : 1;  // now and then a chunk
      std::int64_t before = 0, after = 0;
      for (std::int64_t l = 0; l < options.layers; ++l) {
        list& held = layers[static_cast<std::size_t>(l)];
        for (std::int64_t i = 0; i < incoming; ++i) held.push_back(next + i);
        before = static_cast<std::int64_t>(held.size());
        std::int64_t moved = cursor;
        std::int64_t const length = by.shorten(held, l, moved);
        held.resize(static_cast<std::size_t>(length));
        if (l > 0) CHECK(length == after);
        after = length;
        if (l + 1 == options.layers) cursor = moved;
      }
      next += incoming;
      full = full || before > by.capacity();
      CHECK(after == (before <= by.capacity() ? before : after));
      CHECK(after <= by.capacity());
      if (full) CHECK(after > by.capacity() - dropped);
      std::set<std::int64_t> all;
      for (list const& held : layers) {
        CHECK(std::adjacent_find(held.begin(), held.end(), std::greater_equal<>{}) == held.end());
        for (std::int64_t s = 0; s < std::min(options.sinks, next); ++s) CHECK(held[static_cast<std::size_t>(s)] == s);
        CHECK(held.back() == next - 1);
        if (step % 100 == 99) all.insert(held.begin(), held.end());
      }
      if (next > options.layers)
        CHECK(layers[0][layers[0].size() - static_cast<std::size_t>(options.layers)] == next - options.layers);  // rule L1
      if (step % 100 == 99) widest = std::max(widest, static_cast<double>(all.size()) / static_cast<double>(after));
    }
    CHECK(widest > 1.3);
  }
  CHECK(pith::ladder::make({32, 32, 0, 4, 512}).error() == status{errc::out_of_range, -1});  // the published formula divides by zero
  CHECK(pith::ladder::make({6, 4, 3, 0, 50}).error() == status{errc::out_of_range, -1});     // nothing would be dropped
  CHECK(pith::ladder::make({32, 16, 16, 4, 512}).error() == status{errc::out_of_range, -1});
  CHECK(pith::ladder::make({32, 16, 0, 4, 35}).error() == status{errc::out_of_range, -1});
}
