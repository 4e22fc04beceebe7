// SPDX-License-Identifier: Apache-2.0
// Two neighbouring layers in little more than one: a common direction for each row, two lengths, and the most dissimilar rows as they are.
//
//   auto pair = layer_pair<recipe>::make(shape).value();      // recipe: a kv_cache whose rows are directions, in any codec; one layer
//   pair.append(k_first, v_first, k_second, v_second);        // once both layers have produced their tokens
//   pair.restore(which, head, from, count, keys, values);     // rows of the first layer (0) or the second (1)
//
// Per token, KV head, and for keys and values apart (policy/slerp.hpp):
//
//   e = the direction on the arc between both rows;   restored: x1 = |x1| e, x2 = |x2| e;   retained pairs: both rows, in bf16
//
// Rule P1  A pair is retained if its distance is within gamma of the largest, of all that its (head, keys or values) has seen when
//          its chunk is in; so the first chunk, a prompt, sets the bounds. Pairs without an arc are always retained.
// Rule P2  Retained rows come back as they were, rounded to bf16; so a chunk's size may change what is retained, nothing else.
// Rule P3  Both layers hold the same tokens of one sequence: nothing leaves a pair. resident_bytes() counts what they take, not the room
//          for more.
//
// Lengths are f32. The queries of a chunk see its own rows raw: the caller attends to them apart. No call allocates after make().
//
// errors  shape_mismatch, not_finite (`at` is the token), capacity_exceeded (tokens; retained rows: `at` is how many there is room
//         for), and those of cache<Recipe>; nothing is added on an error
// cost    append: three passes over the rows and one encode; restore: a decode and one product a number
// from    Liu et al., MiniCache, 2024: layers from the middle on, t 0.6 (towards the later layer), gamma 0.05
// differs MiniCache merges a whole prompt and retains by its bounds; here decoding goes on with them. The bounds are a head's own
#pragma once

#include <array>
#include <vector>

#include "pith/cache/kv_cache.hpp"
#include "pith/codec/integer.hpp"
#include "pith/policy/slerp.hpp"

namespace pith {

struct layer_pair_shape {
  int kv_heads = 1;
  std::int64_t bytes = 0;          // of the directions' arena
  std::int64_t max_tokens = 0;     // of the sequence
  std::int64_t max_retained = -1;  // pairs of rows, keys and values each; -1: all
  double t = 0.6, gamma = 0.05;
};

template <class Recipe>
class layer_pair {
  static_assert(!Recipe::keeps, "[pith] layer_pair<Recipe>: nothing leaves a pair of layers. Fix: leave keep<...> out.");

 public:
  static constexpr int key_channels = Recipe::key_channels, value_channels = Recipe::value_channels;

  static result<layer_pair> make(layer_pair_shape const& shape) {
    if (shape.max_tokens <= 0 || shape.kv_heads <= 0) return status{errc::shape_mismatch, shape.max_tokens};
    if (!(shape.t >= 0 && shape.t <= 1 && shape.gamma >= 0 && shape.gamma <= 1)) return status{errc::out_of_range, 0};
    auto directions = pith::make<Recipe>({.layers = 1,
                                          .kv_heads = shape.kv_heads,
                                          .query_heads = shape.kv_heads,
                                          .bytes = shape.bytes,
                                          .max_sequences = 1,
                                          .max_tokens = shape.max_tokens,
                                          .max_chunk = 0});
    if (!directions) return directions.error();
    layer_pair made(std::move(directions).value(), shape);
    auto const of = made.directions_.open();
    if (!of) return of.error();
    made.of_ = of.value();
    return made;
  }

  std::int64_t length() const { return tokens_; }
  // Pairs of rows that are kept as they are.
  std::int64_t retained() const { return kept_keys_.count + kept_values_.count; }
  // The directions' cache, lengths of the tokens, and retained rows with the numbers that say where they belong.
  std::int64_t resident_bytes() const {
    std::int64_t const rows = tokens_ * shape_.kv_heads;
    return directions_.resident_bytes() + rows * static_cast<std::int64_t>(4 * sizeof(float) + 2 * sizeof(std::int32_t)) +
           2 * static_cast<std::int64_t>(sizeof(bf16)) * (kept_keys_.count * key_channels + kept_values_.count * value_channels) +
           static_cast<std::int64_t>(bounds_.size() * sizeof(slerp_bounds));
  }

  // Empties the pair.
  status clear() {
    if (status const ok = directions_.close(of_); !ok) return ok;
    auto const of = directions_.open();
    if (!of) return of.error();
    of_ = of.value();
    tokens_ = kept_keys_.count = kept_values_.count = 0;
    std::fill(bounds_.begin(), bounds_.end(), slerp_bounds{});
    return {};
  }

