// SPDX-License-Identifier: Apache-2.0
// Caches that choose what stays: keep<...> as a slot of kv_cache. The calls are those of every cache; the policy runs beside them.
//
//   struct my_cache : kv_cache<head_dim<64>, keys<int4<per_token<64>>>, values<int4<per_token<64>>>, raw<first<4>, last<32>>,
//                              keep<top<512, accumulated_attention>, protect<recent<64>>>> {};
//   for (chunk : prompt) for (layer) cache.prefill(s, layer, q, k, v, out);
//   cache.end_prefill(s);                                            // the prompt is in
//   for (token) for (layer) cache.append(s, layer, k, v), cache.attend(s, layer, q, out);
//   cache.end_turn(s);                                               // the answer is complete
//
// What happens by itself
//   Scores     attend() and prefill() count the attention of their queries, each token's query once, however often it is asked. Policies
//              with a window keep the newest queries instead, across chunks, and look at the keys a second time when they decide.
//              given_scores are the caller's: observe_scores().
//   Decisions  A step or a chunk is over when every layer has its tokens. It is decided on, if the trigger says so, when the next one
//              begins: by its first append() or prefill(). Until then truncate() may cut it off as if it had never been, but that its
//              queries stay counted: a draft is appended at once, verified and cut, and the next append() commits it. end_step() decides
//              at once. Nothing is decided on while a slot has no score: append() without attend() waits for the next attend().
//   Explicit   end_prefill() after the chunks of a prompt, or append() answers `unsupported`; end_turn(); end_layer() for cascades.
//              After a prompt that came by append() and attend() the caller says end_prefill() too. For policies that look at prompts
//              alone the later prompts come by prefill().
//
// Errors are those of the calls themselves, and besides:
//   unsupported        append: a prompt is open. truncate: deeper than a disposal; `at` is the fewest tokens beside none
//   not_finite         a query, `at` is its token: it cannot be counted
//   capacity_exceeded  attend: more than max_chunk queries
//   those of apply(), from the call that begins the next step: nothing was appended then
//
// The scores are the sequence's: fork() copies them, compaction moves them with their slots, truncate() cuts them, save() leaves them out:
// after load() a sequence has no scores, nothing leaves it until all its slots have been observed, and it is not cut to fewer tokens than
// it came with. max_tokens counts every token that a sequence ever had, whether it stays or not.
//
// cost    a second pass over the keys for chunks; for one query the kernel adds up what it has computed (slot_scores), and the survivors
//         of each head are looked up. Memory: cache/keep_memory.hpp; all of it is carved at make() and in resident_bytes()
#pragma once

#include "pith/cache/keeper.hpp"

