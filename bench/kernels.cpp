// SPDX-License-Identifier: Apache-2.0
// What is computed for a page of 64 tokens and 4 query rows, apart: dot, softmax, mix, and the step of attention that is all three. The
// page stays in the first-level cache (bf16's step, 32 KiB, in the second as well); one thread, processor time.
//
// values/ns counts numbers of the page, for softmax scores. The floor of dot, mix and step is 2 * 4 rows * numbers operations at the core's
// peak: of the 8-bit dot instruction for integer codes, of bf16 pairs for bf16. The baseline is bf16. Errors are relative, against double
// precision over unpacked numbers: of scores, of weighted means, of the output.
#include <memory>

#include "support/attention_case.hpp"

namespace {

constexpr int rows = bench::group, tokens = 64, channels = bench::head_dim;

// Kernels that multiply nothing: what is left of a step is its softmax, and 16 vectors of scores copied.
struct no_tile {
  static constexpr int tokens = ::tokens;
};
struct given_scores {
  using storage = no_tile;
  using query = float const (*)[tokens];
  static void run(std::byte const*, query const& given, float* scores, int stride) {
    for (int m = 0; m < rows; ++m) std::memcpy(scores + m * stride, given[m], sizeof given[m]);
  }
};
struct no_mix {
  using storage = no_tile;
  static void run(std::byte const*, float const*, int, float*) {}
};

template <class Keys, class Values, class Accuracy>
void add(std::string const& name, double peak) {
  using page = pith::kv_page<Keys, Values, channels, channels, tokens>;
  using key_tile = typename page::key_tile;
  using value_tile = typename page::value_tile;
  using dot = pith::dot_kernel<typename key_tile::storage, Accuracy, rows>;
  using mix = pith::mix_kernel<typename value_tile::storage, Accuracy, rows>;
  struct scene {
    alignas(64) std::byte memory[page::bytes];
    alignas(64) float scores[rows][tokens], weights[rows][tokens], sums[rows][channels] = {};
    pith::lanes_of<mix> rest;
    typename dot::query query;
    pith::row_block<channels, channels, pith::lanes_of<mix>, rows> softmax;
    pith::step_scope const scope{.slots = tokens};

    void run_dot() {
      pith::dot_tiles<dot>(tokens, [&](int t) { return memory + page::key_tile_at(t); }, query, scores[0], tokens, pith::ask_nothing{});
    }
    void run_mix() {
      pith::mix_tiles<mix>(
          tokens, [&](int t) { return memory + page::value_tile_at(t); }, weights[0], tokens, sums[0], rest, pith::ask_nothing{});
    }
    void run_softmax() {
      auto const nothing = [](int) { return static_cast<std::byte const*>(nullptr); };
      softmax.template step<given_scores, no_mix>(scores, tokens, scope, nothing, nothing);
    }
    void run_step() {
      softmax.template step<dot, mix>(
          query, tokens, scope, [&](int t) { return memory + page::key_tile_at(t); },
          [&](int t) { return memory + page::value_tile_at(t); });
    }
    void begin() {
      softmax.begin(nullptr, 0);
      for (int m = 0; m < rows; ++m) softmax.lower[m] = 0, softmax.upper[m] = tokens;
    }
  };
  auto const made = std::make_shared<scene>();
  scene& s = *made;
  auto const k = bench::numbers(tokens * channels, 5, true), v = bench::numbers(tokens * channels, 6),
             q = bench::query_numbers({}, rows * channels, 7);
  bench::encode_page<page>(k.data(), v.data(), s.memory);
  std::vector<float> scaled = q;
  for (float& x : scaled) x *= pith::log2_e / std::sqrt(static_cast<float>(channels));
  if constexpr (requires { dot::prepare(q.data(), s.query, pith::query_scale{}); })
    dot::prepare(q.data(), s.query, pith::query_scale{pith::log2_e / std::sqrt(static_cast<float>(channels))});
  else
    dot::prepare(scaled.data(), s.query);

  s.run_dot();
  for (int i = 0; i < rows * tokens; ++i) s.weights[i / tokens][i % tokens] = std::exp2(s.scores[i / tokens][i % tokens] - 8);
  s.run_mix();
  s.rest.move_to(s.sums[0]);
  s.begin();
  s.run_step();
  double off[3] = {}, size[3] = {};  // of dot, mix and step
  auto const differ = [&](int part, double is, double right) { off[part] += (is - right) * (is - right), size[part] += right * right; };
  for (int m = 0; m < rows; ++m) {
    double sum = 0;
    for (int t = 0; t < tokens; ++t) {
      double right = 0;
      for (int c = 0; c < channels; ++c) right += static_cast<double>(scaled[m * channels + c]) * k[t * channels + c];
      differ(0, s.scores[m][t], right);
      sum += s.weights[m][t];
    }
    for (int c = 0; c < channels; ++c) {
      double right = 0;
      for (int t = 0; t < tokens; ++t) right += s.weights[m][t] / sum * v[t * channels + c];
      differ(1, s.sums[m][c] / sum, right);
    }
    s.softmax.gather();
    float out[channels];
    s.softmax.output(m, out);
    bench::compare({}, &q[m * channels], k, v, {}, tokens, out, off[2], size[2]);
  }

  auto const add_part = [&](std::string const& part, auto run, double values, double bytes, double flops, double error) {
    auto const measure = [=](benchmark::State& state) {
      made->begin();
      benchmark::DoNotOptimize(made.get());
      for (auto _ : state) {
        run(*made);
        benchmark::ClobberMemory();
      }
      state.SetLabel("kernels/bf16/" + part);
      state.counters["values"] = values;
      state.counters["packed_bytes"] = bytes;
      state.counters["flops"] = flops;
      state.counters["floor_seconds"] = flops / peak;
      state.counters["error"] = error;
    };
    benchmark::RegisterBenchmark(("kernels/" + name + "/" + part).c_str(), measure)->MinTime(0.05)->Unit(benchmark::kNanosecond);
  };
  double const numbers = tokens * channels, products = 2 * rows * numbers;
  constexpr double key_bytes = tokens / key_tile::tokens * key_tile::bytes, value_bytes = tokens / value_tile::tokens * value_tile::bytes;
  add_part(
      "dot", [](scene& on) { on.run_dot(); }, numbers, key_bytes, products, std::sqrt(off[0] / size[0]));
  add_part(
      "softmax", [](scene& on) { on.run_softmax(); }, rows * tokens, 0, 0, 0);
  add_part(
      "mix", [](scene& on) { on.run_mix(); }, numbers, value_bytes, products, std::sqrt(off[1] / size[1]));
  add_part(
      "step", [](scene& on) { on.run_step(); }, 2 * numbers, key_bytes + value_bytes, 2 * products, std::sqrt(off[2] / size[2]));
}

}  // namespace

int main(int argc, char** argv) {
  using namespace pith;
  bench::pin();
  bench::processor_time = true;
  bench::peaks const& peak = bench::core_peaks();
  bench::references = bench::peaks_line();
  bench::floor_rule = "operations at the core's peak for their type";
  add<pith::raw<bf16>, pith::raw<bf16>, integer_accuracy>("bf16", peak.pairs);
  add<pith::raw<bf16>, pith::raw<bf16>, exact_accuracy>("bf16_exact", peak.floats);
  add<int8<per_token<128>>, int8<per_token<128>>, integer_accuracy>("int8", peak.bytes);
  add<int4<per_token<64>>, int4<per_token<64>>, integer_accuracy>("int4", peak.bytes);
  add<int4<per_channel<32>>, int4<per_token<64>>, integer_accuracy>("kivi4", peak.bytes);
  add<int3<per_token<64>>, int3<per_token<64>>, integer_accuracy>("int3", peak.bytes);
  add<int2<per_token<64>>, int2<per_token<64>>, integer_accuracy>("int2", peak.bytes);
  return bench::run(argc, argv, "Dot, softmax and mix of a page of 64 tokens in cache, 4 query rows, head_dim 128, 1 thread");
}
