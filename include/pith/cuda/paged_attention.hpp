// SPDX-License-Identifier: Apache-2.0
// Attention on a device as a free function over the caller's own pages: an engine keeps its allocator and scheduler and takes only this.
//
//   out[i] = attention of query token i over the pages of its sequence; the queries of a sequence are its newest tokens, causal
//
// Everything lies in device memory: pages, the table in CSR form, q_indptr, q, out. Lengths are read by the kernels, so that a captured
// graph serves every step; the host knows only how many sequences there are and the most queries that one of them brings.
//
// q       [query token][query head][key channel]     bf16, f16 or f32, any strides
// out     [query token][query head][value channel]
//
// errors  shape_mismatch, out_of_range, misaligned and capacity_exceeded (scratch) before anything is started; what only the device sees
//         comes in the environment's status word: out_of_range, a block id (`at` is its place in indices); such a page counts as if it were
//         not there
// cost    every page is read once for 8 query rows (decoding) or 64 (prefill); three launches, with scores four; no allocation, no
//         synchronisation
// error   exact accuracy: queries, weights and scales of channels as two f16, 2^-20 of the scores' size; integer accuracy: as one, 2^-11
//         (raw<bf16>: 2^-8). See dot_block.hpp, mix_block.hpp
#pragma once

#include "pith/cuda/attention_launch.hpp"
#include "pith/page/paged_view.hpp"

namespace pith {

// paged_view (page/paged_view.hpp) with its arrays in device memory.
template <class Page>
struct device_pages {
  using page = Page;
  std::byte const* base = nullptr;
  std::int64_t block_stride = 0;
  std::int64_t head_stride = 0;
  std::int64_t blocks = 0;  // indices are below it
  int kv_heads = 0;
  std::int64_t sequences = 0;
  std::int64_t const* indptr = nullptr;                               // [sequences + 1]
  std::uint32_t const* indices = nullptr;                             // [pages]
  std::int32_t const* last_page_len = nullptr;                        // [sequences]
  tensor_view<float const, 2, space::device> bias{};                  // [kv_head][pages * Page::tokens], natural units; optional
  state_of<typename Page::key_tile> const* key_states = nullptr;      // [kv_head], if a codec has calibrated numbers
  state_of<typename Page::value_tile> const* value_states = nullptr;  // [kv_head]

  // errors  shape_mismatch, misaligned: what the host can see
  status check() const {
    if (kv_heads <= 0 || sequences < 0) return {errc::shape_mismatch, kv_heads};
    if (status const ok = check_page_strides(base, Page::bytes, block_stride, head_stride, blocks, kv_heads); !ok) return ok;
    if (sequences > 0 && (indptr == nullptr || last_page_len == nullptr)) return {errc::shape_mismatch, sequences};
    if (bias.data != nullptr && (bias.extent[0] != kv_heads || bias.stride[1] != 1)) return {errc::shape_mismatch, bias.extent[0]};
    bool const states = (!is_calibrated<typename Page::key_tile> || key_states != nullptr) &&
                        (!is_calibrated<typename Page::value_tile> || value_states != nullptr);
    return states ? status{} : status{errc::bad_calibration, 0};
  }
};

namespace device {

// A Source (attention_walk.hpp) in which everything is sealed.
template <class Page>
struct page_source {
  static constexpr bool has_raw = false, has_visibility = false, has_bias = true, keys_differ = false;
  static constexpr int first_tile = block_tokens;
  device_pages<Page> pages;
  std::int64_t const* q_indptr;
  std::uint64_t* status_word;

  struct query_range {
    std::int64_t first, count;
  };
  PITH_HD query_range queries(int i) const { return {q_indptr[i], q_indptr[i + 1] - q_indptr[i]}; }
  PITH_HD std::int64_t tokens(int i) const {
    std::int64_t const count = pages.indptr[i + 1] - pages.indptr[i];
    return count <= 0 ? 0 : (count - 1) * Page::tokens + pages.last_page_len[i];
  }
  PITH_HD std::int32_t packed_blocks(int i) const { return static_cast<std::int32_t>((tokens(i) + block_tokens - 1) / block_tokens); }
  PITH_HD std::int32_t raw_blocks(int) const { return 0; }
  PITH_HD void limits(int i, std::int64_t token, std::int64_t window, std::int64_t* lower, std::int64_t* upper) const {
    std::int64_t const to = tokens(i) - queries(i).count + token + 1;
    *upper = to > 0 ? to : 0;
    *lower = window > 0 && *upper > window ? *upper - window : 0;
  }

