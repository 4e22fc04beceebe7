// SPDX-License-Identifier: Apache-2.0
// One text through one cache under one policy: the context is read with full attention, the policy acts, and more text is fed.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "examples/evaluate.hpp"
#include "held_cache.hpp"
#include "method.hpp"
#include "retrieval.hpp"

namespace example {

// A context that a cache has read, and all that any policy asks about it. Read once, then given to every policy.
struct read_context {
  std::int64_t tokens = 0;
  std::string text;
  std::vector<std::byte> stored;  // the sequence
  std::vector<float> logits;      // of the last token
  std::vector<float> surprisal;   // [token]
  // Attention statistics [layer][query head][token]: of all query rows; of the newest 32, a row weighing as many tokens as it
  // sees in window_weighted_sum; and, of the rows that read the context a second
  // time (KVzip), the maxima, 1 for tokens that were not repeated.
  std::vector<float> all_sum, window_sum, window_square_sum, window_weighted_sum, repeated_maximum;
  // What each value adds to the layer's output: mean over a KV head's query heads of |W_O v|_1, [layer][kv head][token].
  std::vector<float> value_weights;
  // Decode scores of the last `replayed` rows, means over query heads: [row][layer][kv head][token].
  std::int64_t replayed = 0;
  std::vector<float> replay;
  // [layer]
  std::vector<double> entropy, variance, uncertainty, column_variance;
};

inline constexpr std::int64_t observed_window = 32, replayed_rows = 64;

// `repeat` tokens of the context are read a second time behind it, 0: none. The cache needs room for both.
pith::result<read_context> read_through(llama const& model, held_cache& cache, std::string_view context, std::int64_t repeat);

// How much the heads of each (layer, KV head) look at what followed the same byte in earlier copies, on random bytes that are repeated four
// times: the largest mean over the group's query heads (RazorAttention's probe).
pith::result<std::vector<double>> retrieval_scores(llama const& model);

class trial {
 public:
  // most_slots: tokens of the context and of all that is fed. A full cache has no method.start.
  trial(llama const& model, held_cache& cache, read_context const& context, method const& how, setting const& at);

  // Loads the context; the policy acts.
  pith::status begin();

  // Feeds text; visit(i, logits behind text[i]).
  template <class Visit>
  pith::status feed(std::string_view text, Visit&& visit) {
    std::size_t const chunk = steps() ? 1 : 16, vocab = static_cast<std::size_t>(model_.config.vocab);
    for (std::size_t at = 0; at < text.size(); at += chunk) {
      std::string_view const part = text.substr(at, chunk);
      if (pith::status const s = step(part); !s) return s;
      for (std::size_t t = 0; t < part.size(); ++t) visit(at + t, std::span<float const>(logits_).subspan(t * vocab, vocab));
    }
    return {};
  }
  // Whether the likeliest bytes are those of `answer`, each given the right ones before it.
  pith::result<bool> answers(std::string_view answer);

  double mean_bytes() const { return fed_ > 0 ? bytes_ / static_cast<double>(fed_) : static_cast<double>(bytes()); }
  std::int64_t bytes() const { return cache_.resident_bytes() + (reads_ ? reads_->own_bytes() : 0); }
  // Of these, what is not on the host.
  double mean_device_bytes() const { return fed_ > 0 ? device_bytes_ / static_cast<double>(fed_) : static_cast<double>(device_bytes()); }
  // Of what is stored, what a step reads.
  double read() const { return reads_ ? reads_->read() : 1; }
  std::int64_t living() const;  // slots of all heads

 private:
  // Whether tokens are fed one by one.
  bool steps() const { return at_.one_by_one || reads_ || (run_ && run_->what.decodes); }
  std::int64_t device_bytes() const { return reads_ ? reads_->device_bytes() : cache_.resident_bytes(); }

  pith::status step(std::string_view part);
  pith::status attend(int layer, rows_view q, rows_view k, rows_view v, rows_out out);
  pith::status see_context(policy_run& run);
  pith::status see_step(double surprisal);
  pith::status gather();
  pith::status act(policy_run& run);
  pith::status carry_out(policy_run::traits const& what);
  std::span<pith::survivor> living_row(std::int64_t row) {
    return std::span(living_).subspan(static_cast<std::size_t>(row * most_),
                                      static_cast<std::size_t>(length_[static_cast<std::size_t>(row)]));
  }

  llama const& model_;
  held_cache& cache_;
  read_context const& context_;
  method const& how_;
  setting at_;
  std::int64_t most_, rows_, group_;
  std::unique_ptr<policy_run> run_;
  std::unique_ptr<retriever> reads_;  // in place of run_

  std::vector<std::int64_t> offset_, length_;  // [row]
  std::vector<pith::survivor> living_;         // [row][slot], and so are those below
  std::vector<float> bias_, scores_, logit_scratch_, statistic_, keys_, value_weights_;
  std::vector<std::uint8_t> mask_;
  std::vector<std::int64_t> kept_, kept_count_, target_, births_;
  std::vector<float> weight_, plan_bias_, compensation_;

  std::vector<float> logits_, last_;
  llama_scratch scratch_;
  std::int64_t position_ = 0, decoded_ = 0, fed_ = 0;
  double bytes_ = 0, device_bytes_ = 0;
};

}  // namespace example
