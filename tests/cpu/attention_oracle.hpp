// SPDX-License-Identifier: Apache-2.0
// Ragged sequences in packed pages, and their attention in double over the decoded pages.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "laws/inputs.hpp"
#include "pith/codec/block_float.hpp"
#include "pith/codec/float8.hpp"
#include "pith/codec/hadamard.hpp"
#include "pith/cpu/paged_attention.hpp"
#include "support/catch.hpp"

namespace pith_test {

inline float const minus_infinity = pith::bits_float(0xff800000u);

struct aligned_bytes {
  std::vector<std::byte> store;
  std::byte* data;
  explicit aligned_bytes(std::int64_t size, std::byte fill) : store(static_cast<std::size_t>(size) + 64, fill) {
    data = store.data() + (64 - reinterpret_cast<std::uintptr_t>(store.data()) % 64) % 64;
  }
};

// Pages lie in random order among blocks that nobody may read (0xff: every parameter is NaN).
template <class Page>
struct paged_case {
  std::vector<std::int64_t> lengths;
  std::vector<std::int64_t> indptr{0};
  std::vector<std::uint32_t> indices;
  std::vector<std::int32_t> last_page_len;
  std::vector<float> bias;  // [kv_head][pages * Page::tokens], used if not empty
  int kv_heads;
  std::int64_t head_stride = Page::bytes + 64, block_stride, blocks;
  aligned_bytes memory;
  std::vector<std::vector<float>> keys, values;  // decoded, [sequence * kv_heads + head][token][channel]

  paged_case(std::vector<std::int64_t> token_counts, int heads, std::uint64_t seed)
      : lengths(std::move(token_counts)),
        kv_heads(heads),
        block_stride(head_stride * heads + 192),
        blocks(pages_of(lengths) + 3),
        memory(block_stride * blocks, std::byte{0xff}) {
    random_bits random(seed);
    std::vector<std::uint32_t> order(static_cast<std::size_t>(blocks));
    std::iota(order.begin(), order.end(), 0u);
    for (std::size_t i = order.size() - 1; i > 0; --i) std::swap(order[i], order[random() % (i + 1)]);
    for (std::int64_t length : lengths) {
      std::int64_t const pages = (length + Page::tokens - 1) / Page::tokens;
      for (std::int64_t i = 0; i < pages; ++i) indices.push_back(order[indices.size()]);
      indptr.push_back(indptr.back() + pages);
      last_page_len.push_back(static_cast<std::int32_t>(pages == 0 ? 0 : length - (pages - 1) * Page::tokens));
      for (int head = 0; head < heads; ++head) {
        keys.emplace_back(), values.emplace_back();
        for (std::int64_t i = indptr[indptr.size() - 2]; i < indptr.back(); ++i)
          fill(memory.data + indices[static_cast<std::size_t>(i)] * block_stride + head * head_stride, random);
      }
    }
  }

  pith::paged_view<Page> view() const {
    pith::paged_view<Page> pages;
    pages.base = memory.data;
    pages.block_stride = block_stride, pages.head_stride = head_stride, pages.blocks = blocks, pages.kv_heads = kv_heads;
    pages.indptr = indptr, pages.indices = indices, pages.last_page_len = last_page_len;
    if (!bias.empty())
      pages.bias = pith::tensor_view<float const, 2>(bias.data(), {kv_heads, static_cast<std::int64_t>(indices.size()) * Page::tokens});
    return pages;
  }

  // Random biases, one slot in eight removed; every slot of `removed` too.
  void add_bias(std::int64_t removed, std::uint64_t seed) {
    random_bits random(seed);
    std::int64_t const slots = static_cast<std::int64_t>(indices.size()) * Page::tokens;
    for (std::int64_t i = 0; i < kv_heads * slots; ++i) {
      std::int64_t const page = i % slots / Page::tokens;
      bool const gone = random() % 8 == 0 || (removed >= 0 && page >= indptr[static_cast<std::size_t>(removed)] &&
                                              page < indptr[static_cast<std::size_t>(removed) + 1]);
      bias.push_back(gone ? minus_infinity : 2 * gaussian(random));
    }
  }

  float bias_of(std::size_t sequence, int head, std::int64_t slot) const {
    if (bias.empty()) return 0;
    return bias[static_cast<std::size_t>((head * static_cast<std::int64_t>(indices.size()) + indptr[sequence]) * Page::tokens + slot)];
  }

