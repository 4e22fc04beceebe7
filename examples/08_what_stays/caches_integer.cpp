// SPDX-License-Identifier: Apache-2.0
#include "cache_of.hpp"

namespace example {

using pith::integer_accuracy, pith::per_token, pith::per_channel;

std::unique_ptr<held_cache> make_int8(llama_config const& c, std::int64_t max_tokens) {
  using codec = pith::int8<per_token<64>>;
  return cache_of<shrinking<codec, codec, integer_accuracy>>::make(c, max_tokens);
}
std::unique_ptr<held_cache> make_int4(llama_config const& c, std::int64_t max_tokens) {
  using codec = pith::int4<per_token<64>>;
  return cache_of<shrinking<codec, codec, integer_accuracy>>::make(c, max_tokens);
}
std::unique_ptr<held_cache> make_kivi2(llama_config const& c, std::int64_t max_tokens) {
  return cache_of<shrinking<pith::int2<per_channel<32>>, pith::int2<per_token<32>>, integer_accuracy>>::make(c, max_tokens);
}

}  // namespace example