  struct head {
    page_source const& source;
    std::int64_t first_page, stored_tokens;
    int number;
    PITH_HD std::int64_t first_tokens() const { return 0; }
    PITH_HD std::int64_t stored() const { return stored_tokens; }
    PITH_HD std::int64_t sealed_keys() const { return stored_tokens; }
    PITH_HD std::int64_t sealed_values() const { return stored_tokens; }
    template <class Thread>
    PITH_HD std::byte const* page(Thread& t, std::int64_t index) const {
      device_pages<Page> const& all = source.pages;
      std::uint32_t const block = all.indices[first_page + index];
      if (block >= all.blocks) {
        t.store_once(source.status_word, pack_status({errc::out_of_range, first_page + index}));
        return nullptr;
      }
      return all.base + static_cast<std::int64_t>(block) * all.block_stride + number * all.head_stride;
    }
    PITH_HD std::byte const* staging_keys(std::int64_t) const { return nullptr; }
    PITH_HD std::int64_t index_of(std::int64_t slot) const { return first_page * Page::tokens + slot; }
    PITH_HD bool has_biases() const { return source.pages.bias.data != nullptr; }
    PITH_HD float bias(std::int64_t slot) const { return source.pages.bias.data[number * source.pages.bias.stride[0] + index_of(slot)]; }
    PITH_HD decltype(auto) key_state() const { return state<typename Page::key_tile>(source.pages.key_states); }
    PITH_HD decltype(auto) value_state() const { return state<typename Page::value_tile>(source.pages.value_states); }
    template <class Tile>
    PITH_HD decltype(auto) state(state_of<Tile> const* all) const {
      if constexpr (is_calibrated<Tile>)
        return (all[number]);
      else
        return no_state{};
    }
  };
  PITH_HD head at(int i, int number) const { return {*this, pages.indptr[i], tokens(i), number}; }
};

// What the host can see of a call's shapes.
template <class Page, class Q>
status check_queries(device_pages<Page> const& pages, std::int64_t const* q_indptr, std::int64_t most_queries,
                     tensor_view<Q const, 3, space::device> q, std::type_identity_t<tensor_view<float const, 2, space::device>> lse,
                     device_attention_options const& options) {
  if (status const ok = pages.check(); !ok) return ok;
  if (q.extent[2] != Page::key_channels) return {errc::shape_mismatch, q.extent[2]};
  if (q.extent[1] <= 0 || q.extent[1] % pages.kv_heads != 0) return {errc::shape_mismatch, q.extent[1]};
  if (status const ok = options.check(lse, q.extent[0], q.extent[1]); !ok) return ok;
  if (most_queries < 0 || q_indptr == nullptr) return {errc::out_of_range, most_queries};
  return {};
}

template <class Accuracy, class Page, class Q, class O, class Environment, class... Scores>
status attend_pages(Environment const& env, device_pages<Page> const& pages, std::int64_t const* q_indptr, std::int64_t most_queries,
                    tensor_view<Q const, 3, space::device> q, tensor_view<O, 3, space::device> out, device_attention_options const& options,
                    Scores const&... scores) {
  if constexpr (check_device_page<Page>()) {
    if (status const ok = check_queries(pages, q_indptr, most_queries, q, options.lse, options); !ok) return ok;
    if (out.extent[0] != q.extent[0] || out.extent[1] != q.extent[1] || out.extent[2] != Page::value_channels)
      return {errc::shape_mismatch, out.extent[2]};
    status right;
    ((right = scores.check(pages.kv_heads, most_queries * (q.extent[1] / pages.kv_heads), 0, 1)), ...);
    if (!right) return right;
    using source = page_source<Page>;
    return attention_launch<Page, Accuracy, source, Q, O, Environment>::run(
        env, source{pages, q_indptr, env.status_word()}, {pages.sequences, most_queries, pages.kv_heads}, q, out, options, scores...);
  } else {
    return {errc::unsupported, 0};
  }
}

}  // namespace device

// q_indptr [sequences + 1] in device memory: sequence s has query tokens q_indptr[s] .. q_indptr[s+1] - 1, at most `most_queries`.
template <class Accuracy = exact_accuracy, class Page, storage_scalar Q, storage_scalar O, device::environment Environment>
status paged_attention(cuda, Environment const& env, device_pages<Page> const& pages, std::int64_t const* q_indptr,
                       std::int64_t most_queries, tensor_view<Q const, 3, space::device> q, tensor_view<O, 3, space::device> out,
                       device_attention_options const& options = {}) {
  return device::attend_pages<Accuracy>(env, pages, q_indptr, most_queries, q, out, options);
}

// The same, and scores of slots (slot_scores.hpp), which count as biases do; those of a sequence without queries stay as they are. What is
// not asked for in this way is not compiled in.
template <class Accuracy = exact_accuracy, class Page, storage_scalar Q, storage_scalar O, device::environment Environment>
status paged_attention(cuda, Environment const& env, device_pages<Page> const& pages, std::int64_t const* q_indptr,
                       std::int64_t most_queries, tensor_view<Q const, 3, space::device> q, tensor_view<O, 3, space::device> out,
                       device_attention_options const& options, device_slot_scores const& scores) {
  return device::attend_pages<Accuracy>(env, pages, q_indptr, most_queries, q, out, options, scores);
}

}  // namespace pith
