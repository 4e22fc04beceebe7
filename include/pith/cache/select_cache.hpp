// SPDX-License-Identifier: Apache-2.0
// Several compositions behind one handle: each (layer, KV head), or each row, goes to one of them.
//
//   using mixed = select_cache<int8_recipe, kivi2_recipe>;
//   auto cache = mixed::make(shape, {.table = table});    // [layer] or [layer][head]: 0 for the first recipe, 1 for the second
//   auto cache = mixed::make(shape, {.by_row = true});    // append() is told the class of each row
//
// A class is a cache<Recipe> of its own, with its own pages and tables: one layer of one KV head for each (layer, KV head) that it serves.
// By head, a head's attention is that of its class. By row, a head has rows in every class, and their partial results are merged by
// log-sum-exp; the raw rows of a prefill chunk see each other as always. Then attend takes one query token (prefill takes many), and windows,
// scores and truncate are not possible: a class does not know where its rows stood among the others. Heads of a prefill run one after the
// other; those of attend go to the executor.
// Errors come back as statuses and nothing is added; pages that were reserved stay with the sequence. No call allocates after make().
#pragma once

#include <array>
#include <tuple>

#include "pith/cache/kv_cache.hpp"
#include "pith/page/merge.hpp"

namespace pith {

template <class... Recipes>
class select_cache {
 public:
  static constexpr int classes = static_cast<int>(sizeof...(Recipes));
  template <int I>
  using recipe = std::tuple_element_t<I, std::tuple<Recipes...>>;
  static constexpr int key_channels = recipe<0>::key_channels, value_channels = recipe<0>::value_channels;
  static_assert(((Recipes::key_channels == key_channels && Recipes::value_channels == value_channels) && ...),
                "[pith] select_cache<A, B, ...>: heads of different sizes. Fix: give every recipe the same head_dim.");
  static_assert(classes <= 255, "[pith] select_cache<A, B, ...>: at most 255 recipes.");
  static_assert(!(Recipes::has_positions || ...), "[pith] select_cache<A, B, ...>: positions belong to one cache. Fix: leave out side<positions>.");
  static_assert(!(Recipes::keeps || ...),
                "[pith] select_cache<A, B, ...>: what stays is chosen in one cache. Fix: leave out keep<...>, and use the recipe alone.");

  struct options {
    std::span<std::uint8_t const> table{};          // class by [layer] or [layer][head]; empty: the first
    bool by_row = false;                            // rows may go to any class; those that name none go by the table
    std::array<double, sizeof...(Recipes)> share{};  // by row: how the rows are expected to divide; all zero: equally
    std::tuple<calibration<typename Recipes::page>...> states{};  // [layer][head], for each class that has any
  };
  struct sequence {
    std::array<pith::sequence, sizeof...(Recipes)> of{};
  };

  // errors  shape_mismatch  a count that is not positive, or a table of another length
  //         out_of_range    a class that does not exist; `at` is its place in the table
  //         and those of make<Recipe>
  static result<select_cache> make(cache_shape const& shape, options const& wanted = {}, std::span<std::byte> memory = {}) {
    select_cache made;
    if (status const ok = made.set_up(shape, wanted, memory); !ok) return ok;
    return made;
  }

  result<sequence> open() { return gather([](auto& sub, pith::sequence) { return sub.open(); }, {}); }
  result<sequence> fork(sequence from) { return gather([](auto& sub, pith::sequence of) { return sub.fork(of); }, from); }
  status close(sequence of) {
    return for_each_class([&]<int I>(auto& sub) { return sub.close(of.of[I]); });
  }

  // k [token][kv_head][key channel], v [token][kv_head][value channel]; row_classes [token][kv_head], only by row.
  // errors  as cache::append; shape_mismatch, out_of_range (`at` is the token), unsupported for row_classes
  template <class K, class V>
  status append(sequence of, int layer, tensor_view<K, 3> k, tensor_view<V, 3> v, matrix_view<std::uint8_t const> row_classes = {}) {
    if (status const ok = prepare(of, layer, k, v, row_classes); !ok) return ok;
    return write(of, layer, k, v, row_classes);
  }

