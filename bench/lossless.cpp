// SPDX-License-Identifier: Apache-2.0
// Lossless bf16 weights: bits a weight beside the entropy of exponents, and how fast tiles of 32 x 256 are encoded and decoded, one thread.
//
// Weights: gaussian with log-normal scales of rows, sigma 0.3 and 1.0, and every matrix of the language model in examples/model. Entropy is
// that of a matrix's exponents, all rows together. Panels have 256 columns, or 352 where 256 does not divide them (704). Tiles and rows stay in
// L2: sixteen tiles are visited in turn. GB/s are of bf16 numbers; the floor is copying the same bytes with memcpy in the same run. decode
// gives the words of a raw tile, which kernels read; rows gives rows. Products with such weights are in bench/linear.cpp.
#include <cmath>
#include <fstream>
#include <iterator>
#include <random>

#include "pith/codec/exponent_planes.hpp"
#include "pith/codec/exponent_rans.hpp"
#include "pith/codec/huffman.hpp"
#include "pith/interop/safetensors.hpp"
#include "pith/pith.hpp"
#include "support/machine.hpp"
#include "support/report.hpp"

namespace {

using pith::bf16;
constexpr int different = 16, panel = 256;

struct matrix {
  std::int64_t rows, columns;
  std::vector<bf16> numbers;
};

matrix generated(double sigma) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  matrix m{512, 4096, {}};
  for (std::int64_t r = 0; r < m.rows; ++r) {
    float const scale = 0.02f * std::exp(static_cast<float>(sigma) * normal(random));
    for (std::int64_t c = 0; c < m.columns; ++c) m.numbers.push_back(pith::from_float<bf16>(scale * normal(random)));
  }
  return m;
}

std::vector<matrix> model_weights() {
  std::ifstream in(PITH_SOURCE_DIR "/examples/model/pith-kjv.safetensors", std::ios::binary);
  std::string const text{std::istreambuf_iterator<char>(in), {}};
  auto const file = pith::safetensors::read(std::as_bytes(std::span(text)));
  std::vector<matrix> all;
  if (!file) return all;
  for (auto const& t : file.value().tensors)
    if (t.shape.size() == 2) {
      std::vector<float> x(static_cast<std::size_t>(t.elements()));
      if (!pith::safetensors::decode(t, std::span<float>(x))) continue;
      matrix m{t.shape[0], t.shape[1], {}};
      for (float const one : x) m.numbers.push_back(pith::from_float<bf16>(one));
      all.push_back(std::move(m));
    }
  return all;
}

// Bits a weight: packed, 8 + entropy, and 11.2 + 8 max(0, 0.97 - share of the seven commonest exponents), means over all weights.
struct sizes {
  double packed = 0, entropy = 0, aim = 0, worst = -1;  // worst: packed above its aim, of one matrix
};
template <class Coder, int Panel>
double packed_bytes(matrix const& m) {
  using packed_matrix = pith::packed_matrix<pith::dynamic_float<bf16, Coder>, pith::use::dot, Panel>;
  auto const packed = packed_matrix::pack(pith::matrix_view<bf16 const>(m.numbers.data(), {m.rows, m.columns}));
  return packed ? static_cast<double>(packed.value().bytes().size()) : 1e300;
}
template <class Coder>
sizes sizes_of(std::vector<matrix> const& all) {
  sizes mean;
  double weights = 0;
  for (matrix const& m : all) {
    // A panel that divides the columns: padding is stored like weights.
    double const bytes = m.columns % 256 == 0 ? packed_bytes<Coder, 256>(m) : packed_bytes<Coder, 352>(m);
    std::vector<double> share(256);
    double const count = static_cast<double>(m.numbers.size());
    for (bf16 const x : m.numbers) share[x.bits >> 7 & 255u] += 1 / count;
    double entropy = 8, seven = 0;
    for (double const p : share) entropy -= p > 0 ? p * std::log2(p) : 0;
    std::sort(share.rbegin(), share.rend());
    for (int i = 0; i < 7; ++i) seven += share[static_cast<std::size_t>(i)];
    double const bits = 8 * bytes / count, aim = 11.2 + 8 * std::max(0.0, 0.97 - seven);
    mean.packed += bits * count;
    mean.entropy += entropy * count;
    mean.aim += aim * count;
    mean.worst = std::max(mean.worst, bits - aim);
    weights += count;
  }
  return {mean.packed / weights, mean.entropy / weights, mean.aim / weights, mean.worst};
}

template <class Coder>
struct tiles {
  using tile = typename pith::dynamic_float<bf16, Coder>::template bind<panel, 256, pith::use::dot>;
  using engine = pith::tile_engine<pith::cpu, tile>;
  static constexpr std::int64_t bytes = pith::round_up(tile::bytes + tile::tail_bound + pith::tail_padding, 64);
  std::vector<bf16> from, back;
  std::byte *packed, *raw;

