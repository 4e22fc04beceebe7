// SPDX-License-Identifier: Apache-2.0
// One sequence in a cache that rows can leave, behind virtual calls: caches and policies are compiled apart, and any meets any.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "examples/llama.hpp"
#include "pith/cache/compactor.hpp"
#include "pith/core/attention_options.hpp"

namespace example {

// [query_head][slot], slots neighbours.
struct head_statistics {
  pith::tensor_view<float, 2> sum, square_sum, maximum, weighted_sum, entropy;
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
  virtual pith::status attend_among(int layer, pith::tensor_view<std::uint64_t, 2> chosen, rows_view q, rows_out out,
                                    pith::attention_options const& options) = 0;

  // Of the newest `newest` of the newest q.extent[0] tokens, to what is stored. weights: of those tokens, for weighted_sum.
  virtual pith::status statistics(int layer, rows_view q, pith::tensor_view<float const, 2> lse, std::int64_t newest,
                                  std::span<float const> weights, head_statistics out) const = 0;

  virtual std::int64_t slots(int layer) const = 0;
  virtual pith::result<std::int64_t> survivors(int layer, int head, std::span<pith::survivor> out) const = 0;
  virtual pith::status read_keys(int layer, int head, std::span<pith::survivor const> rows, std::span<float> keys) const = 0;
  virtual pith::status read_values(int layer, int head, std::span<pith::survivor const> rows, std::span<float> values) const = 0;
  virtual pith::status drop(int layer, int head, std::span<std::int64_t const> tokens) = 0;  // and compacts
  virtual pith::status merge(int layer, int head, pith::merge_plan const& plan) = 0;         // and compacts
  virtual pith::status set_bias(int layer, int head, std::int64_t token, float value) = 0;

  virtual std::int64_t resident_bytes() const = 0;
};

enum class storage { bf16, bf16_biased, int8, int4, kivi2 };  // biased: with a bias a slot, for merged slots
inline constexpr storage all_storages[] = {storage::bf16, storage::bf16_biased, storage::int8, storage::int4, storage::kivi2};

inline char const* name_of(storage s) {
  constexpr char const* names[] = {"bf16", "bf16 + bias", "int8", "int4", "KIVI 2"};
  return names[static_cast<int>(s)];
}

// A cache of one sequence of at most max_tokens tokens; null if there is no memory.
std::unique_ptr<held_cache> make_held_cache(storage what, llama_config const& config, std::int64_t max_tokens);

}  // namespace example