  // See cache::attend.
  template <class Q, storage_scalar O, executor Executor = serial>
  status attend(sequence of, int layer, tensor_view<Q, 3> q, tensor_view<O, 3> out, attention_options const& how = {}, Executor&& run = {}) const {
    if (status const ok = check_queries(layer, q, out, how); !ok) return ok;
    if (by_row_ && q.extent[0] > 1) return {errc::unsupported, q.extent[0]};
    // Whatever can be wrong is the same for every head: the first one tells.
    auto const attend_head = [&](std::int64_t at) {
      int const h = static_cast<int>(at);
      attention_options const mine = of_head(how, h);
      if (by_row_)
        return merged(*this, of, layer, h, out, mine, [&]<int I>(auto& sub, int place, auto part, attention_options const& o) {
          return sub.attend_past(of.of[I], place, heads(q, h), part, o);
        });
      return visit(*this, class_of(layer, h), [&]<int I>(auto& sub) { return sub.attend(of.of[I], place_of(layer, h), heads(q, h), heads(out, h), mine); });
    };
    if (status const ok = attend_head(0); !ok) return ok;
    run.for_each(shape_.kv_heads - 1, [&](std::int64_t h) { static_cast<void>(attend_head(h + 1)); });
    return {};
  }

  // See cache::prefill.
  template <class Q, class K, class V, storage_scalar O>
  status prefill(sequence of, int layer, tensor_view<Q, 3> q, tensor_view<K, 3> k, tensor_view<V, 3> v, tensor_view<O, 3> out,
                 attention_options const& how = {}, matrix_view<std::uint8_t const> row_classes = {}) {
    if (status const ok = check_queries(layer, q, out, how); !ok) return ok;
    if (q.extent[0] != k.extent[0]) return {errc::shape_mismatch, q.extent[0]};
    if (k.extent[0] > shape_.max_chunk) return {errc::capacity_exceeded, shape_.max_chunk};
    if (by_row_ && how.window != 0) return {errc::unsupported, how.window};
    if (status const ok = prepare(of, layer, k, v, row_classes); !ok) return ok;
    for (int h = 0; h < shape_.kv_heads; ++h) {
      attention_options const mine = of_head(how, h);
      auto const with_chunk = [&]<int I>(auto& sub, int place, auto part, attention_options const& o) {
        return sub.attend_with_chunk(of.of[I], place, heads(q, h), head(k, h), head(v, h), part, o);
      };
      status const ok = by_row_ ? merged(*this, of, layer, h, out, mine,
                                         [&]<int I>(auto& sub, int place, auto part, attention_options const& o) {
                                           if constexpr (I == 0)  // the chunk is one partial result more: the first class brings it
                                             return with_chunk.template operator()<I>(sub, place, part, o);
                                           else
                                             return sub.attend_past(of.of[I], place, heads(q, h), part, o);
                                         })
                                : visit(*this, class_of(layer, h), [&]<int I>(auto& sub) {
                                    return with_chunk.template operator()<I>(sub, place_of(layer, h), heads(out, h), mine);
                                  });
      if (!ok) return ok;
    }
    return write(of, layer, k, v, row_classes);
  }

  // See cache::truncate. errors  also unsupported, by row
  result<truncation> truncate(sequence of, std::int64_t tokens) {
    if (by_row_) return status{errc::unsupported, tokens};
    if (status const ok = for_each_class([&]<int I>(auto& sub) { return sub.check_truncate(of.of[I], tokens); }); !ok) return ok;
    truncation all;
    static_cast<void>(for_each_class([&]<int I>(auto& sub) {
      truncation const one = sub.truncate(of.of[I], tokens).value();
      all.exact = all.exact && one.exact;
      all.dead_slots = std::max(all.dead_slots, one.dead_slots);
      return status{};
    }));
    return all;
  }

  std::int64_t length(sequence of, int layer) const {
    if (layer < 0 || layer >= shape_.layers) return 0;
    return total([&]<int I>(auto& sub) { return by_row_ || class_of(layer, 0) == I ? sub.length(of.of[I], place_of(layer, 0)) : 0; });
  }
  std::int64_t resident_bytes() const { return total([]<int>(auto& sub) { return sub.resident_bytes(); }); }
  std::int64_t stored_values() const { return total([]<int>(auto& sub) { return sub.stored_values(); }); }
  double bits_per_value() const {
    return stored_values() == 0 ? 0.0 : 8.0 * static_cast<double>(resident_bytes()) / static_cast<double>(stored_values());
  }
  // The recipe that a head's rows go to; by row, those that name none.
  int class_of(int layer, int head) const { return class_[static_cast<std::size_t>(layer * shape_.kv_heads + head)]; }
  cache_shape const& shape() const { return shape_; }

 private:
  cache_shape shape_;
  bool by_row_ = false;
  std::optional<heap_arena> owned_;
  std::vector<std::uint8_t> class_;  // [layer][head]
  std::vector<int> place_;           // [layer][head]: which layer of its class it is
  std::tuple<std::optional<cache<Recipes>>...> caches_;  // none for a class that serves nobody
  mutable std::vector<float> partial_;  // scratch by row, [sequence][head][2]: rows of a partial result and their lse

