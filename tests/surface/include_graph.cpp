// SPDX-License-Identifier: Apache-2.0
// Reads every header under <folder>/pith and reports includes that the layout of the library forbids, headers that are too long,
// and headers without a licence line or include guard. Exit status 1 if there are any.
#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>
#include <vector>

namespace fs = std::filesystem;

struct room {
  std::string_view name;
  std::vector<std::string_view> may_include;  // other rooms; every room may include itself
};

// The arrows. "." is the folder of pith.hpp and cuda.cuh, which tie the rooms together.
room const rooms[] = {
    {"core", {}},
    {"codec", {"core"}},
    {"policy", {"core"}},
    {"page", {"core"}},
    {"simd", {"core"}},
    {"cpu", {"core", "codec", "page", "simd", "linear"}},
    {"cuda", {"core", "codec", "page", "cache", "linear"}},
    {"cache", {"core", "codec", "policy", "page"}},
    {"linear", {"core", "codec", "page"}},
    {"interop", {"core", "codec", "policy", "page", "simd", "cpu", "cache", "linear", "."}},
};
room const host_top{".", {"core", "codec", "policy", "page", "simd", "cpu", "cache", "linear"}};
room const device_top{".", {"core", "codec", "policy", "page", "cuda", "cache", "linear"}};

struct foreign {
  std::string_view prefix;                // of the name between the angle brackets
  std::vector<std::string_view> allowed;  // rooms
};
foreign const foreigners[] = {
    {"iostream", {"interop"}},
    {"ranges", {"interop"}},
    {"regex", {"interop"}},
    {"functional", {"interop"}},
    {"memory_resource", {"interop"}},
    {"Eigen/", {"interop", "codec"}},
    {"nlohmann/", {"interop"}},
    {"xxhash", {"interop"}},
    {"hiredis/", {"interop"}},
    {"xsimd/", {"simd", "cpu"}},
    {"immintrin.h", {"simd", "cpu"}},
    {"x86intrin.h", {"simd", "cpu"}},
    {"arm_neon.h", {"simd", "cpu"}},
    {"cuda", {"cuda"}},
    {"cub/", {"cuda"}},
    {"mma.h", {"cuda"}},
};
constexpr int most_lines = 400;

int violations = 0;

void report(std::string const& file, int line, std::string const& what) {
  std::printf("%s:%d: %s\n", file.c_str(), line, what.c_str());
  ++violations;
}

bool holds(std::vector<std::string_view> const& list, std::string_view name) {
  return std::find(list.begin(), list.end(), name) != list.end();
}

// "codec" for pith/codec/raw.hpp, "." for pith/pith.hpp.
std::string room_of(fs::path const& relative) {
  fs::path const folder = relative.parent_path().lexically_relative("pith");
  return folder.empty() ? std::string(".") : folder.begin()->string();
}

room const* find_room(std::string_view name, fs::path const& file) {
  if (name == ".") return file.filename() == "cuda.cuh" ? &device_top : &host_top;
  for (room const& r : rooms)
    if (r.name == name) return &r;
  return nullptr;
}

void check_include(fs::path const& root, fs::path const& file, room const& from, int line, std::string const& name, bool quoted) {
  if (!name.starts_with("pith/") && !quoted) {
    for (foreign const& f : foreigners)
      if (name.starts_with(f.prefix) && !holds(f.allowed, from.name))
        report(file, line, "<" + name + "> is not for " + std::string(from.name));
    return;
  }
  fs::path const target = name.starts_with("pith/") ? fs::path(name) : (file.parent_path() / name).lexically_normal();
  if (!fs::exists(root / target)) return report(file, line, "there is no " + target.string());
  std::string const to = room_of(target);
  if (to != from.name && !holds(from.may_include, to)) report(file, line, std::string(from.name) + " must not include " + to + ": " + name);
}

void check_file(fs::path const& root, fs::path const& file) {
  std::string const name = room_of(file);
  room const* const from = find_room(name, file);
  if (from == nullptr) return report(file, 1, "the room " + name + " has no arrows yet");

  std::ifstream in(root / file);
  std::string text;
  int line = 0;
  bool guarded = false;
  while (std::getline(in, text)) {
    ++line;
    if (line == 1 && text != "// SPDX-License-Identifier: Apache-2.0") report(file, line, "the first line is not the licence line");
    guarded |= text == "#pragma once";
    std::size_t at = text.find_first_not_of(" \t");
    if (at == std::string::npos || text[at] != '#') continue;
    at = text.find_first_not_of(" \t", at + 1);
    if (at == std::string::npos || text.compare(at, 7, "include") != 0) continue;
    std::size_t const open = text.find_first_of("<\"", at + 7);
    if (open == std::string::npos) continue;
    std::size_t const close = text.find_first_of(">\"", open + 1);
    check_include(root, file, *from, line, text.substr(open + 1, close - open - 1), text[open] == '"');
  }
  bool const table = file.extension() == ".inc";
  if (!guarded && !table) report(file, 1, "no #pragma once");
  if (line > most_lines && !table) report(file, line, "more than " + std::to_string(most_lines) + " lines");
}

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  fs::path const root = argv[1];
  std::vector<fs::path> files;
  for (fs::directory_entry const& entry : fs::recursive_directory_iterator(root / "pith"))
    if (entry.is_regular_file()) files.push_back(entry.path().lexically_relative(root));
  std::sort(files.begin(), files.end());
  for (fs::path const& file : files) check_file(root, file);
  std::printf("%zu headers\n%d violations\n", files.size(), violations);
  return violations != 0 || files.empty();
}
