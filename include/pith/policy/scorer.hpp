// SPDX-License-Identifier: Apache-2.0
// Stage "scorer": how a slot's signal p becomes its score s over time. Higher stays.
//
//   fresh               s = p                                     SnapKV, TOVA; no memory
//   accumulate          s = s + p,            new slots from 0    H2O
//   decayed             s = factor s + p,     new slots from 0
//   highest             s = max(s, p)                             KVzip
//   at_birth            s = decay s,          new slots s = p     Locret, DMS; SirLLM (decay 0.7 to 1 a turn)
//   ignored_count<W>    s = -#{of the last W steps: p < 1/t}      Scissorhands, t the slots seen at that step
//   last_use            s = step if p > threshold,  new slots s = step          Attendre LRA; exact for 2^24 steps
//   use_count           s = decay s + [p > threshold], new slots from 0         Attendre LFA
//
// Rule C1  The state is the score, one f32 a slot, and `history_words` words of 64 bits a slot. It travels with the slot and belongs to one
//          sequence.
// Rule C2  Slots from `known` on are new: what their state held before is not read.
//
// cost    O(n), ignored_count O(n W / 64); no allocation
// from    Zhang et al., H2O, 2023; Liu et al., Scissorhands, 2023; Yao et al., SirLLM, 2024; Yang and Hua, Attendre, 2024
#pragma once

#include <bit>
#include <cstdint>
#include <span>

#include "pith/policy/stage.hpp"

namespace pith {

// One row at one step. `history` [slot][history_words].
struct scorer_step {
  std::int64_t known = 0;    // slots that have a state
  std::int64_t visible = 0;  // tokens that the newest query saw
  std::int64_t step = 0;     // counts the calls
};

struct fresh {
  static constexpr stage kind = stage::scorer;
  static constexpr std::int64_t history_words = 0;
  void update(std::span<float const> p, std::span<float> s, std::span<std::uint64_t>, scorer_step const&) const {
    for (std::size_t i = 0; i < p.size(); ++i) s[i] = p[i];
  }
};

struct decayed {
  static constexpr stage kind = stage::scorer;
  static constexpr std::int64_t history_words = 0;
  float factor = 0.9f;
  void update(std::span<float const> p, std::span<float> s, std::span<std::uint64_t>, scorer_step const& at) const {
    for (std::size_t i = 0; i < p.size(); ++i) s[i] = (static_cast<std::int64_t>(i) < at.known ? factor * s[i] : 0.0f) + p[i];
  }
};

struct accumulate {
  static constexpr stage kind = stage::scorer;
  static constexpr std::int64_t history_words = 0;
  void update(std::span<float const> p, std::span<float> s, std::span<std::uint64_t> history, scorer_step const& at) const {
    decayed{1.0f}.update(p, s, history, at);
  }
};

struct highest {
  static constexpr stage kind = stage::scorer;
  static constexpr std::int64_t history_words = 0;
  void update(std::span<float const> p, std::span<float> s, std::span<std::uint64_t>, scorer_step const& at) const {
    for (std::size_t i = 0; i < p.size(); ++i)
      if (!(static_cast<std::int64_t>(i) < at.known && s[i] >= p[i])) s[i] = p[i];
  }
};

struct at_birth {
  static constexpr stage kind = stage::scorer;
  static constexpr std::int64_t history_words = 0;
  float decay = 1;
  void update(std::span<float const> p, std::span<float> s, std::span<std::uint64_t>, scorer_step const& at) const {
    for (std::size_t i = 0; i < p.size(); ++i) s[i] = static_cast<std::int64_t>(i) < at.known ? decay * s[i] : p[i];
  }
};

template <std::int64_t Steps = 400>
struct ignored_count {
  static constexpr stage kind = stage::scorer;
  static constexpr bool valid = Steps > 0 && Steps <= 1 << 20;
  static constexpr std::int64_t history_words = (Steps + 63) / 64;
  void update(std::span<float const> p, std::span<float> s, std::span<std::uint64_t> history, scorer_step const& at) const {
    auto const place = static_cast<std::uint64_t>(at.step) % static_cast<std::uint64_t>(Steps);
    std::uint64_t const bit = std::uint64_t{1} << (place % 64);
    float const even = at.visible > 0 ? 1.0f / static_cast<float>(at.visible) : 0.0f;
    for (std::size_t i = 0; i < p.size(); ++i) {
      std::uint64_t* const ring = history.data() + i * static_cast<std::size_t>(history_words);
      if (static_cast<std::int64_t>(i) >= at.known)
        for (std::int64_t w = 0; w < history_words; ++w) ring[w] = 0;
      std::uint64_t& word = ring[place / 64];
      word = p[i] < even ? word | bit : word & ~bit;
      int count = 0;
      for (std::int64_t w = 0; w < history_words; ++w) count += std::popcount(ring[w]);
      s[i] = -static_cast<float>(count);
    }
  }
};

struct last_use {
  static constexpr stage kind = stage::scorer;
  static constexpr std::int64_t history_words = 0;
  float threshold = 0;
  void update(std::span<float const> p, std::span<float> s, std::span<std::uint64_t>, scorer_step const& at) const {
    for (std::size_t i = 0; i < p.size(); ++i)
      if (static_cast<std::int64_t>(i) >= at.known || p[i] > threshold) s[i] = static_cast<float>(at.step);
  }
};

struct use_count {
  static constexpr stage kind = stage::scorer;
  static constexpr std::int64_t history_words = 0;
  float decay = 1, threshold = 0;
  void update(std::span<float const> p, std::span<float> s, std::span<std::uint64_t>, scorer_step const& at) const {
    for (std::size_t i = 0; i < p.size(); ++i)
      s[i] = (static_cast<std::int64_t>(i) < at.known ? decay * s[i] : 0.0f) + (p[i] > threshold ? 1.0f : 0.0f);
  }
};

}  // namespace pith
