// SPDX-License-Identifier: Apache-2.0
// What has left a row as samples: clusters of keys for the denominator of attention, a reservoir of rows for its numerator (stage "fold").
//
//   take     each of the s places of the reservoir becomes (k, v) with probability |v|^2 / (mu + |v|^2); then mu += |v|^2
//            the nearest cluster x has |k - x| <= delta: n += 1, and each of its t samples becomes k with probability 1 / n
//            otherwise k founds a cluster: x = k, all t samples = k, n = 1
//   answer   z = sum over the reservoir  mu / (s |v|^2) e^(scale q k) v;
//            tau = sum over clusters  n / t  sum over its samples e^(scale q k)
//            out = z / tau,   lse = ln tau;   with the kept tokens: merge_attention (page/merge.hpp)
//            with `mean`: out = z / sum over the reservoir  mu / (s |v|^2) e^(scale q k),  a mean of the reservoir's values
//
// Rule G1  E z and E tau are the sums over all rows that were taken. Rows that are equal, or a single one, are answered exactly.
// Rule G2  Random choices hash (seed, row, birth, place): the same rows in the same order leave the same state on every machine.
// Rule G3  There are at most `clusters`. When all are founded, a key beyond delta joins the nearest one, and `crowded` counts it: tau stays
//          right in expectation, its spread grows.
//
// The memory is the caller's; copy() forks. Ties go to the older cluster. Distances and masses in f64, the sum of values in f32.
//
// errors  shape_mismatch; capacity_exceeded (make: `at` is bytes()); not_finite (a key, value or query: its channel; an answer that is too
//         large: -1). Nothing is changed on an error
// cost    take: clusters + s + t rows; answer: 2 s + 2 clusters t products of rows; no allocation
// from    Zandieh et al., SubGen, 2024
// differs numerator and denominator have samples of their own, so z / tau is no mean of values: where scores spread widely it may be as
//         large as e to their spread. `mean`, not the paper's, is biased and bounded. The paper keeps any number of clusters; its
//         experiments replace the stream by an offline k-centre
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "pith/core/scalar.hpp"
#include "pith/core/status.hpp"
#include "pith/policy/random.hpp"
#include "pith/policy/scratch.hpp"

namespace pith {

struct sampled_fold_shape {
  std::int64_t key_channels = 0, value_channels = 0;
  std::int64_t clusters = 32, samples = 4;  // m, t
  std::int64_t reservoir = 32;              // s
  double delta = 1;
  bool mean = false;

  bool valid() const { return key_channels > 0 && value_channels > 0 && clusters > 0 && samples > 0 && reservoir > 0 && delta >= 0; }
};

class sampled_fold {
 public:
  static constexpr std::int64_t bytes(sampled_fold_shape const& of) {
    return lent_memory::bytes<double>(of.reservoir) + lent_memory::bytes<std::int64_t>(of.clusters) +
           lent_memory::bytes<float>((of.reservoir + of.clusters * (1 + of.samples)) * of.key_channels + of.reservoir * of.value_channels);
  }
  // An empty state in the caller's memory. `seed` and `row` choose the samples.
  static result<sampled_fold> make(sampled_fold_shape const& shape, std::span<std::byte> memory, std::uint64_t seed = 0,
                                   std::uint64_t row = 0) {
    if (!shape.valid()) return status{errc::shape_mismatch, shape.clusters};
    sampled_fold made;
    made.shape_ = shape, made.seed_ = mixed_bits(seed) ^ row;
    lent_memory lent(memory);
    std::int64_t const keys = (shape.reservoir + shape.clusters * (1 + shape.samples)) * shape.key_channels;
    if (!lent.take(shape.reservoir, made.norm_) || !lent.take(shape.clusters, made.count_) ||
        !lent.take(keys + shape.reservoir * shape.value_channels, made.numbers_))
      return status{errc::capacity_exceeded, bytes(shape)};
    return made;
  }

