// SPDX-License-Identifier: Apache-2.0
// What the policy tests compare with: whole sorts in double precision, and inputs with ties, zeros and one-hot rows.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <random>
#include <vector>

#include "pith/policy/ranking.hpp"

namespace oracle {

struct place {
  double score;
  std::int64_t slot, row;
};

// Best first: higher score, newer slot, lower row.
inline void rank(std::vector<place>& places) {
  std::sort(places.begin(), places.end(), [](place const& a, place const& b) {
    if (a.score != b.score) return a.score > b.score;
    if (a.slot != b.slot) return a.slot > b.slot;
    return a.row < b.row;
  });
}

inline std::vector<place> ranked(std::vector<float> const& scores, std::vector<pith::slot_mark> const& marks, std::int64_t row = 0) {
  std::vector<place> out;
  for (std::size_t slot = 0; slot < scores.size(); ++slot)
    if (marks[slot] == pith::free_slot) out.push_back({scores[slot], static_cast<std::int64_t>(slot), row});
  rank(out);
  return out;
}

// The `count` best free slots are chosen.
inline std::vector<pith::slot_mark> top(std::vector<float> const& scores, std::vector<pith::slot_mark> marks, std::int64_t count) {
  auto const places = ranked(scores, marks);
  for (std::int64_t i = 0; i < count && i < static_cast<std::int64_t>(places.size()); ++i)
    marks[static_cast<std::size_t>(places[static_cast<std::size_t>(i)].slot)] = pith::chosen_slot;
  return marks;
}

enum class shape { random, ties, zeros, one_hot, negative, infinite };
inline constexpr shape shapes[] = {shape::random, shape::ties, shape::zeros, shape::one_hot, shape::negative, shape::infinite};

inline std::vector<float> scores(std::mt19937& random, std::int64_t slots, shape of) {
  std::vector<float> out(static_cast<std::size_t>(slots));
  for (float& x : out) {
    float const unit = static_cast<float>(random() % 100000) / 100000.0f;
    switch (of) {
      case shape::random: x = unit; break;
      case shape::ties: x = static_cast<float>(random() % 4); break;
      case shape::zeros: x = random() % 2 == 0 ? 0.0f : -0.0f; break;
      case shape::one_hot: x = 0; break;
      case shape::negative: x = unit - 0.5f; break;
      case shape::infinite: x = random() % 3 == 0 ? -INFINITY : random() % 7 == 0 ? INFINITY : unit; break;
    }
  }
  if (of == shape::one_hot && slots > 0) out[random() % out.size()] = 1;
  return out;
}

inline std::vector<pith::slot_mark> marks(std::mt19937& random, std::int64_t slots) {
  std::vector<pith::slot_mark> out(static_cast<std::size_t>(slots), pith::free_slot);
  for (auto& mark : out)
    if (random() % 4 == 0) mark = static_cast<pith::slot_mark>(1 + random() % 3);
  return out;
}

struct memory : std::vector<std::byte> {
  explicit memory(std::int64_t bytes) : std::vector<std::byte>(static_cast<std::size_t>(bytes)) {}
};

inline std::vector<std::int64_t> kept(std::vector<pith::slot_mark> const& of) {
  std::vector<std::int64_t> out(of.size());
  out.resize(static_cast<std::size_t>(pith::kept_slots(of, out)));
  return out;
}

}  // namespace oracle
