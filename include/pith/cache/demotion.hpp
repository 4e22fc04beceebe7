// SPDX-License-Identifier: Apache-2.0
// Two precisions in one cache: what a policy ranks high stays in the first, what it ranks low goes on living in the second, in fewer bits.
//
//   using mixed = demoting_cache<high, low>;         // high has side<liveness, births>
//   auto cache = mixed::make(shape, 8 << 20).value();
//   cache.append(s, layer, k, v);                    // into `high`
//   cache.attend(s, layer, q, out);                  // both, merged by log-sum-exp
//   decide(policy, rows, input, state, plan, scratch);   // any policy<..., demote<Bits>>; rows are high's survivors
//   cache.demote(s, rows, plan);                     // losers: read from high, appended to low, evicted and compacted in high
//   carry(policy, rows, plan, state);
//
// `low` holds one layer of one KV head for each (layer, KV head), so heads may demote different numbers of rows and nothing is padded.
//
// Rule M1  A row is encoded at most once more: what comes from raw rows or move-only codes is decoded once, and never comes back.
// Rule M2  Among low's rows there is no order: a query sees them all. So attend() takes one query token once rows are there, and
//          windows and truncate() are not possible.
// Rule M3  Probabilities of high's slots among all rows are attention_statistics() with the lse that attend() wrote.
//
// Threads: as cache<Recipe>; demote() also comes one at a time. No call allocates after make().
//
// errors  come back as statuses and nothing moves; pages that were reserved in `low` stay with the sequence
// cost    demote: one decode of the rows' tiles and one append of the rows
// from    Yang et al., No Token Left Behind (MiKV), 2024
// differs MiKV also balances the channels of demoted keys by the queries' magnitudes: give `low` such a codec (codec/balance.hpp)
#pragma once

#include <limits>
#include <vector>

#include "pith/cache/kv_cache.hpp"
#include "pith/page/merge.hpp"
#include "pith/policy/decide.hpp"

namespace pith {

// Bits of one token of one KV head in the pages of a cache, scales and padding included.
template <class Recipe>
inline constexpr std::int64_t token_bits = 8 * Recipe::page::bytes / Recipe::page::tokens;

struct demotion_report {
  std::int64_t rows = 0;   // that went to fewer bits
  std::int64_t bytes = 0;  // that came back, of both caches; below 0 if they grew
};

template <class High, class Low>
class demoting_cache {
  static consteval bool check() {
    constexpr bool sides = High::has_liveness && High::has_births;
    constexpr bool same = High::key_channels == Low::key_channels && High::value_channels == Low::value_channels;
    constexpr bool alone = !High::keeps && !Low::keeps;
    if constexpr (!sides) {
      static_assert(sides, "[pith] demoting_cache<High, Low>: rows leave the first cache. Fix: side<liveness, births> in it.");
    } else if constexpr (!same) {
      static_assert(same, "[pith] demoting_cache<High, Low>: heads of different sizes. Fix: give both the same head_dim.");
    } else if constexpr (!alone) {
      static_assert(alone, "[pith] demoting_cache<High, Low>: the policy decides beside the cache. Fix: leave keep<...> out.");
    } else {
      return true;
    }
    return false;
  }
  static_assert(check() || true);  // it has said what is wrong

 public:
  static constexpr int key_channels = High::key_channels, value_channels = High::value_channels;

  struct sequence {
    pith::sequence high{}, low{};
  };

  // shape.bytes are high's, `low_bytes` low's; shape.max_tokens bounds the rows of each.
  // errors  shape_mismatch (max_tokens is not set), and those of make<Recipe>
  static result<demoting_cache> make(cache_shape const& shape, std::int64_t low_bytes) {
    if (shape.max_tokens <= 0) return status{errc::shape_mismatch, shape.max_tokens};
    auto high = pith::make<High>(shape);
    if (!high) return high.error();
    auto low = pith::make<Low>({.layers = shape.layers * shape.kv_heads,
                                .kv_heads = 1,
                                .query_heads = shape.query_heads / shape.kv_heads,
                                .bytes = low_bytes,
                                .max_sequences = shape.max_sequences,
                                .max_tokens = shape.max_tokens,
                                .max_chunk = 0});
    if (!low) return low.error();
    return demoting_cache(std::move(high).value(), std::move(low).value());
  }