  int place_of(int layer, int head) const { return place_[static_cast<std::size_t>(layer * shape_.kv_heads + head)]; }
  int group() const { return shape_.query_heads / shape_.kv_heads; }
  std::int64_t partial_rows() const { return static_cast<std::int64_t>(std::max(shape_.max_chunk, 1)) * group(); }

  // f.operator()<I>(cache) for the classes in turn, until one fails.
  template <class Self, class F, std::size_t... I>
  static status each(Self& self, F&& f, std::index_sequence<I...>) {
    status first;
    (static_cast<void>(first && std::get<I>(self.caches_) && (first = f.template operator()<static_cast<int>(I)>(*std::get<I>(self.caches_)), true)), ...);
    return first;
  }
  status for_each_class(auto&& f) { return each(*this, f, std::index_sequence_for<Recipes...>{}); }
  status for_each_class(auto&& f) const { return each(*this, f, std::index_sequence_for<Recipes...>{}); }
  template <class F>
  std::int64_t total(F&& f) const {
    std::int64_t sum = 0;
    static_cast<void>(for_each_class([&]<int I>(auto& sub) {
      sum += f.template operator()<I>(sub);
      return status{};
    }));
    return sum;
  }
  template <class Self, class F>
  static status visit(Self& self, int which, F&& f) {
    return self.for_each_class([&]<int I>(auto& sub) { return I == which ? f.template operator()<I>(sub) : status{}; });
  }

  // A sequence of every class, or none.
  template <class F>
  result<sequence> gather(F&& f, sequence from) {
    sequence made;
    status const ok = for_each_class([&]<int I>(auto& sub) {
      auto one = f(sub, from.of[I]);
      if (one) made.of[I] = one.value();
      return one.error();
    });
    if (ok) return made;
    static_cast<void>(close(made));  // up to the one that failed
    return ok;
  }

  template <class T>
  tensor_view<T, 3> heads(tensor_view<T, 3> of, int h) const {  // the query heads of KV head h
    return of.template part<1>(h * group(), group());
  }
  template <class T>
  static tensor_view<T, 3> head(tensor_view<T, 3> of, int h) {
    return of.template part<1>(h, 1);
  }
  attention_options of_head(attention_options all, int h) const {
    auto const first = static_cast<std::size_t>(h * group()), count = static_cast<std::size_t>(group());
    if (!all.sink_logits.empty()) all.sink_logits = all.sink_logits.subspan(first, count);
    if (all.lse.data != nullptr) all.lse = all.lse.part<1>(h * group(), group());
    if (all.scores.sum.data != nullptr) all.scores.sum = all.scores.sum.part(h, 1), all.scores.logits = all.scores.logits.part(h, 1);
    return all;
  }

  template <class Q, class O>
  status check_queries(int layer, tensor_view<Q, 3> q, tensor_view<O, 3> out, attention_options const& how) const {
    if (layer < 0 || layer >= shape_.layers) return {errc::out_of_range, layer};
    if (q.extent[1] != shape_.query_heads) return {errc::shape_mismatch, q.extent[1]};
    if (by_row_ && how.scores.sum.data != nullptr) return {errc::unsupported, 0};
    return query_rows<std::remove_const_t<Q>, O>::check(q, out, how, shape_.kv_heads, key_channels, value_channels);
  }

  // f(class, first token, tokens) for every stretch of a head's rows that goes to one class.
  template <class F>
  status for_each_stretch(int layer, int h, std::int64_t tokens, matrix_view<std::uint8_t const> row_classes, F&& f) const {
    auto const class_at = [&](std::int64_t t) { return row_classes.data == nullptr ? class_of(layer, h) : static_cast<int>(row_classes(t, h)); };
    for (std::int64_t from = 0; from < tokens;) {
      std::int64_t to = from + 1;
      while (to < tokens && class_at(to) == class_at(from)) ++to;
      if (status const ok = f(class_at(from), from, to - from); !ok) return ok;
      from = to;
    }
    return {};
  }

