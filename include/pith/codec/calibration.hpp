// SPDX-License-Identifier: Apache-2.0
// Calibrated numbers of a page's two codecs, one state per head, and the identity that they give to its bytes.
//
//   calibration<Page>   keys [head], values [head]: a state_of<tile> each; empty where a codec has none
//   page_identity       fingerprint of both formats and both states: pages whose identities differ must not be mixed
//
// A format's fingerprint is that of what it makes of one fixed tile of numbers, so that it covers every parameter of every codec, whoever
// wrote it. (Rule C7 makes it the same on every machine.)
#pragma once

#include <cstdint>
#include <span>

#include "pith/codec/variable_rate.hpp"
#include "pith/core/rounding.hpp"

namespace pith {

template <class State>
struct head_states {
  std::span<State const> all{};
  State const& of(std::int64_t head) const noexcept { return all[static_cast<std::size_t>(head)]; }

  // errors  shape_mismatch   not one state per head; `at` is how many there are
  status check_count(std::int64_t heads) const noexcept {
    if (static_cast<std::int64_t>(all.size()) != heads) return {errc::shape_mismatch, static_cast<std::int64_t>(all.size())};
    return {};
  }
  // errors  also bad_calibration: a state that is wrong; `at` is the head
  status check(std::int64_t heads) const noexcept {
    if (status const ok = check_count(heads); !ok) return ok;
    for (std::int64_t h = 0; h < heads; ++h)
      if (status const ok = of(h).check(); !ok) return {errc::bad_calibration, h};
    return {};
  }
};
template <>
struct head_states<no_state> {
  std::span<no_state const> all{};
  no_state const& of(std::int64_t) const noexcept {
    static constexpr no_state none{};
    return none;
  }
  status check_count(std::int64_t) const noexcept { return {}; }
  status check(std::int64_t) const noexcept { return {}; }
};

template <class KeyTile, class ValueTile>
struct page_calibration {
  using key_state = state_of<KeyTile>;
  using value_state = state_of<ValueTile>;
  static constexpr bool is_needed = is_calibrated<KeyTile> || is_calibrated<ValueTile>;

  head_states<key_state> keys{};
  head_states<value_state> values{};

  status check_count(std::int64_t heads) const noexcept {
    status const ok = keys.check_count(heads);
    return ok ? values.check_count(heads) : ok;
  }
  status check(std::int64_t heads) const noexcept {
    status const ok = keys.check(heads);
    return ok ? values.check(heads) : ok;
  }
};

template <class Page>
using calibration = typename Page::calibration;

// Of one tile format with its state.
// cost    one tile encoded
template <class Tile>
std::uint64_t tile_identity(state_of<Tile> const& state) noexcept {
  float rows[Tile::tokens * Tile::channels];
  alignas(64) std::byte bytes[Tile::bytes];
  std::uint32_t random = 1;
  for (float& x : rows) {  // heavy tails: a quotient of two small integers
    random = random * 1664525u + 1013904223u;
    auto const above = static_cast<float>(static_cast<int>(random >> 20) - 2048);
    random = random * 1664525u + 1013904223u;
    x = div_rn(above, static_cast<float>((random >> 20) + 64));
  }
  fingerprint all;
  all.add(static_cast<std::uint64_t>(Tile::tokens));
  all.add(static_cast<std::uint64_t>(Tile::channels));
  if constexpr (variable_tile<Tile>) {
    std::byte tail[Tile::tail_bound + tail_padding];
    all.add_bytes(tail, Tile::encode(rows, bytes, tail));
  } else {
    encode_tile<Tile>(rows, bytes, state);
  }
  all.add_bytes(bytes, Tile::bytes);
  state.digest(all);
  return all.value();
}

template <class Page>
std::uint64_t page_identity(typename calibration<Page>::key_state const& keys, typename calibration<Page>::value_state const& values) noexcept {
  fingerprint all;
  all.add(static_cast<std::uint64_t>(Page::tokens));
  all.add(tile_identity<typename Page::key_tile>(keys));
  all.add(tile_identity<typename Page::value_tile>(values));
  return all.value();
}

}  // namespace pith