  result<sequence> open() {
    return both(high_.open(), [&] { return low_.open(); });
  }
  result<sequence> fork(sequence from) {
    if (status const ok = check_pair(from); !ok) return ok;
    return both(high_.fork(from.high), [&] { return low_.fork(from.low); });
  }
  status close(sequence of) {
    if (status const ok = check_pair(of); !ok) return ok;
    static_cast<void>(high_.close(of.high));
    return low_.close(of.low);
  }

  // A sequence as bytes: high's length (8 bytes, little-endian), high's bytes, low's.
  // errors  those of cache::save and cache::load; truncated
  std::int64_t saved_bytes(sequence of) const {
    return check_pair(of) ? size_bytes + high_.saved_bytes(of.high) + low_.saved_bytes(of.low) : 0;
  }
  status save(sequence of, std::span<std::byte> out) const {
    if (status const ok = check_pair(of); !ok) return ok;
    if (static_cast<std::int64_t>(out.size()) < saved_bytes(of)) return {errc::capacity_exceeded, saved_bytes(of)};
    auto const first = static_cast<std::uint64_t>(high_.saved_bytes(of.high));
    for (int i = 0; i < size_bytes; ++i) out[static_cast<std::size_t>(i)] = static_cast<std::byte>(first >> (8 * i) & 255);
    if (status const ok = high_.save(of.high, out.subspan(size_bytes)); !ok) return ok;
    return low_.save(of.low, out.subspan(size_bytes + first));
  }
  result<sequence> load(std::span<std::byte const> from) {
    if (from.size() < size_bytes) return status{errc::truncated, static_cast<std::int64_t>(from.size())};
    std::uint64_t first = 0;
    for (int i = 0; i < size_bytes; ++i) first |= std::to_integer<std::uint64_t>(from[static_cast<std::size_t>(i)]) << (8 * i);
    std::span<std::byte const> const rest = from.subspan(size_bytes);
    if (first > rest.size()) return status{errc::truncated, static_cast<std::int64_t>(from.size())};
    return both(high_.load(rest.first(first)), [&] { return low_.load(rest.subspan(first)); });
  }

  // See cache<High>. A new row is important until a policy says otherwise.
  template <class K, class V>
  status append(sequence of, int layer, tensor_view<K, 3> k, tensor_view<V, 3> v) {
    if (status const ok = check_pair(of); !ok) return ok;
    return high_.append(of.high, layer, k, v);
  }

  // Attention of the newest token to every row of both caches.
  // errors  as cache::attend; unsupported (a window; slot scores: see rule M3; several query tokens when rows have been demoted)
  template <class Q, storage_scalar O, executor Executor = serial>
  status attend(sequence of, int layer, tensor_view<Q, 3> q, tensor_view<O, 3> out, attention_options const& how = {},
                Executor&& run = {}) const {
    return merged(of, layer, q, out, how, run,
                  [&](auto part, attention_options const& o) { return high_.attend(of.high, layer, q, part, o, run); });
  }

  // A chunk of new tokens: they see every row of both caches and, causally, each other; then they are appended.
  // errors  as cache::prefill; unsupported (a window, slot scores)
  template <class Q, class K, class V, storage_scalar O, executor Executor = serial>
  status prefill(sequence of, int layer, tensor_view<Q, 3> q, tensor_view<K, 3> k, tensor_view<V, 3> v, tensor_view<O, 3> out,
                 attention_options const& how = {}, Executor&& run = {}) {
    return merged(
        of, layer, q, out, how, run,
        [&](auto part, attention_options const& o) { return high_.prefill(of.high, layer, q, k, v, part, o, run); }, true);
  }

