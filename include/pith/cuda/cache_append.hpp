// SPDX-License-Identifier: Apache-2.0
// How the bytes of a device's cache follow its books: set-up, reservation, appends, copies, and what the device has a copy of. The base of
// device_cache.
#pragma once

#include "pith/cache/ledger.hpp"
#include "pith/cuda/cache_cut.hpp"
#include "pith/cuda/cache_seal.hpp"

namespace pith::device {

// What one call changes beside rows, launched when it is full or flushed: copies first.
template <class Environment>
struct cache_changes {
  template <class Kernel>
  using of = queue<Kernel, Environment>;
  of<copy_kernel> copies;
  of<ascending_kernel> tables;
  of<word_kernel> words;

  explicit cache_changes(Environment const& env) : copies(env), tables(env), words(env) {}

  // Ranges do not overlap but as a whole.
  void copy(std::byte* to, std::byte const* from, std::int64_t bytes) {
    for (copy_kernel::entry const& e : copies.waiting())
      if (e.to == to || e.from == to || e.to == from) {
        static_cast<void>(copies.flush());
        break;
      }
    copies.add({to, from, bytes});
  }
  status flush() {
    status const a = copies.flush(), b = tables.flush(), c = words.flush();
    return !a ? a : !b ? b : c;
  }
};

template <class Recipe, class Environment>
class cache_bytes : public cache_ledger<Recipe> {
  using ledger = cache_ledger<Recipe>;

 protected:
  using typename ledger::page;
  using typename ledger::segments;
  using ledger::store_;
  using changes = cache_changes<Environment>;
  using parts = mirror_parts<Recipe>;
  static constexpr bool has_side = Recipe::has_liveness || Recipe::has_bias;

  cache_memory<Recipe> device_;
  std::unique_ptr<layer_state[]> shown_;  // [sequence][layer] as the device has them
  std::unique_ptr<std::uint64_t[]> live_;  // the host's copy, as in storage
  std::unique_ptr<std::uint64_t[]> named_;  // [sequence] the last call that named it
  std::unique_ptr<std::int64_t[]> held_;    // [sequence of a call] pages of its heads, or whole ones, when it began
  std::uint64_t calls_ = 0;

  status set_up(Environment const& env, cache_shape const& shape, std::span<std::byte> memory, calibration<page> const& calibrated) {
    if (status const ok = ledger::storage::check(shape); !ok) return ok;
    if (shape.max_tokens == 0 || shape.max_tokens > 0x7fffffff) return {errc::shape_mismatch, shape.max_tokens};
    parts const mirror = parts::of(shape);
    if (memory.data() == nullptr || static_cast<std::int64_t>(memory.size()) < mirror.total())
      return {errc::capacity_exceeded, mirror.total() - static_cast<std::int64_t>(memory.size())};
    if (status const ok = store_.set_up(shape, memory.subspan(static_cast<std::size_t>(mirror.total())), calibrated); !ok) return ok;

    std::byte* const first = memory.data();
    device_.tables = reinterpret_cast<std::uint32_t*>(first);
    device_.states = reinterpret_cast<layer_state*>(first + mirror.tables);
    device_.key_states = reinterpret_cast<decltype(device_.key_states)>(first + mirror.tables + mirror.states);
    device_.value_states = reinterpret_cast<decltype(device_.value_states)>(first + mirror.tables + mirror.states + mirror.key_states);
    device_.raw = store_.raw_pool->address(block_id{0});
    device_.pages = store_.page_pool->address(block_id{0});
    device_.chunks = store_.chunks;
    device_.live = store_.live_bits;
    device_.biases = store_.biases;
    device_.max_pages = parts::max_pages(shape);
    device_.max_tokens = shape.max_tokens;
    device_.live_words = store_.live_words();
    device_.chunk_tiles = store_.chunk_tiles();
    device_.layers = shape.layers;
    device_.kv_heads = shape.kv_heads;

    auto const sequences = static_cast<std::size_t>(shape.max_sequences), layers = sequences * static_cast<std::size_t>(shape.layers);
    auto const words = static_cast<std::size_t>(Recipe::has_liveness ? store_.live_words() * store_.heads_total() * shape.max_sequences : 0);
    shown_.reset(new (std::nothrow) layer_state[layers]);
    live_.reset(new (std::nothrow) std::uint64_t[words]);
    named_.reset(new (std::nothrow) std::uint64_t[sequences]());
    held_.reset(new (std::nothrow) std::int64_t[sequences]);
    if (!shown_ || !live_ || !named_ || !held_) return {errc::out_of_memory, static_cast<std::int64_t>(8 * words)};

    changes all(env);
    all.copy(reinterpret_cast<std::byte*>(device_.states), nullptr, mirror.states);
    if (status const ok = all.flush(); !ok) return ok;
    if (status const ok = show_calibrated(env, device_.key_states, calibrated.keys); !ok) return ok;
    return show_calibrated(env, device_.value_states, calibrated.values);
  }

