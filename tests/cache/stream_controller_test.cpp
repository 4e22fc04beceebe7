// SPDX-License-Identifier: Apache-2.0
// Choices of levels under simulated bandwidth: in time whenever that is possible with what is known, and no worse than that needs.
#include <cmath>
#include <vector>

#include "pith/cache/stream_controller.hpp"
#include "support/catch.hpp"
#include "support/digest.hpp"

using pith::errc;
using pith::stream_controller;

namespace {

// Bytes a second, from each moment on.
struct trace {
  std::vector<std::pair<double, double>> steps;  // from, rate
  double rate(double at) const {
    double out = 0;
    for (auto const& [from, rate] : steps)
      if (at >= from) out = rate;
    return out;
  }
  double next_step(double at) const {
    for (auto const& step : steps)
      if (step.first > at) return step.first;
    return 1e300;
  }
  // Bytes that arrive between two moments.
  double arrived(double from, double to) const {
    double sum = 0;
    while (from < to) {
      double const end = std::min(to, next_step(from));
      sum += (end - from) * rate(from);
      from = end;
    }
    return sum;
  }
  double arrival(double from, double bytes) const {
    while (bytes > 0) {
      double const end = next_step(from), r = rate(from);
      if (r > 0 && bytes <= (end - from) * r) return from + bytes / r;
      if (end >= 1e300) return 1e300;
      bytes -= (end - from) * r;
      from = end;
    }
    return from;
  }
};

struct context {
  std::vector<std::int64_t> bytes, tokens;
  int levels;
  // Chunks of levels that shrink by a third or so each; unequal chunks if asked for.
  context(pith_test::random_bits& random, int chunks, int count, bool equal) : levels(count) {
    for (int c = 0; c < chunks; ++c) {
      double size = equal ? 1e6 : 1e6 * (1.0 + 0.8 * static_cast<double>(random.uniform()));
      tokens.push_back(equal ? 1000 : 1000 + static_cast<std::int64_t>(random() % 1000));
      for (int l = 0; l < levels; ++l, size *= equal ? 0.65 : 0.65 + 0.2 * static_cast<double>(random.uniform()))
        bytes.push_back(static_cast<std::int64_t>(size));
    }
  }
  pith::matrix_view<std::int64_t const> view() const { return {bytes.data(), {static_cast<std::int64_t>(tokens.size()), levels}}; }
  std::int64_t at(std::int64_t c, int l) const { return bytes[static_cast<std::size_t>(c * levels + l)]; }
};

struct run {
  double end = 0;
  double after_first = 0;                         // when the first chunk was there
  std::vector<stream_controller::choice> chosen;  // for each chunk, the last answer
};

// Sends all chunks over the trace. A transfer that has not ended after `poll` seconds is given up if the controller now says otherwise.
run simulate(context const& of, trace const& network, pith::stream_controller_options const& options, double poll = 1e300) {
  auto made = stream_controller::make(of.view(), of.tokens, options);
  REQUIRE(made);
  stream_controller controller = made.value();
  run out;
  for (double now = 0; !controller.done();) {
    std::int64_t const c = controller.chunk();
    auto choice = controller.next(now);
    while (!choice.text) {
      double const bytes = static_cast<double>(of.at(c, choice.level)), end = network.arrival(now, bytes);
      if (end - now <= poll) {
        controller.sent(static_cast<std::int64_t>(bytes), end - now);
        now = end;
        break;
      }
      if (now > 1e6) break;
      controller.sent(static_cast<std::int64_t>(network.arrived(now, now + poll)), poll);
      now += poll;
      choice = controller.next(now);  // what had arrived of it is lost
    }
    if (choice.text) now += static_cast<double>(of.tokens[static_cast<std::size_t>(c)]) * options.seconds_per_token;
    out.chosen.push_back(choice);
    controller.advance();
    if (c == 0) out.after_first = now;
    out.end = now;
  }
  return out;
}

// The least time in which the chunks from `first` on can come at a steady rate.
double least_seconds(context const& of, std::int64_t first, double rate, double seconds_per_token) {
  double sum = 0;
  for (std::int64_t c = first; c < static_cast<std::int64_t>(of.tokens.size()); ++c) {
    double best = seconds_per_token > 0 ? static_cast<double>(of.tokens[static_cast<std::size_t>(c)]) * seconds_per_token : 1e300;
    for (int l = 0; l < of.levels; ++l) best = std::min(best, static_cast<double>(of.at(c, l)) / rate);
    sum += best;
  }
  return sum;
}

}  // namespace