  // Everything that adding these rows could fail on.
  template <class K, class V>
  status prepare(sequence of, int layer, tensor_view<K, 3> k, tensor_view<V, 3> v, matrix_view<std::uint8_t const> row_classes) {
    if (layer < 0 || layer >= shape_.layers) return {errc::out_of_range, layer};
    if (k.extent[0] < 0 || k.extent[0] != v.extent[0]) return {errc::shape_mismatch, v.extent[0]};
    if (k.extent[1] != shape_.kv_heads || v.extent[1] != shape_.kv_heads) return {errc::shape_mismatch, k.extent[1]};
    if (row_classes.data != nullptr) {
      if (!by_row_) return {errc::unsupported, 0};
      if (row_classes.extent[0] != k.extent[0] || row_classes.extent[1] != shape_.kv_heads) return {errc::shape_mismatch, row_classes.extent[0]};
      for (std::int64_t t = 0; t < k.extent[0]; ++t)
        for (int h = 0; h < shape_.kv_heads; ++h)
          if (row_classes(t, h) >= classes) return {errc::out_of_range, t};
    }
    for (int h = 0; h < shape_.kv_heads; ++h) {
      status const checked = for_each_stretch(layer, h, k.extent[0], row_classes, [&](int which, std::int64_t from, std::int64_t count) {
        return visit(*this, which, [&]<int I>(auto& sub) {
          status ok = sub.check_append(of.of[I], place_of(layer, h), head(k, h).part(from, count), head(v, h).part(from, count));
          if (ok.code == errc::not_finite) ok.at += from;
          return ok;
        });
      });
      if (!checked) return checked;
    }
    for (int h = 0; h < shape_.kv_heads; ++h) {
      std::array<std::int64_t, sizeof...(Recipes)> rows{};
      static_cast<void>(for_each_stretch(layer, h, k.extent[0], row_classes, [&](int which, std::int64_t, std::int64_t count) {
        rows[static_cast<std::size_t>(which)] += count;
        return status{};
      }));
      status const reserved = for_each_class(
          [&]<int I>(auto& sub) { return rows[I] == 0 ? status{} : sub.reserve_tokens(of.of[I], place_of(layer, h), rows[I]); });
      if (!reserved) return reserved;
    }
    return {};
  }
  template <class K, class V>
  status write(sequence of, int layer, tensor_view<K, 3> k, tensor_view<V, 3> v, matrix_view<std::uint8_t const> row_classes) {
    for (int h = 0; h < shape_.kv_heads; ++h) {
      status const ok = for_each_stretch(layer, h, k.extent[0], row_classes, [&](int which, std::int64_t from, std::int64_t count) {
        return visit(*this, which, [&]<int I>(auto& sub) {
          return sub.append(of.of[I], place_of(layer, h), head(k, h).part(from, count), head(v, h).part(from, count));
        });
      });
      if (!ok) return ok;
    }
    return {};
  }

  // One head by row: part.operator()<I>(cache, place, out, options) of every class that has rows, merged. A sink counts once.
  template <class Self, class O, class Part>
  static status merged(Self& self, sequence of, int layer, int h, tensor_view<O, 3> out, attention_options const& how, Part&& part) {
    if (of.of[0].index >= static_cast<std::uint32_t>(self.shape_.max_sequences)) return {errc::stale_handle, of.of[0].index};
    int const group = self.group();
    std::int64_t const tokens = out.extent[0], rows = tokens * group, place = self.place_of(layer, h), most = self.partial_rows();
    float* const mine = self.partial_.data() + (of.of[0].index * self.shape_.kv_heads + h) * 2 * most * (value_channels + 1);
    float* const theirs = mine + most * (value_channels + 1);
    auto const sums = [&](float* at) { return tensor_view<float, 3>(at, {tokens, group, value_channels}); };
    auto const lse = [&](float* at) { return tensor_view<float, 2>(at + most * value_channels, {tokens, group}); };
    status const ok = self.for_each_class([&]<int I>(auto& sub) {
      if (I > 0 && sub.length(of.of[I], static_cast<int>(place)) == 0) return status{};
      attention_options one = how;
      if (I > 0) one.sink_logits = {};
      float* const to = I == 0 ? mine : theirs;
      one.lse = lse(to);
      status const done = part.template operator()<I>(sub, static_cast<int>(place), sums(to), one);
      if (I > 0 && done)
        for (std::int64_t r = 0; r < rows; ++r)
          merge_attention(mine + r * value_channels, lse(mine).data[r], theirs + r * value_channels, lse(theirs).data[r], value_channels);
      return done;
    });
    if (!ok) return ok;
    for (std::int64_t t = 0; t < tokens; ++t)
      for (int g = 0; g < group; ++g) {
        std::int64_t const r = t * group + g;
        for (int c = 0; c < value_channels; ++c) out(t, h * group + g, c) = from_float<O>(mine[r * value_channels + c]);
        if (how.lse.data != nullptr) how.lse(t, g) = lse(mine).data[r];
      }
    return {};
  }

