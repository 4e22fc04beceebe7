// SPDX-License-Identifier: Apache-2.0
// Encoding and decoding chunks of KV streams: 128 tokens of a layer of 1024 channels of keys and of values, bf16 rows, one thread.
//
// Four chunks are visited in turn. Times are of the processor; GB/s are of bf16 numbers, and the floor is copying as many bytes with memcpy
// in the same run. The numbers are a Gaussian walk, x = 0.5 before + noise; the error is the relative root mean square of what comes back.
#include <cmath>
#include <functional>
#include <memory>
#include <random>

#include "pith/cache/kv_stream.hpp"
#include "pith/cache/stream_fit.hpp"
#include "support/machine.hpp"
#include "support/report.hpp"

namespace {

using pith::bf16;
constexpr int channels = 1024, tokens = 128, different = 4;
constexpr std::int64_t rows = tokens * channels, numbers = different * rows;

struct chunks {
  std::vector<float> x = std::vector<float>(2 * numbers);
  std::vector<bf16> from, back;
  pith::stream_model model;
  std::vector<std::byte> packed[different];
  std::int64_t bytes = 0;

  chunks(pith::stream_options const& options, int level) : model(fit(options)) {
    for (float const one : x) from.push_back(pith::from_float<bf16>(one));
    back = from;
    for (int i = 0; i < different; ++i) {
      packed[i].resize(static_cast<std::size_t>(pith::kv_stream::bound_bytes(model.shape(), level, tokens)));
      bytes += encode(i, level) / different;
    }
  }
  pith::stream_model fit(pith::stream_options const& options) {
    std::mt19937 random(1);
    std::normal_distribution<float> normal;
    for (std::size_t i = 0; i < x.size(); ++i) x[i] = (i % numbers < channels ? 0.0f : 0.5f * x[i - channels]) + normal(random);
    pith::stream_fit::rows const layer{{x.data(), {different * tokens, channels}}, {x.data() + numbers, {different * tokens, channels}}};
    return std::move(pith::stream_fit::fit({&layer, 1}, options)).value();
  }
  pith::matrix_view<bf16> part(std::vector<bf16>& of, std::int64_t i, bool values) {
    return {of.data() + i * rows + values * numbers, {tokens, channels}};
  }
  std::int64_t encode(std::int64_t i, int level) {
    auto const size = pith::kv_stream(model).encode<bf16>(level, 0, 0, part(from, i, false), part(from, i, true), packed[i]);
    return size ? size.value() : 0;
  }
  bool decode(std::int64_t i) {
    return static_cast<bool>(pith::kv_stream(model).decode<bf16>(packed[i], part(back, i, false), part(back, i, true)));
  }
  double error() {
    double off = 0, size = 0;
    for (int i = 0; i < different; ++i) static_cast<void>(decode(i));
    for (std::size_t i = 0; i < from.size(); ++i) {
      double const a = static_cast<double>(pith::to_float(from[i])), b = static_cast<double>(pith::to_float(back[i]));
      off += (a - b) * (a - b), size += a * a;
    }
    return std::sqrt(off / size);
  }
};

void add(std::string const& name, double error, std::function<bool(std::int64_t)> step) {
  benchmark::RegisterBenchmark(("stream/" + name).c_str(),
                               [=](benchmark::State& state) {
                                 std::int64_t i = 0;
                                 for (auto _ : state) {
                                   if (!step(i++ % different)) state.SkipWithError("failed");
                                   benchmark::ClobberMemory();
                                 }
                                 state.SetLabel("stream/memcpy");
                                 state.counters["packed_bytes"] = 2.0 * rows * sizeof(bf16);
                                 state.counters["values"] = 2.0 * rows;
                                 state.counters["error"] = error;
                               })
      ->MinTime(0.05)
      ->Unit(benchmark::kMicrosecond);
}

}  // namespace

int main(int argc, char** argv) {
  bench::pin();
  bench::processor_time = true;
  auto const copied = std::make_shared<chunks>(pith::stream_options{}, 0);
  auto const copy = [=](std::int64_t i) {
    for (bool const values : {false, true})
      std::memcpy(copied->part(copied->back, i % different, values).data, copied->part(copied->from, i % different, values).data,
                  rows * sizeof(bf16));
    return true;
  };
  bench::floor_name = "memcpy of the rows, one thread";
  bench::floor_rule = "the same bytes at the speed of that memcpy";
  bench::read_bandwidth = bench::measure_rate(2 * rows * sizeof(bf16), copy);
  add("memcpy", 0, copy);
  struct {
    char const* name;
    pith::stream_options const options;
  } const kinds[] = {{"fitted", {}}, {"published", pith::cachegen}};
  for (auto const& kind : kinds)
    for (int const level : {pith::lossless_level, 1, 2, 4}) {
      if (level == pith::lossless_level && &kind != &kinds[0]) continue;
      auto const held = std::make_shared<chunks>(kind.options, level);
      char text[64], bits[128];
      std::snprintf(text, sizeof text, level == pith::lossless_level ? "lossless" : "%s_%.2f", kind.name,
                    level == pith::lossless_level ? 0.0 : static_cast<double>(held->model.factor(level)));
      std::snprintf(bits, sizeof bits, "%-16s %.3f bits a value\n", text, 4.0 * static_cast<double>(held->bytes) / rows);
      bench::references += bits;
      double const error = held->error();
      add(std::string("encode/") + text, error, [=](std::int64_t i) { return held->encode(i, level) > 0; });
      add(std::string("decode/") + text, error, [=](std::int64_t i) { return held->decode(i); });
    }
  return bench::run(argc, argv, "KV streams: 128 tokens, 1024 channels of keys and of values, bf16");
}