TEST_CASE("stream_controller: at a steady rate the deadline is met whenever that is possible after the first chunk", "[cache][stream]") {
  pith_test::random_bits random(1);
  int met = 0, missed = 0;
  for (int i = 0; i < 4000; ++i) {
    context const of(random, 2 + static_cast<int>(random() % 12), 6, false);
    double const rate = std::exp(13 + 2 * static_cast<double>(random.uniform()));
    pith::stream_controller_options options{.deadline = 10 * std::exp(2 * static_cast<double>(random.uniform()))};
    if (i % 2 == 0) options.seconds_per_token = 1e-3 * std::exp(2 * static_cast<double>(random.uniform()));
    if (i % 3 == 0) options.bytes_per_second = rate;
    run const r = simulate(of, {{{0, rate}}}, options);
    bool const possible = r.after_first + least_seconds(of, 1, rate, options.seconds_per_token) <= options.deadline * (1 - 1e-9);
    if (possible) CHECK(r.end <= options.deadline * (1 + 1e-9));
    if (!possible) CHECK(r.end > options.deadline * (1 - 1e-8));
    if (options.bytes_per_second > 0 && least_seconds(of, 0, rate, options.seconds_per_token) <= options.deadline * (1 - 1e-9))
      CHECK(r.end <= options.deadline * (1 + 1e-9));
    (possible ? met : missed)++;
  }
  CHECK((met > 500 && missed > 500));
}

TEST_CASE("stream_controller: at a steady rate no chunk is worse than the best that would do for all that are left", "[cache][stream]") {
  pith_test::random_bits random(2);
  int used[7] = {};
  for (int i = 0; i < 1000; ++i) {
    context const of(random, 8, 6, true);
    double const rate = 1e6, deadline = 0.5 + 11 * std::abs(static_cast<double>(random.uniform()));
    double const per_token = i % 2 == 0 ? 0 : 2e-3 * std::abs(static_cast<double>(random.uniform())) + 1e-5;
    run const r = simulate(of, {{{0, rate}}}, {.deadline = deadline, .seconds_per_token = per_token, .bytes_per_second = rate});
    double now = 0;
    int before = 6;
    for (std::int64_t c = 0; c < 8; ++c) {
      auto const chosen = r.chosen[static_cast<std::size_t>(c)];
      double const left = deadline - now;
      int best = 6;  // of one kind for all that are left: 0 exact, 6 none
      for (int l = 5; l >= 0; --l)
        if (static_cast<double>((8 - c) * of.at(0, l)) / rate <= left * (1 - 1e-9)) best = l;
      bool const text_fits = per_token > 0 && static_cast<double>((8 - c) * 1000) * per_token <= left * (1 - 1e-9);
      int const quality = chosen.text ? 0 : chosen.level;
      if (text_fits) best = 0;
      if (best < 6) {
        CHECK(quality <= best);
        CHECK(quality <= before);  // and it gets no worse
        before = quality;
      }
      ++used[quality];
      now += chosen.text ? 1000 * per_token : static_cast<double>(of.at(c, chosen.level)) / rate;
    }
  }
  for (int l = 0; l < 6; ++l) CHECK(used[l] > 50);
}

TEST_CASE("stream_controller: after a drop, what is possible at the new rate is done", "[cache][stream]") {
  pith_test::random_bits random(3);
  int checked = 0;
  for (int i = 0; i < 1000; ++i) {
    context const of(random, 12, 6, false);
    double const before = 1e6, after = 1e6 * (0.15 + 0.1 * static_cast<double>(random.uniform())),
                 when = 1 + 2 * std::abs(static_cast<double>(random.uniform()));
    pith::stream_controller_options const options{.deadline = 6 + 12 * std::abs(static_cast<double>(random.uniform())),
                                                  .seconds_per_token = i % 2 == 0 ? 2e-3 : 0,
                                                  .bytes_per_second = before};
    // Replay: at the end of the transfer that came second after the drop the new rate is known.
    auto controller = stream_controller::make(of.view(), of.tokens, options).value();
    trace const network{{{0, before}, {when, after}}};
    double now = 0;
    bool known = false, possible = false;
    while (!controller.done()) {
      std::int64_t const c = controller.chunk();
      if (now >= when && !known && std::abs(controller.estimate() - after) < 1) {
        known = true;
        possible = now + least_seconds(of, c, after, options.seconds_per_token) <= options.deadline * (1 - 1e-9);
        ++checked;
      }
      auto const choice = controller.next(now);
      double const end = choice.text ? now + static_cast<double>(of.tokens[static_cast<std::size_t>(c)]) * options.seconds_per_token
                                     : network.arrival(now, static_cast<double>(of.at(c, choice.level)));
      if (!choice.text) controller.sent(of.at(c, choice.level), end - now);
      now = end;
      controller.advance();
    }
    if (possible) CHECK(now <= options.deadline * (1 + 1e-9));
  }
  CHECK(checked > 300);
}

