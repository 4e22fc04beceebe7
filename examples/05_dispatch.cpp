// SPDX-License-Identifier: Apache-2.0
// One program for every x86 processor: the same source compiled for SSE4.2, AVX2 and AVX-512 VNNI, one of them chosen at start.
//
//   05_dispatch           the best variant that this processor runs; every slower one that it runs must agree
//   05_dispatch v2        that variant, if this processor runs it: v2, v3 or avx512
//
// dispatch/kernels.cpp is the source, dispatch/CMakeLists.txt the three sets of flags and how the variants are kept apart while linking.
// This file is compiled for the plain instruction set: it runs before anything is known of the processor.
#include "dispatch/kernels.hpp"

#include <cmath>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

namespace {

struct variant {
  char const* name;
  dispatch::kernels const* kernels;
  bool runs;
};

// What each set of flags in dispatch/CMakeLists.txt lets the compiler use. __builtin_cpu_supports asks the operating system too.
std::vector<variant> variants() {
  __builtin_cpu_init();
#if defined(__clang__)  // before 18 it does not know the levels' names; processors with these features have the rest of their level
  bool const v2 = __builtin_cpu_supports("sse4.2") && __builtin_cpu_supports("popcnt");
  bool const v3 = v2 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
  bool const v4 = v3 && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#else
  bool const v2 = __builtin_cpu_supports("x86-64-v2"), v3 = __builtin_cpu_supports("x86-64-v3"), v4 = __builtin_cpu_supports("x86-64-v4");
#endif
  bool const avx512 = v4 && __builtin_cpu_supports("avx512vnni");
  return {{"avx512", &pith_kernels_avx512, avx512}, {"v3", &pith_kernels_v3, v3}, {"v2", &pith_kernels_v2, v2}};  // best first
}

constexpr std::int64_t tokens = 1000, pages = (tokens + dispatch::page_tokens - 1) / dispatch::page_tokens;
constexpr std::size_t head_dim = dispatch::head_dim, page_rows = dispatch::page_tokens * head_dim;

struct outcome {
  std::vector<unsigned char> bytes;  // of all pages
  std::vector<float> out;
};

// rows [page][kv_head][page_tokens][head_dim]
bool run(dispatch::kernels const& k, std::vector<float> const& keys, std::vector<float> const& values, std::vector<float> const& q,
         outcome& result) {
  auto const size = static_cast<std::size_t>(pages * dispatch::kv_heads * k.page_bytes);
  std::unique_ptr<unsigned char, void (*)(void*)> const memory(static_cast<unsigned char*>(std::aligned_alloc(64, size)), &std::free);
  for (std::size_t i = 0; i < static_cast<std::size_t>(pages * dispatch::kv_heads); ++i)
    k.encode(&keys[i * page_rows], &values[i * page_rows], memory.get() + i * static_cast<std::size_t>(k.page_bytes));
  result.bytes.assign(memory.get(), memory.get() + size);
  result.out.assign(q.size(), 0.0f);
  return k.attend(memory.get(), tokens, q.data(), result.out.data());
}

std::vector<double> plain_attention(std::vector<float> const& keys, std::vector<float> const& values, std::vector<float> const& q) {
  std::vector<double> out(q.size());
  for (std::size_t head = 0; head < dispatch::query_heads; ++head) {
    std::size_t const kv_head = head / (dispatch::query_heads / dispatch::kv_heads);
    double weights = 0;
    for (std::size_t t = 0; t < tokens; ++t) {
      std::size_t const row = (t / dispatch::page_tokens * dispatch::kv_heads + kv_head) * page_rows + t % dispatch::page_tokens * head_dim;
      double score = 0;
      for (std::size_t c = 0; c < head_dim; ++c) score += static_cast<double>(q[head * head_dim + c]) * keys[row + c];
      double const weight = std::exp(score / 8);
      weights += weight;
      for (std::size_t c = 0; c < head_dim; ++c) out[head * head_dim + c] += weight * values[row + c];
    }
    for (std::size_t c = 0; c < head_dim; ++c) out[head * head_dim + c] /= weights;
  }
  return out;
}

template <class Exact>
double relative_error(std::vector<float> const& of, Exact const& exact) {
  double error = 0, norm = 0;
  for (std::size_t i = 0; i < of.size(); ++i) {
    error += (of[i] - exact[i]) * (of[i] - exact[i]);
    norm += exact[i] * exact[i];
  }
  return std::sqrt(error / norm);
}

}  // namespace

int main(int argc, char** argv) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::vector<float> keys(static_cast<std::size_t>(pages * dispatch::kv_heads) * page_rows), values(keys.size()),
      q(dispatch::query_heads * head_dim);
  for (auto* numbers : {&keys, &values, &q})
    for (float& x : *numbers) x = normal(random);

  std::vector<variant> const all = variants();
  char const* const wanted = argc > 1 && argv[1][0] != '-' ? argv[1] : nullptr;  // run.sh gives its options to every example
  variant const* chosen = nullptr;
  for (variant const& each : all)
    if (chosen == nullptr && (wanted != nullptr ? std::strcmp(wanted, each.name) == 0 : each.runs)) chosen = &each;
  if (chosen == nullptr || !chosen->runs) {
    std::fprintf(stderr, "%s: this processor runs none such; it runs:", wanted != nullptr ? wanted : "x86-64-v2");
    for (variant const& each : all)
      if (each.runs) std::fprintf(stderr, " %s", each.name);
    return std::fprintf(stderr, "\n"), 2;
  }

  outcome best;
  if (!run(*chosen->kernels, keys, values, q, best)) return std::fprintf(stderr, "%s: refused\n", chosen->name), 1;
  double const error = relative_error(best.out, plain_attention(keys, values, q));
  bool right = error < 0.2;  // 4-bit keys and values
  std::printf("chosen: %s (%s), relative error of attention %.4f\n", chosen->name, chosen->kernels->instruction_set, error);

  // An engine calls only the chosen one. Here the slower ones are run too: the same bytes, and the same attention but for f32 rounding.
  for (variant const* each = chosen + 1; each != all.data() + all.size(); ++each) {
    outcome other;
    if (!each->runs || !run(*each->kernels, keys, values, q, other)) return std::fprintf(stderr, "%s: refused\n", each->name), 1;
    double const difference = relative_error(other.out, best.out);
    bool const same_bytes = other.bytes == best.bytes;
    right = right && same_bytes && difference < 1e-3 && std::strcmp(each->kernels->instruction_set, chosen->kernels->instruction_set) != 0;
    std::printf("%s (%s): %s pages, attention differs by %.1e\n", each->name, each->kernels->instruction_set,
                same_bytes ? "the same" : "OTHER", difference);
  }
  std::printf("%s\n", right ? "right" : "WRONG");
  return right ? 0 : 1;
}
