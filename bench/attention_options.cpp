// SPDX-License-Identifier: Apache-2.0
// What an option of attention costs: each case is compared with the same composition without it. One query token over 32768 tokens.
//
//   zero_bias     a bias for every slot, all of them 0        sparse_bias   1 of 64 slots has ln 2 or so: every page has one
//   soft_cap      20 tanh(s / 20)                             lse           written for every query head
//
// The floor counts a bias as 4 bytes for each (KV head, slot). All in processor time of one thread; errors are of the same options.
#include "support/attention_case.hpp"

namespace {

template <class Codec>
void add(std::string const& name) {
  using page = pith::kv_page<Codec, Codec, bench::head_dim, bench::head_dim, 64>;
  std::string const plain = "options/" + name + "/plain";
  bench::add<page, pith::integer_accuracy>({.name = plain, .baseline = plain});
  bench::add<page, pith::integer_accuracy>({.name = "options/" + name + "/zero_bias", .baseline = plain, .bias = bench::slot_bias::zero});
  bench::add<page, pith::integer_accuracy>({.name = "options/" + name + "/sparse_bias", .baseline = plain, .bias = bench::slot_bias::sparse});
  bench::add<page, pith::integer_accuracy>({.name = "options/" + name + "/soft_cap", .baseline = plain, .soft_cap = 20});
  bench::add<page, pith::integer_accuracy>({.name = "options/" + name + "/lse", .baseline = plain, .lse = true});
}

}  // namespace

int main(int argc, char** argv) {
  bench::begin_attention();
  bench::for_each_format([]<class Codec>(std::string const& name) { add<Codec>(name); });
  return bench::run(argc, argv, "Options of decode attention, 32768 tokens, ratio to the same composition without the option, 1 thread");
}