namespace pith {

template <class Recipe>
requires(Recipe::keeps) class cache<Recipe> : public cache_keeper<Recipe> {
  using keeper = cache_keeper<Recipe>;
  using keeper::keep_;
  using keeper::policy_;
  using keeper::shape_;
  using typename keeper::base;
  using typename keeper::needs;

 public:
  using page = typename Recipe::page;

  using base::attend_among;
  using base::attend_with_chunk;
  using base::attention_statistics;
  using base::bits_per_value;
  using base::check_append;
  using base::identity;
  using base::length;
  using base::living;
  using base::memory;
  using base::read_rows;
  using base::save;
  using base::saved_bytes;
  using base::slot_of;
  using base::slots;
  using base::stored_values;
  using base::survivors;

  cache_shape const& shape() const { return shape_; }
  std::int64_t resident_bytes() const {
    auto const first = memory().sequences.get();
    auto const open = std::count_if(first, first + shape_.max_sequences, [](sequence_state const& one) { return one.open; });
    return base::resident_bytes() + keep_.resident_bytes(open);
  }

  result<sequence> open() {
    auto const made = base::open();
    if (made) keep_.begin(made.value().index);
    return made;
  }
  status close(sequence of) { return base::close(of); }
  result<sequence> fork(sequence from) {
    auto const made = base::fork(from);
    if (made) keep_.copy(from.index, made.value().index);
    return made;
  }
  result<sequence> load(std::span<std::byte const> from) {
    auto const made = base::load(from);
    if (!made) return made;
    keep_.begin(made.value().index);
    keep_sequence& state = keep_.state(made.value().index);
    for (int l = 0; l < shape_.layers; ++l) {
      std::int64_t const tokens = base::length(made.value(), l);
      state.prompt = state.settled = state.least = std::max(state.least, tokens);
      keep_.layer(made.value().index, l).seen = needs::given ? 0 : tokens;
      count_living(made.value(), l);
    }
    return made;
  }

  result<truncation> truncate(sequence of, std::int64_t tokens) {
    if (status const ok = check_truncate(of, tokens); !ok) return ok;
    auto const done = base::truncate(of, tokens);
    if (!done) return done;
    keep_sequence& state = keep_.state(of.index);
    state.settled = std::min(state.settled, tokens), state.prompt = std::min(state.prompt, tokens);
    if (tokens == 0) state.least = state.cursor = 0, state.in_prompt = state.had_prompt = false;
    for (int l = 0; l < shape_.layers; ++l) {
      keep_layer& layer = keep_.layer(of.index, l);
      std::int64_t const cut = std::max<std::int64_t>(0, layer.window_end - tokens);
      layer.seen = std::min(layer.seen, tokens);
      layer.window_end -= cut, layer.window_rows = std::max<std::int64_t>(0, layer.window_rows - cut);
      count_living(of, l);
    }
    return done;
  }
  status check_truncate(sequence of, std::int64_t tokens) const {
    if (status const ok = base::check_truncate(of, tokens); !ok) return ok;
    std::int64_t const least = keep_.state(of.index).least;
    return tokens > 0 && tokens < least ? status{errc::unsupported, least} : status{};
  }

  template <class K, class V>
  status append(sequence of, int layer, tensor_view<K, 3> k, tensor_view<V, 3> v, std::span<std::int64_t const> at = {}) {
    if (status const ok = base::check_append(of, layer, k, v, at); !ok) return ok;
    if (keep_.state(of.index).in_prompt) return {errc::unsupported, base::length(of, layer)};
    if (status const ok = settle(of, layer, k.extent[0]); !ok) return ok;
    if (status const ok = base::append(of, layer, k, v, at); !ok) return ok;
    grow(of, layer, k.extent[0]);
    return {};
  }

  template <class Q, storage_scalar O, executor Executor = serial>
  status attend(sequence of, int layer, tensor_view<Q, 3> q, tensor_view<O, 3> out, attention_options const& options = {},
                Executor&& run = {}) {
    if constexpr (needs::attends) {
      if (status const ok = this->check(of, layer); !ok) return ok;
      std::int64_t const fresh = std::min(q.extent[0], base::length(of, layer) - keep_.layer(of.index, layer).seen);
      if (fresh > 0 && !(needs::prompt_alone && keep_.state(of.index).had_prompt))
        return attend_and_count(of, layer, q, out, fresh, options, run);
    }
    return base::attend(of, layer, q, out, options, run);
  }

  template <class Q, class K, class V, storage_scalar O, executor Executor = serial>
  status prefill(sequence of, int layer, tensor_view<Q, 3> q, tensor_view<K, 3> k, tensor_view<V, 3> v, tensor_view<O, 3> out,
                 attention_options const& options = {}, Executor&& run = {}, std::span<std::int64_t const> at = {}) {
    if (status const ok = base::check_chunk_queries(of, layer, q, k, v, out, options, at); !ok) return ok;
    if constexpr (needs::attends)
      if (status const ok = this->check_finite(q); !ok) return ok;
    if (status const ok = settle(of, layer, k.extent[0]); !ok) return ok;
    attention_options with_lse = options;
    if constexpr (needs::attends)
      if (options.lse.data == nullptr) with_lse.lse = own_lse(of, q.extent[0]);
    if (status const ok = base::prefill(of, layer, q, k, v, out, with_lse, run, at); !ok) return ok;
    grow(of, layer, k.extent[0]);
    keep_.state(of.index).in_prompt = true;
    if constexpr (needs::attends)
      if (q.extent[0] > 0) return this->count_rows(of, layer, q, with_lse.lse, q.extent[0], options, run);
    return {};
  }

  // What has happened. Each decides if the policy's trigger is due, and says what was done; nothing if it is not.
  // errors  stale_handle; shape_mismatch: the layers have not got as many tokens each (`at` is the layer), or as apply()
  result<keep_report> end_prefill(sequence of) {
    if (status const ok = check_whole(of); !ok) return ok;
    keep_sequence& state = keep_.state(of.index);
    auto const chunk =
        state.in_prompt && state.settled < base::length(of, 0) ? event(of, moment::chunk_end) : result<keep_report>(keep_report{});
    if (!chunk) return chunk;
    auto const done = event(of, moment::prefill_end);
    if (!done) return done;
    state.in_prompt = false, state.had_prompt = true, state.prompt = base::length(of, 0);
    return sum_of(chunk.value(), done.value());
  }
  result<keep_report> end_step(sequence of) {
    if (status const ok = check_whole(of); !ok) return ok;
    return event(of, moment::step);
  }
  result<keep_report> end_turn(sequence of) {
    if (status const ok = check_whole(of); !ok) return ok;
    return event(of, moment::turn_end);
  }
  // All of the prompt is in layers 0 ... `layer`: they share the whole model's total until the next one is done.
  result<keep_report> end_layer(sequence of, int layer) requires(keep_traits<typename Recipe::policy>::layer_split) {
    if (status const ok = this->check(of, layer); !ok) return ok;
    if (!policy_.due(trigger_of(of, layer, moment::layer_done))) return keep_report{};
    auto const total = policy_.template at<stage::total>();
    std::int64_t const rows = this->row_of(layer + 1), all = this->row_of(shape_.layers);
    std::int64_t const of_these = total.total({{&keep_.living(of.index, 0), static_cast<std::size_t>(rows)}, 0});
    return this->decide_layers(of, 0, layer + 1, of_these == no_limit ? -1 : of_these / rows * all);
  }

  // See make().
  static result<cache> with_memory(cache_shape const& shape, std::span<std::byte> memory, calibration<page> const& calibrated) {
    if (status const ok = cache_storage<Recipe>::check(shape); !ok) return ok;
    keep_memory<unkept<Recipe>> parts;
    parts.shape = shape;
    std::optional<heap_arena> owned;
    if (memory.data() == nullptr) {
      auto made = heap_arena::make(shape.bytes);
      if (!made) return made.error();
      owned.emplace(std::move(made).value());
      memory = {owned->data(), static_cast<std::size_t>(owned->bytes())};
    }
    if (auto const aligned = borrowed_arena::make(memory); !aligned) return aligned.error();
    auto const size = static_cast<std::int64_t>(memory.size());
    if (size < parts.bytes()) return status{errc::capacity_exceeded, parts.bytes() - size};
    auto made = base::with_memory(shape, memory.subspan(static_cast<std::size_t>(parts.bytes())), calibrated);
    if (!made) return made.error();
    parts.sequences = memory.data();
    parts.shared = memory.data() + parts.of_sequence().bytes * shape.max_sequences;
    auto const offset = parts.template work<std::int64_t>(parts.of_all().offset, parts.rows_at_once());
    for (std::size_t r = 0; r < offset.size(); ++r) offset[r] = static_cast<std::int64_t>(r) * shape.max_tokens;
    cache whole(std::move(made).value());
    whole.keep_ = parts, whole.shape_ = shape, whole.owned_ = std::move(owned);
    return whole;
  }

  cache(cache&&) noexcept = default;

 private:
  explicit cache(base&& made) : keeper(std::move(made)) {}

  tensor_view<float, 2> own_lse(sequence of, std::int64_t rows) const {
    return {keep_.template own<float>(of.index, keep_.of_sequence().lse), {rows, shape_.query_heads}};
  }
  void grow(sequence of, int layer, std::int64_t tokens) {
    for (int h = 0; h < shape_.kv_heads; ++h) keep_.living(of.index, this->row_of(layer, h)) += tokens;
  }
  void count_living(sequence of, int layer) {
    for (int h = 0; h < shape_.kv_heads; ++h) {
      std::int64_t const row = this->row_of(layer, h);
      keep_.living(of.index, row) = base::living(of, layer, h).value();
      keep_.known(of.index, row) = std::min(keep_.known(of.index, row), keep_.living(of.index, row));
    }
  }

  template <class Q, class O, class Executor>
  status attend_and_count(sequence of, int layer, tensor_view<Q, 3> q, tensor_view<O, 3> out, std::int64_t fresh,
                          attention_options const& options, Executor&& run) {
    if (q.extent[0] > std::max(shape_.max_chunk, 1) && options.lse.data == nullptr) return {errc::capacity_exceeded, shape_.max_chunk};
    if (status const ok = this->check_finite(q); !ok) return ok;
    attention_options counting = options;
    if constexpr (needs::adds && needs::window_rows == 0) {
      std::int64_t const group = shape_.query_heads / shape_.kv_heads;
      if (q.extent[0] == 1 && group <= slot_scores::most_rows && options.scores.sum.data == nullptr) {
        counting.scores = {
            .sum = {this->sums(of), {shape_.kv_heads, shape_.max_tokens}},
            .logits = {keep_.template own<float>(of.index, keep_.of_sequence().logits), {shape_.kv_heads, group, shape_.max_tokens}},
            .decay = 0};
        if (status const ok = base::attend(of, layer, q, out, counting, run); !ok) return ok;
        float const factor = needs::reduction == group_reduction::mean ? 1 / static_cast<float>(group) : 1;
        if (status const ok = this->take_statistics(of, layer, 1, factor); !ok) return ok;
        keep_.layer(of.index, layer).seen = base::length(of, layer);
        return {};
      }
    }
    if (options.lse.data == nullptr) counting.lse = own_lse(of, q.extent[0]);
    if (status const ok = base::attend(of, layer, q, out, counting, run); !ok) return ok;
    return this->count_rows(of, layer, q, counting.lse, fresh, options, run);
  }

  // Before the first tokens of a step: is there one behind that has not been decided on?
  status settle(sequence of, int layer, std::int64_t tokens) {
    keep_sequence const& state = keep_.state(of.index);
    std::int64_t const length = base::length(of, layer);
    if (tokens == 0 || length == state.settled || !check_whole(of)) return {};
    if (!this->is_observed(of, 0, shape_.layers)) return {};
    return event(of, state.in_prompt ? moment::chunk_end : moment::step).error();
  }
  status check_whole(sequence of) {
    if (status const ok = this->check(of); !ok) return ok;
    for (int l = 1; l < shape_.layers; ++l)
      if (base::length(of, l) != base::length(of, 0)) return {errc::shape_mismatch, l};
    return {};
  }

  trigger_input trigger_of(sequence of, int last_layer, moment at) const {
    auto const first = &keep_.living(of.index, 0);
    std::int64_t const longest = *std::max_element(first, first + this->row_of(last_layer + 1));
    std::int64_t const step = base::length(of, 0) - keep_.state(of.index).prompt;
    auto const& pool = *base::memory().page_pool;
    return {.at = at,
            .step = step,
            .slots = longest,
            .capacity = policy_.template at<stage::total>().total({{&longest, 1}, step}),
            .free_memory = 1 - static_cast<double>(pool.used_blocks()) / static_cast<double>(pool.blocks())};
  }
  result<keep_report> event(sequence of, moment at) {
    bool const due = base::length(of, 0) > 0 && policy_.due(trigger_of(of, shape_.layers - 1, at));
    auto const done = due ? this->decide_layers(of, 0, shape_.layers, -1) : result<keep_report>(keep_report{});
    if (done) keep_.state(of.index).settled = base::length(of, 0);
    return done;
  }
  static keep_report sum_of(keep_report const& a, keep_report const& b) {
    return {a.rows + b.rows,     b.rows > 0 ? b.kept : a.kept, a.dropped + b.dropped, a.merged + b.merged,
            a.raised + b.raised, a.clipped + b.clipped,        b.masked_rows,         a.bytes + b.bytes};
  }
};

}  // namespace pith
