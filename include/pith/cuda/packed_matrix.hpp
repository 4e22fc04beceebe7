// SPDX-License-Identifier: Apache-2.0
// packed_matrix on a device: the same compositions and the same bytes as linear/packed_matrix.hpp, in device memory.
//
//   using weights = pith::packed_matrix<pith::int4<pith::per_token<64>, pith::zero::none>, pith::use::dot, 256, pith::cuda>;
//   auto const w = weights::open(device_bytes, rows, columns).value();             packed on the CPU or by pack_into
//   w.multiply<pith::integer_accuracy>(env, x, out, bias);                        scratch: w.scratch_bytes<...>(env, batch) bytes of env's
//
//   multiply   out[i][r] = sum_c W[r][c] x[i][c] + bias[r]
//
// x [batch][columns] and out [batch][rows] of bf16, f16 or f32 in device memory, any strides; bias f32.
//
// error   x is divided by a power of two for each of its rows and panels and is then two f16 numbers for exact accuracy, 2^-20 of the
//         products' size, or one for integer accuracy, 2^-11 (raw<bf16>: two or one bf16, 2^-16 and 2^-8); see dot_block.hpp. f32 sums
// nan     a row of x with NaN or infinity gives NaN or infinity in its whole row of out, and changes no other row
// errors  shape_mismatch and capacity_exceeded (scratch) before anything is started
// cost    weights are read once for 64 rows of x (integer accuracy) or 32 (exact); three launches a pass; no allocation, no synchronisation.
//         The same call on the same device gives the same bits
#pragma once

#include "pith/cuda/decode_huffman.hpp"
#include "pith/cuda/decode_rans.hpp"
#include "pith/cuda/linear_launch.hpp"
#include "pith/cuda/weight_rows.hpp"
#include "pith/linear/packed_matrix.hpp"

namespace pith {
namespace device {

// The first broken rule speaks alone; true if there is none.
template <class Tile, class Accuracy>
consteval bool check_product() {
  if constexpr (!check_accuracy<Accuracy>()) {
    return false;
  } else if constexpr (variable_tile<Tile> && !is_window_tile<Tile>) {
    static_assert(is_window_tile<Tile>,
                  "[pith] packed_matrix<dynamic_float<...>, ..., cuda>: this coder has no product on a device. Fix: dynamic_float<bf16>, laid out for "
                  "use::dot; or unpack(env, w) and multiply that.");
    return false;
  } else if constexpr (!has_product_form<Tile> && !is_window_tile<Tile>) {
    static_assert(has_product_form<Tile>,
                  "[pith] packed_matrix<C, ..., cuda>: C has no product on a device. Fix: integer codes (int2 to int8), block_float, raw<bf16> or "
                  "raw<f16>, pipes over them, dynamic_float<bf16>.");
    return false;
  } else if constexpr (Tile::storage::used_for != use::dot) {
    static_assert(Tile::storage::used_for == use::dot,
                  "[pith] packed_matrix<C, use::mix, ..., cuda>: multiply reads weights that are laid out for dot. Fix: use::dot.");
    return false;
  } else if constexpr (!linear_launch<Tile, Accuracy>::fits) {
    static_assert(linear_launch<Tile, Accuracy>::fits,
                  "[pith] packed_matrix<C, Use, Panel, cuda>: two panels are more than a block's shared memory. Fix: a smaller Panel, 256.");
    return false;
  } else {
    return true;
  }
}

// Whether a kernel decodes such tiles.
template <class Tile>
consteval bool check_unpack() {
  static_assert(has_coder_symbols<Tile>,
                "[pith] unpack(env, w): only dynamic_float with exponent_window, huffman or rans_exponents is unpacked on a device. Fix: "
                "decode_tiles for codecs of fixed rate.");
  return has_coder_symbols<Tile>;
}

}  // namespace device

template <class Codec, use Use, int Panel>
class packed_matrix<Codec, Use, Panel, cuda> {
  static constexpr bool right = check_weights<Codec, Panel, Use>();

 public:
  using tile = typename weights_binding<right, Codec, Panel, Use>::type;
  using tiles = packed_tiles<tile>;

  static constexpr std::int64_t bound_bytes(std::int64_t rows, std::int64_t columns) noexcept { return tiles::bound_bytes(rows, columns); }

  // Encodes w into the caller's device memory, which must outlive the matrix; NaN and infinity are left to the codec. What the bytes hold is
  // there for whatever env starts later.
  //
  // errors  shape_mismatch, misaligned; capacity_exceeded, with the bytes wanted. Else what launching gives
  template <weight_scalar T, device::environment Environment>
  static result<packed_matrix> pack_into(Environment const& env, std::span<std::byte> memory, matrix_view<T, space::device> w) noexcept {
    std::int64_t const rows = w.extent[0], columns = w.extent[1];
    if (rows <= 0 || columns <= 0) return status{errc::shape_mismatch, rows <= 0 ? rows : columns};
    if (status const ok = tiles::check_memory(memory, bound_bytes(rows, columns), errc::capacity_exceeded); !ok) return ok;
    packed_matrix const made(memory, rows, columns);
    device::weight_tiles<tile, std::remove_const_t<T>> const jobs{w, memory.data(), made.tiles_.panels()};
    if (status const ok = encode_tiles<tile>(env, jobs, made.tiles_.row_blocks() * jobs.panels); !ok) return ok;
    return made;
  }

