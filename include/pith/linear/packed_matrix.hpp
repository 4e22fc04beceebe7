// SPDX-License-Identifier: Apache-2.0
// A matrix of packed weights, and its products with vectors.
//
//   multiply              out[i][r] = sum_c W[r][c] x[i][c] + bias[r]      W is [rows = output features][columns = input features]
//   multiply_transposed   out[i][c] = sum_r W[r][c] x[i][r] + bias[c]
//
//   using weights = pith::packed_matrix<pith::int4<pith::per_token<64>, pith::zero::none>>;
//   auto const w = weights::pack(view).value();
//   w.multiply<pith::integer_accuracy>(x, out, scratch);                   scratch: w.scratch_bytes<pith::integer_accuracy>(batch) bytes
//
// layout   tiles of Tile::tokens rows (32; G for per_channel<G> with G > 32, 256 for per_channel<>) by Panel columns (256, or 128 for
//          8-bit integers), row block by row block, panels inside it, no gaps. The last panel and row block are filled up with zeros, which
//          count in their groups. Codecs of variable rate: the tiles' fixed parts, then their tails in the same order, then 64 zeros.
// use      use::dot suits multiply, use::mix suits multiply_transposed; the other product is right too, but decodes every tile first
// error    pack: the codec's error_bound.  exact accuracy: f32 sums, (columns + panels + 16) 2^-24 sum |W x|.  integer accuracy: in
// addition
//          dot_integer.hpp's bound for every panel, whose part of x is rounded by itself; for raw<bf16> raw_pairs.hpp's; for
//          multiply_transposed mix_integer.hpp's, for the positive and the negative part of x, of every row block
// nan      exact: as IEEE sums give it. integer: a row of x with NaN or infinity gives NaN in its whole row of out
// errors   each function names its own; nothing is written before everything is checked
// cost     one pass over the packed bytes for every 16 rows of x; no allocation in a product
// threads  a packed matrix is read-only: any number of products may run at once, each with its own scratch
#pragma once

#include <iterator>
#include <span>

#include "pith/linear/pack_tails.hpp"
#include "pith/page/arena.hpp"

namespace pith {

template <class T>
concept weight_scalar = storage_scalar<std::remove_const_t<T>>;
template <class T>
concept source_scalar = dynamic_scalar<std::remove_const_t<T>>;

template <class Codec, use Use = use::dot, int Panel = default_panel<Codec, Use>(), class Backend = void>
class packed_matrix {
  static constexpr bool right = check_weights<Codec, Panel, Use>();

 public:
  using tile = typename weights_binding<right, Codec, Panel, Use>::type;
  using tiles = packed_tiles<tile>;

 private:
  // The backend's encoder where a backend is included, of a codec of variable rate; the same bytes as the codec's own. A default argument of
  // the caller's, so that two sources that differ in it do not share a function.
  template <class T>
  struct packing {
    using unnamed = default_backend<std::conditional_t<std::is_void_v<T>, T, void>>;
    static auto engine() {
      if constexpr (!std::is_void_v<Backend>)
        return tile_engine<Backend, tile>{};
      else if constexpr (requires { sizeof(unnamed); })
        return tile_engine<typename unnamed::type, tile>{};
      else
        return scalar_tile_engine<tile>{};
    }
  };
  template <class T>
  using packing_engine = decltype(packing<T>::engine());

 public:
  // Bytes of a packed matrix, everything included, at most if its rate is variable; the largest int64 if that does not fit, 0 for an extent
  // that is not positive.
  static constexpr std::int64_t bound_bytes(std::int64_t rows, std::int64_t columns) noexcept { return tiles::bound_bytes(rows, columns); }