  std::int64_t mirrored_sequence_bytes() const {
    return 4 * device_.max_pages * store_.heads_total() + static_cast<std::int64_t>(sizeof(layer_state)) * store_.shape.layers;
  }
  std::uint64_t* live_of(std::int64_t index, int layer, int head) const {
    return live_.get() + store_.head_index(index, layer, head) * store_.live_words();
  }

  // The 64-bit words of a layer's state that the device has otherwise.
  void show_state(changes& all, std::int64_t index, int layer) {
    constexpr std::size_t words = sizeof(layer_state) / 8;
    static_assert(std::is_trivially_copyable_v<layer_state> && sizeof(layer_state) % 8 == 0);
    static_assert(std::has_unique_object_representations_v<layer_state>);  // no padding that is otherwise each time
    layer_state& shown = shown_[index * store_.shape.layers + layer];
    std::uint64_t now[words], before[words];
    std::memcpy(now, &store_.layer(index, layer), sizeof(now));
    std::memcpy(before, &shown, sizeof(before));
    auto* const at = reinterpret_cast<std::uint64_t*>(&device_.state_of_layer(index, layer));
    for (std::size_t i = 0; i < words; ++i)
      if (now[i] != before[i]) all.words.add({at + i, now[i]});
    shown = store_.layer(index, layer);
  }
  // Pages [from, to) of a head's table.
  void show_pages(changes& all, std::int64_t index, int layer, int head, std::int64_t from, std::int64_t to) {
    for (std::int64_t p = from; p < to;) {
      block_id const first = store_.runs->block(store_.table_of(index, layer, head), p);
      std::uint32_t count = 1;
      while (p + count < to && first != no_block &&
             store_.runs->block(store_.table_of(index, layer, head), p + count).value == first.value + count)
        ++count;
      all.tables.add({device_.table_of(index, layer, head) + p, first.value, count});
      p += count;
    }
  }
  void drop_page(changes& all, std::int64_t index, int layer, int head, std::int64_t at) {
    if (this->drop_if_dead(index, layer, head, at, live_of(index, layer, head)))
      all.tables.add({device_.table_of(index, layer, head) + at, no_block.value, 1});
  }
  // Slots [from, to) of a layer live and have no bias.
  void begin_slots([[maybe_unused]] typename changes::template of<reset_side_kernel<Recipe>>& sides, [[maybe_unused]] std::int64_t index,
                   [[maybe_unused]] int layer, [[maybe_unused]] std::int64_t from, [[maybe_unused]] std::int64_t to) {
    if constexpr (Recipe::has_liveness)
      for (int h = 0; h < store_.shape.kv_heads; ++h)
        for (std::int64_t word = from / 64; word * 64 < to; ++word)
          live_of(index, layer, h)[word] |= reset_side_kernel<Recipe>::bits_between(from - word * 64, to - word * 64);
    if constexpr (has_side) sides.add({static_cast<std::uint32_t>(index), layer, from, to});
  }

  template <class K, class V>
  status check_append(std::span<sequence const> which, int layer, K const& k, V const& v, std::span<std::int64_t const> counts) {
    if (which.size() != counts.size()) return {errc::shape_mismatch, static_cast<std::int64_t>(counts.size())};
    std::int64_t tokens = 0;
    ++calls_;
    for (std::size_t i = 0; i < which.size(); ++i) {
      if (status const ok = this->check_layer(which[i], layer); !ok) return ok;
      if (named_[which[i].index] == calls_ || counts[i] < 0) return {errc::out_of_range, static_cast<std::int64_t>(i)};
      named_[which[i].index] = calls_;
      tokens += counts[i];
    }
    if (status const ok = this->check_extents(k, v); !ok) return ok;
    if (k.extent[0] != tokens) return {errc::shape_mismatch, k.extent[0]};
    for (std::size_t i = 0; i < which.size(); ++i)
      if (status const ok = this->check_length(which[i], layer, counts[i]); !ok) return ok;
    return {};
  }

