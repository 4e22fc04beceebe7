// SPDX-License-Identifier: Apache-2.0
// Where a backend plugs into kv_cache: it specialises attention_engine for its tag.
//
//   template <class Page, class Accuracy> struct attention_engine<cpu, Page, Accuracy>
//     static void attend(Source const& source, head_rows const& rows)
//
// A Source shows one KV head of one sequence in segments (design: first, sealed, staging, and the raw chunk of the call). Slots count from
// the sequence's first token. Raw tiles are raw_tile<bf16> of Source::first_tile tokens (first) and of 32 tokens (staging, chunk).
//
//   first_tokens(), first_keys(), first_values()     raw; slots [0, first_tokens)
//   sealed_keys(), sealed_values()                   slots after `first` that are in pages; whole tiles
//   for_each_page(f)                                 f(first slot after `first`, page bytes) for every page with a living slot
//   stored()                                         slots after `first`, sealed and staged
//   staging_keys(slot), staging_values(slot)         the raw tile that holds `slot` (after `first`; a multiple of 32)
//   chunk_tokens(), chunk_keys(i), chunk_values(i)   raw tile that holds token i of the chunk (a multiple of 32); slots follow the stored ones
//   key_state(), value_state()                       calibrated numbers of this head's tiles, or no_state
//   dead(), live(), bias()                           slot ranges that are never seen; a bit, an addend per stored slot, or null
#pragma once

#include <cstdint>
#include <span>

namespace pith {

struct exact_accuracy {};    // decoded values times f32 queries and weights
struct integer_accuracy {};  // integer codes times queries and weights rounded to 8 bits; see dot_integer.hpp, mix_integer.hpp

// Slots [begin, end) of a sequence.
struct slot_range {
  std::int64_t begin = 0, end = 0;
};

// The query rows of one KV head: row r is query token r / group, head r % group of the group.
struct head_rows {
  std::int64_t rows = 0;
  void const* context = nullptr;
  void (*load)(void const* context, std::int64_t row, float* query) = nullptr;                      // as the caller gave it
  float scale = 1;                                                                                  // of its scores, base 2
  void (*save)(void const* context, std::int64_t row, float const* output, float lse) = nullptr;
  void (*limits)(void const* context, std::int64_t row, std::int64_t* lower, std::int64_t* upper) = nullptr;  // slots seen
  float (*sink)(void const* context, std::int64_t row) = nullptr;                                   // or null: no sink logits
  float soft_cap = 0;
  float* logits = nullptr;  // scratch of slot_scores, [row of a pass][logit_stride], or null: no scores
  std::int64_t logit_stride = 0;
  float* scores = nullptr;  // by slot
  float score_decay = 1;
};

template <class Backend, class Page, class Accuracy>
struct attention_engine;

// The backend of a composition that names none; the CPU's header fills it in.
template <class Unnamed = void>
struct default_backend;

}  // namespace pith