  explicit tiles(matrix const& m) : packed(memory(different * bytes)), raw(memory(different * pith::raw_form<tile>::bytes)) {
    for (int i = 0; i < different; ++i)
      for (int r = 0; r < 32; ++r)
        for (int c = 0; c < panel; ++c) from.push_back(m.numbers[static_cast<std::size_t>((i % 8 * 32 + r) * m.columns + i / 8 * panel + c)]);
    back = from;
    for (int i = 0; i < different; ++i) encode(i);
  }
  static std::byte* memory(std::int64_t size) { return static_cast<std::byte*>(std::aligned_alloc(64, static_cast<std::size_t>(size))); }
  bf16* rows(std::vector<bf16>& of, std::int64_t i) { return of.data() + i % different * tile::count; }
  void encode(std::int64_t i) {
    std::byte* const to = packed + i % different * bytes;
    engine::encode(static_cast<bf16 const*>(rows(from, i)), std::int64_t{panel}, to, to + tile::bytes);
    pith::tail_place::set_distance(to, tile::bytes);
  }
  void decode(std::int64_t i) { pith::expand_tile<tile>(packed + i % different * bytes, raw + i % different * pith::raw_form<tile>::bytes); }
  void decode_rows(std::int64_t i) { engine::decode(packed + i % different * bytes, rows(back, i), std::int64_t{panel}); }
};

template <class Make>
void add(std::string const& name, Make make) {
  benchmark::RegisterBenchmark(("lossless/" + name).c_str(), [=](benchmark::State& state) {
    auto step = make();
    std::int64_t i = 0;
    for (auto _ : state) {
      step(i++);
      benchmark::ClobberMemory();
    }
    state.SetLabel("lossless/memcpy");
    state.counters["packed_bytes"] = 32 * panel * sizeof(bf16);
    state.counters["values"] = 32 * panel;
  })->MinTime(0.05)->Unit(benchmark::kMicrosecond);
}

template <class Coder>
void add_coder(std::string const& name, std::vector<std::pair<std::string, std::vector<matrix>>> const& data) {
  for (auto const& [from, all] : data) {
    if (all.empty()) continue;
    sizes const s = sizes_of<Coder>(all);
    char line[200];
    std::snprintf(line, sizeof line, "%-8s %-12s %.3f bits a weight; 8 + entropy %.3f (%+.2f %%); 11.2 + 8 max(0, 0.97 - p7) = %.3f, worst matrix %+.3f\n",
                  name.c_str(), from.c_str(), s.packed, s.entropy, 100 * (s.packed / s.entropy - 1), s.aim, s.worst);
    bench::references += line;
  }
  auto const held = std::make_shared<tiles<Coder>>(data.front().second.front());
  add("encode/" + name, [=] { return [=](std::int64_t i) { held->encode(i); }; });
  add("decode/" + name, [=] { return [=](std::int64_t i) { held->decode(i); }; });
  add("rows/" + name, [=] { return [=](std::int64_t i) { held->decode_rows(i); }; });
}

}  // namespace

int main(int argc, char** argv) {
  bench::pin();
  bench::processor_time = true;
  bench::floor_name = "memcpy in cache, one thread";
  bench::floor_rule = "the same bytes at the speed of that memcpy";
  std::vector<bf16> from(different * 32 * panel), to(from.size());
  auto const copy = [&](std::int64_t i) {
    std::int64_t const at = i % different * 32 * panel;
    std::memcpy(to.data() + at, from.data() + at, 32 * panel * sizeof(bf16));
  };
  add("memcpy", [&] { return copy; });
  std::int64_t step = 0;
  double best = 1;
  for (int round = 0; round < 50; ++round) {
    double const start = bench::now();
    for (int i = 0; i < 100; ++i) {
      copy(step++);
      benchmark::ClobberMemory();
    }
    best = std::min(best, (bench::now() - start) / 100);
  }
  bench::read_bandwidth = 32 * panel * sizeof(bf16) / best;
  std::vector<std::pair<std::string, std::vector<matrix>>> const data{
      {"scales 0.3", {generated(0.3)}}, {"scales 1.0", {generated(1.0)}}, {"model", model_weights()}};
  add_coder<pith::exponent_window>("window", data);
  add_coder<pith::exponent_planes>("planes", data);
  add_coder<pith::huffman>("huffman", data);
  add_coder<pith::rans_exponents>("rans", data);
  return bench::run(argc, argv, "Lossless bf16 weights, tiles of 32 x 256, 1 thread");
}
