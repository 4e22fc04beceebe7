// SPDX-License-Identifier: Apache-2.0
// Puts the same keys and values into three caches, attends to each, and compares bytes, time and error.
#include <pith/pith.hpp>

#include <chrono>
#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

struct int4_rotated : pith::kv_cache<pith::head_dim<128>, pith::keys<pith::pipe<pith::hadamard<128>, pith::int4<pith::per_token<64>>>>,
                                     pith::values<pith::int4<pith::per_token<64>>>, pith::raw<pith::first<4>, pith::last<64>>,
                                     pith::accuracy<pith::integer_accuracy>> {};

std::vector<float> keys(8192 * 8 * 128), values(keys.size()), query(32 * 128), exact;  // [token][head][channel]

template <class Composition>
void run(char const* name) {
  auto cache = pith::make<Composition>({.kv_heads = 8, .query_heads = 32, .bytes = 64 << 20}).value();
  auto sequence = cache.open().value();
  std::vector<float> out(query.size());
  pith::status s = cache.append(sequence, 0, pith::tensor_view(keys.data(), {8192, 8, 128}), pith::tensor_view(values.data(), {8192, 8, 128}));
  auto const start = std::chrono::steady_clock::now();
  for (int i = 0; i < 20 && s; ++i) s = cache.attend(sequence, 0, pith::tensor_view(query.data(), {1, 32, 128}), pith::tensor_view(out.data(), {1, 32, 128}));
  std::chrono::duration<double, std::micro> const time = std::chrono::steady_clock::now() - start;
  if (exact.empty()) exact = out;  // the first cache is the reference
  double error = 0, norm = 0;
  for (std::size_t i = 0; i < out.size(); ++i) error += std::pow(out[i] - exact[i], 2), norm += std::pow(exact[i], 2);
  std::printf("%-13s %5.2f bits per value  %5.0f us per token  relative error %.3f  %s\n", name, cache.bits_per_value(), time.count() / 20,
              std::sqrt(error / norm), pith::message(s.code));
}

int main() {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  for (std::size_t i = 0; i < keys.size(); ++i) keys[i] = normal(random) * (i % 64 == 7 ? 5.0f : 1.0f);  // outlier channels, as models have them
  for (float& x : values) x = normal(random);
  for (float& x : query) x = normal(random);
  run<pith::recipes::bf16_cache<128>>("bf16");
  run<pith::recipes::int8_cache<128>>("int8");
  run<int4_rotated>("int4, rotated");
}