TEST_CASE("stream_controller: quality comes back with the bandwidth", "[cache][stream]") {
  pith_test::random_bits random(4);
  context const of(random, 20, 6, true);
  run const r = simulate(of, {{{0, 1e6}, {2, 1e5}, {5, 4e6}}}, {.deadline = 20, .bytes_per_second = 1e6});
  int worst = 0;
  for (auto const& c : r.chosen) worst = std::max(worst, c.level);
  CHECK(worst >= 3);
  CHECK(r.chosen.back().level == 0);
  CHECK(r.end <= 20);
}

TEST_CASE("stream_controller: with a margin as wide as the bandwidth swings, what the lowest rate allows is done", "[cache][stream]") {
  pith_test::random_bits random(5);
  int possible = 0;
  for (int i = 0; i < 1000; ++i) {
    context const of(random, 10, 6, false);
    trace network;
    double const low = 4e5, high = 4e5 * (1 + static_cast<double>(i % 5)), period = 0.1 + std::abs(static_cast<double>(random.uniform()));
    for (int s = 0; s < 400; ++s) network.steps.push_back({s * period, s % 2 == 0 ? high : low});
    pith::stream_controller_options const options{
        .deadline = 2 + 20 * std::abs(static_cast<double>(random.uniform())), .bytes_per_second = high, .margin = high / low - 1};
    run const r = simulate(of, network, options);
    if (least_seconds(of, 0, low, 0) > options.deadline) continue;
    ++possible;
    CHECK(r.end <= options.deadline * (1 + 1e-9));
  }
  CHECK(possible > 300);
}

TEST_CASE("stream_controller: when nothing arrives the text is computed, in time if asked in time", "[cache][stream]") {
  pith_test::random_bits random(6);
  context const of(random, 10, 6, true);
  double const per_token = 4e-4;  // 0.4 s a chunk
  for (double const from : {0.0, 0.7, 2.2}) {
    trace const dead{{{0, 1e6}, {from, 0}}}, pause{{{0, 1e6}, {from, 0}, {from + 3, 1e6}}};
    pith::stream_controller_options const options{.deadline = 7, .seconds_per_token = per_token, .bytes_per_second = 1e6, .memory = 0.5};
    CHECK(simulate(of, dead, options, 0.25).end <= 7);
    CHECK(simulate(of, pause, options, 0.25).end <= 7);
  }
  // Without text there is nothing to do but to wait, at the coarsest level, and to take better ones again if time is left.
  run const waited = simulate(of, {{{0, 0}, {3, 1e6}}}, {.deadline = 6, .bytes_per_second = 1e6}, 0.25);
  CHECK(waited.end <= 6);
  CHECK(waited.chosen[0].level == 5);
  CHECK(waited.chosen.back().level < 5);
}

TEST_CASE("stream_controller: without an estimate the first chunk comes at the given level; memory smooths", "[cache][stream]") {
  pith_test::random_bits random(7);
  context const of(random, 3, 6, true);
  auto c = stream_controller::make(of.view(), of.tokens, {.deadline = 100, .memory = 0.5, .first_level = 2}).value();
  CHECK(!c.knows());
  CHECK(c.next(0).level == 2);
  c.sent(1000, 1);
  CHECK(c.estimate() == 1000);
  c.sent(4000, 1);
  CHECK(c.estimate() == 3000);
  c.sent(10, 0);  // no time: nothing learnt
  CHECK(c.estimate() == 3000);
}

TEST_CASE("stream_controller: numbers that make no sense are refused", "[cache][stream]") {
  pith_test::random_bits random(8);
  context of(random, 3, 4, true);
  auto const code = [&](pith::stream_controller_options const& options) {
    return stream_controller::make(of.view(), of.tokens, options).error();
  };
  CHECK(code({.deadline = -1}) == pith::status{errc::out_of_range, -1});
  CHECK(code({.deadline = std::nan("")}) == pith::status{errc::out_of_range, -1});
  CHECK(code({.deadline = 1, .memory = 1}) == pith::status{errc::out_of_range, -1});
  CHECK(code({.deadline = 1, .first_level = 4}) == pith::status{errc::out_of_range, -1});
  of.bytes[5] = -1;
  CHECK(code({.deadline = 1}) == pith::status{errc::out_of_range, 1});
  for (int l = 0; l < 4; ++l) of.bytes[static_cast<std::size_t>(8 + l)] = 0;
  of.bytes[5] = 1;
  CHECK(code({.deadline = 1}) == pith::status{errc::out_of_range, 2});
  CHECK(!code({.deadline = 1, .seconds_per_token = 1}).at);  // there is text
  of.tokens.pop_back();
  CHECK(stream_controller::make({of.bytes.data(), {3, 4}}, of.tokens, {.deadline = 1}).error() == pith::status{errc::shape_mismatch, 3});
}