  // Pages for all of them, or for none.
  status reserve_all(Environment const& env, std::span<sequence const> which, int layer, std::span<std::int64_t const> counts) {
    changes all(env);
    for (std::size_t i = 0; i < which.size(); ++i) {
      std::int64_t const index = which[i].index;
      held_[i] = store_.table_of(index, layer, 0).pages;
      status const ok = this->reserve(
          index, layer, counts[i],
          [&](int head, std::int64_t at, block_id to, block_id from) {
            all.copy(store_.page_pool->address(to), from == no_block ? nullptr : store_.page_pool->address(from), page::bytes);
            all.tables.add({device_.table_of(index, layer, head) + at, to.value, 1});
            return status{};
          },
          [](std::int64_t, std::int64_t) { return status{}; });
      for (int h = 0; h < store_.shape.kv_heads; ++h) {
        if (ok) {
          show_pages(all, index, layer, h, held_[i], store_.table_of(index, layer, h).pages);
          continue;
        }
        for (std::size_t back = 0; back < i; ++back)
          store_.runs->truncate(store_.table_of(which[back].index, layer, h), *store_.page_pool, held_[back]);
      }
      if (ok) continue;
      static_cast<void>(all.flush());  // pages that were copied stay copied
      return ok;
    }
    return all.flush();
  }

  // After reserve_all: tiles are sealed, then rows written, for each batch of sequences.
  template <class K, class V>
  status write(Environment const& env, std::span<sequence const> which, int layer, device_rows<K> k, device_rows<V> v,
               std::span<std::int64_t const> counts) {
    append_batch batch{.layer = layer};
    typename changes::template of<reset_side_kernel<Recipe>> sides(env, {.memory = device_});
    std::int64_t row = 0;
    for (std::size_t i = 0; i < which.size(); ++i) {
      std::int64_t const index = which[i].index, count = counts[i];
      if (count == 0) continue;
      layer_state& state = store_.layer(index, layer);
      held_[i] = std::min(state.sealed_keys, state.sealed_values) / page::tokens;
      std::int64_t const end = state.slots + count - Recipe::first_tokens;
      std::int64_t const keys = this->sealed_after(state.sealed_keys, end, Recipe::last_keys),
                         values = this->sealed_after(state.sealed_values, end, Recipe::last_values);
      append_entry const* const before = batch.count > 0 ? &batch.entries[batch.count - 1] : nullptr;
      batch.entries[batch.count++] = {
          .sequence = static_cast<std::uint32_t>(index),
          .tokens = static_cast<std::int32_t>(count),
          .row = row,
          .slots = state.slots,
          .sealed_keys = state.sealed_keys,
          .sealed_values = state.sealed_values,
          .key_tiles_end =
              static_cast<std::int32_t>((before ? before->key_tiles_end : 0) + (keys - state.sealed_keys) / page::key_tile::tokens),
          .value_tiles_end = static_cast<std::int32_t>((before ? before->value_tiles_end : 0) +
                                                       (values - state.sealed_values) / page::value_tile::tokens)};
      batch.key_parts = std::max(batch.key_parts, raw_parts(end - count, keys, end));
      batch.value_parts = std::max(batch.value_parts, raw_parts(end - count, values, end));
      batch.first_parts = std::max<int>(batch.first_parts, end < count);
      row += count;
      begin_slots(sides, index, layer, state.slots, state.slots + count);
      state.slots += count;
      state.tokens += count;
      state.sealed_keys = keys;
      state.sealed_values = values;
      shown_[index * store_.shape.layers + layer] = state;
      if (batch.count < append_batch::most) continue;
      if (status const ok = launch(env, k, v, batch); !ok) return ok;
      batch = {.layer = layer};
    }
    if (status const ok = launch(env, k, v, batch); !ok) return ok;
    if (status const ok = sides.flush(); !ok) return ok;
    if constexpr (Recipe::has_liveness) {  // slots may have been evicted while they were raw
      changes all(env);
      for (std::size_t i = 0; i < which.size(); ++i) {
        layer_state const& state = store_.layer(which[i].index, layer);
        for (std::int64_t p = held_[i]; counts[i] > 0 && p < std::min(state.sealed_keys, state.sealed_values) / page::tokens; ++p)
          for (int h = 0; h < store_.shape.kv_heads; ++h) drop_page(all, which[i].index, layer, h, p);
      }
      return all.flush();
    }
    return {};
  }

