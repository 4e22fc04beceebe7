// SPDX-License-Identifier: Apache-2.0
// Strided views: a pointer, extents and strides in elements, all 64-bit, with the memory space in the type. They own nothing.
//
//   element (i, j, k) of a rank-3 view is data[i*stride[0] + j*stride[1] + k*stride[2]]
//
// Shapes are written slowest to fastest: [token, head, channel]. Host code cannot read a device view: operator() is missing.
#pragma once

#include <array>
#include <cstdint>
#include <type_traits>

#include "config.hpp"

namespace pith {

enum class space : std::uint8_t { host, device };

template <class T, int Rank, space Space = space::host>
struct tensor_view {
  static_assert(Rank >= 1 && Rank <= 5, "[pith] tensor_view<T, Rank>: Rank is 1 to 5. Fix: merge axes.");
  using element_type = T;
  static constexpr int rank = Rank;
  static constexpr pith::space memory = Space;

  T* data = nullptr;
  std::int64_t extent[Rank] = {};
  std::int64_t stride[Rank] = {};

  constexpr tensor_view() = default;
  PITH_HD constexpr tensor_view(T* first, std::int64_t const (&extents)[Rank], std::int64_t const (&strides)[Rank]) : data(first) {
    for (int i = 0; i < Rank; ++i) extent[i] = extents[i], stride[i] = strides[i];
  }
  // Contiguous, last axis fastest.
  PITH_HD constexpr tensor_view(T* first, std::int64_t const (&extents)[Rank]) : data(first) {
    std::int64_t step = 1;
    for (int i = Rank - 1; i >= 0; --i) {
      extent[i] = extents[i];
      stride[i] = step;
      step *= extents[i];
    }
  }
  // A view of T is a view of T const.
  template <class U>
    requires(std::is_same_v<T, U const>)
  PITH_HD constexpr tensor_view(tensor_view<U, Rank, Space> other) : data(other.data) {
    for (int i = 0; i < Rank; ++i) extent[i] = other.extent[i], stride[i] = other.stride[i];
  }

  template <class... Index>
    requires(sizeof...(Index) == Rank)
  PITH_HD constexpr std::int64_t offset(Index... index) const {
    std::int64_t const at[] = {static_cast<std::int64_t>(index)...};
    std::int64_t sum = 0;
    for (int i = 0; i < Rank; ++i) {
      PITH_EXPECTS(at[i] >= 0 && at[i] < extent[i]);
      sum += at[i] * stride[i];
    }
    return sum;
  }

  template <class... Index>
    requires(sizeof...(Index) == Rank && Space == space::host)
  constexpr T& operator()(Index... index) const {
    return data[offset(index...)];
  }

  PITH_HD constexpr std::int64_t elements() const {
    std::int64_t product = 1;
    for (int i = 0; i < Rank; ++i) product *= extent[i];
    return product;
  }

  // The view with one axis, the first unless another is named, cut to [from, from + count).
  template <int Axis = 0>
  PITH_HD constexpr tensor_view part(std::int64_t from, std::int64_t count) const {
    static_assert(Axis >= 0 && Axis < Rank, "[pith] part<Axis>: the view has no such axis.");
    PITH_EXPECTS(from >= 0 && count >= 0 && from + count <= extent[Axis]);
    tensor_view cut = *this;
    cut.data += from * stride[Axis];
    cut.extent[Axis] = count;
    return cut;
  }
};

template <class T, space Space = space::host>
using matrix_view = tensor_view<T, 2, Space>;

template <class T, int Rank>
tensor_view(T*, std::int64_t const (&)[Rank]) -> tensor_view<T, Rank>;

}  // namespace pith