 private:
  static std::int64_t pages_of(std::vector<std::int64_t> const& lengths) {
    std::int64_t pages = 0;
    for (std::int64_t length : lengths) pages += (length + Page::tokens - 1) / Page::tokens;
    return pages;
  }

  void fill(std::byte* page, random_bits& random) {
    using key_tile = typename Page::key_tile;
    using value_tile = typename Page::value_tile;
    auto tiles = [&]<class Tile>(Tile*, std::byte* at, std::vector<float>& decoded) {
      std::vector<float> rows(static_cast<std::size_t>(Tile::tokens) * Tile::channels), back(rows.size());
      for (int t = 0; t < Page::tokens; t += Tile::tokens, at += Tile::bytes) {
        for (std::size_t i = 0; i < rows.size(); ++i) rows[i] = gaussian(random) + static_cast<float>(i % Tile::channels % 5) * 0.25f;
        Tile::encode(rows.data(), at);
        Tile::decode(at, back.data());
        decoded.insert(decoded.end(), back.begin(), back.end());
      }
    };
    tiles(static_cast<key_tile*>(nullptr), page, keys.back());
    tiles(static_cast<value_tile*>(nullptr), page + Page::values_at, values.back());
  }
};

// One call of attention and the same in double.
struct attention_error {
  double worst = 0;  // of an output, in units of its bound for exact accuracy
  double squares = 0, energy = 0;
  double lse = 0;      // largest difference
  int empty_rows = 0;  // rows that see nothing: output exactly 0, lse -infinity or the sink
  int broken = 0;      // rows that break that, outputs that are not finite, numbers outside the view that were touched
  double rms() const { return std::sqrt(squares / energy); }
};

// call(paged_view, q_indptr, q, out, options) -> status
template <class Q, class O, class Page, class Call>
attention_error compare_attention(paged_case<Page> const& pages, std::vector<std::int64_t> const& query_counts, int group,
                                  pith::attention_options options, int channel_step, Call const& call) {
  constexpr int dk = Page::key_channels, dv = Page::value_channels;
  random_bits random(99);
  std::vector<std::int64_t> q_indptr{0};
  for (std::int64_t n : query_counts) q_indptr.push_back(q_indptr.back() + n);
  std::int64_t const tokens = q_indptr.back(), heads = pages.kv_heads * group;

  // Strided: heads before tokens in memory, a gap after every row.
  std::int64_t const q_row = dk * channel_step + 3, o_row = dv * channel_step + 5;
  std::vector<Q> q(static_cast<std::size_t>(heads * tokens * q_row + 1), pith::from_float<Q>(12345.0f));
  std::vector<O> out(static_cast<std::size_t>(heads * tokens * o_row + 1), pith::from_float<O>(-77.0f));
  pith::tensor_view<Q const, 3> const q_view(q.data(), {tokens, heads, dk}, {q_row, tokens * q_row, channel_step});
  pith::tensor_view<O, 3> const out_view(out.data(), {tokens, heads, dv}, {o_row, tokens * o_row, channel_step});
  for (std::int64_t t = 0; t < tokens; ++t)
    for (std::int64_t h = 0; h < heads; ++h)
      for (std::int64_t c = 0; c < dk; ++c)
        q[static_cast<std::size_t>(q_view.offset(t, h, c))] = pith::from_float<Q>(1.5f * gaussian(random));
  std::vector<float> lse(static_cast<std::size_t>(tokens * heads) + 1, 4711.0f);
  options.lse = pith::tensor_view<float, 2>(lse.data(), {tokens, heads});

  pith::status const status = call(pages.view(), q_indptr, q_view, out_view, options);
  REQUIRE(status == pith::status{});

  attention_error error;
  std::size_t written = 0;
  for (O x : out) written += pith::to_float(x) != -77.0f;
  error.broken += written > static_cast<std::size_t>(tokens * heads * dv);

  float const scale = options.scale > 0 ? options.scale : 1 / std::sqrt(static_cast<float>(dk));
  for (std::size_t s = 0; s < pages.lengths.size(); ++s)
    for (std::int64_t i = 0; i < query_counts[s]; ++i)
      for (std::int64_t h = 0; h < heads; ++h) {
        int const kv_head = static_cast<int>(h / group);
        std::vector<float> const &k = pages.keys[s * static_cast<std::size_t>(pages.kv_heads) + static_cast<std::size_t>(kv_head)],
                                 &v = pages.values[s * static_cast<std::size_t>(pages.kv_heads) + static_cast<std::size_t>(kv_head)];
        std::int64_t const row = q_indptr[s] + i, upper = pages.lengths[s] - query_counts[s] + i + 1;
        std::int64_t const lower = options.window > 0 ? std::max<std::int64_t>(0, upper - options.window) : 0;
        std::vector<double> score;
        double peak = -1e300, q_square = 0, k_most = 0, v_most = 0;
        for (int c = 0; c < dk; ++c) q_square += std::pow(pith::to_float(q_view(row, h, c)), 2);
        for (std::int64_t t = lower; t < upper; ++t) {
          double sum = 0;
          for (int c = 0; c < dk; ++c) {
            double const x = k[static_cast<std::size_t>(t * dk + c)];
            sum += pith::to_float(q_view(row, h, c)) * x, k_most = std::max(k_most, std::fabs(x));
          }
          sum *= scale;
          if (options.soft_cap > 0) sum = options.soft_cap * std::tanh(sum / options.soft_cap);
          float const bias = pages.bias_of(s, kv_head, t);
          score.push_back(bias == minus_infinity ? -1e300 : sum + bias);
          peak = std::max(peak, score.back());
        }
        double const sink = options.sink_logits.empty() ? -1e300 : options.sink_logits[static_cast<std::size_t>(h)];
        peak = std::max(peak, sink);
        double total = sink > -1e299 ? std::exp(sink - peak) : 0;
        std::vector<double> expected(static_cast<std::size_t>(dv));
        bool any = false;
        for (std::int64_t t = lower; t < upper; ++t) {
          double const x = score[static_cast<std::size_t>(t - lower)];
          if (x < -1e299) continue;
          any = true;
          double const p = std::exp(x - peak);
          total += p;
          for (int c = 0; c < dv; ++c) {
            double const y = v[static_cast<std::size_t>(t * dv + c)];
            expected[static_cast<std::size_t>(c)] += p * y, v_most = std::max(v_most, std::fabs(y));
          }
        }
        float const made_lse = lse[static_cast<std::size_t>(row * heads + h)];
        if (!any) {
          ++error.empty_rows;
          bool right = sink < -1e299 ? made_lse == minus_infinity : std::fabs(made_lse - sink) <= 1e-6 * (1 + std::fabs(sink));
          for (int c = 0; c < dv; ++c) right = right && pith::to_float(out_view(row, h, c)) == 0;
          error.broken += !right;
          continue;
        }
        error.lse = std::max(error.lse, std::fabs(made_lse - (peak + std::log(total))));
        // f32: a score is off by sixteen roundings of its largest partial sums (a code times its scale is up to 5 times the largest key);
        // twice that in the weights, and as many roundings in the sums as there are tokens.
        double const score_error = 16 * 0x1p-24 * std::sqrt(q_square) * 5 * k_most * scale + 8e-7 * (1 + std::fabs(peak));
        double const bound = (2 * score_error + 16 * 0x1p-24 * std::sqrt(static_cast<double>(upper - lower))) * 5 * v_most;
        for (int c = 0; c < dv; ++c) {
          double const want = expected[static_cast<std::size_t>(c)] / total, got = pith::to_float(out_view(row, h, c));
          double const storing = std::is_same_v<O, float>        ? 0
                                 : std::is_same_v<O, pith::bf16> ? 0x1p-8 * std::fabs(want)
                                                                 : 0x1p-11 * std::fabs(want) + 0x1p-25;
          error.worst = std::max(error.worst, std::fabs(got - want) / (bound + storing));
          error.broken += !std::isfinite(got);
          error.squares += (got - want) * (got - want), error.energy += want * want;
        }
      }
  return error;
}

template <class Accuracy, class Q, class O, class Page>
attention_error run_attention(paged_case<Page> const& pages, std::vector<std::int64_t> const& query_counts, int group,
                              pith::attention_options options = {}, int channel_step = 1) {
  return compare_attention<Q, O>(pages, query_counts, group, options, channel_step,
                                 [](auto const& view, auto const& q_indptr, auto const& q, auto const& out, auto const& asked) {
                                   return pith::paged_attention<Accuracy>(pith::cpu{}, view, q_indptr, q, out, asked);
                                 });
}

}  // namespace pith_test
