// SPDX-License-Identifier: Apache-2.0
// Encode and decode tiles in device memory.
//
//   encode_tiles<Tile>(env, rows, out, out_stride, state)     rows [token][channel], tile i to out + i * out_stride
//   decode_tiles<Tile>(env, in, in_stride, rows, state)       and back
//   encode_tiles<Tile>(env, jobs, count)                      any rows to any place: a list in device memory (tile_jobs), or a caller's own
//   decode_tiles<Tile>(env, jobs, count)                      function object (encode_kernel.hpp, decode_kernel.hpp)
//
// rows of bf16, f16 or f32; strides of `rows` in elements, of bytes in bytes. `state` is in device memory too, null for tiles without one.
// Nothing is allocated and nothing waits: the work is in the environment's stream.
//
// bytes    those of Tile::encode; numbers those of Tile::decode, rounded to the rows' type
// errors   shape_mismatch   channels or tokens that are not the tile's (`at` is the extent), rows whose channels are not neighbours (the
//                           stride), or a negative count (the count)
//          out_of_range     a stride between tiles below Tile::bytes; `at` is the stride
//          misaligned       an address or stride that is not a multiple of 16 bytes; `at` is what it exceeds one by
//          bad_calibration  no state where the tile has one
//          nothing is started then
#pragma once

#include "pith/core/view.hpp"
#include "pith/cuda/decode_kernel.hpp"
#include "pith/cuda/encode_kernel.hpp"
#include "pith/cuda/environment.hpp"

namespace pith {

namespace device {

// A tile's calibrated numbers in device memory; a tile without any has none to point at.
template <class Tile>
struct state_pointer {
  state_of<Tile> const* first = nullptr;
  PITH_HD state_of<Tile> const& of(std::int64_t i) const { return first[i]; }
};
template <class Tile>
  requires(!is_calibrated<Tile>)
struct state_pointer<Tile> {
  no_state const* first = nullptr;
  PITH_HD no_state of(std::int64_t) const { return {}; }
};

// Tiles one behind the other in rows and in bytes, one state for all.
template <class Tile, class T, class Byte>
struct tiles_in_order {
  T* rows;
  std::int64_t row_stride;
  Byte* bytes;
  std::int64_t stride;
  state_pointer<Tile> calibrated;

  PITH_HD plain_rows<T> row(std::int64_t i) const { return {rows + i * Tile::tokens * row_stride, row_stride}; }
  PITH_HD auto from(std::int64_t i) const {
    if constexpr (std::is_const_v<T>)
      return row(i);
    else
      return bytes + i * stride;
  }
  PITH_HD auto to(std::int64_t i) const {
    if constexpr (std::is_const_v<T>)
      return bytes + i * stride;
    else
      return row(i);
  }
  PITH_HD decltype(auto) state(std::int64_t) const { return calibrated.of(0); }
};

// An entry of a list: null bytes for nothing to do. T and Byte are const on the side that is read.
template <class Tile, class T, class Byte>
struct tile_job {
  T* rows;
  std::int64_t row_stride;
  Byte* bytes;
  state_pointer<Tile> calibrated;
};
template <class Tile, class T>
using encode_job = tile_job<Tile, T const, std::byte>;
template <class Tile, class T>
using decode_job = tile_job<Tile, T, std::byte const>;

// Pointers and strides of a list are the caller's promise; see the errors of encode_tiles for what they have to be.
template <class Tile, class T, class Byte>
struct tile_jobs {
  tile_job<Tile, T, Byte> const* list;