  // Encodes w into memory of its own, on huge pages where the system has them; of a variable rate it may be a little more than bytes().
  // nan_policy::reject refuses NaN and infinity; any other leaves them to the codec.
  //
  // errors  shape_mismatch  an extent that is not positive; `at` is the extent
  //         not_finite      `at` is row * columns + column of the first such number
  //         out_of_memory   `at` is the bytes wanted
  template <source_scalar T, executor Executor = serial, class Engine = packing_engine<T>>
  static result<packed_matrix> pack(matrix_view<T> w, nan_policy nan = nan_policy::saturate, Executor&& run = {}) noexcept {
    if (status const ok = admit(w, nan); !ok) return ok;
    if constexpr (tiles::has_tails) {
      tail_packing<tile, Engine, T> packing(w);
      std::int64_t const likely = packing.likely_bytes();
      auto memory = heap_arena::make(likely);
      if (!memory) return memory.error();
      auto const bytes = packing.encode(memory.value().data(), run);
      if (!bytes) return bytes.error();
      if (bytes.value() > likely) {
        auto larger = heap_arena::make(bytes.value());
        if (!larger) return larger.error();
        std::copy_n(memory.value().data(), packing.fixed_bytes(), larger.value().data());
        memory.value() = std::move(larger).value();
      }
      std::byte* const data = memory.value().data();
      packing.write_tails(data, bytes.value(), run);
      return packed_matrix(std::move(memory).value(), data, w.extent[0], w.extent[1], bytes.value());
    } else {
      auto memory = heap_arena::make(bound_bytes(w.extent[0], w.extent[1]));
      if (!memory) return memory.error();
      std::byte* const data = memory.value().data();
      encode(w, data, run);
      return packed_matrix(std::move(memory).value(), data, w.extent[0], w.extent[1], bound_bytes(w.extent[0], w.extent[1]));
    }
  }

  // The same into the caller's memory, which must outlive the matrix.
  //
  // errors  also misaligned         `at` is what the address exceeds a multiple of 64 by
  //         and capacity_exceeded   `at` is the bytes wanted: bound_bytes(rows, columns), or of a variable rate what this matrix takes; then
  //                                 some have been written, for only packing tells
  template <source_scalar T, executor Executor = serial, class Engine = packing_engine<T>>
  static result<packed_matrix> pack_into(std::span<std::byte> memory, matrix_view<T> w, nan_policy nan = nan_policy::saturate,
                                         Executor&& run = {}) noexcept {
    if (status const ok = admit(w, nan); !ok) return ok;
    std::int64_t bytes = bound_bytes(w.extent[0], w.extent[1]);
    if constexpr (tiles::has_tails) {
      if (status const ok = tiles::check_memory(memory, 0, errc::capacity_exceeded); !ok) return ok;
      tail_packing<tile, Engine, T> packing(w);
      bool const room = std::ssize(memory) >= packing.fixed_bytes();
      auto const packed = room ? packing.encode(memory.data(), run) : packing.measure(run);
      if (!packed) return packed.error();
      bytes = packed.value();
      if (status const ok = tiles::check_memory(memory, bytes, errc::capacity_exceeded); !ok) return ok;
      packing.write_tails(memory.data(), bytes, run);
    } else {
      if (status const ok = tiles::check_memory(memory, bytes, errc::capacity_exceeded); !ok) return ok;
      encode(w, memory.data(), run);
    }
    return packed_matrix(heap_arena::make(0).value(), memory.data(), w.extent[0], w.extent[1], bytes);
  }

  // A matrix over bytes that were packed before, in this process or another. They are not copied and must outlive it; any bytes are safe.
  //
  // errors  shape_mismatch, misaligned; truncated, with the bytes wanted; bad_format: a tile of variable rate at byte `at` cannot be read
  // cost    none; one pass over the codes of a variable rate
  static result<packed_matrix> open(std::span<std::byte const> memory, std::int64_t rows, std::int64_t columns) noexcept {
    if (rows <= 0 || columns <= 0) return status{errc::shape_mismatch, rows <= 0 ? rows : columns};
    std::int64_t bytes = bound_bytes(rows, columns);
    if constexpr (tiles::has_tails) {
      if (bytes == std::numeric_limits<std::int64_t>::max()) return status{errc::truncated, bytes};
      tiles const parts{memory.data(), rows, columns};
      if (status const ok = tiles::check_memory(memory, parts.fixed_bytes() + tail_padding, errc::truncated); !ok) return ok;
      auto const checked = check_tails<tile>(memory, parts);
      if (!checked) return checked.error();
      bytes = checked.value();
    } else {
      if (status const ok = tiles::check_memory(memory, bytes, errc::truncated); !ok) return ok;
    }
    return packed_matrix(heap_arena::make(0).value(), memory.data(), rows, columns, bytes);
  }

