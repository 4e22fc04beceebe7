// SPDX-License-Identifier: Apache-2.0
// Stage "trigger": when a policy decides. The engine tells it what has happened, after the step's tokens are committed: what is dropped for
// speculative tokens would be lost for the accepted ones too.
//
//   on_prefill_end    the prompt is in            SnapKV and kin       every_step      a token was decoded, or the prompt is in    H2O
//   on_chunk_end      a chunk of it is in         Locret, Finch        every<N>        each N-th decoded token                     SCOPE
//   on_layer_done     a layer of it is in         CAKE                 over<Slack>     a row exceeds its capacity by more than Slack
//   on_turn_end       an answer is complete       SirLLM               on_page_full<N> the longest row fills pages of N
//   on_drift          the query has turned away   LouisKV, 0.7         on_pressure     little memory is free         Pensieve, 0.25
#pragma once

#include <cstdint>

#include "pith/policy/stage.hpp"

namespace pith {

enum class moment : std::uint8_t { step, layer_done, chunk_end, prefill_end, turn_end };

struct trigger_input {
  moment at = moment::step;
  std::int64_t step = 0;        // tokens decoded so far
  std::int64_t slots = 0;       // of the longest row
  std::int64_t capacity = 0;    // of a row
  double query_similarity = 1;  // cosine with the query of the last decision
  double free_memory = 1;       // part of the pool
};

struct on_prefill_end {
  static constexpr stage kind = stage::trigger;
  bool due(trigger_input const& in) const { return in.at == moment::prefill_end; }
};
struct on_chunk_end {
  static constexpr stage kind = stage::trigger;
  bool due(trigger_input const& in) const { return in.at == moment::chunk_end; }
};
struct on_layer_done {
  static constexpr stage kind = stage::trigger;
  bool due(trigger_input const& in) const { return in.at == moment::layer_done; }
};
struct on_turn_end {
  static constexpr stage kind = stage::trigger;
  bool due(trigger_input const& in) const { return in.at == moment::turn_end; }
};
struct every_step {
  static constexpr stage kind = stage::trigger;
  bool due(trigger_input const& in) const { return in.at == moment::step || in.at == moment::prefill_end; }
};
template <std::int64_t Steps>
struct every {
  static constexpr stage kind = stage::trigger;
  static constexpr bool valid = Steps > 0;
  bool due(trigger_input const& in) const { return in.at == moment::step && in.step > 0 && in.step % Steps == 0; }
};
template <std::int64_t Slack = 0>
struct over {
  static constexpr stage kind = stage::trigger;
  static constexpr bool valid = Slack >= 0;
  std::int64_t slack = Slack;
  bool due(trigger_input const& in) const { return in.slots - slack > in.capacity; }
};
template <std::int64_t Slots>
struct on_page_full {
  static constexpr stage kind = stage::trigger;
  static constexpr bool valid = Slots > 0;
  bool due(trigger_input const& in) const { return in.slots > 0 && in.slots % Slots == 0; }
};
struct on_drift {
  static constexpr stage kind = stage::trigger;
  double similarity = 0.7;
  bool due(trigger_input const& in) const { return in.query_similarity < similarity; }
};
struct on_pressure {
  static constexpr stage kind = stage::trigger;
  double free_memory = 0.25;
  bool due(trigger_input const& in) const { return in.free_memory < free_memory; }
};

}  // namespace pith
