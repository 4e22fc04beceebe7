// SPDX-License-Identifier: Apache-2.0
// The key-value cache of a model on a device: the host keeps the books (cache/ledger.hpp), the bytes lie in device memory, the same bytes
// as those of the host's cache.
//
//   struct my_cache : kv_cache<head_dim<64>, keys<int4<per_channel<32>>>, values<int4<per_token<64>>>, on<cuda>> {};
//   cache_shape const shape{.layers = 32, .kv_heads = 8, .query_heads = 32, .max_sequences = 64, .max_tokens = 8192};
//   auto cache = make<my_cache>(env, shape, memory).value();
//   cache.append(env, sequences, layer, k, v, counts);
//
// Calls that touch bytes launch kernels and copies on the environment's stream and return: nothing waits, nothing allocates. What the host
// can know comes back as a status; an error of a launch does too, and leaves the bytes of the sequences that it names unspecified.
//
// Stream   one cache, one stream: what is given back may be taken again by the next call, and only the stream's order keeps kernels that
//          still read it in front of those that write it. Another stream may read behind an event.
// Memory   page tables, layer states and calibrated numbers, which the host has too, in front of the arena's parts (cache/storage.hpp)
// Threads  one call at a time
#pragma once

#include "pith/cuda/cache_attend.hpp"

namespace pith {

template <class Recipe, device::environment Environment>
class device_cache : device::cache_attend<Recipe, Environment> {
  using bytes = device::cache_attend<Recipe, Environment>;
  using bytes::device_;
  using bytes::store_;
  using typename bytes::changes;

 public:
  using typename bytes::page;
  using typename bytes::segments;
  using typename bytes::storage;
  template <class T>
  using rows = tensor_view<T, 3, space::device>;  // [token][kv_head][channel]

  using bytes::attend;  // see cuda/cache_attend.hpp
  using bytes::attention_statistics;
  using bytes::check_truncate;
  using bytes::identity;
  using bytes::length;  // as those of the host's cache
  using bytes::memory;  // addresses in it are the device's
  using bytes::shape;
  using bytes::source;
  using bytes::stored_values;

  // Device memory that make() needs beside the host cache's arena of the same shape.
  static std::int64_t mirror_bytes(cache_shape const& of) { return device::mirror_parts<Recipe>::of(of).total(); }

  // A new, empty sequence.
  // errors  capacity_exceeded  max_sequences are open
  result<sequence> open(Environment const& env) {
    auto const made = bytes::open();
    if (!made) return made;
    changes all(env);
    for (int l = 0; l < store_.shape.layers; ++l) this->show_state(all, made.value().index, l);
    if (status const ok = all.flush(); !ok) {
      static_cast<void>(bytes::close(made.value()));
      return ok;
    }
    return made;
  }

  // Gives back everything that the sequence holds; its handle is stale from then on.
  status close(sequence of) { return bytes::close(of); }

  // A second sequence with the same contents: raw segments are copied, sealed pages shared.
  // cost    the raw bytes, the side arrays in use, a page table
  // errors  stale_handle, capacity_exceeded
  result<sequence> fork(Environment const& env, sequence from) {
    auto const made = this->fork_books(from);
    if (!made) return made;
    if (status const ok = this->copy_sequence(env, made.value().index, from.index); !ok) {
      static_cast<void>(bytes::close(made.value()));
      return ok;
    }
    return made;
  }

  // Adds counts[i] tokens to one layer of sequence which[i], for all of them at once. k [token][kv_head][key channel] and v
  // [token][kv_head][value channel] hold the tokens of the first sequence, then those of the second, and so on; any strides; bf16, f16,
  // f32. Under nan_policy::reject the environment's status word tells of the first row that is not finite; rows are stored all the same.
  //
  // errors  stale_handle, out_of_range (layer, a count below 0; a sequence named twice: `at` is its place), shape_mismatch,
  //         capacity_exceeded (pages or max_tokens; nothing was added to any sequence)
  // cost    two to four launches for each 64 sequences, whatever the counts, and a few more when pages are taken or copied
  template <class K, class V>
  status append(Environment const& env, std::span<sequence const> which, int layer, rows<K> k, rows<V> v,
                std::span<std::int64_t const> counts) {
    if (status const ok = this->check_append(which, layer, k, v, counts); !ok) return ok;
    if (status const ok = this->reserve_all(env, which, layer, counts); !ok) return ok;
    return this->write(env, which, layer, rows<std::remove_const_t<K> const>(k), rows<std::remove_const_t<V> const>(v), counts);
  }