  // A matrix over bytes in device memory that were packed before, anywhere. They are not copied and must outlive it; any bytes are safe. The
  // host does not read them: of a variable rate `memory` is all of the packed matrix, and a tile that cannot be read sets the status word to
  // bad_format, `at` its first byte, when a product or unpack meets it, or check.
  //
  // errors  shape_mismatch  an extent that is not positive; `at` is the extent
  //         misaligned      `at` is what the address exceeds a multiple of 64 by
  //         truncated       `at` is the bytes wanted, of a variable rate at least
  static result<packed_matrix> open(std::span<std::byte const> memory, std::int64_t rows, std::int64_t columns) noexcept {
    if (rows <= 0 || columns <= 0) return status{errc::shape_mismatch, rows <= 0 ? rows : columns};
    std::int64_t wanted = bound_bytes(rows, columns);
    if constexpr (tiles::has_tails)
      if (wanted != std::numeric_limits<std::int64_t>::max()) wanted = tiles{memory.data(), rows, columns}.fixed_bytes() + tail_padding;
    if (status const ok = tiles::check_memory(memory, wanted, errc::truncated); !ok) return ok;
    return packed_matrix(memory, rows, columns);
  }

  std::int64_t rows() const noexcept { return tiles_.rows; }
  std::int64_t columns() const noexcept { return tiles_.columns; }
  std::span<std::byte const> bytes() const noexcept { return {tiles_.data, static_cast<std::size_t>(tiles_.size)}; }

  // Decodes the whole matrix, bit for bit, into w [row][column]: dynamic_float only. One launch.
  //
  // errors  shape_mismatch; `at` is the extent that does not fit. Else what launching gives; bad_format in the status word, see open
  template <device::environment Environment, class T>
  status unpack(Environment const& env, matrix_view<T, space::device> w) const noexcept {
    if constexpr (device::check_unpack<tile>()) {
      static_assert(std::is_same_v<T, typename tile::scalar>, "[pith] unpack(env, w): w has the numbers that were packed. Fix: matrix_view<bf16, space::device>.");
      if (w.extent[0] != rows() || w.extent[1] != columns()) return {errc::shape_mismatch, w.extent[0] != rows() ? w.extent[0] : w.extent[1]};
      return device::decode_floats(env, tiles_, w);
    } else {
      return {errc::unsupported};
    }
  }
  // Reads all of it, and sets the status word as open says.
  template <device::environment Environment>
  status check(Environment const& env) const noexcept {
    if constexpr (device::check_unpack<tile>())
      return device::decode_floats(env, tiles_, {});
    else
      return {errc::unsupported};
  }

  // Bytes of the environment's scratch that a product with `batch` rows needs.
  template <class Accuracy = exact_accuracy, device::environment Environment>
  std::int64_t scratch_bytes(Environment const& env, std::int64_t batch) const noexcept {
    if constexpr (device::check_product<tile, Accuracy>())
      return batch <= 0 ? 0 : linear_engine<cuda, tile, Accuracy>::scratch_bytes(env, tiles_, batch);
    else
      return 0;
  }

  // bias [rows] or none; x and out do not overlap.
  //
  // errors  shape_mismatch     `at` is the extent that does not fit
  //         capacity_exceeded  the environment's scratch is too small; `at` is the bytes wanted
  template <class Accuracy = exact_accuracy, weight_scalar X, storage_scalar O, device::environment Environment>
  status multiply(Environment const& env, matrix_view<X, space::device> x, matrix_view<O, space::device> out,
                  tensor_view<float const, 1, space::device> bias = {}) const noexcept {
    if constexpr (device::check_product<tile, Accuracy>()) {
      if (status const ok = check_extents(x.extent, out.extent, columns(), rows(), bias.extent[0]); !ok) return ok;
      return linear_engine<cuda, tile, Accuracy>::multiply(env, tiles_, matrix_view<std::remove_const_t<X> const, space::device>(x), out, bias);
    } else {
      return {errc::unsupported};
    }
  }

  template <class Accuracy = exact_accuracy, class... Arguments>
  status multiply_transposed(Arguments const&...) const noexcept {
    static_assert(sizeof...(Arguments) > 100, "[pith] packed_matrix<..., cuda>: there is no product with W^T on a device. Fix: pack the transposed matrix and multiply.");
    return {errc::unsupported};
  }

 private:
  packed_matrix(std::span<std::byte const> memory, std::int64_t rows, std::int64_t columns) noexcept
      : tiles_{memory.data(), rows, columns, tiles::has_tails ? std::ssize(memory) : bound_bytes(rows, columns)} {}

  tiles tiles_;
};

}  // namespace pith
