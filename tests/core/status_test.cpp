// SPDX-License-Identifier: Apache-2.0
#include "pith/core/status.hpp"

#include <cstdint>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>

#include "support/catch.hpp"

namespace {

// Counts the live objects of its type.
struct counted {
  static inline int alive = 0;
  int value;
  explicit counted(int v) : value(v) { ++alive; }
  counted(counted&& other) noexcept : value(other.value) { ++alive; }
  ~counted() { --alive; }
};

pith::result<counted> make(bool succeed) {
  if (!succeed) return pith::status{pith::errc::truncated, 12};
  return counted(5);
}

}  // namespace

TEST_CASE("status: success is true, an error is false and says where", "[core]") {
  pith::status const good;
  CHECK(static_cast<bool>(good));
  CHECK(good.at == 0);
  pith::status const bad{pith::errc::shape_mismatch, std::int64_t{1} << 40};
  CHECK_FALSE(static_cast<bool>(bad));
  CHECK(bad.at == std::int64_t{1} << 40);
  CHECK(bad == pith::status{pith::errc::shape_mismatch, std::int64_t{1} << 40});
  CHECK_FALSE(bad == good);
  static_assert(std::is_trivially_copyable_v<pith::status> && sizeof(pith::status) == 16);
}

TEST_CASE("status: every code has a message of its own", "[core]") {
  for (int a = 0; a <= static_cast<int>(pith::errc::io_error); ++a) {
    std::string const text = pith::message(static_cast<pith::errc>(a));
    CHECK(text != "unknown");
    for (int b = 0; b < a; ++b) CHECK(text != pith::message(static_cast<pith::errc>(b)));
  }
  CHECK(std::string(pith::message(static_cast<pith::errc>(200))) == "unknown");
}

TEST_CASE("result: of a trivially copyable type is trivially copyable", "[core]") {
  static_assert(std::is_trivially_copyable_v<pith::result<int>>);
  static_assert(std::is_trivially_copy_constructible_v<pith::result<int>>);
  static_assert(std::is_trivially_destructible_v<pith::result<int>>);
  pith::result<int> const good = 7;
  pith::result<int> const copy = good;
  CHECK(static_cast<bool>(copy));
  CHECK(copy.value() == 7);
  CHECK(copy.error() == pith::status{});
}

TEST_CASE("result: carries the error and its position", "[core]") {
  pith::result<int> const bad = pith::status{pith::errc::capacity_exceeded, 3};
  CHECK_FALSE(static_cast<bool>(bad));
  CHECK(bad.error() == pith::status{pith::errc::capacity_exceeded, 3});
  pith::result<int> const copy = bad;
  CHECK(copy.error() == bad.error());
}

TEST_CASE("result: works in constant expressions", "[core]") {
  static_assert(pith::result<int>(4).value() == 4);
  static_assert(pith::result<int>(pith::status{pith::errc::truncated, 9}).error().at == 9);
  SUCCEED();
}

TEST_CASE("result: of a move-only type moves, and cannot be copied", "[core]") {
  using boxed = pith::result<std::unique_ptr<int>>;
  static_assert(std::is_move_constructible_v<boxed> && !std::is_copy_constructible_v<boxed>);
  boxed first = std::make_unique<int>(11);
  boxed second = std::move(first);
  REQUIRE(static_cast<bool>(second));
  std::unique_ptr<int> const taken = std::move(second).value();
  CHECK(*taken == 11);
}

TEST_CASE("result: destroys its value exactly once, and destroys nothing when it holds an error", "[core]") {
  {
    pith::result<counted> good = make(true);
    CHECK(good.value().value == 5);
    CHECK(counted::alive == 1);
    pith::result<counted> moved = std::move(good);
    CHECK(moved.value().value == 5);
    pith::result<counted> bad = make(false);
    pith::result<counted> still_bad = std::move(bad);
    CHECK_FALSE(static_cast<bool>(still_bad));
    CHECK(still_bad.error() == pith::status{pith::errc::truncated, 12});
  }
  CHECK(counted::alive == 0);
}