  template <class K, class V>
  status write_chunk(Environment const& env, std::span<sequence const> which, device_rows<K> k, device_rows<V> v,
                     std::span<std::int64_t const> counts) {
    typename changes::template of<load_chunk_kernel<Recipe, K, V>> chunks(
        env, {.memory = device_, .k = k, .v = v, .status_word = env.status_word()});
    std::int64_t row = 0;
    for (std::size_t i = 0; i < which.size(); ++i) {
      if (counts[i] > 0) chunks.add({which[i].index, static_cast<std::int32_t>(counts[i]), row});
      row += counts[i];
    }
    return chunks.flush();
  }

  // The bytes of a sequence that was forked.
  status copy_sequence(Environment const& env, std::int64_t to, std::int64_t from) {
    auto const whole = [&](auto* first, std::int64_t stride) {
      auto* const base = reinterpret_cast<std::byte*>(first);
      return stride == 0 ? status{} : env.copy(base + to * stride, base + from * stride, stride);
    };
    if (status const ok = whole(device_.raw, store_.heads_total() * segments::bytes); !ok) return ok;
    if (status const ok = whole(device_.tables, 4 * device_.max_pages * store_.heads_total()); !ok) return ok;
    changes all(env);
    for (int l = 0; l < store_.shape.layers; ++l) {
      show_state(all, to, l);
      std::int64_t const slots = store_.layer(from, l).slots;
      for (int h = 0; h < store_.shape.kv_heads && has_side && slots > 0; ++h) {
        if constexpr (Recipe::has_liveness) {
          std::copy_n(live_of(from, l, h), divide_up(slots, 64), live_of(to, l, h));
          all.copy(reinterpret_cast<std::byte*>(device_.live_of(to, l, h)), reinterpret_cast<std::byte*>(device_.live_of(from, l, h)),
                   8 * divide_up(slots, 64));
        }
        if constexpr (Recipe::has_bias)
          all.copy(reinterpret_cast<std::byte*>(device_.biases_of(to, l, h)), reinterpret_cast<std::byte*>(device_.biases_of(from, l, h)),
                   4 * slots);
      }
    }
    return all.flush();
  }

 private:
  template <class State>
  static status show_calibrated(Environment const& env, State* to, head_states<State> const& states) {
    if constexpr (std::is_same_v<State, no_state>) {
      static_cast<void>(env), static_cast<void>(to), static_cast<void>(states);
      return {};
    } else {
      static_assert(sizeof(State) % 4 == 0 || alignof(State) < 4);
      auto const bytes = static_cast<std::int64_t>(states.all.size_bytes());
      return upload(env, reinterpret_cast<std::byte*>(to), reinterpret_cast<std::byte const*>(states.all.data()), bytes);
    }
  }

  template <class K, class V>
  status launch(Environment const& env, device_rows<K> const& k, device_rows<V> const& v, append_batch const& batch) {
    if (batch.count == 0) return {};
    if (status const ok = seal<part::keys>(env, k, batch); !ok) return ok;
    if (status const ok = seal<part::values>(env, v, batch); !ok) return ok;
    append_rows_kernel<Recipe, K, V> const rows{device_, k, v, env.status_word(), batch};
    static_assert(sizeof(rows) <= argument_bytes);
    return env.launch(rows, rows.grid());
  }
  template <part Part, class X>
  status seal(Environment const& env, device_rows<X> const& x, append_batch const& batch) {
    using tiles = sealed_tiles<Recipe, Part, X>;
    static_assert(sizeof(tiles) <= argument_bytes);
    return encode_tiles<typename tiles::tile>(env, tiles{device_, x, tiles::has_whole_quads(x), batch}, tiles::count(device_, batch));
  }
};

}  // namespace pith::device
