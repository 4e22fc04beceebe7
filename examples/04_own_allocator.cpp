// SPDX-License-Identifier: Apache-2.0
// An engine that keeps its own pages and block tables takes two things from Pith: the codec's encode and paged_attention.
//
//   page       kv_page<int8, int8, 64, 64, 32>: 32 tokens of one KV head; a block holds the page of every head
//   blocks     the engine's, from a free list of its own, counted so that two sequences can share a prompt
//   tables     CSR, made for each step: indptr, indices, last_page_len
//
// Two ragged sequences share their first 64 tokens. Their attention is compared with attention in double, over the numbers as they were
// and over the numbers as the pages give them back.
#include <pith/pith.hpp>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <memory>
#include <random>
#include <vector>

namespace {

constexpr int head_dim = 64, kv_heads = 2, query_heads = 8, row = kv_heads * head_dim;

using page = pith::kv_page<pith::int8<pith::per_token<64>>, pith::int8<pith::per_token<64>>, head_dim, head_dim, 32>;
using tokens_of = std::vector<float>;  // [token][kv_head][channel]

// ---- the engine's own memory

class block_store {
 public:
  static constexpr std::int64_t block_bytes = kv_heads * page::bytes;  // a multiple of 64, as page::bytes is

  explicit block_store(std::uint32_t blocks) : users_(blocks, 0), memory_(static_cast<std::size_t>(blocks * block_bytes + 64)) {
    void* first = memory_.data();
    std::size_t room = memory_.size();
    base_ = static_cast<std::byte*>(std::align(64, static_cast<std::size_t>(blocks * block_bytes), first, room));
    for (std::uint32_t b = 0; b < blocks; ++b) free_.push_back((b * 5 + 3) % blocks);  // any order: neighbours need not lie together
  }

  std::uint32_t take() {
    std::uint32_t const block = free_.back();  // a real engine evicts here
    free_.pop_back();
    users_[block] = 1;
    return block;
  }
  void share(std::uint32_t block) { ++users_[block]; }
  void give_back(std::uint32_t block) {
    if (--users_[block] == 0) free_.push_back(block);
  }

  std::byte* page_of(std::uint32_t block, int head) { return base_ + block * block_bytes + head * page::bytes; }
  std::byte const* base() const { return base_; }
  std::int64_t blocks() const { return static_cast<std::int64_t>(users_.size()); }
  std::size_t used() const { return users_.size() - free_.size(); }

 private:
  std::vector<int> users_;
  std::vector<std::byte> memory_;
  std::byte* base_ = nullptr;
  std::vector<std::uint32_t> free_;
};

struct sequence {
  std::vector<std::uint32_t> blocks;
  tokens_of keys, values;  // kept only to check the result
  std::int64_t tokens() const { return static_cast<std::int64_t>(keys.size()) / row; }
};

// Encodes tokens into new blocks, the last of them part full: the tile's other rows are zeros, which paged_attention gives weight 0.
// The sequence must end at a page's boundary.
void append(block_store& store, sequence& to, tokens_of const& keys, tokens_of const& values) {
  using key_tile = page::key_tile;
  using value_tile = page::value_tile;
  static_assert(key_tile::tokens == page::tokens && value_tile::tokens == page::tokens, "one tile a page");
  to.keys.insert(to.keys.end(), keys.begin(), keys.end());
  to.values.insert(to.values.end(), values.begin(), values.end());
  auto const tokens = static_cast<int>(keys.size()) / row;
  for (int first = 0; first < tokens; first += page::tokens) {
    to.blocks.push_back(store.take());
    for (int head = 0; head < kv_heads; ++head) {
      float key_rows[page::tokens * head_dim] = {}, value_rows[page::tokens * head_dim] = {};
      for (int t = first; t < std::min(first + page::tokens, tokens); ++t) {
        std::copy_n(&keys[static_cast<std::size_t>(t * row + head * head_dim)], head_dim, key_rows + (t - first) * head_dim);
        std::copy_n(&values[static_cast<std::size_t>(t * row + head * head_dim)], head_dim, value_rows + (t - first) * head_dim);
      }
      std::byte* const at = store.page_of(to.blocks.back(), head);
      key_tile::encode(key_rows, at + page::key_tile_at(0));
      value_tile::encode(value_rows, at + page::value_tile_at(0));
    }
  }
}

// A sequence that begins with the first `pages` pages of another, without a copy of them.
sequence share_prefix(block_store& store, sequence const& from, int pages) {
  sequence made;
  made.blocks.assign(from.blocks.begin(), from.blocks.begin() + pages);
  for (std::uint32_t const block : made.blocks) store.share(block);
  made.keys.assign(from.keys.begin(), from.keys.begin() + pages * page::tokens * row);
  made.values.assign(from.values.begin(), from.values.begin() + pages * page::tokens * row);
  return made;
}

// ---- the check

// What the pages give back: [token][kv_head][channel].
void decode(block_store& store, sequence const& of, tokens_of& keys, tokens_of& values) {
  keys = of.keys, values = of.values;
  for (std::int64_t t = 0; t < of.tokens(); ++t)
    for (int head = 0; head < kv_heads; ++head) {
      float rows[page::tokens * head_dim];
      std::byte const* const at = store.page_of(of.blocks[static_cast<std::size_t>(t / page::tokens)], head);
      page::key_tile::decode(at + page::key_tile_at(0), rows);
      std::copy_n(rows + t % page::tokens * head_dim, head_dim, &keys[static_cast<std::size_t>(t * row + head * head_dim)]);
      page::value_tile::decode(at + page::value_tile_at(0), rows);
      std::copy_n(rows + t % page::tokens * head_dim, head_dim, &values[static_cast<std::size_t>(t * row + head * head_dim)]);
    }
}

// One query head over the first `tokens` tokens.
void plain_attention(float const* q, tokens_of const& keys, tokens_of const& values, std::int64_t tokens, int kv_head, double* out) {
  double weights = 0;
  std::fill_n(out, head_dim, 0.0);
  for (std::int64_t t = 0; t < tokens; ++t) {
    float const* const k = &keys[static_cast<std::size_t>(t * row + kv_head * head_dim)];
    float const* const v = &values[static_cast<std::size_t>(t * row + kv_head * head_dim)];
    double score = 0;
    for (int c = 0; c < head_dim; ++c) score += static_cast<double>(q[c]) * k[c];
    double const weight = std::exp(score / std::sqrt(static_cast<double>(head_dim)));
    weights += weight;
    for (int c = 0; c < head_dim; ++c) out[c] += weight * v[c];
  }
  for (int c = 0; c < head_dim; ++c) out[c] /= weights;
}

tokens_of normal_numbers(std::int64_t tokens, int width, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  tokens_of numbers(static_cast<std::size_t>(tokens * width));
  for (float& x : numbers) x = normal(random);
  return numbers;
}

}  // namespace