  // Of the important rows; lse as attend() wrote it. See cache::attention_statistics.
  template <class Q, group_reduction Reduction, statistic... Wanted, executor Executor = serial>
  status attention_statistics(sequence of, int layer, tensor_view<Q, 3> q, std::type_identity_t<tensor_view<float const, 2>> lse,
                              statistics_view<Reduction, Wanted...> const& out, statistics_rows const& chosen = {},
                              attention_options const& how = {}, Executor&& run = {}) const {
    if (status const ok = check_pair(of); !ok) return ok;
    return high_.attention_statistics(of.high, layer, q, lse, out, chosen, how, run);
  }

  // Carries out a plan: rows of `at` are the survivors of high's (layer, KV head)s, in their order.
  // errors  stale_handle, unsupported (the plan's losers are not demoted), shape_mismatch (rows that are not this cache's; a row whose
  //         length is not its survivors': `at` is the row), out_of_range (slots that do not ascend: the row), capacity_exceeded (room in
  //         `low`), not_finite (low rejects such numbers: the row)
  result<demotion_report> demote(sequence of, policy_rows const& at, policy_plan const& plan) {
    if (status const ok = check_plan(of, at, plan); !ok) return ok;
    std::int64_t const before = resident_bytes();
    for (std::int64_t r = 0; r < at.rows(); ++r)
      if (std::int64_t const count = losers_of(at, plan, r); count > 0)
        if (status const ok = low_.reserve_tokens(of.low, static_cast<int>(r), count); !ok) return ok;
    if constexpr (Low::nan == nan_policy::reject)
      for (std::int64_t r = 0; r < at.rows(); ++r) {
        status const ok =
            for_each_batch(of, at, plan, r, [&](auto k, auto v, auto) { return low_.check_append(of.low, static_cast<int>(r), k, v); });
        if (!ok) return status{ok.code, r};
      }
    demotion_report done;
    for (std::int64_t r = 0; r < at.rows(); ++r) {
      std::int64_t const count = losers_of(at, plan, r);
      if (count == 0) continue;
      int const layer = static_cast<int>(r / at.kv_heads), head = static_cast<int>(r % at.kv_heads);
      status const moved = for_each_batch(of, at, plan, r, [&](auto k, auto v, std::span<std::int64_t const> tokens) {
        if (status const ok = low_.append(of.low, static_cast<int>(r), k, v); !ok) return ok;
        return high_.evict(of.high, layer, head, tokens);
      });
      if (!moved) return moved;
      static_cast<void>(high_.compact(of.high, layer, head));  // if a fork shares the pages and there is no room, they stay, masked
      done.rows += count;
    }
    done.bytes = before - resident_bytes();
    return done;
  }

  std::int64_t length(sequence of, int layer) const { return check_pair(of) ? high_.length(of.high, layer) : 0; }
  std::int64_t slots(sequence of, int layer) const { return check_pair(of) ? high_.slots(of.high, layer) : 0; }
  std::int64_t demoted(sequence of, int layer, int head) const {
    return check_pair(of) ? low_.length(of.low, layer * shape().kv_heads + head) : 0;
  }
  result<std::int64_t> survivors(sequence of, int layer, int head, std::span<survivor> out) const {
    return high_.survivors(of.high, layer, head, out);
  }
  std::int64_t resident_bytes() const { return high_.resident_bytes() + low_.resident_bytes(); }
  cache_shape const& shape() const { return high_.shape(); }
  cache<High> const& high() const { return high_; }
  cache<Low> const& low() const { return low_; }  // layer * kv_heads + head is its layer

 private:
  static constexpr int size_bytes = 8;
  static constexpr std::size_t batch = 64;  // rows

  cache<High> high_;
  cache<Low> low_;
  std::vector<survivor> living_;        // of one head
  std::vector<std::int64_t> tokens_;    // of one batch
  std::vector<float> rows_;             // of one batch: keys, values
  mutable std::vector<float> partial_;  // [sequence][2]: rows of a partial result and their lse

