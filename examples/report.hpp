// SPDX-License-Identifier: Apache-2.0
// The table of the compositions that were measured, as text, JSON and one HTML page that needs nothing else.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace example {

struct report_row {
  std::string name, weights, keys, values;
  double bits_per_weight = 0, bits_per_value = 0;
  std::int64_t resident_bytes = 0;
  double bits_per_byte = 0, bits_per_byte_change = 0, change_error = 0;  // the error is the standard error of the paired change
  double recall = 0, attention_relative_error = 0, decode_us_per_token = 0, speed_ratio_to_bf16 = 0;
  double token_us = 0;  // the whole model for one token
};

struct report {
  nlohmann::ordered_json model;  // sizes, and the conditions of the measurement
  std::string caption;           // the same in one sentence
  std::vector<report_row> rows;
};

namespace detail {

inline std::string text(char const* format, ...) __attribute__((format(printf, 1, 2)));
inline std::string text(char const* format, ...) {
  char buffer[512];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(buffer, sizeof buffer, format, arguments);
  va_end(arguments);
  return buffer;
}

inline bool write_file(std::string const& path, std::string const& content) {
  std::FILE* file = std::fopen(path.c_str(), "wb");
  if (!file) return false;
  bool const written = std::fwrite(content.data(), 1, content.size(), file) == content.size();
  return std::fclose(file) == 0 && written;
}

inline std::string escaped(std::string const& from) {
  std::string out;
  for (char const c : from) out += c == '<' ? "&lt;" : c == '>' ? "&gt;" : c == '&' ? "&amp;" : std::string(1, c);
  return out;
}

// The beginning of a page that needs nothing else. left: columns of the table that hold text.
inline std::string page_head(std::string const& title, int left) {
  std::string out =
      "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\n"
      "<title>Pith: " + title + "</title>\n<style>\n"
      ":root{color-scheme:light dark;--text:#222;--paper:#fff;--line:#ddd;--mark:#1f6feb}\n"
      "@media(prefers-color-scheme:dark){:root{--text:#ddd;--paper:#15181c;--line:#3a3f45;--mark:#79b8ff}}\n"
      "body{font:15px/1.5 system-ui,sans-serif;color:var(--text);background:var(--paper);max-width:70rem;margin:2rem auto;padding:0 1rem}\n"
      "table{border-collapse:collapse;width:100%}div.wide{overflow-x:auto}th,td{padding:.3rem .6rem;border-bottom:1px solid var(--line);text-align:right}\n";
  out += text("th:nth-child(-n+%d),td:nth-child(-n+%d){text-align:left}\n", left, left);
  out += "svg{width:100%;max-width:52rem}svg text{font-size:11px;fill:var(--text)}svg circle{fill:var(--mark)}\n"
         "svg .grid{stroke:var(--line)}svg .lead{stroke:var(--mark);stroke-width:.5;fill:none}\n</style></head><body>\n";
  std::string heading = title;
  heading[0] = static_cast<char>(heading[0] - 'a' + 'A');
  return out + "<h1>" + heading + "</h1>\n";
}

}  // namespace detail

inline void print(report const& r) {
  std::printf("%-27s %9s %9s %10s %9s %19s %7s %9s %10s %7s %9s\n", "composition", "bits per", "bits per", "resident", "bits per", "change against", "recall",
              "attention", "decode", "speed", "model");
  std::printf("%-27s %9s %9s %10s %9s %19s %7s %9s %10s %7s %9s\n", "", "weight", "value", "bytes", "byte", "bf16", "", "error", "us/token", "ratio", "us/token");
  for (report_row const& row : r.rows)
    std::printf("%-27s %9.2f %9.2f %10lld %9.4f %+9.4f +- %.4f %7.2f %9.4f %10.1f %7.2f %9.0f\n", row.name.c_str(), row.bits_per_weight, row.bits_per_value,
                static_cast<long long>(row.resident_bytes), row.bits_per_byte, row.bits_per_byte_change, row.change_error, row.recall,
                row.attention_relative_error, row.decode_us_per_token, row.speed_ratio_to_bf16, row.token_us);
  std::printf("\n%s\n", r.caption.c_str());
}

inline std::string to_json(report const& r) {
  nlohmann::ordered_json out{{"model", r.model}, {"rows", nlohmann::ordered_json::array()}};
  for (report_row const& row : r.rows)
    out["rows"].push_back({{"name", row.name},
                           {"weights", row.weights},
                           {"keys", row.keys},
                           {"values", row.values},
                           {"bits_per_weight", row.bits_per_weight},
                           {"bits_per_value", row.bits_per_value},
                           {"resident_bytes", row.resident_bytes},
                           {"bits_per_byte", row.bits_per_byte},
                           {"perplexity", std::exp2(row.bits_per_byte)},
                           {"bits_per_byte_change", row.bits_per_byte_change},
                           {"recall", row.recall},
                           {"attention_relative_error", row.attention_relative_error},
                           {"decode_us_per_token", row.decode_us_per_token},
                           {"speed_ratio_to_bf16", row.speed_ratio_to_bf16},
                           {"token_us", row.token_us}});
  return out.dump(2) + "\n";
}

