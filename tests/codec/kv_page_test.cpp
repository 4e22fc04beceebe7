// SPDX-License-Identifier: Apache-2.0
#include "pith/codec/kv_page.hpp"

#include "pith/codec/integer.hpp"
#include "pith/codec/raw.hpp"
#include "support/catch.hpp"

using namespace pith;

TEST_CASE("kv_page: keys, then values, whole tiles each, aligned to 64 bytes", "[codec]") {
  using page = kv_page<int4<per_channel<64>>, int2<per_token<32>, zero::real, f16>, 192, 128, 128>;
  static_assert(page::key_tile::tokens == 64 && page::value_tile::tokens == 32 && page::tile_tokens == 64);
  static_assert(page::values_at == 2 * page::key_tile::bytes);
  static_assert(page::bytes == 2 * page::key_tile::bytes + 4 * page::value_tile::bytes);
  static_assert(page::values_at % 64 == 0 && page::bytes % 64 == 0);
  for (int token = 0; token < 128; ++token) {
    CHECK(page::key_tile_at(token) == token / 64 * page::key_tile::bytes);
    CHECK(page::value_tile_at(token) == page::values_at + token / 32 * page::value_tile::bytes);
    CHECK(page::value_tile_at(token) + page::value_tile::bytes <= page::bytes);
  }
}

TEST_CASE("kv_page: raw pages of odd heads are padded to 64 bytes", "[codec]") {
  using page = kv_page<raw<bf16>, raw<f16>, 80, 48, 32>;
  static_assert(page::values_at == 32 * 80 * 2 && page::bytes == 32 * 80 * 2 + 32 * 48 * 2);
  CHECK(page::bytes % 64 == 0);
}