  PITH_HD plain_rows<T> row(std::int64_t i) const { return {list[i].rows, list[i].row_stride}; }
  PITH_HD auto from(std::int64_t i) const {
    if constexpr (std::is_const_v<T>)
      return row(i);
    else
      return list[i].bytes;
  }
  PITH_HD auto to(std::int64_t i) const {
    if constexpr (std::is_const_v<T>)
      return list[i].bytes;
    else
      return row(i);
  }
  PITH_HD decltype(auto) state(std::int64_t i) const { return list[i].calibrated.of(0); }
};
template <class Tile, class T>
using encode_jobs = tile_jobs<Tile, T const, std::byte>;
template <class Tile, class T>
using decode_jobs = tile_jobs<Tile, T, std::byte const>;

// The one check of addresses: what a multiple of 16 bytes is exceeded by.
template <class Tile, class T>
status check_tiles(matrix_view<T, space::device> const& rows, std::byte const* bytes, std::int64_t stride,
                   state_of<Tile> const* state) noexcept {
  if (rows.extent[1] != Tile::channels) return {errc::shape_mismatch, rows.extent[1]};
  if (rows.extent[0] < 0 || rows.extent[0] % Tile::tokens != 0) return {errc::shape_mismatch, rows.extent[0]};
  if (rows.stride[1] != 1) return {errc::shape_mismatch, rows.stride[1]};
  if (stride < Tile::bytes && rows.extent[0] > Tile::tokens) return {errc::out_of_range, stride};
  auto const excess = [](std::uintptr_t address) { return static_cast<std::int64_t>(address % 16); };
  std::int64_t const row_step = rows.stride[0] * static_cast<std::int64_t>(sizeof(T));
  for (std::int64_t const e : {excess(reinterpret_cast<std::uintptr_t>(rows.data)), (row_step % 16 + 16) % 16,
                               excess(reinterpret_cast<std::uintptr_t>(bytes)), (stride % 16 + 16) % 16})
    if (e != 0) return {errc::misaligned, e};
  if (is_calibrated<Tile> && state == nullptr) return {errc::bad_calibration, 0};
  return {};
}

}  // namespace device

template <class Tile, device::environment Environment, class Jobs>
status encode_tiles(Environment const& env, Jobs const& jobs, std::int64_t count) noexcept {
  if constexpr (device::check_device_form<Tile>()) {
    using kernel = device::encode_kernel<Tile, Jobs>;
    if (count < 0) return {errc::shape_mismatch, count};
    if (count == 0) return {};
    return env.launch(kernel{jobs}, device::grid{count, 1, 1, kernel::shared_bytes});
  } else {
    return {errc::unsupported};
  }
}
template <class Tile, device::environment Environment, class Jobs>
status decode_tiles(Environment const& env, Jobs const& jobs, std::int64_t count) noexcept {
  if constexpr (device::check_device_form<Tile>()) {
    using kernel = device::decode_kernel<Tile, Jobs>;
    if (count < 0) return {errc::shape_mismatch, count};
    if (count == 0) return {};
    return env.launch(kernel{jobs}, device::grid{count, 1, 1, kernel::shared_bytes});
  } else {
    return {errc::unsupported};
  }
}

template <class Tile, device::environment Environment, class T>
  requires storage_scalar<std::remove_const_t<T>>
status encode_tiles(Environment const& env, matrix_view<T, space::device> rows, std::byte* out, std::int64_t out_stride,
                    state_of<Tile> const* state = nullptr) noexcept {
  if (status const ok = device::check_tiles<Tile>(rows, out, out_stride, state); !ok) return ok;
  device::tiles_in_order<Tile, T const, std::byte> const jobs{rows.data, rows.stride[0], out, out_stride, {state}};
  return encode_tiles<Tile>(env, jobs, rows.extent[0] / Tile::tokens);
}
template <class Tile, device::environment Environment, storage_scalar T>
status decode_tiles(Environment const& env, std::byte const* in, std::int64_t in_stride, matrix_view<T, space::device> rows,
                    state_of<Tile> const* state = nullptr) noexcept {
  if (status const ok = device::check_tiles<Tile>(rows, in, in_stride, state); !ok) return ok;
  device::tiles_in_order<Tile, T, std::byte const> const jobs{rows.data, rows.stride[0], in, in_stride, {state}};
  return decode_tiles<Tile>(env, jobs, rows.extent[0] / Tile::tokens);
}

}  // namespace pith
