// SPDX-License-Identifier: Apache-2.0
// The kernel that decodes packed floats of dynamic length (codec/dynamic_float.hpp) to a matrix in device memory, bit for bit.
//
//   symbols -> shared memory -> symbol, rest and start of each number joined -> out
//
// A team, a warp or a block of threads, takes one tile; how symbols come from planes and tail is its coder's affair (coder_symbols), a part
// of the tile at a time. Threads then take 8 numbers of a group each, four rows by two columns.
//
// errors  any bytes: a tile whose tail lies elsewhere, or is not what its planes want, sets the status word to bad_format, `at` its byte;
//         its numbers are unspecified, those of other tiles are right. Nothing outside the bytes and the matrix is read or written
// cost    11 to 12 bits read and a T written for each number
#pragma once

#include "pith/core/view.hpp"
#include "pith/cuda/environment.hpp"
#include "pith/cuda/window_symbols.hpp"
#include "pith/linear/linear_engine.hpp"

namespace pith::device {

// How the symbols of a coder's tile come to shared memory, a team of `threads` threads after the other of a block:
//
//   threads, shared_bytes, part                   part: numbers of a tile that are there at once
//   symbols.open(t, self, fixed, tail, bytes, shared)   before the first part; false: no such tail (the same in all threads of the team)
//   symbols.read(t, self, fixed, number, shared)  the part that begins with that number; a barrier of the team follows
//   symbols.at(shared, i)                         number i of the part
//   symbols.finished()                            behind the last part: whether all was right
template <class Tile, class Coder>
struct coder_symbols;

// The coder that a tile was bound with.
template <class Tile>
struct coder_of;
template <class T, class Coder, int Kept, int Channels, use Use>
struct coder_of<dynamic_float_tile<T, Coder, Kept, Channels, Use>> {
  using type = Coder;
};
template <class Tile>
concept has_coder_symbols = requires {
  coder_symbols<Tile, typename coder_of<Tile>::type>::threads;
};

template <class Tile>
struct coder_symbols<Tile, exponent_window> {
  static constexpr int threads = warp_lanes, shared_bytes = window_symbols::bytes;
  static constexpr int part = Tile::count < 64 * window_symbols::groups ? Tile::count : 64 * window_symbols::groups;

  window_symbols symbols;

  template <class Thread>
  PITH_HD bool open(Thread& t, int, std::byte const*, std::byte const* tail, std::int64_t tail_bytes, std::byte*) {
    symbols.open(t, tail, tail_bytes, Tile::count);
    return true;
  }
  template <class Thread>
  PITH_HD void read(Thread& t, int self, std::byte const* fixed, int number, std::byte* shared) {
    int const group = number / 64 + self;
    bool const here = group < Tile::groups;
    symbols.expand(t, here ? fixed + Tile::planes_at + Tile::coder::plane_at(group, 0, Tile::section_bytes) : nullptr, number / 64, shared);
  }
  PITH_HD static std::uint32_t at(std::byte const* shared, int i) {
    return static_cast<std::uint32_t>(shared[window_symbols::place(static_cast<unsigned>(i) / 64, static_cast<unsigned>(i) % 64)]);
  }
  PITH_HD bool finished() const { return symbols.finished(); }
};

// Where a tile's tail is: null if not behind the fixed parts, inside `size` bytes with its padding, and no longer than a tail can be. `at`
// is the tile's first byte, `fixed` that of the tails.
template <class Tile>
PITH_HD inline std::byte const* find_tail(std::byte const* bytes, std::int64_t at, std::int64_t fixed, std::int64_t size,
                                          tail_place place) {
  bool const inside = place.distance >= fixed - at && place.distance <= size - at && place.bytes <= Tile::tail_bound &&
                      size - at - place.distance - place.bytes >= tail_padding;
  return inside ? bytes + at + place.distance : nullptr;
}
PITH_HD inline std::uint64_t bad_tile(std::int64_t at) { return pack_status({errc::bad_format, at}); }

template <class Tile>
struct float_decode_kernel {
  using scalar = typename Tile::scalar;
  using symbols_of = coder_symbols<Tile, typename coder_of<Tile>::type>;
  static constexpr int threads = symbols_of::threads > 128 ? symbols_of::threads : 128, team = symbols_of::threads, teams = threads / team;
  static constexpr int team_bytes = static_cast<int>(round_up(symbols_of::shared_bytes, 16));
  static constexpr int shared_bytes = teams * team_bytes;

  std::byte const* bytes;
  std::int64_t size;  // of all that is packed
  std::int64_t tiles, panels;
  matrix_view<scalar, space::device> out;  // no data: tiles are checked only
  std::uint64_t* status;

