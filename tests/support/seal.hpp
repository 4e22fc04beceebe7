// SPDX-License-Identifier: Apache-2.0
// Right checksums over wrong contents, for tests of what lies behind a checksum.
#pragma once

#include <cstdint>
#include <span>

#include "pith/core/bits.hpp"
#include "pith/core/fingerprint.hpp"

namespace pith_test {

// The last 8 bytes are the fingerprint of those before: snapshots, models of streams.
inline void seal_fingerprint(std::span<std::byte> of) {
  if (of.size() < 8) return;
  pith::fingerprint all;
  all.add_bytes(of.data(), static_cast<std::int64_t>(of.size()) - 8);
  pith::store_le(of.data() + of.size() - 8, all.value());
}

// A chunk of a KV stream, docs/formats/stream.md.
inline void seal_chunk(std::span<std::byte> chunk) {
  if (chunk.size() < 56) return;
  std::uint64_t value = 0xcbf29ce484222325ull, word = 0;
  std::size_t n = 0;
  for (std::size_t at = 0; at < chunk.size(); ++at) {
    if (at >= 48 && at < 56) continue;
    word |= static_cast<std::uint64_t>(chunk[at]) << (8 * (n++ % 8));
    if (n % 8 == 0) value = (value ^ word) * 0x100000001b3ull, word = 0;
  }
  value = (value ^ word) * 0x100000001b3ull;
  pith::store_le(chunk.data() + 48, value);
}

}  // namespace pith_test
