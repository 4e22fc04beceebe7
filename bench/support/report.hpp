// SPDX-License-Identifier: Apache-2.0
// Runs the registered Google Benchmarks and prints one table: value, fraction of the machine's measured floor, ratio to a baseline, error.
//
// A benchmark's name is "bench/case". Its counters: packed_bytes (that one iteration must read), values (numbers it stands for), error
// (relative, of its result), flops (or none), threads (or one). Its floor is the counter floor_seconds; or its packed_bytes at the bytes
// per second of the row that floor_of names; or packed_bytes at read_bandwidth. Its label is the full name of its baseline. Repetitions run
// interleaved; medians are shown.
// Arguments: --json FILE (appends to an array that is already there), --filter TEXT, --repetitions N.
#pragma once

#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <map>
#include <string>
#include <vector>

namespace bench {

struct row {
  std::string name, baseline;
  double seconds = 0, packed_bytes = 0, values = 0, error = 0, flops = 0, floor_seconds = 0;
  int threads = 1;
  std::int64_t order = 0;  // of registration
};

inline double read_bandwidth = 0;  // bytes per second, measured by the program before its benchmarks
inline char const* floor_name = "read bandwidth of one thread";
inline char const* floor_rule = "packed bytes at the read bandwidth";
inline std::map<std::string, std::string> floor_of;  // a benchmark's name, and the "read/..." row (support/read_row.hpp) that is its floor
inline std::string references;                       // more lines about the machine, each with its end of line
inline bool processor_time = false;                  // instead of wall time: what one thread does in its cache, whoever else uses the core

class collector : public benchmark::BenchmarkReporter {
 public:
  std::vector<row> rows;
  bool failed = false;

  bool ReportContext(Context const&) override { return true; }
  void ReportRuns(std::vector<Run> const& runs) override {
    for (Run const& run : runs) {
      if (run.error_occurred) {
        std::fprintf(stderr, "%s: %s\n", run.run_name.function_name.c_str(), run.error_message.c_str());
        failed = true;
      }
      if (run.aggregate_name != "median" || run.error_occurred) continue;
      auto const counter = [&](char const* name) {
        auto const found = run.counters.find(name);
        return found == run.counters.end() ? 0.0 : found->second.value;
      };
      row r;
      r.name = run.run_name.function_name;
      r.baseline = run.report_label;
      r.seconds = (processor_time ? run.GetAdjustedCPUTime() : run.GetAdjustedRealTime()) / benchmark::GetTimeUnitMultiplier(run.time_unit);
      r.packed_bytes = counter("packed_bytes");
      r.values = counter("values");
      r.error = counter("error");
      r.flops = counter("flops");
      r.floor_seconds = counter("floor_seconds");
      r.threads = std::max(1, static_cast<int>(counter("threads")));
      r.order = run.family_index;
      rows.push_back(r);
      std::fprintf(stderr, "  %s\n", r.name.c_str());
    }
  }
};

inline int run(int argc, char** argv, char const* title) {
  std::string json, filter, repetitions = "7";
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "--json") == 0 && i + 1 < argc)
      json = argv[++i];
    else if (std::strcmp(argv[i], "--filter") == 0 && i + 1 < argc)
      filter = argv[++i];
    else if (std::strcmp(argv[i], "--repetitions") == 0 && i + 1 < argc)
      repetitions = argv[++i];
    else {
      std::fprintf(stderr, "usage: %s [--json FILE] [--filter TEXT] [--repetitions N]\n", argv[0]);
      return 2;
    }
  }
  std::vector<std::string> flags = {argv[0], "--benchmark_repetitions=" + repetitions, "--benchmark_enable_random_interleaving=true",
                                    "--benchmark_report_aggregates_only=true"};
  if (!filter.empty()) flags.push_back("--benchmark_filter=" + filter + "|^read/");
  std::vector<char*> arguments;
  for (std::string& flag : flags) arguments.push_back(flag.data());
  int count = static_cast<int>(arguments.size());
  benchmark::Initialize(&count, arguments.data());
  collector seen;
  benchmark::RunSpecifiedBenchmarks(&seen);

  std::stable_sort(seen.rows.begin(), seen.rows.end(), [](row const& a, row const& b) { return a.order < b.order; });
  std::map<std::string, double> seconds, speed;
  for (row const& r : seen.rows) seconds[r.name] = r.seconds, speed[r.name] = r.packed_bytes / r.seconds;
  std::printf("%s\n%s", title, references.c_str());
  if (read_bandwidth > 0) std::printf("%s: %.1f GB/s\n", floor_name, read_bandwidth / 1e9);
  std::printf("\n%-52s %12s %9s %9s %9s %9s  %-8s %9s\n", "benchmark", "us", "GB/s", "values/ns", "of floor", "ratio", "error", "GFLOP/s");
  std::string out;
  for (row const& r : seen.rows) {
    double const bandwidth = floor_of.count(r.name) ? speed[floor_of[r.name]] : read_bandwidth;
    double const floor = r.floor_seconds > 0 ? r.floor_seconds / r.seconds : bandwidth > 0 ? r.packed_bytes / bandwidth / r.seconds : 0;
    double const ratio = seconds.count(r.baseline) ? seconds[r.baseline] / r.seconds : 0;
    auto const known = [](double x, char const* format) {  // "-" where a row has no such figure
      char text[32] = "-";
      if (x > 0) std::snprintf(text, sizeof text, format, x);
      return std::string(text);
    };
    std::printf("%-52s %12.3f %9s %9s %9s %8.2fx  %.2e %9s\n", r.name.c_str(), r.seconds * 1e6,
                known(r.packed_bytes / r.seconds / 1e9, "%.2f").c_str(), known(r.values / r.seconds / 1e9, "%.2f").c_str(),
                known(100 * floor, "%.1f%%").c_str(), ratio, r.error, known(r.flops / r.seconds / 1e9, "%.1f").c_str());
    char line[1024];
    std::size_t const slash = r.name.find('/');
    std::snprintf(line, sizeof line,
                  "%s\n  {\"bench\": \"%s\", \"case\": \"%s\", \"threads\": %d, \"value\": %.9g, \"unit\": \"us\", \"floor_fraction\": "
                  "%.6g, \"baseline\": \"%s\", "
                  "\"ratio\": %.6g, \"error\": %.6g}",
                  out.empty() ? "" : ",", r.name.substr(0, slash).c_str(),
                  slash == std::string::npos ? "" : r.name.substr(slash + 1).c_str(), r.threads, r.seconds * 1e6, floor, r.baseline.c_str(),
                  ratio, r.error);
    out += line;
  }
  std::printf("\nratio: time of the baseline / time; floor: %s; medians of %s interleaved repetitions\n", floor_rule, repetitions.c_str());
  if (!json.empty()) {
    std::string before;
    if (std::ifstream in(json); in) before.assign(std::istreambuf_iterator<char>(in), {});
    std::size_t const end = before.rfind("\n]");
    std::ofstream to(json);
    if (end != std::string::npos)
      to << before.substr(0, end) << (out.empty() ? "" : ",") << out << "\n]\n";
    else
      to << "[" << out << "\n]\n";
    if (!to) return 1;
  }
  return seen.rows.empty() || seen.failed ? 1 : 0;
}

}  // namespace bench
