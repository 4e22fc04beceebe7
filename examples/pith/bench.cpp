// SPDX-License-Identifier: Apache-2.0
// Compresses, verifies and decompresses a file, compares the result with it, and says how long each took and how much memory.
#include <sys/resource.h>
#include <unistd.h>

#include <chrono>
#include <cmath>
#include <cstring>
#include <random>

#include "commands.hpp"
#include "files.hpp"
#include "pith/core/bits.hpp"
#include "pith/core/scalar.hpp"
#include "work.hpp"

namespace tool {

namespace {

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// A model's shapes with made-up bf16 weights: gaussian, rows of log-normal scales (sigma 0.3), norms of ones. Weights are taken from a
// table of 2^20 at a random place for every row: each has its own mantissa and exponent statistics, and making them is faster than writing
// them.
void make_model(std::string const& path, double gigabytes, bool quiet) {
  struct tensor {
    std::string name;
    std::int64_t rows, columns;
  };
  std::vector<tensor> tensors;
  std::int64_t total = 0;
  auto const wanted = static_cast<std::int64_t>(gigabytes * 1e9);
  auto add = [&](std::string const& name, std::int64_t rows, std::int64_t columns) {
    tensors.push_back({name, rows, columns});
    total += 2 * rows * columns;
  };
  for (int layer = 0; layer == 0 || total < wanted; ++layer) {
    std::string const in = "model.layers." + std::to_string(layer) + ".";
    add(in + "input_layernorm.weight", 1, 4096);
    add(in + "self_attn.q_proj.weight", 4096, 4096);
    for (char const* name : {"k_proj", "v_proj"}) add(in + "self_attn." + name + ".weight", 1024, 4096);
    add(in + "self_attn.o_proj.weight", 4096, 4096);
    for (char const* name : {"gate_proj", "up_proj"}) add(in + "mlp." + name + ".weight", 14336, 4096);
    add(in + "mlp.down_proj.weight", 4096, 14336);
  }
  std::string text = "{\"__metadata__\":{\"format\":\"pt\"}";
  std::int64_t at = 0;
  for (tensor const& t : tensors) {
    std::int64_t const end = at + 2 * t.rows * t.columns;
    text += ",\"" + t.name + "\":{\"dtype\":\"BF16\",\"shape\":[" + (t.rows > 1 ? std::to_string(t.rows) + "," : "") +
            std::to_string(t.columns) + "],\"data_offsets\":[" + std::to_string(at) + "," + std::to_string(end) + "]}";
    at = end;
  }
  text += "}";
  std::vector<std::byte> bytes(8 + text.size());
  pith::store_le(bytes.data(), static_cast<std::uint64_t>(text.size()));
  std::memcpy(bytes.data() + 8, text.data(), text.size());

  std::mt19937_64 random(1);
  std::normal_distribution<float> normal;
  std::vector<float> table(1 << 20);
  for (float& x : table) x = normal(random);
  output_file out(path, true);
  progress shown("make", total, quiet);
  auto put = [&, place = std::int64_t{0}](std::span<std::byte const> some) mutable {
    if (auto const ok = out.write(place, some); !ok) fail(path, ok);
    place += std::ssize(some);
    shown.add(std::ssize(some));
  };
  put(bytes);
  for (tensor const& t : tensors)
    for (std::int64_t row = 0; row < t.rows; ++row) {
      stop_if_asked();
      float const scale = 0.02f * std::exp(0.3f * normal(random));
      std::size_t const from = random() % (table.size() - static_cast<std::size_t>(t.columns));
      bytes.resize(static_cast<std::size_t>(2 * t.columns));
      for (std::int64_t i = 0; i < t.columns; ++i)
        pith::store_scalar(bytes.data() + 2 * i,
                           pith::from_float<pith::bf16>(t.rows == 1 ? 1.0f : scale * table[from + static_cast<std::size_t>(i)]));
      put(bytes);
    }
  out.commit(std::ssize(text) + 8 + total);
}

bool same(std::string const& a, std::string const& b) {
  input_file const first(a), second(b);
  if (first.size() != second.size()) return false;
  std::vector<std::byte> x(1 << 22), y(x.size());
  for (std::int64_t at = 0; at < first.size(); at += std::ssize(x)) {
    auto const count = static_cast<std::size_t>(std::min(std::ssize(x), first.size() - at));
    if (auto const ok = first.read(at, std::span(x).first(count)); !ok) fail(a, ok);
    if (auto const ok = second.read(at, std::span(y).first(count)); !ok) fail(b, ok);
    if (std::memcmp(x.data(), y.data(), count) != 0) return false;
  }
  return true;
}

// Removed at the end, however it comes.
struct temporary {
  std::string path;
  ~temporary() { ::unlink(path.c_str()); }
};

}  // namespace

int bench(std::string file, double gigabytes, std::string const& folder, options const& with, threads& run) {
  std::string const stem = folder + "/pith-bench-" + std::to_string(::getpid());
  temporary const made{file.empty() ? stem + ".safetensors" : ""}, packed{stem + ".packed.safetensors"}, back{stem + ".back.safetensors"};
  if (file.empty()) make_model(file = made.path, gigabytes, with.quiet);
  totals sums;
  auto timed = [&](char const* what, auto step) {
    double const start = now();
    step();
    double const seconds = now() - start, bytes = static_cast<double>(sums.bytes_before);
    std::printf("%-11s %7.2f s  %6.2f GB/s of the original\n", what, seconds, bytes / 1e9 / seconds);
    std::fflush(stdout);
  };
  timed("compress", [&] { sums = compress_file(file, packed.path, with, run); });
  timed("verify", [&] { verify_file(packed.path, false, with, run); });
  timed("decompress", [&] { decompress_file(packed.path, back.path, with, run); });
  bool const rounds = with.codec.starts_with("int"), equal = same(file, back.path);
  rusage used{};
  ::getrusage(RUSAGE_SELF, &used);
  std::printf("%lld bytes to %lld: %.4f, %lld of %lld tensors packed; %s; peak memory %.1f MiB\n",
              static_cast<long long>(sums.bytes_before), static_cast<long long>(sums.bytes_after),
              static_cast<double>(sums.bytes_after) / static_cast<double>(sums.bytes_before), static_cast<long long>(sums.packed),
              static_cast<long long>(sums.tensors),
              equal    ? "back byte for byte"
              : rounds ? "rounded"
                       : "NOT the same when back",
              static_cast<double>(used.ru_maxrss) / 1024);
  return equal || rounds ? done : bad_file;
}

}  // namespace tool
