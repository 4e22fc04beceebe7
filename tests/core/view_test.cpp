// SPDX-License-Identifier: Apache-2.0
#include "pith/core/view.hpp"

#include <cstdint>
#include <numeric>
#include <type_traits>
#include <vector>

#include "support/catch.hpp"

using pith::tensor_view;

TEST_CASE("view: a contiguous view has its last axis fastest", "[core]") {
  std::vector<int> data(2 * 3 * 4);
  std::iota(data.begin(), data.end(), 0);
  tensor_view<int, 3> const view(data.data(), {2, 3, 4});
  CHECK(view.elements() == 24);
  int expected = 0;
  for (int i = 0; i < 2; ++i)
    for (int j = 0; j < 3; ++j)
      for (int k = 0; k < 4; ++k) CHECK(view(i, j, k) == expected++);
}

TEST_CASE("view: strides may be anything, negative and zero included", "[core]") {
  int data[6] = {0, 1, 2, 3, 4, 5};
  tensor_view<int, 2> const transposed(data, {3, 2}, {1, 3});
  CHECK(transposed(0, 1) == 3);
  CHECK(transposed(2, 1) == 5);
  tensor_view<int, 1> const backwards(data + 5, {6}, {-1});
  for (int i = 0; i < 6; ++i) CHECK(backwards(i) == 5 - i);
  tensor_view<int, 2> const repeated(data + 2, {4, 1}, {0, 1});
  for (int i = 0; i < 4; ++i) CHECK(repeated(i, 0) == 2);
  CHECK(backwards.part(2, 3)(0) == 3);
  CHECK(backwards.part(2, 3)(2) == 1);
}

TEST_CASE("view: offsets are 64-bit, whatever the type of the index", "[core][overflow]") {
  std::int64_t const giant = std::int64_t{1} << 33;
  tensor_view<std::byte, 3> const view(nullptr, {1 << 20, 8, 128}, {giant, -(giant / 4), 1});
  CHECK(view.offset(4000, 0, 5) == 4000 * giant + 5);
  CHECK(view.offset(short{3}, 7u, 127l) == 3 * giant - 7 * (giant / 4) + 127);
  CHECK(view.elements() == (std::int64_t{1} << 30));
  tensor_view<std::byte, 2> const contiguous(nullptr, {std::int64_t{1} << 20, std::int64_t{1} << 20});
  CHECK(contiguous.elements() == std::int64_t{1} << 40);
  CHECK(contiguous.offset((1 << 20) - 1, 1) == ((std::int64_t{1} << 20) - 1) * (std::int64_t{1} << 20) + 1);
}

TEST_CASE("view: an empty view has no elements", "[core][edge]") {
  CHECK(tensor_view<float, 3>(nullptr, {0, 4, 64}).elements() == 0);
  CHECK(tensor_view<float, 3>().elements() == 0);
  float data[4] = {};
  CHECK(tensor_view<float, 2>(data, {2, 2}).part(2, 0).elements() == 0);
}

TEST_CASE("view: part cuts the first axis and keeps the others", "[core]") {
  std::vector<int> data(24);
  std::iota(data.begin(), data.end(), 0);
  tensor_view<int, 3> const cut = tensor_view<int, 3>(data.data(), {4, 3, 2}).part(1, 2);
  CHECK(cut.extent[0] == 2);
  CHECK(cut(0, 0, 0) == 6);
  CHECK(cut(1, 2, 1) == 17);
}

TEST_CASE("view: a view becomes a view of constants, never the other way, and spaces do not mix", "[core]") {
  static_assert(std::is_convertible_v<tensor_view<float, 2>, tensor_view<float const, 2>>);
  static_assert(!std::is_convertible_v<tensor_view<float const, 2>, tensor_view<float, 2>>);
  static_assert(!std::is_convertible_v<tensor_view<float, 2, pith::space::device>, tensor_view<float const, 2>>);
  static_assert(std::is_trivially_copyable_v<tensor_view<float, 5>>);
  float data[6] = {0, 1, 2, 3, 4, 5};
  tensor_view<float const, 2> const view = tensor_view<float, 2>(data, {2, 3}, {3, 1});
  CHECK(view(1, 2) == 5.0f);
}

template <class View>
concept readable = requires(View v) {
  v(0, 0);
};

TEST_CASE("view: the host cannot read a device view", "[core]") {
  static_assert(readable<pith::matrix_view<float>>);
  static_assert(!readable<pith::matrix_view<float, pith::space::device>>);
  SUCCEED();
}