  // [token][kv_head][channel], f32.
  status append(tensor_view<float const, 3> first_keys, tensor_view<float const, 3> first_values, tensor_view<float const, 3> second_keys,
                tensor_view<float const, 3> second_values) {
    std::int64_t const tokens = first_keys.extent[0];
    if (status const ok = check(first_keys, tokens, key_channels); !ok) return ok;
    if (status const ok = check(second_keys, tokens, key_channels); !ok) return ok;
    if (status const ok = check(first_values, tokens, value_channels); !ok) return ok;
    if (status const ok = check(second_values, tokens, value_channels); !ok) return ok;
    if (tokens > shape_.max_tokens - tokens_) return {errc::capacity_exceeded, shape_.max_tokens};
    if (status const ok = directions_.reserve_tokens(of_, 0, tokens); !ok) return ok;

    // Angles and bounds first; nothing of the sequence is touched until it is known that there is room.
    std::vector<slerp_bounds>& seen = seen_;
    std::copy(bounds_.begin(), bounds_.end(), seen.begin());
    if (status const ok = measure<key_channels>(first_keys, second_keys, key_pairs_, seen.data()); !ok) return ok;
    if (status const ok = measure<value_channels>(first_values, second_values, value_pairs_, seen.data() + shape_.kv_heads); !ok) return ok;
    std::int64_t const more_keys = retain(tokens, key_pairs_, seen.data()),
                       more_values = retain(tokens, value_pairs_, seen.data() + shape_.kv_heads);
    if (more_keys > most_retained() - kept_keys_.count || more_values > most_retained() - kept_values_.count)
      return {errc::capacity_exceeded, most_retained()};

    std::copy(seen.begin(), seen.end(), bounds_.begin());
    for (std::int64_t i = 0; i < tokens; ++i) {
      for (std::int64_t h = 0; h < shape_.kv_heads; ++h) {
        std::size_t const from = static_cast<std::size_t>(i * shape_.kv_heads + h),
                          to = static_cast<std::size_t>((tokens_ + i) * shape_.kv_heads + h);
        key_rows_[to] = place<key_channels>(first_keys, second_keys, i, h, key_pairs_[from], kept_keys_, key_direction_.data());
        value_rows_[to] =
            place<value_channels>(first_values, second_values, i, h, value_pairs_[from], kept_values_, value_direction_.data());
      }
      status const ok = directions_.append(of_, 0, tensor_view<float const, 3>(key_direction_.data(), {1, shape_.kv_heads, key_channels}),
                                           tensor_view<float const, 3>(value_direction_.data(), {1, shape_.kv_heads, value_channels}));
      if (!ok) return ok;  // never: the room has been reserved
    }
    tokens_ += tokens;
    return {};
  }

  // Rows [from, from + count) of one layer and KV head: keys [count][key channel], values [count][value channel]; either may be left out.
  // errors  out_of_range (which, head, from), shape_mismatch
  status restore(int which, int head, std::int64_t from, std::int64_t count, std::span<float> keys, std::span<float> values) const {
    if (which < 0 || which > 1) return {errc::out_of_range, which};
    if (head < 0 || head >= shape_.kv_heads) return {errc::out_of_range, head};
    if (from < 0 || count < 0 || count > tokens_ - from) return {errc::out_of_range, from};
    auto const slots = std::span(slots_).first(static_cast<std::size_t>(count));
    for (std::int64_t i = 0; i < count; ++i) slots[static_cast<std::size_t>(i)] = {directions_.slot_of(of_, 0, from + i), from + i};
    if (status const ok = directions_.read_rows(of_, 0, head, slots, keys, values); !ok) return ok;
    scale(which, head, from, key_channels, key_rows_, kept_keys_, keys);
    scale(which, head, from, value_channels, value_rows_, kept_values_, values);
    return {};
  }

  cache<Recipe> const& directions() const { return directions_; }

 private:
  struct row_pair {
    float length[2];
    std::int32_t kept;  // place among the retained rows, or -1
  };
  struct kept_rows {
    std::vector<bf16> numbers;  // [place][layer][channel]
    std::int64_t count = 0;
  };

  cache<Recipe> directions_;
  pith::sequence of_;
  layer_pair_shape shape_;
  std::int64_t tokens_ = 0;
  std::vector<row_pair> key_rows_, value_rows_;  // [token][head]
  kept_rows kept_keys_, kept_values_;
  std::vector<slerp_bounds> bounds_, seen_;             // [keys, values][head]
  std::vector<slerp_pair> key_pairs_, value_pairs_;     // of one chunk, [token][head]
  std::vector<float> key_direction_, value_direction_;  // of one token, [head][channel]
  mutable std::vector<survivor> slots_;

