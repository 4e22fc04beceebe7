// SPDX-License-Identifier: Apache-2.0
// Prefill: the 512 newest of 4096 tokens are queries, causal, 32 query heads, 8 KV heads, head_dim 128, pages of 64 tokens, one thread.
//
//   GFLOP/s = 4 head_dim (visible (query, key) pairs) query heads / time
//
// The floor is the machine's own peak, measured by this program, for the products that the accuracy asks for: 8-bit dot for integer
// accuracy over codes, bf16 pairs for bf16 pages, f32 for exact accuracy over codes.
#include "support/attention_case.hpp"

namespace {

template <class Codec, class Accuracy>
void add(std::string const& name, double peak, bool f32_queries = false) {
  using page = pith::kv_page<Codec, Codec, bench::head_dim, bench::head_dim, 64>;
  bench::add<page, Accuracy>(
      {.name = "prefill/" + name, .baseline = "prefill/bf16", .pages = {.tokens = 4096, .visited = 0}, .queries = 512, .f32_queries = f32_queries, .peak = peak});
}

}  // namespace

int main(int argc, char** argv) {
  using namespace pith;
  bench::begin_attention();
  bench::peaks const& peak = bench::core_peaks();
  bench::references += bench::peaks_line();
  bench::floor_rule = "operations at the core's peak for their type";
  add<pith::raw<bf16>, integer_accuracy>("bf16", peak.pairs);
  add<pith::raw<bf16>, integer_accuracy>("bf16_f32_queries", peak.pairs, true);
  add<pith::raw<bf16>, exact_accuracy>("bf16_exact", peak.floats);
  add<int8<per_token<128>>, integer_accuracy>("int8", peak.bytes);
  add<int8<per_token<128>>, exact_accuracy>("int8_exact", peak.floats);
  add<int4<per_token<64>>, integer_accuracy>("int4", peak.bytes);
  add<int4<per_token<64>>, exact_accuracy>("int4_exact", peak.floats);
  return bench::run(argc, argv, "Prefill, 512 queries on 4096 tokens, 32 query heads, 8 KV heads, head_dim 128, 1 thread");
}
