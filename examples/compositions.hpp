// SPDX-License-Identifier: Apache-2.0
// What the language model is run with: caches and weights, the one list. bf16 comes first; the others are compared with it.
#pragma once

#include "calibrate.hpp"
#include "packed_weights.hpp"
#include "pith/cache/recipes_gear.hpp"
#include "pith/linear/recipes.hpp"
#include "pith/pith.hpp"

namespace example {

using bf16_cache = pith::recipes::bf16_cache<64>;

// How a cache is made for this model: its type, and make(shape, config, calibration rows).
template <class Recipe>
struct one_recipe {
  using cache = pith::cache<Recipe>;
  static pith::result<cache> make(pith::cache_shape const& shape, llama_config const& c, calibration_rows const& rows) {
    using numbers = pith::calibration<typename Recipe::page>;
    if constexpr (numbers::is_needed) {
      auto const keys = fit_heads<typename numbers::key_state>(rows.keys, c);
      auto const values = fit_heads<typename numbers::value_state>(rows.values, c);
      return pith::make<Recipe>(shape, {.keys = {keys}, .values = {values}});
    } else {
      return pith::make<Recipe>(shape);
    }
  }
};

// The first and the last layer in 8 bits, those between as KIVI's 2 bits.
struct careful_ends {
  using cache = pith::select_cache<pith::recipes::int8_cache<64>, pith::recipes::kivi2<64>>;
  static pith::result<cache> make(pith::cache_shape const& shape, llama_config const& c, calibration_rows const&) {
    std::vector<std::uint8_t> table(static_cast<std::size_t>(c.layers), 1);
    table.front() = table.back() = 0;
    return cache::make(shape, {.table = table});
  }
};

// Keys and values along their principal axes, then 4 bits with one scale for every 32 of them: large axes share scales with large ones.
template <int HeadDim>
struct principal_axes4
    : pith::kv_cache<pith::head_dim<HeadDim>, pith::keys<pith::pipe<pith::rotate, pith::int4<pith::per_token<32>>>>,
                     pith::values<pith::pipe<pith::rotate, pith::int4<pith::per_token<32>>>>, pith::raw<pith::first<4>, pith::last<32>>,
                     pith::accuracy<pith::integer_accuracy>> {};

struct choice {
  char const *name, *weights, *keys, *values;
  matrix_maker make_matrix = &plain_weights::make;
};

// visit(choice, how the cache is made) for each. In parts, so that they compile at the same time.
template <class Visit>
void for_each_plain_cache(Visit const& visit) {
  using namespace pith::recipes;
  visit(choice{"bf16", "f32", "bf16", "bf16"}, one_recipe<bf16_cache>{});
  visit(choice{"bf16, lossless", "f32", "dynamic_float<bf16>", "dynamic_float<bf16>"}, one_recipe<lossless_cache<64>>{});
  visit(choice{"int8 per token", "f32", "int8 per_token<64>", "int8 per_token<64>"}, one_recipe<int8_cache<64>>{});
  visit(choice{"int8 per token, exact", "f32", "int8 per_token<64>", "int8 per_token<64>"}, one_recipe<int8_cache_exact<64>>{});
  visit(choice{"int8 per channel", "f32", "int8 per_channel<32>", "int8 per_token<32>"}, one_recipe<int8_per_channel<64>>{});
  visit(choice{"fp8 E4M3", "f32", "float8<e4m3>", "float8<e4m3>"}, one_recipe<fp8_cache<64>>{});
  visit(choice{"int4 per token", "f32", "int4 per_token<64>", "int4 per_token<64>"}, one_recipe<int4_cache<64>>{});
  visit(choice{"int4 per token, exact", "f32", "int4 per_token<64>", "int4 per_token<64>"}, one_recipe<int4_cache_exact<64>>{});
  visit(choice{"int4 per channel (KIVI)", "f32", "int4 per_channel<32>", "int4 per_token<32>"}, one_recipe<kivi4<64>>{});
}

template <class Visit>
void for_each_transformed_cache(Visit const& visit) {
  using namespace pith::recipes;
  visit(choice{"int4 rotated", "f32", "hadamard, int4 per_token<32>", "hadamard, int4 per_token<32>"}, one_recipe<rotated4<64>>{});
  visit(choice{"int4 principal axes", "f32", "rotate, int4 per_token<32>", "rotate, int4 per_token<32>"}, one_recipe<principal_axes4<64>>{});
  visit(choice{"block float 4", "f32", "block_float<4> per_token<32>", "block_float<4> per_token<32>"}, one_recipe<block_float_cache<64, 4>>{});
  visit(choice{"block float 4 sorted (ABQ)", "f32", "permute, block_float<4> per_token<32>", "block_float<4> per_token<32>"},
        one_recipe<accurate_block<64, 4>>{});
}

template <class Visit>
void for_each_low_bit_cache(Visit const& visit) {
  using namespace pith::recipes;
  visit(choice{"int3 per token", "f32", "int3 per_token<32>", "int3 per_token<32>"}, one_recipe<int3_cache<64>>{});
  visit(choice{"int3 per channel", "f32", "int3 per_channel<32>", "int3 per_token<32>"}, one_recipe<kivi<64, 3>>{});
  visit(choice{"int2 per token", "f32", "int2 per_token<32>", "int2 per_token<32>"}, one_recipe<int2_cache<64>>{});
  visit(choice{"int2 per channel (KIVI)", "f32", "int2 per_channel<32>", "int2 per_token<32>"}, one_recipe<kivi2<64>>{});
  visit(choice{"int2 rotated", "f32", "hadamard, int2 per_token<32>", "hadamard, int2 per_token<32>"}, one_recipe<rotated2<64>>{});
  visit(choice{"int2 GEAR", "f32", "outliers + int2 per_channel + rank 2", "outliers + int2 per_token + rank 2"}, one_recipe<gear<64>>{});
  visit(choice{"int8 ends, KIVI 2 between", "f32", "int8 or int2, by layer", "int8 or int2, by layer"}, careful_ends{});
}

template <class Visit>
void for_each_packed_model(Visit const& visit) {
  using namespace pith::recipes;
  using pith::integer_accuracy, pith::per_token, pith::zero;
  using int8_weights = pith::int8<per_token<64>, zero::none>;
  using int4_weights = pith::int4<per_token<32>>;
  visit(choice{"bf16 weights", "bf16", "bf16", "bf16", &packed_weights<pith::raw<pith::bf16>, integer_accuracy>::make}, one_recipe<bf16_cache>{});
  visit(choice{"int8 weights", "int8 per_token<64>", "bf16", "bf16", &packed_weights<int8_weights, integer_accuracy>::make}, one_recipe<bf16_cache>{});
  visit(choice{"int4 weights", "int4 per_token<32>", "bf16", "bf16", &packed_weights<int4_weights, integer_accuracy>::make}, one_recipe<bf16_cache>{});
  visit(choice{"SpQR weights", "outliers + int3 per_token<16>", "bf16", "bf16", &packed_weights<spqr<>, integer_accuracy>::make}, one_recipe<bf16_cache>{});
  visit(choice{"int8 weights and cache", "int8 per_token<64>", "int8 per_token<64>", "int8 per_token<64>", &packed_weights<int8_weights, integer_accuracy>::make},
        one_recipe<int8_cache<64>>{});
  visit(choice{"int4 weights and cache", "int4 per_token<32>", "int4 per_token<64>", "int4 per_token<64>", &packed_weights<int4_weights, integer_accuracy>::make},
        one_recipe<int4_cache<64>>{});
}

}  // namespace example
