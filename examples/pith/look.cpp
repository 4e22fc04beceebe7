// SPDX-License-Identifier: Apache-2.0
// verify and inspect, and what an index says of its files.
#include <algorithm>
#include <cstring>
#include <set>

#include "codecs.hpp"
#include "commands.hpp"
#include "files.hpp"
#include "pith/interop/container_reader.hpp"
#include "work.hpp"

namespace tool {

namespace {

using pith::container::entry, pith::container::index;

index opened(input_file const& in) {
  auto file = pith::container::open(in);
  if (!file) fail(in.path(), file.error());
  return std::move(file).value();
}

std::string shape_of(std::vector<std::int64_t> const& shape) {
  std::string out = "[";
  for (std::size_t i = 0; i < shape.size(); ++i) out += (i > 0 ? ", " : "") + std::to_string(shape[i]);
  return out + "]";
}

// One tensor's codes, run by run, into numbers that are thrown away.
void decode(input_file const& in, entry const& e, threads& run) {
  pith::container::packing const& p = *e.packed;
  codec const* const with = p.version == 1 && p.use == "dot" ? find_codec(p.codec, p.panel) : nullptr;
  if (with == nullptr) throw failure(not_supported, in.path() + ": tensor " + e.name + ": no codec " + p.codec);
  if (auto const ok = pith::container::check_packing(e, with->layout); !ok) fail(in.path(), ok, "tensor " + e.name);
  std::int64_t const tokens = with->layout.tokens;
  pipeline().run(run, pith::divide_up(p.rows, tokens), [&](std::int64_t i) {
    std::int64_t const rows = std::min(tokens, p.rows - i * tokens), bound = with->layout.bound_bytes(rows, p.columns);
    thread_local scratch packed, numbers;
    std::span<std::byte> const memory(packed.of(bound), static_cast<std::size_t>(bound));
    auto const read = pith::container::read_run(in, e, with->layout, i * tokens, rows, memory);
    if (!read) fail(in.path(), read.error(), "tensor " + e.name);
    auto const ok =
        with->unpack(memory.first(static_cast<std::size_t>(read.value().bytes)), rows, p.columns, numbers.of(4 * rows * p.columns));
    if (!ok) fail(in.path(), {ok.code, e.at + read.value().fixed_at + std::min(ok.at, read.value().fixed)}, "tensor " + e.name);
  });
}

}  // namespace

totals verify_file(std::string const& path, bool decoding, options const& with, threads& run) {
  input_file const in(path);
  index const file = opened(in);
  totals sums{std::ssize(file.tensors), 0, in.size(), in.size()};
  progress shown("verify", in.size(), with.quiet);
  std::mutex one_at_a_time;
  std::set<std::pair<std::int64_t, std::string>> damage;
  for (entry const& e : file.tensors) {
    std::int64_t const step = std::max<std::int64_t>(1, run_bytes_wanted / file.block_bytes),
                       blocks = pith::divide_up(e.bytes, file.block_bytes);
    pipeline().run(run, pith::divide_up(blocks, step), [&](std::int64_t i) {
      thread_local std::vector<std::byte> memory;
      memory.resize(static_cast<std::size_t>(file.block_bytes));
      for (std::int64_t block = i * step; block < std::min(blocks, (i + 1) * step); ++block) {
        auto const ok = pith::container::verify_block(in, file, e, block, memory);
        if (!ok && ok.code == pith::errc::io_error) fail(path, ok, "tensor " + e.name);
        shown.add(std::min(file.block_bytes, e.bytes - block * file.block_bytes));
        if (ok) continue;
        std::lock_guard const lock(one_at_a_time);
        damage.emplace(ok.at,
                       "tensor " + e.name + ": " + pith::message(ok.code) + ", at byte " + std::to_string(ok.at) +
                           (ok.code == pith::errc::damaged
                                ? " or in the " + std::to_string(std::min(file.block_bytes, e.at + e.bytes - ok.at) - 1) + " behind it"
                                : ""));
      }
    });
    if (decoding && e.packed && damage.empty()) decode(in, e, run);
    sums.packed += e.packed.has_value();
  }
  if (damage.empty()) return sums;
  std::string text;
  int lines = 0;
  for (auto const& [at, line] : damage)
    if (lines++ < 20) text += (text.empty() ? "" : "\n") + path + ": " + line;
  if (lines > 20) text += "\n" + path + ": and " + std::to_string(lines - 20) + " more";
  throw failure(bad_file, text);
}

totals inspect_file(std::string const& path) {
  input_file const in(path);
  index const file = opened(in);
  totals sums{std::ssize(file.tensors), 0, 0, in.size()};
  std::vector<entry const*> order;
  std::size_t widest = 6;
  for (entry const& e : file.tensors) order.push_back(&e), widest = std::max(widest, e.name.size());
  std::ranges::sort(order, {}, [](entry const* e) { return e->at; });
  std::printf("%s: %lld tensors, blocks of %lld bytes, %s\n", path.c_str(), static_cast<long long>(std::ssize(order)),
              static_cast<long long>(file.block_bytes), file.original ? "with the header from before" : "without the header from before");
  std::printf("%-*s %-8s %-16s %12s %13s %6s  %s\n", static_cast<int>(widest), "tensor", "type", "shape", "at byte", "bytes", "ratio",
              "codec");
  for (entry const* e : order) {
    pith::safetensors::dtype type{};
    std::int64_t const number = pith::safetensors::parse_dtype(e->type, type) ? pith::safetensors::bytes_of(type) : 0;
    std::int64_t const before = e->packed ? e->packed->rows * e->packed->columns * number : e->bytes;
    std::printf("%-*s %-8s %-16s %12lld %13lld %6.4f  %s\n", static_cast<int>(widest), e->name.c_str(), e->type.c_str(),
                shape_of(e->shape).c_str(), static_cast<long long>(e->at), static_cast<long long>(e->bytes),
                before > 0 ? static_cast<double>(e->bytes) / static_cast<double>(before) : 1.0,
                e->packed ? (e->packed->codec + ", panels of " + std::to_string(e->packed->panel)).c_str() : "as it is");
    sums.bytes_before += before;
    sums.packed += e->packed.has_value();
  }
  return sums;
}

model_files find_files(std::string const& path) {
  std::string const wanted = "model.safetensors";
  std::string file = path;
  if (is_folder(path))
    file = path + "/" + (::access((path + "/" + wanted + ".index.json").c_str(), F_OK) == 0 ? wanted + ".index.json" : wanted);
  model_files out;
  out.folder = file.substr(0, file.rfind('/') + 1);
  std::string const name = file.substr(out.folder.size());
  if (!name.ends_with(".json")) {
    out.names = {name};
    return out;
  }
  out.index = name;
  auto const json = nlohmann::json::parse(read_text(file), nullptr, false);
  bool const right = json.is_object() && json.contains("weight_map") && json["weight_map"].is_object();
  if (!right) throw failure(bad_file, file + ": no \"weight_map\"");
  std::set<std::string> names;
  for (auto const& [tensor, where] : json["weight_map"].items()) {
    bool const plain = where.is_string() && !where.get_ref<std::string const&>().empty() &&
                       where.get_ref<std::string const&>().find('/') == std::string::npos && where.get_ref<std::string const&>()[0] != '.';
    if (!plain) throw failure(bad_file, file + ": tensor " + tensor + " is not in a file of this folder");
    names.insert(where.get_ref<std::string const&>());
  }
  out.names.assign(names.begin(), names.end());
  return out;
}

void check_index(model_files const& files) {
  auto const json = nlohmann::json::parse(read_text(files.folder + files.index), nullptr, false);
  for (std::string const& name : files.names) {
    input_file const in(files.folder + name);
    auto const head = pith::container::read_header(in);
    if (!head) fail(in.path(), head.error());
    auto const file = pith::safetensors::read_index(head.value(), in.size(), true);
    if (!file) fail(in.path(), file.error());
    for (auto const& [tensor, where] : json["weight_map"].items()) {
      auto const found = std::ranges::find(file.value().tensors, tensor, &pith::safetensors::place::name);
      if (where == name && found == file.value().tensors.end())
        throw failure(bad_file, in.path() + ": tensor " + tensor + " is not there, but in " + files.index);
    }
  }
}

}  // namespace tool
