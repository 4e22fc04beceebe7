// SPDX-License-Identifier: Apache-2.0
// Lossless weights decoded on the emulated device: the CPU's bytes in, the very numbers out; and bytes that nobody wrote.
#include <new>

#include "cuda/lossless_support.hpp"

namespace {

using namespace pith;
using namespace pith_test;

template <class Codec, class T = bf16>
void check(std::vector<T> const& w, std::int64_t rows, std::int64_t columns) {
  INFO(rows << " x " << columns);
  auto const packed = packed_matrix<Codec>::pack(matrix_view<T const>(w.data(), {rows, columns})).value();
  auto const m = device_weights<Codec>::open(packed.bytes(), rows, columns).value();
  emulated_environment const env;
  T const untouched = T{0x5a5a};
  for (std::int64_t const stride : {columns + 3, columns + columns % 2 + 2}) {  // pairs of numbers that are not aligned, and that are
    if (stride % 2 == 0 && columns != 300) continue;
    std::vector<T> out(static_cast<std::size_t>(rows * stride), untouched);
    REQUIRE(m.unpack(env, matrix_view<T, space::device>(out.data(), {rows, columns}, {stride, 1})) == status{});
    CHECK(env.status() == status{});
    std::int64_t wrong = 0;
    for (std::int64_t r = 0; r < rows; ++r)
      for (std::int64_t c = 0; c < stride; ++c)
        wrong += out[static_cast<std::size_t>(r * stride + c)].bits !=
                 (c < columns ? w[static_cast<std::size_t>(r * columns + c)] : untouched).bits;
    CHECK(wrong == 0);
  }
}

template <class Codec>
void check_all() {
  check<Codec>(some_weights(weights_kind::trained, 40, 300, 3), 40, 300);
  check<Codec>(some_weights(weights_kind::scaled_rows, 32, 256, 4), 32, 256);
  check<Codec>(some_weights(weights_kind::zeros, 1, 5, 5), 1, 5);
  check<Codec>(some_weights(weights_kind::noise, 30, 257, 6), 30, 257);
}

// Aligned memory whose end is the end of what may be read.
class exact_bytes {
 public:
  explicit exact_bytes(std::size_t size) : data_(static_cast<std::byte*>(::operator new(size, alignment))), size_(size) {}
  exact_bytes(exact_bytes const&) = delete;
  exact_bytes& operator=(exact_bytes const&) = delete;
  ~exact_bytes() { ::operator delete(data_, alignment); }
  std::span<std::byte> bytes() const { return {data_, size_}; }

 private:
  static constexpr std::align_val_t alignment{64};
  std::byte* data_;
  std::size_t size_;
};

// Any byte of a packed matrix changed, and places of tails that are none: nothing outside is touched, and the first tile that is refused is
// one that the CPU refuses.
template <class Codec>
void check_hostile(int rounds) {
  constexpr std::int64_t rows = 33, columns = 300;
  using tile = typename device_weights<Codec>::tile;
  auto const w = some_weights(weights_kind::trained, rows, columns, 7);
  auto const packed = packed_matrix<Codec>::pack(matrix_view<bf16 const>(w.data(), {rows, columns})).value();
  random_bits random(8);
  int refused = 0;
  for (int round = 0; round < rounds; ++round) {
    exact_bytes const memory(packed.bytes().size());
    std::span const bytes = memory.bytes();
    std::copy(packed.bytes().begin(), packed.bytes().end(), bytes.begin());
    std::size_t const which = random() % 4;
    if (round % 3 == 0)
      bytes[which * tile::bytes + random() % 12] = static_cast<std::byte>(random());
    else
      for (int i = 0; i < 3; ++i)
        bytes[round % 3 == 1 ? random() % bytes.size() : 4 * tile::bytes + random() % (bytes.size() - 4 * tile::bytes)] =
            static_cast<std::byte>(random());
    auto const on_host = packed_matrix<Codec>::open(bytes, rows, columns);
    emulated_environment const env;
    std::vector<bf16> out(static_cast<std::size_t>(rows * columns));
    REQUIRE(device_weights<Codec>::open(bytes, rows, columns)
                .value()
                .unpack(env, matrix_view<bf16, space::device>(out.data(), {rows, columns})) == status{});
    CHECK((env.status() == status{}) == static_cast<bool>(on_host));
    if (!on_host) {
      CHECK(env.status().code == errc::bad_format);
      CHECK(env.status().at % tile::bytes == 0);
      CHECK(env.status().at < 4 * tile::bytes);
    } else {
      std::vector<bf16> right(out.size());
      REQUIRE(on_host.value().unpack(matrix_view<bf16>(right.data(), {rows, columns})));
      if (std::is_same_v<Codec, dynamic_float<bf16>>) CHECK(std::ranges::equal(out, right));  // other coders: some numbers
    }
    refused += !on_host;
  }
  CHECK(refused > rounds / 10);
}

}  // namespace

TEST_CASE("device decode: exponent_window gives every number back", "[cuda][dynamic_float]") {
  check_all<dynamic_float<bf16>>();
  check<dynamic_float<bf16>>(some_weights(weights_kind::rare, 32, 256, 7), 32, 256);
  check<dynamic_float<bf16>>(some_weights(weights_kind::every_pattern, 128, 512, 8), 128, 512);
  std::vector<f16> half;
  for (bf16 const x : some_weights(weights_kind::noise, 32, 256, 9)) half.push_back(f16{x.bits});
  check<dynamic_float<f16>>(half, 32, 256);
}

TEST_CASE("device decode: huffman in two phases gives every number back", "[cuda][dynamic_float]") {
  check_all<dynamic_float<bf16, huffman>>();
}

TEST_CASE("device decode: rans_exponents gives every number back", "[cuda][dynamic_float]") {
  check_all<dynamic_float<bf16, rans_exponents>>();
}

TEST_CASE("device decode: bytes that nobody wrote are refused where the CPU refuses them", "[cuda][dynamic_float]") {
  check_hostile<dynamic_float<bf16>>(21);
  check_hostile<dynamic_float<bf16, huffman>>(9);
  check_hostile<dynamic_float<bf16, rans_exponents>>(9);
}