  // Grid: x tiles, `teams` a block.
  template <device_like Thread>
  PITH_HD void operator()(Thread& t) const {
    int const self = team == warp_lanes ? t.lane() : thread_of(t);
    std::int64_t const tile = t.block_x() * teams + (team == warp_lanes ? t.warp() : 0), at = tile * Tile::bytes;
    if (tile >= tiles) return;
    std::byte const* const fixed = bytes + at;
    std::byte* const shared = t.shared() + (team == warp_lanes ? t.warp() : 0) * team_bytes;
    tail_place const place{static_cast<std::int64_t>(load_word<std::uint64_t>(fixed)), load_word<std::uint32_t>(fixed + 8)};
    std::byte const* const tail = find_tail<Tile>(bytes, at, tiles * Tile::bytes, size, place);
    symbols_of symbols;
    bool const found = t.shuffle(static_cast<int>(tail != nullptr), 0) != 0 && symbols.open(t, self, fixed, tail, place.bytes, shared);
    if (!found) {
      if (self == 0) t.store_once(status, bad_tile(at));
      return;
    }
    for (int first = 0; first < Tile::count; first += symbols_of::part) {
      symbols.read(t, self, fixed, first, shared);
      sync(t);
      if (out.data != nullptr)
        for (int chunk = self; chunk < symbols_of::part / 8 && first + 8 * chunk < Tile::count; chunk += team)
          join(fixed, first, chunk_of(chunk), shared, tile);
      sync(t);
    }
    if (self == 0 && !symbols.finished()) t.store_once(status, bad_tile(at));
  }

 private:
  template <class Thread>
  PITH_HD static void sync(Thread& t) {
    if constexpr (team == warp_lanes)
      t.sync_warp();
    else
      t.sync();
  }

  // Neighbouring threads take neighbouring groups, whose numbers lie side by side in rows of dot.
  PITH_HD static int chunk_of(int i) { return i / 64 * 64 + i % 8 * 8 + i % 64 / 8; }

  PITH_HD void join(std::byte const* fixed, int first, int chunk, std::byte const* shared, std::int64_t tile) const {
    int const place = first + 8 * chunk, group = place / 64;
    std::byte const* const rests = fixed + Tile::rest_at + place / 512 * Tile::section_bytes;
    PITH_UNROLL for (int e = 0; e < 4; ++e) {
      int const lane = Tile::lane_of(place % 64 + 2 * e);
      std::uint32_t bits[2];
      PITH_UNROLL for (int half = 0; half < 2; ++half) {
        int const i = 8 * chunk + 2 * e + half, start_row = Tile::used_for == use::dot ? lane : group % Tile::blocks;
        bits[half] = Tile::join(symbols_of::at(shared, i), Tile::rest::get(rests, (first + i) % 512), Tile::start_of(fixed, start_row));
      }
      std::int64_t const row = tile / panels * Tile::tokens, column = tile % panels * Tile::channels;
      if constexpr (Tile::used_for == use::dot)
        store_pair(row + lane, column + 2 * group, bits);
      else
        PITH_UNROLL for (int half = 0; half < 2; ++half)
            store(row + group / Tile::blocks * 2 + half, column + group % Tile::blocks * 32 + lane, bits[half]);
    }
  }
  PITH_HD void store(std::int64_t row, std::int64_t column, std::uint32_t bits) const {
    if (row < out.extent[0] && column < out.extent[1])
      out.data[row * out.stride[0] + column * out.stride[1]] = Tile::fields::number(static_cast<typename Tile::word>(bits));
  }
  PITH_HD void store_pair(std::int64_t row, std::int64_t column, std::uint32_t const (&bits)[2]) const {
    if constexpr (sizeof(scalar) == 2) {
      auto* const to = reinterpret_cast<std::byte*>(out.data + row * out.stride[0] + column * out.stride[1]);
      if (out.stride[1] == 1 && row < out.extent[0] && column + 1 < out.extent[1] && reinterpret_cast<std::uintptr_t>(to) % 4 == 0)
        return store_word(to, bits[0] | bits[1] << 16);
    }
    store(row, column, bits[0]);
    store(row, column + 1, bits[1]);
  }
};

// Into all of `out`, or nowhere if it has no data: then tiles are only checked.
template <class Tile, environment Environment>
status decode_floats(Environment const& env, packed_tiles<Tile> const& w, matrix_view<typename Tile::scalar, space::device> out) noexcept {
  using kernel = float_decode_kernel<Tile>;
  std::int64_t const tiles = w.row_blocks() * w.panels();
  return env.launch(kernel{w.data, w.size, tiles, w.panels(), out, env.status_word()},
                    {.x = divide_up(tiles, kernel::teams), .shared_bytes = kernel::shared_bytes});
}

}  // namespace pith::device
