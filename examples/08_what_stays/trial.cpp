// SPDX-License-Identifier: Apache-2.0
#include "trial.hpp"

#include <algorithm>
#include <limits>

namespace example {

namespace {

using number = std::size_t;

}  // namespace

trial::trial(llama const& model, held_cache& cache, read_context const& context, method const& how, setting const& at)
    : model_(model),
      cache_(cache),
      context_(context),
      how_(how),
      at_(at),
      most_(at.most_slots),
      rows_(at.rows()),
      group_(model.config.heads / model.config.kv_heads),
      run_(how.start ? how.start(at) : nullptr) {
  for (std::int64_t r = 0; r < rows_; ++r) offset_.push_back(r * most_);
  length_.assign(static_cast<number>(rows_), context.tokens);
  number const slots = static_cast<number>(rows_ * most_);
  living_.resize(slots), bias_.resize(slots), scores_.resize(slots), mask_.resize(slots);
  statistic_.resize(2 * slots * static_cast<number>(group_));
  logit_scratch_.resize(static_cast<number>(model.config.heads * most_));
  kept_.resize(slots), target_.resize(slots), weight_.resize(slots), plan_bias_.resize(slots);
  kept_count_.resize(static_cast<number>(rows_)), compensation_.resize(static_cast<number>(rows_));
  if (run_ && run_->what.by_value) value_weights_.resize(slots);
  if (run_ && run_->what.next > 0) births_.resize(slots);
  if (run_ && run_->what.by_content) keys_.resize(slots * static_cast<number>(model.config.head_dim));
  if (how.retrieve) reads_ = how.retrieve({model.config, cache, at_, context.text});
}

pith::status trial::begin() {
  position_ = context_.tokens;
  last_ = context_.logits;
  if (pith::status const s = cache_.load(context_.stored); !s) return s;
  if (reads_) return reads_->begin();
  if (!run_) return {};
  std::unique_ptr<policy_run> const of_prompt = how_.start_of_prompt ? how_.start_of_prompt(at_) : nullptr;
  policy_run& run = of_prompt ? *of_prompt : *run_;
  if (pith::status const s = see_context(run); !s) return s;
  bool due = false;
  for (pith::moment const m : {pith::moment::prefill_end, pith::moment::layer_done, pith::moment::chunk_end})
    due = due || run.due({.at = m, .slots = context_.tokens});
  if (pith::status const s = gather(); !s) return s;
  return due ? act(run) : pith::status{};
}

// What the context's own queries say, in the form that the policy asks for.
pith::status trial::see_context(policy_run& run) {
  auto const& what = run.what;
  number const tokens = static_cast<number>(context_.tokens), most = static_cast<number>(most_);
  pith::policy_rows const at{at_.layers, at_.kv_heads, offset_, length_};
  // [row][list][token] to the rows' offsets; all lists of a row are neighbours.
  auto const lay_out = [&](std::vector<float> const& from, number lists, number begin) {
    auto const to = std::span(statistic_).subspan(begin, lists * most * static_cast<number>(rows_));
    for (number r = 0; r < static_cast<number>(rows_); ++r)
      std::copy_n(from.begin() + static_cast<std::ptrdiff_t>(r * lists * tokens), lists * tokens,
                  to.begin() + static_cast<std::ptrdiff_t>(lists * r * most));
    return std::span<float const>(to);
  };
  number const lists = static_cast<number>(group_), second = statistic_.size() / 2;
  pith::policy_statistics in{.lists = group_, .visible = context_.tokens};
  if (what.given) {
    for (number r = 0; r < static_cast<number>(rows_); ++r)
      std::copy(context_.surprisal.begin(), context_.surprisal.end(), statistic_.begin() + static_cast<std::ptrdiff_t>(r * most));
    in.given = std::span(statistic_).first(most * static_cast<number>(rows_)), in.lists = 1;
  } else if (what.maximum) {
    in.maximum = lay_out(context_.repeated_maximum, lists, 0);
  } else if (what.replayed || what.query_rows == 1) {
    in.lists = in.rows = 1;
    std::int64_t const rows = what.replayed ? context_.replayed : 1;
    for (std::int64_t i = context_.replayed - rows; i < context_.replayed; ++i) {
      in.visible = context_.tokens - context_.replayed + i + 1;
      std::fill(length_.begin(), length_.end(), in.visible);
      for (number r = 0; r < static_cast<number>(rows_); ++r)
        std::copy_n(context_.replay.begin() + static_cast<std::ptrdiff_t>((static_cast<number>(i * rows_) + r) * tokens), in.visible,
                    statistic_.begin() + static_cast<std::ptrdiff_t>(r * most));
      in.sum = std::span(statistic_).first(most * static_cast<number>(rows_));
      if (pith::status const s = run.observe(at, in); !s) return s;
    }
    return {};
  } else if (what.query_rows > 0) {
    bool const all = what.query_rows == pith::all_rows;
    if (what.two_sums) in.window_sum = lay_out(context_.window_sum, lists, second);
    if (!all && what.query_rows != observed_window) return {pith::errc::unsupported, what.query_rows};
    std::span<float const> const first = lay_out(all                  ? context_.all_sum
                                                 : what.weighted_rows ? context_.window_weighted_sum
                                                                      : context_.window_sum,
                                                 lists, 0);
    (what.weighted_rows ? in.weighted_sum : in.sum) = first;
    if (!all) in.square_sum = lay_out(context_.window_square_sum, lists, second);
    in.rows = std::min(all ? context_.tokens : observed_window, context_.tokens);
  } else {
    return {};
  }
  return run.observe(at, in);
}

pith::status trial::gather() {
  for (std::int64_t r = 0; r < rows_; ++r) {
    auto const all = std::span(living_).subspan(static_cast<number>(r * most_), static_cast<number>(most_));
    auto const count = cache_.survivors(static_cast<int>(r / at_.kv_heads), static_cast<int>(r % at_.kv_heads), all);
    if (!count) return count.error();
    length_[static_cast<number>(r)] = count.value();
  }
  return {};
}

std::int64_t trial::living() const {
  std::int64_t sum = 0;
  std::vector<pith::survivor> rows(static_cast<number>(most_));
  for (std::int64_t r = 0; r < rows_; ++r)
    if (auto const count = cache_.survivors(static_cast<int>(r / at_.kv_heads), static_cast<int>(r % at_.kv_heads), rows); count)
      sum += count.value();
  return sum;
}

pith::status trial::step(std::string_view part) {
  double const surprisal = run_ && run_->what.given ? surprise_bits(last_, part[0]) : 0;
  if (reads_)
    for (char const c : part) reads_->see(c);
  auto const attention = [this](int layer, rows_view q, rows_view k, rows_view v, rows_out out) { return attend(layer, q, k, v, out); };
  pith::status s = forward(model_, part, static_cast<int>(position_), attention, logits_, scratch_);
  if (!s) return s;
  position_ += static_cast<std::int64_t>(part.size());
  last_.assign(logits_.end() - model_.config.vocab, logits_.end());
  if (run_ && run_->what.decodes) {
    ++decoded_;
    s = see_step(surprisal);
  }
  fed_ += static_cast<std::int64_t>(part.size());
  bytes_ += static_cast<double>(part.size()) * static_cast<double>(bytes());
  device_bytes_ += static_cast<double>(part.size()) * static_cast<double>(device_bytes());
  return s;
}

pith::status trial::attend(int layer, rows_view q, rows_view k, rows_view v, rows_out out) {
  if (q.extent[0] > 1) return cache_.prefill(layer, q, k, v, out, {});
  if (pith::status const s = cache_.append(layer, k, v); !s) return s;
  if (reads_) return reads_->attend(layer, q, k, v, out);
  pith::attention_options options;
  if (run_ && run_->what.decodes && run_->what.query_rows > 0) {
    std::int64_t const heads = at_.kv_heads;
    options.scores = {.sum = {scores_.data() + layer * heads * most_, {heads, most_}},
                      .logits = {logit_scratch_.data(), {heads, group_, most_}},
                      .decay = 0};
  }
  return cache_.attend(layer, q, out, options);
}

// A token was decoded: its attention is the statistics of one row more.
pith::status trial::see_step(double surprisal) {
  if (pith::status const s = gather(); !s) return s;
  auto const& what = run_->what;
  pith::policy_statistics in{.lists = 1, .rows = 1, .visible = position_};
  for (std::int64_t r = 0; r < rows_; ++r) {
    std::int64_t const newest = r * most_ + length_[static_cast<number>(r)] - 1;
    bias_[static_cast<number>(newest)] = 0;
    float* const to = statistic_.data() + r * most_;
    if (what.given) {
      std::fill_n(to, length_[static_cast<number>(r)], static_cast<float>(surprisal));  // those that have a score keep it
    } else {
      auto const row = living_row(r);
      for (number i = 0; i < row.size(); ++i) to[i] = scores_[static_cast<number>(r * most_ + row[i].slot)] / static_cast<float>(group_);
    }
  }
  auto const all = std::span(statistic_).first(static_cast<number>(rows_ * most_));
  (what.given ? in.given : in.sum) = all;
  pith::policy_rows const at{at_.layers, at_.kv_heads, offset_, length_};
  if (what.given || what.query_rows > 0)
    if (pith::status const s = run_->observe(at, in); !s) return s;
  pith::trigger_input now{.step = decoded_, .slots = *std::max_element(length_.begin(), length_.end())};
  bool due = run_->due(now);
  now.at = pith::moment::chunk_end;
  due = due || (decoded_ % 16 == 0 && run_->due(now));
  return due ? act(*run_) : pith::status{};
}

pith::status trial::act(policy_run& run) {
  pith::policy_rows const at{at_.layers, at_.kv_heads, offset_, length_};
  std::int64_t const width = model_.config.head_dim;
  for (std::int64_t r = 0; r < rows_; ++r) {
    auto const row = living_row(r);
    for (number i = 0; i < row.size(); ++i) {
      number const at_slot = static_cast<number>(r * most_) + i;
      mask_[at_slot] = row[i].token < context_.tokens;
      if (run.what.by_value)  // such a policy acts once, on the context
        value_weights_[at_slot] = context_.value_weights[static_cast<number>(r * context_.tokens + row[i].token)];
      if (run.what.next > 0) births_[at_slot] = row[i].token;
    }
    if (!run.what.by_content) continue;
    pith::status const s =
        cache_.read_keys(static_cast<int>(r / at_.kv_heads), static_cast<int>(r % at_.kv_heads), row,
                         std::span(keys_).subspan(static_cast<number>(r * most_ * width), row.size() * static_cast<number>(width)));
    if (!s) return s;
  }
  pith::policy_input const in{.mask = mask_,
                              .budget = {.layers = {.entropy = context_.entropy,
                                                    .variance = run.layers_by_column_sums ? context_.column_variance : context_.variance,
                                                    .uncertainty = context_.uncertainty},
                                         .head_table = run.head_table,
                                         .step = decoded_},
                              .births = births_,
                              .keys = run.what.by_content ? std::span<float const>(keys_) : std::span<float const>{},
                              .channels = run.what.by_content ? width : 0,
                              .bias = how_.biased ? std::span<float const>(bias_) : std::span<float const>{},
                              .value_weights = value_weights_};
  pith::policy_plan plan{.kept = kept_, .kept_count = kept_count_};
  if (run.what.routes()) plan.target = target_, plan.weight = weight_, plan.bias = plan_bias_, plan.compensation_bias = compensation_;
  if (pith::status const s = run.decide(at, in, plan); !s) return s;
  policy_run::traits what = run.what;
  if (what.next > 0 && decoded_ == 0) what.losers = pith::fate::dropped;  // of many losers at once the parts would add up
  if (pith::status const s = carry_out(what); !s) return s;
  run.carry(at, plan);
  std::copy(kept_count_.begin(), kept_count_.end(), length_.begin());
  return {};
}

pith::status trial::carry_out(policy_run::traits const& what) {
  std::vector<std::int64_t> gone, into;
  std::vector<float> weights;
  for (std::int64_t r = 0; r < rows_; ++r) {
    int const layer = static_cast<int>(r / at_.kv_heads), head = static_cast<int>(r % at_.kv_heads);
    auto const row = living_row(r);
    number const begin = static_cast<number>(r * most_);
    std::int64_t& count = kept_count_[static_cast<number>(r)];
    if (count == static_cast<std::int64_t>(row.size())) continue;
    std::int64_t* const kept = kept_.data() + begin;
    if (what.losers == pith::fate::dropped || what.losers == pith::fate::demoted || what.losers == pith::fate::folded) {  // the cache knows
      gone.clear();
      for (std::int64_t i = 0, k = 0; i < static_cast<std::int64_t>(row.size()); ++i)
        if (k < count && kept[k] == i)
          ++k;
        else
          gone.push_back(row[static_cast<number>(i)].token);
      if (pith::status const s = cache_.drop(layer, head, gone); !s) return s;
      continue;
    }
    // Losers go to a kept slot; those that a compensation stands for go to the newest of them, which stays.
    into.assign(row.size(), pith::merge_plan::dropped);
    weights.assign(weight_.begin() + static_cast<std::ptrdiff_t>(begin), weight_.begin() + static_cast<std::ptrdiff_t>(begin + row.size()));
    std::int64_t host = -1;
    for (number i = 0; i < row.size(); ++i)
      if (target_[begin + i] == count) host = static_cast<std::int64_t>(i);
    for (number i = 0; i < row.size(); ++i)
      if (std::int64_t const to = target_[begin + i]; to >= 0) into[i] = to == count ? host : kept[to];
    if (pith::status const s = cache_.merge(layer, head, {.into = into, .weights = weights, .next = what.next}); !s) return s;
    std::copy_n(plan_bias_.begin() + static_cast<std::ptrdiff_t>(begin), count, bias_.begin() + static_cast<std::ptrdiff_t>(begin));
    if (host < 0) continue;
    std::int64_t place = count++;
    for (; place > 0 && kept[place - 1] > host; --place)
      kept[place] = kept[place - 1], bias_[begin + static_cast<number>(place)] = bias_[begin + static_cast<number>(place) - 1];
    kept[place] = host;
    bias_[begin + static_cast<number>(place)] = compensation_[static_cast<number>(r)];
  }
  return {};
}

pith::result<bool> trial::answers(std::string_view answer) {
  bool right = true;
  for (char const digit : answer) {
    right = right && greedy(last_) == digit;
    if (pith::status const s = step(std::string_view(&digit, 1)); !s) return s;
  }
  return right;
}

}  // namespace example
