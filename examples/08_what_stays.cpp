// SPDX-License-Identifier: Apache-2.0
// What stays when a cache must not grow: the published policies of pith/policy/recipes.hpp on the shipped language model. Held-out loss and
// recall against resident bytes: rows leave the cache, and compaction gives their pages back.
//
//   08_what_stays                          a few windows and passages, all policies
//   08_what_stays --full --html what.html  as many as give narrow errors
//   08_what_stays --full --filter SnapKV H2O --add what.json   some policies, beside what an earlier run has of the others
//   08_what_stays --check                  a whole capacity changes nothing, half of one frees bytes
//
// Protocol. A context is read with full attention. Then the policy acts, on the attention that the context's own queries gave, layer by
// layer and head by head; what it gives up is evicted or merged, and the pages are compacted. Then text behind the context is fed:
//
//   loss     the next bytes of the held-out text; a policy that acts while decoding sees one byte at a time, by decode scores, and keeps
//            its capacity; the others take chunks of 16 and let the cache grow, as published. Bytes are the mean over these bytes, so that
//            the two kinds can be compared
//   blind    the context states numbers; one of them is asked for after the policy has acted, so that nothing knew the question
//   first    the question is read with the context, but for its last byte, so that it lies in the observation window
//   second   then another number is asked for, from what the first question left
//
// Answers are four digits, right if each is the likeliest byte behind the right ones before it. Changes of loss are paired with the full
// bf16 cache, window by window, with the standard error of their mean; recall has that of a share.
//
// Budgets are parts of the context's slots of each (layer, KV head), protected ones included. Windows W count bytes, as the papers' count
// tokens. Differences from the papers, beside those that the policies' headers name: positions stay as they were (a trained range is never
// left, and stored keys are rotated already); CAKE decides once, for all layers; D2O's gate stays open; Elastic Cache does not act while
// decoding; CaM drops what the context loses, and spreads while decoding. Of methods that retrieve nothing leaves, so their bytes are all
// of them and what they choose by (08_what_stays/retrieval.cpp); `read` is the part of the stored numbers that a step reads, both to choose
// and to attend, and `on device` leaves out what a method keeps on a host. They have no dense layers where that is not the method, and a
// second copy's bytes count.
//
// MiKV's other tokens are in int4 or int2; "bytes 4" and "bytes 8" keep as many quantized tokens as the budget's bf16 tokens take bytes;
// what leaves SubGen's window is sampled; MiniCache's deeper layers share directions, by the tokens, and have no budget.
//
// Not judged: Locret and DMS need trained scores, LESS trained maps. CHAI shares keys of heads, and grouped queries share them already.
#include <CLI/CLI.hpp>
#include <atomic>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <mutex>
#include <thread>

#include "08_what_stays/table.hpp"
#include "08_what_stays/trial.hpp"

#ifndef PITH_SOURCE_DIR
#define PITH_SOURCE_DIR "."
#endif