  sampled_fold_shape const& shape() const { return shape_; }
  std::int64_t rows() const { return rows_; }          // taken
  std::int64_t clusters() const { return clusters_; }  // founded
  std::int64_t crowded() const { return crowded_; }

  void clear() { rows_ = clusters_ = crowded_ = 0, mass_ = 0; }
  // Becomes what another state of the same shape is.
  status copy(sampled_fold const& from) {
    if (from.numbers_.size() != numbers_.size() || from.count_.size() != count_.size() || from.norm_.size() != norm_.size())
      return {errc::shape_mismatch, static_cast<std::int64_t>(from.numbers_.size())};
    std::copy(from.numbers_.begin(), from.numbers_.end(), numbers_.begin());
    std::copy(from.count_.begin(), from.count_.end(), count_.begin());
    std::copy(from.norm_.begin(), from.norm_.end(), norm_.begin());
    shape_ = from.shape_, seed_ = from.seed_, rows_ = from.rows_, clusters_ = from.clusters_, crowded_ = from.crowded_, mass_ = from.mass_;
    return {};
  }

  // A row leaves; `birth` is its token's number.
  status take(std::span<float const> key, std::span<float const> value, std::int64_t birth) {
    if (status const ok = check(key, shape_.key_channels); !ok) return ok;
    if (status const ok = check(value, shape_.value_channels); !ok) return ok;
    double norm = 0;
    for (float const x : value) norm += static_cast<double>(x) * static_cast<double>(x);
    auto const draw = [&](std::int64_t place) {
      return random_unit(seed_, static_cast<std::uint64_t>(birth), static_cast<std::uint64_t>(place));
    };
    mass_ += norm;
    for (std::int64_t i = 0; i < shape_.reservoir && norm > 0; ++i)
      if (draw(i) < norm / mass_) {
        std::copy(key.begin(), key.end(), sampled_key(i).begin());
        std::copy(value.begin(), value.end(), sampled_value(i).begin());
        norm_[static_cast<std::size_t>(i)] = norm;
      }
    join(key, draw);
    ++rows_;
    return {};
  }

  // Returns lse, natural logarithm.
  result<float> answer(std::span<float const> query, double scale, std::span<float> out) const {
    if (status const ok = check(query, shape_.key_channels); !ok) return ok;
    if (static_cast<std::int64_t>(out.size()) != shape_.value_channels)
      return status{errc::shape_mismatch, static_cast<std::int64_t>(out.size())};
    std::fill(out.begin(), out.end(), 0.0f);
    if (rows_ == 0) return -std::numeric_limits<float>::infinity();
    double most = -std::numeric_limits<double>::infinity(), total = 0;
    each_sample([&](std::span<float const> key, double weight) { most = std::max(most, score(query, key, scale) + std::log(weight)); });
    each_sample([&](std::span<float const> key, double weight) { total += weight * std::exp(score(query, key, scale) - most); });
    double largest = -std::numeric_limits<double>::infinity(), own = 0;
    std::int64_t const places = mass_ > 0 ? shape_.reservoir : 0;
    for (std::int64_t i = 0; i < places; ++i) largest = std::max(largest, log_weight(query, scale, i));
    for (std::int64_t i = 0; i < places; ++i) {
      double const weight = std::exp(log_weight(query, scale, i) - largest);
      own += weight;
      for (std::size_t c = 0; c < out.size(); ++c)
        out[c] = static_cast<float>(static_cast<double>(out[c]) + weight * static_cast<double>(sampled_value(i)[c]));
    }
    double const part = places == 0 ? 0 : shape_.mean ? 1 / own : std::exp(largest - most) / total;
    bool finite = true;
    for (float& x : out) finite = is_finite(x = static_cast<float>(part * static_cast<double>(x))) && finite;
    if (!finite) return status{errc::not_finite, -1};
    return static_cast<float>(most + std::log(total));
  }

