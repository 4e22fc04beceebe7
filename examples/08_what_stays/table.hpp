// SPDX-License-Identifier: Apache-2.0
// What was measured of every policy, budget and cache, as text, JSON and one HTML page.
#pragma once

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "examples/report.hpp"

namespace example {

struct share {  // of passages
  double right = 0, of = 0;
  double value() const { return of > 0 ? right / of : 0; }
  double error() const { return of > 0 ? std::sqrt(value() * (1 - value()) / of) : 0; }
};

struct stays_row {
  std::string name, cache, paper, here;
  double budget = 1;                       // part of the context
  double bytes_after = 0, mean_bytes = 0;  // resident: when the policy has acted on the context, and while the text behind it is fed
  double kept = 1;                         // part of the context's slots then
  double read = 1;                         // part of the stored numbers that a step reads, to choose and to attend; 1: all
  double device_bytes = 0;                 // mean_bytes without what lies on the host
  double bits = 0, change = 0, change_error = 0;
  share recall{}, first{}, second{};
  bool on_front = false;  // no other row has a lower loss in as few bytes
};

struct stays_report {
  nlohmann::ordered_json conditions;
  std::string caption;
  std::vector<stays_row> rows;
};

inline void mark_front(std::vector<stays_row>& rows) {
  for (stays_row& r : rows)
    r.on_front = std::none_of(rows.begin(), rows.end(), [&](stays_row const& o) {
      return o.mean_bytes <= r.mean_bytes && o.change <= r.change && (o.mean_bytes < r.mean_bytes || o.change < r.change);
    });
}

inline void print(stays_report const& r) {
  std::printf("%-15s %-11s %7s %6s %6s %10s %10s %10s %8s %19s %13s %13s %13s  %s\n", "policy", "cache", "budget", "kept", "read", "bytes",
              "bytes", "on device", "bits per", "change against", "recall", "first", "second", "here");
  std::printf("%-15s %-11s %7s %6s %6s %10s %10s %10s %8s %19s %13s %13s %13s\n", "", "", "%", "%", "%", "after", "mean", "mean", "byte",
              "the full cache", "blind", "question", "question");
  for (stays_row const& x : r.rows)
    std::printf("%-15s %-11s %7.1f %6.1f %6.1f %10.0f %10.0f %10.0f %8.4f %+9.4f +- %.4f%s %5.2f +- %.2f %5.2f +- %.2f %5.2f +- %.2f  %s\n",
                x.name.c_str(), x.cache.c_str(), 100 * x.budget, 100 * x.kept, 100 * x.read, x.bytes_after, x.mean_bytes, x.device_bytes,
                x.bits, x.change, x.change_error, x.on_front ? "*" : " ", x.recall.value(), x.recall.error(), x.first.value(),
                x.first.error(), x.second.value(), x.second.error(), x.here.c_str());
  std::printf("\n%s\n", r.caption.c_str());
}

inline std::string to_json(stays_report const& r) {
  nlohmann::ordered_json out{{"conditions", r.conditions}, {"rows", nlohmann::ordered_json::array()}};
  for (stays_row const& x : r.rows)
    out["rows"].push_back({{"policy", x.name},
                           {"cache", x.cache},
                           {"budget", x.budget},
                           {"paper", x.paper},
                           {"here", x.here},
                           {"kept", x.kept},
                           {"read", x.read},
                           {"resident_bytes_after_context", x.bytes_after},
                           {"resident_bytes_mean", x.mean_bytes},
                           {"device_bytes_mean", x.device_bytes},
                           {"bits_per_byte", x.bits},
                           {"change", x.change},
                           {"change_error", x.change_error},
                           {"recall_blind", x.recall.value()},
                           {"recall_first_question", x.first.value()},
                           {"recall_second_question", x.second.value()},
                           {"on_front", x.on_front}});
  return out.dump(2) + "\n";
}

// The rows of an earlier run's JSON; false if there are none, or it measured something else.
inline bool from_json(std::string const& text, nlohmann::ordered_json const& conditions, std::vector<stays_row>& rows) {
  auto const from = nlohmann::ordered_json::parse(text, nullptr, false);
  if (from.is_discarded() || !from.contains("conditions") || !from.contains("rows")) return false;
  for (char const* what : {"model", "context", "fed", "windows", "passages", "recall_context", "recall_distances"})
    if (from["conditions"].value(what, nlohmann::ordered_json()) != conditions.value(what, nlohmann::ordered_json())) return false;
  double const passages = conditions.value("passages", 0.0);
  for (auto const& x : from["rows"]) {
    auto const answers = [&](char const* name) { return share{std::round(x.value(name, 0.0) * passages), passages}; };
    double const mean = x.value("resident_bytes_mean", 0.0);
    rows.push_back({.name = x.value("policy", ""),
                    .cache = x.value("cache", ""),
                    .paper = x.value("paper", ""),
                    .here = x.value("here", ""),
                    .budget = x.value("budget", 1.0),
                    .bytes_after = x.value("resident_bytes_after_context", 0.0),
                    .mean_bytes = mean,
                    .kept = x.value("kept", 1.0),
                    .read = x.value("read", 1.0),
                    .device_bytes = x.value("device_bytes_mean", mean),
                    .bits = x.value("bits_per_byte", 0.0),
                    .change = x.value("change", 0.0),
                    .change_error = x.value("change_error", 0.0),
                    .recall = answers("recall_blind"),
                    .first = answers("recall_first_question"),
                    .second = answers("recall_second_question")});
  }
  return true;
}

// Resident bytes against what is lost, the root of it upwards; the rows that nothing beats are joined and named, the others say their name
// when pointed at.
template <class Lost>
std::string size_and_loss_svg(stays_report const& r, std::string const& title, Lost const& lost) {
  constexpr double width = 760, height = 420, left = 70, right = 130, top = 20, bottom = 50;
  double most_bytes = 1, most = 1e-4;
  for (stays_row const& x : r.rows) most_bytes = std::max(most_bytes, x.mean_bytes), most = std::max(most, lost(x));
  auto const across = [&](double bytes) { return left + (width - left - right) * bytes / most_bytes; };
  auto const up = [&](double x) { return height - bottom - (height - top - bottom) * std::sqrt(std::max(x, 0.0) / most); };
  std::string out =
      detail::text("<svg viewBox=\"0 0 %g %g\" role=\"img\" aria-label=\"resident bytes against %s\">\n", width, height, title.c_str());
  for (double bytes = 0; bytes <= most_bytes; bytes += 512 * 1024)
    out += detail::text("<path class=\"grid\" d=\"M%.1f %gV%g\"/><text x=\"%.1f\" y=\"%g\" text-anchor=\"middle\">%.1f</text>\n",
                        across(bytes), top, height - bottom, across(bytes), height - bottom + 18, bytes / (1 << 20));
  for (double const part : {0.0, 0.01, 0.05, 0.2, 0.5, 1.0})
    out += detail::text("<path class=\"grid\" d=\"M%g %.1fH%g\"/><text x=\"%g\" y=\"%.1f\" text-anchor=\"end\">%.3f</text>\n", left,
                        up(part * most), width - right, left - 6, up(part * most) + 4, part * most);
  out +=
      detail::text("<text x=\"%g\" y=\"%g\" text-anchor=\"middle\">MiB resident, mean</text>\n", (left + width - right) / 2, height - 10);
  out +=
      detail::text("<text transform=\"translate(14 %g) rotate(-90)\" text-anchor=\"middle\">", (height - bottom) / 2) + title + "</text>\n";

  std::vector<stays_row> rows = r.rows;
  std::sort(rows.begin(), rows.end(),
            [&](auto const& a, auto const& b) { return std::pair(a.mean_bytes, lost(a)) < std::pair(b.mean_bytes, lost(b)); });
  double least = std::numeric_limits<double>::infinity();
  std::string front;
  for (stays_row const& x : rows) {
    bool const best = lost(x) < least;
    std::string const name = detail::escaped(detail::text("%s %.3g%% %s", x.name.c_str(), 100 * x.budget, x.cache.c_str()));
    out += detail::text("<circle cx=\"%.1f\" cy=\"%.1f\" r=\"%d\" opacity=\"%g\"><title>", across(x.mean_bytes), up(lost(x)), best ? 4 : 3,
                        best ? 1.0 : 0.45) +
           name + "</title></circle>\n";
    if (!best) continue;
    least = lost(x);
    front += detail::text("%c%.1f %.1f", front.empty() ? 'M' : 'L', across(x.mean_bytes), up(lost(x)));
    out += detail::text("<text x=\"%.1f\" y=\"%.1f\">", across(x.mean_bytes) + 6, up(lost(x)) - 5) + name + "</text>\n";
  }
  return out + "<path class=\"lead\" d=\"" + front + "\"/>\n</svg>\n";
}

inline std::string to_html(stays_report const& r) {
  std::string out =
      detail::page_head("what stays: policies measured on a language model", 2) + "<p>" + detail::escaped(r.caption) + "</p>\n";
  out += size_and_loss_svg(r, "change of bits per byte", [](stays_row const& x) { return x.change; });
  out += size_and_loss_svg(r, "answers missed, context compressed before the question",
                           [](stays_row const& x) { return 1 - x.recall.value(); });
  out +=
      "<div class=\"wide\"><table><thead><tr><th>policy</th><th>cache</th><th>budget, %</th><th>kept, %</th><th>read in a step, %</th>"
      "<th>bytes after the context</th><th>bytes, mean</th><th>of these on the device</th>"
      "<th>bits per byte</th><th>change</th><th>recall, blind</th><th>first question</th><th>second question</th><th>the paper's "
      "numbers</th><th>numbers here</th></tr></thead><tbody>\n";
  for (stays_row const& x : r.rows) {
    out += "<tr><td>" + detail::escaped(x.name) + (x.on_front ? " *" : "") + "</td><td>" + detail::escaped(x.cache) + "</td>";
    out += detail::text(
        "<td>%.1f</td><td>%.1f</td><td>%.1f</td><td>%.0f</td><td>%.0f</td><td>%.0f</td><td>%.4f</td><td>%+.4f &plusmn; %.4f</td>",
        100 * x.budget, 100 * x.kept, 100 * x.read, x.bytes_after, x.mean_bytes, x.device_bytes, x.bits, x.change, x.change_error);
    for (share const& s : {x.recall, x.first, x.second}) out += detail::text("<td>%.2f &plusmn; %.2f</td>", s.value(), s.error());
    out += "<td>" + detail::escaped(x.paper) + "</td><td>" + detail::escaped(x.here) + "</td></tr>\n";
  }
  return out + "</tbody></table></div></body></html>\n";
}

}  // namespace example
