// SPDX-License-Identifier: Apache-2.0
// Decode attention over 32768 tokens by the size of a page (32 to 256 tokens), the order of pages (address or random) and what the
// operating system maps them with (huge pages or 4 KiB). The baseline is bf16 in the same layout, so that a ratio says what packing gains
// there.
#include "support/attention_case.hpp"

namespace {

template <class Codec, int PageTokens>
void add_size(std::string const& name) {
  using page = pith::kv_page<Codec, Codec, bench::head_dim, bench::head_dim, PageTokens>;
  for (bool const on_huge_pages : {true, false})
    for (bool const random : {false, true}) {
      std::string const suffix =
          "/" + std::to_string(PageTokens) + (random ? "/random_order" : "/address_order") + (on_huge_pages ? "/huge" : "/4KiB");
      bench::add<page, pith::integer_accuracy>({.name = "page_order/" + name + suffix,
                                  .baseline = "page_order/bf16" + suffix,
                                  .pages = {.random = random, .on_huge_pages = on_huge_pages}});
    }
}

template <class Codec>
void add(std::string const& name) {
  add_size<Codec, 32>(name);
  add_size<Codec, 64>(name);
  add_size<Codec, 128>(name);
  add_size<Codec, 256>(name);
}

}  // namespace

int main(int argc, char** argv) {
  bench::begin_attention();
  bench::for_each_format([]<class Codec>(std::string const& name) { add<Codec>(name); });
  return bench::run(argc, argv,
                    "Decode attention by page size, page order and mapping, 32768 tokens, ratio to bf16 in the same layout, 1 thread");
}