  // Written out, which makes them host functions to nvcc.
  packed_matrix(packed_matrix&& other) noexcept
      : owned_(std::move(other.owned_)), tiles_(other.tiles_), bytes_(other.bytes_) {}
  packed_matrix& operator=(packed_matrix&& other) noexcept {
    owned_ = std::move(other.owned_);
    tiles_ = other.tiles_;
    bytes_ = other.bytes_;
    return *this;
  }

  std::int64_t rows() const noexcept { return tiles_.rows; }
  std::int64_t columns() const noexcept { return tiles_.columns; }
  std::span<std::byte const> bytes() const noexcept { return {tiles_.data, static_cast<std::size_t>(bytes_)}; }

  // Decodes the whole matrix into w [row][column].
  //
  // errors  shape_mismatch; `at` is the extent that does not fit
  template <source_scalar T, executor Executor = serial>
  status unpack(matrix_view<T> w, Executor&& run = {}) const noexcept {
    if (w.extent[0] != rows() || w.extent[1] != columns()) return {errc::shape_mismatch, w.extent[0] != rows() ? w.extent[0] : w.extent[1]};
    using number = std::conditional_t<tiles::has_tails, T, float>;  // lossless codecs give a T's bits back
    run.for_each(tiles_.row_blocks(), [&](std::int64_t block) {
      number buffer[tile::tokens * Panel];
      for (std::int64_t panel = 0; panel < tiles_.panels(); ++panel) {
        tile::decode(tiles_.at(block, panel), buffer);
        for (std::int64_t r = block * tile::tokens; r < rows() && r < (block + 1) * tile::tokens; ++r)
          for (std::int64_t c = panel * Panel; c < columns() && c < (panel + 1) * Panel; ++c)
            w(r, c) = as_scalar<T>(buffer[(r - block * tile::tokens) * Panel + (c - panel * Panel)]);
      }
    });
    return {};
  }

  // Bytes of scratch, at any address, that a product with `batch` rows needs; more than 16 rows need no more.
  template <class Accuracy = exact_accuracy>
  std::int64_t scratch_bytes(std::int64_t batch) const noexcept {
    return batch <= 0 ? 0 : engine<Accuracy>::scratch_bytes(tiles_, batch) + arena_alignment - 1;
  }
  template <class Accuracy = exact_accuracy>
  std::int64_t transposed_scratch_bytes(std::int64_t batch) const noexcept {
    return batch <= 0 ? 0 : engine<Accuracy>::transposed_scratch_bytes(tiles_, batch) + arena_alignment - 1;
  }

  // x [batch][columns], out [batch][rows], bias [rows] or empty; x, out and scratch do not overlap. Row blocks go to the executor.
  //
  // errors  shape_mismatch     `at` is the extent that does not fit
  //         capacity_exceeded  scratch is too small; `at` is the bytes wanted
  template <class Accuracy = exact_accuracy, weight_scalar X, storage_scalar O, executor Executor = serial>
  status multiply(matrix_view<X> x, matrix_view<O> out, std::span<std::byte> scratch, std::span<float const> bias = {},
                  Executor&& run = {}) const noexcept {
    if (status const ok = check_extents(x.extent, out.extent, columns(), rows(), std::ssize(bias)); !ok) return ok;
    std::int64_t const wanted = scratch_bytes<Accuracy>(x.extent[0]);
    if (static_cast<std::int64_t>(scratch.size()) < wanted) return {errc::capacity_exceeded, wanted};
    if (x.extent[0] > 0) engine<Accuracy>::multiply(tiles_, x, out, bias.empty() ? nullptr : bias.data(), aligned(scratch), run);
    return {};
  }

