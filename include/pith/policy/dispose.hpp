// SPDX-License-Identifier: Apache-2.0
// Stage "dispose": what becomes of the slots that are not kept, as data. The plan says where each goes; whoever holds the rows carries it
// out with merge_rows.hpp, compensation.hpp and position.hpp.
//
//   drop                      they are gone
//   merge<Route, Weight>      each goes to a kept slot:  Route  nearest_kept, most_similar, own_run
//                                                        Weight by_tokens, by_similarity, by_distance, by_score
//   spread<Next>              its value goes to the next kept slots, in equal parts, if a gate is open; keys and biases stay
//   compensate                all go to one more slot of the row, their mean, with bias ln (how many)
//   fold                      they go into a state that answers queries by itself (kernel_fold.hpp, sampled_fold.hpp)
//   demote<Bits>              they stay, in a codec of so many bits (cache/demotion.hpp)
//   offload                   they move to another tier, whole
//   retrieve                  nothing leaves: the kept list is what the next steps read
//
// For merge and compensate the plan has target [slot], weight [slot] and bias [new slot] (merge_route.hpp, merge_rows.hpp); merging comes
// before demoting. For spread the target is the first of the kept slots that take, and each of them gets weight x value.
//
// errors  those of the routes and weights; shape_mismatch: keys are not there
#pragma once

#include <type_traits>

#include "pith/policy/compensation.hpp"
#include "pith/policy/merge_rows.hpp"
#include "pith/policy/stage.hpp"

namespace pith {

enum class fate : std::uint8_t { dropped, merged, compensated, folded, demoted, offloaded, still_there, spread };

// One row after the selection. keys [slot][channels], positions, bias and scores [slot]: empty where a route or weight does not ask for
// them. `seed`, `row` and `births` are for spread's gate.
struct dispose_input {
  std::span<slot_mark const> marks;
  std::span<float const> keys{};
  std::int64_t channels = 0;
  std::span<std::int64_t const> positions{};
  std::span<float const> bias{};
  std::span<float const> scores{};
  std::uint64_t seed = 0;
  std::int64_t row = 0;
  std::span<std::int64_t const> births{};
};

struct drop {
  static constexpr stage kind = stage::dispose;
  static constexpr fate losers = fate::dropped;
};

struct nearest_kept {
  status route(dispose_input const& in, std::span<std::int64_t> target, std::span<float>) const {
    return route_nearest(in.marks, in.positions, target);
  }
};
struct most_similar {
  double threshold = 0;
  status route(dispose_input const& in, std::span<std::int64_t> target, std::span<float> weight) const {
    return route_most_similar(in.keys, in.channels, in.marks, threshold, target, weight);
  }
};

struct own_run {  // after best_runs
  status route(dispose_input const& in, std::span<std::int64_t> target, std::span<float>) const {
    return route_own_run(in.keys, in.channels, in.marks, target);
  }
};

struct by_tokens {
  status weigh(dispose_input const& in, std::span<std::int64_t const> target, std::int64_t targets, std::span<float> weight,
               std::span<std::byte> scratch) const {
    return mean_weights(target, targets, in.bias, weight, scratch);
  }
};
struct by_similarity {  // after most_similar
  static constexpr bool needs_similarity = true;
  status weigh(dispose_input const&, std::span<std::int64_t const> target, std::int64_t targets, std::span<float> weight,
               std::span<std::byte> scratch) const {
    return similarity_weights(target, targets, weight, scratch);
  }
};
struct by_distance {
  double sigma = 5;
  status weigh(dispose_input const& in, std::span<std::int64_t const> target, std::int64_t targets, std::span<float> weight,
               std::span<std::byte> scratch) const {
    return gaussian_weights(in.keys, in.channels, in.marks, target, targets, sigma, weight, scratch);
  }
};

struct by_score {
  static constexpr bool needs_scores = true;
  status weigh(dispose_input const& in, std::span<std::int64_t const> target, std::int64_t targets, std::span<float> weight,
               std::span<std::byte> scratch) const {
    return score_weights(target, targets, in.scores, weight, scratch);
  }
};

template <class Route = nearest_kept, class Weight = by_tokens>
struct merge {
  static constexpr stage kind = stage::dispose;
  static constexpr fate losers = fate::merged;
  static constexpr bool valid = !requires { Weight::needs_similarity; }
  || std::is_same_v<Route, most_similar>;
  static constexpr bool needs_scores = requires { Weight::needs_scores; };
  Route to{};
  Weight by{};

  status route(dispose_input const& in, std::span<std::int64_t> target, std::span<float> weight, std::span<std::byte> scratch) const {
    if (status const ok = to.route(in, target, weight); !ok) return ok;
    std::int64_t const kept = static_cast<std::int64_t>(in.marks.size()) - free_slots(in.marks);
    return by.weigh(in, target, kept, weight, scratch);
  }
};

struct compensate {
  static constexpr stage kind = stage::dispose;
  static constexpr fate losers = fate::compensated;
  status route(dispose_input const& in, std::span<std::int64_t> target, std::span<float> weight, std::span<std::byte> scratch) const {
    if (status const ok = route_one(in.marks, target); !ok) return ok;
    std::int64_t const kept = static_cast<std::int64_t>(in.marks.size()) - free_slots(in.marks);
    return mean_weights(target, kept + 1, in.bias, weight, scratch);
  }
};

template <std::int64_t Next = 32>
struct spread {
  static constexpr stage kind = stage::dispose;
  static constexpr fate losers = fate::spread;
  static constexpr bool valid = Next > 0, needs_scores = true;
  static constexpr std::int64_t next = Next;
  status route(dispose_input const& in, std::span<std::int64_t> target, std::span<float> weight, std::span<std::byte>) const {
    if (status const ok = route_next(in.marks, target); !ok) return ok;
    return spread_weights(in.marks, in.scores, next, in.seed, in.row, in.births, weight);
  }
};

struct fold {
  static constexpr stage kind = stage::dispose;
  static constexpr fate losers = fate::folded;
};

template <int Bits>
struct demote {
  static constexpr stage kind = stage::dispose;
  static constexpr fate losers = fate::demoted;
  static constexpr bool valid = Bits >= 1 && Bits <= 16;
  static constexpr int bits = Bits;
};

struct offload {
  static constexpr stage kind = stage::dispose;
  static constexpr fate losers = fate::offloaded;
};

struct retrieve {
  static constexpr stage kind = stage::dispose;
  static constexpr fate losers = fate::still_there;
};

}  // namespace pith
