// SPDX-License-Identifier: Apache-2.0
// Stage "head map": from query heads to the rows that are selected in. Query head h reads KV head h / group.
//
//   mean_over_group, max_over_group, sum_over_group    one number a KV head's slot, from its query heads
//   mean_over_layer, max_over_layer, sum_over_layer    the same number for every KV head of a layer: they then keep the same slots
//   mean_over_model, ...                               the same for all layers: one set of slots for the model
//   first_of_layers<N, Map>                            of every N layers the first one's, mapped over that layer, for all of them
//
// A scope wider than the group needs rows of equal length, and, with heads on several ranks, an all-reduce by the caller.
//
// errors  shape_mismatch: rows of a scope differ in length (`at` is the row)
// from    mean: kvpress, Ada-KV; max: KVzip, Quest; layer: TOVA; first of 8 layers: WindowKV; model: SirLLM
// differs heads are mapped before the scorer, so that the state is one number a slot of a KV head (for means of sums and maxima of maxima
//         that is the same), and before smoothing, as in Ada-KV
#pragma once

#include <cstdint>
#include <span>

#include "pith/core/scalar.hpp"
#include "pith/policy/stage.hpp"

namespace pith {

enum class head_scope : std::uint8_t { group, layer, model };
enum class head_reduction : std::uint8_t { mean, max, sum };

template <head_reduction Reduction, head_scope Scope>
struct head_map {
  static constexpr stage kind = stage::head_map;
  static constexpr head_scope scope = Scope;

  // Takes up the next list of a scope; `lists` counts those before.
  static void take(std::span<float const> list, std::span<float> out, std::int64_t lists) {
    for (std::size_t i = 0; i < out.size(); ++i) {
      if (lists == 0)
        out[i] = list[i];
      else if constexpr (Reduction == head_reduction::max)
        out[i] = list[i] > out[i] || is_nan(list[i]) ? list[i] : out[i];  // a NaN stays one, for the selection to refuse
      else
        out[i] += list[i];
    }
  }
  static void finish(std::span<float> out, std::int64_t lists) {
    if (Reduction == head_reduction::mean && lists > 1)
      for (float& x : out) x /= static_cast<float>(lists);
  }
};

using mean_over_group = head_map<head_reduction::mean, head_scope::group>;
using max_over_group = head_map<head_reduction::max, head_scope::group>;
using sum_over_group = head_map<head_reduction::sum, head_scope::group>;
using mean_over_layer = head_map<head_reduction::mean, head_scope::layer>;
using max_over_layer = head_map<head_reduction::max, head_scope::layer>;
using sum_over_layer = head_map<head_reduction::sum, head_scope::layer>;
using mean_over_model = head_map<head_reduction::mean, head_scope::model>;
using max_over_model = head_map<head_reduction::max, head_scope::model>;
using sum_over_model = head_map<head_reduction::sum, head_scope::model>;

// Statistics of the other layers are not looked at. The last group may have fewer.
template <std::int64_t Layers = 8, class Map = sum_over_layer>
struct first_of_layers : Map {
  static constexpr bool valid = Layers > 0 && Map::scope == head_scope::layer;
  static constexpr std::int64_t layers = Layers;
};

}  // namespace pith
