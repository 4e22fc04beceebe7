// SPDX-License-Identifier: Apache-2.0
// Products with packed weights: y = W x for batches of 1, 4 and 16 rows of bf16, f32 outputs, one thread.
//
// Times are processor time of the thread, for the products and for the bandwidth alike, so that a shared core disturbs them less; with two
// threads (threads_2) wall time.
// Weights are streamed from memory: at least 512 MB of matrices are visited in turn. The floor is the packed bytes of one matrix at the read
// bandwidth measured by this program; the program also measures what one core can multiply. The error is the relative difference of y from
// a product in double over the numbers before they were packed (gaussian weights); the baseline is the same shape in bf16. Pruned weights
// have 50 or 70 % zeros, the smallest of the gaussians.
#include <cmath>
#include <map>
#include <random>

#include "pith/codec/exponent_planes.hpp"
#include "pith/pith.hpp"
#include "support/machine.hpp"
#include "support/pool.hpp"
#include "support/report.hpp"

namespace {

constexpr std::int64_t streamed = 512 << 20;

std::vector<float> numbers(std::int64_t count, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> x(static_cast<std::size_t>(count));
  for (float& one : x) one = normal(random);
  return x;
}

// Gaussians of which those up to `threshold` are zero.
std::vector<float> pruned(std::int64_t count, unsigned seed, float threshold) {
  std::vector<float> x = numbers(count, seed);
  for (float& one : x) one = std::fabs(one) > threshold ? one : 0.0f;
  return x;
}

std::vector<pith::bf16> queries(std::int64_t count, unsigned seed) {
  std::vector<pith::bf16> x;
  for (float const one : numbers(count, seed)) x.push_back(pith::from_float<pith::bf16>(one));
  return x;
}

// One arena for all cases: its pages are touched once, not by every benchmark.
std::span<std::byte> arena() {
  constexpr std::int64_t size = streamed + (256 << 20);
  static std::byte* const memory = bench::huge(size);
  return {memory, static_cast<std::size_t>(size)};
}

template <class Matrix, bool Transposed, class Accuracy, class Executor = pith::serial>
pith::status product(Matrix const& w, std::vector<pith::bf16> const& x, std::vector<float>& out, std::vector<std::byte>& scratch, std::int64_t batch,
                     Executor&& run = {}) {
  pith::matrix_view<pith::bf16 const> const in(x.data(), {batch, Transposed ? w.rows() : w.columns()});
  pith::matrix_view<float> const to(out.data(), {batch, Transposed ? w.columns() : w.rows()});
  if constexpr (Transposed)
    return w.template multiply_transposed<Accuracy>(in, to, scratch, {}, run);
  else
    return w.template multiply<Accuracy>(in, to, scratch, {}, run);
}

template <class Matrix, bool Transposed, class Accuracy>
std::vector<std::byte> scratch_of(Matrix const& w, std::int64_t batch) {
  return std::vector<std::byte>(static_cast<std::size_t>(Transposed ? w.template transposed_scratch_bytes<Accuracy>(batch) : w.template scratch_bytes<Accuracy>(batch)));
}

// Relative error of y against double precision over unpacked numbers; 512 x 4096, 4 rows of x.
template <class Matrix, bool Transposed, class Accuracy>
double output_error(float threshold) {
  constexpr std::int64_t rows = Transposed ? 4096 : 512, columns = Transposed ? 512 : 4096, inputs = 4096, outputs = 512, batch = 4;
  auto const weights = pruned(rows * columns, 5, threshold);
  auto const x = queries(batch * inputs, 6);
  auto const w = Matrix::pack(pith::matrix_view<float const>(weights.data(), {rows, columns}));
  if (!w) return -1;
  std::vector<float> out(static_cast<std::size_t>(batch * outputs));
  auto scratch = scratch_of<Matrix, Transposed, Accuracy>(w.value(), batch);
  if (!product<Matrix, Transposed, Accuracy>(w.value(), x, out, scratch, batch)) return -1;
  double off = 0, size = 0;
  for (std::int64_t i = 0; i < batch; ++i)
    for (std::int64_t o = 0; o < outputs; ++o) {
      double right = 0;
      for (std::int64_t k = 0; k < inputs; ++k)
        right += static_cast<double>(weights[static_cast<std::size_t>(Transposed ? k * columns + o : o * columns + k)]) * pith::to_float(x[static_cast<std::size_t>(i * inputs + k)]);
      double const made = out[static_cast<std::size_t>(i * outputs + o)];
      off += (made - right) * (made - right);
      size += right * right;
    }
  return std::sqrt(off / size);
}

// As many matrices of one shape as fill the arena's first `streamed` bytes. Row blocks repeat after 256 rows; rows have scales, log-normal with
// sigma 0.3, and of a variable rate a whole matrix is packed and copied.
template <class Matrix>
struct matrices {
  static constexpr std::int64_t different = 256;
  std::int64_t rows, columns;
  float threshold;
  std::int64_t bytes, count;