  // x [batch][rows], out [batch][columns], bias [columns] or empty. Column panels go to the executor.
  template <class Accuracy = exact_accuracy, weight_scalar X, storage_scalar O, executor Executor = serial>
  status multiply_transposed(matrix_view<X> x, matrix_view<O> out, std::span<std::byte> scratch, std::span<float const> bias = {},
                             Executor&& run = {}) const noexcept {
    if (status const ok = check_extents(x.extent, out.extent, rows(), columns(), std::ssize(bias)); !ok) return ok;
    std::int64_t const wanted = transposed_scratch_bytes<Accuracy>(x.extent[0]);
    if (static_cast<std::int64_t>(scratch.size()) < wanted) return {errc::capacity_exceeded, wanted};
    if (x.extent[0] > 0) engine<Accuracy>::multiply_transposed(tiles_, x, out, bias.empty() ? nullptr : bias.data(), aligned(scratch), run);
    return {};
  }

 private:
  // The backend is looked up when a product is compiled, so that packing needs none.
  template <class Accuracy>
  struct checked {
    static constexpr bool known = check_accuracy<Accuracy>();
    using unnamed = default_backend<std::conditional_t<known, void, Accuracy>>;
    static_assert(
        !known || !std::is_void_v<Backend> || requires { sizeof(unnamed); },
        "[pith] packed_matrix<...>: no backend is included. Fix: #include \"pith/cpu/linear.hpp\".");
    using backend = typename std::conditional_t<std::is_void_v<Backend>, unnamed, std::type_identity<Backend>>::type;
    using engine = linear_engine<backend, tile, Accuracy>;
  };
  template <class Accuracy>
  using engine = typename checked<Accuracy>::engine;

  packed_matrix(heap_arena owned, std::byte const* data, std::int64_t rows, std::int64_t columns, std::int64_t bytes) noexcept
      : owned_(std::move(owned)), tiles_{data, rows, columns}, bytes_(bytes) {}

  static std::byte* aligned(std::span<std::byte> scratch) noexcept {
    auto const past = reinterpret_cast<std::uintptr_t>(scratch.data()) % arena_alignment;
    return scratch.data() + (past == 0 ? 0 : arena_alignment - past);
  }

  template <class T>
  static status admit(matrix_view<T> w, nan_policy nan) noexcept {
    if (w.extent[0] <= 0 || w.extent[1] <= 0) return {errc::shape_mismatch, w.extent[0] <= 0 ? w.extent[0] : w.extent[1]};
    if (nan == nan_policy::reject)
      for (std::int64_t r = 0; r < w.extent[0]; ++r)
        for (std::int64_t c = 0; c < w.extent[1]; ++c)
          if (!is_finite(to_float(w(r, c)))) return {errc::not_finite, r * w.extent[1] + c};
    return {};
  }

  template <class T, class Executor>
  static void encode(matrix_view<T> w, std::byte* data, Executor&& run) noexcept {
    std::int64_t const panels = divide_up(w.extent[1], Panel);
    run.for_each(divide_up(w.extent[0], tile::tokens), [&](std::int64_t block) {
      float buffer[tile::tokens * Panel];
      for (std::int64_t panel = 0; panel < panels; ++panel) {
        for (std::int64_t i = 0; i < tile::tokens; ++i)
          for (std::int64_t j = 0; j < Panel; ++j) {
            std::int64_t const r = block * tile::tokens + i, c = panel * Panel + j;
            buffer[i * Panel + j] = r < w.extent[0] && c < w.extent[1] ? to_float(w(r, c)) : 0.0f;
          }
        tile::encode(buffer, data + (block * panels + panel) * tile::bytes);
      }
    });
  }

  heap_arena owned_;
  tiles tiles_;
  std::int64_t bytes_ = 0;
};

}  // namespace pith
