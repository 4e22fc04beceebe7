// SPDX-License-Identifier: Apache-2.0
// Decode attention over packed pages: one query token, 32 query heads, 8 KV heads, head_dim 128, pages of 64 tokens, one thread.
//
// KV is streamed from memory: at least 256 MB of layers are visited in turn. The floor is the packed bytes of one layer at the bandwidth of
// the row read/memory, which is measured between the others. The error stands in support/attention_case.hpp; the baseline is bf16 pages.
#include "support/attention_case.hpp"

namespace {

template <class Keys, class Values, class Accuracy>
void add(std::string const& name, bool f32_queries = false) {
  using page = pith::kv_page<Keys, Values, bench::head_dim, bench::head_dim, 64>;
  for (std::int64_t const context : {4096, 32768})
    for (bool const random : {false, true}) {
      if (random && context == 4096) continue;
      std::string const suffix = "/" + std::to_string(context) + (random ? "/random_order" : "");
      bench::add<page, Accuracy>({.name = "attention/" + name + suffix,
                                  .baseline = "attention/bf16" + suffix,
                                  .pages = {.tokens = context, .random = random},
                                  .f32_queries = f32_queries});
    }
}

}  // namespace

int main(int argc, char** argv) {
  using namespace pith;
  using pith::pipe;
  bench::begin_attention();
  using bf = pith::raw<bf16>;
  using rotated = pipe<hadamard<128>, int4<per_token<64>>>;
  add<bf, bf, integer_accuracy>("bf16");
  add<bf, bf, integer_accuracy>("bf16_f32_queries", true);
  add<bf, bf, exact_accuracy>("bf16_exact");
  add<int8<per_token<128>>, int8<per_token<128>>, integer_accuracy>("int8");
  add<int8<per_token<128>>, int8<per_token<128>>, exact_accuracy>("int8_exact");
  add<int8<per_token<128>>, int4<per_token<64>>, integer_accuracy>("int8k_int4v");
  add<float8<e4m3>, float8<e4m3>, exact_accuracy>("fp8");
  add<int4<per_token<64>>, int4<per_token<64>>, integer_accuracy>("int4");
  add<int4<per_token<64>>, int4<per_token<64>>, exact_accuracy>("int4_exact");
  add<rotated, rotated, integer_accuracy>("rotated4");
  add<int4<per_channel<32>>, int4<per_token<64>>, integer_accuracy>("kivi4");
  add<int3<per_token<64>>, int3<per_token<64>>, integer_accuracy>("int3");
  add<int2<per_token<64>>, int2<per_token<64>>, integer_accuracy>("int2");
  add<int2<per_channel<32>>, int2<per_token<64>>, integer_accuracy>("kivi2");
  return bench::run(argc, argv, "Decode attention, 32 query heads, 8 KV heads, head_dim 128, pages of 64 tokens, 1 thread");
}
