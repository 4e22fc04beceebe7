// SPDX-License-Identifier: Apache-2.0
// Decode attention with one and two threads over (sequence, KV head), wall time; each thread has a core of its own.
//
// The baseline is one thread in the same case. The floor is the packed bytes at the bandwidth of as many threads, measured between the
// other rows: from memory for 32768 tokens, in a block of 1 MiB that is read again and again for 1024 tokens (one layer, which stays in the
// caches). Two virtual cores may be one real core: what both multiply at once, in processor time, stands above the table.
#include "support/attention_case.hpp"

namespace {

template <class Codec>
void add(std::string const& name) {
  using page = pith::kv_page<Codec, Codec, bench::head_dim, bench::head_dim, 64>;
  for (std::int64_t const context : {1024, 32768})
    for (int const threads : {1, 2}) {
      std::string const prefix = "threads/" + name + "/" + std::to_string(context) + "/";
      bool const cached = context == 1024;
      bench::add<page, pith::integer_accuracy>({.name = prefix + std::to_string(threads),
                                  .baseline = prefix + "1",
                                  .pages = {.tokens = context, .visited = cached ? 0 : bench::streamed},
                                  .threads = threads,
                                  .floor = std::string(cached ? "read/cache" : "read/memory") + (threads == 2 ? "/2" : "")});
    }
}

}  // namespace

int main(int argc, char** argv) {
  bench::begin_attention(false);
  bench::add_read_row("read/memory/2", bench::read_from_memory, 2);
  bench::add_read_row("read/cache", 1 << 20);
  bench::add_read_row("read/cache/2", 1 << 20, 2);
  bench::floor_rule = "packed bytes at the bandwidth of the row read/memory or read/cache of as many threads";
  double alone = bench::measure_peak_of_bytes(), together[2] = {};
  bench::pool(2).for_each(2, [&](std::int64_t i) { together[i] = bench::measure_peak_of_bytes(); });
  char line[120];
  std::snprintf(line, sizeof line, "8 bit products: %.0f Gop/s in one thread alone, %.0f and %.0f in two at once\n", alone / 1e9,
                together[0] / 1e9, together[1] / 1e9);
  bench::references += line;
  if (bench::cores().size() < 2) bench::references += "there is one core only: two threads share it\n";
  bench::for_each_format([]<class Codec>(std::string const& name) { add<Codec>(name); });
  return bench::run(argc, argv,
                    "Decode attention with threads over KV heads, 32 query heads, 8 KV heads, head_dim 128, pages of 64 tokens");
}