  matrices(std::int64_t rows_, std::int64_t columns_, float threshold_)
      : rows(rows_), columns(columns_), threshold(threshold_), bytes(size()), count((streamed + bytes - 1) / bytes) {}

  bool fill() const {
    if (count * bytes > static_cast<std::int64_t>(arena().size())) return false;
    auto const part = sample();
    std::int64_t const part_bytes = static_cast<std::int64_t>(part.bytes().size());
    for (std::int64_t at = 0; at < count * bytes; at += Matrix::tiles::has_tails ? bytes : part_bytes)
      std::memcpy(arena().data() + at, part.bytes().data(), static_cast<std::size_t>(std::min(part_bytes, count * bytes - at)));
    return true;
  }
  auto matrix(std::int64_t i) const { return Matrix::open(arena().subspan(static_cast<std::size_t>(i % count * bytes), static_cast<std::size_t>(bytes)), rows, columns); }

 private:
  Matrix sample() const {
    std::int64_t const part_rows = Matrix::tiles::has_tails ? rows : different;
    auto const scales = numbers(different, 2), some = pruned(different * columns, 1, threshold);
    std::vector<pith::bf16> w(static_cast<std::size_t>(part_rows * columns));
    for (std::int64_t r = 0; r < part_rows; ++r)
      for (std::int64_t c = 0; c < columns; ++c)
        w[static_cast<std::size_t>(r * columns + c)] = pith::from_float<pith::bf16>(
            std::exp(0.3f * scales[static_cast<std::size_t>(r % different)]) * some[static_cast<std::size_t>(r % different * columns + c)]);
    return std::move(Matrix::pack(pith::matrix_view<pith::bf16 const>(w.data(), {part_rows, columns}))).value();
  }
  std::int64_t size() const {
    if constexpr (Matrix::tiles::has_tails)
      return pith::round_up(static_cast<std::int64_t>(sample().bytes().size()), 64);
    else
      return Matrix::bound_bytes(rows, columns);
  }
};

template <class Codec, class Accuracy, pith::use Use = pith::use::dot>
void add_case(std::string const& name, std::int64_t rows, std::int64_t batch, int threads = 1, float threshold = 0) {
  constexpr bool transposed = Use == pith::use::mix;
  using matrix = pith::packed_matrix<Codec, Use>;
  std::string const bench = transposed ? "linear_transposed/" : "linear/";
  std::int64_t const columns = 4096, inputs = transposed ? rows : columns, outputs = transposed ? columns : rows;
  std::string const suffix = "/" + std::to_string(rows) + "x" + std::to_string(columns) + "/batch_" + std::to_string(batch) + (threads == 2 ? "/threads_2" : "");
  benchmark::RegisterBenchmark((bench + name + suffix).c_str(), [=](benchmark::State& state) {
    static std::map<float, double> errors;
    auto const [error, is_new] = errors.try_emplace(threshold, 0);
    if (is_new) error->second = output_error<matrix, transposed, Accuracy>(threshold);
    matrices<matrix> const all(rows, columns, threshold);
    if (!all.fill()) return state.SkipWithError("the arena is too small");
    auto const x = queries(batch * inputs, 9);
    std::vector<float> out(static_cast<std::size_t>(batch * outputs));
    auto scratch = scratch_of<matrix, transposed, Accuracy>(all.matrix(0).value(), batch);
    std::vector<matrix> opened;  // of a variable rate, opening reads them
    for (std::int64_t k = 0; k < all.count; ++k) opened.push_back(std::move(all.matrix(k)).value());
    std::size_t i = 0;
    auto const time = [&](auto const& clock, auto& run) {
      for (auto _ : state) {
        matrix const& w = opened[i++ % opened.size()];
        double const start = clock();
        if (!product<matrix, transposed, Accuracy>(w, x, out, scratch, batch, run)) state.SkipWithError("a product failed");
        benchmark::ClobberMemory();
        state.SetIterationTime(clock() - start);
      }
    };
    pith::serial serial;
    if (threads == 1) {
      time(bench::thread_now, serial);
    } else {
      bench::pool pool(threads);
      time(bench::now, pool);
    }
    state.SetLabel(bench + "bf16" + suffix);
    state.counters["packed_bytes"] = static_cast<double>(all.bytes);
    state.counters["values"] = static_cast<double>(rows * columns);
    state.counters["flops"] = 2.0 * static_cast<double>(rows * columns * batch);
    state.counters["error"] = error->second;
    state.counters["threads"] = threads;
  })->UseManualTime()->MinTime(0.15)->Unit(benchmark::kMicrosecond);
}

template <class Codec, class Accuracy, pith::use Use = pith::use::dot>
void add(std::string const& name, float threshold = 0) {
  for (std::int64_t const rows : {4096, 14336})
    for (std::int64_t const batch : {1, 4, 16})
      if (Use == pith::use::dot || rows == 4096) add_case<Codec, Accuracy, Use>(name, rows, batch, 1, threshold);
}

}  // namespace

