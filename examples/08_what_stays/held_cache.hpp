// SPDX-License-Identifier: Apache-2.0
// One sequence in a cache that rows can leave, behind virtual calls: caches and policies are compiled apart, and any meets any.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "examples/llama.hpp"
#include "pith/cache/compactor.hpp"
#include "pith/core/attention_options.hpp"
#include "pith/page/attention_statistics.hpp"

namespace example {

// [query_head][slot], slots neighbours.
struct head_statistics {
  pith::tensor_view<float, 2> sum, square_sum, maximum, weighted_sum, entropy;

  auto view() const {
    using pith::statistic;
    return pith::statistics_view<pith::group_reduction::none, statistic::sum, statistic::square_sum, statistic::maximum,
                                 statistic::weighted_sum, statistic::entropy>{
        .sum = sum, .square_sum = square_sum, .maximum = maximum, .weighted_sum = weighted_sum, .entropy = entropy};
  }
};

class held_cache {
 public:
  virtual ~held_cache() = default;

  // Empties the sequence; or makes it what save() wrote, of a cache of the same kind.
  virtual pith::status clear() = 0;
  virtual pith::status load(std::span<std::byte const> from) = 0;
  virtual pith::status save(std::vector<std::byte>& out) const = 0;

  // Several tokens see themselves as they are, and the past as it is stored; a single one is appended and then attends.
  virtual pith::status prefill(int layer, rows_view q, rows_view k, rows_view v, rows_out out, pith::attention_options const& options) = 0;
  virtual pith::status append(int layer, rows_view k, rows_view v) = 0;
  virtual pith::status attend(int layer, rows_view q, rows_out out, pith::attention_options const& options) = 0;
  // To the slots of [kv head][bit of a slot].
  virtual pith::status attend_among(int layer, pith::tensor_view<std::uint64_t, 2>, rows_view, rows_out, pith::attention_options const&) {
    return unsupported(layer);
  }

  // Whether statistics() has an answer: no policy can ask a cache without one. What follows is unsupported where a cache has not got it.
  virtual bool observes() const { return true; }
  // q, lse, newest, weights, out: of the newest `newest` of the newest q.extent[0] tokens, to what is stored; weights are of those tokens,
  // for weighted_sum.
  virtual pith::status statistics(int layer, rows_view, pith::tensor_view<float const, 2>, std::int64_t, std::span<float const>,
                                  head_statistics) const {
    return unsupported(layer);
  }

  virtual std::int64_t slots(int layer) const = 0;
  virtual pith::result<std::int64_t> survivors(int layer, int head, std::span<pith::survivor> out) const = 0;
  virtual pith::status read_keys(int layer, int, std::span<pith::survivor const>, std::span<float>) const { return unsupported(layer); }
  virtual pith::status read_values(int layer, int, std::span<pith::survivor const>, std::span<float>) const { return unsupported(layer); }
  virtual pith::status drop(int layer, int, std::span<std::int64_t const> /* tokens */) { return unsupported(layer); }  // and compacts
  virtual pith::status merge(int layer, int, pith::merge_plan const&) { return unsupported(layer); }                    // and compacts
  virtual pith::status set_bias(int layer, int, std::int64_t /* token */, float) { return unsupported(layer); }

  virtual std::int64_t resident_bytes() const = 0;

 protected:
  static pith::status unsupported(int layer) { return {pith::errc::unsupported, layer}; }
};

// biased: with a bias a slot, for merged slots. demoting: what leaves goes to a cache of fewer bits. folding: into
// samples. paired: deeper layers share directions, of the codec named.
enum class storage { bf16, bf16_biased, int8, int4, kivi2, demoting_int4, demoting_int2, folding, paired_bf16, paired_int4 };
inline constexpr storage all_storages[] = {storage::bf16,        storage::bf16_biased,   storage::int8,          storage::int4,
                                           storage::kivi2,       storage::demoting_int4, storage::demoting_int2, storage::folding,
                                           storage::paired_bf16, storage::paired_int4};

inline char const* name_of(storage s) {
  constexpr char const* names[] = {"bf16",       "bf16 + bias", "int8",         "int4",        "KIVI 2",
                                   "bf16, int4", "bf16, int2",  "bf16, folded", "paired bf16", "paired int4"};
  return names[static_cast<int>(s)];
}

// A cache of one sequence of at most max_tokens tokens; null if there is no memory.
std::unique_ptr<held_cache> make_held_cache(storage what, llama_config const& config, std::int64_t max_tokens);

// Bits of one token of one KV head in the cache's pages, scales included: bf16, int8 and int4.
std::int64_t token_bits(storage what);

}  // namespace example