  demoting_cache(cache<High>&& high, cache<Low>&& low) : high_(std::move(high)), low_(std::move(low)) {
    living_.resize(static_cast<std::size_t>(shape().max_tokens));
    tokens_.resize(batch), rows_.resize(batch * (key_channels + value_channels));
    partial_.resize(static_cast<std::size_t>(shape().max_sequences * 2 * partial_floats()));
  }

  std::int64_t partial_rows() const { return static_cast<std::int64_t>(std::max(shape().max_chunk, 1)) * shape().query_heads; }
  std::int64_t partial_floats() const { return partial_rows() * (value_channels + 1); }

  template <class F>
  result<sequence> both(result<pith::sequence> first, F&& second) {
    if (!first) return first.error();
    auto const other = second();
    if (other) return sequence{first.value(), other.value()};
    static_cast<void>(high_.close(first.value()));
    return other.error();
  }
  // Both or none are open: they are opened and closed together. A cut to what is there already fails for a stale handle alone.
  status check_pair(sequence of) const {
    constexpr std::int64_t all = std::numeric_limits<std::int64_t>::max();
    if (status const ok = high_.check_truncate(of.high, all); !ok) return ok;
    return low_.check_truncate(of.low, all);
  }
  std::int64_t most_demoted(sequence of, int layer) const {
    std::int64_t most = 0;
    for (int h = 0; h < shape().kv_heads; ++h) most = std::max(most, demoted(of, layer, h));
    return most;
  }

  // part(out, options) is high's; low's is merged with it head by head. A sink counts once.
  template <class Q, class O, class Executor, class Part>
  status merged(sequence of, int layer, tensor_view<Q, 3> q, tensor_view<O, 3> out, attention_options const& how, Executor&& run,
                Part&& part, bool chunk = false) const {
    if (status const ok = check_pair(of); !ok) return ok;
    if (layer < 0 || layer >= shape().layers) return {errc::out_of_range, layer};
    if (q.extent[1] != shape().query_heads) return {errc::shape_mismatch, q.extent[1]};
    if (status const ok = query_rows<std::remove_const_t<Q>, O>::check(q, out, how, shape().kv_heads, key_channels, value_channels); !ok)
      return ok;
    if (how.window != 0) return {errc::unsupported, how.window};
    if (how.scores.sum.data != nullptr) return {errc::unsupported, 0};
    std::int64_t const tokens = q.extent[0], heads = shape().query_heads, rows = tokens * heads, group = heads / shape().kv_heads;
    if (most_demoted(of, layer) == 0) return part(out, how);
    if (!chunk && tokens > 1) return {errc::unsupported, tokens};
    if (rows > partial_rows()) return {errc::capacity_exceeded, shape().max_chunk};

    float* const mine = partial_.data() + of.high.index * 2 * partial_floats();
    float* const theirs = mine + partial_floats();
    auto const sums = [&](float* at) { return tensor_view<float, 3>(at, {tokens, heads, value_channels}); };
    auto const lse = [&](float* at) { return tensor_view<float, 2>(at + rows * value_channels, {tokens, heads}); };
    attention_options one = how;
    one.lse = lse(mine);
    if (status const ok = part(sums(mine), one); !ok) return ok;
    one.sink_logits = {};
    run.for_each(shape().kv_heads, [&](std::int64_t h) {
      int const place = static_cast<int>(layer * shape().kv_heads + h);
      if (low_.length(of.low, place) == 0) return;
      attention_options mine_of = one;
      mine_of.lse = lse(theirs).template part<1>(h * group, group);
      auto const to = sums(theirs).template part<1>(h * group, group);
      // Whatever can be wrong was wrong for high.
      static_cast<void>(low_.attend_past(of.low, place, q.template part<1>(h * group, group), to, mine_of));
      for (std::int64_t t = 0; t < tokens; ++t)
        for (std::int64_t g = h * group; g < (h + 1) * group; ++g)
          merge_attention(&sums(mine)(t, g, 0), lse(mine)(t, g), &sums(theirs)(t, g, 0), lse(theirs)(t, g), value_channels);
    });
    for (std::int64_t t = 0; t < tokens; ++t)
      for (std::int64_t g = 0; g < heads; ++g) {
        for (std::int64_t c = 0; c < value_channels; ++c) out(t, g, c) = from_float<O>(sums(mine)(t, g, c));
        if (how.lse.data != nullptr) how.lse(t, g) = lse(mine)(t, g);
      }
    return {};
  }

