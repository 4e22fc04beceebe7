// SPDX-License-Identifier: Apache-2.0
// Packed matrices of codecs that a file names, behind one type: a table of what a program was compiled with, and products through it.
//
//   using eight = packed_matrix<int8<per_token<64>, zero::none>>;            likewise four
//   container::matrix_codec const table[] = {container::codec_of<eight>("int8<per_token<64>,none>"),
//                                            container::codec_of<four>("int4<per_token<64>,none>")};
//   container::matrix_codec const* const codec = container::find_codec(table, *entry.packed);      null: not one of them
//   container::any_matrix const w = codec->open(bytes, rows, columns).value();
//   w.multiply(x, out, scratch);
//
// errors  open: those of packed_matrix::open; products: those of its products
// cost    open: an allocation, and what packed_matrix::open costs; a product: one indirect call. Each line of a table compiles two products
// needs   a backend, where codec_of is used: pith/cpu/linear.hpp
#pragma once

#include <memory>
#include <string_view>

#include "pith/interop/container.hpp"
#include "pith/linear/packed_rows.hpp"

namespace pith::container {

// Movable; read-only, as packed_matrix. The bytes that it was opened over must outlive it.
class any_matrix {
 public:
  struct products {
    virtual ~products() = default;
    virtual std::int64_t rows() const noexcept = 0;
    virtual std::int64_t columns() const noexcept = 0;
    virtual std::int64_t scratch_bytes(std::int64_t batch) const noexcept = 0;
    virtual std::int64_t transposed_scratch_bytes(std::int64_t batch) const noexcept = 0;
    virtual status multiply(matrix_view<float const> x, matrix_view<float> out, std::span<std::byte> scratch) const noexcept = 0;
    virtual status multiply_transposed(matrix_view<float const> x, matrix_view<float> out, std::span<std::byte> scratch) const noexcept = 0;
  };
  explicit any_matrix(std::unique_ptr<products const> of) noexcept : of_(std::move(of)) {}

  std::int64_t rows() const noexcept { return of_->rows(); }
  std::int64_t columns() const noexcept { return of_->columns(); }
  // Of scratch, as packed_matrix has it.
  std::int64_t scratch_bytes(std::int64_t batch) const noexcept { return of_->scratch_bytes(batch); }
  std::int64_t transposed_scratch_bytes(std::int64_t batch) const noexcept { return of_->transposed_scratch_bytes(batch); }

  // out = x W^T
  status multiply(matrix_view<float const> x, matrix_view<float> out, std::span<std::byte> scratch) const noexcept {
    return of_->multiply(x, out, scratch);
  }
  // out = x W
  status multiply_transposed(matrix_view<float const> x, matrix_view<float> out, std::span<std::byte> scratch) const noexcept {
    return of_->multiply_transposed(x, out, scratch);
  }

 private:
  std::unique_ptr<products const> of_;
};

// What a packing has to say for its bytes to be a Matrix, and how they become one.
struct matrix_codec {
  std::string_view name, use = "dot";
  std::int64_t version = 1, panel = 256;
  tile_layout layout;
  result<any_matrix> (*open)(std::span<std::byte const> bytes, std::int64_t rows, std::int64_t columns) = nullptr;
};

namespace detail {

template <class Matrix>
struct matrix_parameters;
template <class Codec, pith::use Use, int Panel, class Backend>
struct matrix_parameters<packed_matrix<Codec, Use, Panel, Backend>> {
  static constexpr std::string_view use = Use == pith::use::dot ? "dot" : "mix";
  static constexpr std::int64_t panel = Panel;
};

template <class Matrix, class Accuracy>
struct products_of final : any_matrix::products {
  explicit products_of(Matrix&& m) noexcept : matrix(std::move(m)) {}

  std::int64_t rows() const noexcept override { return matrix.rows(); }
  std::int64_t columns() const noexcept override { return matrix.columns(); }
  std::int64_t scratch_bytes(std::int64_t batch) const noexcept override { return matrix.template scratch_bytes<Accuracy>(batch); }
  std::int64_t transposed_scratch_bytes(std::int64_t batch) const noexcept override {
    return matrix.template transposed_scratch_bytes<Accuracy>(batch);
  }
  status multiply(matrix_view<float const> x, matrix_view<float> out, std::span<std::byte> scratch) const noexcept override {
    return matrix.template multiply<Accuracy>(x, out, scratch);
  }
  status multiply_transposed(matrix_view<float const> x, matrix_view<float> out, std::span<std::byte> scratch) const noexcept override {
    return matrix.template multiply_transposed<Accuracy>(x, out, scratch);
  }

  Matrix matrix;
};

}  // namespace detail

template <class Matrix, class Accuracy = exact_accuracy>
constexpr matrix_codec codec_of(std::string_view name, std::int64_t version = 1) noexcept {
  using parameters = detail::matrix_parameters<Matrix>;
  return {name,
          parameters::use,
          version,
          parameters::panel,
          layout_of<Matrix>(),
          [](std::span<std::byte const> bytes, std::int64_t rows, std::int64_t columns) -> result<any_matrix> {
            auto opened = Matrix::open(bytes, rows, columns);
            if (!opened) return opened.error();
            return any_matrix(std::make_unique<detail::products_of<Matrix, Accuracy> const>(std::move(opened).value()));
          }};
}

inline matrix_codec const* find_codec(std::span<matrix_codec const> table, packing const& p) noexcept {
  for (matrix_codec const& c : table)
    if (c.name == p.codec && c.version == p.version && c.use == p.use && c.panel == p.panel) return &c;
  return nullptr;
}

}  // namespace pith::container