  layer_pair(cache<Recipe>&& directions, layer_pair_shape const& shape) : directions_(std::move(directions)), shape_(shape) {
    auto const rows = static_cast<std::size_t>(shape.max_tokens * shape.kv_heads), heads = static_cast<std::size_t>(shape.kv_heads);
    key_rows_.resize(rows), value_rows_.resize(rows), key_pairs_.resize(rows), value_pairs_.resize(rows);
    kept_keys_.numbers.resize(static_cast<std::size_t>(most_retained() * 2 * key_channels));
    kept_values_.numbers.resize(static_cast<std::size_t>(most_retained() * 2 * value_channels));
    bounds_.resize(2 * heads), seen_.resize(2 * heads);
    key_direction_.resize(heads * key_channels), value_direction_.resize(heads * value_channels);
    slots_.resize(static_cast<std::size_t>(shape.max_tokens));
  }

  std::int64_t most_retained() const {
    std::int64_t const all = shape_.max_tokens * shape_.kv_heads;
    return shape_.max_retained < 0 ? all : std::min(all, shape_.max_retained);
  }
  status check(tensor_view<float const, 3> rows, std::int64_t tokens, int channels) const {
    if (rows.extent[0] != tokens) return {errc::shape_mismatch, rows.extent[0]};
    if (rows.extent[1] != shape_.kv_heads) return {errc::shape_mismatch, rows.extent[1]};
    if (rows.extent[2] != channels) return {errc::shape_mismatch, rows.extent[2]};
    return {};
  }
  template <int Channels>
  static std::array<float, Channels> row_of(tensor_view<float const, 3> rows, std::int64_t token, std::int64_t head) {
    std::array<float, Channels> out;
    for (int c = 0; c < Channels; ++c) out[static_cast<std::size_t>(c)] = rows(token, head, c);
    return out;
  }

  template <int Channels>
  status measure(tensor_view<float const, 3> first, tensor_view<float const, 3> second, std::vector<slerp_pair>& to,
                 slerp_bounds* seen) const {
    std::array<float, Channels> direction;
    for (std::int64_t i = 0; i < first.extent[0]; ++i)
      for (std::int64_t h = 0; h < shape_.kv_heads; ++h) {
        auto const pair = slerp(row_of<Channels>(first, i, h), row_of<Channels>(second, i, h), shape_.t, direction);
        if (!pair) return {pair.error().code, i};
        to[static_cast<std::size_t>(i * shape_.kv_heads + h)] = pair.value();
        seen[h].see(pair.value());
      }
    return {};
  }
  std::int64_t retain(std::int64_t tokens, std::vector<slerp_pair>& pairs, slerp_bounds const* seen) const {
    std::int64_t count = 0;
    for (std::int64_t i = 0; i < tokens * shape_.kv_heads; ++i) {
      slerp_pair& one = pairs[static_cast<std::size_t>(i)];
      one.retain = seen[i % shape_.kv_heads].retains(one, shape_.gamma);
      count += one.retain;
    }
    return count;
  }
  // Stores what is a row's own, and leaves its direction in `directions` [head][channel].
  template <int Channels>
  row_pair place(tensor_view<float const, 3> first, tensor_view<float const, 3> second, std::int64_t token, std::int64_t head,
                 slerp_pair const& pair, kept_rows& kept, float* directions) const {
    auto const a = row_of<Channels>(first, token, head), b = row_of<Channels>(second, token, head);
    static_cast<void>(slerp(a, b, shape_.t, {directions + head * Channels, Channels}));
    row_pair out{{pair.first_length, pair.second_length}, -1};
    if (!pair.retain) return out;
    out.kept = static_cast<std::int32_t>(kept.count);
    bf16* to = kept.numbers.data() + kept.count++ * 2 * Channels;
    for (auto const* row : {&a, &b})
      for (float const x : *row) *to++ = from_float<bf16>(x);
    return out;
  }
  void scale(int which, int head, std::int64_t from, int channels, std::vector<row_pair> const& rows, kept_rows const& kept,
             std::span<float> out) const {
    for (std::size_t i = 0; i * static_cast<std::size_t>(channels) < out.size(); ++i) {
      row_pair const& row =
          rows[(static_cast<std::size_t>(from) + i) * static_cast<std::size_t>(shape_.kv_heads) + static_cast<std::size_t>(head)];
      auto const to = out.subspan(i * static_cast<std::size_t>(channels), static_cast<std::size_t>(channels));
      if (row.kept < 0) {
        restore_row(to, row.length[which], to);
        continue;
      }
      bf16 const* const raw = kept.numbers.data() + (2 * row.kept + which) * static_cast<std::ptrdiff_t>(channels);
      for (std::size_t c = 0; c < to.size(); ++c) to[c] = to_float(raw[c]);
    }
  }
};

namespace recipes {

// Liu et al., MiniCache, 2024: two layers, directions in 4 bits.
template <int HeadDim, int Group = (HeadDim < 64 ? 16 : 64)>
struct minicache_directions
    : kv_cache<head_dim<HeadDim>, keys<int4<per_token<Group>>>, values<int4<per_token<Group>>>, pith::raw<last<32>>> {};
template <int HeadDim>
using minicache = layer_pair<minicache_directions<HeadDim>>;

}  // namespace recipes

}  // namespace pith