// Bits per value against the change of the loss. The change has a root scale, so that small and large ones stay apart on one page; a change
// below zero is drawn at zero.
inline std::string scatter_svg(report const& r) {
  constexpr double width = 760, height = 420, left = 70, right = 150, top = 20, bottom = 50;
  double most_bits = 1, most_change = 1e-4;
  for (report_row const& row : r.rows) {
    most_bits = std::max(most_bits, row.bits_per_value);
    most_change = std::max(most_change, row.bits_per_byte_change);
  }
  auto const x = [&](double bits) { return left + (width - left - right) * bits / most_bits; };
  auto const y = [&](double change) { return height - bottom - (height - top - bottom) * std::sqrt(std::max(change, 0.0) / most_change); };

  std::string out = detail::text("<svg viewBox=\"0 0 %g %g\" role=\"img\" aria-label=\"bits per value against change of held-out loss\">\n", width, height);
  for (int bits = 0; bits <= static_cast<int>(most_bits); bits += 2)
    out += detail::text("<path class=\"grid\" d=\"M%.1f %gV%g\"/><text x=\"%.1f\" y=\"%g\" text-anchor=\"middle\">%d</text>\n", x(bits), top, height - bottom,
                        x(bits), height - bottom + 18, bits);
  for (double const share : {0.0, 0.01, 0.05, 0.2, 0.5, 1.0})
    out += detail::text("<path class=\"grid\" d=\"M%g %.1fH%g\"/><text x=\"%g\" y=\"%.1f\" text-anchor=\"end\">%.4f</text>\n", left, y(share * most_change),
                        width - right, left - 6, y(share * most_change) + 4, share * most_change);
  out += detail::text("<text x=\"%g\" y=\"%g\" text-anchor=\"middle\">bits per stored value, everything counted</text>\n", (left + width - right) / 2,
                      height - 10);
  out += detail::text("<text transform=\"translate(14 %g) rotate(-90)\" text-anchor=\"middle\">change of held-out bits per byte</text>\n", (height - bottom) / 2);

  // Labels give way towards the middle: those of the lower half move up, from the lowest on; those of the upper half move down.
  std::vector<report_row> rows = r.rows;
  constexpr double middle = (top + height - bottom) / 2;
  auto const low = std::partition(rows.begin(), rows.end(), [&](report_row const& row) { return y(row.bits_per_byte_change) > middle; });
  std::sort(rows.begin(), low, [](report_row const& a, report_row const& b) { return a.bits_per_byte_change < b.bits_per_byte_change; });
  std::sort(low, rows.end(), [](report_row const& a, report_row const& b) { return a.bits_per_byte_change > b.bits_per_byte_change; });
  std::vector<std::pair<double, double>> placed;
  for (report_row const& row : rows) {
    double const px = x(row.bits_per_value), py = y(row.bits_per_byte_change);
    double label = py + 4;
    for (bool moved = true; moved;) {
      moved = false;
      for (auto const& [ox, oy] : placed)
        if (std::abs(ox - px) < 150 && std::abs(oy - label) < 11.5) label = py > middle ? oy - 12 : oy + 12, moved = true;
    }
    placed.emplace_back(px, label);
    out += detail::text("<circle cx=\"%.1f\" cy=\"%.1f\" r=\"4\"/>", px, py);
    out += detail::text("<path class=\"lead\" d=\"M%.1f %.1fL%.1f %.1f\"/>", px + 4, py, px + 8, label - 4);
    out += detail::text("<text x=\"%.1f\" y=\"%.1f\">", px + 9, label) + detail::escaped(row.name) + "</text>\n";
  }
  return out + "</svg>\n";
}

inline std::string to_html(report const& r) {
  std::string out = detail::page_head("compositions measured on a language model", 4);
  out += "<p>" + detail::escaped(r.caption) + "</p>\n" + scatter_svg(r);
  out += "<div class=\"wide\"><table><thead><tr><th>composition</th><th>weights</th><th>keys</th><th>values</th><th>bits per weight</th><th>bits per value</th><th>resident bytes</th><th>bits per byte</th>"
         "<th>change</th><th>recall</th><th>attention error</th><th>decode, us per token</th><th>speed, bf16 = 1</th><th>model, us per token</th></tr></thead><tbody>\n";
  for (report_row const& row : r.rows) {
    out += "<tr><td>" + detail::escaped(row.name) + "</td><td>" + detail::escaped(row.weights) + "</td><td>" + detail::escaped(row.keys) + "</td><td>" + detail::escaped(row.values) + "</td>";
    out += detail::text("<td>%.2f</td><td>%.2f</td><td>%lld</td><td>%.4f</td><td>%+.4f</td><td>%.2f</td><td>%.4f</td><td>%.1f</td><td>%.2f</td><td>%.0f</td></tr>\n",
                        row.bits_per_weight, row.bits_per_value, static_cast<long long>(row.resident_bytes), row.bits_per_byte, row.bits_per_byte_change,
                        row.recall, row.attention_relative_error, row.decode_us_per_token, row.speed_ratio_to_bf16, row.token_us);
  }
  return out + "</tbody></table></div></body></html>\n";
}

}  // namespace example
