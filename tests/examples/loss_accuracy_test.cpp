// SPDX-License-Identifier: Apache-2.0
// What integer accuracy adds to a real model's loss: the example model over held-out text, through a cache that attends in integers and
// one of the same codec that attends exactly. Both read the same windows in chunks of 16 bytes, so the difference is paired by window.
//
//   change = mean over windows of (bits per byte, integer - bits per byte, exact)       standard error = sd / sqrt(windows)
//
// The test reads 4 windows of 1024 bytes. Measured with AVX-512 over 64 windows, 65536 bytes, of 1.75 bits per byte: int8 per token
// -0.00006, int4 per token -0.00003, int4 per channel +0.00014; standard errors 0.00003, 0.00008 and 0.00008.
//
//   pith_examples_test "[loss]"          the test
//   pith_examples_test "[.losses]"       prints the figures, for 4 and for 64 windows
#include <cmath>
#include <cstdio>
#include <string_view>
#include <vector>

#include "examples/cached_attention.hpp"
#include "examples/evaluate.hpp"
#include "examples/model.hpp"
#include "pith/cache/recipes.hpp"

namespace {

using namespace example;

constexpr int window = 1024, chunk = 16;

template <class Recipe>
std::vector<double> window_losses(std::vector<std::string_view> const& windows) {
  llama const& model = pith_test::example_model();
  auto made = pith::make<Recipe>(shape_of(model.config, 16 << 20));
  REQUIRE(made);
  std::vector<double> bits;
  for (std::string_view const text : windows) {
    cached_attention attention(made.value());
    auto const measured = window_bits(model, text, chunk, attention);
    REQUIRE(measured);
    bits.push_back(measured.value());
  }
  return bits;
}

struct paired_change {
  double exact = 0, mean = 0, error = 0;
  bool differs = false;  // the two really computed differently
};

template <class Integer, class Exact>
paired_change change_of(int windows) {
  auto const texts = held_out_windows(pith_test::held_out_text(), window, windows);
  std::vector<double> const integer = window_losses<Integer>(texts), exact = window_losses<Exact>(texts);
  paired_change out;
  double squares = 0;
  for (std::size_t i = 0; i < integer.size(); ++i) {
    double const change = integer[i] - exact[i];
    out.exact += exact[i] / windows, out.mean += change / windows, squares += change * change / windows;
    out.differs = out.differs || change != 0;
  }
  out.error = std::sqrt(std::fmax(0, squares - out.mean * out.mean) / (windows - 1));
  return out;
}

// visit(name, paired change)
template <class Visit>
void for_each_codec(int windows, Visit visit) {
  using namespace pith::recipes;
  using pith::exact_accuracy;
  visit("int8 per token", change_of<int8_cache<64>, int8_cache_exact<64>>(windows));
  visit("int4 per token", change_of<int4_cache<64>, int4_cache_exact<64>>(windows));
  visit("int4 per channel", change_of<kivi4<64>, kivi<64, 4, 32, 32, exact_accuracy>>(windows));
}

}  // namespace

TEST_CASE("accuracy: integer attention changes a real model's loss by at most 0.002 bits per byte", "[examples][accuracy][loss]") {
  for_each_codec(4, [](char const* name, paired_change const& change) {
    INFO(name << ": exact " << change.exact << " bits per byte, integer " << change.mean << " more, standard error " << change.error);
    CHECK(change.differs);
    CHECK(std::fabs(change.mean) + 2 * change.error <= 0.002);
  });
}

TEST_CASE("accuracy: the table of integer attention's changes of the loss", "[.losses]") {
  std::printf("bits per byte with exact attention, change with integer attention, its standard error; windows of %d bytes\n", window);
  for (int windows : {4, 64})
    for_each_codec(windows, [&](char const* name, paired_change const& change) {
      std::printf("%-18s %3d windows  %.4f  %+.5f  %.5f\n", name, windows, change.exact, change.mean, change.error);
    });
}
