// SPDX-License-Identifier: Apache-2.0
// A device's cache under random calls that depend on the seed alone: two devices that run the same steps have the same memory, byte for byte.
#pragma once

#include <algorithm>
#include <limits>
#include <vector>

#include "pith/cuda/cache.hpp"
#include "tests/support/digest.hpp"

namespace pith_test {

// Numbers to append, [token][head][channel]; some are not finite.
template <class T>
std::vector<T> cache_text(std::uint64_t seed, std::int64_t numbers) {
  random_bits bits(seed);
  std::vector<T> all(static_cast<std::size_t>(numbers));
  for (T& x : all) {
    std::uint64_t const what = bits() % 3000;
    float const number = (bits.uniform() + bits.uniform()) * 3.0f;
    x = pith::from_float<T>(what == 0   ? std::numeric_limits<float>::quiet_NaN()
                            : what == 1 ? -std::numeric_limits<float>::infinity()
                            : what == 2 ? 3e38f
                                        : number);
  }
  return all;
}

template <class Recipe, class Environment, class T>
class cache_steps {
 public:
  static constexpr std::int64_t text_tokens = 2000;
  static constexpr pith::cache_shape shape{.layers = 2, .kv_heads = 3, .query_heads = 3, .bytes = 0, .max_sequences = 6, .max_tokens = 900, .max_chunk = 70};

  static std::int64_t memory_bytes() {
    return pith::device_cache<Recipe, Environment>::mirror_bytes(shape) + pith::cache_storage<Recipe>::fixed_bytes(shape) + 90 * Recipe::page::bytes;
  }

  // k, v: text_tokens rows of every head; in device memory, as `memory` is.
  cache_steps(Environment const& env, pith::device_cache<Recipe, Environment>& cache, T const* k, T const* v, std::uint64_t seed)
      : env_(env), cache_(cache), k_(k), v_(v), bits_(seed) {}

  void step() {
    std::int64_t const what = below(100);
    if (open_.empty() || what < 8) return add(cache_.open(env_));
    auto const at = static_cast<std::size_t>(below(static_cast<std::int64_t>(open_.size())));
    auto const layer = static_cast<int>(below(shape.layers)), head = static_cast<int>(below(shape.kv_heads));
    std::int64_t const size = cache_.length(open_[at], layer);
    if (what < 65) {
      std::vector<std::int64_t> counts;
      std::int64_t all = 0;
      for (std::size_t i = 0; i < open_.size(); ++i) {
        counts.push_back(below(3) == 0 ? below(300) : below(3));
        all += counts.back();
      }
      if (all > text_tokens) return;
      std::int64_t const from = below(text_tokens - all + 1);
      auto const k = rows(k_, Recipe::key_channels, from, all), v = rows(v_, Recipe::value_channels, from, all);
      if (what < 58) return note(cache_.append(env_, open_, layer, k, v, counts));
      note(cache_.load_chunk(env_, open_, layer, k, v, counts));
    } else if (what < 73) {
      add(cache_.fork(env_, open_[at]));
    } else if (what < 83) {
      auto const done = cache_.truncate(env_, open_[at], below(2) == 0 ? below(size + 2) : std::max<std::int64_t>(0, size - below(12)));
      note(done.error());
    } else if (what < 93) {
      if (size == 0) return;
      std::int64_t const from = below(size), to = std::min(size, from + 1 + below(150));
      if constexpr (Recipe::has_liveness) {
        std::vector<std::int64_t> tokens;
        for (std::int64_t t = from; t < to; ++t) tokens.push_back(t);
        note(cache_.evict(env_, open_[at], layer, head, tokens));
      }
      if constexpr (Recipe::has_bias) note(cache_.set_bias(env_, open_[at], layer, head, from, bits_.uniform()));
    } else if (what < 96) {
      note(cache_.reserve_tokens(env_, open_[at], layer, below(200)));
    } else {
      note(cache_.close(open_[at]));
      open_.erase(open_.begin() + static_cast<std::ptrdiff_t>(at));
    }
  }

  // Of everything that was said.
  std::uint64_t said() const { return said_.value(); }
  std::int64_t well() const { return well_; }

 private:
  std::int64_t below(std::int64_t n) { return static_cast<std::int64_t>(bits_() % static_cast<std::uint64_t>(n)); }
  static pith::tensor_view<T const, 3, pith::space::device> rows(T const* first, int channels, std::int64_t from, std::int64_t count) {
    return {first + from * shape.kv_heads * channels, {count, shape.kv_heads, channels}};
  }
  void note(pith::status const& s) {
    said_.add(static_cast<std::uint64_t>(s.code));
    said_.add(s.at);
    well_ += static_cast<bool>(s);
  }
  void add(pith::result<pith::sequence> const& made) {
    note(made.error());
    if (made) open_.push_back(made.value());
  }

  Environment const& env_;
  pith::device_cache<Recipe, Environment>& cache_;
  T const *k_, *v_;
  random_bits bits_;
  std::vector<pith::sequence> open_;
  digest said_;
  std::int64_t well_ = 0;
};

}  // namespace pith_test