  // Takes the pages that `tokens` more tokens of a layer will need: appending that many then cannot fail for want of them.
  // errors  stale_handle, out_of_range, capacity_exceeded (nothing was taken)
  status reserve_tokens(Environment const& env, sequence of, int layer, std::int64_t tokens) {
    if (status const ok = this->check_reserve(of, layer, tokens); !ok) return ok;
    return this->reserve_all(env, {&of, 1}, layer, {&tokens, 1});
  }

  // The raw rows of a chunk, where attention of the call that brings it reads them; they are not appended. Counts as in append.
  // errors  as append; capacity_exceeded also if a count is above max_chunk
  template <class K, class V>
  status load_chunk(Environment const& env, std::span<sequence const> which, int layer, rows<K> k, rows<V> v,
                    std::span<std::int64_t const> counts) {
    if (status const ok = check_chunk(which, layer, k, v, counts); !ok) return ok;
    return this->write_chunk(env, which, rows<std::remove_const_t<K> const>(k), rows<std::remove_const_t<V> const>(v), counts);
  }

  // Forgets all but the first `tokens` tokens of every layer, as the host's cache does.
  // errors  stale_handle, out_of_range (negative), capacity_exceeded (more than 16 cut tiles in one layer; nothing was changed)
  result<truncation> truncate(Environment const& env, sequence of, std::int64_t tokens) {
    if (status const ok = check_truncate(of, tokens); !ok) return ok;
    changes all(env);
    typename changes::template of<device::cut_rows_kernel<Recipe>> cuts(env, {.memory = device_});
    typename changes::template of<device::reset_side_kernel<Recipe>> sides(env, {.memory = device_});
    truncation const done = this->truncate_books(of.index, tokens, [&](int l, layer_state const& before, std::int64_t kept) {
      layer_state const& now = store_.layer(of.index, l);
      this->show_state(all, of.index, l);
      if (now.slots > kept || Recipe::nan == nan_policy::propagate)
        cuts.add({of.index, l, kept, before.slots, now.slots, now.sealed_keys, now.sealed_values});
      if (now.slots > kept) this->begin_slots(sides, of.index, l, kept, now.slots);
    });
    if (status const ok = all.flush(); !ok) return ok;
    if (status const ok = cuts.flush(); !ok) return ok;
    if (status const ok = sides.flush(); !ok) return ok;
    return done;
  }

  // Removes tokens from one KV head: they are never seen again, and a page without a living slot is given back (unless a fork shares it).
  // errors  stale_handle, out_of_range (layer, head, token; nothing was removed)
  status evict(Environment const& env, sequence of, int layer, int head,
               std::span<std::int64_t const> tokens) requires(Recipe::has_liveness) {
    if (status const ok = this->check_tokens(of, layer, head, tokens); !ok) return ok;
    layer_state const& state = store_.layer(of.index, layer);
    std::uint64_t* const live = this->live_of(of.index, layer, head);
    changes all(env);
    for (std::int64_t const token : tokens) {
      std::int64_t const slot = state.slot_of(token);
      live[slot / 64] &= ~(std::uint64_t{1} << (slot % 64));
      this->drop_page(all, of.index, layer, head, (slot - Recipe::first_tokens) / page::tokens);
    }
    std::int64_t shown = -1;  // a word may be shown twice, with the same value
    for (std::int64_t const token : tokens) {
      std::int64_t const word = state.slot_of(token) / 64;
      if (word != shown) all.words.add({device_.live_of(of.index, layer, head) + word, live[word]});
      shown = word;
    }
    return all.flush();
  }

  // Sets what is added to a token's score in one KV head, natural units.
  // errors  stale_handle, out_of_range, not_finite (NaN or +infinity)
  status set_bias(Environment const& env, sequence of, int layer, int head, std::int64_t token, float value) requires(Recipe::has_bias) {
    if (status const ok = this->check_tokens(of, layer, head, {&token, 1}); !ok) return ok;
    if (status const ok = this->check_bias(token, value); !ok) return ok;
    changes all(env);
    float* const at = device_.biases_of(of.index, layer, head) + store_.layer(of.index, layer).slot_of(token);
    all.tables.add({reinterpret_cast<std::uint32_t*>(at), float_bits(value), 1});
    return all.flush();
  }

  // Attention of chunks of new tokens to their sequences and, causally, to the chunks themselves, raw; then appends the chunks.
  // errors  as attend and append; capacity_exceeded also if a chunk is longer than max_chunk
  template <class Q, class K, class V, storage_scalar O>
  status prefill(Environment const& env, std::span<sequence const> which, int layer, rows<Q> q, rows<K> k, rows<V> v, rows<O> out,
                 std::span<std::int64_t const> counts, device_attention_options const& options = {}) {
    if (status const ok = this->check_attend(which, layer, q, out, counts, options); !ok) return ok;
    if (status const ok = check_chunk(which, layer, k, v, counts); !ok) return ok;
    if (status const ok = this->reserve_all(env, which, layer, counts); !ok) return ok;
    rows<std::remove_const_t<K> const> const keys(k);
    rows<std::remove_const_t<V> const> const values(v);
    if (status const ok = this->write_chunk(env, which, keys, values, counts); !ok) return ok;
    if (status const ok = this->attend_all(env, which, layer, rows<std::remove_const_t<Q> const>(q), out, counts, counts, options); !ok)
      return ok;
    return this->write(env, which, layer, keys, values, counts);
  }

