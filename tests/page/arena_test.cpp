// SPDX-License-Identifier: Apache-2.0
#include "pith/page/arena.hpp"

#include <cstring>
#include <limits>

#include "support/catch.hpp"

using pith::errc;

namespace {

std::int64_t past_multiple(std::byte const* address, std::int64_t of) {
  return static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(address) % static_cast<std::uintptr_t>(of));
}

constexpr std::int64_t mebibyte = std::int64_t{1} << 20;

// The sanitizers' allocators end the program where others return null.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool sanitized = true;
#elif defined(__has_feature)
constexpr bool sanitized = __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) || __has_feature(memory_sanitizer);
#else
constexpr bool sanitized = false;
#endif

}  // namespace

TEST_CASE("heap_arena: memory is aligned, writable and as large as asked for", "[page][arena]") {
  std::int64_t const sizes[] = {1, 64, 4097, 4 * mebibyte - 1, 4 * mebibyte, 5 * mebibyte + 1};
  for (std::int64_t const bytes : sizes) {
    INFO("bytes " << bytes);
    auto made = pith::heap_arena::make(bytes);
    REQUIRE(made);
    pith::heap_arena const arena = std::move(made).value();
    CHECK(arena.bytes() == bytes);
    CHECK(past_multiple(arena.data(), bytes >= 4 * mebibyte ? 2 * mebibyte : 4096) == 0);
    std::memset(arena.data(), 0x5a, static_cast<std::size_t>(bytes));
  }
}

TEST_CASE("heap_arena: zero bytes are legal", "[page][arena][edge]") {
  auto const made = pith::heap_arena::make(0);
  REQUIRE(made);
  CHECK(made.value().bytes() == 0);
}

TEST_CASE("heap_arena: a negative or impossible size is a status with that size", "[page][arena][edge]") {
  CHECK(pith::heap_arena::make(-1).error() == pith::status{errc::out_of_range, -1});
  std::int64_t const most = std::numeric_limits<std::int64_t>::max();
  CHECK(pith::heap_arena::make(most).error() == pith::status{errc::out_of_memory, most});
  if (!sanitized) CHECK(pith::heap_arena::make(most / 2).error() == pith::status{errc::out_of_memory, most / 2});
}

TEST_CASE("heap_arena: moving the arena does not move the memory", "[page][arena]") {
  pith::heap_arena first = pith::heap_arena::make(4096).value();
  std::byte* const data = first.data();
  pith::heap_arena second = std::move(first);
  CHECK(second.data() == data);
  CHECK(second.bytes() == 4096);
  pith::heap_arena third = pith::heap_arena::make(64).value();
  third = std::move(second);
  CHECK(third.data() == data);
  CHECK(third.bytes() == 4096);
}

TEST_CASE("borrowed_arena: is the caller's bytes, and refuses a misaligned start", "[page][arena]") {
  alignas(64) std::byte memory[256];
  auto const made = pith::borrowed_arena::make(memory);
  REQUIRE(made);
  CHECK(made.value().data() == memory);
  CHECK(made.value().bytes() == 256);
  CHECK(pith::borrowed_arena::make(std::span(memory).subspan(8)).error() == pith::status{errc::misaligned, 8});
  CHECK(pith::borrowed_arena::make({}));
}

TEST_CASE("arena_cursor: pieces are aligned, in order and disjoint until the arena is used up", "[page][arena]") {
  alignas(256) std::byte memory[1024];
  pith::arena_cursor cursor(pith::borrowed_arena::make(memory).value());
  CHECK(cursor.carve(10).value() == memory);
  CHECK(cursor.carve(1).value() == memory + 64);
  CHECK(cursor.carve(1, 1).value() == memory + 65);
  CHECK(cursor.carve(0, 1).value() == memory + 66);
  CHECK(cursor.carve(256, 256).value() == memory + 256);
  CHECK(cursor.remaining_bytes() == 512);
  CHECK(cursor.carve(513).error() == pith::status{errc::capacity_exceeded, 513});
  CHECK(cursor.remaining_bytes() == 512);
  CHECK(cursor.carve(512).value() == memory + 512);
  CHECK(cursor.remaining_bytes() == 0);
  CHECK(cursor.carve(0));
  CHECK(cursor.carve(1, 1).error() == pith::status{errc::capacity_exceeded, 1});
}

TEST_CASE("arena_cursor: padding that does not fit is refused, and so are sizes and alignments without meaning", "[page][arena][edge]") {
  alignas(256) std::byte memory[128];
  pith::arena_cursor cursor(pith::borrowed_arena::make(memory).value());
  CHECK(cursor.carve(1, 1));
  CHECK(cursor.carve(0, 256).error() == pith::status{errc::capacity_exceeded, 0});
  CHECK(cursor.carve(-1).error() == pith::status{errc::out_of_range, -1});
  CHECK(cursor.carve(1, 0).error() == pith::status{errc::misaligned, 0});
  CHECK(cursor.carve(1, 48).error() == pith::status{errc::misaligned, 48});
  std::int64_t const most = std::numeric_limits<std::int64_t>::max();
  CHECK(cursor.carve(most, 64).error() == pith::status{errc::capacity_exceeded, most});
  CHECK(cursor.remaining_bytes() == 127);
}
