// SPDX-License-Identifier: Apache-2.0
// Chooses how each chunk of a context comes: as a stream at some level, or as text that the model computes again, so that all is there by a
// deadline.
//
//   seconds(choice) over the chunks that are left:  sum bytes[chunk][level] (1 + margin) / estimate,  or  sum tokens seconds_per_token
//   next = the best choice whose seconds, taken for all chunks that are left, end before the deadline
//          if none does: for this chunk the quickest
//   estimate = bytes / seconds of what was sent, what came before weighs `memory` times less each time; until then `bytes_per_second`
//
// From best to worst: the exact ones (text and lossless, the quicker first), then the levels 1, 2, ... A level with no bytes (0) is not on
// offer. Without an estimate the first chunk comes at first_level.
//
// What follows, as long as chunks take no longer than estimated: if the deadline can be met by any choices for the chunks that are left, it
// is met; and no chunk comes worse than the best level at which all that are left would be in time.
//
// errors  shape_mismatch  counts of chunks differ; out_of_range  a number that is no time, rate or size (at: the chunk, or -1 for an
// option) cost    next: chunks that are left x levels; no allocation from    Liu et al., CacheGen, 2024, section 5.3 and algorithm 1;
// differs: if no single choice is in time the chunk takes its quickest, text
//         included, where the paper takes the coarsest level; a margin; transfers and computing are not taken to overlap (the paper
//         neither)
#pragma once

#include <algorithm>
#include <span>

#include "pith/core/status.hpp"
#include "pith/core/view.hpp"

namespace pith {

struct stream_controller_options {
  double deadline = 0;           // seconds after the start
  double seconds_per_token = 0;  // of computing again; 0: text is not on offer
  double bytes_per_second = 0;   // what is known before; 0: nothing
  double memory = 0;             // in [0, 1); 0: the last transfer alone counts, as published
  double margin = 0;             // of the estimate
  int first_level = 3;
};

class stream_controller {
 public:
  struct choice {
    bool text = false;
    int level = 0;      // if not text
    double finish = 0;  // when all would be there if the rest came the same way; for the quickest, each the quickest way
    bool in_time = false;
  };

  // bytes [chunk][level] and tokens [chunk] must outlive the controller.
  static result<stream_controller> make(matrix_view<std::int64_t const> bytes, std::span<std::int64_t const> tokens,
                                        stream_controller_options const& options) {
    if (bytes.extent[0] != static_cast<std::int64_t>(tokens.size()) || bytes.extent[1] < 1)
      return status{errc::shape_mismatch, bytes.extent[0]};
    auto const size = [](double x) { return x >= 0 && x < 1e100; };
    bool const good = size(options.deadline) && size(options.seconds_per_token) && size(options.bytes_per_second) && size(options.margin) &&
                      options.memory >= 0 && options.memory < 1 && options.first_level >= 0 && options.first_level < bytes.extent[1];
    if (!good) return status{errc::out_of_range, -1};
    for (std::int64_t c = 0; c < bytes.extent[0]; ++c) {
      bool any = options.seconds_per_token > 0;
      for (std::int64_t l = 0; l < bytes.extent[1]; ++l) {
        if (bytes(c, l) < 0) return status{errc::out_of_range, c};
        any = any || bytes(c, l) > 0;
      }
      if (tokens[static_cast<std::size_t>(c)] < 0 || !any) return status{errc::out_of_range, c};
    }
    return stream_controller(bytes, tokens, options);
  }

  std::int64_t chunk() const { return chunk_; }  // the next one
  bool done() const { return chunk_ == bytes_.extent[0]; }
  // Bytes a second, 0 if unknown.
  double estimate() const { return seconds_ > 0 ? sent_ / seconds_ : measured_ ? 0 : options_.bytes_per_second; }
  bool knows() const { return measured_ || options_.bytes_per_second > 0; }

  // For chunk(), `elapsed` seconds after the start. May be asked again for the same chunk, when a transfer stalls.
  choice next(double elapsed) const {
    double const left = options_.deadline - elapsed;
    if (!knows() && bytes_(chunk_, options_.first_level) > 0) return {false, options_.first_level, elapsed, left >= 0};
    double const text = text_seconds(chunk_, bytes_.extent[0]), lossless = seconds(0);
    if (text <= left && text <= lossless) return {true, 0, elapsed + text, true};
    if (lossless <= left) return {false, 0, elapsed + lossless, true};
    if (text <= left) return {true, 0, elapsed + text, true};
    for (int level = 1; level < levels(); ++level)
      if (double const all = seconds(level); all <= left) return {false, level, elapsed + all, true};
    choice out = quickest(chunk_);
    double all = 0;
    for (std::int64_t c = chunk_; c < bytes_.extent[0]; ++c) all += quickest(c).finish;
    out.finish = elapsed + all;
    out.in_time = all <= left;
    return out;
  }

  // What a transfer brought; also a part of a chunk, or nothing for a while.
  void sent(std::int64_t bytes, double seconds) {
    if (!(seconds > 0)) return;
    sent_ = options_.memory * sent_ + static_cast<double>(bytes);
    seconds_ = options_.memory * seconds_ + seconds;
    measured_ = true;
  }
  // chunk() is there.
  void advance() { chunk_ += !done(); }

 private:
  stream_controller(matrix_view<std::int64_t const> bytes, std::span<std::int64_t const> tokens, stream_controller_options const& options)
      : bytes_(bytes), tokens_(tokens), options_(options) {}

  static constexpr double never = 1e200;  // no infinity: compiler flags may forbid them
  int levels() const { return static_cast<int>(bytes_.extent[1]); }

  double text_seconds(std::int64_t first, std::int64_t end) const {
    if (options_.seconds_per_token <= 0) return never;
    double sum = 0;
    for (std::int64_t c = first; c < end; ++c)
      sum += static_cast<double>(tokens_[static_cast<std::size_t>(c)]) * options_.seconds_per_token;
    return sum;
  }
  double chunk_seconds(std::int64_t c, int level) const {
    double const rate = estimate();
    return bytes_(c, level) > 0 && rate > 0 ? static_cast<double>(bytes_(c, level)) * (1 + options_.margin) / rate : never;
  }
  double seconds(int level) const {
    double sum = 0;
    for (std::int64_t c = chunk_; c < bytes_.extent[0]; ++c) sum += chunk_seconds(c, level);
    return sum;
  }
  // finish: its seconds.
  choice quickest(std::int64_t c) const {
    choice best{options_.seconds_per_token > 0, 0, text_seconds(c, c + 1), false};
    std::int64_t least = 0;
    for (int level = 0; level < levels(); ++level) {
      if (bytes_(c, level) <= 0) continue;
      bool const first = !best.text && least == 0;  // with no rate at all: the fewest bytes
      if (chunk_seconds(c, level) < best.finish || first || (!best.text && bytes_(c, level) < least))
        best = {false, level, chunk_seconds(c, level), false}, least = bytes_(c, level);
    }
    return best;
  }

  matrix_view<std::int64_t const> bytes_;
  std::span<std::int64_t const> tokens_;
  stream_controller_options options_;
  std::int64_t chunk_ = 0;
  double sent_ = 0, seconds_ = 0;
  bool measured_ = false;
};

}  // namespace pith