 private:
  sampled_fold_shape shape_;
  std::uint64_t seed_ = 0;
  std::span<double> norm_;         // [place of the reservoir]
  std::span<std::int64_t> count_;  // [cluster]
  std::span<float> numbers_;       // keys of the reservoir, centres, samples, values of the reservoir
  double mass_ = 0;                // mu
  std::int64_t rows_ = 0, clusters_ = 0, crowded_ = 0;

  std::span<float> key_at(std::int64_t i) const {
    return numbers_.subspan(static_cast<std::size_t>(i * shape_.key_channels), static_cast<std::size_t>(shape_.key_channels));
  }
  std::span<float> sampled_key(std::int64_t i) const { return key_at(i); }
  std::span<float> centre(std::int64_t c) const { return key_at(shape_.reservoir + c); }
  std::span<float> sample(std::int64_t c, std::int64_t i) const {
    return key_at(shape_.reservoir + shape_.clusters + c * shape_.samples + i);
  }
  std::span<float> sampled_value(std::int64_t i) const {
    std::int64_t const keys = (shape_.reservoir + shape_.clusters * (1 + shape_.samples)) * shape_.key_channels;
    return numbers_.subspan(static_cast<std::size_t>(keys + i * shape_.value_channels), static_cast<std::size_t>(shape_.value_channels));
  }
  status check(std::span<float const> row, std::int64_t channels) const {
    if (static_cast<std::int64_t>(row.size()) != channels) return {errc::shape_mismatch, static_cast<std::int64_t>(row.size())};
    for (std::size_t c = 0; c < row.size(); ++c)
      if (!is_finite(row[c])) return {errc::not_finite, static_cast<std::int64_t>(c)};
    return {};
  }
  static double score(std::span<float const> query, std::span<float const> key, double scale) {
    double dot = 0;
    for (std::size_t c = 0; c < key.size(); ++c) dot += static_cast<double>(query[c]) * static_cast<double>(key[c]);
    return scale * dot;
  }
  double log_weight(std::span<float const> query, double scale, std::int64_t i) const {
    double const norm = norm_[static_cast<std::size_t>(i)];
    return std::log(mass_ / (static_cast<double>(shape_.reservoir) * norm)) + score(query, sampled_key(i), scale);
  }
  template <class F>
  void each_sample(F&& f) const {
    for (std::int64_t c = 0; c < clusters_; ++c)
      for (std::int64_t i = 0; i < shape_.samples; ++i)
        f(sample(c, i), static_cast<double>(count_[static_cast<std::size_t>(c)]) / static_cast<double>(shape_.samples));
  }

  template <class Draw>
  void join(std::span<float const> key, Draw const& draw) {
    std::int64_t nearest = -1;
    double least = std::numeric_limits<double>::infinity();
    for (std::int64_t c = 0; c < clusters_; ++c) {
      double square = 0;
      for (std::size_t i = 0; i < key.size(); ++i) {
        double const x = static_cast<double>(key[i]) - static_cast<double>(centre(c)[i]);
        square += x * x;
      }
      if (square < least) least = square, nearest = c;
    }
    bool const near = nearest >= 0 && std::sqrt(least) <= shape_.delta;
    if (!near && clusters_ < shape_.clusters) {
      std::copy(key.begin(), key.end(), centre(clusters_).begin());
      for (std::int64_t i = 0; i < shape_.samples; ++i) std::copy(key.begin(), key.end(), sample(clusters_, i).begin());
      count_[static_cast<std::size_t>(clusters_++)] = 1;
      return;
    }
    crowded_ += !near;
    double const n = static_cast<double>(++count_[static_cast<std::size_t>(nearest)]);
    for (std::int64_t i = 0; i < shape_.samples; ++i)
      if (draw(shape_.reservoir + i) < 1 / n) std::copy(key.begin(), key.end(), sample(nearest, i).begin());
  }
};

}  // namespace pith
