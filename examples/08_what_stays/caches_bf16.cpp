// SPDX-License-Identifier: Apache-2.0
#include "cache_of.hpp"

namespace example {

using bf16 = pith::raw<pith::bf16>;

std::unique_ptr<held_cache> make_bf16(llama_config const& c, std::int64_t max_tokens) {
  return cache_of<shrinking<bf16, bf16, pith::exact_accuracy>>::make(c, max_tokens);
}
std::unique_ptr<held_cache> make_bf16_biased(llama_config const& c, std::int64_t max_tokens) {
  return cache_of<shrinking<bf16, bf16, pith::exact_accuracy, pith::bias>>::make(c, max_tokens);
}

std::unique_ptr<held_cache> make_held_cache(storage what, llama_config const& config, std::int64_t max_tokens) {
  constexpr std::unique_ptr<held_cache> (*makers[])(llama_config const&, std::int64_t) = {
      &make_bf16,          &make_bf16_biased,   &make_int8,    &make_int4,        &make_kivi2,
      &make_demoting_int4, &make_demoting_int2, &make_folding, &make_paired_bf16, &make_paired_int4};
  return makers[static_cast<int>(what)](config, max_tokens);
}

}  // namespace example
