// SPDX-License-Identifier: Apache-2.0
// Stage "select" as a value: which free slots of a row stay, at most `room` of them. The arithmetic is in the select_*.hpp headers.
//
//   best              the best ones                                        most methods; Scissorhands' "drop the worst" is the same
//   newest            the newest ones, whatever their score                 StreamingLLM (with sinks protected)
//   above             score >= threshold                                    DMS
//   mass              the fewest whose scores sum to `part` of all
//   chance            each with probability clamp(score, 0, 1)
//   best_units<N>     whole pages or chunks of N slots                      Quest, ChunkKV (mean), WindowKV (best half)
//   best_twice        `first` of the room by score, the rest by (score + epsilon) x weight    CriticalKV
//   best_runs         `heavy` of the room by score; of the others one slot of each run of alike neighbours   KVMerger
//   best_groups       whole groups of slots that the caller numbers          LouisKV (mean of clusters), Round Attention (sum of rounds)
//   best_of_all       one ranking over all rows, `floor` in each first      KVzip
//   ladder_steps<S>   LaCache, see select_positional.hpp; the room is the row's capacity, sinks are its own
//
// Of what above, mass and chance name, the best stay if there is no room for all.
#pragma once

#include "pith/policy/select_groups.hpp"
#include "pith/policy/select_pooled.hpp"
#include "pith/policy/select_positional.hpp"
#include "pith/policy/select_runs.hpp"
#include "pith/policy/select_units.hpp"
#include "pith/policy/select_weighted.hpp"
#include "pith/policy/stage.hpp"

namespace pith {

// One row. `seed`, `row` and `births` are for chance, `weights` [slot] for best_twice, `keys` [slot][channels] for best_runs, `groups` for
// best_groups.
struct choose_input {
  std::span<float const> scores;
  std::int64_t room = 0;
  std::uint64_t seed = 0;
  std::int64_t row = 0;
  std::span<std::int64_t const> births{};
  std::span<float const> weights{};
  std::span<float const> keys{};
  std::int64_t channels = 0;
  std::span<std::int64_t const> groups{};
};

enum class chooses : std::uint8_t { by_score, by_place, over_all_rows, by_ladder };

constexpr std::int64_t choose_scratch_bytes(std::int64_t slots) { return select_groups_scratch_bytes(slots); }

namespace choose_detail {

// Keeps the best `room` of the chosen slots; the others become free again.
inline status bound(choose_input const& in, std::span<slot_mark> marks) {
  if (std::count(marks.begin(), marks.end(), chosen_slot) <= std::max<std::int64_t>(in.room, 0)) return {};
  std::replace(marks.begin(), marks.end(), free_slot, passed_slot);
  std::replace(marks.begin(), marks.end(), chosen_slot, free_slot);
  status const ok = select_top(in.scores, marks, in.room);
  std::replace(marks.begin(), marks.end(), passed_slot, free_slot);
  return ok;
}

}  // namespace choose_detail

struct best {
  static constexpr stage kind = stage::select;
  static constexpr chooses by = chooses::by_score;
  status choose(choose_input const& in, std::span<slot_mark> marks, std::span<std::byte>) const {
    return select_top(in.scores, marks, in.room);
  }
};

struct newest {
  static constexpr stage kind = stage::select;
  static constexpr chooses by = chooses::by_place;
  status choose(choose_input const& in, std::span<slot_mark> marks, std::span<std::byte>) const {
    std::int64_t left = in.room;
    for (std::size_t slot = marks.size(); slot-- > 0 && left > 0;)
      if (marks[slot] == free_slot) marks[slot] = chosen_slot, --left;
    return {};
  }
};

struct above {
  static constexpr stage kind = stage::select;
  static constexpr chooses by = chooses::by_score;
  float threshold = 0;
  status choose(choose_input const& in, std::span<slot_mark> marks, std::span<std::byte>) const {
    if (status const ok = select_above(in.scores, marks, threshold); !ok) return ok;
    return choose_detail::bound(in, marks);
  }
};

struct mass {
  static constexpr stage kind = stage::select;
  static constexpr chooses by = chooses::by_score;
  double part = 0.95;
  status choose(choose_input const& in, std::span<slot_mark> marks, std::span<std::byte> scratch) const {
    if (status const ok = select_mass(in.scores, marks, part, scratch); !ok) return ok;
    return choose_detail::bound(in, marks);
  }
};

struct chance {
  static constexpr stage kind = stage::select;
  static constexpr chooses by = chooses::by_score;
  status choose(choose_input const& in, std::span<slot_mark> marks, std::span<std::byte>) const {
    if (status const ok = select_random(in.scores, marks, in.seed, in.row, in.births); !ok) return ok;
    return choose_detail::bound(in, marks);
  }
};

template <std::int64_t Slots = 16>
struct best_units {
  static constexpr stage kind = stage::select;
  static constexpr bool valid = Slots > 0;
  static constexpr chooses by = chooses::by_score;
  unit_score rule = unit_score::mean;
  status choose(choose_input const& in, std::span<slot_mark> marks, std::span<std::byte> scratch) const {
    return select_units(in.scores, marks, even_units{Slots}, rule, in.room, scratch);
  }
};

struct best_twice {
  static constexpr stage kind = stage::select;
  static constexpr chooses by = chooses::by_score;
  static constexpr bool weighs = true;
  double first = 0.5, epsilon = 1e-4;
  status choose(choose_input const& in, std::span<slot_mark> marks, std::span<std::byte> scratch) const {
    return select_twice(in.scores, in.weights, marks, in.room, first, epsilon, scratch);
  }
};

struct best_runs {
  static constexpr stage kind = stage::select;
  static constexpr chooses by = chooses::by_score;
  static constexpr bool by_keys = true;
  double heavy = 0.25;
  status choose(choose_input const& in, std::span<slot_mark> marks, std::span<std::byte> scratch) const {
    return select_runs(in.keys, in.channels, in.scores, marks, in.room, heavy, scratch);
  }
};

struct best_groups {
  static constexpr stage kind = stage::select;
  static constexpr chooses by = chooses::by_score;
  unit_score rule = unit_score::mean;
  status choose(choose_input const& in, std::span<slot_mark> marks, std::span<std::byte> scratch) const {
    return select_groups(in.scores, marks, in.groups, rule, in.room, scratch);
  }
};

struct best_of_all {
  static constexpr stage kind = stage::select;
  static constexpr chooses by = chooses::over_all_rows;
  std::int64_t floor = 0;  // slots of each row, as long as the room allows it
};

template <std::int64_t Span = 16, std::int64_t Overlap = 0>
struct ladder_steps {
  static constexpr stage kind = stage::select;
  static constexpr bool valid = Span > 0 && Overlap >= 0 && Overlap < Span;
  static constexpr chooses by = chooses::by_ladder;
  std::int64_t span = Span, overlap = Overlap, sinks = 4;
};

}  // namespace pith