  // Bytes in use, on the device and in the host's books: pages, raw blocks, table runs, calibrated numbers, and what every open sequence
  // holds.
  std::int64_t resident_bytes() const { return bytes::resident_bytes() + this->open_sequences() * this->mirrored_sequence_bytes(); }
  double bits_per_value() const {
    return stored_values() == 0 ? 0.0 : 8.0 * static_cast<double>(resident_bytes()) / static_cast<double>(stored_values());
  }

  device::cache_memory<Recipe> const& device_memory() const { return device_; }

  // See make().
  static result<device_cache> with_memory(Environment const& env, cache_shape const& shape, std::span<std::byte> memory,
                                          calibration<page> const& calibrated) {
    device_cache made;
    if (status const ok = made.set_up(env, shape, memory, calibrated); !ok) return ok;
    return result<device_cache>(std::move(made));  // nvcc does not move by itself here
  }

  device_cache(device_cache&&) noexcept = default;

 private:
  device_cache() = default;

  template <class K, class V>
  status check_chunk(std::span<sequence const> which, int layer, rows<K> k, rows<V> v, std::span<std::int64_t const> counts) {
    if (status const ok = this->check_append(which, layer, k, v, counts); !ok) return ok;
    for (std::int64_t const count : counts)
      if (count > store_.shape.max_chunk) return {errc::capacity_exceeded, store_.shape.max_chunk};
    return {};
  }
};

// The first broken rule speaks alone.
template <class Recipe, bool Calibrated>
consteval bool check_device_cache() {
  if constexpr (!std::is_same_v<typename Recipe::backend, cuda>) {
    static_assert(std::is_same_v<typename Recipe::backend, cuda>,
                  "[pith] make<Recipe>(env, ...): the composition does not run on the device. Fix: add on<cuda> to its slots.");
    return false;
  } else if constexpr (Recipe::has_positions) {
    static_assert(!Recipe::has_positions,
                  "[pith] on<cuda>: side<positions> is not kept on the device. Fix: leave it out; windows count tokens.");
    return false;
  } else if constexpr (Recipe::keeps) {
    static_assert(
        !Recipe::keeps,
        "[pith] on<cuda>: the device's cache keeps every token. Fix: leave out keep<...>; decide() works on the host's copies of scores.");
    return false;
  } else if constexpr (Recipe::has_births) {
    static_assert(!Recipe::has_births, "[pith] on<cuda>: the device's cache is not compacted. Fix: leave out side<births>.");
    return false;
  } else if constexpr (!Calibrated && calibration<typename Recipe::page>::is_needed) {
    static_assert(Calibrated || !calibration<typename Recipe::page>::is_needed,
                  "[pith] make<Recipe>(env, shape, memory): a codec of this composition has calibrated state. Fix: "
                  "make<Recipe>(env, shape, memory, calibration).");
    return false;
  } else if constexpr (!device::has_device_form<typename Recipe::page::key_tile>) {
    return device::check_device_form<typename Recipe::page::key_tile>();
  } else {
    return device::check_device_form<typename Recipe::page::value_tile>();
  }
}

// A cache in the caller's device memory (64-byte aligned), which must outlive it; shape.bytes is not looked at.
// errors  see cache_storage::set_up; shape_mismatch: no max_tokens, which page tables are as long as; capacity_exceeded: no memory
template <class Recipe, device::environment Environment>
result<device_cache<Recipe, Environment>> make(Environment const& env, cache_shape const& shape, std::span<std::byte> memory) {
  if constexpr (check_device_cache<Recipe, false>())
    return device_cache<Recipe, Environment>::with_memory(env, shape, memory, {});
  else
    return status{errc::unsupported, 0};
}

// The same with calibrated numbers for each (layer, KV head), [layer * kv_heads + head], in host memory. They are copied, and never change.
template <class Recipe, device::environment Environment>
result<device_cache<Recipe, Environment>> make(Environment const& env, cache_shape const& shape, std::span<std::byte> memory,
                                               calibration<typename Recipe::page> const& calibrated) {
  if constexpr (check_device_cache<Recipe, true>())
    return device_cache<Recipe, Environment>::with_memory(env, shape, memory, calibrated);
  else
    return status{errc::unsupported, 0};
}

}  // namespace pith