  status set_up(cache_shape const& shape, options const& wanted, std::span<std::byte> memory) {
    shape_ = shape;
    by_row_ = wanted.by_row;
    if (shape.layers <= 0 || shape.kv_heads <= 0 || shape.max_sequences <= 0 || shape.max_chunk < 0) return {errc::shape_mismatch, shape.layers};
    if (shape.query_heads <= 0 || shape.query_heads % shape.kv_heads != 0) return {errc::shape_mismatch, shape.query_heads};
    auto const layers = static_cast<std::size_t>(shape.layers), pairs = layers * static_cast<std::size_t>(shape.kv_heads);
    if (!wanted.table.empty() && wanted.table.size() != layers && wanted.table.size() != pairs)
      return {errc::shape_mismatch, static_cast<std::int64_t>(wanted.table.size())};
    std::array<int, sizeof...(Recipes)> served{};
    for (std::size_t i = 0; i < pairs; ++i) {
      std::size_t const at = wanted.table.empty() ? 0 : wanted.table.size() == pairs ? i : i / static_cast<std::size_t>(shape.kv_heads);
      std::uint8_t const which = wanted.table.empty() ? std::uint8_t{0} : wanted.table[at];
      if (which >= classes) return {errc::out_of_range, static_cast<std::int64_t>(at)};
      class_.push_back(which);
      place_.push_back(by_row_ ? static_cast<int>(i) : served[which]);
      ++served[which];
    }
    if (by_row_) {
      served.fill(static_cast<int>(pairs));
      partial_.resize(static_cast<std::size_t>(shape.max_sequences * shape.kv_heads * 2 * partial_rows() * (value_channels + 1)));
    }
    if (memory.data() == nullptr) {
      auto arena = heap_arena::make(shape.bytes);
      if (!arena) return arena.error();
      owned_.emplace(std::move(arena).value());
      memory = {owned_->data(), static_cast<std::size_t>(owned_->bytes())};
    }
    return divide(wanted, served, memory, std::index_sequence_for<Recipes...>{});
  }

  // The arena goes to the classes by what their rows are expected to take.
  template <std::size_t... I>
  status divide(options const& wanted, std::array<int, sizeof...(Recipes)> const& served, std::span<std::byte> memory, std::index_sequence<I...>) {
    std::array<cache_shape, sizeof...(Recipes)> shapes;
    std::array<double, sizeof...(Recipes)> weight{};
    double shares = 0, weights = 0;
    for (double const s : wanted.share) shares += s;
    std::int64_t spare = static_cast<std::int64_t>(memory.size());
    auto const plan = [&]<std::size_t At>() {
      if (served[At] == 0) return;
      shapes[At] = shape_;
      shapes[At].layers = served[At];
      shapes[At].kv_heads = 1;
      shapes[At].query_heads = group();
      using page = typename recipe<At>::page;
      spare -= cache_storage<recipe<At>>::fixed_bytes(shapes[At]);
      weight[At] =
          served[At] * static_cast<double>(page::expected_bytes) / page::tokens * (by_row_ && shares > 0 ? wanted.share[At] / shares : 1.0);
      weights += weight[At];
    };
    (plan.template operator()<I>(), ...);
    if (spare < 0) return {errc::capacity_exceeded, -spare};
    std::size_t used = 0;
    status made;
    auto const build = [&]<std::size_t At>() {
      if (served[At] == 0 || !made) return;
      auto const part = static_cast<std::int64_t>(static_cast<double>(spare) * weight[At] / weights);
      auto const bytes = static_cast<std::size_t>((cache_storage<recipe<At>>::fixed_bytes(shapes[At]) + part) / 64 * 64);
      auto states = states_of<At>(std::get<At>(wanted.states), made);
      if (!made) return;
      auto one = cache<recipe<At>>::with_memory(shapes[At], memory.subspan(used, bytes), {{states.first}, {states.second}});
      used += bytes;
      if (one)
        std::get<At>(caches_).emplace(std::move(one).value());
      else
        made = one.error();
    };
    (build.template operator()<I>(), ...);
    return made;
  }

  // The states of the heads that a class serves, in its order.
  template <std::size_t At>
  auto states_of(calibration<typename recipe<At>::page> const& all, status& ok) const {
    using both = calibration<typename recipe<At>::page>;
    std::pair<std::vector<typename both::key_state>, std::vector<typename both::value_state>> mine;
    if (ok) ok = all.check_count(static_cast<std::int64_t>(class_.size()));
    for (std::size_t i = 0; ok && i < class_.size(); ++i)
      if (by_row_ || class_[i] == At) {
        if (!all.keys.all.empty()) mine.first.push_back(all.keys.all[i]);
        if (!all.values.all.empty()) mine.second.push_back(all.values.all[i]);
      }
    return mine;
  }
};

}  // namespace pith