int main() {
  block_store store(16);
  sequence first, second;
  append(store, first, normal_numbers(64, row, 1), normal_numbers(64, row, 2));  // the shared prompt: two pages
  second = share_prefix(store, first, 2);
  append(store, first, normal_numbers(77, row, 3), normal_numbers(77, row, 4));
  append(store, second, normal_numbers(5, row, 5), normal_numbers(5, row, 6));
  sequence const* const batch[] = {&first, &second};

  // The block tables of this step.
  std::vector<std::int64_t> indptr{0}, q_indptr{0};
  std::vector<std::uint32_t> indices;
  std::vector<std::int32_t> last_page_len;
  std::int64_t const queries[] = {1, 3};  // the first sequence decodes a token; the second has three new ones
  for (std::size_t s = 0; s < 2; ++s) {
    indices.insert(indices.end(), batch[s]->blocks.begin(), batch[s]->blocks.end());
    indptr.push_back(static_cast<std::int64_t>(indices.size()));
    last_page_len.push_back(static_cast<std::int32_t>((batch[s]->tokens() - 1) % page::tokens + 1));
    q_indptr.push_back(q_indptr.back() + queries[s]);
  }
  pith::paged_view<page> const pages{.base = store.base(), .block_stride = block_store::block_bytes, .head_stride = page::bytes,
                                     .blocks = store.blocks(), .kv_heads = kv_heads, .indptr = indptr, .indices = indices,
                                     .last_page_len = last_page_len};

  tokens_of const q = normal_numbers(q_indptr.back(), query_heads * head_dim, 7);
  tokens_of out(q.size());
  pith::status const done = pith::paged_attention(pith::cpu{}, pages, q_indptr, pith::tensor_view<float const, 3>(q.data(), {4, query_heads, head_dim}),
                                                  pith::tensor_view(out.data(), {4, query_heads, head_dim}));
  if (!done) return std::fprintf(stderr, "%s at %lld\n", pith::message(done.code), static_cast<long long>(done.at)), 1;

  double norm = 0, to_exact = 0, to_decoded = 0;
  for (std::size_t s = 0; s < 2; ++s) {
    tokens_of keys, values;
    decode(store, *batch[s], keys, values);
    for (std::int64_t i = 0; i < queries[s]; ++i)
      for (int head = 0; head < query_heads; ++head) {
        std::int64_t const at = ((q_indptr[s] + i) * query_heads + head) * head_dim, seen = batch[s]->tokens() - queries[s] + i + 1;
        int const kv_head = head / (query_heads / kv_heads);
        double exact[head_dim], decoded[head_dim];
        plain_attention(&q[static_cast<std::size_t>(at)], batch[s]->keys, batch[s]->values, seen, kv_head, exact);
        plain_attention(&q[static_cast<std::size_t>(at)], keys, values, seen, kv_head, decoded);
        for (int c = 0; c < head_dim; ++c) {
          double const x = out[static_cast<std::size_t>(at + c)];
          norm += exact[c] * exact[c];
          to_exact += (x - exact[c]) * (x - exact[c]);
          to_decoded += (x - decoded[c]) * (x - decoded[c]);
        }
      }
  }
  double const compression_error = std::sqrt(to_exact / norm), kernel_error = std::sqrt(to_decoded / norm);
  std::size_t const used = store.used();
  for (sequence const* each : batch)
    for (std::uint32_t const block : each->blocks) store.give_back(block);

  // 64 tokens shared, 77 and 5 of their own: 2 + 3 + 1 blocks. int8 costs about a hundredth; the kernel adds only f32 rounding.
  bool const right = used == 6 && store.used() == 0 && compression_error < 0.02 && kernel_error < 1e-5;
  std::printf("%zu blocks for %lld and %lld tokens, relative error %.4f, of it the kernel's %.1e: %s\n", used,
              static_cast<long long>(first.tokens()), static_cast<long long>(second.tokens()), compression_error, kernel_error,
              right ? "right" : "WRONG");
  return right ? 0 : 1;
}
