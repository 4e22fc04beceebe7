// SPDX-License-Identifier: Apache-2.0
// The policies that are judged, and one run of any of them behind virtual calls.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "held_cache.hpp"
#include "pith/policy/decide.hpp"

namespace example {

// One text and one budget.
struct setting {
  std::int64_t layers = 0, kv_heads = 0;
  std::int64_t tokens = 0;              // of the context
  std::int64_t most_slots = 0;          // that a row may ever have
  double budget = 1;                    // part of the context that stays
  bool one_by_one = false;              // feed single tokens, whatever the policy needs
  std::span<double const> retrieval{};  // [row]: how much the head's attention repeats what followed earlier (trial.hpp)

  std::int64_t rows() const { return layers * kv_heads; }
  std::int64_t capacity() const { return static_cast<std::int64_t>(budget * static_cast<double>(tokens)); }
};

class policy_run {
 public:
  struct traits {
    std::int64_t query_rows = 0;  // of the signal
    bool given = false;           // surprisals
    bool maximum = false;         // of the repeated context's rows
    bool replayed = false;        // the scorer counts steps: the context's last rows come one by one
    bool decodes = false;         // acts while tokens are decoded
    bool by_content = false;      // looks at keys
    bool weighted_rows = false;   // of the signal: rows weigh what they see
    bool two_sums = false;        // of the signal: over all rows and over the window
    bool by_value = false;        // slots weigh what their values add to the output
    pith::fate losers = pith::fate::dropped;
    std::int64_t next = 0;  // kept slots that a loser's value goes to

    bool routes() const { return losers == pith::fate::merged || losers == pith::fate::compensated || losers == pith::fate::spread; }
  };

  virtual ~policy_run() = default;
  virtual bool due(pith::trigger_input at) const = 0;
  virtual pith::status observe(pith::policy_rows const& at, pith::policy_statistics const& in) = 0;
  virtual pith::status decide(pith::policy_rows const& at, pith::policy_input const& in, pith::policy_plan& plan) = 0;
  virtual void carry(pith::policy_rows const& at, pith::policy_plan const& plan) = 0;

  traits what;
  std::vector<double> head_table;      // for splits that ask for one
  bool layers_by_column_sums = false;  // D2O's variance, not CAKE's
};

class retriever;
struct retrieval_input;

struct method {
  using starter = std::function<std::unique_ptr<policy_run>(setting const&)>;

  std::string name;
  std::string paper{}, here{};                                                   // its numbers
  starter start{};                                                               // null, and no retrieve either: the full cache
  starter start_of_prompt{};                                                     // another policy for the prompt alone: SCOPE
  std::function<std::unique_ptr<retriever>(retrieval_input const&)> retrieve{};  // in place of start: nothing leaves (retrieval.hpp)
  bool biased = false;                                                           // slots need a bias
  bool crossed = false;                                                          // measured with quantized caches too
  std::vector<storage> only{};                                                   // the caches that it is about, if it is about some

  bool is_full() const { return !start && !retrieve; }
};

// All of recipes.hpp that need no trained scores; the full cache and "newest only" come first.
std::vector<method> const& all_methods();

}  // namespace example