namespace {

using namespace example;

struct plan_row {
  method const* how;
  storage where;
  double budget;
};

// Two facts in a context, and how each is asked for.
struct two_questions {
  std::string context{}, question[2], answer[2];
};

struct study {
  llama model;
  std::vector<double> retrieval;
  std::string held_out;
  int context = 1024, fed = 256;
  std::vector<std::string_view> windows;
  std::vector<two_questions> passages;
  std::vector<plan_row> rows;
};

// Of one row and one text.
struct outcome {
  pith::status failure;
  double bits = 0, mean_bytes = 0, device_bytes = 0, bytes_after = 0, kept = 0, read = 1;
  bool right[3] = {};
};

bool read_file(std::string const& path, std::string& content) {
  std::ifstream file(path, std::ios::binary);
  content.assign(std::istreambuf_iterator<char>(file), {});
  return static_cast<bool>(file);
}

// recall_passages with text before them, so that all contexts have one length, and a second fact out of those that were set into them. Adds
// `count` of them.
void add_passages(std::string_view text, int length, int distance, int count, std::vector<two_questions>& out) {
  std::size_t const all = out.size() + static_cast<std::size_t>(count);
  for (recall_passage const& p : recall_passages(text, distance, 4, 2 * count)) {
    std::size_t const ask = p.prompt.rfind('\n') + 1;
    two_questions made{.question = {p.prompt.substr(ask), ""}, .answer = {p.answer, ""}};
    made.context = std::string(text.substr(out.size() * 997, static_cast<std::size_t>(length) - ask)) + p.prompt.substr(0, ask);
    std::string const opening = "\nthe number of ", middle = " is ";
    for (std::size_t at = made.context.find(opening); at != std::string::npos && made.answer[1].empty();
         at = made.context.find(opening, at + 1)) {
      std::size_t const is = made.context.find(middle, at), digits = is + middle.size();
      if (is == std::string::npos || is > at + 24 || digits + 6 > made.context.size()) continue;
      std::string const question = made.context.substr(at + 1, digits - at - 1), answer = made.context.substr(digits, 4);
      bool const whole = answer.find_first_not_of("0123456789") == std::string::npos && made.context.compare(digits + 4, 2, ".\n") == 0;
      if (whole && question != made.question[0]) made.question[1] = question, made.answer[1] = answer;
    }
    if (!made.answer[1].empty() && out.size() < all) out.push_back(std::move(made));
  }
}

setting setting_of(study const& s, plan_row const& row, std::int64_t tokens, std::int64_t more) {
  return {.layers = s.model.config.layers,
          .kv_heads = s.model.config.kv_heads,
          .tokens = tokens,
          .most_slots = tokens + more,
          .budget = row.budget,
          .retrieval = s.retrieval};
}

// Tokens that are read a second time: KVzip's, where a row asks for them and the model's context has room.
std::int64_t repeated(study const& s, storage where, std::int64_t context, std::int64_t tokens) {
  bool const wanted =
      std::any_of(s.rows.begin(), s.rows.end(), [&](plan_row const& r) { return r.where == where && r.how->name == "KVzip"; });
  return wanted ? std::min<std::int64_t>(context, s.model.config.context - tokens) : 0;
}

// f(number, row) for each row of one kind of cache.
template <class F>
void for_rows(study const& s, storage where, F const& f) {
  for (std::size_t i = 0; i < s.rows.size(); ++i)
    if (s.rows[i].where == where) f(i, s.rows[i]);
}

void measure_loss(study const& s, storage where, std::size_t window, std::vector<std::vector<outcome>>& out) {
  std::string_view const text = s.windows[window], context = text.substr(0, static_cast<std::size_t>(s.context));
  std::int64_t const most = s.context + s.fed;
  auto const reader = make_held_cache(where, s.model.config, 2 * s.context), judged = make_held_cache(where, s.model.config, most);
  pith::status const memory = reader && judged ? pith::status{} : pith::status{pith::errc::capacity_exceeded, most};
  auto const read =
      memory ? read_through(s.model, *reader, context, repeated(s, where, s.context, s.context)) : pith::result<read_context>(memory);
  for_rows(s, where, [&](std::size_t i, plan_row const& row) {
    outcome& to = out[i][window];
    if (!read) return static_cast<void>(to.failure = read.error());
    trial one(s.model, *judged, read.value(), *row.how, setting_of(s, row, s.context, s.fed));
    to.failure = one.begin();
    if (!to.failure) return;
    to.bytes_after = static_cast<double>(one.bytes());
    to.kept = static_cast<double>(one.living()) / static_cast<double>(s.context * s.model.config.layers * s.model.config.kv_heads);
    std::string_view const rest = text.substr(static_cast<std::size_t>(s.context));
    to.failure = one.feed(rest.substr(0, static_cast<std::size_t>(s.fed)),
                          [&](std::size_t t, std::span<float const> logits) { to.bits += surprise_bits(logits, rest[t + 1]) / s.fed; });
    to.mean_bytes = one.mean_bytes(), to.device_bytes = one.mean_device_bytes(), to.read = one.read();
  });
}

void measure_recall(study const& s, storage where, std::size_t passage, std::vector<std::vector<outcome>>& out) {
  two_questions const& p = s.passages[passage];
  auto const context = static_cast<std::int64_t>(p.context.size());
  std::string const& first = p.question[0];
  std::string const known = first.substr(0, first.size() - 1), last = first.substr(first.size() - 1);
  std::int64_t const more = static_cast<std::int64_t>(first.size() + p.question[1].size()) + 16;
  auto const reader = make_held_cache(where, s.model.config, 2 * context + more),
             judged = make_held_cache(where, s.model.config, context + more);
  pith::status const memory = reader && judged ? pith::status{} : pith::status{pith::errc::capacity_exceeded, context};
  auto const ignore = [](std::size_t, std::span<float const>) {};
  for (bool const blind : {true, false}) {
    std::string const text = blind ? p.context : p.context + known;
    auto const tokens = static_cast<std::int64_t>(text.size());
    auto const read =
        memory ? read_through(s.model, *reader, text, repeated(s, where, context, tokens)) : pith::result<read_context>(memory);
    for_rows(s, where, [&](std::size_t i, plan_row const& row) {
      outcome& to = out[i][passage];
      if (!to.failure) return;
      if (!read) return static_cast<void>(to.failure = read.error());
      trial one(s.model, *judged, read.value(), *row.how, setting_of(s, row, tokens, context + more - tokens));
      auto const ask = [&](std::string const& question, std::string const& answer, bool& right) {
        if (to.failure) to.failure = one.feed(question, ignore);
        if (!to.failure) return;
        auto const answered = one.answers(answer);
        to.failure = answered.error();
        right = answered && answered.value();
      };
      to.failure = one.begin();
      if (blind) return ask(first, p.answer[0], to.right[0]);
      ask(last, p.answer[0], to.right[1]);
      ask(".\n" + p.question[1], p.answer[1], to.right[2]);
    });
  }
}

std::vector<plan_row> plan(std::vector<double> const& budgets, std::vector<std::string> const& names) {
  std::vector<plan_row> out;
  auto const wanted = [&](method const& m) {
    return names.empty() ||
           std::any_of(names.begin(), names.end(), [&](auto const& name) { return m.name.find(name) != std::string::npos; });
  };
  for (storage const where : {storage::bf16, storage::int8, storage::int4, storage::kivi2})
    for (method const& m : all_methods()) {
      if (where != storage::bf16 && !m.crossed) continue;
      if (!m.only.empty()) continue;
      if (!m.is_full() && !wanted(m)) continue;
      if (m.is_full()) {
        out.push_back({&m, where, 1});
        continue;
      }
      for (double const budget : budgets) out.push_back({&m, m.biased ? storage::bf16_biased : where, budget});
    }
  for (method const& m : all_methods())
    for (storage const where : m.only) {
      if (!wanted(m)) continue;
      if (!m.start)
        out.push_back({&m, where, 1});
      else
        for (double const budget : budgets) out.push_back({&m, where, budget});
    }
  return out;
}

// On one short window: with a capacity that is never exceeded the loss is the full cache's to the last bit; with half of one bytes are
// fewer, or, where nothing leaves, a step reads less.
int check(study& s) {
  s.context = 256, s.fed = 48;
  auto const reader = make_held_cache(storage::bf16, s.model.config, 2 * s.context),
             judged = make_held_cache(storage::bf16, s.model.config, s.context + s.fed);
  std::string_view const text = s.windows[0], rest = text.substr(256);
  auto const read = read_through(s.model, *reader, text.substr(0, 256), 256);
  if (!read) return std::fprintf(stderr, "context: %s\n", pith::message(read.error().code)), 1;
  int wrong = 0;
  double part = 1;
  auto const loss = [&](method const& m, double budget, std::int64_t& bytes) {
    plan_row const row{&m, storage::bf16, budget};
    setting at = setting_of(s, row, s.context, s.fed);
    at.one_by_one = true;
    trial one(s.model, *judged, read.value(), m, at);
    double bits = 0;
    pith::status done = one.begin();
    if (done)
      done = one.feed(rest.substr(0, static_cast<std::size_t>(s.fed)),
                      [&](std::size_t t, std::span<float const> logits) { bits += surprise_bits(logits, rest[t + 1]); });
    if (!done) std::fprintf(stderr, "%s: %s at %lld\n", m.name.c_str(), pith::message(done.code), static_cast<long long>(done.at)), ++wrong;
    bytes = one.bytes(), part = one.read();
    return bits;
  };
  std::int64_t full_bytes = 0, bytes = 0;
  double const full = loss(all_methods()[0], 1, full_bytes);
  for (method const& m : all_methods()) {
    if (m.name != "H2O" && m.name != "SnapKV") continue;
    double const whole = loss(m, 2, bytes);
    std::printf("%s: a whole capacity gives %.17g bits, the full cache %.17g\n", m.name.c_str(), whole, full);
    wrong += whole != full || bytes != full_bytes;
    double const half = loss(m, 0.5, bytes);
    std::printf("%s: half of it gives %.6g bits in %lld of %lld bytes\n", m.name.c_str(), half, static_cast<long long>(bytes),
                static_cast<long long>(full_bytes));
    wrong += half == full || bytes >= full_bytes;
  }
  for (method const& m : all_methods()) {
    if (!m.retrieve) continue;
    double const whole = loss(m, 32, bytes);  // more than all: of LServe's streaming heads, too
    std::printf("%s: reading all gives %.17g bits, the full cache %.17g\n", m.name.c_str(), whole, full);
    // A mean value's part of what was not read, nothing, is 1 - a sum of approximate weights.
    wrong += m.name == "InstInfer" ? std::fabs(whole - full) > 1e-3 * full : whole != full;
    double const some = loss(m, 0.25, bytes);
    std::printf("%s: reading a quarter gives %.6g bits from %.3g %% of the numbers\n", m.name.c_str(), some, 100 * part);
    wrong += part >= 1 || bytes < full_bytes || std::fabs(some - full) > 0.1 * full;  // attention may have looked at nothing else
  }
  return wrong;
}

}  // namespace