  static std::int64_t losers_of(policy_rows const& at, policy_plan const& plan, std::int64_t row) {
    return at.length[static_cast<std::size_t>(row)] - plan.kept_count[static_cast<std::size_t>(row)];
  }
  status check_plan(sequence of, policy_rows const& at, policy_plan const& plan) const {
    if (status const ok = check_pair(of); !ok) return ok;
    if (plan.losers != fate::demoted) return {errc::unsupported, static_cast<std::int64_t>(plan.losers)};
    if (status const ok = at.check(); !ok) return ok;
    if (at.layers != shape().layers || at.kv_heads != shape().kv_heads) return {errc::shape_mismatch, at.rows()};
    if (status const ok = at.view(plan.kept).check(); !ok) return ok;
    if (static_cast<std::int64_t>(plan.kept_count.size()) != at.rows()) return {errc::shape_mismatch, at.rows()};
    for (std::int64_t r = 0; r < at.rows(); ++r) {
      auto const living = high_.living(of.high, static_cast<int>(r / at.kv_heads), static_cast<int>(r % at.kv_heads));
      if (living.value() != at.length[static_cast<std::size_t>(r)]) return {errc::shape_mismatch, r};
      if (std::int64_t const count = plan.kept_count[static_cast<std::size_t>(r)]; count < 0 || count > living.value())
        return {errc::out_of_range, r};
      std::int64_t before = -1;
      for (std::int64_t const slot : kept_of(at, plan, r)) {
        if (slot <= before || slot >= living.value()) return {errc::out_of_range, r};
        before = slot;
      }
    }
    return {};
  }
  static std::span<std::int64_t const> kept_of(policy_rows const& at, policy_plan const& plan, std::int64_t row) {
    return at.view(plan.kept).row(row).first(static_cast<std::size_t>(plan.kept_count[static_cast<std::size_t>(row)]));
  }

  // f(keys, values, tokens) for the losers of a row, in order, at most `batch` of them at a time.
  template <class F>
  status for_each_batch(sequence of, policy_rows const& at, policy_plan const& plan, std::int64_t row, F&& f) {
    int const layer = static_cast<int>(row / at.kv_heads), head = static_cast<int>(row % at.kv_heads);
    auto const living = high_.survivors(of.high, layer, head, living_);
    if (!living) return living.error();
    auto const kept = kept_of(at, plan, row);
    std::size_t count = 0;  // losers come to the front
    for (std::size_t i = 0, k = 0; i < static_cast<std::size_t>(living.value()); ++i)
      if (k < kept.size() && kept[k] == static_cast<std::int64_t>(i))
        ++k;
      else
        living_[count++] = living_[i];
    for (std::size_t from = 0; from < count; from += batch) {
      auto const part = std::span<survivor const>(living_).subspan(from, std::min(batch, count - from));
      auto const keys = std::span(rows_).first(part.size() * key_channels),
                 values = std::span(rows_).subspan(keys.size(), part.size() * value_channels);
      if (status const ok = high_.read_rows(of.high, layer, head, part, keys, values); !ok) return ok;
      for (std::size_t i = 0; i < part.size(); ++i) tokens_[i] = part[i].token;
      std::int64_t const n = static_cast<std::int64_t>(part.size());
      status const ok =
          f(tensor_view<float const, 3>(keys.data(), {n, 1, key_channels}),
            tensor_view<float const, 3>(values.data(), {n, 1, value_channels}), std::span<std::int64_t const>(tokens_).first(part.size()));
      if (!ok) return ok;
    }
    return {};
  }
};

}  // namespace pith