int main(int argc, char** argv) {
  using namespace pith;
  bench::pin();
  bench::read_bandwidth = bench::measure_read_bandwidth(1 << 30, bench::thread_now);
  bench::references = bench::peaks_line();
  using bf = pith::raw<bf16>;
  add<bf, integer_accuracy>("bf16");
  add<dynamic_float<bf16>, integer_accuracy>("lossless");
  add<dynamic_float<bf16, exponent_planes>, integer_accuracy>("lossless_planes");
  add<bitmap_sparse<bf16>, integer_accuracy>("pruned_50", 0.67449f);  // quantiles of a gaussian's size
  add<bitmap_sparse<bf16>, integer_accuracy>("pruned_70", 1.03643f);
  for (std::int64_t const rows : {4096, 14336}) {
    add_case<bf, integer_accuracy>("bf16", rows, 1, 2);
    add_case<dynamic_float<bf16>, integer_accuracy>("lossless", rows, 1, 2);
    add_case<dynamic_float<bf16, exponent_planes>, integer_accuracy>("lossless_planes", rows, 1, 2);
  }
  add<int8<per_token<64>, zero::none>, integer_accuracy>("int8");
  add<int8<per_token<64>, zero::real>, integer_accuracy>("int8_zero");
  add<int4<per_token<64>, zero::none>, integer_accuracy>("int4");
  add<int4<per_token<64>, zero::real>, integer_accuracy>("int4_zero");
  add<int4<per_token<64>, zero::none>, exact_accuracy>("int4_exact");
  add<int2<per_token<64>, zero::real>, integer_accuracy>("int2_zero");
  add<pith::pipe<hadamard<64>, int4<per_token<64>, zero::none>>, integer_accuracy>("rotated4");
  add<bf, exact_accuracy, use::mix>("bf16");
  add<int4<per_token<64>, zero::none>, integer_accuracy, use::mix>("int4");
  return bench::run(argc, argv, "Products with packed weights, x in bf16, 1 thread");
}