int main(int argc, char** argv) {
  std::string json, html, earlier, folder = PITH_SOURCE_DIR "/examples/model";
  std::vector<std::string> filter;
  int windows = 0, asked = 0, threads = 2;
  bool summary = false, full = false, checks = false;
  study s;
  CLI::App options("Measures what eviction, merging and retrieval policies cost and save on a language model.");
  auto* const brief = options.add_flag("--summary", summary, "few windows and passages: minutes (default)");
  options.add_flag("--full", full, "many: about an hour")->excludes(brief);
  options.add_flag("--check", checks, "only check that a whole capacity changes nothing and half of one frees bytes");
  options.add_option("--json", json, "write the table as JSON to this file");
  options.add_option("--html", html, "write the table and pictures as one HTML page to this file");
  options.add_option("--filter", filter, "only policies with one of these texts in their names (and the full cache)");
  options.add_option("--add", earlier, "take the rows that are not measured now from this JSON of an earlier run");
  options.add_option("--windows", windows, "windows of held-out text that the loss is measured on");
  options.add_option("--passages", asked, "passages that recall is measured on");
  options.add_option("--threads", threads, "threads, over independent texts");
  options.add_option("--model", folder, "folder of pith-kjv.safetensors and held_out.txt");
  CLI11_PARSE(options, argc, argv);

  std::string weights;
  if (!read_file(folder + "/pith-kjv.safetensors", weights) || !read_file(folder + "/held_out.txt", s.held_out)) {
    std::fprintf(stderr, "cannot read the model in %s; --model names its folder\n", folder.c_str());
    return 1;
  }
  pith::result<llama> loaded = load_llama(std::as_bytes(std::span(weights)));
  if (!loaded) {
    std::fprintf(stderr, "pith-kjv.safetensors: %s at byte %lld\n", pith::message(loaded.error().code),
                 static_cast<long long>(loaded.error().at));
    return 1;
  }
  s.model = std::move(loaded).value();
  llama_config const& c = s.model.config;
  auto const probed = retrieval_scores(s.model);
  if (!probed) return std::fprintf(stderr, "probe: %s\n", pith::message(probed.error().code)), 1;
  s.retrieval = probed.value();
  if (full) s.fed = c.context - s.context - 1;
  if (windows <= 0) windows = full ? 16 : 6;
  if (asked <= 0) asked = full ? 100 : 24;
  std::string_view const text = s.held_out;
  s.windows = held_out_windows(s.held_out, s.context + s.fed, windows);
  if (checks) return check(s);
  for (int const distance : {300, 600})
    add_passages(distance == 300 ? text.substr(0, text.size() / 2) : text.substr(text.size() / 2), 1000, distance, asked / 2, s.passages);
  std::vector<double> const budgets{0.5, 0.25, 0.125};
  s.rows = plan(budgets, filter);

  // Texts and kinds of cache are independent of each other: threads take one after another.
  std::vector<std::vector<outcome>> losses(s.rows.size(), std::vector<outcome>(s.windows.size()));
  std::vector<std::vector<outcome>> recalls(s.rows.size(), std::vector<outcome>(s.passages.size()));
  std::size_t const texts = s.windows.size() + s.passages.size(), jobs = texts * std::size(all_storages);
  std::atomic<std::size_t> next{0};
  std::mutex progress;
  auto const work = [&] {
    for (std::size_t i = next++; i < jobs; i = next++) {
      storage const where = all_storages[i % std::size(all_storages)];
      std::size_t const text = i / std::size(all_storages);
      if (std::none_of(s.rows.begin(), s.rows.end(), [&](plan_row const& r) { return r.where == where; })) continue;
      if (text < s.windows.size())
        measure_loss(s, where, text, losses);
      else
        measure_recall(s, where, text - s.windows.size(), recalls);
      std::lock_guard const lock(progress);
      std::fprintf(stderr, "%zu of %zu  %s\n", i + 1, jobs, name_of(where));
    }
  };
  std::vector<std::thread> pool;
  for (int i = 1; i < threads; ++i) pool.emplace_back(work);
  work();
  for (std::thread& thread : pool) thread.join();

  stays_report out;
  out.conditions = {{"model", "pith-kjv"},
                    {"context", s.context},
                    {"fed", s.fed},
                    {"windows", s.windows.size()},
                    {"passages", s.passages.size()},
                    {"recall_context", 1000},
                    {"recall_distances", {300, 600}},
                    {"not_judged", {"Locret", "DMS", "LESS", "CHAI"}}};
  int failed = 0;
  for (std::size_t i = 0; i < s.rows.size(); ++i) {
    plan_row const& p = s.rows[i];
    stays_row row{.name = p.how->name,
                  .cache = name_of(p.where),
                  .paper = p.how->paper,
                  .here = p.how->here,
                  .budget = p.budget,
                  .kept = 0,
                  .read = 0};
    pith::status whole;
    for (auto const* outcomes : {&losses[i], &recalls[i]})
      for (outcome const& o : *outcomes)
        if (whole) whole = o.failure;
    if (!whole) {
      std::fprintf(stderr, "%s, %s, %g %%: %s at %lld\n", row.name.c_str(), row.cache.c_str(), 100 * row.budget, pith::message(whole.code),
                   static_cast<long long>(whole.at));
      ++failed;
      continue;
    }
    double const n = static_cast<double>(s.windows.size());
    double square = 0;
    for (std::size_t w = 0; w < s.windows.size(); ++w) {
      outcome const& o = losses[i][w];
      double const change = o.bits - losses[0][w].bits;
      row.bits += o.bits / n, row.change += change / n, square += change * change / n;
      row.bytes_after += o.bytes_after / n, row.mean_bytes += o.mean_bytes / n, row.kept += o.kept / n;
      row.device_bytes += o.device_bytes / n, row.read += o.read / n;
    }
    row.change_error = n > 1 ? std::sqrt(std::max(0.0, square - row.change * row.change) / (n - 1)) : 0;
    for (outcome const& o : recalls[i]) {
      share* const to[] = {&row.recall, &row.first, &row.second};
      for (int k = 0; k < 3; ++k) to[k]->right += o.right[k], to[k]->of += 1;
    }
    out.rows.push_back(row);
  }
  if (!earlier.empty()) {
    std::string before;
    std::vector<stays_row> rows;
    if (!read_file(earlier, before) || !from_json(before, out.conditions, rows))
      return std::fprintf(stderr, "%s is not the JSON of a run of as many windows and passages\n", earlier.c_str()), 1;
    auto const same = [](stays_row const& a, stays_row const& b) { return a.name == b.name && a.cache == b.cache && a.budget == b.budget; };
    for (stays_row const& row : rows)
      if (std::none_of(out.rows.begin(), out.rows.end(), [&](stays_row const& now) { return same(row, now); })) out.rows.push_back(row);
    std::vector<plan_row> const all = plan(budgets, {});
    auto const place = [&](stays_row const& row) {
      return std::find_if(all.begin(), all.end(), [&](plan_row const& p) {
        return p.how->name == row.name && name_of(p.where) == row.cache && p.budget == row.budget;
      });
    };
    std::stable_sort(out.rows.begin(), out.rows.end(), [&](auto const& a, auto const& b) { return place(a) < place(b); });
  }
  mark_front(out.rows);
  out.caption = detail::text(
      "%zu windows: a context of %d bytes, then %d bytes whose loss counts; %zu passages of 1000 bytes, the number 300 or 600 bytes "
      "back, another elsewhere. * no row has a lower loss in as few bytes. Locret and DMS need trained scores, LESS trained maps, CHAI "
      "heads that "
      "do not share keys: they are not judged.",
      s.windows.size(), s.context, s.fed, s.passages.size());
  print(out);
  if (!json.empty() && !detail::write_file(json, to_json(out))) return std::fprintf(stderr, "cannot write %s\n", json.c_str()), 1;
  if (!html.empty() && !detail::write_file(html, to_html(out))) return std::fprintf(stderr, "cannot write %s\n", html.c_str()), 1;
  return failed > 0;
}
